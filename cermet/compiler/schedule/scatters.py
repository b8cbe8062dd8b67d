"""Scatters: the base is copied, then updates are combined into it position by position, in a fixed order.

Where whole rows go to computed places, each block looks through all indices and takes the rows that fall to its part of the result: so blocks
never meet, and updates of one place keep their order. Else dims of the update that are dims of the base too run side by side.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

from cermet import dtypes as dt
from cermet.compiler.llvm.target import Target
from cermet.compiler.loops import ir
from cermet.compiler.loops.build import builder
from cermet.compiler.loops.ir import Define, Expr, For, Guard, Prefetch, Reduce, Register, Store, Var
from cermet.compiler.schedule.byhand import COMBINE, Call, Params, StridesOf, call_of, combined, decode, offset_of, operand_of
from cermet.compiler.schedule.forms import ROWS_AHEAD
from cermet.compiler.schedule.fuse import source_of
from cermet.graph.node import Node
from cermet.ops.leaf import const_value

__all__ = ["scatter_calls"]

BLOCK = 8192
PARTS = 8  # of the result, each with a block of its own; all of them read all indices
MOST_LINES = 16  # of a row that are asked for ahead; what follows is foreseen
PARTED_FROM = 32768  # elements of updates from which on that is worth it


def scatter_calls(node: Node, strides_of: StridesOf, target: Target) -> list[Call]:
    """The launches of a scatter."""
    base, update = node.inputs[:2]
    if node.meta.numel == 0:
        return []
    constant = source_of(base)
    if constant.call.op.name == "const" and constant.buffer is None:
        calls = _fill(const_value(constant), node, target)
    else:
        calls = _copy(base, node, strides_of, target)
    if update.meta.numel == 0:
        return calls
    return calls + (_rows(node, strides_of, target) or _positions(node, strides_of, target))


def _fill(value: Any, node: Node, target: Target) -> list[Call]:
    """One value everywhere. What is stored has no gaps, whatever the order of its dims."""
    p, block, v = Params(), Var("p"), Var("v")
    out = p.add("buffer", node.meta.dtype, ("node", node, 0), False)
    start = block.expr * BLOCK
    extent = builder.min(ir.const(BLOCK), p.integer(node.meta.numel) - start)
    body = [For(v, extent, [Store(out, start + v.expr, builder.const(value, node.meta.dtype))], "vector")]
    return call_of("fill", p, block, -(-node.meta.numel // BLOCK), body, node, target, BLOCK)


def _copy(x: Node, node: Node, strides_of: StridesOf, target: Target) -> list[Call]:
    source, offset, sx = operand_of(x, strides_of)
    so = strides_of(node)
    shape = node.meta.shape
    p = Params()
    xin = p.add("buffer", x.meta.dtype, ("node", source, offset))
    out = p.add("buffer", node.meta.dtype, ("node", node, 0), False)
    block, v = Var("p"), Var("v")
    _, (flat,), (flat_out,) = _flatten(shape, sx, so)
    if flat == flat_out == (1,):
        count = -(-node.meta.numel // BLOCK)
        start = block.expr * ir.const(BLOCK)
        extent = builder.min(ir.const(BLOCK), p.integer(node.meta.numel) - start)
        at = start + v.expr
        body = [For(v, extent, [Store(out, at, xin.load(at))], "vector")]
        return call_of("copy", p, block, count, body, node, target, BLOCK)
    index = [*decode(p, block.expr, list(shape[:-1])), v.expr] if shape else []
    load = xin.load(offset_of(p, index, list(sx)))
    body = [For(v, p.integer(shape[-1] if shape else 1), [Store(out, offset_of(p, index, list(so)), load)], "vector")]
    return call_of("copy", p, block, math.prod(shape[:-1]), body, node, target, shape[-1] if shape else 1)


def _flatten(shape: tuple[int, ...], *strides: tuple[int, ...]) -> tuple[Any, ...]:
    """((extents), (strides…),) with everything merged into one dim where possible, else the strides as they are."""
    expected = 1
    for k in range(len(shape) - 1, -1, -1):
        if shape[k] != 1 and any(s[k] != expected for s in strides):
            return (shape, *[(s,) for s in strides])
        expected *= shape[k]
    return ((expected,), *[((1,),) for _ in strides])


def _rows(node: Node, strides_of: StridesOf, target: Target) -> list[Call]:
    """Rows by their index, each part of the result by a block of its own; nothing where indices differ within a row, or little is to be done."""
    base, update, *indices = node.inputs
    dims, rest, mode = node.call.attrs
    so, shape = strides_of(node), update.meta.shape
    others = [d for d in range(base.meta.ndim) if d not in dims]
    side = [k for k in rest if shape[k] != 1]
    places = [k for k in range(len(shape)) if k not in rest and shape[k] != 1]
    found = [operand_of(i, strides_of) for i in indices]
    stride_of = {u: so[d] for d, u in zip(others, rest, strict=True)}
    us, uo, ust = operand_of(update, strides_of)
    if (
        not side or not places or update.meta.numel < PARTED_FROM or base.meta.shape[dims[0]] < 2
        or any(strides[k] != 0 for _, _, strides in found for k in side)
    ):  # fmt: skip
        return []
    lane = max(side, key=lambda k: (stride_of[k] == 1 and ust[k] == 1, k))
    if stride_of[lane] != 1 or shape[lane] < 8:
        return []
    p = Params()
    out = p.add("buffer", node.meta.dtype, ("node", node, 0), False)
    block, v, bad = Var("p"), Var("v"), Register("bad", dt.bool)
    first = base.meta.shape[dims[0]]
    part = -(-first // PARTS)
    blocks = -(-first // part)
    size = p.integer(part)
    low = block.expr * size
    at: list[Expr] = [ir.const(0)] * len(shape)
    loops = [For(Var(f"s{k}"), p.integer(shape[k]), []) for k in places]
    for loop, k in zip(loops, places, strict=True):
        at[k] = loop.var.expr
    body = loops[-1].body
    checked = [_checked_index(p, i, at, base.meta.shape[d], strides_of, bad, body) for i, d in zip(indices, dims, strict=True)]
    mine = builder.and_(builder.ge(checked[0], low), builder.lt(checked[0], low + size))
    inner = [For(Var(f"r{k}"), p.integer(shape[k]), []) for k in side if k != lane]
    for loop, k in zip(inner, [k for k in side if k != lane], strict=True):
        at[k] = loop.var.expr
    at[lane] = v.expr
    place = offset_of(p, [at[u] for u in rest], [stride_of[u] for u in rest])
    for c, d in zip(checked, dims, strict=True):
        place = place + c * p.integer(so[d])
    source = p.add("buffer", update.meta.dtype, ("node", us, uo))
    value = _combined_with(out, place, source.load(offset_of(p, at, list(ust))), mode)
    lanes = For(v, p.integer(shape[lane]), [Store(out, place, value)], "vector")
    for outer, loop in pairwise([*inner, lanes]):
        outer.body.append(loop)
    if not inner:
        # Rows that fall to this part lie apart: no hardware foresees which comes next.
        ahead = builder.min(at[places[-1]] + ROWS_AHEAD, p.integer(shape[places[-1]]) - 1)
        then = [ahead if k == places[-1] else ir.const(0) if k == lane else at[k] for k in range(len(shape))]
        raw = [
            p.add("buffer", i.meta.dtype, ("node", s, o)).load(offset_of(p, then, list(strides)))
            for i, (s, o, strides) in zip(indices, found, strict=True)
        ]
        target_place: Expr = ir.const(0)
        for x, d in zip(raw, dims, strict=True):
            target_place = target_place + x * p.integer(so[d])
        starts = [(source, offset_of(p, then, list(ust))), *([] if mode == "set" else [(out, target_place)])]
        fetches: list[Any] = [
            Prefetch(buffer, start + k * (64 // buffer.dtype.itemsize))
            for buffer, start in starts
            for k in range(min(-(-shape[lane] * buffer.dtype.itemsize // 64), MOST_LINES))
        ]
        body.append(Guard(builder.and_(builder.ge(raw[0], low), builder.lt(raw[0], low + size)), fetches))
    body.append(Guard(mine, [inner[0] if inner else lanes]))
    for outer, loop in pairwise(loops):
        outer.body.append(loop)
    count = math.prod([shape[k] for k in places])
    return call_of(
        "scatter", p, block, blocks, _reported(p, node, bad, [loops[0]]), node, target, update.meta.numel // blocks + count
    )


def _combined_with(out: Any, place: Expr, value: Expr, mode: str) -> Expr:
    if mode == "set":
        return value
    return combined(COMBINE["sum" if mode == "add" else "prod" if mode == "mul" else mode], out.load(place), value)


def _reported(p: Params, node: Node, bad: Register, body: list[Any]) -> list[Any]:
    """``body`` with what it found bad said at its end."""
    status = p.add("buffer", dt.int64, ("status", node), False)
    return [Define(bad, builder.const(False, dt.bool)), *body, Guard(bad.expr, [Store(status, ir.const(0), ir.const(1))])]


def _positions(node: Node, strides_of: StridesOf, target: Target) -> list[Call]:
    """Lanes along a dim that update and base share, the updates of a lane one after another."""
    base, update, *indices = node.inputs
    dims, rest, mode = node.call.attrs
    so = strides_of(node)
    shape = update.meta.shape
    side = [k for k in rest if shape[k] != 1]
    serial = [k for k in range(len(shape)) if k not in rest and shape[k] != 1]
    others = [d for d in range(base.meta.ndim) if d not in dims]
    stride_of_side = {u: so[d] for d, u in zip(others, rest, strict=True)}
    lane = max(side, key=lambda k: (stride_of_side[k] == 1, k), default=None)
    rows_dims = [k for k in side if k != lane]
    rows = math.prod([shape[k] for k in rows_dims])
    p = Params()
    out = p.add("buffer", node.meta.dtype, ("node", node, 0), False)
    block, v = Var("p"), Var("v")
    width = shape[lane] if lane is not None else 1
    pieces = -(-width // 64)
    row: Expr = block.expr
    piece: Expr = ir.const(0)
    if pieces > 1:
        n = p.integer(pieces)
        piece, row = Expr("trem", (row, n), dt.int64), Expr("tdiv", (row, n), dt.int64)
    at: list[Expr] = [ir.const(0)] * len(shape)
    for k, e in zip(rows_dims, decode(p, row, [shape[k] for k in rows_dims]), strict=True):
        at[k] = e
    if lane is not None:
        at[lane] = piece * ir.const(64) + v.expr
    bad = Register("bad", dt.bool)
    loops = [For(Var(f"s{k}"), p.integer(shape[k]), []) for k in serial]
    for loop, k in zip(loops, serial, strict=True):
        at[k] = loop.var.expr
    body = loops[-1].body if loops else []
    place = offset_of(p, [at[u] for u in rest], [stride_of_side[u] for u in rest])
    for i, d in zip(indices, dims, strict=True):
        place = place + _checked_index(p, i, at, base.meta.shape[d], strides_of, bad, body) * p.integer(so[d])
    us, uo, ust = operand_of(update, strides_of)
    value = p.add("buffer", update.meta.dtype, ("node", us, uo)).load(offset_of(p, at, list(ust)))
    value = _combined_with(out, place, value, mode)
    body.append(Store(out, place, value))
    for outer, inner in pairwise(loops):
        outer.body.append(inner)
    nest: list[Any] = [loops[0]] if loops else body
    if lane is not None:
        extent = builder.min(ir.const(64), p.integer(width) - piece * ir.const(64)) if pieces > 1 else p.integer(width)
        nest = [For(v, extent, nest, "vector")]
    work = math.prod([shape[k] for k in serial]) * min(width, 64) * 4
    return call_of("scatter", p, block, rows * pieces, _reported(p, node, bad, nest), node, target, work)


def _checked_index(p: Params, i: Node, at: list[Expr], size: int, strides_of: StridesOf, bad: Register, body: list[Any]) -> Expr:
    source, offset, strides = operand_of(i, strides_of)
    raw = p.add("buffer", i.meta.dtype, ("node", source, offset)).load(offset_of(p, at, list(strides)))
    n = p.integer(size)
    wrapped = builder.select(builder.lt(raw, ir.const(0)), builder.add(raw, n), raw)
    outside = builder.or_(builder.lt(wrapped, ir.const(0)), builder.ge(wrapped, n))
    body.append(Reduce(bad, "or", outside))
    return builder.select(outside, ir.const(0), wrapped)
