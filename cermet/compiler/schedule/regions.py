"""Regions of a domain: where a value is put together from pieces (cat, pad, roll, a write to a slice), each piece gets loops of its own, in which
every condition on the position is decided beforehand. Knows trees and index expressions; must not know loops."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence

from cermet.compiler.schedule.domain import Axes
from cermet.compiler.schedule.index import Dim, Idx
from cermet.compiler.schedule.tree import Tree, split_at

__all__ = ["Box", "regions"]

Box = tuple[tuple[int, int], ...]
"""Per axis of a domain: the first index and the extent."""

MOST = 1024  # launches; past this planning them takes too long
LEAST = 256  # elements of a piece on average: below, a launch is more than its conditions
NARROW = 8  # pieces along the lanes that are on average shorter than this leave the vectors mostly empty
FEW = 8  # pieces that one kernel can tell apart as quickly


def regions(trees: Iterable[Tree], axes: Axes, lanes: int) -> list[Box]:
    """The boxes into which positions' conditions cut the domain, or nothing where it is best left whole.

    Args:
        trees: all trees of the group.
        axes: its axes; those split into several dims are left whole.
        lanes: the axis along which memory runs.
    """
    axis_of = {row[0]: a for a, row in enumerate(axes.dims) if len(row) == 1}
    cuts: dict[int, set[int]] = {}
    for value, bounds in _tests(trees):
        if len(value.terms) != 1:
            continue
        (v, c), *_ = value.terms
        if type(v) is Dim and v in axis_of and c in (1, -1):
            for bound in bounds:
                # value >= bound from here on (c = 1), or up to here (c = -1).
                at = bound - value.const if c == 1 else value.const - bound + 1
                if 0 < at < v.extent:
                    cuts.setdefault(axis_of[v], set()).add(at)
    sides: list[list[tuple[int, int]]] = []
    for a, row in enumerate(axes.extents):
        extent = row[0] if len(row) == 1 else 0
        inner = sorted(cuts.get(a, ()))
        if a == lanes and len(inner) < FEW and (len(inner) + 1) * NARROW > extent:
            inner = []
        marks = [0, *inner, extent]
        sides.append([(x, y - x) for x, y in itertools.pairwise(marks)] if inner else [(0, -1)])
    count = 1
    for s in sides:
        count *= len(s)
    total = math.prod([math.prod(e) for e in axes.extents])
    return list(itertools.product(*sides)) if 1 < count <= min(MOST, total // LEAST) else []


def _tests(trees: Iterable[Tree]) -> Iterable[tuple[Idx, Sequence[int]]]:
    """What positions are compared with: expressions, and the values from which on the outcome is another."""
    for t in trees:
        for c in t.conditions:
            if c.modulus == 1:
                yield c.value, (c.low, c.high)
        below = split_at(t)
        if below is not None:
            yield below[0], (below[1],)
