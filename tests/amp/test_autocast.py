"""autocast: which dtypes functions compute in, what gradients come back as, and how it is switched."""

from __future__ import annotations

import threading
import warnings

import numpy as np
import pytest

import cermet as ct
from cermet import nn
from cermet.ops import autocast as policies

F = nn.functional


def tensor(*shape: int, dtype: ct.dtype = ct.float32) -> ct.Tensor:
    return ct.from_numpy(np.random.default_rng(0).standard_normal(shape, np.float32)).to(dtype)


LOWER = {
    "matmul": lambda: tensor(3, 4) @ tensor(4, 5),
    "method": lambda: tensor(3, 4).matmul(tensor(4, 5)),
    "linear": lambda: F.linear(tensor(3, 4), tensor(5, 4), tensor(5)),
    "bmm": lambda: ct.bmm(tensor(2, 3, 4), tensor(2, 4, 5)),
    "addmm": lambda: ct.addmm(tensor(3, 5), tensor(3, 4), tensor(4, 5)),
    "einsum": lambda: ct.einsum("ij,jk->ik", tensor(3, 4), tensor(4, 5)),
    "conv2d": lambda: F.conv2d(tensor(1, 2, 5, 5), tensor(3, 2, 3, 3)),
    "conv_transpose2d": lambda: F.conv_transpose2d(tensor(1, 2, 5, 5), tensor(2, 3, 3, 3)),
    "attention": lambda: F.scaled_dot_product_attention(tensor(1, 2, 5, 4), tensor(1, 2, 5, 4), tensor(1, 2, 5, 4)),
}


@pytest.mark.parametrize("name", LOWER)
@pytest.mark.parametrize("dtype", [ct.bfloat16, ct.float16], ids=["bfloat16", "float16"])
def test_products_compute_in_the_chosen_dtype(name: str, dtype: ct.dtype) -> None:
    plain = LOWER[name]()
    with ct.autocast("cpu", dtype=dtype):
        y = LOWER[name]()
    assert plain.dtype is ct.float32
    assert y.dtype is dtype
    step = 2.0 ** (-7 if dtype is ct.bfloat16 else -10)
    np.testing.assert_allclose(y.float().numpy(), plain.numpy(), rtol=8 * step, atol=16 * step)


def test_losses_compute_in_float32() -> None:
    x, y = tensor(4, 5, dtype=ct.bfloat16), ct.arange(4)
    with ct.autocast("cpu"):
        assert F.cross_entropy(x, y).dtype is ct.float32
        assert F.mse_loss(x, x).dtype is ct.float32
        assert F.nll_loss(x, y).dtype is ct.float32
        assert ct.prod(x).dtype is ct.float32
    assert F.mse_loss(x, x).dtype is ct.bfloat16


def test_joining_takes_the_widest() -> None:
    x, y = tensor(2, 3), tensor(2, 3, dtype=ct.bfloat16)
    with ct.autocast("cpu"):
        assert ct.cat([y, x]).dtype is ct.float32
        assert ct.stack((y, y)).dtype is ct.bfloat16


@pytest.mark.parametrize("layer", ["LSTM", "GRU", "RNN"])
def test_recurrent_layers_follow(layer: str) -> None:
    ct.manual_seed(0)
    net = getattr(nn, layer)(4, 6, num_layers=2, bidirectional=True)
    cell = getattr(nn, layer + "Cell")(4, 6)
    x = tensor(5, 2, 4)
    plain = net(x)[0]
    with ct.autocast("cpu"):
        y, state = net(x)
        h = cell(x[0])
    assert y.dtype is ct.bfloat16
    assert (state[0] if layer == "LSTM" else state).dtype is ct.bfloat16
    assert (h[0] if layer == "LSTM" else h).dtype is ct.bfloat16
    np.testing.assert_allclose(y.float().detach().numpy(), plain.detach().numpy(), atol=0.02)
    y.float().sum().backward()
    assert all(p.grad is None or p.grad.dtype is ct.float32 for p in net.parameters())


def test_sums_by_index_take_the_widest() -> None:
    total, rows = ct.zeros(3, 2), tensor(4, 2, dtype=ct.bfloat16)
    with ct.autocast("cpu"):
        assert total.index_add(0, ct.tensor([0, 1, 1, 2]), rows).dtype is ct.float32


def test_float64_integers_and_other_functions_are_left_alone() -> None:
    with ct.autocast("cpu"):
        assert (tensor(2, 2, dtype=ct.float64) @ tensor(2, 2, dtype=ct.float64)).dtype is ct.float64
        assert (ct.ones(2, 2, dtype=ct.int64) @ ct.ones(2, 2, dtype=ct.int64)).dtype is ct.int64
        assert (tensor(3) + tensor(3)).dtype is ct.float32
        assert ct.softmax(tensor(3, 3), -1).dtype is ct.float32
        total = tensor(3, 5)
        total.addmm_(tensor(3, 4), tensor(4, 5))
        assert total.dtype is ct.float32  # an in-place form keeps the dtype of what it writes


def test_parameters_get_gradients_of_their_own_dtype() -> None:
    ct.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    x, y = tensor(5, 6), ct.tensor([0, 1, 2, 0, 1])
    with ct.autocast("cpu", dtype=ct.bfloat16):
        logits = model(x)
        loss = F.cross_entropy(logits, y)
        loss.backward()  # also inside: gradients do not follow autocast
    assert logits.dtype is ct.bfloat16
    got = [p.grad.clone() for p in model.parameters()]
    assert all(g.dtype is ct.float32 for g in got)
    model.zero_grad()
    F.cross_entropy(model(x), y).backward()
    for g, p in zip(got, model.parameters(), strict=True):
        np.testing.assert_allclose(g.numpy(), p.grad.numpy(), atol=0.02)


def test_training_under_autocast_learns() -> None:
    ct.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 2))
    x = ct.randn(128, 2)
    y = (x[:, 0] * x[:, 1] > 0).long()
    optimizer = ct.optim.AdamW(model.parameters(), lr=0.05)
    for _ in range(60):
        optimizer.zero_grad()
        with ct.autocast("cpu"):
            loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.2


def test_switches_nest_and_are_restored() -> None:
    assert not ct.is_autocast_enabled("cpu")
    with ct.autocast("cpu"):
        assert ct.is_autocast_enabled("cpu")
        with ct.autocast("cpu", enabled=False):
            assert not ct.is_autocast_enabled("cpu")
            assert (tensor(2, 2) @ tensor(2, 2)).dtype is ct.float32
        with ct.autocast("cpu", dtype=ct.float16):
            assert ct.get_autocast_dtype("cpu") is ct.float16
        assert ct.get_autocast_dtype("cpu") is ct.bfloat16
        with pytest.raises(ZeroDivisionError), ct.autocast("cpu", dtype=ct.float16):
            _ = 1 / 0
        assert ct.get_autocast_dtype("cpu") is ct.bfloat16
    assert not ct.is_autocast_enabled("cpu")


def test_decorator_and_set() -> None:
    @ct.autocast("cpu")
    def product() -> ct.Tensor:
        return tensor(2, 2) @ tensor(2, 2)

    assert product().dtype is ct.bfloat16
    ct.set_autocast_enabled("cpu", True)
    try:
        assert (tensor(2, 2) @ tensor(2, 2)).dtype is ct.bfloat16
    finally:
        ct.set_autocast_enabled("cpu", False)
    assert not ct.is_autocast_enabled("cpu")


def test_threads_have_states_of_their_own() -> None:
    seen = []
    with ct.autocast("cpu"):
        thread = threading.Thread(target=lambda: seen.append(ct.is_autocast_enabled("cpu")))
        thread.start()
        thread.join()
    assert seen == [False]


def test_what_cannot_be_switched_on_says_so() -> None:
    with pytest.warns(UserWarning, match="float32 is neither"), ct.autocast("cpu", dtype=ct.float32):
        assert not ct.is_autocast_enabled("cpu")
    with pytest.raises(RuntimeError, match="no device of type 'abacus'"):
        ct.autocast("abacus")
    with pytest.raises(ValueError, match="bfloat16 or float16"):
        ct.set_autocast_dtype("cpu", ct.float64)
    if not ct.cuda.is_available():
        with pytest.warns(UserWarning, match="no cuda device"), ct.cuda.amp.autocast():
            assert not ct.is_autocast_enabled("cpu")


def test_a_policy_that_there_is_not() -> None:
    with pytest.raises(ValueError, match="give one of lower"):
        policies.autocasting(len, "upper")


def test_custom_function() -> None:
    class Double(ct.autograd.Function):
        @staticmethod
        @ct.amp.custom_fwd(device_type="cpu", cast_inputs=ct.float32)
        def forward(ctx, x):
            assert not ct.is_autocast_enabled("cpu")
            return x * 2

        @staticmethod
        @ct.amp.custom_bwd(device_type="cpu")
        def backward(ctx, g):
            assert not ct.is_autocast_enabled("cpu")
            return g * 2

    x = tensor(3, dtype=ct.bfloat16).requires_grad_()
    with ct.autocast("cpu"):
        y = Double.apply(x)
    assert y.dtype is ct.float32
    y.sum().backward()
    assert x.grad.dtype is ct.bfloat16
    assert x.grad.tolist() == [2.0, 2.0, 2.0]


def test_no_warning_on_the_cpu() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with ct.autocast("cpu", dtype=ct.bfloat16, cache_enabled=True):
            pass
