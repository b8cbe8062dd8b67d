"""Matrix times vector, and the sum of partial products: kernels that are bound by memory, not by arithmetic.

``y[i] = sum over k of M[i, k] * x[k]`` in two forms, by which stride of M is 1. Along k (`dot`): a few rows at a time, each a
stream, lanes keep partial sums that a fixed tree joins. Along i (`axpy`): a strip of y stays in scratch while a few k at a
time are added to it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llvmlite import ir

from cermet.compiler.kernels.finish import Finish, Output
from cermet.compiler.kernels.irtools import (
    BATCH_SIZES,
    Index,
    KernelEmit,
    Value,
    acc_type,
    accumulator,
    batch_offset,
    batch_strides,
    new_module,
)
from cermet.compiler.llvm.builder import BOOL, I8, PTR, constant, memory_type
from cermet.dtypes import DType

__all__ = ["COMBINE_PARAMS", "ROWS", "SKINNY_PARAMS", "SkinnyVariant", "combine_module", "skinny_module"]

SKINNY_PARAMS = (
    "a", "b", "c", "m", "k", "a_m", "a_k", "b_k", "c_m",
    *BATCH_SIZES, *batch_strides("a"), *batch_strides("b"), *batch_strides("c"),
    "mc", "m_blocks", "k_part", "k_parts", "c_part", "x_space",
)  # fmt: skip
ROWS = 4  # rows of a dot at a time: as many streams as every prefetcher follows, and enough sums in flight


@dataclass(frozen=True)
class SkinnyVariant:
    """What is compiled into a matrix-vector kernel.

    Attributes:
        dtype: of matrix and vector in memory.
        form: ``"dot"`` or ``"axpy"``.
        unit_x: the vector has unit stride (and needs no copy).
        out: what becomes of the sums; they leave as one row.
        dims: batch extents, 1 or 3.
    """

    dtype: DType
    form: str
    unit_x: bool
    out: Output
    dims: int

    @property
    def key(self) -> str:
        return f"skinny {self.dtype.name} {self.form}{' unit' if self.unit_x else ''} {self.out.key} {self.dims}"


def skinny_module(target: Any, v: SkinnyVariant) -> ir.Module:
    """The module whose entry ``skinny`` is the kernel of variant ``v``."""
    return _Skinny(target, v).build()


class _Skinny:
    def __init__(self, target: Any, v: SkinnyVariant) -> None:
        self.target, self.v = target, v
        self.acc = accumulator(v.dtype)
        self.element, self.memory = acc_type(self.acc), memory_type(v.dtype)
        self.lanes = target.lanes(self.acc.itemsize)
        self.module = new_module("skinny", target)
        self.finish = Finish(self.module, target, v.out, self.lanes)

    def build(self) -> ir.Module:
        v = self.v
        em = self.em = KernelEmit(self.module, "skinny", (*SKINNY_PARAMS, *v.out.params), self.target)
        self.finish.prepare(em)
        self.sm, self.sk = em.slot("a_m"), em.slot("a_k")
        k, m, mc, k_part, c_m = (em.slot(s) for s in ("k", "m", "mc", "k_part", "c_m"))
        pa, pb, pc = (em.slot(p, PTR) for p in "abc")
        # Scratch: the strip of sums, then the copy of x.
        copy = em.at(em.scratch, em.slot("x_space"), I8)
        with em.loop(em.begin, em.end) as block:
            rest, im = em.divmod(block, em.slot("m_blocks"))
            batch, part = em.divmod(rest, em.slot("k_parts"))
            i0, k0 = em.mul(im, mc), em.mul(part, k_part)
            self.rows, self.k = em.min(mc, em.sub(m, i0)), em.min(k_part, em.sub(k, k0))
            offset = em.add(em.mul(i0, self.sm), em.mul(k0, self.sk))
            self.a = em.at(pa, em.add(batch_offset(em, "a", batch, v.dims), offset), self.memory)
            x = em.at(pb, em.add(batch_offset(em, "b", batch, v.dims), em.mul(k0, em.slot("b_k"))), self.memory)
            self._vector(x, copy)
            (self._dot if v.form == "dot" else self._axpy)()
            offset = em.add(em.mul(i0, c_m), em.mul(part, em.slot("c_part")))
            c = em.at(pc, em.add(batch_offset(em, "c", batch, v.dims), offset), memory_type(v.out.dtype))
            self.finish.call(em, em.scratch, 0, 1, self.rows, (batch, 0, i0), (c, 0, c_m), constant(BOOL, 1))
        em.done()
        return self.module

    def _vector(self, x: Value, copy: Value) -> None:
        """The vector with unit stride in the accumulator dtype: itself, or a copy in scratch."""
        if self.v.unit_x and self.v.dtype is self.acc:
            self.x = x
            return
        em, step = self.em, 1 if self.v.unit_x else self.em.slot("b_k")
        with em.loop(0, self.k) as kk:
            em.store(em.load(em.at(x, em.mul(kk, step), self.memory), self.v.dtype), em.at(copy, kk, self.element), self.acc)
        self.x = copy

    def _dot(self) -> None:
        em = self.em
        last = em.sub(self.rows, 1)
        with em.loop(0, self.rows, ROWS) as i:
            rows = [em.at(self.a, em.mul(em.min(em.add(i, r), last), self.sm), self.memory) for r in range(ROWS)]
            sums = self._dots(rows)
            for r, value in enumerate(sums):
                # Past the last row this repeats its sum in the slack behind the strip.
                em.store(value, em.at(em.scratch, em.add(i, r), self.element), self.acc)

    def _dots(self, rows: list[Value]) -> list[Value]:
        """The products of some rows with x. Two vectors of partial sums a row, then one, then scalars."""
        em, lanes = self.em, self.lanes

        def step(kk: Index, state: list[Value], width: int, count: int) -> list[Value]:
            out = []
            for u in range(count):
                at = em.add(kk, u * width)
                x = em.load(em.at(self.x, at, self.element), self.acc, width)
                for r, row in enumerate(rows):
                    value = em.load(em.at(row, at, self.memory), self.v.dtype, width)
                    out.append(em.mul_add(value, x, state[u * len(rows) + r]))
            return out

        zeros = [em.zero(self.acc, lanes)] * (2 * len(rows))
        end2, end1 = (em.x.and_(self.k, em.index(-w)) for w in (2 * lanes, lanes))
        state = em.fold(0, end2, 2 * lanes, zeros, lambda kk, s: step(kk, s, lanes, 2))
        state = [em.plus(a, b) for a, b in zip(state[: len(rows)], state[len(rows) :], strict=True)]
        state = em.fold(end2, end1, lanes, state, lambda kk, s: step(kk, s, lanes, 1))
        scalars = [self._joined(s) for s in state]
        return em.fold(end1, self.k, 1, scalars, lambda kk, s: step(kk, s, 1, 1))

    def _joined(self, vector: Value) -> Value:
        """The sum of the lanes, halves added to halves."""
        em, width = self.em, self.lanes
        while width > 2:
            width //= 2
            low = em.x.shuffle(vector, None, list(range(width)))
            vector = em.plus(low, em.x.shuffle(vector, None, list(range(width, 2 * width))))
        return em.plus(em.x.extract(vector, 0), em.x.extract(vector, 1)) if width == 2 else vector

    def _axpy(self) -> None:
        em, lanes = self.em, self.lanes
        end = em.x.and_(self.rows, em.index(-lanes))
        with em.loop(0, self.rows, lanes) as i:
            # Whole vectors: the slack behind the strip takes what is too much.
            em.store(em.zero(self.acc, lanes), em.at(em.scratch, i, self.element), self.acc)
        many = 8
        whole = em.x.and_(self.k, em.index(-many))
        for start, stop, count in ((0, whole, many), (whole, self.k, 1)):
            with em.loop(start, stop, count) as kk:
                columns = [em.at(self.a, em.mul(em.add(kk, u), self.sk), self.memory) for u in range(count)]
                xs = [em.load(em.at(self.x, em.add(kk, u), self.element), self.acc) for u in range(count)]
                self._add_columns(columns, xs, 0, end, lanes)
                self._add_columns(columns, xs, end, self.rows, 1)

    def _add_columns(self, columns: list[Value], xs: list[Value], start: Index, stop: Index, width: int) -> None:
        em = self.em
        spread = [em.broadcast(x, width) for x in xs]
        with em.loop(start, stop, width) as i:
            place = em.at(em.scratch, i, self.element)
            total = em.load(place, self.acc, width)
            for column, x in zip(columns, spread, strict=True):
                total = em.mul_add(em.load(em.at(column, i, self.memory), self.v.dtype, width), x, total)
            em.store(total, place, self.acc)


COMBINE_PARAMS = ("src", "c", "n", "c_m", "c_n", *BATCH_SIZES, *batch_strides("c"), "rows", "nc", "n_blocks", "parts", "part")


def combine_module(target: Any, out: Output, dims: int) -> ir.Module:
    """The kernel ``combine``: ``C[batch, m, n] = sum over parts of src[part][batch][m][n]``, in order.

    Block: (batch, row, ``nc`` columns).
    """
    module = new_module("combine", target)
    lanes, element = target.lanes(out.acc.itemsize), acc_type(out.acc)
    finish = Finish(module, target, out, lanes)
    em = KernelEmit(module, "combine", (*COMBINE_PARAMS, *out.params), target)
    finish.prepare(em)
    src, c = em.slot("src", PTR), em.slot("c", PTR)
    n, c_m, c_n, rows, nc, parts, part = (em.slot(s) for s in ("n", "c_m", "c_n", "rows", "nc", "parts", "part"))

    def add_up(source: Value, start: Index, stop: Index, width: int) -> None:
        with em.loop(start, stop, width) as j:
            here = em.at(source, j, element)

            def body(p: Value, state: list[Value]) -> list[Value]:
                return [em.plus(state[0], em.load(em.at(here, em.mul(p, part), element), out.acc, width))]

            [total] = em.fold(1, parts, 1, [em.load(here, out.acc, width)], body)
            em.store(total, em.at(em.scratch, j, element), out.acc)

    with em.loop(em.begin, em.end) as block:
        row, jn = em.divmod(block, em.slot("n_blocks"))
        batch, i = em.divmod(row, rows)
        j0 = em.mul(jn, nc)
        cols = em.min(nc, em.sub(n, j0))
        source = em.at(src, em.add(em.mul(row, n), j0), element)
        whole = em.x.and_(cols, em.index(-lanes))
        add_up(source, 0, whole, lanes)
        add_up(source, whole, cols, 1)
        offset = em.add(em.add(em.mul(i, c_m), em.mul(j0, c_n)), batch_offset(em, "c", batch, dims))
        place = em.at(c, offset, memory_type(out.dtype))
        finish.call(em, em.scratch, 0, 1, cols, (batch, i, j0), (place, c_m, c_n), constant(BOOL, 1))
    em.done()
    return module
