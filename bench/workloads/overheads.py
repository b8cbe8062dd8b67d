"""The costs of small things, in one library: recording or running an operation, evaluating what was seen before."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from typing import Any

from bench.workloads.models import make_model

__all__ = ["operation", "small_operations", "step_parts"]

_CHAIN = 200


def operation(lib: Any, chains: int = 60, size: int = 16) -> dict[str, float]:
    """Microseconds to call an operation with gradients on: medians over chains of alternating adds and multiplies.

    For Cermet that is recording (``evaluate``: what the evaluation of the chain costs per operation, beside it); PyTorch computes at once.
    """
    x = lib.ones(size, requires_grad=True)
    realize = getattr(lib, "realize", lambda y: y)
    realize(x)
    record, evaluate = [], []
    clock = time.perf_counter
    for _ in range(chains):
        y = x
        gc.collect(0)
        begin = clock()
        for _ in range(_CHAIN // 2):
            y = y + x
            y = y * x
        middle = clock()
        realize(y)
        evaluate.append((clock() - middle) / _CHAIN)
        record.append((middle - begin) / _CHAIN)
    return {"call": statistics.median(record) * 1e6, "evaluate": statistics.median(evaluate) * 1e6, "best": min(record) * 1e6}


def _each(work: Callable[[], Any], seconds: float = 0.1) -> float:
    """The median of the times of one call, in microseconds."""
    times, end, clock = [], time.perf_counter() + seconds, time.perf_counter
    while clock() < end:
        begin = clock()
        work()
        times.append(clock() - begin)
    return statistics.median(times) * 1e6


def small_operations(lib: Any) -> dict[str, float]:
    """Microseconds of everyday statements on 4 x 4 values, each looked at (so that it is computed)."""
    realize = getattr(lib, "realize", lambda y: y)
    x, y = lib.ones(4, 4), lib.ones(4, 4)
    w = lib.ones(4, 4, requires_grad=True)
    realize([x, y, w])

    def gradient() -> None:
        w.grad = None
        (w * x).sum().backward()
        realize(w.grad)

    return {
        "x + y": _each(lambda: realize(x + y)),
        "x @ y": _each(lambda: realize(x @ y)),
        "x.sum().item()": _each(lambda: x.sum().item()),
        "x[1]": _each(lambda: x[1]),
        "zeros(4, 4)": _each(lambda: realize(lib.zeros(4, 4))),
        "(w * x).sum().backward()": _each(gradient),
    }


def step_parts(lib: Any, model: str = "small_mlp", steps: int = 300, **options: Any) -> dict[str, float]:
    """Where a training step of Cermet spends its time, in microseconds (medians): recording in Python; evaluation outside kernels (from
    the look-up of the program to the results); the walk over the launches; kernels (least of all). And how many operations are recorded."""
    import numpy as np

    from cermet.lazy import evaluate as lazy_evaluate
    from cermet.runtime.program import Program

    training = make_model(lib, model, **options)
    for _ in range(5):
        training.step()
    seen: dict[str, float] = {"operations": 0.0, "evaluate": 0.0, "kernels": 0.0}
    run, evaluate, clock = Program.run, lazy_evaluate.evaluate, time.perf_counter

    def timed_run(program: Any, bases: Any, scalars: Any = (), timings: Any = None) -> None:
        took = np.zeros(len(program.launches), np.int64)
        begin = clock()
        run(program, bases, scalars, took if len(took) else None)
        # What the timing itself costs, and what the walker spends between kernels, is left to the walk, not to the kernels.
        seen["run"] = seen.get("run", 0.0) + clock() - begin
        seen["kernels"] += float(took.sum()) / 1e9

    def timed_evaluate(tape: Any) -> None:
        seen["operations"] = max(seen["operations"], float(len(tape.nodes)))
        begin = clock()
        evaluate(tape)
        seen["evaluate"] += clock() - begin

    def plain_run(program: Any, bases: Any, scalars: Any = (), timings: Any = None) -> None:
        begin = clock()
        run(program, bases, scalars, timings)
        seen["run"] = seen.get("run", 0.0) + clock() - begin

    totals: dict[str, list[float]] = {"step": [], "evaluation": [], "recording": [], "native": []}
    kernels = []
    try:
        lazy_evaluate.evaluate = timed_evaluate
        Program.run = timed_run  # type: ignore[method-assign]
        for _ in range(20):
            seen["kernels"] = 0.0
            training.step()
            kernels.append(seen["kernels"])
        Program.run = plain_run  # type: ignore[method-assign]
        for _ in range(steps):
            seen["evaluate"] = seen["run"] = 0.0
            begin = clock()
            training.step()
            total = clock() - begin
            totals["step"].append(total)
            totals["evaluation"].append(seen["evaluate"] - seen["run"])
            totals["recording"].append(total - seen["evaluate"])
            totals["native"].append(seen["run"])
    finally:
        Program.run, lazy_evaluate.evaluate = run, evaluate  # type: ignore[method-assign]
    medians = {k: statistics.median(v) * 1e6 for k, v in totals.items()}
    walk = max(0.0, medians.pop("native") - min(kernels) * 1e6)
    return {**medians, "walk": walk, "kernels": min(kernels) * 1e6, "operations": seen["operations"]}
