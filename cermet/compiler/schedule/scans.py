"""Scans: serial along a line, several lines side by side so that their chains of additions overlap, and in lanes where memory runs along
another dim. Long lines are cut: totals of the pieces, what comes before each, and the pieces again from there. Cuts depend on shapes only."""

from __future__ import annotations

import math
from typing import Any

from cermet import dtypes as dt
from cermet.compiler.llvm.target import Target
from cermet.compiler.loops import ir
from cermet.compiler.loops.build import builder
from cermet.compiler.loops.ir import Assign, Define, Expr, For, Param, Register, Store, Var
from cermet.compiler.schedule.byhand import (
    COMBINE,
    Call,
    Params,
    StridesOf,
    TempSpace,
    call_of,
    combined,
    decode,
    offset_of,
    operand_of,
)
from cermet.compiler.schedule.lower import identity_of
from cermet.graph.node import Node

__all__ = ["scan_calls"]

LANES = 64  # of a block, where memory runs across the lines
ABREAST = 4  # lines walked at once: an addition takes about as many cycles as there are elements to fetch meanwhile
PIECE = 8192  # elements of a long line's pieces
FEW_LINES = 16  # lines past which there is enough to share out without cutting


def scan_calls(node: Node, strides_of: StridesOf, target: Target) -> list[Call]:
    """The launches of a scan."""
    shape, dim = node.meta.shape, node.call.attr("dim")
    if node.meta.numel == 0:
        return []
    others = [k for k in range(len(shape)) if k != dim and shape[k] != 1]
    if others and dim != len(shape) - 1:
        return _in_lanes(node, strides_of, target, others)
    return _Lines(node, strides_of, target, others).calls()


def _in_lanes(node: Node, strides_of: StridesOf, target: Target, others: list[int]) -> list[Call]:
    """Lanes along the last dim, blocks of them and of the rest."""
    (x,) = node.inputs
    source, offset, sx = operand_of(x, strides_of)
    so, shape, dim = strides_of(node), node.meta.shape, node.call.attr("dim")
    *rows_dims, lane = others
    p = Params()
    xin = p.add("buffer", x.meta.dtype, ("node", source, offset))
    out = p.add("buffer", node.meta.dtype, ("node", node, 0), False)
    block, step, v = Var("p"), Var("t"), Var("v")
    width = shape[lane]
    pieces = -(-width // LANES)
    row: Expr = block.expr
    piece: Expr = ir.const(0)
    extent = p.integer(width)
    if pieces > 1:
        n = p.integer(pieces)
        piece, row = Expr("trem", (row, n), dt.int64), Expr("tdiv", (row, n), dt.int64)
        extent = builder.min(ir.const(LANES), extent - piece * LANES)
    index = decode(p, row, [shape[k] for k in rows_dims])
    at = piece * LANES + v.expr
    ix = offset_of(p, index, [sx[k] for k in rows_dims]) + at * p.integer(sx[lane])
    io = offset_of(p, index, [so[k] for k in rows_dims]) + at * p.integer(so[lane])
    op = COMBINE[node.call.attr("mode")]
    acc = Register("acc", node.meta.dtype.compute)
    walk = For(step, p.integer(shape[dim]), [
        Assign(acc, combined(op, acc.expr, xin.load(ix + step.expr * p.integer(sx[dim])))),
        Store(out, io + step.expr * p.integer(so[dim]), acc.expr),
    ])  # fmt: skip
    lanes = For(v, extent, [Define(acc, identity_of(op, node.meta.dtype)), walk], "vector")
    rows = math.prod([shape[k] for k in rows_dims])
    return call_of("scan", p, block, rows * pieces, [lanes], node, target, shape[dim] * min(width, LANES) * 4)


class _Lines:
    """Scans along the dim that memory runs along."""

    def __init__(self, node: Node, strides_of: StridesOf, target: Target, rows_dims: list[int]) -> None:
        self.node, self.target = node, target
        (self.x,) = node.inputs
        self.source, self.offset, self.sx = operand_of(self.x, strides_of)
        self.so = strides_of(node)
        self.dim, self.op = node.call.attr("dim"), COMBINE[node.call.attr("mode")]
        self.shape, self.rows_dims = node.meta.shape, rows_dims
        self.n = self.shape[self.dim]
        self.rows = math.prod([self.shape[k] for k in rows_dims])
        self.cut = self.rows < FEW_LINES and self.n >= 4 * PIECE
        self.piece = PIECE if self.cut else self.n
        self.pieces = -(-self.n // self.piece)
        self.space = TempSpace(self.rows * self.pieces * node.meta.dtype.compute.itemsize)

    def calls(self) -> list[Call]:
        if not self.cut:
            return self._everywhere("all")
        return [*self._everywhere("totals"), *self._before(), *self._everywhere("rest")]

    def _everywhere(self, part: str) -> list[Call]:
        """Whole pieces side by side, those that are left over, and the last, shorter piece of each row."""
        whole = self.n // self.piece
        lines = self.rows * whole
        groups = lines // ABREAST
        out = self._walk(part, 0, groups, ABREAST, whole) if groups else []
        if lines > groups * ABREAST:
            out += self._walk(part, groups * ABREAST, lines - groups * ABREAST, 1, whole)
        if self.pieces > whole:
            out += self._walk(part, 0, self.rows, 1, 0)
        return out

    def _totals(self, p: Params, writable: bool) -> Param:
        return p.add("buffer", self.node.meta.dtype.compute, ("temp", self.space, 0), not writable)

    def _walk(self, part: str, first: int, blocks: int, abreast: int, whole: int) -> list[Call]:
        """Some lines from ``first`` on; a line is a whole piece, or (``whole`` 0) what is left of a row."""
        p, node = Params(), self.node
        xin = p.add("buffer", self.x.meta.dtype, ("node", self.source, self.offset))
        out = None if part == "totals" else p.add("buffer", node.meta.dtype, ("node", node, 0), False)
        totals = None if part == "all" else self._totals(p, part == "totals")
        block, step = Var("p"), Var("t")
        length = self.piece if whole else self.n % self.piece
        walk = For(step, p.integer(length), [])
        begin: list[Any] = []
        end: list[Any] = []
        row_x, row_o = [p.integer(self.sx[k]) for k in self.rows_dims], [p.integer(self.so[k]) for k in self.rows_dims]
        extents = [p.integer(self.shape[k]) for k in self.rows_dims]
        many, count = p.integer(self.pieces), p.integer(whole or 1)
        step_x, step_o, long, start = (
            p.integer(self.sx[self.dim]),
            p.integer(self.so[self.dim]),
            p.integer(self.piece),
            p.integer(first),
        )
        for k in range(abreast):
            line = start + block.expr * abreast + k
            row, piece = (
                (line, ir.const(0))
                if whole == 1
                else (Expr("tdiv", (line, count), dt.int64), Expr("trem", (line, count), dt.int64))
            )
            if not whole:
                row, piece = line, many - 1
            ix: Expr = ir.const(0)
            io: Expr = ir.const(0)
            rest = row
            for j in range(len(extents) - 1, -1, -1):
                i = Expr("trem", (rest, extents[j]), dt.int64) if j else rest
                rest = Expr("tdiv", (rest, extents[j]), dt.int64)
                ix, io = ix + i * row_x[j], io + i * row_o[j]
            at = piece * long
            acc = Register(f"acc{k}", node.meta.dtype.compute)
            begin.append(Define(acc, identity_of(self.op, node.meta.dtype)))
            walk.body.append(Assign(acc, combined(self.op, acc.expr, xin.load(ix + (at + step.expr) * step_x))))
            value = acc.expr
            if part == "rest":
                before = Register(f"before{k}", node.meta.dtype.compute)
                assert totals is not None
                begin.append(Define(before, totals.load(row * many + piece)))
                value = combined(self.op, before.expr, value)
            if out is not None:
                walk.body.append(Store(out, io + (at + step.expr) * step_o, value))
            else:
                assert totals is not None
                end.append(Store(totals, row * many + piece, acc.expr))
        work = length * abreast * 3
        return call_of("scan " + part, p, block, blocks, [*begin, walk, *end], node, self.target, work)

    def _before(self) -> list[Call]:
        """Each piece's total becomes what comes before the piece."""
        p, block, step = Params(), Var("p"), Var("t")
        totals = self._totals(p, True)
        dtype = self.node.meta.dtype
        acc, here = Register("acc", dtype.compute), Register("here", dtype.compute)
        at = block.expr * p.integer(self.pieces) + step.expr
        walk = For(step, p.integer(self.pieces), [
            Define(here, totals.load(at)),
            Store(totals, at, acc.expr),
            Assign(acc, combined(self.op, acc.expr, here.expr)),
        ])  # fmt: skip
        body = [Define(acc, identity_of(self.op, dtype)), walk]
        return call_of("scan before", p, block, self.rows, body, self.node, self.target, self.pieces * 4)
