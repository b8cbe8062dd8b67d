"""The numbers of a captured function, as one Python function that a replay calls: sources are read, expressions computed, guards checked."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from cermet.lazy.number import Number
from cermet.random import _MASK, _signed

__all__ = ["Changed", "compile_numbers"]


class Changed(Exception):
    """A comparison of numbers comes out otherwise than when the function was captured."""


_INFIX = {
    "add": "+", "sub": "-", "mul": "*", "truediv": "/", "floordiv": "//", "mod": "%", "pow": "**", "lt": "<", "le": "<=", "gt": ">",
    "ge": ">=", "eq": "==", "ne": "!=",
}  # fmt: skip
_CALLS = {"neg": "-({})", "pos": "+({})", "abs": "abs({})", "sqrt": "sqrt({})", "int": "int({})", "float": "float({})",
          "single": "single({})"}  # fmt: skip


def _single(x: Any) -> float:
    return float(np.float32(x))


class _Writer:
    def __init__(self, cells: dict[Any, int]) -> None:
        self.cells = cells
        self.space: dict[str, Any] = {
            "sqrt": math.sqrt, "single": _single, "signed": _signed, "MASK": _MASK, "Changed": Changed, "abs": abs, "int": int,
            "float": float,
        }  # fmt: skip
        self.lines: list[str] = []
        self.names: dict[int, str] = {}

    def constant(self, value: Any) -> str:
        name = f"k{len(self.space)}"
        self.space[name] = value
        return name

    def name(self, x: Any) -> str:
        """The variable or constant that holds ``x``; iterative, as a count may have passed many operations."""
        if type(x) is not Number:
            return self.constant(x)
        stack = [x]
        while stack:
            n = stack[-1]
            if id(n) in self.names:
                stack.pop()
                continue
            missing = [a for a in n.args if type(a) is Number and id(a) not in self.names]
            if missing:
                stack.extend(missing)
                continue
            stack.pop()
            variable = self.names[id(n)] = f"v{len(self.names)}"
            self.lines.append(f"{variable} = {self.expression(n)}")
        return self.names[id(x)]

    def expression(self, n: Number) -> str:
        if n.op == "arg":
            return f"floats[{n.args[0]}]"
        if n.op == "option":
            group, key, index = n.args
            entry = f"{self.constant(group)}[{key!r}]"
            return entry if index is None else f"{entry}[{index}]"
        if n.op == "cell":
            return f"values[{self.cells[n.args[0]]}]"
        if n.op == "draw":
            number, place = n.args
            return f"draws[{number}][0]" if place is None else f"signed((draws[{number}][1] + {place}) & MASK)"
        args = [self.name(a) for a in n.args]
        if n.op in _INFIX:
            return f"{args[0]} {_INFIX[n.op]} {args[1]}"
        return _CALLS[n.op].format(*args)

    def guard(self, op: str, a: Any, b: Any, outcome: bool) -> None:
        left = self.name(a)
        if op == "eq" and type(b) is not Number and b != b:
            test = f"{left} != {left}"
        else:
            test = f"{left} {_INFIX[op]} {self.name(b)}"
        self.lines.append(f"if {'not ' if outcome else ''}({test}): raise Changed")


def compile_numbers(
    wanted: Sequence[Any], guards: Sequence[tuple[str, Any, Any, bool]], cells: dict[Any, int]
) -> Callable[[Any, Any, Any], tuple[Any, ...]]:
    """``f(floats, values, draws)`` that gives the wanted numbers (`Number`s and plain ones) as a tuple.

    Args:
        cells: place in ``values`` of each cell that is read as a number.

    The function raises `Changed` where a guard comes out otherwise, and what the arithmetic itself raises.
    """
    w = _Writer(cells)
    for op, a, b, outcome in guards:
        w.guard(op, a, b, outcome)
    results = [w.name(x) for x in wanted]
    body = "\n    ".join([*w.lines, f"return ({', '.join(results)}{',' if results else ''})"])
    exec(f"def numbers(floats, values, draws):\n    {body}\n", w.space)
    made: Callable[[Any, Any, Any], tuple[Any, ...]] = w.space["numbers"]
    return made
