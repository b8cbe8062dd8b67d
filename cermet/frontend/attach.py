"""Derives Tensor methods, operators, in-place forms and the functions of each namespace from the table of public functions."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from cermet.frontend.core import TensorBase, finish, node_of
from cermet.frontend.tensor import Tensor
from cermet.lazy.record import number_node
from cermet.ops.define import REGISTRY
from cermet.ops.public import PUBLIC, Public

__all__ = ["attach", "functions"]


def functions(namespace: str) -> dict[str, Callable[..., Any]]:
    """Name -> function of one namespace ("" for the top)."""
    out: dict[str, Callable[..., Any]] = {}
    for record in PUBLIC.values():
        if namespace in record.namespaces and not record.property:
            out[record.name] = record.fn
            if record.inplace:
                out[record.name + "_"] = _inplace(record)
    return out


def _inplace(record: Public) -> Callable[..., Any]:
    fn = getattr(record.fn, "uncast", record.fn)  # the tensor that is written keeps its dtype: autocast has no say

    @functools.wraps(fn)
    def inplace(self: Any, *args: Any, **kwargs: Any) -> Any:
        return self._write(fn(self, *args, **kwargs))

    inplace.__name__ = inplace.__qualname__ = record.name + "_"
    inplace.__doc__ = f"In-place form of `{record.name}`: the result becomes the tensor's value, seen by all its views."
    return inplace


# Python's operators, each with the public function it calls and, where both sides are tensors of one dtype, the op to record at once.
_OPERATORS = {
    "add": "add", "sub": "sub", "mul": "mul", "truediv": "div", "floordiv": "floor_divide", "mod": "remainder", "pow": "pow",
    "matmul": "matmul", "and": "bitwise_and", "or": "bitwise_or", "xor": "bitwise_xor", "lshift": "bitwise_left_shift",
    "rshift": "bitwise_right_shift", "eq": "eq", "ne": "ne", "lt": "lt", "le": "le", "gt": "gt", "ge": "ge",
}  # fmt: skip
_COMPARE = ("eq", "ne", "lt", "le", "gt", "ge")


def _operator(name: str, fn: Callable[..., Any]) -> Callable[..., Any]:
    op = REGISTRY.get(name)
    quick = op is not None and op.kind == "elementwise" and len(op.samples[0].args) == 2 and not op.attrs
    calls = op.calls if op is not None else {}
    floating_only = name == "div"

    def method(self: Any, other: Any) -> Any:
        if quick and isinstance(other, TensorBase):
            a = self._node if self._alias is None else node_of(self)
            b = other._node if other._alias is None else node_of(other)
            ma, mb = a.meta, b.meta
            if ma.dtype is mb.dtype and not (floating_only and ma.dtype.kind != "f"):
                call = calls.get(((), (ma, mb)))
                if call is not None:
                    fa, fb = self._fn, other._fn
                    return finish(call, (a, b), (fa, fb) if call.differentiable and (fa is not None or fb is not None) else None)
        elif quick and type(other) in _PLAIN and self._node.meta.dtype.kind == "f":
            a = self._node if self._alias is None else node_of(self)
            b = number_node(float(other), a.meta)
            call = calls.get(((), (a.meta, b.meta)))
            if call is not None:
                fa = self._fn
                return finish(call, (a, b), (fa, None) if fa is not None and call.differentiable else None)
        elif not isinstance(other, TensorBase) and not _operand(other):
            return NotImplemented
        return fn(self, other)

    return method


# A Python number beside a floating tensor is one of its dtype, whatever its own type.
_PLAIN = frozenset((float, int, bool))
_OPERANDS = (bool, int, float, np.generic, np.ndarray)


def _operand(x: Any) -> bool:
    return isinstance(x, _OPERANDS)


def _reflected(name: str, fn: Callable[..., Any]) -> Callable[..., Any]:
    op = REGISTRY.get(name)
    quick = op is not None and op.kind == "elementwise" and len(op.samples[0].args) == 2 and not op.attrs
    calls = op.calls if op is not None else {}

    def method(self: Any, other: Any) -> Any:
        if quick and type(other) in _PLAIN and self._node.meta.dtype.kind == "f":
            b = self._node if self._alias is None else node_of(self)
            a = number_node(float(other), b.meta)
            call = calls.get(((), (a.meta, b.meta)))
            if call is not None:
                fb = self._fn
                return finish(call, (a, b), (None, fb) if fb is not None and call.differentiable else None)
        return fn(other, self) if _operand(other) else NotImplemented

    return method


def _inplace_operator(fn: Callable[..., Any]) -> Callable[..., Any]:
    def method(self: Any, other: Any) -> Any:
        return self._write(fn(self, other))

    return method


def attach() -> None:
    """Give Tensor its methods; called once, when the package is imported."""
    for record in PUBLIC.values():
        if not record.method:
            continue
        if record.property:
            setattr(Tensor, record.name, property(record.fn))
        else:
            if record.name not in Tensor.__dict__:
                setattr(Tensor, record.name, record.fn)
            if record.inplace:
                setattr(Tensor, record.name + "_", _inplace(record))
    for operator, name in _OPERATORS.items():
        found = PUBLIC.get(("", name))
        if found is None:
            continue
        setattr(Tensor, f"__{operator}__", _operator(name, found.fn))
        if operator not in _COMPARE:
            setattr(Tensor, f"__r{operator}__", _reflected(name, found.fn))
            setattr(Tensor, f"__i{operator}__", _inplace_operator(found.fn))
    for dunder, name in (("neg", "neg"), ("abs", "abs"), ("invert", "bitwise_not"), ("pos", "positive")):
        found = PUBLIC.get(("", name))
        if found is not None:
            setattr(Tensor, f"__{dunder}__", _one(found.fn))
    Tensor.__array_priority__ = 1000  # type: ignore[attr-defined]  # NumPy arrays defer to our reflected operators


def _one(fn: Callable[..., Any]) -> Callable[..., Any]:
    def method(self: Any) -> Any:
        return fn(self)

    return method
