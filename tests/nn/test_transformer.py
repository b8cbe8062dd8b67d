"""The transformer's layers against their equations in NumPy (Vaswani et al. 2017)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import cermet as ct
from cermet import nn

HEADS = 2


def norm(p: dict[str, Any], name: str, x: Any) -> Any:
    y = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * p[name + ".weight"]
    return y + p.get(name + ".bias", 0.0)


def linear(p: dict[str, Any], name: str, x: Any) -> Any:
    return x @ p[name + ".weight"].T + p.get(name + ".bias", 0.0)


def attention(p: dict[str, Any], name: str, q: Any, kv: Any, mask: Any) -> Any:
    """(B, T, E) with a mask (B, T, S), True where nobody looks."""
    w, b = np.split(p[name + ".in_proj_weight"], 3), np.split(p.get(name + ".in_proj_bias", np.zeros(3 * q.shape[-1])), 3)
    q, k, v = (s @ m.T + c for s, m, c in zip((q, kv, kv), w, b))
    out = np.zeros_like(q)
    size = q.shape[-1] // HEADS
    for h in range(HEADS):
        part = slice(h * size, (h + 1) * size)
        s = q[..., part] @ k[..., part].swapaxes(1, 2) / math.sqrt(size)
        s = np.where(mask, -np.inf, s)
        e = np.exp(s - s.max(-1, keepdims=True))
        out[..., part] = e / e.sum(-1, keepdims=True) @ v[..., part]
    return linear(p, name + ".out_proj", out)


def gelu(x: Any) -> Any:
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def layer(p: dict[str, Any], x: Any, mask: Any, first: bool, act: Any, memory: Any = None, memory_mask: Any = None) -> Any:
    parts = [lambda y: attention(p, "self_attn", y, y, mask)]
    if memory is not None:
        parts.append(lambda y: attention(p, "multihead_attn", y, memory, memory_mask))
    parts.append(lambda y: linear(p, "linear2", act(linear(p, "linear1", y))))
    for k, part in enumerate(parts, 1):
        x = x + part(norm(p, f"norm{k}", x)) if first else norm(p, f"norm{k}", x + part(x))
    return x


def numbers(m: Any) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    with ct.no_grad():
        for p in m.parameters():
            p.copy_(ct.tensor(rng.standard_normal(tuple(p.shape)) * 0.5))
    return {n: p.detach().numpy() for n, p in m.named_parameters()}


def inside(p: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {n[len(prefix) :]: v for n, v in p.items() if n.startswith(prefix)}


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_layers(first: bool, batch_first: bool, activation: str) -> None:
    """Encoder and decoder layers with masks, padding and either order of norms."""
    act = gelu if activation == "gelu" else lambda x: np.maximum(x, 0)
    rng = np.random.default_rng(1)
    x, memory = rng.standard_normal((2, 4, 6)), rng.standard_normal((2, 3, 6))
    causal = np.triu(np.ones((4, 4), bool), 1)
    padding = np.array([[False] * 4, [False, False, True, True]])
    missing = np.array([[False, False, True], [False] * 3])
    options: dict[str, Any] = {"norm_first": first, "batch_first": batch_first, "dtype": ct.float64, "bias": not first}
    mask = causal | padding[:, None]
    memory_mask = np.broadcast_to(missing[:, None], (2, 4, 3))

    def ours(a: Any) -> Any:
        return ct.tensor(a if batch_first else a.swapaxes(0, 1).copy())

    def check(got: Any, want: Any) -> None:
        a = got.detach().numpy()
        np.testing.assert_allclose(a if batch_first else a.swapaxes(0, 1), want, rtol=1e-9, atol=1e-10)

    encoder = nn.TransformerEncoderLayer(6, HEADS, 10, 0.0, activation, **options)
    want = layer(numbers(encoder), x, mask, first, act)
    check(encoder(ours(x), ct.tensor(causal), ct.tensor(padding)), want)
    decoder = nn.TransformerDecoderLayer(6, HEADS, 10, 0.0, activation, **options)
    want = layer(numbers(decoder), x, mask, first, act, memory, memory_mask)
    got = decoder(ours(x), ours(memory), ct.tensor(causal), None, ct.tensor(padding), memory_key_padding_mask=ct.tensor(missing))
    check(got, want)


def test_transformer() -> None:
    """Stacks with their final norms, a causal mask by its values, samples without a batch."""
    m = nn.Transformer(6, HEADS, 2, 1, 10, 0.0, batch_first=True, dtype=ct.float64)
    p = numbers(m)
    rng = np.random.default_rng(2)
    src, tgt = rng.standard_normal((2, 3, 6)), rng.standard_normal((2, 4, 6))
    causal = np.triu(np.ones((4, 4), bool), 1)
    nothing = np.zeros((1, 1, 1), bool)

    def act(x: Any) -> Any:
        return np.maximum(x, 0)

    memory = src
    for k in range(2):
        memory = layer(inside(p, f"encoder.layers.{k}."), memory, nothing, False, act)
    memory = norm(p, "encoder.norm", memory)
    want = norm(p, "decoder.norm", layer(inside(p, "decoder.layers.0."), tgt, causal, False, act, memory, nothing))
    mask = m.generate_square_subsequent_mask(4, dtype=ct.float64)
    got = m(ct.tensor(src), ct.tensor(tgt), tgt_mask=mask)
    np.testing.assert_allclose(got.detach().numpy(), want, rtol=1e-9, atol=1e-10)
    alone = m(ct.tensor(src[0]), ct.tensor(tgt[0]), tgt_mask=mask)
    np.testing.assert_allclose(alone.detach().numpy(), want[0], rtol=1e-9, atol=1e-10)
    got.sum().backward()
    assert all(q.grad is not None for q in m.parameters())


def test_refusals() -> None:
    m = nn.Transformer(6, HEADS, 1, 1, 10)
    with pytest.raises(RuntimeError, match="sequences"):
        m(ct.zeros(3, 2, 6), ct.zeros(3, 1, 6))
    with pytest.raises(RuntimeError, match="d_model"):
        m(ct.zeros(3, 2, 5), ct.zeros(3, 2, 6))
    with pytest.raises(RuntimeError, match="activation"):
        nn.TransformerEncoderLayer(6, HEADS, activation="tanh")
