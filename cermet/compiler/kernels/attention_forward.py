"""Attention's forward kernel: softmax(Q K^T scale + mask) V by blocks, after Milakov and Gimelshein, "Online normalizer calculation for
softmax" (2018, arXiv:1805.02867), and Dao et al., "FlashAttention" (2022, arXiv:2205.14135).

    for each block of queries of one head:                     the parallel index
        pack scaled Q, queries in lanes
        for each block of keys:
            for each group of queries (the lanes of a tile):
                strip[key][query] = K Q^T                      a few keys at a time
                mask; new maxima; weights = exp(strip - maxima), their sums
                O^T = O^T rescaled + V^T weights
        O = O^T / sums; log of the sums
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llvmlite import ir

from cermet.compiler.kernels.attention_parts import LOG2E, Mask, Parts, pointer_to, power
from cermet.compiler.kernels.irtools import BATCH_SIZES, Emit, Index, KernelEmit, Value, batch_offset, batch_strides, new_module
from cermet.compiler.kernels.microkernel import Tile
from cermet.compiler.llvm.builder import F64, I64, PTR, constant, memory_type
from cermet.compiler.llvm.vmath.common import any_lane
from cermet.compiler.llvm.vmath.exp_log import log
from cermet.dtypes import DType

__all__ = ["FORWARD_PARAMS", "Forward", "forward_module"]

FORWARD_PARAMS = (
    "q", "k", "v", "out", "lse", "mask", "l", "s", "e", "ev", "scale",
    *BATCH_SIZES, *(n for x in ("q", "k", "v", "out", "mask") for n in batch_strides(x)),
    "q_l", "q_e", "k_s", "k_e", "v_s", "v_e", "out_l", "out_e", "mask_l", "mask_s",
    "rows", "keys", "row_blocks", "k_pitch", "v_pitch", "o_size",
    "at_q", "at_o", "at_strip", "at_max", "at_sum", "at_factor", "at_mask", "at_k", "at_v",
)  # fmt: skip


@dataclass(frozen=True)
class Forward:
    """What is compiled into a kernel.

    Attributes:
        tile: the register tile; its columns are the lanes of queries.
        dtype: of the operands and the result.
        causal: query i sees keys up to i.
        mask: how a mask is read, or None.
        unit_q, unit_k, unit_v, unit_out: features lie next to each other.
        copy_k, copy_v: blocks of K or V are copied to scratch before use.
        dims: batch extents, 1 or 3.
    """

    tile: Tile
    dtype: DType
    causal: bool
    mask: Mask | None
    unit_q: bool
    unit_k: bool
    unit_v: bool
    unit_out: bool
    copy_k: bool
    copy_v: bool
    dims: int

    @property
    def key(self) -> str:
        units = "".join("ns"[u] for u in (self.unit_q, self.unit_k, self.unit_v, self.unit_out))
        copies = "".join("rc"[c] for c in (self.copy_k, self.copy_v))
        mask = f" {self.mask.key}" if self.mask else ""
        return f"attention {self.tile.key} {self.dtype.name}{' causal' if self.causal else ''}{mask} {units} {copies} {self.dims}"


def forward_module(target: Any, v: Forward) -> ir.Module:
    """The module whose entry ``attention`` is the kernel of variant ``v``."""
    return _Forward(target, v).build()


class _Forward:
    def __init__(self, target: Any, v: Forward) -> None:
        self.target, self.v = target, v
        self.module = new_module("attention", target)
        p = self.p = Parts(self.module, target, v.dtype, v.tile)
        self.pack_q = p.pack(v.dtype, v.unit_q)
        self.copy_k = p.copy(v.unit_k, "copy_k") if v.copy_k else None
        self.copy_v = p.copy(v.unit_v, "copy_v") if v.copy_v else None
        self.weights = self._weights_function()
        self.put = p.transposing_store(v.unit_out, v.dtype)

    def build(self) -> ir.Module:
        p = self.p
        em = self.em = KernelEmit(self.module, "attention", FORWARD_PARAMS, self.target)
        self.l, self.s, self.e, self.ev, self.o_size = (em.slot(n) for n in ("l", "s", "e", "ev", "o_size"))
        self.rows, self.keys, self.row_blocks = (em.slot(n) for n in ("rows", "keys", "row_blocks"))
        scale = em.slot("scale", F64)
        self.factor = scale if p.acc.itemsize == 8 else em.x.line(p.element, f"fptrunc double {scale.get_reference()} to float")
        names = ("q", "o", "strip", "max", "sum", "factor", "mask", "k", "v")
        self.place = {n: pointer_to(em, f"at_{n}", p.element) for n in names}
        with em.loop(em.begin, em.end) as block:
            batch, number = em.divmod(block, self.row_blocks)
            # The last queries see the most keys: they come first, so that no long block is left for the end.
            number = em.sub(em.sub(self.row_blocks, 1), number)
            q0 = em.mul(number, self.rows)
            count = em.min(self.rows, em.sub(self.l, q0))
            self._block(batch, q0, count)
        em.done()
        return self.module

    def _operand(self, name: str, batch: Value) -> Value:
        em = self.em
        dtype = self.v.mask.dtype if name == "mask" and self.v.mask else self.v.dtype
        return em.at(em.slot(name, PTR), batch_offset(em, name, batch, self.v.dims), memory_type(dtype))

    def _block(self, batch: Value, q0: Value, count: Value) -> None:
        em, p, v, place = self.em, self.p, self.v, self.place
        groups = em.ceil_div(count, p.width)
        q = em.at(self._operand("q", batch), em.mul(q0, em.slot("q_l")), p.memory)
        keys, values = self._operand("k", batch), self._operand("v", batch)
        mask = self._operand("mask", batch) if v.mask else None
        if mask is not None:
            mask = em.at(mask, em.mul(q0, em.slot("mask_l")), memory_type(v.mask.dtype))  # type: ignore[union-attr]
        self._pack_queries(q, count, groups)
        for j, low in (("max", float("-inf")), ("sum", 0.0)):
            p.fill(em, place[j], em.mul(groups, p.width), low)
        stop = em.min(self.s, em.add(q0, count)) if v.causal else self.s
        # At least one turn, so that what sees nothing still becomes zeros.
        with em.loop(0, em.x.smax(em.index(stop), em.index(1)), self.keys) as k0:
            self._key_block(k0, em.min(self.keys, em.sub(stop, k0)), q0, count, groups, keys, values, mask)
        self._finish(batch, q0, count, groups)

    def _pack_queries(self, q: Value, count: Value, groups: Value) -> None:
        em, p = self.em, self.p
        sl, se = em.slot("q_l"), em.slot("q_e")
        with em.loop(0, groups) as g:
            first = em.mul(g, p.width)
            rows = em.min(p.width, em.sub(count, first))
            panel = em.at(self.place["q"], em.mul(first, self.e), p.element)
            em.call(self.pack_q, [em.at(q, em.mul(first, sl), p.memory), sl, se, rows, self.e, panel])
        p.scale(em, self.place["q"], em.mul(em.mul(groups, self.e), self.v.tile.nv), self.factor)

    def _near(
        self, name: str, copy: ir.Function | None, source: Value, k0: Value, keys: Value, columns: Value
    ) -> tuple[Value, Value]:
        """Where a block of K or V is read, and how far apart its rows are."""
        em, p = self.em, self.p
        ss, se = em.slot(f"{name}_s"), em.slot(f"{name}_e")
        at = em.at(source, em.mul(k0, ss), p.memory)
        if copy is None:
            return at, ss
        pitch = em.slot(f"{name}_pitch")
        em.call(copy, [at, ss, se, keys, columns, self.place[name], pitch, constant(p.element, 1.0)])
        return self.place[name], pitch

    def _key_block(
        self, k0: Value, keys: Value, q0: Value, count: Value, groups: Value, ks: Value, vs: Value, mask: Value | None
    ) -> None:
        em, p, v, place = self.em, self.p, self.v, self.place
        k, ldk = self._near("k", self.copy_k, ks, k0, keys, self.e)
        values, ldv = self._near("v", self.copy_v, vs, k0, keys, self.ev)
        first = em.cmp("eq", k0, 0)
        if v.mask and v.mask.form == "row":
            self._mask(mask, k0, keys, 0, 1)
        with em.loop(0, groups) as g:
            lane0 = em.mul(g, p.width)
            here: Index = keys
            relative: Index = 0
            if v.causal:
                # What the group's last query sees of the block; and the group's first query, as a key of the block.
                last = em.min(em.add(lane0, p.width), count)
                here = em.x.smax(em.min(keys, em.sub(em.add(q0, last), k0)), em.index(0))
                relative = em.sub(em.add(q0, lane0), k0)
            if v.mask and v.mask.form == "panel":
                self._mask(mask, k0, keys, lane0, em.min(p.width, em.sub(count, lane0)))
            queries = em.at(place["q"], em.mul(lane0, self.e), p.element)
            p.rows_product(em, k, here, ldk, queries, p.width, self.e, place["strip"], p.width)
            stats = [em.at(place[n], lane0, p.element) for n in ("max", "sum")]
            em.call(self.weights, [place["strip"], here, relative, place["mask"], *stats, place["factor"]])
            out = em.at(place["o"], em.mul(g, self.o_size), p.element)
            self._rescale(out, first)
            p.columns_product(em, values, self.ev, ldv, place["strip"], p.width, here, out, p.width, first)

    def _mask(self, mask: Value | None, k0: Value, keys: Value, lane0: Index, count: Index) -> None:
        em, how = self.em, self.v.mask
        assert how is not None
        sl, ss = em.slot("mask_l"), em.slot("mask_s")
        at = em.at(mask, em.add(em.mul(k0, ss), em.mul(lane0, sl)), memory_type(how.dtype))
        self.p.read_mask(em, how, at, sl, ss, count, keys, self.place["mask"])

    def _rescale(self, out: Value, first: Value) -> None:
        """O^T times the factors that the new maxima ask for, where any is not 1."""
        em, p = self.em, self.p
        factors = p.vectors(em, self.place["factor"])
        changed = None
        for f in factors:
            other = any_lane(em.x, em.x.fcmp("une", f, em.x.f(1.0, f)))
            changed = other if changed is None else em.x.or_(changed, other)
        with em.when(em.x.and_(em.x.not_(first), changed)), em.loop(0, self.ev) as d:
            at = em.at(out, em.mul(d, p.width), p.element)
            p.put(em, [em.x.fmul(o, f) for o, f in zip(p.vectors(em, at), factors, strict=True)], at)

    def _weights_function(self) -> ir.Function:
        """``weights(strip, rows, relative, mask, max, sum, factor)``: scores become weights; maxima and sums move on."""
        p, v = self.p, self.v
        em = Emit(self.module, "weights", [PTR, I64, I64, PTR, PTR, PTR, PTR], self.target, internal=True)
        strip, rows, relative, mask, top, total, factor = em.args
        x = em.x

        def scores(row: Value, seen: bool) -> list[Value]:
            at = em.at(strip, em.mul(row, p.width), p.element)
            values = p.vectors(em, at)
            if v.mask:
                values = p.masked(em, values, v.mask, mask, row)
            if seen:
                low = x.f(float("-inf"), values[0])
                values = [x.select(c, s, low) for c, s in zip(p.visible(em, relative, row), values, strict=True)]
            if v.mask or seen:
                p.put(em, values, at)
            return values

        def greater(seen: bool) -> Any:
            return lambda row, state: [x.select(x.fcmp("ogt", s, m), s, m) for s, m in zip(scores(row, seen), state, strict=True)]

        before = p.vectors(em, top)
        # Keys up to the group's first query are seen by all of it.
        plain = em.x.smax(em.min(rows, em.add(relative, 1)), em.index(0)) if v.causal else rows
        now = em.fold(0, plain, 1, before, greater(False))
        if v.causal:
            now = em.fold(plain, rows, 1, now, greater(True))
        # A query that has seen nothing yet: no maximum to subtract.
        base = [x.select(x.fcmp("oeq", m, x.f(float("-inf"), m)), x.f(0.0, m), m) for m in now]
        moved = [power(x, x.fmul(x.fsub(b, m), x.f(LOG2E, m))) for b, m in zip(before, base, strict=True)]

        def weigh(row: Value, sums: list[Value]) -> list[Value]:
            at = em.at(strip, em.mul(row, p.width), p.element)
            # Subtracted first: a large mask value may not meet its own product's overflow.
            out = [power(x, x.fmul(x.fsub(s, m), x.f(LOG2E, m))) for s, m in zip(p.vectors(em, at), base, strict=True)]
            p.put(em, out, at)
            return [x.fadd(s, w) for s, w in zip(sums, out, strict=True)]

        sums = [x.fmul(s, f) for s, f in zip(p.vectors(em, total), moved, strict=True)]
        sums = em.fold(0, rows, 1, sums, weigh)
        for values, at in ((now, top), (sums, total), (moved, factor)):
            p.put(em, values, at)
        return em.done()

    def _finish(self, batch: Value, q0: Value, count: Value, groups: Value) -> None:
        em, p, place, x = self.em, self.p, self.place, self.em.x
        sl, se = em.slot("out_l"), em.slot("out_e")
        out = em.at(self._operand("out", batch), em.mul(q0, sl), p.memory)
        lse = em.slot("lse", PTR)
        wanted = em.cmp("ne", x.line(I64, f"ptrtoint ptr {lse.get_reference()} to i64"), 0)
        lse = em.at(lse, em.add(em.mul(batch, self.l), q0), p.element)
        with em.loop(0, groups) as g:
            lane0 = em.mul(g, p.width)
            here = em.min(p.width, em.sub(count, lane0))
            sums = p.vectors(em, em.at(place["sum"], lane0, p.element))
            tops = p.vectors(em, em.at(place["max"], lane0, p.element))
            blind = [x.fcmp("oeq", s, x.f(0.0, s)) for s in sums]
            inverse = [x.select(b, s, x.fdiv(x.f(1.0, s), s)) for b, s in zip(blind, sums, strict=True)]
            logs = [x.select(b, x.f(float("inf"), s), x.fadd(m, log(x, s))) for b, s, m in zip(blind, sums, tops, strict=True)]
            p.put(em, inverse, place["factor"])
            source = em.at(place["o"], em.mul(g, self.o_size), p.element)
            to = em.at(out, em.mul(lane0, sl), p.memory)
            em.call(self.put, [source, here, self.ev, to, sl, se, place["factor"]])
            with em.when(wanted):
                p.put(em, logs, place["strip"])
                with em.loop(0, here) as i:
                    value = em.load(em.at(place["strip"], i, p.element), p.acc)
                    em.store(value, em.at(lse, em.add(lane0, i), p.element), p.acc)
