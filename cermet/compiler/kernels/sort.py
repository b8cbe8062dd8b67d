"""Stable argsort of the rows of an operand: least-significant-digit radix sort, and for short rows ranks by counting.

Keys become unsigned integers whose order is that of the values (NaN greatest, -0.0 equal to 0.0), inverted for descending order, so equal
elements keep their order either way. Knuth, The Art of Computer Programming 3, 5.2.5 (radix) and 5.2 (comparison counting).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from llvmlite import ir

from cermet.compiler.kernels.irtools import KernelEmit, Value, new_module, rounded_up
from cermet.compiler.kernels.plan import KernelLaunch, Operand, Plan
from cermet.compiler.llvm.builder import I32, I64, PTR, constant
from cermet.dtypes import DType

__all__ = ["SortSpec", "plan"]

SMALL = 48  # rows up to this are ranked by counting: its n*n comparisons cost less than clearing the histograms
ROW_DIMS = 4
_PARAMS = ("x", "out", "n", "x_step", "out_step", *(f"e{k}" for k in range(ROW_DIMS)), *(f"x{k}" for k in range(ROW_DIMS)),
           *(f"o{k}" for k in range(ROW_DIMS)), "rows", "per")  # fmt: skip


@dataclass(frozen=True)
class SortSpec:
    """An argsort of ``x`` along ``dim`` into int64 ``out`` of the same shape; strides in elements."""

    dtype: DType
    shape: tuple[int, ...]
    x_strides: tuple[int, ...]
    out_strides: tuple[int, ...]
    dim: int
    descending: bool


def plan(spec: SortSpec, target: Any) -> Plan:
    """One launch, a few rows a block, from operand "x" into "out".

    Raises:
        ValueError: for rows of 2**31 elements or more, or more than four dims besides ``dim`` that can't be merged.
    """
    shape = spec.shape or (1,)
    xs, os = spec.x_strides or (1,), spec.out_strides or (1,)
    n = shape[spec.dim]
    if n >= 1 << 31:
        raise ValueError(f"argsort: a row of {n} elements; up to {(1 << 31) - 1} are supported")
    if math.prod(shape) == 0:
        return Plan([])
    dims = _rows(shape, xs, os, spec.dim)
    rows = math.prod([d[0] for d in dims])
    small = n <= SMALL
    per = max(1, 4096 // n)
    lead = ROW_DIMS - len(dims)
    padded = [(1, 0, 0)] * lead + dims
    args: list[Any] = [Operand("x"), Operand("out"), n, xs[spec.dim], os[spec.dim]]
    args += [d[0] for d in padded] + [d[1] for d in padded] + [d[2] for d in padded] + [rows, per]
    wide = 8 if spec.dtype.itemsize == 8 else 4
    scratch = rounded_up(n * wide, 64) if small else 2 * rounded_up(n * wide, 64) + 2 * rounded_up(n * 4, 64) + 256 * 4
    key = f"sort {spec.dtype.name} {'down' if spec.descending else 'up'} {'small' if small else 'radix'}"
    launch = KernelLaunch(
        key,
        lambda: _Sort(spec.dtype, spec.descending, small, target).build(),
        "sort",
        args,
        -(-rows // per),
        scratch,
        1 if n > 2048 else 4,
    )
    return Plan([launch])


def _rows(shape: tuple[int, ...], xs: tuple[int, ...], os: tuple[int, ...], dim: int) -> list[tuple[int, int, int]]:
    """(extent, stride in x, stride in out) of the other dims, merged where both stride through them as one."""
    dims: list[tuple[int, int, int]] = []
    for k, size in enumerate(shape):
        if k == dim or size == 1:
            continue
        if dims and dims[-1][1] == xs[k] * size and dims[-1][2] == os[k] * size:
            dims[-1] = (dims[-1][0] * size, xs[k], os[k])
        else:
            dims.append((size, xs[k], os[k]))
    if len(dims) > ROW_DIMS:
        raise ValueError(
            f"argsort: shape {shape} with strides {xs} has more than {ROW_DIMS} separate dims besides {dim}; copy it first"
        )
    return dims


class _Sort:
    def __init__(self, dtype: DType, descending: bool, small: bool, target: Any) -> None:
        self.dtype, self.descending, self.small = dtype, descending, small
        self.wide = 8 if dtype.itemsize == 8 else 4
        self.key_type = I64 if self.wide == 8 else I32
        self.module = new_module("sort", target)
        self.em = KernelEmit(self.module, "sort", _PARAMS, target)

    def build(self) -> ir.Module:
        em = self.em
        self.n, self.x_step, self.out_step = (em.slot(s) for s in ("n", "x_step", "out_step"))
        x, out = em.slot("x", PTR), em.slot("out", PTR)
        per, rows = em.slot("per"), em.slot("rows")
        with em.loop(em.begin, em.end) as block:
            first = em.mul(block, per)
            with em.loop(first, em.min(em.add(first, per), rows)) as row:
                x_at, out_at = self._row(row)
                self.x = em.at(x, x_at, self._memory())
                self.out = em.at(out, out_at, I64)
                self._ranks() if self.small else self._radix()
        em.done()
        return self.module

    def _memory(self) -> ir.Type:
        from cermet.compiler.llvm.builder import memory_type

        return memory_type(self.dtype)

    def _row(self, row: Value) -> tuple[Value, Value]:
        em = self.em
        x_at: Any = 0
        out_at: Any = 0
        for k in range(ROW_DIMS - 1, -1, -1):
            row, i = em.divmod(row, em.slot(f"e{k}")) if k else (row, row)
            x_at = em.add(x_at, em.mul(i, em.slot(f"x{k}")))
            out_at = em.add(out_at, em.mul(i, em.slot(f"o{k}")))
        return x_at, out_at

    def _key(self, i: Value) -> Value:
        """The unsigned sort key of element i."""
        em, x = self.em, self.em.x
        value = em.load(em.at(self.x, em.mul(i, self.x_step), self._memory()), self.dtype)
        top = -(1 << (8 * self.wide - 1))
        if self.dtype.kind == "f":
            is_nan = x.fcmp("uno", value, value)
            bits = x.as_int(x.fadd(value, x.f(0.0, value)))
            flipped = x.select(x.icmp("slt", bits, x.i(0, bits)), x.not_(bits), x.xor(bits, x.i(top, bits)))
            key = x.select(is_nan, x.i(-1, bits), flipped)
        else:
            key = x.xor(value, x.i(top, value))
        return x.not_(key) if self.descending else key

    def _less(self, a: Value, b: Value) -> Value:
        return self.em.x.icmp("ult", a, b)

    def _ranks(self) -> None:
        """Element i goes to place #(smaller) + #(equal before it)."""
        em, x = self.em, self.em.x
        keys = em.scratch
        with em.loop(0, self.n) as i:
            em.store_raw(self._key(i), em.at(keys, i, self.key_type), self.wide)
        with em.loop(0, self.n) as i:
            mine = em.load_raw(self.key_type, em.at(keys, i, self.key_type), self.wide)

            def before(j: Value, state: list[Value], mine: Value = mine) -> list[Value]:
                other = em.load_raw(self.key_type, em.at(keys, j, self.key_type), self.wide)
                return [x.add(state[0], x.zext(x.icmp("ule", other, mine), 64))]

            def after(j: Value, state: list[Value], mine: Value = mine) -> list[Value]:
                other = em.load_raw(self.key_type, em.at(keys, j, self.key_type), self.wide)
                return [x.add(state[0], x.zext(self._less(other, mine), 64))]

            rank = em.fold(0, i, 1, [constant(I64, 0)], before)
            rank = em.fold(i, self.n, 1, rank, after)
            em.store_raw(i, em.at(self.out, em.mul(rank[0], self.out_step), I64), 8)

    def _radix(self) -> None:
        em, x = self.em, self.em.x
        size_k = self._space(self.wide)
        size_i = self._space(4)
        keys = [em.scratch, em.at(em.scratch, size_k, ir.IntType(8))]
        base = em.add(size_k, size_k)
        order = [em.at(em.scratch, base, ir.IntType(8)), em.at(em.scratch, em.add(base, size_i), ir.IntType(8))]
        counts = em.at(em.scratch, em.add(base, em.add(size_i, size_i)), ir.IntType(8))
        with em.loop(0, self.n) as i:
            em.store_raw(self._key(i), em.at(keys[0], i, self.key_type), self.wide)
            em.store_raw(x.trunc_int(i, 32), em.at(order[0], i, I32), 4)
        digits = self.dtype.itemsize if self.dtype.kind != "f" or self.wide == 8 else 4
        # Narrow integers differ in their low bytes alone: the top bit that `_key` flips is in the highest, which then needs a pass of its own.
        passes = [*range(digits)] if digits == self.wide else [*range(digits), self.wide - 1]
        for turn, digit in enumerate(passes):
            self._pass(digit, keys[turn % 2], order[turn % 2], keys[1 - turn % 2], order[1 - turn % 2], counts)
        final = order[len(passes) % 2]
        with em.loop(0, self.n) as i:
            index = x.zext(em.load_raw(I32, em.at(final, i, I32), 4), 64)
            em.store_raw(index, em.at(self.out, em.mul(i, self.out_step), I64), 8)

    def _space(self, item: int) -> Value:
        """Bytes of an array of n items, rounded up to a cache line."""
        em = self.em
        return em.x.and_(em.add(em.mul(self.n, item), 63), em.index(-64))

    def _digit(self, key: Value, digit: int) -> Value:
        x = self.em.x
        moved = x.lshr(key, x.i(8 * digit, key))
        low = x.and_(moved, x.i(255, key))
        return low if self.wide == 8 else x.zext(low, 64)

    def _pass(self, digit: int, keys: Value, order: Value, keys_to: Value, order_to: Value, counts: Value) -> None:
        """One counting sort by a byte of the key."""
        em, x = self.em, self.em.x
        with em.loop(0, 256) as c:
            em.store_raw(constant(I32, 0), em.at(counts, c, I32), 4)
        with em.loop(0, self.n) as i:
            place = em.at(counts, self._digit(em.load_raw(self.key_type, em.at(keys, i, self.key_type), self.wide), digit), I32)
            em.store_raw(x.add(em.load_raw(I32, place, 4), constant(I32, 1)), place, 4)

        def running(c: Value, state: list[Value]) -> list[Value]:
            place = em.at(counts, c, I32)
            here = em.load_raw(I32, place, 4)
            em.store_raw(state[0], place, 4)
            return [x.add(state[0], here)]

        em.fold(0, 256, 1, [constant(I32, 0)], running)
        with em.loop(0, self.n) as i:
            key = em.load_raw(self.key_type, em.at(keys, i, self.key_type), self.wide)
            place = em.at(counts, self._digit(key, digit), I32)
            to32 = em.load_raw(I32, place, 4)
            em.store_raw(x.add(to32, constant(I32, 1)), place, 4)
            to = x.zext(to32, 64)
            em.store_raw(key, em.at(keys_to, to, self.key_type), self.wide)
            em.store_raw(em.load_raw(I32, em.at(order, i, I32), 4), em.at(order_to, to, I32), 4)
