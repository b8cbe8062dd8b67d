"""A process that runs named workloads on request: one for each framework, alive for the whole benchmark.

    python -m bench.worker cermet|cermet.compile|torch|torch.compile|jax|tensorflow|numpy [--threads 2]

Requests and answers are lines of JSON over the standard pipes. It says nothing and does nothing between requests, so that frameworks can
be measured by turns, never two at once. Whatever libraries print goes to the standard error.

    {"do": "make", "id": "a", "kind": "kernel", "name": "exp", "options": {"size": 4096}}      -> {"first": seconds of the first call}
    {"do": "time", "id": "a", "seconds": 0.2, "least": 3}                                      -> {"times": [seconds, ...]}
    {"do": "drop", "id": "a"}                                                                  -> {}
    {"do": "call", "function": "bench.sections.overhead:record", "options": {}}                -> {"value": ...}

An error is answered as {"error": text}; the process lives on.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

__all__ = ["main"]

MOST = 2000
"""No more times than this are kept for one request."""

SIDES = {
    "cermet": "bench.workloads.alike",
    "cermet.compile": "bench.workloads.alike",
    "torch": "bench.workloads.alike",
    "torch.compile": "bench.workloads.alike",
    "jax": "bench.workloads.jax_side",
    "tensorflow": "bench.workloads.tensorflow_side",
    "numpy": "bench.workloads.numpy_side",
}
"""The room that knows how to make a framework's workloads: it has a function ``side(framework, threads)``."""


def times_of(work: Callable[[], Any], seconds: float, least: int) -> list[float]:
    """How long each run took, of as many as fit into ``seconds``, at least ``least``."""
    clock, out = time.perf_counter, []
    end = clock() + seconds
    while True:
        start = clock()
        work()
        now = clock()
        if len(out) < MOST:
            out.append(now - start)
        if now > end and len(out) >= least:
            return out


class Server:
    """Answers requests. ``side`` makes workloads: ``side.make(kind, name, **options)`` gives a function without arguments."""

    def __init__(self, side: Any) -> None:
        self.side = side
        self.work: dict[str, Callable[[], Any]] = {}

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        what = request["do"]
        if what == "make":
            begin = time.perf_counter()
            work = self.side.make(request["kind"], request["name"], **request.get("options", {}))
            made = time.perf_counter()
            work()
            first = time.perf_counter() - made
            self.work[request["id"]] = work
            return {"first": first, "made": made - begin}
        if what == "time":
            gc.collect()
            return {"times": times_of(self.work[request["id"]], request["seconds"], request.get("least", 3))}
        if what == "drop":
            self.work.pop(request["id"], None)
            gc.collect()
            return {}
        if what == "call":
            module, name = request["function"].split(":")
            return {"value": getattr(importlib.import_module(module), name)(self.side.lib, **request.get("options", {}))}
        raise ValueError(f"unknown request {what!r}")


def main() -> None:
    framework = sys.argv[1]
    threads = int(sys.argv[sys.argv.index("--threads") + 1]) if "--threads" in sys.argv else 2
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        begin = time.perf_counter()
        side = importlib.import_module(SIDES[framework]).side(framework, threads)
        hello: dict[str, Any] = {"version": side.version, "import": time.perf_counter() - begin}
    except Exception as error:
        hello = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(hello), file=answers, flush=True)
    if "error" in hello:
        return
    server = Server(side)
    for line in sys.stdin:
        try:
            reply = server.answer(json.loads(line))
        except Exception as error:
            if os.environ.get("BENCH_TRACE"):
                traceback.print_exc()
            reply = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(reply), file=answers, flush=True)


if __name__ == "__main__":
    main()
