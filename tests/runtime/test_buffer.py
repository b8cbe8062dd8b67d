"""Buffers and the allocator behind them."""

from __future__ import annotations

import gc
import os
import random
import threading
import weakref
from collections.abc import Iterator

import ml_dtypes
import numpy as np
import pytest

from cermet import config
from cermet.runtime import buffer as module
from cermet.runtime.buffer import ALIGNMENT, Buffer, empty_cache, memory_stats, reset_peak

SIZES = (0, 1, 63, 64, 65, 4095, 4096, 4097, 5000, 65535, 65536, 65537, 100_000, (1 << 20) + 1, 5 << 20)


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    gc.collect()
    empty_cache()
    yield
    gc.collect()
    empty_cache()


def _resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("nbytes", SIZES)
def test_alignment_and_extent(nbytes: int) -> None:
    buffers = [Buffer(nbytes) for _ in range(5)]
    views = [b.view(np.uint8, (nbytes,), writeable=True) for b in buffers]
    for i, (b, view) in enumerate(zip(buffers, views)):
        assert b.ptr > 0
        assert b.ptr % ALIGNMENT == 0
        assert b.nbytes == nbytes
        assert b.owner is None
        view[:] = i
    for i, view in enumerate(views):  # no two overlap
        assert (view == i).all()


def test_memory_comes_back_at_once_and_is_used_again() -> None:
    before = memory_stats().live
    for nbytes in SIZES:
        b = Buffer(nbytes)
        ptr = b.ptr
        assert memory_stats().live >= before + nbytes
        del b  # no garbage collection
        assert memory_stats().live == before
        assert Buffer(nbytes).ptr == ptr


def test_blocks_waste_little() -> None:
    before = memory_stats().live
    for nbytes in [*range(1, 9000, 77), *(random.Random(0).randrange(1, 1 << 26) for _ in range(200))]:
        b = Buffer(nbytes)
        size = memory_stats().live - before
        assert nbytes <= size <= max(nbytes + 63, nbytes * 9 // 8)
        del b


def test_statistics() -> None:
    start = memory_stats().live
    reset_peak()
    a, b = Buffer(1 << 20), Buffer(1 << 21)
    del b
    stats = memory_stats()
    assert stats.live - start == 1 << 20
    assert stats.peak - start == 3 << 20
    assert stats.cached >= 1 << 21
    assert stats.reserved == stats.live + stats.cached
    assert "live=" in repr(stats)
    reset_peak()
    assert memory_stats().peak - start == 1 << 20
    del a
    empty_cache()
    assert memory_stats().cached < 1 << 20  # what is left is in slabs that live buffers share


def test_view() -> None:
    b = Buffer(24)
    array = b.view(np.float32, (2, 3), writeable=True)
    array[:] = np.arange(6).reshape(2, 3)
    again = b.view(np.float32, (3, 2))
    assert not again.flags.writeable
    assert again.flags.c_contiguous
    assert again.ravel().tolist() == [0, 1, 2, 3, 4, 5]
    assert again.ctypes.data == b.ptr
    assert b.view("i2", (2,), offset=20).shape == (2,)
    assert b.view(np.float64, ()).shape == ()
    assert b.view(np.bool_, (0, 5)).shape == (0, 5)
    half = b.view(ml_dtypes.bfloat16, (12,), writeable=True)
    half[:] = 1.5
    assert half.dtype == ml_dtypes.bfloat16
    assert half.astype(np.float32).sum() == 18
    with pytest.raises(ValueError, match="read-only"):
        again[0] = 1


def test_view_errors() -> None:
    b = Buffer(24)
    with pytest.raises(ValueError, match=r"\(7,\) of float32 is 28 bytes; the buffer has 24"):
        b.view(np.float32, (7,))
    with pytest.raises(ValueError, match="offset 25 is outside the buffer of 24 bytes"):
        b.view(np.uint8, (0,), offset=25)
    with pytest.raises(ValueError, match="the buffer has 4"):
        b.view(np.float32, (2,), offset=20)


def test_view_keeps_the_buffer_alive() -> None:
    b = Buffer(1 << 16)
    alive = weakref.ref(b)
    view = b.view(np.float32, (4, 1 << 12), writeable=True)
    part = view[1:, ::2]
    del b, view
    assert alive() is not None
    part[:] = 3
    others = [Buffer(1 << 16).view(np.uint8, (1 << 16,), writeable=True) for _ in range(10)]
    for other in others:
        other[:] = 255
    assert (part == 3).all()
    del part
    assert alive() is None


def test_from_owner() -> None:
    array = np.arange(10, dtype=np.float64)
    alive = weakref.ref(array)
    live = memory_stats().live
    b = Buffer.from_owner(array.ctypes.data, array.nbytes, array)
    assert b.owner is array
    assert memory_stats().live == live
    del array
    assert alive() is not None
    assert b.view(np.float64, (10,)).tolist() == list(range(10))
    assert "owner=ndarray" in repr(b)
    del b
    assert alive() is None


def test_errors() -> None:
    for nbytes in (1 << 50, 1 << 63, 1 << 100):
        with pytest.raises(MemoryError, match=rf"cannot allocate .*; {memory_stats().live:,} bytes are live"):
            Buffer(nbytes)
    with pytest.raises(ValueError, match="negative, got -1"):
        Buffer(-1)
    with pytest.raises(TypeError):
        Buffer("12")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="cannot be pickled"):
        __import__("pickle").dumps(Buffer(1))


def test_out_of_memory_uses_the_cache_first(monkeypatch: pytest.MonkeyPatch) -> None:
    del_me = Buffer(3 << 20)
    del del_me
    real, failures = module._map, []

    def once(nbytes: int) -> object:
        if not failures:
            failures.append(memory_stats().cached)
            raise OSError("no memory")
        return real(nbytes)

    monkeypatch.setattr(module, "_map", once)
    b = Buffer(7 << 20)
    assert failures[0] >= 3 << 20
    assert b.nbytes == 7 << 20
    assert memory_stats().cached < 1 << 20  # what is left is in slabs that live buffers share


def test_cache_is_bounded() -> None:
    with config.scope(buffer_cache_bytes=8 << 20):
        module._allocator.previous_high = module._allocator.high = 0
        kept = [Buffer(1 << 20) for _ in range(64)]
        # What was live lately may stay: a step that needs as much again takes it from there.
        kept.clear()
        assert 8 << 20 < memory_stats().cached <= 64 << 20
        # Two windows on nobody has needed it.
        for _ in range(2):
            module._allocator.window_end = 0.0
            Buffer(1 << 20)
        assert memory_stats().cached <= 8 << 20


def test_small_blocks_go_back_too() -> None:
    before = _resident()
    many = [Buffer(4000) for _ in range(20_000)]
    for b in many:
        b.view(np.uint8, (4000,), writeable=True)[:] = 1
    keep = many[10_000]
    assert _resident() - before > 70 << 20
    many.clear()
    del b
    empty_cache()
    assert memory_stats().cached < 2 << 20  # one slab, held by one buffer
    assert _resident() - before < 40 << 20
    assert keep.view(np.uint8, (4000,)).all()


def test_memory_is_flat() -> None:
    rng = random.Random(1)

    def churn() -> None:
        held: list[Buffer] = []
        for _ in range(20_000):
            held.append(Buffer(int(2 ** rng.uniform(0, 20))))
            if len(held) > 50:
                held.pop(rng.randrange(len(held)))

    churn()
    reserved = memory_stats().reserved
    for _ in range(3):
        churn()
    assert memory_stats().reserved < 1.5 * reserved + (8 << 20)


def test_threads_never_share_a_block() -> None:
    live = memory_stats().live
    problems: list[str] = []

    def work(number: int) -> None:
        rng = random.Random(number)
        held: list[tuple[Buffer, np.ndarray]] = []
        for i in range(3000):
            b = Buffer(rng.choice((64, 200, 4096, 9000, 70_000)))
            view = b.view(np.uint8, (b.nbytes,), writeable=True)
            view[:] = number
            held.append((b, view))
            if len(held) > 20:
                _, old = held.pop(rng.randrange(20))
                if not (old == number).all():
                    problems.append(f"thread {number}")
            if i % 500 == 0:
                empty_cache()

    threads = [threading.Thread(target=work, args=(n,)) for n in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems
    assert memory_stats().live == live


def test_dying_in_a_cycle() -> None:
    class Holder:
        pass

    live = memory_stats().live
    for _ in range(5000):  # enough for the collector to run in the middle of the allocator
        holder = Holder()
        holder.self, holder.buffer = holder, Buffer(100)  # type: ignore[attr-defined]
    del holder
    gc.collect()
    assert memory_stats().live == live


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_fork_has_memory_of_its_own() -> None:
    b = Buffer(1 << 20)
    view = b.view(np.uint8, (1 << 20,), writeable=True)
    view[:] = 1
    pid = os.fork()
    if pid == 0:
        view[:] = 2
        Buffer(5 << 20)
        os._exit(0 if (view == 2).all() else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert (view == 1).all()
