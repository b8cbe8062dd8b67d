"""The memory plan: offsets in one arena for values that live between two launches. First come, first served, best fit, with the gaps of
what has died merged; linear in the number of launches but for the search among gaps. Knows sizes and lifetimes only."""

from __future__ import annotations

import bisect
from collections.abc import Hashable, Sequence

__all__ = ["plan_arena"]

ALIGN = 64


def plan_arena(
    births: Sequence[Sequence[tuple[Hashable, int]]], deaths: Sequence[Sequence[Hashable]]
) -> tuple[dict[Hashable, int], int]:
    """Offsets and the arena's size in bytes.

    Args:
        births: per launch, the (value, bytes) first needed at it. deaths: per launch, the values last needed at it.
    """
    gaps: list[tuple[int, int]] = []  # (offset, size), by offset
    offsets: dict[Hashable, int] = {}
    sizes: dict[Hashable, int] = {}
    top = 0
    for born, dead in zip(births, deaths, strict=True):
        for value, nbytes in born:
            size = max(ALIGN, -(-nbytes // ALIGN) * ALIGN)
            offset = _take(gaps, size)
            if offset is None:
                if gaps and gaps[-1][0] + gaps[-1][1] == top:  # grow the gap at the end instead of leaving it
                    offset = gaps.pop()[0]
                else:
                    offset = top
                top = offset + size
            offsets[value] = offset
            sizes[value] = size
        for value in dead:
            _give(gaps, offsets[value], sizes[value])
    return offsets, top


def _take(gaps: list[tuple[int, int]], size: int) -> int | None:
    best = -1
    for k, (_, have) in enumerate(gaps):
        if have >= size and (best < 0 or have < gaps[best][1]):
            best = k
    if best < 0:
        return None
    offset, have = gaps[best]
    if have == size:
        gaps.pop(best)
    else:
        gaps[best] = (offset + size, have - size)
    return offset


def _give(gaps: list[tuple[int, int]], offset: int, size: int) -> None:
    k = bisect.bisect_left(gaps, (offset, 0))
    if k < len(gaps) and gaps[k][0] == offset + size:
        size += gaps.pop(k)[1]
    if k > 0 and gaps[k - 1][0] + gaps[k - 1][1] == offset:
        offset, before = gaps.pop(k - 1)
        size += before
    bisect.insort(gaps, (offset, size))
