"""Operands of products that are computed values seen through a reshape: read where they lie, never stored a second time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import cermet as ct
from cermet.lazy import run as lazy_run

F = ct.nn.functional


def kernels(work: Callable[[], Any]) -> tuple[Any, list[str]]:
    """What ``work`` returns, realized, and the names of the kernels planned for it."""
    schedules: list[Any] = []
    build = lazy_run.build_schedule
    lazy_run.build_schedule = lambda *a, **n: schedules.append(build(*a, **n)) or schedules[-1]  # type: ignore[func-returns-value]
    try:
        out = work()
        ct.realize(*out)
    finally:
        lazy_run.build_schedule = build
    assert schedules, "planned before: nothing to look at"
    return out, [c.name for s in schedules for c in s.calls]


def numbers(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape)).standard_normal(shape, np.float32)


@pytest.mark.parametrize("shape", [(3, 5, 31), (1, 1, 1), (2, 1, 37)])
def test_layers_on_sequences_copy_nothing(shape: tuple[int, int, int]) -> None:
    """A linear layer on a computed sequence, forwards and backwards: the gradient is read by the products and by the bias alike."""
    x, w, b, last = numbers(*shape), numbers(shape[2], shape[2]), numbers(shape[2]), numbers(9, shape[2])

    def work() -> tuple[Any, ...]:
        weight, bias = (ct.from_numpy(v.copy()).requires_grad_() for v in (w, b))
        out = F.linear(ct.tanh(F.linear(ct.exp(ct.from_numpy(x)), weight, bias)), ct.from_numpy(last))
        return (out, *ct.autograd.grad((out * out).sum(), (weight, bias)))

    (out, grad_w, grad_b), names = kernels(work)
    assert not any("copy" in n for n in names), names
    wide = [v.astype(np.float64) for v in (x, w, b, last)]
    first = np.exp(wide[0])
    hidden = np.tanh(first @ wide[1].T + wide[2])
    back = (1 - hidden**2) * (2 * (hidden @ wide[3].T) @ wide[3])
    np.testing.assert_allclose(out.detach().numpy(), hidden @ wide[3].T, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(grad_w.numpy(), np.einsum("bti,btj->ij", back, first), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(grad_b.numpy(), back.sum((0, 1)), rtol=1e-3, atol=1e-3)


def test_dims_joined_across_memory_are_copied() -> None:
    """Rows that a permutation put apart have no one stride: there the copy stays, and the sums are right."""
    x, w = numbers(3, 4, 5), numbers(12, 2)
    (out,), names = kernels(lambda: (ct.exp(ct.from_numpy(x)).permute(2, 1, 0).reshape(5, 12) @ ct.from_numpy(w),))
    assert any("copy" in n for n in names), names
    want = np.exp(x.astype(np.float64)).transpose(2, 1, 0).reshape(5, 12) @ w
    np.testing.assert_allclose(out.numpy(), want, rtol=1e-4, atol=1e-5)


def test_images_keep_their_own_order() -> None:
    """Four dims may be channels-last in memory: joined, they are put in order first."""
    x, w, last = numbers(2, 3, 6, 6), numbers(8, 3, 3, 3), numbers(8 * 36, 2)
    (out,), _ = kernels(
        lambda: (ct.relu(F.conv2d(ct.from_numpy(x), ct.from_numpy(w), padding=1)).flatten(1) @ ct.from_numpy(last),)
    )
    padded = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    image = np.maximum(np.einsum("bchwij,ocij->bohw", windows, w), 0)
    np.testing.assert_allclose(out.numpy(), image.reshape(2, -1) @ last, rtol=1e-4, atol=1e-3)
