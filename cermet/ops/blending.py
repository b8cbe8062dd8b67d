"""Elementwise functions of several values: interpolation, fused products and quotients, steps, signs taken from another."""

from __future__ import annotations

from typing import Any

import numpy as np

from cermet import dtypes as dt
from cermet.ops.elementwise import div, eq, mul, neg, where
from cermet.ops.kinds import FLOATS, NUMERIC, binary, elementwise
from cermet.ops.public import public
from cermet.ops.support import as_value, is_number, promote, zeros_like_value


def _lerp_lower(b: Any, x: Any, y: Any, w: Any) -> Any:
    """From the nearer end, so that both ends are met exactly."""
    d = b.sub(y, x)
    return b.select(b.lt(b.abs(w), 0.5), b.add(x, b.mul(w, d)), b.sub(y, b.mul(d, b.sub(b.like(w, 1.0), w))))


def _lerp_vjp(c: Any, g: Any) -> Any:
    gw = mul(g, c[1] - c[0]) if c.needs[2] else None
    gy = mul(g, c[2])
    return g - gy, gy, gw


lerp3 = elementwise(
    "lerp",
    3,
    vjp=_lerp_vjp,
    saves=(0, 1, 2),
    lower=_lerp_lower,
    reference=lambda x, y, w: np.where(np.abs(w) < 0.5, x + w * (y - x), y - (y - x) * (1 - w)),
    dtypes=FLOATS,
    ulp=8,
    doc="The first plus the third times the way to the second.",
)


@public(inplace=True)
def lerp(input: Any, end: Any, weight: Any) -> Any:
    """``input + weight * (end - input)``; ``weight`` is a number or a tensor."""
    return lerp3(input, end, float(weight) if is_number(weight) else weight)


def _addcmul_vjp(c: Any, g: Any) -> Any:
    gv = mul(g, c[3])
    return g, mul(gv, c[2]) if c.needs[1] else None, mul(gv, c[1]) if c.needs[2] else None, None


addcmul4 = elementwise(
    "addcmul",
    4,
    vjp=_addcmul_vjp,
    saves=(1, 2, 3),
    lower=lambda b, x, y, z, v: b.add(x, b.mul(v, b.mul(y, z))),
    reference=lambda x, y, z, v: x + v * (y * z),
    dtypes=NUMERIC,
    domains=((1.0, 3.0), (1.0, 3.0), (1.0, 3.0), (1.0, 2.0)),
    gradient=False,
    ulp=4,
    doc="The first plus the fourth times the product of the second and third.",
)


def _addcdiv_vjp(c: Any, g: Any) -> Any:
    gy = div(mul(g, c[3]), c[2])
    return g, gy, neg(mul(gy, div(c[1], c[2]))) if c.needs[2] else None, None


addcdiv4 = elementwise(
    "addcdiv",
    4,
    vjp=_addcdiv_vjp,
    saves=(1, 2, 3),
    lower=lambda b, x, y, z, v: b.add(x, b.mul(v, b.div(y, z))),
    reference=lambda x, y, z, v: x + v * (y / z),
    dtypes=FLOATS,
    domains=((1.0, 3.0), (1.0, 3.0), (1.0, 3.0), (1.0, 2.0)),
    gradient=False,
    ulp=4,
    doc="The first plus the fourth times the quotient of the second and third.",
)


@public(inplace=True)
def addcmul(input: Any, tensor1: Any, tensor2: Any, *, value: Any = 1) -> Any:
    """``input + value * tensor1 * tensor2``, broadcast."""
    a, b, c = promote(input, tensor1, tensor2)
    return addcmul4(a, b, c, as_value(value, a, a.dtype))


@public(inplace=True)
def addcdiv(input: Any, tensor1: Any, tensor2: Any, *, value: Any = 1) -> Any:
    """``input + value * tensor1 / tensor2``, broadcast.

    Raises:
        RuntimeError: for integers; convert with .float() first.
    """
    a, b, c = promote(input, tensor1, tensor2)
    if a.dtype.kind != "f":
        raise RuntimeError(f"addcdiv: integer division is not supported, got {a.dtype}; convert with .float()")
    return addcdiv4(a, b, c, as_value(value, a, a.dtype))


@public(name="rsub")
def rsub(input: Any, other: Any, *, alpha: Any = 1) -> Any:
    """``other - alpha * input``."""
    a, b = promote(other, input)
    return a - (b if alpha == 1 else b * alpha)


@public(name="positive")
def positive(input: Any) -> Any:
    """The input itself.

    Raises:
        RuntimeError: for bool.
    """
    if input.dtype is dt.bool:
        raise RuntimeError("positive: the + operator is not defined for bool tensors")
    return input


heaviside = binary(
    "heaviside",
    lower=lambda b, x, v: b.select(b.eq(x, b.like(x, 0)), v, b.select(b.gt(x, b.like(x, 0)), b.like(x, 1), b.like(x, 0))),
    reference=lambda x, v: np.where(x == 0, v, (x > 0).astype(x.dtype)),
    dtypes=NUMERIC,
    gradient=False,
    ulp=0,
    doc="0 for negative values, 1 for positive ones, the second at 0.",
)


def _copysign_vjp(c: Any, g: Any) -> Any:
    """The factor by which the first was multiplied; 0 where it is 0 (PyTorch's rule)."""
    x = c[0]
    zero = zeros_like_value(g, ())
    return where(eq(x, 0), zero, where(eq(c.out, x), g, neg(g))), zeros_like_value(g, c.meta.shape)


copysign = binary(
    "copysign",
    float_result=True,
    vjp=_copysign_vjp,
    saves=(0, -1),
    lower=lambda b, x, y: b.copysign(x, y),
    reference=np.copysign,
    dtypes=FLOATS,
    ulp=0,
    doc="The magnitude of the first with the sign of the second.",
)

nextafter = binary(
    "nextafter",
    lower=lambda b, x, y: b.nextafter(x, y),
    reference=np.nextafter,
    dtypes=(dt.float32, dt.float64),
    gradient=False,
    ulp=1,
    doc="The representable number beside the first, on the side of the second.",
)
