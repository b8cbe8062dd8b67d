"""Lowering of a loop group: which loops run over its dims, what is vectorised, what is parallel, where reductions are finished.

Three forms. *Map*: no reduction; the outer dims are flattened into rows, rows into blocks, the innermost runs in lanes. *Rows*: reductions
along dims that memory runs along; each row passes through its stages (reduce, reduce, store) while it is in cache. *Columns*: lanes run
along a dim that remains, and the reduced dims are serial loops inside. Blocks depend on shapes only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from cermet import dtypes as dt
from cermet.compiler.loops import ir
from cermet.compiler.loops.build import builder
from cermet.compiler.loops.ir import Assign, Define, Expr, For, Guard, Kernel, Prefetch, Reduce, Register, Store, Var
from cermet.compiler.schedule.cost import cost_of
from cermet.compiler.schedule.domain import Axes, Class, atoms_of, coefficient, merge, ordered, rigid_dims
from cermet.compiler.schedule.forms import (
    AHEAD,
    BLOCK,
    DEAR,
    FULL_LANES,
    NEAR,
    REDUCE,
    SMALL_EXTENT,
    SPAN,
    STRIP,
    LoopCall,
    fill_of,
    identity_of,
    strip_of,
    subtrees,
)
from cermet.compiler.schedule.fuse import Group
from cermet.compiler.schedule.index import Dim, Idx, NeedSplit, delinearize, linearize
from cermet.compiler.schedule.partials import Partials
from cermet.compiler.schedule.regions import Box, regions
from cermet.compiler.schedule.tree import Dynamic, Tree, Trees
from cermet.compiler.schedule.writer import Env, Writer, dims_of, rounded
from cermet.graph.node import Node
from cermet.graph.sizes import at_least

__all__ = ["LoopCall", "identity_of", "lower_group"]


def lower_group(
    group: Group,
    evaluated: set[Node],
    stored: set[Node],
    strides_of: Callable[[Node], tuple[int, ...] | None],
    cache: int = 1 << 62,
) -> list[LoopCall]:
    """The launches of a loop group.

    Args:
        evaluated: nodes the group computes; stored: those written to memory (of all groups).
        strides_of: element strides of a value that is in memory.
        cache: bytes of the outermost cache. A launch that touches as many leaves nothing in it that is worth keeping.
    """
    if all(n.meta.numel == 0 for n in group.nodes if n in evaluated and n in stored):
        return []
    whole = _lowering(group, evaluated, stored, strides_of, Axes(group.domain), cache)
    boxes = whole.regions()
    if not boxes:
        return whole.calls()
    # Each element is read by the region that writes it, if at all where it is written: what may be one memory for all may be for each.
    pairs = whole._inplace()
    out: list[LoopCall] = []
    for box in boxes:
        extents = [e if n < 0 else n for (_, n), e in zip(box, group.domain, strict=True)]
        axes = Axes(extents, [first for first, _ in box])
        out.extend(_lowering(group, evaluated, stored, strides_of, axes, cache).calls())
    for call in out:
        call.inplace = []
    for m, n in pairs:
        readers = [c for c in out if ("node", m) in c.bindings]
        if readers:
            readers[-1].inplace.append((m, n))
    return out


def _lowering(group: Group, evaluated: set[Node], stored: set[Node], strides_of: Any, axes: Axes, cache: int) -> _Lowering:
    """The lowering over some axes, which are split as the indices ask for it."""
    for _ in range(24):
        try:
            return _Lowering(group, evaluated, stored, strides_of, axes, True, cache)
        except NeedSplit as need:
            axes.split(need)
    # Indices that keep asking for splits are left with quotients and remainders.
    return _Lowering(group, evaluated, stored, strides_of, axes, False, cache)


class _Lowering(Partials):
    def __init__(
        self, group: Group, evaluated: set[Node], stored: set[Node], strides_of: Any, axes: Axes, split: bool, cache: int
    ) -> None:
        self.group = group
        self.own = [n for n in group.nodes if n in evaluated]
        self.reductions = [n for n in self.own if n.call.op.kind == "reduce"]
        own = set(self.own)
        self.trees = Trees(lambda n: None if n in own else strides_of(n), set(self.reductions), split)
        self.split = split
        self.axes = axes
        self.strides_of = strides_of
        reduced = group.reduced if self.reductions and group.reduced is not None else ()
        self.reduced_dims = {d for a in reduced for d in axes.dims[a]}
        self.index = axes.index()
        self.kept = [i for a, i in enumerate(self.index) if a not in reduced]
        self.kept_shape = [e for a, e in enumerate(group.domain) if a not in reduced]
        self._make_trees(stored)
        self._choose_loops()
        self.wide = 0
        self.waiting: set[Node] = set()  # roots whose memory something else waits in
        touched = {n: n.meta.nbytes for n, _, _, _ in self.roots} | {t.node: t.node.meta.nbytes for t in self.trees.loads()}
        self.streams = sum(touched.values()) >= cache

    # -- what is computed --------------------------------------------------------------------------------------------

    def _index_of(self, n: Node, outer: bool) -> tuple[Idx, ...]:
        index, domain = (self.kept, self.kept_shape) if outer else (self.index, list(self.group.domain))
        shape = n.meta.shape
        if tuple(domain) == shape:
            return tuple(index)
        return delinearize(linearize(index, domain), shape, self.split)

    def _make_trees(self, stored: set[Node]) -> None:
        """Trees of all reductions (inputs of theirs first) and of all roots, with the offsets they are stored at."""
        self.reduce_trees: dict[Node, Tree] = {}
        for n in self.reductions:
            x = n.inputs[0]
            tree = self.trees.tree(x, self._index_of(x, False))
            self.trees.reduce_stage[n] = tree.stage
            self.reduce_trees[n] = tree
        self.roots: list[tuple[Node, Tree, Idx, bool]] = []
        for n in self.own:
            if n not in stored:
                continue
            outer = n in self.group.outer and bool(self.reductions)
            index = self._index_of(n, outer)
            tree = self.trees.tree(n, index, top=n.call.op.kind != "reduce")
            self.roots.append((n, tree, self._offset(n, index), outer))

    def _offset(self, n: Node, index: Sequence[Idx]) -> Idx:
        strides = self.strides_of(n)
        assert strides is not None
        out = Idx(0)
        for i, s in zip(index, strides, strict=True):
            out = out.plus(i.times(s))
        return out

    # -- which loops -------------------------------------------------------------------------------------------------

    def _choose_loops(self) -> None:
        # The same access under several reshapes is one; one that stays where it is while a loop runs counts for as much less.
        loads = {(t.node, t.offset): t.node.meta.dtype.itemsize for t in self.trees.loads()}
        offsets = [x for _, x in loads] + [r[2] for r in self.roots]
        weights = [self._share(x) * size for (_, x), size in loads.items()]
        weights += [self._share(x) * n.meta.dtype.itemsize * 4 for n, _, x, _ in self.roots]
        rigid = rigid_dims([*self.trees.rigid(), *atoms_of(offsets)])
        every = [d for row in self.axes.dims for d in row]
        order = ordered(every, offsets, weights)
        self.outer_classes = merge([d for d in order if d not in self.reduced_dims], offsets, rigid)
        self.inner_classes = merge([d for d in order if d in self.reduced_dims], offsets, rigid)
        self.form = self._choose_form(offsets, weights)
        self.class_of = {d: c for c in (*self.outer_classes, *self.inner_classes) for d in c.dims}

    def _share(self, x: Idx) -> int:
        """How many of the domain's elements have an element of their own at this offset. An int: sizes may be letters."""
        if any(type(v) is not Dim for v, _ in x.terms):
            return math.prod([d.extent for row in self.axes.dims for d in row])
        return math.prod([v.extent for v, _ in x.terms])

    def _unit_weight(self, c: Class, offsets: Sequence[Idx], weights: Sequence[float]) -> float:
        return sum([w for x, w in zip(offsets, weights, strict=True) if abs(coefficient(x, c.inner)) == 1])

    def _choose_form(self, offsets: Sequence[Idx], weights: Sequence[float]) -> str:
        def best(classes: list[Class]) -> float:
            if not classes:
                return -1
            scores = [self._unit_weight(c, offsets, weights) * fill_of(c.extent) for c in classes]
            top = max(scores)
            k = max(i for i, s in enumerate(scores) if s == top)
            classes.append(classes.pop(k))  # lanes run along the last
            return top

        if not self.reductions:
            best(self.outer_classes)
            return "tiles" if self._across(offsets, weights) else "map"
        in_rows, in_columns = best(self.inner_classes), best(self.outer_classes)
        size = math.prod([c.extent for c in self.inner_classes])
        if self.outer_classes and (in_columns > in_rows or size <= SMALL_EXTENT) and self.outer_classes[-1].extent >= 4:
            return "columns"
        return "rows"

    def _across(self, offsets: Sequence[Idx], weights: Sequence[float]) -> bool:
        """Whether memory runs along another loop than the lanes for some access, as in a transpose; then that loop is made the next one."""
        if not self.outer_classes or self.outer_classes[-1].extent < 8:
            return False
        *outer, lanes = self.outer_classes
        scores = [sum([w for x, w in zip(offsets, weights, strict=True) if abs(coefficient(x, c.inner)) == 1
                       and abs(coefficient(x, lanes.inner)) > 1]) for c in outer]  # fmt: skip
        if not any(scores):
            return False
        k = max(range(len(outer)), key=lambda j: scores[j])
        if outer[k].extent < 4:
            return False
        self.outer_classes = [*outer[:k], *outer[k + 1 :], outer[k], lanes]
        return True

    def regions(self) -> list[Box]:
        """The parts of the domain that are better computed one by one."""
        if self.reductions or not self.outer_classes or self.trees.dynamics:
            return []
        lanes = self.outer_classes[-1].inner
        axis = next(a for a, row in enumerate(self.axes.dims) if lanes in row)
        return regions(self.trees.memo.values(), self.axes, axis)

    # -- writing -----------------------------------------------------------------------------------------------------

    def calls(self) -> list[LoopCall]:
        self.numel_inner = math.prod([c.extent for c in self.inner_classes])
        self.numel_outer = math.prod([c.extent for c in self.outer_classes])
        if self.form in ("map", "tiles"):
            call = self._map() if self.form == "map" else self._tiles()
            call.inplace = self._inplace()
            return [call]
        if self._should_split():
            return self._split_calls()
        return [self._rows() if self.form == "rows" else self._columns()]

    def _cost(self) -> int:
        """Rough instructions per element."""
        return sum(cost_of(n.call) for n in self.own) + 1

    def _grain(self, elements: int) -> int:
        """Blocks that make about 20 microseconds of work."""
        return at_least(60_000 // max(1, elements * self._cost()), 1)

    def _begin(self) -> Writer:
        return Writer(self.class_of)

    def _rows_of(self, w: Writer, classes: Sequence[Class], row: Expr) -> dict[Class, Expr]:
        """The classes' values for a flattened row number."""
        out: dict[Class, Expr] = {}
        for c in reversed(classes[1:]):
            extent = w.integer(c.extent)
            out[c] = Expr("trem", (row, extent), dt.int64)
            row = Expr("tdiv", (row, extent), dt.int64)
        if classes:
            out[classes[0]] = row
        return out

    def _finish(self, w: Writer, block: Var, count: int, body: list[Any], elements: int, name: str) -> LoopCall:
        if w.bad is not None:
            body = [Define(w.bad, builder.const(False, dt.bool)), *body]
            body.append(Guard(w.bad.expr, [Store(w.status(), ir.const(0), ir.const(1))]))
        kernel = Kernel(name, w.params, [For(block, w.integer(count) if count != 1 else ir.const(1), body, "parallel")])
        return LoopCall(kernel, w.bindings, count, self._grain(elements))

    def _inplace(self) -> list[tuple[Node, Node]]:
        """Pairs for a map: a root, and a value that is only ever read at the offset the root is stored at. All roots of an element are
        computed before any of them is stored (see `_store_all`)."""
        offsets: dict[Node, Idx | None] = {}
        for t in self.trees.loads():
            same = t.node not in offsets or offsets[t.node] == t.offset
            offsets[t.node] = t.offset if same and not t.conditions else None
        out = []
        for n, _, offset, _ in self.roots:
            for m, read in offsets.items():
                if read == offset and m.meta.nbytes == n.meta.nbytes and m.meta.dtype.itemsize == n.meta.dtype.itemsize:
                    out.append((m, n))
        return out

    def _store_all(self, w: Writer, env: Env) -> None:
        """Compute all roots, then store them: a root may take over the memory of a value that another one reads."""
        values: list[Expr] = []
        for n, tree, _, _ in self.roots:
            value = w.write(tree, env)
            if len(self.roots) > 1:
                reg = Register(f"root{len(values)}", n.meta.dtype.compute)
                env.body.append(Define(reg, value))
                value = reg.expr
            values.append(value)
        for (n, _, offset, _), value in zip(self.roots, values, strict=True):
            env.body.append(Store(w.buffer(n, True), w.position(offset, env, n), value, None, self._streamed(n, offset)))

    def _rest(self, w: Writer, total: int, size: Expr, block: Expr, blocks: int) -> Expr:
        """min(size, total - block * size): how much of a block is there."""
        if blocks == 1:
            return w.integer(total)
        return builder.min(size, w.integer(total) - block * size)

    def _streamed(self, n: Node, offset: Idx) -> bool:
        """Whether a root may be written past the caches: it is large, and its lanes fill whole lines."""
        if not self.streams or self.form not in ("map", "rows") or n in self.waiting:
            return False
        classes = self.outer_classes if self.form == "map" else self.inner_classes
        if not classes or coefficient(offset, classes[-1].inner) != 1:
            return False
        line, lanes = 64 // n.meta.dtype.itemsize, set(classes[-1].dims)
        return offset.const % line == 0 and all(v in lanes or (type(v) is Dim and c % line == 0) for v, c in offset.terms)

    def _map(self) -> LoopCall:
        w = self._begin()
        p, v = Var("p"), Var("v")
        *outer, inner = self.outer_classes or [Class([])]
        rows, width = math.prod([c.extent for c in outer]), inner.extent
        body: list[Any] = []
        if rows == 1:
            count = -(-width // BLOCK)
            size = ir.const(BLOCK)
            start = p.expr * size if count > 1 else ir.const(0)
            loop = For(v, self._rest(w, width, size, p.expr, count), [], "vector")
            env = Env({inner: start + v.expr, **{c: ir.const(0) for c in outer}}, loop.body)
            body.append(loop)
        elif width >= 2 * BLOCK:
            pieces = -(-width // BLOCK)
            count, size, n = rows * pieces, ir.const(BLOCK), w.integer(pieces)
            piece, row = Expr("trem", (p.expr, n), dt.int64), Expr("tdiv", (p.expr, n), dt.int64)
            start = piece * size
            loop = For(v, self._rest(w, width, size, piece, pieces), [], "vector")
            env = Env({inner: start + v.expr}, loop.body, Env(self._rows_of(w, outer, row), body))
        else:
            per = max(1, BLOCK // max(width, 1))
            count = -(-rows // per)
            r, size = Var("r"), w.integer(per)
            loop = For(v, w.integer(width), [], "vector")
            row_loop = For(r, self._rest(w, rows, size, p.expr, count), [], "serial")
            row = p.expr * size + r.expr if count > 1 else r.expr
            env = Env({inner: v.expr}, loop.body, Env(self._rows_of(w, outer, row), row_loop.body))
            body.append(row_loop)
        self._store_all(w, env)
        if rows != 1 and width < 2 * BLOCK:
            self._fetch_ahead(w, outer, inner, row, row_loop.body)
        if rows != 1:  # what was found to belong to the row stands before it by now
            (row_loop.body if width < 2 * BLOCK else body).append(loop)
        return self._finish(w, p, count, body, min(rows * width, BLOCK), "map")

    def _fetch_ahead(self, w: Writer, outer: Sequence[Class], lanes: Class, row: Expr, body: list[Any]) -> None:
        """Ask for what rows to come will gather: no hardware foresees that."""
        rows = math.prod([c.extent for c in outer])
        for t in list(self.trees.loads()):
            size = t.node.meta.dtype.itemsize
            computed = [v for v, _ in t.offset.terms if type(v) is Dynamic]
            if not computed or t.conditions or t.node.meta.nbytes < NEAR or coefficient(t.offset, lanes.inner) != 1:
                continue
            needed = {self.class_of[d] for v in computed for d in dims_of(v.tree)}
            if not needed <= set(outer) or any(v.tree.kind not in ("load", "op") for v in computed):
                continue
            line = lanes.extent * size
            lines, distance = min(-(-line // 64), 8), min(16, max(1, AHEAD // line))
            ahead = builder.min(row + distance, w.integer(rows) - 1)
            env = Env(self._rows_of(w, outer, ahead) | {lanes: ir.const(0)}, body)
            start = w.position(t.offset, env, t.node, lambda v, e: w.write(v.tree, e))
            for k in range(lines):
                body.append(Prefetch(w.buffer(t.node), start + k * (64 // size)))

    def _tiles(self) -> LoopCall:
        """Strips of lanes, serial along the dim that the other side's memory runs along: the lines that a strip touches stay in cache until
        all of them is used."""
        w = self._begin()
        p, t, v = Var("p"), Var("t"), Var("v")
        *outer, cross, lanes = self.outer_classes
        rows = math.prod([c.extent for c in outer])
        strips, spans = -(-lanes.extent // STRIP), -(-cross.extent // SPAN)
        block: Expr = p.expr
        strip: Expr = ir.const(0)
        span: Expr = ir.const(0)
        if strips > 1:
            n = w.integer(strips)
            strip, block = Expr("trem", (block, n), dt.int64), Expr("tdiv", (block, n), dt.int64)
        if spans > 1:
            n = w.integer(spans)
            span, block = Expr("trem", (block, n), dt.int64), Expr("tdiv", (block, n), dt.int64)
        loop = For(v, self._rest(w, lanes.extent, ir.const(STRIP), strip, strips), [], "vector")
        across = For(t, self._rest(w, cross.extent, ir.const(SPAN), span, spans), [loop], "serial")
        values = {lanes: strip * ir.const(STRIP) + v.expr, cross: span * ir.const(SPAN) + t.expr}
        env = Env({**values, **self._rows_of(w, outer, block)}, loop.body)
        self._store_all(w, env)
        return self._finish(w, p, rows * strips * spans, [across], STRIP * min(SPAN, cross.extent), "tiles")

    def _store(self, w: Writer, env: Env, n: Node, tree: Tree, offset: Idx) -> None:
        value = w.write(tree, env)
        env.body.append(Store(w.buffer(n, True), w.position(offset, env, n), value, None, self._streamed(n, offset)))

    # -- reductions --------------------------------------------------------------------------------------------------

    def _rows(self, combine: Callable[[Writer, Env], None] | None = None) -> LoopCall:
        w = self._begin()
        p, r = Var("p"), Var("r")
        rows, width = self.numel_outer, self.numel_inner
        per = max(1, BLOCK // max(width, 1))
        count = -(-rows // per) if rows else 0
        body: list[Any] = []
        size = w.integer(per)
        here, first = self._rest(w, rows, size, p.expr, count), p.expr * size if count > 1 else ir.const(0)
        abreast = self._abreast(per) if combine is None else 1
        if abreast > 1:
            self.wide = 2
            groups = Expr("tdiv", (here, ir.const(abreast)), dt.int64)
            body.append(self._rows_abreast(w, groups, first, abreast))
            here, first = here - groups * abreast, first + groups * abreast
        row_loop = For(r, here, [], "serial")
        env = Env(self._rows_of(w, self.outer_classes, first + r.expr), row_loop.body)
        self._stages(w, env, True, combine)
        body.append(row_loop)
        return self._finish(w, p, count, body, min(rows, per) * width, "rows")

    def _abreast(self, per: int) -> int:
        """How many rows to reduce side by side: several streams of memory at once, and the end of one row hides behind the others'. Only
        where a row is read once, and does little."""
        stages = [t.stage for t in self.reduce_trees.values()] + [t.stage for _, t, _, outer in self.roots if not outer]
        if any(stages) or not all(outer for _, _, _, outer in self.roots) or self.trees.dynamics or self._cost() > 12:
            return 1
        n = 4 // len(self.reductions)
        return n if n > 1 and per >= n and self.inner_classes and self.inner_classes[-1].extent >= 2 * FULL_LANES else 1

    def _rows_abreast(self, w: Writer, groups: Expr, first: Expr, abreast: int) -> For:
        """A loop over groups of rows, each reduced in one loop."""
        q = Var("q")
        loop = For(q, groups, [])
        start = first + q.expr * abreast
        envs = [Env(self._rows_of(w, self.outer_classes, start + k), loop.body) for k in range(abreast)]
        registers: list[list[tuple[Node, Register]]] = []
        for env in envs:
            self._between(w, env, 0)
            registers.append([])
            for n in self.reductions:
                reg = Register(f"acc{len(registers)}", n.meta.dtype.compute)
                loop.body.append(Define(reg, identity_of(REDUCE[n.call.op.name], n.meta.dtype)))
                registers[-1].append((n, reg))
        nest, inner = self._nest(w, envs[0], True)
        steps = {c: inner.values[c] for c in self.inner_classes}
        for env, regs in zip(envs, registers, strict=True):
            at = Env(steps, inner.body, env)
            for n, reg in regs:
                inner.body.append(Reduce(reg, REDUCE[n.call.op.name], w.write(self.reduce_trees[n], at)))
        loop.body.extend(nest)
        for env, regs in zip(envs, registers, strict=True):
            self._keep(w, env, regs)
            self._between(w, env, 1)
        return loop

    def _columns(self, combine: Callable[[Writer, Env], None] | None = None) -> LoopCall:
        w = self._begin()
        p, v = Var("p"), Var("v")
        *outer, lanes = self.outer_classes
        rows, width = math.prod([c.extent for c in outer]), lanes.extent
        body: list[Any] = []
        if self.numel_inner <= SMALL_EXTENT:
            return self._windows(w, p, v, outer, lanes, combine)
        strip = strip_of(rows, width)
        pieces = -(-width // strip)
        count = rows * pieces
        loop = For(v, ir.const(0), [], "vector")
        block: Expr = p.expr
        piece: Expr = ir.const(0)
        if pieces > 1:
            n = w.integer(pieces)
            piece = Expr("trem", (block, n), dt.int64)
            block = Expr("tdiv", (block, n), dt.int64)
        loop.extent = self._rest(w, width, ir.const(strip), piece, pieces)
        env = Env({lanes: piece * ir.const(strip) + v.expr, **self._rows_of(w, outer, block)}, loop.body)
        self._stages(w, env, False, combine)
        body.append(loop)
        return self._finish(w, p, count, body, min(width, strip) * self.numel_inner, "columns")

    def _windows(self, w: Writer, p: Var, v: Var, outer: list[Class], lanes: Class, combine: Any) -> LoopCall:
        """Columns with so small a reduction that blocks hold many rows, as in pooling."""
        rows, width = math.prod([c.extent for c in outer]), lanes.extent
        if width * self.numel_inner >= 2 * BLOCK:
            return self._long_windows(w, p, v, outer, lanes, combine)
        per = max(1, BLOCK // max(width * self.numel_inner, 1))
        count = -(-rows // per)
        r, size = Var("r"), w.integer(per)
        # Bodies too long to be written twice would be masked all along if the extent were not known to fill the vectors.
        even = width > FULL_LANES and width % FULL_LANES == 0
        s, full = Var("s"), ir.const(FULL_LANES)
        loop = For(v, full if even else w.integer(width), [], "vector")
        across = For(s, w.integer(width // FULL_LANES), [loop], "serial") if even else loop
        lane = s.expr * full + v.expr if even else v.expr
        row_loop = For(r, self._rest(w, rows, size, p.expr, count), [across], "serial")
        row = p.expr * size + r.expr if count > 1 else r.expr
        env = Env({lanes: lane, **self._rows_of(w, outer, row)}, loop.body)
        self._stages(w, env, False, combine)
        return self._finish(w, p, count, [row_loop], min(rows, per) * width * self.numel_inner, "windows")

    def _long_windows(self, w: Writer, p: Var, v: Var, outer: list[Class], lanes: Class, combine: Any) -> LoopCall:
        """The same where a row alone fills several blocks."""
        width, strip = lanes.extent, max(FULL_LANES, BLOCK // self.numel_inner // FULL_LANES * FULL_LANES)
        pieces, size = -(-width // strip), ir.const(strip)
        n = w.integer(pieces)
        piece, row = Expr("trem", (p.expr, n), dt.int64), Expr("tdiv", (p.expr, n), dt.int64)
        loop = For(v, self._rest(w, width, size, piece, pieces), [], "vector")
        self._stages(w, Env({lanes: piece * size + v.expr, **self._rows_of(w, outer, row)}, loop.body), False, combine)
        count = math.prod([c.extent for c in outer]) * pieces
        return self._finish(w, p, count, [loop], strip * self.numel_inner, "windows")

    def _stages(self, w: Writer, env: Env, lanes_inside: bool, combine: Callable[[Writer, Env], None] | None) -> None:
        """The loops over the reduced dims, one nest per stage, and what is stored between them."""
        last = max([*(t.stage for t in self.reduce_trees.values()), *(t.stage for _, t, _, _ in self.roots)], default=0)
        kept = self._kept_values() if lanes_inside and combine is None else {}
        self.waiting = {root[0] for root in kept}
        for stage in range(last + 1):
            self._between(w, env, stage)
            here = [n for n in self.reductions if self.reduce_trees[n].stage == stage]
            if stage == 0 and combine is not None:
                combine(w, env)
                here = []
            stores = [root for root in self.roots if not root[3] and root[1].stage == stage]
            if not here and not stores:
                continue
            registers = []
            for n in here:
                reg = Register(f"acc{len(w.registers)}", n.meta.dtype.compute)
                env.body.append(Define(reg, identity_of(REDUCE[n.call.op.name], n.meta.dtype)))
                registers.append((n, reg))
            body, inner = self._nest(w, env, lanes_inside)
            for (n, top, offset, _), (at, tree) in kept.items():
                if at < stage <= top.stage and any(tree in subtrees(t) for t in self._written_at(stage)):
                    value = Register("waited", n.meta.dtype)  # read before the root takes its place
                    inner.body.append(Define(value, w.buffer(n, True).load(w.position(offset, inner, n))))
                    inner.memo[id(tree)] = value.expr
            for root in stores:
                self._store(w, inner, *root[:3])
            for (n, _, offset, _), (at, tree) in kept.items():
                if at == stage:
                    value = Register("kept", n.meta.dtype)
                    inner.body.append(Define(value, w.write(tree, inner)))
                    inner.memo[id(tree)] = value.expr
                    inner.body.append(Store(w.buffer(n, True), w.position(offset, inner, n), value.expr))
            for n, reg in registers:
                inner.body.append(Reduce(reg, REDUCE[n.call.op.name], w.write(self.reduce_trees[n], inner)))
            env.body.extend(body)
            self._keep(w, env, registers)
        self._between(w, env, last + 1)

    def _kept_values(self) -> dict[Any, tuple[int, Tree]]:
        """Root -> (stage, tree): a dear value that a reduction and, later, a root need, which waits in the root's own memory until then (as
        softmax's exponentials do)."""
        out: dict[Any, tuple[int, Tree]] = {}
        if not self.numel_inner * 4 <= NEAR:
            return out
        taken: set[int] = set()
        for root in sorted(self.roots, key=lambda r: -r[1].stage):  # the last to need it: until then its memory is free
            n, top, _, outer = root
            if outer or n.meta.dtype.compute is not n.meta.dtype or top.stage == 0:
                continue
            own = {id(t) for t in subtrees(top)}
            best = 0
            for tree in self.reduce_trees.values():
                for t in subtrees(tree) if tree.stage < top.stage else ():
                    fits = (
                        t.kind == "op"
                        and t.stage == tree.stage
                        and t.node.meta.dtype is n.meta.dtype
                        and id(t) in own
                        and id(t) not in taken
                    )
                    cost = cost_of(t.node.call) if fits else 0
                    if cost > max(best, DEAR):
                        best, out[root] = cost, (tree.stage, t)
            if root in out:
                taken.add(id(out[root][1]))
        return out

    def _written_at(self, stage: int) -> list[Tree]:
        """What the loops of a stage compute."""
        roots = [t for _, t, _, outer in self.roots if not outer and t.stage == stage]
        return roots + [t for t in self.reduce_trees.values() if t.stage == stage]

    def _keep(self, w: Writer, env: Env, registers: list[tuple[Node, Register]]) -> None:
        """Finished reductions, rounded where their dtype is narrower than the register's."""
        for n, reg in registers:
            if n.meta.dtype.compute is not n.meta.dtype:
                env.body.append(Assign(reg, rounded(reg.expr, n.meta.dtype, False)))
            w.registers[n] = reg

    def _between(self, w: Writer, env: Env, stage: int) -> None:
        for root in self.roots:
            if root[3] and root[1].stage == stage:
                self._store(w, env, *root[:3])

    def _nest(self, w: Writer, env: Env, lanes_inside: bool) -> tuple[list[Any], Env]:
        """Fresh loops over all reduced classes, and the environment inside them."""
        values: dict[Class, Expr] = {}
        top: list[Any] = []
        body = top
        for k, c in enumerate(self.inner_classes):
            var = Var(f"k{k}")
            lane = lanes_inside and k == len(self.inner_classes) - 1
            small = c.extent <= SMALL_EXTENT and not lane
            loop = For(var, ir.const(c.extent) if small else w.integer(c.extent), [], "vector" if lane else "serial", small)
            loop.wide = self.wide if lane else 0
            values[c] = var.expr
            body.append(loop)
            body = loop.body
        return top, Env(values, body, env)
