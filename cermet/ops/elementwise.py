"""Elementwise arithmetic, comparison and selection. Functions of analysis live in `cermet.ops.mathematics`."""

from __future__ import annotations

from typing import Any

import numpy as np

from cermet import dtypes as dt
from cermet.graph.node import OPERATORS, Meta
from cermet.ops.define import OpDef
from cermet.ops.kinds import ALL, FLOATS, NUMERIC, binary, broadcast_meta, comparison, elementwise, unary
from cermet.ops.public import public
from cermet.ops.support import as_value, is_number, pair, promote, same_dtype, zeros_like_value

# ---------------------------------------------------------------------------------------------------------- arithmetic

add = binary(
    "add",
    expose=False,
    vjp=lambda c, g: (g, g),
    lower=lambda b, x, y: b.add(x, y),
    reference=np.add,
    commutative=True,
    identity=0,
    onnx="Add",
    ulp=0.5,
    doc="Sum; for bool the logical or.",
)

sub = binary(
    "sub",
    expose=False,
    vjp=lambda c, g: (g, -g if c.needs[1] else None),
    lower=lambda b, x, y: b.sub(x, y),
    reference=np.subtract,
    dtypes=NUMERIC,
    onnx="Sub",
    ulp=0.5,
    doc="Difference.",
)

mul = binary(
    "mul",
    vjp=lambda c, g: (g * c[1] if c.needs[0] else None, g * c[0] if c.needs[1] else None),
    saves=(0, 1),
    lower=lambda b, x, y: b.mul(x, y),
    reference=np.multiply,
    commutative=True,
    identity=1,
    onnx="Mul",
    ulp=0.5,
    aliases=("multiply",),
    doc="Product; for bool the logical and.",
)


def _div_vjp(c: Any, g: Any) -> Any:
    gx = g / c[1]
    return gx, -(gx * (c[0] / c[1])) if c.needs[1] else None


div = binary(
    "div",
    expose=False,
    vjp=_div_vjp,
    saves=(0, 1),
    lower=lambda b, x, y: b.div(x, y),
    reference=np.true_divide,
    dtypes=FLOATS,
    domains=((-3.0, 3.0), (0.5, 3.0)),
    onnx="Div",
    ulp=0.5,
    doc="Quotient of floating values.",
)

neg = unary(
    "neg",
    vjp=lambda c, g: -g,
    lower=lambda b, x: b.neg(x),
    reference=np.negative,
    dtypes=NUMERIC,
    onnx="Neg",
    ulp=0,
    aliases=("negative",),
    doc="The value with its sign changed.",
)


def _scaled(name: str, a: Any, b: Any, alpha: Any) -> Any:
    """The product alpha * b, with PyTorch's refusal of a floating alpha for integers."""
    if isinstance(alpha, float) and not (a.dtype.kind == "f"):
        raise RuntimeError(f"{name}: alpha={alpha!r} with tensors of {a.dtype}; give a whole number, or cast the tensors")
    return mul(as_value(b, a), as_value(alpha, a, a.dtype))


@public(name="add", inplace=True)
def add_function(input: Any, other: Any, *, alpha: Any = 1) -> Any:
    """``input + alpha * other``, broadcast, in the promoted dtype."""
    a, b = pair(input, other)
    return add(a, b) if isinstance(alpha, int | float) and alpha == 1 else add(a, _scaled("add", a, b, alpha))


@public(name="sub", inplace=True, aliases=("subtract",))
def sub_function(input: Any, other: Any, *, alpha: Any = 1) -> Any:
    """``input - alpha * other``, broadcast, in the promoted dtype."""
    a, b = pair(input, other)
    return sub(a, b) if isinstance(alpha, int | float) and alpha == 1 else sub(a, _scaled("sub", a, b, alpha))


# ---------------------------------------------------------------------------------------------------------- comparison

eq = comparison("eq", lower=lambda b, x, y: b.eq(x, y), reference=np.equal, onnx="Equal", doc="Whether equal; NaN is not.")
ne = comparison("ne", lower=lambda b, x, y: b.ne(x, y), reference=np.not_equal, aliases=("not_equal",), doc="Whether not equal.")
lt = comparison("lt", lower=lambda b, x, y: b.lt(x, y), reference=np.less, onnx="Less", aliases=("less",), doc="Whether less.")
le = comparison(
    "le", lower=lambda b, x, y: b.le(x, y), reference=np.less_equal, onnx="LessOrEqual", aliases=("less_equal",),
    doc="Whether less or equal.",
)  # fmt: skip
gt = comparison(
    "gt", lower=lambda b, x, y: b.gt(x, y), reference=np.greater, onnx="Greater", aliases=("greater",), doc="Whether greater."
)
ge = comparison(
    "ge", lower=lambda b, x, y: b.ge(x, y), reference=np.greater_equal, onnx="GreaterOrEqual", aliases=("greater_equal",),
    doc="Whether greater or equal.",
)  # fmt: skip

# ---------------------------------------------------------------------------------------------------------- selection


def _where_infer(c: Meta, x: Meta, y: Meta) -> Meta:
    if c.dtype is not dt.bool:
        raise TypeError(f"where: the condition must be bool, got {c.dtype}; compare or call .bool() first")
    same_dtype("where", x, y)
    return broadcast_meta("where", x, c, y)


def _where_vjp(c: Any, g: Any) -> Any:
    zero = zeros_like_value(g, ())
    return None, where(c[0], g, zero) if c.needs[1] else None, where(c[0], zero, g) if c.needs[2] else None


where: OpDef = elementwise(
    "where",
    3,
    infer=_where_infer,
    vjp=_where_vjp,
    saves=(0,),
    lower=lambda b, c, x, y: b.select(c, x, y),
    reference=np.where,
    dtypes=ALL,
    domains=("bool", (-3.0, 3.0), (-3.0, 3.0)),
    onnx="Where",
    ulp=0,
    doc="The second where the first is true, else the third.",
)


def choose(condition: Any, x: Any, y: Any) -> Any:
    """`where` for rules: a Python number takes the dtype of the other choice."""
    if is_number(x):
        x = as_value(x, y, y.dtype)
    elif is_number(y):
        y = as_value(y, x, x.dtype)
    return where(condition, x, y)


def numbers_only(*args: Any) -> bool:
    """Whether all arguments are Python numbers."""
    return all(is_number(a) for a in args)


@public(name="where", method=False)
def where_function(condition: Any, input: Any = None, other: Any = None) -> Any:
    """``input`` where ``condition`` (bool) is true, else ``other``, broadcast and promoted. With the condition alone: `nonzero`
    as a tuple.

    Raises:
        TypeError: for a condition that is not bool.
    """
    if input is None and other is None:
        from cermet.ops.indexing import nonzero

        return nonzero(condition, as_tuple=True)
    x, y = pair(input, other) if not is_number(input) else promote(input, other)
    if condition.dtype is dt.uint8:
        condition = ne(condition, 0)
    return where(condition, as_value(x, condition, getattr(y, "dtype", None)), as_value(y, condition, x.dtype))


OPERATORS.update(add=add, sub=sub, mul=mul, div=div, neg=neg)
