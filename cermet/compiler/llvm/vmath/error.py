"""The error function, its complement and its inverse."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .common import INF, NAN, SINGLE, Value, cap, estrin, fast_sum, format_of, horner, table, two_product
from .exp_log import log_finite, reduce_exp, scale

if TYPE_CHECKING:
    from ..builder import LaneBuilder


def erf(b: LaneBuilder, x: Value) -> Value:
    """The error function."""
    z = b.fmul(x, x)
    small = b.fma(x, horner(b, z, table("erf", x)), x)
    a = b.fabs(x)
    one = b.f(1.0, x)
    if format_of(x) is SINGLE:
        beyond = estrin(b, b.fsub(cap(b, a, 4.0), b.f(2.5, x)), table("erfc_mid", x))
    else:
        beyond = _erfc_large(b, a)
    return b.select(b.fcmp("olt", a, one), small, b.copysign(b.fsub(one, beyond), x))


ERFC_CENTRE = 61 / 16
ERFINV_CENTRES = (2.59375, 3.171875, 4.984375)


def _erfc_large(b: LaneBuilder, a: Value) -> Value:
    """``erfc(a)`` in float64 for ``a >= 1/2``: ``e**(-a**2) g(t) / (1 + 2a)`` with ``t = (a - c)/(a + c)``.

    The quotient takes out most of the variation, so that rounding t does no harm (compare Schonfelder, *Math. Comp.* 32,
    1978). Each of the three factors has its rounding error carried along.
    """
    a = cap(b, a, 28.0)
    c, one = b.f(ERFC_CENTRE, a), b.f(1.0, a)
    t = b.fdiv(b.fsub(a, c), b.fadd(a, c))
    first, *others = table("erfc", a)
    g, g_low = fast_sum(b, b.f(first, a), b.fmul(t, estrin(b, t, others)))
    d, d_low = fast_sum(b, b.fadd(a, a), one)
    q = b.fdiv(g, d)
    minus = b.fneg(q)
    q_low = b.fdiv(b.fma(minus, d_low, b.fadd(b.fma(minus, d, g), g_low)), d)
    square, square_low = two_product(b, a, b.fneg(a))
    r, biased = reduce_exp(b, square)
    r, r_low = fast_sum(b, r, square_low)
    e, e_low = fast_sum(b, one, r)
    e_low = b.fadd(e_low, b.fma(b.fmul(r, r), horner(b, r, table("exp", a)), r_low))
    return scale(b, b.fma(e, q, b.fma(e, q_low, b.fmul(e_low, q))), biased)


def erfc(b: LaneBuilder, x: Value) -> Value:
    """``1 - erf(x)``."""
    if format_of(x) is SINGLE:
        return b.fptrunc(erfc(b, b.fpext(x)))
    one, a = b.f(1.0, x), b.fabs(x)
    small = b.fma(x, horner(b, b.fmul(x, x), table("erf", x)), x)
    large = _erfc_large(b, a)
    large = b.select(b.fcmp("olt", x, b.f(0.0, x)), b.fsub(b.f(2.0, x), large), large)
    return b.select(b.fcmp("olt", a, b.f(0.5, x)), b.fsub(one, small), large)


def erfinv(b: LaneBuilder, x: Value) -> Value:
    """The inverse of erf: ``x p(w)`` with ``w = -log(1 - x**2)``, or ``x p(sqrt(w))``.

    The variable is Giles's (*Approximating the erfinv function*, 2010); the centres of the polynomials are those in
    bench/vmath_coefficients.py.
    """
    if format_of(x) is SINGLE:
        return b.fptrunc(erfinv(b, b.fpext(x)))
    one, a = b.f(1.0, x), b.fabs(x)
    w = b.fneg(log_finite(b, b.fma(b.fneg(x), x, one)))
    s = b.sqrt(w)
    p = [
        horner(b, b.fsub(v, b.f(c, x)), table(f"erfinv{k}", x))
        for k, (v, c) in enumerate(zip((w, s, s), ERFINV_CENTRES, strict=True))
    ]
    p = b.select(b.fcmp("olt", w, b.f(5.0, x)), p[0], b.select(b.fcmp("olt", w, b.f(16.0, x)), p[1], p[2]))
    p = b.select(b.fcmp("oeq", a, one), b.f(INF, x), p)
    return b.fmul(x, b.select(b.fcmp("ogt", a, one), b.f(NAN, x), p))
