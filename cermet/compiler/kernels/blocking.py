"""Which register tile, what to pack and how large the blocks: decided from the shape, the strides' unit facts and the machine's caches.

Never from the number of threads, so that sums are split alike everywhere. What is decided here and compiled in (tile, ways of reading) has few
values, chosen by coarse classes of shape: a new batch size finds its kernel there already.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cermet.compiler.kernels.irtools import accumulator, rounded_up
from cermet.compiler.kernels.microkernel import Tile
from cermet.dtypes import DType

__all__ = ["Blocking", "choose", "choose_tile"]


@dataclass(frozen=True)
class Blocking:
    """A schedule of one product.

    Attributes:
        tile: the register tile.
        read_a, read_b: see `gemm.Variant`.
        mc, nc, kc: rows, columns and products of a block.
        k_part: products of one partial sum; the whole k where it is not split.
    """

    tile: Tile
    read_a: str
    read_b: str
    mc: int
    nc: int
    kc: int
    k_part: int


def choose_tile(target: Any, acc: DType, m: int, n: int) -> Tile:
    """The register tile for an ``m`` by ``n`` result.

    The accumulators, one row of B and one broadcast of A fill the registers. Among the shapes that do, nearly square ones load
    least; flat ones waste less where there are few rows.
    """
    lanes = target.lanes(acc.itemsize)
    registers = target.vector_registers - (0 if target.has_fma else 1)
    if n <= lanes and m > 2:
        return Tile(min(registers - 2, 12), 1, lanes, acc)
    for mr in (1, 2, 4):
        if m <= mr or (mr == 4 and m in (7, 8)):
            return Tile(mr, (registers - 1) // (mr + 1), lanes, acc)
    if registers >= 31:
        return Tile(9, 3, lanes, acc) if lanes > 4 else Tile(8, 3, lanes, acc)
    return Tile((registers - 3) // 2, 2, lanes, acc)


def choose(target: Any, a: DType, b: DType, m: int, n: int, k: int, batch: int, unit_a: str, unit_b: str) -> Blocking:
    """The schedule of a product of ``batch`` matrices ``m`` by ``k`` and ``k`` by ``n``.

    Args:
        unit_a, unit_b: which stride is 1: ``"p"`` (rows of A, columns of B), ``"k"``, ``"any"``.
    """
    acc = accumulator(a)
    tile = choose_tile(target, acc, m, n)
    size = acc.itemsize
    # A panel of B stays in half of L1 while the panels of A pass by; a block of A stays in half of L2.
    kc = max(64, min(512, target.l1d // 2 // (tile.nr * size)) // 8 * 8)
    if k <= kc * 3 // 2:
        kc = max(k, 1)
    else:
        kc = rounded_up(-(-k // -(-k // kc)), 8)
    mc_limit = max(tile.mr, target.l2 // 4 // (kc * size) // tile.mr * tile.mr)
    blocks_m = -(-m // min(mc_limit, 128))
    mc = rounded_up(-(-m // blocks_m), tile.mr)
    nc = min(rounded_up(n, tile.nr), rounded_up(512, tile.nr))
    direct_a = a is acc and n <= 128
    direct_b = b is acc and unit_b == "p" and m <= 64
    read_b = "direct" if direct_b else "packed" if blocks_m == 1 else "temp"
    return Blocking(tile, "direct" if direct_a else "packed", read_b, mc, nc, kc, max(k, 1))
