"""Values read at places that the program computes: spatial transformers (Jaderberg et al. 2015, arXiv:1506.02025)."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np

from cermet import dtypes as dt
from cermet.graph.node import Meta, meta
from cermet.ops.arithmetic import abs_, floor, floor_divide, maximum, minimum, rint
from cermet.ops.composing import crop, narrow, shaped, spread_like, wide
from cermet.ops.contraction import contract
from cermet.ops.define import Arg, Failing, OpDef, Sample, hooks
from cermet.ops.elementwise import add, eq, ge, le, mul, sub, where
from cermet.ops.gather import gather
from cermet.ops.movement import permute
from cermet.ops.public import public
from cermet.ops.support import check_floating, same_dtype, to_dtype, zeros_like_value

__all__: list[str] = []

_ATTRS = ("mode", "padding", "align")


def _infer(x: Meta, grid: Meta, *, mode: str, padding: str, align: bool) -> Meta:
    check_floating(x, "grid_sample")
    same_dtype("grid_sample", x, grid)
    n = x.ndim - 2
    if n not in (2, 3) or grid.ndim != x.ndim or grid.shape[-1] != n or grid.shape[0] != x.shape[0]:
        raise ValueError(
            f"grid_sample: an input of shape {list(x.shape)} does not fit a grid of shape {list(grid.shape)}: expected "
            "(N, C, H, W) and (N, H', W', 2), or (N, C, D, H, W) and (N, D', H', W', 3)"
        )
    if mode == "bicubic" and n != 2:
        raise NotImplementedError(f"grid_sample: bicubic takes (N, C, H, W), got shape {list(x.shape)}")
    if min(x.shape[2:]) == 0:
        raise ValueError(f"grid_sample: nothing to read in an input of shape {list(x.shape)}")
    return meta((*x.shape[:2], *grid.shape[1:-1]), x.dtype, x.device)


# ------------------------------------------------------------------------------------------------------------------ places


def _place(g: Any, size: int, align: bool) -> Any:
    """A coordinate in [-1, 1] as a place in 0 .. size - 1."""
    if align:
        return mul(add(g, 1.0), (size - 1) / 2)
    return sub(mul(add(g, 1.0), size / 2), 0.5)


def _clip(v: Any, size: int) -> Any:
    return minimum(maximum(v, 0.0), float(size - 1))


def _reflect(v: Any, size: int, align: bool) -> Any:
    """A place mirrored at the borders until it is inside."""
    low, span = (0.0, float(size - 1)) if align else (-0.5, float(size))
    if span == 0:
        return mul(v, 0.0)
    away = abs_(sub(v, low))
    times = floor_divide(away, span)
    rest = sub(away, mul(times, span))
    odd = sub(times, mul(floor(mul(times, 0.5)), 2.0))
    mirrored = where(eq(odd, 0.0), add(rest, low), sub(span + low, rest))
    return _clip(mirrored, size)


def _padded(v: Any, size: int, padding: str, align: bool) -> Any:
    if padding == "border":
        return _clip(v, size)
    return _reflect(v, size, align) if padding == "reflection" else v


def _read(x: Any, places: list[Any], padding: str) -> Any:
    """The values at whole-numbered places (N, *out), as (N, C, *out); zero outside."""
    shape = (*x.shape[:2], *places[0].shape[1:])
    indices, inside = [], None
    for v, size in zip(places, x.shape[2:]):
        if padding == "zeros":
            ok = mul(ge(v, 0.0), le(v, float(size - 1)))
            inside = ok if inside is None else mul(inside, ok)
        at = to_dtype(_clip(v, size), dt.int64)
        indices.append(spread_like(shaped(at, (shape[0], 1, *shape[2:])), shape))
    out = gather(x, *indices, dims=tuple(range(2, len(x.shape))), rest=(0, 1))
    if inside is None:
        return out
    return where(spread_like(shaped(inside, (shape[0], 1, *shape[2:])), shape), out, zeros_like_value(out, ()))


def _beside_channels(w: Any) -> Any:
    return shaped(w, (w.shape[0], 1, *w.shape[1:]))


def _bilinear(x: Any, places: list[Any], padding: str) -> Any:
    """A weighted sum of the 2^n neighbours."""
    lows = [floor(v) for v in places]
    parts = [sub(v, low) for v, low in zip(places, lows)]
    total = None
    for corner in itertools.product((0, 1), repeat=len(places)):
        at = [add(low, 1.0) if k else low for low, k in zip(lows, corner)]
        weight = None
        for part, k in zip(parts, corner):
            w = part if k else sub(1.0, part)
            weight = w if weight is None else mul(weight, w)
        term = mul(_read(x, at, padding), _beside_channels(weight))
        total = term if total is None else add(total, term)
    return total


def _keys_weights(t: Any) -> list[Any]:
    """Weights of the four neighbours at -1, 0, 1, 2 of a place t past the second (Keys 1981, a = -0.75)."""
    a = -0.75

    def near(u: Any) -> Any:
        return add(mul(mul(sub(mul(u, a + 2), a + 3), u), u), 1.0)

    def far(u: Any) -> Any:
        return sub(mul(add(mul(sub(mul(u, a), 5 * a), u), 8 * a), u), 4 * a)

    return [far(add(t, 1.0)), near(t), near(sub(1.0, t)), far(sub(2.0, t))]


def _bicubic(x: Any, places: list[Any], padding: str, align: bool) -> Any:
    """Four neighbours each way; each neighbour's place is padded on its own."""
    lows = [floor(v) for v in places]
    weights = [_keys_weights(sub(v, low)) for v, low in zip(places, lows)]
    total = None
    for i, j in itertools.product(range(4), repeat=2):
        at = [_padded(add(low, float(k - 1)), s, padding, align) for low, k, s in zip(lows, (i, j), x.shape[2:])]
        term = mul(_read(x, at, padding), _beside_channels(mul(weights[0][i], weights[1][j])))
        total = term if total is None else add(total, term)
    return total


def _decompose(x: Any, grid: Any, *, mode: str, padding: str, align: bool) -> Any:
    n = len(x.shape) - 2
    v, g = wide(x), wide(grid)
    shape = tuple(grid.shape)
    # The grid's last dimension counts from the input's last: x first.
    coordinates = [shaped(crop(g, (0,) * (n + 1) + (n - 1 - k,), (*shape[:-1], 1)), shape[:-1]) for k in range(n)]
    places = [_place(c, size, align) for c, size in zip(coordinates, x.shape[2:])]
    if mode == "bicubic":
        return narrow(_bicubic(v, places, padding, align), x)
    places = [_padded(p, size, padding, align) for p, size in zip(places, x.shape[2:])]
    if mode == "nearest":
        return narrow(_read(v, [rint(p) for p in places], padding), x)
    return narrow(_bilinear(v, places, padding), x)


# --------------------------------------------------------------------------------------------------------------- reference


def _np_padded(v: Any, size: int, padding: str, align: bool) -> Any:
    if padding == "reflection":
        low, span = (0.0, size - 1.0) if align else (-0.5, float(size))
        if span == 0:
            return np.zeros_like(v)
        times, rest = np.divmod(np.abs(v - low), span)
        v = np.where(times % 2 == 0, rest + low, span + low - rest)
    return v if padding == "zeros" else np.clip(v, 0, size - 1)


def _np_read(plane: Any, at: tuple[Any, ...]) -> Any:
    """The value of all channels (C, *sizes) at a whole-numbered place; zero outside."""
    if all(0 <= i < s for i, s in zip(at, plane.shape[1:])):
        return plane[(slice(None), *[int(i) for i in at])]
    return np.zeros(plane.shape[0])


def _np_keys(t: float) -> float:
    t = abs(t)
    if t <= 1:
        return (1.25 * t - 2.25) * t * t + 1
    return -0.75 * (((t - 5) * t + 8) * t - 4) if t < 2 else 0.0


def _reference(x: Any, grid: Any, *, mode: str, padding: str, align: bool) -> Any:
    n, sizes = x.ndim - 2, x.shape[2:]
    out = np.zeros((*x.shape[:2], *grid.shape[1:-1]))
    for place in np.ndindex(grid.shape[0], *grid.shape[1:-1]):
        g = grid[place][::-1]
        at = np.array([(c + 1) / 2 * (s - 1) if align else ((c + 1) * s - 1) / 2 for c, s in zip(g, sizes)])
        if mode != "bicubic":
            at = np.array([_np_padded(v, s, padding, align) for v, s in zip(at, sizes)])
        low = np.floor(at)
        if mode == "nearest":
            value = _np_read(x[place[0]], tuple(np.rint(at)))
        else:
            taps = range(-1, 3) if mode == "bicubic" else range(2)
            value = 0.0
            for corner in itertools.product(taps, repeat=n):
                near = low + corner
                weight = math.prod([_np_keys(d) if mode == "bicubic" else 1 - abs(d) for d in at - near])
                if mode == "bicubic":
                    near = np.array([_np_padded(v, s, padding, align) for v, s in zip(near, sizes)])
                value = value + weight * _np_read(x[place[0]], tuple(near))
        out[(place[0], slice(None), *place[1:])] = value
    return out


def _sample(mode: str, padding: str, align: bool, x: tuple[int, ...] = (2, 3, 4, 5), out: tuple[int, ...] = (3, 2)) -> Sample:
    grid = Arg((x[0], *out, len(out)), (-1.4, 1.4))
    return Sample((Arg(x), grid), {"mode": mode, "padding": padding, "align": align}, gradient=mode != "nearest")


grid_sample_op = OpDef(
    "grid_sample",
    "composite",
    _infer,
    attrs=_ATTRS,
    vjp="auto",
    decompose=_decompose,
    reference=_reference,
    dtypes=(dt.float32, dt.float64),
    samples=(
        _sample("bilinear", "zeros", False),
        _sample("bilinear", "border", True),
        _sample("bilinear", "reflection", False),
        _sample("bilinear", "reflection", True, (1, 2, 3, 2, 4), (2, 2, 2)),
        _sample("nearest", "zeros", False),
        _sample("bicubic", "zeros", True),
        _sample("bicubic", "reflection", False),
    ),
    failing=(
        Failing(
            (Arg((2, 3, 4, 5)), Arg((2, 3, 2, 3))), {"mode": "bilinear", "padding": "zeros", "align": False}, ValueError, "fit"
        ),
    ),
    ulp=1024,
    onnx="GridSample",
    doc="Values of (N, C, *) at places in [-1, 1] given by a grid (N, *, n).",
)


# ------------------------------------------------------------------------------------------------------------------ public


@public(namespaces=("nn.functional",), method=False, autocast="float32")
def grid_sample(
    input: Any, grid: Any, mode: str = "bilinear", padding_mode: str = "zeros", align_corners: bool | None = None
) -> Any:
    """Values of ``input`` at the places that ``grid`` says.

    Args:
        input: (N, C, H, W) or (N, C, D, H, W). grid: (N, H', W', 2) or (N, D', H', W', 3), places (x, y[, z]) in [-1, 1].
        mode: "bilinear", "nearest", "bicubic" (two dimensions only). padding_mode: "zeros", "border", "reflection".
        align_corners: -1 and 1 are the centres of the corners, rather than the outer edges.

    Returns:
        (N, C, H', W') or (N, C, D', H', W').

    Raises:
        ValueError, NotImplementedError: for unknown modes and shapes that do not fit.
    """
    if mode not in ("bilinear", "nearest", "bicubic"):
        raise ValueError(f"grid_sample: mode={mode!r}; give 'bilinear', 'nearest' or 'bicubic'")
    if padding_mode not in ("zeros", "border", "reflection"):
        raise ValueError(f"grid_sample: padding_mode={padding_mode!r}; give 'zeros', 'border' or 'reflection'")
    if input.dtype.itemsize == 2:
        wider = [to_dtype(v, dt.float32) for v in (input, grid)]
        return to_dtype(grid_sample_op(*wider, mode=mode, padding=padding_mode, align=bool(align_corners)), input.dtype)
    return grid_sample_op(input, grid, mode=mode, padding=padding_mode, align=bool(align_corners))


def _base(n: int, align: bool) -> Any:
    if n <= 1:
        return np.zeros(n)
    line = np.linspace(-1, 1, n)
    return line if align else line * (n - 1) / n


@public(namespaces=("nn.functional",), method=False)
def affine_grid(theta: Any, size: Any, align_corners: bool | None = None) -> Any:
    """The grid for `grid_sample` of affine maps ``theta`` (N, n, n + 1) to an output of ``size`` (N, C, *n sizes).

    Raises:
        ValueError: for a ``theta`` of another shape.
    """
    sizes = [int(s) for s in size[2:]]
    n = len(sizes)
    if n not in (2, 3) or tuple(theta.shape) != (int(size[0]), n, n + 1):
        raise ValueError(
            f"affine_grid: an output of {list(size)} needs matrices of shape {[int(size[0]), n, n + 1]}, got {list(theta.shape)}"
        )
    axes = np.meshgrid(*[_base(s, bool(align_corners)) for s in sizes], indexing="ij")
    base = np.stack([*[a.ravel() for a in reversed(axes)], np.ones(math.prod(sizes))], -1).astype(theta.dtype.compute.numpy)
    points = to_dtype(hooks.to_tensor(base, dtype=None, like=None), theta.dtype)
    points = spread_like(shaped(points, (1, *points.shape)), (theta.shape[0], *points.shape))
    return shaped(contract(points, permute(theta, dims=(0, 2, 1))), (theta.shape[0], *sizes, n))
