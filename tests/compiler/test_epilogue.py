"""Maps of a product's result that run inside the product's kernel, seen through the whole compiler."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import cermet as ct
from cermet.compiler import build
from cermet.nn import functional as F

_rng = np.random.default_rng(0)


def numbers(*shape: int) -> np.ndarray:
    return _rng.standard_normal(shape).astype(np.float32)


@pytest.fixture
def fused(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many epilogues each program planned from now on has."""
    found: list[int] = []
    original = build.find_epilogues

    def counting(*args: Any) -> Any:
        out = original(*args)
        found.append(len(out))
        return out

    monkeypatch.setattr(build, "find_epilogues", counting)
    return found


@pytest.mark.parametrize("shape", [(3, 7, 19), (2, 3, 5, 11), (1, 40, 64), (37, 8)], ids=str)
def test_a_linear_layer_on_sequences(shape: tuple[int, ...], fused: list[int]) -> None:
    x, w, b = numbers(*shape), numbers(45, shape[-1]), numbers(45)
    y = F.gelu(F.linear(ct.from_numpy(x), ct.from_numpy(w), ct.from_numpy(b))).numpy()
    z = x.astype(np.float64) @ w.astype(np.float64).T + b
    erf = np.vectorize(math.erf)
    np.testing.assert_allclose(y, 0.5 * z * (1 + erf(z / math.sqrt(2))), rtol=2e-5, atol=2e-5)
    assert sum(fused) == 1


def test_what_lies_in_another_shape_joins_in(fused: list[int]) -> None:
    x, w, r, scale = numbers(4, 6, 20), numbers(33, 20), numbers(4, 6, 33), numbers(6, 1)
    y = F.linear(ct.from_numpy(x), ct.from_numpy(w)) * ct.from_numpy(scale) + ct.from_numpy(r)
    np.testing.assert_allclose(y.numpy(), (x @ w.T) * scale + r, rtol=1e-4, atol=1e-4)
    assert sum(fused) == 1


def test_a_result_in_another_order_is_right() -> None:
    x, w = numbers(4, 6, 20), numbers(32, 20)
    y = F.relu(F.linear(ct.from_numpy(x), ct.from_numpy(w))).view(4, 6, 4, 8).transpose(1, 2) + 1
    z = np.maximum(x @ w.T, 0).reshape(4, 6, 4, 8).swapaxes(1, 2) + 1
    np.testing.assert_allclose(y.contiguous().numpy(), z, rtol=1e-4, atol=1e-4)
