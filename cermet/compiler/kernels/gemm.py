"""The matrix product's kernel: the loops around the register tile.

    for each block (batch, part of k, columns, rows):              the parallel index
        for kb in steps of kc:
            pack A[mc, kc] into scratch                            unless A is read in place
            for each panel of nr columns:
                pack B[kc, nr] into scratch                        unless B is packed already, or read in place
                for each panel of mr rows:
                    tile                                           and ask for a part of the next panel of B

after Goto and van de Geijn, "Anatomy of High-Performance Matrix Multiplication" (2008), with what to pack decided by shape.
All sizes and strides are parameters; `Variant` holds what is compiled in.
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
    batch_offset,
    batch_strides,
    new_module,
)
from cermet.compiler.kernels.microkernel import Tile, tile_function
from cermet.compiler.kernels.packing import pack_function
from cermet.compiler.llvm.builder import BOOL, PTR, constant, memory_type
from cermet.dtypes import DType

__all__ = ["GEMM_PARAMS", "Variant", "gemm_module"]

GEMM_PARAMS = (
    "a", "b", "c", "m", "n", "k", "a_m", "a_k", "b_k", "b_n", "c_m", "c_n",
    *BATCH_SIZES, *batch_strides("a"), *batch_strides("b"), *batch_strides("c"),
    "kc", "m_blocks", "n_blocks", "k_part", "k_parts", "c_part",
    "b_space", "c_space", "stage_step", "m_panels", "n_panels", "j_first", "ahead",
)  # fmt: skip


_NEAR = 64  # k at a time when packing across rows


@dataclass(frozen=True)
class Variant:
    """What is compiled into a kernel.

    Attributes:
        tile: the register tile.
        a, b: dtypes in memory (of B before packing).
        read_a: ``"packed"`` into scratch, or ``"direct"``.
        unit_a: which stride of A is known to be 1: ``"p"`` (rows), ``"k"``, ``"any"``.
        read_b: ``"temp"`` (packed by an earlier launch), ``"packed"`` into scratch panel by panel, or ``"direct"`` (columns
            have unit stride).
        unit_b: as ``unit_a``, for B's columns.
        out: what becomes of the sums.
        direct_c: finished tiles go straight to C, which has the accumulator dtype and columns of unit stride; otherwise by way
            of scratch.
        dims: how many batch extents there are: 1 or 3.
        whole: one block a batch, so no block index to take apart.
    """

    tile: Tile
    a: DType
    b: DType
    out: Output
    read_a: str
    unit_a: str
    read_b: str
    unit_b: str
    direct_c: bool
    dims: int
    whole: bool

    @property
    def key(self) -> str:
        return (
            f"gemm {self.tile.key} {self.a.name} {self.b.name} {self.read_a}-{self.unit_a} {self.read_b}-{self.unit_b}"
            f" {'direct' if self.direct_c else 'staged'} {self.out.key} {self.dims}{' whole' if self.whole else ''}"
        )


def gemm_module(target: Any, v: Variant) -> ir.Module:
    """The module whose entry ``gemm`` is the kernel of variant ``v``."""
    return _Gemm(target, v).build()


class _Gemm:
    """Writes one kernel: the module's helper functions, then the loop nest of the entry."""

    def __init__(self, target: Any, v: Variant) -> None:
        self.target, self.v = target, v
        self.module = new_module("gemm", target)
        acc = v.tile.acc
        self.acc, self.element = acc, acc_type(acc)
        packed_a = v.read_a == "packed"
        # Where A is read in place all address registers are taken by its rows; there are few columns then, and B stays near.
        self.fetches = packed_a and v.read_b == "temp"
        mode = "panel" if packed_a else "k" if v.unit_a == "k" else "any"
        self.tile = tile_function(self.module, target, v.tile, acc, acc, mode, ahead=self.fetches)
        self.pack_a = pack_function(self.module, target, v.a, v.tile.mr, v.unit_a, "pack_a") if packed_a else None
        self.pack_b = None if v.read_b == "temp" else pack_function(self.module, target, v.b, v.tile.nr, v.unit_b, "pack_b")
        self.finish = Finish(self.module, target, v.out, v.tile.lanes)

    def build(self) -> ir.Module:
        em = self.em = KernelEmit(self.module, "gemm", (*GEMM_PARAMS, *self.v.out.params), self.target)
        self.finish.prepare(em)
        self.m, self.n, self.k, self.kc = (em.slot(p) for p in ("m", "n", "k", "kc"))
        self.a_m, self.a_k, self.b_k, self.b_n, self.c_m, self.c_n = (
            em.slot(p) for p in ("a_m", "a_k", "b_k", "b_n", "c_m", "c_n")
        )
        self.stage_step, self.n_panels = em.slot("stage_step"), em.slot("n_panels")
        self.ahead = em.slot("ahead") if self.fetches else None
        self.pa, self.pb, self.pc = (em.slot(p, PTR) for p in "abc")
        self.scratch_a = em.scratch
        self.scratch_b = em.at(em.scratch, em.slot("b_space"), ir.IntType(8))
        self.scratch_c = em.at(em.scratch, em.slot("c_space"), ir.IntType(8))
        with em.loop(em.begin, em.end) as block:
            self._block(block)
        em.done()
        return self.module

    def _block(self, block: Value) -> None:
        """Take the block's index apart and find where its operands begin."""
        em, v = self.em, self.v
        j_first = em.slot("j_first")
        if v.whole:
            batch, part, j_here, i0 = block, 0, 0, 0
            self.rows, self.cols = self.m, self.n
        else:
            rest, im = em.divmod(block, em.slot("m_blocks"))
            rest, jn = em.divmod(rest, em.slot("n_blocks"))
            batch, part = em.divmod(rest, em.slot("k_parts"))
            i0, self.rows = self._span(im, "m", v.tile.mr, self.m)
            j_here, self.cols = self._span(jn, "n", v.tile.nr, em.sub(self.n, j_first))
        j0 = em.add(j_first, j_here)
        k_part = em.slot("k_part")
        k0 = em.mul(part, k_part)
        k_here = em.min(k_part, em.sub(self.k, k0))
        self.origin = (batch, i0, j0)
        a_offset = em.add(em.mul(i0, self.a_m), em.mul(k0, self.a_k))
        self.a0 = em.at(self.pa, em.add(batch_offset(em, "a", batch, v.dims), a_offset), memory_type(v.a))
        if v.read_b == "temp":
            panel = em.add(em.mul(batch, self.n_panels), em.div(j_here, v.tile.nr))
            self.b0 = em.at(self.pb, em.mul(em.add(em.mul(panel, self.k), k0), v.tile.nr), self.element)
        else:
            b_offset = em.add(em.mul(j0, self.b_n), em.mul(k0, self.b_k))
            self.b0 = em.at(self.pb, em.add(batch_offset(em, "b", batch, v.dims), b_offset), memory_type(v.b))
        c_offset = em.add(em.add(em.mul(i0, self.c_m), em.mul(j0, self.c_n)), em.mul(part, em.slot("c_part")))
        self.c0 = em.at(self.pc, em.add(batch_offset(em, "c", batch, v.dims), c_offset), memory_type(v.out.dtype))
        # At least one turn, so that an empty sum still writes its zeros.
        with em.loop(0, em.x.smax(k_here, em.index(1)), self.kc) as kb:
            self._k_block(kb, em.min(self.kc, em.sub(k_here, kb)), em.cmp("sge", em.add(kb, self.kc), k_here))

    def _span(self, number: Value, dim: str, step: int, size: Index) -> tuple[Index, Index]:
        """First element and length of block ``number`` along ``dim``: panels are dealt out as evenly as they come."""
        em = self.em
        panels, blocks = em.slot(f"{dim}_panels"), em.slot(f"{dim}_blocks")
        first = em.div(em.mul(number, panels), blocks)
        behind = em.div(em.mul(em.add(number, 1), panels), blocks)
        start = em.mul(first, step)
        return start, em.sub(em.min(em.mul(behind, step), size), start)

    def _k_block(self, kb: Value, k: Value, last: Value) -> None:
        em, v = self.em, self.v
        a = em.at(self.a0, em.mul(kb, self.a_k), memory_type(v.a))
        first = em.cmp("eq", kb, 0)
        if self.pack_a is not None:
            self._pack_a(a, k)
        with em.loop(0, self.cols, v.tile.nr) as j:
            cols = em.min(v.tile.nr, em.sub(self.cols, j))
            b, ldb = self._b_panel(kb, k, j, cols)
            with em.loop(0, self.rows, v.tile.mr) as i:
                rows = em.min(v.tile.mr, em.sub(self.rows, i))
                if self.pack_a is not None:
                    args_a: list[Index] = [em.at(self.scratch_a, em.mul(i, self.kc), self.element), rows, 0, 0]
                else:
                    args_a = [em.at(a, em.mul(i, self.a_m), memory_type(v.a)), rows, self.a_m, self.a_k]
                self._tile(i, j, rows, cols, [*args_a, b, ldb, k, *self._next(b, k, i)], first, last)

    def _pack_a(self, a: Value, k: Value) -> None:
        em, v, mr = self.em, self.v, self.v.tile.mr

        def panels(k0: Index, count: Value) -> None:
            with em.loop(0, self.rows, mr) as i:
                source = em.at(a, em.add(em.mul(i, self.a_m), em.mul(k0, self.a_k)), memory_type(v.a))
                panel = em.at(self.scratch_a, em.add(em.mul(i, self.kc), em.mul(k0, mr)), self.element)
                em.call(self.pack_a, [source, self.a_m, self.a_k, em.min(mr, em.sub(self.rows, i)), count, panel])

        if v.unit_a == "k":
            panels(0, k)
            return
        # A panel takes part of each cache line: come back for the rest while it is still near. (Not so above, where packing may
        # write past a panel's end and panels must be finished in order.)
        with em.loop(0, k, _NEAR) as k0:
            panels(k0, em.min(_NEAR, em.sub(k, k0)))

    def _b_panel(self, kb: Value, k: Value, j: Value, cols: Value) -> tuple[Value, Index]:
        """Where the tile finds B's columns from ``j`` on, and how far it is from one k to the next."""
        em, v = self.em, self.v
        nr = v.tile.nr
        if v.read_b == "temp":
            # j is a multiple of nr, so panel number times panel size is j times k.
            return em.at(self.b0, em.add(em.mul(j, self.k), em.mul(kb, nr)), self.element), nr
        source = em.at(self.b0, em.add(em.mul(kb, self.b_k), em.mul(j, self.b_n)), memory_type(v.b))

        def pack() -> None:
            em.call(self.pack_b, [source, self.b_n, self.b_k, cols, k, self.scratch_b])

        if v.read_b == "packed":
            pack()
            return self.scratch_b, nr
        whole = em.cmp("eq", cols, nr)
        with em.when(em.x.not_(whole)):
            pack()
        return em.x.select(whole, source, self.scratch_b), em.select(whole, self.b_k, nr)

    def _next(self, b: Value, k: Value, i: Value) -> list[Index]:
        """Where the tile asks for what comes after this panel of B: each tile of the panel for its part."""
        em, tile = self.em, self.v.tile
        if self.ahead is None:
            return []
        # The next panel of the same products lies a panel of all products further on.
        after = em.at(b, em.mul(self.k, tile.nr), self.element)
        return [em.at(after, em.mul(em.div(i, tile.mr), em.mul(self.ahead, k)), self.element), self.ahead]

    def _tile(self, i: Value, j: Value, rows: Value, cols: Value, operands: list[Index], first: Value, last: Value) -> None:
        em, v = self.em, self.v
        tile = v.tile
        batch, i0, j0 = self.origin
        at = (batch, em.add(i0, i), em.add(j0, j))
        c = em.at(self.c0, em.add(em.mul(i, self.c_m), em.mul(j, self.c_n)), memory_type(v.out.dtype))
        true = constant(BOOL, 1)
        if not v.direct_c:
            stage = em.at(self.scratch_c, em.mul(self._tile_number(i, j), self.stage_step), self.element)
            em.call(self.tile, [*operands, stage, tile.nr, first])
            with em.when(last):
                self.finish.call(em, stage, tile.nr, rows, cols, at, (c, self.c_m, self.c_n), true)
            return

        def edge() -> None:
            em.call(self.tile, [*operands, self.scratch_c, tile.nr, true])
            self.finish.call(em, self.scratch_c, tile.nr, rows, cols, at, (c, self.c_m, self.c_n), first)

        full = em.x.and_(em.cmp("eq", rows, tile.mr), em.cmp("eq", cols, tile.nr))
        em.choose(full, lambda: em.call(self.tile, [*operands, c, self.c_m, first]), edge)

    def _tile_number(self, i: Value, j: Value) -> Index:
        em, tile = self.em, self.v.tile
        per_column = em.ceil_div(self.rows, tile.mr)
        return em.add(em.mul(em.div(j, tile.nr), per_column), em.div(i, tile.mr))
