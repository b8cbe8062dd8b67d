"""Longer experiments on one library, called in its worker or in a fresh process: counters, lengths, bits, memory.

Functions take the library (`torch` or `cermet`) or its name first and return what JSON can carry.
"""

from __future__ import annotations

import hashlib
import importlib
import time
from typing import Any

import numpy as np

from bench.worker import SIDES
from bench.workloads.models import Training, make_model

__all__ = [
    "chain",
    "compiles",
    "digest",
    "first_step",
    "lengths",
    "peak_memory",
    "printed_loss",
    "resident",
    "weights_digest",
]


def _compiled(lib: Any) -> list[int]:
    stats = lib.stats()
    return [stats["programs_compiled"], stats["kernels_compiled"]]


def compiles(lib: Any, steps: int = 1000) -> dict[str, Any]:
    """Programs and kernels compiled by training steps with a changing learning rate, dropout, and two batch sizes by turns.

    ``trace``: [programs, kernels] compiled so far after each of the first steps and at the end.
    """
    training = make_model(lib, "mlp", sizes=(64, 64, 10), batch=32, dropout=0.1)
    x, y = training.data
    training.step()  # makes the weights too, which are no part of the question
    trace = [_compiled(lib)]
    for k in range(steps):
        for group in training.optimizer.param_groups:
            group["lr"] = 1e-3 / (1 + k)
        n = 24 if k % 2 else 32
        training.step(x[:n], y[:n])
        if k < 8 or k == steps - 1:
            trace.append(_compiled(lib))
    return {"trace": trace, "steps": steps}


def lengths(lib: Any, lengths: list[int], model: str = "small_gpt") -> dict[str, Any]:
    """Seconds of training steps at the given sequence lengths; for Cermet also the kernels compiled."""
    training = make_model(lib, model)
    x, y = (np.asarray(d).repeat(4, axis=1) for d in training.data)
    training.step(*(lib.from_numpy(np.ascontiguousarray(d[:, : lengths[0]])) for d in (x, y)))
    before = _compiled(lib) if hasattr(lib, "stats") else [0, 0]
    times = []
    for n in lengths:
        data = [lib.from_numpy(np.ascontiguousarray(d[:, :n])) for d in (x, y)]
        begin = time.perf_counter()
        training.step(*data)
        times.append(time.perf_counter() - begin)
    after = _compiled(lib) if hasattr(lib, "stats") else [0, 0]
    return {"times": times, "programs": after[0] - before[0], "kernels": after[1] - before[1]}


def _status(field: str) -> int:
    with open("/proc/self/status") as f:
        for line in f:
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def _imported(framework: str) -> tuple[Any, float]:
    begin = time.perf_counter()
    lib = importlib.import_module(framework)
    return lib, time.perf_counter() - begin


def _side(framework: str, threads: int) -> tuple[Any, float]:
    """What makes a framework's workloads, as in `bench.worker`, and the seconds its import took."""
    begin = time.perf_counter()
    module = importlib.import_module(SIDES[framework])
    return module.side(framework, threads), time.perf_counter() - begin


def first_step(framework: str, model: str, threads: int = 2) -> dict[str, Any]:
    """Seconds of the import, of making the model, and of its first two training steps, in this process."""
    side, imported = _side(framework, threads)
    begin = time.perf_counter()
    step = side.make("step", model)
    made = time.perf_counter()
    step()
    first = time.perf_counter()
    step()
    second = time.perf_counter()
    return {"import": imported, "make": made - begin, "first": first - made, "second": second - first}


def peak_memory(framework: str, model: str, steps: int = 3, threads: int = 2) -> dict[str, Any]:
    """Bytes: resident after the import, the highest resident size (VmHWM) after some steps, and their difference."""
    side, _ = _side(framework, threads)
    if framework.partition(".")[0] in ("cermet", "torch"):
        importlib.import_module(f"{side.lib.__name__}.optim")
    base = _status("VmRSS")
    step = side.make("step", model)
    for _ in range(steps):
        step()
    peak = _status("VmHWM")
    return {"base": base, "peak": peak, "added": peak - base, "resident": _status("VmRSS")}


def resident(framework: str, model: str, at: list[int], threads: int = 2) -> dict[str, Any]:
    """Resident bytes after so many training steps, batches cut anew for each."""
    lib, _ = _imported(framework)
    lib.set_num_threads(threads)
    training = make_model(lib, model)
    rng = np.random.default_rng(0)
    inputs, labels = np.asarray(training.data[0]).copy(), np.asarray(training.data[1]).copy()
    out = []
    for k in range(1, max(at) + 1):
        order = rng.permutation(len(labels))
        training.step(lib.from_numpy(inputs[order]), lib.from_numpy(labels[order]))
        if k in at:
            out.append(_status("VmRSS"))
    return {"resident": out}


def _epoch(lib: Any, steps: int) -> Training:
    training = make_model(lib, "digits_cnn")
    rng = np.random.default_rng(0)
    for _ in range(steps):
        x, y = rng.standard_normal((64, 1, 8, 8), np.float32), rng.integers(0, 10, 64)
        training.step(lib.from_numpy(x), lib.from_numpy(y))
    return training


def weights_digest(lib: Any, threads: int, steps: int = 19) -> str:
    """A hash of all weights and running statistics after an epoch (1,197 pictures) of training the digits network."""
    before = lib.get_num_threads()
    lib.set_num_threads(threads)
    try:
        state = _epoch(lib, steps).model.state_dict()
        return hashlib.sha256(b"".join(np.ascontiguousarray(np.asarray(state[k])).tobytes() for k in sorted(state))).hexdigest()
    finally:
        lib.set_num_threads(before)


def digest(framework: str, on: int = 2, steps: int = 19) -> dict[str, Any]:
    """`weights_digest` with so many threads in a process of its own, and how many kernels it compiled instead of finding them on disk."""
    lib = importlib.import_module(framework)
    before = _compiled(lib)[1]
    value = weights_digest(lib, on, steps)
    return {"digest": value, "kernels": _compiled(lib)[1] - before}


def chain(lib: Any, length: int) -> dict[str, float]:
    """Seconds to record, evaluate, differentiate, copy and delete a chain of so many operations."""
    x = lib.ones(4, requires_grad=True)
    lib.realize(x)
    clock, marks = time.perf_counter, [time.perf_counter()]
    y = x
    for _ in range(length):
        y = y + x
    marks.append(clock())
    lib.realize(y)
    marks.append(clock())
    y.sum().backward()
    lib.realize(x.grad)
    marks.append(clock())
    z = y.clone()
    lib.realize(z)
    marks.append(clock())
    del y, z
    marks.append(clock())
    parts = dict(zip(("record", "evaluate", "differentiate", "copy", "delete"), np.diff(marks).tolist(), strict=True))
    return {**parts, "total": marks[-1] - marks[0]}


def printed_loss(lib: Any) -> dict[str, float]:
    """Floating-point operations of all kernels of a training step, without and with ``str(loss)`` before ``backward()``: alike when
    looking runs nothing twice."""
    from bench.profiling import Recorder
    from cermet.lazy.run import clear_programs

    def step(look: bool) -> float:
        training = make_model(lib, "digits_cnn")
        training.step()
        with Recorder() as recorder:
            clear_programs()  # only programs that are assembled under its eyes are known to the recorder
            training.optimizer.zero_grad()
            loss = training.loss(*training.data)
            if look:
                str(loss)
            loss.backward()
            training.optimizer.step()
            loss.item()
        return sum(float(call.flops) * len(recorder.times[p]) for p, calls in recorder.calls.items() for call in calls)

    return {"plain": step(False), "looked": step(True)}
