"""Where a step's time goes: every launch of the largest program, with the machine's limit for it.

    python -m bench.profiling resnet18 gpt [--threads 2] [--rounds 5] [--top 25]

For each launch: the shortest time of several runs, its share of the program, what it computes on which shapes, GFLOP/s, GB/s (each
buffer it is given counted once), and the milliseconds by which it misses its limit: the multiply-add peak or the copy bandwidth of
its working set, both measured beside. The list is ordered by those milliseconds: what is on top is worth the most.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cermet as ct
from bench import limits
from bench.workloads.models import Training, make_model
from cermet.compiler.schedule.hand import Call
from cermet.lazy import run as lazy_run
from cermet.runtime.program import Launch, Program

__all__ = ["Recorder", "launches", "profile"]


class Recorder:
    """While it is entered: keeps each compiled program's calls, and times every launch of every run."""

    def __init__(self) -> None:
        self.calls: dict[Program, list[Call]] = {}
        self.times: dict[Program, list[np.ndarray]] = defaultdict(list)

    def __enter__(self) -> Recorder:
        self._assemble, self._run = lazy_run._assemble, Program.run

        def assemble(tape: Any, nodes: Any, wanted: Any, schedule: Any, codes: Any) -> Any:
            compiled = self._assemble(tape, nodes, wanted, schedule, codes)
            self.calls[compiled.program] = schedule.calls
            return compiled

        def run(program: Program, bases: Any, scalars: Any = (), timings: Any = None) -> None:
            took = np.zeros(len(program.launches), np.int64)
            self._run(program, bases, scalars, took if timings is None and len(took) else timings)
            self.times[program].append(took)

        lazy_run._assemble, Program.run = assemble, run  # type: ignore[method-assign]
        return self

    def __exit__(self, *_: Any) -> None:
        lazy_run._assemble, Program.run = self._assemble, self._run  # type: ignore[method-assign]


def _bytes(call: Call) -> int:
    seen = {a[1]: a[1].meta.nbytes for a in call.args if a[0] == "node"}
    return sum(seen.values()) + sum({a[1]: a[1].nbytes for a in call.args if a[0] == "temp"}.values())


def _flops(call: Call) -> float:
    return float(call.flops)


def _shapes(call: Call) -> str:
    """What is computed on which shapes, in short."""
    node = call.nodes[-1]
    if node.call.op.kind in ("contraction", "convolution"):
        node = call.nodes[0]
    attrs = node.call.attrs if node.call.op.kind == "convolution" else ()
    shown = "x".join(map(str, node.meta.shape))
    inputs = " ".join("x".join(map(str, i.meta.shape)) or "-" for i in node.inputs)
    stride = f" stride {attrs[1][0]}" if attrs and attrs[1][0] != 1 else ""
    return f"{inputs} -> {shown}{stride}"


def launches(recorder: Recorder) -> list[dict[str, Any]]:
    """The launches of the program that took longest, each with its shortest time."""
    program = max(recorder.calls, key=lambda p: sum(t.sum() for t in recorder.times[p][-2:]))
    took = np.min(np.stack(recorder.times[program][1:]), axis=0)
    took = took[[type(launch) is Launch for launch in program.launches]]  # not the gates between them
    return [
        {
            "seconds": float(t) / 1e9,
            "name": c.name,
            "shapes": _shapes(c),
            "flops": _flops(c),
            "bytes": _bytes(c),
            "blocks": c.blocks,
        }
        for c, t in zip(recorder.calls[program], took, strict=True)
    ]


def profile(name: str, threads: int, rounds: int, top: int) -> None:
    """Print the profile of one model's training step."""
    ct.set_num_threads(threads)
    training: Training = make_model(ct, name)
    with Recorder() as recorder:
        for _ in range(rounds + 2):
            training.step()
    steps = []
    for _ in range(rounds):
        begin = time.perf_counter()
        training.step()
        steps.append(time.perf_counter() - begin)
    rows, measured = launches(recorder), limits.measure(threads=threads)
    total = sum(r["seconds"] for r in rows)
    for r in rows:
        r["limit"] = limits.limit_seconds(measured, r["flops"], r["bytes"])
        r["lost"] = r["seconds"] - r["limit"]
    bound = sum(r["limit"] for r in rows)
    print(
        f"\n{name}, {threads} threads: step {min(steps) * 1e3:.2f} ms, kernels {total * 1e3:.2f} ms in {len(rows)} launches, "
        f"limit {bound * 1e3:.2f} ms; peak {measured['fma']['float32']:.0f} GFLOP/s, copy {measured['copy'][-1][1]:.0f} GB/s"
    )
    families: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])
    for r in rows:
        family = families[r["name"].split(":")[0] if ":" in r["name"] else r["name"]]
        family[0] += r["seconds"]
        family[1] += r["limit"]
        family[2] += 1
    for label, (seconds, bounded, count) in sorted(families.items(), key=lambda f: -f[1][0]):
        print(
            f"  {label:<24} {int(count):4d} launches {seconds * 1e3:9.3f} ms {seconds / total:6.1%}   limit {bounded * 1e3:9.3f} ms"
        )
    merged: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for r in rows:
        merged[r["name"], r["shapes"]].append(r)
    order = sorted(merged.items(), key=lambda m: -sum(r["lost"] for r in m[1]))
    print("  lost ms  took ms  share  n  GFLOP/s   GB/s blocks  what")
    for (label, shapes), same in order[:top]:
        lost, took = (sum(r[k] for r in same) for k in ("lost", "seconds"))
        flops, moved = (sum(r[k] for r in same) for k in ("flops", "bytes"))
        print(
            f"  {lost * 1e3:7.3f}  {took * 1e3:7.3f} {took / total:6.1%} {len(same):2d} {flops / took / 1e9:8.1f} {moved / took / 1e9:6.1f} "
            f"{same[0]['blocks']:6d}  {label[:70]} {shapes[:90]}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--top", type=int, default=25)
    options = parser.parse_args()
    for name in options.models:
        profile(name, options.threads, options.rounds, options.top)


if __name__ == "__main__":
    main()
