"""Tuning by measurement: remembered, read again, the same bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import cermet as ct
from cermet import config
from cermet.compiler.kernels import tuned
from cermet.lazy import tune as measuring

_rng = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(measuring, "_SECONDS", 0.01)
    tuned.reset()
    with config.scope(cache_dir=str(tmp_path), disk_cache=True):
        yield
    tuned.reset()
    measuring.prepared()


def operands() -> tuple[Any, Any]:
    return (
        ct.from_numpy(_rng.standard_normal((160, 96)).astype(np.float32)),
        ct.from_numpy(_rng.standard_normal((96, 200)).astype(np.float32)),
    )


def test_a_function_is_tuned_and_keeps_its_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = operands()
    before = (a @ b).numpy()
    # The slowest wins, so that something changes.
    monkeypatch.setattr(measuring, "_times", lambda q: [1.0] * (len(q.candidates) - 1) + [0.5])
    results = ct.tune(lambda x, y: x @ y, a, b)
    assert [r.family for r in results] == ["contraction"]
    assert (results[0].before, results[0].after) == (1.0, 0.5)
    assert "160x200x96" in results[0].problem
    for _ in range(2):
        assert (a @ b).numpy().tobytes() == before.tobytes()
        tuned.reset()  # the second time from disk
        measuring.prepared()
    [table] = [t for t in (tuned._table("contraction", measuring_target()),) if t]
    assert list(table) == [results[0].problem]


def measuring_target() -> Any:
    from cermet.compiler.llvm.target import host

    return host()


def test_every_candidate_has_the_same_bits() -> None:
    a, b = operands()
    with tuned.collecting() as questions:
        measuring.prepared()
        expected = (a @ b).numpy()
    [question] = questions.values()
    assert len(question.candidates) > 3
    for candidate in question.candidates:
        tuned.learn(question, candidate.choice)
        measuring.prepared()
        assert (a @ b).numpy().tobytes() == expected.tobytes()
    np.testing.assert_allclose(expected, a.numpy() @ b.numpy(), rtol=1e-4, atol=1e-4)


def test_a_stretch_of_program_is_measured() -> None:
    a, b = operands()
    with ct.tune() as tuning:
        c = a @ b
        d = ct.relu(c.T @ c)
    assert len(tuning.results) == 2
    assert all(0 < r.after <= r.before for r in tuning.results)
    np.testing.assert_allclose(d.numpy(), np.maximum(c.numpy().T @ c.numpy(), 0), rtol=1e-4, atol=1e-3)


def test_a_failure_inside_leaves_things_as_they_were() -> None:
    with pytest.raises(ZeroDivisionError):
        ct.tune(lambda: 1 // 0)
    assert not tuned.is_collecting()


def test_what_is_no_function_is_refused() -> None:
    with pytest.raises(TypeError, match="expected a function"):
        ct.tune(3)
    with pytest.raises(TypeError, match="no function"):
        ct.tune(None, 3)
