"""Views share memory: values and gradients of programs that write through them, against NumPy arrays that share memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import cermet as ct
from tests.frontend.aliasing import CASES, Model

START = np.random.default_rng(7).uniform(-3, 3, (3, 4))
INDEX = np.array([2, 0])


def run(program: str, x: Any, i: Any) -> dict[str, Any]:
    names = {"x": x, "i": i}
    exec(program, {}, names)
    del names["i"]
    return names


def weights(name: str, shape: tuple[int, ...]) -> Any:
    """Fixed weights of one result in the loss."""
    return np.random.default_rng(len(name) * 31 + ord(name[0])).uniform(0.5, 1.5, shape)


def model_run(program: str, start: Any) -> dict[str, Any]:
    return {k: v.a for k, v in run(program, Model(start * 1.5), Model(INDEX)).items()}


def model_loss(program: str, start: Any) -> float:
    return sum(float(np.sum(a * weights(k, a.shape))) for k, a in model_run(program, start).items())


@pytest.mark.parametrize("program", CASES.values(), ids=CASES.keys())
def test_values(program: str) -> None:
    found = run(program, ct.tensor(START) * 1.5, ct.tensor(INDEX))
    for name, want in model_run(program, START).items():
        np.testing.assert_allclose(found[name].numpy(), want, rtol=1e-14, err_msg=name)


@pytest.mark.parametrize("program", CASES.values(), ids=CASES.keys())
def test_values_without_recording(program: str) -> None:
    """The same with each value looked at as soon as it is made, so that nothing is pending when it is written to."""
    x = ct.tensor(START * 1.5)
    x.numpy()
    found = run(program, x, ct.tensor(INDEX))
    x.numpy()
    for name, want in model_run(program, START).items():
        np.testing.assert_allclose(found[name].numpy(), want, rtol=1e-14, err_msg=name)


@pytest.mark.parametrize("program", CASES.values(), ids=CASES.keys())
def test_gradients(program: str) -> None:
    leaf = ct.tensor(START, requires_grad=True)
    loss: Any = 0.0
    for name, t in run(program, leaf * 1.5, ct.tensor(INDEX)).items():
        loss = loss + (t * ct.tensor(weights(name, tuple(t.shape)))).sum()
    loss.backward()
    numeric = np.zeros_like(START)
    h = 1e-5
    for k in np.ndindex(START.shape):
        step = np.zeros_like(START)
        step[k] = h
        numeric[k] = (model_loss(program, START + step) - model_loss(program, START - step)) / (2 * h)
    np.testing.assert_allclose(leaf.grad.numpy(), numeric, rtol=1e-6, atol=1e-6)


# ---------------------------------------------------------------------------------------------------------- leaves, modes


def test_a_leaf_is_not_written_while_gradients_are_recorded() -> None:
    x = ct.ones(3, requires_grad=True)
    for write in (lambda: x.add_(1), lambda: x[0].mul_(2), lambda: x.__setitem__(0, 1.0), lambda: x.zero_(), lambda: x.normal_()):
        with pytest.raises(RuntimeError, match="leaf"):
            write()
    assert x.tolist() == [1, 1, 1]


def test_a_leaf_is_written_without_recording() -> None:
    x = ct.ones(3, requires_grad=True)
    v = x[1:]
    with ct.no_grad():
        x.mul_(2)
        x[0] = 5.0
    assert x.tolist() == [5, 2, 2] and v.tolist() == [2, 2]
    assert x.is_leaf and x.requires_grad
    (x * x).sum().backward()
    assert x.grad.tolist() == [10, 4, 4]


def test_detached_shares_memory_without_gradient() -> None:
    w = ct.ones(3, requires_grad=True)
    x = w * 2
    d = x.detach()
    d.mul_(5)
    assert x.tolist() == [10, 10, 10] and not d.requires_grad
    x.sum().backward()
    assert w.grad.tolist() == [2, 2, 2]


def test_saved_values_are_from_before_the_write() -> None:
    """PyTorch raises here; the gradient that belongs to what was computed is given instead (docs/differences.md)."""
    w = ct.tensor([1.0, 2.0, 3.0], requires_grad=True)
    x = w * 1
    y = x * x
    x.zero_()
    y.sum().backward()
    assert w.grad.tolist() == [2, 4, 6]


def test_expanded_elements_are_not_written() -> None:
    v = ct.ones(1, 3).expand(2, 3)
    with pytest.raises(RuntimeError, match="clone"):
        v.add_(1)


def test_a_view_that_strides_forbid_is_refused() -> None:
    with pytest.raises(RuntimeError, match="reshape"):
        ct.ones(3, 4).t().view(12)


def test_in_place_keeps_the_dtype() -> None:
    x = ct.ones(3, dtype=ct.int64)
    with pytest.raises(RuntimeError, match="int64"):
        x.add_(1.5)
    x[0] = 2.7  # a write by index converts, as in PyTorch
    assert x.tolist() == [2, 1, 1]


def test_broadcasting_never_grows_what_is_written() -> None:
    with pytest.raises(RuntimeError, match="shape"):
        ct.ones(3).add_(ct.ones(2, 3))


def test_new_shape_in_place_keeps_sharing() -> None:
    x = ct.zeros(2, 3)
    y = x[0]
    x.unsqueeze_(0)
    x.add_(1)
    assert tuple(x.shape) == (1, 2, 3) and y.tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("make", "strides", "offset"),
    [
        (lambda x: x, (12, 4, 1), 0),
        (lambda x: x.permute(2, 0, 1), (1, 12, 4), 0),
        (lambda x: x[:, 1:, ::2], (12, 4, 2), 4),
        (lambda x: x[1, :, 3], (4,), 15),
        (lambda x: x.transpose(0, 2)[1], (4, 12), 1),
        (lambda x: x[:, :1].expand(2, 5, 4), (12, 0, 1), 0),
        (lambda x: x.diagonal(1, 1, 2), (12, 5), 1),
        (lambda x: x.unfold(2, 2, 1), (12, 4, 1, 1), 0),
        (lambda x: x.view(6, 4).t(), (1, 4), 0),
        (lambda x: x.view(2, 3, 2, 2), (12, 4, 2, 1), 0),
    ],
)
def test_strides(make: Any, strides: tuple[int, ...], offset: int) -> None:
    v = make(ct.arange(24).reshape(2, 3, 4))
    assert v.stride() == strides
    assert v.storage_offset() == offset
    assert v.is_contiguous() == v.contiguous().__eq__(v).all().item() * (v.contiguous() is v)
    read = ct.as_strided(ct.arange(24), v.shape, v.stride(), v.storage_offset())
    assert read.tolist() == v.tolist()
