"""Programs: relocation, order, arenas, scalars, errors."""

from __future__ import annotations

import array
import math
import platform
import struct
import threading
from typing import Any

import llvmlite.binding as llvm
import numpy as np
import pytest

from cermet import config
from cermet.runtime import arena, object_cache, walker
from cermet.runtime.buffer import Buffer, empty_cache, memory_stats
from cermet.runtime.program import Launch, Pointer, Program, ScalarArg, counters, pack_scalar


def _filled(values: Any, dtype: Any) -> tuple[Buffer, np.ndarray]:
    values = np.asarray(values, dtype)
    b = Buffer(values.nbytes)
    view = b.view(dtype, values.shape, writeable=True)
    view[...] = values
    return b, view


def test_arguments_are_relocated(kernels: Any) -> None:
    out, got = _filled(np.zeros(5), np.int64)
    args = [Pointer(1), Pointer(2, 40), ScalarArg(1), -7, Pointer(3, -8), (1 << 63) - 1]
    program = Program([Launch(kernels.copy, args)], 3, "qq")
    for base in (1000, 2000):  # each run anew
        program.run([out.ptr, base, 64], [5, -base])
        assert got.tolist() == [base + 40, -base, -7, 56, (1 << 63) - 1]


def test_scalars_are_payloads_of_the_abi(kernels: Any) -> None:
    out, got = _filled(np.zeros(5), np.int64)
    program = Program([Launch(kernels.copy, [Pointer(1), *(ScalarArg(i) for i in range(5))])], 1, "fdqqf")
    program.run([out.ptr], [1.5, -2.5, -3, True, math.nan])
    raw = got.tobytes()
    assert struct.unpack("<f", raw[:4]) == (1.5,)
    assert struct.unpack("<d", raw[8:16]) == (-2.5,)
    assert got[2:4].tolist() == [-3, 1]
    assert math.isnan(struct.unpack("<f", raw[32:36])[0])
    program.run(
        [out.ptr], [np.float32(0.1), np.float64(0.1), np.int32(4), np.int64(5), 3]
    )  # numbers of NumPy, integers for floats
    assert struct.unpack("<f", got.tobytes()[:4])[0] == np.float32(0.1)
    assert got[2:4].tolist() == [4, 5]


@pytest.mark.parametrize(("value", "stored"), [(1e39, math.inf), (-1e300, -math.inf), (3.4e38, float(np.float32(3.4e38)))])
def test_float32_overflows_to_infinity(kernels: Any, value: float, stored: float) -> None:
    out, got = _filled(np.zeros(5), np.int64)
    program = Program([Launch(kernels.copy, [Pointer(1), *[ScalarArg(0)] * 5])], 1, "f")
    program.run([out.ptr], [value])
    assert struct.unpack("<f", got.tobytes()[:4])[0] == stored
    assert pack_scalar("f", value) == struct.pack("<f4x", stored)


def test_launches_run_in_order_through_the_arena(kernels: Any) -> None:
    n, blocks = 1000, 50
    out, got = _filled(np.zeros(n), np.float32)
    given, _ = _filled(np.arange(n), np.float32)
    chain = [Launch(kernels.add, [Pointer(0, 0), Pointer(2), n // blocks, ScalarArg(0)], blocks)]
    for i in range(20):
        chain.append(
            Launch(kernels.add, [Pointer(0, 4096 * (1 - i % 2)), Pointer(0, 4096 * (i % 2)), n // blocks, ScalarArg(0)], blocks)
        )
    chain.append(Launch(kernels.add, [Pointer(1), Pointer(0, 0), n // blocks, ScalarArg(1)], blocks))
    program = Program(chain, 2, "ff", arena_bytes=8192)
    for threads in (1, 2, 5):
        with config.scope(num_threads=threads):
            for _ in range(50):
                got[:] = -1
                program.run([out.ptr, given.ptr], [1.0, 0.5])
                assert (got == np.arange(n) + 21.5).all()


def test_no_blocks_and_no_launches(kernels: Any) -> None:
    Program([], 0).run([])
    out, got = _filled(np.zeros(5), np.int64)
    program = Program(
        [Launch(kernels.copy, [Pointer(1), 1, 2, 3, 4, 5], blocks=0), Launch(kernels.copy, [Pointer(1), 5, 4, 3, 2, 1])], 1
    )
    timings = np.full(2, -1, np.int64)
    program.run([out.ptr], timings=timings)
    assert got.tolist() == [5, 4, 3, 2, 1]
    assert timings[0] == 0
    assert timings[1] >= 0


def test_timings(kernels: Any) -> None:
    out, _ = _filled(np.zeros(8), np.int64)
    program = Program([Launch(kernels.busy, [Pointer(1), rounds], scratch=64) for rounds in (1, 100_000, 1)], 1)
    for timings in (np.zeros(3, np.int64), array.array("q", [0, 0, 0])):
        program.run([out.ptr], timings=timings)
        assert timings[1] > 10_000
        assert timings[1] > timings[0]
    for bad in (np.zeros(2, np.int64), bytes(24)):
        with pytest.raises(ValueError, match="timings must be a writable buffer of 3 int64"):
            program.run([out.ptr], timings=bad)


def test_counters(kernels: Any) -> None:
    out, _ = _filled(np.zeros(8), np.int64)
    program = Program([Launch(kernels.busy, [Pointer(1), 1], blocks=8, scratch=64)] * 3, 1)
    with config.scope(num_threads=1):
        program.run([out.ptr])
        before = counters()
        program.run([out.ptr])
        after = counters()
    assert after.programs - before.programs == 1
    assert after.launches - before.launches == 3
    assert after.shared == before.shared
    with config.scope(num_threads=2):
        program.run([out.ptr])
        assert counters().shared - after.shared == 3
    assert "programs=" in repr(after)


def test_grain_decides_what_is_shared(kernels: Any) -> None:
    out, got = _filled(np.zeros(8), np.int64)
    with config.scope(num_threads=2):
        before = counters()
        Program([Launch(kernels.busy, [Pointer(1), 1], blocks=8, grain=8, scratch=64)], 1).run([out.ptr])
        assert counters().shared == before.shared
        Program([Launch(kernels.busy, [Pointer(1), 1], blocks=8, grain=7, scratch=64)], 1).run([out.ptr])
        assert counters().shared == before.shared + 1
    assert got.tolist() == [2] * 8


def test_arenas_are_shared_by_programs(kernels: Any) -> None:
    empty_cache()
    live = memory_stats().live
    out, got = _filled(np.zeros(1000), np.float32)
    programs = [
        Program(
            [
                Launch(kernels.add, [Pointer(0, 64 * i), Pointer(1), 1000, ScalarArg(0)]),
                Launch(kernels.add, [Pointer(1), Pointer(0, 64 * i), 1000, ScalarArg(0)]),
            ],
            1,
            "f",
            arena_bytes=(1 << 20) + 64 * i,
        )
        for i in range(50)
    ]
    for program in programs:
        program.run([out.ptr], [1.0])
    assert (got == 100).all()
    assert memory_stats().live - live < 2 << 20
    assert 1 << 20 <= arena.idle_bytes() < 2 << 20
    # One that has been too large for long goes; empty_cache drops all.
    small = Program([Launch(kernels.add, [Pointer(1), Pointer(1), 1, ScalarArg(0)])], 1, "f")
    for _ in range(2 * arena._WINDOW + 1):
        small.run([out.ptr], [0.0])
    assert arena.idle_bytes() < 4096 + arena.SMALL
    empty_cache()
    assert arena.idle_bytes() == 0


def test_memory_is_flat_over_runs(kernels: Any) -> None:
    out, _ = _filled(np.zeros(1000), np.float32)
    program = Program(
        [Launch(kernels.add, [Pointer(1), Pointer(1), 10, ScalarArg(0)], 100, scratch=100)], 1, "f", arena_bytes=100_000
    )
    program.run([out.ptr], [1.0])
    reserved = memory_stats().reserved
    for threads in (1, 2):
        with config.scope(num_threads=threads):
            for _ in range(2000):
                program.run([out.ptr], [1.0])
    assert memory_stats().reserved - reserved < 1 << 20


def test_concurrent_runs_have_arenas_of_their_own(kernels: Any) -> None:
    n = 4000
    program = Program(
        [Launch(kernels.add, [Pointer(0), Pointer(2), 40, ScalarArg(0)], 100)]
        + [Launch(kernels.add, [Pointer(0), Pointer(0), 40, ScalarArg(0)], 100)] * 10
        + [Launch(kernels.add, [Pointer(1), Pointer(0), 40, ScalarArg(0)], 100)],
        2,
        "f",
        arena_bytes=4 * n,
    )
    problems = []

    def work(number: int) -> None:
        given, _ = _filled(np.full(n, 1000.0 * number), np.float32)
        out, got = _filled(np.zeros(n), np.float32)
        for i in range(300):
            program.run([out.ptr, given.ptr], [float(i % 7)])
            if not (got == 1000.0 * number + 12 * (i % 7)).all():
                problems.append((number, i))
                return

    with config.scope(num_threads=2):
        threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not problems


def test_denormals_survive_whatever_another_library_set(kernels: Any) -> None:
    # Some libraries switch the thread that loads them to flushing denormals to zero; a run must not notice, nor undo it.
    if platform.machine().lower() not in ("x86_64", "amd64"):
        pytest.skip("the test sets MXCSR")
    import ctypes

    text = """
    define i32 @swap(i32 %new) {
      %at = alloca i32
      call void @llvm.x86.sse.stmxcsr(ptr %at)
      %old = load i32, ptr %at
      store i32 %new, ptr %at
      call void @llvm.x86.sse.ldmxcsr(ptr %at)
      ret i32 %old
    }
    declare void @llvm.x86.sse.stmxcsr(ptr)
    declare void @llvm.x86.sse.ldmxcsr(ptr)
    """
    machine = llvm.Target.from_default_triple().create_target_machine(jit=True)
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(text), machine)
    engine.finalize_object()
    swap = ctypes.CFUNCTYPE(ctypes.c_uint32, ctypes.c_uint32)(engine.get_function_address("swap"))
    given, _ = _filled([1e-30, 1e-10], np.float32)
    out, got = _filled([-1.0], np.float32)
    program = Program([Launch(kernels.multiply, [Pointer(1), Pointer(2)])], 2)
    flushing = 0x1F80 | 0x8040
    old = swap(flushing)
    try:
        program.run([out.ptr, given.ptr])
        assert swap(flushing) & 0x8040 == 0x8040
    finally:
        swap(old)
    assert got[0] == np.float32(1e-30) * np.float32(1e-10) != 0


@pytest.mark.parametrize(
    ("launch", "text"),
    [
        ({"args": [Pointer(3)]}, r"launch 0 \(k\): Pointer\(base=3, offset=0\) names none of the bases 0 to 2"),
        ({"args": [Pointer(-1)]}, "names none of the bases"),
        ({"args": [Pointer(0, 65)]}, "outside the arena of 64 bytes"),
        ({"args": [Pointer(0, -1)]}, "outside the arena of 64 bytes"),
        ({"args": [ScalarArg(1)]}, r"ScalarArg\(index=1\) names none of the 1 scalars"),
        ({"args": [1 << 63]}, "does not fit into 64 bits"),
        ({"args": [1.5]}, "argument 1.5 is none of Pointer, ScalarArg and int"),
        ({"blocks": -1}, "blocks=-1 is negative"),
        ({"grain": 0}, "grain=0 is below 1"),
        ({"scratch": -1}, "scratch=-1 is negative"),
        ({"address": 0}, "address 0 is not that of a kernel"),
    ],
)
def test_bad_launches_are_refused(launch: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Program([Launch(**{"address": 4096, "args": [], "name": "k", **launch})], 2, "f", arena_bytes=64)


def test_bad_programs_are_refused() -> None:
    with pytest.raises(ValueError, match="expected letters out of 'f'"):
        Program([], 0, "x")
    with pytest.raises(ValueError, match="must not be negative"):
        Program([], -1)
    assert Program([], 0, 3).scalars == "qqq"


@pytest.mark.parametrize(
    ("bases", "scalars", "error", "text"),
    [
        ([1], [1.0, 1], ValueError, "expected 2 bases and 2 scalars, got 1 and 2"),
        ([1, 2], [1.0], ValueError, "expected 2 bases and 2 scalars, got 2 and 1"),
        ([1, 2], [1.0, 2.5], TypeError, "scalar 2.5 is not an integer or bool"),
        ([1, 2], ["1", 2], TypeError, "scalar '1' is not a float32"),
        ([1, 2], [1.0, 1 << 63], ValueError, "does not fit into 64 bits"),
        ([1, None], [1.0, 1], TypeError, "base 2 is None, not an address"),
        ([-1, 1 << 63], [1.0, 1], TypeError, "base 2 is 9223372036854775808, not an address"),
    ],
)
def test_bad_runs_are_refused(bases: Any, scalars: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        Program([], 2, "fq").run([abs(b) if b == -1 else b for b in bases], scalars)


def test_too_large_an_arena_is_a_memory_error(kernels: Any) -> None:
    program = Program([], 0, arena_bytes=1 << 50)
    with pytest.raises(MemoryError, match="cannot allocate"):
        program.run([])
    Program([], 0).run([])


def test_arguments_are_values() -> None:
    assert Pointer(1, 2) == Pointer(1, 2) != Pointer(1, 3)
    assert ScalarArg(1) == ScalarArg(1) != Pointer(1)
    assert len({Pointer(1, 2), Pointer(1, 2), ScalarArg(1), ScalarArg(1)}) == 2
    assert repr(Launch(255, [Pointer(1), 3], blocks=2)).startswith("Launch(0xff, args=[Pointer(base=1, offset=0), 3], blocks=2")


@pytest.mark.parametrize(
    "triple", ["x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu", "arm64-apple-macosx14", "riscv64-unknown-linux-gnu"]
)
def test_native_code_compiles_for_other_machines(triple: str) -> None:
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    machine, system = triple.split("-")[0], "Darwin" if "apple" in triple else "Linux"
    module = llvm.parse_assembly(walker.source(machine, system))
    module.verify()
    assert llvm.Target.from_triple(triple).create_target_machine(opt=2).emit_object(module)


class TestObjectCache:
    """Objects on disk."""

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Any) -> Any:
        with config.scope(cache_dir=tmp_path / "a" / "b", disk_cache=True):
            yield

    def _files(self) -> list[Any]:
        import pathlib

        return sorted(pathlib.Path(config.cache_dir, "objects").iterdir())

    def test_round_trip(self) -> None:
        assert object_cache.load("k") is None
        object_cache.store("k", b"code")
        assert object_cache.load("k") == b"code"
        assert object_cache.load("other") is None
        object_cache.store("k", b"new code")
        assert object_cache.load("k") == b"new code"
        (file,) = self._files()
        assert file.stat().st_mode & 0o777 == 0o600
        assert file.parent.stat().st_mode & 0o777 == 0o700

    def test_broken_entries_count_as_absent(self) -> None:
        object_cache.store("k", b"code" * 100)
        (file,) = self._files()
        good = file.read_bytes()
        for bad in (b"", good[:20], good[:-1], good + b"x", good[:-1] + b"?", b"X" + good[1:]):
            file.write_bytes(bad)
            assert object_cache.load("k") is None
        file.write_bytes(good)
        assert object_cache.load("k") is not None

    def test_an_entry_under_another_name_counts_as_absent(self) -> None:
        object_cache.store("k", b"code")
        object_cache.store("l", b"other code")
        first, second = self._files()
        second.write_bytes(first.read_bytes())
        assert sorted(map(str, (object_cache.load("k"), object_cache.load("l")))).count("None") == 1

    def test_files_others_can_write_are_not_trusted(self) -> None:
        object_cache.store("k", b"code")
        (file,) = self._files()
        file.chmod(0o666)
        assert object_cache.load("k") is None
        file.chmod(0o600)
        assert object_cache.load("k") == b"code"
        file.parent.chmod(0o777)
        assert object_cache.load("k") is None
        object_cache.store("l", b"code")
        assert len(self._files()) == 1
        file.parent.chmod(0o700)
        target = file.parent.parent / "target"
        file.rename(target)
        file.symlink_to(target)
        assert object_cache.load("k") is None

    def test_bounded(self) -> None:
        import os

        with config.scope(disk_cache_bytes=10_000):
            for i in range(30):
                object_cache.store(str(i), bytes(1000))
                os.utime(self._files()[0])
            object_cache.trim()
            assert 5 < len(self._files()) < 10

    def test_off_or_unusable(self, tmp_path: Any) -> None:
        with config.scope(disk_cache=False):
            object_cache.store("k", b"code")
            assert object_cache.load("k") is None
        blocked = tmp_path / "file"
        blocked.write_text("")
        with config.scope(cache_dir=blocked / "x"):
            object_cache.store("k", b"code")
            assert object_cache.load("k") is None
