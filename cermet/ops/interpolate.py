"""Resampling to another size. Every mode is a linear map along each dimension in turn: a table says which places each result
reads, and with what weights. The gradient is the same op with the table turned round."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from cermet import dtypes as dt
from cermet.graph.node import Meta
from cermet.ops.composing import narrow, shaped, spread_like, sum_of, wide
from cermet.ops.define import Arg, OpDef, Sample, ShapeError, hooks
from cermet.ops.elementwise import add, mul
from cermet.ops.gather import gather
from cermet.ops.public import public
from cermet.ops.support import to_dtype

__all__ = ["resample"]

UNROLLED = 4
"""Up to so many places a result reads are written out; more are a loop."""


# ---------------------------------------------------------------------------------------------------------------- record


def _infer(x: Meta, index: Meta, weight: Meta, *back: Meta, dim: int) -> Meta:
    if index.ndim != 2 or index.shape != weight.shape:
        raise ShapeError(
            f"resample: expected a table of places and weights, got shapes {list(index.shape)} and {list(weight.shape)}"
        )
    return x.with_shape((*x.shape[:dim], index.shape[1], *x.shape[dim + 1 :]))


def _along(table: Any, ndim: int, dim: int) -> Any:
    """A row (O,) of a table as (1, .., O, .., 1)."""
    return shaped(table, tuple([table.shape[-1] if k == dim else 1 for k in range(ndim)]))


def _row(table: Any, k: int) -> Any:
    from cermet.ops.composing import crop

    return shaped(crop(table, (k, 0), (1, table.shape[1])), (table.shape[1],))


def _decompose(x: Any, index: Any, weight: Any, *back: Any, dim: int) -> Any:
    taps, count = index.shape
    shape = (*x.shape[:dim], count, *x.shape[dim + 1 :])
    ndim = len(shape)
    v = x if x.dtype.kind != "f" else wide(x)
    rest = tuple([k for k in range(ndim) if k != dim])
    if taps <= UNROLLED:
        total = None
        for k in range(taps):
            places = spread_like(_along(_row(index, k), ndim, dim), shape)
            part = gather(v, places, dims=(dim,), rest=rest)
            part = mul(part, to_dtype(_along(_row(weight, k), ndim, dim), v.dtype)) if x.dtype.kind == "f" else part
            total = part if total is None else add(total, part)
        return narrow(total, x)
    # The taps stand before the results, so that the sum over them runs along memory.
    full = (*x.shape[:dim], taps, count, *x.shape[dim + 1 :])
    spread = (1,) * dim + (taps, count) + (1,) * (ndim - dim - 1)
    places = spread_like(shaped(index, spread), full)
    parts = gather(v, places, dims=(dim,), rest=tuple([k if k < dim else k + 1 for k in rest]))
    return narrow(sum_of(mul(parts, to_dtype(shaped(weight, spread), v.dtype)), dim), x)


def _reference(x: Any, index: Any, weight: Any, *back: Any, dim: int) -> Any:
    taken = np.moveaxis(np.take(x, index, axis=dim), dim, 0)  # (K, *lead, O, *tail)
    spread = (weight.shape[0], *[1] * dim, weight.shape[1], *[1] * (x.ndim - dim - 1))
    return (taken * weight.reshape(spread)).sum(0)


_TABLES = (Arg((2, 5), (0, 3), dt.int64), Arg((2, 5), constant=True), Arg((3, 3), (0, 4), dt.int64), Arg((3, 3), constant=True))

resample: OpDef = OpDef(
    "resample",
    "composite",
    _infer,
    attrs=("dim",),
    vjp=lambda c, g: (resample(g, c[3], c[4], c[1], c[2], dim=c.dim), None, None, None, None),
    saves=(1, 2, 3, 4),
    decompose=_decompose,
    reference=_reference,
    dtypes=dt.FLOATING,
    # The gradient needs the table turned round, which random samples do not have; tests of interpolate check it.
    samples=(
        Sample((Arg((2, 4)), *_TABLES), {"dim": 1}, gradient=False),
        Sample((Arg((3, 4, 2)), Arg((6, 5), (0, 4), dt.int64), Arg((6, 5)), *_TABLES[2:]), {"dim": 1}, gradient=False),
    ),
    ulp=16,
    doc="sum over k of weight[k, o] x[index[k, o]] along a dim. Inputs: x, places and weights (K, O), and those of the adjoint "
    "(K', I).",
)


# ---------------------------------------------------------------------------------------------------------------- tables


def _scale(size: int, out: int, align: bool, factor: float | None) -> float:
    """Places of the input per place of the output."""
    if align:
        return (size - 1) / (out - 1) if out > 1 else 0.0
    return 1.0 / factor if factor else size / out


def _nearest(size: int, out: int, exact: bool, factor: float | None) -> tuple[Any, Any]:
    # PyTorch's arithmetic is float32, and its rounding decides which neighbour is taken.
    scale = np.float32(1.0 / factor) if factor else np.float32(size) / np.float32(out)
    o = np.arange(out).astype(np.float32)
    at = np.floor((o + np.float32(0.5)) * scale if exact else o * scale).astype(np.int64)
    return np.minimum(at, size - 1)[None], np.ones((1, out))


def _linear(size: int, out: int, align: bool, factor: float | None) -> tuple[Any, Any]:
    scale = _scale(size, out, align, factor)
    o = np.arange(out, dtype=np.float64)
    at = o * scale if align else np.maximum(scale * (o + 0.5) - 0.5, 0)
    low = np.minimum(np.floor(at).astype(np.int64), size - 1)
    part = np.clip(at - low, 0, 1)
    return np.stack([low, np.minimum(low + 1, size - 1)]), np.stack([1 - part, part])


def _keys(a: float) -> Callable[[Any], Any]:
    """Keys' cubic convolution kernel (1981)."""

    def kernel(t: Any) -> Any:
        t = np.abs(t)
        near = ((a + 2) * t - (a + 3)) * t * t + 1
        far = ((t - 5) * t + 8) * t * a - 4 * a
        return np.where(t <= 1, near, np.where(t < 2, far, 0.0))

    return kernel


def _cubic(size: int, out: int, align: bool, factor: float | None) -> tuple[Any, Any]:
    scale = _scale(size, out, align, factor)
    o = np.arange(out, dtype=np.float64)
    at = o * scale if align else scale * (o + 0.5) - 0.5
    low = np.floor(at)
    taps = np.arange(-1, 3)[:, None]
    return np.clip(low + taps, 0, size - 1).astype(np.int64), _keys(-0.75)(at - low - taps)


def _antialiased(size: int, out: int, align: bool, factor: float | None, cubic: bool) -> tuple[Any, Any]:
    """A kernel widened by the scale where the image shrinks (Pillow's rule)."""
    scale = _scale(size, out, align, factor)
    kernel = _keys(-0.5) if cubic else lambda t: np.maximum(1 - np.abs(t), 0)
    stretch = max(scale, 1.0)
    support = (2 if cubic else 1) * stretch
    rows = []
    for o in range(out):
        center = scale * (o + 0.5)
        first = max(int(center - support + 0.5), 0)
        last = min(int(center + support + 0.5), size)
        places = np.arange(first, last)
        w = kernel((places - center + 0.5) / stretch)
        rows.append((places, w / w.sum()))
    return _columns(rows)


def _columns(rows: Sequence[tuple[Any, Any]]) -> tuple[Any, Any]:
    """Places and weights per result as a table (K, O), filled up with weights of 0."""
    k = max(1, max((len(p) for p, _ in rows), default=1))
    index, weight = np.zeros((k, len(rows)), np.int64), np.zeros((k, len(rows)))
    for o, (places, w) in enumerate(rows):
        index[: len(places), o], weight[: len(places), o] = places, w
    return index, weight


def _adjoint(index: Any, weight: Any, size: int) -> tuple[Any, Any]:
    """The table of the transposed map."""
    rows: list[tuple[list[int], list[float]]] = [([], []) for _ in range(size)]
    for o in range(index.shape[1]):
        for i, w in zip(index[:, o], weight[:, o]):
            if w:
                rows[i][0].append(o)
                rows[i][1].append(w)
    return _columns(rows)


@functools.lru_cache(maxsize=256)
def _table(
    mode: str, size: int, out: int, align: bool, factor: float | None, antialias: bool, dtype: dt.DType
) -> tuple[Any, ...]:
    """Places, weights, and those of the adjoint, as tensors."""
    if mode.startswith("nearest"):
        table = _nearest(size, out, mode == "nearest-exact", factor)
    elif antialias:
        table = _antialiased(size, out, align, factor, mode == "cubic")
    else:
        table = (_cubic if mode == "cubic" else _linear)(size, out, align, factor)
    found = []
    for index, weight in (table, _adjoint(*table, size)):
        found.append(hooks.to_tensor(index, dtype=dt.int64, like=None))
        found.append(hooks.to_tensor(weight.astype(dtype.numpy), dtype=dtype, like=None))
    return tuple(found)


# ---------------------------------------------------------------------------------------------------------------- public

_MODES = {"linear": 1, "bilinear": 2, "bicubic": 2, "trilinear": 3}
_ALONG = {"linear": "linear", "bilinear": "linear", "trilinear": "linear", "bicubic": "cubic"}


def _per_dim(v: Any, n: int, what: str) -> tuple[Any, ...]:
    if isinstance(v, tuple | list):
        if len(v) != n:
            raise ValueError(f"interpolate: {what} must have {n} numbers for an input of {n} spatial dimensions, got {tuple(v)}")
        return tuple(v)
    return (v,) * n


def _sizes(input: Any, size: Any, scale_factor: Any, recompute: bool | None) -> tuple[tuple[int, ...], tuple[float | None, ...]]:
    """Output sizes, and the factors that decide where to read (None where the sizes do)."""
    spatial = tuple(input.shape[2:])
    n = len(spatial)
    if (size is None) == (scale_factor is None):
        raise ValueError("interpolate: give either size or scale_factor")
    if size is not None:
        if recompute:
            raise ValueError("interpolate: recompute_scale_factor goes with scale_factor; a size leaves nothing to recompute")
        return tuple(int(s) for s in _per_dim(size, n, "size")), (None,) * n
    factors = tuple(float(f) for f in _per_dim(scale_factor, n, "scale_factor"))
    out = tuple(math.floor(s * f) for s, f in zip(spatial, factors))
    return out, (None,) * n if recompute else factors


@public(namespaces=("nn.functional",), method=False)
def interpolate(
    input: Any,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> Any:
    """``input`` (N, C, *) resampled to other spatial sizes.

    Args:
        size: the output's spatial sizes; or scale_factor: how many times the input's. One number counts for all dimensions.
        mode: "nearest", "nearest-exact", "area"; "linear" for one spatial dimension, "bilinear" and "bicubic" for two, "trilinear"
            for three.
        align_corners: the corners' centres stay in the corners, instead of the corners themselves.
        recompute_scale_factor: derive the places from the sizes alone.
        antialias: filter where the image shrinks; "bilinear" and "bicubic" only.

    Raises:
        ValueError: for arguments that contradict each other. NotImplementedError: for a mode that does not fit the dimensions.
    """
    n = len(input.shape) - 2
    if mode in ("nearest", "nearest-exact", "area"):
        if align_corners is not None:
            raise ValueError(f"interpolate: mode {mode!r} knows no align_corners; leave it out")
    elif _MODES.get(mode) != n:
        raise NotImplementedError(
            f"interpolate: mode {mode!r} does not take an input of shape {list(input.shape)}; nearest, nearest-exact and area take any, "
            "linear takes (N, C, L), bilinear and bicubic (N, C, H, W), trilinear (N, C, D, H, W)"
        )
    if antialias and mode not in ("bilinear", "bicubic"):
        raise ValueError(f"interpolate: only bilinear and bicubic can be antialiased, not {mode!r}")
    if not 1 <= n <= 3:
        raise NotImplementedError(f"interpolate: expected an input of 3, 4 or 5 dimensions, got shape {list(input.shape)}")
    out, factors = _sizes(input, size, scale_factor, recompute_scale_factor)
    if min(out) <= 0 or min(input.shape[2:]) <= 0:
        raise RuntimeError(f"interpolate: sizes of 0 cannot be resampled: input {list(input.shape[2:])}, output {list(out)}")
    if mode == "area":
        return _area(input, out)
    x = input
    weights = x.dtype.compute if x.dtype.kind == "f" else dt.float32
    for k in range(n):
        if out[k] != x.shape[2 + k] or (factors[k] not in (None, 1.0) and not align_corners):
            tables = _table(_ALONG.get(mode, mode), x.shape[2 + k], out[k], bool(align_corners), factors[k], antialias, weights)
            x = resample(x, *tables, dim=2 + k)
    return x


def _area(x: Any, out: tuple[int, ...]) -> Any:
    from cermet.ops import pools

    pool = {1: pools.adaptive_avg_pool1d, 2: pools.adaptive_avg_pool2d, 3: pools.adaptive_avg_pool3d}[len(out)]
    return pool(x, out)


@public(namespaces=("nn.functional",), method=False)
def upsample(
    input: Any, size: Any = None, scale_factor: Any = None, mode: str = "nearest", align_corners: bool | None = None
) -> Any:
    """PyTorch's old name of `interpolate`."""
    return interpolate(input, size, scale_factor, mode, align_corners)


@public(namespaces=("nn.functional",), method=False)
def upsample_nearest(input: Any, size: Any = None, scale_factor: Any = None) -> Any:
    """`interpolate` with mode "nearest"."""
    return interpolate(input, size, scale_factor)


@public(namespaces=("nn.functional",), method=False)
def upsample_bilinear(input: Any, size: Any = None, scale_factor: Any = None) -> Any:
    """`interpolate` with mode "bilinear" and aligned corners."""
    return interpolate(input, size, scale_factor, "bilinear", True)
