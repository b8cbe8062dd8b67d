"""``x**y`` as ``2**(y log2(x))``; float32 is computed in float64.

For float64 the logarithm is a sum of two numbers, right to some 66 bits: the series of atanh in ``s = (m - 1)/(m + 1)``, its
first two terms in double length (Dekker, *A floating-point technique for extending the available precision*, 1971). Special
cases follow C99, annex F.9.4.4.
"""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING

from .common import (
    DOUBLE,
    INF,
    LN2,
    NAN,
    SINGLE,
    Pair,
    Value,
    cap,
    fast_sum,
    flip,
    floor_at,
    format_of,
    horner,
    sign_bit,
    table,
    two_product,
)
from .exp_log import exponent, lifted_split, scale, split
from .polynomials import TABLES

if TYPE_CHECKING:
    from ..builder import LaneBuilder


def _log2_pair(b: LaneBuilder, x: Value) -> Pair:
    """``log2(x)`` for positive finite float64, as a sum of two numbers."""
    m, e = lifted_split(b, x)
    f = b.fsub(m, b.f(1.0, x))
    d, d_low = fast_sum(b, b.f(2.0, x), f)
    s = b.fdiv(f, d)
    minus = b.fneg(s)
    half = b.f(0.5, x)
    reciprocal = b.fma(minus, half, half)  # 1/d, since 1 - s = 2/d
    s_low = b.fmul(b.fma(minus, d_low, b.fma(minus, d, f)), reciprocal)
    z, z_low = two_product(b, s, s)
    z_low = b.fma(b.fadd(s, s), s_low, z_low)
    # v = z/3 + z**2 g(z)
    third, third_low = DOUBLE.split(Fraction(1, 3))
    v, v_low = two_product(b, z, b.f(third, x))
    g = b.fmul(b.fmul(z, z), horner(b, z, table("pow_log", x)))
    v_low = b.fma(z_low, b.f(third, x), b.fma(z, b.f(third_low, x), v_low))
    v, v_low = fast_sum(b, v, b.fadd(g, v_low))
    # s (1 + v), times 2/ln2
    p, p_low = two_product(b, s, v)
    p_low = b.fma(s_low, v, b.fma(s, v_low, p_low))
    l, l_low = fast_sum(b, s, p)
    l_low = b.fadd(l_low, b.fadd(s_low, p_low))
    unit, unit_low = DOUBLE.split(2 / LN2)
    q, q_low = two_product(b, l, b.f(unit, x))
    q_low = b.fma(l_low, b.f(unit, x), b.fma(l, b.f(unit_low, x), q_low))
    high, low = fast_sum(b, e, q)
    return fast_sum(b, high, b.fadd(low, q_low))


def _magnitude_double(b: LaneBuilder, a: Value, y: Value) -> Value:
    """``a**y`` for ``a >= 0``, but for 0 and infinity to the power 0 and 1 to any."""
    high, low = _log2_pair(b, a)
    high = b.select(b.fcmp("oeq", a, b.f(INF, a)), a, high)
    high = b.select(b.fcmp("oeq", a, b.f(0.0, a)), b.f(-INF, a), high)
    t, t_low = two_product(b, y, high)
    t_low = b.fma(y, low, t_low)
    t_low = b.select(b.fcmp("olt", b.fabs(t), b.f(1080.0, a)), t_low, b.f(0.0, a))
    t = cap(b, floor_at(b, t, -1080.0), 1030.0)
    magic = b.f(DOUBLE.magic + 2 * DOUBLE.bias, a)
    biased = b.fadd(t, magic)
    r = b.fadd(b.fsub(t, b.fsub(biased, magic)), t_low)
    return scale(b, horner(b, r, (1.0, *table("exp2", a))), biased)


def _magnitude_single(b: LaneBuilder, a: Value, y: Value) -> Value:
    """The same for float32 operands, in float64 (a float32 is never subnormal there, nor is the result before it is rounded)."""
    a32, a, y = a, b.fpext(a), b.fpext(y)
    m, e = split(b, a)
    one = b.f(1.0, a)
    f = b.fsub(m, one)
    s = b.fdiv(f, b.fadd(f, b.f(2.0, a)))
    logarithm = b.fma(s, horner(b, b.fmul(s, s), table("log2_short", a)), exponent(b, e))
    logarithm = b.select(b.fcmp("oeq", a32, b.f(INF, a32)), a, logarithm)
    logarithm = b.select(b.fcmp("oeq", a32, b.f(0.0, a32)), b.f(-INF, a), logarithm)
    t = cap(b, floor_at(b, b.fmul(y, logarithm), -200.0), 200.0)
    magic = b.f(DOUBLE.magic + DOUBLE.bias, a)
    biased = b.fadd(t, magic)
    r = b.fsub(t, b.fsub(biased, magic))
    raw = b.as_int(biased)
    power = b.as_float(b.shl(raw, b.i(DOUBLE.mantissa, raw)))
    return b.fptrunc(b.fmul(horner(b, r, (1.0, *TABLES["exp2", 32])), power))


def pow(b: LaneBuilder, x: Value, y: Value) -> Value:
    """``x**y``."""
    a, zero, one = b.fabs(x), b.f(0.0, x), b.f(1.0, x)
    size = _magnitude_single(b, a, y) if format_of(x) is SINGLE else _magnitude_double(b, a, y)
    size = b.select(b.fcmp("oeq", a, one), one, size)
    half = b.fmul(y, b.f(0.5, x))
    whole = b.fcmp("oeq", b.trunc(y), y)
    odd = b.and_(whole, b.fcmp("one", b.trunc(half), half))
    sign = sign_bit(b, x)
    result = flip(b, size, b.select(odd, sign, b.i(0, sign)))
    # No real power of a negative number but to whole numbers; NaN stays NaN.
    outside = b.and_(b.and_(b.fcmp("olt", x, zero), b.fcmp("one", a, b.f(INF, x))), b.not_(whole))
    result = b.select(b.or_(outside, b.fcmp("uno", x, y)), b.f(NAN, x), result)
    return b.select(b.or_(b.fcmp("oeq", y, zero), b.fcmp("oeq", x, one)), one, result)
