"""`scaled_dot_product_attention` as users call it: all forms of its arguments against NumPy in float64, gradients, layers, memory."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import cermet as ct
import cermet.nn.functional as F
from cermet import nn
from cermet.lazy import run as lazy_run


def numbers(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng((seed, *shape)).standard_normal(shape)


def reference(q: Any, k: Any, v: Any, mask: Any = None, causal: bool = False, scale: float | None = None) -> np.ndarray:
    s = q @ np.swapaxes(k, -1, -2) * (1 / np.sqrt(q.shape[-1]) if scale is None else scale)
    if causal:
        s = np.where(np.tri(*s.shape[-2:], dtype=bool), s, -np.inf)
    if mask is not None:
        s = np.where(mask, s, -np.inf) if mask.dtype == bool else s + mask
    top = s.max(-1, keepdims=True)
    e = np.exp(s - np.where(np.isinf(top), 0, top))
    total = e.sum(-1, keepdims=True)
    return np.asarray(e / np.where(total == 0, 1, total) @ v)


def seen(*shape: int) -> np.ndarray:
    return np.random.default_rng(5).random(shape) > 0.4


FORMS: dict[str, tuple[tuple[tuple[int, ...], ...], dict[str, Any]]] = {
    "no batch": (((7, 4), (9, 4), (9, 5)), {}),
    "one batch dim": (((3, 7, 4), (3, 9, 4), (3, 9, 5)), {}),
    "five batch dims": (((2, 1, 2, 1, 3, 7, 4), (2, 1, 2, 1, 3, 9, 4), (2, 1, 2, 1, 3, 9, 5)), {}),
    "batch dims broadcast": (((2, 3, 7, 4), (1, 3, 9, 4), (3, 9, 5)), {}),
    "causal, more queries": (((2, 3, 23, 4), (2, 3, 9, 4), (2, 3, 9, 5)), {"is_causal": True}),
    "causal, more keys": (((2, 3, 9, 4), (2, 3, 23, 4), (2, 3, 23, 5)), {"is_causal": True}),
    "scale": (((2, 3, 9, 4), (2, 3, 23, 4), (2, 3, 23, 5)), {"scale": 0.9}),
    "bool (L, S)": (((2, 3, 9, 4), (2, 3, 23, 4), (2, 3, 23, 5)), {"attn_mask": seen(9, 23)}),
    "bool (B, 1, 1, S)": (((2, 3, 9, 4), (2, 3, 23, 4), (2, 3, 23, 5)), {"attn_mask": seen(2, 1, 1, 23)}),
    "bool (B, H, L, S)": (((2, 3, 9, 4), (2, 3, 23, 4), (2, 3, 23, 5)), {"attn_mask": seen(2, 3, 9, 23)}),
    "bool (S,)": (((2, 3, 9, 4), (2, 3, 23, 4), (2, 3, 23, 5)), {"attn_mask": seen(23)}),
    "bool (L, 1)": (((2, 3, 9, 4), (2, 3, 23, 4), (2, 3, 23, 5)), {"attn_mask": seen(9, 1)}),
    "added (L, S)": (((2, 3, 9, 4), (2, 3, 23, 4), (2, 3, 23, 5)), {"attn_mask": numbers(9, 23)}),
    "added (H, 1, S)": (((2, 3, 9, 4), (2, 3, 23, 4), (2, 3, 23, 5)), {"attn_mask": numbers(3, 1, 23)}),
    "five batch dims and a mask": (
        ((2, 1, 2, 1, 3, 7, 4), (2, 1, 2, 1, 3, 9, 4), (2, 1, 2, 1, 3, 9, 5)), {"attn_mask": seen(2, 1, 1, 1, 1, 7, 9)},
    ),
    "one query": (((2, 3, 1, 4), (2, 3, 23, 4), (2, 3, 23, 5)), {"attn_mask": seen(2, 1, 1, 23)}),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [ct.float32, ct.float64], ids=["float32", "float64"])
def test_forms_of_arguments(form: str, dtype: Any) -> None:
    shapes, named = FORMS[form]
    values = [numbers(*s, seed=k) for k, s in enumerate(shapes)]
    mask = named.get("attn_mask")
    given = dict(named)
    if mask is not None:
        given["attn_mask"] = ct.tensor(mask, dtype=None if mask.dtype == bool else dtype)
    got = F.scaled_dot_product_attention(*[ct.tensor(v, dtype=dtype) for v in values], **given)
    want = reference(*values, mask, named.get("is_causal", False), named.get("scale"))
    assert tuple(got.shape) == want.shape
    np.testing.assert_allclose(got.numpy(), want, rtol=0, atol=1e-12 if dtype is ct.float64 else 2e-6)


@pytest.mark.parametrize("form", FORMS)
def test_gradients(form: str) -> None:
    """Along a random direction, against differences; of a floating mask too."""
    shapes, named = FORMS[form]
    mask = named.get("attn_mask")
    values = [numbers(*s, seed=k) for k, s in enumerate(shapes)]
    if mask is not None and mask.dtype != bool:
        values.append(mask)
    weight = numbers(*reference(*values[:3], mask, named.get("is_causal", False), named.get("scale")).shape, seed=9)

    def loss(*x: Any) -> float:
        m = x[3] if len(x) > 3 else mask
        return float((reference(*x[:3], m, named.get("is_causal", False), named.get("scale")) * weight).sum())

    leaves = [ct.tensor(v, dtype=ct.float64).requires_grad_() for v in values]
    given = {k: v for k, v in named.items() if k != "attn_mask"}
    if mask is not None:
        given["attn_mask"] = leaves[3] if len(leaves) > 3 else ct.tensor(mask)
    out = F.scaled_dot_product_attention(*leaves[:3], **given)
    (out * ct.tensor(weight, dtype=ct.float64)).sum().backward()
    for place, leaf in enumerate(leaves):
        direction = numbers(*values[place].shape, seed=11 + place)
        up, down = (loss(*[v + h * direction if k == place else v for k, v in enumerate(values)]) for h in (1e-5, -1e-5))
        got = float((leaf.grad.numpy() * direction).sum())
        assert abs(got - (up - down) / 2e-5) < 1e-7 * max(1.0, abs(got)), place


def second(make: Callable[..., Any], *values: np.ndarray) -> None:
    inputs = [ct.tensor(v, dtype=ct.float64).requires_grad_() for v in values]
    assert ct.autograd.gradcheck(make, inputs)
    assert ct.autograd.gradgradcheck(make, inputs)


def test_gradients_of_gradients() -> None:
    q, k, v = numbers(1, 2, 3, 2), numbers(1, 2, 4, 2, seed=1), numbers(1, 2, 4, 3, seed=2)
    second(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True), q, k, v)
    second(lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v, m), q, k, v, numbers(3, 4, seed=3))
    hidden = ct.tensor(seen(3, 4))
    second(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, hidden), q, k, v)


@pytest.mark.parametrize("heads", [(6, 2, 2), (6, 1, 1), (4, 4, 4), (6, 3, 1)])
def test_grouped_heads(heads: tuple[int, int, int]) -> None:
    h, kh, vh = heads
    q, k, v = numbers(2, h, 5, 4), numbers(2, kh, 7, 4, seed=1), numbers(2, vh, 7, 3, seed=2)
    leaves = [ct.tensor(x, dtype=ct.float64).requires_grad_() for x in (q, k, v)]
    mask = seen(2, h, 5, 7)
    got = F.scaled_dot_product_attention(*leaves, attn_mask=ct.tensor(mask), enable_gqa=True)
    want = reference(q, np.repeat(k, h // kh, 1), np.repeat(v, h // vh, 1), mask)
    np.testing.assert_allclose(got.detach().numpy(), want, atol=1e-12)
    got.sum().backward()
    assert [tuple(x.grad.shape) for x in leaves] == [q.shape, k.shape, v.shape]


def test_rows_that_see_nothing() -> None:
    """0, and no gradient, not NaN."""
    leaves = [ct.tensor(numbers(2, 20, 4, seed=k), dtype=ct.float32).requires_grad_() for k in range(3)]
    mask = np.ones((20, 20), bool)
    mask[[3, 17]] = False
    for m in (ct.tensor(mask), ct.tensor(np.where(mask, 0.0, -np.inf), dtype=ct.float32)):
        out = F.scaled_dot_product_attention(*leaves, attn_mask=m)
        grads = ct.autograd.grad(out.sum(), leaves)
        assert not out.detach().numpy()[:, [3, 17]].any()
        assert all(np.isfinite(g.numpy()).all() for g in grads)
        assert not grads[0].numpy()[:, [3, 17]].any()


def test_great_mask_values_do_not_overflow() -> None:
    """The least finite number as "hidden": a row of nothing else weighs all alike."""
    q, k, v = (ct.tensor(numbers(2, 20, 4, seed=s), dtype=ct.float32) for s in range(3))
    low = ct.full((20, 20), float(np.finfo(np.float32).min))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=low)
    np.testing.assert_allclose(out.numpy(), np.broadcast_to(v.numpy().mean(1, keepdims=True), out.shape), atol=1e-6)


def test_nan_stays() -> None:
    q = numbers(1, 20, 4)
    q[0, 5, 1] = np.nan
    out = F.scaled_dot_product_attention(*[ct.tensor(x, dtype=ct.float32) for x in (q, numbers(1, 9, 4), numbers(1, 9, 4))])
    bad = np.isnan(out.numpy()).any(-1)[0]
    assert bad[5]
    assert bad.sum() == 1


def test_heads_of_one_projection() -> None:
    """Queries, keys and values as views of one tensor, the heads merged afterwards: the
    gradients are written where the projection's gradient lies."""
    x = ct.tensor(numbers(2, 40, 24), dtype=ct.float32)
    w = ct.tensor(numbers(72, 24, seed=1) / 5, dtype=ct.float32).requires_grad_()
    last, given = ct.tensor(np.ones((24, 1), np.float32)), ct.tensor(np.ones((2, 40, 1), np.float32))

    def merged(qkv: Any) -> Any:
        q, k, v = (p.view(2, 40, 3, 8).transpose(1, 2) for p in qkv.chunk(3, dim=-1))
        return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(2, 40, 24)

    schedules: list[Any] = []
    build = lazy_run.build_schedule
    lazy_run.build_schedule = lambda *a, **n: schedules.append(build(*a, **n)) or schedules[-1]  # type: ignore[func-returns-value]
    try:
        out = merged(F.linear(x, w)) @ last
        (grad,) = ct.autograd.grad(out, w, given)
        ct.realize(out, grad)
    finally:
        lazy_run.build_schedule = build
    names = [c.name for s in schedules for c in s.calls]
    # Of merged heads the product still takes a copy; of the rest, and of the gradients' sum, nothing.
    assert sum("copy" in n for n in names) <= 1, names
    assert not any("add" in n or "where" in n for n in names), names
    qkv = (x.numpy().astype(np.float64) @ w.detach().numpy().T.astype(np.float64)).reshape(2, 40, 3, 3, 8)
    q, k, v = (np.swapaxes(qkv[:, :, j], 1, 2) for j in range(3))
    want = np.swapaxes(reference(q, k, v, causal=True), 1, 2).reshape(2, 40, 24).sum(-1, keepdims=True)
    np.testing.assert_allclose(out.detach().numpy(), want, atol=2e-5)
    with ct.eager():
        (apart,) = ct.autograd.grad(merged(F.linear(x, w)) @ last, w, given)
    np.testing.assert_array_equal(apart.numpy(), grad.numpy())


def test_gradient_of_a_part_that_is_kept() -> None:
    """What is a result of its own keeps its memory, and the whole is still right."""
    x = ct.tensor(numbers(2, 10, 12), dtype=ct.float64).requires_grad_()

    def run(keep: bool) -> tuple[Any, Any]:
        q, k, v = x.view(2, 10, 3, 4).unbind(2)
        if keep:
            q.retain_grad()
        F.scaled_dot_product_attention(q, k, v).sum().backward()
        whole, x.grad = x.grad, None
        return whole.numpy(), q.grad.numpy() if keep else None

    (alone, _), (whole, part) = run(False), run(True)
    np.testing.assert_array_equal(alone, whole)
    np.testing.assert_array_equal(part, whole.reshape(2, 10, 3, 4)[:, :, 0])


def test_same_bits_for_any_threads() -> None:
    values = [numbers(1, 3, 300, 32, seed=k) for k in range(3)]
    found = []
    before = ct.get_num_threads()
    try:
        for threads, _ in itertools.product((1, 2, 3), range(2)):
            ct.set_num_threads(threads)
            leaves = [ct.tensor(v, dtype=ct.float32).requires_grad_() for v in values]
            out = F.scaled_dot_product_attention(*leaves, is_causal=True)
            out.sum().backward()
            found.append([out.detach().numpy(), *[x.grad.numpy() for x in leaves]])
    finally:
        ct.set_num_threads(before)
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


def test_layer_goes_through_it() -> None:
    """MultiheadAttention with and without weights to return gives the same values."""
    ct.manual_seed(0)
    layer = nn.MultiheadAttention(16, 4, batch_first=True)
    x = ct.tensor(numbers(3, 9, 16), dtype=ct.float32)
    hidden = ct.tensor(np.arange(9)[None] >= np.array([[9], [5], [7]]))
    fast, none = layer(x, x, x, key_padding_mask=hidden, need_weights=False)
    slow, weights = layer(x, x, x, key_padding_mask=hidden)
    assert none is None
    assert tuple(weights.shape) == (3, 9, 9)
    np.testing.assert_allclose(fast.detach().numpy(), slow.detach().numpy(), atol=2e-6)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (lambda x: (x, x[..., :2], x), ValueError, r"query \[2, 5, 4\], key \[2, 5, 2\]"),
        (lambda x: (x, x, x[:, :3]), ValueError, "do not fit"),
        (lambda x: (x[0, 0], x, x), ValueError, r"query has shape \[4\]"),
        (lambda x: (x, x, x, ct.ones(3, 5, dtype=ct.bool)), ValueError, r"a mask of shape \[3, 5\] does not broadcast"),
        (lambda x: (x, x, x, ct.ones(5, 5, dtype=ct.int64)), TypeError, "attn_mask must be bool or floating"),
        (lambda x: (x, x, x, ct.ones(5, 5, dtype=ct.bool), 0.0, True), RuntimeError, "exclude each other"),
        (lambda x: (x, x.double(), x), TypeError, "float64"),
        (lambda x: (x, x, x, None, 0.0, False, None, True), RuntimeError, "multiple|divide|heads"),
    ],
)
def test_errors(arguments: Callable[[Any], tuple[Any, ...]], error: type[Exception], words: str) -> None:
    x = ct.zeros(2, 5, 4)
    given = arguments(x)
    if len(given) == 8:
        given = (ct.zeros(5, 3, 4), ct.zeros(2, 3, 4), ct.zeros(2, 3, 4), *given[3:])
    with pytest.raises(error, match=words):
        F.scaled_dot_product_attention(*given)


def test_masks_cut_from_one_tensor() -> None:
    """A mask's gradient has a memory order of its own, so what it is part of takes the long way."""
    x = ct.tensor(numbers(2, 20, 8), dtype=ct.float64).requires_grad_()
    bias = ct.tensor(numbers(2, 2, 20, 20), dtype=ct.float64).requires_grad_()
    one, two = bias.unbind(0)
    h = x.view(2, 20, 2, 4).transpose(1, 2)
    total = F.scaled_dot_product_attention(h, h, h, one) + 2 * F.scaled_dot_product_attention(h, h, h, two)
    got = ct.autograd.grad((total * total).sum(), (x, bias))
    with ct.eager():
        one, two = bias.unbind(0)
        h = x.view(2, 20, 2, 4).transpose(1, 2)
        total = F.scaled_dot_product_attention(h, h, h, one) + 2 * F.scaled_dot_product_attention(h, h, h, two)
        want = ct.autograd.grad((total * total).sum(), (x, bias))
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-9, atol=1e-10)
