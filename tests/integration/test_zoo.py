"""Models of many kinds learn: a few steps on one batch lower the loss. The models are those of `bench/workloads`, which also runs them beside
PyTorch."""

from __future__ import annotations

import math

import pytest

import cermet as ct
from bench.workloads.models import make_model
from bench.workloads.zoo import ZOO


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO)
def test_the_loss_falls(name: str) -> None:
    training = make_model(ct, name)
    losses = [training.step() for _ in range(8)]
    assert all(map(math.isfinite, losses)), losses
    assert min(losses[4:]) < losses[0], losses
