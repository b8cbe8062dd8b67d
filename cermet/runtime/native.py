"""The native side of the runtime, compiled: what walker.py describes, as functions for Python.

Compiled at the first run of a program (35 ms, or 4 ms from the cache on disk). The code stays for good, as workers may be inside
it until the very end of the process.
"""

from __future__ import annotations

import ctypes
import os
import threading
from typing import Any, NamedTuple

from cermet.runtime import entry, object_cache, walker

__all__ = ["Native", "native"]


class Native(NamedTuple):
    """The compiled functions, callable from Python; each call releases the interpreter's lock.

    Attributes:
        run: ``run(table, values, work, pool, timings)``: addresses, and bytes for ``values``; 0 for no pool and for no timings.
        pool_start: ``pool_start(pool, count) -> started``.
        pool_stop: ``pool_stop(pool)``.
        counters: runs, launches, launches shared with workers, runs that found the pool taken.
        run_address: the address of ``cermet_run``.
    """

    run: Any
    pool_start: Any
    pool_stop: Any
    counters: Any
    run_address: int


_native: Native | None = None  # read by Program.run without a call
_lock = threading.Lock()


def _after_fork() -> None:
    global _lock
    _lock = threading.Lock()  # its holder may not exist in the child


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def native() -> Native:
    """The compiled module; compiled at the first call."""
    found = _native
    return found if found is not None else _compile()


def _compile() -> Native:
    global _native
    with _lock:
        if _native is not None:
            return _native
        # Here and not above: importing Cermet should not load LLVM.
        import llvmlite.binding as llvm

        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        machine = llvm.Target.from_default_triple().create_target_machine(opt=2, jit=True)
        interpreter = entry.symbols()
        for name, where in (interpreter or {}).items():
            llvm.add_symbol(name, where)
        text = walker.source() + (entry.source() if interpreter else "")
        key = "\n".join((text, machine.triple, ".".join(map(str, llvm.llvm_version_info)), "generic opt=2"))
        code = object_cache.load(key)
        if code is None:
            code = machine.emit_object(llvm.parse_assembly(text))
            object_cache.store(key, code)
        engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
        engine.add_object_file(llvm.ObjectFileRef.from_data(code))
        engine.finalize_object()
        address = engine.get_function_address
        pointer = ctypes.c_void_p
        run_address = address("cermet_run")
        _native = Native(
            run=entry.builtin(address("cermet_call"))
            if interpreter
            else ctypes.CFUNCTYPE(None, pointer, ctypes.c_char_p, pointer, pointer, pointer)(run_address),
            pool_start=ctypes.CFUNCTYPE(ctypes.c_int64, pointer, ctypes.c_int64)(address("cermet_pool_start")),
            pool_stop=ctypes.CFUNCTYPE(None, pointer)(address("cermet_pool_stop")),
            counters=(ctypes.c_int64 * 4).from_address(engine.get_global_value_address("cermet_counters")),
            run_address=run_address,
        )
        engine.detach()  # from Python's collector: workers run in this code until the process ends
        return _native
