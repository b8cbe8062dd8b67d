"""Convolution kernels on one thread: share of the machine's FMA peak, and the time PyTorch takes beside ours.

    .venv/bin/python bench/convolution.py [--peer .venv-peers/bin/python] [--direction forward] [--filter 56]

The peak is that of a loop of independent fused multiply-adds, measured right before and after each case. Times are the processor
time of the best of many runs. PyTorch runs in a process of its own (another interpreter, which need not have Cermet), on tensors
of the same layout. The padding's multiplications count as work done, though most are skipped: small images may pass 100 %.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cermet import dtypes as dt
from cermet.compiler.kernels.convolution import ConvSpec, channels_first, channels_last, plan
from cermet.compiler.kernels.irtools import KernelEmit, new_module
from cermet.compiler.llvm.target import Target, host
from tests.compiler.harness import KERNEL, Bound, aligned, load

SECONDS = 0.6
"""About how long each case is repeated."""


@dataclass(frozen=True)
class Case:
    """A square convolution: batch, channels, image, output channels, kernel, stride, padding, groups."""

    n: int
    c: int
    size: int
    o: int
    kernel: int
    stride: int = 1
    padding: int = 0
    groups: int = 1
    last: bool = True

    @property
    def out(self) -> int:
        return (self.size + 2 * self.padding - self.kernel) // self.stride + 1

    @property
    def flops(self) -> int:
        return 2 * self.n * self.o * self.out**2 * (self.c // self.groups) * self.kernel**2

    def __str__(self) -> str:
        extra = (f" /{self.stride}" if self.stride > 1 else "") + (f" g{self.groups}" if self.groups > 1 else "")
        return f"{self.n}x{self.c}x{self.size}² -> {self.o}, {self.kernel}x{self.kernel}{extra}{'' if self.last else ' NCHW'}"


CASES = [
    Case(8, 64, 56, 64, 3, padding=1),
    Case(8, 128, 28, 128, 3, padding=1),
    Case(8, 256, 14, 256, 3, padding=1),
    Case(8, 512, 7, 512, 3, padding=1),
    Case(8, 64, 56, 256, 1),
    Case(8, 256, 56, 64, 1),
    Case(8, 256, 56, 512, 1, 2),
    Case(8, 64, 56, 128, 3, 2, 1),
    Case(4, 3, 224, 64, 7, 2, 3),
    Case(4, 3, 224, 64, 7, 2, 3, last=False),
    Case(32, 3, 32, 64, 3, padding=1),
    Case(32, 64, 32, 64, 3, padding=1),
    Case(32, 128, 16, 128, 3, padding=1),
    Case(32, 256, 8, 256, 3, padding=1),
    Case(32, 512, 4, 512, 3, padding=1),
    Case(64, 1, 28, 32, 3),
    Case(64, 32, 26, 64, 3),
    Case(64, 6, 14, 16, 5),
    Case(1, 64, 56, 64, 3, padding=1),
    Case(1, 16, 8, 10, 3, padding=1),
    Case(128, 256, 1, 10, 1),
    Case(8, 96, 56, 96, 3, padding=1, groups=96),
    Case(8, 192, 28, 192, 5, 2, 2, 192),
    Case(8, 128, 28, 128, 3, padding=1, groups=32),
    Case(8, 3, 224, 192, 16, 16),
]


def best_of(work: Callable[[], object], seconds: float = SECONDS) -> float:
    """The shortest run, in seconds of this thread's processor time: what others on the machine take is not counted."""
    best, end = float("inf"), time.perf_counter() + seconds
    work()
    while True:
        start = time.thread_time()
        work()
        best = min(best, time.thread_time() - start)
        if time.perf_counter() > end:
            return best


class Peak:
    """Measures GFLOP/s of a loop of independent fused multiply-adds."""

    def __init__(self, target: Target) -> None:
        self.lanes, self.chains = target.vector_bytes // 4, 12
        module = new_module("peak", target)
        k = KernelEmit(module, "peak", ["out"], target)
        zero = k.zero(dt.float32, self.lanes)
        half, one = k.x.f(0.5, zero), k.x.f(1.0, zero)
        # Each chain starts from a value of its own: LLVM merges equal ones, and the loop would seem faster than the machine.
        first = [k.x.f(float(i), zero) for i in range(self.chains)]
        last = k.fold(k.begin, k.end, 1, first, lambda i, acc: [k.mul_add(a, half, one) for a in acc])
        for value in last[1:]:
            last[0] = k.plus(last[0], value)
        k.store(last[0], k.scratch, dt.float32)
        k.done()
        self.code = KERNEL(load(module, target, "peak"))
        self.scratch = aligned(256)

    def measure(self) -> float:
        turns = 100_000
        seconds = best_of(lambda: self.code(self.scratch.ctypes.data, 0, turns, self.scratch.ctypes.data), 0.02)
        return turns * self.chains * self.lanes * 2 / seconds / 1e9


def ours(case: Case, direction: str, target: Target) -> float:
    """Seconds of one run on one thread."""
    layout = channels_last if case.last else channels_first
    size, out, kernel = ((v, v) for v in (case.size, case.out, case.kernel))
    spec = ConvSpec(
        dt.float32, case.n, case.c, case.o, size, kernel, out, (case.stride,) * 2, (case.padding,) * 2, (1, 1), case.groups,
        layout(case.n, case.c, size), channels_first(case.o, case.c // case.groups, kernel), layout(case.n, case.o, out),
    )  # fmt: skip
    elements = {
        "x": case.n * case.c * case.size**2,
        "w": case.o * case.c // case.groups * case.kernel**2,
        "y": case.n * case.o * case.out**2,
    }
    buffers = {name: aligned(4 * count).view(np.float32) for name, count in elements.items()}
    for b in buffers.values():
        b[:] = np.random.default_rng(0).standard_normal(b.size)
    bound = Bound(plan(direction, spec, target), target, {name: b.ctypes.data for name, b in buffers.items()})  # type: ignore[arg-type]
    return best_of(bound.run)


PEER = """
import json, sys, time, torch
torch.set_num_threads(1)
for line in sys.stdin:
    c = json.loads(line)
    layout = torch.channels_last if c["last"] else torch.contiguous_format
    x = torch.randn(c["n"], c["c"], c["size"], c["size"]).contiguous(memory_format=layout)
    w = torch.randn(c["o"], c["c"] // c["groups"], c["kernel"], c["kernel"]).contiguous(memory_format=layout)
    args = ([c["stride"]] * 2, [c["padding"]] * 2, [1, 1])
    y = torch.conv2d(x, w, None, *args, c["groups"])
    mask = {"input_grad": [True, False, False], "weight_grad": [False, True, False]}.get(c["direction"])
    def run():
        if mask is None:
            return torch.conv2d(x, w, None, *args, c["groups"])
        return torch.ops.aten.convolution_backward(y, x, w, None, *args, False, [0, 0], c["groups"], mask)
    run()
    best, end = float("inf"), time.perf_counter() + c["seconds"]
    with torch.no_grad():
        while time.perf_counter() < end:
            start = time.thread_time()
            run()
            best = min(best, time.thread_time() - start)
    print(best, flush=True)
"""


class Peer:
    """PyTorch in another process, which answers with the seconds of a case."""

    def __init__(self, python: str) -> None:
        self.process = subprocess.Popen([python, "-c", PEER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def measure(self, case: Case, direction: str) -> float:
        assert self.process.stdin is not None and self.process.stdout is not None
        print(json.dumps({**asdict(case), "direction": direction, "seconds": SECONDS}), file=self.process.stdin, flush=True)
        return float(self.process.stdout.readline())

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", help="a Python interpreter that has torch")
    parser.add_argument("--direction", choices=["forward", "input_grad", "weight_grad"])
    parser.add_argument("--filter", default="", help="only cases whose text contains this")
    args = parser.parse_args()
    target = host()
    peak, peer = Peak(target), Peer(args.peer) if args.peer else None
    for direction in [args.direction] if args.direction else ["forward", "input_grad", "weight_grad"]:
        print(f"{direction:<44} {'us':>9} {'GFLOP/s':>8} {'% peak':>7} {'PyTorch us':>11} {'times':>6}")
        for case in CASES:
            if args.filter not in str(case):
                continue
            before = peak.measure()
            seconds = ours(case, direction, target)
            rate = case.flops / seconds / 1e9
            line = f"  {case!s:<42} {seconds * 1e6:9.0f} {rate:8.1f} {100 * rate / max(before, peak.measure()):7.1f}"
            if peer is not None:
                theirs = peer.measure(case, direction)
                line += f" {theirs * 1e6:11.0f} {theirs / seconds:6.2f}"
            print(line, flush=True)
    if peer is not None:
        peer.close()


if __name__ == "__main__":
    main()
