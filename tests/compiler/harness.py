"""Compiles kernels and runs plans without the runtime: what the kernels' tests and benches stand on."""
from __future__ import annotations

import ctypes
import time

import llvmlite.binding as llvm

from cermet.compiler.llvm import jit

EFFORT = 3
_codes = []


def compile_module(module, target, **_):
    mod = llvm.parse_assembly(str(module))
    mod.verify()
    return mod, target.machine(opt=3)


def load(module, target, entry, **_):
    body = jit.compile_object(module, target, EFFORT)
    code = jit._load(body, jit.Request("x", lambda: None, entry))
    _codes.append(code)
    return code.address


_cache = {}
STATS = {"compiled": 0, "ms": 0.0}


def address(launch, target):
    found = _cache.get(launch.key)
    if found is None:
        start = time.thread_time()
        found = _cache[launch.key] = load(launch.build(), target, launch.entry)
        STATS["compiled"] += 1
        STATS["ms"] += (time.thread_time() - start) * 1e3
    return found


KERNEL = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p)


def aligned(size):
    import numpy as np

    raw = np.full(size + 128, 0xA5, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size]


class Bound:
    """A plan with its buffers: ready to run again and again."""

    def __init__(self, plan, target, buffers):
        import numpy as np

        self.keep = [buffers]
        self.steps = []
        self.temps = [aligned(max(t, 1)) for t in plan.temps]
        for launch in plan.launches:
            args = np.zeros(max(1, len(launch.args)), np.int64)
            for i, arg in enumerate(launch.args):
                if isinstance(arg, int):
                    args[i] = arg
                elif hasattr(arg, "name"):
                    args[i] = buffers[arg.name] + arg.byte_offset
                else:
                    args[i] = self.temps[arg.index].ctypes.data + arg.byte_offset
            scratch = [aligned(max(64, launch.scratch)) for _ in range(2)]
            self.keep += [args, scratch]
            fn = KERNEL(address(launch, target))
            self.steps.append((fn, args.ctypes.data, launch.blocks, [s.ctypes.data for s in scratch], launch))

    def run(self, cuts=None):
        for fn, args, blocks, scratch, _ in self.steps:
            if cuts is None:
                fn(args, 0, blocks, scratch[0])
            else:
                edges = sorted({0, blocks, *(int(c * blocks) for c in cuts)})
                for lo, hi in reversed(list(zip(edges, edges[1:]))):
                    fn(args, lo, hi, scratch[0])

    def run_threads(self, pool):
        for fn, args, blocks, scratch, launch in self.steps:
            if blocks < 2 * launch.grain:
                fn(args, 0, blocks, scratch[0])
                continue
            half = blocks // 2
            other = pool.submit(fn, args, half, blocks, scratch[1])
            fn(args, 0, half, scratch[0])
            other.result()
