"""Gathering from what is seen through a reshape: the computed index has to be taken apart."""

from __future__ import annotations

import numpy as np

import cermet as ct


def test_sort_of_a_flattened_matrix() -> None:
    a = np.random.default_rng(0).standard_normal((48, 96)).astype("float32")
    values, indices = ct.sort(ct.tensor(a).reshape(-1))
    np.testing.assert_array_equal(values.numpy(), np.sort(a.ravel()))
    np.testing.assert_array_equal(a.ravel()[indices.numpy()], np.sort(a.ravel()))


def test_gather_from_a_transposed_and_flattened_value() -> None:
    a = np.arange(24.0).reshape(2, 3, 4)
    index = np.array([0, 5, 23, -1])
    x = ct.tensor(a)
    got = (x * 2).permute(2, 0, 1).reshape(-1)[ct.tensor(index)]
    np.testing.assert_array_equal(got.numpy(), (a * 2).transpose(2, 0, 1).reshape(-1)[index])
