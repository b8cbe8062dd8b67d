"""What the rooms of the vector math share: formats, polynomials, double-length arithmetic, scaling by powers of two.

Nothing here or in the rooms sets a fast-math flag; every function is made of single correctly rounded operations in a fixed
order, so its bits do not depend on the number of lanes.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from llvmlite import ir

from .polynomials import TABLES

if TYPE_CHECKING:
    from ..builder import LaneBuilder

Value = Any
Pair = tuple[Value, Value]
INF = float("inf")
NAN = float("nan")


@dataclass(frozen=True)
class Format:
    """A binary floating format: its width, mantissa bits, exponent bias, and thresholds that follow from them."""

    bits: int
    mantissa: int
    bias: int

    @property
    def one(self) -> int:
        """The bits of 1.0."""
        return self.bias << self.mantissa

    @property
    def tiny(self) -> float:
        """The least normal number."""
        return 2.0 ** (1 - self.bias)

    @property
    def half_ulp(self) -> float:
        """Half the spacing at 1.0."""
        return 2.0 ** (-self.mantissa - 1)

    @property
    def magic(self) -> float:
        """1.5 * 2**mantissa: adding it rounds a small number to an integer, found in the low bits of the sum."""
        return 1.5 * 2.0**self.mantissa

    def split(self, value: Fraction | float, parts: int = 2) -> list[float]:
        """``value`` as an unevaluated sum of ``parts`` numbers of this format."""
        out: list[float] = []
        rest = Fraction(value)
        for _ in range(parts):
            out.append(_nearest(rest, self.mantissa + 1))
            rest -= Fraction(out[-1])
        return out


SINGLE = Format(32, 23, 127)
DOUBLE = Format(64, 52, 1023)

# Constants to 100 digits.
PI = Fraction("3.1415926535897932384626433832795028841971693993751058209749445923078164062862089986280348253421170680")
LN2 = Fraction("0.6931471805599453094172321214581765680755001343602552541206800094933936219696947156058633269964186875")
LN10 = Fraction("2.3025850929940456840179914546843642076011014886287729760333279009675726096773524802359972050895982983")


def _nearest(value: Fraction, bits: int) -> float:
    """The nearest number of ``bits`` significant bits (no limit on the exponent but float's own)."""
    if value == 0:
        return 0.0
    size = abs(value)
    e = size.numerator.bit_length() - size.denominator.bit_length() - bits
    while size >= Fraction(2) ** (e + bits):
        e += 1
    scaled = round(size / Fraction(2) ** e)
    return float((1 if value > 0 else -1) * scaled * Fraction(2) ** e)


@functools.cache
def parts(fmt: Format, name: str, count: int) -> tuple[float, ...]:
    """A named constant split into ``count`` numbers of the format."""
    value = {
        "ln2": LN2,
        "log2e": 1 / LN2,
        "log10e": 1 / LN10,
        "log10_2": LN2 / LN10,
        "pi": PI,
        "pi/2": PI / 2,
        "1/pi": 1 / PI,
        "2/pi": 2 / PI,
    }[name]
    return tuple(fmt.split(value, count))


def element(x: Value) -> ir.Type:
    """The scalar type of a value or vector."""
    return x.type.element if isinstance(x.type, ir.VectorType) else x.type


def format_of(x: Value) -> Format:
    """The format of a value or vector."""
    return DOUBLE if isinstance(element(x), ir.DoubleType) else SINGLE


def table(name: str, x: Value) -> tuple[float, ...]:
    """The coefficients called ``name`` for the type of ``x``."""
    return TABLES[name, format_of(x).bits]


def horner(b: LaneBuilder, x: Value, coefficients: Sequence[float]) -> Value:
    """``c[0] + c[1] x + c[2] x**2 + …`` by Horner's rule, one fused multiply-add a term."""
    acc = b.f(coefficients[-1], x)
    for c in reversed(coefficients[:-1]):
        acc = b.fma(acc, x, b.f(c, x))
    return acc


def estrin(b: LaneBuilder, x: Value, coefficients: Sequence[float]) -> Value:
    """The same polynomial from two interleaved Horner chains in ``x**2``: one more product, half the latency."""
    if len(coefficients) < 6:
        return horner(b, x, coefficients)
    x2 = b.fmul(x, x)
    return b.fma(horner(b, x2, coefficients[1::2]), x, horner(b, x2, coefficients[::2]))


def cap(b: LaneBuilder, x: Value, limit: float) -> Value:
    """The smaller of ``x`` and a constant; NaN stays (one instruction on x86, unlike `minimum`)."""
    top = b.f(limit, x)
    return b.select(b.fcmp("ogt", x, top), top, x)


def floor_at(b: LaneBuilder, x: Value, limit: float) -> Value:
    """The larger of ``x`` and a constant; NaN stays."""
    low = b.f(limit, x)
    return b.select(b.fcmp("olt", x, low), low, x)


def sign_bit(b: LaneBuilder, x: Value) -> Value:
    """The sign bit of ``x``, others 0, as an integer."""
    return b.and_(b.as_int(x), b.i(1 << (format_of(x).bits - 1), x))


def flip(b: LaneBuilder, x: Value, sign: Value) -> Value:
    """``x`` with its sign changed where the integer ``sign`` has the sign bit."""
    return b.as_float(b.xor(b.as_int(x), sign))


def two_sum(b: LaneBuilder, x: Value, y: Value) -> Pair:
    """``x + y`` and its rounding error (Knuth; any magnitudes)."""
    s = b.fadd(x, y)
    t = b.fsub(s, x)
    return s, b.fadd(b.fsub(x, b.fsub(s, t)), b.fsub(y, t))


def fast_sum(b: LaneBuilder, x: Value, y: Value) -> Pair:
    """``x + y`` and its rounding error, for ``|x| >= |y|`` (Dekker)."""
    s = b.fadd(x, y)
    return s, b.fsub(y, b.fsub(s, x))


def two_product(b: LaneBuilder, x: Value, y: Value) -> Pair:
    """``x * y`` and its rounding error."""
    p = b.fmul(x, y)
    return p, b.fma(x, y, b.fneg(p))


def any_lane(b: LaneBuilder, cond: Value) -> Value:
    """Whether the i1 (or vector of i1) ``cond`` is true anywhere, as an i1."""
    if not isinstance(cond.type, ir.VectorType):
        return cond
    lanes = cond.type.count
    mask = b.ir.bitcast(cond, ir.IntType(lanes))
    return b.ir.icmp_unsigned("!=", mask, ir.Constant(ir.IntType(lanes), 0))
