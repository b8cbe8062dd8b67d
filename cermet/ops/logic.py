"""Logical and bitwise operations, and shifts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from cermet import dtypes as dt
from cermet.graph.node import Meta
from cermet.ops.define import OpDef
from cermet.ops.kinds import INTS, binary, broadcast_meta, elementwise, unary
from cermet.ops.public import public
from cermet.ops.support import as_value, same_dtype, to_dtype

_BITS = (dt.bool, *INTS)


def _logical(name: str, lower: Callable[..., Any], reference: Callable[..., Any], onnx: str, doc: str) -> OpDef:
    """A truth function of two inputs of any dtype: what is not 0 is true."""

    def infer(a: Meta, b: Meta) -> Meta:
        same_dtype(name, a, b)
        if a.dtype is not dt.bool:
            raise TypeError(f"{name}: expected bool, got {a.dtype}; convert with .bool()")
        return broadcast_meta(name, a, b)

    op = elementwise(
        name,
        2,
        infer=infer,
        lower=lower,
        reference=reference,
        dtypes=(dt.bool,),
        domains=("bool", "bool"),
        gradient=False,
        onnx=onnx,
        ulp=0,
        doc=doc,
    )

    def function(input: Any, other: Any) -> Any:
        x = to_dtype(as_value(input, other), dt.bool)
        return op(x, to_dtype(as_value(other, x), dt.bool))

    function.__name__ = function.__qualname__ = name
    function.__doc__ = doc
    public(inplace=True)(function)
    return op


logical_and = _logical("logical_and", lambda b, x, y: b.and_(x, y), np.logical_and, "And", "Whether both are true (not 0).")
logical_or = _logical("logical_or", lambda b, x, y: b.or_(x, y), np.logical_or, "Or", "Whether at least one is true (not 0).")
logical_xor = _logical("logical_xor", lambda b, x, y: b.xor(x, y), np.logical_xor, "Xor", "Whether exactly one is true (not 0).")

not_ = unary(
    "logical_not",
    lower=lambda b, x: b.not_(x),
    reference=np.logical_not,
    dtypes=(dt.bool,),
    domain="bool",
    gradient=False,
    ulp=0,
    onnx="Not",
    expose=False,
    doc="Whether false.",
)


@public(inplace=True)
def logical_not(input: Any) -> Any:
    """Whether 0 (false)."""
    return not_(to_dtype(input, dt.bool))


def _bitwise(
    name: str, lower: Callable[..., Any], reference: Callable[..., Any], doc: str, dtypes: Any = _BITS, **kw: Any
) -> OpDef:
    domains = kw.pop("domains", ((0, 100), (0, 100)))
    return binary(name, lower=lower, reference=reference, dtypes=dtypes, domains=domains, gradient=False, ulp=0, doc=doc, **kw)


bitwise_and = _bitwise("bitwise_and", lambda b, x, y: b.and_(x, y), np.bitwise_and, "Bits set in both; for bool the logical and.")
bitwise_or = _bitwise(
    "bitwise_or", lambda b, x, y: b.or_(x, y), np.bitwise_or, "Bits set in at least one; for bool the logical or."
)
bitwise_xor = _bitwise("bitwise_xor", lambda b, x, y: b.xor(x, y), np.bitwise_xor, "Bits set in exactly one.")
bitwise_not = unary(
    "bitwise_not",
    lower=lambda b, x: b.not_(x),
    reference=np.invert,
    dtypes=_BITS,
    domain=(-100, 100),
    gradient=False,
    ulp=0,
    doc="All bits changed; for bool the logical not.",
)


def _shift_reference(left: bool) -> Callable[..., Any]:
    """Counts outside [0, bits) give 0, or the sign when shifting right, instead of C's undefined result."""

    def reference(x: Any, y: Any) -> Any:
        bits = x.dtype.itemsize * 8
        outside = (y < 0) | (y >= bits)
        count = np.where(outside, 0, y).astype(x.dtype)
        rest = np.zeros_like(x) if left or x.dtype.kind == "u" else np.where(x < 0, -1, 0)
        return np.where(outside, rest, np.left_shift(x, count) if left else np.right_shift(x, count))

    return reference


_SHIFT_DOMAINS = ((-100, 100), (0, 7))
bitwise_left_shift = _bitwise(
    "bitwise_left_shift",
    lambda b, x, y: b.shl(x, y),
    _shift_reference(True),
    "Bits moved up; 0 for counts outside the width.",
    dtypes=INTS,
    domains=_SHIFT_DOMAINS,
)
bitwise_right_shift = _bitwise(
    "bitwise_right_shift",
    lambda b, x, y: b.shr(x, y),
    _shift_reference(False),
    "Bits moved down, the sign kept.",
    dtypes=INTS,
    domains=_SHIFT_DOMAINS,
)
