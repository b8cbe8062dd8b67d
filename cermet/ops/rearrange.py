"""Channels and places exchanged: pixel and channel shuffles, sliding blocks as columns and back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from cermet import dtypes as dt
from cermet.graph.node import Meta
from cermet.ops.composing import crop, narrow, shaped, wide
from cermet.ops.define import Arg, Failing, OpDef, Sample
from cermet.ops.elementwise import add
from cermet.ops.movement import permute, reshape, unslice, windows
from cermet.ops.public import public

__all__: list[str] = []


def _check_factor(name: str, factor: Any) -> int:
    if factor <= 0:
        raise RuntimeError(f"{name}: a factor of {factor}; give 1 or more")
    return int(factor)


@public(namespaces=("nn.functional", ""), method=False)
def pixel_shuffle(input: Any, upscale_factor: int) -> Any:
    """(*, C r^2, H, W) as (*, C, H r, W r) (Shi et al. 2016, arXiv:1609.05158).

    Raises:
        RuntimeError: where the channels are not divisible by r^2.
    """
    r = _check_factor("pixel_shuffle", upscale_factor)
    if len(input.shape) < 3 or input.shape[-3] % (r * r):
        raise RuntimeError(
            f"pixel_shuffle: expected (*, C, H, W) with channels that {r} x {r} divides, got shape {list(input.shape)}"
        )
    *lead, channels, h, w = input.shape
    n = len(lead)
    x = reshape(input, shape=(*lead, channels // (r * r), r, r, h, w))
    x = permute(x, dims=(*range(n), n, n + 3, n + 1, n + 4, n + 2))
    return reshape(x, shape=(*lead, channels // (r * r), h * r, w * r))


@public(namespaces=("nn.functional", ""), method=False)
def pixel_unshuffle(input: Any, downscale_factor: int) -> Any:
    """(*, C, H r, W r) as (*, C r^2, H, W), the inverse of `pixel_shuffle`.

    Raises:
        RuntimeError: where height or width is not divisible by r.
    """
    r = _check_factor("pixel_unshuffle", downscale_factor)
    if len(input.shape) < 3 or input.shape[-2] % r or input.shape[-1] % r:
        raise RuntimeError(
            f"pixel_unshuffle: expected (*, C, H, W) with height and width that {r} divides, got shape {list(input.shape)}"
        )
    *lead, channels, h, w = input.shape
    n = len(lead)
    x = reshape(input, shape=(*lead, channels, h // r, r, w // r, r))
    x = permute(x, dims=(*range(n), n, n + 2, n + 4, n + 1, n + 3))
    return reshape(x, shape=(*lead, channels * r * r, h // r, w // r))


@public(namespaces=("nn.functional", ""), method=False, aliases=("native_channel_shuffle",))
def channel_shuffle(input: Any, groups: int) -> Any:
    """The channels of (N, g c, *) as if dealt from g groups in turn (Zhang et al. 2018, arXiv:1707.01083).

    Raises:
        RuntimeError: where the channels are not divisible by ``groups``.
    """
    g = _check_factor("channel_shuffle", groups)
    if len(input.shape) < 3 or input.shape[1] % g:
        raise RuntimeError(f"channel_shuffle: expected (N, C, *) with channels that {g} divides, got shape {list(input.shape)}")
    n, channels, *rest = input.shape
    x = reshape(input, shape=(n, g, channels // g, *rest))
    x = permute(x, dims=(0, 2, 1, *range(3, 3 + len(rest))))
    return reshape(x, shape=(n, channels, *rest))


# ------------------------------------------------------------------------------------------------------------ unfold, fold

_ATTRS = ("kernel", "dilation", "padding", "stride")


def _pair(v: Any) -> tuple[int, int]:
    if isinstance(v, Sequence):
        if len(v) not in (1, 2):
            raise ValueError(f"expected one or two numbers, got {tuple(v)}")
        return (int(v[0]), int(v[-1]))
    return (int(v), int(v))


def _blocks(sizes: Sequence[int], kernel: Any, dilation: Any, padding: Any, stride: Any, name: str) -> tuple[int, int]:
    """How many blocks lie along each dimension."""
    each = zip(sizes, kernel, dilation, padding, stride)
    out = [(s + 2 * p - d * (k - 1) - 1) // t + 1 if s + 2 * p >= d * (k - 1) + 1 else 0 for s, k, d, p, t in each]
    if min(out) < 1:
        raise ValueError(
            f"{name}: blocks of {tuple(kernel)} with dilation {tuple(dilation)} do not fit into {tuple(sizes)}, padding {padding}"
        )
    return out[0], out[1]


def _unfold_infer(m: Meta, *, kernel: Any, dilation: Any, padding: Any, stride: Any) -> Meta:
    if m.ndim != 4:
        raise ValueError(f"unfold: expected an input (N, C, H, W) or (C, H, W), got shape {list(m.shape)}")
    rows, cols = _blocks(m.shape[2:], kernel, dilation, padding, stride, "unfold")
    return m.with_shape((m.shape[0], m.shape[1] * math.prod(kernel), rows * cols))


def _unfold_decompose(x: Any, *, kernel: Any, dilation: Any, padding: Any, stride: Any) -> Any:
    n, c, h, w = x.shape
    if any(padding):
        full = (n, c, h + 2 * padding[0], w + 2 * padding[1])
        x = unslice(x, shape=full, starts=(0, 0, *padding), steps=(1, 1, 1, 1))
    for i in range(2):
        x = windows(x, dim=2 + i, size=kernel[i], step=stride[i], dilation=dilation[i])
    x = permute(x, dims=(0, 1, 4, 5, 2, 3))
    return reshape(x, shape=(n, c * math.prod(kernel), x.shape[4] * x.shape[5]))


def _unfold_reference(x: Any, *, kernel: Any, dilation: Any, padding: Any, stride: Any) -> Any:
    n, c, h, w = x.shape
    rows, cols = _blocks((h, w), kernel, dilation, padding, stride, "unfold")
    p = np.pad(x, ((0, 0), (0, 0), (padding[0],) * 2, (padding[1],) * 2))
    out = np.empty((n, c, *kernel, rows, cols), x.dtype)
    for i, j in np.ndindex(*kernel):
        a, b = i * dilation[0], j * dilation[1]
        out[:, :, i, j] = p[:, :, a : a + rows * stride[0] : stride[0], b : b + cols * stride[1] : stride[1]][:, :, :rows, :cols]
    return out.reshape(n, -1, rows * cols)


def _fold_infer(m: Meta, *, size: Any, kernel: Any, dilation: Any, padding: Any, stride: Any) -> Meta:
    if m.ndim != 3 or m.shape[1] % math.prod(kernel):
        raise ValueError(
            f"fold: blocks of {tuple(kernel)} need an input (N, C * {math.prod(kernel)}, L), got shape {list(m.shape)}"
        )
    count = math.prod(_blocks(size, kernel, dilation, padding, stride, "fold"))
    if m.shape[2] != count:
        raise ValueError(
            f"fold: an output of {tuple(size)} has {count} blocks, the input of shape {list(m.shape)} has {m.shape[2]}"
        )
    return m.with_shape((m.shape[0], m.shape[1] // math.prod(kernel), *size))


def _fold_decompose(x: Any, *, size: Any, kernel: Any, dilation: Any, padding: Any, stride: Any) -> Any:
    """The sum over the block's elements, each put back where it was read."""
    n, rows_of, _ = x.shape
    c = rows_of // math.prod(kernel)
    rows, cols = _blocks(size, kernel, dilation, padding, stride, "fold")
    v = reshape(wide(x), shape=(n, c, *kernel, rows, cols))
    full = (n, c, size[0] + 2 * padding[0], size[1] + 2 * padding[1])
    total = None
    for i, j in np.ndindex(*kernel):
        tap = shaped(crop(v, (0, 0, i, j, 0, 0), (n, c, 1, 1, rows, cols)), (n, c, rows, cols))
        part = unslice(tap, shape=full, starts=(0, 0, i * dilation[0], j * dilation[1]), steps=(1, 1, *stride))
        total = part if total is None else add(total, part)
    return narrow(crop(total, (0, 0, *padding), (n, c, *size)), x)


def _fold_reference(x: Any, *, size: Any, kernel: Any, dilation: Any, padding: Any, stride: Any) -> Any:
    n, c = x.shape[0], x.shape[1] // math.prod(kernel)
    rows, cols = _blocks(size, kernel, dilation, padding, stride, "fold")
    v = x.reshape(n, c, *kernel, rows, cols)
    out = np.zeros((n, c, size[0] + 2 * padding[0], size[1] + 2 * padding[1]), x.dtype)
    for i, j, a, b in np.ndindex(*kernel, rows, cols):
        out[:, :, a * stride[0] + i * dilation[0], b * stride[1] + j * dilation[1]] += v[:, :, i, j, a, b]
    return out[:, :, padding[0] : padding[0] + size[0], padding[1] : padding[1] + size[1]]


def _named(c: Any) -> dict[str, Any]:
    return {n: c.call.attr(n) for n in _ATTRS}


_PLAIN = {"kernel": (2, 3), "dilation": (1, 1), "padding": (0, 0), "stride": (1, 1)}
_SPACED = {"kernel": (2, 2), "dilation": (2, 1), "padding": (1, 1), "stride": (2, 3)}

unfold_op: OpDef = OpDef(
    "im2col",
    "composite",
    _unfold_infer,
    attrs=_ATTRS,
    vjp=lambda c, g: fold_op(g, size=c.metas[0].shape[2:], **_named(c)),
    decompose=_unfold_decompose,
    reference=_unfold_reference,
    dtypes=dt.ALL,
    samples=(Sample((Arg((2, 3, 4, 5)),), _PLAIN), Sample((Arg((1, 2, 5, 6)),), _SPACED)),
    failing=(Failing((Arg((1, 2, 1, 5)),), _PLAIN, ValueError, "do not fit"),),
    ulp=0,
    doc="Sliding blocks of (N, C, H, W) as columns: (N, C K1 K2, blocks).",
)

fold_op: OpDef = OpDef(
    "col2im",
    "composite",
    _fold_infer,
    attrs=("size", *_ATTRS),
    vjp=lambda c, g: unfold_op(g, **_named(c)),
    decompose=_fold_decompose,
    reference=_fold_reference,
    dtypes=dt.FLOATING,
    samples=(
        Sample((Arg((2, 18, 9)),), {"size": (4, 5), **_PLAIN}),
        Sample((Arg((1, 8, 9)),), {"size": (5, 6), **_SPACED}),
    ),
    failing=(Failing((Arg((2, 18, 8)),), {"size": (4, 5), **_PLAIN}, ValueError, "blocks"),),
    ulp=16,
    onnx="Col2Im",
    doc="The adjoint of im2col: columns (N, C K1 K2, blocks) added up where they lie in (N, C, *size).",
)


def _single(x: Any, ndim: int, fn: Any) -> Any:
    """``fn`` of an input without a batch."""
    if len(x.shape) != ndim:
        return fn(x)
    out = fn(shaped(x, (1, *x.shape)))
    return shaped(out, tuple(out.shape[1:]))


@public(namespaces=("nn.functional",), method=False)
def unfold(input: Any, kernel_size: Any, dilation: Any = 1, padding: Any = 0, stride: Any = 1) -> Any:
    """Sliding blocks of (N, C, H, W) as the columns of (N, C * prod(kernel_size), blocks); also without N.

    Raises:
        ValueError: where no block fits.
    """
    a = {"kernel": _pair(kernel_size), "dilation": _pair(dilation), "padding": _pair(padding), "stride": _pair(stride)}
    return _single(input, 3, lambda x: unfold_op(x, **a))


@public(namespaces=("nn.functional",), method=False)
def fold(input: Any, output_size: Any, kernel_size: Any, dilation: Any = 1, padding: Any = 0, stride: Any = 1) -> Any:
    """Columns (N, C * prod(kernel_size), blocks) added up into (N, C, *output_size): the adjoint of `unfold`; also without N.

    Raises:
        ValueError: where the number of columns is not that of the output's blocks.
    """
    a = {"kernel": _pair(kernel_size), "dilation": _pair(dilation), "padding": _pair(padding), "stride": _pair(stride)}
    return _single(input, 2, lambda x: fold_op(x, size=_pair(output_size), **a))
