"""Norms that others are divided by: of many tensors together (clipping), of a weight's slices (weight normalisation)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from cermet import dtypes as dt
from cermet.graph.node import Meta, meta
from cermet.ops.arithmetic import abs_, maximum, minimum
from cermet.ops.composing import maximum_of, narrow, sum_of, wide
from cermet.ops.define import Arg, Failing, OpDef, Sample
from cermet.ops.elementwise import add, div, mul, ne
from cermet.ops.mathematics import pow_op, sqrt
from cermet.ops.reduction import reduce_min
from cermet.ops.support import check_floating, full_value, to_dtype

__all__ = ["total_norm", "weight_norm_op"]


def _infer(*metas: Meta, p: float) -> Meta:
    for m in metas:
        check_floating(m, "total_norm")
        if m.dtype is not metas[0].dtype:
            raise TypeError(f"total_norm: expected tensors of one dtype, got {metas[0].dtype} and {m.dtype}")
    return meta((), metas[0].dtype, metas[0].device)


def _parts(x: Any, p: float) -> Any:
    """What is added up (or compared) of one tensor, as a scalar."""
    dims = tuple(range(len(x.shape)))
    v = wide(x)
    if p == 2:
        return sum_of(mul(v, v), dims)
    size = abs_(v)
    if p == math.inf:
        return maximum_of(size, dims)
    if p == -math.inf:
        return reduce_min(size, dims=dims, keepdim=False)
    if p == 0:
        return sum_of(to_dtype(ne(v, full_value(v, 0, ())), v.dtype), dims)
    return sum_of(size if p == 1 else pow_op(size, p), dims)


def _decompose(*xs: Any, p: float) -> Any:
    total = None
    # An empty tensor has no greatest element; it adds nothing to the other norms.
    for x in [x for x in xs if math.prod(x.shape)]:
        part = _parts(x, p)
        if total is None:
            total = part
        elif p in (math.inf, -math.inf):
            total = (maximum if p > 0 else minimum)(total, part)
        else:
            total = add(total, part)
    if total is None:
        return full_value(xs[0], 0, ())
    if p not in (0, 1, math.inf, -math.inf):
        total = sqrt(total) if p == 2 else pow_op(total, 1.0 / p)
    return narrow(total, xs[0])


def _reference(*xs: Any, p: float) -> Any:
    values = [x.ravel() for x in xs if x.size]
    return np.linalg.norm(np.concatenate(values), p) if values else 0.0


total_norm = OpDef(
    "total_norm",
    "composite",
    _infer,
    attrs=("p",),
    decompose=_decompose,
    reference=_reference,
    dtypes=dt.FLOATING,
    samples=(
        Sample((Arg((3, 4)), Arg((5,))), {"p": 2.0}),
        Sample((Arg((3, 4)), Arg(()), Arg((0, 2))), {"p": 1.0}),
        Sample((Arg((3, 4)), Arg((5,))), {"p": math.inf}),
        Sample((Arg((3, 4)), Arg((5,))), {"p": 3.0}),
        Sample((Arg((0,)),), {"p": 2.0}),
    ),
    failing=(Failing((Arg((3,)), Arg((3,), (0, 4), dt.int64)), {"p": 2.0}, TypeError, "floating"),),
    ulp=64,
    doc="The p-norm of the elements of all inputs together, as one scalar. It has no gradient: it is for clipping gradients.",
)


# --------------------------------------------------------------------------------------------------------- weight norm


def _others(ndim: int, dim: int) -> tuple[int, ...]:
    """All dims but one; all of them for -1."""
    return tuple([k for k in range(ndim) if k != dim])


def _weight_infer(v: Meta, g: Meta, *, dim: int) -> Meta:
    check_floating(v, "weight_norm")
    wanted = tuple([s if k == dim else 1 for k, s in enumerate(v.shape)])
    if g.shape not in (wanted, ()) or (g.shape == () and dim >= 0):
        raise ValueError(f"weight_norm: magnitudes of shape {list(g.shape)} for a direction of shape {list(v.shape)}, dim {dim}")
    return v


def _weight_decompose(v: Any, g: Any, *, dim: int) -> Any:
    x = wide(v)
    length = sqrt(sum_of(mul(x, x), _others(len(x.shape), dim), True))
    return narrow(mul(x, div(wide(g), length)), v)


weight_norm_op = OpDef(
    "weight_norm",
    "composite",
    _weight_infer,
    attrs=("dim",),
    vjp="auto",
    decompose=_weight_decompose,
    reference=lambda v, g, *, dim: v * g / np.sqrt((v * v).sum(_others(v.ndim, dim), keepdims=True)),
    dtypes=dt.FLOATING,
    samples=(
        Sample((Arg((3, 4, 2)), Arg((3, 1, 1))), {"dim": 0}),
        Sample((Arg((3, 4)), Arg((1, 4))), {"dim": 1}),
        Sample((Arg((3, 4)), Arg(())), {"dim": -1}),
    ),
    failing=(Failing((Arg((3, 4)), Arg((4, 1))), {"dim": 0}, ValueError, "magnitudes"),),
    ulp=64,
    doc="g v / |v| with the norm over all dims but one (Salimans, Kingma 2016, arXiv:1602.07868).",
)
