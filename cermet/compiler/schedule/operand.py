"""Operands of kernels designed by hand: such a kernel reads memory by strides, so an operand must be a value in memory seen through
movement that keeps it strided. What is not gets copied first. Knows nodes and index maps."""

from __future__ import annotations

from cermet.compiler.schedule.index import Atom, Dim, Idx, linearize, var
from cermet.compiler.schedule.movement import pull
from cermet.compiler.schedule.tree import row_major
from cermet.graph.node import Node

__all__ = ["BY_HAND", "is_strided", "runs_along_last", "strided"]

BY_HAND = frozenset(("attention", "contraction", "convolution", "recurrence", "sort", "scan", "scatter"))


def _trace(x: Node) -> tuple[Node, list[Dim], tuple[Idx, ...]] | None:
    dims = [Dim(e, k) for k, e in enumerate(x.meta.shape)]
    index: tuple[Idx, ...] = tuple([var(d) for d in dims])
    while x.call.op.kind == "movement" and x.buffer is None:
        index, conditions = pull(x, index, False)
        if conditions:
            return None
        x = x.inputs[0]
    if any(isinstance(v, Atom) for i in index for v, _ in i.terms):
        flat = _joined(linearize(index, x.meta.shape)) if _always_row_major(x) else None
        # The same place, said by the last dim alone.
        return None if flat is None else (x, dims, (*[Idx(0)] * (len(index) - 1), flat))
    return x, dims, index


_ROW_MAJOR = frozenset(("elementwise", "reduce", "contraction"))


def _always_row_major(source: Node) -> bool:
    """Whether a value's memory order is known before anything is planned: then dims that are joined stay strided. Images, which may be
    channels-last, have four dims or more."""
    kind = source.call.op.kind
    if source.buffer is not None:
        return source.call.op.name == "data"
    return kind == "join" or (kind in _ROW_MAJOR and source.meta.ndim <= 3)


def _joined(position: Idx) -> Idx | None:
    """A position in memory without quotients and remainders, where those of a variable complete each other; else None."""
    while True:
        atoms = [(v, c) for v, c in position.terms if isinstance(v, Atom)]
        if not atoms:
            return position
        for rest, c in atoms:
            if rest.op != "mod":
                continue
            whole = [v for v, k in atoms if v.op == "div" and v.n == rest.n and k == c * rest.n and v.inner == rest.inner]
            if whole:
                others = tuple([t for t in position.terms if t[0] is not rest and t[0] is not whole[0]])
                position = Idx(position.const, others).plus(rest.inner.times(c))
                break
        else:
            return None


def is_strided(x: Node) -> bool:
    """Whether ``x`` is a value in memory (or one that can be put there) seen by strides."""
    traced = _trace(x)
    if traced is None:
        return False
    source = traced[0]
    return (source.buffer is not None and source.call.op.name == "data") or source.call.op.kind != "leaf"


def runs_along_last(x: Node) -> bool:
    """Whether a strided ``x`` lies in row-major memory with its last dim's elements next to each other."""
    source = _trace(x)
    if source is None or x.meta.shape[-1] == 1:
        return source is not None
    shape = source[0].meta.shape
    if len(shape) == 4 and source[0].buffer is None:  # might be channels-last
        return False
    return strided(x, row_major(shape))[1][-1] == 1


def strided(x: Node, strides_of_source: tuple[int, ...]) -> tuple[int, tuple[int, ...]]:
    """Element offset and strides, per dim of ``x``, in the memory of its source."""
    traced = _trace(x)
    assert traced is not None
    _, dims, index = traced
    offset = 0
    strides = [0] * len(dims)
    place = {d: k for k, d in enumerate(dims)}
    for i, s in zip(index, strides_of_source, strict=True):
        offset += i.const * s
        for v, c in i.terms:
            strides[place[v]] += c * s
    return offset, tuple(strides)
