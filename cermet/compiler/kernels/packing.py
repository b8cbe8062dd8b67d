"""Packing: a strided operand becomes panels that the register tile reads with unit stride.

A panel holds ``width`` rows of A (or columns of B) interleaved: for each k the ``width`` values next to each other. Both
operands look alike from here: an outer index ``p`` (row of A, column of B) and the summed index ``k``, each with its stride.
Transposing and casting happen on the way and cost next to nothing. Where a panel reaches over the operand's edge it is filled
with zeros or its last column again: with what is at hand, because what a tile computes there is never stored.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from cermet.compiler.kernels.irtools import (
    BATCH_SIZES,
    Emit,
    Index,
    KernelEmit,
    Value,
    acc_type,
    accumulator,
    batch_offset,
    batch_strides,
    new_module,
)
from cermet.compiler.llvm.builder import I64, PTR, LaneBuilder, memory_type, vector
from cermet.dtypes import DType

__all__ = ["PACK_PARAMS", "pack_function", "pack_module"]


def pack_function(module: ir.Module, target: Any, dtype: DType, width: int, mode: str, name: str) -> ir.Function:
    """``pack(src, sp, sk, count, k, dst)``: one panel of ``k`` times ``width`` from ``count`` (1 to ``width``) rows.

    Up to one vector beyond the panel's end is overwritten too (the transposing loop stores whole vectors), so panels must be
    written in ascending order and the last one needs that much room after it.

    Args:
        mode: which stride is known to be 1: ``"p"``, ``"k"`` or ``"any"``.
    """
    em = Emit(module, name, [PTR, I64, I64, I64, I64, PTR], target, internal=True)
    src, sp, sk, count, k, dst = em.args
    if mode == "p":
        em.choose(
            em.cmp("eq", count, width),
            lambda: _copy_rows(em, dtype, width, src, sk, k, dst),
            lambda: _copy_edge(em, dtype, width, src, sk, count, k, dst),
        )
    elif mode == "k":
        lanes = target.lanes(accumulator(dtype).itemsize)
        whole = em.x.and_(k, em.index(-lanes))
        _transpose(em, dtype, width, lanes, src, sp, count, whole, dst)
        _tail(em, dtype, width, src, sp, count, whole, k, dst)
    else:
        _gather(em, dtype, width, src, sp, sk, count, 0, k, dst)
    return em.done()


def _copy_rows(em: Emit, dtype: DType, width: int, src: Value, sk: Index, k: Value, dst: Value) -> None:
    """Panels along the unit stride: a vector copy for each k."""
    acc = accumulator(dtype)
    from_, to = memory_type(dtype), memory_type(acc)
    with em.loop(0, k) as kk:
        value = em.load(em.at(src, em.mul(kk, sk), from_), dtype, width)
        em.store(value, em.at(dst, em.mul(kk, width), to), acc)


def _copy_edge(em: Emit, dtype: DType, width: int, src: Value, sk: Index, count: Value, k: Value, dst: Value) -> None:
    """As `_copy_rows` where fewer than ``width`` columns exist."""
    acc = accumulator(dtype)
    lanes = em.target.lanes(acc.itemsize)
    if not em.target.has_masked or dtype.itemsize < 4 or width % lanes:
        _gather(em, dtype, width, src, 1, sk, count, 0, k, dst)
        return
    from_, to = memory_type(dtype), memory_type(acc)
    masks = [em.lane_mask(lanes, em.sub(count, first)) for first in range(0, width, lanes)]
    with em.loop(0, k) as kk:
        row, out = em.at(src, em.mul(kk, sk), from_), em.at(dst, em.mul(kk, width), to)
        for j, mask in enumerate(masks):
            em.store(em.load_masked(em.at(row, j * lanes, from_), dtype, lanes, mask), em.at(out, j * lanes, to), acc)


def _gather(
    em: Emit, dtype: DType, width: int, src: Value, sp: Index, sk: Index, count: Value, k0: Index, k: Value, dst: Value
) -> None:
    """Any strides, element by element."""
    acc = accumulator(dtype)
    from_, to = memory_type(dtype), memory_type(acc)
    last = em.sub(count, 1)
    offsets = [em.mul(em.min(i, last), sp) for i in range(width)]
    with em.loop(k0, k) as kk:
        row = em.at(src, em.mul(kk, sk), from_)
        out = em.at(dst, em.mul(kk, width), to)
        for i, offset in enumerate(offsets):
            em.store(em.load(em.at(row, offset, from_), dtype), em.at(out, i, to), acc)


def _tail(em: Emit, dtype: DType, width: int, src: Value, sp: Value, count: Value, k0: Value, k: Value, dst: Value) -> None:
    """What `_transpose` leaves: fewer k than a vector has lanes. Small code rather than fast code."""
    acc = accumulator(dtype)
    from_, to = memory_type(dtype), memory_type(acc)
    with em.loop(k0, k) as kk, em.loop(0, width) as i:
        offset = em.mul(em.min(i, em.sub(count, 1)), sp)
        value = em.load(em.at(src, em.add(offset, kk), from_), dtype)
        em.store(value, em.at(dst, em.add(em.mul(kk, width), i), to), acc)


def _transpose(em: Emit, dtype: DType, width: int, lanes: int, src: Value, sp: Value, count: Value, k: Value, dst: Value) -> None:
    """Rows of unit stride along k: square blocks of ``lanes`` are transposed in registers."""
    acc = accumulator(dtype)
    from_, to = memory_type(dtype), memory_type(acc)
    last = em.sub(count, 1)

    def strip(first: Index, rows_here: int) -> None:
        offsets = [em.mul(em.min(em.add(first, i), last), sp) for i in range(rows_here)]
        with em.loop(0, k, lanes) as kk:
            columns = em.at(src, kk, from_)
            out = em.at(em.at(dst, em.mul(kk, width), to), first, to)
            rows = [em.load(em.at(columns, offset, from_), dtype, lanes) for offset in offsets]
            rows += [em.x.poison(vector(acc_type(acc), lanes))] * (lanes - rows_here)
            # A panel narrower than a vector: each store spills into the next k's place, which is stored after it.
            for step, value in enumerate(transposed(em.x, rows)):
                em.store(
                    value if rows_here == lanes or not whole else first_lanes(em.x, value, rows_here),
                    em.at(out, step * width, to),
                    acc,
                )

    whole = width // lanes * lanes
    if whole:
        with em.loop(0, whole, lanes) as first:
            strip(first, lanes)
    if width > whole:
        strip(whole, width - whole)


def first_lanes(x: LaneBuilder, value: Value, count: int) -> Value:
    """The first lanes of a vector."""
    return x.extract(value, 0) if count == 1 else x.shuffle(value, None, list(range(count)))


def transposed(x: LaneBuilder, rows: list[Value]) -> list[Value]:
    """The transpose of a square block of vectors.

    Stage by stage, pairs at a distance of 1, 2, 4 … exchange the halves of their blocks. Shuffles that stay within 128 bits
    come first: those are cheap on every machine.
    """
    n = len(rows)
    distance = 1
    while distance < n:
        out = list(rows)
        for i in range(n):
            if i & distance:
                continue
            a, b = rows[i], rows[i + distance]
            low = [lane if not lane & distance else n + lane - distance for lane in range(n)]
            high = [lane + distance if not lane & distance else n + lane for lane in range(n)]
            out[i], out[i + distance] = x.shuffle(a, b, low), x.shuffle(a, b, high)
        rows = out
        distance *= 2
    return rows


PACK_PARAMS = (
    "src", "dst", "count", "k", "sp", "sk", *BATCH_SIZES, *batch_strides("src"), "panels", "groups", "group", "chunks", "chunk",
)  # fmt: skip


def pack_module(target: Any, dtype: DType, width: int, mode: str, dims: int) -> ir.Module:
    """The kernel ``pack`` that packs a whole operand: ``dst[batch][panel][k][width]``.

    Block: (batch, group of ``group`` panels, chunk of ``chunk`` k). Within a block the same few rows of memory are read panel
    after panel, so that their pages stay known to the processor.
    """
    module = new_module("pack", target)
    one = pack_function(module, target, dtype, width, mode, "panel")
    em = KernelEmit(module, "pack", PACK_PARAMS, target)
    src, dst = em.slot("src", PTR), em.slot("dst", PTR)
    count, k, sp, sk, panels, group, chunk = (em.slot(s) for s in ("count", "k", "sp", "sk", "panels", "group", "chunk"))
    from_, to = memory_type(dtype), memory_type(accumulator(dtype))
    with em.loop(em.begin, em.end) as block:
        rest, ichunk = em.divmod(block, em.slot("chunks"))
        batch, igroup = em.divmod(rest, em.slot("groups"))
        k0 = em.mul(ichunk, chunk)
        here = em.min(chunk, em.sub(k, k0))
        source = em.at(src, em.add(batch_offset(em, "src", batch, dims), em.mul(k0, sk)), from_)
        first = em.mul(igroup, group)
        with em.loop(first, em.min(panels, em.add(first, group))) as panel:
            p0 = em.mul(panel, width)
            place = em.mul(em.add(em.mul(em.add(em.mul(batch, panels), panel), k), k0), width)
            rows = em.min(width, em.sub(count, p0))
            em.call(one, [em.at(source, em.mul(p0, sp), from_), sp, sk, rows, here, em.at(dst, place, to)])
    em.done()
    return module
