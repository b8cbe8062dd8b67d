"""Pools between convolutions, whose images are channels-last, against pools of the same images as they lie outside."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import cermet as ct
import cermet.nn.functional as F
from cermet.ops.pooling import _max_grad_reference

CASES = [(3, 2, 1), (2, 2, 0), (3, 3, 0), (3, 1, 1), (2, 3, 0)]


def between(pool: Any, channels: int, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The image that is pooled, the pool, the gradient that reaches it, and the image's gradient."""
    r = np.random.default_rng(channels + size)
    x = ct.tensor(r.standard_normal((2, channels, size, size)).astype(np.float32), requires_grad=True)
    eye = ct.tensor(np.eye(channels, dtype=np.float32)[:, :, None, None])
    # Convolutions by the identity: values stay, and the planner lays out what is between them.
    y = F.conv2d(pool(F.conv2d(x, eye)), eye)
    g = r.standard_normal(y.shape).astype(np.float32)
    (dx,) = ct.autograd.grad([y], [x], [ct.tensor(g)], retain_graph=True)
    return x.detach().numpy(), y.detach().numpy(), g, dx.detach().numpy()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("channels", "size"), [(32, 12), (13, 9)])
def test_max(case: tuple[int, int, int], channels: int, size: int) -> None:
    k, t, p = case
    x, y, g, dx = between(lambda v: F.max_pool2d(v, k, t, p), channels, size)
    at = {"kernel": (k, k), "stride": (t, t), "padding": (p, p), "dilation": (1, 1), "ceil": False}
    np.testing.assert_allclose(dx, _max_grad_reference(g.astype(np.float64), x, y, **at), rtol=1e-5, atol=1e-5)
    padded = np.pad(x, ((0, 0), (0, 0), (p, p), (p, p)), constant_values=-np.inf)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (k, k), (2, 3))[:, :, ::t, ::t]
    np.testing.assert_allclose(y, windows.max((-2, -1)), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("channels", "size"), [(32, 12), (13, 9)])
def test_average(case: tuple[int, int, int], channels: int, size: int) -> None:
    k, t, p = case
    x, y, g, dx = between(lambda v: F.avg_pool2d(v, k, t, p), channels, size)
    padded = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (p, p), (p, p)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (k, k), (2, 3))[:, :, ::t, ::t]
    np.testing.assert_allclose(y, windows.mean((-2, -1)), rtol=1e-5, atol=1e-5)
    want = np.zeros_like(padded)
    for i in range(g.shape[2]):
        for j in range(g.shape[3]):
            want[:, :, i * t : i * t + k, j * t : j * t + k] += g[:, :, i, j, None, None] / k**2
    np.testing.assert_allclose(dx, want[:, :, p : p + size, p : p + size], rtol=1e-5, atol=1e-5)
