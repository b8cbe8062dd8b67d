"""Formulas over unknown sizes: what is left of planning with letters once it is done. Polynomials of ints; holds no letters itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import floordiv, mod
from typing import Any

__all__ = ["LEAST", "OPERATIONS", "Formulas", "Terms", "value_of"]

LEAST = 2  # unknowns are at least this: 0 and 1 are decided apart, since so much depends on them

Terms = tuple[tuple[tuple[int, ...], int], ...]
"""A polynomial: (unknowns multiplied, in order; factor) for each term, in order."""

OPERATIONS: dict[str, Callable[[int, int], int]] = {"//": floordiv, "%": mod, "max": max}


def value_of(terms: Terms, values: Sequence[int]) -> int:
    """The value of a polynomial."""
    total = 0
    for m, c in terms:
        for v in m:
            c *= values[v]
        total += c
    return total


class Formulas:
    """Guards and wanted numbers of a finished trace; holds no Size."""

    __slots__ = ("_atoms", "_bounds", "_guards", "_wanted")

    def __init__(self, bounds: list[bool], atoms: Any, guards: Any, wanted: Any) -> None:
        self._bounds = bounds
        self._atoms = list(atoms)
        self._guards = list(guards)
        self._wanted = list(wanted)

    def __call__(self, unknowns: Sequence[int]) -> list[int] | None:
        """The wanted numbers for other values of the unknowns, or None where a guard does not hold."""
        for v, bounded in zip(unknowns, self._bounds, strict=True):
            if bounded and v < LEAST:
                return None
        values = list(unknowns)
        for op, a, b in self._atoms:
            y = value_of(b, values)
            if y == 0 and op != "max":
                return None
            values.append(OPERATIONS[op](value_of(a, values), y))
        for terms, relation in self._guards:
            d = value_of(terms, values)
            if relation == "==":
                holds = d == 0
            elif relation == "!=":
                holds = d != 0
            else:
                holds = d < 0 if relation == "<" else d >= 0
            if not holds:
                return None
        return [value_of(terms, values) for terms in self._wanted]

    def __repr__(self) -> str:
        return (
            f"<{len(self._wanted)} numbers of {len(self._bounds)} unknowns, {len(self._atoms)} quotients, "
            f"{len(self._guards)} guards>"
        )
