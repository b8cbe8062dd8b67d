"""The promises of the engine that counters and bits can prove; those about time are measured by `make bench`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import cermet as ct
from bench.workloads import checks

ROOT = Path(__file__).resolve().parents[2]


def test_nothing_is_compiled_after_warm_up() -> None:
    """The learning rate changes at each step, dropout draws anew, and two batch sizes take turns: both are known after two of each."""
    trace = checks.compiles(ct, steps=60)["trace"]
    assert trace[-1] == trace[4], f"[programs, kernels] compiled so far: {trace}"


def test_lengths_share_kernels() -> None:
    """A length that was seen compiles nothing; ten new ones compile few kernels, for sizes are arguments."""
    lengths = list(range(20, 30))
    first = checks.lengths(ct, lengths)
    again = checks.lengths(ct, lengths)
    assert again["programs"] == again["kernels"] == 0
    assert first["kernels"] <= 10 * len(lengths)


def test_bits_do_not_depend_on_threads() -> None:
    one, two = (checks.weights_digest(ct, threads, steps=6) for threads in (1, 2))
    assert one == two


def test_looking_at_the_loss_repeats_no_kernel() -> None:
    work = checks.printed_loss(ct)
    assert work["looked"] == pytest.approx(work["plain"], rel=0.005)


def _fresh(cache: Path) -> dict[str, Any]:
    code = "import json; from bench.workloads import checks; print(json.dumps(checks.digest('cermet', steps=2)))"
    environment = {**os.environ, "CERMET_CACHE_DIR": str(cache), "CERMET_DISK_CACHE": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_second_process_compiles_nothing(tmp_path: Path) -> None:
    """Machine code that one process made serves the next, which gets the same bits."""
    cold, warm = _fresh(tmp_path), _fresh(tmp_path)
    assert cold["kernels"] > 0
    assert warm["kernels"] == 0
    assert warm["digest"] == cold["digest"]
