"""Numbers of a captured function that may be others in the next call: a learning rate, a step count, an argument.

While `cermet.capture` runs a function, such numbers are `Number`s: they compute like the number they stand for and remember how, so that a
replay can compute them anew. One that is looked at in a way that cannot be repeated (formatted, used as a size, given to `math`) becomes
part of the signature with its present value; a comparison becomes part of it with its outcome. So nothing is ever frozen in silence.

This room knows neither tensors nor captures; ``home`` is whoever keeps the numbers of one capture.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import numpy as np

__all__ = ["Number", "plain", "real", "root", "single", "whole"]

_KINDS = (int, float)


class Number:
    """A number and how it came to be.

    Attributes:
        home: the capture it belongs to. op: "source", or the name of an operation. args: its operands, numbers or `Number`s.
        value: its present value. internal: whether only the library computes with it; it is then told apart by identity in dicts.
    """

    __slots__ = ("args", "home", "internal", "op", "value")

    def __init__(self, home: Any, op: str, args: tuple[Any, ...], value: Any, internal: bool) -> None:
        self.home = home
        self.op = op
        self.args = args
        self.value = value
        self.internal = internal

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        # isinstance(x, float) holds, while C code that would read the value of a float unseen asks __float__ first.
        return type(self.value)

    def pinned(self) -> Any:
        """The present value, which hereby becomes part of the signature."""
        self.home.guard("eq", self, self.value, True)
        return self.value

    def __hash__(self) -> int:
        return object.__hash__(self) if self.internal else hash(self.pinned())

    def __bool__(self) -> bool:
        return bool(self.home.guard("ne", self, 0, self.value != 0))

    def __float__(self) -> float:
        return float(self.pinned())

    def __int__(self) -> int:
        return int(self.pinned())

    def __index__(self) -> int:
        return operator.index(self.pinned())

    def __complex__(self) -> complex:
        return complex(self.pinned())

    def __round__(self, digits: Any = None) -> Any:
        return round(self.pinned(), digits)

    def __trunc__(self) -> int:
        return math.trunc(self.pinned())

    def __floor__(self) -> int:
        return math.floor(self.pinned())

    def __ceil__(self) -> int:
        return math.ceil(self.pinned())

    def __divmod__(self, other: Any) -> Any:
        return divmod(self.pinned(), plain(other))

    def __repr__(self) -> str:
        return repr(self.pinned())

    def __str__(self) -> str:
        return str(self.pinned())

    def __format__(self, spec: str) -> str:
        return format(self.pinned(), spec)

    def __reduce__(self) -> Any:
        return (plain, (self.pinned(),))

    def __copy__(self) -> Number:
        return self

    def __deepcopy__(self, _: Any) -> Number:
        return self

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return np.asarray(self.pinned(), dtype)

    def __getattr__(self, name: str) -> Any:
        # Methods of numbers look at the value.
        if name.startswith("__") or not hasattr(type(self.value), name):
            raise AttributeError(f"{type(self.value).__name__!r} object has no attribute {name!r}")
        return getattr(self.pinned(), name)


def _usable(x: Any) -> bool:
    return type(x) is Number or isinstance(x, _KINDS)


def _arithmetic(name: str, f: Callable[..., Any]) -> None:
    def forward(self: Number, other: Any) -> Any:
        if not _usable(other):
            return NotImplemented
        return self.home.combine(name, (self, other), f(self.value, _value(other)))

    def backward(self: Number, other: Any) -> Any:
        if not _usable(other):
            return NotImplemented
        return self.home.combine(name, (other, self), f(_value(other), self.value))

    setattr(Number, f"__{name}__", forward)
    setattr(Number, f"__r{name}__", backward)


def _comparison(name: str, f: Callable[..., Any]) -> None:
    def compare(self: Number, other: Any) -> Any:
        if self is other:
            return f(0, 0)
        if not _usable(other):
            return NotImplemented
        return self.home.guard(name, self, other, bool(f(self.value, _value(other))))

    setattr(Number, f"__{name}__", compare)


def _unary(name: str, f: Callable[..., Any]) -> None:
    def apply(self: Number) -> Any:
        return self.home.combine(name, (self,), f(self.value))

    setattr(Number, f"__{name}__", apply)


def _value(x: Any) -> Any:
    return x.value if type(x) is Number else x


for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow"):
    _arithmetic(_name, getattr(operator, _name))
for _name in ("lt", "le", "gt", "ge", "eq", "ne"):
    _comparison(_name, getattr(operator, _name))
for _name, _function in (("neg", operator.neg), ("abs", abs), ("pos", operator.pos)):
    _unary(_name, _function)


def plain(x: Any) -> Any:
    """An ordinary number; a `Number` becomes part of the signature by it."""
    return x.pinned() if type(x) is Number else x


def root(x: Any) -> Any:
    """The square root of a number."""
    return x.home.combine("sqrt", (x,), math.sqrt(x.value)) if type(x) is Number else math.sqrt(x)


def whole(x: Any) -> Any:
    """A number as an integer."""
    return x.home.combine("int", (x,), int(x.value)) if type(x) is Number else int(x)


def real(x: Any) -> Any:
    """A number as a float."""
    if type(x) is not Number:
        return float(x)
    return x if type(x.value) is float else x.home.combine("float", (x,), float(x.value))


def single(x: Any) -> Any:
    """A number rounded to float32."""
    if type(x) is not Number:
        return float(np.float32(x))
    return x.home.combine("single", (x,), float(np.float32(x.value)))
