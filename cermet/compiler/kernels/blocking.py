"""Which register tile, what to pack and how large the blocks: decided from the shape, the strides' unit facts and the
machine's caches.

Never from the number of threads, so that sums are split alike everywhere. What is decided here and compiled in (tile, ways of
reading) has few values, chosen by coarse classes of shape: a new batch size finds its kernel there already.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd
from typing import Any

from cermet.compiler.kernels.irtools import accumulator, rounded_up
from cermet.compiler.kernels.microkernel import Tile
from cermet.dtypes import DType

__all__ = ["Blocking", "SkinnyBlocking", "choose", "choose_skinny", "choose_tile"]

# A product is divided until it has this many blocks, or blocks of this much work: enough to share out evenly among
# a dozen cores, too few and too large to be felt on one.
_BLOCKS = 16
_BLOCK_FLOPS = 4 << 20
# Fewest rows of a block: a panel of B that came from L2 is used for this many before the next.
_LEAST_ROWS = 40
# Fewest columns of a block where A is packed: each value of A that is packed is used for this many products.
_LEAST_COLUMNS = 512
# Rows up to which B is better read where it lies than packed for so little use.
_FEW_ROWS = 32
# Distance between B's rows from which on each is on a page of its own: then few rows at a time, so that their pages stay known.
_FAR_BYTES = 2048


@dataclass(frozen=True)
class Blocking:
    """A schedule of one product.

    Attributes:
        tile: the register tile.
        read_a, read_b: see `gemm.Variant`.
        mc, nc, kc: rows, columns and products of a block.
        k_part: products of one partial sum; all of them where the sum is not split.
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
    # A multiply-add in two instructions needs a register for the product.
    registers = target.vector_registers - (0 if target.has_fma else 1)
    if n <= lanes and m > 2:
        return Tile(min(registers - 2, 12), 1, lanes, acc)
    for mr in (1, 2, 4):
        if m <= mr or (mr == 4 and m in (7, 8)):
            return Tile(mr, (registers - 1) // (mr + 1), lanes, acc)
    if registers >= 31:
        return Tile(9, 3, lanes, acc) if lanes > 4 else Tile(8, 3, lanes, acc)
    return Tile((registers - 3) // 2, 2, lanes, acc)


def _k_block(tile: Tile, k: int, nbytes: int) -> int:
    """Products between two visits to C: a panel of B has at most ``nbytes``."""
    kc = max(32, nbytes // (tile.nr * tile.acc.itemsize) // 8 * 8)
    if k <= kc * 5 // 4:
        return max(k, 1)
    return rounded_up(-(-k // -(-k // kc)), 8)


def _l2_values(target: Any, size: int) -> int:
    """How many values a block of packed A may have to stay in L2 beside what streams through it."""
    return int(target.l2 * 3 // 8 // size)


def _stays_in_l1(target: Any, stride: int, count: int, width: int) -> bool:
    """Whether ``count`` runs of ``width`` bytes, ``stride`` bytes apart, stay in half of L1: runs at a distance of a power of two
    compete for a few of its sets."""
    ways, line = 8, 64
    period = target.l1d // ways
    apart = max(line, gcd(stride, period))
    places = period // apart * (apart // max(line, min(apart, rounded_up(width, line)))) * ways
    return count <= places // 2 and count * max(width, line) <= target.l1d // 2


def choose(
    target: Any, dtype: DType, m: int, n: int, k: int, batch: int, unit_a: str, unit_b: str, stride_a: int, stride_b: int,
    staged: bool = False,
) -> Blocking:  # fmt: skip
    """The schedule of a product of ``batch`` matrices ``m`` by ``k`` and ``k`` by ``n``.

    Args:
        unit_a, unit_b: which stride is 1: ``"p"`` (rows of A, columns of B), ``"k"``, ``"any"``.
        stride_a, stride_b: from one k to the next, in elements.
        staged: unfinished sums are kept in scratch, not in C.
    """
    acc = accumulator(dtype)
    size = acc.itemsize
    tile = choose_tile(target, acc, m, n)
    l1 = target.l1d
    far_b = unit_b == "p" and stride_b * size >= _FAR_BYTES
    # A panel of B streams through L1 while the panels of A pass by.
    kc = _k_block(tile, k, l1)
    one_block = m <= max(tile.mr, _l2_values(target, size) // 288)
    few = m <= (2 * tile.mr if far_b else _FEW_ROWS)
    if (
        dtype is acc
        and unit_b == "p"
        and (few or (m <= 64 and _stays_in_l1(target, stride_b * size, min(k, kc), tile.nr * size)))
    ):
        read_b = "direct"
        kc = _k_block(tile, k, l1 // 16 if m <= 2 * tile.mr and far_b else l1 // 2)
    else:
        # Packed by each block for itself where no other block would use it again.
        read_b = "packed" if one_block else "temp"
        if one_block:
            kc = min(kc, _k_block(tile, k, l1 // 4 if far_b else _l2_values(target, size) // max(m, 1) * tile.nr * size))
    near_a = unit_a == "k" or n <= 4 * tile.nr or _stays_in_l1(target, stride_a * size, min(k, kc), min(m, 16) * size)
    read_a = "direct" if dtype is acc and n <= 128 and near_a else "packed"
    widest = 256 if staged and kc < k else 768  # a block's sums stay in L2
    mc, nc, k_part = _divide(target, tile, m, n, k, batch, kc, widest, read_a, read_b)
    return Blocking(tile, read_a, read_b, mc, nc, min(kc, k_part), k_part)


def _divide(
    target: Any, tile: Tile, m: int, n: int, k: int, batch: int, kc: int, widest: int, read_a: str, read_b: str
) -> tuple[int, int, int]:
    """``mc``, ``nc`` and ``k_part``: first what the caches want, then smaller until there is something to share out."""
    mc = _even(m, max(tile.mr, _l2_values(target, tile.acc.itemsize) // kc), tile.mr)
    nc = _even(n, widest, tile.nr)
    k_part = max(k, 1)

    def blocks() -> int:
        return batch * -(-m // mc) * -(-n // nc) * -(-k // k_part)

    def divisible() -> bool:
        return blocks() < _BLOCKS and mc * nc * k_part * 2 > _BLOCK_FLOPS

    if divisible() and k >= 8 * max(m, n, 512):
        # A gradient of weights: a small result of long sums. Partial sums cost the least.
        k_part = rounded_up(-(-k // min(_BLOCKS, k // 2048)), 8)
    least = 2 * tile.nr if read_a == "direct" else _LEAST_COLUMNS // 2 if read_b == "packed" else _LEAST_COLUMNS
    # Where every block packs B for itself, dividing the rows would pack it again.
    while read_b != "packed" and divisible() and mc >= 2 * _LEAST_ROWS:
        mc = _even(m, mc // 2, tile.mr)
    while divisible() and nc >= 2 * least:
        nc = _even(n, nc // 2, tile.nr)
    if divisible() and k_part == k >= 2048:
        k_part = rounded_up(-(-k // min(-(-_BLOCKS // blocks()), k // 1024)), 8)
    return mc, nc, k_part


def _even(size: int, limit: int, step: int) -> int:
    """Blocks of about equal size, at most about ``limit`` and a multiple of ``step``."""
    count = max(1, -(-size // max(limit, step)))
    return rounded_up(-(-size // count), step)


@dataclass(frozen=True)
class SkinnyBlocking:
    """A schedule of a matrix-vector product: ``mc`` results a block, sums of ``k_part`` products."""

    mc: int
    k_part: int


def choose_skinny(target: Any, dtype: DType, m: int, k: int, batch: int, form: str) -> SkinnyBlocking:
    """The schedule of ``m`` sums of ``k`` products, ``batch`` times."""
    elements = (128 << 10) // dtype.itemsize
    # Along rows: enough of them for a copy of x to pay. Along columns: all that the strip of sums may take of L1, since memory is
    # read fastest in one run.
    mc = _even(m, target.l1d // 2 // 4 if form == "axpy" else max(64, min(4096, elements // max(k, 1))), 8)
    blocks = batch * -(-m // mc)
    parts = min(-(-_BLOCKS // blocks), k * min(m, mc) // elements, k // 64)
    return SkinnyBlocking(mc, max(1, k) if parts < 2 else rounded_up(-(-k // parts), 16))
