"""Elementwise arithmetic beyond the four operations: division with rounding, remainders, extrema, clamping, rounding, sign,
blending."""

from __future__ import annotations

from typing import Any

import numpy as np

from cermet import dtypes as dt
from cermet.ops.define import OpDef
from cermet.ops.elementwise import add, div, eq, ge, gt, le, lt, mul, ne, neg, where
from cermet.ops.kinds import FLOATS, NUMERIC, binary, elementwise, unary
from cermet.ops.public import public
from cermet.ops.support import is_number, no_gradient, pair, promote, to_dtype, zeros_like_value

# ------------------------------------------------------------------------------------------------ division, remainders


def _floor_divide_lower(b: Any, x: Any, y: Any) -> Any:
    """Rounded to minus infinity; for floats by way of the exact remainder, so that the quotient is right where x / y would
    round up."""
    if x.dtype.kind != "f":
        return b.idiv(x, y)
    r = b.fmod(x, y)
    q = b.div(b.sub(x, r), y)
    opposite = b.and_(b.ne(r, 0.0), b.xor(b.lt(y, 0.0), b.lt(r, 0.0)))
    q = b.select(opposite, b.sub(q, 1.0), q)
    whole = b.floor(q)
    whole = b.select(b.gt(b.sub(q, whole), 0.5), b.add(whole, 1.0), whole)
    plain = b.div(x, y)
    return b.select(b.eq(y, 0.0), plain, b.select(b.eq(q, 0.0), b.copysign(b.like(x, 0.0), plain), whole))


def _floor_divide_reference(x: Any, y: Any) -> Any:
    if x.dtype.kind == "f":
        return np.where(y == 0, x / np.where(y == 0, y, 1), np.floor_divide(x, np.where(y == 0, 1, y)))
    return np.where(y == 0, 0, np.floor_divide(x, np.where(y == 0, 1, y)))


floor_divide = binary(
    "floor_divide",
    vjp=lambda c, g: (zeros_like_value(g, c.meta.shape), zeros_like_value(g, c.meta.shape)),
    lower=_floor_divide_lower,
    reference=_floor_divide_reference,
    dtypes=NUMERIC,
    domains=((-3.0, 3.0), (0.5, 3.0)),
    gradient=False,
    ulp=1,
    doc="Quotient rounded to minus infinity. An integer divided by zero gives 0.",
)


def _trunc_divide_reference(x: Any, y: Any) -> Any:
    if x.dtype.kind == "f":
        return np.trunc(x / y)
    safe = np.where(y == 0, 1, y)
    return np.where(y == 0, 0, (x - np.fmod(x, safe)) // safe)


trunc_divide = binary(
    "trunc_divide",
    expose=False,
    vjp=lambda c, g: (zeros_like_value(g, c.meta.shape), zeros_like_value(g, c.meta.shape)),
    lower=lambda b, x, y: b.trunc(b.div(x, y)) if x.dtype.kind == "f" else b.tdiv(x, y),
    reference=_trunc_divide_reference,
    dtypes=NUMERIC,
    domains=((-3.0, 3.0), (0.5, 3.0)),
    gradient=False,
    ulp=1,
    doc="Quotient rounded to zero.",
)


@public(name="div", inplace=True, aliases=("divide", "true_divide"))
def div_function(input: Any, other: Any, *, rounding_mode: str | None = None) -> Any:
    """``input / other``, broadcast; integers give the default floating dtype.

    Args:
        rounding_mode: None for the exact quotient, ``"trunc"`` rounds to zero, ``"floor"`` to minus infinity (both keep
        integers).

    Raises:
        RuntimeError: for another rounding mode.
    """
    if rounding_mode is None:
        a, b = pair(input, other, float_result=True)
        return div(a, b)
    a, b = pair(input, other)
    if rounding_mode == "floor":
        return floor_divide(a, b)
    if rounding_mode == "trunc":
        return trunc_divide(a, b)
    raise RuntimeError(f"div: rounding_mode must be None, 'trunc' or 'floor', got {rounding_mode!r}")


def _remainder_lower(b: Any, x: Any, y: Any) -> Any:
    if x.dtype.kind != "f":
        return b.imod(x, y)
    r = b.fmod(x, y)
    opposite = b.and_(b.ne(r, 0.0), b.xor(b.lt(y, 0.0), b.lt(r, 0.0)))
    return b.select(opposite, b.add(r, y), r)


def _integer_safe(f: Any) -> Any:
    """A NumPy function of two arguments that gives 0 for an integer second argument of 0, as the loop IR does."""

    def safe(x: Any, y: Any) -> Any:
        if np.asarray(x).dtype.kind == "f":
            return f(x, y)
        return np.where(y == 0, 0, f(x, np.where(y == 0, 1, y)))

    return safe


remainder = binary(
    "remainder",
    vjp=lambda c, g: (g, neg(mul(g, floor_divide(c[0], c[1]))) if c.needs[1] else None),
    saves=(0, 1),
    lower=_remainder_lower,
    reference=_integer_safe(np.remainder),
    dtypes=NUMERIC,
    domains=((3.1, 3.9), (1.1, 1.4)),
    ulp=1,
    doc="What is left of dividing, with the divisor's sign (Python's %). An integer divided by zero gives 0.",
)

fmod = binary(
    "fmod",
    vjp=lambda c, g: (g, neg(mul(g, trunc_divide(c[0], c[1]))) if c.needs[1] else None),
    saves=(0, 1),
    lower=lambda b, x, y: b.fmod(x, y) if x.dtype.kind == "f" else b.trem(x, y),
    reference=_integer_safe(np.fmod),
    dtypes=NUMERIC,
    domains=((-3.9, -3.1), (1.1, 1.4)),
    ulp=0,
    doc="What is left of dividing, with the dividend's sign (C's fmod).",
)

# ---------------------------------------------------------------------------------------------------------- extrema


def _extreme_vjp(better: Any) -> Any:
    """Half to each at a tie, else to the one that was taken; to both where one is NaN (PyTorch's rule)."""

    def vjp(c: Any, g: Any) -> Any:
        x, y = c[0], c[1]
        zero = zeros_like_value(g, ())
        half = where(eq(x, y), mul(g, 0.5), g)
        return where(better(y, x), zero, half), where(better(x, y), zero, half)

    return vjp


maximum = binary(
    "maximum",
    vjp=_extreme_vjp(gt),
    saves=(0, 1),
    lower=lambda b, x, y: b.or_(x, y) if x.dtype is dt.bool else b.max(x, y),
    reference=np.maximum,
    commutative=True,
    onnx="Max",
    ulp=0,
    doc="The greater of two; NaN where one is.",
)
minimum = binary(
    "minimum",
    vjp=_extreme_vjp(lt),
    saves=(0, 1),
    lower=lambda b, x, y: b.and_(x, y) if x.dtype is dt.bool else b.min(x, y),
    reference=np.minimum,
    commutative=True,
    onnx="Min",
    ulp=0,
    doc="The smaller of two; NaN where one is.",
)


def _ignoring_vjp(better: Any) -> Any:
    """To the first where it is at least as good or the second is NaN, else to the second."""

    def vjp(c: Any, g: Any) -> Any:
        x, y = c[0], c[1]
        zero = zeros_like_value(g, ())
        first = add(ne(y, y), better(x, y))
        return where(first, g, zero), where(first, zero, g)

    return vjp


fmax = binary(
    "fmax",
    vjp=_ignoring_vjp(ge),
    saves=(0, 1),
    lower=lambda b, x, y: b.fmax(x, y) if x.dtype.kind == "f" else b.or_(x, y) if x.dtype is dt.bool else b.max(x, y),
    reference=np.fmax,
    commutative=True,
    ulp=0,
    doc="The greater of two; a NaN loses against a number.",
)
fmin = binary(
    "fmin",
    vjp=_ignoring_vjp(le),
    saves=(0, 1),
    lower=lambda b, x, y: b.fmin(x, y) if x.dtype.kind == "f" else b.and_(x, y) if x.dtype is dt.bool else b.min(x, y),
    reference=np.fmin,
    commutative=True,
    ulp=0,
    doc="The smaller of two; a NaN loses against a number.",
)


def _clamp_vjp(c: Any, g: Any) -> Any:
    x, lo, hi = c[0], c[1], c[2]
    zero = zeros_like_value(g, ())
    gx = where(ge(x, lo), where(le(x, hi), g, zero), zero) if c.needs[0] else None
    glo = where(lt(lo, hi), where(lt(x, lo), g, zero), zero) if c.needs[1] else None
    ghi = where(gt(x, hi), g, where(lt(hi, lo), g, zero)) if c.needs[2] else None
    return gx, glo, ghi


clamp3 = elementwise(
    "clamp",
    3,
    vjp=_clamp_vjp,
    saves=(0, 1, 2),
    lower=lambda b, x, lo, hi: b.min(b.max(x, lo), hi),
    reference=lambda x, lo, hi: np.minimum(np.maximum(x, lo), hi),
    dtypes=NUMERIC,
    domains=((-3.0, 3.0), (-2.0, -1.0), (1.0, 2.0)),
    onnx="Clip",
    ulp=0,
    doc="The value, at least the second and at most the third.",
)


def _clamp_one(name: str, better: Any, method: str, ufunc: Any, doc: str) -> OpDef:
    def vjp(c: Any, g: Any) -> Any:
        zero = zeros_like_value(g, ())
        inside = better(c[0], c[1])
        return where(inside, g, zero) if c.needs[0] else None, where(inside, zero, g) if c.needs[1] else None

    return binary(
        name,
        vjp=vjp,
        saves=(0, 1),
        lower=lambda b, x, y: getattr(b, method)(x, y),
        reference=ufunc,
        dtypes=NUMERIC,
        ulp=0,
        doc=doc,
    )


clamp_min = _clamp_one("clamp_min", ge, "max", np.maximum, "The value, at least the bound.")
clamp_max = _clamp_one("clamp_max", le, "min", np.minimum, "The value, at most the bound.")


@public(inplace=True, aliases=("clip",))
def clamp(input: Any, min: Any = None, max: Any = None) -> Any:
    """``input`` limited to [min, max] (numbers or tensors); where min > max, max. The gradient is 1 inside and at the bounds.

    Raises:
        ValueError: without any bound.
    """
    if min is None and max is None:
        raise ValueError("clamp: no bound was given; give min, max or both")
    if max is None:
        return clamp_min(*pair(input, min))
    if min is None:
        return clamp_max(*pair(input, max))
    if input.dtype.kind == "f" and type(min) in (int, float) and type(max) in (int, float):
        return clamp3(input, float(min), float(max))
    return clamp3(*promote(input, min, max))


# ---------------------------------------------------------------------------------------------------------- sign, rounding


def _abs_lower(b: Any, x: Any) -> Any:
    return x if x.dtype.kind in "bu" else b.abs(x)


abs_ = unary(
    "abs",
    vjp=lambda c, g: mul(g, sign(c[0])),
    saves=(0,),
    lower=_abs_lower,
    reference=np.abs,
    dtypes=NUMERIC,
    onnx="Abs",
    ulp=0,
    aliases=("absolute",),
    doc="The magnitude. Its gradient at 0 is 0.",
)


def _sign_lower(b: Any, x: Any) -> Any:
    if x.dtype.kind in "bu":
        return b.cast(b.ne(x, b.like(x, 0)), x.dtype)
    if x.dtype.kind == "i":
        return b.sign(x)
    # Comparisons make NaN give 0, as PyTorch does.
    return b.sub(b.cast(b.gt(x, 0.0), x.dtype), b.cast(b.lt(x, 0.0), x.dtype))


sign: OpDef = unary(
    "sign",
    vjp=no_gradient,
    lower=_sign_lower,
    reference=lambda x: (x > 0).astype(x.dtype) - (x < 0).astype(x.dtype) if x.dtype.kind in "if" else (x != 0).astype(x.dtype),
    onnx="Sign",
    ulp=0,
    aliases=("sgn",),
    gradient=False,
    doc="-1, 0 or 1; 0 for NaN.",
)


def _rounding(name: str, method: str, ufunc: Any, onnx: str | None, doc: str, aliases: tuple[str, ...] = (), **kw: Any) -> OpDef:
    """A rounding function: integers pass unchanged."""
    return unary(
        name,
        vjp=no_gradient,
        lower=lambda b, x: getattr(b, method)(x) if x.dtype.kind == "f" else x,
        reference=lambda x: ufunc(x) if x.dtype.kind == "f" else x,
        dtypes=NUMERIC,
        onnx=onnx,
        ulp=0,
        gradient=False,
        aliases=aliases,
        doc=doc,
        **kw,
    )


floor = _rounding("floor", "floor", np.floor, "Floor", "Rounded to minus infinity.")
ceil = _rounding("ceil", "ceil", np.ceil, "Ceil", "Rounded to plus infinity.")
trunc = _rounding("trunc", "trunc", np.trunc, None, "Rounded to zero.", aliases=("fix",))
rint = _rounding("rint", "rint", np.rint, "Round", "Rounded to the nearest integer, halves to even.", expose=False)


@public(name="round", inplace=True)
def round_(input: Any, *, decimals: int = 0) -> Any:
    """Rounded to the nearest integer, halves to even; with ``decimals`` to that many places after the point (negative: before
    it)."""
    if decimals == 0:
        return rint(input)
    if input.dtype.kind != "f":
        raise RuntimeError(f"round: decimals needs a floating input, got {input.dtype}")
    scale = 10.0 ** abs(decimals)
    return div(rint(mul(input, scale)), scale) if decimals > 0 else mul(rint(div(input, scale)), scale)


frac = unary(
    "frac",
    vjp=lambda c, g: g,
    lower=lambda b, x: b.sub(x, b.trunc(x)),
    reference=lambda x: x - np.trunc(x),
    dtypes=FLOATS,
    domain=(0.1, 0.9),
    ulp=0,
    doc="The part after the point, with the value's sign.",
)

signbit = unary(
    "signbit",
    result="bool",
    lower=lambda b, x: b.signbit(x) if x.dtype.kind == "f" else b.lt(x, 0) if x.dtype.kind == "i" else b.const(False, dt.bool),
    reference=lambda x: np.signbit(x) if x.dtype.kind in "fi" else np.zeros(x.shape, bool),
    ulp=0,
    doc="Whether the sign bit is set (also for -0.0).",
)

# ---------------------------------------------------------------------------------------------------------- classes of numbers


def _of_floats(test: Any, otherwise: bool) -> Any:
    """A lowering that tests floating values and is constant for the others."""
    return lambda b, x: test(b, x) if x.dtype.kind == "f" else b.const(otherwise, dt.bool)


def _reference_of_floats(test: Any, otherwise: bool) -> Any:
    return lambda x: test(x) if x.dtype.kind == "f" else np.full(x.shape, otherwise)


def _kind_of_number(name: str, lower: Any, reference: Any, otherwise: bool, doc: str, onnx: str | None = None) -> OpDef:
    return unary(
        name,
        result="bool",
        lower=_of_floats(lower, otherwise),
        reference=_reference_of_floats(reference, otherwise),
        ulp=0,
        onnx=onnx,
        doc=doc,
    )


_INF = float("inf")
isnan = _kind_of_number("isnan", lambda b, x: b.isnan(x), np.isnan, False, "Whether NaN.", "IsNaN")
isinf = _kind_of_number("isinf", lambda b, x: b.eq(b.abs(x), _INF), np.isinf, False, "Whether plus or minus infinity.", "IsInf")
isfinite = _kind_of_number("isfinite", lambda b, x: b.lt(b.abs(x), _INF), np.isfinite, True, "Whether neither NaN nor infinite.")
isposinf = _kind_of_number("isposinf", lambda b, x: b.eq(x, _INF), np.isposinf, False, "Whether plus infinity.")
isneginf = _kind_of_number("isneginf", lambda b, x: b.eq(x, -_INF), np.isneginf, False, "Whether minus infinity.")
isreal = _kind_of_number(
    "isreal", lambda b, x: b.const(True, dt.bool), lambda x: np.ones(x.shape, bool), True, "True everywhere."
)


def _nan_to_num_reference(x: Any, nan: Any, posinf: Any, neginf: Any) -> Any:
    return np.where(np.isnan(x), nan, np.where(x == np.inf, posinf, np.where(x == -np.inf, neginf, x)))


nan_to_num4 = elementwise(
    "nan_to_num",
    4,
    vjp=lambda c, g: (where(isfinite(c[0]), g, zeros_like_value(g, ())), None, None, None),
    saves=(0,),
    lower=lambda b, x, nan, pos, low: b.select(b.isnan(x), nan, b.select(b.eq(x, _INF), pos, b.select(b.eq(x, -_INF), low, x))),
    reference=_nan_to_num_reference,
    dtypes=FLOATS,
    ulp=0,
    gradient=False,
    doc="The value, with replacements for NaN and the infinities.",
)


@public(inplace=True)
def nan_to_num(input: Any, nan: float | None = None, posinf: float | None = None, neginf: float | None = None) -> Any:
    """NaN replaced by ``nan`` (0), infinities by ``posinf`` and ``neginf`` (the greatest and least finite numbers)."""
    if input.dtype.kind != "f":
        return input
    info = dt.finfo(input.dtype)
    return nan_to_num4(
        input,
        0.0 if nan is None else float(nan),
        info.max if posinf is None else float(posinf),
        info.min if neginf is None else float(neginf),
    )


@public()
def isclose(input: Any, other: Any, rtol: float = 1e-05, atol: float = 1e-08, equal_nan: bool = False) -> Any:
    """Whether ``|input - other| <= atol + rtol * |other|``, or both are equal; with ``equal_nan`` NaN equals NaN.

    Raises:
        RuntimeError: for inputs of different dtypes or negative tolerances.
    """
    if not is_number(other) and input.dtype is not other.dtype:
        raise RuntimeError(f"isclose: the inputs must have one dtype, got {input.dtype} and {other.dtype}")
    if rtol < 0 or atol < 0:
        raise RuntimeError(f"isclose: tolerances must not be negative, got rtol={rtol} and atol={atol}")
    x, y = promote(input, other)
    close = eq(x, y)
    if equal_nan and x.dtype.kind == "f":
        close = add(close, mul(isnan(x), isnan(y)))
    fx, fy = (to_dtype(v, dt.float64) if v.dtype.kind != "f" else v for v in (x, y))
    near = le(abs_(add(fx, neg(fy))), add(abs_(mul(fy, float(rtol))), float(atol)))
    return add(close, mul(near, isfinite(add(fx, neg(fy)))))


@public()
def allclose(input: Any, other: Any, rtol: float = 1e-05, atol: float = 1e-08, equal_nan: bool = False) -> bool:
    """Whether `isclose` holds everywhere. Looks at the values."""
    return bool(isclose(input, other, rtol, atol, equal_nan).all())


@public()
def equal(input: Any, other: Any) -> bool:
    """Whether two tensors have one shape and equal elements. Looks at the values."""
    if tuple(input.shape) != tuple(other.shape):
        return False
    return bool(eq(*promote(input, other)).all())
