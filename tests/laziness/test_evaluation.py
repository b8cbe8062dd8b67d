"""What an evaluation computes, when, and how often."""

from __future__ import annotations

import copy
import gc
import threading
import time
import warnings

import numpy as np
import pytest

import cermet as ct
from cermet.lazy.record import local


def launches() -> int:
    return ct.stats()["launches"]


def compiled() -> int:
    return ct.stats()["programs_compiled"]


def pending() -> int:
    return len(local.tape.nodes)


@pytest.fixture(autouse=True)
def nothing_pending():
    ct.realize(ct.zeros(1))
    yield


def test_nothing_runs_until_somebody_looks():
    before = launches()
    x = ct.tensor([1.0, 2.0]) * 3 + 1
    assert launches() == before
    assert pending() > 0
    assert x.tolist() == [4.0, 7.0]
    assert launches() == before + 1
    assert pending() == 0


def test_looking_twice_computes_once():
    x = ct.tensor([1.0, 2.0]) * 3
    x.tolist()
    before = launches()
    x.tolist()
    assert launches() == before


def test_loss_before_backward_runs_no_forward_kernel_twice():
    def run(look: bool) -> tuple[int, list[float]]:
        w = ct.tensor(np.linspace(-1, 1, 12).reshape(3, 4).astype("float32"), requires_grad=True)
        x = ct.tensor(np.linspace(0, 1, 8).reshape(2, 4).astype("float32"))
        h = ct.exp(x @ w.T)
        loss = (h * h).sum()
        ct.realize(w)
        del h
        calls = ct.stats()["evaluations"]
        if look:
            float(loss)
        loss.backward()
        grads = w.grad.tolist()
        return ct.stats()["evaluations"] - calls, grads

    quiet, g1 = run(False)
    looked, g2 = run(True)
    np.testing.assert_allclose(g1, g2, rtol=1e-6)
    assert looked <= quiet + 1


def test_forward_values_are_not_recomputed_by_backward():
    seen = []
    x = ct.tensor([0.5, 1.5], requires_grad=True)
    y = ct.exp(x)
    z = (y * y).sum()
    float(z)
    saved = z.grad_fn.edges[0].saved
    assert all(n.buffer is not None for n in saved)
    z.backward()
    seen.append(x.grad.tolist())
    np.testing.assert_allclose(seen[0], 2 * np.exp(2 * np.array([0.5, 1.5])), rtol=1e-6)


def test_changing_scalars_compile_nothing():
    x = ct.tensor([1.0, 2.0, 3.0])

    def f(a: float, b: float) -> list[float]:
        return (x * a + b).tolist()

    f(1.5, 2.5)
    before = compiled()
    for k in range(10):
        np.testing.assert_allclose(f(k * 0.1, -k), np.array([1, 2, 3]) * k * 0.1 - k, rtol=1e-5, atol=1e-6)
    assert compiled() == before


def test_dropped_values_are_not_computed():
    a = ct.tensor([1.0, 2.0])
    a.tolist()
    dropped = ct.exp(a)
    del dropped
    kept = a + 1
    kept.tolist()
    key = compiled()
    dropped = ct.exp(a)
    del dropped
    kept = a + 1
    kept.tolist()
    assert compiled() == key


def test_a_held_intermediate_is_kept():
    a = ct.tensor([1.0, 2.0])
    b = a * 2
    c = b + 1
    c.tolist()
    before = launches()
    assert b.tolist() == [2.0, 4.0]
    assert launches() == before


def test_long_chain_is_linear_and_does_not_recurse():
    def chain(n: int) -> float:
        x = ct.tensor([1.0, 2.0], requires_grad=True)
        start = time.perf_counter()
        y = x
        for _ in range(n // 2):
            y = y * 1.0001
            y = y + 0.0001
        z = y.sum()
        assert np.isfinite(float(z))
        z.backward()
        assert x.grad is not None
        x.grad.tolist()
        d = copy.deepcopy(x)
        del y, z, d
        gc.collect()
        return time.perf_counter() - start

    chain(2000)
    short = chain(20_000)
    long = chain(100_000)
    assert long < 12 * short + 2.0


def test_deep_pending_graph_is_deleted_without_recursion():
    x = ct.tensor([1.0])
    with ct.no_grad():
        y = x
        for _ in range(9_000):
            y = y + 1
    del y
    local.tape.reset()
    gc.collect()


def test_an_index_error_names_op_and_line_and_spares_the_rest():
    table = ct.tensor(np.arange(12.0).reshape(4, 3))
    good = table * 2
    bad = table[ct.tensor([0, 9])]
    with pytest.raises(IndexError, match=r"test_evaluation.py"):
        bad.tolist()
    assert good.tolist() == (np.arange(12.0).reshape(4, 3) * 2).tolist()
    with pytest.raises(IndexError):
        bad.tolist()


def test_values_of_another_thread_can_be_used():
    x = ct.tensor([1.0, 2.0]) * 2
    out: list[list[float]] = []

    def work() -> None:
        out.append((x + 1).tolist())

    t = threading.Thread(target=work)
    t.start()
    t.join()
    assert out == [[3.0, 5.0]]
    assert x.tolist() == [2.0, 4.0]


def test_many_threads_evaluate_at_once():
    w = ct.tensor(np.eye(8, dtype="float32"))
    w.tolist()
    errors: list[Exception] = []

    def work(k: int) -> None:
        try:
            for j in range(30):
                x = ct.full((4, 8), float(k + j))
                np.testing.assert_allclose(((x @ w) + k).numpy(), k + j + k, rtol=1e-6)
        except Exception as e:
            errors.append(e)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(6)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not errors


def test_eager_mode_evaluates_each_op():
    with ct.eager():
        before = launches()
        x = ct.tensor([1.0, 2.0]) * 2
        assert pending() == 0
        assert launches() == before + 1
    assert x.tolist() == [2.0, 4.0]


def test_the_same_program_again_is_found():
    def step() -> list[float]:
        a = ct.tensor([1.0, 2.0, 3.0], requires_grad=True)
        ((a * a).sum() * 0.5).backward()
        return a.grad.tolist()

    step()
    before = compiled()
    for _ in range(5):
        assert step() == [1.0, 2.0, 3.0]
    assert compiled() == before


def test_memory_of_a_dying_leaf_is_taken_over():
    p = ct.tensor(np.ones(1000, dtype="float32"))
    g = ct.tensor(np.full(1000, 0.5, dtype="float32"))
    ct.realize(p, g)
    addresses = set()
    for _ in range(6):
        with ct.no_grad():
            p.sub_(g * 0.1)
        ct.realize(p)
        addresses.add(p._node.buffer.ptr)
    assert len(addresses) <= 2
    np.testing.assert_allclose(p.numpy(), 1 - 6 * 0.05, rtol=1e-5)


def test_a_leaf_somebody_else_holds_is_not_taken_over():
    p = ct.tensor(np.ones(100, dtype="float32"))
    ct.realize(p)
    old = p.detach().clone()
    view = p.numpy()
    other = ct.tensor(p)
    with ct.no_grad():
        p.sub_(1.0)
    ct.realize(p)
    assert (p.numpy() == 0).all()
    assert (other.numpy() == 1).all() and (old.numpy() == 1).all() and (view == 1).all()


def test_bad_data_is_noticed_before_a_leaf_is_overwritten():
    table = ct.tensor(np.arange(6.0, dtype="float32").reshape(3, 2))
    p = ct.tensor(np.ones(2, dtype="float32"))
    ct.realize(table, p)

    def update(index: int) -> None:
        picked = table[ct.tensor([index])]
        with ct.no_grad():
            p.sub_(picked[0] * 0.0 + 1.0)
        del picked
        ct.realize(p)

    update(1)
    assert p.tolist() == [0.0, 0.0]
    before = p._node
    other = p.detach().clone()
    del other
    with pytest.raises(IndexError):
        update(7)
    assert before.buffer is not None
    np.testing.assert_array_equal(np.asarray(before.buffer.view("float32", (2,))), [0.0, 0.0])


def test_a_line_that_keeps_compiling_is_named():
    from cermet.lazy import run

    with pytest.warns(RuntimeWarning, match=r"test_evaluation.py:\d+ \(the last one: other operations"):
        for n in range(1, run.OFTEN + 3):
            x = ct.ones(3)
            for _ in range(n):
                x = x + 1
            x.tolist()


def test_a_line_with_ever_other_sizes_is_planned_a_few_times_only() -> None:
    from cermet.lazy import run

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for n in range(1, run.OFTEN + 3):
            (ct.ones(n) + 1).tolist()
