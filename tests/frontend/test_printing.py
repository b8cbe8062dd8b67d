"""Tensors print as PyTorch prints them; the texts below are PyTorch 2.13's, with its name replaced."""

from __future__ import annotations

import pytest

import cermet as ct

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ([1.0, 2.0], "tensor([1., 2.])"),
        ([[1.0, 2.5], [3, 4]], "tensor([[1.0000, 2.5000],\n        [3.0000, 4.0000]])"),
        ([1e-5, 1.0], "tensor([1.0000e-05, 1.0000e+00])"),
        ([1e9, 1.0], "tensor([1.0000e+09, 1.0000e+00])"),
        ([1, 20, -3], "tensor([ 1, 20, -3])"),
        ([True, False], "tensor([ True, False])"),
        ([NAN, 1.0], "tensor([nan, 1.])"),
        ([INF, 1.5], "tensor([   inf, 1.5000])"),
        ([-1.5, 0.0], "tensor([-1.5000,  0.0000])"),
        ([100000.0, 1.0], "tensor([1.0000e+05, 1.0000e+00])"),
        ([0.0, 0.0], "tensor([0., 0.])"),
        ([[-0.0, 1.0]], "tensor([[-0., 1.]])"),
        (3.5, "tensor(3.5000)"),
        (3, "tensor(3)"),
        (1e-8, "tensor(1.0000e-08)"),
        ([], "tensor([])"),
    ],
)
def test_values(data: object, text: str) -> None:
    assert repr(ct.tensor(data)) == text


def test_suffixes() -> None:
    assert repr(ct.zeros(0, 3)) == "tensor([], size=(0, 3))"
    assert repr(ct.zeros(2, 0, dtype=ct.int32)) == "tensor([], size=(2, 0), dtype=cermet.int32)"
    assert repr(ct.ones(2, dtype=ct.float64)) == "tensor([1., 1.], dtype=cermet.float64)"
    assert repr(ct.ones(2, dtype=ct.bfloat16)) == "tensor([1., 1.], dtype=cermet.bfloat16)"
    assert repr(ct.ones(2, requires_grad=True)) == "tensor([1., 1.], requires_grad=True)"
    assert repr(ct.ones(2, requires_grad=True) * 2) == "tensor([2., 2.], grad_fn=<MulBackward>)"


def test_lines_are_broken_at_eighty() -> None:
    text = repr(ct.arange(30))
    assert text == (
        "tensor([ 0,  1,  2,  3,  4,  5,  6,  7,  8,  9, 10, 11, 12, 13, 14, 15, 16, 17,\n"
        "        18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29])"
    )


def test_the_middle_of_large_tensors_is_left_out() -> None:
    assert repr(ct.arange(2000)) == "tensor([   0,    1,    2,  ..., 1997, 1998, 1999])"
    text = repr(ct.arange(10000).reshape(100, 100))
    assert text.count("...") == 7 and text.count("\n") == 6


def test_dimensions_are_set_apart() -> None:
    assert repr(ct.arange(4).reshape(2, 1, 2)) == "tensor([[[0, 1]],\n\n        [[2, 3]]])"


def test_options() -> None:
    before = ct.get_printoptions()
    try:
        ct.set_printoptions(precision=2)
        assert repr(ct.tensor([1.2345])) == "tensor([1.23])"
        ct.set_printoptions(sci_mode=True)
        assert repr(ct.tensor([1.2345])) == "tensor([1.23e+00])"
        ct.set_printoptions(threshold=2, edgeitems=1)
        assert repr(ct.arange(5)) == "tensor([0,  ..., 4])"
    finally:
        ct.set_printoptions(**before)
