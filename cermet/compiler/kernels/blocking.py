"""Which register tile, what to pack and how large the blocks: decided from the shape, the strides' unit facts and the
machine's caches.

Never from the number of threads, so that sums are split alike everywhere. What is decided here and compiled in (tile, ways of
reading) has few values, chosen by coarse classes of shape: a new batch size finds its kernel there already.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from math import gcd
from typing import Any

from cermet.compiler.kernels.irtools import accumulator, rounded_up
from cermet.compiler.kernels.microkernel import Tile
from cermet.dtypes import DType

__all__ = ["Blocking", "SkinnyBlocking", "alternatives", "choose", "choose_skinny", "choose_tile"]

# A matrix-vector product is divided until it has this many blocks.
_SKINNY_BLOCKS = 16
# The cost model. Everything is stated in floating-point operations that could have been done meanwhile.
_PACK = {"p": 12, "k": 20, "any": 40}  # for each value that is packed, by which of its strides is 1
_STREAM_B = 1.5  # for each value of B that comes from L3, asked for in time
_COMBINE = 24  # for each partial sum that is written and read again
_BLOCK = 20_000  # for each block: its index, its first misses
_LAUNCH = 100_000  # for a launch more: what one thread waits for the other
# Sharing out is judged by machines of so many threads (never by how many there are now), small ones counting more; a thread is not
# worth waking for less than this much work; and threads never quite keep step.
_THREADS = ((1, 0.3), (2, 0.3), (4, 0.2), (8, 0.1), (16, 0.1))
_LEAST_WORK = 1 << 20
_JITTER = 0.1
_LEAST_PART = 512  # products of a partial sum
# Rows up to which B is better read where it lies than packed for so little use.
_FEW_ROWS = 32
# Rows of A that are read in place: each needs a register for its address, of which x86 has few (and at most 16 for vectors one for
# its broadcast value).
_READ_ROWS = {16: 7, 32: 8}
# Distance between B's rows from which on each is on a page of its own: then few rows at a time, so that their pages stay known.
_FAR_BYTES = 2048


@dataclass(frozen=True)
class Blocking:
    """A schedule of one product.

    Attributes:
        tile: the register tile.
        read_a, read_b: see `gemm.Variant`.
        mc, nc, kc: rows, columns and products of a block, at most.
        m_blocks: into how many blocks the rows are dealt.
        k_part: products of one partial sum; all of them where the sum is not split.
    """

    tile: Tile
    read_a: str
    read_b: str
    mc: int
    nc: int
    kc: int
    k_part: int
    m_blocks: int


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
) -> tuple[float, Blocking]:  # fmt: skip
    """The schedule of a product of ``batch`` matrices ``m`` by ``k`` and ``k`` by ``n``, and what it is thought to cost.

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
    near_a = unit_a == "k" or n <= 4 * tile.nr or _stays_in_l1(target, stride_a * size, min(k, kc), min(m, 16) * size)
    read_a = "direct" if dtype is acc and n <= 128 and near_a else "packed"
    if read_a == "direct" and target.is_x86 and tile.mr > _READ_ROWS[target.vector_registers]:
        tile = replace(tile, mr=_READ_ROWS[target.vector_registers])
    one_block = m <= max(tile.mr, _l2_values(target, size) // 288)
    few = m <= (2 * tile.mr if far_b else _FEW_ROWS)
    if (
        dtype is acc
        and unit_b == "p"
        and (few or (m <= 64 and _stays_in_l1(target, stride_b * size, min(k, kc), tile.nr * size)))
    ):
        read_b = "direct"
        kc = _k_block(tile, k, l1 // 16 if m <= 2 * tile.mr and far_b else l1 // 2)
        ways = [(read_b, kc)]
    else:
        ways = [("temp", kc)]
        if one_block:
            # Packed by each block for itself: rows are not divided then.
            room = l1 // 4 if far_b else _l2_values(target, size) // max(m, 1) * tile.nr * size
            ways.append(("packed", min(kc, _k_block(tile, k, room))))
    found = []
    pack_a = 0 if read_a == "direct" else _PACK[unit_a]
    for read_b, kc in ways:
        pack_b = 0 if read_b == "direct" else _PACK[unit_b]
        widest = 256 if staged and kc < k else 768  # a block's sums stay in L2
        cost, m_blocks, nc, k_part = _divide(target, tile, (m, n, k), batch, kc, widest, pack_a, pack_b, read_b)
        found.append((cost, Blocking(tile, read_a, read_b, _rows_of(m, tile, m_blocks), nc, min(kc, k_part), k_part, m_blocks)))
    return min(found, key=lambda f: f[0])


def alternatives(target: Any, b: Blocking, m: int, n: int) -> list[Blocking]:
    """Schedules that divide rows and columns otherwise than ``b``, for measuring. Sums are split as in ``b``, so bits are the same."""
    m_panels, n_panels = -(-m // b.tile.mr), -(-n // b.tile.nr)
    tallest = max(b.mc // b.tile.mr, _l2_values(target, b.tile.acc.itemsize) * 4 // 3 // (b.kc * b.tile.mr))
    rows, columns = b.m_blocks, -(-n_panels // (b.nc // b.tile.nr))
    tall = [i for i in {max(1, rows // 2), rows, rows + 1, rows * 2, rows * 4} if -(-m_panels // tallest) <= i <= m_panels]
    wide = [
        j
        for j in {max(1, columns // 2), columns, columns + 1, columns * 2}
        if j <= n_panels and b.tile.nr * -(-n_panels // j) <= 1024
    ]
    if b.read_b == "packed":
        tall = [rows]
    found = {replace(b, mc=_rows_of(m, b.tile, i), m_blocks=i, nc=-(-n_panels // j) * b.tile.nr) for i in tall for j in wide}
    return sorted(found - {b}, key=lambda c: (c.m_blocks, c.nc))


def _rows_of(m: int, tile: Tile, blocks: int) -> int:
    """The most rows in one of so many blocks."""
    panels = -(-m // tile.mr)
    return -(-panels // blocks) * tile.mr


def _divide(
    target: Any, tile: Tile, mnk: tuple[int, int, int], batch: int, kc: int, widest: int, pack_a: float, pack_b: float, read_b: str
) -> tuple[float, int, int, int]:  # fmt: skip
    """The least estimated cost among blocks that stay in the caches, and its ``m_blocks``, ``nc`` and ``k_part``. ``pack_a``, ``pack_b``:
    what it costs to pack a value."""
    m, n, k = mnk
    tallest = max(1, _l2_values(target, tile.acc.itemsize) // (kc * tile.mr))
    cost, p, i, j = _counted(
        tile.mr, tile.nr, _coarse(m), _coarse(n), _coarse(k), batch, tallest, max(1, widest // tile.nr), pack_a, pack_b, read_b
    )
    m_panels, n_panels = -(-m // tile.mr), -(-n // tile.nr)
    return cost, min(i, m_panels), -(-n_panels // j) * tile.nr, max(k, 1) if p == 1 else rounded_up(-(-k // p), 8)


def _coarse(size: int) -> int:
    """The size, up to an eighth larger: neighbouring sizes are divided into as many blocks, and the search is made once for them."""
    step = 1 << max(0, size.bit_length() - 4)
    return -(-size // step) * step


@lru_cache(maxsize=4096)
def _counted(
    mr: int, nr: int, m: int, n: int, k: int, batch: int, tallest: int, broadest: int, pack_a: float, pack_b: float, read_b: str
) -> tuple[float, int, int, int]:
    """The least estimated cost, and into how many parts ``k``, ``m`` and ``n`` are divided for it: into blocks of at most so many panels."""
    m_panels, n_panels = -(-m // mr), -(-n // nr)
    rows, columns = _counts(m_panels, tallest), _counts(n_panels, broadest)
    parts = [
        p for p in (1, 2, 4, 8, 16, 32) if p == 1 or (k >= p * _LEAST_PART and p * batch * m * n <= max(k * (m + n), 1 << 18))
    ]
    least = 2.0 * batch * m * n * k
    pack_a, pack_b = pack_a * batch * m * k, pack_b * batch * n * k
    stream_b = batch * n * k * _STREAM_B if read_b == "temp" else 0
    if read_b == "temp":
        pack_b += _LAUNCH
    if read_b == "packed":
        rows = rows[:1]
    most = max(1.0, least / _LEAST_WORK)
    uneven: dict[int, float] = {}
    best = (float("inf"), 1, 1, 1)
    for p in parts:
        base = least + pack_b + (batch * m * n * p * _COMBINE + _LAUNCH if p > 1 else 0)
        for i in rows:
            for j in columns:
                blocks = batch * i * j * p
                work = base + pack_a * j + stream_b * i + blocks * _BLOCK
                if work >= best[0]:
                    break  # it grows with j, and sharing out makes it no less
                if blocks not in uneven:
                    uneven[blocks] = _unevenness(blocks, most)
                cost = work * uneven[blocks]
                if cost < best[0]:
                    best = (cost, p, i, j)
    return best


def _counts(panels: int, most: int) -> list[int]:
    """Into how many blocks ``panels`` may be divided, ``most`` panels in each at most: few at first, then ever more."""
    least = -(-panels // most)
    found = {c for c in (8, 16, 32) if least <= c <= panels}
    step = least
    while step <= min(panels, 8 * least + 8):
        found.add(-(-panels // -(-panels // step)))
        step += max(1, step // 4)
    return sorted(found)


def _unevenness(blocks: int, most: float) -> float:
    """The time with some threads (``most`` at most), times their number, over the time alone; the mean over machines."""
    total = 0.0
    for threads, weight in _THREADS:
        t = min(threads, most)
        turns = -(-blocks // threads) if t == threads else max(1.0, blocks / t)
        total += weight * (max(turns + _JITTER, blocks / t) * t / blocks if t > 1 else 1.0)
    return total


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
    parts = min(-(-_SKINNY_BLOCKS // blocks), k * min(m, mc) // elements, k // 64)
    return SkinnyBlocking(mc, max(1, k) if parts < 2 else rounded_up(-(-k // parts), 16))
