"""Dropout. The mask is drawn from a key and a counter, so the gradient draws it again instead of storing it."""

from __future__ import annotations

import math
from typing import Any

from cermet import dtypes as dt
from cermet.graph.node import Meta
from cermet.ops.composing import inplace_or_new, narrow, wide
from cermet.ops.define import Arg, OpDef, Sample, hooks
from cermet.ops.elementwise import add, div, lt, mul, where
from cermet.ops.public import public
from cermet.ops.random import draw, random_uniform, uniform_op
from cermet.ops.support import check_floating, to_dtype, zeros_like_value


def _infer(x: Meta, key: Meta, offset: Meta, keep: Meta, *, mask: tuple[int, ...]) -> Meta:
    check_floating(x, "dropout")
    return x


def _decompose(x: Any, key: Any, offset: Any, keep: Any, *, mask: tuple[int, ...]) -> Any:
    """Kept elements are divided by the probability of keeping them (Srivastava et al. 2014)."""
    v = wide(x)
    chosen = lt(uniform_op(key, offset, shape=mask, dtype=dt.float32), to_dtype(keep, dt.float32))
    return narrow(where(chosen, div(v, to_dtype(keep, v.dtype)), zeros_like_value(v, ())), x)


_SCALAR = Arg((), (0, 1000), dt.int64)

dropout_op: OpDef = OpDef(
    "dropout",
    "composite",
    _infer,
    attrs=("mask",),
    vjp=lambda c, g: (dropout_op(g, c[1], c[2], c[3], mask=c.mask), None, None, None),
    saves=(1, 2, 3),
    decompose=_decompose,
    dtypes=dt.FLOATING,
    samples=(
        Sample((Arg((3, 4)), _SCALAR, _SCALAR, Arg((), (0.4, 0.9), dt.float32)), {"mask": (3, 4)}),
        Sample((Arg((3, 4, 5)), _SCALAR, _SCALAR, Arg((), (0.4, 0.9), dt.float32)), {"mask": (3, 4, 1)}),
    ),
    onnx="Dropout",
    doc="Elements zeroed at random. Inputs: x, key, first counter, probability of keeping; `mask` is the mask's "
    "shape, which broadcasts.",
)


def _check(name: str, p: float) -> float:
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"{name}: p={p}; a probability lies in [0, 1]")
    return float(p)


def _drop(name: str, x: Any, p: float, training: bool, inplace: bool, mask: tuple[int, ...]) -> Any:
    p = _check(name, p)
    if not training or p == 0.0 or 0 in x.shape:
        return x
    key, offset = draw(math.prod(mask))
    keep = hooks.to_tensor(1.0 - p, dtype=dt.float32, like=x)
    return inplace_or_new(x, dropout_op(x, key, offset, keep, mask=mask), inplace)


@public(namespaces=("nn.functional", ""), method=False, inplace=False)
def dropout(input: Any, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:
    """Each element is zeroed with probability ``p``, the rest divided by ``1 - p``; the input itself when not ``training``.

    Raises:
        ValueError: for ``p`` outside [0, 1].
    """
    return _drop("dropout", input, p, training, inplace, tuple(input.shape))


def _features(name: str, x: Any, n: int, p: float, training: bool, inplace: bool) -> Any:
    """Whole channels: (N, C, *) with ``n`` places, or (C, *) without a batch."""
    shape = tuple(x.shape)
    if len(shape) not in (n + 1, n + 2):
        raise ValueError(f"{name}: expected an input of {n + 1} or {n + 2} dimensions, got shape {list(shape)}")
    lead = len(shape) - n
    return _drop(name, x, p, training, inplace, (*shape[:lead], *[1] * n))


@public(namespaces=("nn.functional",), method=False)
def dropout1d(input: Any, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:
    """Whole channels of (N, C, L) or (C, L) zeroed with probability ``p``."""
    return _features("dropout1d", input, 1, p, training, inplace)


@public(namespaces=("nn.functional",), method=False)
def dropout2d(input: Any, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:
    """Whole channels of (N, C, H, W) or (C, H, W) zeroed with probability ``p`` (Tompson et al. 2014, arXiv:1411.4280)."""
    return _features("dropout2d", input, 2, p, training, inplace)


@public(namespaces=("nn.functional",), method=False)
def dropout3d(input: Any, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:
    """Whole channels of (N, C, D, H, W) or (C, D, H, W) zeroed with probability ``p``."""
    return _features("dropout3d", input, 3, p, training, inplace)


# The value that selu tends to for large negative inputs: -scale * alpha.
_SELU_LOW = -1.7580993408473766


def _alpha(name: str, x: Any, p: float, training: bool, inplace: bool, mask: tuple[int, ...]) -> Any:
    """Dropped elements take selu's lower limit; a linear map then restores mean 0 and variance 1 (Klambauer et al. 2017,
    appendix)."""
    p = _check(name, p)
    if not training or p == 0.0:
        return x
    q = 1.0 - p
    kept = lt(random_uniform(mask, dt.float32), q)
    if q == 0.0:
        return inplace_or_new(x, mul(x, 0.0), inplace)
    a = 1.0 / math.sqrt(q + _SELU_LOW**2 * q * p)
    low = add(zeros_like_value(x, ()), _SELU_LOW)
    return inplace_or_new(x, add(mul(where(kept, x, low), a), -a * _SELU_LOW * p), inplace)


@public(namespaces=("nn.functional", ""), method=False)
def alpha_dropout(input: Any, p: float = 0.5, training: bool = False, inplace: bool = False) -> Any:
    """Dropout that keeps the mean and variance of inputs to selu networks."""
    return _alpha("alpha_dropout", input, p, training, inplace, tuple(input.shape))


@public(namespaces=("nn.functional", ""), method=False)
def feature_alpha_dropout(input: Any, p: float = 0.5, training: bool = False, inplace: bool = False) -> Any:
    """`alpha_dropout` of whole channels of (N, C, *)."""
    shape = tuple(input.shape)
    return _alpha("feature_alpha_dropout", input, p, training, inplace, (*shape[:2], *[1] * (len(shape) - 2)))


@public(namespaces=("nn.functional",), method=False, inplace=True)
def rrelu(input: Any, lower: float = 1.0 / 8, upper: float = 1.0 / 3, training: bool = False, inplace: bool = False) -> Any:
    """The input where positive; elsewhere times a slope drawn from [lower, upper), or their mean when not ``training``."""
    if training:
        slope = add(mul(random_uniform(tuple(input.shape), input.dtype), upper - lower), lower)
    else:
        slope = (lower + upper) / 2
    zero = zeros_like_value(input, ())
    return inplace_or_new(input, where(lt(zero, input), input, mul(input, slope)), inplace)


@public(namespaces=("nn.functional",), method=False)
def gumbel_softmax(logits: Any, tau: float = 1, hard: bool = False, eps: float = 1e-10, dim: int = -1) -> Any:
    """A sample of the Gumbel-softmax distribution (Jang et al. 2016, arXiv:1611.01144); ``hard`` gives one-hot values with the
    soft ones'
    gradient."""
    from cermet.ops.activation import softmax
    from cermet.ops.mathematics import log
    from cermet.ops.random import exponential

    noise = mul(log(exponential(logits)), -1.0)
    soft = softmax(div(add(logits, noise), float(tau)), dim)
    if not hard:
        return soft
    from cermet.ops.support import index_value, wrap_dim

    d = wrap_dim(dim, len(soft.shape), "gumbel_softmax")
    best = soft.argmax(d, keepdim=True)
    one_hot = to_dtype(index_value(soft, tuple(soft.shape), d).eq(best), soft.dtype)
    return one_hot - soft.detach() + soft
