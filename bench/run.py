"""A run of the benchmark: the workers, how thoroughly to measure, and the report that the sections fill."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from bench.measure import ROOT, Result, Worker, WorkerError, interleaved, run_fresh
from bench.report import Report

__all__ = ["Bench"]


class Bench:
    """What a section gets.

    Attributes:
        quick: smaller sizes and fewer rounds. threads: of each framework. report: to be filled.
        cermet: Cermet's worker. torch: PyTorch's, or None where it is not installed.
    """

    def __init__(self, quick: bool, threads: int, peers: bool = True) -> None:
        self.quick, self.threads, self.report = quick, threads, Report()
        self._pythons = {"cermet": sys.executable, "torch": str(ROOT / ".venv-peers" / "bin" / "python")}
        self.cermet = Worker("cermet", self._pythons["cermet"], threads)
        self.torch: Worker | None = None
        if peers:
            try:
                self.torch = Worker("torch", self._pythons["torch"], threads)
            except (WorkerError, OSError) as error:
                self.note(
                    f"PyTorch is left out, for its worker does not start: {error} (`make peers` installs it in .venv-peers)"
                )
        else:
            self.note("PyTorch is left out, as asked")

    @staticmethod
    def note(text: str) -> None:
        """Say what is going on, on the standard error."""
        print(text, file=sys.stderr, flush=True)

    @property
    def workers(self) -> list[Worker]:
        return [self.cermet] if self.torch is None else [self.cermet, self.torch]

    def compare(
        self,
        kind: str,
        name: str,
        rounds: int = 0,
        seconds: float = 0.0,
        beside: Callable[[], Any] = lambda: None,
        **options: Any,
    ) -> tuple[Result, Result]:
        """Cermet's and PyTorch's result of one workload; the second has an error where there is no PyTorch."""
        rounds, seconds = rounds or (3 if self.quick else 7), seconds or (0.08 if self.quick else 0.25)
        results = interleaved(self.workers, kind, name, options, rounds, seconds, beside)
        ours, theirs = results["cermet"], results.get("torch", Result(error="PyTorch is not there"))
        self.report.about["noise"] = max(self.report.about.get("noise", 0.0), ours.noise)
        self.report.data.setdefault(kind, []).append(
            {"name": name, "options": options, "cermet": vars(ours), "torch": vars(theirs)}
        )
        for result in (ours, theirs):
            if result.error and result.error != "PyTorch is not there":
                self.note(f"  {name} {options or ''}: {result.error}")
        return ours, theirs

    def fresh(self, function: str, framework: str = "cermet", **options: Any) -> dict[str, Any] | None:
        """What ``bench.workloads.checks:function`` returns in a fresh process; None for PyTorch where it is not installed.

        Raises:
            WorkerError: when it fails.
        """
        if framework == "torch" and self.torch is None:
            return None
        function = function if ":" in function else f"bench.workloads.checks:{function}"
        return run_fresh(self._pythons[framework], function, framework, self.threads, **options)

    def close(self) -> None:
        """End the workers."""
        for w in self.workers:
            w.close()
