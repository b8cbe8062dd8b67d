"""Elementwise functions of analysis: exponentials, logarithms, trigonometry, powers, error and gamma functions.

Formulas of gradients: NIST handbook (dlmf.nist.gov), chapters 4 (elementary), 5 (gamma), 7 (error functions).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from cermet.ops.arithmetic import abs_, trunc_divide
from cermet.ops.define import OUT, OpDef
from cermet.ops.elementwise import choose, div, eq, ge, le, mul, ne
from cermet.ops.kinds import FLOATS, INTS, NUMERIC, binary, unary
from cermet.ops.public import public
from cermet.ops.support import floating, is_number, pair, promote, to_dtype

_BOTH = ("", "special")
_NN = ("", "nn.functional")
LN2 = math.log(2.0)


def function(name: str, vjp: Callable[..., Any], reference: Any, saves: tuple[int, ...], doc: str, **record: Any) -> OpDef:
    """A floating function whose loop IR intrinsic has its name."""
    return unary(
        name,
        result="floating",
        vjp=vjp,
        saves=saves,
        reference=reference,
        doc=doc,
        lower=record.pop("lower", lambda b, x: getattr(b, name)(x)),
        **record,
    )


_X = (0,)
_OUT = (OUT,)

# ------------------------------------------------------------------------------------------------ exponentials, logarithms

exp = function("exp", lambda c, g: mul(g, c.out), np.exp, _OUT, "e to the power of the value.", onnx="Exp")
exp2 = function("exp2", lambda c, g: mul(g, mul(c.out, LN2)), np.exp2, _OUT, "2 to the power of the value.", namespaces=_BOTH)
expm1 = function("expm1", lambda c, g: mul(g, c.out + 1.0), np.expm1, _OUT, "exp(x) - 1, exact near 0.", namespaces=_BOTH)
log = function("log", lambda c, g: div(g, c[0]), np.log, _X, "Natural logarithm.", domain=(0.2, 5.0), onnx="Log")
log2 = function("log2", lambda c, g: div(g, mul(c[0], LN2)), np.log2, _X, "Logarithm to base 2.", domain=(0.2, 5.0))
log10 = function("log10", lambda c, g: div(g, mul(c[0], math.log(10))), np.log10, _X, "Logarithm to base 10.", domain=(0.2, 5.0))
log1p = function(
    "log1p", lambda c, g: div(g, c[0] + 1.0), np.log1p, _X, "log(1 + x), exact near 0.", domain=(-0.8, 4.0), namespaces=_BOTH
)

# ------------------------------------------------------------------------------------------------ roots, powers


def _rsqrt_vjp(c: Any, g: Any) -> Any:
    return mul(mul(g, -0.5), mul(c.out, mul(c.out, c.out)))


sqrt = function(
    "sqrt",
    lambda c, g: div(g, mul(c.out, 2.0)),
    np.sqrt,
    _OUT,
    "Square root; NaN for negative values.",
    domain=(0.2, 5.0),
    ulp=0.5,
    onnx="Sqrt",
)
rsqrt = function("rsqrt", _rsqrt_vjp, lambda x: 1 / np.sqrt(x), _OUT, "One over the square root.", domain=(0.2, 5.0))
square = unary(
    "square",
    vjp=lambda c, g: mul(g, mul(c[0], 2)),
    saves=_X,
    lower=lambda b, x: b.mul(x, x),
    reference=np.square,
    dtypes=NUMERIC,
    ulp=0.5,
    doc="The value times itself.",
)
reciprocal = function(
    "reciprocal",
    lambda c, g: mul(mul(g, -1.0), mul(c.out, c.out)),
    lambda x: 1 / x,
    _OUT,
    "One over the value.",
    domain=(0.3, 3.0),
    lower=lambda b, x: b.div(b.like(x, 1.0), x),
    ulp=0.5,
    onnx="Reciprocal",
)


def _pow_vjp(c: Any, g: Any) -> Any:
    """x^y has derivative y x^(y-1), which is 0 for y = 0 whatever x is; and x^y log x in y, which is 0 at x = 0 for y >= 0."""
    x, y = c[0], c[1]
    zero = 0.0
    gx = gy = None
    if c.needs[0]:
        gx = choose(eq(y, 0), zero, mul(g, mul(y, pow_op(x, y - 1))))
    if c.needs[1]:
        flat = mul(eq(x, 0), ge(y, 0))
        gy = mul(g, choose(flat, zero, mul(c.out, log(choose(flat, 1.0, x)))))
    return gx, gy


_POWER_BITS = 16


def _pow_lower(b: Any, x: Any, y: Any) -> Any:
    """Floats by the intrinsic; integers by repeated squaring over the exponent's low bits (PyTorch's rule for negative
    exponents)."""
    if x.dtype.kind == "f":
        return b.pow(x, y)
    one, zero = b.like(x, 1), b.like(x, 0)
    result, base = one, x
    for k in range(min(_POWER_BITS, x.dtype.itemsize * 8 - 1)):
        odd = b.ne(b.and_(b.shr(y, k), one), zero)
        result = b.select(odd, b.mul(result, base), result)
        base = b.mul(base, base)
    if x.dtype.kind == "u":
        return result
    odd = b.ne(b.and_(y, one), zero)
    negative = b.select(b.eq(x, one), one, b.select(b.eq(x, b.like(x, -1)), b.select(odd, b.like(x, -1), one), zero))
    return b.select(b.lt(y, zero), negative, result)


def _pow_reference(x: Any, y: Any) -> Any:
    if x.dtype.kind == "f":
        return np.power(x, y)
    x, y = np.broadcast_arrays(x, y)
    inverse = np.where(x == 1, 1, np.where(x == -1, np.where(y % 2 != 0, -1, 1), 0)) if x.dtype.kind == "i" else np.zeros_like(x)
    return np.where(y < 0, inverse, np.power(x, np.where(y < 0, 0, y)))


pow_op = binary(
    "pow",
    expose=False,
    vjp=_pow_vjp,
    saves=(0, 1, OUT),
    lower=_pow_lower,
    reference=_pow_reference,
    dtypes=NUMERIC,
    domains=((0.3, 3.0), (-3.0, 3.0)),
    onnx="Pow",
    ulp=4,
    doc="The first to the power of the second.",
)


def _power_by_number(x: Any, n: Any) -> Any:
    """A power of x by a Python number; small powers are products, which are quicker and exact."""
    if n == 2:
        return square(x)
    if n == 1:
        return mul(x, 1)
    if n == 3:
        return mul(square(x), x)
    if x.dtype.kind == "f":
        if n == 0.5:
            return sqrt(x)
        if n == -1:
            return reciprocal(x)
        if n == -0.5:
            return rsqrt(x)
        if n == -2:
            return square(reciprocal(x))
        return pow_op(x, float(n))
    if n < 0:
        raise RuntimeError(f"pow: integers to the negative power {n} are not integers; convert the base with .float()")
    return pow_op(x, n)


@public(name="pow", inplace=True)
def pow_(input: Any, exponent: Any) -> Any:
    """``input`` to the power of ``exponent``, broadcast and promoted.

    Raises:
        RuntimeError: for an integer tensor to a negative Python number.
    """
    if is_number(exponent) and not is_number(input):
        d = input.dtype
        if d.kind == "f" or (d.kind in "iu" and not isinstance(exponent, float)):
            return _power_by_number(input, exponent)
    x, y = pair(input, exponent)
    return pow_op(x, y)


@public(inplace=True)
def float_power(input: Any, exponent: Any) -> Any:
    """``input`` to the power of ``exponent``, computed in float64."""
    from cermet import dtypes as dt

    x, y = promote(input, exponent)
    return pow_op(to_dtype(x, dt.float64), to_dtype(y, dt.float64))


# ------------------------------------------------------------------------------------------------ trigonometry

sin: OpDef = function("sin", lambda c, g: mul(g, cos(c[0])), np.sin, _X, "Sine of radians.", onnx="Sin")
cos: OpDef = function("cos", lambda c, g: mul(g, -sin(c[0])), np.cos, _X, "Cosine of radians.", onnx="Cos")
tan = function(
    "tan", lambda c, g: mul(g, square(c.out) + 1.0), np.tan, _OUT, "Tangent of radians.", domain=(-1.2, 1.2), onnx="Tan"
)
asin = function(
    "asin",
    lambda c, g: mul(g, rsqrt(1.0 - square(c[0]))),
    np.arcsin,
    _X,
    "Angle with that sine.",
    domain=(-0.9, 0.9),
    aliases=("arcsin",),
    onnx="Asin",
)
acos = function(
    "acos",
    lambda c, g: mul(g, -rsqrt(1.0 - square(c[0]))),
    np.arccos,
    _X,
    "Angle with that cosine.",
    domain=(-0.9, 0.9),
    aliases=("arccos",),
    onnx="Acos",
)
atan = function(
    "atan", lambda c, g: div(g, square(c[0]) + 1.0), np.arctan, _X, "Angle with that tangent.", aliases=("arctan",), onnx="Atan"
)
sinh: OpDef = function("sinh", lambda c, g: mul(g, cosh(c[0])), np.sinh, _X, "Hyperbolic sine.", onnx="Sinh")
cosh: OpDef = function("cosh", lambda c, g: mul(g, sinh(c[0])), np.cosh, _X, "Hyperbolic cosine.", onnx="Cosh")
tanh = function(
    "tanh", lambda c, g: mul(g, 1.0 - square(c.out)), np.tanh, _OUT, "Hyperbolic tangent.", namespaces=_NN, onnx="Tanh"
)
asinh = function(
    "asinh",
    lambda c, g: mul(g, rsqrt(square(c[0]) + 1.0)),
    np.arcsinh,
    _X,
    "Inverse of sinh.",
    aliases=("arcsinh",),
    onnx="Asinh",
)
acosh = function(
    "acosh",
    lambda c, g: mul(g, rsqrt(square(c[0]) - 1.0)),
    np.arccosh,
    _X,
    "Inverse of cosh.",
    domain=(1.2, 4.0),
    aliases=("arccosh",),
    onnx="Acosh",
)
atanh = function(
    "atanh",
    lambda c, g: div(g, 1.0 - square(c[0])),
    np.arctanh,
    _X,
    "Inverse of tanh.",
    domain=(-0.9, 0.9),
    aliases=("arctanh",),
    onnx="Atanh",
)


def _atan2_vjp(c: Any, g: Any) -> Any:
    y, x = c[0], c[1]
    d = square(y) + square(x)
    # At the origin the angle has no gradient; PyTorch gives 0 there.
    scaled = choose(eq(d, 0), 0.0, div(g, d))
    return mul(scaled, x), -mul(scaled, y)


atan2 = binary(
    "atan2",
    float_result=True,
    vjp=_atan2_vjp,
    saves=(0, 1),
    lower=lambda b, y, x: b.atan2(y, x),
    reference=np.arctan2,
    dtypes=FLOATS,
    domains=((0.3, 3.0), (-3.0, -0.3)),
    aliases=("arctan2",),
    doc="Angle of the point (other, input), in (-pi, pi].",
)


def _hypot_lower(b: Any, x: Any, y: Any) -> Any:
    """Scaled by the greater side, so that squares neither overflow nor vanish."""
    x, y = b.abs(x), b.abs(y)
    big, small = b.max(x, y), b.min(x, y)
    ratio = b.div(small, big)
    length = b.mul(big, b.sqrt(b.add(b.mul(ratio, ratio), 1.0)))
    inf = float("inf")
    return b.select(b.eq(big, 0.0), big, b.select(b.or_(b.eq(x, inf), b.eq(y, inf)), b.like(x, inf), length))


hypot = binary(
    "hypot",
    float_result=True,
    vjp=lambda c, g: (mul(g, div(c[0], c.out)), mul(g, div(c[1], c.out))),
    saves=(0, 1, OUT),
    lower=_hypot_lower,
    reference=np.hypot,
    dtypes=FLOATS,
    domains=((0.5, 3.0), (-3.0, -0.5)),
    commutative=True,
    ulp=3,
    doc="Length of the vector of two sides.",
)


@public(inplace=True)
def deg2rad(input: Any) -> Any:
    """Radians of degrees."""
    return mul(floating(input), math.pi / 180.0)


@public(inplace=True)
def rad2deg(input: Any) -> Any:
    """Degrees of radians."""
    return mul(floating(input), 180.0 / math.pi)


# ------------------------------------------------------------------------------------------------ sigmoid and its kin

sigmoid = function(
    "sigmoid",
    lambda c, g: mul(g, mul(c.out, 1.0 - c.out)),
    lambda x: 1 / (1 + np.exp(-x)),
    _OUT,
    "1 / (1 + exp(-x)).",
    lower=lambda b, x: b.div(b.like(x, 1.0), b.add(b.exp(b.neg(x)), 1.0)),
    namespaces=_NN,
    ulp=3,
    onnx="Sigmoid",
)


def _logit_lower(b: Any, x: Any) -> Any:
    """log(x / (1 - x)); around one half, where the quotient is near 1, by log1p of its exact distance from 1."""
    rest = b.sub(b.like(x, 1.0), x)
    near = b.log1p(b.div(b.mul(b.sub(x, 0.5), 2.0), rest))
    return b.select(b.lt(b.abs(b.sub(x, 0.5)), 0.25), near, b.log(b.div(x, rest)))


logit_op = unary(
    "logit",
    result="floating",
    vjp=lambda c, g: div(g, mul(c[0], 1.0 - c[0])),
    saves=_X,
    lower=_logit_lower,
    expose=False,
    reference=lambda x: np.where(np.abs(x - 0.5) < 0.25, np.log1p((x - 0.5) * 2 / (1 - x)), np.log(x / (1 - x))),
    domain=(0.05, 0.95),
    ulp=6,
    doc="Inverse of sigmoid.",
)


@public(inplace=True, namespaces=_BOTH)
def logit(input: Any, eps: float | None = None) -> Any:
    """log(x / (1 - x)), the inverse of `sigmoid`; with ``eps`` the input is first limited to [eps, 1 - eps]."""
    from cermet.ops.arithmetic import clamp

    x = floating(input)
    return logit_op(x if eps is None else clamp(x, float(eps), 1.0 - float(eps)))


def _logaddexp_vjp(c: Any, g: Any) -> Any:
    """exp(x - out) is the softmax weight of x; where both are one infinity it is taken as 1 (x - out would be NaN)."""
    weight = [exp(choose(eq(c[i], c.out), 0.0, c[i] - c.out)) for i in (0, 1)]
    return mul(g, weight[0]), mul(g, weight[1])


def _logaddexp_lower(b: Any, x: Any, y: Any) -> Any:
    big = b.max(x, y)
    d = b.neg(b.abs(b.sub(x, y)))
    # Two equal infinities have no difference; their sum is that infinity.
    same = b.and_(b.eq(x, y), b.eq(b.abs(x), float("inf")))
    return b.select(same, x, b.add(big, b.log1p(b.exp(d))))


logaddexp = binary(
    "logaddexp",
    vjp=_logaddexp_vjp,
    saves=(0, 1, OUT),
    lower=_logaddexp_lower,
    reference=np.logaddexp,
    dtypes=FLOATS,
    commutative=True,
    domains=((1.0, 3.0), (1.0, 3.0)),
    ulp=4,
    doc="log(exp(x) + exp(y)) without overflow.",
)


def _logaddexp2_vjp(c: Any, g: Any) -> Any:
    return mul(g, exp2(c[0] - c.out)), mul(g, exp2(c[1] - c.out))


def _logaddexp2_lower(b: Any, x: Any, y: Any) -> Any:
    same = b.and_(b.eq(x, y), b.eq(b.abs(x), float("inf")))
    d = b.exp2(b.neg(b.abs(b.sub(x, y))))
    return b.select(same, x, b.add(b.max(x, y), b.mul(b.log1p(d), 1.0 / LN2)))


logaddexp2 = binary(
    "logaddexp2",
    vjp=_logaddexp2_vjp,
    saves=(0, 1, OUT),
    lower=_logaddexp2_lower,
    reference=np.logaddexp2,
    dtypes=FLOATS,
    domains=((1.0, 3.0), (1.0, 3.0)),
    ulp=4,
    doc="log2(2^x + 2^y) without overflow.",
)


def _xlogy_vjp(c: Any, g: Any) -> Any:
    x, y = c[0], c[1]
    dead = mul(eq(x, 0), le(y, 0))
    gx = mul(g, choose(dead, 0.0, log(choose(dead, 1.0, y)))) if c.needs[0] else None
    return gx, mul(g, div(x, y)) if c.needs[1] else None


def _xlogy_lower(b: Any, x: Any, y: Any) -> Any:
    return b.select(b.isnan(y), y, b.select(b.eq(x, 0.0), b.like(x, 0.0), b.mul(x, b.log(y))))


def _xlogy_reference(x: Any, y: Any) -> Any:
    return np.where(np.isnan(y), y, np.where(x == 0, 0, x * np.log(np.where(x == 0, 1, y))))


xlogy = binary(
    "xlogy",
    float_result=True,
    namespaces=_BOTH,
    vjp=_xlogy_vjp,
    saves=(0, 1),
    lower=_xlogy_lower,
    reference=_xlogy_reference,
    dtypes=FLOATS,
    domains=((0.5, 3.0), (1.5, 3.0)),
    ulp=3,
    doc="x log(y), 0 where x is 0 (even if y is too).",
)


def _sinc_vjp(c: Any, g: Any) -> Any:
    """(cos(pi x) - sinc(x)) / x, which tends to 0 at 0."""
    x = c[0]
    at_zero = eq(x, 0)
    safe = choose(at_zero, 1.0, x)
    slope = div(cos(mul(safe, math.pi)) - sinc(safe), safe)
    return mul(g, choose(at_zero, 0.0, slope))


def _sinc_lower(b: Any, x: Any) -> Any:
    """sin(pi x) / (pi x), with x first reduced by an even integer: pi times a rounded product would lose the zeros at
    integers."""
    turns = b.mul(b.rint(b.mul(x, 0.5)), 2.0)
    y = b.mul(b.sub(x, turns), math.pi)
    return b.select(b.eq(x, 0.0), b.like(x, 1.0), b.div(b.sin(y), b.mul(x, math.pi)))


sinc: OpDef = function(
    "sinc", _sinc_vjp, np.sinc, _X, "sin(pi x) / (pi x), 1 at 0.", lower=_sinc_lower, domain=(0.1, 0.9), ulp=6, namespaces=_BOTH
)

# ------------------------------------------------------------------------------------------------ error functions

_TWO_OVER_SQRT_PI = 2.0 / math.sqrt(math.pi)
_HALF_SQRT_PI = math.sqrt(math.pi) / 2.0


def each(f: Callable[[float], float]) -> Callable[[Any], Any]:
    """A function of Python floats on arrays; slow, for reference only."""
    wide = np.vectorize(f, otypes=[np.float64])
    return lambda x: wide(np.asarray(x, np.float64)) if np.size(x) else np.zeros(np.shape(x))


def _erfinv(y: float) -> float:
    """Newton's steps on erf from a first guess (Winitzki 2008); near 1 on erfc, which keeps its digits."""
    if not -1.0 < y < 1.0:
        return math.copysign(math.inf, y) if abs(y) == 1.0 else math.nan
    if y == 0.0:
        return y
    s = math.log1p(-y * y)
    t = 2 / (math.pi * 0.147) + s / 2
    x = math.copysign(math.sqrt(math.sqrt(t * t - s / 0.147) - t), y)
    for _ in range(4):
        error = math.erf(x) - y if abs(y) < 0.5 else math.copysign(1.0, y) * ((1 - abs(y)) - math.erfc(abs(x)))
        x -= error * _HALF_SQRT_PI * math.exp(x * x)
    return x


def _gaussian(x: Any) -> Any:
    return exp(-square(x))


erf = function(
    "erf",
    lambda c, g: mul(g, mul(_gaussian(c[0]), _TWO_OVER_SQRT_PI)),
    each(math.erf),
    _X,
    "Error function.",
    namespaces=_BOTH,
    onnx="Erf",
)
erfc = function(
    "erfc",
    lambda c, g: mul(g, mul(_gaussian(c[0]), -_TWO_OVER_SQRT_PI)),
    each(math.erfc),
    _X,
    "1 - erf(x), exact in the tail.",
    namespaces=_BOTH,
)
erfinv = function(
    "erfinv",
    lambda c, g: mul(g, mul(exp(square(c.out)), _HALF_SQRT_PI)),
    each(_erfinv),
    _OUT,
    "Inverse of erf.",
    domain=(-0.9, 0.9),
    namespaces=_BOTH,
)

# ------------------------------------------------------------------------------------------------ integers


def _gcd_lower(b: Any, x: Any, y: Any) -> Any:
    """Euclid's steps, unrolled: 92 suffice for 64 bits (Fibonacci numbers are the worst case), 46 for 32, 12 for 8."""
    x, y = (b.abs(x), b.abs(y)) if x.dtype.kind == "i" else (x, y)
    zero = b.like(x, 0)
    for _ in range({1: 13, 2: 24, 4: 46, 8: 92}[x.dtype.itemsize]):
        done = b.eq(y, zero)
        x, y = b.select(done, x, y), b.select(done, zero, b.trem(x, y))
    return x


gcd = binary(
    "gcd",
    lower=_gcd_lower,
    reference=np.gcd,
    dtypes=INTS,
    gradient=False,
    commutative=True,
    ulp=0,
    doc="Greatest common divisor, not negative.",
)


@public(inplace=True)
def lcm(input: Any, other: Any) -> Any:
    """Least common multiple of integers, not negative."""
    x, y = promote(input, other)
    d = gcd(x, y)
    return abs_(mul(trunc_divide(x, choose(ne(d, 0), d, 1)), y))


@public(inplace=True)
def ldexp(input: Any, other: Any) -> Any:
    """The product input * 2^other."""
    x, y = promote(input, other, float_result=True)
    return mul(x, exp2(y))
