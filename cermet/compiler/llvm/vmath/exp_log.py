"""Exponentials and logarithms.

Reduction in two parts after Cody and Waite, *Software Manual for the Elementary Functions* (1980); the two-part form of the
logarithm (a head and a small tail, so that the last addition rounds almost alone) follows the analysis in Muller, *Elementary
Functions* (2016), chapters 9 and 11. ``log1p`` carries the rounding error of ``1 + x`` as Kahan suggested.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .common import DOUBLE, INF, NAN, SINGLE, Pair, Value, cap, element, floor_at, format_of, horner, parts, table, two_sum

if TYPE_CHECKING:
    from ..builder import LaneBuilder


# -- exponentials ------------------------------------------------------------------------------------------------------


def _halves(b: LaneBuilder, biased: Value) -> Pair:
    """Two powers of two whose product is ``2**n``, from an integer with ``n + 2*bias`` in its low bits.

    Each is a normal number even where ``2**n`` is not, so that multiplying by both rounds once, into subnormals too.
    """
    bits = format_of(biased).mantissa
    raw = b.as_int(biased)
    half = b.lshr(raw, b.i(1, raw))
    shift = b.i(bits, raw)
    return b.as_float(b.shl(half, shift)), b.as_float(b.shl(b.sub(raw, half), shift))


def reduce_exp(b: LaneBuilder, x: Value, shift: int = 0) -> Pair:
    """``x = n ln2 + r`` with ``|r| <= ln2 / 2``: ``r``, and ``n + shift`` biased for `scale`."""
    fmt = format_of(x)
    hi, lo = parts(fmt, "ln2", 2)
    magic = b.f(fmt.magic + 2 * fmt.bias + shift, x)
    biased = b.fma(x, b.f(parts(fmt, "log2e", 1)[0], x), magic)
    n = b.fsub(biased, magic)
    r = b.fma(n, b.f(-hi, x), x)  # exact
    return b.fma(n, b.f(-lo, x), r), biased


def scale(b: LaneBuilder, x: Value, biased: Value) -> Value:
    """``x * 2**n`` for the second result of `reduce_exp`, right in overflow and underflow."""
    first, second = _halves(b, biased)
    return b.fmul(b.fmul(x, first), second)


def exp(b: LaneBuilder, x: Value, shift: int = 0) -> Value:
    """``2**shift * e**x`` (shift 0 or -1)."""
    low, high = (-104.5, 89.5) if format_of(x).bits == 32 else (-746.0, 710.5)
    r, biased = reduce_exp(b, cap(b, floor_at(b, x, low), high), shift)
    return scale(b, horner(b, r, (1.0, 1.0, *table("exp", x))), biased)


def exp2(b: LaneBuilder, x: Value) -> Value:
    """``2**x``."""
    fmt = format_of(x)
    low, high = (-151.0, 129.0) if fmt.bits == 32 else (-1076.0, 1025.0)
    y = cap(b, floor_at(b, x, low), high)
    magic = b.f(fmt.magic + 2 * fmt.bias, x)
    biased = b.fadd(y, magic)
    r = b.fsub(y, b.fsub(biased, magic))
    return scale(b, horner(b, r, (1.0, *table("exp2", x))), biased)


def expm1_core(b: LaneBuilder, x: Value, shift: int) -> Value:
    """``2**shift (e**x - 1)`` where ``2**(n + shift)`` is a normal number; -0 gives +0."""
    fmt = format_of(x)
    r, biased = reduce_exp(b, x, shift - fmt.bias)
    p = b.fma(b.fmul(r, r), horner(b, r, table("exp", x)), r)
    raw = b.as_int(biased)
    power = b.as_float(b.shl(raw, b.i(fmt.mantissa, raw)))
    return b.fma(p, power, b.fsub(power, b.f(2.0**shift, x)))


def expm1(b: LaneBuilder, x: Value) -> Value:
    """``e**x - 1``."""
    fmt = format_of(x)
    low, high = (-18.0, 89.0) if fmt.bits == 32 else (-40.0, 710.0)
    y = cap(b, floor_at(b, x, low), high)
    # 2**(n-1) instead of 2**n, doubled at the end, for the last binade before overflow.
    half = expm1_core(b, y, -1)
    return b.select(b.fcmp("olt", b.fabs(x), b.f(fmt.half_ulp, x)), x, b.fadd(half, half))


# -- logarithms --------------------------------------------------------------------------------------------------------

_ROOT_HALF = {32: 0x3F3504F3, 64: 0x3FE6A09E667F3BCD}  # the bits of sqrt(1/2)


def split(b: LaneBuilder, x: Value) -> Pair:
    """``x = m * 2**e`` with m in [sqrt(1/2), sqrt(2)), for positive normal ``x``: m, and ``e + bias`` as an integer."""
    fmt = format_of(x)
    root = _ROOT_HALF[fmt.bits]
    raw = b.add(b.as_int(x), b.i(fmt.one - root, x))
    e = b.lshr(raw, b.i(fmt.mantissa, raw))
    m = b.add(b.and_(raw, b.i((1 << fmt.mantissa) - 1, raw)), b.i(root, raw))
    return b.as_float(m), e


def exponent(b: LaneBuilder, e: Value, lifted: Value | None = None) -> Value:
    """The second result of `split` as a number without its bias, by placing it in the low bits of ``2**mantissa``.

    ``lifted`` says where the argument had been multiplied by ``2**(mantissa + 2)``.
    """
    fmt = DOUBLE if element(e).width == 64 else SINGLE
    value = b.as_float(b.or_(e, b.i((fmt.bias + fmt.mantissa) << fmt.mantissa, e)))
    base = 2.0**fmt.mantissa + fmt.bias
    away = b.f(base, value)
    if lifted is not None:
        away = b.select(lifted, b.f(base + fmt.mantissa + 2, value), away)
    return b.fsub(value, away)


def lifted_split(b: LaneBuilder, x: Value) -> Pair:
    """`split` with the exponent as a number, for all positive finite ``x``, subnormals included."""
    fmt = format_of(x)
    small = b.fcmp("olt", x, b.f(fmt.tiny, x))
    m, e = split(b, b.select(small, b.fmul(x, b.f(2.0 ** (fmt.mantissa + 2), x)), x))
    return m, exponent(b, e, small)


def log_tail(b: LaneBuilder, f: Value) -> Value:
    """``log(1 + f) - f`` for ``1 + f`` in [sqrt(1/2), sqrt(2)]."""
    c = table("log", f)
    if format_of(f).bits == 32:
        q = horner(b, f, c)
        return b.fmul(b.fmul(f, f), b.fma(q, f, b.f(-0.5, f)))
    # s = f / (2 + f): log(1 + f) = log((1 + s) / (1 - s)), an odd series in s; 2s = f - f**2/2 + s f**2/2.
    s = b.fdiv(f, b.fadd(f, b.f(2.0, f)))
    z = b.fmul(s, s)
    h = b.fmul(b.fmul(f, b.f(0.5, f)), f)
    return b.fma(s, b.fma(z, horner(b, z, c), h), b.fneg(h))


def decompose(b: LaneBuilder, x: Value) -> tuple[Value, Value, Value]:
    """``log(x) = e ln2 + f + tail`` for positive finite ``x``."""
    m, e = lifted_split(b, x)
    f = b.fsub(m, b.f(1.0, x))
    return e, f, log_tail(b, f)


def _log_specials(b: LaneBuilder, x: Value, result: Value) -> Value:
    """``result`` for positive finite ``x``; -inf at 0, NaN below, inf and NaN as they are."""
    zero = b.f(0.0, x)
    result = b.select(b.fcmp("olt", x, b.f(INF, x)), result, x)
    low = b.select(b.fcmp("oeq", x, zero), b.f(-INF, x), b.f(NAN, x))
    return b.select(b.fcmp("ole", x, zero), low, result)


def log_of_parts(b: LaneBuilder, e: Value, f: Value, tail: Value) -> Value:
    """``e ln2 + f + tail``."""
    hi, lo = parts(format_of(f), "ln2", 2)
    return b.fma(e, b.f(hi, f), b.fadd(f, b.fma(e, b.f(lo, f), tail)))


def log_of_parts_pair(b: LaneBuilder, e: Value, f: Value, tail: Value) -> Pair:
    """The same, and most of what its last addition lost."""
    hi, lo = parts(format_of(f), "ln2", 2)
    g = b.fadd(f, b.fma(e, b.f(lo, f), tail))
    total = b.fma(e, b.f(hi, f), g)
    return total, b.fma(e, b.f(hi, f), b.fsub(g, total))


def log_finite(b: LaneBuilder, x: Value) -> Value:
    """`log` for positive finite ``x`` alone."""
    return log_of_parts(b, *decompose(b, x))


def log(b: LaneBuilder, x: Value) -> Value:
    """The natural logarithm."""
    return _log_specials(b, x, log_finite(b, x))


def _log_base(b: LaneBuilder, x: Value, unit: str, two: tuple[float, float]) -> Value:
    """``log(x) * unit``: ``two`` is the logarithm of 2 to this base, in two parts."""
    hi, lo = parts(format_of(x), unit, 2)
    e, f, tail = decompose(b, x)
    small = b.fma(tail, b.f(hi, x), b.fmul(f, b.f(lo, x)))
    if two[1]:
        small = b.fma(e, b.f(two[1], x), small)
    if two == (1.0, 0.0):
        result = b.fadd(e, b.fma(f, b.f(hi, x), small))
    else:
        result = b.fma(e, b.f(two[0], x), b.fma(f, b.f(hi, x), small))
    return _log_specials(b, x, result)


def log2(b: LaneBuilder, x: Value) -> Value:
    """The logarithm to base 2."""
    return _log_base(b, x, "log2e", (1.0, 0.0))


def log10(b: LaneBuilder, x: Value) -> Value:
    """The logarithm to base 10."""
    hi, lo = parts(format_of(x), "log10_2", 2)
    return _log_base(b, x, "log10e", (hi, lo))


def log_sum(b: LaneBuilder, u: Value, c: Value) -> Value:
    """``log(u + c)`` for normal positive finite ``u`` and ``|c|`` at most an ulp of it or so."""
    fmt = format_of(u)
    m, e = split(b, u)
    # c * 2**-e; where that power would underflow (u near overflow) c does not count, and the power may come out as 0.
    most = b.i(2 * fmt.bias, e)
    inverse = b.as_float(b.shl(b.sub(most, b.smin(e, most)), b.i(fmt.mantissa, e)))
    f = b.fma(c, inverse, b.fsub(m, b.f(1.0, u)))
    return log_of_parts(b, exponent(b, e), f, log_tail(b, f))


def log1p(b: LaneBuilder, x: Value) -> Value:
    """``log(1 + x)``."""
    u, c = two_sum(b, b.f(1.0, x), x)
    result = log_sum(b, u, c)
    # Zero keeps its sign; infinity and NaN are their own logarithms.
    keep = b.or_(b.fcmp("oeq", x, b.f(0.0, x)), b.fcmp("ueq", x, b.f(INF, x)))
    result = b.select(keep, x, result)
    one = b.f(-1.0, x)
    low = b.select(b.fcmp("oeq", x, one), b.f(-INF, x), b.f(NAN, x))
    return b.select(b.fcmp("ole", x, one), low, result)
