"""What every test shares: reproducible random numbers, profiles of hypothesis, and a process left as it was found."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Iterator

# Before Cermet is imported anywhere. Two threads also on a machine with one core (or one with many, shared by the workers of
# xdist), so that the pool is always at work; a test that is about threads sets their number itself.
os.environ.setdefault("CERMET_NUM_THREADS", "2")

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

# The first example of a shape may compile a kernel, so time says nothing (deadline). `make test` runs the same examples each
# time, so that a failure seen once is seen again; the thorough profile looks for new ones:
# HYPOTHESIS_PROFILE=thorough make test-all
settings.register_profile(
    "default",
    deadline=None,
    derandomize=True,
    max_examples=25,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.register_profile(
    "thorough",
    deadline=None,
    max_examples=1000,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    """Every test starts from the same random numbers, whatever ran before it and in whichever worker."""
    random.seed(0)
    np.random.seed(0)
    cermet = sys.modules.get("cermet")
    if hasattr(cermet, "manual_seed"):
        cermet.manual_seed(0)
    yield


@pytest.fixture(autouse=True)
def process_as_found() -> Iterator[None]:
    """A test that leaves a process-wide setting changed fails itself, instead of making another test fail later."""
    if not hasattr(sys.modules.get("cermet"), "get_default_dtype"):
        yield
        return
    import cermet as ct
    from cermet import config

    def state() -> dict[str, object]:
        return {
            "default dtype": ct.get_default_dtype(),
            "grad mode": ct.is_grad_enabled(),
            **{f"config.{name}": getattr(config, name) for name in config.KNOBS},
        }

    before = state()
    yield
    after = state()
    changed = {name: (before[name], after[name]) for name in before if before[name] != after[name]}
    if changed:
        ct.set_default_dtype(ct.float32)
        ct.set_grad_enabled(True)
        config.reset()
        pytest.fail(f"the test left these changed (before, after): {changed}")


@pytest.fixture
def rng() -> np.random.Generator:
    """A NumPy generator with a fixed seed, for inputs."""
    return np.random.default_rng(0)
