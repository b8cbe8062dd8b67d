"""Attention of a few queries, as in generating a text: bound by reading K and V once, so features are in the lanes and nothing is packed.

for each query of one head:                                the parallel index
    for each block of keys:
        scores = K q                                       four keys at a time, lanes along features
        mask; new maximum; weights = exp(scores - maximum), their sum
        o = o rescaled + weights V                         eight keys at a time
    o / sum; log of the sum
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llvmlite import ir

from cermet.compiler.kernels.attention_parts import LOG2E, Mask, pointer_to, power
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
from cermet.compiler.llvm.builder import F64, I64, PTR, constant, memory_type
from cermet.compiler.llvm.vmath.exp_log import log
from cermet.dtypes import DType

__all__ = ["ROWS_PARAMS", "Rows", "rows_module"]

ROWS_PARAMS = (
    "q", "k", "v", "out", "lse", "mask", "l", "s", "e", "ev", "scale",
    *BATCH_SIZES, *(n for x in ("q", "k", "v", "out", "mask") for n in batch_strides(x)),
    "q_l", "q_e", "k_s", "v_s", "out_l", "out_e", "mask_l", "mask_s", "keys", "at_q", "at_s", "at_o",
)  # fmt: skip
_DOTS = 4  # keys at a time whose scores are summed: as many streams
_ADDS = 8  # keys at a time whose values are added


@dataclass(frozen=True)
class Rows:
    """What is compiled into a kernel; K and V have features next to each other.

    Attributes:
        dtype: of the operands and the result. lanes: of a vector in the accumulator dtype.
        causal, mask, dims: as in `Forward`.
    """

    dtype: DType
    lanes: int
    causal: bool
    mask: Mask | None
    dims: int

    @property
    def key(self) -> str:
        mask = f" {self.mask.key}" if self.mask else ""
        return f"attention_rows {self.dtype.name} {self.lanes}{' causal' if self.causal else ''}{mask} {self.dims}"


def rows_module(target: Any, v: Rows) -> ir.Module:
    """The module whose entry ``attention_rows`` is the kernel of variant ``v``."""
    return _Rows(target, v).build()


class _Rows:
    def __init__(self, target: Any, v: Rows) -> None:
        self.v, self.lanes = v, v.lanes
        self.acc = accumulator(v.dtype)
        self.element, self.memory = acc_type(self.acc), memory_type(v.dtype)
        self.module = new_module("attention_rows", target)
        self.em = KernelEmit(self.module, "attention_rows", ROWS_PARAMS, target)

    def build(self) -> ir.Module:
        em = self.em
        self.l, self.s, self.e, self.ev, self.keys = (em.slot(n) for n in ("l", "s", "e", "ev", "keys"))
        scale = em.slot("scale", F64)
        double = self.acc.itemsize == 8
        self.factor = scale if double else em.x.line(self.element, f"fptrunc double {scale.get_reference()} to float")
        self.q, self.scores, self.out = (pointer_to(em, n, self.element) for n in ("at_q", "at_s", "at_o"))
        with em.loop(em.begin, em.end) as block:
            batch, row = em.divmod(block, self.l)
            self._row(batch, row)
        em.done()
        return self.module

    def _operand(self, name: str, batch: Value) -> Value:
        em = self.em
        dtype = self.v.mask.dtype if name == "mask" and self.v.mask else self.v.dtype
        return em.at(em.slot(name, PTR), batch_offset(em, name, batch, self.v.dims), memory_type(dtype))

    def _row(self, batch: Value, row: Value) -> None:
        em, x = self.em, self.em.x
        q = em.at(self._operand("q", batch), em.mul(row, em.slot("q_l")), self.memory)
        with em.loop(0, self.e) as i:
            value = x.fmul(em.load(em.at(q, em.mul(i, em.slot("q_e")), self.memory), self.v.dtype), self.factor)
            em.store(value, em.at(self.q, i, self.element), self.acc)
        with em.loop(0, self.ev) as i:
            em.store(em.zero(self.acc), em.at(self.out, i, self.element), self.acc)
        keys, values = self._operand("k", batch), self._operand("v", batch)
        stop = em.min(self.s, em.add(row, 1)) if self.v.causal else self.s
        mask = None
        if self.v.mask:
            mask = em.at(self._operand("mask", batch), em.mul(row, em.slot("mask_l")), memory_type(self.v.mask.dtype))
        first = [constant(self.element, float("-inf")), em.zero(self.acc)]
        top, total = em.fold(0, stop, self.keys, first, lambda k0, state: self._block(k0, stop, keys, values, mask, state))
        self._finish(batch, row, top, total)

    def _block(self, k0: Value, stop: Index, keys: Value, values: Value, mask: Value | None, state: list[Value]) -> list[Value]:
        em, x = self.em, self.em.x
        count = em.min(self.keys, em.sub(stop, k0))
        self._dots(em.at(keys, em.mul(k0, em.slot("k_s")), self.memory), count)
        if mask is not None:
            self._mask(mask, k0, count)
        padded = em.mul(em.ceil_div(count, self.lanes), self.lanes)
        with em.loop(count, padded) as i:
            em.store(constant(self.element, float("-inf")), em.at(self.scores, i, self.element), self.acc)
        low = em.broadcast(constant(self.element, float("-inf")), self.lanes)

        def vector(i: Value) -> Value:
            return em.load(em.at(self.scores, i, self.element), self.acc, self.lanes)

        def greater(i: Value, found: list[Value]) -> list[Value]:
            s = vector(i)
            return [x.select(x.fcmp("ogt", s, found[0]), s, found[0])]

        [tops] = em.fold(0, padded, self.lanes, [low], greater)
        top = state[0]
        for lane in range(self.lanes):
            value = x.extract(tops, lane)
            top = x.select(x.fcmp("ogt", value, top), value, top)
        base = x.select(x.fcmp("oeq", top, x.f(float("-inf"), top)), x.f(0.0, top), top)
        moved = power(x, x.fmul(x.fsub(state[0], base), x.f(LOG2E, top)))
        spread = em.broadcast(base, self.lanes)

        def weigh(i: Value, sums: list[Value]) -> list[Value]:
            weight = power(x, x.fmul(x.fsub(vector(i), spread), x.f(LOG2E, spread)))
            em.store(weight, em.at(self.scores, i, self.element), self.acc)
            return [x.fadd(sums[0], weight)]

        [sums] = em.fold(0, padded, self.lanes, [em.zero(self.acc, self.lanes)], weigh)
        total = x.fadd(x.fmul(state[1], moved), self._joined(sums))
        with em.when(x.fcmp("une", moved, x.f(1.0, moved))), em.loop(0, self.ev) as i:
            place = em.at(self.out, i, self.element)
            em.store(x.fmul(em.load(place, self.acc), moved), place, self.acc)
        self._add(em.at(values, em.mul(k0, em.slot("v_s")), self.memory), count)
        return [top, total]

    def _dots(self, keys: Value, count: Value) -> None:
        """Scores of a block, written a few past its end."""
        em, lanes = self.em, self.lanes
        last, pitch = em.sub(count, 1), em.slot("k_s")
        whole = em.x.and_(self.e, em.index(-lanes))
        with em.loop(0, count, _DOTS) as k:
            rows = [em.at(keys, em.mul(em.min(em.add(k, r), last), pitch), self.memory) for r in range(_DOTS)]

            def step(i: Value, sums: list[Value], width: int, rows: list[Value] = rows) -> list[Value]:
                q = em.load(em.at(self.q, i, self.element), self.acc, width)
                return [
                    em.mul_add(em.load(em.at(r, i, self.memory), self.v.dtype, width), q, t)
                    for r, t in zip(rows, sums, strict=True)
                ]

            zeros = [em.zero(self.acc, lanes)] * _DOTS
            sums = em.fold(0, whole, lanes, zeros, lambda i, s, step=step: step(i, s, lanes))  # type: ignore[misc]
            sums = [self._joined(s) for s in sums]
            sums = em.fold(whole, self.e, 1, sums, lambda i, s, step=step: step(i, s, 1))  # type: ignore[misc]
            for r, value in enumerate(sums):
                em.store(value, em.at(self.scores, em.add(k, r), self.element), self.acc)

    def _mask(self, mask: Value, k0: Value, count: Value) -> None:
        em, x, how = self.em, self.em.x, self.v.mask
        assert how is not None
        with em.loop(0, count) as i:
            offset = em.add(k0, i)
            value = em.load(
                em.at(mask, offset if how.unit else em.mul(offset, em.slot("mask_s")), memory_type(how.dtype)), how.dtype
            )
            place = em.at(self.scores, i, self.element)
            score = em.load(place, self.acc)
            if how.dtype.kind == "f":
                score = x.fadd(score, value)
            else:
                score = x.select(x.icmp("ne", value, constant(value.type, 0)), score, x.f(float("-inf"), score))
            em.store(score, place, self.acc)

    def _add(self, values: Value, count: Value) -> None:
        """``out += weights V`` of a block."""
        em, lanes, pitch = self.em, self.lanes, self.em.slot("v_s")
        many = em.x.and_(count, em.index(-_ADDS))
        whole = em.x.and_(self.ev, em.index(-lanes))
        for start, stop, step in ((0, many, _ADDS), (many, count, 1)):
            with em.loop(start, stop, step) as k:
                rows = [em.at(values, em.mul(em.add(k, r), pitch), self.memory) for r in range(step)]
                weights = [em.load(em.at(self.scores, em.add(k, r), self.element), self.acc) for r in range(step)]
                for low, high, width in ((0, whole, lanes), (whole, self.ev, 1)):
                    spread = [em.broadcast(w, width) for w in weights]
                    with em.loop(low, high, width) as i:
                        place = em.at(self.out, i, self.element)
                        total = em.load(place, self.acc, width)
                        for row, w in zip(rows, spread, strict=True):
                            total = em.mul_add(em.load(em.at(row, i, self.memory), self.v.dtype, width), w, total)
                        em.store(total, place, self.acc)

    def _joined(self, vector: Value) -> Value:
        """The sum of the lanes, halves added to halves."""
        em, width = self.em, self.lanes
        while width > 2:
            width //= 2
            low = em.x.shuffle(vector, None, list(range(width)))
            vector = em.plus(low, em.x.shuffle(vector, None, list(range(width, 2 * width))))
        return em.plus(em.x.extract(vector, 0), em.x.extract(vector, 1)) if width == 2 else vector

    def _finish(self, batch: Value, row: Value, top: Value, total: Value) -> None:
        em, x = self.em, self.em.x
        blind = x.fcmp("oeq", total, x.f(0.0, total))
        inverse = x.select(blind, total, x.fdiv(x.f(1.0, total), total))
        out = em.at(self._operand("out", batch), em.mul(row, em.slot("out_l")), self.memory)
        with em.loop(0, self.ev) as i:
            value = x.fmul(em.load(em.at(self.out, i, self.element), self.acc), inverse)
            em.store(value, em.at(out, em.mul(i, em.slot("out_e")), self.memory), self.v.dtype)
        lse = em.slot("lse", PTR)
        with em.when(em.cmp("ne", x.line(I64, f"ptrtoint ptr {lse.get_reference()} to i64"), 0)):
            value = x.select(blind, x.f(float("inf"), total), x.fadd(top, log(x, total)))
            em.store(value, em.at(lse, em.add(em.mul(batch, self.l), row), self.element), self.acc)
