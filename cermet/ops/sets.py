"""Sets and counts: distinct values, membership, histograms, one-hot codes. Results whose size depends on values look at them at
the call."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from cermet import dtypes as dt
from cermet.ops.arithmetic import clamp, floor
from cermet.ops.define import hooks
from cermet.ops.elementwise import add, choose, div, eq, ge, le, mul, ne, sub, where
from cermet.ops.gather import gather, scatter
from cermet.ops.movement import expand, reshape
from cermet.ops.public import public
from cermet.ops.reduction import reduce_any, reduce_max, reduce_min
from cermet.ops.support import as_value, full_value, index_value, is_number, promote, result_tuple, to_dtype, wrap_dim

# ------------------------------------------------------------------------------------------------ distinct values


def _data(array: Any, dtype: dt.DType) -> Any:
    return hooks.to_tensor(np.ascontiguousarray(array).astype(dtype.numpy), dtype=dtype, like=None)


def _rows(a: Any, dim: int) -> Any:
    """Slices along ``dim`` as rows."""
    return np.moveaxis(a, dim, 0).reshape(a.shape[dim], -1)


def _results(values: Any, inverse: Any, counts: Any, want_inverse: bool, want_counts: bool) -> Any:
    out = [values]
    if want_inverse:
        out.append(_data(inverse, dt.int64))
    if want_counts:
        out.append(_data(counts, dt.int64))
    return out[0] if len(out) == 1 else tuple(out)


@public()
def unique(
    input: Any, sorted: bool = True, return_inverse: bool = False, return_counts: bool = False, dim: int | None = None
) -> Any:
    """The distinct elements, sorted (or the distinct slices along ``dim``). Looks at the values.

    Args:
        return_inverse: also where each element stands among them. return_counts: also how often each occurs.
    """
    a = input.numpy(force=True)
    if dim is None:
        values, inverse, counts = np.unique(a.reshape(-1), return_inverse=True, return_counts=True, equal_nan=False)
        return _results(_data(values, input.dtype), inverse.reshape(a.shape), counts, return_inverse, return_counts)
    d = wrap_dim(dim, a.ndim, "unique")
    values, inverse, counts = np.unique(a, axis=d, return_inverse=True, return_counts=True)
    return _results(_data(values, input.dtype), inverse.reshape(-1), counts, return_inverse, return_counts)


@public()
def unique_consecutive(input: Any, return_inverse: bool = False, return_counts: bool = False, dim: int | None = None) -> Any:
    """The first of each run of equal elements (equal slices along ``dim``). Looks at the values."""
    a = input.numpy(force=True)
    d = 0 if dim is None else wrap_dim(dim, a.ndim, "unique_consecutive")
    flat = a.reshape(-1) if dim is None else a
    rows = _rows(flat, d) if flat.size else np.zeros((0, 1))
    first = np.ones(len(rows), bool)
    first[1:] = (rows[1:] != rows[:-1]).any(axis=1)
    inverse = np.cumsum(first) - 1
    starts = np.flatnonzero(first)
    counts = np.diff(np.append(starts, len(rows)))
    shape = a.shape if dim is None else (-1,)
    return _results(
        _data(np.take(flat, starts, axis=d), input.dtype), inverse.reshape(shape), counts, return_inverse, return_counts
    )


@public(method=False)
def isin(elements: Any, test_elements: Any, *, assume_unique: bool = False, invert: bool = False) -> Any:
    """Whether each element is among the test elements; by bisection in their sorted row."""
    from cermet.ops.sorting import argsort_op, search

    x, y = promote(elements, test_elements)
    flat = reshape(y, shape=(math.prod(y.shape),))
    n = flat.shape[0]
    if n == 0:
        return full_value(x, bool(invert), tuple(x.shape), dt.bool)
    if n <= 16:  # a few comparisons beat a search
        wide = reshape(x, shape=(*x.shape, 1))
        hit = reduce_any(eq(wide, flat), dims=(len(x.shape),), keepdim=False)
    else:
        ordered = gather(flat, argsort_op(flat, dim=0, descending=False), dims=(0,), rest=())
        place = search(ordered, x, right=False)
        hit = eq(gather(ordered, clamp(place, max=n - 1), dims=(0,), rest=()), x)
    return ne(hit, True) if invert else hit


# ------------------------------------------------------------------------------------------------ counts


@public(namespaces=("nn.functional",), method=False)
def one_hot(tensor: Any, num_classes: int = -1) -> Any:
    """int64 codes with a 1 at each class number, as a new last dimension. Without ``num_classes`` the values are looked at.

    Raises:
        RuntimeError: for a dtype other than int64, or classes out of range (found when looking, else such rows are zeros).
    """
    if tensor.dtype is not dt.int64:
        raise RuntimeError(f"one_hot: expected int64 class numbers, got {tensor.dtype}; convert with .long()")
    if num_classes == -1:
        a = tensor.numpy()
        if a.size == 0:
            raise RuntimeError("one_hot: the number of classes of an empty tensor is not known; pass num_classes")
        if a.min() < 0:
            raise RuntimeError(f"one_hot: class numbers must not be negative, got {a.min()}")
        num_classes = int(a.max()) + 1
    shape = (*tensor.shape, num_classes)
    place = index_value(tensor, shape, len(shape) - 1)
    return to_dtype(eq(reshape(tensor, shape=(*tensor.shape, 1)), place), dt.int64)


@public()
def bincount(input: Any, weights: Any = None, minlength: int = 0) -> Any:
    """How often each of 0, 1, … occurs in a vector of integers (or the sum of its weights). Looks at the greatest value.

    Raises:
        RuntimeError: for other shapes, dtypes, or negative values.
    """
    if len(input.shape) != 1 or input.dtype.kind not in "iu":
        raise RuntimeError(f"bincount: expected a vector of integers, got {input.dtype} {list(input.shape)}")
    a = input.numpy()
    if a.size and a.min() < 0:
        raise RuntimeError(f"bincount: values must not be negative, got {a.min()}")
    n = max(int(minlength), int(a.max()) + 1 if a.size else 0)
    if weights is None:
        one = full_value(input, 1, tuple(input.shape), dt.int64)
    else:
        one = weights if weights.dtype in (dt.float32, dt.float64) else to_dtype(weights, dt.float64)
    if not a.size:
        return full_value(one, 0, (n,))
    return scatter(full_value(one, 0, (n,)), one, to_dtype(input, dt.int64), dims=(0,), rest=(), mode="add")


@public()
def histc(input: Any, bins: int = 100, min: float = 0, max: float = 0) -> Any:
    """How many elements fall into each of ``bins`` equal intervals from ``min`` to ``max`` (of the values, where both are equal).

    Raises:
        RuntimeError: for min > max, or no bins.
    """
    if bins <= 0 or min > max:
        raise RuntimeError(f"histc: expected bins > 0 and min <= max, got bins={bins}, min={min}, max={max}")
    x = reshape(input, shape=(math.prod(input.shape),))
    if min == max:
        low, high = (full_value(x, 0, ()), full_value(x, 0, ())) if not x.shape[0] else _range(x)
    else:
        low, high = as_value(min, x, x.dtype), as_value(max, x, x.dtype)
    even = eq(low, high)
    low, high = where(even, sub(low, 1), low), where(even, add(high, 1), high)
    wide = to_dtype(x, dt.float64) if x.dtype.kind != "f" else x
    lo, hi = to_dtype(low, wide.dtype), to_dtype(high, wide.dtype)
    place = floor(mul(div(sub(wide, lo), sub(hi, lo)), float(bins)))
    inside = mul(ge(wide, lo), le(wide, hi))
    index = clamp(to_dtype(choose(inside, place, 0), dt.int64), 0, bins - 1)
    return scatter(full_value(x, 0, (bins,)), to_dtype(inside, x.dtype), index, dims=(0,), rest=(), mode="add")


def _range(x: Any) -> tuple[Any, Any]:
    return reduce_min(x, dims=(0,), keepdim=False), reduce_max(x, dims=(0,), keepdim=False)


def histogram_edges(x: Any, bins: Any, range: Any) -> Any:
    """The edges of a histogram: given, or evenly spaced over the range."""
    from cermet.ops.creation import linspace

    if not is_number(bins):
        return bins
    low, high = range if range is not None else [float(v) for v in _range(reshape(x, shape=(math.prod(x.shape),)))]
    if low == high:
        low, high = low - 0.5, high + 0.5
    return linspace(low, high, int(bins) + 1, dtype=x.dtype)


@public()
def histogram(input: Any, bins: Any, *, range: Any = None, weight: Any = None, density: bool = False) -> Any:
    """(counts, edges) of the elements between edges: a number of equal intervals over the range, or a sorted vector of edges."""

    from cermet.ops.sorting import search

    x = reshape(input, shape=(math.prod(input.shape),))
    edges = histogram_edges(x, bins, range)
    n = edges.shape[0] - 1
    place = sub(search(edges, x, right=True), 1)
    last = gather(edges, full_value(x, n, tuple(x.shape), dt.int64), dims=(0,), rest=())
    place = where(eq(x, last), full_value(x, n - 1, (), dt.int64), place)
    inside = mul(ge(place, 0), ne(ge(place, n), True))
    amount = (
        to_dtype(inside, x.dtype) if weight is None else mul(to_dtype(inside, x.dtype), reshape(weight, shape=tuple(x.shape)))
    )
    counts = scatter(full_value(x, 0, (n,)), amount, clamp(place, 0, n - 1), dims=(0,), rest=(), mode="add")
    if density:
        from cermet.ops.joining import cut

        widths = sub(cut(edges, 0, 1, n), cut(edges, 0, 0, n))
        counts = div(counts, mul(widths, expand(counts.sum(), shape=(n,))))
    return result_tuple("histogram", "hist", "bin_edges")(counts, edges)
