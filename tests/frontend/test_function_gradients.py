"""What `autograd.Function` makes of the gradients that a user's backward returns."""

from __future__ import annotations

from typing import Any

import pytest

import cermet as ct


def function(returned: Any) -> Any:
    class Given(ct.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 1.0

        @staticmethod
        def backward(ctx, g):
            return returned(g)

    return Given.apply


def test_a_gradient_takes_the_dtype_of_its_input() -> None:
    x = ct.ones(3, dtype=ct.float64, requires_grad=True)
    function(lambda g: g.float() * 2)(x).sum().backward()
    assert x.grad.dtype is ct.float64
    assert x.grad.tolist() == [2.0, 2.0, 2.0]


def test_a_gradient_of_a_broadcast_input_is_summed() -> None:
    x = ct.ones(1, 3, requires_grad=True)
    function(lambda g: g.expand(4, 3))(x).sum().backward()
    assert x.grad.tolist() == [[4.0, 4.0, 4.0]]


def test_gradients_that_do_not_fit_are_refused() -> None:
    x = ct.ones(3, requires_grad=True)
    with pytest.raises(RuntimeError, match=r"shape \(2,\) for argument 0 of shape \(3,\)"):
        function(lambda g: g[:2])(x).sum().backward()
    with pytest.raises(TypeError, match="returned a float as gradient 0"):
        function(lambda g: 1.0)(x).sum().backward()


def test_none_is_no_gradient() -> None:
    x, y = ct.ones(3, requires_grad=True), ct.ones(3, requires_grad=True)
    (function(lambda g: None)(x) + y).sum().backward()
    assert x.grad is None
    assert y.grad.tolist() == [1.0, 1.0, 1.0]
