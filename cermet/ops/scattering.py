"""What users call to read and write at index tensors: gather, scatter, take, put, and masks."""

from __future__ import annotations

import math
from typing import Any

from cermet import dtypes as dt
from cermet.graph.node import broadcast_shapes
from cermet.ops.arithmetic import clamp
from cermet.ops.elementwise import div, mul, sub, where
from cermet.ops.gather import gather, scatter
from cermet.ops.indexing import aligned_index, getitem, index_long
from cermet.ops.movement import expand, reshape, slice_
from cermet.ops.public import public
from cermet.ops.support import as_value, full_value, is_number, to_dtype, wrap_dim

# ------------------------------------------------------------------------------------------------ gather, take


def _along(name: str, input: Any, dim: int, index: Any) -> tuple[Any, Any, int, dict[str, Any]]:
    """Input, index, dim and attributes for an index tensor with the input's number of dimensions."""
    x = input if len(input.shape) else reshape(input, shape=(1,))
    index = index_long(index)
    if len(index.shape) == 0:
        index = reshape(index, shape=(1,))
    d = wrap_dim(dim, len(x.shape), name)
    if len(index.shape) != len(x.shape):
        raise RuntimeError(
            f"{name}: the index must have as many dimensions as the tensor: shapes {list(index.shape)} and {list(input.shape)}"
        )
    return x, index, d, {"dims": (d,), "rest": tuple([k for k in range(len(x.shape)) if k != d])}


def _check_sizes(name: str, what: str, small: Any, large: Any, skip: int | None) -> None:
    if any(a > b for k, (a, b) in enumerate(zip(small.shape, large.shape)) if k != skip):
        but = "" if skip is None else f" but in dimension {skip}"
        raise RuntimeError(
            f"{name}: the index of shape {list(small.shape)} must not be larger than {what} of shape {list(large.shape)}{but}"
        )


@public(name="gather")
def gather_(input: Any, dim: int, index: Any, *, sparse_grad: bool = False) -> Any:
    """out[i, j, …] = input[index[i, j, …], j, …] for dim 0, and so on: the result has the index's shape.

    Raises:
        RuntimeError: for an index with another number of dimensions, or larger than the input in another dimension.
        IndexError: at evaluation, for an index that is out of range.
    """
    x, i, d, attrs = _along("gather", input, dim, index)
    _check_sizes("gather", "the input", i, x, d)
    out = gather(x, i, **attrs)
    return out if len(index.shape) else reshape(out, shape=())


@public()
def take(input: Any, index: Any) -> Any:
    """The elements of the flattened input at an index tensor, in its shape."""
    flat = reshape(input, shape=(math.prod(input.shape),))
    return gather(flat, index_long(index), dims=(0,), rest=())


@public()
def take_along_dim(input: Any, indices: Any, dim: int | None = None) -> Any:
    """As `gather`, with input and indices broadcast against each other but along ``dim``; without dim, of the flattened input."""
    if dim is None:
        return take(input, reshape(indices, shape=(math.prod(indices.shape),)))
    x, i, d, attrs = _along("take_along_dim", input, dim, indices)
    one = broadcast_shapes(*[tuple([1 if k == d else s for k, s in enumerate(v.shape)]) for v in (x, i)])
    x = expand(x, shape=tuple([x.shape[d] if k == d else s for k, s in enumerate(one)]))
    i = expand(i, shape=tuple([i.shape[d] if k == d else s for k, s in enumerate(one)]))
    return gather(x, i, **attrs)


# ------------------------------------------------------------------------------------------------ scatter


def _source(name: str, x: Any, index: Any, src: Any) -> Any:
    """The part of the source that the index covers, in the input's dtype."""
    if is_number(src):
        return full_value(x, src, tuple(index.shape))
    src = src if len(src.shape) else reshape(src, shape=(1,) * len(index.shape))
    if src.dtype is not x.dtype:
        raise RuntimeError(f"{name}: input and source must have one dtype, got {x.dtype} and {src.dtype}")
    _check_sizes(name, "the source", index, src, None)
    shape = tuple(index.shape)
    if tuple(src.shape) != shape:
        src = slice_(src, starts=(0,) * len(shape), steps=(1,) * len(shape), sizes=shape)
    return src


def _scattered(name: str, input: Any, dim: int, index: Any, src: Any, mode: str) -> Any:
    x, i, d, attrs = _along(name, input, dim, index)
    if math.prod(i.shape) == 0:
        return mul(input, 1)
    _check_sizes(name, "the input", i, x, d)
    out = scatter(x, _source(name, x, i, src), i, **attrs, mode=mode)
    return out if len(input.shape) else reshape(out, shape=())


@public(name="scatter", inplace=True)
def scatter_(input: Any, dim: int, index: Any, src: Any = None, *, value: Any = None, reduce: str | None = None) -> Any:
    """The input with input[index[i, j, …], j, …] = src[i, j, …] done for dim 0, and so on. Of equal places the last wins.

    Args:
        src: a tensor, or a number (also as ``value``). reduce: ``"add"`` or ``"multiply"`` instead of replacing.

    Raises:
        RuntimeError: for shapes or dtypes that do not fit, or another ``reduce``.
    """
    modes = {None: "set", "add": "add", "multiply": "mul"}
    if reduce not in modes:
        raise RuntimeError(f"scatter: reduce must be 'add' or 'multiply', got {reduce!r}")
    return _scattered("scatter", input, dim, index, value if src is None else src, modes[reduce])


@public(inplace=True, autocast="widest")
def scatter_add(input: Any, dim: int, index: Any, src: Any) -> Any:
    """The input with input[index[i, j, …], j, …] += src[i, j, …] done for dim 0, and so on."""
    return _scattered("scatter_add", input, dim, index, src, "add")


_REDUCE = {"sum": "add", "prod": "mul", "amax": "max", "amin": "min", "mean": "add"}


def _identity(d: dt.DType, reduce: str) -> Any:
    if reduce in ("sum", "mean"):
        return 0
    if reduce == "prod":
        return 1
    if d.kind == "f":
        return float("-inf") if reduce == "amax" else float("inf")
    if d.kind == "b":
        return reduce == "amin"
    info = dt.iinfo(d)
    return info.min if reduce == "amax" else info.max


def _reduced(x: Any, update: Any, indices: list[Any], attrs: dict[str, Any], reduce: str, include_self: bool, name: str) -> Any:
    """Scatter with a reduction; without ``include_self`` the places written start from the reduction's identity."""
    if reduce not in _REDUCE:
        raise RuntimeError(f"{name}: reduce must be one of {', '.join(_REDUCE)}, got {reduce!r}")
    base = x
    shape = tuple(update.shape)
    if not include_self:
        base = scatter(x, full_value(x, _identity(x.dtype, reduce), shape), *indices, **attrs, mode="set")
    out = scatter(base, update, *indices, **attrs, mode=_REDUCE[reduce])
    if reduce != "mean":
        return out
    first = full_value(x, 1 if include_self else 0, tuple(x.shape), dt.int64)
    number = scatter(first, full_value(x, 1, shape, dt.int64), *indices, **attrs, mode="add")
    number = clamp(number, min=1)
    if x.dtype.kind == "f":
        return div(out, to_dtype(number, x.dtype))
    from cermet.ops.arithmetic import floor_divide

    return floor_divide(out, to_dtype(number, x.dtype))


@public(inplace=True)
def scatter_reduce(input: Any, dim: int, index: Any, src: Any, reduce: str, *, include_self: bool = True) -> Any:
    """The input with the source's elements reduced into the places of an index tensor.

    Args:
        reduce: ``sum prod mean amax amin``. include_self: whether the input's own element takes part.

    Raises:
        RuntimeError: for shapes or dtypes that do not fit, or another ``reduce``.
    """
    x, i, d, attrs = _along("scatter_reduce", input, dim, index)
    _check_sizes("scatter_reduce", "the input", i, x, d)
    out = _reduced(x, _source("scatter_reduce", x, i, src), [i], attrs, reduce, include_self, "scatter_reduce")
    return out if len(input.shape) else reshape(out, shape=())


# ------------------------------------------------------------------------------------------------ slices at a vector of indices


def _sliced(name: str, input: Any, dim: int, index: Any, source: Any) -> tuple[Any, Any, Any, dict[str, Any]]:
    """Input, update and index for functions that write slices along ``dim``."""
    x = input if len(input.shape) else reshape(input, shape=(1,))
    d = wrap_dim(dim, len(x.shape), name)
    index = index_long(index)
    if len(index.shape) > 1:
        raise RuntimeError(f"{name}: the index must be a vector, got shape {list(index.shape)}")
    n = math.prod(index.shape)
    shape = (*x.shape[:d], n, *x.shape[d + 1 :])
    if is_number(source):
        source = full_value(x, source, shape)
    else:
        if source.dtype is not x.dtype:
            raise RuntimeError(f"{name}: input and source must have one dtype, got {x.dtype} and {source.dtype}")
        if not source.shape or (len(source.shape) != len(x.shape) and math.prod(source.shape) == 1):
            source = expand(reshape(source, shape=(1,) * len(shape)), shape=shape)
        if tuple(source.shape) != shape:
            raise RuntimeError(f"{name}: the source has shape {list(source.shape)}, expected {list(shape)}")
    lined = aligned_index(reshape(index, shape=(n,)), shape, d)
    return x, source, lined, {"dims": (d,), "rest": tuple([k for k in range(len(x.shape)) if k != d])}


@public(inplace=True, autocast="widest")
def index_add(input: Any, dim: int, index: Any, source: Any, *, alpha: Any = 1) -> Any:
    """The input with ``alpha`` times the source's slices added at a vector of indices along ``dim``."""
    x, update, i, attrs = _sliced("index_add", input, dim, index, source)
    if alpha != 1:
        update = mul(update, as_value(alpha, x, x.dtype))
    return reshape(scatter(x, update, i, **attrs, mode="add"), shape=tuple(input.shape))


@public(inplace=True, autocast="widest")
def index_copy(input: Any, dim: int, index: Any, source: Any) -> Any:
    """The input with the source's slices put at a vector of indices along ``dim``."""
    x, update, i, attrs = _sliced("index_copy", input, dim, index, source)
    return reshape(scatter(x, update, i, **attrs, mode="set"), shape=tuple(input.shape))


@public(inplace=True)
def index_fill(input: Any, dim: int, index: Any, value: Any) -> Any:
    """The input with one value in the slices at a vector of indices along ``dim``."""
    if not is_number(value):
        if len(value.shape):
            raise RuntimeError(f"index_fill: the value must be a number or 0-dimensional, got shape {list(value.shape)}")
        value = to_dtype(value, input.dtype)
    x, update, i, attrs = _sliced("index_fill", input, dim, index, value)
    return reshape(scatter(x, update, i, **attrs, mode="set"), shape=tuple(input.shape))


@public(inplace=True)
def index_reduce(input: Any, dim: int, index: Any, source: Any, reduce: str, *, include_self: bool = True) -> Any:
    """The input with the source's slices reduced into those at a vector of indices: ``prod mean amax amin``."""
    x, update, i, attrs = _sliced("index_reduce", input, dim, index, source)
    return reshape(_reduced(x, update, [i], attrs, reduce, include_self, "index_reduce"), shape=tuple(input.shape))


@public(inplace=True, autocast="widest")
def index_put(input: Any, indices: Any, values: Any, accumulate: bool = False) -> Any:
    """The input with ``input[indices] = values`` done; with ``accumulate``, ``+=`` that counts equal places each.

    Args:
        indices: a tuple of index tensors (or masks), as in ``input[indices]``.
    """
    from cermet.ops.indexing import _aligned, _fitted_value, _planned

    plan = _planned(input, tuple(slice(None) if i is None else i for i in indices))
    found, attrs = _aligned(tuple(plan.shape), plan.advanced)
    update = _fitted_value(values, input, tuple(found[0].shape))
    return scatter(input, update, *found, **attrs, mode="add" if accumulate else "set")


@public(inplace=True)
def put(input: Any, index: Any, source: Any, accumulate: bool = False) -> Any:
    """The input with the source's elements at places of the flattened input."""
    flat = reshape(input, shape=(math.prod(input.shape),))
    index = index_long(index)
    n = math.prod(index.shape)
    if source.dtype is not input.dtype or math.prod(source.shape) != n:
        raise RuntimeError(f"put: expected a source of {n} elements of {input.dtype}, got {list(source.shape)} of {source.dtype}")
    out = scatter(
        flat, reshape(source, shape=(n,)), reshape(index, shape=(n,)), dims=(0,), rest=(), mode="add" if accumulate else "set"
    )
    return reshape(out, shape=tuple(input.shape))


# ------------------------------------------------------------------------------------------------ masks


def _mask(mask: Any, name: str) -> Any:
    if mask.dtype is dt.uint8:
        return to_dtype(mask, dt.bool)
    if mask.dtype is not dt.bool:
        raise RuntimeError(f"{name}: expected a bool mask, got {mask.dtype}; compare or call .bool() first")
    return mask


@public(inplace=True)
def masked_fill(input: Any, mask: Any, value: Any) -> Any:
    """The input with one value where the mask (broadcast) is true.

    Raises:
        RuntimeError: for a mask that is not bool, or a value of more than one dimension.
    """
    mask = _mask(mask, "masked_fill")
    if is_number(value):
        if isinstance(value, float) and input.dtype.kind != "f":
            raise RuntimeError(f"masked_fill: the value {value} cannot be converted to {input.dtype} without loss")
        value = as_value(value, input, input.dtype)
    elif len(value.shape):
        raise RuntimeError(f"masked_fill: the value must be a number or 0-dimensional, got shape {list(value.shape)}")
    return where(mask, to_dtype(value, input.dtype), input)


@public()
def masked_select(input: Any, mask: Any) -> Any:
    """The elements where the mask (broadcast) is true, as a vector. Looks at the mask's values."""
    mask = _mask(mask, "masked_select")
    shape = broadcast_shapes(tuple(input.shape), tuple(mask.shape))
    return getitem(expand(input, shape=shape), expand(mask, shape=shape))


@public(inplace=True)
def masked_scatter(input: Any, mask: Any, source: Any) -> Any:
    """The input with the elements of the source, one after another, where the mask (broadcast) is true.

    Raises:
        RuntimeError: for a mask that is not bool, or different dtypes. IndexError: at evaluation, when the source is too short.
    """
    from cermet.ops.scan import scan

    mask = _mask(mask, "masked_scatter")
    if source.dtype is not input.dtype:
        raise RuntimeError(f"masked_scatter: input and source must have one dtype, got {input.dtype} and {source.dtype}")
    shape = broadcast_shapes(tuple(input.shape), tuple(mask.shape))
    n = math.prod(shape)
    hit = reshape(expand(mask, shape=shape), shape=(n,))
    if n == 0:
        return expand(input, shape=shape)
    # Each true place reads the source at the number of true places before it; the others read its start, and drop it.
    place = sub(scan(to_dtype(hit, dt.int64), dim=0, mode="sum"), 1)
    place = mul(place, to_dtype(hit, dt.int64))
    flat = reshape(source, shape=(math.prod(source.shape),))
    if not flat.shape[0]:
        raise RuntimeError("masked_scatter: the source is empty")
    taken = reshape(gather(flat, place, dims=(0,), rest=()), shape=shape)
    return where(reshape(hit, shape=shape), taken, input)


@public()
def select_scatter(input: Any, src: Any, dim: int, index: int) -> Any:
    """A copy of the input with one index along ``dim`` replaced."""
    d = wrap_dim(dim, len(input.shape), "select_scatter")
    k = index % input.shape[d]
    row = (*input.shape[:d], 1, *input.shape[d + 1 :])
    return _put(input, reshape(to_dtype(src, input.dtype), shape=row), d, k, 1)


@public()
def slice_scatter(input: Any, src: Any, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1) -> Any:
    """A copy of the input with a slice along ``dim`` replaced."""
    d = wrap_dim(dim, len(input.shape), "slice_scatter")
    first, _, step = slice(start, end, step).indices(input.shape[d])
    return _put(input, to_dtype(src, input.dtype), d, first, step)


def _put(x: Any, update: Any, d: int, start: int, step: int) -> Any:
    from cermet.ops.movement import put_slice

    n = len(x.shape)
    return put_slice(
        x,
        update,
        starts=tuple([start if k == d else 0 for k in range(n)]),
        steps=tuple([step if k == d else 1 for k in range(n)]),
    )


@public()
def diagonal_scatter(input: Any, src: Any, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Any:
    """A copy of the input with a diagonal replaced."""
    from cermet.ops.movement import put_diagonal

    n = len(input.shape)
    return put_diagonal(
        input,
        to_dtype(src, input.dtype),
        offset=int(offset),
        dim1=wrap_dim(dim1, n, "diagonal_scatter"),
        dim2=wrap_dim(dim2, n, "diagonal_scatter"),
    )
