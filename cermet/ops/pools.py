"""The public pooling functions: PyTorch's arguments on top of `cermet.ops.pooling`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from cermet.ops.composing import crop, shaped
from cermet.ops.contraction import contract
from cermet.ops.convolution import per_dim
from cermet.ops.define import hooks
from cermet.ops.elementwise import mul
from cermet.ops.pooling import average, max_pool, max_pool_indices, sum_pool
from cermet.ops.public import public


def _arguments(name: str, n: int, kernel_size: Any, stride: Any, padding: Any) -> tuple[Any, Any, Any]:
    kernel = per_dim(kernel_size, n, name, "kernel_size")
    empty = stride is None or (isinstance(stride, list | tuple) and not stride)
    return kernel, kernel if empty else per_dim(stride, n, name, "stride"), per_dim(padding, n, name, "padding")


def _check_dims(name: str, x: Any, n: int) -> None:
    if len(x.shape) not in (n + 1, n + 2):
        raise ValueError(f"{name}: expected an input of {n + 1} (one sample) or {n + 2} dimensions, got shape {list(x.shape)}")


def _max(name: str, n: int, x: Any, kernel_size: Any, stride: Any, padding: Any, dilation: Any, ceil: bool, indices: bool) -> Any:
    _check_dims(name, x, n)
    kernel, step, pad = _arguments(name, n, kernel_size, stride, padding)
    a = {"kernel": kernel, "stride": step, "padding": pad, "dilation": per_dim(dilation, n, name, "dilation"), "ceil": bool(ceil)}
    out = max_pool(x, **a)
    return (out, max_pool_indices(x, **a)) if indices else out


@public(namespaces=("", "nn.functional"), method=False)
def max_pool1d(
    input: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """The maximum of each window of (N, C, L) or (C, L); with ``return_indices`` also where it was."""
    return _max("max_pool1d", 1, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)


@public(namespaces=("", "nn.functional"), method=False)
def max_pool2d(
    input: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """The maximum of each window of (N, C, H, W) or (C, H, W); with ``return_indices`` also where it was."""
    return _max("max_pool2d", 2, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)


@public(namespaces=("", "nn.functional"), method=False)
def max_pool3d(
    input: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """The maximum of each window of (N, C, D, H, W) or (C, D, H, W); with ``return_indices`` also where it was."""
    return _max("max_pool3d", 3, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)


def _avg(name: str, n: int, x: Any, kernel_size: Any, stride: Any, padding: Any, ceil: bool, include: bool, divisor: Any) -> Any:
    _check_dims(name, x, n)
    if divisor == 0:
        raise RuntimeError(f"{name}: divisor_override must not be 0")
    kernel, step, pad = _arguments(name, n, kernel_size, stride, padding)
    return average(x, kernel, step, pad, bool(ceil), include, divisor)


@public(namespaces=("", "nn.functional"), method=False)
def avg_pool1d(
    input: Any, kernel_size: Any, stride: Any = None, padding: Any = 0, ceil_mode: bool = False, count_include_pad: bool = True
) -> Any:
    """The mean of each window of (N, C, L) or (C, L)."""
    return _avg("avg_pool1d", 1, input, kernel_size, stride, padding, ceil_mode, count_include_pad, None)


@public(namespaces=("nn.functional",), method=False)
def avg_pool2d(
    input: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Any:
    """The mean of each window of (N, C, H, W) or (C, H, W)."""
    return _avg("avg_pool2d", 2, input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)


@public(namespaces=("nn.functional",), method=False, autocast="float32")
def avg_pool3d(
    input: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Any:
    """The mean of each window of (N, C, D, H, W) or (C, D, H, W)."""
    return _avg("avg_pool3d", 3, input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)


# ------------------------------------------------------------------------------------------------------------ adaptive


def _targets(name: str, x: Any, n: int, output_size: Any) -> tuple[int, ...]:
    _check_dims(name, x, n)
    given = output_size if isinstance(output_size, list | tuple) else (output_size,) * n
    if len(given) != n:
        raise ValueError(f"{name}: output_size must be an integer or {n} integers, got {output_size!r}")
    return tuple([int(x.shape[len(x.shape) - n + i]) if o is None else int(o) for i, o in enumerate(given)])


def _spans(size: int, out: int) -> list[tuple[int, int]]:
    """Window i covers floor(i size / out) to ceil((i + 1) size / out)."""
    return [(i * size // out, -(-(i + 1) * size // out)) for i in range(out)]


def _adaptive_avg(name: str, n: int, x: Any, output_size: Any) -> Any:
    out = _targets(name, x, n, output_size)
    sizes = tuple(x.shape[-n:])
    if all(o and s % o == 0 for s, o in zip(sizes, out)):
        kernel = tuple([s // o for s, o in zip(sizes, out)])
        return average(x, kernel, kernel, (0,) * n, False, True, None)
    # Unequal windows: along each dimension a product with a small matrix of averages.
    for i, (s, o) in enumerate(zip(sizes, out)):
        matrix = np.zeros((s, o))
        for k, (a, b) in enumerate(_spans(s, o)):
            matrix[a:b, k] = 1.0 / max(b - a, 1)
        x = _along(x, len(x.shape) - n + i, hooks.to_tensor(matrix, dtype=x.dtype, like=x))
    return x


def _along(x: Any, dim: int, matrix: Any) -> Any:
    """Product of the vectors along ``dim`` with a matrix (in, out)."""
    from cermet.ops.movement import permute

    n = len(x.shape)
    order = (*[k for k in range(n) if k != dim], dim)
    moved = permute(x, dims=order)
    lead = tuple(moved.shape[:-1])
    y = contract(shaped(moved, (math.prod(lead), moved.shape[-1])), matrix)
    inverse = tuple([order.index(k) for k in range(n)])
    return permute(shaped(y, (*lead, matrix.shape[1])), dims=inverse)


def _adaptive_max(name: str, n: int, x: Any, output_size: Any, indices: bool) -> Any:
    out = _targets(name, x, n, output_size)
    sizes = tuple(x.shape[-n:])
    if all(o and s % o == 0 for s, o in zip(sizes, out)):
        kernel = tuple([s // o for s, o in zip(sizes, out)])
        a = {"kernel": kernel, "stride": kernel, "padding": (0,) * n, "dilation": (1,) * n, "ceil": False}
        return (max_pool(x, **a), max_pool_indices(x, **a)) if indices else max_pool(x, **a)
    return _unequal_max(n, x, sizes, out, indices)


def _unequal_max(n: int, x: Any, sizes: tuple[int, ...], out: tuple[int, ...], indices: bool) -> Any:
    """Window by window: unequal sizes are rare and their results small."""
    from cermet.ops.movement import unslice

    base = len(x.shape) - n
    lead = tuple(x.shape[:base])
    spans = [_spans(s, o) for s, o in zip(sizes, out)]
    values = places = None
    for at in np.ndindex(*out):
        box = [spans[i][k] for i, k in enumerate(at)]
        part = crop(x, [0] * base + [a for a, _ in box], [*lead, *[b - a for a, b in box]])
        kernel = tuple(part.shape[base:])
        attrs = {"kernel": kernel, "stride": kernel, "padding": (0,) * n, "dilation": (1,) * n, "ceil": False}
        put = {"shape": (*lead, *out), "starts": (*[0] * base, *at), "steps": (1,) * (base + n)}
        piece = unslice(max_pool(part, **attrs), **put)
        values = piece if values is None else values + piece
        if indices:
            found = unslice(_to_full(max_pool_indices(part, **attrs), kernel, [a for a, _ in box], sizes), **put)
            places = found if places is None else places + found
    return (values, places) if indices else values


def _to_full(local: Any, kernel: tuple[int, ...], starts: list[int], sizes: tuple[int, ...]) -> Any:
    """Flat places in a box as flat places in the plane that it was cut from."""
    from cermet.ops.arithmetic import floor_divide, remainder

    total = None
    for i, size in enumerate(sizes):
        below = math.prod(kernel[i + 1 :])
        k = remainder(floor_divide(local, below), kernel[i]) + starts[i]
        total = k if total is None else total * size + k
    return total


@public(namespaces=("", "nn.functional"), method=False)
def adaptive_avg_pool1d(input: Any, output_size: Any) -> Any:
    """Means of (N, C, L) or (C, L) over ``output_size`` windows that cover it evenly."""
    return _adaptive_avg("adaptive_avg_pool1d", 1, input, output_size)


@public(namespaces=("nn.functional",), method=False)
def adaptive_avg_pool2d(input: Any, output_size: Any) -> Any:
    """Means of (N, C, H, W) or (C, H, W) over windows that cover it evenly; None keeps a size."""
    return _adaptive_avg("adaptive_avg_pool2d", 2, input, output_size)


@public(namespaces=("nn.functional",), method=False)
def adaptive_avg_pool3d(input: Any, output_size: Any) -> Any:
    """Means of (N, C, D, H, W) or (C, D, H, W) over windows that cover it evenly; None keeps a size."""
    return _adaptive_avg("adaptive_avg_pool3d", 3, input, output_size)


@public(namespaces=("", "nn.functional"), method=False)
def adaptive_max_pool1d(input: Any, output_size: Any, return_indices: bool = False) -> Any:
    """Maxima of (N, C, L) or (C, L) over ``output_size`` windows that cover it evenly."""
    return _adaptive_max("adaptive_max_pool1d", 1, input, output_size, return_indices)


@public(namespaces=("nn.functional",), method=False)
def adaptive_max_pool2d(input: Any, output_size: Any, return_indices: bool = False) -> Any:
    """Maxima of (N, C, H, W) or (C, H, W) over windows that cover it evenly."""
    return _adaptive_max("adaptive_max_pool2d", 2, input, output_size, return_indices)


@public(namespaces=("nn.functional",), method=False)
def adaptive_max_pool3d(input: Any, output_size: Any, return_indices: bool = False) -> Any:
    """Maxima of (N, C, D, H, W) or (C, D, H, W) over windows that cover it evenly."""
    return _adaptive_max("adaptive_max_pool3d", 3, input, output_size, return_indices)


# ------------------------------------------------------------------------------------------------------------------ lp


def _lp(name: str, n: int, x: Any, norm_type: float, kernel_size: Any, stride: Any, ceil: bool) -> Any:
    _check_dims(name, x, n)
    kernel, step, pad = _arguments(name, n, kernel_size, stride, 0)
    total = sum_pool(x**norm_type, kernel=kernel, stride=step, padding=pad, ceil=bool(ceil))
    from cermet.ops.activation import relu_op

    # PyTorch's formula: sign(s) relu(|s|) ** (1 / p), where s is the sum of powers.
    return mul(total.sign(), relu_op(total.abs())) ** (1.0 / norm_type)


@public(namespaces=("nn.functional",), method=False)
def lp_pool1d(input: Any, norm_type: float, kernel_size: Any, stride: Any = None, ceil_mode: bool = False) -> Any:
    """(sum x ** p) ** (1 / p) of each window of (N, C, L) or (C, L)."""
    return _lp("lp_pool1d", 1, input, norm_type, kernel_size, stride, ceil_mode)


@public(namespaces=("nn.functional",), method=False)
def lp_pool2d(input: Any, norm_type: float, kernel_size: Any, stride: Any = None, ceil_mode: bool = False) -> Any:
    """(sum x ** p) ** (1 / p) of each window of (N, C, H, W) or (C, H, W)."""
    return _lp("lp_pool2d", 2, input, norm_type, kernel_size, stride, ceil_mode)


@public(namespaces=("nn.functional",), method=False)
def lp_pool3d(input: Any, norm_type: float, kernel_size: Any, stride: Any = None, ceil_mode: bool = False) -> Any:
    """(sum x ** p) ** (1 / p) of each window of (N, C, D, H, W) or (C, D, H, W)."""
    return _lp("lp_pool3d", 3, input, norm_type, kernel_size, stride, ceil_mode)
