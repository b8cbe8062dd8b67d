"""Measuring by turns: workers of several frameworks, rounds, and what is made of the times."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["ROOT", "Result", "Worker", "WorkerError", "interleaved", "run_fresh"]

ROOT = Path(__file__).resolve().parents[1]


class WorkerError(RuntimeError):
    """A workload could not be run by a framework."""


def environment(threads: int, **extra: str) -> dict[str, str]:
    """The environment of a measured process: paths, and thread counts for every library that reads one."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "CERMET_NUM_THREADS")
    return {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3", **dict.fromkeys(names, str(threads)), **extra}


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
        rounds: per round, the median of its times in seconds. best: the shortest time of all. first: of the first call.
        error: why there are none.
    """

    rounds: list[float] = field(default_factory=list)
    best: float = float("inf")
    first: float = 0.0
    error: str = ""

    @property
    def seconds(self) -> float:
        """What is reported: the median of the rounds' medians."""
        return statistics.median(self.rounds) if self.rounds else float("nan")


def interleaved(
    workers: list[Worker], kind: str, name: str, options: dict[str, Any], rounds: int, seconds: float
) -> dict[str, Result]:
    """Measure one workload on all workers by turns; the order is reversed from round to round."""
    results = {w.framework: Result() for w in workers}
    ready = []
    for w in workers:
        try:
            results[w.framework].first = w.ask(do="make", id="it", kind=kind, name=name, options=options)["first"]
            w.ask(do="time", id="it", seconds=seconds / 2, least=2)  # warms up
            ready.append(w)
        except WorkerError as error:
            results[w.framework].error = str(error)
    for k in range(rounds):
        for w in ready if k % 2 == 0 else ready[::-1]:
            result = results[w.framework]
            if result.error:
                continue
            try:
                times = w.ask(do="time", id="it", seconds=seconds, least=3)["times"]
            except WorkerError as error:
                result.error = str(error)
                continue
            result.rounds.append(statistics.median(times))
            result.best = min(result.best, *times)
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
