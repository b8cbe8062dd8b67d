"""The neutral builder: what an op's ``lower`` speaks. It makes typed loop IR expressions and checks operand types.

Knows the loop IR; must not know ops or targets.
"""

from __future__ import annotations

from typing import Any

from cermet import dtypes as dt
from cermet.compiler.loops import ir
from cermet.compiler.loops.ir import Expr
from cermet.dtypes import DType

__all__ = ["Builder", "builder"]


class Builder:
    """Makes expressions. Every method takes expressions of one dtype (Python numbers join as constants of it)."""

    def const(self, value: Any, dtype: DType) -> Expr:
        """A constant of ``dtype``."""
        d = dtype.compute
        value = bool(value) if d.kind == "b" else int(value) if d.kind in "iu" else float(value)
        return Expr("const", (), d, value)

    def like(self, x: Expr, value: Any) -> Expr:
        """A constant of the dtype of ``x``."""
        return self.const(value, x.dtype)

    def _pair(self, x: Any, y: Any) -> tuple[Expr, Expr]:
        if not isinstance(x, Expr):
            x = self.like(y, x)
        elif not isinstance(y, Expr):
            y = self.like(x, y)
        if x.dtype is not y.dtype:
            raise TypeError(f"loop IR operands differ in dtype: {x.dtype} and {y.dtype}")
        return x, y

    def binary(self, op: str, x: Any, y: Any, dtype: DType | None = None) -> Expr:
        """``op(x, y)`` of the operands' dtype unless given."""
        x, y = self._pair(x, y)
        return Expr(op, (x, y), dtype or x.dtype)

    def unary(self, op: str, x: Expr, dtype: DType | None = None) -> Expr:
        """``op(x)`` of the operand's dtype unless given."""
        return Expr(op, (x,), dtype or x.dtype)

    # Arithmetic. On bool, add is or and mul is and, as in NumPy.
    def add(self, x: Any, y: Any) -> Expr:
        x, y = self._pair(x, y)
        return Expr("or" if x.dtype is dt.bool else "add", (x, y), x.dtype)

    def mul(self, x: Any, y: Any) -> Expr:
        x, y = self._pair(x, y)
        return Expr("and" if x.dtype is dt.bool else "mul", (x, y), x.dtype)

    def select(self, c: Expr, x: Any, y: Any) -> Expr:
        """X where c (bool) holds, else y."""
        x, y = self._pair(x, y)
        return Expr("select", (c, x, y), x.dtype)

    def cast(self, x: Expr, dtype: DType) -> Expr:
        """X in another dtype; to a 16-bit float: a float32 rounded to it."""
        if dtype.compute is dtype:
            if x.dtype is dtype:
                return x
            return Expr("cast", (x,), dtype, dtype)
        return Expr("cast", (x,), dt.float32, dtype)

    def bitcast(self, x: Expr, dtype: DType) -> Expr:
        """The same bits as another dtype of the same size."""
        return Expr("bitcast", (x,), dtype, dtype)

    def fma(self, x: Expr, y: Expr, z: Expr) -> Expr:
        """X * y + z, rounded once."""
        return Expr("fma", (x, y, z), x.dtype)

    def philox(self, key: Expr, counter: Expr, word: int) -> Expr:
        """Word 0..3 of Philox-4x32-10, or one of a running stream (4 to 6, see `ir`), as int64."""
        return Expr("philox", (key, counter), dt.int64, word)


def _install() -> None:
    compare = set(ir.COMPARE)
    unary = {"neg", "abs", "sign", "not", "floor", "ceil", "trunc", "rint", "sqrt", "rsqrt"}
    unary |= set(ir.MATH) - {"pow", "atan2"}
    binary = {"sub", "div", "min", "max", "copysign", "fmin", "fmax", "fmod", "nextafter", "pow", "atan2"}
    binary |= {"idiv", "imod", "tdiv", "trem", "and", "or", "xor", "shl", "shr"}

    def make_unary(op: str) -> Any:
        return lambda self, x: self.unary(op, x)

    def make_binary(op: str) -> Any:
        return lambda self, x, y: self.binary(op, x, y, dt.bool if op in compare else None)

    for op in unary:
        setattr(Builder, op + "_" if op == "not" else op, make_unary(op))
    for op in binary | compare:
        setattr(Builder, op + "_" if op in ("and", "or") else op, make_binary(op))
    for op in ("isnan", "signbit"):
        setattr(Builder, op, lambda self, x, op=op: self.unary(op, x, dt.bool))


_install()
builder: Any = Builder()
