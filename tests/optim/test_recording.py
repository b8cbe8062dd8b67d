"""How steps are recorded: few nodes, the same program every time, and the same bits as one parameter at a time."""

from __future__ import annotations

import numpy as np
import pytest

import cermet as ct
from cermet.lazy.record import local

KINDS = [
    ("SGD", {"lr": 0.1}), ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True}), ("Adam", {}), ("Adam", {"amsgrad": True}),
    ("AdamW", {}), ("NAdam", {}), ("RAdam", {}), ("Adamax", {}), ("Adadelta", {}), ("Adagrad", {}), ("ASGD", {}), ("Rprop", {}),
    ("RMSprop", {}), ("RMSprop", {"centered": True, "momentum": 0.5}),
]  # fmt: skip
SHAPES = [(3, 4), (4,), (3, 4), (), (7,)]


def parameters(dtype: ct.DType = ct.float32) -> list[ct.Tensor]:
    rng = np.random.default_rng(0)
    return [ct.tensor(rng.standard_normal(s), dtype=dtype, requires_grad=True) for s in SHAPES]


def give_gradients(params: list[ct.Tensor], step: int) -> None:
    rng = np.random.default_rng(step + 1)
    for p in params:
        p.grad = ct.tensor(rng.standard_normal(tuple(p.shape)), dtype=p.dtype)


@pytest.mark.parametrize(("name", "options"), KINDS)
@pytest.mark.parametrize("dtype", [ct.float32, ct.bfloat16])
def test_together_and_alone_have_the_same_bits(name, options, dtype):
    kind = getattr(ct.optim, name)
    together, alone = parameters(dtype), parameters(dtype)
    one, each = kind(together, **options), [kind([p], **options) for p in alone]
    compiled = 0
    for step in range(4):
        give_gradients(together, step)
        give_gradients(alone, step)
        one.step()
        for o in each:
            o.step()
        if step == 1:
            compiled = ct.stats()["programs_compiled"]
    assert ct.stats()["programs_compiled"] == compiled
    for a, b in zip(together, alone, strict=True):
        assert a.float().tolist() == b.float().tolist()


def test_what_an_adam_step_puts_on_the_tape(monkeypatch):
    from cermet.optim import optimizer

    params = parameters()
    opt = ct.optim.AdamW(params)
    counts = []
    realize = optimizer.realize
    monkeypatch.setattr(optimizer, "realize", lambda nodes: (counts.append(len(local.tape.nodes)), realize(nodes)))
    for step in range(2):
        give_gradients(params, step)
        params[1].grad = None  # passed over
        opt.step()
    assert counts == [4 * (len(params) - 1)] * 2  # the update and its three results


def test_step_counts_are_each_parameters_own():
    params = parameters()
    opt = ct.optim.Adam(params)
    give_gradients(params, 0)
    opt.step()
    opt.state[params[0]]["step"] += 10
    give_gradients(params, 1)
    opt.step()
    assert [opt.state[p]["step"].item() for p in params] == [12.0, 2.0, 2.0, 2.0, 2.0]


def test_dtypes_in_one_group():
    rng = np.random.default_rng(0)
    start = rng.standard_normal(6)
    mixed = [ct.tensor(start, dtype=d, requires_grad=True) for d in (ct.float32, ct.float64, ct.float16, ct.float32)]
    alone = [ct.tensor(start, dtype=p.dtype, requires_grad=True) for p in mixed]
    for params, optimizers in ((mixed, [ct.optim.AdamW(mixed)]), (alone, [ct.optim.AdamW([p]) for p in alone])):
        for step in range(3):
            give_gradients(params, step)
            for o in optimizers:
                o.step()
    for a, b in zip(mixed, alone, strict=True):
        assert a.dtype is b.dtype
    assert mixed[0].tolist() == alone[0].tolist()


def test_parameters_that_share_memory_with_others_are_seen_by_all():
    p = ct.tensor(np.ones(4), requires_grad=True)
    seen = p.detach()
    opt = ct.optim.NAdam([p])
    for step in range(2):
        give_gradients([p], step)
        opt.step()
        assert seen.tolist() == p.tolist()
    assert seen.tolist() != [1.0] * 4
