"""The first few of each row in sorted order, without sorting the row: a short list of the best so far, which hardly any element enters.

Whole runs of elements are compared with the last of the list at once; one that is better is inserted, after those equal to it. So the result is
that of a stable sort. Knuth, The Art of Computer Programming 3, 5.2.1 (straight insertion).
"""

from __future__ import annotations

import math
from typing import Any

from cermet import dtypes as dt
from cermet.compiler.llvm.target import Target
from cermet.compiler.loops import ir
from cermet.compiler.loops.build import builder
from cermet.compiler.loops.ir import Assign, Define, Expr, For, Guard, Reduce, Register, Store, Var
from cermet.compiler.schedule.byhand import Call, Params, StridesOf, call_of, decode, offset_of, operand_of
from cermet.graph.node import Node

__all__ = ["select_calls"]

RUN = 16  # elements compared at once
BLOCK = 8192  # elements of a block of rows


def _better(x: Expr, y: Expr, largest: bool) -> Expr:
    """Whether x comes before y; NaN counts as the greatest."""
    first, second = (x, y) if largest else (y, x)
    out = builder.binary("gt", first, second, dt.bool)
    if x.dtype.kind != "f":
        return out
    nan = builder.and_(builder.unary("isnan", first, dt.bool), builder.not_(builder.unary("isnan", second, dt.bool)))
    return builder.or_(out, nan)


def select_calls(node: Node, strides_of: StridesOf, target: Target) -> list[Call]:
    """The launch that finds the places of the ``k`` first of each row."""
    (x,) = node.inputs
    dim, largest, k = (node.call.attr(a) for a in ("dim", "descending", "k"))
    if node.meta.numel == 0:
        return []
    source, offset, sx = operand_of(x, strides_of)
    so, shape = strides_of(node), x.meta.shape
    dims = [d for d in range(len(shape)) if d != dim and shape[d] != 1]
    rows, n, dtype = math.prod([shape[d] for d in dims]), shape[dim], x.meta.dtype.compute
    p = Params()
    xin = p.add("buffer", x.meta.dtype, ("node", source, offset))
    out = p.add("buffer", dt.int64, ("node", node, 0), False)
    places = p.add("scratch", dt.int64, ("int", 0), False)
    values = p.add("scratch", dtype, ("int", 8 * k), False)
    block, r, c, v, s, j = (Var(name) for name in "prcvsj")
    per = max(1, BLOCK // n)
    blocks = -(-rows // per)
    many, length, size = p.integer(k), p.integer(n), p.integer(per)
    row = block.expr * size + r.expr
    index = decode(p, row, [shape[d] for d in dims])
    ix, io = offset_of(p, index, [sx[d] for d in dims]), offset_of(p, index, [so[d] for d in dims])
    step = p.integer(sx[dim])
    last, count, some = Register("last", dtype), Register("count", dt.int64), Register("some", dt.bool)
    run = builder.min(ir.const(RUN), length - c.expr * RUN)
    lane, one = xin.load(ix + (c.expr * RUN + v.expr) * step), c.expr * RUN + s.expr
    unfilled = builder.binary("lt", count.expr, many, dt.bool)
    candidate = xin.load(ix + one * step)
    insert: list[Any] = [
        *_insertion(values, places, candidate, one, For(j, many, []), largest),
        Assign(count, count.expr + 1),
        Assign(last, values.load(many - 1)),
    ]
    walk = For(s, run, [Guard(builder.or_(_better(candidate, last.expr, largest), unfilled), insert)])
    body: list[Any] = [
        For(t := Var("t"), many, [Store(places, t.expr, ir.const(-1)), Store(values, t.expr, builder.const(0, dtype))]),
        Define(last, builder.const(0, dtype)),
        Define(count, ir.const(0)),
        For(c, Expr("tdiv", (length + (RUN - 1), ir.const(RUN)), dt.int64), [
            Define(some, builder.const(False, dt.bool)),
            For(v, run, [Reduce(some, "or", _better(lane, last.expr, largest))], "vector"),
            Guard(builder.or_(some.expr, unfilled), [walk]),
        ]),
        For(u := Var("u"), many, [Store(out, io + u.expr * p.integer(so[dim]), places.load(u.expr))]),
    ]  # fmt: skip
    loop = For(r, builder.min(size, p.integer(rows) - block.expr * size), body)
    calls = call_of("select", p, block, blocks, [loop], node, target, per * n)
    for call in calls:
        call.scratch = 16 * k
    return calls


def _insertion(values: Any, places: Any, value: Expr, place: Expr, loop: For, largest: bool) -> list[Any]:
    """Put an element behind all that are not worse, and move the others on by one."""
    j = loop.var.expr
    carried, at, moved = Register("carried", value.dtype), Register("at", dt.int64), Register("moved", dt.bool)
    old, old_at, here = Register("old", value.dtype), Register("old_at", dt.int64), Register("here", dt.bool)
    empty = builder.binary("lt", old_at.expr, ir.const(0), dt.bool)
    loop.body = [
        Define(old, values.load(j)),
        Define(old_at, places.load(j)),
        Define(here, builder.or_(moved.expr, builder.or_(empty, _better(carried.expr, old.expr, largest)))),
        Store(values, j, builder.select(here.expr, carried.expr, old.expr)),
        Store(places, j, builder.select(here.expr, at.expr, old_at.expr)),
        Assign(carried, builder.select(here.expr, old.expr, carried.expr)),
        Assign(at, builder.select(here.expr, old_at.expr, at.expr)),
        Assign(moved, here.expr),
    ]
    return [Define(carried, value), Define(at, place), Define(moved, builder.const(False, dt.bool)), loop]
