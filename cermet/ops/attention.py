"""Scaled dot-product attention as one node; the compiler may replace its decomposition by a tiled kernel."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from cermet import dtypes as dt
from cermet.graph.node import Meta, broadcast_shapes
from cermet.ops.activation import softmax_op
from cermet.ops.composing import maximum_of, narrow, spread_like, swap_last, wide
from cermet.ops.contraction import contract
from cermet.ops.define import Arg, Failing, OpDef, Sample
from cermet.ops.elementwise import add, ge, gt, mul, where
from cermet.ops.movement import expand, reshape
from cermet.ops.public import public
from cermet.ops.support import check_floating, full_value, index_value, same_dtype, to_dtype


def _infer(q: Meta, k: Meta, v: Meta, *mask: Meta, causal: bool, scale: float) -> Meta:
    name = "scaled_dot_product_attention"
    check_floating(q, name)
    same_dtype(name, q, k, v)
    if (
        min(q.ndim, k.ndim, v.ndim) < 2
        or q.shape[-1] != k.shape[-1]
        or k.shape[-2] != v.shape[-2]
        or q.shape[:-2] != k.shape[:-2]
    ):
        raise ValueError(
            f"{name}: query {list(q.shape)}, key {list(k.shape)} and value {list(v.shape)} do not fit: expected (..., "
            "L, E), (..., S, E), "
            "(..., S, Ev)"
        )
    return q.with_shape((*q.shape[:-1], v.shape[-1]))


def _scores(q: Any, k: Any, mask: tuple[Any, ...], causal: bool, scale: float) -> Any:
    """Q k^T scale with what may not be seen at -inf; wide."""
    s = mul(contract(wide(q), swap_last(wide(k))), scale)
    shape = tuple(s.shape)
    low = full_value(s, -math.inf, ())
    if causal:
        n = len(shape)
        s = where(ge(index_value(s, shape, n - 2, dt.int32), index_value(s, shape, n - 1, dt.int32)), s, low)
    if mask:
        m = spread_like(mask[0], shape)
        s = where(m, s, low) if m.dtype is dt.bool else add(s, to_dtype(m, s.dtype))
    return s


def _weights(q: Any, k: Any, mask: tuple[Any, ...], causal: bool, scale: float) -> Any:
    """The softmax of the scores. A row that may see nothing has weights of zero, not NaN."""
    s = _scores(q, k, mask, causal, scale)
    last = len(s.shape) - 1
    if not mask:
        return softmax_op(s, dim=last)
    seen = gt(maximum_of(s, last, True), full_value(s, -math.inf, ()))
    zero = full_value(s, 0, ())
    return where(seen, softmax_op(where(seen, s, zero), dim=last), zero)


def _decompose(q: Any, k: Any, v: Any, *mask: Any, causal: bool, scale: float) -> Any:
    return narrow(contract(_weights(q, k, mask, causal, scale), wide(v)), q)


def _reference(q: Any, k: Any, v: Any, *mask: Any, causal: bool, scale: float) -> Any:
    s = (q @ np.swapaxes(k, -1, -2)) * scale
    if causal:
        s = np.where(np.tri(*s.shape[-2:], dtype=np.bool_), s, -np.inf)
    if mask:
        s = np.where(mask[0], s, -np.inf) if mask[0].dtype == bool else s + mask[0]
    top = s.max(-1, keepdims=True)
    e = np.exp(s - np.where(np.isinf(top), 0, top))
    total = e.sum(-1, keepdims=True)
    return e / np.where(total == 0, 1, total) @ v


_QKV = (Arg((2, 3, 5, 4)), Arg((2, 3, 6, 4)), Arg((2, 3, 6, 7)))

attention_op: OpDef = OpDef(
    "attention",
    "composite",
    _infer,
    attrs=("causal", "scale"),
    vjp="auto",
    decompose=_decompose,
    reference=_reference,
    dtypes=dt.FLOATING,
    samples=(
        Sample(_QKV, {"causal": False, "scale": 0.5}),
        Sample(_QKV, {"causal": True, "scale": 0.5}),
        Sample((*_QKV, Arg((5, 6))), {"causal": False, "scale": 1.0}),
    ),
    failing=(
        Failing((Arg((2, 5, 4)), Arg((2, 6, 3)), Arg((2, 6, 3))), {"causal": False, "scale": 1.0}, ValueError, "do not fit"),
    ),
    ulp=256,
    doc="softmax(q k^T scale + mask) v (Vaswani et al. 2017, arXiv:1706.03762). The optional fourth input: a bool "
    "mask of what may be "
    "seen, or a floating one that is added.",
)


def _repeat_heads(x: Any, times: int) -> Any:
    """Each of the heads (dimension -3) several times in a row."""
    if times == 1:
        return x
    *lead, h, s, e = x.shape
    spread = expand(reshape(x, shape=(*lead, h, 1, s, e)), shape=(*lead, h, times, s, e))
    return reshape(spread, shape=(*lead, h * times, s, e))


@public(namespaces=("nn.functional",), method=False)
def scaled_dot_product_attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """``softmax(query key^T scale + mask) value``.

    Args:
        query: (..., L, E). key: (..., S, E). value: (..., S, Ev). Leading dimensions broadcast.
        attn_mask: broadcasts to (..., L, S); bool (True: may be seen) or floating (added to the scores).
        dropout_p: probability with which attention weights are zeroed; applied whenever it is not 0.
        is_causal: position i sees positions up to i. scale: defaults to 1 / sqrt(E).
        enable_gqa: key and value have fewer heads (dimension -3), each shared by several heads of the query.

    Raises:
        ValueError, RuntimeError: where shapes do not fit, or a mask is given with ``is_causal``.
    """
    if attn_mask is not None and is_causal:
        raise RuntimeError("scaled_dot_product_attention: attn_mask and is_causal exclude each other")
    factor = 1.0 / math.sqrt(max(query.shape[-1], 1)) if scale is None else float(scale)
    if enable_gqa:
        if query.shape[-3] % key.shape[-3] or query.shape[-3] % value.shape[-3]:
            raise RuntimeError(
                f"scaled_dot_product_attention: {query.shape[-3]} query heads are not a multiple of {key.shape[-3]} key heads"
            )
        key, value = (
            _repeat_heads(key, query.shape[-3] // key.shape[-3]),
            _repeat_heads(value, query.shape[-3] // value.shape[-3]),
        )
    batch = broadcast_shapes(tuple(query.shape[:-2]), tuple(key.shape[:-2]), tuple(value.shape[:-2]))
    q, k, v = [spread_like(x, (*batch, *x.shape[-2:])) for x in (query, key, value)]
    mask = () if attn_mask is None else (attn_mask,)
    if dropout_p == 0.0:
        return attention_op(q, k, v, *mask, causal=bool(is_causal), scale=factor)
    from cermet.ops.dropout import dropout

    p = _weights(q, k, mask, bool(is_causal), factor)
    return narrow(contract(dropout(p, dropout_p, True), wide(v)), q)
