"""Scaled dot-product attention: two primitives with kernels of their own, the forward pass and all its gradients.

What a kernel makes for another, the logarithm of each row's sum of exponentials, is a result and an input like any other. Gradients of
the gradients are derived from a decomposition.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from cermet import dtypes as dt
from cermet.graph.node import Call, Meta, broadcast_shapes, meta
from cermet.ops.activation import softmax_op
from cermet.ops.composing import maximum_of, narrow, shaped, spread_like, sum_of, swap_last, wide
from cermet.ops.contraction import contract
from cermet.ops.define import OUT, Arg, Failing, OpDef, Sample, ShapeError
from cermet.ops.differentiate import auto_vjp, composite_vjp
from cermet.ops.elementwise import add, ge, gt, mul, sub, where
from cermet.ops.mathematics import exp, log
from cermet.ops.movement import expand, reshape
from cermet.ops.public import public
from cermet.ops.support import check_floating, full_value, index_value, same_dtype, to_dtype, unbroadcast

__all__ = ["attention", "attention_grad", "scaled_dot_product_attention", "writes_any_strides"]

_NAME = "scaled_dot_product_attention"


# ------------------------------------------------------------------------------------------------------------- shapes


def _check(q: Meta, k: Meta, v: Meta, *mask: Meta) -> tuple[int, ...]:
    """The shape of the scores.

    Raises:
        TypeError, ValueError: where dtypes or shapes do not fit.
    """
    check_floating(q, _NAME)
    same_dtype(_NAME, q, k, v)
    if (
        min(q.ndim, k.ndim, v.ndim) < 2
        or q.shape[-1] != k.shape[-1]
        or k.shape[-2] != v.shape[-2]
        or not q.shape[:-2] == k.shape[:-2] == v.shape[:-2]
    ):
        raise ShapeError(
            f"{_NAME}: query {list(q.shape)}, key {list(k.shape)} and value {list(v.shape)} do not fit: expected (..., L, E), "
            "(..., S, E) and (..., S, Ev)"
        )
    scores = (*q.shape[:-1], k.shape[-2])
    if mask:
        m = mask[0]
        if m.ndim > len(scores) or any(a not in (1, b) for a, b in zip(m.shape[::-1], scores[::-1], strict=False)):
            raise ShapeError(f"{_NAME}: a mask of shape {list(m.shape)} does not broadcast to the scores' shape {list(scores)}")
        if m.dtype is not dt.bool and m.dtype is not q.dtype.compute:
            raise TypeError(f"{_NAME}: expected a mask of bool or {q.dtype.compute}, got {m.dtype}")
    return scores


def _infer(q: Meta, k: Meta, v: Meta, *mask: Meta, causal: bool, scale: float) -> tuple[Meta, Meta]:
    _check(q, k, v, *mask)
    return q.with_shape((*q.shape[:-1], v.shape[-1])), meta(q.shape[:-1], q.dtype.compute, q.device)


def _infer_grad(*metas: Meta, causal: bool, scale: float, wants: tuple[str, ...]) -> tuple[Meta, ...]:
    scores = _check(*metas[: len(metas) - 3])
    q, k, v = metas[:3]
    found = {"q": q, "k": k, "v": v, "mask": meta((*scores[:-2], scores[-1], scores[-2]), q.dtype.compute, q.device)}
    return tuple([found[w] for w in wants])


# -------------------------------------------------------------------------------------------------------- decomposition


def _scores(q: Any, k: Any, mask: Sequence[Any], causal: bool, scale: float) -> Any:
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


def _softmax(s: Any, mask: Sequence[Any]) -> Any:
    """The softmax of the scores. A row that may see nothing has weights of zero, not NaN."""
    last = len(s.shape) - 1
    if not mask:
        return softmax_op(s, dim=last)
    seen = gt(maximum_of(s, last, True), full_value(s, -math.inf, ()))
    zero = full_value(s, 0, ())
    return where(seen, softmax_op(where(seen, s, zero), dim=last), zero)


def _decompose(q: Any, k: Any, v: Any, *mask: Any, causal: bool, scale: float) -> tuple[Any, Any]:
    s = _scores(q, k, mask, causal, scale)
    out = narrow(contract(_softmax(s, mask), wide(v)), q)
    if s.shape[-1] == 0:
        return out, full_value(s, math.inf, tuple(s.shape[:-1]))
    last = len(s.shape) - 1
    low = full_value(s, -math.inf, ())
    top = maximum_of(s, last, True)
    seen = gt(top, low)
    base = where(seen, top, full_value(s, 0, ()))
    total = sum_of(exp(sub(s, base)), last)
    lse = add(log(total), shaped(base, tuple(s.shape[:-1])))
    return out, where(shaped(seen, tuple(s.shape[:-1])), lse, full_value(s, math.inf, ()))


def _decompose_grad(q: Any, k: Any, v: Any, *rest: Any, causal: bool, scale: float, wants: tuple[str, ...]) -> tuple[Any, ...]:
    """The gradients as a function of query, key, value, mask and the result's gradient alone."""
    *mask, g = rest
    p = _softmax(_scores(q, k, mask, causal, scale), mask)
    g = wide(g)
    dp = contract(g, swap_last(wide(v)))
    ds = mul(p, sub(dp, sum_of(mul(dp, p), len(p.shape) - 1, True)))
    made = {
        "q": lambda: narrow(mul(contract(ds, wide(k)), scale), q),
        "k": lambda: narrow(mul(contract(swap_last(ds), wide(q)), scale), k),
        "v": lambda: narrow(contract(swap_last(p), g), v),
        "mask": lambda: swap_last(ds),
    }
    return tuple([made[w]() for w in wants])


# ------------------------------------------------------------------------------------------------------------ reference


def _reference_scores(q: Any, k: Any, mask: Sequence[Any], causal: bool, scale: float) -> Any:
    s = (q @ np.swapaxes(k, -1, -2)) * scale
    if causal:
        s = np.where(np.tri(*s.shape[-2:], dtype=np.bool_), s, -np.inf)
    if mask:
        s = np.where(mask[0], s, -np.inf) if mask[0].dtype == bool else s + mask[0]
    return s


def _reference(q: Any, k: Any, v: Any, *mask: Any, causal: bool, scale: float) -> tuple[Any, Any]:
    s = _reference_scores(q, k, mask, causal, scale)
    top = s.max(-1, keepdims=True, initial=-np.inf)
    base = np.where(np.isneginf(top), 0, top).astype(s.dtype)
    e = np.exp(s - base)
    total = e.sum(-1, keepdims=True)
    blind = total == 0
    lse = np.where(blind, np.inf, base + np.log(np.where(blind, 1, total)))
    return e / np.where(blind, 1, total) @ v, lse[..., 0]


def _reference_grad(q: Any, k: Any, v: Any, *rest: Any, causal: bool, scale: float, wants: tuple[str, ...]) -> tuple[Any, ...]:
    *mask, g, out, lse = rest
    p = np.exp(_reference_scores(q, k, mask, causal, scale) - lse[..., None])
    ds = p * (g @ np.swapaxes(v, -1, -2) - (g * out).sum(-1, keepdims=True))
    turned = np.swapaxes(ds, -1, -2)
    made = {
        "q": lambda: ds @ k * scale,
        "k": lambda: turned @ q * scale,
        "v": lambda: np.swapaxes(p, -1, -2) @ g,
        "mask": lambda: turned,
    }
    return tuple([made[w]() for w in wants])


# ------------------------------------------------------------------------------------------------------------ gradients

_INPUTS = ("q", "k", "v", "mask")


def _vjp(c: Any, g: Any, g_lse: Any = None) -> Any:
    if g is None or g_lse is not None:  # not what users differentiate; right all the same
        return auto_vjp(c, g, g_lse)
    count = len(c.metas)
    wants = tuple([name for name, need in zip(_INPUTS, c.needs, strict=False) if need])
    inputs = [c[i] for i in range(count)]
    made = attention_grad(*inputs, g, c.out, c[OUT - 1], causal=c.causal, scale=c.scale, wants=wants)
    found = dict(zip(wants, made, strict=True))
    if "mask" in found:
        found["mask"] = unbroadcast(swap_last(found["mask"]), c.metas[3])
    return tuple([found.get(name) for name in _INPUTS[:count]])


def _grad_vjp(c: Any, *gs: Any) -> Any:
    """Of the decomposition: there the result and its lse are no inputs, so what leads through them is counted once."""
    count = len(c.metas) - 2
    needs = tuple(c.needs[:count])
    if not any(needs):
        return (None,) * len(c.metas)
    call = _whole_grad.call_for(c.call.attrs, tuple(c.metas[:count]))
    present = tuple([g is not None for g in gs])
    out = composite_vjp(*[g for g in gs if g is not None], *[c[i] for i in range(count)], call=call, needs=needs, present=present)
    results = iter(out if isinstance(out, tuple) else (out,))
    return (*[next(results) if need else None for need in needs], None, None)


_ATTRS = ("causal", "scale")
_QKV = (Arg((2, 3, 5, 4)), Arg((2, 3, 6, 4)), Arg((2, 3, 6, 7)))
_FREE: dict[str, Any] = {"causal": False, "scale": 0.5}

attention: OpDef = OpDef(
    "attention",
    "attention",
    _infer,
    attrs=_ATTRS,
    vjp=_vjp,
    saves=lambda n, attrs: (*range(n), OUT, OUT - 1),
    decompose=_decompose,
    reference=_reference,
    dtypes=dt.FLOATING,
    samples=(
        Sample(_QKV, _FREE),
        Sample(_QKV, {"causal": True, "scale": 0.5}),
        Sample((*_QKV, Arg((5, 6), "bool")), _FREE),
        Sample((*_QKV, Arg((2, 1, 1, 6), "bool")), _FREE),
        Sample((Arg((17, 3)), Arg((33, 3)), Arg((33, 2))), {"causal": True, "scale": 1.0}),
        Sample((Arg((2, 0, 3)), Arg((2, 4, 3)), Arg((2, 4, 2))), _FREE, gradient=False),
        Sample((Arg((2, 3, 3)), Arg((2, 0, 3)), Arg((2, 0, 2))), _FREE, gradient=False),
    ),
    failing=(
        Failing((Arg((2, 5, 4)), Arg((2, 6, 3)), Arg((2, 6, 3))), _FREE, ValueError, "do not fit"),
        Failing((*_QKV, Arg((4, 6), "bool")), _FREE, ValueError, "does not broadcast"),
    ),
    ulp=256,
    doc="softmax(q k^T scale + mask) v (Vaswani et al. 2017, arXiv:1706.03762), and the logarithm of each row's sum of exponentials "
    "(infinity for a row that may see nothing; its result is 0). The optional fourth input: a bool mask of what may be seen, or a "
    "floating one that is added; it broadcasts to (..., L, S).",
)

_BACK = (Arg((2, 3, 5, 7)), Arg((2, 3, 5, 7)), Arg((2, 3, 5), (4.0, 6.0), None))

attention_grad: OpDef = OpDef(
    "attention_grad",
    "attention",
    _infer_grad,
    attrs=(*_ATTRS, "wants"),
    vjp=_grad_vjp,
    saves=lambda n, attrs: tuple(range(n - 2)),
    reference=_reference_grad,
    dtypes=(dt.float32, dt.float64),
    samples=(
        Sample((*_QKV, *_BACK), {**_FREE, "wants": ("q", "k", "v")}, gradient=False),
        Sample((*_QKV, *_BACK), {"causal": True, "scale": 0.5, "wants": ("k", "v")}, gradient=False),
        Sample((*_QKV, Arg((3, 1, 6)), *_BACK), {**_FREE, "wants": ("q", "mask")}, gradient=False),
        Sample((*_QKV, Arg((5, 6), "bool"), *_BACK), {**_FREE, "wants": ("v",)}, gradient=False),
    ),
    ulp=256,
    doc="The gradients of `attention` that ``wants`` names, of its inputs (all of them, then the result's gradient, the result, and its "
    "second result). That of the mask has the scores' shape with the last two dimensions exchanged.",
)

_whole_grad: OpDef = OpDef(
    "attention_grad_whole",
    "composite",
    lambda *metas, causal, scale, wants: _infer_grad(
        *metas, metas[-1], metas[0].with_shape(metas[0].shape[:-1]), causal=causal, scale=scale, wants=wants
    ),
    attrs=(*_ATTRS, "wants"),
    vjp="auto",
    decompose=_decompose_grad,
    dtypes=(dt.float32, dt.float64),
    samples=(
        Sample((*_QKV, Arg((2, 3, 5, 7))), {**_FREE, "wants": ("q", "k", "v")}),
        Sample((*_QKV, Arg((3, 1, 6)), Arg((2, 3, 5, 7))), {**_FREE, "wants": ("q", "mask")}),
    ),
    ulp=512,
    doc="`attention_grad` as a function of the forward pass's inputs and the result's gradient alone.",
)


def writes_any_strides(call: Call, index: int) -> bool:
    """Whether the kernel of one of these ops writes a result in any memory order; the rest are row-major."""
    return index == 0 if call.op is attention else call.attr("wants")[index] != "mask"


# ---------------------------------------------------------------------------------------------------------------- public


def _flat(x: Any, batch: tuple[int, ...]) -> Any:
    """``x`` with leading dimensions ``batch``, all but the last two of them joined."""
    x = spread_like(x, (*batch, *x.shape[-2:]))
    return x if len(batch) <= 3 else reshape(x, shape=(math.prod(batch[:-2]), *batch[-2:], *x.shape[-2:]))


def _grouped(query: Any, key: Any, value: Any, mask: Any) -> tuple[Any, Any, Any, Any]:
    """Heads (dimension -3) in groups that share a head of key and value: a dimension more, which repeats key and value in place.

    Raises:
        RuntimeError: where there are no heads, or their numbers do not divide.
    """
    if min(len(query.shape), len(key.shape), len(value.shape)) < 3:
        raise RuntimeError(f"{_NAME}: enable_gqa needs a dimension of heads: expected (..., heads, length, features)")
    h, kh, vh = query.shape[-3], key.shape[-3], value.shape[-3]
    if 0 in (kh, vh) or h % kh or h % vh or (kh % vh and vh % kh):
        raise RuntimeError(f"{_NAME}: {h} query heads are not a multiple of {kh} key heads and {vh} value heads")
    if kh != vh:  # the fewer are repeated until there are as many of both
        key, value = (_repeated(x, max(kh, vh) // n) for x, n in ((key, kh), (value, vh)))
        kh = max(kh, vh)
    query = reshape(query, shape=(*query.shape[:-3], kh, h // kh, *query.shape[-2:]))
    key, value = (reshape(x, shape=(*x.shape[:-2], 1, *x.shape[-2:])) for x in (key, value))
    if mask is not None and len(mask.shape) >= 3:
        heads = (1, 1) if mask.shape[-3] == 1 else (kh, h // kh)
        mask = reshape(mask, shape=(*mask.shape[:-3], *heads, *mask.shape[-2:])) if mask.shape[-3] in (1, h) else mask
    return query, key, value, mask


def _repeated(x: Any, times: int) -> Any:
    """Each of the heads (dimension -3) several times in a row."""
    *lead, h, s, e = x.shape
    spread = expand(reshape(x, shape=(*lead, h, 1, s, e)), shape=(*lead, h, times, s, e))
    return reshape(spread, shape=(*lead, h * times, s, e))


def _attend(query: Any, key: Any, value: Any, mask: Any, causal: bool, factor: float, dropout_p: float) -> Any:
    batch = broadcast_shapes(tuple(query.shape[:-2]), tuple(key.shape[:-2]), tuple(value.shape[:-2]))
    q, k, v = [_flat(x, batch) for x in (query, key, value)]
    masks: tuple[Any, ...] = ()
    if mask is not None:
        if mask.dtype is not dt.bool:
            mask = to_dtype(mask, q.dtype.compute)
        if len(batch) > 3 and len(mask.shape) > 2:
            if len(mask.shape) > len(batch) + 2:
                raise ShapeError(f"{_NAME}: a mask of shape {list(mask.shape)} has more dimensions than the scores")
            mask = _flat(mask, batch)
        masks = (mask,)
    if dropout_p == 0.0:
        out = attention(q, k, v, *masks, causal=causal, scale=factor)[0]
    else:
        from cermet.ops.dropout import dropout

        weights = _softmax(_scores(q, k, masks, causal, factor), masks)
        out = narrow(contract(dropout(weights, dropout_p, True), wide(v)), q)
    return shaped(out, (*batch, *out.shape[-2:]))


@public(namespaces=("nn.functional",), method=False, autocast="lower")
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
    """``softmax(query key^T scale + mask) value``. The scores are never in memory as a whole, except with dropout, or as the gradient
    of a mask that requires one.

    Args:
        query: (..., L, E). key: (..., S, E). value: (..., S, Ev). Leading dimensions broadcast.
        attn_mask: broadcasts to (..., L, S); bool (True: may be seen) or floating (added to the scores).
        dropout_p: probability with which attention weights are zeroed; applied whenever it is not 0.
        is_causal: position i sees positions up to i. scale: defaults to 1 / sqrt(E).
        enable_gqa: key and value have fewer heads (dimension -3), each shared by several heads of the query.

    Raises:
        ValueError, RuntimeError: where shapes do not fit, or a mask is given with ``is_causal``. TypeError: for dtypes that are not
            floating or differ.
    """
    if attn_mask is not None and is_causal:
        raise RuntimeError(f"{_NAME}: attn_mask and is_causal exclude each other")
    for name, x in (("query", query), ("key", key), ("value", value)):
        if len(x.shape) < 2:
            raise ShapeError(f"{_NAME}: {name} has shape {list(x.shape)}; expected at least 2 dimensions (..., length, features)")
    if attn_mask is not None and attn_mask.dtype is not dt.bool and attn_mask.dtype.kind != "f":
        raise TypeError(f"{_NAME}: attn_mask must be bool or floating, got {attn_mask.dtype}")
    factor = 1.0 / math.sqrt(max(query.shape[-1], 1)) if scale is None else float(scale)
    if enable_gqa:
        heads = tuple(query.shape[:-2])
        q, k, v, mask = _grouped(query, key, value, attn_mask)
        out = _attend(q, k, v, mask, bool(is_causal), factor, dropout_p)
        return shaped(out, (*out.shape[:-4], heads[-1], *out.shape[-2:]))
    return _attend(query, key, value, attn_mask, bool(is_causal), factor, dropout_p)
