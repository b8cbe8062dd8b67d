"""What the machine can do, measured on the spot: multiply-adds in a second, and bytes moved by a copy at each size.

Runs inside Cermet's worker, so that the same process, threads and clock are meant as for the kernels.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

__all__ = ["copy_bandwidth", "fma_now", "fma_peak", "limit_seconds", "measure", "vector_bits"]

COPY_BYTES = [1 << 15, 1 << 18, 1 << 20, 1 << 22, 1 << 24, 1 << 26]
"""Sizes of the copied array; the working set is twice that."""

_peaks: dict[str, Any] = {}


def _together(works: list[Callable[[], float]]) -> float:
    """The sum of what the functions return, each on a thread of its own, begun together."""
    out = [0.0] * len(works)
    gate = threading.Barrier(len(works))

    def run(k: int) -> None:
        gate.wait()
        out[k] = works[k]()

    others = [threading.Thread(target=run, args=(k,)) for k in range(1, len(works))]
    for t in others:
        t.start()
    run(0)
    for t in others:
        t.join()
    return sum(out)


def fma_peak(dtype: str = "float32", threads: int = 2, seconds: float = 0.02) -> float:
    """GFLOP/s of independent fused multiply-adds on all threads together."""
    from bench.fma_peak import Peak
    from cermet import dtypes

    if len(_peaks.get(dtype, ())) < threads:
        _peaks[dtype] = [Peak(getattr(dtypes, dtype)) for _ in range(threads)]
    return _together([lambda p=p: p.measure(seconds) for p in _peaks[dtype][:threads]])


def fma_now(lib: Any = None, threads: int = 2) -> float:
    """The float32 peak at this moment, beside a round of a workload that is stated as a share of it."""
    return fma_peak("float32", threads, 0.01)


def copy_bandwidth(nbytes: int, threads: int = 2, seconds: float = 0.03) -> float:
    """GB/s, bytes read plus bytes written, of copies of ``nbytes`` shared out over the threads; the best run counts."""
    share = nbytes // threads // 4

    def make() -> Callable[[], float]:
        source, target = np.ones(share, np.float32), np.zeros(share, np.float32)

        def run() -> float:
            best, end = float("inf"), time.perf_counter() + seconds
            many = max(1, (1 << 20) // share)  # small copies are timed in bunches: a call of NumPy takes a while itself
            while time.perf_counter() < end:
                begin = time.perf_counter()
                for _ in range(many):
                    np.copyto(target, source)
                best = min(best, (time.perf_counter() - begin) / many)
            return 2 * 4 * share / best / 1e9

        return run

    return _together([make() for _ in range(threads)])


def measure(lib: Any = None, threads: int = 2, rounds: int = 3) -> dict[str, Any]:
    """{"fma": {dtype: GFLOP/s}, "copy": [[bytes of the working set, GB/s], ...], "threads": n}: the best of some rounds."""
    fma = {d: max(fma_peak(d, threads) for _ in range(rounds)) for d in ("float32", "float64")}
    copies = [[2 * n, max(copy_bandwidth(n, threads) for _ in range(rounds))] for n in COPY_BYTES]
    return {"fma": fma, "copy": copies, "threads": threads}


def limit_seconds(limits: dict[str, Any], flops: float, nbytes: float) -> float:
    """The shortest time in which so many operations can be done and so many bytes moved. The bandwidth is that of a copy with a working
    set of that size, interpolated between the measured ones."""
    sizes, rates = np.array(limits["copy"]).T
    rate = float(np.interp(np.log2(max(nbytes, 1.0)), np.log2(sizes), rates))
    return max(flops / limits["fma"]["float32"], nbytes / rate) / 1e9


def vector_bits(lib: Any = None) -> int:
    """The width of the vectors that kernels are generated for."""
    from cermet.compiler.llvm.target import host

    return 8 * int(host().vector_bytes)
