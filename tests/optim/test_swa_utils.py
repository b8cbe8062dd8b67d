"""Averaged models and their schedule."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import cermet as ct
from cermet import optim

nn = pytest.importorskip("cermet.nn")
swa = pytest.importorskip("cermet.optim.swa_utils")


class Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(ct.tensor([0.0, 0.0]))
        self.register_buffer("shift", ct.tensor([0.0]))

    def forward(self, x: Any) -> Any:
        return x * self.weight + self.shift


def set_to(model: Any, value: float) -> None:
    with ct.no_grad():
        model.weight.copy_(ct.tensor([value, 2 * value]))
        model.shift.copy_(ct.tensor([value]))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, 7 / 3),
        ({"avg_fn": swa.get_swa_avg_fn()}, 7 / 3),
        ({"multi_avg_fn": swa.get_ema_multi_avg_fn(0.5)}, 2.75),
        ({"avg_fn": swa.get_ema_avg_fn(0.5)}, 2.75),
    ],
)
@pytest.mark.parametrize("use_buffers", [False, True])
def test_averages(options: dict[str, Any], expected: float, use_buffers: bool) -> None:
    model = Scale()
    average = swa.AveragedModel(model, use_buffers=use_buffers, **options)
    for value in (1.0, 2.0, 4.0):
        set_to(model, value)
        average.update_parameters(model)
    np.testing.assert_allclose(average.module.weight.tolist(), [expected, 2 * expected], rtol=1e-6)
    np.testing.assert_allclose(average.module.shift.item(), expected if use_buffers else 4.0, rtol=1e-6)
    assert average.n_averaged.item() == 3 and average.n_averaged.dtype is ct.int64
    assert model.weight.tolist() == [4.0, 8.0]
    assert "n_averaged" in average.state_dict()
    np.testing.assert_allclose(average(ct.tensor([1.0, 1.0])).tolist(), (average.module.weight + average.module.shift).tolist())


def test_averaging_compiles_nothing_after_its_first_steps() -> None:
    model = Scale()
    average = swa.AveragedModel(model)
    compiled = []
    for k in range(6):
        set_to(model, float(k))
        average.update_parameters(model)
        compiled.append(ct.stats()["programs_compiled"])
    assert compiled[2] == compiled[-1]


def test_refusals() -> None:
    with pytest.raises(AssertionError, match="both given"):
        swa.AveragedModel(Scale(), avg_fn=swa.get_swa_avg_fn(), multi_avg_fn=swa.get_swa_multi_avg_fn())
    with pytest.raises(ValueError, match=r"decay=1\.5"):
        swa.get_ema_avg_fn(1.5)
    with pytest.raises(ValueError, match="anneal_strategy"):
        swa.SWALR(optim.SGD([ct.tensor([1.0]).requires_grad_()]), 0.1, anneal_strategy="log")


@pytest.mark.parametrize(("strategy", "way"), [("cos", lambda t: (1 - math.cos(math.pi * t)) / 2), ("linear", lambda t: t)])
def test_swalr(strategy: str, way: Any) -> None:
    optimizer = optim.SGD([ct.tensor([1.0]).requires_grad_()], lr=0.5)
    schedule = swa.SWALR(optimizer, 0.1, 4, strategy)
    for t in range(7):
        done = way(min(1, t / 4))
        np.testing.assert_allclose(schedule.get_last_lr(), [0.5 * (1 - done) + 0.1 * done], rtol=1e-9)
        optimizer.step()
        schedule.step()


def test_update_bn() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2))
    rng = np.random.default_rng(0)
    batches = [ct.tensor(rng.normal(3.0, 2.0, size=(8, 2)).astype(np.float32)) for _ in range(3)]
    model.eval()
    swa.update_bn([(b, 0) for b in batches], model)
    norm = model[0]
    np.testing.assert_allclose(norm.running_mean.numpy(), np.mean([b.numpy().mean(0) for b in batches], 0), rtol=1e-5)
    assert norm.momentum == 0.1 and not model.training
