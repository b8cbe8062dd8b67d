"""Pooling over windows, in one to three dimensions.

A window is a movement (`windows`), so a pool is one reduction over it. Windows that tile the input exactly are a reshape, whose
gradient is a reshape too. The gradient of a maximum goes to its first place in the window; it is found again from the input
rather than stored. Where windows overlap, each element gathers from the windows that it is in.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from cermet import dtypes as dt
from cermet.graph.node import Meta, meta
from cermet.ops.composing import crop, maximum_of, narrow, pad_with, shaped, spread_like, sum_of, wide
from cermet.ops.define import OUT, Arg, Failing, OpDef, Sample
from cermet.ops.elementwise import add, div, eq, ge, le, mul, ne, sub, where
from cermet.ops.movement import copy, permute, windows
from cermet.ops.reduction import reduce_min
from cermet.ops.support import full_value, index_value, zeros_like_value

_ATTRS = ("kernel", "stride", "padding", "dilation", "ceil")
_NONE_HIT = 2**31 - 1


# -------------------------------------------------------------------------------------------------------------- shapes


def pooled_size(size: int, kernel: int, stride: int, padding: int, dilation: int, ceil: bool) -> int:
    """Number of windows. With ``ceil`` the last may reach beyond the input, but must start in it or in the low padding."""
    span = size + 2 * padding - dilation * (kernel - 1) - 1
    n = (-(-span // stride) if ceil else span // stride) + 1
    if ceil and (n - 1) * stride >= size + padding:
        n -= 1
    return n


def _check(name: str, m: Meta, n: int, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil: bool) -> tuple[int, ...]:
    if m.ndim < n + 1:
        raise ValueError(f"{name}: expected an input of {n + 1} or {n + 2} dimensions, got shape {list(m.shape)}")
    if min(*kernel, *stride, *dilation) < 1:
        raise ValueError(f"{name}: kernel_size {kernel}, stride {stride} and dilation {dilation} must be 1 or more")
    if any(p < 0 or p > (d * (k - 1) + 1) // 2 for p, k, d in zip(padding, kernel, dilation)):
        raise ValueError(f"{name}: padding {padding} must be between 0 and half the kernel_size {kernel}")
    sizes = m.shape[-n:]
    out = tuple([pooled_size(s, k, t, p, d, ceil) for s, k, t, p, d in zip(sizes, kernel, stride, padding, dilation)])
    if min(out) < 1:
        raise ValueError(f"{name}: an input of {list(sizes)} is smaller than the kernel {list(kernel)}")
    return (*m.shape[:-n], *out)


def _tiling(sizes: Any, kernel: Any, stride: Any, padding: Any, dilation: Any, out: Any) -> bool:
    """Whether each element of the input is in exactly one window."""
    whole = all(s == k * o for s, k, o in zip(sizes, kernel, out))
    return whole and tuple(kernel) == tuple(stride) and not any(padding) and all(d == 1 for d in dilation)


def _window_view(
    x: Any, kernel: Any, stride: Any, padding: Any, dilation: Any, out: Sequence[int], fill: float
) -> tuple[Any, tuple[int, ...]]:
    """All windows of the last n dimensions, and the dims that run over a window's elements.

    Shape (*lead, O1..On, K1..Kn), or (*lead, O1, K1, .., On, Kn) for windows that tile the input.
    """
    n = len(kernel)
    shape = tuple(x.shape)
    lead, sizes = shape[:-n], shape[-n:]
    base = len(lead)
    if _tiling(sizes, kernel, stride, padding, dilation, out):
        tiled = [v for o, k in zip(out, kernel) for v in (o, k)]
        return shaped(x, (*lead, *tiled)), tuple([base + 2 * i + 1 for i in range(n)])
    reach = [(o - 1) * t + d * (k - 1) + 1 for o, t, d, k in zip(out, stride, dilation, kernel)]
    high = [r - s - p for r, s, p in zip(reach, sizes, padding)]
    x = pad_with(x, (*[0] * base, *padding), (*[0] * base, *high), fill)
    for i in range(n):
        x = windows(x, dim=base + i, size=kernel[i], step=stride[i], dilation=dilation[i])
    return x, tuple([base + n + i for i in range(n)])


def _over_windows(y: Any, view: Any, dims: tuple[int, ...]) -> Any:
    """A pooled value put beside the elements of its window."""
    shape = tuple([1 if k in dims else s for k, s in enumerate(view.shape)])
    return spread_like(shaped(y, shape), view.shape)


# ----------------------------------------------------------------------------------------------------------------- max


def lowest(d: dt.DType) -> float:
    """The identity of max."""
    return -math.inf if d.kind == "f" else int(np.iinfo(d.numpy).min)


def _max_infer(m: Meta, *, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil: bool) -> Meta:
    return m.with_shape(_check("max_pool", m, len(kernel), kernel, stride, padding, dilation, ceil))


def _max_decompose(x: Any, *, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil: bool) -> Any:
    out = _out_shape(x, kernel, stride, padding, dilation, ceil)
    view, dims = _window_view(x, kernel, stride, padding, dilation, out, lowest(x.dtype))
    return maximum_of(view, dims)


def _out_shape(x: Any, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil: bool) -> tuple[int, ...]:
    n = len(kernel)
    each = zip(x.shape[-n:], kernel, stride, padding, dilation)
    return tuple([pooled_size(s, k, t, p, d, ceil) for s, k, t, p, d in each])


def _first_hit(view: Any, y: Any, dims: tuple[int, ...], kernel: Any, stride: Any, dilation: Any) -> tuple[Any, Any]:
    """The number (row-major in the window, see `_pitch`) of each element, and that of each window's first maximum; NaN counts as one."""
    hit = eq(view, _over_windows(y, view, dims))
    if view.dtype.kind == "f":
        hit = add(hit, ne(view, view))
    number = None
    for k, d in enumerate(dims):
        i = index_value(view, tuple(view.shape), d, dt.int32)
        i = i if dilation[k] == 1 else mul(i, dilation[k])
        number = i if number is None else add(mul(number, _pitch(k, kernel, stride, dilation)), i)
    first = reduce_min(where(hit, number, full_value(number, _NONE_HIT, ())), dims=dims, keepdim=False)
    return number, first


def _max_grad_decompose(g: Any, x: Any, y: Any, *, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil: bool) -> Any:
    """Tiling windows: an elementwise choice. Others: a sum over the window's elements of the gradients that chose it."""
    n = len(kernel)
    out = tuple(y.shape[-n:])
    view, dims = _window_view(x, kernel, stride, padding, dilation, out, lowest(x.dtype))
    number, first = _first_hit(view, y, dims, kernel, stride, dilation)
    if _tiling(x.shape[-n:], kernel, stride, padding, dilation, out):
        chosen = eq(number, _over_windows(first, view, dims))
        back = where(chosen, _over_windows(g, view, dims), zeros_like_value(g, ()))
        return shaped(back, x.shape)
    return _gathered(g, first, x, kernel, stride, padding, dilation)


def _gathered(g: Any, first: Any, x: Any, kernel: Any, stride: Any, padding: Any, dilation: Any) -> Any:
    """For each element of x the sum of the gradients of the windows that contain it; with ``first`` only of those that chose it.

    Elements are taken by their phase a in the stride t: element t*q + a is number (a + p - t*m) / d of window q + m, for as many m as a
    kernel is longer than the stride. So each phase reads whole runs of windows, and a sum over m takes the place of one over the kernel.
    """
    n = len(kernel)
    base = len(x.shape) - n
    lead, sizes = tuple(x.shape[:base]), tuple(x.shape[base:])
    reach = [d * (k - 1) for d, k in zip(dilation, kernel)]
    least = [min(0, -((r - p) // t)) for r, p, t in zip(reach, padding, stride)]
    count = [max(0, (t - 1 + p) // t) - m + 1 for p, t, m in zip(padding, stride, least)]
    tiles = [-(-s // t) for s, t in zip(sizes, stride)]
    wanted = [q + c - 1 + m for q, c, m in zip(tiles, count, least)]  # one more than the last window that is read
    high = [w - o for w, o in zip(wanted, g.shape[base:])]
    order = [*range(base)]  # (*lead, Q1, a1, .., Qn, an, m1, .., mn)
    for i in range(n):
        order += [base + i, base + 2 * n + i]
    order += [base + n + i for i in range(n)]
    full = (*lead, *[v for q, t in zip(tiles, stride) for v in (q, t)], *count)

    def view(v: Any) -> Any:
        v = copy(pad_with(v, (*[0] * base, *[-m for m in least]), (*[0] * base, *high), 0))
        for i in range(n):
            v = windows(v, dim=base + i, size=count[i], step=1, dilation=1)
        v = spread_like(shaped(v, (*v.shape, *[1] * n)), (*v.shape, *stride))
        return permute(v, dims=tuple(order))

    number = inside = None
    for i in range(n):
        a = index_value(g, full, base + 2 * i + 1, dt.int32)
        m = index_value(g, full, base + 2 * n + i, dt.int32)
        place = sub(add(a, padding[i] - stride[i] * least[i]), mul(m, stride[i]))
        if first is not None:
            number = place if number is None else add(mul(number, _pitch(i, kernel, stride, dilation)), place)
        else:
            fits = mul(ge(place, 0), le(place, reach[i]))
            inside = fits if inside is None else mul(inside, fits)
    wanted_here = inside if first is None else eq(view(first), number)
    total = sum_of(where(wanted_here, view(wide(g)), zeros_like_value(wide(g), ())), tuple(range(base + 2 * n, base + 3 * n)))
    return narrow(crop(shaped(total, (*lead, *[q * t for q, t in zip(tiles, stride)])), (0,) * (base + n), x.shape), g)


def _pitch(i: int, kernel: Any, stride: Any, dilation: Any) -> int:
    """What the place along dim i counts in the number of a window's element: places a stride outside the window get no other's number."""
    return int(dilation[i] * (kernel[i] - 1) + 1 + 2 * stride[i])


def _np_windows(x: Any, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil: bool, fill: float) -> Any:
    """(*lead, *O, *K) by fancy indexing; for the references."""
    n = len(kernel)
    base = x.ndim - n
    out = [pooled_size(s, k, t, p, d, ceil) for s, k, t, p, d in zip(x.shape[base:], kernel, stride, padding, dilation)]
    room = [(o - 1) * t + d * (k - 1) + 1 for o, t, d, k in zip(out, stride, dilation, kernel)]
    pads = [(0, 0)] * base + [(p, max(0, r - p - s)) for p, r, s in zip(padding, room, x.shape[base:])]
    x = np.pad(x, pads, constant_values=fill)
    for i in range(n):
        index = np.arange(out[i])[:, None] * stride[i] + np.arange(kernel[i]) * dilation[i]
        x = np.moveaxis(np.take(x, index, axis=base + i), base + i + 1, -1)
    return x


def _max_reference(x: Any, **a: Any) -> Any:
    n = len(a["kernel"])
    return _np_windows(x, **a, fill=lowest(dt.from_numpy_dtype(x.dtype))).max(axis=tuple(range(-n, 0)))


def _max_grad_reference(g: Any, x: Any, y: Any, **a: Any) -> Any:
    n = len(a["kernel"])
    view = _np_windows(x, **a, fill=-np.inf)
    first = view.reshape(*view.shape[:-n], -1).argmax(-1)
    lead = x.shape[:-n]
    out = np.zeros_like(g, shape=x.shape)
    for index in np.ndindex(*g.shape):
        offsets = np.unravel_index(first[index], a["kernel"])
        at = [o * t - p + k * d for o, t, p, k, d in zip(index[len(lead) :], a["stride"], a["padding"], offsets, a["dilation"])]
        out[(*index[: len(lead)], *at)] += g[index]
    return out


def _attrs(kernel: Any, stride: Any = None, padding: Any = None, dilation: Any = None, ceil: bool = False) -> dict[str, Any]:
    n = len(kernel)
    return {
        "kernel": kernel,
        "stride": stride or kernel,
        "padding": padding or (0,) * n,
        "dilation": dilation or (1,) * n,
        "ceil": ceil,
    }


_CASES: tuple[tuple[tuple[int, ...], dict[str, Any]], ...] = (
    ((2, 3, 4, 6), _attrs((2, 2))),
    ((1, 2, 7, 7), _attrs((3, 3), (2, 2), (1, 1))),
    ((2, 7), _attrs((3,), (2,), (1,), (2,))),
    ((2, 9), _attrs((3,), (3,), (1,), (2,))),  # as many elements in windows as in the input, but not the same
    ((2, 9), _attrs((3,), (4,), (1,))),
    ((2, 5, 6), _attrs((2, 3), (2, 2), (1, 0), ceil=True)),
    ((2, 4, 3, 5), _attrs((2, 3, 2), (1, 1, 2))),
)


def _max_outshape(shape: tuple[int, ...], a: dict[str, Any]) -> tuple[int, ...]:
    n = len(a["kernel"])
    each = zip(shape[-n:], a["kernel"], a["stride"], a["padding"], a["dilation"])
    return (*shape[:-n], *[pooled_size(s, k, t, p, d, a["ceil"]) for s, k, t, p, d in each])


max_pool_grad: OpDef = OpDef(
    "max_pool_grad",
    "composite",
    lambda g, x, y, **_: meta(x.shape, g.dtype, x.device),
    attrs=_ATTRS,
    vjp="auto",
    decompose=_max_grad_decompose,
    reference=_max_grad_reference,
    dtypes=dt.FLOATING,
    doc="The gradient of max_pool: each window's gradient at its first maximum. Inputs: gradient, input and result of the pool.",
)

max_pool: OpDef = OpDef(
    "max_pool",
    "composite",
    _max_infer,
    attrs=_ATTRS,
    vjp=lambda c, g: max_pool_grad(
        g, c[0], c.out, kernel=c.kernel, stride=c.stride, padding=c.padding, dilation=c.dilation, ceil=c.ceil
    ),
    saves=(0, OUT),
    decompose=_max_decompose,
    reference=_max_reference,
    dtypes=(*dt.INTEGRAL, *dt.FLOATING),
    samples=tuple(Sample((Arg(s, "distinct"),), a) for s, a in _CASES),
    failing=(
        Failing((Arg((2, 3, 1, 1)),), _attrs((2, 2)), ValueError, "smaller"),
        Failing((Arg((2, 3, 4, 4)),), _attrs((2, 2), padding=(2, 2)), ValueError, "half"),
    ),
    onnx="MaxPool",
    ulp=0,
    doc="The maximum of each window over the last dimensions; padding counts as minus infinity.",
)


def _indices_decompose(x: Any, *, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil: bool) -> Any:
    """The flat place in the plane: the smallest among those of the window's maxima that lie inside."""
    n = len(kernel)
    out = _out_shape(x, kernel, stride, padding, dilation, ceil)
    y = _max_decompose(x, kernel=kernel, stride=stride, padding=padding, dilation=dilation, ceil=ceil)
    view, dims = _window_view(x, kernel, stride, padding, dilation, out, lowest(x.dtype))
    sizes = tuple(x.shape[-n:])
    shape = (*[1] * (len(x.shape) - n), *sizes)
    place = None
    for i, s in enumerate(sizes):
        k = index_value(x, shape, len(shape) - n + i, dt.int64)
        place = k if place is None else add(mul(place, s), k)
    beyond = math.prod(sizes)
    places, _ = _window_view(place, kernel, stride, padding, dilation, out, beyond)
    hit = eq(view, _over_windows(y, view, dims))
    if view.dtype.kind == "f":
        hit = add(hit, ne(view, view))
    places = spread_like(places, view.shape)
    return reduce_min(where(hit, places, full_value(places, beyond, ())), dims=dims, keepdim=False)


def _indices_reference(x: Any, **a: Any) -> Any:
    n = len(a["kernel"])
    base = x.ndim - n
    view = _np_windows(x, **a, fill=-np.inf if x.dtype.kind == "f" else np.iinfo(x.dtype).min)
    first = view.reshape(*view.shape[:-n], -1).argmax(-1)
    out = np.empty(first.shape, np.int64)
    for index in np.ndindex(*first.shape):
        offsets = np.unravel_index(first[index], a["kernel"])
        at = [o * t - p + k * d for o, t, p, k, d in zip(index[base:], a["stride"], a["padding"], offsets, a["dilation"])]
        out[index] = np.ravel_multi_index(at, x.shape[base:])
    return out


max_pool_indices = OpDef(
    "max_pool_indices",
    "composite",
    lambda m, **a: _max_infer(m, **a).with_dtype(dt.int64),
    attrs=_ATTRS,
    decompose=_indices_decompose,
    reference=_indices_reference,
    dtypes=(*dt.INTEGRAL, *dt.FLOATING),
    samples=tuple(Sample((Arg(s, "distinct"),), a, gradient=False) for s, a in _CASES),
    ulp=0,
    doc="Where max_pool found each maximum: the row-major place in the last dimensions of the input.",
)


# ----------------------------------------------------------------------------------------------------------------- sum


def _sum_infer(m: Meta, *, kernel: Any, stride: Any, padding: Any, ceil: bool) -> Meta:
    return m.with_shape(_check("avg_pool", m, len(kernel), kernel, stride, padding, (1,) * len(kernel), ceil))


def _sum_decompose(x: Any, *, kernel: Any, stride: Any, padding: Any, ceil: bool) -> Any:
    ones = (1,) * len(kernel)
    out = _out_shape(x, kernel, stride, padding, ones, ceil)
    view, dims = _window_view(wide(x), kernel, stride, padding, ones, out, 0)
    return narrow(sum_of(view, dims), x)


def _sum_grad_decompose(g: Any, *, shape: Any, kernel: Any, stride: Any, padding: Any, ceil: bool) -> Any:
    n = len(kernel)
    like = zeros_like_value(wide(g), shape)
    ones = (1,) * n
    out = tuple(g.shape[-n:])
    if _tiling(shape[-n:], kernel, stride, padding, ones, out):
        view, dims = _window_view(like, kernel, stride, padding, ones, out, 0)
        return shaped(_over_windows(g, view, dims), shape)
    return _gathered(g, None, like, kernel, stride, padding, ones)


def _sum_attrs(a: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in a.items() if k != "dilation"}


def _sum_reference(x: Any, **a: Any) -> Any:
    n = len(a["kernel"])
    return _np_windows(x, **a, dilation=(1,) * n, fill=0).sum(axis=tuple(range(-n, 0)))


sum_pool_grad: OpDef = OpDef(
    "sum_pool_grad",
    "composite",
    lambda g, *, shape, **_: g.with_shape(shape),
    attrs=("shape", "kernel", "stride", "padding", "ceil"),
    vjp=lambda c, g: sum_pool(g, kernel=c.kernel, stride=c.stride, padding=c.padding, ceil=c.ceil),
    decompose=_sum_grad_decompose,
    dtypes=dt.FLOATING,
    doc="The gradient of sum_pool: each window's gradient at all its elements.",
)

sum_pool: OpDef = OpDef(
    "sum_pool",
    "composite",
    _sum_infer,
    attrs=("kernel", "stride", "padding", "ceil"),
    vjp=lambda c, g: sum_pool_grad(g, shape=c.metas[0].shape, kernel=c.kernel, stride=c.stride, padding=c.padding, ceil=c.ceil),
    decompose=_sum_decompose,
    reference=_sum_reference,
    dtypes=dt.FLOATING,
    samples=tuple(Sample((Arg(s),), _sum_attrs(a)) for s, a in _CASES if all(d == 1 for d in a["dilation"])),
    failing=(Failing((Arg((2, 3, 1, 1)),), _sum_attrs(_attrs((2, 2))), ValueError, "smaller"),),
    ulp=32,
    doc="The sum of each window over the last dimensions; padding counts as zero.",
)


def window_counts(size: int, kernel: int, stride: int, padding: int, out: int, include_pad: bool) -> Any:
    """How many elements each window along one dimension is divided by (NumPy)."""
    start = np.arange(out) * stride - padding
    end = np.minimum(start + kernel, size + padding)
    if not include_pad:
        start, end = np.maximum(start, 0), np.minimum(end, size)
    return end - start


def average(x: Any, kernel: Any, stride: Any, padding: Any, ceil: bool, include_pad: bool, divisor: int | None) -> Any:
    """Averages of windows; one division by a number where all windows count alike."""
    total = sum_pool(x, kernel=kernel, stride=stride, padding=padding, ceil=ceil)
    n = len(kernel)
    if divisor is not None:
        return div(total, float(divisor))
    sizes, out = x.shape[-n:], total.shape[-n:]
    counts = [window_counts(s, k, t, p, o, include_pad) for s, k, t, p, o in zip(sizes, kernel, stride, padding, out)]
    if all((c == c[0]).all() for c in counts):
        return div(total, float(math.prod([int(c[0]) for c in counts])))
    from cermet.ops.define import hooks

    grid = counts[0].astype(np.float64)
    for c in counts[1:]:
        grid = grid[..., None] * c
    return div(total, hooks.to_tensor(grid, dtype=total.dtype, like=total))
