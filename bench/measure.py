"""Measuring by turns: workers of several frameworks, rounds, and what is made of the times.

A round in which processes that are no part of the benchmark took more than `LOUD` of the machine is measured again, up to
`PATIENCE` times as often as was asked for; when there are too few quiet rounds even then, the quietest are taken, and the result says so.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["ROOT", "Noise", "Result", "Worker", "WorkerError", "interleaved", "ratio", "run_fresh", "scratch"]

ROOT = Path(__file__).resolve().parents[1]

LOUD = 0.06
"""The share of all processors' time that others may take in a round which counts."""

FEW = 2
"""So many rounds measure what takes more than `LONG` times its slice of time."""

LONG = 5

PATIENCE = 2
"""At most so many times the rounds asked for are measured."""


class WorkerError(RuntimeError):
    """A workload could not be run by a framework."""


@functools.cache
def scratch() -> Path:
    """A folder for this run alone, removed at its end: caches of machine code and of bytecode start empty."""
    folder = Path(tempfile.mkdtemp(prefix="cermet-bench-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def environment(threads: int, **extra: str) -> dict[str, str]:
    """The environment of a measured process: paths, thread counts for every library that reads one, and bytecode kept, as users have it."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "CERMET_NUM_THREADS")
    own = {
        "PYTHONPATH": str(ROOT),
        "PYTHONPYCACHEPREFIX": str(scratch() / "bytecode"),
        "CERMET_CACHE_DIR": str(scratch() / "machine code"),
        "TF_CPP_MIN_LOG_LEVEL": "3",
        **dict.fromkeys(names, str(threads)),
        **extra,
    }
    return {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"} | own


class Noise:
    """What processes other than the given ones (and this one) take of the machine, from ``/proc``; 0 where there is no such file."""

    def __init__(self, pids: list[int]) -> None:
        self._pids = [*pids, os.getpid()]
        self._ticks = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
        self.begin()

    @staticmethod
    def _busy() -> tuple[int, int]:
        """(ticks all processors were busy, number of processors)."""
        with open("/proc/stat") as f:
            lines = f.read().splitlines()
        user, nice, system, _, _, irq, softirq, steal = map(int, lines[0].split()[1:9])
        return user + nice + system + irq + softirq + steal, sum(line[:3] == "cpu" for line in lines) - 1

    def _own(self) -> int:
        total = 0
        for pid in self._pids:
            with open(f"/proc/{pid}/stat") as f:
                fields = f.read().rsplit(")", 1)[1].split()
            total += sum(map(int, fields[11:15]))  # utime, stime, and those of children that were waited for
        return total

    def begin(self) -> None:
        try:
            self._start = time.perf_counter(), self._busy()[0], self._own()
        except OSError:
            self._start = None

    def share(self) -> float:
        """The share of all processors' time that others took since ``begin``."""
        if self._start is None:
            return 0.0
        begin, busy, own = self._start
        try:
            now, count = self._busy()
            others = (now - busy - (self._own() - own)) / self._ticks
        except OSError:
            return 0.0
        return max(0.0, others / count / max(1e-9, time.perf_counter() - begin))


class Worker:
    """One framework in a process of its own.

    Raises:
        WorkerError: when the framework is not there.
    """

    def __init__(self, framework: str, python: str, threads: int) -> None:
        self.framework = framework
        command = [python, "-m", "bench.worker", framework, "--threads", str(threads)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment(threads), cwd=ROOT
        )
        hello = self._read()
        self.version: str = hello["version"]

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise WorkerError(f"{self.framework}: the process ended with code {self._process.wait()}")
        reply = json.loads(line)
        if "error" in reply:
            raise WorkerError(f"{self.framework}: {reply['error']}")
        return reply

    def ask(self, **request: Any) -> dict[str, Any]:
        assert self._process.stdin
        try:
            print(json.dumps(request), file=self._process.stdin, flush=True)
        except BrokenPipeError:
            raise WorkerError(f"{self.framework}: the process is gone") from None
        return self._read()

    @property
    def pid(self) -> int:
        return self._process.pid

    def call(self, function: str, **options: Any) -> Any:
        """The value of ``module:function(lib, **options)``, computed in the worker."""
        return self.ask(do="call", function=function, options=options)["value"]

    def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()


@dataclass
class Result:
    """Times of one workload on one framework.

    Attributes:
        rounds: per round that counts, the median of its times in seconds. best: the shortest time of all. first: of the first call.
        least: how many times a round takes at least, fewer for what takes long. slow: whether a run takes so much longer than its slice that only
            `FEW` rounds measure it. noise: the largest share of the machine that others took in a round that counts. error: why there are none.
    """

    rounds: list[float] = field(default_factory=list)
    best: float = float("inf")
    first: float = 0.0
    least: int = 3
    slow: bool = False
    noise: float = 0.0
    error: str = ""

    @property
    def seconds(self) -> float:
        """What is reported: the median of the rounds' medians; the shortest time where the rounds were not quiet."""
        if not self.rounds:
            return float("nan")
        return statistics.median(self.rounds) if self.quiet else self.best

    @property
    def quiet(self) -> bool:
        """Whether others left the machine alone in all rounds that count."""
        return self.noise <= LOUD


def ratio(ours: Result, theirs: Result) -> float:
    """How many times faster ours is: the median over the rounds, each of which measured both; by the shortest times where the rounds
    were not quiet, for threads that spin or wait for each other then lose whole slices of the scheduler's time."""
    if ours.rounds and theirs.rounds and not ours.quiet:
        return theirs.best / ours.best
    if len(ours.rounds) != len(theirs.rounds) and theirs.rounds and ours.rounds:
        return theirs.seconds / ours.seconds
    pairs = list(zip(ours.rounds, theirs.rounds, strict=False))
    return statistics.median(b / a for a, b in pairs) if pairs else float("nan")


def _round(workers: list[Worker], results: dict[str, Result], seconds: float) -> dict[str, list[float]]:
    """The times of one round; a worker that fails is left out from then on."""
    out = {}
    for w in workers:
        if results[w.framework].error:
            continue
        try:
            out[w.framework] = w.ask(do="time", id="it", seconds=seconds, least=results[w.framework].least)["times"]
        except WorkerError as error:
            results[w.framework].error = str(error)
    return out


def interleaved(
    workers: list[Worker],
    kind: str,
    name: str,
    options: dict[str, Any],
    rounds: int,
    seconds: float,
    beside: Callable[[], Any] = lambda: None,
) -> dict[str, Result]:
    """Measure one workload on all workers by turns; the order is reversed from round to round. ``beside`` is called once a round."""
    results = {w.framework: Result() for w in workers}
    ready = []
    for w in workers:
        try:
            results[w.framework].first = w.ask(do="make", id="it", kind=kind, name=name, options=options)["first"]
            warm = w.ask(do="time", id="it", seconds=seconds / 2, least=1)["times"]
            results[w.framework].least = 3 if warm[-1] < seconds else 1
            results[w.framework].slow = warm[-1] > max(1.0, LONG * seconds)
            ready.append(w)
        except WorkerError as error:
            results[w.framework].error = str(error)
    noise, measured = Noise([w.pid for w in workers]), []
    for k in range(rounds * PATIENCE if ready else 0):
        noise.begin()
        beside()
        now = [w for w in ready if k < FEW or not results[w.framework].slow]
        times = _round(now if k % 2 == 0 else now[::-1], results, seconds)
        measured.append((noise.share(), k, times))
        if sum(m[0] <= LOUD for m in measured) >= rounds:
            break
    for share, _, times in sorted(measured, key=lambda m: m[:2])[:rounds]:
        for framework, some in times.items():
            result = results[framework]
            result.rounds.append(statistics.median(some))
            result.best = min(result.best, *some)
            result.noise = max(result.noise, share)
    for w in ready:
        if not results[w.framework].error:
            w.ask(do="drop", id="it")
    return results


def run_fresh(python: str, function: str, framework: str, threads: int, **options: Any) -> dict[str, Any]:
    """Call ``module:function(framework, **options)`` in a fresh process and return the dict it returns.

    Raises:
        WorkerError: when it fails.
    """
    module, name = function.split(":")
    variables = options.pop("environment", {})
    code = (
        "import sys, json, importlib\n"
        "framework, module, name, options = json.loads(sys.argv[1])\n"
        "value = getattr(importlib.import_module(module), name)(framework, **options)\n"
        "print('\\n' + json.dumps(value))\n"
    )
    arguments = json.dumps([framework, module, name, options])
    done = subprocess.run(
        [python, "-c", code, arguments],
        capture_output=True,
        text=True,
        env=environment(threads, **variables),
        cwd=ROOT,
        check=False,
    )
    if done.returncode:
        raise WorkerError(f"{framework}: {done.stderr.strip().splitlines()[-1] if done.stderr.strip() else done.returncode}")
    return json.loads(done.stdout.strip().splitlines()[-1])
