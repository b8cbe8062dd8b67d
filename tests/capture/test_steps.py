"""Compiled training steps against the same steps in deferred mode, bit for bit."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

import cermet as ct
from cermet import nn, optim
from cermet.nn import functional as F

OPTIMIZERS: dict[str, Any] = {
    "sgd": lambda p: optim.SGD(p, lr=0.1),
    "momentum": lambda p: optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.01),
    "adam": lambda p: optim.Adam(p, lr=0.01, amsgrad=True),
    "adamw": lambda p: optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "adamax": lambda p: optim.Adamax(p, lr=0.01),
    "nadam": lambda p: optim.NAdam(p, lr=0.01),
    "radam": lambda p: optim.RAdam(p, lr=0.01),
    "rmsprop": lambda p: optim.RMSprop(p, lr=0.01, momentum=0.5, centered=True),
    "adagrad": lambda p: optim.Adagrad(p, lr=0.1, lr_decay=0.01),
    "adadelta": lambda p: optim.Adadelta(p),
    "asgd": lambda p: optim.ASGD(p, lr=0.05, t0=3),
    "rprop": lambda p: optim.Rprop(p, lr=0.01),
    "adafactor": lambda p: optim.Adafactor(p, lr=0.05),
}


def batches(count: int, shape: tuple[int, ...] = (8, 6), classes: int = 4) -> list[tuple[Any, Any]]:
    rng = np.random.default_rng(3)
    return [
        (ct.from_numpy(rng.standard_normal(shape, np.float32)), ct.from_numpy(rng.integers(0, classes, shape[0])))
        for _ in range(count)
    ]


def network() -> Any:
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 4))


def bits(t: Any) -> bytes:
    return t.detach().numpy().tobytes()


def state_of(model: Any, optimizer: Any = None) -> dict[str, bytes]:
    out = {k: bits(v) for k, v in model.state_dict().items()}
    for k, p in enumerate(model.parameters()):
        out[f"grad {k}"] = b"" if p.grad is None else bits(p.grad)
        if optimizer is not None:
            out |= {f"{k} {n}": bits(v) for n, v in optimizer.state[p].items() if isinstance(v, ct.Tensor)}
    return out


class Pair:
    """One model and its twin, one step compiled and one not."""

    def __init__(self, model: Any, make: Any, body: Any, **options: Any) -> None:
        self.models = [model, copy.deepcopy(model)]
        self.optimizers = [make(m.parameters()) for m in self.models]
        self.steps = []
        for m, o in zip(self.models, self.optimizers, strict=True):
            self.steps.append(lambda *a, m=m, o=o: body(m, o, *a))
        self.compiled = ct.compile(self.steps[0], **options)

    def call(self, *args: Any, seed: int | None = None) -> None:
        if seed is not None:
            ct.manual_seed(seed)
        a = self.compiled(*args)
        if seed is not None:
            ct.manual_seed(seed)
        b = self.steps[1](*args)
        for x, y in zip(a if isinstance(a, tuple) else (a,), b if isinstance(b, tuple) else (b,), strict=True):
            assert bits(x) == bits(y)

    def check(self, state: bool = True) -> None:
        a, b = (state_of(m, o if state else None) for m, o in zip(self.models, self.optimizers, strict=True))
        assert a.keys() == b.keys()
        assert [k for k in a if a[k] != b[k]] == []


def plain(model: Any, optimizer: Any, x: Any, y: Any) -> Any:
    optimizer.zero_grad()
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    optimizer.step()
    return loss


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_a_whole_step_for_every_optimizer(name: str) -> None:
    pair = Pair(network(), OPTIMIZERS[name], plain)
    for x, y in batches(12):
        pair.call(x, y)
    pair.check()
    assert pair.compiled.cache_info().replays >= 8


def test_a_scheduler_captures_nothing_anew() -> None:
    pair = Pair(network(), OPTIMIZERS["adamw"], plain)
    schedules = [optim.lr_scheduler.CosineAnnealingLR(o, T_max=10) for o in pair.optimizers]
    for x, y in batches(10):
        pair.call(x, y)
        for s in schedules:
            s.step()
    pair.check()
    info = pair.compiled.cache_info()
    assert (info.captures, info.replays) == (2, 8)


def test_rates_set_by_hand_and_options_that_decide() -> None:
    pair = Pair(network(), OPTIMIZERS["momentum"], plain)
    data = batches(9)
    for k, (x, y) in enumerate(data):
        for o in pair.optimizers:
            o.param_groups[0]["lr"] = 0.1 / (k + 1)
            if k == 5:
                o.param_groups[0]["momentum"] = 0.0  # another update rule
            if k == 7:
                o.param_groups[0]["weight_decay"] = 0.0
        pair.call(x, y)
    pair.check()
    assert pair.compiled.cache_info().captures <= 4


def test_dropout_draws_the_same_numbers() -> None:
    model = nn.Sequential(nn.Linear(6, 16), nn.Dropout(0.5), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 4))
    pair = Pair(model, OPTIMIZERS["adamw"], plain)
    for k, (x, y) in enumerate(batches(6)):
        pair.call(x, y, seed=k)
    pair.check()
    # without seeding in between, masks differ from call to call
    x, y = batches(1)[0]
    frozen = ct.compile(lambda x: F.dropout(x, 0.5))
    one, two = (frozen(ct.ones(100)) for _ in range(2))
    assert bits(one) != bits(two)


def test_the_generator_stands_where_it_would() -> None:
    generator = ct.Generator()

    def noisy(x: Any) -> Any:
        return x + ct.randn(4, generator=generator) + ct.rand(4, generator=generator)

    f = ct.compile(noisy)
    x = ct.zeros(4)
    generator.manual_seed(5)
    a = [bits(f(x)) for _ in range(4)] + [bits(ct.rand(3, generator=generator))]
    generator.manual_seed(5)
    b = [bits(noisy(x)) for _ in range(4)] + [bits(ct.rand(3, generator=generator))]
    assert a == b and len(set(a)) == 5


def test_batch_norm_and_modes() -> None:
    model = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))
    pair = Pair(model, OPTIMIZERS["momentum"], plain)
    forward = ct.compile(pair.models[0])
    data = batches(12)
    for k, (x, y) in enumerate(data):
        pair.call(x, y)
        if k % 3 == 2:
            for m in pair.models:
                m.eval()
            with ct.no_grad():
                assert bits(forward(x)) == bits(pair.models[1](x))
            for m in pair.models:
                m.train()
    pair.check()
    assert pair.compiled.cache_info().captures == 2
    assert forward.cache_info().captures == 1


def test_clipping_and_results() -> None:
    def body(model: Any, optimizer: Any, x: Any, y: Any) -> Any:
        optimizer.zero_grad()
        out = model(x)
        loss = F.cross_entropy(out, y)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        return loss, norm, out.argmax(1)

    pair = Pair(network(), OPTIMIZERS["adamw"], body)
    for x, y in batches(5):
        pair.call(x, y)
    pair.check()


def test_accumulation_over_calls() -> None:
    def accumulate(model: Any, optimizer: Any, x: Any, y: Any) -> Any:
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        return loss

    pair = Pair(network(), OPTIMIZERS["sgd"], accumulate)
    data = batches(12)
    for k, (x, y) in enumerate(data):
        pair.call(x, y)
        if k % 3 == 2:
            pair.check(state=False)
            for o in pair.optimizers:
                o.step()
                o.zero_grad(set_to_none=k % 2 == 0)
    pair.check(state=False)
    assert pair.compiled.cache_info().replays >= 8


def test_zero_grad_in_place_and_gradients_held_by_others() -> None:
    def body(model: Any, optimizer: Any, x: Any, y: Any) -> Any:
        optimizer.zero_grad(set_to_none=False)
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    pair = Pair(network(), OPTIMIZERS["sgd"], body)
    held: list[tuple[Any, bytes]] = []
    for x, y in batches(6):
        pair.call(x, y)
        g = pair.models[1][0].weight.grad
        held.append((g, bits(g)))
    pair.check()


def test_a_gradient_that_somebody_keeps_is_not_overwritten() -> None:
    pair = Pair(network(), OPTIMIZERS["adamw"], plain)
    kept = []
    for x, y in batches(6):
        pair.call(x, y)
        p = pair.models[0][0].weight
        kept.append((p.grad, bits(p.grad), p.detach().clone(), bits(p)))
    for g, before, value, then in kept:
        assert bits(g) == before and bits(value) == then


def test_new_shapes_and_both_again() -> None:
    pair = Pair(network(), OPTIMIZERS["adamw"], plain)
    for size in (8, 5, 8, 3, 5, 8):
        for x, y in batches(2, (size, 6)):
            pair.call(x, y)
    pair.check()
    assert pair.compiled.cache_info().held == 3


def test_two_instances_of_one_function() -> None:
    models = [network() for _ in range(2)]
    optimizers = [optim.SGD(m.parameters(), lr=0.1) for m in models]
    twins = [copy.deepcopy(m) for m in models]
    twin_optimizers = [optim.SGD(m.parameters(), lr=0.1) for m in twins]
    compiled = [ct.compile(lambda x, y, m=m, o=o: plain(m, o, x, y)) for m, o in zip(models, optimizers, strict=True)]
    shared = ct.compile(plain)  # models and optimizers as arguments: told apart by identity
    for k, (x, y) in enumerate(batches(8)):
        for i in range(2):
            a = compiled[i](x, y) if k % 2 else shared(models[i], optimizers[i], x, y)
            assert bits(a) == bits(plain(twins[i], twin_optimizers[i], x, y))
    for m, t in zip(models, twins, strict=True):
        assert state_of(m) == state_of(t)


def test_loading_state_is_seen() -> None:
    pair = Pair(network(), OPTIMIZERS["adamw"], plain)
    data = batches(10)
    for x, y in data[:4]:
        pair.call(x, y)
    saved = [
        (copy.deepcopy(m.state_dict()), copy.deepcopy(o.state_dict())) for m, o in zip(pair.models, pair.optimizers, strict=True)
    ]
    for x, y in data[4:7]:
        pair.call(x, y)
    for m, o, (a, b) in zip(pair.models, pair.optimizers, saved, strict=True):
        m.load_state_dict(a)
        o.load_state_dict(b)
    for x, y in data[7:]:
        pair.call(x, y)
    pair.check()


def test_added_groups_and_frozen_parameters() -> None:
    extra = [nn.Parameter(ct.ones(4)) for _ in range(2)]
    model = network()
    pair = Pair(model, OPTIMIZERS["momentum"], plain)
    data = batches(12)
    for k, (x, y) in enumerate(data):
        if k == 4:
            for m in pair.models:
                m[0].weight.requires_grad_(False)
        if k == 7:
            for m in pair.models:
                m[0].weight.requires_grad_(True)
        if k == 9:
            for o, e in zip(pair.optimizers, extra, strict=True):
                o.add_param_group({"params": [e], "lr": 0.5})
        pair.call(x, y)
    pair.check()


def test_several_learning_rates_and_steps_in_one_call() -> None:
    def two(model: Any, optimizer: Any, x: Any, y: Any) -> Any:
        first = plain(model, optimizer, x, y)
        return first, plain(model, optimizer, x * 2, y)

    pair = Pair(network(), OPTIMIZERS["adamw"], two)
    for x, y in batches(6):
        pair.call(x, y)
    pair.check()
