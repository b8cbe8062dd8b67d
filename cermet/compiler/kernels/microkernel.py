"""The register tile: ``mr`` rows by ``nv`` vectors of accumulators, updated by one outer product for each k.

All arithmetic of contractions happens here. `tile_fma` is the loop alone, for any kernel that can say
how its operands are read (the convolution reads its input in place); `tile_function` makes of it the function that the matrix
product calls.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from llvmlite import ir

from cermet.compiler.kernels.irtools import Emit, Index, Value, acc_type
from cermet.compiler.llvm.builder import I64, PTR, memory_type, vector
from cermet.dtypes import DType

__all__ = ["Tile", "store_tile", "tile_fma", "tile_function"]


@dataclass(frozen=True)
class Tile:
    """A register tile.

    Attributes:
        mr: rows.
        nv: vectors a row.
        lanes: elements of the accumulator dtype in a vector.
        acc: the accumulator dtype.
    """

    mr: int
    nv: int
    lanes: int
    acc: DType

    @property
    def nr(self) -> int:
        """Columns."""
        return self.nv * self.lanes

    @property
    def key(self) -> str:
        return f"{self.mr}x{self.nv}x{self.lanes}{self.acc.name}"


def tile_fma(
    em: Emit,
    tile: Tile,
    k: Index,
    state: Sequence[Value],
    load_a: Callable[[Sequence[Value], int, int], Value],
    load_b: Callable[[Sequence[Value], int, int], Value],
    advance: Callable[[Sequence[Value], int], Sequence[Value]],
    init: Sequence[Value] | None = None,
    unroll: int = 2,
) -> list[Value]:
    """Accumulate ``k`` outer products; return the accumulators, row by row (``mr * nv`` vectors).

    Args:
        em: where to write.
        tile: the tile's shape.
        k: how many products.
        state: pointers or indices that say where in the operands we are.
        load_a: ``(state, row, step) -> scalar`` of row ``row``, ``step`` products after ``state`` (0 <= step < unroll).
        load_b: ``(state, j, step) -> vector`` number ``j``.
        advance: ``(state, steps) -> state`` moved on.
        init: accumulators to start from; zeros by default.
        unroll: products a turn of the loop.
    """
    state = list(state)
    if init is None:
        init = [em.zero(tile.acc, tile.lanes)] * (tile.mr * tile.nv)

    def product(accs: list[Value], at: Sequence[Value], step: int) -> list[Value]:
        b = [load_b(at, j, step) for j in range(tile.nv)]
        out: list[Value] = []
        for i in range(tile.mr):
            a = em.broadcast(load_a(at, i, step), tile.lanes)
            out.extend(em.mul_add(a, b[j], accs[i * tile.nv + j]) for j in range(tile.nv))
        return out

    def turn(steps: int) -> Callable[[Value, list[Value]], list[Value]]:
        def body(_: Value, current: list[Value]) -> list[Value]:
            at, accs = current[: len(state)], current[len(state) :]
            for step in range(steps):
                accs = product(accs, at, step)
            return [*advance(at, steps), *accs]

        return body

    current = [*state, *init]
    if unroll > 1:
        whole = em.sub(k, em.x.and_(em.index(k), em.index(unroll - 1))) if not isinstance(k, int) else k - k % unroll
        current = em.fold(0, whole, unroll, current, turn(unroll))
        current = em.fold(whole, k, 1, current, turn(1))
    else:
        current = em.fold(0, k, 1, current, turn(1))
    return current[len(state) :]


def tile_function(
    module: ir.Module, target: Any, tile: Tile, dtype_a: DType, dtype_b: DType, mode_a: str, name: str = "tile", ahead: bool = False,
) -> ir.Function:  # fmt: skip
    """``tile(a, rows, sm, sk, b, ldb, k, c, ldc, first)``: C tile = A·B where ``first``, else C tile += A·B.

    C is of the accumulator dtype, ``ldc`` elements from row to row, with unit stride along a row; B likewise with ``ldb``.

    Args:
        mode_a: how A lies: ``"panel"`` (packed, ``mr`` interleaved; rows, sm, sk are not looked at), ``"k"`` (rows of unit
            stride) or ``"any"``. Where it is not packed, rows from ``rows`` on read the last one instead, so that a tile at
            the edge reads nothing foreign.
        ahead: two more arguments after ``k``: an address of accumulators, and how many of them for each product to fetch into L2 on the
            way. What is used next comes from L3 or memory, and its first use is too short to wait for it.
    """
    more = [PTR, I64] if ahead else []
    em = Emit(module, name, [PTR, I64, I64, I64, PTR, I64, I64, *more, PTR, I64, ir.IntType(1)], target, internal=True)
    a, rows, sm, sk, b, ldb, k, *rest = em.args
    *soon, c, ldc, first = rest

    def load_b(at: Sequence[Value], j: int, step: int) -> Value:
        row = em.at(at[1], em.mul(ldb, step), memory_type(dtype_b))
        return em.load(em.at(row, j * tile.lanes, memory_type(dtype_b)), dtype_b, tile.lanes)

    if mode_a == "panel":

        def load_a(at: Sequence[Value], i: int, step: int) -> Value:
            return em.load(em.at(at[0], step * tile.mr + i, memory_type(dtype_a)), dtype_a)

        step_a: Index = tile.mr
    else:
        last = em.sub(rows, 1)
        offsets: list[Index] = [0] + [em.mul(em.min(i, last), sm) for i in range(1, tile.mr)]
        step_a = 1 if mode_a == "k" else sk

        def load_a(at: Sequence[Value], i: int, step: int) -> Value:
            moved = em.at(at[0], em.mul(step_a, step), memory_type(dtype_a))
            return em.load(em.at(moved, offsets[i], memory_type(dtype_a)), dtype_a)

    def advance(at: Sequence[Value], steps: int) -> Sequence[Value]:
        moved = [
            em.at(at[0], em.mul(step_a, steps), memory_type(dtype_a)),
            em.at(at[1], em.mul(ldb, steps), memory_type(dtype_b)),
        ]
        if ahead:
            em.prefetch(at[2], write=False, near=2)
            moved.append(em.at(at[2], em.mul(soon[1], steps), acc_type(tile.acc)))
        return moved

    for i in range(tile.mr):
        # C is touched once for every kc products: it has left the near caches by then.
        em.prefetch(em.at(c, em.mul(ldc, i), acc_type(tile.acc)))
    accs = tile_fma(em, tile, k, [a, b, *soon[:1]], load_a, load_b, advance)
    store_tile(em, tile, accs, c, ldc, first)
    return em.done()


def store_tile(em: Emit, tile: Tile, accs: list[Value], c: Value, ldc: Value, first: Value) -> None:
    """Write the sums of a tile to C, or add them to it where not ``first``."""
    element = acc_type(tile.acc)
    rows = [em.at(c, em.mul(ldc, i), element) for i in range(tile.mr)]
    places = [em.at(row, j * tile.lanes, element) for row in rows for j in range(tile.nv)]
    old = vector(element, tile.lanes)

    def overwrite() -> None:
        for value, place in zip(accs, places, strict=True):
            em.store_raw(value, place, tile.acc.itemsize)

    def add() -> None:
        for value, place in zip(accs, places, strict=True):
            em.store_raw(em.plus(em.load_raw(old, place, tile.acc.itemsize), value), place, tile.acc.itemsize)

    em.choose(first, overwrite, add)
