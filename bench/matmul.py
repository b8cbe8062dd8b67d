"""Products of matrices: share of the machine's multiply-add peak, and the time PyTorch takes beside ours.

    .venv/bin/python bench/matmul.py [--threads 1 2] [--dtype float32] [--shapes square|model|all] [--peer PYTHON]

Ours, PyTorch's (in a process of its own, on operands of the same shapes and layouts) and the peak are measured by turns, so
that a clock that rises or a neighbour who wakes meets all alike; each is the best of many runs. The peak is that of all threads at once.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.fma_peak import best_of
from bench.limits import fma_peak
from cermet import config
from cermet import dtypes as dt
from cermet.compiler.kernels.contraction import ContractionSpec, plan
from cermet.compiler.kernels.plan import Operand, Temp
from cermet.compiler.llvm.jit import Request, compile_many
from cermet.compiler.llvm.target import host
from cermet.runtime.program import Launch, Pointer, Program
from tests.compiler.harness import aligned


@dataclass(frozen=True)
class Case:
    """``batch`` products of ``m`` by ``k`` and ``k`` by ``n``; ``ta``, ``tb``: the operand lies transposed."""

    m: int
    n: int
    k: int
    batch: int = 0
    ta: bool = False
    tb: bool = False

    def __str__(self) -> str:
        size = f"{self.m}x{self.n}x{self.k}" + (f" times {self.batch}" if self.batch else "")
        return f"{size}{' At' if self.ta else ''}{' Bt' if self.tb else ''}"

    @property
    def flops(self) -> int:
        return 2 * self.m * self.n * self.k * max(self.batch, 1)


SQUARE = [Case(n, n, n) for n in (64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)]
MODEL = [
    Case(16, 16, 16, 1000), Case(8, 8, 8, 1000), Case(32, 32, 32, 500),
    Case(128, 512, 784, tb=True), Case(128, 10, 512, tb=True), Case(512, 784, 128, ta=True), Case(10, 512, 128, ta=True),
    Case(1024, 768, 256, tb=True), Case(1024, 256, 1024, tb=True), Case(1024, 1024, 256), Case(256, 1024, 1024, ta=True),
    Case(128, 128, 64, 32, tb=True), Case(128, 64, 128, 32), Case(64, 128, 128, 32, ta=True),
    Case(1, 4096, 4096), Case(1, 4096, 4096, tb=True), Case(4096, 1, 4096), Case(4, 1024, 1024, tb=True), Case(6, 2048, 2048),
    Case(16, 1024, 1024, tb=True), Case(64, 1024, 1024), Case(1024, 8, 1024), Case(64, 64, 100_000, ta=True),
    Case(333, 333, 333), Case(127, 129, 131), Case(1000, 1000, 1000),
]  # fmt: skip

TORCH = """
import json, sys, time, torch
for line in sys.stdin:
    threads, dtype, case, seconds = json.loads(line)
    torch.set_num_threads(threads)
    b = [case["batch"]] if case["batch"] else []
    def make(rows, columns, flipped):
        x = torch.rand(*b, *((columns, rows) if flipped else (rows, columns)))
        return x.to(getattr(torch, dtype)).mT if flipped else x.to(getattr(torch, dtype))
    x, y = make(case["m"], case["k"], case["ta"]), make(case["k"], case["n"], case["tb"])
    out, run = x @ y, torch.bmm if b else torch.mm
    best, end = 1e9, time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter(); run(x, y, out=out); best = min(best, time.perf_counter() - start)
    print(best, flush=True)
"""


class Ours:
    """A product as a program, with its operands."""

    def __init__(self, case: Case, dtype: dt.DType) -> None:
        b = (case.batch,) if case.batch else ()
        shapes = ((case.m, case.k, case.ta), (case.k, case.n, case.tb), (case.m, case.n, False))
        strides, self.buffers = [], []
        rng = np.random.default_rng(0)
        for rows, columns, flipped in shapes:
            inner = (1, rows) if flipped else (columns, 1)
            strides.append((*((rows * columns,) if b else ()), *inner))
            count = max(case.batch, 1) * rows * columns
            self.buffers.append(aligned(count * dtype.itemsize).view(dtype.numpy)[:count])
            self.buffers[-1][:] = rng.random(count, np.float32).astype(dtype.numpy)
        spec = ContractionSpec(dtype, dtype, dtype, case.m, case.n, case.k, b, *strides)
        made = plan(spec, host())
        codes = compile_many([Request(launch.key, launch.build, launch.entry) for launch in made.launches])
        offsets = np.cumsum([0, *(-(-t // 64) * 64 for t in made.temps)]).tolist()
        bases = {"a": 1, "b": 2, "out": 3}

        def bound(arg: Any) -> Any:
            if isinstance(arg, Operand):
                return Pointer(bases[arg.name], arg.byte_offset)
            return Pointer(0, offsets[arg.index] + arg.byte_offset) if isinstance(arg, Temp) else arg

        launches = [
            Launch(code.address, [bound(a) for a in step.args], step.blocks, step.grain, step.scratch, code)
            for step, code in zip(made.launches, codes, strict=True)
        ]
        self.program = Program(launches, 3, arena_bytes=offsets[-1])
        self._bases = [int(x.ctypes.data) for x in self.buffers]

    def run(self) -> None:
        self.program.run(self._bases)


class Torch:
    """PyTorch in a process of its own; None where the interpreter cannot be started."""

    def __init__(self, python: str) -> None:
        self._process = subprocess.Popen([python, "-c", TORCH], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def best(self, case: Case, dtype: dt.DType, threads: int, seconds: float) -> float:
        assert self._process.stdin and self._process.stdout
        print(json.dumps([threads, dtype.name, asdict(case), seconds]), file=self._process.stdin, flush=True)
        return float(self._process.stdout.readline())


def report(
    case: Case, dtype: dt.DType, threads: int, peak: str, torch: Torch | None, rounds: int = 6, seconds: float = 0.05
) -> None:
    """Measure one case and print a line."""
    ours, best, theirs, most = Ours(case, dtype), float("inf"), float("inf"), 0.0
    with config.scope(num_threads=threads):
        for _ in range(rounds):
            most = max(most, fma_peak(peak, threads, 0.01))
            best = min(best, best_of(ours.run, seconds))
            if torch is not None:
                theirs = min(theirs, torch.best(case, dtype, threads, seconds))
    speed = case.flops / best / 1e9
    line = f"{case!s:<26} {threads} threads {best * 1e6:10.1f} us {speed:7.1f} GFLOP/s {speed / most:6.1%} of peak"
    print(line + ("" if torch is None else f"   PyTorch {theirs * 1e6:10.1f} us   {theirs / best:.2f}x"), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--peer", default=str(Path(__file__).resolve().parents[1] / ".venv-peers/bin/python"))
    parser.add_argument("--shapes", choices=("square", "model", "all"), default="all")
    options = parser.parse_args()
    dtype = getattr(dt, options.dtype)
    torch = Torch(options.peer) if Path(options.peer).exists() else None
    peak = "float64" if dtype is dt.float64 else "float32"
    fma_peak(peak, max(options.threads))  # makes as many loops as there will be threads
    cases = {"square": SQUARE, "model": MODEL, "all": SQUARE + MODEL}[options.shapes]
    for threads in options.threads:
        for case in cases:
            report(case, dtype, threads, peak, torch)


if __name__ == "__main__":
    main()
