"""Losses between a prediction and a target of its shape. Each is one composite: element rule, weights, reduction.

Losses on class indices are in `cermet.ops.classification`, those on distances and margins in `cermet.ops.margins`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from cermet import dtypes as dt
from cermet.graph.node import Meta, broadcast_shapes
from cermet.ops.arithmetic import abs_, clamp_min
from cermet.ops.composing import mean_of, narrow, sum_of, wide
from cermet.ops.define import Arg, Failing, OpDef, Sample
from cermet.ops.elementwise import add, div, lt, mul, neg, sub, where
from cermet.ops.mathematics import exp, log, log1p, xlogy
from cermet.ops.public import public
from cermet.ops.support import check_floating, full_value, promote, zeros_like_value

_REDUCTIONS = ("mean", "sum", "none")


def check_reduction(reduction: str, name: str, size_average: Any = None, reduce: Any = None) -> str:
    """The reduction to use; PyTorch's old ``size_average`` and ``reduce`` still decide it where given.

    Raises:
        ValueError: for an unknown one.
    """
    if size_average is not None or reduce is not None:
        warnings.warn("size_average and reduce are old spellings; say reduction='mean', 'sum' or 'none' instead", stacklevel=4)
        if reduce is not None and not reduce:
            return "none"
        return "sum" if size_average is not None and not size_average else "mean"
    if reduction not in _REDUCTIONS:
        raise ValueError(f"{name}: reduction must be 'mean', 'sum' or 'none', got {reduction!r}")
    return reduction


def _common(name: str, metas: Sequence[Meta]) -> tuple[int, ...]:
    try:
        return broadcast_shapes(*[m.shape for m in metas])
    except ValueError as e:
        raise ValueError(f"{name}: input and target do not fit: {e}") from None


def pairwise_loss(
    name: str,
    element: Callable[..., Any],
    reference: Callable[..., Any],
    *,
    inputs: int = 2,
    attrs: Sequence[str] = (),
    values: dict[str, Any] | None = None,
    domains: Sequence[Any] = ((-3.0, 3.0), (-3.0, 3.0)),
    ulp: float = 64.0,
    doc: str = "",
) -> OpDef:
    """A composite of broadcast inputs: ``element`` of them (wide values), reduced as the attribute ``reduction`` says."""

    def infer(*metas: Meta, reduction: str, **_: Any) -> Meta:
        check_floating(metas[0], name)
        shape = _common(name, metas)
        return metas[0].with_shape(shape if reduction == "none" else ())

    def decompose(*xs: Any, reduction: str, **named: Any) -> Any:
        y = element(*[wide(x) for x in xs], **named)
        dims = tuple(range(len(y.shape)))
        if reduction != "none":
            y = mean_of(y, dims) if reduction == "mean" else sum_of(y, dims)
        return narrow(y, xs[0])

    def numpy_rule(*xs: Any, reduction: str, **named: Any) -> Any:
        y = reference(*xs, **named)
        return y if reduction == "none" else np.mean(y) if reduction == "mean" else np.sum(y)

    extra = dict(values or {})
    args = tuple(Arg((3, 4), d) for d in domains[:inputs])
    samples = tuple(Sample(args, {**extra, "reduction": r}) for r in _REDUCTIONS)
    return OpDef(
        name,
        "composite",
        infer,
        attrs=(*attrs, "reduction"),
        vjp="auto",
        decompose=decompose,
        reference=numpy_rule,
        dtypes=dt.FLOATING,
        samples=samples,
        ulp=ulp,
        doc=doc,
        failing=(Failing((Arg((3, 4)), Arg((5, 4)), *args[2:]), {**extra, "reduction": "mean"}, ValueError, "do not fit"),),
    )


def _warn_shapes(name: str, input: Any, target: Any) -> None:
    if tuple(input.shape) != tuple(target.shape):
        warnings.warn(
            f"{name}: the target's shape {list(target.shape)} differs from the input's {list(input.shape)}: they "
            "broadcast, which is "
            "seldom meant. Give them the same shape.",
            stacklevel=4,
        )


# ---------------------------------------------------------------------------------------------------------- differences


def _square(x: Any, y: Any) -> Any:
    d = sub(x, y)
    return mul(d, d)


mse_op = pairwise_loss("mse_loss", _square, lambda x, y: (x - y) ** 2, doc="Squared difference, reduced.")
l1_op = pairwise_loss("l1_loss", lambda x, y: abs_(sub(x, y)), lambda x, y: np.abs(x - y), doc="Absolute difference, reduced.")


def _smooth_l1(x: Any, y: Any, *, beta: float) -> Any:
    a = abs_(sub(x, y))
    return where(lt(a, beta), div(mul(mul(a, a), 0.5), beta), sub(a, 0.5 * beta)) if beta else a


def _np_smooth_l1(x: Any, y: Any, *, beta: float) -> Any:
    a = np.abs(x - y)
    return np.where(a < beta, 0.5 * a * a / beta, a - 0.5 * beta) if beta else a


smooth_l1_op = pairwise_loss(
    "smooth_l1_loss",
    _smooth_l1,
    _np_smooth_l1,
    attrs=("beta",),
    values={"beta": 1.5},
    doc="Squared below beta, linear beyond (Girshick 2015, arXiv:1504.08083).",
)


def _huber(x: Any, y: Any, *, delta: float) -> Any:
    a = abs_(sub(x, y))
    return where(lt(a, delta), mul(mul(a, a), 0.5), mul(sub(a, 0.5 * delta), delta))


huber_op = pairwise_loss(
    "huber_loss",
    _huber,
    lambda x, y, *, delta: np.where(np.abs(x - y) < delta, 0.5 * (x - y) ** 2, delta * (np.abs(x - y) - delta / 2)),
    attrs=("delta",),
    values={"delta": 1.5},
    doc="Half the square below delta, linear beyond (Huber 1964).",
)


def _difference_loss(op: OpDef, name: str, input: Any, target: Any, reduction: str, weight: Any = None, **attrs: Any) -> Any:
    _warn_shapes(name, input, target)
    x, y = promote(input, target)
    if weight is None:
        return op(x, y, reduction=reduction, **attrs)
    each = op(x, y, reduction="none", **attrs)
    return reduced(mul(*promote(each, weight)), reduction)


def reduced(x: Any, reduction: str) -> Any:
    """Mean, sum or the elements."""
    dims = tuple(range(len(x.shape)))
    return x if reduction == "none" else mean_of(x, dims) if reduction == "mean" else sum_of(x, dims)


@public(namespaces=("nn.functional",), method=False, autocast="float32")
def mse_loss(
    input: Any, target: Any, size_average: Any = None, reduce: Any = None, reduction: str = "mean", weight: Any = None
) -> Any:
    """Mean (or sum, or each) of the squared differences."""
    return _difference_loss(
        mse_op, "mse_loss", input, target, check_reduction(reduction, "mse_loss", size_average, reduce), weight
    )


@public(namespaces=("nn.functional",), method=False, autocast="float32")
def l1_loss(
    input: Any, target: Any, size_average: Any = None, reduce: Any = None, reduction: str = "mean", weight: Any = None
) -> Any:
    """Mean (or sum, or each) of the absolute differences."""
    return _difference_loss(l1_op, "l1_loss", input, target, check_reduction(reduction, "l1_loss", size_average, reduce), weight)


@public(namespaces=("nn.functional",), method=False, autocast="float32")
def smooth_l1_loss(
    input: Any, target: Any, size_average: Any = None, reduce: Any = None, reduction: str = "mean", beta: float = 1.0
) -> Any:
    """Half the square over ``beta`` for differences below it, linear beyond."""
    if beta < 0:
        raise ValueError(f"smooth_l1_loss: beta must not be negative, got {beta}")
    kind = check_reduction(reduction, "smooth_l1_loss", size_average, reduce)
    return _difference_loss(smooth_l1_op, "smooth_l1_loss", input, target, kind, beta=float(beta))


@public(namespaces=("nn.functional",), method=False, autocast="float32")
def huber_loss(input: Any, target: Any, reduction: str = "mean", delta: float = 1.0, weight: Any = None) -> Any:
    """Half the square for differences below ``delta``, linear beyond."""
    if delta <= 0:
        raise ValueError(f"huber_loss: delta must be positive, got {delta}")
    return _difference_loss(
        huber_op, "huber_loss", input, target, check_reduction(reduction, "huber_loss"), weight, delta=float(delta)
    )


# ------------------------------------------------------------------------------------------------------- cross entropies


def _bce(p: Any, t: Any) -> Any:
    """Logarithms are limited from below by -100, as in PyTorch, so that p of 0 or 1 gives a finite loss."""
    low = lambda v: clamp_min(v, full_value(v, -100.0, ()))
    return neg(add(mul(t, low(log(p))), mul(sub(1.0, t), low(log1p(neg(p))))))


bce_op = pairwise_loss(
    "binary_cross_entropy",
    _bce,
    lambda p, t: -(t * np.maximum(np.log(p), -100) + (1 - t) * np.maximum(np.log1p(-p), -100)),
    domains=((0.05, 0.95), (0.0, 1.0)),
    doc="-(t log p + (1 - t) log(1 - p)).",
)


def _bce_logits(x: Any, t: Any) -> Any:
    """max(x, 0) - x t + log(1 + exp(-|x|))."""
    zero = zeros_like_value(x, ())
    return add(sub(clamp_min(x, zero), mul(x, t)), log1p(exp(neg(abs_(x)))))


def _bce_logits_weighted(x: Any, t: Any, pos: Any) -> Any:
    """(1 - t) x + (1 + (pos - 1) t) log(1 + exp(-x))."""
    softplus = add(log1p(exp(neg(abs_(x)))), clamp_min(neg(x), zeros_like_value(x, ())))
    return add(mul(sub(1.0, t), x), mul(add(mul(sub(pos, 1.0), t), 1.0), softplus))


bce_logits_op = pairwise_loss(
    "binary_cross_entropy_with_logits",
    _bce_logits,
    lambda x, t: np.maximum(x, 0) - x * t + np.log1p(np.exp(-np.abs(x))),
    domains=((-5.0, 5.0), (0.0, 1.0)),
    doc="Binary cross entropy of sigmoid(x), without overflow.",
)
bce_logits_weighted_op = pairwise_loss(
    "binary_cross_entropy_with_logits_weighted",
    _bce_logits_weighted,
    lambda x, t, p: (1 - t) * x + (1 + (p - 1) * t) * (np.log1p(np.exp(-np.abs(x))) + np.maximum(-x, 0)),
    inputs=3,
    domains=((-5.0, 5.0), (0.0, 1.0), (0.5, 3.0)),
    doc="Binary cross entropy of sigmoid(x) with weights for the positive class.",
)


@public(namespaces=("nn.functional",), method=False, autocast="float32")
def binary_cross_entropy(
    input: Any, target: Any, weight: Any = None, size_average: Any = None, reduce: Any = None, reduction: str = "mean"
) -> Any:
    """``-(t log p + (1 - t) log(1 - p))`` of probabilities, times ``weight``.

    Raises:
        ValueError: where the target's shape differs.
    """
    _same_shape("binary_cross_entropy", input, target)
    kind = check_reduction(reduction, "binary_cross_entropy", size_average, reduce)
    x, y = promote(input, target)
    if weight is None:
        return bce_op(x, y, reduction=kind)
    return reduced(mul(*promote(bce_op(x, y, reduction="none"), weight)), kind)


def _same_shape(name: str, input: Any, target: Any) -> None:
    if tuple(input.shape) != tuple(target.shape):
        raise ValueError(f"{name}: the target has shape {list(target.shape)}, the input {list(input.shape)}; they must be equal")


@public(namespaces=("", "nn.functional"), method=False, autocast="float32")
def binary_cross_entropy_with_logits(
    input: Any,
    target: Any,
    weight: Any = None,
    size_average: Any = None,
    reduce: Any = None,
    reduction: str = "mean",
    pos_weight: Any = None,
) -> Any:
    """Binary cross entropy of sigmoid(input) without overflow.

    Args:
        weight: multiplies each element. pos_weight: multiplies the positive term, per class.

    Raises:
        ValueError: where the target's shape differs.
    """
    _same_shape("binary_cross_entropy_with_logits", input, target)
    kind = check_reduction(reduction, "binary_cross_entropy_with_logits", size_average, reduce)
    x, y = promote(input, target)
    first = kind if weight is None else "none"
    if pos_weight is None:
        out = bce_logits_op(x, y, reduction=first)
    else:
        out = bce_logits_weighted_op(x, y, promote(x, pos_weight)[1], reduction=first)
    return out if weight is None else reduced(mul(*promote(out, weight)), kind)


# ---------------------------------------------------------------------------------------------------------- likelihoods

kl_op = pairwise_loss(
    "kl_div",
    lambda x, t: sub(xlogy(t, t), mul(t, x)),
    lambda x, t: np.where(t > 0, t * np.log(np.where(t > 0, t, 1)), 0) - t * x,
    domains=((-3.0, 0.0), (0.1, 1.0)),
    doc="t (log t - x) for log-probabilities x and probabilities t.",
)
kl_log_op = pairwise_loss(
    "kl_div_log",
    lambda x, t: mul(exp(t), sub(t, x)),
    lambda x, t: np.exp(t) * (t - x),
    domains=((-3.0, 0.0), (-3.0, 0.0)),
    doc="exp(t) (t - x) for log-probabilities x and t.",
)


@public(namespaces=("", "nn.functional"), method=False, autocast="float32")
def kl_div(
    input: Any, target: Any, size_average: Any = None, reduce: Any = None, reduction: str = "mean", log_target: bool = False
) -> Any:
    """Divergence of target from input (log-probabilities); ``reduction="batchmean"`` divides the sum by the batch size, which is
    the
    mathematical definition."""
    op = kl_log_op if log_target else kl_op
    x, t = promote(input, target)
    if reduction == "batchmean":
        return div(op(x, t, reduction="sum"), float(max(x.shape[0] if len(x.shape) else 1, 1)))
    kind = check_reduction(reduction, "kl_div", size_average, reduce)
    if kind == "mean":
        warnings.warn(
            "kl_div: reduction='mean' divides by all elements; use 'batchmean' for the mathematical definition", stacklevel=3
        )
    return op(x, t, reduction=kind)


def _stirling(t: Any) -> Any:
    """T log t - t + log(2 pi t) / 2 for t above 1, else 0."""
    one = full_value(t, 1.0, ())
    safe = where(lt(one, t), t, one)
    value = add(sub(mul(safe, log(safe)), safe), mul(log(mul(safe, 2 * math.pi)), 0.5))
    return where(lt(one, t), value, zeros_like_value(t, ()))


def _poisson(x: Any, t: Any, *, log_input: bool, full: bool, eps: float) -> Any:
    out = sub(exp(x), mul(t, x)) if log_input else sub(x, mul(t, log(add(x, eps))))
    return add(out, _stirling(t)) if full else out


def _np_poisson(x: Any, t: Any, *, log_input: bool, full: bool, eps: float) -> Any:
    out = np.exp(x) - t * x if log_input else x - t * np.log(x + eps)
    safe = np.where(t > 1, t, 1)
    return out + np.where(t > 1, safe * np.log(safe) - safe + 0.5 * np.log(2 * np.pi * safe), 0) if full else out


poisson_op = pairwise_loss(
    "poisson_nll_loss",
    _poisson,
    _np_poisson,
    attrs=("log_input", "full", "eps"),
    values={"log_input": True, "full": True, "eps": 1e-8},
    domains=((-2.0, 2.0), (0.0, 5.0)),
    doc="exp(x) - t x, or x - t log(x + eps); with full, Stirling's term.",
)


@public(namespaces=("", "nn.functional"), method=False, autocast="float32")
def poisson_nll_loss(
    input: Any,
    target: Any,
    log_input: bool = True,
    full: bool = False,
    size_average: Any = None,
    eps: float = 1e-8,
    reduce: Any = None,
    reduction: str = "mean",
) -> Any:
    """Negative log likelihood of counts under a Poisson distribution with (log-)rate ``input``."""
    kind = check_reduction(reduction, "poisson_nll_loss", size_average, reduce)
    return poisson_op(*promote(input, target), log_input=bool(log_input), full=bool(full), eps=float(eps), reduction=kind)


def _gaussian(x: Any, t: Any, v: Any, *, full: bool, eps: float) -> Any:
    # The limit does not take part in the gradient: v itself gets it, as in PyTorch.
    low = full_value(v, eps, ())
    safe = where(lt(v, low), add(sub(v, v), low), v)
    d = sub(x, t)
    out = mul(add(log(safe), div(mul(d, d), safe)), 0.5)
    return add(out, 0.5 * math.log(2 * math.pi)) if full else out


gaussian_op = pairwise_loss(
    "gaussian_nll_loss",
    _gaussian,
    lambda x, t, v, *, full, eps: (
        0.5 * (np.log(np.maximum(v, eps)) + (x - t) ** 2 / np.maximum(v, eps)) + full * 0.5 * math.log(2 * math.pi)
    ),
    inputs=3,
    attrs=("full", "eps"),
    values={"full": True, "eps": 1e-6},
    domains=((-3.0, 3.0), (-3.0, 3.0), (0.5, 2.0)),
    doc="(log v + (x - t)^2 / v) / 2 with v at least eps (Nix, Weigend 1994).",
)


@public(namespaces=("nn.functional",), method=False, autocast="float32")
def gaussian_nll_loss(input: Any, target: Any, var: Any, full: bool = False, eps: float = 1e-6, reduction: str = "mean") -> Any:
    """Negative log likelihood under normal distributions with mean ``input`` and variance ``var`` (a number, of the input's
    shape, or
    one per sample)."""
    kind = check_reduction(reduction, "gaussian_nll_loss")
    if isinstance(var, float | int):
        if var < 0:
            raise ValueError(f"gaussian_nll_loss: var must not be negative, got {var}")
        var = full_value(input, float(var), tuple(input.shape))
    elif tuple(var.shape) == tuple(input.shape[:-1]):
        var = var.unsqueeze(-1)
    return gaussian_op(*promote(input, target, var), full=bool(full), eps=float(eps), reduction=kind)
