"""Norms, chains and powers of matrices against NumPy."""

from __future__ import annotations

import math

import numpy as np
import pytest

import cermet as ct

A = np.random.default_rng(0).standard_normal((3, 4, 4))


@pytest.mark.parametrize("ord", [2, 1, 3, 0.5, 0, math.inf, -math.inf])
@pytest.mark.parametrize("dim", [0, 1, -1])
def test_vector_norm(ord: float, dim: int) -> None:
    got = ct.linalg.vector_norm(ct.tensor(A), ord, dim).numpy()
    np.testing.assert_allclose(got, np.linalg.norm(A, ord, axis=dim), rtol=1e-12)


def test_vector_norm_of_everything() -> None:
    assert math.isclose(ct.linalg.norm(ct.tensor(A)).item(), np.linalg.norm(A.ravel()))


@pytest.mark.parametrize("ord", ["fro", 1, -1, math.inf, -math.inf])
@pytest.mark.parametrize("keepdim", [False, True])
def test_matrix_norm(ord: object, keepdim: bool) -> None:
    got = ct.linalg.matrix_norm(ct.tensor(A), ord, keepdim=keepdim).numpy()
    np.testing.assert_allclose(got, np.linalg.norm(A, ord, axis=(-2, -1), keepdims=keepdim), rtol=1e-12)


def test_multi_dot() -> None:
    rng = np.random.default_rng(1)
    parts = [rng.standard_normal(s) for s in ((3, 10), (10, 2), (2, 7), (7, 5))]
    np.testing.assert_allclose(ct.linalg.multi_dot([ct.tensor(p) for p in parts]).numpy(), np.linalg.multi_dot(parts), rtol=1e-12)
    vectors = [parts[0][0], parts[1], parts[2][:, 0]]
    np.testing.assert_allclose(
        ct.linalg.multi_dot([ct.tensor(p) for p in vectors]).numpy(), np.linalg.multi_dot(vectors), rtol=1e-12
    )
    with pytest.raises(RuntimeError, match="do not chain"):
        ct.linalg.multi_dot([ct.ones(2, 3), ct.ones(2, 3)])


@pytest.mark.parametrize("n", [0, 1, 2, 5])
def test_matrix_power(n: int) -> None:
    np.testing.assert_allclose(ct.linalg.matrix_power(ct.tensor(A), n).numpy(), np.linalg.matrix_power(A, n), rtol=1e-10)


def test_refusals() -> None:
    with pytest.raises(NotImplementedError, match="singular values"):
        ct.linalg.matrix_norm(ct.tensor(A), "nuc")
    with pytest.raises(RuntimeError, match="square"):
        ct.linalg.matrix_power(ct.ones(2, 3), 2)
