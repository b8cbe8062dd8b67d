"""Groups, state dicts, hooks and errors."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import numpy as np
import pytest

import cermet as ct
from cermet import optim
from cermet.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook


def leaf(*values: float) -> Any:
    return ct.tensor(list(values)).requires_grad_()


def train(optimizer: Any, ps: list[Any], steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        terms = [(p * p * p).sum() for p in ps]
        sum(terms[1:], terms[0]).backward()
        optimizer.step()


def test_groups_have_their_own_options() -> None:
    p, q = leaf(1.0), leaf(1.0)
    optimizer = optim.SGD([{"params": p}, {"params": [q], "lr": 0.5}], lr=0.1)
    p.grad, q.grad = ct.tensor([1.0]), ct.tensor([1.0])
    optimizer.step()
    np.testing.assert_allclose([p.item(), q.item()], [0.9, 0.5])
    r = leaf(2.0)
    optimizer.add_param_group({"params": r, "momentum": 0.9})
    assert [g["momentum"] for g in optimizer.param_groups] == [0, 0, 0.9]
    assert [g["lr"] for g in optimizer.param_groups] == [0.1, 0.5, 0.1]


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda p: optim.SGD(p), TypeError, "list of tensors"),
        (lambda p: optim.SGD([]), ValueError, "params is empty"),
        (lambda p: optim.SGD([{"params": {p}}]), TypeError, "params is a set"),
        (lambda p: optim.SGD([1.0]), TypeError, "parameter 0 of the group is of type float"),
        (lambda p: optim.SGD([p * 2]), ValueError, "not a leaf"),
        (lambda p: optim.SGD([{"params": [p]}, {"params": [p]}]), ValueError, "stands in an earlier group"),
        (lambda p: optim.SGD([("p", p), leaf(1.0)]), ValueError, "1 of the 2 parameters"),
        (lambda p: optim.SGD([p], lr=-1), ValueError, "lr=-1: must not be negative"),
        (lambda p: optim.SGD([p], nesterov=True), ValueError, "give a positive momentum"),
        (lambda p: optim.Adam([p], betas=(0.9, 1.0)), ValueError, r"betas\[1\]=1.0"),
        (lambda p: optim.Adam([p], foreach=True, fused=True), RuntimeError, "contradicts foreach"),
        (lambda p: optim.Adam([p], differentiable=True, fused=True), RuntimeError, "contradicts differentiable"),
        (lambda p: optim.RMSprop([p], alpha=-1), ValueError, "alpha=-1"),
        (lambda p: optim.Rprop([p], etas=(1.5, 2.0)), ValueError, "etas="),
        (lambda p: optim.Adafactor([p], d=0.5), ValueError, "d=0.5"),
        (lambda p: optim.Muon([p]), ValueError, r"shape \[2\], but only matrices"),
        (lambda p: optim.Optimizer([p], {}).step(), NotImplementedError, None),
    ],
)
def test_refusals(make: Any, error: type[Exception], match: str | None) -> None:
    with pytest.raises(error, match=match):
        make(leaf(1.0, 2.0))


def test_duplicates_in_a_group_warn() -> None:
    p = leaf(1.0)
    with pytest.warns(UserWarning, match="more than once in one group"):
        optim.SGD([p, p])


def test_named_parameters_are_remembered() -> None:
    p, q = leaf(1.0), leaf(2.0)
    optimizer = optim.SGD([("p", p), ("q", q)])
    assert optimizer.param_groups[0]["param_names"] == ["p", "q"]
    with pytest.raises(ValueError, match="without names"):
        optimizer.add_param_group({"params": [leaf(1.0)]})


@pytest.mark.parametrize("set_to_none", [True, False])
def test_zero_grad(set_to_none: bool) -> None:
    p = leaf(1.0, 2.0)
    optimizer = optim.SGD([p])
    (p * p).sum().backward()
    grad = p.grad
    optimizer.zero_grad(set_to_none)
    if set_to_none:
        assert p.grad is None
    else:
        assert p.grad is grad and grad.tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    "name", ["SGD", "Adam", "AdamW", "NAdam", "ASGD", "Adagrad", "RMSprop", "Rprop", "Adadelta", "Adafactor"]
)
def test_state_dict_round_trip_goes_on_exactly(name: str) -> None:
    options = {"momentum": 0.9} if name == "SGD" else {}
    ps, qs = [leaf(1.0, 2.0), leaf(3.0)], [leaf(1.0, 2.0), leaf(3.0)]
    a, b = (getattr(optim, name)(x, lr=0.05, **options) for x in (ps, qs))
    train(a, ps, 3)
    saved = copy.deepcopy(a.state_dict())
    assert saved["param_groups"][0]["params"] == [0, 1] and set(saved["state"]) == {0, 1}
    for p, q in zip(ps, qs):
        with ct.no_grad():
            q.copy_(p.detach())
    b.load_state_dict(saved)
    train(a, ps, 3)
    train(b, qs, 3)
    assert [p.tolist() for p in ps] == [q.tolist() for q in qs]


def test_loading_does_not_tie_the_optimizer_to_what_was_loaded() -> None:
    p = leaf(1.0)
    optimizer = optim.Adam([p])
    train(optimizer, [p], 1)
    saved = optimizer.state_dict()
    other = leaf(1.0)
    second = optim.Adam([other])
    second.load_state_dict(saved)
    before = saved["state"][0]["exp_avg"].tolist()
    train(second, [other], 2)
    assert saved["state"][0]["exp_avg"].tolist() == before and saved["state"][0]["step"].item() == 1


def test_loading_checks_the_groups() -> None:
    state = optim.SGD([leaf(1.0), leaf(2.0)]).state_dict()
    with pytest.raises(ValueError, match="parameters in group 0: 2 in the state dict, 1 here"):
        optim.SGD([leaf(1.0)]).load_state_dict(state)
    with pytest.raises(ValueError, match="groups of parameters: 1 in the state dict, 2 here"):
        optim.SGD([{"params": [leaf(1.0)]}, {"params": [leaf(2.0)]}]).load_state_dict(state)


def test_plain_numbers_as_step_counts_are_understood() -> None:
    """State dicts of old PyTorch versions hold ints."""
    p = leaf(1.0)
    optimizer = optim.Adam([p])
    train(optimizer, [p], 1)
    state = optimizer.state_dict()
    state["state"][0]["step"] = 7
    optimizer.load_state_dict(state)
    train(optimizer, [p], 1)
    assert optimizer.state[p]["step"].item() == 8


def test_closure_runs_with_gradients_and_its_loss_is_returned() -> None:
    p = leaf(3.0)
    optimizer = optim.SGD([p], lr=0.1)

    def closure() -> Any:
        optimizer.zero_grad()
        loss = (p * p).sum()
        loss.backward()
        return loss

    with ct.no_grad():
        loss = optimizer.step(closure)
    assert loss.item() == 9.0
    np.testing.assert_allclose(p.item(), 2.4, rtol=1e-6)


def test_step_hooks() -> None:
    p = leaf(1.0)
    optimizer = optim.SGD([p])
    seen: list[str] = []
    handles = [
        optimizer.register_step_pre_hook(lambda o, args, kwargs: seen.append("pre")),
        optimizer.register_step_post_hook(lambda o, args, kwargs: seen.append("post")),
        register_optimizer_step_pre_hook(lambda o, args, kwargs: seen.append("global pre")),
        register_optimizer_step_post_hook(lambda o, args, kwargs: seen.append("global post")),
    ]
    optimizer.step()
    assert seen == ["global pre", "pre", "post", "global post"]
    for handle in handles:
        handle.remove()
    optimizer.step()
    assert len(seen) == 4
    optimizer.register_step_pre_hook(lambda o, args, kwargs: 5)
    with pytest.raises(RuntimeError, match=r"returned 5; return None, or the tuple \(args, kwargs\)"):
        optimizer.step()


def test_state_dict_hooks() -> None:
    optimizer = optim.SGD([leaf(1.0)])
    optimizer.register_state_dict_post_hook(lambda o, state: {**state, "extra": 1})
    assert optimizer.state_dict()["extra"] == 1
    seen = []
    optimizer.register_load_state_dict_pre_hook(lambda o, state: seen.append("pre"))
    optimizer.register_load_state_dict_post_hook(lambda o: seen.append("post"))
    optimizer.load_state_dict(optimizer.state_dict())
    assert seen == ["pre", "post"]


def test_user_defined_optimizer() -> None:
    class Signs(optim.Optimizer):
        def __init__(self, params: Any, lr: float = 0.5) -> None:
            super().__init__(params, {"lr": lr})

        def step(self, closure: Any = None) -> None:
            with ct.no_grad():
                for group in self.param_groups:
                    for p in group["params"]:
                        p.sub_(p.grad.sign() * group["lr"])

    p = leaf(1.0, -1.0)
    optimizer = Signs([p])
    (p * p).sum().backward()
    optimizer.step()
    assert p.tolist() == [0.5, -0.5]


def test_text_and_copy() -> None:
    p = leaf(1.0)
    optimizer = optim.SGD([p], lr=0.1)
    assert repr(optimizer).startswith("SGD (\nParameter Group 0\n    dampening: 0\n")
    twin = copy.deepcopy(optimizer)
    q = twin.param_groups[0]["params"][0]
    q.grad = ct.tensor([1.0])
    twin.step()
    np.testing.assert_allclose([p.item(), q.item()], [1.0, 0.9])


def test_schedules_warn_when_they_are_stepped_first() -> None:
    p = leaf(1.0)
    optimizer = optim.SGD([p])
    schedule = optim.lr_scheduler.StepLR(optimizer, 1)
    with pytest.warns(UserWarning, match="stepped before the optimizer"):
        schedule.step()
    optimizer = optim.SGD([p])
    schedule = optim.lr_scheduler.StepLR(optimizer, 1)
    optimizer.step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        schedule.step()
