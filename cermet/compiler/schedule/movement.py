"""Movement ops as index maps: given where an element of the result is, where it is in the input, and under which conditions it is there
at all (outside them it is zero). Knows the movement primitives and integers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from cermet.compiler.schedule.index import ZERO, Idx, delinearize, divmod_idx, linearize
from cermet.graph.node import Node

__all__ = ["Condition", "pull", "pull_index"]


class Condition:
    """``low <= value < high``, and ``value % modulus == 0`` where a modulus is given; a conjunction of these guards a load."""

    __slots__ = ("high", "low", "modulus", "value")

    def __init__(self, value: Idx, low: int, high: int, modulus: int = 1) -> None:
        self.value = value
        self.low = low
        self.high = high
        self.modulus = modulus

    def key(self) -> Any:
        return (self.value.key(), self.low, self.high, self.modulus)


def pull(node: Node, index: tuple[Idx, ...], split: bool) -> tuple[tuple[Idx, ...], list[Condition]]:
    """One movement step: the index in ``node.inputs[0]`` of the element ``index`` of ``node``, and its conditions.

    Raises:
        NeedSplit: where a loop variable should be split (only with ``split``).
    """
    return _STEPS[node.call.op.name](node, index, split)


def pull_index(node: Node, index: tuple[Idx, ...], source: Node) -> tuple[Idx, ...] | None:
    """The index in ``source``, or None where some element is not from the source (padding)."""
    while node is not source:
        index, conditions = pull(node, index, False)
        if conditions:
            return None
        node = node.inputs[0]
    return index


def _reshape(n: Node, index: Any, split: bool) -> Any:
    src = n.inputs[0].meta.shape
    return delinearize(linearize(index, n.meta.shape), src, split), []


def _permute(n: Node, index: Any, _split: bool) -> Any:
    out: list[Idx] = [ZERO] * len(index)
    for k, d in enumerate(n.call.attrs[0]):
        out[d] = index[k]
    return tuple(out), []


def _expand(n: Node, index: Sequence[Idx], _split: bool) -> Any:
    src = n.inputs[0].meta.shape
    lead = len(index) - len(src)
    return tuple([ZERO if size == 1 else index[k + lead] for k, size in enumerate(src)]), []


def _slice(n: Node, index: Sequence[Idx], _split: bool) -> Any:
    starts, steps, _ = n.call.attrs
    return tuple([i.times(s).shifted(a) for i, a, s in zip(index, starts, steps, strict=True)]), []


def _unslice(n: Node, index: Sequence[Idx], _split: bool) -> Any:
    """The inverse of a slice: element i is from (i - start) / step where that is whole and in range, else zero."""
    _, starts, steps = n.call.attrs
    sizes = n.inputs[0].meta.shape
    out: list[Idx] = []
    conditions: list[Condition] = []
    for i, a, s, size in zip(index, starts, steps, sizes, strict=True):
        shifted = i.shifted(-a)
        if s < 0:
            shifted, s = shifted.times(-1), -s
        if shifted.low < 0 or shifted.high > s * (size - 1) or (s > 1 and not _multiple(shifted, s)):
            conditions.append(Condition(shifted, 0, s * (size - 1) + 1, s))
        out.append(_quotient(shifted, s))
    return tuple(out), conditions


def _multiple(x: Idx, s: int) -> bool:
    return x.const % s == 0 and all(c % s == 0 for _, c in x.terms)


def _quotient(x: Idx, s: int) -> Idx:
    return x if s == 1 else divmod_idx(x, s, False)[0]


def _diagonal(n: Node, index: Sequence[Idx], _split: bool) -> Any:
    offset, dim1, dim2 = n.call.attrs
    rest = iter(index[:-1])
    i = index[-1]
    out = []
    for k in range(len(n.inputs[0].meta.shape)):
        if k == dim1:
            out.append(i.shifted(max(-offset, 0)))
        elif k == dim2:
            out.append(i.shifted(max(offset, 0)))
        else:
            out.append(next(rest))
    return tuple(out), []


def _windows(n: Node, index: Sequence[Idx], _split: bool) -> Any:
    dim, _size, step, dilation = n.call.attrs
    out = list(index[:-1])
    out[dim] = out[dim].times(step).plus(index[-1].times(dilation))
    return tuple(out), []


_STEPS: dict[str, Callable[[Node, Any, bool], Any]] = {
    "reshape": _reshape,
    "permute": _permute,
    "expand": _expand,
    "slice": _slice,
    "unslice": _unslice,
    "diagonal": _diagonal,
    "windows": _windows,
}
