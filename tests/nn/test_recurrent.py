"""Recurrent layers against their equations in NumPy float64 (Hochreiter and Schmidhuber 1997; Cho et al. 2014)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import cermet as ct
from cermet import nn


def sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def parameters(m: Any) -> list[Any]:
    rng = np.random.default_rng(0)
    out = []
    for p in (m.weight_ih_l0, m.weight_hh_l0, m.bias_ih_l0, m.bias_hh_l0):
        value = rng.standard_normal(tuple(p.shape)) * 0.4
        with ct.no_grad():
            p.copy_(ct.tensor(value))
        out.append(value)
    return out


def steps(kind: str, x: Any, weights: list[Any]) -> Any:
    w, u, b, d = weights
    h = np.zeros((x.shape[1], u.shape[1]))
    c = h.copy()
    out = []
    for row in x:
        a, r = row @ w.T + b, h @ u.T + d
        if kind == "RNN":
            h = np.tanh(a + r)
        elif kind == "LSTM":
            i, f, g, o = np.split(a + r, 4, axis=1)
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            h = sigmoid(o) * np.tanh(c)
        else:
            (ar, az, an), (rr, rz, rn) = np.split(a, 3, axis=1), np.split(r, 3, axis=1)
            z = sigmoid(az + rz)
            h = (1 - z) * np.tanh(an + sigmoid(ar + rr) * rn) + z * h
        out.append(h)
    return np.stack(out)


@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
def test_one_layer(kind: str) -> None:
    x = np.random.default_rng(1).standard_normal((5, 3, 4))
    layer = getattr(nn, kind)(4, 6, dtype=ct.float64)
    weights = parameters(layer)
    out, _ = layer(ct.tensor(x))
    np.testing.assert_allclose(out.detach().numpy(), steps(kind, x, weights), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
def test_gradient_of_the_input(kind: str) -> None:
    x = np.random.default_rng(2).standard_normal((4, 2, 3))
    layer = getattr(nn, kind)(3, 5, dtype=ct.float64)
    weights = parameters(layer)
    t = ct.tensor(x).requires_grad_()
    layer(t)[0].sum().backward()
    direction = np.random.default_rng(3).standard_normal(x.shape)
    h = 1e-6
    slope = (steps(kind, x + h * direction, weights).sum() - steps(kind, x - h * direction, weights).sum()) / (2 * h)
    np.testing.assert_allclose((t.grad.numpy() * direction).sum(), slope, rtol=1e-6)
