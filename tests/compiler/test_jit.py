"""The caches of machine code: in memory, on disk, and what a damaged disk may not do."""

from __future__ import annotations

import ctypes
import gc
import os
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest

from cermet import config
from cermet.compiler.llvm import jit
from cermet.compiler.llvm.objects import ObjectCache

FUNCTION = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)


def module(value: int) -> str:
    from cermet.compiler.llvm.target import host

    return f'target triple = "{host().triple}"\ndefine i64 @f(i64 %x) {{\n  %y = add i64 %x, {value}\n  ret i64 %y\n}}\n'


def request(value: int, **how: int) -> jit.Request:
    return jit.Request(f"test:add{value}", lambda: module(value), "f", **how)


def value_of(code: jit.Code) -> int:
    return int(FUNCTION(code.address)(0))


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    jit.clear()
    with config.scope(cache_dir=str(tmp_path), disk_cache=True):
        yield tmp_path / "kernels"
    jit.clear()


def change(name: str, before: dict[str, float]) -> int:
    return int(jit.counters()[name] - before[name])


def test_compiles_runs_and_remembers(folder: Path) -> None:
    before = jit.counters()
    codes = jit.compile_many([request(3), request(4), request(3)])
    assert [value_of(c) for c in codes] == [3, 4, 3]
    assert codes[0] is codes[2]
    assert change("compiled", before) == 2
    assert jit.compile_many([request(4)])[0] is codes[1]
    assert change("memory_hits", before) == 1


def test_the_disk_outlives_the_memory(folder: Path) -> None:
    jit.compile_many([request(5)])
    jit.clear()
    before = jit.counters()
    [code] = jit.compile_many([jit.Request("test:add5", lambda: pytest.fail("built although on disk"), "f")])
    assert value_of(code) == 5
    assert change("disk_hits", before) == 1 and change("compiled", before) == 0


def test_effort_and_entry_are_part_of_the_key(folder: Path) -> None:
    first, second = jit.compile_many([request(6), request(6, effort=jit.LIGHT)])
    assert first is not second


def test_memory_is_bounded(folder: Path) -> None:
    with config.scope(kernel_cache_size=3):
        before = jit.counters()
        codes = jit.compile_many([request(k) for k in range(10, 16)])
        assert change("evictions", before) == 3 and jit.counters()["in_memory"] == 3
        # What is evicted stays loaded while it is referenced.
        assert [value_of(c) for c in codes] == list(range(10, 16))


def test_code_is_freed(folder: Path) -> None:
    [code] = jit.compile_many([request(7)])
    tracker = weakref.ref(code._tracker)
    jit.clear()
    del code
    gc.collect()
    assert tracker() is None


def only_file(folder: Path) -> Path:
    [path] = folder.glob("*.o")
    return path


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:20],
        lambda data: data[:-1],
        lambda data: data + b"x",
        lambda data: data[:100] + bytes([data[100] ^ 1]) + data[101:],
        lambda data: b"CERMETO0" + data[8:],
        lambda data: bytes(len(data)),
        lambda data: b"#!/bin/sh\n",
    ],
)
def test_a_damaged_file_is_compiled_again(folder: Path, damage: object) -> None:
    jit.compile_many([request(8)])
    path = only_file(folder)
    whole = path.read_bytes()
    path.write_bytes(damage(whole))  # type: ignore[operator]
    jit.clear()
    before = jit.counters()
    assert value_of(jit.compile_many([request(8)])[0]) == 8
    assert change("compiled", before) == 1
    assert path.read_bytes() == whole


def test_a_file_under_another_name_is_not_trusted(folder: Path) -> None:
    jit.compile_many([request(1)])
    one = only_file(folder)
    jit.compile_many([request(2)])
    [two] = [p for p in folder.glob("*.o") if p != one]
    two.write_bytes(one.read_bytes())  # valid in itself, but of another kernel
    jit.clear()
    assert value_of(jit.compile_many([request(2)])[0]) == 2


def test_an_intact_file_that_does_not_link_is_compiled_again(folder: Path) -> None:
    jit.compile_many([request(9)])
    disk = jit._disk_cache()
    assert disk is not None
    keys: list[bytes] = []
    original = ObjectCache.get
    try:
        ObjectCache.get = lambda self, key: (keys.append(key), original(self, key))[1]  # type: ignore[method-assign]
        jit.clear()
        jit.compile_many([request(9)])
    finally:
        ObjectCache.get = original  # type: ignore[method-assign]
    disk.put(keys[0], b"not an object, though its checksum is right")
    jit.clear()
    assert value_of(jit.compile_many([request(9)])[0]) == 9


@pytest.mark.skipif(not hasattr(os, "symlink") or os.name == "nt", reason="POSIX only")
def test_links_are_not_followed(folder: Path, tmp_path: Path) -> None:
    jit.compile_many([request(20)])
    path = only_file(folder)
    elsewhere = tmp_path / "elsewhere"
    os.replace(path, elsewhere)
    os.symlink(elsewhere, path)
    jit.clear()
    before = jit.counters()
    jit.compile_many([request(20)])
    assert change("compiled", before) == 1
    assert not path.is_symlink() and elsewhere.exists()


@pytest.mark.skipif(os.name == "nt", reason="POSIX only")
def test_the_folder_is_the_owners_alone(folder: Path) -> None:
    jit.compile_many([request(21)])
    assert folder.stat().st_mode & 0o777 == 0o700
    assert only_file(folder).stat().st_mode & 0o077 == 0
    folder.chmod(0o777)
    assert ObjectCache(folder, 1 << 20).enabled and folder.stat().st_mode & 0o777 == 0o700


def test_a_folder_that_cannot_be_made_disables_the_disk(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with config.scope(cache_dir=str(tmp_path / "file"), disk_cache=True):
        jit.clear()
        assert value_of(jit.compile_many([request(22)])[0]) == 22
    assert not ObjectCache(tmp_path / "file" / "x", 1 << 20).enabled


def test_the_disk_can_be_switched_off(tmp_path: Path) -> None:
    with config.scope(cache_dir=str(tmp_path), disk_cache=False):
        jit.clear()
        jit.compile_many([request(23)])
    assert not (tmp_path / "kernels").exists()


def test_the_disk_is_bounded_and_keeps_what_was_used_last(tmp_path: Path) -> None:
    cache = ObjectCache(tmp_path / "bounded", 10_000)
    for k in range(20):
        cache.put(b"%d" % k, bytes(1000))
        os.utime(cache.path(b"%d" % k), (k, k))
        cache.get(b"0")
    kept = [k for k in range(20) if cache.path(b"%d" % k).exists()]
    assert 0 in kept and 19 in kept and len(kept) < 10
    assert sum(p.stat().st_size for p in cache.folder.iterdir()) <= 10_000


def test_an_error_reaches_every_waiter_and_leaves_no_trace(folder: Path) -> None:
    bad = jit.Request("test:bad", lambda: "this is no LLVM", "f")
    with pytest.raises(RuntimeError):
        jit.compile_many([request(24), bad])
    with pytest.raises(RuntimeError):
        jit.compile_many([bad])
    assert not jit._pending
    assert value_of(jit.compile_many([request(24)])[0]) == 24


def test_the_remains_of_a_failed_compilation_are_safe_to_collect(folder: Path) -> None:
    # Parses, but does not verify: the error's traceback refers to the module and its context, in a cycle.
    text = module(0).replace("%y = add i64 %x, 0", "br label %next\nnext:\n  %y = phi i64 [ %x, %next ]")
    for k in range(20):
        with pytest.raises(RuntimeError):
            jit.compile_many([jit.Request(f"test:unverified{k}", lambda: text, "f")])
    gc.collect()
    assert value_of(jit.compile_many([request(27)])[0]) == 27


def test_calls_to_the_outside_are_refused(folder: Path) -> None:
    text = module(0).replace("ret i64 %y", "%z = call i64 @getpriority(i64 %y)\n  ret i64 %z") + "declare i64 @getpriority(i64)\n"
    with pytest.raises(RuntimeError):
        jit.compile_many([jit.Request("test:outside2", lambda: text, "f")])


def test_many_threads_compile_once(folder: Path) -> None:
    builds: list[int] = []

    def build() -> str:
        builds.append(1)
        return module(25)

    results: list[int] = []

    def work() -> None:
        results.append(value_of(jit.compile_many([jit.Request("test:shared", build, "f"), request(26)])[0]))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [25] * 8 and len(builds) == 1
