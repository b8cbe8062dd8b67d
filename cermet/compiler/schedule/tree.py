"""Expression trees of one loop group: every element of every root, traced back through movement to loads.

A tree says *what* is read where (as index expressions of the group's dims) and computed; which loops run over the dims is decided after, in
`loops`, from the accesses found here. Knows nodes and op records; must not know strides' run-time form or loop statements.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from cermet import dtypes as dt
from cermet.compiler.schedule.index import ZERO, Dim, Idx
from cermet.compiler.schedule.movement import Condition, pull
from cermet.graph.node import Node
from cermet.ops.leaf import const_value

__all__ = ["Dynamic", "Tree", "Trees", "row_major", "split_at"]


def row_major(shape: Sequence[int]) -> tuple[int, ...]:
    """Element strides of a contiguous value."""
    out = [0] * len(shape)
    stride = 1
    for k in range(len(shape) - 1, -1, -1):
        out[k] = stride
        stride *= shape[k]
    return tuple(out)


class Tree:
    """One value at one index.

    kind: ``zero``, ``load`` (of ``node`` at ``offset`` under ``conditions``), ``scalar``, ``const``, ``count``, ``index`` (the value of ``offset``), ``op``
    (``node``'s op on ``args``), ``reduce`` (the group's reduction ``node``, finished), ``guard`` (``args[0]`` where ``conditions`` hold, else 0).
    stage: how many reductions of the group must be finished first, one after another.
    """

    __slots__ = ("args", "conditions", "kind", "node", "offset", "stage")

    def __init__(
        self, kind: str, node: Node, args: tuple[Tree, ...] = (), offset: Idx = ZERO, conditions: tuple[Condition, ...] = ()
    ) -> None:
        self.kind = kind
        self.node = node
        self.args = args
        self.offset = offset
        self.conditions = conditions
        self.stage: int = max([a.stage for a in args], default=0)


class Dynamic(Dim):
    """An index computed by the program (of a gather): a tree, known to lie in [0, extent)."""

    __slots__ = ("tree",)

    _ranks = itertools.count(1_000_000)

    def __init__(self, extent: int, tree: Tree) -> None:
        super().__init__(extent, next(Dynamic._ranks))
        self.tree = tree


class Trees:
    """Builds trees for one group.

    Args:
        strides_of: element strides of a value in memory (a data leaf or a stored node), or None if it is not in memory for this group.
        reductions: reduce nodes that this group computes itself.
        split: whether indices that don't divide may ask for a dim to be split.
    """

    def __init__(self, strides_of: Callable[[Node], tuple[int, ...] | None], reductions: set[Node], split: bool) -> None:
        self.strides_of = strides_of
        self.reductions = reductions
        self.split = split
        self.memo: dict[Any, Tree] = {}
        self.reduce_stage: dict[Node, int] = {}
        self.dynamics: dict[Any, Dynamic] = {}

    def tree(self, node: Node, index: tuple[Idx, ...], mask: tuple[Condition, ...] = (), top: bool = False) -> Tree:
        """The value of ``node`` at ``index``; loads beneath it are guarded by ``mask``. ``top``: compute it even if it is in memory."""
        key = (node, tuple([i.key() for i in index]), tuple([c.key() for c in mask]), top)
        found = self.memo.get(key)
        if found is None:
            found = self.memo[key] = self._make(node, index, mask, top)
        return found

    def _make(self, node: Node, index: tuple[Idx, ...], mask: tuple[Condition, ...], top: bool) -> Tree:
        op = node.call.op
        if node in self.reductions and not top:
            out = Tree("reduce", node)
            out.stage = self.reduce_stage[node] + 1
            return out
        # A view or leaf that is an output is copied for that; everybody else reads what is behind it.
        if not top and (op.name == "data" or op.kind not in ("movement", "leaf")):
            strides = self.strides_of(node)
            if strides is not None:
                offset = ZERO
                for i, s in zip(index, strides, strict=True):
                    offset = offset.plus(i.times(s))
                return Tree("load", node, (), offset, mask)
        if op.kind == "leaf":
            return self._leaf(node, index)
        if op.kind == "movement":
            return self._movement(node, index, mask)
        if op.kind == "gather":
            return self._gather(node, index, mask)
        if op.kind == "elementwise":
            shape = node.meta.shape
            if op.name == "where":
                condition = self.tree(node.inputs[0], at(index, node.inputs[0].meta.shape, shape), mask)
                known = decided(condition)
                if known is not None:  # all of this region is one piece
                    x = node.inputs[1 if known else 2]
                    return self.tree(x, at(index, x.meta.shape, shape), mask)
            return Tree("op", node, tuple([self.tree(x, at(index, x.meta.shape, shape), mask) for x in node.inputs]))
        raise RuntimeError(f"{node!r} cannot be computed inside a loop kernel; please report this")

    def _leaf(self, node: Node, index: tuple[Idx, ...]) -> Tree:
        name = node.call.op.name
        if name == "iota":
            return Tree("index", node, (), index[node.call.attr("dim")])
        return Tree(name if name in ("const", "count") else "scalar", node)

    def _movement(self, node: Node, index: tuple[Idx, ...], mask: tuple[Condition, ...]) -> Tree:
        inner, conditions = pull(node, index, self.split)
        if not conditions:
            return self.tree(node.inputs[0], inner, mask)
        if any(c.value.high < c.low or c.value.low >= c.high for c in conditions):
            return Tree("zero", node)
        both = (*mask, *conditions)
        value = self.tree(node.inputs[0], inner, both)
        if value.kind == "load" and value.conditions == both:
            return value  # a masked load is zero where it may not read
        return Tree("guard", node, (value,), ZERO, tuple(conditions))

    def _gather(self, node: Node, index: tuple[Idx, ...], mask: tuple[Condition, ...]) -> Tree:
        x = node.inputs[0]
        dims, rest = node.call.attrs
        where: list[Idx] = [ZERO] * x.meta.ndim
        others = [k for k in range(x.meta.ndim) if k not in dims]
        for k, p in zip(others, rest, strict=True):
            where[k] = index[p]
        for d, i in zip(dims, node.inputs[1:], strict=True):
            size = x.meta.shape[d]
            tree = self.tree(i, at(index, i.meta.shape, node.meta.shape), mask)
            key = (id(tree), size)
            dynamic = self.dynamics.get(key)
            if dynamic is None:
                dynamic = self.dynamics[key] = Dynamic(size, tree)
            where[d] = Idx(0, ((dynamic, 1),))
        value = self.tree(x, tuple(where), mask)
        # The offset names the computed indices, so that they are checked even where the value does not depend on them.
        used = [where[d].terms[0][0] for d in dims]
        out = Tree("op", node, (value,), Idx(0, tuple([(v, 1) for v in used])))
        out.stage = max([value.stage, *[v.tree.stage for v in used]])
        return out

    def loads(self) -> Iterator[Tree]:
        """All loads found so far."""
        return (t for t in self.memo.values() if t.kind == "load")

    def rigid(self) -> Iterator[Idx]:
        """Index expressions used other than as offsets: their dims can't be merged with others."""
        for t in self.memo.values():
            if t.kind == "index":
                yield t.offset
            for c in t.conditions:
                yield c.value


def decided(tree: Tree) -> bool | None:
    """The outcome of a condition on positions where it is the same for the whole domain, else None."""
    if tree.kind == "zero":
        return False
    if tree.kind == "const" and tree.node.meta.dtype is dt.bool:
        return bool(const_value(tree.node))
    below = split_at(tree)
    if below is None:
        return None
    place, bound = below
    return True if place.high < bound else False if place.low >= bound else None


def split_at(tree: Tree) -> tuple[Idx, int] | None:
    """(position, bound) where a tree is ``position < bound``, as choices between pieces ask."""
    if tree.kind != "op" or tree.node.call.op.name != "lt":
        return None
    x, y = tree.args
    return (x.offset, const_value(y.node)) if x.kind == "index" and y.kind in ("const", "count") else None


def at(index: tuple[Idx, ...], shape: tuple[int, ...], full: tuple[int, ...]) -> tuple[Idx, ...]:
    """The index in a broadcast operand of ``shape`` of element ``index`` of the result of shape ``full``."""
    if shape == full:
        return index
    lead = len(full) - len(shape)
    return tuple([ZERO if size == 1 else index[k + lead] for k, size in enumerate(shape)])
