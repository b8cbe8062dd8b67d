"""Activations. Most are composites: one recorded node, differentiated through its decomposition, computed in float32 for 16-bit
floats.

Functions of analysis (exp, tanh, erf, sigmoid ...) come from `cermet.ops.mathematics`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from cermet import dtypes as dt
from cermet.graph.node import Meta
from cermet.ops.composing import inplace_or_new, maximum_of, narrow, sum_of, wide
from cermet.ops.define import OUT, Arg, Failing, OpDef, Sample
from cermet.ops.elementwise import add, div, ge, gt, le, lt, mul, neg, sub, where
from cermet.ops.public import public
from cermet.ops.support import check_floating, floating, wrap_dim, zeros_like_value

SQRT_HALF = math.sqrt(0.5)
_SHAPES: tuple[tuple[int, ...], ...] = ((), (7,), (3, 4), (2, 0), (2, 3, 5))


def _math() -> Any:
    from cermet.ops import mathematics

    return mathematics


def zero_of(x: Any) -> Any:
    """A 0-dimensional zero beside ``x``."""
    return zeros_like_value(x, ())


def composite_activation(
    name: str,
    decompose: Callable[..., Any],
    reference: Callable[..., Any],
    *,
    attrs: Sequence[str] = (),
    values: Sequence[dict[str, Any]] = ({},),
    domain: Any = (-3.0, 3.0),
    ulp: float = 16.0,
    onnx: str | None = None,
    doc: str = "",
) -> OpDef:
    """A composite of one floating input that keeps its shape and dtype; ``decompose`` sees float32 where the input is a 16-bit
    float."""

    def infer(m: Meta, **_: Any) -> Meta:
        check_floating(m, name)
        return m

    def widened(x: Any, **named: Any) -> Any:
        return narrow(decompose(wide(x), **named), x)

    samples = tuple(Sample((Arg(shape, domain),), dict(values[k % len(values)])) for k, shape in enumerate(_SHAPES))
    return OpDef(
        name,
        "composite",
        infer,
        attrs=attrs,
        vjp="auto",
        decompose=widened,
        reference=reference,
        dtypes=dt.FLOATING,
        samples=samples,
        failing=(Failing((Arg((3,), (0, 5), dt.int64),), dict(values[0]), TypeError, "floating"),),
        onnx=onnx,
        ulp=ulp,
        doc=doc,
    )


# ------------------------------------------------------------------------------------------------------------ piecewise

relu_op: OpDef = OpDef(
    "relu",
    "elementwise",
    lambda m: m,
    vjp=lambda c, g: where(gt(c.out, zero_of(c.out)), g, zero_of(g)),
    saves=(OUT,),
    lower=lambda b, x: b.max(x, 0),
    reference=lambda x: np.where(np.isnan(x), x, np.maximum(x, 0)),
    dtypes=(*dt.INTEGRAL, *dt.FLOATING),
    samples=tuple(Sample((Arg(shape, "distinct"),)) for shape in _SHAPES),
    onnx="Relu",
    ulp=0,
    doc="max(x, 0); NaN stays.",
)

leaky_relu_op = composite_activation(
    "leaky_relu",
    lambda x, *, slope: where(gt(x, zero_of(x)), x, mul(x, slope)),
    lambda x, *, slope: np.where(x > 0, x, x * slope),
    attrs=("slope",),
    values=({"slope": 0.01}, {"slope": 0.3}),
    onnx="LeakyRelu",
    doc="x where positive, slope * x elsewhere.",
)

hardtanh_op = composite_activation(
    "hardtanh",
    lambda x, *, low, high: where(lt(x, low), add(zero_of(x), low), where(gt(x, high), add(zero_of(x), high), x)),
    lambda x, *, low, high: np.clip(x, low, high),
    attrs=("low", "high"),
    values=({"low": -1.0, "high": 1.0}, {"low": 0.0, "high": 6.0}),
    onnx="Clip",
    doc="x limited to [low, high].",
)

hardsigmoid_op = composite_activation(
    "hardsigmoid",
    lambda x: hardtanh_op(add(div(x, 6.0), 0.5), low=0.0, high=1.0),
    lambda x: np.clip(x / 6 + 0.5, 0, 1),
    domain=(-4.0, 4.0),
    onnx="HardSigmoid",
    doc="x / 6 + 1/2 limited to [0, 1].",
)

hardswish_op = composite_activation(
    "hardswish",
    lambda x: mul(x, hardtanh_op(add(div(x, 6.0), 0.5), low=0.0, high=1.0)),
    lambda x: x * np.clip(x / 6 + 0.5, 0, 1),
    domain=(-4.0, 4.0),
    onnx="HardSwish",
    doc="x * hardsigmoid(x) (Howard et al. 2019, arXiv:1905.02244).",
)

threshold_op = composite_activation(
    "threshold",
    lambda x, *, threshold, value: where(gt(x, threshold), x, add(zero_of(x), value)),
    lambda x, *, threshold, value: np.where(x > threshold, x, value),
    attrs=("threshold", "value"),
    values=({"threshold": 0.1, "value": 20.0}, {"threshold": -1.05, "value": 0.0}),
    doc="x where above the threshold, value elsewhere.",
)

hardshrink_op = composite_activation(
    "hardshrink",
    lambda x, *, lambd: where(ge(x, -lambd), where(le(x, lambd), zero_of(x), x), x),
    lambda x, *, lambd: np.where((x >= -lambd) & (x <= lambd), 0, x),
    attrs=("lambd",),
    values=({"lambd": 0.5},),
    onnx="Shrink",
    doc="0 within [-lambd, lambd], x elsewhere.",
)

softshrink_op = composite_activation(
    "softshrink",
    lambda x, *, lambd: where(gt(x, lambd), sub(x, lambd), where(lt(x, -lambd), add(x, lambd), mul(x, 0.0))),
    lambda x, *, lambd: np.where(x > lambd, x - lambd, np.where(x < -lambd, x + lambd, 0 * x)),
    attrs=("lambd",),
    values=({"lambd": 0.5},),
    onnx="Shrink",
    doc="x moved towards 0 by lambd.",
)

# --------------------------------------------------------------------------------------------------------------- smooth


def _erf(x: Any) -> Any:
    return np.vectorize(math.erf, otypes=[np.float64])(x) if np.size(x) else np.asarray(x, np.float64)


def _gelu(x: Any, *, approximate: str) -> Any:
    m = _math()
    if approximate == "tanh":
        inner = mul(mul(x, add(mul(mul(x, x), 0.044715), 1.0)), math.sqrt(2 / math.pi))
        return mul(mul(x, 0.5), add(m.tanh(inner), 1.0))
    return mul(mul(x, 0.5), add(m.erf(mul(x, SQRT_HALF)), 1.0))


def _gelu_reference(x: Any, *, approximate: str) -> Any:
    if approximate == "tanh":
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return 0.5 * x * (1 + _erf(x * SQRT_HALF))


gelu_op = composite_activation(
    "gelu",
    _gelu,
    _gelu_reference,
    attrs=("approximate",),
    values=({"approximate": "none"}, {"approximate": "tanh"}),
    onnx="Gelu",
    ulp=64,
    doc="x Phi(x) with the normal distribution's Phi, or its tanh approximation (Hendrycks, Gimpel 2016, arXiv:1606.08415).",
)


def _np_sigmoid(x: Any) -> Any:
    return np.where(x >= 0, 1 / (1 + np.exp(-np.abs(x))), np.exp(-np.abs(x)) / (1 + np.exp(-np.abs(x))))


silu_op = composite_activation(
    "silu",
    lambda x: mul(x, _math().sigmoid(x)),
    lambda x: x * _np_sigmoid(x),
    doc="x sigmoid(x), also called swish (Elfwing et al. 2017, arXiv:1702.03118).",
)


def _log1p_exp(x: Any) -> Any:
    """log(1 + exp(x)) without overflow: max(x, 0) + log1p(exp(-|x|))."""
    m = _math()
    positive = gt(x, zero_of(x))
    return add(where(positive, x, zero_of(x)), m.log1p(m.exp(where(positive, neg(x), x))))


softplus_op = composite_activation(
    "softplus",
    lambda x, *, beta, threshold: where(gt(mul(x, beta), threshold), x, div(_log1p_exp(mul(x, beta)), beta)),
    lambda x, *, beta, threshold: np.where(x * beta > threshold, x, np.logaddexp(0, x * beta) / beta),
    attrs=("beta", "threshold"),
    values=({"beta": 1.0, "threshold": 20.0}, {"beta": 2.0, "threshold": 3.0}),
    onnx="Softplus",
    doc="log(1 + exp(beta x)) / beta; x itself where beta x passes the threshold.",
)

mish_op = composite_activation(
    "mish",
    lambda x: mul(x, _math().tanh(_log1p_exp(x))),
    lambda x: x * np.tanh(np.logaddexp(0, x)),
    ulp=64,
    onnx="Mish",
    doc="x tanh(softplus(x)) (Misra 2019, arXiv:1908.08681).",
)

logsigmoid_op = composite_activation(
    "logsigmoid", lambda x: neg(_log1p_exp(neg(x))), lambda x: -np.logaddexp(0, -x), doc="log(sigmoid(x)) without underflow."
)


def _elu(x: Any, *, alpha: float, scale: float, input_scale: float) -> Any:
    # exp of the negative part alone: where() sends a zero gradient into an overflowed branch, and 0 * inf is NaN.
    zero = zero_of(x)
    positive = gt(x, zero)
    low = where(positive, zero, x)
    return where(positive, mul(x, scale), mul(_math().expm1(mul(low, input_scale)), alpha * scale))


elu_op = composite_activation(
    "elu",
    _elu,
    lambda x, *, alpha, scale, input_scale: np.where(x > 0, x * scale, np.expm1(np.minimum(x, 0) * input_scale) * alpha * scale),
    attrs=("alpha", "scale", "input_scale"),
    values=(
        {"alpha": 1.0, "scale": 1.0, "input_scale": 1.0},
        {"alpha": 1.6732632423543772, "scale": 1.0507009873554805, "input_scale": 1.0},
        {"alpha": 0.5, "scale": 1.0, "input_scale": 2.0},
    ),
    onnx="Elu",
    doc="scale * x where positive, scale * alpha * (exp(input_scale * x) - 1) elsewhere.",
)

softsign_op = composite_activation(
    "softsign",
    lambda x: div(x, add(where(lt(x, zero_of(x)), neg(x), x), 1.0)),
    lambda x: x / (1 + np.abs(x)),
    onnx="Softsign",
    doc="x / (1 + |x|).",
)

tanhshrink_op = composite_activation(
    "tanhshrink", lambda x: sub(x, _math().tanh(x)), lambda x: x - np.tanh(x), ulp=4096, doc="x - tanh(x)."
)


# -------------------------------------------------------------------------------------------------------------- softmax


def _row_infer(name: str) -> Callable[..., Meta]:
    def infer(m: Meta, *rest: Meta, dim: int) -> Meta:
        check_floating(m, name)
        if m.ndim and not 0 <= dim < m.ndim:
            raise IndexError(f"{name}: dim {dim} is out of range for {m.ndim} dimensions")
        return m

    return infer


def _shifted(x: Any, dim: int) -> Any:
    """The input minus its maximum along dim, so that exp cannot overflow. Rows of -inf alone give NaN, as in PyTorch."""
    return sub(x, maximum_of(x, dim, True))


def _softmax(x: Any, *, dim: int) -> Any:
    if 0 in x.shape or not x.shape:
        return add(mul(x, 0.0), 1.0)
    e = _math().exp(_shifted(wide(x), dim))
    return narrow(div(e, sum_of(e, dim, True)), x)


def _log_softmax(x: Any, *, dim: int) -> Any:
    if 0 in x.shape or not x.shape:
        return mul(x, 0.0)
    m = _math()
    d = _shifted(wide(x), dim)
    return narrow(sub(d, m.log(sum_of(m.exp(d), dim, True))), x)


def _softmax_grad(g: Any, out: Any, *, dim: int) -> Any:
    p, d = wide(out), wide(g)
    if not g.shape:
        return mul(g, 0.0)
    return narrow(mul(p, sub(d, sum_of(mul(d, p), dim, True))), g)


def _log_softmax_grad(g: Any, out: Any, *, dim: int) -> Any:
    d = wide(g)
    if not g.shape:
        return mul(g, 0.0)
    return narrow(sub(d, mul(_math().exp(wide(out)), sum_of(d, dim, True))), g)


def _np_softmax(x: Any, *, dim: int) -> Any:
    if x.size == 0 or x.ndim == 0:
        return np.ones_like(x)
    e = np.exp(x - x.max(dim, keepdims=True))
    return e / e.sum(dim, keepdims=True)


def _np_log_softmax(x: Any, *, dim: int) -> Any:
    if x.size == 0 or x.ndim == 0:
        return np.zeros_like(x)
    d = x - x.max(dim, keepdims=True)
    return d - np.log(np.exp(d).sum(dim, keepdims=True))


_ROWS = tuple(
    Sample((Arg(s),), {"dim": d}) for s, d in (((3, 4), 1), ((3, 4), 0), ((2, 3, 5), 1), ((2, 0), 1), ((0, 3), 1), ((7,), 0))
)
_PAIRS = tuple(Sample((*s.args, *s.args), s.attrs) for s in _ROWS)

softmax_grad = OpDef(
    "softmax_grad",
    "composite",
    _row_infer("softmax"),
    attrs=("dim",),
    vjp="auto",
    decompose=_softmax_grad,
    reference=lambda g, p, *, dim: p * (g - (g * p).sum(dim, keepdims=True)),
    dtypes=dt.FLOATING,
    samples=_PAIRS,
    ulp=64,
    doc="The gradient of softmax from its result: p (g - sum(g p)).",
)
log_softmax_grad = OpDef(
    "log_softmax_grad",
    "composite",
    _row_infer("log_softmax"),
    attrs=("dim",),
    vjp="auto",
    decompose=_log_softmax_grad,
    reference=lambda g, y, *, dim: g - np.exp(y) * g.sum(dim, keepdims=True),
    dtypes=dt.FLOATING,
    samples=_PAIRS,
    ulp=64,
    doc="The gradient of log_softmax from its result: g - exp(y) sum(g).",
)
softmax_op: OpDef = OpDef(
    "softmax",
    "composite",
    _row_infer("softmax"),
    attrs=("dim",),
    vjp=lambda c, g: softmax_grad(g, c.out, dim=c.dim),
    saves=(OUT,),
    decompose=_softmax,
    reference=_np_softmax,
    dtypes=dt.FLOATING,
    samples=_ROWS,
    onnx="Softmax",
    ulp=16,
    doc="exp(x) over its sum along dim, with the maximum subtracted first.",
)
log_softmax_op: OpDef = OpDef(
    "log_softmax",
    "composite",
    _row_infer("log_softmax"),
    attrs=("dim",),
    vjp=lambda c, g: log_softmax_grad(g, c.out, dim=c.dim),
    saves=(OUT,),
    decompose=_log_softmax,
    reference=_np_log_softmax,
    dtypes=dt.FLOATING,
    samples=_ROWS,
    onnx="LogSoftmax",
    ulp=32,
    doc="The logarithm of softmax along dim, in one piece.",
)


# --------------------------------------------------------------------------------------------------------------- public


def _given_dim(dim: Any, ndim: int, name: str) -> int:
    """PyTorch's rule for a missing dim: 0 for 0, 1 and 3 dimensions, else 1."""
    if dim is None:
        dim = 0 if ndim in (0, 1, 3) else 1
    return wrap_dim(dim, ndim, name)


def _typed(x: Any, dtype: Any) -> Any:
    return floating(x) if dtype is None else x.to(dtype)


@public(namespaces=("", "nn.functional"))
def softmax(input: Any, dim: int | None = None, dtype: Any = None, _stacklevel: int = 3) -> Any:
    """exp(x) over its sum along ``dim``; ``dtype`` converts the input first."""
    return softmax_op(_typed(input, dtype), dim=_given_dim(dim, len(input.shape), "softmax"))


@public(namespaces=("", "nn.functional"))
def log_softmax(input: Any, dim: int | None = None, dtype: Any = None, _stacklevel: int = 3) -> Any:
    """The logarithm of softmax along ``dim``, accurate where the probabilities underflow."""
    return log_softmax_op(_typed(input, dtype), dim=_given_dim(dim, len(input.shape), "log_softmax"))


@public(namespaces=("nn.functional",), method=False)
def softmin(input: Any, dim: int | None = None, dtype: Any = None, _stacklevel: int = 3) -> Any:
    """The softmax of -x."""
    return softmax(neg(floating(input)), dim, dtype)


@public(namespaces=("", "nn.functional"), inplace=True)
def relu(input: Any, inplace: bool = False) -> Any:
    """max(x, 0)."""
    return inplace_or_new(input, relu_op(input), inplace)


@public(namespaces=("nn.functional",), method=False)
def relu6(input: Any, inplace: bool = False) -> Any:
    """The input limited to [0, 6]."""
    return inplace_or_new(input, hardtanh_op(input, low=0.0, high=6.0), inplace)


@public(namespaces=("nn.functional",), method=False, inplace=True)
def leaky_relu(input: Any, negative_slope: float = 0.01, inplace: bool = False) -> Any:
    """The input where positive, ``negative_slope * x`` elsewhere."""
    return inplace_or_new(input, leaky_relu_op(input, slope=float(negative_slope)), inplace)


@public(namespaces=("nn.functional",), method=False, inplace=True)
def hardtanh(input: Any, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Any:
    """The input limited to [min_val, max_val].

    Raises:
        ValueError: where min_val is larger than max_val.
    """
    if min_val > max_val:
        raise ValueError(f"hardtanh: min_val {min_val} is larger than max_val {max_val}")
    return inplace_or_new(input, hardtanh_op(input, low=float(min_val), high=float(max_val)), inplace)


@public(namespaces=("nn.functional",), method=False)
def hardsigmoid(input: Any, inplace: bool = False) -> Any:
    """``x / 6 + 1/2 limited to [0, 1]``."""
    return inplace_or_new(input, hardsigmoid_op(input), inplace)


@public(namespaces=("nn.functional",), method=False)
def hardswish(input: Any, inplace: bool = False) -> Any:
    """``x * hardsigmoid(x)``."""
    return inplace_or_new(input, hardswish_op(input), inplace)


@public(namespaces=("", "nn.functional"), method=False, inplace=True)
def threshold(input: Any, threshold: float, value: float, inplace: bool = False) -> Any:
    """The input where above ``threshold``, ``value`` elsewhere."""
    return inplace_or_new(input, threshold_op(input, threshold=float(threshold), value=float(value)), inplace)


@public(namespaces=("", "nn.functional"))
def hardshrink(input: Any, lambd: float = 0.5) -> Any:
    """0 within [-lambd, lambd], x elsewhere."""
    return hardshrink_op(input, lambd=float(lambd))


@public(namespaces=("nn.functional",), method=False)
def softshrink(input: Any, lambd: float = 0.5) -> Any:
    """The input moved towards 0 by ``lambd``.

    Raises:
        RuntimeError: for a negative ``lambd``.
    """
    if lambd < 0:
        raise RuntimeError(f"softshrink: lambd must be 0 or more, got {lambd}")
    return softshrink_op(input, lambd=float(lambd))


@public(namespaces=("nn.functional",), method=False)
def gelu(input: Any, approximate: str = "none") -> Any:
    """``x Phi(x)``; ``approximate="tanh"`` uses the tanh formula.

    Raises:
        ValueError: for any other ``approximate``.
    """
    if approximate not in ("none", "tanh"):
        raise ValueError(f"gelu: approximate must be 'none' or 'tanh', got {approximate!r}")
    return gelu_op(input, approximate=approximate)


@public(namespaces=("nn.functional",), method=False)
def silu(input: Any, inplace: bool = False) -> Any:
    """``x sigmoid(x)``."""
    return inplace_or_new(input, silu_op(input), inplace)


@public(namespaces=("nn.functional",), method=False)
def mish(input: Any, inplace: bool = False) -> Any:
    """``x tanh(softplus(x))``."""
    return inplace_or_new(input, mish_op(input), inplace)


@public(namespaces=("nn.functional",), method=False)
def softplus(input: Any, beta: float = 1.0, threshold: float = 20.0) -> Any:
    """log(1 + exp(beta x)) / beta; x itself where beta x is above ``threshold``."""
    return softplus_op(input, beta=float(beta), threshold=float(threshold))


@public(namespaces=("nn.functional",), method=False)
def logsigmoid(input: Any) -> Any:
    """log(sigmoid(x))."""
    return logsigmoid_op(input)


@public(namespaces=("nn.functional",), method=False, inplace=True)
def elu(input: Any, alpha: float = 1.0, inplace: bool = False) -> Any:
    """The input where positive, alpha (exp(x) - 1) elsewhere (Clevert et al. 2015, arXiv:1511.07289)."""
    return inplace_or_new(input, elu_op(input, alpha=float(alpha), scale=1.0, input_scale=1.0), inplace)


@public(namespaces=("", "nn.functional"), method=False, inplace=True)
def celu(input: Any, alpha: float = 1.0, inplace: bool = False) -> Any:
    """The input where positive, alpha (exp(x / alpha) - 1) elsewhere (Barron 2017, arXiv:1704.07483)."""
    if alpha == 0:
        raise RuntimeError("celu: alpha must not be 0")
    return inplace_or_new(input, elu_op(input, alpha=float(alpha), scale=1.0, input_scale=1.0 / alpha), inplace)


@public(namespaces=("", "nn.functional"), method=False, inplace=True)
def selu(input: Any, inplace: bool = False) -> Any:
    """Scaled elu that keeps mean 0 and variance 1 (Klambauer et al. 2017, arXiv:1706.02515)."""
    out = elu_op(input, alpha=1.6732632423543772848170429916717, scale=1.0507009873554804934193349852946, input_scale=1.0)
    return inplace_or_new(input, out, inplace)


@public(namespaces=("nn.functional",), method=False)
def softsign(input: Any) -> Any:
    """``x / (1 + |x|)``."""
    return softsign_op(floating(input))


@public(namespaces=("nn.functional",), method=False)
def tanhshrink(input: Any) -> Any:
    """``x - tanh(x)``."""
    return tanhshrink_op(floating(input))


@public(namespaces=("", "nn.functional"))
def prelu(input: Any, weight: Any) -> Any:
    """The input where positive, ``weight * x`` elsewhere, with one weight or one per channel (dimension 1)."""
    n = 1
    for s in weight.shape:
        n *= s
    ndim = len(input.shape)
    if n != 1 and (ndim < 2 or input.shape[1] != n):
        raise RuntimeError(f"prelu: {n} weights do not fit an input of shape {list(input.shape)}; expected 1, or one per channel")
    from cermet.ops.composing import shaped

    w = shaped(weight, () if n == 1 else (n, *[1] * (ndim - 2)))
    return where(gt(input, zero_of(input)), input, mul(input, w))


@public(namespaces=("nn.functional",), method=False)
def glu(input: Any, dim: int = -1) -> Any:
    """The first half along ``dim`` times the sigmoid of the second.

    Raises:
        RuntimeError: for an odd size.
    """
    from cermet.ops.composing import crop

    d = wrap_dim(dim, len(input.shape), "glu")
    shape = tuple(input.shape)
    if shape[d] % 2:
        raise RuntimeError(f"glu: the size along dim {d} must be even, got {shape[d]} in shape {list(shape)}")
    half = (*shape[:d], shape[d] // 2, *shape[d + 1 :])
    start = [half[d] if k == d else 0 for k in range(len(shape))]
    return mul(crop(input, [0] * len(shape), half), _math().sigmoid(crop(input, start, half)))
