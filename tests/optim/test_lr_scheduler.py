"""Every schedule against its formula, through a resume from state dicts in the middle; combinations; errors."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import cermet as ct
from cermet import optim
from cermet.optim import lr_scheduler as s

pytestmark = pytest.mark.filterwarnings("ignore:the schedule was stepped before")


def optimizer_of(lr: float = 0.1, **options: Any) -> Any:
    p, q = (ct.tensor([1.0]).requires_grad_() for _ in range(2))
    return optim.SGD([{"params": [p]}, {"params": [q], "lr": 3 * lr}], lr=lr, momentum=0.9, **options)


def cosine(t: float, period: float, low: float = 0.0) -> float:
    """Of a rate of 1."""
    return low + (1 - low) * (1 + math.cos(math.pi * t / period)) / 2


def warm(t: int) -> float:
    length = 3
    while t >= length:
        t -= length
        length *= 2
    return cosine(t, length)


FACTORS: dict[str, tuple[Callable[[Any], Any], Callable[[int], float]]] = {
    "LambdaLR": (lambda o: s.LambdaLR(o, lambda t: 0.9**t), lambda t: 0.9**t),
    "MultiplicativeLR": (lambda o: s.MultiplicativeLR(o, lambda t: 0.95), lambda t: 0.95**t),
    "StepLR": (lambda o: s.StepLR(o, 3, 0.5), lambda t: 0.5 ** (t // 3)),
    "MultiStepLR": (lambda o: s.MultiStepLR(o, [2, 5, 5, 9], 0.3), lambda t: 0.3 ** sum(t >= m for m in (2, 5, 5, 9))),
    "ConstantLR": (lambda o: s.ConstantLR(o, 0.5, 4), lambda t: 0.5 if t < 4 else 1.0),
    "LinearLR": (lambda o: s.LinearLR(o, 0.25, 0.75, 6), lambda t: 0.25 + 0.5 * min(t, 6) / 6),
    "ExponentialLR": (lambda o: s.ExponentialLR(o, 0.9), lambda t: 0.9**t),
    "PolynomialLR": (lambda o: s.PolynomialLR(o, 7, 2.0), lambda t: (1 - min(t, 7) / 7) ** 2),
    "CosineAnnealingLR": (lambda o: s.CosineAnnealingLR(o, 5), lambda t: cosine(t, 5)),
    "CosineAnnealingWarmRestarts": (lambda o: s.CosineAnnealingWarmRestarts(o, 3, 2), warm),
    "SequentialLR": (
        lambda o: s.SequentialLR(o, [s.LinearLR(o, 0.25, 1.0, 4), s.CosineAnnealingLR(o, 20)], [4]),
        lambda t: 0.25 + 0.75 * t / 4 if t < 4 else cosine(t - 4, 20),
    ),
    "ChainedScheduler": (
        lambda o: s.ChainedScheduler([s.ExponentialLR(o, 0.9), s.ConstantLR(o, 0.1, 3)]),
        lambda t: 0.9**t * (0.1 if t < 3 else 1.0),
    ),
}


@pytest.mark.parametrize("name", FACTORS)
@pytest.mark.parametrize("resume", [None, 4, 9])
def test_factors_of_the_initial_rate(name: str, resume: int | None) -> None:
    make, factor = FACTORS[name]
    optimizer = optimizer_of()
    schedule = make(optimizer)
    for t in range(14):
        expected = [0.1 * factor(t), 0.3 * factor(t)]
        np.testing.assert_allclose([g["lr"] for g in optimizer.param_groups], expected, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(schedule.get_last_lr(), expected, rtol=1e-9, atol=1e-12)
        optimizer.step()
        schedule.step()
        if t == resume:
            states = schedule.state_dict(), optimizer.state_dict()
            optimizer = optimizer_of()
            schedule = make(optimizer)
            schedule.load_state_dict(states[0])
            optimizer.load_state_dict(states[1])


@pytest.mark.parametrize("name", ["StepLR", "MultiStepLR", "LinearLR", "ExponentialLR", "PolynomialLR", "CosineAnnealingLR"])
def test_step_to_an_epoch_uses_the_closed_form(name: str) -> None:
    make, factor = FACTORS[name]
    optimizer = optimizer_of()
    schedule = make(optimizer)
    for t in (3, 6, 2):
        with pytest.warns(UserWarning, match="giving the epoch"):
            schedule.step(t)
        np.testing.assert_allclose(schedule.get_last_lr(), [0.1 * factor(t), 0.3 * factor(t)], rtol=1e-12)


def test_warm_restarts_between_epochs() -> None:
    optimizer = optimizer_of()
    schedule = s.CosineAnnealingWarmRestarts(optimizer, 3, 2)
    for t, expected in ((0.5, cosine(0.5, 3)), (3.0, 1.0), (6.5, cosine(3.5, 6)), (10.0, cosine(1, 12))):
        schedule.step(t)
        np.testing.assert_allclose(schedule.get_last_lr()[0], 0.1 * expected, rtol=1e-12)


def triangle(t: int, up: int, down: int) -> float:
    t %= up + down
    return t / up if t <= up else 1 - (t - up) / down


@pytest.mark.parametrize(
    ("options", "height"),
    [
        ({}, lambda t: 1.0),
        ({"mode": "triangular2"}, lambda t: 0.5 ** (t // 8)),
        ({"mode": "exp_range", "gamma": 0.9}, lambda t: 0.9**t),
        ({"scale_fn": lambda x: 1 / x, "scale_mode": "cycle"}, lambda t: 1 / (1 + t // 8)),
    ],
)
def test_cyclic(options: dict[str, Any], height: Callable[[int], float]) -> None:
    optimizer = optimizer_of()
    schedule = s.CyclicLR(optimizer, 0.01, [0.1, 0.2], 3, 5, **options)
    for t in range(20):
        h = triangle(t, 3, 5) * height(t)
        np.testing.assert_allclose(schedule.get_last_lr(), [0.01 + 0.09 * h, 0.01 + 0.19 * h], rtol=1e-9)
        np.testing.assert_allclose(optimizer.param_groups[0]["momentum"], 0.9 - 0.1 * h, rtol=1e-9)
        optimizer.step()
        schedule.step()


@pytest.mark.parametrize("three", [False, True])
def test_one_cycle(three: bool) -> None:
    p = ct.tensor([1.0]).requires_grad_()
    optimizer = optim.AdamW([p], lr=1.0)
    schedule = s.OneCycleLR(
        optimizer, 0.1, epochs=5, steps_per_epoch=4, anneal_strategy="linear", three_phase=three, div_factor=10.0
    )
    points = {0: 0.01, 5: 0.1, 10: 0.01, 19: 1e-6} if three else {0: 0.01, 5: 0.1, 19: 1e-6}
    momenta = {0: 0.95, 5: 0.85, 10: 0.95, 19: 0.95} if three else {0: 0.95, 5: 0.85, 19: 0.95}
    for t in range(20):
        np.testing.assert_allclose(schedule.get_last_lr()[0], np.interp(t, list(points), list(points.values())), rtol=1e-9)
        beta = optimizer.param_groups[0]["betas"]
        np.testing.assert_allclose(beta, (np.interp(t, list(momenta), list(momenta.values())), 0.999), rtol=1e-9)
        optimizer.step()
        schedule.step()
    with pytest.raises(ValueError, match="step 21 of a cycle made for 20"):
        schedule.step()


def test_plateau() -> None:
    optimizer = optimizer_of()
    schedule = s.ReduceLROnPlateau(optimizer, patience=1, factor=0.5, cooldown=1)
    rates = []
    for metric in (5, 4, 4.1, 4.2, 4.3, 4.3, 4.3, 3.0, ct.tensor(3.5)):
        schedule.step(metric)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == [0.1, 0.1, 0.1, 0.05, 0.05, 0.05, 0.025, 0.025, 0.025]
    twin = s.ReduceLROnPlateau(optimizer_of(), mode="max")
    twin.load_state_dict(schedule.state_dict())
    assert twin.best == 3.0 and twin.mode == "min" and twin.num_bad_epochs == 1
    highest = s.ReduceLROnPlateau(optimizer_of(), mode="max", threshold_mode="abs", threshold=1.0, patience=0, min_lr=[0.05, 0.2])
    for metric in (1, 1.5, 3):
        highest.step(metric)
    assert highest.get_last_lr() == [0.05, 0.2]


def test_a_rate_that_is_a_tensor_stays_one() -> None:
    p = ct.tensor([1.0]).requires_grad_()
    rate = ct.tensor(0.5)
    optimizer = optim.SGD([p], lr=rate)
    schedule = s.ExponentialLR(optimizer, 0.5)
    optimizer.step()
    schedule.step()
    assert optimizer.param_groups[0]["lr"] is rate and rate.item() == 0.25
    assert schedule.get_last_lr()[0] is not rate


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda o: s.StepLR(5, 1), TypeError, "int is not an Optimizer"),
        (lambda o: s.StepLR(o, 1, last_epoch=3), KeyError, "initial_lr"),
        (lambda o: s.LambdaLR(o, [lambda t: 1.0]), ValueError, "1 functions for 2 parameter groups"),
        (lambda o: s.MultiplicativeLR(o, 5), TypeError, "give a function"),
        (lambda o: s.ConstantLR(o, 2.0), ValueError, r"factor=2.0 must lie in \[0, 1\]"),
        (lambda o: s.LinearLR(o, 0.0), ValueError, "start_factor=0.0"),
        (lambda o: s.CosineAnnealingWarmRestarts(o, 0), ValueError, "T_0=0: give a whole number"),
        (lambda o: s.CyclicLR(o, 0.1, [1.0]), ValueError, "1 values for 2 parameter groups"),
        (lambda o: s.CyclicLR(o, 0.1, 1.0, mode="square"), ValueError, "mode='square'"),
        (
            lambda o: s.CyclicLR(optim.Adagrad([ct.tensor([1.0]).requires_grad_()]), 0.1, 1.0),
            ValueError,
            "neither momentum nor betas",
        ),
        (lambda o: s.OneCycleLR(o, 0.1), ValueError, "Give total_steps, or both"),
        (lambda o: s.OneCycleLR(o, 0.1, 5, anneal_strategy="log"), ValueError, "anneal_strategy"),
        (lambda o: s.ReduceLROnPlateau(o, factor=1.0), ValueError, "factor=1.0"),
        (lambda o: s.ReduceLROnPlateau(o, mode="middle"), ValueError, "mode='middle'"),
        (lambda o: s.SequentialLR(o, [], []), ValueError, "list of schedulers is empty"),
        (lambda o: s.SequentialLR(o, [s.StepLR(o, 1)], [1]), ValueError, "0 milestones, got"),
        (lambda o: s.SequentialLR(o, [s.StepLR(optimizer_of(), 1)], []), ValueError, "another optimizer"),
        (lambda o: s.ChainedScheduler([s.ReduceLROnPlateau(o)]), ValueError, "needs a metric"),
    ],
)
def test_refusals(make: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        make(optimizer_of())


def test_get_lr_outside_of_a_step_warns() -> None:
    schedule = s.ExponentialLR(optimizer_of(), 0.5)
    with pytest.warns(UserWarning, match="get_last_lr"):
        schedule.get_lr()
