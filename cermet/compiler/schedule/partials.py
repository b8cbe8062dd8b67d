"""Long reductions on few rows: partial results of fixed chunks in one launch, their combination and what follows in a second."""

from __future__ import annotations

import math
from typing import Any

from cermet import dtypes as dt
from cermet.compiler.loops import ir
from cermet.compiler.loops.build import builder
from cermet.compiler.loops.ir import Define, Expr, For, Prefetch, Reduce, Register, Store, Var
from cermet.compiler.schedule.domain import Class, coefficient
from cermet.compiler.schedule.forms import (
    BLOCK,
    FAR,
    FEW_BLOCKS,
    NEAR,
    REDUCE,
    ROWS_AHEAD,
    SPLIT_FROM,
    WIDE,
    LoopCall,
    identity_of,
)
from cermet.compiler.schedule.index import Dim
from cermet.compiler.schedule.writer import Env, Writer
from cermet.graph.node import Node

__all__ = ["Partials"]


class Partials:
    """The part of a lowering that cuts reductions into chunks. Its ``self`` is the whole lowering (see `lower`)."""

    def _should_split(self: Any) -> bool:
        if self.trees.dynamics:
            return False
        later = any(t.stage for t in self.reduce_trees.values()) or any(t.stage and not outer for _, t, _, outer in self.roots)
        if self.form == "rows" or later:
            return self.numel_inner >= SPLIT_FROM and self.numel_outer < (2 if later else FEW_BLOCKS)
        blocks = -(-self.outer_classes[-1].extent // WIDE) * math.prod([c.extent for c in self.outer_classes[:-1]])
        return self.numel_inner * self.numel_outer >= SPLIT_FROM and blocks < 2 * FEW_BLOCKS and self.numel_inner >= 128

    def _split_calls(self: Any) -> list[LoopCall]:
        """Partial results of fixed chunks in one launch, their combination and the later stages in a second."""
        first = [n for n in self.reductions if self.reduce_trees[n].stage == 0]
        cut = max(self.inner_classes, key=lambda c: c.extent)
        # In rows a chunk is a run of elements; in columns of all columns' elements.
        across = 1 if self.form == "rows" else min(self.numel_outer, 256)
        chunk = max(1, -(-cut.extent * (BLOCK // across) // self.numel_inner))
        chunks = -(-cut.extent // chunk)
        temps = [chunks * self.numel_outer * n.meta.dtype.compute.itemsize for n in first]
        a = self._partials(first, cut, chunk, chunks)

        def combine(w: Writer, env: Env) -> None:
            self._combine(w, env, first, chunks)

        roots, self.roots = self.roots, [r for r in self.roots if r[3] or r[1].stage > 0]
        b = self._rows(combine) if self.form == "rows" else self._columns(combine)
        self.roots = roots
        a.temps = b.temps = temps
        return [a, b]

    def _outer_position(self: Any, w: Writer, env: Env) -> Expr:
        """Row-major position among the classes that remain."""
        out: Expr = ir.const(0)
        for c in self.outer_classes:
            out = out * w.integer(c.extent) + env.values[c]
        return out

    def _partials(self: Any, first: list[Node], cut: Class, chunk: int, chunks: int) -> LoopCall:
        w = self._begin()
        p = Var("p")
        count = chunks * self.numel_outer
        size = w.integer(chunk)
        body: list[Any] = []
        block = p.expr
        if self.form == "rows":
            parts = w.integer(chunks)
            c, row = Expr("trem", (block, parts), dt.int64), Expr("tdiv", (block, parts), dt.int64)
            env = Env(self._rows_of(w, self.outer_classes, row), body)
        else:
            count, c, env = self._column_blocks(w, block, chunks, body)
        start = c * size
        extent = builder.min(size, w.integer(cut.extent) - start)
        registers: list[tuple[Node, Register]] = []
        for n in first:
            reg = Register(f"acc{len(registers)}", n.meta.dtype.compute)
            env.body.append(Define(reg, identity_of(REDUCE[n.call.op.name], n.meta.dtype)))
            registers.append((n, reg))
        nest, inner = self._nest(w, env, self.form == "rows")
        _cut_loop(nest, inner, cut, start, extent)
        if self.form == "columns":
            self._fetch_rows(w, inner)
        for root in self.roots:
            if not root[3] and root[1].stage == 0:
                self._store(w, inner, *root[:3])
        for n, reg in registers:
            inner.body.append(Reduce(reg, REDUCE[n.call.op.name], w.write(self.reduce_trees[n], inner)))
        env.body.extend(nest)
        for k, (n, reg) in enumerate(registers):
            place = c * w.integer(self.numel_outer) + self._outer_position(w, env)
            env.body.append(Store(w.temp(k, n.meta.dtype.compute, True), place, reg.expr))
        return self._finish(w, p, count, body, 8192, "partials")

    def _fetch_rows(self: Any, w: Writer, inner: Env) -> None:
        """Ask for a strip of rows to come: few lines of each lie side by side, and hardware foresees only what is near."""
        lanes, steps = self.outer_classes[-1], self.inner_classes[-1]
        ahead = Env({steps: inner.values[steps] + ROWS_AHEAD}, inner.body, inner)
        for t in list(self.trees.loads()):
            size = t.node.meta.dtype.itemsize
            far = abs(coefficient(t.offset, steps.inner)) * size >= FAR and t.node.meta.nbytes >= NEAR
            if (
                not far
                or t.conditions
                or coefficient(t.offset, lanes.inner) != 1
                or any(type(v) is not Dim for v, _ in t.offset.terms)
            ):
                continue
            start = w.position(t.offset, ahead, t.node)
            for k in range(0, min(WIDE, lanes.extent), 64 // size):
                inner.body.append(Prefetch(w.buffer(t.node), start + k))

    def _column_blocks(self: Any, w: Writer, block: Expr, chunks: int, body: list[Any]) -> tuple[int, Expr, Env]:
        """Blocks of (chunk, outer rows, column piece)."""
        *outer, lanes = self.outer_classes
        rows, width = math.prod([c.extent for c in outer]), lanes.extent
        strip = WIDE
        pieces = -(-width // strip)
        n = w.integer(chunks)
        c, rest = Expr("trem", (block, n), dt.int64), Expr("tdiv", (block, n), dt.int64)
        piece: Expr = ir.const(0)
        if pieces > 1:
            m = w.integer(pieces)
            piece, rest = Expr("trem", (rest, m), dt.int64), Expr("tdiv", (rest, m), dt.int64)
        v = Var("v")
        loop = For(v, self._rest(w, width, ir.const(strip), piece, pieces), [], "vector")
        body.append(loop)
        env = Env({lanes: piece * ir.const(strip) + v.expr, **self._rows_of(w, outer, rest)}, loop.body)
        return chunks * rows * pieces, c, env

    def _combine(self: Any, w: Writer, env: Env, first: list[Node], chunks: int) -> None:
        """Add up the chunks' partial results, in order."""
        registers: list[tuple[Node, Register]] = []
        var = Var("c")
        for n in first:
            reg = Register(f"sum{len(registers)}", n.meta.dtype.compute)
            env.body.append(Define(reg, identity_of(REDUCE[n.call.op.name], n.meta.dtype)))
            registers.append((n, reg))
        loop = For(var, w.integer(chunks), [], "serial")
        place = var.expr * w.integer(self.numel_outer) + self._outer_position(w, env)
        for k, (n, reg) in enumerate(registers):
            part = w.temp(k, n.meta.dtype.compute, False)
            loop.body.append(Reduce(reg, REDUCE[n.call.op.name], part.load(place)))
        env.body.append(loop)
        self._keep(w, env, registers)


def _cut_loop(nest: list[Any], inner: Env, cut: Class, start: Expr, extent: Expr) -> None:
    """Restrict the loop of class ``cut`` to ``extent`` values from ``start``."""
    var = inner.values[cut].attr
    stack = list(nest)
    while stack:
        loop = stack.pop()
        if isinstance(loop, For):
            if loop.var is var:
                loop.extent = extent
                loop.unroll = False
                inner.values[cut] = start + var.expr
                return
            stack.extend(loop.body)
    raise RuntimeError("the loop to cut is not in the nest")
