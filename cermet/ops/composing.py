"""What the decompositions of composites share: short names for primitives on values, widening of 16-bit floats, constant padding.

Works on values (tensors or nodes) alike. Shapes are tuples of ints known while recording.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from cermet import dtypes as dt
from cermet.ops.define import count_of
from cermet.ops.elementwise import div, mul, where
from cermet.ops.movement import expand, permute, reshape, slice_, unslice
from cermet.ops.reduction import reduce_max, reduce_sum
from cermet.ops.support import full_value, to_dtype

__all__ = [
    "crop",
    "dims_of",
    "inplace_or_new",
    "maximum_of",
    "mean_of",
    "narrow",
    "narrow_grad",
    "pad_with",
    "reduce_loss",
    "shaped",
    "spread_like",
    "sum_of",
    "swap_last",
    "wide",
]


def wide(x: Any) -> Any:
    """The value in the dtype that it is computed in: 16-bit floats as float32."""
    return to_dtype(x, x.dtype.compute)


def narrow(x: Any, like: Any) -> Any:
    """``x`` in the dtype of ``like`` (a value or a meta)."""
    return to_dtype(x, like.dtype)


narrow_grad = narrow


def dims_of(dims: int | Sequence[int]) -> tuple[int, ...]:
    """One or several dims as a sorted tuple."""
    return (dims,) if isinstance(dims, int) else tuple(sorted(dims))


def sum_of(x: Any, dims: int | Sequence[int], keepdim: bool = False) -> Any:
    """Sum over non-negative dims."""
    return reduce_sum(x, dims=dims_of(dims), keepdim=keepdim)


def maximum_of(x: Any, dims: int | Sequence[int], keepdim: bool = False) -> Any:
    """Maximum over non-negative dims."""
    return reduce_max(x, dims=dims_of(dims), keepdim=keepdim)


def mean_of(x: Any, dims: int | Sequence[int], keepdim: bool = False) -> Any:
    """Mean over non-negative dims; NaN over nothing, as in PyTorch."""
    dims = dims_of(dims)
    n = math.prod([x.shape[d] for d in dims])
    return div(sum_of(x, dims, keepdim), count_of(n))


def shaped(x: Any, shape: Sequence[int]) -> Any:
    """``x`` under another shape; nothing is recorded where it has it already."""
    shape = tuple(shape)
    return x if tuple(x.shape) == shape else reshape(x, shape=shape)


def spread_like(x: Any, shape: Sequence[int]) -> Any:
    """``x`` expanded to ``shape``; nothing is recorded where it has it already."""
    shape = tuple(shape)
    return x if tuple(x.shape) == shape else expand(x, shape=shape)


def swap_last(x: Any) -> Any:
    """The last two dimensions exchanged."""
    n = len(x.shape)
    return permute(x, dims=(*range(n - 2), n - 1, n - 2))


def crop(x: Any, starts: Sequence[int], sizes: Sequence[int]) -> Any:
    """The block of ``sizes`` from ``starts``; nothing is recorded where that is all of it."""
    starts, sizes = tuple(starts), tuple(sizes)
    if tuple(x.shape) == sizes and not any(starts):
        return x
    return slice_(x, starts=starts, steps=(1,) * len(starts), sizes=sizes)


def pad_with(x: Any, low: Sequence[int], high: Sequence[int], value: float = 0) -> Any:
    """``x`` with ``low`` and ``high`` elements of ``value`` added at the two ends of each dimension; negative numbers crop."""
    shape = tuple(x.shape)
    if any(a < 0 or b < 0 for a, b in zip(low, high)):
        starts = [max(0, -a) for a in low]
        sizes = [n - max(0, -a) - max(0, -b) for n, a, b in zip(shape, low, high)]
        x = crop(x, starts, sizes)
        low, high = [max(0, a) for a in low], [max(0, b) for b in high]
        shape = tuple(x.shape)
    if not any(low) and not any(high):
        return x
    full = tuple([a + n + b for n, a, b in zip(shape, low, high)])
    steps = (1,) * len(shape)
    padded = unslice(x, shape=full, starts=tuple(low), steps=steps)
    if value == 0:
        return padded
    inside = unslice(full_value(x, True, shape, dt.bool), shape=full, starts=tuple(low), steps=steps)
    return where(inside, padded, full_value(x, value, ()))


def reduce_loss(x: Any, reduction: str, name: str) -> Any:
    """Mean, sum or the elements themselves.

    Raises:
        ValueError: for any other ``reduction``.
    """
    dims = tuple(range(len(x.shape)))
    if reduction == "mean":
        return narrow(mean_of(wide(x), dims), x)
    if reduction == "sum":
        return sum_of(x, dims)
    if reduction == "none":
        return x
    raise ValueError(f"{name}: reduction must be 'mean', 'sum' or 'none', got {reduction!r}")


def inplace_or_new(input: Any, result: Any, inplace: bool) -> Any:
    """``result``, written to ``input`` where PyTorch's ``inplace=True`` asks for it."""
    return input._write(result) if inplace else result


def scaled(x: Any, factor: float) -> Any:
    """``x * factor``; nothing is recorded for a factor of 1."""
    return x if factor == 1 else mul(x, factor)
