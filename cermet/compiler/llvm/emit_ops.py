"""Each operation of the loop IR on lanes: a function of a `LaneBuilder`, the operands' dtype and the operand values.

Nothing here knows of loops or memory. What is not one instruction everywhere (division, shifts, 16-bit floats, casts) is
composed so that it neither traps nor is undefined for any input.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cermet import dtypes as dt
from cermet.compiler.llvm.builder import F32, F64, LaneBuilder, lanes_of, llvm_type, vector
from cermet.compiler.loops.ir import MATH
from cermet.dtypes import DType

__all__ = ["cast", "combine", "from_memory", "identity", "operation", "to_memory"]

Lowering = Callable[[LaneBuilder, DType, list[Any]], Any]


def operation(b: LaneBuilder, op: str, dtype: DType, args: list[Any]) -> Any:
    """``op`` on ``args``, whose dtype is ``dtype`` (that of the last one for ``select``)."""
    found = _TABLE.get(op)
    if found is not None:
        return found(b, dtype, args)
    if op in MATH:
        from cermet.compiler.llvm import vmath  # late: the vector math imports the builder, and most kernels need none of it

        return vmath.emit(b, op, *args)
    raise NotImplementedError(f"the LLVM emitter does not know the operation {op!r}")


# -- arithmetic ----------------------------------------------------------------------------------------------------


def _by_kind(floating: str, integer: str, boolean: str) -> Lowering:
    def lower(b: LaneBuilder, d: DType, a: list[Any]) -> Any:
        name = floating if d.kind == "f" else boolean if d.kind == "b" else integer
        return getattr(b, name)(*a)

    return lower


def _min(b: LaneBuilder, d: DType, a: list[Any]) -> Any:
    if d.kind == "f":
        return b.minimum(*a)
    return b.and_(*a) if d.kind == "b" else b.umin(*a) if d.kind == "u" else b.smin(*a)


def _max(b: LaneBuilder, d: DType, a: list[Any]) -> Any:
    if d.kind == "f":
        return b.maximum(*a)
    return b.or_(*a) if d.kind == "b" else b.umax(*a) if d.kind == "u" else b.smax(*a)


def _fma(b: LaneBuilder, d: DType, a: list[Any]) -> Any:
    if d.kind == "f":
        return b.fma(*a)
    return b.add(b.mul(a[0], a[1]), a[2])


def _neg(b: LaneBuilder, d: DType, a: list[Any]) -> Any:
    return b.fneg(a[0]) if d.kind == "f" else b.sub(b.i(0, a[0]), a[0])


def _abs(b: LaneBuilder, d: DType, a: list[Any]) -> Any:
    if d.kind == "f":
        return b.fabs(a[0])
    return b.smax(a[0], b.sub(b.i(0, a[0]), a[0])) if d.kind == "i" else a[0]


def _sign(b: LaneBuilder, d: DType, a: list[Any]) -> Any:
    x = a[0]
    if d.kind == "b":
        return x
    if d.kind == "u":
        return b.umin(x, b.i(1, x))
    if d.kind == "i":
        return b.smax(b.smin(x, b.i(1, x)), b.i(-1, x))
    zero = b.f(0.0, x)
    below = b.select(b.fcmp("olt", x, zero), b.f(-1.0, x), b.select(b.fcmp("oeq", x, zero), zero, x))
    return b.select(b.fcmp("ogt", x, zero), b.f(1.0, x), below)


# -- integer division, without traps -------------------------------------------------------------------------------


def _divide(b: LaneBuilder, d: DType, x: Any, y: Any) -> tuple[Any, Any]:
    """Quotient towards zero and remainder; 0 and 0 for a zero divisor; the smallest integer by -1 wraps."""
    signed = d.kind == "i"
    known = _known_int(y)
    if known is not None and known not in (0, -1):
        q = b._binary("sdiv" if signed else "udiv", x, y)
        return q, b.sub(x, b.mul(q, y))
    zero = b.i(0, y)
    is_zero = b.icmp("eq", y, zero)
    if lanes_of(x.type) > 1 and d.bits <= 32:
        # Quotients of 32-bit integers are exact in float64 (they differ from an integer by at least 2**-31 of themselves), and a
        # vector division by floats beats one integer division a lane.
        to = b.sitofp if signed else b.uitofp
        ratio = b.fdiv(to(x, F64), to(y, F64))
        q = b.fptosi(ratio, 64 if d.bits == 32 else 32)
        q = b.trunc_int(q, d.bits)
    else:
        avoid = b.or_(is_zero, b.icmp("eq", y, b.i(-1, y))) if signed else is_zero
        q = b._binary("sdiv" if signed else "udiv", x, b.select(avoid, b.i(1, y), y))
        if signed:
            q = b.select(b.icmp("eq", y, b.i(-1, y)), b.sub(zero, x), q)
    q = b.select(is_zero, zero, q)
    return q, b.select(is_zero, zero, b.sub(x, b.mul(q, y)))


def _known_int(x: Any) -> int | None:
    ref = x.get_reference()
    if ref.startswith("splat ("):
        ref = ref[7:-1].split(" ")[1]
    try:
        return int(ref)
    except ValueError:
        return None


def _tdiv(b: LaneBuilder, d: DType, a: list[Any]) -> Any:
    return _divide(b, d, a[0], a[1])[0]


def _trem(b: LaneBuilder, d: DType, a: list[Any]) -> Any:
    return _divide(b, d, a[0], a[1])[1]


def _differs(b: LaneBuilder, r: Any, y: Any) -> Any:
    """Where the remainder is not zero and has not the divisor's sign: there floor differs from truncation."""
    zero = b.i(0, r)
    return b.and_(b.icmp("ne", r, zero), b.icmp("slt", b.xor(r, y), zero))


def _idiv(b: LaneBuilder, d: DType, a: list[Any]) -> Any:
    known = _known_int(a[1])
    if known is not None and known > 0 and known & (known - 1) == 0 and d.kind == "i":
        return b.ashr(a[0], b.i(known.bit_length() - 1, a[0]))
    q, r = _divide(b, d, a[0], a[1])
    if d.kind != "i":
        return q
    return b.select(_differs(b, r, a[1]), b.sub(q, b.i(1, q)), q)


def _imod(b: LaneBuilder, d: DType, a: list[Any]) -> Any:
    known = _known_int(a[1])
    if known is not None and known > 0 and known & (known - 1) == 0 and d.kind == "i":
        return b.and_(a[0], b.i(known - 1, a[0]))
    _, r = _divide(b, d, a[0], a[1])
    if d.kind != "i":
        return r
    return b.select(_differs(b, r, a[1]), b.add(r, a[1]), r)


def _shl(b: LaneBuilder, d: DType, a: list[Any]) -> Any:
    x, n = a
    known = _known_int(n)
    if known is not None:
        return b.shl(x, n) if 0 <= known < d.bits else b.i(0, x)
    fits = b.icmp("ult", n, b.i(d.bits, n))
    return b.select(fits, b.shl(x, b.and_(n, b.i(d.bits - 1, n))), b.i(0, x))


def _shr(b: LaneBuilder, d: DType, a: list[Any]) -> Any:
    x, n = a
    if d.kind == "i":
        return b.ashr(x, b.umin(n, b.i(d.bits - 1, n)))
    fits = b.icmp("ult", n, b.i(d.bits, n))
    return b.select(fits, b.lshr(x, b.and_(n, b.i(d.bits - 1, n))), b.i(0, x))


# -- comparison and floating operations ----------------------------------------------------------------------------

_ORDERED = {"eq": "oeq", "ne": "une", "lt": "olt", "le": "ole", "gt": "ogt", "ge": "oge"}


def _compare(name: str) -> Lowering:
    def lower(b: LaneBuilder, d: DType, a: list[Any]) -> Any:
        if d.kind == "f":
            return b.fcmp(_ORDERED[name], *a)
        if name in ("eq", "ne"):
            return b.icmp(name, *a)
        return b.icmp(("s" if d.kind == "i" else "u") + name, *a)

    return lower


def _rsqrt(b: LaneBuilder, d: DType, a: list[Any]) -> Any:
    return b.fdiv(b.f(1.0, a[0]), b.sqrt(a[0]))


def _nextafter(b: LaneBuilder, d: DType, a: list[Any]) -> Any:
    x, y = a
    bits = b.as_int(x)
    one, zero = b.i(1, bits), b.f(0.0, x)
    # Away from zero the magnitude's integer grows by one; from zero the first step is the smallest subnormal with y's sign.
    away = b.icmp("eq", b.zext(b.fcmp("olt", x, y), d.bits), b.zext(b.icmp("sge", bits, b.i(0, bits)), d.bits))
    stepped = b.as_float(b.select(away, b.add(bits, one), b.sub(bits, one)))
    stepped = b.select(b.fcmp("oeq", x, zero), b.copysign(b.as_float(one), y), stepped)
    stepped = b.select(b.fcmp("oeq", x, y), y, stepped)
    return b.select(b.fcmp("uno", x, y), b.fadd(x, y), stepped)


def _signbit(b: LaneBuilder, d: DType, a: list[Any]) -> Any:
    bits = b.as_int(a[0])
    return b.icmp("slt", bits, b.i(0, bits))


def _fmod(b: LaneBuilder, d: DType, a: list[Any]) -> Any:
    from cermet.compiler.llvm.emit_fmod import fmod  # late: a loop in a function of its own, rarely wanted

    return fmod(b, a[0], a[1])


def _plain(name: str) -> Lowering:
    def lower(b: LaneBuilder, d: DType, a: list[Any]) -> Any:
        return getattr(b, name)(*a)

    return lower


_TABLE: dict[str, Lowering] = {
    "add": _by_kind("fadd", "add", "or_"),
    "sub": _by_kind("fsub", "sub", "xor"),
    "mul": _by_kind("fmul", "mul", "and_"),
    "div": _plain("fdiv"),
    "min": _min,
    "max": _max,
    "fma": _fma,
    "neg": _neg,
    "abs": _abs,
    "sign": _sign,
    "idiv": _idiv,
    "imod": _imod,
    "tdiv": _tdiv,
    "trem": _trem,
    "and": _plain("and_"),
    "or": _plain("or_"),
    "xor": _plain("xor"),
    "not": _plain("not_"),
    "shl": _shl,
    "shr": _shr,
    "rsqrt": _rsqrt,
    "isnan": lambda b, d, a: b.fcmp("uno", a[0], a[0]),
    "nextafter": _nextafter,
    "signbit": _signbit,
    "fmod": _fmod,
    "select": _plain("select"),
}
_TABLE |= {name: _compare(name) for name in _ORDERED}
_TABLE |= {name: _plain(name) for name in ("floor", "ceil", "trunc", "rint", "sqrt", "copysign", "fmin", "fmax")}


# -- casts ---------------------------------------------------------------------------------------------------------


def cast(b: LaneBuilder, x: Any, from_: DType, to: DType) -> Any:
    """``x`` of compute dtype ``from_`` as ``to`` (whose 16-bit floats are float32 values rounded to them)."""
    if to.kind == "f":
        return _cast_to_float(b, x, from_, to)
    if to.kind == "b":
        if from_.kind == "b":
            return x
        return b.fcmp("une", x, b.f(0.0, x)) if from_.kind == "f" else b.icmp("ne", x, b.i(0, x))
    if from_.kind == "f":
        return b.fptosi_sat(x, to.bits) if to.kind == "i" else b.fptoui_sat(x, to.bits)
    bits = 1 if from_.kind == "b" else from_.bits
    if bits > to.bits:
        return b.trunc_int(x, to.bits)
    if bits == to.bits:
        return x
    return b.sext(x, to.bits) if from_.kind == "i" else b.zext(x, to.bits)


def _cast_to_float(b: LaneBuilder, x: Any, from_: DType, to: DType) -> Any:
    element = llvm_type(to)
    if from_.kind == "f":
        x = x if from_.compute is to.compute else b.fpext(x) if element is F64 else _narrow(b, x, to)
    else:
        x = b.sitofp(x, element) if from_.kind == "i" else b.uitofp(x, element)
    if to.itemsize == 2:
        return from_memory(b, to_memory(b, x, to), to)
    return x


def _narrow(b: LaneBuilder, x: Any, to: DType) -> Any:
    """float64 to float32; on the way to a 16-bit float it is rounded to odd, so that the second rounding cannot err."""
    y = b.fptrunc(x)
    if to.itemsize != 2:
        return y
    inexact = b.fcmp("one", b.fpext(y), x)
    bits = b.as_int(y)
    even = b.icmp("eq", b.and_(bits, b.i(1, bits)), b.i(0, bits))
    # Where the nearest float32 is even it lies on one side of x; its neighbour across x is odd.
    outward = b.fcmp("ogt", b.fabs(x), b.fabs(b.fpext(y)))
    odd = b.select(outward, b.add(bits, b.i(1, bits)), b.sub(bits, b.i(1, bits)))
    # An overflow to infinity steps back to the largest float32, which rounds to infinity as well.
    return b.as_float(b.select(b.and_(inexact, even), odd, bits))


def bitcast(b: LaneBuilder, x: Any, from_: DType, to: DType) -> Any:
    """The same bits as another dtype of the same width."""
    if from_.kind == to.kind or (from_.kind in "iu" and to.kind in "iu"):
        return x
    if to.kind == "f":
        return b.as_float(x)
    return b.as_int(x) if from_.kind == "f" else b.zext(x, to.bits)


# -- memory formats ------------------------------------------------------------------------------------------------


def from_memory(b: LaneBuilder, x: Any, dtype: DType) -> Any:
    """What a load of ``memory_type(dtype)`` means as a value."""
    if dtype.kind == "b":
        return b.icmp("ne", x, b.i(0, x))
    if dtype is dt.bfloat16:
        return b.as_float(b.shl(b.zext(x, 32), b.i(16, vector(llvm_type(dt.int32), lanes_of(x.type)))))
    if dtype is dt.float16:
        if b.has_half:
            return b._cast("fpext", x, F32)
        from cermet.compiler.llvm.half import half_to_float

        return half_to_float(b, x)
    return x


def to_memory(b: LaneBuilder, x: Any, dtype: DType) -> Any:
    """The value as it is stored: bool as a byte, the 16-bit floats rounded to nearest even."""
    if dtype.kind == "b":
        return b.zext(x, 8)
    if dtype is dt.bfloat16:
        bits = b.as_int(x)
        lowest = b.and_(b.lshr(bits, b.i(16, bits)), b.i(1, bits))
        rounded = b.add(bits, b.add(lowest, b.i(0x7FFF, bits)))
        quiet = b.or_(bits, b.i(0x400000, bits))  # a NaN keeps its sign and payload's top and stays a NaN
        return b.trunc_int(b.lshr(b.select(b.fcmp("uno", x, x), quiet, rounded), b.i(16, bits)), 16)
    if dtype is dt.float16:
        if b.has_half:
            from cermet.compiler.llvm.builder import F16

            return b._cast("fptrunc", x, F16)
        from cermet.compiler.llvm.half import float_to_half

        return float_to_half(b, x)
    return x


# -- reductions ----------------------------------------------------------------------------------------------------


def identity(op: str, dtype: DType) -> float | int:
    """The value that ``op`` leaves others unchanged with (-0.0 for add: x + 0.0 would turn -0.0 into 0.0)."""
    if dtype.kind == "f":
        return {"add": -0.0, "mul": 1.0, "min": float("inf"), "max": float("-inf")}[op]
    if dtype.kind == "b":
        return {"add": 0, "or": 0, "max": 0, "mul": 1, "and": 1, "min": 1}[op]
    high = (1 << (dtype.bits - 1)) - 1 if dtype.kind == "i" else (1 << dtype.bits) - 1
    low = -high - 1 if dtype.kind == "i" else 0
    return {"add": 0, "mul": 1, "min": high, "max": low, "and": -1, "or": 0}[op]


def combine(b: LaneBuilder, op: str, dtype: DType, x: Any, y: Any) -> Any:
    """One step of a reduction."""
    return _TABLE[op](b, dtype, [x, y])


def fold(b: LaneBuilder, op: str, dtype: DType, x: Any, lanes: int) -> Any:
    """The lanes of ``x`` combined by halves until ``lanes`` are left: a fixed tree."""
    n = lanes_of(x.type)
    while n > lanes:
        n //= 2
        x = (
            combine(b, op, dtype, b.shuffle(x, None, list(range(n))), b.shuffle(x, None, list(range(n, 2 * n))))
            if n > 1
            else (combine(b, op, dtype, b.extract(x, 0), b.extract(x, 1)))
        )
    return x
