"""Sines and their inverses.

Arguments are reduced by pi (by pi/2 for the tangent) in three parts after Cody and Waite, each step a fused multiply-add; the
first is exact. Beyond 10**5 (float32) or 10**9 (float64) a branch, taken when any lane needs it, reduces them by a product with
enough bits of 2/pi (Payne and Hanek, *Radian Reduction for Trigonometric Functions*, 1983), one lane after another, in a
function emitted once a module.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from llvmlite import ir

from .common import (
    DOUBLE,
    NAN,
    SINGLE,
    Value,
    any_lane,
    cap,
    element,
    estrin,
    fast_sum,
    flip,
    floor_at,
    format_of,
    horner,
    parts,
    sign_bit,
    table,
    two_product,
    two_sum,
)
from .polynomials import TABLES

if TYPE_CHECKING:
    from ..builder import LaneBuilder

I64, I128, F64 = ir.IntType(64), ir.IntType(128), ir.DoubleType()


# -- Payne & Hanek -----------------------------------------------------------------------------------------------------

_WORDS = 20  # one of zeros, then 1216 bits of 2/pi


@functools.cache
def _two_over_pi() -> tuple[int, ...]:
    """The bits of 2/pi in words of 64, after one word of zeros (pi by Machin's formula)."""
    one = 1 << 1400

    def arctan_of_inverse(k: int) -> int:
        total, power, n = 0, one // k, 1
        while power:
            total += power // n if n % 4 == 1 else -(power // n)
            power //= k * k
            n += 2
        return total

    pi = 4 * (4 * arctan_of_inverse(5) - arctan_of_inverse(239))
    whole = (one << (64 * (_WORDS - 1) + 1)) // pi
    return tuple((whole >> (64 * (_WORDS - 1 - k))) & (2**64 - 1) for k in range(_WORDS))


def _reduction(module: ir.Module, kind: str) -> ir.Function:
    """``{double r, double low, i64 n} f(double x)`` with ``x = n pi/2 + r + low``, n modulo 4.

    Emitted once a module. n is the nearest integer, or the nearest even or odd one, as ``kind`` says. Right for ``|x| >= 2``;
    NaN for infinities and NaN.
    """
    name = f"cermet.reduce_{kind}"
    if name in module.globals:
        return module.globals[name]
    from ..builder import LaneBuilder

    array = ir.ArrayType(I64, _WORDS)
    words = module.globals.get("cermet.two_over_pi")
    if words is None:
        words = ir.GlobalVariable(module, array, "cermet.two_over_pi")
        words.linkage, words.global_constant = "internal", True
        words.initializer = ir.Constant(array, list(_two_over_pi()))
    function = ir.Function(module, ir.FunctionType(ir.LiteralStructType([F64, F64, I64]), [F64]), name)
    function.linkage = "internal"
    function.attributes.add("noinline")
    (x,) = function.args
    q = ir.IRBuilder(function.append_basic_block())
    b = LaneBuilder(q)

    def wide(v: Value) -> Value:
        return q.zext(v, I128)

    def bits128(n: int) -> ir.Constant:
        return ir.Constant(I128, n)

    raw = b.as_int(x)
    e = b.and_(b.lshr(raw, b.i(52, raw)), b.i(2047, raw))
    m = b.or_(b.and_(raw, b.i((1 << 52) - 1, raw)), b.i(1 << 52, raw))  # |x| = m * 2**(e - 1075)
    # |x| * 2/pi * 2**126 modulo 2**128 needs the 192 bits of 2/pi from weight 2**(1076 - e) on: this bit of the table.
    start = b.smax(b.sub(e, b.i(1013, raw)), b.i(0, raw))
    drop, first = b.and_(start, b.i(63, raw)), b.lshr(start, b.i(6, raw))
    loaded = [
        q.load(q.gep(words, [ir.Constant(I64, 0), b.add(first, b.i(k, raw))], source_etype=array), typ=I64) for k in range(4)
    ]
    top, middle, low = (b.call("llvm.fshl.i64", I64, (loaded[k], loaded[k + 1], drop)) for k in range(3))
    product = q.add(
        q.add(q.shl(wide(b.mul(m, top)), bits128(64)), q.mul(wide(m), wide(middle))),
        q.lshr(q.mul(wide(m), wide(low)), bits128(64)),
    )
    # The top two bits are n modulo 4, the rest the fraction of pi/2.
    if kind == "any":
        n = q.lshr(q.add(product, bits128(1 << 125)), bits128(126))
    elif kind == "even":
        n = q.shl(q.lshr(q.add(product, bits128(1 << 126)), bits128(127)), bits128(1))
    else:
        n = q.or_(q.shl(q.lshr(product, bits128(127)), bits128(1)), bits128(1))
    rest = q.sub(product, q.shl(n, bits128(126)))
    high, rest_low = q.trunc(q.lshr(rest, bits128(64)), I64), q.trunc(rest, I64)
    f = b.sitofp(high, F64)
    g = b.fma(b.uitofp(rest_low, F64), b.f(2.0**-64, x), b.sitofp(b.sub(high, b.fptosi(f, 64)), F64))
    c, c_low = (v * 2.0**-62 for v in parts(DOUBLE, "pi/2", 2))
    p, p_low = two_product(b, f, b.f(c, x))
    p_low = b.fma(g, b.f(c, x), b.fma(f, b.f(c_low, x), p_low))
    r = b.fadd(p, p_low)
    low = b.fadd(b.fsub(p, r), p_low)
    r = b.fadd(r, b.fsub(x, x))
    sign = sign_bit(b, x)
    minus = b.ashr(sign, b.i(63, sign))
    result = ir.Constant(function.function_type.return_type, ir.Undefined)
    values = (flip(b, r, sign), flip(b, low, sign), b.sub(b.xor(q.trunc(n, I64), minus), minus))
    for k, v in enumerate(values):
        result = q.insert_value(result, v, k)
    q.ret(result)
    return function


def _large(b: LaneBuilder, x: Value, need: Value, kind: str, fast: list[Value]) -> list[Value]:
    """``fast`` (r, low, n: or r, n where no low part is wanted), replaced by `_reduction` in the lanes of ``need``."""
    function = _reduction(b.module, kind)
    q = b.ir
    single = format_of(x) is SINGLE
    scalar = element(x)
    lanes = x.type.count if isinstance(x.type, ir.VectorType) else 1
    branch_from = q.block
    wanted = any_lane(b, need)
    slow, join = q.append_basic_block("large"), q.append_basic_block("reduced")
    q.cbranch(wanted, slow, join).set_weights([1, 1000])
    q.position_at_end(slow)

    def one(v: Value) -> list[Value]:
        made = q.call(function, [b.fpext(v) if single else v])
        r, low, n = (q.extract_value(made, k) for k in range(3))
        if not single:
            return [r, low, n] if len(fast) == 3 else [r, n]
        near = b.fptrunc(r)
        n = b.trunc_int(n, 32)
        return [near, b.fptrunc(b.fadd(b.fsub(r, b.fpext(near)), low)), n] if len(fast) == 3 else [near, n]

    if lanes == 1:
        results = one(x)
    else:
        loop = q.append_basic_block("lane")
        q.branch(loop)
        q.position_at_end(loop)
        k = q.phi(I64)
        k.add_incoming(ir.Constant(I64, 0), slow)
        phis = [q.phi(v.type) for v in fast]
        for phi, v in zip(phis, fast, strict=True):
            phi.add_incoming(v, slow)
        values = one(b.line(scalar, f"extractelement {x.type} {x.get_reference()}, i64 {k.get_reference()}"))
        results = []
        for phi, v in zip(phis, values, strict=True):
            text = f"insertelement {phi.type} {phi.get_reference()}, {v.type} {v.get_reference()}, i64 {k.get_reference()}"
            results.append(b.line(phi.type, text))
            phi.add_incoming(results[-1], loop)
        following = b.add(k, b.i(1, k))
        k.add_incoming(following, loop)
        done = q.append_basic_block("lanes_done")
        q.cbranch(b.icmp("eq", following, b.i(lanes, k)), done, loop)
        q.position_at_end(done)
        results = [b.select(need, v, f) for v, f in zip(results, fast, strict=True)]
    end = q.block
    q.branch(join)
    q.position_at_end(join)
    merged = []
    for v, f in zip(results, fast, strict=True):
        phi = q.phi(v.type)
        phi.add_incoming(f, branch_from)
        phi.add_incoming(v, end)
        merged.append(phi)
    return merged


def _is_large(b: LaneBuilder, x: Value) -> Value:
    """Where the quick reduction is not enough (NaN and infinity included)."""
    limit = 1e5 if format_of(x) is SINGLE else 1e9
    return b.fcmp("ugt", b.fabs(x), b.f(limit, x))


# -- sine, cosine, tangent ---------------------------------------------------------------------------------------------


def _sine_of_reduced(b: LaneBuilder, r: Value, n: Value) -> Value:
    """``sin(r)`` for ``|r| <= pi/2``, negated where bit 1 of ``n`` is set."""
    z = b.fmul(r, r)
    s = cap(b, floor_at(b, b.fma(b.fmul(r, z), horner(b, z, table("sin", r)), r), -1.0), 1.0)
    bits = format_of(r).bits
    return flip(b, s, b.shl(b.lshr(n, b.i(1, n)), b.i(bits - 1, n)))


def _minus_multiple(b: LaneBuilder, x: Value, n: Value, name: str) -> Value:
    """``x - n * constant`` with the constant in three parts."""
    for part in parts(format_of(x), name, 3):
        x = b.fma(n, b.f(-part, n), x)
    return x


def sin(b: LaneBuilder, x: Value) -> Value:
    """The sine."""
    fmt = format_of(x)
    magic = b.f(fmt.magic, x)
    t = b.fma(x, b.f(parts(fmt, "1/pi", 1)[0], x), magic)
    r = _minus_multiple(b, x, b.fsub(t, magic), "pi")
    raw = b.as_int(t)
    r, n = _large(b, x, _is_large(b, x), "even", [r, b.add(raw, raw)])
    return b.select(b.fcmp("oeq", x, b.f(0.0, x)), x, _sine_of_reduced(b, r, n))


def cos(b: LaneBuilder, x: Value) -> Value:
    """The cosine."""
    # x = (k + 1/2) pi + r: cos(x) = (-1)**(k + 1) sin(r).
    fmt = format_of(x)
    magic = b.f(fmt.magic, x)
    t = b.fadd(b.fma(x, b.f(parts(fmt, "1/pi", 1)[0], x), b.f(-0.5, x)), magic)
    r = _minus_multiple(b, x, b.fadd(b.fsub(t, magic), b.f(0.5, x)), "pi")
    raw = b.as_int(t)
    r, n = _large(b, x, _is_large(b, x), "odd", [r, b.add(raw, raw)])
    return _sine_of_reduced(b, r, b.add(n, b.i(2, n)))


def tan(b: LaneBuilder, x: Value) -> Value:
    """The tangent."""
    if format_of(x) is SINGLE:
        return _tan_single(b, x)
    c1, c2, c3 = parts(DOUBLE, "pi/2", 3)
    magic = b.f(DOUBLE.magic, x)
    t = b.fma(x, b.f(parts(DOUBLE, "2/pi", 1)[0], x), magic)
    n = b.fsub(t, magic)
    p, p_low = two_product(b, n, b.f(-c2, x))
    r, low = two_sum(b, b.fma(n, b.f(-c1, x), x), p)
    low = b.fadd(low, b.fma(n, b.f(-c3, x), p_low))
    r, low, k = _large(b, x, _is_large(b, x), "any", [r, low, b.as_int(t)])
    # Sine and cosine of r + low as sums of two numbers, and a quotient corrected by its remainder.
    z = b.fmul(r, r)
    h = b.fmul(z, b.f(-0.5, x))
    s, s_low = fast_sum(b, r, b.fma(b.fmul(r, z), horner(b, z, table("sin4", x)), low))
    c, h_low = fast_sum(b, b.f(1.0, x), h)
    c_low = b.fma(b.fmul(z, z), horner(b, z, table("cos4", x)), b.fma(b.fneg(r), low, h_low))
    c, c_low = fast_sum(b, c, c_low)
    odd = b.shl(k, b.i(63, k))
    swap = b.icmp("slt", odd, b.i(0, odd))
    num, den = b.select(swap, c, s), b.select(swap, s, c)
    num_low, den_low = b.select(swap, c_low, s_low), b.select(swap, s_low, c_low)
    q = b.fdiv(num, den)
    minus = b.fneg(q)
    rest = b.fma(minus, den_low, b.fadd(b.fma(minus, den, num), num_low))
    result = flip(b, b.fadd(q, b.fdiv(rest, den)), odd)
    return b.select(b.fcmp("oeq", x, b.f(0.0, x)), x, result)


def _tan_single(b: LaneBuilder, x: Value) -> Value:
    """float32, computed in float64: the quotient of two rounded polynomials would be three ulp off."""
    y = b.fpext(x)
    c1, c2 = parts(DOUBLE, "pi/2", 2)
    magic = b.f(DOUBLE.magic, y)
    t = b.fma(y, b.f(parts(DOUBLE, "2/pi", 1)[0], y), magic)
    n = b.fsub(t, magic)
    r = b.fma(n, b.f(-c2, y), b.fma(n, b.f(-c1, y), y))
    r, k = _large(b, y, _is_large(b, y), "any", [r, b.as_int(t)])
    z = b.fmul(r, r)
    s = b.fma(b.fmul(r, z), horner(b, z, TABLES["sin4", 32]), r)
    c = horner(b, z, (1.0, -0.5, *TABLES["cos4", 32]))
    odd = b.shl(k, b.i(63, k))
    swap = b.icmp("slt", odd, b.i(0, odd))
    result = flip(b, b.fdiv(b.select(swap, c, s), b.select(swap, s, c)), odd)
    return b.select(b.fcmp("oeq", x, b.f(0.0, x)), x, b.fptrunc(result))


# -- inverses ----------------------------------------------------------------------------------------------------------


def _asin_core(b: LaneBuilder, x: Value) -> tuple[Value, Value, Value]:
    """Whether ``|x| > 1/2``; s, which is |x|, or then sqrt((1 - |x|)/2); and ``asin(s) - s``."""
    a, half = b.fabs(x), b.f(0.5, x)
    big = b.fcmp("ogt", a, half)
    z = b.select(big, b.fma(a, b.f(-0.5, x), half), b.fmul(a, a))
    s = b.select(big, b.sqrt(z), a)
    return big, s, b.fmul(b.fmul(s, z), horner(b, z, table("asin", x)))


def asin(b: LaneBuilder, x: Value) -> Value:
    """The arc sine, in [-pi/2, pi/2]."""
    hi, lo = parts(format_of(x), "pi/2", 2)
    big, s, t = _asin_core(b, x)
    minus_two = b.f(-2.0, x)
    other, low = fast_sum(b, b.f(hi, x), b.fmul(s, minus_two))
    other = b.fadd(other, b.fadd(low, b.fma(t, minus_two, b.f(lo, x))))
    return b.copysign(b.select(big, other, b.fadd(s, t)), x)


def acos(b: LaneBuilder, x: Value) -> Value:
    """The arc cosine, in [0, pi]."""
    # base + factor * (s + t): pi/2 - x, 2 asin(s), or pi - 2 asin(s).
    hi, lo = parts(format_of(x), "pi/2", 2)
    big, s, t = _asin_core(b, x)
    sign = sign_bit(b, x)
    one, two, zero = b.f(1.0, x), b.f(2.0, x), b.f(0.0, x)
    negative = b.fcmp("olt", x, zero)
    size = b.select(big, two, one)
    factor = flip(b, size, b.xor(sign, sign_bit(b, b.select(big, zero, b.f(-1.0, x)))))
    quarters = b.select(big, b.select(negative, two, zero), one)
    high = b.fma(factor, s, b.fmul(quarters, b.f(hi, x)))
    return b.fadd(high, b.fma(factor, t, b.fmul(quarters, b.f(lo, x))))


def _octant(b: LaneBuilder, q: Value, swap: Value) -> Value:
    """``atan(q)`` for q in [0, 1], subtracted from pi/2 where ``swap`` holds."""
    hi, lo = parts(format_of(q), "pi/2", 2)
    z = b.fmul(q, q)
    t = b.fmul(z, estrin(b, z, table("atan", q)))
    minus = b.fneg(q)
    other = b.fadd(b.fadd(b.f(hi, q), minus), b.fma(minus, t, b.f(lo, q)))
    return b.select(swap, other, b.fma(q, t, q))


def atan(b: LaneBuilder, x: Value) -> Value:
    """The arc tangent, in [-pi/2, pi/2]."""
    one, a = b.f(1.0, x), b.fabs(x)
    swap = b.fcmp("ogt", a, one)
    q = b.select(swap, b.fdiv(one, a), a)
    return b.copysign(_octant(b, q, swap), x)


def atan2(b: LaneBuilder, y: Value, x: Value) -> Value:
    """The angle of the point ``(x, y)``, in [-pi, pi]; signed zeros and infinities as in C."""
    fmt = format_of(x)
    ax, ay = b.fabs(x), b.fabs(y)
    swap = b.fcmp("ogt", ay, ax)
    low, high = b.select(swap, ax, ay), b.select(swap, ay, ax)
    zero, one = b.f(0.0, x), b.f(1.0, x)
    # 0/0 is 0 here and inf/inf is 1.
    equal = b.select(b.fcmp("oeq", ax, zero), zero, one)
    angle = _octant(b, b.select(b.fcmp("oeq", ax, ay), equal, b.fdiv(low, high)), swap)
    hi, lo = (2 * v for v in parts(fmt, "pi/2", 2))
    left = b.fsub(b.f(hi, x), b.fsub(angle, b.f(lo, x)))
    raw = b.as_int(x)
    result = b.copysign(b.select(b.icmp("slt", raw, b.i(0, raw)), left, angle), y)
    return b.select(b.fcmp("uno", x, y), b.f(NAN, x), result)
