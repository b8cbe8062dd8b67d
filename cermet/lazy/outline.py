"""Outlines of recordings: their structure without integers, the integers, which of these differ between recordings, and the recording once
more with letters in their places. Knows tapes and nodes; must not know how programs are planned."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from operator import itemgetter
from typing import Any

from cermet.graph.node import Call, Meta, Node, meta
from cermet.graph.sizes import Refused, concrete
from cermet.ops.define import getitem
from cermet.ops.leaf import item

__all__ = ["Mirror", "Pattern", "structure_of"]

_shapes: dict[Any, int] = {}
_shape_ids = itertools.count(1)


def _outline(call: Call) -> tuple[int, tuple[int, ...]]:
    """A number for the call without its integers, and the integers, in the order in which `_refilled` takes them."""
    found = call.outline
    if found is None:
        numbers: list[int] = []
        key = (call.op.name, tuple([_without_numbers(a, numbers) for a in call.attrs]))
        number = _shapes.get(key)
        if number is None:
            if len(_shapes) > 100_000:  # bounded; what is forgotten costs a planning
                _shapes.clear()
            number = _shapes.setdefault(key, next(_shape_ids))
        found = call.outline = (number, tuple(numbers))
    return found


def _without_numbers(a: Any, numbers: list[int]) -> Any:
    kind = type(a)
    if kind is int:
        numbers.append(a)
        return int
    if kind is tuple:
        return tuple([_without_numbers(x, numbers) for x in a])
    if kind is Meta:
        numbers.extend(a.shape)
        return (Meta, a.ndim, a.dtype, a.device)
    if kind is Call:
        for m in a.inputs:
            numbers.extend(m.shape)
        inner = tuple([_without_numbers(x, numbers) for x in a.attrs])
        return (Call, a.op.name, inner, tuple([(m.ndim, m.dtype, m.device) for m in a.inputs]))
    if kind is float:
        return (float, a.hex())
    return (kind, a)


def _refilled(a: Any, numbers: Iterator[Any]) -> Any:
    """An attribute with other numbers in place of its integers."""
    kind = type(a)
    if kind is int:
        return next(numbers)
    if kind is tuple:
        return tuple([_refilled(x, numbers) for x in a])
    if kind is Meta:
        return meta(tuple([next(numbers) for _ in a.shape]), a.dtype, a.device)
    if kind is Call:
        metas = tuple([meta(tuple([next(numbers) for _ in m.shape]), m.dtype, m.device) for m in a.inputs])
        return a.op.call_for(tuple([_refilled(x, numbers) for x in a.attrs]), metas)
    return a


def structure_of(nodes: Sequence[Node], leaves: Sequence[Node], key: tuple[int, ...], held: Any) -> tuple[Any, list[int]]:
    """A recording's structure, and its numbers. ``key`` is the tape's."""
    outlines = [_outline(n.call) for n in leaves]
    outlines += [_outline(n.call) for n in nodes]
    numbers: list[int] = []
    for _, own in outlines:
        numbers.extend(own)
    return (tuple([number for number, _ in outlines]), _links(nodes, key), tuple(held)), numbers


def _links(nodes: Sequence[Node], key: tuple[int, ...]) -> tuple[int, ...]:
    """The tape's key without the calls: who feeds whom."""
    out = list(key)
    k = 0
    for n in nodes:
        out[k] = 0
        k += 1 + len(n.inputs)
    return tuple(out)


class Pattern:
    """Which numbers differ between the recordings seen, and which of them go together.

    Attributes:
        first: values of the unknowns in the last recording.
    """

    def __init__(self, seen: list[list[int]]) -> None:
        rows = list(zip(*seen, strict=True))
        self.constant = [k for k, row in enumerate(rows) if row.count(row[0]) == len(row)]
        last = seen[-1]
        groups: dict[tuple[int, ...], list[int]] = {}
        for k, row in enumerate(rows):
            if row.count(row[0]) != len(row):
                groups.setdefault(row, []).append(k)
        self.first: list[int] = []
        self.unknown: list[int] = []  # a position for each unknown
        self.rules: list[tuple[list[int], int, int, int]] = []  # (positions, unknown, factor, summand)
        bases: list[tuple[int, ...]] = []
        for row in sorted(groups, key=lambda row: (tuple(map(abs, row)), row)):
            number, factor, summand = _relation(row, bases)
            if number < 0:
                number = len(bases)
                bases.append(row)
                self.first.append(row[-1])
                self.unknown.append(groups[row][0])
            self.rules.append((groups[row], number, factor, summand))
        self._constant_of = itemgetter(*self.constant) if len(self.constant) > 1 else lambda numbers: None
        self._constants = self._constant_of(last)
        if len(self.constant) == 1:
            self.rules.append((self.constant, -1, 0, last[self.constant[0]]))

    def match(self, numbers: list[int]) -> list[int] | None:
        """The unknowns for a recording's numbers, or None where they are not of this pattern."""
        if self._constant_of(numbers) != self._constants:
            return None
        unknowns = [numbers[k] for k in self.unknown]
        for positions, number, factor, summand in self.rules:
            value = unknowns[number] * factor + summand
            for k in positions:
                if numbers[k] != value:
                    return None
        return unknowns

    def filled(self, numbers: list[int], unknowns: list[Any]) -> list[Any]:
        """The numbers, with letters where they differ."""
        out: list[Any] = list(numbers)
        for positions, number, factor, summand in self.rules:
            if number >= 0:
                value = unknowns[number] * factor + summand
                for k in positions:
                    out[k] = value
        return out


def _relation(row: tuple[int, ...], bases: list[tuple[int, ...]]) -> tuple[int, int, int]:
    """(unknown, factor, summand) where a row of values is that of an unknown times a factor, or plus a summand; else unknown -1."""
    for number, base in enumerate(bases):
        if base[0] and row[0] % base[0] == 0:
            factor = row[0] // base[0]
            if factor and all(r == b * factor for r, b in zip(row, base, strict=True)):
                return number, factor, 0
        summand = row[0] - base[0]
        if all(r == b + summand for r, b in zip(row, base, strict=True)):
            return number, 1, summand
    return -1, 1, 0


class Mirror:
    """A recording once more, with letters in it: what the planner is given. Stands where a tape stands.

    Attributes:
        leaves: mirrored leaf -> number, as on the tape. nodes: mirrored nodes, in order.
    """

    def __init__(self, tape: Any, nodes: list[Node], leaves: list[Node], numbers: list[Any]) -> None:
        it = iter(numbers)
        self.calls: dict[Any, Call] = {}
        twin: dict[Node, Node] = {}
        self.leaves: dict[Node, int] = {}
        for leaf in leaves:
            twin[leaf] = copy = Node(self._call(leaf.call, it, ()), (), leaf.buffer)
            self.leaves[copy] = tape.leaves[leaf]
        self.nodes: list[Node] = []
        for n in nodes:
            inputs = tuple([twin[i] for i in n.inputs])
            if n.call.op is item:
                index = next(it)
                copy = getitem(inputs[0], index)
            else:
                copy = Node(self._call(n.call, it, tuple([i.meta for i in inputs])), inputs)
            if tuple(map(concrete, copy.meta.shape)) != n.meta.shape or copy.meta.dtype is not n.meta.dtype:
                raise Refused(f"the shape of {n.call.op.name} is not a function of the sizes in its record")
            copy.pos, copy.where = n.pos, n.where
            twin[n] = copy
            self.nodes.append(copy)

    def _call(self, call: Call, it: Iterator[Any], metas: tuple[Meta, ...]) -> Call:
        own = tuple([next(it) for _ in _outline(call)[1]])
        key = (call.id, own, metas)
        found = self.calls.get(key)
        if found is None:
            numbers = iter(own)
            found = self.calls[key] = call.op.call_for(tuple([_refilled(a, numbers) for a in call.attrs]), metas)
        return found
