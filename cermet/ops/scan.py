"""Running reductions along a dimension: the primitive `scan`, and what is composed of it."""

from __future__ import annotations

from typing import Any

import numpy as np

from cermet import dtypes as dt
from cermet.graph.node import Meta
from cermet.ops.arithmetic import isnan
from cermet.ops.define import OUT, Arg, Failing, OpDef, Sample
from cermet.ops.elementwise import add, choose, eq, mul
from cermet.ops.gather import scatter
from cermet.ops.joining import cut, flipped, pad_constant
from cermet.ops.movement import permute, reshape
from cermet.ops.public import public
from cermet.ops.support import check_dtype, floating, index_value, result_tuple, to_dtype, wrap_dim, zeros_like_value

__all__ = ["exclusive_products", "scan"]

_ACCUMULATE: dict[str, Any] = {"sum": np.add, "prod": np.multiply, "max": np.maximum, "min": np.minimum}


def _scan_infer(m: Meta, *, dim: int, mode: str) -> Meta:
    if mode not in _ACCUMULATE:
        raise ValueError(f"scan: unknown mode {mode!r}; expected one of {', '.join(_ACCUMULATE)}")
    if not 0 <= dim < m.ndim:
        raise IndexError(f"scan: dim {dim} is out of range for a value of {m.ndim} dimensions")
    return m


def shifted(x: Any, dim: int, by: int, fill: Any = 0) -> Any:
    """``x`` moved ``by`` places up along a dimension; ``fill`` enters, what leaves is lost."""
    n = x.shape[dim]
    before = tuple([min(by, n) if d == dim else 0 for d in range(len(x.shape))])
    return pad_constant(cut(x, dim, 0, max(n - by, 0)), before, (0,) * len(x.shape), fill)


def _linear_recurrence(a: Any, b: Any, dim: int) -> Any:
    """u[m] = b[m] + a[m] u[m-1] from u[-1] = 0, by composing steps of doubled length (Hillis and Steele 1986): right where a is
    0."""
    step = 1
    while step < a.shape[dim]:
        b = add(b, mul(a, shifted(b, dim, step)))
        a = mul(a, shifted(a, dim, step))
        step *= 2
    return b


def _scan_vjp(c: Any, g: Any) -> Any:
    d = c.dim
    if c.mode == "sum":
        return flipped(scan(flipped(g, (d,)), dim=d, mode="sum"), (d,))
    if c.mode == "prod":
        # d out[i] / d x[k] = (product before k) (product of k+1 .. i): the latter's sum over i obeys t[k] = g[k] + x[k+1] t[k+1].
        x = c[0]
        following = flipped(shifted(flipped(x, (d,)), d, 1), (d,))
        t = flipped(_linear_recurrence(flipped(following, (d,)), flipped(g, (d,)), d), (d,))
        return mul(t, shifted(c.out, d, 1, 1))
    index = _running_index(c[0], c.out, d)
    rest = tuple([k for k in range(len(c.meta.shape)) if k != d])
    return scatter(zeros_like_value(g, c.meta.shape), g, index, dims=(d,), rest=rest, mode="add")


def _running_index(x: Any, out: Any, dim: int) -> Any:
    """Where the running extremum was last attained."""
    hit = eq(x, out)
    if x.dtype.kind == "f":
        hit = add(hit, isnan(x))
    place = index_value(x, tuple(x.shape), dim)
    return scan(choose(hit, place, 0), dim=dim, mode="max")


def _reference(x: Any, *, dim: int, mode: str) -> Any:
    return _ACCUMULATE[mode].accumulate(x, axis=dim, dtype=x.dtype) if x.size else x


_SHAPES: tuple[tuple[tuple[int, ...], int], ...] = (((5,), 0), ((3, 4), 1), ((3, 4), 0), ((2, 0), 1), ((2, 3, 2), 1))
scan: OpDef = OpDef(
    "scan",
    "scan",
    _scan_infer,
    attrs=("dim", "mode"),
    vjp=_scan_vjp,
    saves=lambda n, attrs: () if attrs[1] == "sum" else (0, OUT),
    reference=_reference,
    dtypes=(*dt.INTEGRAL, *dt.FLOATING),
    samples=tuple(Sample((Arg(s, "distinct"),), {"dim": d, "mode": mode}) for mode in _ACCUMULATE for s, d in _SHAPES),
    failing=(Failing((Arg((3,)),), {"dim": 1, "mode": "sum"}, IndexError, "out of range"),),
    ulp=8,
    onnx="CumSum",
    doc="The running sum, product, maximum or minimum along a dimension, each element included; NaN goes on.",
)


def exclusive_products(x: Any, dims: tuple[int, ...]) -> Any:
    """For each element the product of all others over ``dims``, from both sides: right where elements are zero."""
    shape = tuple(x.shape)
    kept = [d for d in range(len(shape)) if d not in dims]
    order = (*kept, *dims)
    moved = permute(x, dims=order) if order != tuple(range(len(shape))) else x
    moved_shape = tuple([shape[d] for d in order])
    lead = moved_shape[: len(kept)]
    n = 1
    for d in dims:
        n *= shape[d]
    rows = reshape(moved, shape=(*lead, n))
    axis = len(lead)
    before = shifted(scan(rows, dim=axis, mode="prod"), axis, 1, 1)
    turned = flipped(rows, (axis,))
    after = flipped(shifted(scan(turned, dim=axis, mode="prod"), axis, 1, 1), (axis,))
    out = reshape(mul(before, after), shape=moved_shape)
    inverse = tuple([order.index(d) for d in range(len(shape))])
    return permute(out, dims=inverse) if order != tuple(range(len(shape))) else out


def _scanned(input: Any, dim: Any, mode: str, dtype: Any, name: str) -> Any:
    check_dtype(dtype, name)
    d = wrap_dim(dim, len(input.shape), name)
    x = to_dtype(input, dtype or (dt.int64 if input.dtype.kind != "f" else input.dtype))
    if not x.shape:
        return reshape(scan(reshape(x, shape=(1,)), dim=0, mode=mode), shape=())
    return scan(x, dim=d, mode=mode)


@public(inplace=True)
def cumsum(input: Any, dim: int, *, dtype: Any = None) -> Any:
    """The running sum along ``dim``; integers give int64."""
    return _scanned(input, dim, "sum", dtype, "cumsum")


@public(inplace=True)
def cumprod(input: Any, dim: int, *, dtype: Any = None) -> Any:
    """The running product along ``dim``; integers give int64."""
    return _scanned(input, dim, "prod", dtype, "cumprod")


_cummax = result_tuple("cummax", "values", "indices")
_cummin = result_tuple("cummin", "values", "indices")


def _running(input: Any, dim: int, mode: str, name: str) -> tuple[Any, Any]:
    d = wrap_dim(dim, len(input.shape), name)
    x = input if len(input.shape) else reshape(input, shape=(1,))
    if x.dtype is dt.bool:
        values = to_dtype(scan(to_dtype(x, dt.uint8), dim=d, mode=mode), dt.bool)
        index = _running_index(to_dtype(x, dt.uint8), to_dtype(values, dt.uint8), d)
    else:
        values = scan(x, dim=d, mode=mode)
        index = _running_index(x, values, d)
    if not input.shape:
        return reshape(values, shape=()), reshape(index, shape=())
    return values, index


@public()
def cummax(input: Any, dim: int) -> Any:
    """(values, indices): the running maximum along ``dim`` and where it was last attained."""
    return _cummax(*_running(input, dim, "max", "cummax"))


@public()
def cummin(input: Any, dim: int) -> Any:
    """(values, indices): the running minimum along ``dim`` and where it was last attained."""
    return _cummin(*_running(input, dim, "min", "cummin"))


def _logcumsumexp_decompose(x: Any, *, dim: int) -> Any:
    """Windows of doubled length joined by logaddexp, so that early small values keep their digits beside later great ones."""
    from cermet.ops.mathematics import logaddexp

    step = 1
    while step < x.shape[dim]:
        x = logaddexp(x, shifted(x, dim, step, float("-inf")))
        step *= 2
    return x


logcumsumexp_op = OpDef(
    "logcumsumexp",
    "composite",
    lambda m, *, dim: m,
    attrs=("dim",),
    vjp="auto",
    decompose=_logcumsumexp_decompose,
    reference=lambda x, *, dim: np.logaddexp.accumulate(x, axis=dim) if x.size else x,
    dtypes=dt.FLOATING,
    samples=tuple(Sample((Arg(s, (1.0, 3.0)),), {"dim": d}) for s, d in _SHAPES),
    ulp=16,
    doc="log of the running sum of exponentials.",
)


@public()
def logcumsumexp(input: Any, dim: int) -> Any:
    """Log of the running sum of exponentials along ``dim``, without overflow."""
    d = wrap_dim(dim, len(input.shape), "logcumsumexp")
    x = floating(input)
    return logcumsumexp_op(x, dim=d) if len(x.shape) else add(x, 0.0)
