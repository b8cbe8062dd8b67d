"""Compiled functions: signatures, numbers, state, aliases, gradients from outside, errors."""

from __future__ import annotations

import copy
import dataclasses
import math
import threading
import warnings
from collections import namedtuple
from typing import Any

import numpy as np
import pytest

import cermet as ct
from cermet import nn
from cermet.capture import CaptureError
from cermet.nn import functional as F


def bits(t: Any) -> bytes:
    return t.detach().numpy().tobytes()


def x_of(*shape: int, seed: int = 0) -> Any:
    return ct.from_numpy(np.random.default_rng(seed).standard_normal(shape, np.float32))


Pair = namedtuple("Pair", "a b")


@dataclasses.dataclass
class Batch:
    x: Any
    scale: float
    name: str = "n"


# ---------------------------------------------------------------------------------------------------------- signatures


def test_structures_of_arguments_and_results() -> None:
    @ct.compile
    def f(batch: Batch, pair: Pair, more: dict[str, Any], *rest: Any, flag: bool = True, n: int = 2) -> Any:
        total = batch.x * batch.scale + pair.a - pair.b[0]
        for r in rest:
            total = total + r
        out = {"total": total if flag else -total, "many": [more["k"] * n, None, "text", 3]}
        return out, Pair(total.sum(), batch.name)

    a, b = x_of(3), x_of(3, seed=1)
    for k in range(3):
        for scale, flag, n in ((2.0, True, 2), (0.5, False, 3)):
            got, pair = f(Batch(a, scale), Pair(a, [b, 1]), {"k": b}, a, b, flag=flag, n=n)
            want = a * scale + a - b + a + b
            assert bits(got["total"]) == bits(want if flag else -want)
            assert bits(got["many"][0]) == bits(b * n) and got["many"][1:] == [None, "text", 3]
            assert type(pair) is Pair and pair.b == "n" and bits(pair.a) == bits(want.sum())
        assert f.cache_info().captures == 2 if k else True


def test_floats_are_read_anew_and_ints_are_not() -> None:
    calls = []

    @ct.compile
    def f(x: Any, scale: float, n: int) -> Any:
        calls.append(1)
        return x * scale + scale**2 / 3 + n

    # the list is changed by the function itself, which a replay could not do
    with pytest.warns(RuntimeWarning, match="calls"):
        for k in range(5):
            f(ct.ones(2), 0.1 * k, 1)

    @ct.compile
    def g(x: Any, scale: float, n: int) -> Any:
        return x * scale + scale**2 / 3 + n

    x = x_of(4)
    for k in range(6):
        scale = 0.3 * k - 0.5
        assert bits(g(x, scale, 1)) == bits(x * scale + scale**2 / 3 + 1)
    assert g.cache_info().captures == 1
    assert bits(g(x, 1.0, 2)) == bits(x * 1.0 + 1.0 / 3 + 2)
    assert g.cache_info().captures == 2


def test_floats_that_decide_or_are_looked_at_are_pinned() -> None:
    @ct.compile
    def branch(x: Any, t: float) -> Any:
        return x * t if t > 0.5 else x - t

    @ct.compile
    def cosine(x: Any, t: float) -> Any:
        return x * math.cos(t)

    @ct.compile
    def named(x: Any, t: float) -> Any:
        return x + len(f"{t:.3f}") + {0.1: 1, 0.2: 2}.get(t, 3) + int(t * 10)

    x = x_of(3)
    for _ in range(2):
        for t in (0.1, 0.2, 0.7, 0.9, -123.0):
            assert bits(branch(x, t)) == bits(x * t if t > 0.5 else x - t)
            assert bits(cosine(x, t)) == bits(x * math.cos(t))
            assert bits(named(x, t)) == bits(x + len(f"{t:.3f}") + {0.1: 1, 0.2: 2}.get(t, 3) + int(t * 10))
    assert branch.cache_info().captures <= 4  # the outcome is what counts, not the value
    assert cosine.cache_info().captures == 5


def test_numbers_can_be_results() -> None:
    f = ct.compile(lambda x, t: (x * t, t * 2 + 1))
    for t in (1.0, 2.5, -3.0):
        a, b = f(ct.ones(1), t)
        assert a.item() == t and b == t * 2 + 1 and type(b) is float


def test_numpy_arrays_are_refused() -> None:
    with pytest.raises(CaptureError, match="from_numpy"):
        ct.compile(lambda x: x)(np.zeros(3))


def test_results_are_fresh() -> None:
    f = ct.compile(lambda x: (x * 2, x))
    a, b = ct.ones(3), ct.zeros(3)
    one, same = f(a)
    two, _ = f(b)
    assert same is a
    assert one.tolist() == [2, 2, 2] and two.tolist() == [0, 0, 0]
    assert len({bits(f(ct.ones(3) * k)[0]) for k in range(5)}) == 5


def test_globals_and_attributes_are_watched() -> None:
    class Holder:
        def __init__(self) -> None:
            self.scale, self.unrelated, self.parts = 2.0, 0, [1.0, 2.0]
            self.weight = ct.ones(3)

        def call(self, x: Any) -> Any:
            return x * self.scale * self.weight + self.parts[1]

    holder = Holder()
    f = ct.compile(holder.call)
    x = x_of(3)
    for change in (
        lambda: None,
        lambda: setattr(holder, "scale", 3.0),
        lambda: holder.parts.__setitem__(1, 5.0),
        lambda: setattr(holder, "weight", ct.ones(3) * 4),
        lambda: holder.weight.mul_(2),
        lambda: setattr(holder, "unrelated", 7),
    ):
        change()
        for _ in range(2):
            assert bits(f(x)) == bits(holder.call(x))
    assert f.cache_info().captures == 4


def test_default_dtype_and_grad_mode_are_part_of_it() -> None:
    f = ct.compile(lambda: ct.ones(2) * 0.5)
    assert f().dtype is ct.float32
    ct.set_default_dtype(ct.float64)
    try:
        assert f().dtype is ct.float64
    finally:
        ct.set_default_dtype(ct.float32)
    w = ct.ones(2, requires_grad=True)
    g = ct.compile(lambda: w * 2)
    assert g().requires_grad
    with ct.no_grad():
        assert not g().requires_grad
    assert g().requires_grad


def test_cache_is_bounded_and_cleared() -> None:
    f = ct.compile(lambda x: x + 1, cache_size=3)
    for n in range(1, 7):
        f(ct.ones(n))
    assert f.cache_info().held == 3
    f.clear()
    assert f.cache_info().held == 0
    assert f(ct.ones(2)).tolist() == [2, 2]


def test_many_captures_are_warned_of() -> None:
    f = ct.compile(lambda x: x + 1)
    with pytest.warns(RuntimeWarning, match="captured 16 times.*Pad to a few sizes"):
        for n in range(1, 20):
            f(ct.ones(n))


def test_bad_arguments() -> None:
    with pytest.raises(TypeError, match="function or a module"):
        ct.compile(3)
    with pytest.raises(ValueError, match="cache_size"):
        ct.compile(lambda: 0, cache_size=0)


# ------------------------------------------------------------------------------------------------------------ modules


def test_a_module_stays_a_module() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5))
    compiled = ct.compile(model)
    x = x_of(2, 4)
    assert [id(p) for p in compiled.parameters()] == [id(p) for p in model.parameters()]
    compiled.eval()
    assert not model.training
    assert bits(compiled(x)) == bits(model(x))
    model[0].weight = nn.Parameter(ct.zeros(3, 4))
    assert bits(compiled(x)) == bits(model(x))
    model.load_state_dict({k: ct.ones(*v.shape) for k, v in model.state_dict().items()})
    assert bits(compiled(x)) == bits(model(x))
    model[1] = nn.ReLU()
    assert bits(compiled(-x)) == bits(model(-x))


def test_methods_have_captures_of_their_own() -> None:
    class Net:
        def __init__(self, k: float) -> None:
            self.w = ct.ones(2) * k

        @ct.compile
        def forward(self, x: Any) -> Any:
            return self.w * x

    a, b = Net(2.0), Net(3.0)
    for _ in range(3):
        assert a.forward(ct.ones(2)).tolist() == [2, 2]
        assert b.forward(ct.ones(2)).tolist() == [3, 3]


def test_copies_are_captured_anew() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(ct.ones(2))

        @ct.compile
        def forward(self, x: Any) -> Any:
            return self.w * x

    net = Net()
    assert net(ct.ones(2)).tolist() == [1, 1]
    other = copy.deepcopy(net)
    with ct.no_grad():
        other.w.mul_(3)
    assert other(ct.ones(2)).tolist() == [3, 3] and net(ct.ones(2)).tolist() == [1, 1]
    compiled = ct.compile(nn.Linear(2, 2))
    compiled.weight = nn.Parameter(ct.zeros(2, 2))
    compiled.bias = None
    assert compiled(ct.ones(1, 2)).tolist() == [[0, 0]]
    twin = copy.deepcopy(compiled)
    assert [id(p) for p in twin.parameters()] != [id(p) for p in compiled.parameters()]


def test_autocast_is_part_of_it() -> None:
    a, b = x_of(4, 4), x_of(4, 4, seed=1)
    f = ct.compile(lambda: a @ b)
    for _ in range(2):
        assert f().dtype is ct.float32
        with ct.autocast("cpu", dtype=ct.bfloat16):
            assert f().dtype is ct.bfloat16
    assert f.cache_info().captures == 2


def test_nested_and_recursive() -> None:
    inner = ct.compile(lambda x: x * 2)

    @ct.compile
    def power(x: Any, n: int) -> Any:
        return inner(x) if n == 0 else power(x, n - 1) + inner(x)

    for _ in range(3):
        assert power(ct.ones(2), 3).tolist() == [8, 8]


def test_eager_runs_in_python() -> None:
    seen = []
    f = ct.compile(lambda x: seen.append(1) or x + 1)
    with ct.eager():
        for _ in range(3):
            f(ct.ones(1))
    assert len(seen) == 3 and f.cache_info().captures == 0


# ------------------------------------------------------------------------------------------------- writes and aliases


def test_writes_reach_arguments_captured_tensors_and_their_views() -> None:
    table = ct.zeros(4, 3)
    row, flat = table[1], table.view(-1)
    mirror, mirror_row = ct.zeros(4, 3), None
    mirror_row = mirror[1]

    def body(table: Any, row: Any, x: Any) -> Any:
        row.add_(x)
        table[2] = row * 2
        x.mul_(2)
        return table.sum()

    f = ct.compile(lambda x: body(table, row, x))
    for k in range(5):
        x, z = x_of(3, seed=k), x_of(3, seed=k)
        np.testing.assert_allclose(f(x).item(), body(mirror, mirror_row, z).item(), rtol=1e-6)
        assert bits(x) == bits(z)
        assert bits(table) == bits(mirror) and bits(row) == bits(mirror_row) and bits(flat) == bits(mirror)
        version = table._version if hasattr(table, "_version") else None
        row[0] = 10.0 * k  # an ordinary write in between
        mirror_row[0] = 10.0 * k
        assert bits(table) == bits(mirror)
        assert version is None or table._version > version


def test_what_was_read_before_is_not_overwritten() -> None:
    w = ct.ones(1000)
    f = ct.compile(lambda: w.mul_(2).sum())
    pending = []
    arrays = []
    for _ in range(4):
        pending.append((w + 0, w.tolist()[0]))
        arrays.append((w._array(), w.tolist()[0]))
        f()
    for t, value in pending:
        assert t.tolist()[0] == value
    for a, value in arrays:
        assert a[0] == value
    assert w.tolist()[0] == 16


def test_the_same_tensor_twice_is_another_signature() -> None:
    def body(a: Any, b: Any) -> Any:
        a.add_(1)
        return b * 1

    f = ct.compile(body)
    for _ in range(2):
        p, q = ct.zeros(2), ct.zeros(2)
        assert f(p, q).tolist() == [0, 0] and p.tolist() == [1, 1]
        p = ct.zeros(2)
        assert f(p, p).tolist() == [1, 1] and p.tolist() == [1, 1]


def test_an_argument_that_is_also_captured() -> None:
    w = ct.ones(2)

    def body(x: Any) -> Any:
        w.add_(1)
        return x * 2

    f = ct.compile(body)
    for _ in range(3):
        f(ct.ones(2))
    before = w.tolist()[0]
    assert f(w).tolist() == [2 * (before + 1)] * 2
    assert f(ct.ones(2)).tolist() == [2, 2]


def test_state_swaps_and_copies() -> None:
    a, b = ct.zeros(3), ct.ones(3)

    @ct.compile
    def swap() -> None:
        t = a.clone()
        a.copy_(b)
        b.copy_(t)

    for k in range(5):
        swap()
        assert a.tolist() == [(k + 1) % 2] * 3 and b.tolist() == [k % 2] * 3


def test_a_capture_holds_no_old_state() -> None:
    w = ct.zeros(1 << 16)
    v = ct.ones(1 << 16)

    @ct.compile
    def step(x: Any, t: float) -> Any:
        w.add_(x * t)
        v.mul_(t)
        return w[0]

    x = ct.ones(1 << 16)
    for k in range(4):
        step(x, 1.0 + k)
    addresses = w.data_ptr(), v.data_ptr()
    before = ct.stats()["memory_live"]
    for k in range(8):
        step(x, 0.5 * k)
    assert ct.stats()["memory_live"] <= before
    assert (w.data_ptr(), v.data_ptr()) == addresses  # written in place
    entry = next(iter(step._slots.values())).entries[0]
    assert all(cell.value is None for cell in entry.cells)


# ------------------------------------------------------------------------------------------------ gradients outside


def test_backward_outside() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Dropout(0.3), nn.Linear(8, 3))
    twin = copy.deepcopy(model)
    compiled = ct.compile(model)
    optimizers = [ct.optim.AdamW(m.parameters(), lr=0.01) for m in (model, twin)]
    for k in range(5):
        x, z = (x_of(5, 4, seed=k).requires_grad_() for _ in range(2))
        y = ct.tensor([0, 1, 2, 0, 1])
        for m, o, v in ((compiled, optimizers[0], x), (twin, optimizers[1], z)):
            ct.manual_seed(k)
            o.zero_grad()
            F.cross_entropy(m(v), y).backward()
            o.step()
        assert bits(x.grad) == bits(z.grad)
        for p, q in zip(model.parameters(), twin.parameters(), strict=True):
            assert bits(p.grad) == bits(q.grad) and bits(p) == bits(q)
    assert compiled.cache_info().captures <= 2  # detach() in between made the parameters share their memory


def test_backward_of_some_results_and_twice() -> None:
    w, v = ct.ones(3, requires_grad=True), ct.ones(3, requires_grad=True)

    @ct.compile
    def f(x: Any) -> Any:
        return (w * x).exp().sum(), (v * x).sin().sum(), x * 2

    for k in range(3):
        x = x_of(3, seed=k)
        w.grad = v.grad = None
        a, b, c = f(x)
        assert not c.requires_grad
        a.backward(retain_graph=True)
        assert v.grad is None
        np.testing.assert_array_equal(w.grad.numpy(), ((w * x).exp() * x).detach().numpy())
        (a * 3.0).backward()
        np.testing.assert_allclose(w.grad.numpy(), ((w * x).exp() * x * 4).detach().numpy(), rtol=1e-6)
        with pytest.raises(RuntimeError, match="second time"):
            b.backward()
        a, b, _ = f(x)
        w.grad = None
        b.backward()
        assert w.grad is None
        np.testing.assert_allclose(v.grad.numpy(), (ct.cos(v * x) * x).detach().numpy(), rtol=1e-6)


def test_gradients_of_gradients() -> None:
    f = ct.compile(lambda x, t: (x.sin() * x * t).sum())
    for t in (1.0, 2.0):
        x = x_of(5).requires_grad_()
        (g,) = ct.autograd.grad(f(x, t), x, create_graph=True)
        (h,) = ct.autograd.grad((g * g).sum(), x)
        z = x.detach().clone().requires_grad_()
        (g2,) = ct.autograd.grad((z.sin() * z * t).sum(), z, create_graph=True)
        (h2,) = ct.autograd.grad((g2 * g2).sum(), z)
        np.testing.assert_allclose(h.numpy(), h2.numpy(), rtol=1e-5)


def test_gradients_of_results_made_outside() -> None:
    f = ct.compile(lambda x: (x * x).sum())
    for k in range(3):
        x = x_of(4, seed=k).requires_grad_()
        f(x.exp()).backward()
        np.testing.assert_allclose(x.grad.numpy(), (2 * ct.exp(x) ** 2).detach().numpy(), rtol=1e-5)


def test_functions_with_gradients_of_their_own() -> None:
    class Twice(ct.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any) -> Any:
            ctx.save_for_backward(x)
            return x * 2

        @staticmethod
        def backward(ctx: Any, g: Any) -> Any:
            (x,) = ctx.saved_tensors
            return g * x * 10

    f = ct.compile(lambda x: Twice.apply(x).sum())
    for k in range(3):
        x = x_of(4, seed=k).requires_grad_()
        f(x).backward()
        np.testing.assert_allclose(x.grad.numpy(), (x * 10).detach().numpy(), rtol=1e-6)


def test_a_spent_result_says_so() -> None:
    w = ct.ones(3, requires_grad=True)

    @ct.compile
    def step(x: Any) -> Any:
        w.grad = None
        loss = (w * x).exp().sum()
        loss.backward()
        return loss

    for _ in range(3):
        loss = step(ct.ones(3))
        assert loss.requires_grad
        with pytest.raises(RuntimeError, match="second time"):
            loss.backward()


# ------------------------------------------------------------------------------------------------------------- errors


def line_of(text: str) -> int:
    with open(__file__, encoding="utf-8") as f:
        return next(k for k, line in enumerate(f, 1) if text in line and "line_of" not in line)


def test_looking_at_a_value_names_the_line() -> None:
    def branches(x: Any) -> Any:
        if x.sum() > 0:  # LOOKS HERE
            return x
        return -x

    def prints(x: Any) -> Any:
        return float((x * 2).sum())  # READS HERE

    for fn, mark in ((branches, "# LOOKS HERE"), (prints, "# READS HERE")):
        with pytest.raises(CaptureError, match=rf"test_functions.py:{line_of(mark)}\b.*cermet.where"):
            ct.compile(fn)(ct.ones(3))
    for look in (repr, bool, lambda t: t.numpy(), lambda t: t.tolist(), lambda t: f"{t}"):
        with pytest.raises(CaptureError, match="looked at"):
            ct.compile(lambda x, look=look: look(x))(ct.ones(1))  # the argument itself


def test_a_failure_leaves_everything_as_it_was() -> None:
    model = nn.Linear(3, 2)
    optimizer = ct.optim.SGD(model.parameters(), lr=0.1)
    x = ct.ones(1, 3)
    fail = [True]

    @ct.compile
    def step(x: Any) -> Any:
        x.add_(1)
        loss = model(x + ct.rand(1, 3)).sum()
        loss.backward()
        optimizer.step()
        if fail[0]:
            raise KeyError("half-way")
        return loss

    before = [bits(p) for p in model.parameters()], ct.get_rng_state().tolist()
    with pytest.raises(KeyError, match="half-way"):
        step(x)
    assert ([bits(p) for p in model.parameters()], ct.get_rng_state().tolist()) == before
    assert x.tolist() == [[1, 1, 1]] and all(p.grad is None for p in model.parameters())
    fail[0] = False
    step(x)
    assert x.tolist() == [[2, 2, 2]]


def test_bad_indices_raise_and_change_nothing() -> None:
    table = nn.Embedding(4, 2)
    optimizer = ct.optim.SGD(table.parameters(), lr=0.1)

    @ct.compile
    def step(i: Any) -> Any:
        optimizer.zero_grad()
        loss = table(i).sum()
        loss.backward()
        optimizer.step()
        return loss

    for _ in range(3):
        step(ct.tensor([0, 1]))
    before = bits(table.weight)
    with pytest.raises(IndexError):
        step(ct.tensor([0, 9])).item()
    assert bits(table.weight) == before
    step(ct.tensor([2, 3]))


def test_seeding_inside_is_refused() -> None:
    with pytest.raises(CaptureError, match="random generator"):
        ct.compile(lambda: ct.manual_seed(0))()


def test_values_kept_outside_are_noticed() -> None:
    losses: list[Any] = []

    class Keeper:
        last: Any = None

    keeper = Keeper()

    def appends(x: Any) -> Any:
        loss = (x * 2).sum()
        losses.append(loss)
        return loss

    def keeps(x: Any) -> Any:
        keeper.last = (x * 2).sum()
        return keeper.last

    for fn in (appends, keeps):
        f = ct.compile(fn)
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            for k in range(6):
                assert f(ct.ones(2) * k).item() == 4 * k
        assert len(seen) == 1 and "cannot be replayed" in str(seen[0].message)
    assert [t.item() for t in losses] == [4.0 * k for k in range(6)] and keeper.last.item() == 20


def test_python_state_changed_inside_is_noticed() -> None:
    class Counting:
        n = 0

        def __call__(self, x: Any) -> Any:
            self.n += 1
            return x * self.n

    counting = Counting()
    f = ct.compile(counting)
    with pytest.warns(RuntimeWarning, match="n changed from|cannot be replayed"):
        assert [f(ct.ones(1)).item() for _ in range(6)] == [1, 2, 3, 4, 5, 6]


def test_schedulers_inside_are_noticed() -> None:
    w = ct.ones(2, requires_grad=True)
    optimizer = ct.optim.SGD([w], lr=1.0)
    scheduler = ct.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)

    @ct.compile
    def step() -> Any:
        optimizer.zero_grad()
        w.sum().backward()
        optimizer.step()
        scheduler.step()

    with pytest.warns(RuntimeWarning, match="cannot be replayed"):
        for _ in range(5):
            step()
    assert w.tolist() == [1 - (1 + 0.5 + 0.25 + 0.125 + 0.0625)] * 2


def test_verify_finds_what_a_capture_cannot_see() -> None:
    f = ct.compile(lambda x: x * 2 + ct.rand(3), verify=True)
    for k in range(4):
        ct.manual_seed(k)
        a = f(ct.ones(3))
        ct.manual_seed(k)
        assert bits(a) == bits(ct.ones(3) * 2 + ct.rand(3))
    hidden = np.random.default_rng(0)
    g = ct.compile(lambda x: x * hidden.random(), verify=True)
    g(ct.ones(2))
    with pytest.raises(CaptureError, match="differs from the function itself in result 0"):
        g(ct.ones(2))


def test_verify_of_a_whole_step() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.2), nn.Linear(4, 2))
    optimizer = ct.optim.AdamW(model.parameters())

    @ct.compile(verify=True)
    def step(x: Any, y: Any) -> Any:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    for k in range(5):
        step(x_of(6, 3, seed=k), ct.tensor([0, 1, 0, 1, 1, 0]))
    assert step.cache_info().replays >= 3


# ------------------------------------------------------------------------------------------------------------ threads


def test_threads() -> None:
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4)).eval()
    f = ct.compile(model)
    inputs = [x_of(3 + k % 2, 16, seed=k) for k in range(40)]
    with ct.no_grad():
        wanted = [bits(model(x)) for x in inputs]
    got: list[Any] = [None] * len(inputs)
    errors = []

    def work(start: int) -> None:
        try:
            with ct.no_grad():
                for k in range(start, len(inputs), 4):
                    got[k] = bits(f(inputs[k]))
        except BaseException as e:
            errors.append(e)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not errors and got == wanted


def test_threads_that_train_one_state() -> None:
    total = ct.zeros(64)

    @ct.compile
    def add(x: Any) -> Any:
        total.add_(x)
        return x * 2

    add(ct.ones(64))
    errors = []

    def work() -> None:
        try:
            for _ in range(50):
                assert add(ct.ones(64)).tolist()[0] == 2
        except BaseException as e:
            errors.append(e)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not errors and total.tolist() == [201.0] * 64


def test_arguments_of_other_compilers_are_accepted() -> None:
    f = ct.compile(lambda x: x * 2, fullgraph=True, dynamic=False, backend="inductor", mode="max-autotune", options={})
    assert f(ct.ones(2)).tolist() == [2.0, 2.0]

    def g(x: ct.Tensor) -> ct.Tensor:
        return x

    assert ct.compile(g, disable=True) is g
    assert ct.compile(disable=True)(g) is g
