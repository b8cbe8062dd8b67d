"""The loop IR: what every compiled kernel is made of, for every target.

A `Kernel` is a list of parameters and a block of statements over typed scalar expressions. It says nothing of vector
widths, registers or machine instructions: a target (LLVM for CPUs, the NumPy interpreter, PTX later) decides those.
It knows dtypes; it must not know nodes, ops, tensors or buffers.

Meaning:

* Every expression is a scalar of one dtype. `float16` and `bfloat16` exist in memory only: a `load` of such a buffer yields
  `float32`, a `store` into one rounds to nearest even. `cast` to one of them yields a float32 that has been rounded to it.
* `bool` is one byte in memory (0 or 1) and a truth value in expressions.
* `For(kind="parallel")` may stand only at the top of a kernel, once. Its iterations are independent; the runtime hands each worker a
  sub-range. Everything else is inside it.
* `For(kind="vector")` has independent iterations too, except for registers defined outside it and updated in it by `Reduce`. A target
  runs several iterations as lanes. Serial loops may stand inside it (then every lane runs them side by side; their extents must
  not depend on the lane).
* `For(kind="serial")` runs in order. `unroll=True` asks for full unrolling where the extent is a constant.
* Registers are mutable scalars: `Define` makes one (scope: the enclosing block), `Assign` overwrites it, `Reduce` combines into it.
* `Guard` runs its body where a lane-uniform condition holds (it must not depend on a vector loop's variable).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from cermet import dtypes as dt
from cermet.dtypes import DType

__all__ = [
    "PAIR_FIRST",
    "PAIR_TURNED",
    "RUNNING",
    "Assign",
    "Define",
    "Expr",
    "For",
    "Guard",
    "Kernel",
    "Param",
    "Prefetch",
    "Reduce",
    "Register",
    "Stmt",
    "Store",
    "Var",
]

# Operations of expressions. Arithmetic is on operands of one dtype, the result has that dtype unless said otherwise.
ARITHMETIC = ("add", "sub", "mul", "div", "min", "max", "fma", "neg", "abs", "sign")
# div is for floating types. Integers: idiv and imod round to minus infinity (Python), tdiv and trem to zero (C); a zero divisor
# yields 0 without trapping. fmod is the floating C remainder. min and max propagate NaN; fmin and fmax ignore it.
INTEGER = ("idiv", "imod", "tdiv", "trem", "and", "or", "xor", "not", "shl", "shr")
# shl/shr: arithmetic shift for signed, logical for unsigned; a count outside [0, bits) yields 0 (or the sign).
COMPARE = ("eq", "ne", "lt", "le", "gt", "ge")  # result bool; ordered, except ne which is true for NaN
FLOAT = ("floor", "ceil", "trunc", "rint", "sqrt", "rsqrt", "copysign", "fmin", "fmax", "fmod", "isnan", "nextafter", "signbit")
MATH = (
    "exp", "exp2", "expm1", "log", "log2", "log10", "log1p",
    "sin", "cos", "tan", "asin", "acos", "atan", "atan2",
    "sinh", "cosh", "tanh", "asinh", "acosh", "atanh",
    "erf", "erfc", "erfinv", "lgamma", "digamma", "pow",
)  # fmt: skip
OTHER = ("const", "param", "var", "reg", "load", "select", "cast", "bitcast", "philox")
# philox(key, counter, attr=word): word 0..3 of Philox-4x32-10 with 64-bit key and 64-bit counter (int64 operands), as int64 in
# 0..2**32-1. With the attributes below the second operand numbers words, of which four make a block (counter: a fourth of it):
RUNNING = 4  # the word of that number (third counter word: 1)
PAIR_FIRST = 5  # the first of the two words 2k and 2k + 1 that the number is one of (third counter word: 2)
PAIR_TURNED = 6  # the second of them, for odd numbers less 2**30 modulo 2**32: a quarter turn of an angle
OPS = frozenset(ARITHMETIC + INTEGER + COMPARE + FLOAT + MATH + OTHER)
# Operations dearer than one instruction, in rough instructions: the lengths of their polynomials, more or less.
COST = {
    "div": 6, "sqrt": 6, "rsqrt": 8, "fmod": 20, "idiv": 12, "imod": 12, "tdiv": 12, "trem": 12, "philox": 60,
    "exp": 12, "exp2": 10, "expm1": 16, "log": 14, "log2": 14, "log10": 14, "log1p": 16, "sin": 20, "cos": 20, "tan": 28,
    "asin": 18, "acos": 18, "atan": 18, "atan2": 26, "sinh": 20, "cosh": 20, "tanh": 18, "asinh": 24, "acosh": 24, "atanh": 20,
    "erf": 22, "erfc": 26, "erfinv": 40, "lgamma": 60, "digamma": 60, "pow": 45,
}  # fmt: skip


class Expr:
    """An immutable scalar expression: ``op`` of ``args`` with a compile-time ``attr``; compared by structure through `key`."""

    __slots__ = ("args", "attr", "dtype", "op")

    def __init__(self, op: str, args: tuple[Expr, ...], dtype: DType, attr: Any = None) -> None:
        self.op = op
        self.args = args
        self.dtype = dtype
        self.attr = attr

    def __repr__(self) -> str:
        inner = ", ".join(map(repr, self.args))
        tag = "" if self.attr is None else f"[{self.attr}]"
        return f"{self.op}{tag}({inner})"

    # Integer index arithmetic reads better with operators; constants fold so that a specialised stride of 1 stays visible.
    def __add__(self, other: Expr | int) -> Expr:
        return _index_add(self, _as_index(other))

    __radd__ = __add__

    def __mul__(self, other: Expr | int) -> Expr:
        return _index_mul(self, _as_index(other))

    __rmul__ = __mul__

    def __sub__(self, other: Expr | int) -> Expr:
        return _index_add(self, _index_mul(_as_index(other), const(-1)))


def const(value: Any, dtype: DType = dt.int64) -> Expr:
    """A constant. ``value`` is a Python int, float or bool."""
    return Expr("const", (), dtype, value)


def _as_index(value: Expr | int) -> Expr:
    return value if isinstance(value, Expr) else const(int(value))


def _index_add(a: Expr, b: Expr) -> Expr:
    if a.op == "const" and b.op == "const":
        return const(a.attr + b.attr)
    if a.op == "const" and a.attr == 0:
        return b
    if b.op == "const" and b.attr == 0:
        return a
    return Expr("add", (a, b), dt.int64)


def _index_mul(a: Expr, b: Expr) -> Expr:
    if a.op == "const" and b.op == "const":
        return const(a.attr * b.attr)
    for x, y in ((a, b), (b, a)):
        if x.op == "const":
            if x.attr == 0:
                return const(0)
            if x.attr == 1:
                return y
    return Expr("mul", (a, b), dt.int64)


class Var:
    """A loop variable (int64). Each `For` has its own; identity is the object."""

    __slots__ = ("expr", "name")

    def __init__(self, name: str) -> None:
        self.name = name
        self.expr = Expr("var", (), dt.int64, self)

    def __repr__(self) -> str:
        return self.name


class Register:
    """A mutable scalar of a kernel. Identity is the object. Read it with ``reg.expr``."""

    __slots__ = ("dtype", "expr", "name")

    def __init__(self, name: str, dtype: DType) -> None:
        self.name = name
        self.dtype = dtype
        self.expr = Expr("reg", (), dtype, self)

    def __repr__(self) -> str:
        return f"%{self.name}"


@dataclass(eq=False)
class Param:
    """A parameter of a kernel: one 64-bit slot of its argument array, in the order of ``Kernel.params``.

    kind:
        ``buffer``: the address of element 0 (dtype is that of the memory). ``int``: an int64 known at launch (size, stride, offset).
        ``scalar``: the bits of one value of ``dtype`` (float32 in the low four bytes, integers sign-extended, bool as 0 or 1; a
        16-bit float travels as float32). ``scratch``: a byte offset into the worker's private memory; used like a buffer.
    readonly buffers are never written; distinct writable buffers never overlap each other. A readonly buffer may be the same
    memory as a writable one only where ``Kernel.inplace`` allows it (element for element, read before written).
    """

    name: str
    kind: Literal["buffer", "int", "scalar", "scratch"]
    dtype: DType = dt.int64
    readonly: bool = True

    @property
    def expr(self) -> Expr:
        """The value of an int or scalar parameter."""
        return Expr("param", (), self.dtype.compute, self)

    def load(self, offset: Expr | int, mask: Expr | None = None) -> Expr:
        """The element at ``offset`` (in elements). Where ``mask`` is false nothing is read and the value is 0."""
        args = (_as_index(offset),) if mask is None else (_as_index(offset), mask)
        return Expr("load", args, self.dtype.compute, self)

    def __repr__(self) -> str:
        return self.name


@dataclass(eq=False)
class For:
    """A loop of ``extent`` iterations over ``var``.

    ``wide``: of a vector loop, how many vectors an iteration should take; 0 leaves that to the target.
    """

    var: Var
    extent: Expr
    body: list[Stmt]
    kind: Literal["parallel", "vector", "serial"] = "serial"
    unroll: bool = False
    wide: int = 0


@dataclass(eq=False)
class Prefetch:
    """A hint that ``buffer[offset]`` will be read soon. Computes nothing; any offset will do. Inside a vector loop it is asked for once for all lanes, at the
    offset of the first."""

    buffer: Param
    offset: Expr


@dataclass(eq=False)
class Store:
    """``buffer[offset] = value`` where ``mask`` holds. ``value`` has the dtype ``buffer.dtype.compute``.

    ``stream``: a hint that the caches should not keep it. ``offset`` must then be, at every multiple of 64 bytes' worth of iterations of the
    innermost vector loop, a multiple of 64 bytes too.
    """

    buffer: Param
    offset: Expr
    value: Expr
    mask: Expr | None = None
    stream: bool = False


@dataclass(eq=False)
class Define:
    """Make a register with a first value."""

    reg: Register
    init: Expr


@dataclass(eq=False)
class Assign:
    """Overwrite a register."""

    reg: Register
    value: Expr


@dataclass(eq=False)
class Reduce:
    """``reg = op(reg, value)`` with op one of add, mul, min, max, and, or: associative, so that lanes may keep partial results.

    The order of the partial results is a matter of the shape and target alone, never of the number of threads.
    """

    reg: Register
    op: str
    value: Expr


@dataclass(eq=False)
class Guard:
    """Run ``body`` where a lane-uniform condition holds."""

    condition: Expr
    body: list[Stmt]


Stmt = For | Prefetch | Store | Define | Assign | Reduce | Guard


@dataclass(eq=False)
class Kernel:
    """A kernel. ``body`` is one parallel `For`, or any statements (then it is run once, with one block)."""

    name: str
    params: list[Param]
    body: list[Stmt]
    inplace: bool = True
    notes: dict[str, Any] = field(default_factory=dict)

    def walk(self) -> Iterator[Stmt]:
        """All statements, outside in."""
        stack: list[Stmt] = list(reversed(self.body))
        while stack:
            stmt = stack.pop()
            yield stmt
            if isinstance(stmt, For | Guard):
                stack.extend(reversed(stmt.body))
