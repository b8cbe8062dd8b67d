"""Order: sorting, the greatest few, quantiles, and search in sorted values. The primitive is `argsort`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from cermet import dtypes as dt
from cermet.graph.node import Meta
from cermet.ops.arithmetic import ceil, floor, isnan, rint
from cermet.ops.blending import lerp3
from cermet.ops.define import Arg, Failing, OpDef, Sample, count_of
from cermet.ops.elementwise import add, choose, eq, gt, le, lt, mul, ne, sub
from cermet.ops.gather import gather
from cermet.ops.joining import cut
from cermet.ops.movement import expand, permute, reshape
from cermet.ops.public import public
from cermet.ops.reduction import reduce_sum
from cermet.ops.scan import scan, shifted
from cermet.ops.support import full_value, index_value, is_number, promote, result_tuple, to_dtype, wrap_dim

__all__ = ["argsort_op", "search", "take_along"]


def _argsort_infer(m: Meta, *, dim: int, descending: bool) -> Meta:
    if not 0 <= dim < m.ndim:
        raise IndexError(f"argsort: dim {dim} is out of range for a value of {m.ndim} dimensions")
    return m.with_dtype(dt.int64)


def _argsort_reference(x: Any, *, dim: int, descending: bool) -> Any:
    if not descending:
        return np.argsort(x, axis=dim, kind="stable")
    # Stable and descending: sort the reversed row ascending and read it backwards.
    n = x.shape[dim]
    back = np.flip(np.argsort(np.flip(x, dim), axis=dim, kind="stable"), dim)
    return n - 1 - back


argsort_op = OpDef(
    "argsort",
    "sort",
    _argsort_infer,
    attrs=("dim", "descending"),
    reference=_argsort_reference,
    dtypes=dt.ALL,
    samples=tuple(
        Sample((Arg(s, domain),), {"dim": d, "descending": down}, gradient=False)
        for down in (False, True)
        for s, d, domain in (((5,), 0, "distinct"), ((3, 4), 1, (0, 2)), ((4, 3), 0, "distinct"), ((2, 0), 1, (0, 2)))
    ),
    failing=(Failing((Arg(()),), {"dim": 0, "descending": False}, IndexError, "out of range"),),
    ulp=0,
    doc="The stable order that sorts along a dimension; NaN sorts as the greatest.",
)


def _argtop_infer(m: Meta, *, dim: int, descending: bool, k: int) -> Meta:
    _argsort_infer(m, dim=dim, descending=descending)
    if not 0 <= k <= m.shape[dim]:
        raise ValueError(f"argtop: k {k} is out of range for dimension {dim} of size {m.shape[dim]}")
    return m.with_dtype(dt.int64).with_shape((*m.shape[:dim], k, *m.shape[dim + 1 :]))


argtop_op = OpDef(
    "argtop",
    "sort",
    _argtop_infer,
    attrs=("dim", "descending", "k"),
    reference=lambda x, *, dim, descending, k: np.take(_argsort_reference(x, dim=dim, descending=descending), range(k), dim),
    dtypes=tuple(d for d in dt.ALL if d is not dt.bool),
    samples=tuple(
        Sample((Arg(s, domain),), {"dim": d, "descending": down, "k": k}, gradient=False)
        for down in (False, True)
        for s, d, k, domain in (
            ((5,), 0, 2, "distinct"),
            ((3, 200), 1, 7, (0, 9)),
            ((90, 3), 0, 90, "distinct"),
            ((2, 4), 1, 0, (0, 2)),
        )
    ),
    failing=(Failing((Arg((3,)),), {"dim": 0, "descending": False, "k": 4}, ValueError, "out of range"),),
    ulp=0,
    doc="The first ``k`` of the stable order that sorts along a dimension; NaN sorts as the greatest.",
)

SELECTED = 64
"""Up to so many are found by a list of the best so far, an eighth of the row at most; more by sorting."""

_sort = result_tuple("sort", "values", "indices")
_topk = result_tuple("topk", "values", "indices")
_kth = result_tuple("kthvalue", "values", "indices")
_median = result_tuple("median", "values", "indices")
_nanmedian = result_tuple("nanmedian", "values", "indices")
_mode = result_tuple("mode", "values", "indices")


def take_along(x: Any, index: Any, dim: int) -> Any:
    """x[…, index[…, i, …], …]: an index tensor that has x's shape but along ``dim``."""
    return gather(x, index, dims=(dim,), rest=tuple([k for k in range(len(x.shape)) if k != dim]))


def _at_least_1d(x: Any) -> Any:
    return x if len(x.shape) else reshape(x, shape=(1,))


def _like_input(out: Any, input: Any) -> Any:
    return out if len(input.shape) else reshape(out, shape=())


@public()
def argsort(input: Any, dim: int = -1, descending: bool = False, stable: bool = False) -> Any:
    """The indices that sort along ``dim``; always stable."""
    d = wrap_dim(dim, len(input.shape), "argsort")
    return _like_input(argsort_op(_at_least_1d(input), dim=d, descending=bool(descending)), input)


@public()
def sort(input: Any, dim: int = -1, descending: bool = False, stable: bool = False) -> Any:
    """(values, indices) sorted along ``dim``; always stable, NaN last (first when descending)."""
    d = wrap_dim(dim, len(input.shape), "sort")
    x = _at_least_1d(input)
    order = argsort_op(x, dim=d, descending=bool(descending))
    return _sort(_like_input(take_along(x, order, d), input), _like_input(order, input))


@public()
def msort(input: Any) -> Any:
    """The values sorted along the first dimension."""
    return sort(input, 0)[0]


@public()
def topk(input: Any, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> Any:
    """(values, indices) of the ``k`` greatest (least) elements along ``dim``, in order.

    Raises:
        RuntimeError: for more than there are.
    """
    d = wrap_dim(dim, len(input.shape), "topk")
    x = _at_least_1d(input)
    if not 0 <= k <= x.shape[d]:
        raise RuntimeError(f"topk: k {k} is out of range for dimension {d} of size {x.shape[d]}")
    if k <= SELECTED and 8 * k <= x.shape[d] and x.dtype is not dt.bool:
        order = argtop_op(x, dim=d, descending=bool(largest), k=int(k))
    else:
        order = cut(argsort_op(x, dim=d, descending=bool(largest)), d, 0, int(k))
    values = take_along(x, order, d)
    return _topk(values, order) if len(input.shape) or k == 0 else _topk(_like_input(values, input), _like_input(order, input))


def _dropped(x: Any, dim: int, keepdim: bool) -> Any:
    return x if keepdim else reshape(x, shape=tuple([s for k, s in enumerate(x.shape) if k != dim]))


@public()
def kthvalue(input: Any, k: int, dim: int = -1, keepdim: bool = False) -> Any:
    """(value, index) of the ``k``-th smallest element along ``dim``, counted from 1.

    Raises:
        RuntimeError: for k out of range.
    """
    d = wrap_dim(dim, len(input.shape), "kthvalue")
    x = _at_least_1d(input)
    if not 1 <= k <= x.shape[d]:
        raise RuntimeError(f"kthvalue: k {k} is out of range for dimension {d} of size {x.shape[d]}")
    index = cut(argsort_op(x, dim=d, descending=False), d, int(k) - 1, 1)
    keep = keepdim and bool(len(input.shape))
    return _kth(_dropped(take_along(x, index, d), d, keep), _dropped(index, d, keep))


# ------------------------------------------------------------------------------------------------ medians and quantiles


def _middle(x: Any, d: int, ignore_nan: bool) -> Any:
    """The position (kept dim) of the lower median; of the first NaN where there is one, unless NaN is passed over."""
    order = argsort_op(x, dim=d, descending=False)
    n = x.shape[d]
    if x.dtype.kind != "f":
        return cut(order, d, (n - 1) // 2, 1)
    numbers = reduce_sum(to_dtype(eq(x, x), dt.int64), dims=(d,), keepdim=True)
    if ignore_nan:
        from cermet.ops.arithmetic import clamp_min, floor_divide

        place = clamp_min(floor_divide(sub(numbers, 1), 2), 0)
    else:
        place = choose(lt(numbers, n), numbers, (n - 1) // 2)
    return take_along(order, place, d)


def _medians(input: Any, dim: int | None, keepdim: bool, ignore_nan: bool, result: Any) -> Any:
    name = result.__name__
    if dim is None:
        flat = reshape(input, shape=(math.prod(input.shape),))
        if flat.shape[0] == 0:
            return full_value(input, float("nan"), ())
        return reshape(take_along(flat, _middle(flat, 0, ignore_nan), 0), shape=())
    d = wrap_dim(dim, len(input.shape), name)
    x = _at_least_1d(input)
    if x.shape[d] == 0:
        raise IndexError(f"{name}: dimension {d} of shape {list(input.shape)} has size 0")
    index = _middle(x, d, ignore_nan)
    keep = keepdim and bool(len(input.shape))
    return result(_dropped(take_along(x, index, d), d, keep), _dropped(index, d, keep))


@public()
def median(input: Any, dim: int | None = None, keepdim: bool = False) -> Any:
    """The median (the lower of two) of all elements, or (values, indices) along ``dim``; NaN where there is one."""
    return _medians(input, dim, keepdim, False, _median)


@public()
def nanmedian(input: Any, dim: int | None = None, keepdim: bool = False) -> Any:
    """The median of what is not NaN; see `median`."""
    return _medians(input, dim, keepdim, True, _nanmedian)


@public()
def mode(input: Any, dim: int = -1, keepdim: bool = False) -> Any:
    """(value, index) of the most frequent value along ``dim``: the least of several, its last position."""
    from cermet.ops.statistics import extremum

    d = wrap_dim(dim, len(input.shape), "mode")
    x = _at_least_1d(input)
    order = argsort_op(x, dim=d, descending=False)
    ordered = take_along(x, order, d)
    place = index_value(x, tuple(x.shape), d)
    starts = choose(ne(ordered, shifted(ordered, d, 1)), place, 0)
    length = sub(place, scan(starts, dim=d, mode="max"))
    best = extremum(length, dim=d, keepdim=True, mode="max")[0]
    index = take_along(order, best, d)
    keep = keepdim and bool(len(input.shape))
    return _mode(_dropped(take_along(x, index, d), d, keep), _dropped(index, d, keep))


_INTERPOLATION = ("linear", "lower", "higher", "midpoint", "nearest")


def _quantiles(input: Any, q: Any, dim: int | None, keepdim: bool, interpolation: str, ignore_nan: bool, name: str) -> Any:
    if interpolation not in _INTERPOLATION:
        raise RuntimeError(f"{name}: interpolation must be one of {', '.join(_INTERPOLATION)}, got {interpolation!r}")
    if input.dtype not in (dt.float32, dt.float64):
        raise RuntimeError(f"{name}: expected float32 or float64, got {input.dtype}")
    ndim = len(input.shape)
    if is_number(q):
        if not 0 <= q <= 1:
            raise RuntimeError(f"{name}: q must lie in [0, 1], got {q}")
        q = full_value(input, float(q), ())
    x, d = (
        (reshape(input, shape=(math.prod(input.shape),)), 0) if dim is None else (_at_least_1d(input), wrap_dim(dim, ndim, name))
    )
    order = [k for k in range(len(x.shape)) if k != d] + [d]
    rows = permute(x, dims=tuple(order))
    last = len(order) - 1
    ranked = take_along(rows, argsort_op(rows, dim=last, descending=False), last)
    scalar = len(q.shape) == 0
    out = _interpolated(ranked, reshape(q, shape=(1,)) if scalar else q, interpolation, ignore_nan)
    out = permute(out, dims=(last, *range(last)))
    kept = tuple(out.shape[1:])
    if keepdim:
        kept = (1,) * ndim if dim is None else (*kept[:d], 1, *kept[d:])
    return reshape(out, shape=kept if scalar else (out.shape[0], *kept))


def _interpolated(ranked: Any, q: Any, how: str, ignore_nan: bool) -> Any:
    """Quantiles of sorted rows, along the last dimension; rows with NaN give NaN."""
    last = len(ranked.shape) - 1
    n = ranked.shape[last]
    shape = (*ranked.shape[:-1], q.shape[0])
    numbers = reduce_sum(to_dtype(eq(ranked, ranked), ranked.dtype), dims=(last,), keepdim=True)
    place = mul(q, sub(numbers, 1.0) if ignore_nan else float(n - 1))
    place = expand(reshape(place, shape=(1,) * (last + 1 - len(place.shape)) + tuple(place.shape)), shape=shape)
    place = choose(lt(place, 0), 0, place)
    below, above = floor(place), ceil(place)
    if how == "nearest":
        below = above = rint(place)
    low = take_along(ranked, to_dtype(below, dt.int64), last)
    high = take_along(ranked, to_dtype(above, dt.int64), last)
    weight = sub(place, below)
    if how == "midpoint":
        weight = choose(gt(weight, 0), 0.5, weight)
    elif how != "linear":
        weight = full_value(ranked, 1 if how == "higher" else 0, shape)
    out = lerp3(low, high, weight)
    broken = eq(numbers, 0) if ignore_nan else lt(numbers, count_of(n))
    return choose(broken, float("nan"), out)


@public(autocast="float32")
def quantile(input: Any, q: Any, dim: int | None = None, keepdim: bool = False, *, interpolation: str = "linear") -> Any:
    """The q-th quantiles (a number or vector in [0, 1]) over ``dim`` or all; a vector of q is a new first dimension.

    Args:
        interpolation: between two elements: linear, lower, higher, midpoint, nearest.

    Raises:
        RuntimeError: for other dtypes than float32 and float64, or q out of range.
    """
    return _quantiles(input, q, dim, keepdim, interpolation, False, "quantile")


@public(autocast="float32")
def nanquantile(input: Any, q: Any, dim: int | None = None, keepdim: bool = False, *, interpolation: str = "linear") -> Any:
    """As `quantile`, of what is not NaN."""
    return _quantiles(input, q, dim, keepdim, interpolation, True, "nanquantile")


# ------------------------------------------------------------------------------------------------ search


def search(ordered: Any, values: Any, right: bool) -> Any:
    """For each value how many elements of its sorted row lie before it (with equal ones: ``right``); by bisection, log2(n)
    gathers.

    ``ordered``: (…, n) or (n,); ``values``: (…, m), or any shape for a vector.
    """
    n = ordered.shape[-1]
    shape = tuple(values.shape)
    low = full_value(values, 0, shape, dt.int64)
    if n == 0:
        return low
    vector = len(ordered.shape) == 1
    rest = () if vector else tuple(range(len(shape) - 1))
    size = 1 << (n.bit_length() - 1)
    # After each step all elements before ``low`` belong before the value; steps are powers of two, the last one 1.
    while size:
        probe = add(low, size - 1)
        inside = lt(probe, n)
        found = gather(ordered, choose(inside, probe, n - 1), dims=(len(ordered.shape) - 1,), rest=rest)
        before = le(found, values) if right else lt(found, values)
        if values.dtype.kind == "f":
            # NaN is the greatest value: everything else lies before it.
            nan = isnan(values)
            before = add(before, mul(nan, eq(found, found)) if not right else nan)
        low = add(low, mul(to_dtype(mul(before, inside), dt.int64), size))
        size //= 2
    return low


@public(method=False)
def searchsorted(
    sorted_sequence: Any, input: Any, *, out_int32: bool = False, right: bool = False, side: str | None = None, sorter: Any = None
) -> Any:
    """Where values would be put into a sorted sequence (rows of it) to keep it sorted: before equal elements, or behind
    (``right``).

    Raises:
        RuntimeError: for shapes that do not agree, or ``side`` and ``right`` that contradict.
    """
    if side not in (None, "left", "right") or (side == "left" and right):
        raise RuntimeError(f"searchsorted: side {side!r} and right={right} do not agree; side is 'left' or 'right'")
    right = right or side == "right"
    if sorter is not None:
        sorted_sequence = take_along(sorted_sequence, sorter, len(sorted_sequence.shape) - 1)
    number = is_number(input)
    seq, values = promote(sorted_sequence, input)
    if len(seq.shape) == 0:
        raise RuntimeError("searchsorted: the sorted sequence is a single number; give one dimension or more")
    if len(seq.shape) > 1 and tuple(seq.shape[:-1]) != tuple(values.shape[:-1]):
        raise RuntimeError(
            f"searchsorted: the sequence has shape {list(seq.shape)}, the values {list(values.shape)}; "
            "all but the last sizes must be equal"
        )
    out = search(seq, reshape(values, shape=()) if number else values, right)
    return to_dtype(out, dt.int32) if out_int32 else out


@public(method=False)
def bucketize(input: Any, boundaries: Any, *, out_int32: bool = False, right: bool = False) -> Any:
    """The bucket of each value: how many sorted boundaries lie before it (``right``: at or before it).

    Raises:
        RuntimeError: unless the boundaries are a vector.
    """
    if len(boundaries.shape) != 1:
        raise RuntimeError(f"bucketize: boundaries must be a vector, got shape {list(boundaries.shape)}")
    return searchsorted(boundaries, input, out_int32=out_int32, right=right)
