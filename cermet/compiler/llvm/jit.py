"""Machine code by key: from memory, else from disk, else compiled now, several kernels side by side.

Code generation is LLVM's, at one of two efforts. The emitter of the loop IR already writes what an optimiser would
make of its kernels (values once, invariants outside, registers as SSA, loops in vectors), so these go straight to
instruction selection and the full register allocator; kernels designed by hand get the whole optimising code
generator. On a Zen 3 at 2.4 GHz an elementwise addition takes LLVM 2.5 ms this way against
10 at level 1 and up (loop strength reduction alone 1.5 to 2.5 ms a loop), exp 4 against 13, and the code is as quick.
"""

from __future__ import annotations

import ctypes
import hashlib
import itertools
import os
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import llvmlite
import llvmlite.binding as llvm
from llvmlite.binding import ffi

from cermet import config
from cermet.compiler.llvm.objects import ObjectCache, outside_symbols
from cermet.compiler.llvm.target import Target, host

__all__ = ["FULL", "LIGHT", "Code", "Request", "clear", "compile_many", "compile_object", "counters", "kernel_request"]

LIGHT = 0
FULL = 3


@dataclass(frozen=True)
class Request:
    """A wish for machine code.

    Attributes:
        key: names the content.
        build: makes the LLVM module (an `llvmlite.ir.Module` or its text); called when no cache has the key.
        entry: the function wanted.
        effort: `FULL`, or `LIGHT` for code that needs little of LLVM's optimiser.
    """

    key: str
    build: Callable[[], Any]
    entry: str
    effort: int = FULL


class Code:
    """Machine code in memory, as long as this object lives.

    Attributes:
        address: of the entry function.
        key: of the request.
    """

    __slots__ = ("__weakref__", "_tracker", "address", "key")

    def __init__(self, address: int, key: str, tracker: Any) -> None:
        self.address = address
        self.key = key
        self._tracker = tracker

    def __repr__(self) -> str:
        return f"Code({self.key!r} at {self.address:#x})"


_lock = threading.Lock()
_codes: OrderedDict[str, Code] = OrderedDict()
_pending: dict[str, Future[Code]] = {}
_counts = {"compiled": 0, "memory_hits": 0, "disk_hits": 0, "evictions": 0}
_seconds = {"build": 0.0, "llvm": 0.0}
_names = itertools.count()
_disk: ObjectCache | None = None
_linker: Any = None


def counters() -> dict[str, float]:
    """Kernels compiled, found in memory, found on disk and evicted from memory since the start; seconds building and
    compiling."""
    with _lock:
        return {**_counts, "in_memory": len(_codes), "build_seconds": _seconds["build"], "llvm_seconds": _seconds["llvm"]}


def clear() -> None:
    """Forget all code in memory (what is still referenced stays loaded)."""
    with _lock:
        _codes.clear()


def kernel_request(kernel: Any, target: Target | None = None) -> Request:
    """The request for a kernel of the loop IR, keyed by its content."""
    from cermet.compiler.llvm.emit import ENTRY, emit_module
    from cermet.compiler.loops.text import fingerprint

    where = host() if target is None else target
    return Request("loop:" + fingerprint(kernel), lambda: emit_module(kernel, where), ENTRY, LIGHT)


def _after_fork() -> None:
    """A child has none of the threads that were compiling: what they had in hand is nobody's."""
    global _lock
    _lock = threading.Lock()
    _pending.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


# -- the caches ----------------------------------------------------------------------------------------------------


def compile_many(requests: Sequence[Request]) -> list[Code]:
    """Machine code for this machine for each request, in order.

    Raises:
        RuntimeError: when LLVM refuses a module (with its message), or the code calls what it may not.
    """
    cpu = str(getattr(config, "cpu", ""))
    keys = [f"{cpu}|{r.effort}|{r.entry}|{r.key}" for r in requests]
    found: list[Code | None] = []
    waiting: dict[str, Future[Code]] = {}
    mine: dict[str, tuple[Request, Future[Code]]] = {}
    with _lock:
        for key, request in zip(keys, requests, strict=True):
            code = _codes.get(key)
            found.append(code)
            if code is not None:
                _codes.move_to_end(key)
                _counts["memory_hits"] += 1
            elif key not in waiting:
                pending = _pending.get(key)
                if pending is None:
                    pending = _pending[key] = Future()
                    mine[key] = (request, pending)
                waiting[key] = pending
    if mine:
        # The longest first, so that no thread is left with one of them at the end.
        order = sorted(mine.items(), key=lambda item: item[1][0].effort == LIGHT)
        _side_by_side([lambda k=k, r=r, f=f: _fulfil(k, r, f) for k, (r, f) in order])  # type: ignore[misc]
    return [code if code is not None else waiting[key].result() for key, code in zip(keys, found, strict=True)]


def _side_by_side(tasks: list[Callable[[], None]]) -> None:
    """Run tasks (which do not raise) on as many threads as are useful, this one included."""
    queue = iter(tasks)
    lock = threading.Lock()

    def work() -> None:
        while True:
            with lock:
                task = next(queue, None)
            if task is None:
                return
            task()

    helpers = [threading.Thread(target=work, daemon=True) for _ in range(min(len(tasks), config.num_threads) - 1)]
    for thread in helpers:
        thread.start()
    work()
    for thread in helpers:
        thread.join()


def _fulfil(key: str, request: Request, future: Future[Code]) -> None:
    try:
        code = _obtain(request)
        with _lock:
            _codes[key] = code
            while len(_codes) > config.kernel_cache_size:
                _codes.popitem(last=False)
                _counts["evictions"] += 1
            del _pending[key]
        future.set_result(code)
    except BaseException as error:
        with _lock:
            _pending.pop(key, None)
        future.set_exception(error)


def _obtain(request: Request) -> Code:
    target = host()
    disk = _disk_cache()
    name = f"{request.key}|{request.entry}|{request.effort}|{target.code_key}|{_fingerprint()}".encode()
    if disk is not None:
        body = disk.get(name)
        if body is not None:
            try:
                code = _load(body, request)
                _count("disk_hits")
                return code
            except RuntimeError:
                pass  # not an object that links here; compile it again
    start = time.perf_counter()
    module = request.build()
    built = time.perf_counter()
    body = compile_object(module, target, request.effort)
    code = _load(body, request)
    done = time.perf_counter()
    _count("compiled", built - start, done - built)
    if "compile" in config.log:
        label = request.key.partition("|")[0]
        took = (built - start) * 1e3, (done - built) * 1e3
        print(f"cermet: compiled {label}: {took[0]:.1f} ms building, {took[1]:.1f} ms in LLVM", file=sys.stderr)
    if disk is not None:
        disk.put(name, body)
    return code


def _count(name: str, build: float = 0.0, compile_: float = 0.0) -> None:
    with _lock:
        _counts[name] += 1
        _seconds["build"] += build
        _seconds["llvm"] += compile_


def _disk_cache() -> ObjectCache | None:
    global _disk
    if not config.disk_cache:
        return None
    folder = Path(config.cache_dir) / "kernels"
    with _lock:
        if _disk is None or _disk.folder != folder or _disk.limit != config.disk_cache_bytes:
            _disk = ObjectCache(folder, config.disk_cache_bytes)
        return _disk


@cache
def _fingerprint() -> str:
    """What else decides the machine code: LLVM's version and the sources of this folder, its kernels and the loop IR."""
    h = hashlib.blake2b(f"{llvmlite.__version__}|{llvm.llvm_version_info}".encode(), digest_size=16)
    here = Path(__file__).parent
    for folder in (here, here.parent / "kernels", here.parent / "loops"):
        for source in sorted(folder.rglob("*.py")):
            h.update(source.name.encode())
            h.update(source.read_bytes())
    return h.hexdigest()


# -- LLVM ----------------------------------------------------------------------------------------------------------


@cache
def _options() -> None:
    """Let code generation without optimisation passes (`LIGHT`) use the selection DAG and the full register allocator.

    Both options are the process's, and concern only modules compiled at level 0; other users of llvmlite see at most
    better code there.
    """
    llvm.set_option("cermet", "-optimize-regalloc=true")
    llvm.set_option("cermet", "-fast-isel=false")


def compile_object(module: Any, target: Target, effort: int = FULL) -> bytes:
    """An object file of a module (`llvmlite.ir.Module` or text) for any target.

    Raises:
        RuntimeError: when LLVM refuses it, with its message.
    """
    machine = _machine(target, effort)
    text = str(module)
    if "llvm" in config.log:
        print(text, file=sys.stderr)
    # Closed here, the module first: left to the garbage collector (an exception's frames make cycles) the context might go
    # before the module in it, which is then freed memory.
    with llvm.create_context() as context, llvm.parse_assembly(text, context) as parsed:
        parsed.verify()
        if effort != LIGHT:
            _optimise(parsed, machine, effort)
        if "asm" in config.log:
            print(machine.emit_assembly(parsed), file=sys.stderr)
        body = _emit(machine, parsed)
    outside = outside_symbols(body)
    if outside:
        raise RuntimeError(f"the kernel calls {', '.join(outside)}: kernels may call nothing outside their module")
    return body


def _optimise(parsed: Any, machine: Any, effort: int) -> None:
    """The few IR passes worth their time for code written by hand: SSA, common subexpressions, simplification."""
    tuning = llvm.create_pipeline_tuning_options(effort)
    with llvm.create_pass_builder(machine, tuning) as builder, llvm.create_new_module_pass_manager() as passes:
        passes.add_always_inliner_pass()
        passes.add_sroa_pass()
        passes.add_instruction_combine_pass()
        passes.add_simplify_cfg_pass()
        passes.add_new_gvn_pass()
        passes.run(parsed, builder)


@cache
def _unlocked_emit() -> Any:
    """LLVM's function that generates code, called without llvmlite's lock; None where llvmlite is not as we know it.

    llvmlite lets one thread at a time into LLVM, which asks only that no two share a context or a target machine. Ours do not.
    """
    try:
        function = ctypes.CDLL(ffi.lib._name).LLVMPY_TargetMachineEmitToMemory
        known = ffi.lib.LLVMPY_TargetMachineEmitToMemory
        function.argtypes, function.restype = known.argtypes, known.restype
    except (AttributeError, OSError):
        return None
    return function


def _emit(machine: Any, parsed: Any) -> bytes:
    """The object file of a module, by a target machine of this thread's own."""
    emit = _unlocked_emit()
    if emit is None:
        return bytes(machine.emit_object(parsed))
    with ffi.OutputString() as error:
        memory = emit(machine, parsed, 1, error)
        if not memory:
            raise RuntimeError(str(error))
    try:
        return ctypes.string_at(ffi.lib.LLVMPY_GetBufferStart(memory), ffi.lib.LLVMPY_GetBufferSize(memory))
    finally:
        ffi.lib.LLVMPY_DisposeMemoryBuffer(memory)


_local = threading.local()


def _machine(target: Target, effort: int) -> Any:
    """This thread's target machine."""
    _options()
    machines = _local.__dict__.setdefault("machines", {})
    key = (target.code_key, effort)
    if key not in machines:
        machines[key] = target.machine(effort)
    return machines[key]


def _load(body: bytes, request: Request) -> Code:
    """Link an object into this process."""
    global _linker
    with _lock:
        if _linker is None:
            _linker = llvm.create_lljit_compiler(host().machine(0))
    builder = llvm.JITLibraryBuilder()
    builder.add_object_img(body)
    builder.export_symbol(request.entry)
    tracker = builder.link(_linker, f"k{next(_names)}")
    address = tracker[request.entry]
    if not address:
        raise RuntimeError(f"the object of {request.key} has no function {request.entry}")
    return Code(address, request.key, tracker)
