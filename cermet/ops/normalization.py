"""Normalisation. `standardize` (mean 0, variance 1 over some dims) carries the gradient formula; the layers are composites on top
of it.

Inside, 16-bit floats are computed in float32, and variances in two passes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from cermet import dtypes as dt
from cermet.graph.node import Meta
from cermet.ops.composing import mean_of, narrow, shaped, wide
from cermet.ops.define import Arg, Failing, OpDef, Sample, count_of
from cermet.ops.elementwise import add, div, mul, sub
from cermet.ops.public import public
from cermet.ops.support import check_floating, to_dtype


def _rsqrt(x: Any) -> Any:
    from cermet.ops.mathematics import rsqrt

    return rsqrt(x)


def _moments(x: Any, dims: tuple[int, ...]) -> tuple[Any, Any, Any]:
    """Deviation from the mean, mean and biased variance, the last two with kept dims. ``x`` is wide."""
    mean = mean_of(x, dims, True)
    d = sub(x, mean)
    return d, mean, mean_of(mul(d, d), dims, True)


def _floating_first(name: str) -> Any:
    def infer(m: Meta, *rest: Meta, **_: Any) -> Meta:
        check_floating(m, name)
        return m

    return infer


# ---------------------------------------------------------------------------------------------------------- standardize


def _standardize(x: Any, *, dims: tuple[int, ...], eps: float) -> Any:
    d, _, var = _moments(wide(x), dims)
    return narrow(mul(d, _rsqrt(add(var, eps))), x)


def _standardize_grad(g: Any, x: Any, *, dims: tuple[int, ...], eps: float) -> Any:
    """With y the result and r = 1 / sqrt(var + eps): r (g - mean(g) - y mean(g y))."""
    d, _, var = _moments(wide(x), dims)
    r = _rsqrt(add(var, eps))
    y, h = mul(d, r), wide(g)
    return narrow(mul(r, sub(sub(h, mean_of(h, dims, True)), mul(y, mean_of(mul(h, y), dims, True)))), x)


def _np_standardize(x: Any, *, dims: tuple[int, ...], eps: float) -> Any:
    return (x - x.mean(dims, keepdims=True)) / np.sqrt(x.var(dims, keepdims=True) + eps)


def _np_standardize_grad(g: Any, x: Any, *, dims: tuple[int, ...], eps: float) -> Any:
    y = _np_standardize(x, dims=dims, eps=eps)
    r = 1 / np.sqrt(x.var(dims, keepdims=True) + eps)
    return r * (g - g.mean(dims, keepdims=True) - y * (g * y).mean(dims, keepdims=True))


_DIMS = (((3, 8), (1,)), ((4, 3, 5), (0, 2)), ((2, 3, 4), (1, 2)))

standardize_grad = OpDef(
    "standardize_grad",
    "composite",
    _floating_first("standardize"),
    attrs=("dims", "eps"),
    vjp="auto",
    decompose=_standardize_grad,
    reference=_np_standardize_grad,
    dtypes=dt.FLOATING,
    samples=tuple(Sample((Arg(s), Arg(s)), {"dims": d, "eps": 1e-5}) for s, d in _DIMS),
    ulp=256,
    doc="The gradient of standardize; inputs: the result's gradient and the input.",
)

standardize: OpDef = OpDef(
    "standardize",
    "composite",
    _floating_first("standardize"),
    attrs=("dims", "eps"),
    vjp=lambda c, g: standardize_grad(g, c[0], dims=c.dims, eps=c.eps),
    saves=(0,),
    decompose=_standardize,
    reference=_np_standardize,
    dtypes=dt.FLOATING,
    samples=tuple(Sample((Arg(s),), {"dims": d, "eps": 1e-5}) for s, d in _DIMS),
    ulp=256,
    doc="(x - mean) / sqrt(biased variance + eps) over dims.",
)


# --------------------------------------------------------------------------------------------------------- affine maps


def _affine(y: Any, given: Sequence[Any], affine: str, shape: tuple[int, ...]) -> Any:
    """``y * weight + bias`` with whichever is there (``affine`` is "", "w", "b" or "wb"), both viewed as ``shape``."""
    rest = list(given)
    if "w" in affine:
        y = mul(y, shaped(wide(rest.pop(0)), shape))
    if "b" in affine:
        y = add(y, shaped(wide(rest.pop(0)), shape))
    return y


def _np_affine(y: Any, given: Sequence[Any], affine: str, shape: tuple[int, ...]) -> Any:
    rest = list(given)
    if "w" in affine:
        y = y * rest.pop(0).reshape(shape)
    if "b" in affine:
        y = y + rest.pop(0).reshape(shape)
    return y


def _given(weight: Any, bias: Any) -> tuple[tuple[Any, ...], str]:
    """Those that are there, and the letters that say which."""
    return tuple([v for v in (weight, bias) if v is not None]), ("" if weight is None else "w") + ("" if bias is None else "b")


def _per_channel(ndim: int, channels: int) -> tuple[int, ...]:
    return (1, channels, *[1] * (ndim - 2))


# ------------------------------------------------------------------------------------------------------------- layer norm


def _layer_dims(ndim: int, count: int) -> tuple[int, ...]:
    return tuple(range(ndim - count, ndim))


def _layer_infer(m: Meta, *rest: Meta, count: int, eps: float, affine: str) -> Meta:
    check_floating(m, "layer_norm")
    return m


def _layer_norm(x: Any, *given: Any, count: int, eps: float, affine: str) -> Any:
    shape = tuple(x.shape)
    y = standardize(wide(x), dims=_layer_dims(len(shape), count), eps=eps)
    return narrow(_affine(y, given, affine, shape[len(shape) - count :]), x)


def _np_layer_norm(x: Any, *given: Any, count: int, eps: float, affine: str) -> Any:
    return _np_affine(_np_standardize(x, dims=_layer_dims(x.ndim, count), eps=eps), given, affine, x.shape[x.ndim - count :])


layer_norm_op = OpDef(
    "layer_norm",
    "composite",
    _layer_infer,
    attrs=("count", "eps", "affine"),
    vjp="auto",
    decompose=_layer_norm,
    reference=_np_layer_norm,
    dtypes=dt.FLOATING,
    samples=(
        Sample((Arg((3, 8)), Arg((8,)), Arg((8,))), {"count": 1, "eps": 1e-5, "affine": "wb"}),
        Sample((Arg((2, 3, 4)),), {"count": 2, "eps": 1e-5, "affine": ""}),
        Sample((Arg((2, 3, 4)), Arg((4,))), {"count": 1, "eps": 1e-3, "affine": "w"}),
    ),
    onnx="LayerNormalization",
    ulp=256,
    doc="Standardised over the last `count` dims, then times weight plus bias (Ba et al. 2016, arXiv:1607.06450).",
)


def _rms_norm(x: Any, *given: Any, count: int, eps: float | None, affine: str) -> Any:
    v = wide(x)
    shape = tuple(x.shape)
    small = float(np.finfo(v.dtype.numpy).eps) if eps is None else eps
    y = mul(v, _rsqrt(add(mean_of(mul(v, v), _layer_dims(len(shape), count), True), small)))
    return narrow(_affine(y, given, affine, shape[len(shape) - count :]), x)


def _np_rms_norm(x: Any, *given: Any, count: int, eps: float | None, affine: str) -> Any:
    small = np.finfo(x.dtype).eps if eps is None else eps
    y = x / np.sqrt((x * x).mean(_layer_dims(x.ndim, count), keepdims=True) + small)
    return _np_affine(y, given, affine, x.shape[x.ndim - count :])


rms_norm_op = OpDef(
    "rms_norm",
    "composite",
    _floating_first("rms_norm"),
    attrs=("count", "eps", "affine"),
    vjp="auto",
    decompose=_rms_norm,
    reference=_np_rms_norm,
    dtypes=dt.FLOATING,
    samples=(
        Sample((Arg((3, 8)), Arg((8,))), {"count": 1, "eps": 1e-6, "affine": "w"}),
        Sample((Arg((2, 3, 4)),), {"count": 2, "eps": 1e-5, "affine": ""}),
    ),
    onnx="RMSNormalization",
    ulp=128,
    doc="x over the root of its mean square over the last `count` dims, times weight (Zhang, Sennrich 2019, arXiv:1910.07467).",
)


def _normalized(input: Any, normalized_shape: Any, weight: Any, bias: Any, name: str) -> int:
    shape = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
    n = len(shape)
    if n == 0 or tuple(input.shape[len(input.shape) - n :]) != shape:
        raise RuntimeError(f"{name}: an input of shape {list(input.shape)} does not end with normalized_shape={list(shape)}")
    for what, v in (("weight", weight), ("bias", bias)):
        if v is not None and tuple(v.shape) != shape:
            raise RuntimeError(f"{name}: the {what} has shape {list(v.shape)}, expected normalized_shape={list(shape)}")
    return n


@public(namespaces=("", "nn.functional"), method=False)
def layer_norm(input: Any, normalized_shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-05) -> Any:
    """Standardised over the last dimensions ``normalized_shape``, times ``weight`` plus ``bias`` (both of that shape).

    Raises:
        RuntimeError: where the shapes do not fit.
    """
    n = _normalized(input, normalized_shape, weight, bias, "layer_norm")
    given, affine = _given(weight, bias)
    return layer_norm_op(input, *given, count=n, eps=float(eps), affine=affine)


@public(namespaces=("", "nn.functional"), method=False)
def rms_norm(input: Any, normalized_shape: Any, weight: Any = None, eps: float | None = None) -> Any:
    """The input over the root of its mean square over the last dimensions ``normalized_shape``, times ``weight``.

    Args:
        eps: added to the mean square; None means the dtype's machine epsilon.
    """
    n = _normalized(input, normalized_shape, weight, None, "rms_norm")
    given, affine = _given(weight, None)
    return rms_norm_op(input, *given, count=n, eps=None if eps is None else float(eps), affine=affine)


# ------------------------------------------------------------------------------------------------------------- group norm


def _grouped(shape: tuple[int, ...], groups: int) -> tuple[int, ...]:
    return (shape[0], groups, shape[1] // groups, *shape[2:])


def _group_norm(x: Any, *given: Any, groups: int, eps: float, affine: str) -> Any:
    shape = tuple(x.shape)
    v = shaped(wide(x), _grouped(shape, groups))
    y = shaped(standardize(v, dims=tuple(range(2, len(v.shape))), eps=eps), shape)
    return narrow(_affine(y, given, affine, _per_channel(len(shape), shape[1])), x)


def _np_group_norm(x: Any, *given: Any, groups: int, eps: float, affine: str) -> Any:
    v = x.reshape(_grouped(x.shape, groups))
    y = _np_standardize(v, dims=tuple(range(2, v.ndim)), eps=eps).reshape(x.shape)
    return _np_affine(y, given, affine, _per_channel(x.ndim, x.shape[1]))


def _group_infer(m: Meta, *rest: Meta, groups: int, eps: float, affine: str) -> Meta:
    check_floating(m, "group_norm")
    if m.ndim < 2 or groups < 1 or m.shape[1] % groups:
        raise ValueError(f"group_norm: {groups} groups do not divide the channels of an input of shape {list(m.shape)}")
    for r in rest:
        if r.shape != (m.shape[1],):
            raise ValueError(f"group_norm: weight and bias need shape [{m.shape[1]}], got {list(r.shape)}")
    return m


group_norm_op = OpDef(
    "group_norm",
    "composite",
    _group_infer,
    attrs=("groups", "eps", "affine"),
    vjp="auto",
    decompose=_group_norm,
    reference=_np_group_norm,
    dtypes=dt.FLOATING,
    samples=(
        Sample((Arg((2, 4, 3)), Arg((4,)), Arg((4,))), {"groups": 2, "eps": 1e-5, "affine": "wb"}),
        Sample((Arg((2, 6, 2, 2)),), {"groups": 3, "eps": 1e-5, "affine": ""}),
    ),
    failing=(Failing((Arg((2, 5, 3)),), {"groups": 2, "eps": 1e-5, "affine": ""}, ValueError, "groups"),),
    onnx="GroupNormalization",
    ulp=256,
    doc="Standardised over groups of channels and all places (Wu, He 2018, arXiv:1803.08494).",
)


@public(namespaces=("", "nn.functional"), method=False)
def group_norm(input: Any, num_groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-05) -> Any:
    """Standardised over each of ``num_groups`` groups of channels of (N, C, *), times ``weight`` (C) plus ``bias`` (C)."""
    given, affine = _given(weight, bias)
    return group_norm_op(input, *given, groups=int(num_groups), eps=float(eps), affine=affine)


# ------------------------------------------------------------------------------------------------------------- batch norm


def _batch_dims(ndim: int) -> tuple[int, ...]:
    return (0, *range(2, ndim))


def _batch_infer(x: Meta, *rest: Meta, eps: float, affine: str, running: bool) -> Any:
    """Results: the output, and with ``running`` the new running mean and variance."""
    check_floating(x, "batch_norm")
    if x.ndim < 2:
        raise ValueError(f"batch_norm: expected an input of at least 2 dimensions (N, C, *), got shape {list(x.shape)}")
    channels = x.shape[1]
    vectors = rest[:-1] if running else rest
    for m in vectors:
        if m.shape != (channels,):
            raise ValueError(
                f"batch_norm: an input of {channels} channels needs parameters of shape [{channels}], got {list(m.shape)}"
            )
    if x.numel == channels:
        raise ValueError(
            f"batch_norm: training needs two values or more of each channel, an input of shape {list(x.shape)} has one"
        )
    return (x, rest[-3], rest[-2]) if running else x


def _batch_norm(x: Any, *rest: Any, eps: float, affine: str, running: bool) -> Any:
    v = wide(x)
    shape = tuple(x.shape)
    dims, channels = _batch_dims(len(shape)), shape[1]
    y = narrow(_affine(standardize(v, dims=dims, eps=eps), rest, affine, _per_channel(len(shape), channels)), x)
    if not running:
        return y
    _, mean, var = _moments(v, dims)
    mean, var = shaped(mean, (channels,)), shaped(var, (channels,))
    old_mean, old_var, momentum = rest[-3:]
    n = math.prod(shape) // max(channels, 1)
    unbiased = add(var, div(var, count_of(n - 1)))  # var n / (n - 1)
    return y, _moved(old_mean, mean, momentum), _moved(old_var, unbiased, momentum)


def _moved(old: Any, new: Any, momentum: Any) -> Any:
    o, w = wide(old), to_dtype(momentum, old.dtype.compute)
    return narrow(add(mul(o, sub(1.0, w)), mul(to_dtype(new, o.dtype), w)), old)


def _np_batch_norm(x: Any, *rest: Any, eps: float, affine: str, running: bool) -> Any:
    dims = _batch_dims(x.ndim)
    y = _np_affine(_np_standardize(x, dims=dims, eps=eps), rest, affine, _per_channel(x.ndim, x.shape[1]))
    if not running:
        return y
    old_mean, old_var, w = rest[-3:]
    return y, old_mean * (1 - w) + x.mean(dims) * w, old_var * (1 - w) + x.var(dims, ddof=1) * w


batch_norm_train = OpDef(
    "batch_norm_train",
    "composite",
    _batch_infer,
    attrs=("eps", "affine", "running"),
    vjp="auto",
    decompose=_batch_norm,
    reference=_np_batch_norm,
    dtypes=dt.FLOATING,
    samples=(
        Sample(
            (Arg((4, 3, 5)), Arg((3,)), Arg((3,)), Arg((3,)), Arg((3,), (0.5, 2.0)), Arg((), (0.1, 0.2))),
            {"eps": 1e-5, "affine": "wb", "running": True},
        ),
        Sample((Arg((4, 3)),), {"eps": 1e-5, "affine": "", "running": False}),
    ),
    failing=(Failing((Arg((1, 3)),), {"eps": 1e-5, "affine": "", "running": False}, ValueError, "two values or more"),),
    onnx="BatchNormalization",
    ulp=256,
    doc="Standardised over all but the channels, times weight plus bias; and running statistics moved towards the "
    "batch's, the variance "
    "unbiased (Ioffe, Szegedy 2015, arXiv:1502.03167). Inputs: x, weight, bias, running mean, running variance, momentum.",
)


def _batch_norm_eval(x: Any, *rest: Any, eps: float, affine: str) -> Any:
    shape = tuple(x.shape)
    as_channel = _per_channel(len(shape), shape[1])
    v = wide(x)
    mean, var = [shaped(to_dtype(r, v.dtype), as_channel) for r in rest[-2:]]
    return narrow(_affine(mul(sub(v, mean), _rsqrt(add(var, eps))), rest, affine, as_channel), x)


def _np_batch_norm_eval(x: Any, *rest: Any, eps: float, affine: str) -> Any:
    shape = _per_channel(x.ndim, x.shape[1])
    mean, var = [r.reshape(shape) for r in rest[-2:]]
    return _np_affine((x - mean) / np.sqrt(var + eps), rest, affine, shape)


def _batch_eval_infer(x: Meta, *rest: Meta, eps: float, affine: str) -> Meta:
    check_floating(x, "batch_norm")
    for m in rest:
        if x.ndim < 2 or m.shape != (x.shape[1],):
            raise ValueError(f"batch_norm: an input of shape {list(x.shape)} does not fit parameters of shape {list(m.shape)}")
    return x


batch_norm_eval = OpDef(
    "batch_norm_eval",
    "composite",
    _batch_eval_infer,
    attrs=("eps", "affine"),
    vjp="auto",
    decompose=_batch_norm_eval,
    reference=_np_batch_norm_eval,
    dtypes=dt.FLOATING,
    samples=(
        Sample((Arg((4, 3, 5)), Arg((3,)), Arg((3,)), Arg((3,)), Arg((3,), (0.5, 2.0))), {"eps": 1e-5, "affine": "wb"}),
        Sample((Arg((4, 3)), Arg((3,)), Arg((3,), (0.5, 2.0))), {"eps": 1e-3, "affine": ""}),
    ),
    failing=(Failing((Arg((4, 3)), Arg((4,)), Arg((4,))), {"eps": 1e-3, "affine": ""}, ValueError, "does not fit"),),
    onnx="BatchNormalization",
    ulp=64,
    doc="Batch normalisation with given statistics. Inputs: x, weight, bias, running mean, running variance.",
)


@public(namespaces=("nn.functional",), method=False)
def batch_norm(
    input: Any,
    running_mean: Any = None,
    running_var: Any = None,
    weight: Any = None,
    bias: Any = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-05,
) -> Any:
    """Normalised per channel of (N, C, *): by the batch's statistics in training (running ones are moved in place), else by
    running ones.

    Raises:
        ValueError: in training with one value per channel; where shapes do not fit; without running statistics in evaluation.
    """
    given, affine = _given(weight, bias)
    if not training:
        if running_mean is None or running_var is None:
            raise ValueError("batch_norm: training=False normalises by running_mean and running_var; give both")
        return batch_norm_eval(input, *given, running_mean, running_var, eps=float(eps), affine=affine)
    if running_mean is None:
        return batch_norm_train(input, *given, eps=float(eps), affine=affine, running=False)
    from cermet.ops.define import hooks

    w = hooks.to_tensor(float(momentum), dtype=dt.float32, like=input)
    out, mean, var = batch_norm_train(input, *given, running_mean, running_var, w, eps=float(eps), affine=affine, running=True)
    for buffer, value in ((running_mean, mean), (running_var, var)):
        buffer._write(value.detach())
    return out


@public(namespaces=("nn.functional",), method=False)
def instance_norm(
    input: Any,
    running_mean: Any = None,
    running_var: Any = None,
    weight: Any = None,
    bias: Any = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-05,
) -> Any:
    """Normalised per sample and channel of (N, C, *), (Ulyanov et al. 2016, arXiv:1607.08022)."""
    if not use_input_stats:
        return batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
    shape = tuple(input.shape)
    if math.prod(shape[2:]) == 1:
        raise ValueError(
            f"instance_norm: training needs two places or more in each channel, an input of shape {list(shape)} has one"
        )
    if running_mean is not None:
        _move_instance_statistics(input, running_mean, running_var, momentum)
    return group_norm(input, shape[1], weight, bias, eps)


def _move_instance_statistics(x: Any, running_mean: Any, running_var: Any, momentum: float) -> None:
    """Towards the mean over samples of each sample's statistics."""
    v = wide(x.detach())
    dims = tuple(range(2, len(v.shape)))
    n = math.prod(v.shape[2:])
    _, mean, var = _moments(v, dims)
    channels = v.shape[1]
    for buffer, value in ((running_mean, mean), (running_var, mul(var, n / (n - 1)))):
        new = mean_of(shaped(value, (v.shape[0], channels)), 0)
        buffer._write(narrow(add(mul(buffer, 1 - momentum), mul(new, float(momentum))), buffer))


@public(namespaces=("nn.functional",), method=False)
def local_response_norm(input: Any, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> Any:
    """``x / (k + alpha mean of squares over size neighbouring channels) ** beta`` (Krizhevsky et al. 2012, section 3.3)."""
    from cermet.ops.composing import pad_with
    from cermet.ops.movement import windows
    from cermet.ops.reduction import reduce_sum

    n = len(input.shape)
    if n < 3:
        raise ValueError(f"local_response_norm: expected an input of 3 or more dimensions, got shape {list(input.shape)}")
    low = [size // 2 if d == 1 else 0 for d in range(n)]
    high = [(size - 1) // 2 if d == 1 else 0 for d in range(n)]
    near = windows(pad_with(mul(input, input), low, high), dim=1, size=size, step=1, dilation=1)
    mean = div(reduce_sum(near, dims=(n,), keepdim=False), count_of(size))
    return div(input, (mean * alpha + k) ** beta)


@public(namespaces=("nn.functional",), method=False)
def normalize(input: Any, p: float = 2.0, dim: Any = 1, eps: float = 1e-12) -> Any:
    """``x / max(norm_p(x), eps)`` along ``dim``."""
    from cermet.ops.public import PUBLIC

    norm = PUBLIC[("", "norm")].fn(input, p, dim, True)
    return div(input, PUBLIC[("", "clamp")].fn(norm, eps))
