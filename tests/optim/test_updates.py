"""Ten steps of every optimizer against its published formula in float64; one program for all of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import cermet as ct
from cermet import config, optim
from tests.optim import reference

CASES: list[tuple[str, dict[str, Any]]] = [
    ("SGD", {"lr": 0.01}),
    ("SGD", {"lr": 0.01, "momentum": 0.9}),
    ("SGD", {"lr": 0.01, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    ("SGD", {"lr": 0.001, "momentum": 0.9, "dampening": 0.3, "maximize": True}),
    ("Adam", {"lr": 0.05}),
    ("Adam", {"lr": 0.05, "amsgrad": True, "weight_decay": 0.1}),
    ("Adam", {"lr": 0.05, "maximize": True, "betas": (0.8, 0.9)}),
    ("AdamW", {"lr": 0.05}),
    ("AdamW", {"lr": 0.05, "amsgrad": True, "eps": 1e-3}),
    ("Adamax", {"lr": 0.05, "weight_decay": 0.1}),
    ("NAdam", {"lr": 0.05}),
    ("NAdam", {"lr": 0.05, "weight_decay": 0.1, "decoupled_weight_decay": True}),
    ("RAdam", {"lr": 0.05}),
    ("RAdam", {"lr": 0.05, "weight_decay": 0.1, "decoupled_weight_decay": True}),
    ("RAdam", {"lr": 0.05, "betas": (0.5, 0.8), "maximize": True}),
    ("Adagrad", {"lr": 0.1, "lr_decay": 0.1, "initial_accumulator_value": 0.5, "weight_decay": 0.01}),
    ("Adadelta", {"lr": 1.0, "rho": 0.8, "weight_decay": 0.1}),
    ("RMSprop", {"lr": 0.01}),
    ("RMSprop", {"lr": 0.01, "momentum": 0.9, "weight_decay": 0.1}),
    ("RMSprop", {"lr": 0.01, "centered": True}),
    ("RMSprop", {"lr": 0.01, "centered": True, "momentum": 0.9, "maximize": True}),
    ("Rprop", {"lr": 0.05}),
    ("Rprop", {"lr": 0.05, "etas": (0.3, 1.5), "step_sizes": (0.01, 0.1), "maximize": True}),
    ("ASGD", {"lr": 0.05, "weight_decay": 0.1}),
    ("ASGD", {"lr": 0.05, "lambd": 0.01, "t0": 4, "alpha": 0.5}),
    ("Adafactor", {"lr": 0.1}),
    ("Adafactor", {"lr": 0.1, "weight_decay": 0.1, "beta2_decay": -0.5, "eps": (1e-6, 1e-2), "d": 2.0}),
    ("Muon", {"lr": 0.1}),
    ("Muon", {"lr": 0.1, "adjust_lr_fn": "match_rms_adamw", "nesterov": False}),
]


def case_name(case: Any) -> str | None:
    return case if isinstance(case, str) else "-".join(case) or "defaults"


def gradient(p: Any, a: Any) -> Any:
    """Of the sum of (p - a)^2 (1 + a^2) + p^4 / 10."""
    return 2 * (p - a) * (1 + a * a) + 0.4 * p**3


def loss_of(ps: list[Any], targets: list[Any]) -> Any:
    terms = [((p - a) * (p - a) * (1 + a * a)).sum() + (p * p * p * p).sum() * 0.1 for p, a in zip(ps, targets)]
    return sum(terms[1:], terms[0])


def problem(name: str, rng: np.random.Generator) -> tuple[list[Any], list[Any]]:
    shapes = [(4, 3)] if name == "Muon" else [(4, 3), (5,), (3, 2, 4)]
    return [rng.normal(size=s) for s in shapes], [rng.normal(size=s) for s in shapes]


@pytest.mark.parametrize(("name", "options"), CASES, ids=case_name)
def test_ten_steps_follow_the_formula(name: str, options: dict[str, Any], rng: np.random.Generator) -> None:
    values, targets = problem(name, rng)
    ps = [ct.tensor(v.astype(np.float32)).requires_grad_() for v in values]
    fixed = [ct.tensor(a.astype(np.float32)) for a in targets]
    optimizer = getattr(optim, name)(ps, **options)
    rule = getattr(reference, name.lower())
    states: list[dict[str, Any]] = [{} for _ in ps]
    compiled = []
    for t in range(1, 11):
        # A schedule: the rate differs in every step.
        lr = options["lr"] * (1 - 0.03 * t) if name not in ("Rprop", "ASGD") else options["lr"]
        optimizer.param_groups[0]["lr"] = lr
        optimizer.zero_grad()
        loss_of(ps, fixed).backward()
        optimizer.step()
        compiled.append(ct.stats()["programs_compiled"])
        values = [rule(v, gradient(v, a), s, t, {**options, "lr": lr}) for v, a, s in zip(values, targets, states)]
        for p, v in zip(ps, values):
            np.testing.assert_allclose(p.detach().numpy(), v, rtol=2e-4 if name == "Muon" else 3e-5, atol=3e-5)
    assert len(set(compiled)) == 1, f"steps compiled new programs: {compiled}"


@pytest.mark.parametrize("name", sorted({name for name, _ in CASES}))
@pytest.mark.parametrize("dtype", [ct.float64, ct.bfloat16])
def test_dtype_of_parameters_is_kept(name: str, dtype: Any, rng: np.random.Generator) -> None:
    p = ct.tensor(rng.normal(size=(4, 3))).to(dtype).detach().requires_grad_()
    before = p.detach().float().numpy()
    optimizer = getattr(optim, name)([p], lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        (p * p).sum().backward()
        optimizer.step()
    assert p.dtype is dtype and p.is_leaf and p.requires_grad
    assert all(v.dtype is dtype for v in optimizer.state[p].values() if v.shape)
    assert np.isfinite(p.detach().float().numpy()).all() and (p.detach().float().numpy() != before).any()


def test_tiny_eps_survives_16_bits() -> None:
    """1e-8 is no number of float16; the update is computed in float32."""
    p = ct.tensor([1.0]).half().detach().requires_grad_()
    optimizer = optim.Adam([p], lr=0.5)
    p.grad = ct.tensor([0.0]).half()
    optimizer.step()
    assert p.item() == 1.0


def test_aliases_see_the_step_and_the_leaf_stays() -> None:
    p = ct.tensor([1.0, 2.0, 3.0]).requires_grad_()
    view, accumulator = p.detach(), p._fn
    optimizer = optim.SGD([p], lr=0.5)
    (p * 2).sum().backward()
    optimizer.step()
    assert view.tolist() == p.tolist() == [0.0, 1.0, 2.0]
    assert p._fn is accumulator


@pytest.mark.skipif(config.eager, reason="eager evaluates each op by itself")
def test_step_computes_everything_at_once() -> None:
    p, q = (ct.tensor([1.0, 2.0]).requires_grad_() for _ in range(2))
    optimizer = optim.AdamW([p, q])
    for _ in range(3):
        optimizer.zero_grad()
        loss = (p * q).sum()
        loss.backward()
        before = ct.stats()["evaluations"]
        optimizer.step()
        assert loss._node.buffer is not None and p.grad._node.buffer is not None
        loss.item(), p.grad.tolist(), optimizer.state[p]["exp_avg"].tolist()
        assert ct.stats()["evaluations"] == before + 1


def test_parameters_without_gradients_are_left_alone() -> None:
    p, q = (ct.tensor([1.0]).requires_grad_() for _ in range(2))
    optimizer = optim.Adam([p, q], lr=0.1)
    p.sum().backward()
    optimizer.step()
    assert q.item() == 1.0 and not optimizer.state[q]


def test_steps_are_counted_for_each_parameter() -> None:
    """One that joins later has bias corrections of its own."""
    p, q = (ct.tensor([1.0]).requires_grad_() for _ in range(2))
    optimizer = optim.Adam([p, q], lr=0.1)
    for k in range(3):
        optimizer.zero_grad()
        (p.sum() if k < 2 else (p + q).sum()).backward()
        optimizer.step()
    assert optimizer.state[p]["step"].item() == 3 and optimizer.state[q]["step"].item() == 1
    np.testing.assert_allclose(q.item(), 0.9, rtol=1e-6)


def test_differentiable_step_carries_gradients() -> None:
    lr = ct.tensor(0.1).requires_grad_()
    start = ct.tensor([1.0, 2.0]).requires_grad_()
    p = start.clone()
    p.grad = ct.tensor([3.0, 4.0])
    optim.SGD([p], lr=lr, differentiable=True).step()
    p.sum().backward()
    np.testing.assert_allclose(lr.grad.item(), -7.0, rtol=1e-6)
    assert start.grad.tolist() == [1.0, 1.0]


def test_lr_may_be_a_tensor() -> None:
    p = ct.tensor([1.0]).requires_grad_()
    optimizer = optim.SGD([p], lr=ct.tensor(0.25))
    p.grad = ct.tensor([1.0])
    optimizer.step()
    assert p.item() == 0.75
    with pytest.raises(ValueError, match="tensor of one element"):
        optim.SGD([p], lr=ct.tensor([0.1, 0.2]))


def rosenbrock(p: Any) -> Any:
    x, y = p[0], p[1]
    return (1 - x) * (1 - x) + 100 * (y - x * x) * (y - x * x)


@pytest.mark.parametrize("search", [None, "strong_wolfe"])
def test_lbfgs_finds_the_minimum(search: str | None) -> None:
    p = ct.tensor([-0.5, 1.0], dtype=ct.float64).requires_grad_()
    optimizer = optim.LBFGS([p], lr=1.0 if search else 0.1, line_search_fn=search, max_iter=60 if search else 400, max_eval=500)

    def closure() -> Any:
        optimizer.zero_grad()
        loss = rosenbrock(p)
        loss.backward()
        return loss

    first = optimizer.step(closure)
    for _ in range(5):
        optimizer.step(closure)
    np.testing.assert_allclose(first.item(), 58.5, rtol=1e-9)
    np.testing.assert_allclose(p.tolist(), [1.0, 1.0], atol=1e-5 if search else 1e-3)


def test_lbfgs_needs_a_closure_and_one_group() -> None:
    p, q = (ct.tensor([1.0]).requires_grad_() for _ in range(2))
    with pytest.raises(TypeError, match="closure"):
        optim.LBFGS([p]).step()
    with pytest.raises(ValueError, match="2 groups were given"):
        optim.LBFGS([{"params": [p]}, {"params": [q]}])
