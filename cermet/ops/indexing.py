"""Indexing: ``x[...]`` and ``x[...] = v`` in every form.

Ints, slices, None and Ellipsis make views. Integer tensors are gathered and scattered. A boolean mask needs its value,
for it decides the shape of the result: it is looked at, at the call; except where one value is written through a mask, which is
a choice by position.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from cermet import dtypes as dt
from cermet.graph.node import broadcast_shapes
from cermet.ops.define import hooks
from cermet.ops.elementwise import where
from cermet.ops.gather import gather, scatter
from cermet.ops.movement import expand, reshape, slice_
from cermet.ops.public import public
from cermet.ops.support import is_number, to_dtype, view, wrap_dim

__all__ = ["aligned_index", "getitem", "index_long", "index_select", "nonzero", "setitem"]


def index_long(index: Any) -> Any:
    """An index tensor as int64.

    Raises:
        IndexError: for floating indices.
    """
    if index.dtype is dt.int64:
        return index
    if index.dtype.kind == "f":
        raise IndexError(f"an index tensor has dtype {index.dtype}; indices are whole numbers (cast with .long()) or a bool mask")
    return to_dtype(index, dt.int64)


def _is_tensor(x: Any) -> bool:
    return hasattr(x, "_node")


class _Plan:
    """An index taken apart: a slice of the input, the shape after ints and None, and index tensors by dimension of that shape."""

    __slots__ = ("advanced", "shape", "sizes", "starts", "steps")

    def __init__(self) -> None:
        self.starts: list[int] = []
        self.steps: list[int] = []
        self.sizes: list[int] = []
        self.shape: list[int] = []
        self.advanced: dict[int, Any] = {}


def _items(x: Any, index: Any) -> list[Any]:
    """The index as a list with the Ellipsis written out and sequences as tensors."""
    raw = list(index) if isinstance(index, tuple) else [index]
    items: list[Any] = []
    for item in raw:
        if isinstance(item, list | range | tuple):
            item = hooks.to_tensor(np.asarray(_plain(item)) if len(item) else np.zeros(0, np.int64), dtype=None, like=None)
        elif isinstance(item, np.ndarray):
            item = hooks.to_tensor(item, dtype=None, like=None)
        if _is_tensor(item) and item.dtype is dt.uint8:
            item = to_dtype(item, dt.bool)
        items.append(item)
    used = sum(_consumes(item) for item in items)
    ndim = len(x.shape)
    if used > ndim:
        raise IndexError(f"too many indices for a tensor of {ndim} dimensions: {used}")
    dots = [k for k, item in enumerate(items) if item is Ellipsis]
    if len(dots) > 1:
        raise IndexError(f"an index with {len(dots)} ellipses (...): only one can stand for the dimensions that are left out")
    at = dots[0] if dots else len(items)
    return items[:at] + [slice(None)] * (ndim - used) + items[at + 1 :]


def _plain(item: Any) -> Any:
    """Nested sequences with the values of tensors in them."""
    if _is_tensor(item):
        return item.tolist()
    return [_plain(i) for i in item] if isinstance(item, list | tuple | range) else item


def _consumes(item: Any) -> int:
    if item is None or item is Ellipsis or isinstance(item, bool | np.bool_):
        return 0
    if _is_tensor(item) and item.dtype is dt.bool:
        return len(item.shape)
    return 1


def _planned(x: Any, index: Any) -> _Plan:
    shape = tuple(x.shape)
    plan = _Plan()
    d = 0
    for item in _items(x, index):
        if isinstance(item, slice):
            start, stop, step = item.indices(shape[d])
            _keep(plan, start, step, len(range(start, stop, step)))
            d += 1
        elif item is None:
            plan.shape.append(1)
        elif isinstance(item, bool | np.bool_):
            plan.advanced[len(plan.shape)] = hooks.to_tensor(np.zeros(int(item), np.int64), dtype=None, like=None)
            plan.shape.append(1)
        elif _is_tensor(item):
            d = _advanced(plan, item, d, shape)
        else:
            _integer(plan, item, d, shape)
            d += 1
    return plan


def _keep(plan: _Plan, start: int, step: int, size: int) -> None:
    plan.starts.append(start if size else 0)
    plan.steps.append(step)
    plan.sizes.append(size)
    plan.shape.append(size)


def _integer(plan: _Plan, item: Any, d: int, shape: tuple[int, ...]) -> None:
    try:
        k = item.__index__()
    except AttributeError:
        raise IndexError(
            f"a {type(item).__name__} is no index; index with ints, slices, ..., None, or tensors and lists of ints or bools"
        ) from None
    if not -shape[d] <= k < shape[d]:
        raise IndexError(f"index {k} does not exist in dimension {d} of size {shape[d]}")
    plan.starts.append(k % shape[d])
    plan.steps.append(1)
    plan.sizes.append(1)


def _advanced(plan: _Plan, item: Any, d: int, shape: tuple[int, ...]) -> int:
    """Add an index tensor, or the positions where a mask is true; returns the next dimension."""
    if item.dtype is not dt.bool:
        plan.advanced[len(plan.shape)] = index_long(item)
        _keep(plan, 0, 1, shape[d])
        return d + 1
    n = len(item.shape)
    if tuple(item.shape) != shape[d : d + n]:
        raise IndexError(
            f"a mask of shape {list(item.shape)} does not match dimensions {d} to {d + n - 1} of shape {list(shape)}"
        )
    if n == 0:
        plan.advanced[len(plan.shape)] = hooks.to_tensor(np.zeros(int(bool(item)), np.int64), dtype=None, like=None)
        plan.shape.append(1)
        return d
    for k, found in enumerate(np.nonzero(item.numpy())):
        plan.advanced[len(plan.shape)] = hooks.to_tensor(found.astype(np.int64), dtype=None, like=None)
        _keep(plan, 0, 1, shape[d + k])
    return d + n


def _basic(x: Any, plan: _Plan) -> Any:
    """The view that the slices, ints and Nones of an index make."""
    shape = tuple(x.shape)
    sizes = tuple(plan.sizes)
    out = x
    if sizes != shape or any(plan.starts) or any(s != 1 for s in plan.steps):
        out = view(slice_, out, starts=tuple(plan.starts), steps=tuple(plan.steps), sizes=sizes)
    if tuple(plan.shape) != sizes or out is x:
        out = view(reshape, out, shape=tuple(plan.shape))
    return out


def aligned_index(index: Any, shape: tuple[int, ...], at: int) -> Any:
    """An index tensor expanded to ``shape``, its last dimension standing ``at`` that of the result (counted from the end of its
    own)."""
    own = tuple(index.shape)
    if own == shape:
        return index
    after = len(shape) - at - len(own)
    if at or after:
        index = reshape(index, shape=(*[1] * at, *own, *[1] * after))
    return expand(index, shape=shape) if tuple(index.shape) != shape else index


def _aligned(shape: tuple[int, ...], advanced: dict[int, Any]) -> tuple[list[Any], dict[str, Any]]:
    """Indices in the shape of the result, with gather's attributes: together where the indexed dims are neighbours, else in
    front."""
    dims = tuple(sorted(advanced))
    try:
        joint = broadcast_shapes(*[tuple(i.shape) for i in advanced.values()])
    except ValueError:
        named = ", ".join(str(list(i.shape)) for i in advanced.values())
        raise IndexError(f"shape mismatch: indexing tensors of shapes {named} do not broadcast together") from None
    neighbours = dims[-1] - dims[0] == len(dims) - 1
    at = dims[0] if neighbours else 0
    free = [d for d in range(len(shape)) if d not in dims]
    before = [d for d in free if neighbours and d < dims[0]]
    after = [d for d in free if d not in before]
    result = (*[shape[d] for d in before], *joint, *[shape[d] for d in after])
    rest = tuple([before.index(d) if d in before else len(before) + len(joint) + after.index(d) for d in free])
    indices = []
    for d in dims:
        index = advanced[d]
        index = reshape(index, shape=(1,) * (len(joint) - len(index.shape)) + tuple(index.shape))
        indices.append(aligned_index(index, result, at))
    return indices, {"dims": dims, "rest": rest}


def getitem(x: Any, index: Any) -> Any:
    """``x[index]``: a view for ints, slices, None and Ellipsis; a copy where a tensor is among them.

    Raises:
        IndexError: for indices out of range (of integer tensors: at evaluation), too many of them, or of a wrong kind.
    """
    if type(index) is int and len(x.shape):  # the commonest form by far: a loop over rows
        shape = tuple(x.shape)
        n, rest = shape[0], shape[1:]
        if -n <= index < n:
            zeros = (0,) * len(rest)
            row = view(slice_, x, starts=(index % n, *zeros), steps=(1,) * len(shape), sizes=(1, *rest))
            return view(reshape, row, shape=rest)
    plan = _planned(x, index)
    if not plan.advanced:
        return _basic(x, plan)
    base = x
    if tuple(plan.shape) != tuple(x.shape) or any(plan.starts) or any(s != 1 for s in plan.steps):
        base = reshape(
            slice_(x, starts=tuple(plan.starts), steps=tuple(plan.steps), sizes=tuple(plan.sizes)), shape=tuple(plan.shape)
        )
    indices, attrs = _aligned(tuple(base.shape), plan.advanced)
    return gather(base, *indices, **attrs)


def _fitted_value(value: Any, like: Any, shape: tuple[int, ...]) -> Any:
    """A value to be written, in the dtype of ``like`` and broadcast to ``shape``; leading dimensions of size 1 are dropped."""
    if not _is_tensor(value):
        value = hooks.to_tensor(value, dtype=like.dtype if is_number(value) else None, like=like)
    value = to_dtype(value, like.dtype)
    own = tuple(value.shape)
    while len(own) > len(shape) and own[0] == 1:
        own = own[1:]
    if own != tuple(value.shape):
        value = reshape(value, shape=own)
    try:
        fits = broadcast_shapes(own, shape) == shape
    except ValueError:
        fits = False
    if not fits:
        raise RuntimeError(f"shape mismatch: a value of shape {list(own)} cannot be broadcast to the indexed shape {list(shape)}")
    return expand(value, shape=shape) if own != shape else value


def setitem(x: Any, index: Any, value: Any) -> None:
    """``x[index] = value``: the value is broadcast and cast; where indices repeat, the last one wins."""
    mask = index[0] if isinstance(index, tuple) and len(index) == 1 else index
    if _is_tensor(mask) and mask.dtype is dt.bool and len(mask.shape) and (is_number(value) or math.prod(value.shape) == 1):
        _masked_write(x, mask, value)
        return
    plan = _planned(x, index)
    target = _basic(x, plan) if plan.sizes != list(x.shape) or plan.shape != plan.sizes or any(s != 1 for s in plan.steps) else x
    if not plan.advanced:
        target._write(_fitted_value(value, x, tuple(target.shape)))
        return
    indices, attrs = _aligned(tuple(target.shape), plan.advanced)
    update = _fitted_value(value, x, tuple(indices[0].shape))
    target._write(scatter(target, update, *indices, **attrs, mode="set"))


def _masked_write(x: Any, mask: Any, value: Any) -> None:
    n = len(mask.shape)
    shape = tuple(x.shape)
    if tuple(mask.shape) != shape[:n]:
        raise IndexError(f"a mask of shape {list(mask.shape)} does not match the first {n} dimensions of shape {list(shape)}")
    mask = reshape(mask, shape=(*mask.shape, *[1] * (len(shape) - n)))
    x._write(where(mask, _fitted_value(reshape(value, shape=()) if _is_tensor(value) else value, x, ()), x))


# ------------------------------------------------------------------------------------------------ positions of what is true


@public(name="nonzero")
def nonzero(input: Any, *, as_tuple: bool = False) -> Any:
    """Positions of the elements that are not 0, in row-major order, as (count, ndim); with ``as_tuple`` one index tensor per
    dimension. Looks at the values."""
    a = input.numpy(force=True)
    if as_tuple:
        return tuple([hooks.to_tensor(p.astype(np.int64), dtype=None, like=None) for p in np.nonzero(np.atleast_1d(a))])
    found = np.argwhere(a).astype(np.int64) if a.ndim else np.zeros((int(bool(a)), 0), np.int64)
    return hooks.to_tensor(found, dtype=None, like=None)


@public()
def argwhere(input: Any) -> Any:
    """Positions of the elements that are not 0, as (count, ndim). Looks at the values."""
    return nonzero(input)


@public()
def index_select(input: Any, dim: int, index: Any) -> Any:
    """The slices of ``input`` along ``dim`` at a vector of indices.

    Raises:
        IndexError: for an index of more than one dimension; at evaluation for one that is out of range.
    """
    shape = tuple(input.shape)
    d = wrap_dim(dim, len(shape), "index_select")
    index = index_long(index)
    if len(index.shape) > 1:
        raise IndexError(f"index_select: the index must be a vector, got shape {list(index.shape)}")
    if not shape:
        return gather(reshape(input, shape=(1,)), reshape(index, shape=(1,)), dims=(0,), rest=())
    n = math.prod(index.shape)
    full = (*shape[:d], n, *shape[d + 1 :])
    lined = aligned_index(reshape(index, shape=(n,)), full, d)
    return gather(input, lined, dims=(d,), rest=tuple([k for k in range(len(shape)) if k != d]))
