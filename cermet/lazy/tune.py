"""Tuning by measurement: runs a user's function, times the schedules that kernel families offer for what it computed, keeps the best.

Knows programs, plans and the runtime; what a schedule is, its family knows (see `cermet.compiler.kernels.tuned`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from cermet.compiler.kernels import tuned
from cermet.compiler.kernels.plan import Operand, Plan, Temp
from cermet.compiler.llvm.jit import Request, compile_many
from cermet.compiler.schedule import hand
from cermet.lazy.run import clear_programs
from cermet.runtime.buffer import Buffer
from cermet.runtime.program import Launch, Pointer, Program

__all__ = ["Tuned", "measure", "prepared"]

_ROUNDS = 7
_SECONDS = 0.4  # for one problem, all candidates together
_WORTH = 0.97  # another choice must save 3%: less is noise


class Tuned(NamedTuple):
    """One problem that was measured: the family and the problem's name; seconds as the cost model had it, and as it is now."""

    family: str
    problem: str
    before: float
    after: float


def prepared() -> None:
    """Make the next evaluations plan anew."""
    clear_programs()
    hand.forget_plans()


def measure(questions: list[tuned.Question]) -> list[Tuned]:
    """Answer questions by measurement, on as many threads as are set now; remember the answers, here and on disk."""
    out = []
    for q in questions:
        times = _times(q)
        best = min(range(len(times)), key=lambda i: times[i])
        if times[best] > times[0] * _WORTH:
            best = 0
        tuned.learn(q, None if best == 0 else q.candidates[best].choice)
        out.append(Tuned(q.family, q.key, times[0], times[best]))
    tuned.save(questions)
    prepared()
    return out


def _times(q: tuned.Question) -> list[float]:
    """The shortest run of each candidate, taken by turns."""
    names = list(q.buffers)
    buffers = [_zeros(q.buffers[n]) for n in names]
    bases = [b.ptr for b in buffers]
    runs: list[Callable[[], None]] = []
    for candidate in q.candidates:
        program = _program(candidate.plan(), names)
        program.run(bases)  # makes its pages
        runs.append(lambda program=program: program.run(bases))  # type: ignore[misc]
    times = [float("inf")] * len(runs)
    end = time.perf_counter() + _SECONDS
    for turn in range(1000):
        for i, run in enumerate(runs):
            begin = time.perf_counter()
            run()
            times[i] = min(times[i], time.perf_counter() - begin)
        if turn >= _ROUNDS - 1 and time.perf_counter() > end:
            break
    return times


def _zeros(nbytes: int) -> Buffer:
    buffer = Buffer(max(nbytes, 64))
    np.asarray(buffer.view("u1", (max(nbytes, 64),), writeable=True))[...] = 0
    return buffer


def _program(plan: Plan, names: list[str]) -> Program:
    """A plan as a program whose bases are the operands in the order of ``names``."""
    codes = compile_many([Request(launch.key, launch.build, launch.entry) for launch in plan.launches])
    offsets = [0]
    for size in plan.temps:
        offsets.append(offsets[-1] + -(-size // 64) * 64)

    def bound(arg: Any) -> Any:
        if isinstance(arg, Operand):
            return Pointer(names.index(arg.name) + 1, arg.byte_offset)
        return Pointer(0, offsets[arg.index] + arg.byte_offset) if isinstance(arg, Temp) else arg

    launches = [
        Launch(code.address, [bound(a) for a in step.args], step.blocks, step.grain, step.scratch, code)
        for step, code in zip(plan.launches, codes, strict=True)
        if step.blocks
    ]
    return Program(launches, len(names), arena_bytes=offsets[-1])
