"""Backward walks and calls of public functions that were seen before: the second must be as right as the first."""

from __future__ import annotations

import numpy as np
import pytest

import cermet as ct
from cermet.frontend import replay
from cermet.lazy.record import local
from cermet.ops.public import Entry


def leaf(*shape: int, seed: int = 0) -> ct.Tensor:
    return ct.tensor(np.random.default_rng(seed).standard_normal(shape), requires_grad=True)


def plans() -> int:
    return len(replay._plans)


# ------------------------------------------------------------------------------------------------- backward


def test_a_second_walk_is_replayed_with_its_own_values():
    for seed in range(3):
        before = plans()
        x, w = leaf(3, 4, seed=seed), leaf(4, 2, seed=seed + 10)
        ((x @ w).tanh() * 2.0).sum().backward()
        slope = 2 * (1 - np.tanh(x.detach().numpy() @ w.detach().numpy()) ** 2)
        np.testing.assert_allclose(x.grad.numpy(), slope @ w.detach().numpy().T, rtol=1e-12)
        np.testing.assert_allclose(w.grad.numpy(), x.detach().numpy().T @ slope, rtol=1e-12)
        assert plans() == before + (seed == 0)


def test_numbers_of_the_forward_pass_are_not_part_of_a_plan():
    for factor in (2.0, 3.0, 5.0):
        x = leaf(4)
        (x * factor).sum().backward()
        np.testing.assert_array_equal(x.grad.numpy(), np.full(4, factor))


def test_one_value_twice_is_another_structure_than_two_values():
    for _ in range(2):
        a, b = leaf(5, seed=1), leaf(5, seed=2)
        (a * b).sum().backward()
        (a * a).sum().backward()
        np.testing.assert_allclose(a.grad.numpy(), (b + 2 * a).detach().numpy())
        np.testing.assert_allclose(b.grad.numpy(), a.detach().numpy())


def test_gradients_are_added_in_every_walk():
    x = leaf(3)
    for k in range(1, 5):
        (x * x).sum().backward()
        np.testing.assert_allclose(x.grad.numpy(), 2 * k * x.detach().numpy())


def test_released_values_are_missed_after_a_replay_too():
    for _ in range(2):
        x = leaf(3)
        y = (x * x).sum()
        y.backward()
        with pytest.raises(RuntimeError, match="second time"):
            y.backward()
        z = (x * x).sum()
        z.backward(retain_graph=True)
        z.backward()


def test_hooks_run_in_every_walk():
    seen = []
    for _ in range(3):
        x = leaf(3)
        y = x * 2.0
        y.register_hook(lambda g: seen.append(g.numpy()) or g * 10.0)
        y.sum().backward()
        np.testing.assert_array_equal(x.grad.numpy(), np.full(3, 20.0))
    assert len(seen) == 3
    calls = []
    for _ in range(2):
        x = leaf(3)
        x.register_post_accumulate_grad_hook(lambda t: calls.append(t.grad.numpy()))
        (x * 2.0).sum().backward()
    assert len(calls) == 2


def test_retained_gradients_come_every_time():
    for _ in range(3):
        x = leaf(3)
        y = x * 3.0
        y.retain_grad()
        (y * y).sum().backward()
        np.testing.assert_allclose(y.grad.numpy(), 2 * y.detach().numpy())


def test_gradients_of_chosen_inputs():
    for _ in range(2):
        x, w, unused = leaf(3, seed=1), leaf(3, seed=2), leaf(3, seed=3)
        h = x * w
        gw, gh, gu = ct.autograd.grad((h * h).sum(), [w, h, unused], allow_unused=True)
        np.testing.assert_allclose(gh.numpy(), 2 * h.detach().numpy())
        np.testing.assert_allclose(gw.numpy(), (2 * h * x).detach().numpy())
        assert gu is None and x.grad is None and w.grad is None
        (gx,) = ct.autograd.grad((x * w).sum(), [x])
        np.testing.assert_allclose(gx.numpy(), w.detach().numpy())


def test_functions_of_users_run_every_time():
    runs = []

    class Twice(ct.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2.0

        @staticmethod
        def backward(ctx, g):
            runs.append(1)
            return g * 2.0

    for k in range(3):
        x = leaf(2)
        Twice.apply(x).sum().backward()
        assert len(runs) == k + 1


def test_dropout_draws_anew():
    ct.manual_seed(0)
    masks = []
    for _ in range(3):
        x = ct.ones(200, requires_grad=True)
        y = ct.nn.functional.dropout(x, 0.5)
        y.sum().backward()
        np.testing.assert_array_equal(x.grad.numpy(), y.detach().numpy())
        masks.append(x.grad.numpy())
    assert not np.array_equal(masks[0], masks[1]) and not np.array_equal(masks[1], masks[2])


def test_second_derivatives_are_not_replayed():
    for _ in range(2):
        x = leaf(3)
        (g,) = ct.autograd.grad((x**3).sum(), [x], create_graph=True)
        (gg,) = ct.autograd.grad(g.sum(), [x])
        np.testing.assert_allclose(gg.numpy(), 6 * x.detach().numpy(), rtol=1e-6)


def test_a_replayed_walk_is_the_same_program():
    x = leaf(6, 6)

    def step() -> None:
        x.grad = None
        (x.exp() * x).sum().backward()
        ct.realize(x.grad)

    step()
    compiled = ct.stats()["programs_compiled"]
    for _ in range(3):
        step()
    assert ct.stats()["programs_compiled"] == compiled


def test_no_plan_past_the_limit_of_pending_nodes(monkeypatch):
    x = leaf(4)
    for _ in range(2):
        (x.exp() * x).sum().backward()
    ct.realize(x.grad)
    tape = local.tape
    monkeypatch.setattr(ct.config, "pending_nodes", 3)
    tape.reset()
    x.grad = None
    (x.exp() * x).sum().backward()
    v = x.detach().numpy()
    np.testing.assert_allclose(x.grad.numpy(), np.exp(v) * (1 + v), rtol=1e-12)
    monkeypatch.undo()
    tape.reset()


# ------------------------------------------------------------------------------------------------- public functions


def entry_of(fn) -> Entry:
    return next(c.cell_contents for c in fn.__closure__ if isinstance(c.cell_contents, Entry))


def test_a_function_is_remembered_by_what_it_is_given():
    table = entry_of(ct.nn.functional.layer_norm).seen
    rng = np.random.default_rng(0)
    for shape in ((2, 5), (3, 5)):
        before = len(table)
        for _ in range(3):
            a = rng.standard_normal(shape)
            want = (a - a.mean(-1, keepdims=True)) / np.sqrt(a.var(-1, keepdims=True) + 1e-5)
            np.testing.assert_allclose(ct.nn.functional.layer_norm(ct.tensor(a), (5,)).numpy(), want, rtol=1e-9)
        assert len(table) == before + 1


def test_numbers_of_equal_value_are_told_apart():
    x = ct.tensor([1.0, -1.0])
    for _ in range(2):
        assert np.signbit(ct.full_like(x, 0.0).numpy()).tolist() == [False, False]
        assert np.signbit(ct.full_like(x, -0.0).numpy()).tolist() == [True, True]
        assert ct.tensor([1, 2]).sum(dtype=ct.float32).dtype is ct.float32
        assert ct.full((2,), 1).dtype is ct.int64
        assert ct.full((2,), 1.0).dtype is ct.float32
        assert ct.full((2,), True).dtype is ct.bool


def test_the_default_dtype_counts():
    for _ in range(2):
        assert ct.zeros(2).dtype is ct.float32
        ct.set_default_dtype(ct.float64)
        try:
            assert ct.zeros(2).dtype is ct.float64
            assert ct.tensor([1, 2]).exp().dtype is ct.float64
        finally:
            ct.set_default_dtype(ct.float32)
        assert ct.tensor([1, 2]).exp().dtype is ct.float32


def test_reshaping_shares_memory_only_where_it_can():
    for _ in range(3):
        x = ct.arange(6).reshape(2, 3)
        flat = x.reshape(6)
        flat[0] = 10
        assert x[0, 0].item() == 10
        t = ct.arange(6).reshape(3, 2).t()
        copy = t.reshape(6)
        copy[0] = 10
        assert t[0, 0].item() == 0
        with pytest.raises(RuntimeError, match="no view"):
            t.view(6)


def test_views_that_were_seen_before_share_memory():
    for _ in range(3):
        x = ct.zeros(3, 4)
        x[1][2] = 5.0
        x[:, 0] = 7.0
        x.t()[3, 0] = 9.0
        assert x.tolist() == [[7.0, 0.0, 0.0, 9.0], [7.0, 0.0, 5.0, 0.0], [7.0, 0.0, 0.0, 0.0]]
        row = x[-1]
        x[2, 1] = 1.0
        assert row.tolist() == [7.0, 1.0, 0.0, 0.0]


def test_gradients_flow_where_they_are_wanted_and_only_there():
    f = ct.nn.functional.linear
    for needs in ((True, False), (False, True), (True, True), (False, False), (True, False)):
        x, w = (ct.tensor(np.ones(s), requires_grad=n) for s, n in zip(((2, 3), (4, 3)), needs, strict=True))
        y = f(x, w)
        assert y.requires_grad == any(needs)
        with ct.no_grad():
            assert not f(x, w).requires_grad
        if any(needs):
            y.sum().backward()
        assert (x.grad is not None, w.grad is not None) == needs


def test_views_of_tracked_tensors_are_tracked():
    for _ in range(3):
        x = leaf(3, 4)
        (x[1] * 2.0).sum().backward()
        x.t()[0, 2:].sum().backward()
        want = np.zeros((3, 4))
        want[1] = 2.0
        want[2, 0] = 1.0
        np.testing.assert_array_equal(x.grad.numpy(), want)
        with ct.no_grad():
            assert not x[1].requires_grad


def test_random_functions_draw_every_time():
    draws = [ct.rand(8).tolist() for _ in range(4)]
    assert len({tuple(d) for d in draws}) == 4


def test_a_value_that_is_looked_at_is_no_part_of_what_is_remembered():
    x = ct.tensor([1.0, 2.0])
    for counts in ([1, 2], [2, 1], [0, 3]):
        known = ct.tensor(counts)
        ct.realize(known)
        got = ct.repeat_interleave(x, known).tolist()
        assert got == np.repeat([1.0, 2.0], counts).tolist()
    for mask in ([True, False], [False, True], [True, True]):
        assert x[ct.tensor(mask)].tolist() == np.array([1.0, 2.0])[mask].tolist()


def test_several_results_and_several_inputs():
    for seed in range(3):
        a = np.random.default_rng(seed).standard_normal((4, 5))
        x = ct.tensor(a, requires_grad=True)
        values, places = x.max(1)
        np.testing.assert_array_equal(values.detach().numpy(), a.max(1))
        np.testing.assert_array_equal(places.numpy(), a.argmax(1))
        values.sum().backward()
        np.testing.assert_array_equal(x.grad.numpy(), (a == a.max(1, keepdims=True)).astype(float))
        both = ct.cat([x.detach(), x.detach() * 2.0], 1)
        np.testing.assert_array_equal(both.numpy(), np.concatenate([a, a * 2], 1))
        rows = ct.tensor([seed, 0])
        np.testing.assert_array_equal(x.detach()[rows].numpy(), a[[seed, 0]])
        assert x.max(1).values.shape == (4,)


def test_one_tensor_twice():
    for _ in range(2):
        x, y = ct.tensor([1.0, 2.0]), ct.tensor([3.0, 5.0])
        assert ct.dot(x, y).item() == 13.0
        assert ct.dot(x, x).item() == 5.0
        assert ct.maximum(x, x).tolist() == [1.0, 2.0]
        assert ct.maximum(x, y).tolist() == [3.0, 5.0]


def test_writes_are_made_every_time():
    f = ct.nn.functional.relu
    for _ in range(3):
        x = ct.tensor([-1.0, 1.0])
        assert f(x, inplace=True) is x
        assert x.tolist() == [0.0, 1.0]


def test_errors_come_every_time():
    for _ in range(3):
        with pytest.raises(ValueError, match="broadcast"):
            ct.maximum(ct.zeros(3), ct.zeros(4))
        with pytest.raises(IndexError):
            ct.zeros(3)[3]
        with pytest.raises(IndexError):
            ct.zeros(2, 3).sum(2)


def test_each_op_is_computed_at_once_in_eager_mode():
    x = ct.tensor([1.0, 2.0])
    for _ in range(2):
        with ct.eager():
            y = ct.nn.functional.softmax(x, 0)
            assert y._node.buffer is not None
        assert ct.nn.functional.softmax(x, 0)._node.buffer is None
