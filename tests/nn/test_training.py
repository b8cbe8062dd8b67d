"""Whole models: losses of a few steps of gradient descent as PyTorch 2.13 computes them in float64, from the same weights and
data."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import cermet as ct
from cermet import nn

F = nn.functional


class CharModel(nn.Module):
    """An embedding and one block of causal attention."""

    def __init__(self) -> None:
        super().__init__()
        self.emb, self.qkv, self.out, self.norm = nn.Embedding(11, 8), nn.Linear(8, 24), nn.Linear(8, 11), nn.LayerNorm(8)

    def forward(self, i: ct.Tensor) -> ct.Tensor:
        x = self.emb(i)
        b, t, c = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(b, t, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(x + y.transpose(1, 2).reshape(b, t, c)).reshape(b * t, 11)


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.LayerNorm(16), nn.Linear(16, 5))


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 3, stride=2, padding=1),
        nn.BatchNorm2d(6),
        nn.SiLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 5),
    )


EXPECTED: dict[str, list[float]] = {
    "mlp": [1.6983118835732436, 1.683798762681956, 1.6712852785453851, 1.660432557181714],
    "cnn": [1.630618897985055, 1.6276718485332662, 1.6248621346143257, 1.6221645100267956],
    "chars": [2.451454106916591, 2.439115415741001, 2.427506716193707, 2.4165378270963247],
}


@pytest.mark.parametrize("name", ["mlp", "cnn", "chars"])
def test_losses_are_pytorchs(name: str) -> None:
    make: Callable[[], nn.Module] = {"mlp": mlp, "cnn": cnn, "chars": CharModel}[name]
    model = make().double()
    for i, p in enumerate(model.parameters()):
        with ct.no_grad():
            p.copy_(ct.tensor((np.sin(np.arange(p.numel()) * 1.3 + i) * 0.3).reshape(tuple(p.shape))))
    n = {"mlp": 96, "cnn": 384, "chars": 0}[name]
    x = (
        ct.tensor(np.arange(21).reshape(3, 7) * 5 % 11)
        if name == "chars"
        else ct.tensor(np.cos(np.arange(n) * 0.7).reshape((12, 8) if name == "mlp" else (6, 1, 8, 8)))
    )
    count = {"mlp": 12, "cnn": 6, "chars": 21}[name]
    y = ct.tensor(np.arange(count) * 3 % (11 if name == "chars" else 5))
    losses = []
    for _ in range(4):
        loss = F.cross_entropy(model(x), y, label_smoothing=0.1)
        model.zero_grad()
        loss.backward()
        with ct.no_grad():
            for p in model.parameters():
                p.sub_(p.grad * 0.1)
        losses.append(loss.item())
    assert losses == pytest.approx(EXPECTED[name], abs=1e-9)
