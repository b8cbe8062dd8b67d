"""Values and gradients at the edges: infinities, NaN, zeros, ties."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import cermet as ct

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("got", "want"),
    [
        (lambda: ct.tensor([-INF, -INF]).logsumexp(0), -INF),
        (lambda: ct.tensor([INF, 1.0]).logsumexp(0), INF),
        (lambda: ct.tensor([1.0, NAN, 3.0]).max(), NAN),
        (lambda: ct.tensor([1.0, NAN, NAN]).argmax(), 1),
        (lambda: ct.tensor([2.0, 5.0, 5.0]).argmax(), 1),
        (lambda: ct.tensor([1.0, NAN]).clamp(0, 2), [1, NAN]),
        (lambda: ct.fmax(ct.tensor([NAN, 1.0]), ct.tensor([2.0, NAN])), [2, 1]),
        (lambda: ct.tensor([-7, 7]) // 2, [-4, 3]),
        (lambda: ct.tensor([-7, 7]) % 3, [2, 1]),
        (lambda: ct.tensor([5.0, -5.0]) // 0.0, [INF, -INF]),
        (lambda: ct.tensor([NAN, 1.0]).sort()[0], [1, NAN]),
        (lambda: ct.tensor([NAN, 1.0]).median(), NAN),
        (lambda: ct.xlogy(ct.tensor(0.0), ct.tensor(0.0)), 0),
        (lambda: ct.logaddexp(ct.tensor(-INF), ct.tensor(-INF)), -INF),
        (lambda: ct.hypot(ct.tensor(3e30), ct.tensor(4e30)), np.float32(5e30)),
        (lambda: ct.tensor([1.0]).var(), NAN),
        (lambda: ct.zeros(0).sum(), 0),
        (lambda: ct.zeros(0).prod(), 1),
        (lambda: ct.zeros(0, 3).mean(0), [NAN] * 3),
        (lambda: ct.zeros(0, 3).any(0), [False] * 3),
    ],
)
def test_values(got: Any, want: Any) -> None:
    np.testing.assert_array_equal(got().numpy(), np.asarray(want))


@pytest.mark.parametrize(
    ("fn", "at", "slope"),
    [
        (lambda x: x.abs(), 0.0, 0.0),
        (lambda x: x.sqrt(), 0.0, INF),
        (lambda x: x**2, 0.0, 0.0),
        (lambda x: x**0, 0.0, 0.0),
        (lambda x: x.clamp(0.0, 1.0), 1.0, 1.0),
        (lambda x: x.clamp(0.0, 1.0), 1.5, 0.0),
        (lambda x: ct.maximum(x, ct.tensor(0.0)), 0.0, 0.5),
        (lambda x: x.sinc(), 0.0, 0.0),
        (lambda x: x.floor(), 1.5, 0.0),
        (lambda x: ct.xlogy(x, ct.tensor(0.0)), 0.0, 0.0),
        (lambda x: (x.expand(3)).norm(), 0.0, 0.0),
        (lambda x: (x * ct.tensor([1.0, 0.0, 2.0])).prod(), 1.0, 0.0),
        (lambda x: ct.stack([x, x, x]).amax(), 2.0, 1.0),
        (lambda x: ct.stack([x, x]).max(0).values, 2.0, 1.0),
        (lambda x: ct.where(x > 0, x.log(), 0.0 * x), 1.0, 1.0),
    ],
)
def test_slopes(fn: Any, at: float, slope: float) -> None:
    x = ct.tensor(at, requires_grad=True)
    fn(x).sum().backward()
    assert x.grad.item() == slope
