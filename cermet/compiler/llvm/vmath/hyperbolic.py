"""Hyperbolic functions and their inverses.

Made from exponentials and logarithms, with the rounding errors of the arguments carried along.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .common import INF, NAN, SINGLE, Value, cap, format_of, horner, parts, table, two_sum
from .exp_log import exp, expm1_core, log_sum

if TYPE_CHECKING:
    from ..builder import LaneBuilder


def tanh(b: LaneBuilder, x: Value) -> Value:
    """The hyperbolic tangent."""
    # With t = e**(2|x|) - 1: tanh|x| = t / (2 + t). Its roundings add up where t is small; a polynomial serves there.
    a = b.fabs(x)
    y = cap(b, b.fadd(a, a), 19.0 if format_of(x) is SINGLE else 40.0)
    t = expm1_core(b, y, 0)
    large = b.copysign(b.fdiv(t, b.fadd(t, b.f(2.0, x))), x)
    z = b.fmul(x, x)
    small = b.fma(b.fmul(x, z), horner(b, z, table("tanh", x)), x)
    return b.select(b.fcmp("olt", a, b.f(0.55, x)), b.select(b.fcmp("oeq", x, b.f(0.0, x)), x, small), large)


def sinh(b: LaneBuilder, x: Value) -> Value:
    """The hyperbolic sine."""
    a = b.fabs(x)
    h = exp(b, a, -1)
    large = b.copysign(b.fsub(h, b.fdiv(b.f(0.25, x), h)), x)
    z = b.fmul(x, x)
    small = b.fma(b.fmul(x, z), horner(b, z, table("sinh", x)), x)
    return b.select(b.fcmp("olt", a, b.f(1.0, x)), small, large)


def cosh(b: LaneBuilder, x: Value) -> Value:
    """The hyperbolic cosine."""
    h = exp(b, b.fabs(x), -1)
    return b.fadd(h, b.fdiv(b.f(0.25, x), h))


def _log_of_sum(b: LaneBuilder, a: Value, w: Value, w_low: Value, huge: Value) -> Value:
    """``log(1 + w + w_low)``, or ``log(2a)`` where ``huge`` holds; ``a`` itself where it is infinite."""
    hi, _ = parts(format_of(a), "ln2", 2)
    zero = b.f(0.0, a)
    u, c = two_sum(b, b.f(1.0, a), w)
    c = b.select(huge, zero, b.fadd(c, w_low))
    result = b.fadd(log_sum(b, b.select(huge, a, u), c), b.select(huge, b.f(hi, a), zero))
    return b.select(b.fcmp("oeq", a, b.f(INF, a)), a, result)


def asinh(b: LaneBuilder, x: Value) -> Value:
    """The inverse hyperbolic sine."""
    # log(a + sqrt(a**2 + 1)) = log(1 + a + a**2 / (1 + sqrt(a**2 + 1)))
    a, one = b.fabs(x), b.f(1.0, x)
    huge = b.fcmp("ogt", a, b.f(2.0**14 if format_of(x) is SINGLE else 2.0**30, x))
    second = b.fdiv(b.fmul(a, a), b.fadd(one, b.sqrt(b.fma(a, a, one))))
    w = b.fadd(a, second)
    low = b.fsub(second, b.fsub(w, a))
    return b.copysign(_log_of_sum(b, a, w, low, huge), x)


def acosh(b: LaneBuilder, x: Value) -> Value:
    """The inverse hyperbolic cosine."""
    # log(1 + t + sqrt(t**2 + 2t)) with t = x - 1.
    one = b.f(1.0, x)
    huge = b.fcmp("ogt", x, b.f(2.0**14 if format_of(x) is SINGLE else 2.0**30, x))
    t = b.fsub(x, one)
    square = b.fma(t, t, b.fadd(t, t))
    root = b.sqrt(square)
    w = b.fadd(root, t)
    # What the sum and the root have lost (nothing at 1, where the root is 0).
    root_low = b.fdiv(b.fma(b.fneg(root), root, square), root)
    root_low = b.select(b.fcmp("ogt", root, b.f(0.0, x)), b.fmul(root_low, b.f(0.5, x)), b.f(0.0, x))
    low = b.fadd(b.fsub(t, b.fsub(w, root)), root_low)
    return b.select(b.fcmp("olt", x, one), b.f(NAN, x), _log_of_sum(b, x, w, low, huge))


def atanh(b: LaneBuilder, x: Value) -> Value:
    """The inverse hyperbolic tangent."""
    # log(1 + 2a / (1 - a)) / 2, with the errors of the difference and the quotient.
    a, one = b.fabs(x), b.f(1.0, x)
    d = b.fsub(one, a)
    d_low = b.fsub(b.fsub(one, d), a)
    twice = b.fadd(a, a)
    q = b.fdiv(twice, d)
    rest = b.fma(b.fneg(q), d_low, b.fma(b.fneg(q), d, twice))
    u, c = two_sum(b, one, q)
    result = b.fmul(b.f(0.5, x), log_sum(b, u, b.fadd(c, b.fdiv(rest, d))))
    result = b.select(b.fcmp("oeq", a, one), b.f(INF, x), result)
    return b.select(b.fcmp("ogt", a, one), b.f(NAN, x), b.copysign(result, x))
