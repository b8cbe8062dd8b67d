"""lgamma, its derivative digamma; float32 is computed in float64.

Both shift an argument below 6.5 (5) to one interval of length about 1 by the recurrences ``gamma(y + 1) = y gamma(y)`` and
``digamma(y + 1) = digamma(y) + 1/y``, use Stirling's series (as a fitted polynomial in 1/y**2) above, and the reflection formulas
below 0 (1/2) (Abramowitz and Stegun, 6.1.17, 6.1.40, 6.3.7, 6.3.18).

Near the zeros of lgamma and digamma at negative arguments the error is small in absolute terms (some 10**-16 of the terms that
cancel) and not in ulp; float32 results are right in ulp even there.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import TYPE_CHECKING

from .common import DOUBLE, INF, NAN, SINGLE, Pair, Value, fast_sum, format_of, horner, parts, table, two_product
from .exp_log import decompose, log_finite, log_of_parts_pair

if TYPE_CHECKING:
    from ..builder import LaneBuilder

# digamma's positive zero.
ROOT = Fraction("1.46163214496836234126265954232572132846819620400644629512959840859878644035380181")


def _sine(b: LaneBuilder, r: Value) -> Pair:
    """``sin(pi r)`` for ``|r| <= 1/2``, as a sum of two numbers."""
    hi, lo = parts(DOUBLE, "pi", 2)
    u, u_low = two_product(b, r, b.f(hi, r))
    u_low = b.fma(r, b.f(lo, r), u_low)
    z = b.fmul(u, u)
    return fast_sum(b, u, b.fma(b.fmul(u, z), horner(b, z, table("sin", r)), u_low))


def lgamma(b: LaneBuilder, x: Value) -> Value:
    """``log|gamma(x)|``."""
    if format_of(x) is SINGLE:
        return b.fptrunc(lgamma(b, b.fpext(x)))
    one, zero = b.f(1.0, x), b.f(0.0, x)
    # Reflection: lgamma(x) = -log(|x| sin(pi x)/pi) - lgamma(|x|), with an exact argument; nearer to 0, which would cancel,
    # lgamma(x) = -log(sin(pi x)/pi) - lgamma(1 - x).
    reflect = b.fcmp("olt", x, zero)
    far = b.fcmp("olt", x, b.f(-0.5, x))
    y = b.select(far, b.fneg(x), b.select(reflect, b.fsub(one, x), x))
    # lgamma(y) = lgamma(2 + t) + log(product); or - log(y) for y < 1.414; or - log(y + y**2) for y < 1/2.
    near_one = b.fcmp("olt", y, b.f(1.4140625, x))
    near_zero = b.fcmp("olt", y, b.f(0.5, x))
    stirling = b.fcmp("ogt", y, b.f(6.5, x))
    t, product = b.select(near_one, b.fsub(y, one), b.fsub(y, b.f(2.0, x))), b.select(near_one, y, one)
    t, product = b.select(near_zero, y, t), b.select(near_zero, b.fma(y, y, y), product)
    for k in range(4):
        further = b.fcmp("oge", y, b.f(2.5 + k, x))
        t = b.select(further, b.fsub(y, b.f(3.0 + k, x)), t)
        product = b.select(further, b.fmul(product, b.fsub(y, b.f(1.0 + k, x))), product)
    e, f, tail = decompose(b, b.select(stirling, y, product))
    logarithm, lost = log_of_parts_pair(b, e, f, tail)
    small = horner(b, t, table("lgamma2", x))
    # Around 1, log(y) = t + tail: t is taken out before the terms cancel.
    at_one = b.and_(b.and_(near_one, b.fcmp("oeq", e, zero)), b.not_(near_zero))
    small = b.fmul(t, b.select(at_one, b.fsub(small, one), small))
    rest = b.select(at_one, tail, logarithm)
    small = b.fadd(b.fadd(small, b.select(near_one, b.fneg(rest), rest)), zero)  # -0 would be wrong at 1
    # (y - 1/2)(log y - 1) + (log(2 pi) - 1)/2 + w(1/y**2)/y
    inverse = b.fdiv(one, y)
    w = b.fma(horner(b, b.fmul(inverse, inverse), table("stirling", x)), inverse, b.f((math.log(2 * math.pi) - 1) / 2, x))
    factor = b.fsub(y, b.f(0.5, x))
    large = b.fma(factor, b.fsub(logarithm, one), b.fma(factor, lost, w))
    result = b.select(stirling, large, small)
    distance = b.fabs(b.fsub(x, b.rint(x)))
    sine = b.fmul(_sine(b, distance)[0], b.f(1 / math.pi, x))
    sine = b.select(b.fcmp("olt", distance, b.f(2.0**-54, x)), distance, sine)
    sine = b.select(far, b.fmul(sine, y), sine)
    reflected = b.fsub(b.fneg(log_finite(b, sine)), result)
    result = b.select(reflect, reflected, result)
    pole = b.and_(b.fcmp("ole", x, zero), b.fcmp("oeq", distance, zero))
    endless = b.fcmp("oeq", b.fabs(x), b.f(INF, x))
    return b.select(b.or_(pole, endless), b.f(INF, x), b.select(b.fcmp("uno", x, x), x, result))


def digamma(b: LaneBuilder, x: Value) -> Value:
    """The derivative of ``log(gamma(x))``."""
    if format_of(x) is SINGLE:
        return b.fptrunc(digamma(b, b.fpext(x)))
    one, zero = b.f(1.0, x), b.f(0.0, x)
    reflect = b.fcmp("olt", x, b.f(0.5, x))
    y = b.select(reflect, b.fsub(one, x), x)
    # y = root + t + k with root + t in [1, 2): digamma(y) = digamma(root + t) + 1/(y-1) + ... + 1/(y-k), the sum as one fraction;
    # below 1, k is -1 and the sum is -1/y.
    hi, lo = DOUBLE.split(ROOT)
    low = b.fcmp("olt", y, one)
    t = b.fsub(y, b.select(low, b.f(hi - 1, x), b.f(hi, x)))
    num, den = b.select(low, b.f(-1.0, x), zero), b.select(low, y, one)
    for k in range(1, 4):
        further = b.fcmp("oge", y, b.f(1.0 + k, x))
        left = b.fsub(y, b.f(float(k), x))
        t = b.select(further, b.fsub(left, b.f(hi, x)), t)
        num = b.select(further, b.fma(num, left, den), num)
        den = b.select(further, b.fmul(den, left), den)
    t = b.fsub(t, b.f(lo, x))
    asymptotic = b.fcmp("oge", y, b.f(5.0, x))
    # One division for both: the fraction, or 1/y.
    quotient = b.fdiv(b.select(asymptotic, one, num), b.select(asymptotic, y, den))
    small = b.fma(t, horner(b, t, table("digamma1", x)), quotient)
    z = b.fmul(quotient, quotient)
    tail = b.fma(z, horner(b, z, table("digamma_tail", x)), b.fmul(quotient, b.f(0.5, x)))
    result = b.select(asymptotic, b.fsub(log_finite(b, y), tail), small)
    # digamma(x) = digamma(1 - x) - pi / tan(pi x)
    distance = b.fsub(x, b.rint(x))
    sine, sine_low = _sine(b, distance)
    cosine, cosine_low = _sine(b, b.fsub(b.f(0.5, x), b.fabs(distance)))
    pi = b.f(math.pi, x)
    above, above_low = two_product(b, cosine, pi)
    above_low = b.fma(cosine_low, pi, b.fma(cosine, b.f(parts(DOUBLE, "pi", 2)[1], x), above_low))
    cotangent = b.fdiv(above, sine)
    minus = b.fneg(cotangent)
    rest = b.fma(minus, sine_low, b.fadd(b.fma(minus, sine, above), above_low))
    reflected = b.fsub(b.fsub(result, cotangent), b.fdiv(rest, sine))
    # Near the poles the correction has no meaning (and may overflow), nor is it wanted.
    near = b.fcmp("olt", b.fabs(distance), b.f(2.0**-60, x))
    reflected = b.select(near, b.fsub(result, b.fdiv(one, distance)), reflected)
    result = b.select(reflect, reflected, result)
    result = b.select(b.and_(reflect, b.fcmp("oeq", distance, zero)), b.f(NAN, x), result)
    result = b.select(b.fcmp("oeq", x, zero), b.fdiv(b.f(-1.0, x), x), result)
    return b.select(b.fcmp("ueq", x, b.f(INF, x)), x, result)
