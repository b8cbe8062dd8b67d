"""The inverse of max pooling: each maximum back in its place."""

from __future__ import annotations

import math
from typing import Any

from cermet import dtypes as dt
from cermet.ops.composing import shaped
from cermet.ops.gather import scatter
from cermet.ops.public import public
from cermet.ops.support import to_dtype, zeros_like_value

__all__: list[str] = []


def _tuple(v: Any, n: int, what: str) -> tuple[int, ...]:
    """One number for each dimension, of one for all or all of them."""
    if not isinstance(v, tuple | list):
        return (int(v),) * n
    if len(v) not in (1, n):
        raise ValueError(f"{what} must be a number or {n} numbers, got {tuple(v)}")
    return tuple(int(x) for x in v) * (n // len(v))


def _size(name: str, input: Any, n: int, kernel: Any, stride: Any, padding: Any, given: Any) -> tuple[int, ...]:
    """The output's spatial sizes: the given ones, where pooling could have made the input of them."""
    k = _tuple(kernel, n, f"{name}: kernel_size")
    s = k if stride is None else _tuple(stride, n, f"{name}: stride")
    p = _tuple(padding, n, f"{name}: padding")
    usual = [(d - 1) * t + w - 2 * q for d, t, w, q in zip(input.shape[-n:], s, k, p)]
    if given is None:
        return tuple(usual)
    sizes = tuple(int(v) for v in given)[-n:]
    for got, want, t in zip(sizes, usual, s):
        if not want - t < got < want + t:
            raise ValueError(
                f"{name}: output_size {tuple(given)} does not pool to the input; expected less than a stride off {tuple(usual)}"
            )
    return sizes


def _unpool(name: str, input: Any, indices: Any, n: int, sizes: tuple[int, ...]) -> Any:
    if tuple(input.shape) != tuple(indices.shape):
        raise RuntimeError(f"{name}: expected indices of the input's shape {list(input.shape)}, got {list(indices.shape)}")
    if len(input.shape) not in (n + 1, n + 2):
        raise RuntimeError(f"{name}: expected an input of {n + 1} or {n + 2} dimensions, got shape {list(input.shape)}")
    lead = tuple(input.shape[:-n])
    planes = math.prod(lead)
    flat, index = [shaped(v, (planes, math.prod(input.shape[-n:]))) for v in (input, to_dtype(indices, dt.int64))]
    base = zeros_like_value(flat, (planes, math.prod(sizes)))
    return shaped(scatter(base, flat, index, dims=(1,), rest=(0,), mode="set"), (*lead, *sizes))


@public(namespaces=("nn.functional",), method=False)
def max_unpool1d(
    input: Any, indices: Any, kernel_size: Any, stride: Any = None, padding: Any = 0, output_size: Any = None
) -> Any:
    """Zeros with the values of (N, C, L) at the places that ``max_pool1d(.., return_indices=True)`` found.

    Raises:
        RuntimeError, ValueError: where shapes or ``output_size`` do not fit.
    """
    sizes = _size("max_unpool1d", input, 1, kernel_size, stride, padding, output_size)
    return _unpool("max_unpool1d", input, indices, 1, sizes)


@public(namespaces=("nn.functional",), method=False)
def max_unpool2d(
    input: Any, indices: Any, kernel_size: Any, stride: Any = None, padding: Any = 0, output_size: Any = None
) -> Any:
    """As `max_unpool1d`, of (N, C, H, W)."""
    sizes = _size("max_unpool2d", input, 2, kernel_size, stride, padding, output_size)
    return _unpool("max_unpool2d", input, indices, 2, sizes)


@public(namespaces=("nn.functional",), method=False)
def max_unpool3d(
    input: Any, indices: Any, kernel_size: Any, stride: Any = None, padding: Any = 0, output_size: Any = None
) -> Any:
    """As `max_unpool1d`, of (N, C, D, H, W)."""
    sizes = _size("max_unpool3d", input, 3, kernel_size, stride, padding, output_size)
    return _unpool("max_unpool3d", input, indices, 3, sizes)
