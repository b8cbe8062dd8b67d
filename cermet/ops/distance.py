"""Distances and angles between vectors."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from cermet import dtypes as dt
from cermet.graph.node import Meta, broadcast_shapes, meta
from cermet.ops.arithmetic import abs_, clamp_min, sign
from cermet.ops.composing import maximum_of, narrow, shaped, sum_of, wide
from cermet.ops.contraction import contract
from cermet.ops.define import OUT, Arg, Failing, OpDef, Sample, ShapeError
from cermet.ops.elementwise import add, div, eq, mul, ne, neg, sub, where
from cermet.ops.mathematics import pow_op, sqrt
from cermet.ops.movement import permute, reshape
from cermet.ops.public import public
from cermet.ops.support import check_floating, full_value, promote, same_dtype, to_dtype, unbroadcast, wrap_dim, zeros_like_value

__all__ = ["distance_op"]


def _infer(x: Meta, y: Meta, *, p: float, eps: float) -> Meta:
    check_floating(x, "distance")
    same_dtype("distance", x, y)
    try:
        shape = broadcast_shapes(x.shape, y.shape)
    except ValueError as e:
        raise ShapeError(f"distance: {e}") from None
    return meta(shape[:-1], x.dtype, x.device)


def _apart(x: Any, y: Any, eps: float) -> Any:
    d = sub(wide(x), wide(y))
    return add(d, eps) if eps else d


def _decompose(x: Any, y: Any, *, p: float, eps: float) -> Any:
    d = _apart(x, y, eps)
    dim = len(d.shape) - 1
    if p == 2:
        return narrow(sqrt(sum_of(mul(d, d), dim)), x)
    size = abs_(d)
    if p == math.inf:
        return narrow(maximum_of(size, dim), x)
    if p == 0:
        return narrow(sum_of(to_dtype(ne(d, full_value(d, 0, ())), d.dtype), dim), x)
    if p == 1:
        return narrow(sum_of(size, dim), x)
    return narrow(pow_op(sum_of(pow_op(size, p), dim), 1.0 / p), x)


def _grad_decompose(g: Any, x: Any, y: Any, out: Any, *, p: float, eps: float) -> Any:
    """sign(d) |d|^(p-1) / out^(p-1), and 0 where the distance is 0."""
    d = _apart(x, y, eps)
    shape = (*out.shape, 1)
    r, h = shaped(wide(out), shape), shaped(wide(g), shape)
    zero = zeros_like_value(d, ())
    if p == 0:
        slope = mul(d, 0.0)
    elif p == math.inf:
        slope = mul(sign(d), to_dtype(eq(abs_(d), r), d.dtype))
    elif p == 1:
        slope = sign(d)
    else:
        safe = where(eq(r, zero), full_value(r, 1, ()), r)
        unit = div(d, safe)
        slope = unit if p == 2 else mul(sign(d), pow_op(abs_(unit), p - 1.0))
        slope = where(eq(mul(d, r), zero), zero, slope)
    gx = mul(h, slope)
    like = x
    return (
        narrow(unbroadcast(gx, meta(tuple(x.shape), gx.dtype)), like),
        narrow(unbroadcast(neg(gx), meta(tuple(y.shape), gx.dtype)), like),
    )


def _reference(x: Any, y: Any, *, p: float, eps: float) -> Any:
    d = np.abs(x - y + eps)
    if p == math.inf:
        return d.max(-1)
    return (d != 0).sum(-1) if p == 0 else (d**p).sum(-1) ** (1 / p)


distance_grad: OpDef = OpDef(
    "distance_grad",
    "composite",
    lambda g, x, y, out, *, p, eps: (x, y),
    attrs=("p", "eps"),
    vjp="auto",
    decompose=_grad_decompose,
    dtypes=dt.FLOATING,
    doc="The gradient of distance. Inputs: the result's gradient, both inputs, the result.",
)

distance_op: OpDef = OpDef(
    "distance",
    "composite",
    _infer,
    attrs=("p", "eps"),
    vjp=lambda c, g: distance_grad(g, c[0], c[1], c.out, p=c.p, eps=c.eps),
    saves=(0, 1, OUT),
    decompose=_decompose,
    reference=_reference,
    dtypes=dt.FLOATING,
    samples=(
        Sample((Arg((3, 4)), Arg((3, 4), (4.0, 6.0))), {"p": 2.0, "eps": 1e-6}),
        Sample((Arg((3, 1, 4)), Arg((2, 4), (4.0, 6.0))), {"p": 3.0, "eps": 0.0}),
        Sample((Arg((3, 4)), Arg((4,), (4.0, 6.0))), {"p": 1.0, "eps": 0.0}),
        Sample((Arg((3, 4)), Arg((3, 4), (4.0, 6.0))), {"p": math.inf, "eps": 0.0}),
        Sample((Arg((3, 4)), Arg((3, 4))), {"p": 0.0, "eps": 0.0}, gradient=False),
        Sample((Arg((3, 4)), Arg((3, 4), (4.0, 6.0))), {"p": 2.0, "eps": 0.0}),
    ),
    failing=(Failing((Arg((3, 4)), Arg((3, 5))), {"p": 2.0, "eps": 0.0}, ValueError, "broadcast"),),
    ulp=64,
    doc="The p-norm of x - y + eps over the last dimension; its gradient is 0 where the distance is.",
)


@public(namespaces=("nn.functional", ""), method=False)
def pairwise_distance(x1: Any, x2: Any, p: float = 2.0, eps: float = 1e-6, keepdim: bool = False) -> Any:
    """The p-norm of ``x1 - x2 + eps`` over the last dimension; leading dimensions broadcast."""
    a, b = promote(x1, x2)
    out = distance_op(a, b, p=float(p), eps=float(eps))
    return shaped(out, (*out.shape, 1)) if keepdim else out


def _by_products(a: Any, b: Any) -> Any:
    """Euclidean distances from a matrix product: quick, and inexact for near vectors."""
    n = len(a.shape)
    turned = permute(b, dims=(*range(n - 2), n - 1, n - 2))
    squares = add(sum_of(mul(a, a), n - 1, True), sum_of(mul(turned, turned), n - 2, True))
    return sqrt(clamp_min(sub(squares, mul(contract(a, turned), 2.0)), 0.0))


@public(method=False, autocast="float32")
def cdist(x1: Any, x2: Any, p: float = 2.0, compute_mode: str = "use_mm_for_euclid_dist_if_necessary") -> Any:
    """All p-norm distances between the rows of (B, P, M) and (B, R, M), as (B, P, R); batches broadcast.

    Args:
        compute_mode: "use_mm_for_euclid_dist" makes Euclidean distances from a matrix product, which is quicker and inexact for
            near vectors; the other modes of PyTorch add up differences.

    Raises:
        RuntimeError: for rows of different lengths, or a negative p. ValueError: for an unknown mode.
    """
    modes = ("use_mm_for_euclid_dist_if_necessary", "use_mm_for_euclid_dist", "donot_use_mm_for_euclid_dist")
    if compute_mode not in modes:
        raise ValueError(f"cdist: compute_mode={compute_mode!r}; give one of {', '.join(modes)}")
    if min(len(x1.shape), len(x2.shape)) < 2 or x1.shape[-1] != x2.shape[-1]:
        raise RuntimeError(f"cdist: expected (B, P, M) and (B, R, M), got shapes {list(x1.shape)} and {list(x2.shape)}")
    if p < 0:
        raise RuntimeError(f"cdist: p={p}; give 0 or more")
    a, b = promote(x1, x2)
    if compute_mode == modes[1] and p == 2 and tuple(a.shape[:-2]) == tuple(b.shape[:-2]):
        return _by_products(a, b)
    rows = reshape(a, shape=(*a.shape[:-1], 1, a.shape[-1]))
    cols = reshape(b, shape=(*b.shape[:-2], 1, *b.shape[-2:]))
    return distance_op(rows, cols, p=float(p), eps=0.0)


@public(namespaces=("nn.functional", ""), method=False)
def pdist(input: Any, p: float = 2.0) -> Any:
    """The p-norm distances between all pairs i < j of the rows of (N, M), as a vector."""
    if len(input.shape) != 2:
        raise RuntimeError(f"pdist: expected (N, M), got shape {list(input.shape)}")
    from cermet.ops.define import hooks

    i, j = np.triu_indices(input.shape[0], 1)
    left, right = [hooks.to_tensor(v.astype(np.int64), dtype=None, like=None) for v in (i, j)]
    return distance_op(input.index_select(0, left), input.index_select(0, right), p=float(p), eps=0.0)


# ---------------------------------------------------------------------------------------------------------------- cosine


def _cosine_infer(x: Meta, y: Meta, *, dim: int, eps: float) -> Meta:
    check_floating(x, "cosine_similarity")
    same_dtype("cosine_similarity", x, y)
    try:
        shape = broadcast_shapes(x.shape, y.shape)
    except ValueError as e:
        raise ShapeError(f"cosine_similarity: {e}") from None
    return x.with_shape(shape[:dim] + shape[dim + 1 :])


def _cosine(x: Any, y: Any, *, dim: int, eps: float) -> Any:
    a, b = wide(x), wide(y)
    shape = broadcast_shapes(tuple(a.shape), tuple(b.shape))
    a, b = [shaped(v, (1,) * (len(shape) - len(v.shape)) + tuple(v.shape)) for v in (a, b)]
    dot = sum_of(mul(a, b), dim)
    # A vector of length 1 in the summed dim broadcasts: it then counts as often as the other has elements.
    times = [float(shape[dim] // v.shape[dim]) for v in (a, b)]
    squares = [sum_of(mul(v, v), dim) for v in (a, b)]
    lengths = [sqrt(clamp_min(s if t == 1 else mul(s, t), eps * eps)) for s, t in zip(squares, times)]
    return narrow(div(dot, mul(*lengths)), x)


def _np_cosine(x: Any, y: Any, *, dim: int, eps: float) -> Any:
    a, b = np.broadcast_arrays(x, y)
    lengths = [np.maximum(np.sqrt((v * v).sum(dim)), eps) for v in (a, b)]
    return (a * b).sum(dim) / (lengths[0] * lengths[1])


cosine_op = OpDef(
    "cosine_similarity",
    "composite",
    _cosine_infer,
    attrs=("dim", "eps"),
    vjp="auto",
    decompose=_cosine,
    reference=_np_cosine,
    dtypes=dt.FLOATING,
    samples=(
        Sample((Arg((3, 4)), Arg((3, 4))), {"dim": 1, "eps": 1e-8}),
        Sample((Arg((3, 1, 4)), Arg((2, 4))), {"dim": 2, "eps": 1e-8}),
        Sample((Arg((3, 4)), Arg((3, 1))), {"dim": 1, "eps": 1e-8}),
    ),
    failing=(Failing((Arg((3, 4)), Arg((3, 5))), {"dim": 1, "eps": 1e-8}, ValueError, "broadcast"),),
    ulp=64,
    doc="x . y / (|x| |y|) over a dim, with each length at least eps.",
)


@public(namespaces=("nn.functional", ""), method=False)
def cosine_similarity(x1: Any, x2: Any, dim: int = 1, eps: float = 1e-8) -> Any:
    """``x1 . x2 / (max(|x1|, eps) max(|x2|, eps))`` over ``dim``; the inputs broadcast."""
    a, b = promote(x1, x2)
    ndim = max(len(a.shape), len(b.shape))
    return cosine_op(a, b, dim=wrap_dim(dim, ndim, "cosine_similarity"), eps=float(eps))
