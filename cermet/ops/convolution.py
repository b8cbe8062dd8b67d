"""Convolution: one primitive in three directions, and the public functions in one, two and three dimensions written with it.

The primitive is 2-d. One dimension is a height of 1; three dimensions fold the taps along the depth into the channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cermet import dtypes as dt
from cermet.graph.node import Meta, meta
from cermet.ops.composing import crop, pad_with, shaped, sum_of
from cermet.ops.define import Arg, Failing, OpDef, Sample, ShapeError
from cermet.ops.elementwise import add
from cermet.ops.movement import permute, reshape, slice_, unslice, windows
from cermet.ops.public import public
from cermet.ops.support import same_dtype

_ATTRS = ("direction", "stride", "padding", "dilation", "groups", "shape")


def out_size(size: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    """Number of places of a kernel: floor((size + 2 padding - dilation (kernel - 1) - 1) / stride) + 1."""
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def _roles(direction: str, a: Sequence[int], b: Sequence[int], shape: Sequence[int]) -> tuple[Any, Any, Any]:
    """Shapes of (input, weight, result of the forward convolution)."""
    if direction == "forward":
        return a, b, shape
    if direction == "input_grad":
        return shape, b, a
    if direction == "weight_grad":
        return b, shape, a
    raise ValueError(f"conv: direction must be forward, input_grad or weight_grad, got {direction!r}")


def _conv_infer(
    a: Meta, b: Meta, *, direction: str, stride: Any, padding: Any, dilation: Any, groups: int, shape: tuple[int, ...]
) -> Meta:
    same_dtype("conv", a, b)
    if a.ndim != 4 or b.ndim != 4 or len(shape) != 4:
        raise ShapeError(
            f"conv: expected inputs and result of 4 dimensions, got {list(a.shape)}, {list(b.shape)} and {list(shape)}"
        )
    x, w, y = _roles(direction, a.shape, b.shape, shape)
    if groups < 1 or x[1] != w[1] * groups or w[0] % groups:
        raise ShapeError(
            f"conv: an input of {x[1]} channels does not fit a weight of shape {list(w)} with groups={groups}: expected "
            f"{w[1] * groups} input channels, and output channels divisible by the groups"
        )
    if min(*stride, *dilation) < 1 or min(padding) < 0:
        raise ShapeError(f"conv: stride {stride} and dilation {dilation} must be 1 or more, padding {padding} 0 or more")
    expected = (x[0], w[0], *[out_size(x[k + 2], w[k + 2], stride[k], padding[k], dilation[k]) for k in (0, 1)])
    if min(expected[2:]) < 1 and 0 not in (*w, x[0]):
        raise ShapeError(
            f"conv: the kernel {list(w[2:])} with dilation {list(dilation)} is larger than the padded input "
            f"{[x[2] + 2 * padding[0], x[3] + 2 * padding[1]]}"
        )
    if tuple(y) != expected:
        raise ShapeError(
            f"conv: a result of shape {list(expected)} belongs to input {list(x)} and weight {list(w)}, got {list(y)}"
        )
    return meta(shape, a.dtype, a.device)


def _conv_vjp(c: Any, g: Any) -> Any:
    same = {"stride": c.stride, "padding": c.padding, "dilation": c.dilation, "groups": c.groups}
    a, b = c.metas
    first = second = None
    if c.direction == "forward":
        if c.needs[0]:
            first = conv(g, c[1], direction="input_grad", shape=a.shape, **same)
        if c.needs[1]:
            second = conv(g, c[0], direction="weight_grad", shape=b.shape, **same)
    elif c.direction == "input_grad":
        if c.needs[0]:
            first = conv(g, c[1], direction="forward", shape=a.shape, **same)
        if c.needs[1]:
            second = conv(c[0], g, direction="weight_grad", shape=b.shape, **same)
    else:
        if c.needs[0]:
            first = conv(c[1], g, direction="forward", shape=a.shape, **same)
        if c.needs[1]:
            second = conv(c[0], g, direction="input_grad", shape=b.shape, **same)
    return first, second


def _conv_reference(
    a: Any, b: Any, *, direction: str, stride: Any, padding: Any, dilation: Any, groups: int, shape: tuple[int, ...]
) -> Any:
    """One einsum per tap on the padded input, groups as a dimension of their own; float64 inside."""
    xs, ws, ys = _roles(direction, a.shape, b.shape, shape)
    kinds = np.result_type(a, b)
    a, b = a.astype(np.float64 if kinds.kind == "f" else kinds), b.astype(np.float64 if kinds.kind == "f" else kinds)
    (n, c, h, w), (o, cg, kh, kw), (_, _, oh, ow) = xs, ws, ys
    ph, pw = padding
    # The kernel may stop short of the padded input's end, so the padded copy reaches at least as far as any tap does.
    hp = max(h + 2 * ph, (oh - 1) * stride[0] + (kh - 1) * dilation[0] + 1)
    wp = max(w + 2 * pw, (ow - 1) * stride[1] + (kw - 1) * dilation[1] + 1)
    padded = np.zeros((n, groups, c // groups, hp, wp), a.dtype)
    inside = padded[:, :, :, ph : ph + h, pw : pw + w]
    x = {"forward": a, "weight_grad": b}.get(direction)
    if x is not None:
        inside[...] = x.reshape(n, groups, c // groups, h, w)
    weight = {"forward": b, "input_grad": b}.get(direction, np.zeros(ws, a.dtype)).reshape(groups, o // groups, cg, kh, kw)
    y = (np.zeros(ys, a.dtype) if direction == "forward" else a).reshape(n, groups, o // groups, oh, ow)
    dw = np.zeros(weight.shape, a.dtype)
    for i in range(kh):
        for j in range(kw):
            at = (
                slice(i * dilation[0], i * dilation[0] + (oh - 1) * stride[0] + 1, stride[0]),
                slice(j * dilation[1], j * dilation[1] + (ow - 1) * stride[1] + 1, stride[1]),
            )
            tap = padded[:, :, :, at[0], at[1]]
            if direction == "forward":
                y += np.einsum("ngchw,goc->ngohw", tap, weight[..., i, j], optimize=True)
            elif direction == "input_grad":
                tap += np.einsum("ngohw,goc->ngchw", y, weight[..., i, j], optimize=True)
            else:
                dw[..., i, j] = np.einsum("ngohw,ngchw->goc", y, tap, optimize=True)
    return (y if direction == "forward" else inside if direction == "input_grad" else dw).reshape(shape)


def _sample(direction: str, x: Any, w: Any, **attrs: Any) -> Sample:
    stride, padding = attrs.get("stride", (1, 1)), attrs.get("padding", (0, 0))
    dilation, groups = attrs.get("dilation", (1, 1)), attrs.get("groups", 1)
    y = (x[0], w[0], *[out_size(x[k + 2], w[k + 2], stride[k], padding[k], dilation[k]) for k in (0, 1)])
    shapes = {"forward": (x, w, y), "input_grad": (y, w, x), "weight_grad": (y, x, w)}[direction]
    named = {
        "direction": direction,
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
        "groups": groups,
        "shape": shapes[2],
    }
    return Sample((Arg(shapes[0]), Arg(shapes[1])), named)


conv: OpDef = OpDef(
    "conv",
    "convolution",
    _conv_infer,
    attrs=_ATTRS,
    vjp=_conv_vjp,
    saves=(0, 1),
    reference=_conv_reference,
    dtypes=dt.FLOATING,
    samples=tuple(
        _sample(d, *shapes, **attrs)
        for d in ("forward", "input_grad", "weight_grad")
        for shapes, attrs in (
            (((2, 3, 5, 6), (4, 3, 3, 3)), {"padding": (1, 1)}),
            (((1, 2, 7, 6), (3, 2, 3, 2)), {"stride": (2, 3), "padding": (1, 0)}),
            (((2, 4, 6, 6), (6, 2, 2, 3)), {"groups": 2, "dilation": (2, 1), "padding": (0, 2)}),
            (((1, 3, 1, 9), (3, 1, 1, 4)), {"groups": 3, "stride": (1, 2)}),
            (((2, 5, 3, 3), (4, 5, 1, 1)), {}),
        )
    ),
    failing=(
        Failing(
            (Arg((1, 3, 5, 5)), Arg((4, 2, 3, 3))), _sample("forward", (1, 2, 5, 5), (4, 2, 3, 3)).attrs, ValueError, "channels"
        ),
        Failing(
            (Arg((1, 2, 2, 2)), Arg((4, 2, 3, 3))), _sample("forward", (1, 2, 2, 2), (4, 2, 3, 3)).attrs, ValueError, "larger"
        ),
    ),
    onnx="Conv",
    ulp=128,
    doc="2-d convolution (cross-correlation) of (N, C, H, W) with (O, C / groups, KH, KW), or its gradient for "
    "the input or the weight.",
)


def _bias_infer(
    x: Meta, w: Meta, b: Meta, *, stride: Any, padding: Any, dilation: Any, groups: int, shape: tuple[int, ...]
) -> Meta:
    same_dtype("conv", x, b)
    if b.shape != (w.shape[0],):
        raise ShapeError(
            f"conv: the bias has shape {list(b.shape)}, expected [{w.shape[0]}] for a weight of shape {list(w.shape)}"
        )
    return _conv_infer(x, w, direction="forward", stride=stride, padding=padding, dilation=dilation, groups=groups, shape=shape)


def _bias_vjp(c: Any, g: Any) -> Any:
    named = {"stride": c.stride, "padding": c.padding, "dilation": c.dilation, "groups": c.groups}
    gx = conv(g, c[1], direction="input_grad", shape=c.metas[0].shape, **named) if c.needs[0] else None
    gw = conv(g, c[0], direction="weight_grad", shape=c.metas[1].shape, **named) if c.needs[1] else None
    return gx, gw, sum_of(g, (0, 2, 3)) if c.needs[2] else None


def _bias_decompose(x: Any, w: Any, b: Any, **attrs: Any) -> Any:
    return add(conv(x, w, direction="forward", **attrs), reshape(b, shape=(1, b.shape[0], 1, 1)))


conv_bias: OpDef = OpDef(
    "conv_bias",
    "composite",
    _bias_infer,
    attrs=_ATTRS[1:],
    vjp=_bias_vjp,
    saves=(0, 1),
    decompose=_bias_decompose,
    reference=lambda x, w, b, **attrs: _conv_reference(x, w, direction="forward", **attrs) + b.reshape(1, -1, 1, 1),
    dtypes=dt.FLOATING,
    samples=tuple(
        Sample((*s.args, Arg((s.args[1].shape[0],))), {k: v for k, v in s.attrs.items() if k != "direction"})
        for s in conv.samples[:3]
    ),
    onnx="Conv",
    ulp=128,
    doc="A forward convolution plus a bias per output channel, as one node.",
)


# ------------------------------------------------------------------------------------------------------------ arguments


def per_dim(value: Any, n: int, name: str, what: str) -> tuple[int, ...]:
    """``n`` ints, of an int, one int in a list, or all of them.

    Raises:
        ValueError, TypeError: for anything else.
    """
    if isinstance(value, bool | float | str) or value is None:
        raise TypeError(f"{name}: {what} must be an integer or {n} integers, got {value!r}")
    if hasattr(value, "__index__"):
        return (value.__index__(),) * n
    out = tuple([int(v) for v in value])
    if len(out) == 1:
        out = out * n
    if len(out) != n:
        raise ShapeError(f"{name}: {what} must be an integer or {n} integers, got {value!r}")
    return out


def _sides(padding: Any, n: int, name: str, kernel: Any, stride: Any, dilation: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Low and high padding of each spatial dimension."""
    if isinstance(padding, str):
        if padding == "valid":
            return (0,) * n, (0,) * n
        if padding != "same":
            raise ValueError(f"{name}: padding must be 'same', 'valid' or integers, got {padding!r}")
        if any(s != 1 for s in stride):
            raise ValueError(f"{name}: padding='same' needs a stride of 1, got {tuple(stride)}")
        total = [d * (k - 1) for d, k in zip(dilation, kernel)]
        return tuple([t // 2 for t in total]), tuple([t - t // 2 for t in total])
    both = per_dim(padding, n, name, "padding")
    if min(both) < 0:
        raise ValueError(f"{name}: padding must not be negative, got {both}")
    return both, both


def _batched(x: Any, w: Any, n: int, name: str) -> tuple[Any, bool]:
    """The input with a batch dimension, and whether it was added."""
    if len(w.shape) != n + 2:
        raise ShapeError(f"{name}: the weight must have {n + 2} dimensions, got shape {list(w.shape)}")
    if len(x.shape) == n + 1:
        return reshape(x, shape=(1, *x.shape)), True
    if len(x.shape) != n + 2:
        raise ShapeError(f"{name}: expected an input of {n + 1} (one sample) or {n + 2} dimensions, got shape {list(x.shape)}")
    return x, False


def _unbatched(y: Any, single: bool) -> Any:
    return reshape(y, shape=tuple(y.shape[1:])) if single else y


def _conv(name: str, n: int, x: Any, w: Any, bias: Any, stride: Any, padding: Any, dilation: Any, groups: int) -> Any:
    x, single = _batched(x, w, n, name)
    kernel = tuple(w.shape[2:])
    stride, dilation = per_dim(stride, n, name, "stride"), per_dim(dilation, n, name, "dilation")
    low, high = _sides(padding, n, name, kernel, stride, dilation)
    if low != high:  # an odd total for 'same': one more at the high end
        x = pad_with(x, (0, 0, *[0] * n), (0, 0, *[b - a for a, b in zip(low, high)]))
    if n == 1:
        x, w = _flat(x), _flat(w)
        low, stride, dilation = (0, *low), (1, *stride), (1, *dilation)
    elif n == 3:
        return _unbatched(_conv3(x, w, bias, stride, low, dilation, groups), single)
    y = forward(x, w, bias, stride, low, dilation, groups)
    return _unbatched(shaped(y, (*y.shape[:2], y.shape[3])) if n == 1 else y, single)


def _flat(x: Any) -> Any:
    """(A, B, L) as (A, B, 1, L)."""
    return reshape(x, shape=(*x.shape[:2], 1, x.shape[2]))


def forward(x: Any, w: Any, bias: Any, stride: Any, padding: Any, dilation: Any, groups: int) -> Any:
    """The forward convolution of (N, C, H, W) and (O, C / groups, KH, KW); ``bias`` (O) or None."""
    sx, sw = tuple(x.shape), tuple(w.shape)
    shape = (sx[0], sw[0], *[out_size(sx[k + 2], sw[k + 2], stride[k], padding[k], dilation[k]) for k in (0, 1)])
    attrs = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups, "shape": shape}
    return conv(x, w, direction="forward", **attrs) if bias is None else conv_bias(x, w, bias, **attrs)


def _conv3(x: Any, w: Any, bias: Any, stride: Any, padding: Any, dilation: Any, groups: int) -> Any:
    """Windows along the depth become channels (channel major, tap minor, so that groups stay together) and depths join the
    batch."""
    x = pad_with(x, (0, 0, padding[0], 0, 0), (0, 0, padding[0], 0, 0))
    n, c, _, h, width = x.shape
    o, cg, kd, kh, kw = w.shape
    taps = windows(x, dim=2, size=kd, step=stride[0], dilation=dilation[0])  # (N, C, OD, H, W, KD)
    depth = taps.shape[2]
    folded = reshape(permute(taps, dims=(0, 2, 1, 5, 3, 4)), shape=(n * depth, c * kd, h, width))
    y = forward(folded, reshape(w, shape=(o, cg * kd, kh, kw)), bias, stride[1:], padding[1:], dilation[1:], groups)
    return permute(reshape(y, shape=(n, depth, o, *y.shape[2:])), dims=(0, 2, 1, 3, 4))


@public(namespaces=("", "nn.functional"), method=False, autocast="lower")
def conv1d(
    input: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> Any:
    """1-d convolution of (N, C, L) or (C, L) with (O, C / groups, K); padding may be 'same' or 'valid'."""
    return _conv("conv1d", 1, input, weight, bias, stride, padding, dilation, groups)


@public(namespaces=("", "nn.functional"), method=False, autocast="lower")
def conv2d(
    input: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> Any:
    """2-d convolution of (N, C, H, W) or (C, H, W) with (O, C / groups, KH, KW); padding may be 'same' or 'valid'."""
    return _conv("conv2d", 2, input, weight, bias, stride, padding, dilation, groups)


@public(namespaces=("", "nn.functional"), method=False, autocast="lower")
def conv3d(
    input: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> Any:
    """3-d convolution of (N, C, D, H, W) or (C, D, H, W) with (O, C / groups, KD, KH, KW); padding may be 'same' or 'valid'."""
    return _conv("conv3d", 3, input, weight, bias, stride, padding, dilation, groups)


# ----------------------------------------------------------------------------------------------------------- transposed


def _transposed_size(size: int, kernel: int, stride: int, padding: int, dilation: int, extra: int) -> int:
    return (size - 1) * stride - 2 * padding + dilation * (kernel - 1) + extra + 1


def _transposed2(x: Any, w: Any, stride: Any, padding: Any, dilation: Any, extra: Any, groups: int) -> Any:
    """The input gradient of a convolution whose weight (O, C / groups, KH, KW) is ``w``: (N, O, H, W) -> (N, C, ...)."""
    # A forward convolution reaches only into the first `stride - 1` extra rows: what lies further out stays zero.
    near = [min(e, s - 1) for e, s in zip(extra, stride)]
    size = [_transposed_size(x.shape[k + 2], w.shape[k + 2], stride[k], padding[k], dilation[k], near[k]) for k in (0, 1)]
    if min(size) < 0:
        raise ShapeError(f"conv_transpose: a result of size {size}: padding {list(padding)} crops all of it")
    shape = (x.shape[0], w.shape[1] * groups, *size)
    y = conv(x, w, direction="input_grad", stride=stride, padding=padding, dilation=dilation, groups=groups, shape=shape)
    return pad_with(y, (0, 0, 0, 0), (0, 0, *[e - m for e, m in zip(extra, near)]))


def _transposed3(x: Any, w: Any, stride: Any, padding: Any, dilation: Any, extra: Any, groups: int) -> Any:
    """A sum over the taps along the depth, each a 2-d transposed convolution of all depths, put at its stride."""
    n, c, d, h, width = x.shape
    flat = reshape(permute(x, dims=(0, 2, 1, 3, 4)), shape=(n * d, c, h, width))
    kd = w.shape[2]
    full = _transposed_size(d, kd, stride[0], 0, dilation[0], extra[0])
    total = None
    for k in range(kd):
        tap = slice_(w, starts=(0, 0, k, 0, 0), steps=(1,) * 5, sizes=(*w.shape[:2], 1, *w.shape[3:]))
        y = _transposed2(
            flat, reshape(tap, shape=(*w.shape[:2], *w.shape[3:])), stride[1:], padding[1:], dilation[1:], extra[1:], groups
        )
        y = permute(reshape(y, shape=(n, d, *y.shape[1:])), dims=(0, 2, 1, 3, 4))
        shape = (n, y.shape[1], full, *y.shape[3:])
        part = unslice(y, shape=shape, starts=(0, 0, k * dilation[0], 0, 0), steps=(1, 1, stride[0], 1, 1))
        total = part if total is None else add(total, part)
    assert total is not None
    size = full - 2 * padding[0]
    return crop(total, (0, 0, padding[0], 0, 0), (*total.shape[:2], size, *total.shape[3:]))


def _conv_transpose(
    name: str, n: int, x: Any, w: Any, bias: Any, stride: Any, padding: Any, output_padding: Any, groups: int, dilation: Any
) -> Any:
    x, single = _batched(x, w, n, name)
    stride, dilation = per_dim(stride, n, name, "stride"), per_dim(dilation, n, name, "dilation")
    padding, extra = per_dim(padding, n, name, "padding"), per_dim(output_padding, n, name, "output_padding")
    if any(e < 0 or e >= max(s, d) for e, s, d in zip(extra, stride, dilation)):
        raise ShapeError(
            f"{name}: output_padding {extra} is too much: in each dimension less than stride {stride} or dilation {dilation}"
        )
    if x.shape[1] != w.shape[0]:
        raise ShapeError(
            f"{name}: an input of {x.shape[1]} channels does not fit a weight of shape {list(w.shape)} (in, out/groups, ...)"
        )
    if n == 1:
        y = _transposed2(_flat(x), _flat(w), (1, *stride), (0, *padding), (1, *dilation), (0, *extra), groups)
        y = shaped(y, (*y.shape[:2], y.shape[3]))
    else:
        y = (_transposed2 if n == 2 else _transposed3)(x, w, stride, padding, dilation, extra, groups)
    if bias is not None:
        y = add(y, reshape(bias, shape=(bias.shape[0], *[1] * n)))
    return _unbatched(y, single)


@public(namespaces=("", "nn.functional"), method=False, autocast="lower")
def conv_transpose1d(
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Any:
    """Transposed 1-d convolution of (N, C, L) with (C, O / groups, K): the gradient of `conv1d` for its input."""
    return _conv_transpose("conv_transpose1d", 1, input, weight, bias, stride, padding, output_padding, groups, dilation)


@public(namespaces=("", "nn.functional"), method=False, autocast="lower")
def conv_transpose2d(
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Any:
    """Transposed 2-d convolution of (N, C, H, W) with (C, O / groups, KH, KW): the gradient of `conv2d` for its input."""
    return _conv_transpose("conv_transpose2d", 2, input, weight, bias, stride, padding, output_padding, groups, dilation)


@public(namespaces=("", "nn.functional"), method=False, autocast="lower")
def conv_transpose3d(
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Any:
    """Transposed 3-d convolution of (N, C, D, H, W) with (C, O / groups, KD, KH, KW): the gradient of `conv3d` for its input."""
    return _conv_transpose("conv_transpose3d", 3, input, weight, bias, stride, padding, output_padding, groups, dilation)
