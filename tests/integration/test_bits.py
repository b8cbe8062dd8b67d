"""The same bits for one thread, two and three, deferred and captured, for every model of the benchmark."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

import cermet as ct
from bench.workloads.models import MAKERS, make_model
from bench.workloads.zoo import ZOO

QUICK = ("small_mlp", "digits_cnn", "small_gpt")


def digest(name: str, threads: int, compiled: bool = False) -> str:
    """A hash of the losses and of the model's state after three steps."""
    before = ct.get_num_threads()
    ct.set_num_threads(threads)
    try:
        training = make_model(ct, name)
        losses = _captured(training) if compiled else [training.step() for _ in range(3)]
        state = training.model.state_dict()
        parts = [np.ascontiguousarray(np.asarray(state[k])).tobytes() for k in sorted(state)]
        return hashlib.sha256(b"".join([np.array(losses).tobytes(), *parts])).hexdigest()
    finally:
        ct.set_num_threads(before)


def _captured(training) -> list[float]:
    @ct.compile
    def step(*data):
        training.optimizer.zero_grad()
        loss = training.loss(*data)
        loss.backward()
        training.optimizer.step()
        return loss

    return [step(*training.data).item() for _ in range(3)]


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in (*MAKERS, *ZOO)])
def test_threads_do_not_change_the_bits(name: str) -> None:
    assert digest(name, 1) == digest(name, 2) == digest(name, 3)


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in (*MAKERS, *ZOO)])
def test_a_captured_step_has_the_bits_of_a_deferred_one(name: str) -> None:
    assert digest(name, 2, compiled=True) == digest(name, 2)
