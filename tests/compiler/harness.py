"""Compiles kernels and runs plans without the runtime: what the kernels' tests and benches stand on."""

from __future__ import annotations

import ctypes
import mmap
import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from cermet.compiler.kernels.plan import KernelLaunch, Operand, Plan
from cermet.compiler.llvm import jit

KERNEL = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p)
EFFORT = jit.FULL
# Kernels compiled by this process, and the processor time that took.
STATS = {"compiled": 0, "ms": 0.0}
_codes: dict[str, Any] = {}


def load(module: Any, target: Any, entry: str) -> int:
    """Machine code of a module, compiled for ``target`` (which this machine must be able to run); the address of ``entry``."""
    body = jit.compile_object(module, target, EFFORT)
    code = jit._load(body, jit.Request("test", lambda: None, entry))
    _codes[f"{len(_codes)}"] = code
    return int(code.address)


_addresses: dict[str, int] = {}


def address(launch: KernelLaunch, target: Any) -> int:
    """The kernel of a launch."""
    found = _addresses.get(launch.key)
    if found is None:
        start = time.thread_time()
        found = _addresses[launch.key] = load(launch.build(), target, launch.entry)
        STATS["compiled"] += 1
        STATS["ms"] += (time.thread_time() - start) * 1e3
    return found


def aligned(size: int) -> np.ndarray:
    """Bytes that start 64-byte aligned, filled with a value that is no small number in any dtype."""
    raw = np.full(size + 128, 0xA5, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size]


class Guarded:
    """Memory that ends where no memory is: a read or write past the end stops the process.

    Attributes:
        array: ``size`` bytes.
    """

    _libc = ctypes.CDLL(None, use_errno=True)

    def __init__(self, size: int) -> None:
        page = mmap.PAGESIZE
        pages = -(-max(size, 1) // page)
        self._map = mmap.mmap(-1, (pages + 1) * page)
        whole = np.frombuffer(self._map, np.uint8)
        self._libc.mprotect(ctypes.c_void_p(whole.ctypes.data + pages * page), ctypes.c_size_t(page), 0)
        whole[: pages * page] = 0xA5
        self.array = whole[pages * page - size : pages * page]


class Bound:
    """A plan with its buffers: ready to run again and again.

    Args:
        plan: the launches.
        target: what to compile for.
        buffers: the address of each operand.
        guarded: give temporaries and scratch exactly the bytes asked for, and none behind them.
    """

    def __init__(self, plan: Plan, target: Any, buffers: Mapping[str, int], guarded: bool = False) -> None:
        self.keep: list[Any] = []

        def space(size: int) -> int:
            if not guarded:
                made = aligned(max(size, 64))
                self.keep.append(made)
                return int(made.ctypes.data)
            memory = Guarded(-(-max(size, 64) // 64) * 64)
            self.keep.append(memory)
            return int(memory.array.ctypes.data)

        self.plan = plan
        self.steps: list[tuple[Any, int, int, list[int], KernelLaunch]] = []
        self.temps = [space(t) for t in plan.temps]
        for launch in plan.launches:
            args = np.zeros(max(1, len(launch.args)), np.int64)
            for i, arg in enumerate(launch.args):
                if isinstance(arg, int):
                    args[i] = arg
                elif isinstance(arg, Operand):
                    args[i] = buffers[arg.name] + arg.byte_offset
                else:
                    args[i] = self.temps[arg.index] + arg.byte_offset
            self.keep.append(args)
            scratch = [space(launch.scratch) for _ in range(2)]
            self.steps.append((KERNEL(address(launch, target)), args.ctypes.data, launch.blocks, scratch, launch))

    def run(self, cuts: Sequence[float] | None = None) -> None:
        """Run all launches, each in one go or cut at these parts of its blocks (and then the last piece first)."""
        for fn, args, blocks, scratch, _ in self.steps:
            if cuts is None:
                fn(args, 0, blocks, scratch[0])
            else:
                edges = sorted({0, blocks, *(int(c * blocks) for c in cuts)})
                for low, high in reversed(list(pairwise(edges))):
                    fn(args, low, high, scratch[0])

    def run_threads(self, pool: Any) -> None:
        """Run on this thread and one of ``pool``, half of the blocks each."""
        for fn, args, blocks, scratch, launch in self.steps:
            if blocks < 2 * launch.grain:
                fn(args, 0, blocks, scratch[0])
                continue
            other = pool.submit(fn, args, blocks // 2, blocks, scratch[1])
            fn(args, 0, blocks // 2, scratch[0])
            other.result()
