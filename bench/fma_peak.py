"""The peak of one core: GFLOP/s of a loop of independent multiply-adds, generated for this machine, per dtype.

    .venv/bin/python bench/fma_peak.py

Other benches import `Peak` to state their figures as a share of it. The accumulators start from different values: were they
alike, LLVM would find that they stay alike, keep one, and the loop would seem to run faster than the machine can.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cermet import dtypes as dt
from cermet.compiler.kernels.irtools import KernelEmit, Value, acc_type, new_module
from cermet.compiler.llvm.builder import PTR
from cermet.compiler.llvm.jit import Request, compile_many
from cermet.compiler.llvm.target import host
from tests.compiler.harness import KERNEL, aligned

CHAINS = 12
"""Accumulators: more than latency times throughput of any core at hand, few enough for sixteen registers."""


def best_of(work: Callable[[], object], seconds: float) -> float:
    """The shortest run, in seconds, of as many as fit into ``seconds``."""
    best, end = float("inf"), time.perf_counter() + seconds
    while True:
        start = time.perf_counter()
        work()
        now = time.perf_counter()
        best = min(best, now - start)
        if now > end:
            return best


class Peak:
    """Measures the multiply-add peak of ``dtype`` (one whose accumulator is itself)."""

    turns = 20_000

    def __init__(self, dtype: dt.DType) -> None:
        target = host()
        lanes = target.lanes(dtype.itemsize)
        [self._code] = compile_many(
            [Request(f"bench fma_peak {dtype.name} {target.code_key}", lambda: self._module(dtype), "peak")]
        )
        self._kernel = KERNEL(self._code.address)
        self._values = aligned(1024)
        self._values.view(dtype.numpy)[:] = np.arange(1024 // dtype.itemsize) / 1024
        self._args = np.array([self._values.ctypes.data], np.int64)
        self._flops = 2 * lanes * CHAINS * self.turns

    @staticmethod
    def _module(dtype: dt.DType) -> object:
        target = host()
        lanes = target.lanes(dtype.itemsize)
        module = new_module("peak", target)
        em = KernelEmit(module, "peak", ("values",), target)
        values = em.slot("values", PTR)

        def at(i: int) -> Value:
            return em.at(values, i, acc_type(dtype))

        factor = em.load(at(CHAINS), dtype, lanes)
        chains = [em.broadcast(em.load(at(i), dtype), lanes) for i in range(CHAINS)]
        chains = em.fold(em.begin, em.end, 1, chains, lambda _, s: [em.mul_add(factor, factor, x) for x in s])
        total = chains[0]
        for chain in chains[1:]:
            total = em.plus(total, chain)
        em.store(total, at(0), dtype)
        em.done()
        return module

    def measure(self, seconds: float = 0.01) -> float:
        """GFLOP/s of one thread now."""
        args = self._args.ctypes.data
        return self._flops / best_of(lambda: self._kernel(args, 0, self.turns, None), seconds) / 1e9


if __name__ == "__main__":
    for dtype in (dt.float32, dt.float64):
        print(f"{dtype.name}: {Peak(dtype).measure(0.5):.1f} GFLOP/s a core")
