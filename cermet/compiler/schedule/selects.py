"""The first few of each row in sorted order, without sorting the row: a short list of the best so far, which hardly any element enters.

Whole runs of elements are compared with the last of the list at once; one that is better is inserted, after those equal to it. So the result is
that of a stable sort. Knuth, The Art of Computer Programming 3, 5.2.1 (straight insertion).

Elements of up to four bytes are kept as keys of eight that no two elements share: above the value as an integer of the same order, below the place,
earlier ones greater. Then the list is a chain of minima and maxima.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from cermet import dtypes as dt
from cermet.compiler.llvm.target import Target
from cermet.compiler.loops import ir
from cermet.compiler.loops.build import builder
from cermet.compiler.loops.ir import Assign, Define, Expr, For, Guard, Param, Reduce, Register, Store, Var
from cermet.compiler.schedule.byhand import Call, Params, StridesOf, call_of, decode, offset_of, operand_of
from cermet.graph.node import Node

__all__ = ["select_calls"]

RUN = 16  # elements compared at once
BLOCK = 8192  # elements of a block of rows
_MOST, _LOW = (1 << 31) - 1, (1 << 32) - 1


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
    small = dtype.itemsize < 4 or dtype in (dt.float32, dt.int32)
    block, r = Var("p"), Var("r")
    per = max(1, BLOCK // n)
    blocks = -(-rows // per)
    length, size = p.integer(n), p.integer(per)
    index = decode(p, block.expr * size + r.expr, [shape[d] for d in dims])
    ix, io = offset_of(p, index, [sx[d] for d in dims]), offset_of(p, index, [so[d] for d in dims])
    line = _Line(p, xin, out, ix, io, p.integer(sx[dim]), p.integer(so[dim]), length, k, largest)
    body = _keyed(line) if small else _listed(line, dtype)
    loop = For(r, builder.min(size, p.integer(rows) - block.expr * size), body)
    calls = call_of("select", p, block, blocks, [loop], node, target, per * n)
    for call in calls:
        call.scratch = (8 if small else 16) * k
    return calls


@dataclass
class _Line:
    """A row to select from: its elements are ``source[ix + step * i]``, and the places of its ``k`` first go to ``out[io + step_out * j]``."""

    p: Params
    source: Param
    out: Param
    ix: Expr
    io: Expr
    step: Expr
    step_out: Expr
    length: Expr
    k: int
    largest: bool


def _ordered(x: Expr, largest: bool) -> Expr:
    """An int32 that is greater the sooner a value comes; both zeros give the same, NaN is the greatest value."""
    if x.dtype.kind == "f":
        bits = builder.bitcast(builder.add(x, 0.0), dt.int32)
        whole = builder.xor(bits, builder.and_(builder.shr(bits, builder.const(31, dt.int32)), builder.const(_MOST, dt.int32)))
        value = builder.select(builder.isnan(x), builder.const(_MOST, dt.int32), whole)
    else:
        value = builder.cast(x, dt.int32)
    return value if largest else builder.not_(value)


def _keyed(a: _Line) -> list[Any]:
    """The statements for a line, with keys."""
    keys = a.p.add("scratch", dt.int64, ("int", 0), False)
    c, v, s, tail, j = (Var(name) for name in "cvstj")
    many, least = a.p.integer(a.k), ir.const(-(1 << 63))
    last, best = Register("last", dt.int64), Register("best", dt.int32)
    whole = Expr("tdiv", (a.length, ir.const(RUN)), dt.int64)

    def raised(x: Expr) -> Expr:
        return builder.shl(builder.cast(x, dt.int64), ir.const(32))

    def consider(place: Expr) -> list[Any]:
        key, carried, old = Register("key", dt.int64), Register("carried", dt.int64), Register("old", dt.int64)
        here = builder.or_(raised(_ordered(a.source.load(a.ix + place * a.step), a.largest)), ir.const(_LOW) - place)
        chain = For(j, many, [
            Define(old, keys.load(j.expr)),
            Store(keys, j.expr, builder.max(old.expr, carried.expr)),
            Assign(carried, builder.min(old.expr, carried.expr)),
        ])  # fmt: skip
        enter: list[Any] = [Define(carried, key.expr), chain, Assign(last, keys.load(many - 1))]
        return [Define(key, here), Guard(builder.gt(key.expr, last.expr), enter)]

    some = builder.or_(builder.gt(raised(best.expr), last.expr), builder.eq(last.expr, least))
    lane = _ordered(a.source.load(a.ix + (c.expr * RUN + v.expr) * a.step), a.largest)
    scan = For(v, ir.const(RUN), [Reduce(best, "max", lane)], "vector")
    scan.wide = 2
    return [
        For(t := Var("f"), many, [Store(keys, t.expr, least)]),
        Define(last, least),
        For(c, whole, [
            Define(best, builder.const(-_MOST - 1, dt.int32)),
            scan,
            Guard(some, [For(s, ir.const(RUN), consider(c.expr * RUN + s.expr))]),
        ]),
        For(tail, a.length - whole * RUN, consider(whole * RUN + tail.expr)),
        For(u := Var("u"), many, [
            Store(a.out, a.io + u.expr * a.step_out, ir.const(_LOW) - builder.and_(keys.load(u.expr), ir.const(_LOW)))
        ]),
    ]  # fmt: skip


def _listed(a: _Line, dtype: dt.DType) -> list[Any]:
    """The statements for a line, with a list of values and one of places."""
    p, xin, largest = a.p, a.source, a.largest
    places = p.add("scratch", dt.int64, ("int", 0), False)
    values = p.add("scratch", dtype, ("int", 8 * a.k), False)
    c, v, s, j = (Var(name) for name in "cvsj")
    many = p.integer(a.k)
    last, count, some = Register("last", dtype), Register("count", dt.int64), Register("some", dt.bool)
    run = builder.min(ir.const(RUN), a.length - c.expr * RUN)
    lane, one = xin.load(a.ix + (c.expr * RUN + v.expr) * a.step), c.expr * RUN + s.expr
    unfilled = builder.binary("lt", count.expr, many, dt.bool)
    candidate = xin.load(a.ix + one * a.step)
    insert: list[Any] = [
        *_insertion(values, places, candidate, one, For(j, many, []), largest),
        Assign(count, count.expr + 1),
        Assign(last, values.load(many - 1)),
    ]
    walk = For(s, run, [Guard(builder.or_(_better(candidate, last.expr, largest), unfilled), insert)])
    return [
        For(t := Var("t"), many, [Store(places, t.expr, ir.const(-1)), Store(values, t.expr, builder.const(0, dtype))]),
        Define(last, builder.const(0, dtype)),
        Define(count, ir.const(0)),
        For(c, Expr("tdiv", (a.length + (RUN - 1), ir.const(RUN)), dt.int64), [
            Define(some, builder.const(False, dt.bool)),
            For(v, run, [Reduce(some, "or", _better(lane, last.expr, largest))], "vector"),
            Guard(builder.or_(some.expr, unfilled), [walk]),
        ]),
        For(u := Var("u"), many, [Store(a.out, a.io + u.expr * a.step_out, places.load(u.expr))]),
    ]  # fmt: skip


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
