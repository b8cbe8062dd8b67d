"""Every form of ``x[...]`` and ``x[...] = v``, against NumPy; and errors that depend on values."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cermet as ct


def as_tensors(index: Any) -> Any:
    return tuple(ct.tensor(i) if isinstance(i, np.ndarray) else i for i in index)


@st.composite
def indices(draw: Any, shape: tuple[int, ...]) -> tuple[Any, ...]:
    """An index of ``shape``: ints, slices, None, Ellipsis, and at most one group of neighbouring arrays (where NumPy and
    PyTorch agree)."""
    items: list[Any] = []
    arrays = draw(st.booleans())
    for size in shape[: draw(st.integers(0, len(shape)))]:
        kinds = ["slice", "full"] + (["int"] if size and not arrays else []) + (["array"] if size and arrays else [])
        kind = draw(st.sampled_from(kinds))
        if kind == "int":
            items.append(draw(st.integers(-size, size - 1)))
        elif kind == "array":
            items.append(np.array(draw(st.lists(st.integers(-size, size - 1), min_size=3, max_size=3))))
        elif kind == "full":
            items.append(slice(None))
        else:
            ends = st.one_of(st.none(), st.integers(-size - 1, size + 1))
            items.append(slice(draw(ends), draw(ends), draw(st.sampled_from((None, 1, 2, -1)))))
    if draw(st.booleans()):
        items.append(Ellipsis)
    if not arrays and draw(st.booleans()):
        items.insert(draw(st.integers(0, len(items))), None)
    return tuple(items)


SHAPES = st.lists(st.integers(0, 4), min_size=1, max_size=4).map(tuple)


@settings(max_examples=150)
@given(st.data())
def test_reading(data: Any) -> None:
    shape = data.draw(SHAPES)
    index = data.draw(indices(shape))
    a = np.arange(int(np.prod(shape))).reshape(shape)
    np.testing.assert_array_equal(ct.tensor(a)[as_tensors(index)].numpy(), a[index])


@settings(max_examples=150)
@given(st.data())
def test_writing(data: Any) -> None:
    shape = data.draw(SHAPES)
    index = data.draw(indices(shape))
    a = np.arange(int(np.prod(shape))).reshape(shape)
    t = ct.tensor(a)
    value = -1 - np.arange(a[index].size).reshape(a[index].shape)
    if data.draw(st.booleans()):
        value = np.asarray(-7)
    t[as_tensors(index)] = ct.tensor(value)
    a[index] = value
    np.testing.assert_array_equal(t.numpy(), a)


A = np.arange(24.0).reshape(2, 3, 4)
I, J = np.array([1, 0, 1]), np.array([2, 2, 0])


@pytest.mark.parametrize(
    "index",
    [
        (I,), (slice(None), J), (I, J), (I, slice(None), J), (slice(None), J, J), (I[:, None], J), (Ellipsis, J), (None, I), (I,
        None, J), (A > 3,), (slice(None), A[0] > 3), (A[:, 0, 0] > 3, slice(1, 3)), ([0, 1], [1, 2]), (I.reshape(1, 3),
        Ellipsis, J), (True,), (False,), (np.zeros(0, np.int64),), ([[0, 1], [1, 0]],), (slice(None), slice(None), [0, -1]),
    ],
    ids=str,
)  # fmt: skip
def test_advanced(index: Any) -> None:
    want = A[index]
    t = ct.tensor(A, requires_grad=True)
    got = t[as_tensors(index)]
    np.testing.assert_array_equal(got.numpy(force=True), want)
    got.sum().backward()
    counts = np.zeros_like(A)
    np.add.at(counts, index, 1.0)
    np.testing.assert_array_equal(t.grad.numpy(), counts)
    written, w = ct.tensor(A), A.copy()
    written[as_tensors(index)] = -1.0
    w[index] = -1.0
    np.testing.assert_array_equal(written.numpy(), w)


def test_last_write_wins() -> None:
    t = ct.zeros(3)
    t[ct.tensor([1, 1, 1])] = ct.tensor([1.0, 2.0, 3.0])
    assert t.tolist() == [0, 3, 0]


def test_masks_and_scalars_are_not_looked_at() -> None:
    from cermet.lazy.record import local

    local.tape.reset()
    x = ct.ones(3) * 2
    x[x > 1] = 0.0
    assert len(local.tape.nodes) > 0 and x._node.buffer is None
    assert x.tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("program", "error", "match"),
    [
        (lambda x: x[3], IndexError, "index 3 does not exist"),
        (lambda x: x[0, 0, 0], IndexError, "too many"),
        (lambda x: x[..., ...], IndexError, "2 ellipses"),
        (lambda x: x[1.5], IndexError, "a float is no index"),
        (lambda x: x[ct.tensor([0.5])], IndexError, "whole numbers"),
        (lambda x: x[ct.tensor([True])], IndexError, "mask"),
        (lambda x: x[ct.tensor([0, 1]), ct.tensor([0, 1, 1])], IndexError, "broadcast"),
        (lambda x: x.__setitem__(0, ct.ones(3)), RuntimeError, "broadcast"),
        (lambda x: x[ct.tensor([5])].numpy(), IndexError, "index 5 does not exist"),
        (lambda x: x.gather(1, ct.tensor([[0]] * 4)), RuntimeError, "larger"),
    ],
)
def test_errors(program: Any, error: type[Exception], match: str) -> None:
    x = ct.zeros(2, 2)
    with pytest.raises(error, match=match):
        program(x)


def test_a_failing_index_names_the_line_and_spares_the_rest() -> None:
    x = ct.arange(3.0)
    good = x * 2
    bad = x[ct.tensor([7])]
    with pytest.raises(IndexError, match=r"test_indexing\.py"):
        bad.numpy()
    assert good.tolist() == [0, 2, 4]
