"""`LaneBuilder`: typed arithmetic on a number of lanes, over an `llvmlite.ir.IRBuilder`.

One lane means scalars, more mean ``<W x T>`` vectors; code written against it (the vector math, the emitter,
epilogues of kernels designed by hand) serves both. No fast-math flag is ever set and nothing is contracted: an
elementwise kernel gives the same bits whether it runs as vectors or scalars, fused with its neighbours or not. A
fused multiply-add happens only where `fma` is called.

Instructions are inserted as ready-made lines of text: building an `llvmlite.ir` instruction object, with its name table and
its formatting, costs several times as much, and most of the time of a small kernel's compilation would go there. The values are
still `llvmlite.ir` values, so they mix freely with those that an `IRBuilder` makes.
"""

from __future__ import annotations

import ctypes
import itertools
import struct
from functools import cache
from typing import Any

from llvmlite import ir

from cermet import dtypes as dt
from cermet.dtypes import DType

__all__ = [
    "BOOL",
    "F16",
    "F32",
    "F64",
    "I8",
    "I16",
    "I32",
    "I64",
    "PTR",
    "LaneBuilder",
    "Line",
    "constant",
    "llvm_type",
    "memory_type",
    "vector",
]

BOOL, I8, I16, I32, I64 = (ir.IntType(n) for n in (1, 8, 16, 32, 64))
F16, F32, F64 = ir.HalfType(), ir.FloatType(), ir.DoubleType()
PTR = ir.PointerType()
VOID = ir.VoidType()

_SCALAR = {1: BOOL, 8: I8, 16: I16, 32: I32, 64: I64}
_SUFFIX = {BOOL: "i1", I8: "i8", I16: "i16", I32: "i32", I64: "i64", F16: "f16", F32: "f32", F64: "f64"}
_FLOAT_BITS = {F16: 16, F32: 32, F64: 64}
_FLOAT_OF_BITS = {16: F16, 32: F32, 64: F64}
_MANTISSA = {F16: 10, F32: 23, F64: 52}


@cache
def vector(element: ir.Type, lanes: int) -> ir.Type:
    """``<lanes x element>``, or ``element`` itself for one lane. Cached, so that its text is made once."""
    return element if lanes == 1 else ir.VectorType(element, lanes)


def llvm_type(dtype: DType) -> ir.Type:
    """The LLVM type in which expressions of ``dtype`` are computed (i1 for bool, float for the 16-bit floats)."""
    if dtype.kind == "f":
        return F64 if dtype is dt.float64 else F32
    return BOOL if dtype.kind == "b" else _SCALAR[dtype.bits]


def memory_type(dtype: DType) -> ir.Type:
    """The LLVM type of an element in memory; i16 for bfloat16, whose conversion is integer arithmetic."""
    if dtype.kind == "f":
        return {"float64": F64, "float32": F32, "float16": F16, "bfloat16": I16}[dtype.name]
    return _SCALAR[dtype.bits]


class Line(ir.Value):
    """An instruction as text, or a constant: all that `llvmlite.ir` asks of a value."""

    __slots__ = ("ref", "text", "type")

    def __init__(self, type_: ir.Type, ref: str, text: str) -> None:
        self.type = type_
        self.ref = ref
        self.text = text

    def get_reference(self) -> str:
        return self.ref

    def __str__(self) -> str:
        return self.text


def _float_text(value: float, element: ir.Type) -> str:
    if element is F32:
        value = ctypes.c_float(value).value  # rounds to nearest even; out of range gives infinity
    elif element is F16:
        value = struct.unpack("e", struct.pack("e", value))[0]
    return f"0x{struct.unpack('Q', struct.pack('d', value))[0]:016X}"


def _int_text(value: int, element: ir.Type) -> str:
    bits = element.width
    if bits == 1:
        return "true" if value & 1 else "false"
    value &= (1 << bits) - 1
    return str(value - (1 << bits) if value >> (bits - 1) else value)


def constant(type_: ir.Type, value: float | int) -> Line:
    """A constant of a scalar type, or a vector type with every lane ``value``."""
    lanes = type_.count if isinstance(type_, ir.VectorType) else 1
    element = type_.element if lanes > 1 else type_
    text = _float_text(float(value), element) if element in _FLOAT_BITS else _int_text(int(value), element)
    if lanes > 1:
        text = f"splat ({element} {text})"
    return Line(type_, text, f"{type_} {text}")


def _is_number(x: Any) -> bool:
    """Whether a value is a floating constant other than NaN."""
    ref = x.get_reference()
    if ref.startswith("%") or "0x" not in ref:
        return False
    bits = int(ref[ref.index("0x") : ref.index("0x") + 18], 16)
    return bits & ((1 << 63) - 1) <= 0x7FF << 52


def element_of(type_: ir.Type) -> ir.Type:
    return type_.element if isinstance(type_, ir.VectorType) else type_


def lanes_of(type_: ir.Type) -> int:
    return type_.count if isinstance(type_, ir.VectorType) else 1


def _mangle(type_: ir.Type) -> str:
    if isinstance(type_, ir.VectorType):
        return f"v{type_.count}{_SUFFIX[type_.element]}"
    return "p0" if type_.is_pointer else _SUFFIX[type_]


class LaneBuilder:
    """Arithmetic on ``lanes`` lanes at the position of an `ir.IRBuilder`.

    Args:
        builder: where instructions go; its block and position may change between calls.
        lanes: 1 for scalars.
        target: a `Target`, whose missing instructions (fused multiply-add, rounding) are then composed from others; None
            takes them for granted.

    Every method takes and returns values of one width: all scalars or all vectors of the same lane count (it is the operand that
    decides; ``lanes`` matters only to `vec` and `splat`).
    """

    __slots__ = ("_names", "has_fma", "has_half", "has_round", "ir", "lanes", "module", "target")

    def __init__(self, builder: ir.IRBuilder, lanes: int = 1, target: Any = None) -> None:
        self.ir = builder
        self.lanes = lanes
        self.target = target
        self.has_fma = target is None or target.has_fma
        self.has_round = target is None or target.has_round
        self.has_half = target is None or target.has_f16c
        self.module = builder.module
        # One counter a module: builders of several widths in one function must not give a name twice.
        self._names = self.module.__dict__.setdefault("lane_names", itertools.count())

    def with_lanes(self, lanes: int) -> LaneBuilder:
        """The same position, another width."""
        return self if lanes == self.lanes else LaneBuilder(self.ir, lanes, self.target)

    # -- raw instructions ------------------------------------------------------------------------------------------

    def line(self, type_: ir.Type, text: str) -> Line:
        """Insert ``%new = text`` and return its value."""
        ref = f"%l{next(self._names)}"
        made = Line(type_, ref, f"{ref} = {text}")
        self.ir._insert(made)
        return made

    def effect(self, text: str) -> None:
        """Insert an instruction without a result."""
        self.ir._insert(Line(VOID, "", text))

    def call(self, name: str, type_: ir.Type, args: tuple[Any, ...]) -> Line:
        """Call an intrinsic (or any function) by its full name, declaring it at first use."""
        found = self.module.globals
        if name not in found:
            ir.Function(self.module, ir.FunctionType(type_, [a.type for a in args]), name)
        inner = ", ".join([f"{a.type} {a.get_reference()}" for a in args])
        if type_ is VOID:
            self.effect(f"call void @{name}({inner})")
            return None  # type: ignore[return-value]
        return self.line(type_, f"call {type_} @{name}({inner})")

    def _intrinsic(self, name: str, *args: Any) -> Line:
        type_ = args[0].type
        return self.call(f"llvm.{name}.{_mangle(type_)}", type_, args)

    def _binary(self, name: str, x: Any, y: Any) -> Line:
        type_ = x.type
        return self.line(type_, f"{name} {type_} {x.get_reference()}, {y.get_reference()}")

    def _cast(self, name: str, x: Any, element: ir.Type) -> Any:
        from_ = x.type
        to = vector(element, lanes_of(from_))
        if to == from_:
            return x
        return self.line(to, f"{name} {from_} {x.get_reference()} to {to}")

    # -- types, constants, lanes -----------------------------------------------------------------------------------

    def vec(self, element: ir.Type) -> ir.Type:
        """The type of ``lanes`` lanes of ``element``."""
        return vector(element, self.lanes)

    def f(self, value: float, like: Any) -> Line:
        """A floating constant of the type of ``like`` (a value or a type), rounded to nearest."""
        return constant(like if isinstance(like, ir.Type) else like.type, value)

    def i(self, value: int, like: Any) -> Line:
        """An integer constant of the type of ``like`` (a value or a type), modulo its width.

        Where ``like`` is floating, the integer type of the same width.
        """
        type_ = like if isinstance(like, ir.Type) else like.type
        bits = _FLOAT_BITS.get(element_of(type_))
        return constant(type_ if bits is None else vector(_SCALAR[bits], lanes_of(type_)), value)

    def splat(self, x: Any, lanes: int | None = None) -> Any:
        """The scalar ``x`` in every lane; ``x`` itself where it is a vector already."""
        lanes = self.lanes if lanes is None else lanes
        if lanes == 1 or isinstance(x.type, ir.VectorType):
            return x
        to = vector(x.type, lanes)
        if not x.get_reference().startswith("%"):
            ref = f"splat ({x.type} {x.get_reference()})"
            return Line(to, ref, f"{to} {ref}")
        first = self.line(to, f"insertelement {to} poison, {x.type} {x.get_reference()}, i64 0")
        return self.line(to, f"shufflevector {to} {first.ref}, {to} poison, <{lanes} x i32> zeroinitializer")

    def ramp(self, element: ir.Type, start: int = 0, step: int = 1) -> Line:
        """The integers ``start, start + step, …``, one a lane."""
        to = self.vec(element)
        if self.lanes == 1:
            return constant(element, start)
        ref = "<" + ", ".join(f"{element} {_int_text(start + step * k, element)}" for k in range(self.lanes)) + ">"
        return Line(to, ref, f"{to} {ref}")

    def extract(self, x: Any, lane: int) -> Any:
        """One lane of a vector, as a scalar."""
        if not isinstance(x.type, ir.VectorType):
            return x
        return self.line(x.type.element, f"extractelement {x.type} {x.get_reference()}, i64 {lane}")

    def insert(self, x: Any, scalar: Any, lane: int) -> Line:
        """``x`` with one lane replaced."""
        return self.line(
            x.type, f"insertelement {x.type} {x.get_reference()}, {scalar.type} {scalar.get_reference()}, i64 {lane}"
        )

    def shuffle(self, x: Any, y: Any, lanes: list[int]) -> Line:
        """The numbered lanes of ``x`` followed by ``y`` (-1: any)."""
        to = vector(x.type.element, len(lanes))
        mask = ", ".join("i32 poison" if k < 0 else f"i32 {k}" for k in lanes)
        other = "poison" if y is None else y.get_reference()
        return self.line(to, f"shufflevector {x.type} {x.get_reference()}, {x.type} {other}, <{len(lanes)} x i32> <{mask}>")

    def reverse(self, x: Any) -> Any:
        """The lanes in reverse order."""
        n = lanes_of(x.type)
        return x if n == 1 else self.shuffle(x, None, list(range(n - 1, -1, -1)))

    def poison(self, type_: ir.Type) -> Line:
        return Line(type_, "poison", f"{type_} poison")

    def freeze(self, x: Any) -> Line:
        """``x``, or some arbitrary but fixed value where it is poison."""
        return self.line(x.type, f"freeze {x.type} {x.get_reference()}")

    # -- floating arithmetic ---------------------------------------------------------------------------------------

    def fadd(self, x: Any, y: Any) -> Line:
        return self._binary("fadd", x, y)

    def fsub(self, x: Any, y: Any) -> Line:
        return self._binary("fsub", x, y)

    def fmul(self, x: Any, y: Any) -> Line:
        return self._binary("fmul", x, y)

    def fdiv(self, x: Any, y: Any) -> Line:
        return self._binary("fdiv", x, y)

    def fneg(self, x: Any) -> Line:
        return self.line(x.type, f"fneg {x.type} {x.get_reference()}")

    def fma(self, x: Any, y: Any, z: Any) -> Any:
        """``x * y + z`` rounded once. Without the instruction: float32 through float64 (twice rounded, in rare cases one bit
        off), float64 by an error-free product and sum (about 2**-105 before its last rounding)."""
        if self.has_fma:
            return self._intrinsic("fma", x, y, z)
        if element_of(x.type) is F32:
            wide = self.fadd(self.fmul(self.fpext(x), self.fpext(y)), self.fpext(z))
            return self.fptrunc(wide)
        return self._fma_by_parts(x, y, z)

    def _fma_by_parts(self, x: Any, y: Any, z: Any) -> Any:
        # Dekker's product with Veltkamp's splitting by clearing low bits (which cannot overflow), then Knuth's two-sum.
        high = self.i(-(1 << 27), x)
        p = self.fmul(x, y)
        xh = self.as_float(self.and_(self.as_int(x), high))
        yh = self.as_float(self.and_(self.as_int(y), high))
        xl, yl = self.fsub(x, xh), self.fsub(y, yh)
        e = self.fsub(self.fmul(xh, yh), p)
        e = self.fadd(self.fadd(self.fadd(e, self.fmul(xh, yl)), self.fmul(xl, yh)), self.fmul(xl, yl))
        s = self.fadd(p, z)
        t = self.fsub(s, p)
        d = self.fadd(self.fsub(p, self.fsub(s, t)), self.fsub(z, t))
        exact = self.fadd(s, self.fadd(d, e))
        # Infinities make the error terms NaN; the plain sum is then the answer.
        return self.select(self.fcmp("ord", exact, exact), exact, s)

    def fabs(self, x: Any) -> Line:
        return self._intrinsic("fabs", x)

    def sqrt(self, x: Any) -> Line:
        return self._intrinsic("sqrt", x)

    def copysign(self, x: Any, sign: Any) -> Line:
        return self._intrinsic("copysign", x, sign)

    def rint(self, x: Any) -> Any:
        """The nearest integer, ties to even."""
        if self.has_round:
            return self._intrinsic("rint", x)
        # Adding and taking away 2**mantissa rounds; larger values are integers already (NaN and infinity go that way too).
        size = self.fabs(x)
        magic = self.f(float(1 << _MANTISSA[element_of(x.type)]), x)
        rounded = self.copysign(self.fsub(self.fadd(size, magic), magic), x)
        return self.select(self.fcmp("olt", size, magic), rounded, x)

    def floor(self, x: Any) -> Any:
        if self.has_round:
            return self._intrinsic("floor", x)
        r = self.rint(x)
        one_less = self.fsub(r, self.f(1.0, x))
        return self.copysign(self.select(self.fcmp("ogt", r, x), one_less, r), x)

    def ceil(self, x: Any) -> Any:
        if self.has_round:
            return self._intrinsic("ceil", x)
        return self.fneg(self.floor(self.fneg(x)))

    def trunc(self, x: Any) -> Any:
        """Rounded towards zero (floating; for narrower integers see `trunc_int`)."""
        if self.has_round:
            return self._intrinsic("trunc", x)
        return self.copysign(self.floor(self.fabs(x)), x)

    # The extremes are a comparison and a choice, which is what processors have: the intrinsics' promises about the
    # sign of zero cost more, and leave open which zero comes out. Here it is the second operand's (of a constant and
    # another: the other's).

    def _extreme(self, pred: str, x: Any, y: Any) -> Any:
        if not y.get_reference().startswith("%"):
            x, y = y, x
        chosen = self.select(self.fcmp(pred, x, y), x, y)  # y where either is NaN
        if _is_number(x):
            return chosen
        return self.select(self.fcmp("uno", x, x), x, chosen)

    def minimum(self, x: Any, y: Any) -> Any:
        """The smaller; NaN where either is."""
        return self._extreme("olt", x, y)

    def maximum(self, x: Any, y: Any) -> Any:
        """The larger; NaN where either is."""
        return self._extreme("ogt", x, y)

    def fmin(self, x: Any, y: Any) -> Line:
        """The smaller; the other operand where one is NaN."""
        return self.select(self.fcmp("uno", y, y), x, self.select(self.fcmp("olt", x, y), x, y))

    def fmax(self, x: Any, y: Any) -> Line:
        """The larger; the other operand where one is NaN."""
        return self.select(self.fcmp("uno", y, y), x, self.select(self.fcmp("ogt", x, y), x, y))

    # -- comparisons and choice ------------------------------------------------------------------------------------

    def fcmp(self, pred: str, x: Any, y: Any) -> Line:
        """LLVM's predicates: ``oeq olt ole ogt oge one``, ``ueq ult …`` (true for NaN), ``ord``, ``uno``."""
        return self.line(vector(BOOL, lanes_of(x.type)), f"fcmp {pred} {x.type} {x.get_reference()}, {y.get_reference()}")

    def icmp(self, pred: str, x: Any, y: Any) -> Line:
        """LLVM's predicates: ``eq ne``, signed ``slt sle sgt sge``, unsigned ``ult ule ugt uge``."""
        return self.line(vector(BOOL, lanes_of(x.type)), f"icmp {pred} {x.type} {x.get_reference()}, {y.get_reference()}")

    def select(self, cond: Any, x: Any, y: Any) -> Line:
        t = x.type
        return self.line(t, f"select {cond.type} {cond.get_reference()}, {t} {x.get_reference()}, {t} {y.get_reference()}")

    # -- integers --------------------------------------------------------------------------------------------------

    def add(self, x: Any, y: Any) -> Line:
        return self._binary("add", x, y)

    def sub(self, x: Any, y: Any) -> Line:
        return self._binary("sub", x, y)

    def mul(self, x: Any, y: Any) -> Line:
        return self._binary("mul", x, y)

    def and_(self, x: Any, y: Any) -> Line:
        return self._binary("and", x, y)

    def or_(self, x: Any, y: Any) -> Line:
        return self._binary("or", x, y)

    def xor(self, x: Any, y: Any) -> Line:
        return self._binary("xor", x, y)

    def not_(self, x: Any) -> Line:
        return self._binary("xor", x, self.i(-1, x))

    def shl(self, x: Any, y: Any) -> Line:
        """Undefined (poison) for counts outside [0, bits)."""
        return self._binary("shl", x, y)

    def lshr(self, x: Any, y: Any) -> Line:
        return self._binary("lshr", x, y)

    def ashr(self, x: Any, y: Any) -> Line:
        return self._binary("ashr", x, y)

    def smin(self, x: Any, y: Any) -> Line:
        return self._intrinsic("smin", x, y)

    def smax(self, x: Any, y: Any) -> Line:
        return self._intrinsic("smax", x, y)

    def umin(self, x: Any, y: Any) -> Line:
        return self._intrinsic("umin", x, y)

    def umax(self, x: Any, y: Any) -> Line:
        return self._intrinsic("umax", x, y)

    def ctlz(self, x: Any) -> Line:
        """Leading zero bits; the width for 0."""
        type_ = x.type
        return self.call(f"llvm.ctlz.{_mangle(type_)}", type_, (x, constant(BOOL, 0)))

    # -- casts -----------------------------------------------------------------------------------------------------

    def as_int(self, x: Any) -> Any:
        """The bits of a floating value as integers of the same width."""
        return self._cast("bitcast", x, _SCALAR[_FLOAT_BITS[element_of(x.type)]])

    def as_float(self, x: Any) -> Any:
        """The floating value with these bits."""
        return self._cast("bitcast", x, _FLOAT_OF_BITS[element_of(x.type).width])

    def sitofp(self, x: Any, element: ir.Type) -> Line:
        return self._cast("sitofp", x, element_of(element))

    def uitofp(self, x: Any, element: ir.Type) -> Line:
        return self._cast("uitofp", x, element_of(element))

    def fptosi(self, x: Any, bits: int) -> Line:
        """Towards zero. The result is arbitrary (but fixed, not poison) for NaN and values out of range."""
        return self.freeze(self._cast("fptosi", x, _SCALAR[bits]))

    def _saturating(self, name: str, x: Any, bits: int) -> Line:
        to = vector(_SCALAR[bits], lanes_of(x.type))
        return self.call(f"llvm.{name}.sat.{_mangle(to)}.{_mangle(x.type)}", to, (x,))

    def fptosi_sat(self, x: Any, bits: int) -> Line:
        """Towards zero, out of range to the nearest end, NaN to 0."""
        return self._saturating("fptosi", x, bits)

    def fptoui_sat(self, x: Any, bits: int) -> Line:
        return self._saturating("fptoui", x, bits)

    def fpext(self, x: Any) -> Any:
        """float32 to float64."""
        return self._cast("fpext", x, F64)

    def fptrunc(self, x: Any) -> Any:
        """float64 to float32, to nearest even."""
        return self._cast("fptrunc", x, F32)

    def zext(self, x: Any, bits: int) -> Any:
        return self._cast("zext", x, _SCALAR[bits])

    def sext(self, x: Any, bits: int) -> Any:
        return self._cast("sext", x, _SCALAR[bits])

    def trunc_int(self, x: Any, bits: int) -> Any:
        return self._cast("trunc", x, _SCALAR[bits])
