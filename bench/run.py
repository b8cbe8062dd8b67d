"""A run of the benchmark: the workers, how thoroughly to measure, and the report that the sections fill."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from bench.measure import ROOT, Result, Worker, WorkerError, interleaved, run_fresh
from bench.report import Report

__all__ = ["NAMES", "PEERS", "Bench"]


PEERS = ("torch", "torch.compile", "jax", "tensorflow", "numpy")
"""The frameworks that Cermet is measured beside, where they are installed."""

NAMES = {
    "cermet": "Cermet",
    "cermet.compile": "ct.compile",
    "torch": "PyTorch",
    "torch.compile": "torch.compile",
    "jax": "JAX",
    "tensorflow": "TensorFlow",
    "numpy": "NumPy",
}


class Bench:
    """What a section gets.

    Attributes:
        quick: smaller sizes and fewer rounds. threads: of each framework. report: to be filled.
        cermet: Cermet's worker. compiled: Cermet's under ``ct.compile``. torch: PyTorch's, or None where it is not installed.
        peers: the workers of all other frameworks, by name.
    """

    def __init__(self, quick: bool, threads: int, peers: tuple[str, ...] = PEERS) -> None:
        self.quick, self.threads, self.report = quick, threads, Report()
        self.cermet = Worker("cermet", self._python("cermet"), threads)
        self.compiled = Worker("cermet.compile", self._python("cermet"), threads)
        self.peers: dict[str, Worker] = {}
        for name in peers:
            try:
                self.peers[name] = Worker(name, self._python(name), threads)
            except (WorkerError, OSError) as error:
                self.note(
                    f"{NAMES[name]} is left out, for its worker does not start: {error} (`make peers` installs it in .venv-peers)"
                )
        self.torch = self.peers.get("torch")

    @staticmethod
    def _python(framework: str) -> str:
        return sys.executable if framework.startswith("cermet") else str(ROOT / ".venv-peers" / "bin" / "python")

    @staticmethod
    def note(text: str) -> None:
        """Say what is going on, on the standard error."""
        print(text, file=sys.stderr, flush=True)

    @property
    def workers(self) -> list[Worker]:
        """Cermet's and PyTorch's: those of the sections that compare two."""
        return [self.cermet] if self.torch is None else [self.cermet, self.torch]

    def compare(
        self,
        kind: str,
        name: str,
        rounds: int = 0,
        seconds: float = 0.0,
        beside: Callable[[], Any] = lambda: None,
        without: tuple[str, ...] = (),
        **options: Any,
    ) -> dict[str, Result]:
        """The results of one workload by framework, of all that are there but ``without``."""
        rounds, seconds = rounds or (3 if self.quick else 5), seconds or (0.08 if self.quick else 0.2)
        workers = [w for w in (self.cermet, self.compiled, *self.peers.values()) if w.framework not in without]
        results = interleaved(workers, kind, name, options, rounds, seconds, beside)
        self.report.about["noise"] = max(self.report.about.get("noise", 0.0), results["cermet"].noise)
        raw = {framework: vars(result) for framework, result in results.items()}
        self.report.data.setdefault(kind, []).append({"name": name, "options": options, **raw})
        for framework, result in results.items():
            if result.error:
                self.note(f"  {name} {options or ''}, {NAMES[framework]}: {result.error.splitlines()[0]}")
        return results

    def best_peer(self, results: dict[str, Result]) -> str | None:
        """The name of the fastest other framework; None where there is none."""
        times = {f: r.seconds for f, r in results.items() if not f.startswith("cermet") and r.rounds}
        return min(times, key=lambda f: times[f]) if times else None

    def fresh(self, function: str, framework: str = "cermet", **options: Any) -> dict[str, Any] | None:
        """What ``bench.workloads.checks:function`` returns in a fresh process; None for a framework that is not installed.

        Raises:
            WorkerError: when it fails.
        """
        if not framework.startswith("cermet") and framework not in self.peers:
            return None
        function = function if ":" in function else f"bench.workloads.checks:{function}"
        return run_fresh(self._python(framework), function, framework, self.threads, **options)

    def close(self) -> None:
        """End the workers."""
        for w in (self.cermet, self.compiled, *self.peers.values()):
            w.close()
