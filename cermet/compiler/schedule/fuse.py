"""Fusion: which primitives are computed together in one kernel, and which values are written to memory.

Every compute node gets a group. A loop group has a *domain* (a shape; all its full-size nodes are in that row-major order) and perhaps
*reduced* dims: reductions over them, and nodes of the size that remains, belong to the same rows. Movement ops and leaves belong to none: they are
index maps and loads of whatever reads them. Kernels designed by hand (contraction, convolution, sort, scatter) are groups of their own.

Needs: a graph of primitives, inputs first. Guarantees: groups form no cycle; a value read by another group is stored, unless it is
cheap enough to be computed again there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from cermet.compiler.schedule.cost import cost_of
from cermet.compiler.schedule.index import Dim, Idx, delinearize, linearize, var
from cermet.compiler.schedule.layout import fast_dim
from cermet.compiler.schedule.movement import pull_index
from cermet.graph.node import Node

__all__ = ["Fusion", "Group", "fuse", "source_of"]

MAX_NODES = 48  # a kernel's code grows with its nodes; past this the compile time outweighs the memory traffic saved
INLINE_COST = 40
STREAMED = 16384  # elements past which a value does not stay in the nearest cache between two passes over it
SIDE_BY_SIDE = 16  # how many of the latest groups a reduction looks at for company
LOOP_KINDS = frozenset(("elementwise", "reduce", "gather"))


def source_of(n: Node) -> Node:
    """The node behind movement: a leaf or a compute node."""
    while n.call.op.kind == "movement" and n.buffer is None:
        n = n.inputs[0]
    return n


def is_leaf(n: Node) -> bool:
    return n.buffer is not None or n.call.op.kind == "leaf"


class Group:
    """Nodes computed by one kernel (or by one kernel family's plan)."""

    __slots__ = (
        "ancestors",
        "bit",
        "domain",
        "fast",
        "has_descendants",
        "index",
        "kind",
        "nodes",
        "outer",
        "position",
        "reduced",
        "weight",
    )

    def __init__(self, index: int, kind: str, domain: tuple[int, ...]) -> None:
        self.index = index
        self.bit = 1 << index
        self.kind = kind
        self.domain = domain
        self.reduced: tuple[int, ...] | None = None
        self.fast = -1  # the dim of the domain along which memory runs, where something is reduced
        self.nodes: list[Node] = []
        self.weight = 0  # nodes that make code
        self.outer: set[Node] = set()  # nodes of the size that remains after reduction
        self.ancestors = 0
        self.has_descendants = False
        self.position = 0

    def __repr__(self) -> str:
        return f"<group {self.index} {self.kind} {self.domain} reduced={self.reduced} {[n.call.op.name for n in self.nodes]}>"


class Fusion:
    """The result.

    Attributes:
        groups: in an order in which they can run.
        evaluated: group -> nodes that it computes (its own and copies of cheap ones from others).
        stored: nodes that are written to memory.
        positions: node -> place in the graph's order; what breaks ties (sets have no order that repeats).
    """

    def __init__(
        self, groups: list[Group], evaluated: dict[Group, set[Node]], stored: set[Node], positions: dict[Node, int]
    ) -> None:
        self.positions = positions
        self.groups = groups
        self.evaluated = evaluated
        self.stored = stored


def fuse(order: Sequence[Node], outputs: Sequence[Node], images: set[Node]) -> Fusion:
    """Assign groups, decide what is stored, order the groups. ``images``: nodes that are channels-last in memory."""
    f = _Fuser(images)
    for position, n in enumerate(order):
        if is_leaf(n) or n.call.op.kind == "movement":
            continue
        f.place(n, position)
    return _finish(f, order, outputs)


class _Fuser:
    def __init__(self, images: set[Node]) -> None:
        self.images = images
        self.groups: list[Group] = []
        self.group_of: dict[Node, Group] = {}

    # -- placing one node ------------------------------------------------------------------------------------------

    def place(self, n: Node, position: int) -> None:
        kind = n.call.op.kind
        sources = [source_of(i) for i in n.inputs]
        if kind in LOOP_KINDS:
            for g in self._candidates(n, sources):
                if g.weight < MAX_NODES and self._joins(n, g) and not self._closes_cycle(g, sources):
                    self._add(n, g, sources)
                    self._try_merges(n, g, sources)
                    return
        if kind == "reduce":
            for g in reversed(self.groups[-SIDE_BY_SIDE:]):
                if self._beside(n, g) and not self._closes_cycle(g, sources):
                    self._add(n, g, sources)
                    return
        g = self._new_group(n, kind)
        g.position = position
        self._add(n, g, sources)

    def _new_group(self, n: Node, kind: str) -> Group:
        domain = n.inputs[0].meta.shape if kind == "reduce" else n.meta.shape
        g = Group(len(self.groups), "loop" if kind in LOOP_KINDS else kind, domain)
        self.groups.append(g)
        if kind == "reduce":
            g.reduced = n.call.attrs[0]
            g.fast = fast_dim(n.inputs[0], self.images)
            g.outer.add(n)
        return g

    def _candidates(self, n: Node, sources: list[Node]) -> list[Group]:
        inputs = sources[:1] if n.call.op.kind == "reduce" else sources
        if n.call.op.kind == "gather":
            inputs = sources[1:]  # the gathered operand is read at computed places: it must be in memory
        found = {self.group_of[s].index: self.group_of[s] for s in inputs if s in self.group_of}
        return [found[k] for k in sorted(found, reverse=True) if found[k].kind == "loop"]

    def _joins(self, n: Node, g: Group) -> bool:
        if n.call.op.kind == "reduce":
            return self._reduce_joins(n, g)
        if n.call.op.kind == "gather" and self.group_of.get(source_of(n.inputs[0])) is g:
            return False
        level = self._level(n, g)
        return level is not None

    def _beside(self, n: Node, g: Group) -> bool:
        """Whether a reduction fits a group of reductions over the same dims of the same shape: they mostly read the same values."""
        return (
            g.kind == "loop" and bool(g.nodes) and g.weight < MAX_NODES and g.reduced == n.call.attrs[0]
            and g.domain == n.inputs[0].meta.shape
        )  # fmt: skip

    def _level(self, n: Node, g: Group) -> str | None:
        """ "full" or "outer" where the node fits the group's rows, else None."""
        numel = n.meta.numel
        full = numel == math.prod(g.domain)
        rest = g.reduced is not None and numel == math.prod([s for k, s in enumerate(g.domain) if k not in g.reduced])
        if not full and not rest:
            return None
        scattered = g.reduced is not None and numel > STREAMED and g.fast not in g.reduced
        for x in n.inputs:
            s = source_of(x)
            if self.group_of.get(s) is not g:
                continue
            if full:
                # Reduced across memory, a row never is in cache as a whole: a second pass over it gains nothing by being in one kernel.
                ok = (not scattered and _spread_aligned(x, s, n, g)) if s in g.outer else _aligned(x)
            else:
                ok = s in g.outer and _aligned(x)
            if not ok:
                return None
        return "full" if full else "outer"

    def _reduce_joins(self, n: Node, g: Group) -> bool:
        x = n.inputs[0]
        s = source_of(x)
        dims = n.call.attrs[0]
        if s in g.outer or not _aligned(x) or math.prod(g.domain) != x.meta.numel:
            return False
        if g.reduced is not None:
            return g.domain == x.meta.shape and g.reduced == dims
        # A reduction over the fastest dim keeps its rows in cache. One over other dims alone is better off on its own, where it can be
        # split and vectorised along what remains.
        return fast_dim(x, self.images) in dims

    # -- cycles ----------------------------------------------------------------------------------------------------

    def _closes_cycle(self, g: Group, sources: list[Node]) -> bool:
        for s in sources:
            h = self.group_of.get(s)
            if h is not None and h is not g and h.ancestors & g.bit:
                return True
        return False

    def _add(self, n: Node, g: Group, sources: list[Node]) -> None:
        if n.call.op.kind == "reduce" and g.kind == "loop":
            if g.reduced is None:
                g.reduced = n.call.attrs[0]
                g.domain = n.inputs[0].meta.shape
                g.fast = fast_dim(n.inputs[0], self.images)
            g.outer.add(n)
        elif g.kind == "loop" and g.nodes and self._level(n, g) == "outer":
            g.outer.add(n)
        g.nodes.append(n)
        g.weight += not _by_position(n)
        self.group_of[n] = g
        before = g.ancestors
        for s in sources:
            h = self.group_of.get(s)
            if h is not None and h is not g:
                g.ancestors |= h.ancestors | h.bit
                h.has_descendants = True
        if g.ancestors != before and g.has_descendants:
            self._propagate(g)

    def _propagate(self, g: Group) -> None:
        for d in self.groups:
            if d.ancestors & g.bit:
                d.ancestors |= g.ancestors

    # -- merging two groups that meet in a node -----------------------------------------------------------------------

    def _try_merges(self, n: Node, g: Group, sources: list[Node]) -> None:
        for x, s in zip(n.inputs, sources, strict=True):
            h = self.group_of.get(s)
            if h is None or h is g or h.kind != "loop" or h.weight + g.weight > MAX_NODES:
                continue
            if n.call.op.kind == "gather" and x is n.inputs[0]:
                continue
            if self._mergeable(x, s, n, g, h) and not self._path_between(h, g):
                self._merge(h, g)

    def _mergeable(self, x: Node, s: Node, n: Node, g: Group, h: Group) -> bool:
        if n in g.outer or s in h.outer or not _aligned(x) or math.prod(h.domain) != math.prod(g.domain):
            return False
        if h.reduced is None:
            return True
        return g.domain == h.domain and g.reduced == h.reduced

    def _path_between(self, h: Group, g: Group) -> bool:
        """Whether a third group lies on a path from h to g (or g reaches h)."""
        if h.ancestors & g.bit:
            return True
        between = g.ancestors & ~h.ancestors & ~h.bit
        for k in range(between.bit_length() - 1, -1, -1):
            if between >> k & 1 and self.groups[k].nodes and self.groups[k].ancestors & h.bit:
                return True
        return False

    def _merge(self, h: Group, g: Group) -> None:
        """Move everything of h into g."""
        for n in h.nodes:
            self.group_of[n] = g
        g.nodes = h.nodes + g.nodes
        g.weight += h.weight
        g.outer |= h.outer
        g.position = min(g.position, h.position)
        if h.reduced is not None and g.reduced is None:
            g.reduced, g.domain, g.fast = h.reduced, h.domain, h.fast
        g.ancestors = (g.ancestors | h.ancestors) & ~h.bit & ~g.bit
        h.nodes = []
        for d in self.groups:
            if d.ancestors & (h.bit | g.bit):
                d.ancestors = (d.ancestors & ~h.bit) | g.bit | g.ancestors
                g.has_descendants = True


def _by_position(n: Node) -> bool:
    """Whether n is part of a choice by position (of the pieces of a cat): each piece gets loops of its own, in which it makes no code."""
    if n.call.op.name == "where":
        n = source_of(n.inputs[0])
    return n.call.op.name == "lt" and source_of(n.inputs[0]).call.op.name == "iota"


def _aligned(x: Node) -> bool:
    """Whether x has the elements of its source in the same row-major order."""
    while x.call.op.kind == "movement" and x.buffer is None:
        if x.call.op.name != "reshape":
            return False
        x = x.inputs[0]
    return True


def _spread_aligned(x: Node, s: Node, n: Node, g: Group) -> bool:
    """Whether x repeats the outer-level node s over exactly the reduced dims of the group's domain."""
    dims = [Dim(e, k) for k, e in enumerate(g.domain)]
    index = [var(d) for d in dims]
    assert g.reduced is not None
    kept = [i for k, i in enumerate(index) if k not in g.reduced]
    kept_shape = [e for k, e in enumerate(g.domain) if k not in g.reduced]
    at_n = tuple(index) if n.meta.shape == g.domain else delinearize(linearize(index, g.domain), n.meta.shape, False)
    at_s = pull_index(x, _broadcast(at_n, x.meta.shape, n.meta.shape), s)
    if at_s is None:
        return False
    return linearize(at_s, s.meta.shape) == linearize(kept, kept_shape)


def _broadcast(index: Sequence[Idx], shape: tuple[int, ...], full: tuple[int, ...]) -> tuple[Idx, ...]:
    """The index in an operand of ``shape`` of an element of the broadcast result."""
    lead = len(full) - len(shape)
    return tuple([Idx(0) if size == 1 else index[k + lead] for k, size in enumerate(shape)])


# ------------------------------------------------------------------------------------------------- what is stored


class _Demand:
    """Who needs a value: the groups that read it, and whether some reader can only read memory."""

    __slots__ = ("groups", "in_memory")

    def __init__(self) -> None:
        self.groups: set[Group] = set()
        self.in_memory = False


def _finish(f: _Fuser, order: Sequence[Node], outputs: Sequence[Node]) -> Fusion:
    cost = _costs(order)
    wanted = set(outputs)
    stored: set[Node] = set()
    demands: dict[Node, _Demand] = {}
    evaluated: dict[Group, set[Node]] = {}
    for out in outputs:
        if is_leaf(out) or out.call.op.kind == "movement":
            _copy_out(f, out, len(order), demands, evaluated, stored)
    for n in reversed(order):
        if is_leaf(n) or n.call.op.kind == "movement":
            continue
        g = f.group_of[n]
        demand = demands.get(n)
        if n in wanted:
            where, keep = {g}, True
        elif demand is None:
            continue
        elif demand.groups <= {g} and not demand.in_memory:
            where, keep = {g}, g.kind != "loop"
        elif n.call.op.kind == "elementwise" and cost[n] <= INLINE_COST and not demand.in_memory:
            where, keep = demand.groups, False
        else:
            where, keep = {g}, True
        if keep:
            stored.add(n)
        for h in where:
            evaluated.setdefault(h, set()).add(n)
        _tell_sources(n, where, f, demands)
    live = [g for g in f.groups if evaluated.get(g)]
    positions = {n: k for k, n in enumerate(order)}
    return Fusion(_run_order(live, evaluated, stored, f), evaluated, stored, positions)


def _copy_out(
    f: _Fuser, out: Node, position: int, demands: dict[Node, _Demand], evaluated: dict[Group, set[Node]], stored: set[Node]
) -> None:
    """An output that is only a view, or a leaf, is copied by a group of its own."""
    g = Group(len(f.groups), "loop", out.meta.shape)
    f.groups.append(g)
    g.nodes.append(out)
    g.position = position
    evaluated[g] = {out}
    stored.add(out)
    s = source_of(out)
    if not is_leaf(s):
        demand = demands.setdefault(s, _Demand())
        demand.groups.add(g)
        demand.in_memory = True


def _tell_sources(n: Node, where: set[Group], f: _Fuser, demands: dict[Node, _Demand]) -> None:
    """Tell what ``n`` is computed from in which groups it is read, and whether it must be in memory for that."""
    op = n.call.op
    by_hand = f.group_of[n].kind != "loop"
    for k, x in enumerate(n.inputs):
        s = source_of(x)
        if is_leaf(s):
            continue
        demand = demands.setdefault(s, _Demand())
        demand.groups |= where
        elsewhere = bool(where - {f.group_of[s]})
        # Read again and again (broadcast by another group): computing it there each time would cost more than memory does.
        repeated = elsewhere and s.meta.numel > 1 and max(x.meta.numel, n.meta.numel) > s.meta.numel
        if by_hand or repeated or (op.kind == "gather" and k == 0):
            demand.in_memory = True


def _costs(order: Sequence[Node]) -> dict[Node, int]:
    """Instructions to compute a node from leaves and from what other kinds of groups store."""
    cost: dict[Node, int] = {}
    for n in order:
        if is_leaf(n) or n.call.op.kind == "movement":
            continue
        if n.call.op.kind == "elementwise":
            total = cost_of(n.call)
            loads = 0
            for x in n.inputs:
                s = source_of(x)
                if is_leaf(s):
                    loads += 1 if s.meta.numel > 1 else 0
                elif s.call.op.kind == "elementwise":
                    total += cost[s]
                else:
                    loads += 1
            # More loads than the one that reading a stored value takes: traffic counts like arithmetic.
            cost[n] = total + 6 * max(0, loads - 1)
        else:
            cost[n] = 1 << 30
    return cost


def _run_order(groups: list[Group], evaluated: dict[Group, set[Node]], stored: set[Node], f: _Fuser) -> list[Group]:
    """Kahn's algorithm, earliest recorded first."""
    import heapq

    home = {n: g for g in groups for n in evaluated[g] if n in stored and f.group_of.get(n, g) is g}
    depends: dict[Group, set[Group]] = {g: set() for g in groups}
    for g in groups:
        for n in evaluated[g]:
            for x in n.inputs:
                h = home.get(source_of(x))
                if h is not None and h is not g:
                    depends[g].add(h)
    waiting = {g: len(d) for g, d in depends.items()}
    users: dict[Group, list[Group]] = {}
    for g, d in depends.items():
        for h in d:
            users.setdefault(h, []).append(g)
    heap = [(g.position, g.index, g) for g in groups if not waiting[g]]
    heapq.heapify(heap)
    out: list[Group] = []
    while heap:
        g = heapq.heappop(heap)[2]
        out.append(g)
        for u in users.get(g, ()):
            waiting[u] -= 1
            if not waiting[u]:
                heapq.heappush(heap, (u.position, u.index, u))
    if len(out) != len(groups):
        raise RuntimeError("fusion made a cycle of kernels; please report this")
    return out
