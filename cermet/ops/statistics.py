"""Reductions that users call: sums, means, variances, norms, extrema and their positions, truth, counts."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from cermet import dtypes as dt
from cermet.graph.node import Meta
from cermet.graph.sizes import at_least
from cermet.ops.arithmetic import abs_, isnan, maximum, minimum, sign
from cermet.ops.define import OUT, Arg, Failing, OpDef, Sample, count_of, whole_of
from cermet.ops.elementwise import add, choose, div, eq, mul, ne, sub
from cermet.ops.mathematics import exp, log, pow_op, sqrt, square
from cermet.ops.movement import reshape
from cermet.ops.public import public
from cermet.ops.reduction import reduce_all, reduce_any, reduce_max, reduce_min, reduce_prod, reduce_sum, reduced_shape, spread
from cermet.ops.support import (
    check_dtype,
    check_floating,
    floating,
    index_value,
    promote,
    result_tuple,
    to_dtype,
    wrap_dim,
    wrap_dims,
)

__all__ = ["extremum", "mean_op", "norm_of"]


def _count(m: Meta, dims: tuple[int, ...]) -> int:
    return math.prod([m.shape[d] for d in dims])


def _wide(x: Any) -> Any:
    """16-bit floats as float32: what a composite reduction computes in."""
    return to_dtype(x, x.dtype.compute)


def _reduction_samples(**attrs: Any) -> tuple[Sample, ...]:
    cases = (((3, 4), (1,), False), ((3, 4), (0,), True), ((2, 3, 4), (0, 2), False), ((2, 3), (0, 1), False))
    return tuple(Sample((Arg(s, "distinct"),), {"dims": d, "keepdim": k, **attrs}) for s, d, k in cases)


def _composite(name: str, *, attrs: tuple[str, ...] = (), ulp: float = 8, samples: Any, **record: Any) -> OpDef:
    """A floating reduction over ``dims`` that keeps the dtype."""

    def infer(m: Meta, *, dims: tuple[int, ...], keepdim: bool, **_: Any) -> Meta:
        check_floating(m, name)
        return m.with_shape(reduced_shape(m, dims, keepdim))

    failing = tuple(Failing((Arg((3,), (0, 3), dt.int64),), s.attrs, TypeError, "floating") for s in samples[:1])
    return OpDef(
        name,
        "composite",
        infer,
        attrs=("dims", "keepdim", *attrs),
        dtypes=dt.FLOATING,
        ulp=ulp,
        samples=samples,
        failing=failing,
        **record,
    )


# ------------------------------------------------------------------------------------------------ sums and products


def _accumulated(x: Any, dtype: Any, name: str) -> Any:
    """``x`` in the dtype in which it is summed: integers and bool in int64."""
    if dtype is None:
        return x if x.dtype.kind == "f" or x.dtype is dt.int64 else to_dtype(x, dt.int64)
    check_dtype(dtype, name)
    return to_dtype(x, dtype)


@public(name="sum")
def sum_(input: Any, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Any:
    """The sum over ``dim`` (an int, several, or None for all); integers give int64."""
    x = _accumulated(input, dtype, "sum")
    return reduce_sum(x, dims=wrap_dims(dim, len(x.shape), "sum"), keepdim=bool(keepdim))


@public(autocast="float32")
def prod(input: Any, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Any:
    """The product over ``dim`` or all; integers give int64. Its gradient is right where elements are zero."""
    x = _accumulated(input, dtype, "prod")
    return reduce_prod(x, dims=wrap_dims(dim, len(x.shape), "prod"), keepdim=bool(keepdim))


@public()
def nansum(input: Any, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Any:
    """The sum of what is not NaN."""
    x = _accumulated(input, dtype, "nansum")
    return sum_(choose(isnan(x), 0, x) if x.dtype.kind == "f" else x, dim, keepdim)


@public()
def count_nonzero(input: Any, dim: Any = None) -> Any:
    """How many elements are not 0, over ``dim`` or all."""
    return sum_(to_dtype(to_dtype(input, dt.bool), dt.int64), dim)


# ------------------------------------------------------------------------------------------------ means


def _mean_decompose(x: Any, *, dims: tuple[int, ...], keepdim: bool) -> Any:
    n = math.prod([x.shape[d] for d in dims])
    total = reduce_sum(_wide(x), dims=dims, keepdim=keepdim)
    return to_dtype(div(total, count_of(n)), x.dtype)


mean_op = _composite(
    "mean",
    vjp=lambda c, g: spread(div(g, count_of(_count(c.metas[0], c.dims))), c.metas[0], c.dims, c.keepdim),
    decompose=_mean_decompose,
    reference=lambda x, *, dims, keepdim: (
        np.mean(x, axis=dims, keepdims=keepdim) if x.size else np.sum(x, dims, keepdims=keepdim) / 0.0
    ),
    samples=(*_reduction_samples(), Sample((Arg((3, 0)),), {"dims": (1,), "keepdim": False}, gradient=False)),
    onnx="ReduceMean",
    doc="The mean over dims.",
)


@public()
def mean(input: Any, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Any:
    """The mean over ``dim`` or all elements.

    Raises:
        RuntimeError: for integers without ``dtype``; convert with .float() first.
    """
    check_dtype(dtype, "mean")
    x = input if dtype is None else to_dtype(input, dtype)
    if x.dtype.kind != "f":
        raise RuntimeError(f"mean: expected a floating dtype, got {x.dtype}; convert with .float() or pass dtype=")
    return mean_op(x, dims=wrap_dims(dim, len(x.shape), "mean"), keepdim=bool(keepdim))


@public()
def nanmean(input: Any, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Any:
    """The mean of what is not NaN."""
    x = input if dtype is None else to_dtype(input, dtype)
    number = sum_(to_dtype(eq(x, x), x.dtype), dim, keepdim)
    return div(nansum(x, dim, keepdim), number)


# ------------------------------------------------------------------------------------------------ variance


def _freedom(n: int, correction: float) -> float:
    if float(correction).is_integer():
        return count_of(at_least(n - int(correction), 0))
    return max(0.0, float(n) - float(correction))


def _var_decompose(x: Any, *, dims: tuple[int, ...], keepdim: bool, correction: float) -> Any:
    """In two passes: the sum of squares of distances from the mean, which cancels nothing."""
    n = math.prod([x.shape[d] for d in dims])
    wide = _wide(x)
    d = sub(wide, _mean_decompose(wide, dims=dims, keepdim=True))
    return to_dtype(div(reduce_sum(square(d), dims=dims, keepdim=keepdim), _freedom(n, correction)), x.dtype)


def _centred(x: Any, dims: tuple[int, ...]) -> Any:
    return sub(x, mean_op(x, dims=dims, keepdim=True))


def _var_vjp(c: Any, g: Any) -> Any:
    m = c.metas[0]
    scale = div(mul(g, 2.0), _freedom(_count(m, c.dims), c.correction))
    return mul(spread(scale, m, c.dims, c.keepdim), _centred(c[0], c.dims))


def _std_vjp(c: Any, g: Any) -> Any:
    """The variance's, by the chain rule; 0 where the deviation is 0 (PyTorch's rule)."""
    m = c.metas[0]
    by_std = choose(eq(c.out, 0), 0, div(g, c.out))
    scale = div(by_std, _freedom(_count(m, c.dims), c.correction))
    return mul(spread(scale, m, c.dims, c.keepdim), _centred(c[0], c.dims))


def _var_reference(x: Any, *, dims: Any, keepdim: bool, correction: float) -> Any:
    n = math.prod([x.shape[d] for d in dims])
    squares = np.sum((x - np.mean(x, axis=dims, keepdims=True)) ** 2, axis=dims, keepdims=keepdim)
    return squares / np.asarray(_freedom(n, correction), x.dtype)


_VAR_SAMPLES = (*_reduction_samples(correction=1), *_reduction_samples(correction=0)[:2])
var_op = _composite(
    "var",
    attrs=("correction",),
    vjp=_var_vjp,
    saves=(0,),
    decompose=_var_decompose,
    reference=_var_reference,
    samples=_VAR_SAMPLES,
    ulp=16,
    doc="The variance over dims: the sum of squared deviations over the count less `correction`.",
)
std_op = _composite(
    "std",
    attrs=("correction",),
    vjp=_std_vjp,
    saves=(0, OUT),
    decompose=lambda x, **a: to_dtype(sqrt(_var_decompose(_wide(x), **a)), x.dtype),
    reference=lambda x, **a: np.sqrt(_var_reference(x, **a)),
    samples=_VAR_SAMPLES,
    ulp=16,
    doc="The square root of the variance over dims.",
)


def _spread_of(op: OpDef, input: Any, dim: Any, unbiased: Any, correction: Any, keepdim: bool) -> Any:
    # var(x, True) means unbiased, var(x, 1) a dimension: PyTorch's old and new signatures.
    if isinstance(dim, bool):
        dim, unbiased = None, dim
    if isinstance(unbiased, bool):
        correction = int(unbiased)
    if input.dtype.kind != "f":
        raise RuntimeError(f"{op.name}: expected a floating dtype, got {input.dtype}; convert with .float()")
    return op(
        input,
        dims=wrap_dims(dim, len(input.shape), op.name),
        keepdim=bool(keepdim),
        correction=1 if correction is None else correction,
    )


@public()
def var(input: Any, dim: Any = None, unbiased: Any = None, keepdim: bool = False, *, correction: Any = 1) -> Any:
    """The variance over ``dim`` or all elements, divided by their number less ``correction`` (1: unbiased)."""
    return _spread_of(var_op, input, dim, unbiased, correction, keepdim)


@public()
def std(input: Any, dim: Any = None, unbiased: Any = None, keepdim: bool = False, *, correction: Any = 1) -> Any:
    """The standard deviation over ``dim`` or all elements; see `var`."""
    return _spread_of(std_op, input, dim, unbiased, correction, keepdim)


@public(method=False)
def var_mean(input: Any, dim: Any = None, unbiased: Any = None, keepdim: bool = False, *, correction: Any = 1) -> Any:
    """(variance, mean)."""
    where_ = None if isinstance(dim, bool) else dim
    return var(input, dim, unbiased, keepdim, correction=correction), mean(input, where_, keepdim)


@public(method=False)
def std_mean(input: Any, dim: Any = None, unbiased: Any = None, keepdim: bool = False, *, correction: Any = 1) -> Any:
    """(standard deviation, mean)."""
    where_ = None if isinstance(dim, bool) else dim
    return std(input, dim, unbiased, keepdim, correction=correction), mean(input, where_, keepdim)


# ------------------------------------------------------------------------------------------------ logsumexp


def _logsumexp_decompose(x: Any, *, dims: tuple[int, ...], keepdim: bool) -> Any:
    """Shifted by the maximum, so that nothing overflows; by 0 where that is infinite."""
    wide = _wide(x)
    top = reduce_max(wide, dims=dims, keepdim=True)
    top = choose(eq(abs_(top), float("inf")), 0, top)
    m = _meta_of(wide)
    total = log(reduce_sum(exp(sub(wide, top)), dims=dims, keepdim=keepdim))
    return to_dtype(add(total, top if keepdim else reshape(top, shape=reduced_shape(m, dims, False))), x.dtype)


def _meta_of(x: Any) -> Meta:
    from cermet.graph.node import meta

    return meta(tuple(x.shape), x.dtype)


def _logsumexp_vjp(c: Any, g: Any) -> Any:
    """The softmax. Where the result is minus infinity nothing counts."""
    m = c.metas[0]
    out = choose(eq(abs_(c.out), float("inf")), 0, c.out)
    weight = exp(sub(c[0], spread(out, m, c.dims, c.keepdim)))
    return mul(spread(g, m, c.dims, c.keepdim), weight)


def _logsumexp_reference(x: Any, *, dims: Any, keepdim: bool) -> Any:
    return _by_max(x, dims, keepdim)


def _by_max(x: Any, dims: Any, keepdim: bool) -> Any:
    top = np.max(x, axis=dims, keepdims=True)
    top = np.where(np.isinf(top), 0, top)
    total = np.log(np.sum(np.exp(x - top), axis=dims, keepdims=True)) + top
    return total if keepdim else np.squeeze(total, dims)


logsumexp_op = _composite(
    "logsumexp",
    vjp=_logsumexp_vjp,
    saves=(0, OUT),
    decompose=_logsumexp_decompose,
    reference=_logsumexp_reference,
    samples=_reduction_samples(),
    onnx="ReduceLogSumExp",
    doc="``log(sum(exp(x)))`` over dims, without overflow.",
)


@public(namespaces=("", "special"))
def logsumexp(input: Any, dim: Any, keepdim: bool = False) -> Any:
    """``log(sum(exp(input)))`` over ``dim``, without overflow."""
    x = floating(input)
    dims = wrap_dims(dim, len(x.shape), "logsumexp")
    if any(x.shape[d] == 0 for d in dims):
        return log(reduce_sum(exp(x), dims=dims, keepdim=bool(keepdim)))
    return logsumexp_op(x, dims=dims, keepdim=bool(keepdim))


# ------------------------------------------------------------------------------------------------ norms


def _norm_decompose(x: Any, *, dims: tuple[int, ...], keepdim: bool, p: float) -> Any:
    wide = _wide(x)
    if p == 2.0:
        out = sqrt(reduce_sum(square(wide), dims=dims, keepdim=keepdim))
    else:
        out = pow_op(reduce_sum(pow_op(abs_(wide), p), dims=dims, keepdim=keepdim), 1.0 / p)
    return to_dtype(out, x.dtype)


def _norm_vjp(c: Any, g: Any) -> Any:
    """X |x|^(p-2) / norm^(p-1); 0 where the norm is 0, a corner where PyTorch gives 0 too."""
    m, p, x = c.metas[0], c.p, c[0]
    scale = choose(eq(c.out, 0), 0, div(g, c.out if p == 2.0 else pow_op(c.out, p - 1.0)))
    wide = spread(scale, m, c.dims, c.keepdim)
    if p == 2.0:
        return mul(wide, x)
    magnitude = abs_(x)
    power = pow_op(choose(eq(magnitude, 0), 1, magnitude), p - 1.0)
    return mul(wide, mul(sign(x), choose(eq(magnitude, 0), 0, power)))


def _norm_reference(x: Any, *, dims: Any, keepdim: bool, p: float) -> Any:
    return np.sum(np.abs(x) ** p, axis=dims, keepdims=keepdim) ** (1 / p)


norm_op = _composite(
    "norm",
    attrs=("p",),
    vjp=_norm_vjp,
    saves=(0, OUT),
    decompose=_norm_decompose,
    reference=_norm_reference,
    ulp=16,
    samples=(*_reduction_samples(p=2.0), *_reduction_samples(p=3.0)[:2]),
    doc="The p-norm over dims, 0 < p < infinity.",
)


def norm_of(x: Any, p: Any, dims: tuple[int, ...], keepdim: bool) -> Any:
    """The vector norm of order p (any number, plus or minus infinity) over dims."""
    p = float(p)
    if p == math.inf:
        return reduce_max(abs_(x), dims=dims, keepdim=keepdim)
    if p == -math.inf:
        return reduce_min(abs_(x), dims=dims, keepdim=keepdim)
    if p == 0.0:
        return reduce_sum(to_dtype(ne(x, 0), x.dtype), dims=dims, keepdim=keepdim)
    if p == 1.0:
        return reduce_sum(abs_(x), dims=dims, keepdim=keepdim)
    return norm_op(x, dims=dims, keepdim=keepdim, p=p)


@public()
def norm(input: Any, p: Any = "fro", dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Any:
    """The vector norm of order ``p`` (``"fro"``: 2) over ``dim`` or all elements.

    Raises:
        RuntimeError: for integers. ValueError: for an unknown order.
    """
    check_dtype(dtype, "norm")
    x = input if dtype is None else to_dtype(input, dtype)
    if x.dtype.kind != "f":
        raise RuntimeError(f"norm: expected a floating dtype, got {x.dtype}; convert with .float()")
    if p is None or p == "fro":
        p = 2.0
    elif isinstance(p, str):
        raise ValueError(f"norm: unknown order {p!r}; for the nuclear norm use linalg.matrix_norm")
    return norm_of(x, p, wrap_dims(dim, len(x.shape), "norm"), bool(keepdim))


@public()
def dist(input: Any, other: Any, p: Any = 2) -> Any:
    """The norm of order ``p`` of the difference."""
    x, y = promote(input, other)
    return norm(sub(x, y), p)


# ------------------------------------------------------------------------------------------------ extrema and positions


def _extremum_infer(m: Meta, *, dim: int, keepdim: bool, mode: str) -> tuple[Meta, Meta]:
    if m.ndim and m.shape[dim] == 0:
        raise IndexError(f"{mode}: cannot reduce dimension {dim} of size 0 in shape {list(m.shape)}: there is no identity")
    out = m.with_shape(reduced_shape(m, (dim,) if m.ndim else (), keepdim))
    return out.with_dtype(dt.int64), out


def _extremum_decompose(x: Any, *, dim: int, keepdim: bool, mode: str) -> tuple[Any, Any]:
    """The position is the least index that holds the extremum; with a NaN about, that of the first NaN."""
    dims = (dim,) if len(x.shape) else ()
    m = _meta_of(x)
    best = (reduce_max if mode == "max" else reduce_min)(x, dims=dims, keepdim=keepdim)
    hit = eq(x, spread(best, m, dims, keepdim))
    if m.dtype.kind == "f":
        hit = add(hit, ne(x, x))
    place = index_value(x, m.shape, dim) if m.shape else to_dtype(hit, dt.int64) * 0
    limit = whole_of(m.shape[dim] if m.shape else 0)
    return reduce_min(choose(hit, place, limit), dims=dims, keepdim=keepdim), best


def _extremum_vjp(c: Any, g_index: Any, g: Any) -> Any:
    """To the one element that was taken."""
    m = c.metas[0]
    if g is None:
        return None
    dims = (c.dim,) if m.ndim else ()
    if not dims:
        return g
    place = index_value(g, m.shape, c.dim)
    return choose(eq(place, spread(c.out, m, dims, c.keepdim)), spread(g, m, dims, c.keepdim), 0)


def _extremum_reference(x: Any, *, dim: int, keepdim: bool, mode: str) -> tuple[Any, Any]:
    if not x.ndim:
        return np.zeros((), np.int64), x
    best = (np.argmax if mode == "max" else np.argmin)(x, axis=dim, keepdims=True)
    value = np.take_along_axis(x, best, dim)
    return (best, value) if keepdim else (np.squeeze(best, dim), np.squeeze(value, dim))


extremum = OpDef(
    "extremum",
    "composite",
    _extremum_infer,
    attrs=("dim", "keepdim", "mode"),
    vjp=_extremum_vjp,
    saves=(OUT,),
    decompose=_extremum_decompose,
    reference=_extremum_reference,
    dtypes=dt.ALL,
    samples=tuple(
        Sample((Arg(s, "distinct"),), {"dim": d, "keepdim": k, "mode": mode})
        for mode in ("max", "min")
        for s, d, k in (((5,), 0, False), ((3, 4), 1, False), ((3, 4), 0, True), ((), 0, False), ((2, 3, 2), 1, True))
    ),
    failing=(Failing((Arg((3, 0)),), {"dim": 1, "keepdim": False, "mode": "max"}, IndexError, "size 0"),),
    ulp=0,
    doc="(position, value) of the greatest or least element along a dimension; the first where several are equal.",
)

_max = result_tuple("max", "values", "indices")
_min = result_tuple("min", "values", "indices")


def _extreme(name: str, pair_type: Any, reduce: OpDef, between: OpDef) -> Callable[..., Any]:
    def fn(input: Any, dim: Any = None, keepdim: bool = False, *, other: Any = None) -> Any:
        if other is None and (dim is None or isinstance(dim, int)):
            if dim is None:
                return reduce(input, dims=tuple(range(len(input.shape))), keepdim=False)
            d = wrap_dim(dim, len(input.shape), name)
            index, value = extremum(input, dim=d, keepdim=bool(keepdim), mode=name)
            return pair_type(value, index)
        return between(*promote(input, dim if other is None else other))

    fn.__name__ = fn.__qualname__ = name
    fn.__doc__ = (
        f"The {name}imum of all elements; with ``dim`` (values, indices) along it; with a tensor the {name}imum of two.\n\n"
        "    Raises:\n        IndexError: for a dimension of size 0.\n    "
    )
    return public()(fn)


max_ = _extreme("max", _max, reduce_max, maximum)
min_ = _extreme("min", _min, reduce_min, minimum)


@public()
def amax(input: Any, dim: Any = (), keepdim: bool = False) -> Any:
    """The maximum over ``dim`` or all; its gradient goes evenly to all that attain it."""
    return reduce_max(input, dims=wrap_dims(dim, len(input.shape), "amax"), keepdim=bool(keepdim))


@public()
def amin(input: Any, dim: Any = (), keepdim: bool = False) -> Any:
    """The minimum over ``dim`` or all; its gradient goes evenly to all that attain it."""
    return reduce_min(input, dims=wrap_dims(dim, len(input.shape), "amin"), keepdim=bool(keepdim))


_aminmax = result_tuple("aminmax", "min", "max")


@public()
def aminmax(input: Any, *, dim: int | None = None, keepdim: bool = False) -> Any:
    """(min, max) over ``dim`` or all."""
    return _aminmax(amin(input, dim, keepdim), amax(input, dim, keepdim))


def _position(input: Any, dim: int | None, keepdim: bool, mode: str) -> Any:
    n = len(input.shape)
    if dim is None:
        flat = reshape(input, shape=(math.prod(input.shape),))
        index = extremum(flat, dim=0, keepdim=False, mode=mode)[0]
        return reshape(index, shape=(1,) * n) if keepdim else index
    return extremum(input, dim=wrap_dim(dim, n, "arg" + mode), keepdim=bool(keepdim), mode=mode)[0]


@public()
def argmax(input: Any, dim: int | None = None, keepdim: bool = False) -> Any:
    """The index of the first maximum along ``dim``, or in the flattened tensor; of the first NaN where there is one."""
    return _position(input, dim, keepdim, "max")


@public()
def argmin(input: Any, dim: int | None = None, keepdim: bool = False) -> Any:
    """The index of the first minimum along ``dim``, or in the flattened tensor; of the first NaN where there is one."""
    return _position(input, dim, keepdim, "min")


# ------------------------------------------------------------------------------------------------ truth


def _truth(name: str, op: OpDef, doc: str) -> Callable[..., Any]:
    def fn(input: Any, dim: Any = None, keepdim: bool = False) -> Any:
        out = op(to_dtype(input, dt.bool), dims=wrap_dims(dim, len(input.shape), name), keepdim=bool(keepdim))
        return to_dtype(out, dt.uint8) if input.dtype is dt.uint8 else out  # PyTorch keeps uint8, for history's sake

    fn.__name__ = fn.__qualname__ = name
    fn.__doc__ = doc
    return public()(fn)


any_ = _truth("any", reduce_any, "Whether any element over ``dim``, or of all, is not 0.")
all_ = _truth("all", reduce_all, "Whether all elements over ``dim``, or of all, are not 0.")
