"""Deferred, eager and reference evaluation agree on random programs of mixed ops, views and in-place writes; so do their gradients."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import cermet as ct
from cermet import config

SHAPES = [(3, 4), (4, 3), (2, 3, 4), (4,), (1, 4), (5, 1), (2, 2), (6, 6), ()]


class Program:
    """A random program: the same seed makes the same calls."""

    def __init__(self, seed: int, length: int) -> None:
        self.random = random.Random(seed)
        self.length = length
        self.seed = seed

    def run(self, looks: bool) -> tuple[list[Any], list[Any]]:
        r = self.random = random.Random(self.seed)
        rng = np.random.default_rng(self.seed)
        leaves = [ct.tensor(rng.uniform(-1, 1, s).astype("float32"), requires_grad=True) for s in r.sample(SHAPES, 4)]
        pool = [leaf * 1.0 for leaf in leaves]
        for _ in range(self.length):
            getattr(self, r.choice(STEPS))(pool)
            if looks and r.random() < 0.15:
                r.choice(pool).detach().numpy()
            elif not looks:
                r.random() < 0.15 and r.choice(pool)  # keep the streams of both runs equal
            if len(pool) > 9:
                del pool[r.randrange(len(pool))]
        total = sum((ct.tanh(t) * (k + 1)).sum() for k, t in enumerate(pool) if t.requires_grad)
        total.backward()
        values = [t.detach().numpy() for t in pool]
        grads = [np.zeros(leaf.shape) if leaf.grad is None else leaf.grad.numpy() for leaf in leaves]
        return values, grads

    def pick(self, pool: list[Any], ndim: int = 0) -> Any:
        found = [t for t in pool if t.ndim >= ndim]
        return self.random.choice(found) if found else ct.ones(3, 4) * 0.5

    # -- steps -----------------------------------------------------------------------------------------------------

    def unary(self, pool: list[Any]) -> None:
        f = self.random.choice([ct.tanh, ct.sin, ct.abs, ct.sigmoid, ct.square, lambda t: ct.exp(-t * t), lambda t: -t])
        pool.append(f(self.pick(pool)))

    def binary(self, pool: list[Any]) -> None:
        a, b = self.pick(pool), self.pick(pool)
        try:
            np.broadcast_shapes(tuple(a.shape), tuple(b.shape))
        except ValueError:
            b = self.random.uniform(-2, 2)
        f = self.random.choice([lambda x, y: x + y, lambda x, y: x - y, lambda x, y: x * y, lambda x, y: x / (y * y + 1)])
        out = f(a, b)
        pool.append(out if out.numel() < 3000 else out.sum())

    def scalar(self, pool: list[Any]) -> None:
        pool.append(self.pick(pool) * self.random.uniform(-1, 1) + self.random.uniform(-1, 1))

    def reduce(self, pool: list[Any]) -> None:
        t = self.pick(pool, 1)
        dim = self.random.randrange(t.ndim)
        keep = self.random.random() < 0.5
        f = self.random.choice(["sum", "mean", "amax", "amin", "logsumexp"])
        pool.append(getattr(t, f)(dim=dim, keepdim=keep))

    def softmax(self, pool: list[Any]) -> None:
        t = self.pick(pool, 1)
        pool.append(ct.nn.functional.softmax(t, dim=self.random.randrange(t.ndim)))

    def movement(self, pool: list[Any]) -> None:
        t = self.pick(pool, 1)
        k = self.random.randrange(6)
        if k == 0:
            pool.append(t.reshape(-1))
        elif k == 1:
            order = list(range(t.ndim))
            self.random.shuffle(order)
            pool.append(t.permute(order))
        elif k == 2:
            pool.append(t[self.random.randrange(t.shape[0]) :])
        elif k == 3:
            pool.append(t.flip(self.random.randrange(t.ndim)))
        elif k == 4:
            pool.append(t[..., :: self.random.choice([1, 2])])
        else:
            pool.append(t.unsqueeze(self.random.randrange(t.ndim + 1)).squeeze())

    def join(self, pool: list[Any]) -> None:
        t = self.pick(pool, 1)
        if t.numel() < 500:
            pool.append(ct.cat([t, t * 0.5], dim=self.random.randrange(t.ndim)))

    def matmul(self, pool: list[Any]) -> None:
        t = self.pick(pool, 2)
        if t.ndim == 2 and t.shape[0] * t.shape[1] < 400:
            pool.append(t @ t.T * 0.3)

    def gather(self, pool: list[Any]) -> None:
        t = self.pick(pool, 1)
        n = t.shape[0]
        index = ct.tensor([self.random.randrange(-n, n) for _ in range(self.random.randint(1, 4))])
        pool.append(t[index])

    def scan(self, pool: list[Any]) -> None:
        t = self.pick(pool, 1)
        pool.append(t.cumsum(dim=self.random.randrange(t.ndim)) * 0.3)

    def where(self, pool: list[Any]) -> None:
        t = self.pick(pool)
        pool.append(ct.where(t > self.random.uniform(-0.5, 0.5), t, t * 0.1))

    def write(self, pool: list[Any]) -> None:
        t = self.pick(pool, 1).clone()
        pool.append(t)
        k = self.random.randrange(7)
        a = self.random.uniform(-1, 1)
        if k == 0:
            t[0] = a
        elif k == 1:
            t[..., -1] += a
        elif k == 2:
            t[1:].mul_(a)
        elif k == 3:
            t.transpose(0, -1).add_(a)
        elif k == 4:
            t.flip(0)
            t[::2] = t[::2] * a
        elif k == 5:
            t.view(-1)[: t.numel() // 2].mul_(a)
        else:
            t[t > 0.2] = a

    def alias(self, pool: list[Any]) -> None:
        t = self.pick(pool, 2).clone()
        v = t[0]
        pool += [t, v]
        t.mul_(0.5)
        v.add_(self.random.uniform(-1, 1))


STEPS = [
    "unary", "unary", "binary", "binary", "scalar", "reduce", "softmax", "movement", "movement", "join", "matmul", "gather", "scan",
    "where", "write", "write", "alias",
]  # fmt: skip


def compare(a: tuple[list[Any], list[Any]], b: tuple[list[Any], list[Any]], what: str) -> None:
    for kind, xs, ys in (("value", a[0], b[0]), ("gradient", a[1], b[1])):
        assert len(xs) == len(ys)
        for k, (x, y) in enumerate(zip(xs, ys, strict=True)):
            scale = max(1.0, float(np.abs(y).max(initial=0)))
            np.testing.assert_allclose(x, y, rtol=2e-4, atol=2e-5 * scale, err_msg=f"{kind} {k}: {what}")


def check(seed: int, length: int) -> None:
    program = Program(seed, length)
    deferred = program.run(False)
    with ct.eager():
        eager = program.run(False)
    compare(deferred, eager, "deferred against eager")
    looked = program.run(True)
    compare(deferred, looked, "deferred against looking in between")
    with config.scope(reference=True):
        reference = program.run(False)
    compare(deferred, reference, "compiled against reference")


@pytest.mark.filterwarnings("ignore:.*programs have been compiled:RuntimeWarning")
@settings(max_examples=24, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 1 << 30), length=st.integers(1, 18))
def test_ways_of_evaluation_agree(seed: int, length: int) -> None:
    check(seed, length)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*programs have been compiled:RuntimeWarning")
@pytest.mark.parametrize("seed", range(100, 400))
def test_more_ways_of_evaluation_agree(seed: int) -> None:
    check(seed, 18)
