"""Functions of nn whose behaviour the op records do not show: arguments, edge cases, errors."""

from __future__ import annotations

import math

import numpy as np
import pytest

import cermet as ct
from cermet import nn

F = nn.functional


def test_cross_entropy_refuses_classes_out_of_range() -> None:
    for bad in (3, -1):
        with pytest.raises(IndexError):
            F.cross_entropy(ct.zeros(1, 3), ct.tensor([bad])).item()


def test_cross_entropy_of_ignored_rows_alone_is_nan() -> None:
    assert math.isnan(F.cross_entropy(ct.zeros(2, 3), ct.tensor([-100, -100])).item())


def test_cross_entropy_is_stable() -> None:
    assert F.cross_entropy(ct.tensor([[1e4, 0.0]]), ct.tensor([0])).item() == 0.0
    assert F.cross_entropy(ct.tensor([[1e4, 0.0]]), ct.tensor([1])).item() == 1e4


def test_cross_entropy_errors_name_shapes_and_dtypes() -> None:
    with pytest.raises(ValueError, match=r"\[5\]"):
        F.cross_entropy(ct.zeros(4, 3), ct.zeros(5, dtype=ct.int64))


def test_max_pool_gradient_goes_to_the_first_maximum() -> None:
    for kernel, stride in ((2, 2), (2, 1)):
        x = ct.ones(1, 1, 2, 2).requires_grad_()
        F.max_pool2d(x, kernel, stride).sum().backward()
        assert x.grad.reshape(4).tolist() == [1.0, 0.0, 0.0, 0.0]


def test_attention_row_that_sees_nothing_is_zero() -> None:
    q = ct.ones(1, 2, 3)
    mask = ct.tensor([[True, True], [False, False]])
    assert F.scaled_dot_product_attention(q, q, q, mask)[0, 1].tolist() == [0.0, 0.0, 0.0]


def test_dropout_gradient_uses_the_same_mask() -> None:
    x = ct.ones(1000).requires_grad_()
    y = F.dropout(x, 0.25)
    y.sum().backward()
    assert np.array_equal(x.grad.numpy(), y.detach().numpy())
    assert 0.2 < (y.detach().numpy() == 0).mean() < 0.3
    assert F.dropout(x, 0.5, training=False) is x


def test_dropout_draws_anew() -> None:
    x = ct.ones(100)
    assert not np.array_equal(F.dropout(x).numpy(), F.dropout(x).numpy())


def test_batch_norm_moves_running_statistics_only_in_training(rng: np.random.Generator) -> None:
    m = nn.BatchNorm1d(3)
    a = rng.standard_normal((8, 3)).astype(np.float32)
    m(ct.tensor(a))
    assert np.allclose(m.running_mean.numpy(), 0.1 * a.mean(0), atol=1e-6)
    assert np.allclose(m.running_var.numpy(), 0.9 + 0.1 * a.var(0, ddof=1), atol=1e-6)
    before = m.running_mean.numpy()
    m.eval()(ct.tensor(a))
    assert np.array_equal(before, m.running_mean.numpy()) and m.num_batches_tracked.item() == 1


def test_batch_norm_refuses_one_value_per_channel() -> None:
    with pytest.raises(ValueError, match="two values or more"):
        nn.BatchNorm1d(3)(ct.zeros(1, 3))


def test_embedding_refuses_rows_out_of_range() -> None:
    for bad in (4, -1):
        with pytest.raises(IndexError):
            nn.Embedding(4, 2)(ct.tensor([bad])).tolist()


@pytest.mark.parametrize("dtype", [ct.float16, ct.bfloat16])
def test_sixteen_bit_floats_are_computed_in_float32(dtype: ct.dtypes.DType, rng: np.random.Generator) -> None:
    a = rng.standard_normal((4, 256)).astype(np.float32)
    x = ct.tensor(a).to(dtype)
    wide = x.to(ct.float32)
    for f in (lambda v: F.softmax(v, 1), lambda v: F.layer_norm(v, (256,)), F.gelu):
        assert np.array_equal(f(x).float().numpy(), f(wide).to(dtype).float().numpy())


def test_convolution_errors_name_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="channels"):
        F.conv2d(ct.zeros(1, 3, 5, 5), ct.zeros(4, 2, 3, 3))
    with pytest.raises(ValueError, match="same"):
        F.conv2d(ct.zeros(1, 2, 5, 5), ct.zeros(4, 2, 3, 3), stride=2, padding="same")


def test_second_derivative_of_a_convolution() -> None:
    x, w = ct.randn(1, 1, 4, 4, dtype=ct.float64).requires_grad_(), ct.randn(1, 1, 2, 2, dtype=ct.float64).requires_grad_()
    y = (F.conv2d(x, w) ** 3).sum()
    (g,) = ct.frontend.autograd.grad(y, [x], create_graph=True)
    g.square().sum().backward()
    d = 1e-5
    a, b = x.detach().numpy(), w.detach().numpy()

    def penalty(v: np.ndarray) -> float:
        t = ct.tensor(v).requires_grad_()
        (h,) = ct.frontend.autograd.grad((F.conv2d(t, ct.tensor(b)) ** 3).sum(), [t])
        return h.square().sum().item()

    e = np.zeros_like(a)
    e[0, 0, 1, 2] = d
    assert math.isclose((penalty(a + e) - penalty(a - e)) / (2 * d), x.grad[0, 0, 1, 2].item(), rel_tol=1e-5)


def test_einsum() -> None:
    a, b = ct.randn(2, 3, 4), ct.randn(4, 5)
    assert np.allclose(ct.einsum("...ij,jk->...ik", a, b).numpy(), a.numpy() @ b.numpy(), atol=1e-5)
    with pytest.raises(ValueError, match="size"):
        ct.einsum("ij,jk", ct.zeros(2, 3), ct.zeros(4, 5))
