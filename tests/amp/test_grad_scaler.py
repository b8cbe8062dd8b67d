"""GradScaler: scaled losses, skipped steps, the growing and falling factor, and its errors."""

from __future__ import annotations

import numpy as np
import pytest

import cermet as ct


def problem() -> tuple[ct.Tensor, ct.optim.SGD]:
    w = ct.tensor([1.0, 2.0], requires_grad=True)
    return w, ct.optim.SGD([w], lr=0.5)


def test_a_step_is_that_of_the_unscaled_loss() -> None:
    w, optimizer = problem()
    scaler = ct.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale((w * w).sum()).backward()
    np.testing.assert_array_equal(w.grad.numpy(), [2048.0, 4096.0])
    scaler.unscale_(optimizer)
    np.testing.assert_array_equal(w.grad.numpy(), [2.0, 4.0])
    scaler.step(optimizer)
    scaler.update()
    np.testing.assert_array_equal(w.detach().numpy(), [0.0, 0.0])


def test_infinite_gradients_skip_the_step_and_lower_the_factor() -> None:
    w, optimizer = problem()
    scaler = ct.amp.GradScaler("cpu", init_scale=8.0, growth_interval=2)
    scaler.scale((w * float("inf")).sum()).backward()
    assert scaler.step(optimizer) is None
    scaler.update()
    assert w.tolist() == [1.0, 2.0]
    assert scaler.get_scale() == 4.0
    for expected in (4.0, 8.0, 8.0):
        optimizer.zero_grad()
        scaler.scale((w * 0.0).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        assert scaler.get_scale() == expected


def test_state_survives() -> None:
    scaler = ct.amp.GradScaler("cpu", init_scale=32.0, growth_interval=7)
    other = ct.amp.GradScaler("cpu")
    other.load_state_dict(scaler.state_dict())
    assert other.state_dict() == scaler.state_dict()
    assert other.get_scale() == 32.0
    with pytest.raises(RuntimeError, match="not enabled"):
        other.load_state_dict({})


def test_disabled_does_nothing() -> None:
    w, optimizer = problem()
    scaler = ct.amp.GradScaler(enabled=False)
    loss = (w * w).sum()
    assert scaler.scale(loss) is loss
    loss.backward()
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()
    assert w.tolist() == [0.0, 0.0]
    assert scaler.get_scale() == 1.0
    assert scaler.state_dict() == {}


def test_several_outputs() -> None:
    scaler = ct.amp.GradScaler("cpu", init_scale=2.0)
    a, b = scaler.scale((ct.ones(2), [ct.ones(1)]))
    assert a.tolist() == [2.0, 2.0]
    assert b[0].tolist() == [2.0]


def test_wrong_order_is_refused() -> None:
    w, optimizer = problem()
    scaler = ct.amp.GradScaler("cpu")
    with pytest.raises(RuntimeError, match="no parameter"):
        scaler.unscale_(optimizer)
    with pytest.raises(RuntimeError, match="since the last update"):
        scaler.update()
    scaler.scale((w * w).sum()).backward()
    scaler.unscale_(optimizer)
    with pytest.raises(RuntimeError, match="already"):
        scaler.unscale_(optimizer)
    scaler.step(optimizer)
    with pytest.raises(RuntimeError, match="the step is over"):
        scaler.unscale_(optimizer)
    with pytest.raises(RuntimeError, match="twice"):
        scaler.step(optimizer)
    with pytest.raises(RuntimeError, match="closure"):
        scaler.step(optimizer, closure=lambda: None)
    with pytest.raises(ValueError, match="growth_factor"):
        ct.amp.GradScaler(growth_factor=1.0)
    with pytest.raises(ValueError, match="backoff_factor"):
        ct.amp.GradScaler(backoff_factor=1.0)
    with pytest.raises(ValueError, match="iterable of tensors"):
        scaler.scale(3)  # type: ignore[arg-type]
