"""Workspaces for running programs: one piece of memory per run in progress, shared by all programs.

A run checks one out, and no other run touches it until it is checked in. They only grow, so that a handful serves every program
and their pages stay warm; memory does not rise with the number of programs. One that has been far too large for some time is
given back, so that memory does not stay as large as the largest evaluation ever was.
"""

from __future__ import annotations

from cermet.runtime import buffer
from cermet.runtime.buffer import Buffer

__all__ = ["SMALL", "check_in", "check_out", "idle", "idle_bytes", "small", "tick"]

_IDLE = 4  # workspaces kept without a run; more are in use only while more threads run programs at the same time
_WINDOW = 512  # check-ins after which the largest need is taken anew

SMALL = 1 << 16  # bytes of a workspace that is good for any small program
#: Idle workspaces of that size, one for each thread that has run small programs at the same time as others. `Program.run` takes the last
#: and puts it back by itself: for a program of a microsecond a call and its accounts would be a burden.
small: list[Buffer] = []

# Taken and put back at the end: the last one used is the warmest. pop() and append() are atomic.
idle: list[Buffer] = []


class _Need:
    """The largest workspace asked for in this window and the one before. A lost update would delay a trim, no more."""

    __slots__ = ("count", "now", "previous")

    def __init__(self) -> None:
        self.count = self.now = self.previous = 0


_need = _Need()


def check_out(nbytes: int) -> Buffer:
    """A workspace of at least ``nbytes`` bytes, 64-byte aligned, contents undefined.

    Raises:
        MemoryError: when there is no such memory.
    """
    if nbytes > _need.now:
        _need.now = nbytes
    try:
        workspace = idle.pop()
    except IndexError:
        return Buffer(nbytes)
    if workspace.nbytes >= nbytes:
        return workspace
    del workspace  # before the larger one is made: the two need not exist at the same time
    return Buffer(nbytes)


def check_in(workspace: Buffer) -> None:
    """Put a workspace back."""
    limit = tick()
    if (limit is None or workspace.nbytes <= limit) and len(idle) < _IDLE:
        idle.append(workspace)


def tick() -> int | None:
    """Count a run. Where that ends a window, what was far too large in it goes; returns the limit then, else None."""
    need = _need
    need.count += 1
    if need.count < _WINDOW:
        return None
    need.count, need.previous, need.now = 0, need.now, 0
    limit = 2 * need.previous
    idle[:] = [w for w in idle if w.nbytes <= limit]
    return limit


def idle_bytes() -> int:
    """Bytes of the workspaces that no run is using. They count as live in ``buffer.memory_stats``."""
    return sum(w.nbytes for w in [*idle, *small])


buffer.on_empty_cache(idle.clear)
buffer.on_empty_cache(small.clear)
