"""float16 by integer arithmetic, for processors that do not convert it by instruction. Bit for bit what the instructions give.

Both directions are branch-free; the idea of letting a floating multiplication or addition treat the subnormals is
Fabian Giesen's.
"""

from __future__ import annotations

from typing import Any

from cermet.compiler.llvm.builder import F16, I16, LaneBuilder

__all__ = ["float_to_half", "half_to_float"]


def half_to_float(b: LaneBuilder, x: Any) -> Any:
    """``half`` lanes as ``float``."""
    h = b.zext(b._cast("bitcast", x, I16), 32)
    sign = b.shl(b.and_(h, b.i(0x8000, h)), b.i(16, h))
    magnitude = b.and_(h, b.i(0x7FFF, h))
    moved = b.shl(magnitude, b.i(13, h))
    scaled = b.as_int(b.fmul(b.as_float(moved), b.f(2.0**112, b.as_float(moved))))
    quiet = b.select(b.icmp("ugt", magnitude, b.i(0x7C00, h)), b.i(0x7FC00000, h), b.i(0x7F800000, h))
    unbounded = b.or_(moved, quiet)
    value = b.select(b.icmp("uge", magnitude, b.i(0x7C00, h)), unbounded, scaled)
    return b.as_float(b.or_(value, sign))


def float_to_half(b: LaneBuilder, x: Any) -> Any:
    """``float`` lanes rounded to nearest even as ``half``."""
    bits = b.as_int(x)
    sign = b.and_(bits, b.i(0x80000000, bits))
    a = b.xor(bits, sign)
    # Adding 0.5 leaves a subnormal's 10 bits at the bottom of the sum's mantissa, rounded.
    half = b.i(0x3F000000, bits)
    small = b.sub(b.as_int(b.fadd(b.as_float(a), b.f(0.5, x))), half)
    lowest = b.and_(b.lshr(a, b.i(13, bits)), b.i(1, bits))
    normal = b.lshr(b.add(b.add(a, b.i(((15 - 127) << 23) + 0xFFF, bits)), lowest), b.i(13, bits))
    payload = b.and_(b.lshr(a, b.i(13, bits)), b.i(0x3FF, bits))
    beyond = b.select(b.icmp("ugt", a, b.i(0x7F800000, bits)), b.or_(payload, b.i(0x7E00, bits)), b.i(0x7C00, bits))
    value = b.select(b.icmp("ult", a, b.i(0x38800000, bits)), small, normal)
    value = b.select(b.icmp("uge", a, b.i(0x47800000, bits)), beyond, value)
    return b._cast("bitcast", b.trunc_int(b.or_(value, b.lshr(sign, b.i(16, bits))), 16), F16)
