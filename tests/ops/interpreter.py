"""A NumPy interpreter of loop IR expressions: checks each op's ``lower`` against its reference without a compiler."""

from __future__ import annotations

from typing import Any

import numpy as np

from cermet import dtypes as dt
from cermet.compiler.loops.build import builder
from cermet.compiler.loops.ir import Expr
from cermet.ops.define import REGISTRY


def _reference(name: str) -> Any:
    return lambda *a: REGISTRY[name].reference(*a)


def _integer_zero(f: Any) -> Any:
    return lambda x, y: np.where(y == 0, 0, f(x, np.where(y == 0, 1, y)))


def _trunc_divide(x: Any, y: Any) -> Any:
    return (x - np.fmod(x, y)) // y


_FUNCTIONS: dict[str, Any] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.true_divide, "min": np.minimum, "max": np.maximum,
    "neg": np.negative, "abs": np.abs, "sign": np.sign, "fma": lambda x, y, z: x * y + z,
    "idiv": _integer_zero(np.floor_divide), "imod": _integer_zero(np.remainder), "trem": _integer_zero(np.fmod),
    "tdiv": _integer_zero(_trunc_divide), "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor, "not": np.invert,
    "shl": _reference("bitwise_left_shift"), "shr": _reference("bitwise_right_shift"),
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
    "floor": np.floor, "ceil": np.ceil, "trunc": np.trunc, "rint": np.rint, "sqrt": np.sqrt, "rsqrt": lambda x: 1 / np.sqrt(x),
    "copysign": np.copysign, "fmin": np.fmin, "fmax": np.fmax, "fmod": np.fmod, "isnan": np.isnan, "nextafter": np.nextafter,
    "signbit": np.signbit, "exp": np.exp, "exp2": np.exp2, "expm1": np.expm1, "log": np.log, "log2": np.log2, "log10": np.log10,
    "log1p": np.log1p, "sin": np.sin, "cos": np.cos, "tan": np.tan, "asin": np.arcsin, "acos": np.arccos, "atan": np.arctan,
    "atan2": np.arctan2, "sinh": np.sinh, "cosh": np.cosh, "tanh": np.tanh, "asinh": np.arcsinh, "acosh": np.arccosh,
    "atanh": np.arctanh, "pow": np.power, "select": np.where,
    **{name: _reference(name) for name in ("erf", "erfc", "erfinv", "lgamma", "digamma")},
}  # fmt: skip


def evaluate(e: Expr, values: dict[Any, Any], cache: dict[int, Any] | None = None) -> Any:
    """The value of an expression; parameters (by their ``attr``) have the given arrays. Every step is rounded to its dtype."""
    cache = {} if cache is None else cache
    if id(e) in cache:
        return cache[id(e)]
    if e.op == "const":
        out = np.asarray(e.attr, e.dtype.numpy)
    elif e.op == "param":
        out = values[e.attr]
    elif e.op == "cast":
        out = np.asarray(evaluate(e.args[0], values, cache)).astype(e.attr.numpy).astype(e.dtype.numpy)
    elif e.op == "philox":
        out = REGISTRY["philox"].reference(*[evaluate(a, values, cache) for a in e.args], word=e.attr)
    else:
        args = [evaluate(a, values, cache) for a in e.args]
        out = np.asarray(_FUNCTIONS[e.op](*args)).astype(e.dtype.numpy)
    cache[id(e)] = out
    return out


def run_lower(op: Any, arrays: list[Any], dtypes: list[dt.DType], attrs: dict[str, Any], result: dt.DType) -> Any:
    """The op's lowering on arrays, as a kernel would compute it."""
    params = [Expr("param", (), d.compute, k) for k, d in enumerate(dtypes)]
    values = {k: np.asarray(a).astype(d.compute.numpy) for k, (a, d) in enumerate(zip(arrays, dtypes, strict=True))}
    out = op.lower(builder, *params, **attrs)
    assert isinstance(out, Expr), f"{op.name}: lower returned {type(out).__name__}"
    assert out.dtype is result.compute, f"{op.name}: lower gives {out.dtype}, the record says {result}"
    shape = np.broadcast_shapes(*[v.shape for v in values.values()])
    with np.errstate(all="ignore"):
        return np.broadcast_to(evaluate(out, values), shape).astype(result.numpy)
