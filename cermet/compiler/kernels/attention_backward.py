"""The gradients of attention. The weights are computed again from the scores and the logarithms of their sums, block by block, as in Dao
et al., "FlashAttention" (2022, arXiv:2205.14135), section 3 and appendix B.

    for each chunk of queries of one head:                     the parallel index
        dK, dV = 0                                             of this chunk
        for each block of its queries:
            pack Q scaled and dO, as rows and with queries in lanes; delta = sums of dO * O
            for each block of keys:
                for each group of queries:
                    P[key][query] = exp(K Q^T - lse), dS = P (V dO^T - delta)
                    dQ^T += K^T dS
                for each few keys:
                    dV += P dO, dK += dS Q
            dQ = dQ^T scaled

One chunk adds to dK and dV by itself; several write parts, which another kernel adds up in order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llvmlite import ir

from cermet.compiler.kernels.attention_parts import LOG2E, Mask, Parts, pointer_to, power
from cermet.compiler.kernels.irtools import BATCH_SIZES, Emit, Index, KernelEmit, Value, batch_offset, batch_strides, new_module
from cermet.compiler.kernels.microkernel import Tile
from cermet.compiler.llvm.builder import BOOL, F64, I64, PTR, constant, memory_type
from cermet.dtypes import DType

__all__ = ["BACKWARD_PARAMS", "Backward", "backward_module"]

_OPERANDS = ("q", "k", "v", "g", "out", "mask", "dq", "dk", "dv")
BACKWARD_PARAMS = (
    *_OPERANDS, "lse", "dmask", "l", "s", "e", "ev", "scale",
    *BATCH_SIZES, *(n for x in _OPERANDS for n in batch_strides(x)),
    "q_l", "q_e", "k_s", "k_e", "v_s", "v_e", "g_l", "g_e", "out_l", "out_e", "mask_l", "mask_s", "dq_l", "dq_e", "dk_s", "dv_s",
    "rows", "keys", "chunks", "span", "dk_part", "dv_part", "e_pitch", "v_pitch", "o_size",
    "at_qt", "at_q", "at_gt", "at_g", "at_dq", "at_p", "at_ds", "at_lse", "at_delta", "at_scale", "at_mask", "at_tile", "at_k", "at_v",
)  # fmt: skip


@dataclass(frozen=True)
class Backward:
    """What is compiled into a kernel.

    Attributes:
        tile, dtype, causal, mask, dims: as in `Forward`.
        units: which of q, k, v, g, out, dq have features next to each other.
        copy_k, copy_v: blocks of K or V are copied to scratch before use.
        wants: which gradients are written: some of ``"q"``, ``"k"``, ``"v"``, ``"mask"``.
    """

    tile: Tile
    dtype: DType
    causal: bool
    mask: Mask | None
    units: frozenset[str]
    copy_k: bool
    copy_v: bool
    wants: frozenset[str]
    dims: int

    @property
    def key(self) -> str:
        units, wants = " ".join(sorted(self.units)), " ".join(sorted(self.wants))
        copies = "".join("rc"[c] for c in (self.copy_k, self.copy_v))
        mask = f" {self.mask.key}" if self.mask else ""
        causal = " causal" if self.causal else ""
        return f"attention_grad {self.tile.key} {self.dtype.name}{causal}{mask} ({units}) {copies} ({wants}) {self.dims}"


def backward_module(target: Any, v: Backward) -> ir.Module:
    """The module whose entry ``attention_grad`` is the kernel of variant ``v``."""
    return _Backward(target, v).build()


class _Backward:
    def __init__(self, target: Any, v: Backward) -> None:
        self.target, self.v = target, v
        self.module = new_module("attention_grad", target)
        p = self.p = Parts(self.module, target, v.dtype, v.tile)
        self.copies = {unit: p.copy(unit, f"copy_{int(unit)}") for unit in (True, False)}
        self.deltas = self._deltas_function()
        self.grads = self._grads_function()
        self.add_edge = self._edge_function() if v.wants & {"k", "v"} else None
        self.put = p.transposing_store("dq" in v.units, v.dtype) if "q" in v.wants else None
        self.scores = bool(v.wants - {"v"})  # whether dS is needed

    def build(self) -> ir.Module:
        p = self.p
        em = self.em = KernelEmit(self.module, "attention_grad", BACKWARD_PARAMS, self.target)
        self.l, self.s, self.e, self.ev, self.o_size = (em.slot(n) for n in ("l", "s", "e", "ev", "o_size"))
        self.rows, self.keys, self.span, self.e_pitch, self.v_pitch = (
            em.slot(n) for n in ("rows", "keys", "span", "e_pitch", "v_pitch")
        )
        scale = em.slot("scale", F64)
        self.factor = scale if p.acc.itemsize == 8 else em.x.line(p.element, f"fptrunc double {scale.get_reference()} to float")
        names = [n for n in BACKWARD_PARAMS if n.startswith("at_")]
        self.place = {n[3:]: pointer_to(em, n, p.element) for n in names}
        p.put(em, [em.broadcast(self.factor, p.lanes)] * p.tile.nv, self.place["scale"])
        with em.loop(em.begin, em.end) as block:
            batch, chunk = em.divmod(block, em.slot("chunks"))
            first = em.mul(chunk, self.span)
            self._chunk(batch, chunk, first, em.min(self.l, em.add(first, self.span)))
        em.done()
        return self.module

    def _operand(self, name: str, batch: Value, dtype: DType | None = None) -> Value:
        em = self.em
        return em.at(em.slot(name, PTR), batch_offset(em, name, batch, self.v.dims), memory_type(dtype or self.v.dtype))

    def _chunk(self, batch: Value, chunk: Value, first: Value, last: Value) -> None:
        em, p, v = self.em, self.p, self.v
        self.at = {n: self._operand(n, batch) for n in ("q", "k", "v", "g", "out", "dq")}
        if v.mask:
            self.at["mask"] = self._operand("mask", batch, v.mask.dtype)
        for name, columns in (("k", self.e), ("v", self.ev)):
            if name in v.wants:
                base = em.at(self._operand(f"d{name}", batch, p.acc), em.mul(chunk, em.slot(f"d{name}_part")), p.element)
                self.at[f"d{name}"] = base
                with em.loop(0, self.s) as key:
                    self._zero(em.at(base, em.mul(key, em.slot(f"d{name}_s")), p.element), columns)
        if "mask" in v.wants:
            pairs = em.mul(em.mul(batch, self.l), self.s)
            self.at["dmask"] = em.at(em.slot("dmask", PTR), pairs, p.element)
            if v.causal:
                with em.loop(0, self.s) as key:
                    row = em.at(self.at["dmask"], em.add(em.mul(key, self.l), first), p.element)
                    self._zero(row, em.sub(last, first))
        self.lse = em.at(em.slot("lse", PTR), em.mul(batch, self.l), p.element)
        with em.loop(first, last, self.rows) as q0:
            self._row_block(q0, em.min(self.rows, em.sub(last, q0)))

    def _zero(self, row: Value, columns: Index) -> None:
        em, p = self.em, self.p
        whole = em.x.and_(em.index(columns), em.index(-p.lanes))
        for start, stop, width in ((0, whole, p.lanes), (whole, columns, 1)):
            with em.loop(start, stop, width) as c:
                em.store(em.zero(p.acc, width), em.at(row, c, p.element), p.acc)

    # -- queries ---------------------------------------------------------------------------------------------------

    def _row_block(self, q0: Value, count: Value) -> None:
        em, p, v, place = self.em, self.p, self.v, self.place
        groups = em.ceil_div(count, p.width)
        padded = em.mul(groups, p.width)
        self._queries("q", "qt", q0, count, groups, self.e, self.e_pitch, self.factor, "k" in v.wants)
        one = constant(p.element, 1.0)
        self._queries("g", "gt", q0, count, groups, self.ev, self.v_pitch, one, "v" in v.wants, self.scores)
        self._statistics(q0, count, padded)
        if "q" in v.wants:
            p.fill(em, place["dq"], em.mul(groups, self.o_size))
        stop = em.min(self.s, em.add(q0, count)) if v.causal else self.s
        with em.loop(0, stop, self.keys) as k0:
            self._key_block(k0, em.min(self.keys, em.sub(stop, k0)), q0, count, groups)
        if "q" in v.wants:
            sl, se = em.slot("dq_l"), em.slot("dq_e")
            with em.loop(0, groups) as g:
                lane0 = em.mul(g, p.width)
                to = em.at(self.at["dq"], em.mul(em.add(q0, lane0), sl), p.memory)
                source = em.at(place["dq"], em.mul(g, self.o_size), p.element)
                em.call(self.put, [source, em.min(p.width, em.sub(count, lane0)), self.e, to, sl, se, place["scale"]])

    def _queries(
        self, name: str, panels: str, q0: Value, count: Value, groups: Value, columns: Value, pitch: Value, factor: Value,
        as_rows: bool, in_lanes: bool = True,
    ) -> None:  # fmt: skip
        """A block of Q or dO in scratch: with queries in the lanes, and as rows (zeros for the queries that fill up the last group)."""
        em, p, v = self.em, self.p, self.v
        sl, se = em.slot(f"{name}_l"), em.slot(f"{name}_e")
        source = em.at(self.at[name], em.mul(q0, sl), p.memory)
        unit = name in v.units
        if in_lanes:
            with em.loop(0, groups) as g:
                first = em.mul(g, p.width)
                here = em.min(p.width, em.sub(count, first))
                panel = em.at(self.place[panels], em.mul(first, columns), p.element)
                em.call(p.pack(v.dtype, unit), [em.at(source, em.mul(first, sl), p.memory), sl, se, here, columns, panel])
            if name == "q":
                p.scale(em, self.place[panels], em.mul(em.mul(groups, columns), v.tile.nv), factor)
        if as_rows:
            em.call(self.copies[unit], [source, sl, se, count, columns, self.place[name], pitch, factor])
            rest = em.mul(em.sub(em.mul(groups, p.width), count), pitch)
            p.fill(em, em.at(self.place[name], em.mul(count, pitch), p.element), rest)

    def _statistics(self, q0: Value, count: Value, padded: Value) -> None:
        """The block's lse and delta; queries that fill up the last group get an lse of infinity, so weights of zero."""
        em, p, place = self.em, self.p, self.place
        with em.loop(0, count) as i:
            em.store(em.load(em.at(self.lse, em.add(q0, i), p.element), p.acc), em.at(place["lse"], i, p.element), p.acc)
        with em.loop(count, padded) as i:
            em.store(constant(p.element, float("inf")), em.at(place["lse"], i, p.element), p.acc)
            em.store(constant(p.element, 0.0), em.at(place["delta"], i, p.element), p.acc)
        if self.scores:
            args: list[Index] = []
            for name in ("g", "out"):
                sl, se = em.slot(f"{name}_l"), em.slot(f"{name}_e")
                args += [em.at(self.at[name], em.mul(q0, sl), p.memory), sl, se]
            em.call(self.deltas, [*args, count, self.ev, place["delta"]])

    def _deltas_function(self) -> ir.Function:
        """``deltas(g, its strides, out, its strides, rows, columns, dst)``: the sum of each row's products."""
        p, v = self.p, self.v
        em = Emit(self.module, "deltas", [PTR, I64, I64, PTR, I64, I64, I64, I64, PTR], self.target, internal=True)
        a, al, ae, b, bl, be, rows, columns, dst = em.args
        unit = {"g", "out"} <= v.units

        def add(c: Value, total: Value, row: tuple[Value, Value], width: int) -> Value:
            steps = (c, c) if unit else (em.mul(c, ae), em.mul(c, be))
            x, y = (em.load(em.at(r, s, p.memory), v.dtype, width) for r, s in zip(row, steps, strict=True))
            return em.mul_add(x, y, total)

        with em.loop(0, rows) as r:
            row = (em.at(a, em.mul(r, al), p.memory), em.at(b, em.mul(r, bl), p.memory))
            whole = em.x.and_(columns, em.index(-p.lanes)) if unit else em.index(0)
            total = em.zero(p.acc)
            if unit:
                zero = em.zero(p.acc, p.lanes)
                [sums] = em.fold(0, whole, p.lanes, [zero], lambda c, s, row=row: [add(c, s[0], row, p.lanes)])  # type: ignore[misc]
                total = _joined(em, sums, p.lanes)
            [total] = em.fold(whole, columns, 1, [total], lambda c, s, row=row: [add(c, s[0], row, 1)])  # type: ignore[misc]
            em.store(total, em.at(dst, r, p.element), p.acc)
        return em.done()

    # -- keys ------------------------------------------------------------------------------------------------------

    def _near(self, name: str, copied: bool, k0: Value, keys: Value, columns: Value, pitch: Value) -> tuple[Value, Value]:
        em, p = self.em, self.p
        ss, se = em.slot(f"{name}_s"), em.slot(f"{name}_e")
        at = em.at(self.at[name], em.mul(k0, ss), p.memory)
        if not copied:
            return at, ss
        one = constant(p.element, 1.0)
        em.call(self.copies[name in self.v.units], [at, ss, se, keys, columns, self.place[name], pitch, one])
        return self.place[name], pitch

    def _key_block(self, k0: Value, keys: Value, q0: Value, count: Value, groups: Value) -> None:
        em, p, v, place = self.em, self.p, self.v, self.place
        k, ldk = self._near("k", v.copy_k, k0, keys, self.e, self.e_pitch)
        if self.scores:
            values, ldv = self._near("v", v.copy_v, k0, keys, self.ev, self.v_pitch)
        if v.mask and v.mask.form == "row":
            self._mask(k0, keys, q0, 1)
        with em.loop(0, groups) as g:
            lane0 = em.mul(g, p.width)
            here: Index = keys
            relative: Index = 0
            if v.causal:
                last = em.min(em.add(lane0, p.width), count)
                here = em.x.smax(em.min(keys, em.sub(em.add(q0, last), k0)), em.index(0))
                relative = em.sub(em.add(q0, lane0), k0)
            if v.mask and v.mask.form == "panel":
                self._mask(k0, keys, em.add(q0, lane0), em.min(p.width, em.sub(count, lane0)))
            weights, ds = (em.at(place[n], lane0, p.element) for n in ("p", "ds"))
            queries = em.at(place["qt"], em.mul(lane0, self.e), p.element)
            p.rows_product(em, k, here, ldk, queries, p.width, self.e, weights, self.rows)
            if self.scores:
                gradient = em.at(place["gt"], em.mul(lane0, self.ev), p.element)
                p.rows_product(em, values, here, ldv, gradient, p.width, self.ev, ds, self.rows)
            # What the tiles of keys below read beyond the last key that is seen has to be zero.
            whole = em.min(keys, em.mul(em.ceil_div(here, v.tile.mr), v.tile.mr)) if v.causal else keys
            stats = [em.at(place[n], lane0, p.element) for n in ("lse", "delta")]
            em.call(self.grads, [weights, ds, self.rows, whole, relative, place["mask"], *stats])
            if "mask" in v.wants:
                self._put_mask(ds, k0, whole, em.add(q0, lane0), em.min(p.width, em.sub(count, lane0)))
            if "q" in v.wants:
                to = em.at(place["dq"], em.mul(g, self.o_size), p.element)
                p.columns_product(em, k, self.e, ldk, ds, self.rows, here, to, p.width, constant(BOOL, 0))
        for name, strip, columns, rows, pitch in (
            ("v", "p", self.ev, "g", self.v_pitch), ("k", "ds", self.e, "q", self.e_pitch),
        ):  # fmt: skip
            if name in v.wants:
                self._keys_gradient(f"d{name}", place[strip], columns, place[rows], pitch, k0, keys, q0, groups)

    def _mask(self, k0: Value, keys: Value, q: Value, count: Index) -> None:
        em, how = self.em, self.v.mask
        assert how is not None
        sl, ss = em.slot("mask_l"), em.slot("mask_s")
        at = em.at(self.at["mask"], em.add(em.mul(k0, ss), em.mul(q, sl)), memory_type(how.dtype))
        self.p.read_mask(em, how, at, sl, ss, count, keys, self.place["mask"])

    def _put_mask(self, ds: Value, k0: Value, keys: Value, q: Value, count: Value) -> None:
        """DS of a group, in memory ``[key][query]``."""
        em, p = self.em, self.p
        with em.loop(0, keys) as key:
            source = em.at(ds, em.mul(key, self.rows), p.element)
            to = em.at(self.at["dmask"], em.add(em.mul(em.add(k0, key), self.l), q), p.element)
            whole = em.x.and_(count, em.index(-p.lanes))
            for start, stop, width in ((0, whole, p.lanes), (whole, count, 1)):
                with em.loop(start, stop, width) as i:
                    em.store(em.load(em.at(source, i, p.element), p.acc, width), em.at(to, i, p.element), p.acc)

    def _grads_function(self) -> ir.Function:
        """``grads(scores, dweights, pitch, rows, relative, mask, lse, delta)``: scores become weights, dweights become dS."""
        p, v = self.p, self.v
        em = Emit(self.module, "grads", [PTR, PTR, I64, I64, I64, PTR, PTR, PTR], self.target, internal=True)
        weights, ds, pitch, rows, relative, mask, lse, delta = em.args
        x = em.x
        needs_ds = bool(v.wants - {"v"})
        lows, deltas = p.vectors(em, lse), p.vectors(em, delta)

        def row_at(row: Value, seen: bool) -> None:
            at, ds_at = (em.at(strip, em.mul(row, pitch), p.element) for strip in (weights, ds))
            scores = p.vectors(em, at)
            if v.mask:
                scores = p.masked(em, scores, v.mask, mask, row)
            out = [power(x, x.fmul(x.fsub(s, m), x.f(LOG2E, m))) for s, m in zip(scores, lows, strict=True)]
            hidden = [x.not_(c) for c in p.visible(em, relative, row)] if seen else []

            def zeroed(values: list[Value]) -> list[Value]:
                return [x.select(h, x.f(0.0, w), w) for h, w in zip(hidden, values, strict=True)] if seen else values

            p.put(em, zeroed(out), at)
            if needs_ds:
                given = p.vectors(em, ds_at)
                made = [x.fmul(w, x.fsub(d, m)) for w, d, m in zip(out, given, deltas, strict=True)]
                p.put(em, zeroed(made), ds_at)

        plain = em.x.smax(em.min(rows, em.add(relative, 1)), em.index(0)) if v.causal else rows
        with em.loop(0, plain) as row:
            row_at(row, False)
        if v.causal:
            with em.loop(plain, rows) as row:
                row_at(row, True)
        return em.done()

    def _keys_gradient(
        self, name: str, strip: Value, columns: Value, rows: Value, pitch: Value, k0: Value, keys: Value, q0: Value, groups: Value
    ) -> None:
        """DV += P dO or dK += dS Q for a block of keys; in a causal strip from the first group on that sees a key."""
        em, p, v = self.em, self.p, self.v
        ldc = em.slot(f"{name}_s")
        base = em.at(self.at[name], em.mul(k0, ldc), p.element)
        with em.loop(0, keys, v.tile.mr) as t:
            first: Index = 0
            if v.causal:
                ahead = em.x.smax(em.sub(em.add(k0, t), q0), em.index(0))
                first = em.mul(em.div(ahead, p.width), p.width)
            queries = em.sub(em.mul(groups, p.width), first)
            here = em.sub(keys, t)
            a = em.at(strip, em.add(em.mul(t, self.rows), first), p.element)
            b = em.at(rows, em.mul(first, pitch), p.element)
            with em.loop(0, columns, p.width) as c:
                left = em.sub(columns, c)
                operands = [a, here, self.rows, 1, em.at(b, c, p.element), pitch, queries]
                to = em.at(base, em.add(em.mul(t, ldc), c), p.element)
                whole = em.x.and_(em.cmp("sge", here, v.tile.mr), em.cmp("sge", left, p.width))

                def edge(operands: list[Any] = operands, here: Value = here, left: Value = left, to: Value = to) -> None:
                    em.call(p.by_row, [*operands, self.place["tile"], p.width, constant(BOOL, 1)])
                    sizes = [em.min(here, v.tile.mr), em.min(left, p.width)]
                    em.call(self.add_edge, [self.place["tile"], *sizes, to, ldc])

                direct: Callable[[], None] = lambda operands=operands, to=to: em.call(  # type: ignore[misc]
                    p.by_row, [*operands, to, ldc, constant(BOOL, 0)]
                )
                em.choose(whole, direct, edge)

    def _edge_function(self) -> ir.Function:
        """``add_edge(tile, rows, columns, c, ldc)``: C += the part of a tile that there is."""
        p = self.p
        em = Emit(self.module, "add_edge", [PTR, I64, I64, PTR, I64], self.target, internal=True)
        tile, rows, columns, c, ldc = em.args
        whole = em.x.and_(columns, em.index(-p.lanes))
        with em.loop(0, rows) as r:
            source, to = em.at(tile, em.mul(r, p.width), p.element), em.at(c, em.mul(r, ldc), p.element)
            for start, stop, width in ((0, whole, p.lanes), (whole, columns, 1)):
                with em.loop(start, stop, width) as i:
                    place = em.at(to, i, p.element)
                    total = em.plus(em.load(place, p.acc, width), em.load(em.at(source, i, p.element), p.acc, width))
                    em.store(total, place, p.acc)
        return em.done()


def _joined(em: Emit, vector: Value, width: int) -> Value:
    """The sum of the lanes, halves added to halves."""
    while width > 1:
        width //= 2
        low = em.x.shuffle(vector, None, list(range(width))) if width > 1 else em.x.extract(vector, 0)
        high = em.x.shuffle(vector, None, list(range(width, 2 * width))) if width > 1 else em.x.extract(vector, 1)
        vector = em.plus(low, high)
    return vector
