"""The floating remainder of C, exact: a loop of exact partial remainders in a function of its own.

Long division in binary takes a step for each bit of the quotient; here a step takes about twenty bits. With ``s`` the
divisor times a power of two such that ``1 <= r / s < 2**22``, the rounded quotient is at most one too large, ``r - q
* s`` is a multiple of s's last place below s, hence exact, and one conditional addition of s repairs the sign.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from cermet.compiler.llvm.builder import BOOL, F32, LaneBuilder, _mangle, element_of, lanes_of

__all__ = ["fmod"]

_STEP = 20


def fmod(b: LaneBuilder, x: Any, y: Any) -> Any:
    """``x - trunc(x / y) * y`` with the sign of x; NaN for infinite x or zero y."""
    name = f"fmod.{_mangle(x.type)}"
    if name not in b.module.globals:
        _define(b, name, x.type)
    return b.call(name, x.type, (x, y))


def _define(outer: LaneBuilder, name: str, type_: ir.Type) -> None:
    function = ir.Function(outer.module, ir.FunctionType(type_, [type_, type_]), name)
    function.linkage = "internal"
    function.attributes.add("nounwind")
    entry, head, step, done = (function.append_basic_block(n) for n in ("entry", "head", "step", "done"))
    b = LaneBuilder(ir.IRBuilder(entry), lanes_of(type_), outer.target)
    x, y = function.args
    size, divisor = b.fabs(x), b.fabs(y)
    infinity = b.f(float("inf"), x)
    valid = b.and_(b.fcmp("olt", size, infinity), b.fcmp("ogt", divisor, b.f(0.0, x)))
    b.effect("br label %head")
    b.ir.position_at_end(head)
    r = b.line(type_, "")
    active = b.and_(valid, b.fcmp("oge", r, divisor))
    b.effect(f"br i1 {_any(b, active).get_reference()}, label %step, label %done")
    b.ir.position_at_end(step)
    following = b.select(active, _remainder(b, r, divisor), r)
    b.effect("br label %head")
    r.text = f"{r.ref} = phi {type_} [ {size.ref}, %entry ], [ {following.ref}, %step ]"
    b.ir.position_at_end(done)
    result = b.select(valid, b.copysign(r, x), b.f(float("nan"), x))
    b.effect(f"ret {type_} {result.ref}")


def _any(b: LaneBuilder, mask: Any) -> Any:
    n = lanes_of(mask.type)
    return mask if n == 1 else b.call(f"llvm.vector.reduce.or.v{n}i1", BOOL, (mask,))


def _exponent(b: LaneBuilder, x: Any, mantissa: int) -> Any:
    """The biased exponent, going on below 0 for subnormals."""
    bits = b.as_int(x)
    lifted = b.as_int(b.fmul(x, b.f(2.0 ** (mantissa + 1), x)))
    width = b.i(mantissa, x)
    below = b.sub(b.lshr(lifted, width), b.i(mantissa + 1, x))
    plain = b.lshr(bits, width)
    return b.select(b.icmp("eq", plain, b.i(0, x)), below, plain)


def _remainder(b: LaneBuilder, r: Any, divisor: Any) -> Any:
    """One exact step: r less a multiple of the divisor, the exponent of r falling by about `_STEP`."""
    mantissa, bias = (23, 127) if element_of(r.type) is F32 else (52, 1023)
    gap = b.sub(_exponent(b, r, mantissa), _exponent(b, divisor, mantissa))
    shift = b.smax(b.sub(gap, b.i(_STEP, r)), b.i(0, r))
    # The power of two in two factors: the exponents of normal numbers reach half as far as those of quotients.
    first = b.lshr(shift, b.i(1, r))
    powers = [b.as_float(b.shl(b.add(k, b.i(bias, r)), b.i(mantissa, r))) for k in (first, b.sub(shift, first))]
    s = b.fmul(b.fmul(divisor, powers[0]), powers[1])
    q = b.trunc(b.fdiv(r, s))
    rest = b.fma(b.fneg(q), s, r)
    return b.select(b.fcmp("olt", rest, b.f(0.0, r)), b.fadd(rest, s), rest)
