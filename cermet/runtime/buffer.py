"""Tensor memory: 64-byte aligned buffers from a bounded caching allocator.

A :class:`Buffer` gives its memory back the moment the last reference to it goes, to a free list of its size class, and the next
buffer of that class takes it from there: two list operations, no system call, and pages that are already mapped and warm.

Small blocks are carved out of slabs; large ones are anonymous mappings of their own, with huge pages where the system has
them. What the free lists hold is bounded: ``config.buffer_cache_bytes``, or as much as brings live and cached memory together
to the most that was live lately, whichever is more. A training step that needs 4 GB at its peak and 1 GB between steps
therefore keeps its pages, and gives them back some seconds after the last such step.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from cermet import config

__all__ = ["ALIGNMENT", "Buffer", "MemoryStats", "empty_cache", "memory_stats", "on_empty_cache", "reset_peak"]

#: Every buffer of the allocator starts at a multiple of this: a cache line, and a vector of AVX-512.
ALIGNMENT = 64

_EXACT = 4096  # up to here classes are multiples of 64 bytes; above, eight to a power of two (at most 1/8 is wasted)
_SMALL = 1 << 16  # up to here blocks come out of slabs
_SLAB = 1 << 20
_HUGE = 4 << 20  # from here on huge pages are asked for: fewer page faults and TLB misses, little waste by rounding
_WINDOW = 10.0  # seconds over which "the most that was live lately" looks back, once to twice


class MemoryStats:
    """A snapshot of the allocator, in bytes: ``live``, ``peak`` (since the last reset), ``cached``, ``reserved`` = live + cached.

    Memory that buffers merely share (:meth:`Buffer.from_owner`) is not counted.
    """

    __slots__ = ("cached", "live", "peak", "reserved")

    def __init__(self, live: int, peak: int, cached: int) -> None:
        self.live, self.peak, self.cached, self.reserved = live, peak, cached, live + cached

    def __repr__(self) -> str:
        return f"MemoryStats(live={self.live}, peak={self.peak}, cached={self.cached}, reserved={self.reserved})"


def _slab_blocks(size: int) -> int:
    """Blocks in a slab. Fewer than would fill one when they are tiny: a slab is as long as its list entries take to make."""
    return min(_SLAB // size, 256)


def _map(nbytes: int) -> tuple[int, mmap.mmap]:
    """New zeroed pages and the object that unmaps them when it dies."""
    if sys.platform == "win32":
        block = mmap.mmap(-1, nbytes)
    else:
        # Private: Python's default is a shared mapping, which a forked child would write into.
        block = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if nbytes >= _HUGE and hasattr(mmap, "MADV_HUGEPAGE"):
            with contextlib.suppress(OSError):  # a kernel built without huge pages
                block.madvise(mmap.MADV_HUGEPAGE)
    return ctypes.addressof(ctypes.c_char.from_buffer(block)), block


class _Allocator:
    """The free lists and the counters. One per process.

    A lock costs as much as all the rest of an allocation, so the common path does without. Blocks are taken and given back by
    ``list.pop`` and ``list.append``, which are atomic, on lists that stay in their dictionary for good. Counters are updated by
    single statements without a call in them, between which CPython neither switches threads nor collects garbage; were one
    ever lost, a statistic would be off and nothing else.

    What is rare (mapping memory, giving it back) is done under a lock. It is reentrant because a buffer may die in the middle of
    such a section, when the cyclic collector frees a cycle it hangs from.
    """

    __slots__ = ("__weakref__", "cached", "free", "high", "live", "lock", "peak", "previous_high", "slabs", "window_end")

    def __init__(self) -> None:
        self.lock = threading.RLock()
        # Size class -> blocks: addresses for slab blocks, (address, mapping) for the others.
        self.free: dict[int, list[Any]] = {}
        self.slabs: dict[int, tuple[int, mmap.mmap]] = {}  # start -> (size class, mapping)
        self.live = 0
        self.cached = 0
        self.high = 0  # the most live in this window, the only mark that the allocation path keeps
        self.previous_high = 0  # the most live in the window before
        self.peak = 0  # the most live in the closed windows since reset_peak()
        self.window_end = 0.0

    def refill(self, size: int) -> Any:
        """A block of a class whose free list was found empty. It is counted as cached; the caller takes it off there."""
        with self.lock:
            for last in (False, True):
                try:
                    return self.free.setdefault(size, []).pop()  # another thread may have given one back meanwhile
                except IndexError:
                    pass
                try:
                    return self._map_blocks(size)
                except (OSError, ValueError, OverflowError, MemoryError):
                    if not last:
                        empty_cache()  # the memory may be in our own free lists, in other sizes
            raise MemoryError(
                f"out of memory: cannot allocate {size:,} bytes; {self.live:,} bytes are live in Cermet buffers "
                f"(peak {self.highest():,}). Release tensors you no longer need, or use smaller batches."
            )

    def _map_blocks(self, size: int) -> Any:
        if size > _SMALL:
            block: Any = _map((size + mmap.PAGESIZE - 1) & -mmap.PAGESIZE)
            self.cached += size
            return block
        count = _slab_blocks(size)
        start, mapping = _map((count * size + mmap.PAGESIZE - 1) & -mmap.PAGESIZE)
        self.slabs[start] = (size, mapping)
        self.free[size].extend(range(start + (count - 1) * size, start, -size))  # popped from the end: lowest address first
        self.cached += count * size
        return start

    def highest(self) -> int:
        return max(self.peak, self.high)

    def trim(self) -> None:
        """Bring the free lists back under their bound. Called by each release that leaves more than configured there."""
        with self.lock:
            now = time.monotonic()
            if now > self.window_end:
                self.peak = self.highest()
                self.previous_high = self.high
                self.high = self.live
                self.window_end = now + _WINDOW
            bound = max(config.buffer_cache_bytes, max(self.high, self.previous_high) - self.live)
            if self.cached > bound:
                self.release(bound - bound // 4)  # some slack, or the next release would trim again

    def release(self, target: int) -> None:
        """Give free blocks back to the system, largest first, until at most ``target`` bytes are cached."""
        with self.lock:
            for size in sorted((s for s in self.free if s > _SMALL), reverse=True):
                blocks = self.free[size]
                while blocks and self.cached > target:
                    try:
                        blocks.pop(0)  # the one unused for longest; the mapping goes with its last reference
                    except IndexError:
                        break
                    self.cached -= size
            if self.cached > target:
                self._release_slabs(target)

    def _release_slabs(self, target: int) -> None:
        """Unmap slabs none of whose blocks is in use."""
        by_size: dict[int, list[int]] = {}
        for start, (size, _) in self.slabs.items():
            by_size.setdefault(size, []).append(start)
        for size, starts in by_size.items():
            blocks = self.free[size]
            # Taken out one by one: other threads help themselves from the list at any time, and nobody may get a block twice.
            taken: list[int] = []
            while blocks:
                try:
                    taken.append(blocks.pop())
                except IndexError:
                    break
            free = set(taken)
            for start in starts:
                slab = range(start, start + _slab_blocks(size) * size, size)
                if self.cached > target and free.issuperset(slab):
                    free.difference_update(slab)
                    self.cached -= len(slab) * size
                    del self.slabs[start]
            blocks.extend(sorted(free, reverse=True))


_allocator = _Allocator()
# Nothing is unmapped when the interpreter goes: a daemon thread may still be inside a program that uses the memory.
ctypes.pythonapi.Py_IncRef(ctypes.py_object(_allocator))
_hooks: list[Callable[[], None]] = []


class Buffer:
    """A piece of memory: ``nbytes`` bytes from address ``ptr`` on, given back when the object dies.

    The contents of a new buffer are undefined. Memory of the allocator starts at a multiple of 64 bytes; a buffer of zero bytes
    has a valid address too. Buffers are never part of a reference cycle of their own making.

    Args:
        nbytes: its size.

    Attributes:
        ptr: its address. nbytes: its size. capacity: bytes of the allocator's block that it has; 0 where memory of others is shared.

    Raises:
        MemoryError: when the system has no such memory; the message names the bytes asked for and the bytes live.
        ValueError: when ``nbytes`` is negative.
    """

    __slots__ = ("__weakref__", "_block", "capacity", "nbytes", "ptr")

    ptr: int
    nbytes: int
    capacity: int

    def __init__(self, nbytes: int, _a: _Allocator = _allocator) -> None:
        # Run for every result of every evaluation; hence the absence of helper functions and of a lock.
        self.capacity = 0  # until there is a block to give back
        if nbytes > _EXACT:
            step = 1 << ((nbytes - 1).bit_length() - 4)
            size = (nbytes + step - 1) & -step
        elif nbytes > 0:
            size = (nbytes + 63) & -64
        elif nbytes == 0:
            size = 64
        else:
            raise ValueError(f"Buffer: nbytes must not be negative, got {nbytes}")
        try:
            block = _a.free[size].pop()
        except (KeyError, IndexError):
            block = _a.refill(size)
        _a.cached -= size
        live = _a.live = _a.live + size
        if live > _a.high:  # max() would be a call, see _Allocator
            _a.high = live
        self._block = block
        self.capacity = size
        self.nbytes = nbytes
        self.ptr = block if size <= _SMALL else block[0]

    def __del__(self, _a: _Allocator = _allocator) -> None:
        size = self.capacity
        if size:
            _a.free[size].append(self._block)
            _a.live -= size
            cached = _a.cached = _a.cached + size
            if cached > config.buffer_cache_bytes:
                _a.trim()

    @classmethod
    def from_owner(cls, ptr: int, nbytes: int, owner: Any) -> Buffer:
        """A buffer over memory that ``owner`` keeps alive, such as a read-only NumPy array or a DLPack capsule.

        The owner is released with the buffer. The address is used as it is: whoever shares memory sees to its alignment.
        """
        self = cls.__new__(cls)
        self.ptr = ptr
        self.nbytes = nbytes
        self._block = owner
        self.capacity = 0
        return self

    @property
    def owner(self) -> Any:
        """What keeps shared memory alive; ``None`` for memory of the allocator."""
        return None if self.capacity else self._block

    def view(self, dtype: Any, shape: tuple[int, ...], *, writeable: bool = False, offset: int = 0) -> np.ndarray:
        """A C-contiguous NumPy array over this memory, without a copy. The array keeps the buffer alive.

        Args:
            dtype: a NumPy dtype.
            shape: its shape.
            writeable: whether the array may be written to.
            offset: where it starts, in bytes.

        Raises:
            ValueError: when the array would not lie within the buffer.
        """
        nbytes = self.nbytes
        if offset:
            if not 0 <= offset <= nbytes:
                raise ValueError(f"Buffer.view: offset {offset} is outside the buffer of {nbytes} bytes")
            nbytes -= offset
        exporter = _Exporter()
        exporter.buffer = self
        exporter.__array_interface__ = {
            "version": 3,
            "typestr": "|u1",
            "shape": (nbytes,),
            "data": (self.ptr + offset, not writeable),
        }
        try:
            # Through bytes, because the interface cannot name dtypes that are not NumPy's own (bfloat16).
            return np.ndarray(shape, dtype, np.asarray(exporter))
        except TypeError:
            wanted = np.dtype(dtype).itemsize * int(np.prod(shape, dtype=np.int64))
            raise ValueError(f"Buffer.view: {shape} of {np.dtype(dtype)} is {wanted} bytes; the buffer has {nbytes}") from None

    def __repr__(self) -> str:
        kind = "" if self.capacity else f", owner={type(self._block).__name__}"
        return f"Buffer(ptr={self.ptr:#x}, nbytes={self.nbytes}{kind})"

    def __reduce__(self) -> Any:
        raise TypeError("a Buffer cannot be pickled: it is an address in this process; save the tensor instead")


class _Exporter:
    """What NumPy sees of a buffer, and the link by which an array keeps it alive."""

    __slots__ = ("__array_interface__", "buffer")

    __array_interface__: dict[str, Any]
    buffer: Buffer


def memory_stats() -> MemoryStats:
    """What the allocator holds now. Sizes are those of blocks, up to 1/8 larger than what was asked for."""
    with _allocator.lock:
        return MemoryStats(_allocator.live, _allocator.highest(), _allocator.cached)


def reset_peak() -> None:
    """Let the peak start again from what is live now."""
    with _allocator.lock:
        # The bound of the free lists looks at the same marks: it must not forget what it has seen.
        _allocator.previous_high = max(_allocator.previous_high, _allocator.high)
        _allocator.high = _allocator.live
        _allocator.peak = 0


def on_empty_cache(hook: Callable[[], None]) -> None:
    """Have ``hook`` called when free memory is to go back to the system; it drops the buffers that are kept for later."""
    _hooks.append(hook)


def empty_cache() -> None:
    """Give all free memory back to the system. Worth calling before something else needs the memory; the next step is slower."""
    for hook in _hooks:
        hook()
    _allocator.release(0)


def _after_fork() -> None:
    # Another thread may have held the lock at the fork; it does not exist in the child.
    _allocator.lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
