"""Programs from templates: the same launches and the same bits as programs planned for their sizes."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import cermet as ct
from cermet.graph.sizes import Coincidence, Refused, Size, Trace, at_least, presently, recipe
from cermet.lazy import run, template
from cermet.nn import functional as F
from cermet.runtime.program import Pointer, ScalarArg

SIZES = [(31, 73), (37, 79), (41, 83), (43, 89)]


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    run.clear_programs()
    yield
    run.clear_programs()


def launches(compiled: Any) -> list[Any]:
    """What a program does, whatever its bases are numbered."""
    out = []
    for launch in compiled.program.launches:
        args: list[Any] = []
        for a in launch.args:
            if isinstance(a, Pointer):
                k = a.base - 1
                leaf = 0 <= k < len(compiled.leaves)
                args.append(
                    (
                        "leaf" if leaf else "base",
                        compiled.leaves[k] if leaf else a.base - len(compiled.leaves) * (k >= 0),
                        a.offset,
                    )
                )
            elif isinstance(a, ScalarArg):
                args.append(("scalar", compiled.scalars[a.index]))
            else:
                args.append(a)
        out.append((launch.name, launch.address, launch.blocks, launch.grain, args))
    return out


def described(compiled: Any) -> Any:
    return launches(compiled), compiled.outputs, compiled.results, compiled.donations, compiled.program.arena_bytes


def planned(function: Callable[..., list[Any]], sizes: Any, monkeypatch: Any) -> tuple[list[Any], list[Any]]:
    """Values, and programs, with no templates in use."""
    run.clear_programs()
    with monkeypatch.context() as m:
        m.setattr(template, "MOST_ATTEMPTS", 0)
        values = function(*sizes)
    return values, [described(c) for c in run._programs.values()]


def check(function: Callable[..., list[Any]], monkeypatch: Any, sizes: Any = SIZES, exact: bool = True) -> int:
    """Run at all sizes with templates, then the last without; gives how many programs came from templates."""
    run.clear_programs()
    before = ct.stats()["programs_from_templates"]
    for s in sizes:
        known = set(run._programs)
        values = function(*s)
    found = [described(c) for k, c in run._programs.items() if k not in known]
    used = ct.stats()["programs_from_templates"] - before
    wanted, programs = planned(function, sizes[-1], monkeypatch)
    for a, b in zip(values, wanted, strict=True):
        np.testing.assert_array_equal(a, b)
    if exact and used:
        assert found == programs
    return int(used)


def numbers(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype("float32")


def leaf(*shape: int, seed: int = 0) -> Any:
    return ct.tensor(numbers(*shape, seed=seed), requires_grad=True)


def arrays(*tensors: Any) -> list[Any]:
    ct.realize(*tensors)
    return [t.detach().numpy() for t in tensors]


def elementwise(n: int, m: int) -> list[Any]:
    return arrays(ct.tanh(leaf(n, m) * 2 + leaf(m)) / 3)


def rows(n: int, m: int) -> list[Any]:
    x = leaf(n, m)
    y = F.layer_norm(x, (m,)).softmax(-1)
    y.square().sum().backward()
    return arrays(y, x.grad)


def means(n: int, m: int) -> list[Any]:
    x = leaf(n, m)
    return arrays(
        x.mean(), x.mean(0), x.var(1), x.std(0, correction=0), F.mse_loss(x, x * 0.5), F.l1_loss(x, x * 2, reduction="sum")
    )


def products(n: int, m: int) -> list[Any]:
    x, w, b = leaf(2, n, m), leaf(9, m, seed=1), leaf(9, seed=2)
    y = F.relu(F.linear(x, w, b))
    z = y @ y.transpose(1, 2)
    z.sum().backward()
    return arrays(z, x.grad, w.grad, b.grad)


def pieces(n: int, m: int) -> list[Any]:
    x = leaf(n, m)
    y = ct.cat([x[1:], x[:, ::1][:1] * 2, x.flip(0)], 0)
    return arrays(y, x[:, 3:].t() + 1, y.reshape(-1)[5:] * 2, ct.arange(n) * 2, F.pad(x, (1, 2)), x.diagonal())


def gathered(n: int, m: int) -> list[Any]:
    x, w = leaf(n, 4), leaf(m, 8)
    index = ct.tensor(np.arange(n) % 7)
    y = F.embedding(index, w)
    y.sum().backward()
    return arrays(y, w.grad, x[index], x.cumsum(0), x.sort(0).values, x.argmax(0))


def attended(n: int, m: int) -> list[Any]:
    q, k, v = (leaf(2, 3, n, 8, seed=s) for s in range(3))
    y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    y.sum().backward()
    return arrays(y, q.grad, k.grad, v.grad)


def convolved(n: int, m: int) -> list[Any]:
    x, w = leaf(n, 3, 10, 9), leaf(8, 3, 3, 3, seed=1)
    y = F.max_pool2d(F.relu(F.batch_norm(F.conv2d(x, w, padding=1), None, None, training=True)), 2)
    y.square().mean().backward()
    return arrays(y, x.grad, w.grad)


def written(n: int, m: int) -> list[Any]:
    x = ct.tensor(numbers(n, m))
    x[1:, :4] += 1
    x[ct.arange(3)] = 0.5
    y = x.clone()
    y.mul_(0.5)
    return arrays(x, y)


def recurrent(n: int, m: int) -> list[Any]:
    ct.manual_seed(0)
    net = ct.nn.LSTM(6, 8, batch_first=True)
    y, _ = net(leaf(n, 5, 6))
    y.sum().backward()
    return arrays(y, *[p.grad for p in net.parameters()])


@pytest.mark.parametrize(
    "function", [elementwise, rows, means, products, pieces, gathered, attended, convolved, written], ids=lambda f: f.__name__
)
def test_same_launches_and_bits_as_planned(function: Callable[..., list[Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    assert check(function, monkeypatch) >= 1


def test_recurrence(monkeypatch: pytest.MonkeyPatch) -> None:
    check(recurrent, monkeypatch, exact=False)


@pytest.mark.parametrize("sizes", [[(5, 6), (6, 7), (0, 7)], [(5, 6), (6, 7), (1, 1)], [(5, 6), (6, 7), (7, 6), (64, 64)]])
@pytest.mark.parametrize("function", [elementwise, rows, products], ids=lambda f: f.__name__)
def test_sizes_of_their_own(function: Callable[..., list[Any]], sizes: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    check(function, monkeypatch, sizes, exact=False)


class Program:
    """A random program over two sizes; what it does depends on the seed, not on the sizes."""

    def __init__(self, seed: int, length: int) -> None:
        self.seed = seed
        self.length = length

    def __call__(self, n: int, m: int) -> list[Any]:
        r = random.Random(self.seed)
        shapes = [(n, m), (m,), (4, n, 3), (n, 1), (n, n), (m, 6)]
        leaves = [leaf(*s, seed=k) for k, s in enumerate(r.sample(shapes, 4))]
        pool = list(leaves)
        for _ in range(self.length):
            t, u, k, d = r.choice(pool), r.choice(pool), r.randrange(14), r.random()
            pool.append(self.step(t, u, k, int(d * t.ndim) if t.ndim else 0))
        total = sum((ct.tanh(t) * (k + 1)).sum() for k, t in enumerate(pool))
        total.backward()
        return arrays(total, *pool, *[x.grad for x in leaves if x.grad is not None])

    def step(self, t: Any, u: Any, k: int, d: int) -> Any:
        if t.ndim == 0 or k < 2:
            return ct.tanh(t) * 1.5 + 0.25
        if k == 2:
            return t.sum(d)
        if k == 3:
            return t.mean(d, keepdim=True)
        if k == 4:
            return t.softmax(d)
        if k == 5:
            return t.transpose(0, d) * 2
        if k == 6:
            return t.reshape(-1)[1:]
        if k == 7:
            return ct.cat([t, t * 0.5], d) if t.numel() < 20_000 else t.sum(0)
        if k == 8 and t.ndim == 2:
            return t.t() @ t * 0.1
        if k == 9:
            return t.flip(d)
        if k == 10:
            return t.cumsum(d) * 0.1
        if k == 11:
            return ct.where(t > 0.1, t, -t)
        if k == 12:
            return t.amax(d)
        try:
            np.broadcast_shapes(tuple(t.shape), tuple(u.shape))
        except ValueError:
            return t - 0.5
        out = t * u
        return out if out.numel() < 100_000 else out.sum(0)


@pytest.mark.filterwarnings("ignore:.*programs have been compiled:RuntimeWarning")
@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 1 << 30), length=st.integers(1, 10))
def test_random_programs(seed: int, length: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        check(Program(seed, length), patch, SIZES[:3])


# ------------------------------------------------------------------------------------------------------------ counting


def test_new_sizes_compile_and_plan_nothing() -> None:
    def step(n: int) -> None:
        x, w = leaf(n, 33), leaf(7, 33, seed=1)
        F.gelu(F.linear(x, w)).mean().backward()
        ct.realize(w.grad)

    for n in (70, 71):
        step(n)
    before = ct.stats()
    for n in range(72, 90):
        step(n)
    after = ct.stats()
    assert after["kernels_compiled"] == before["kernels_compiled"]
    assert after["programs_from_templates"] - before["programs_from_templates"] == 18
    assert after["templates_refused"] == before["templates_refused"]


def test_what_cannot_be_planned_with_letters_is_planned_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    from cermet.compiler import build

    real = build.find_images
    monkeypatch.setattr(build, "find_images", lambda order, roots: [range(n.meta.numel) for n in order] and real(order, roots))
    before = ct.stats()
    for n in range(20, 27):
        np.testing.assert_array_equal((ct.ones(n) + 1).numpy(), np.full(n, 2, "float32"))
    after = ct.stats()
    assert after["templates"] == before["templates"]
    assert 1 <= after["templates_refused"] - before["templates_refused"] <= template.MOST_REFUSALS


def test_templates_are_bounded_and_let_go_of_letters() -> None:
    from cermet.graph import node as graph
    from cermet.ops.define import REGISTRY

    for n in range(10, 40):
        rows(n, n + 50)
    for known in template._structures.values():
        assert len(known.templates) <= template.MOST_TEMPLATES
        assert known.attempts <= template.MOST_ATTEMPTS
    assert not any(type(s) is Size for key in graph._METAS for s in key[0])
    assert not any(template._has_letters(call) for op in REGISTRY.values() for call in op.calls.values())


# ------------------------------------------------------------------------------------------------------------- letters


@given(
    st.lists(st.integers(2, 300), min_size=2, max_size=2),
    st.lists(
        st.tuples(
            st.sampled_from(["+", "-", "*", "//", "%", "r-", "r//", "r%", "neg", "max"]), st.integers(-9, 40), st.booleans()
        ),
        max_size=7,
    ),
    st.lists(st.integers(2, 300), min_size=2, max_size=2),
)
def test_formulas_compute_what_ints_do(first: list[int], steps: Any, second: list[int]) -> None:
    def compute(a: Any, b: Any) -> tuple[Any, list[bool]]:
        x, turns = a, []
        for op, k, by_letter in steps:
            y = b if by_letter else k
            if op in ("//", "%") and isinstance(y, int) and y == 0:
                continue
            if op in ("r//", "r%") and bool(x == 0):
                turns.append(True)
                continue
            x = {
                "+": lambda x=x, y=y: x + y, "-": lambda x=x, y=y: x - y, "*": lambda x=x, y=y: x * y, "//": lambda x=x, y=y: x // y,
                "%": lambda x=x, y=y: x % y, "r-": lambda x=x, k=k: k - x, "r//": lambda x=x, k=k: k // x, "r%": lambda x=x, k=k: k % x,
                "neg": lambda x=x: -x, "max": lambda x=x, k=k: at_least(x, k),
            }[op]()  # fmt: skip
            turns += [bool(x < k), bool(x == b), bool(x >= y)]
        return x, turns

    trace = Trace(first)
    try:
        with trace.active():
            found, turns = compute(*trace.unknowns)
            formulas = trace.formulas([found])
    except Refused:
        return
    expected, known = compute(*first)
    assert presently(found) == expected
    assert turns == known
    assert formulas(first) == [expected]
    again = formulas(second)
    value, taken = compute(*second)
    if again is not None:
        assert again == [value]
        assert taken == turns
    if taken == turns and not trace.atoms:
        assert again is not None


def test_a_size_read_as_a_number_is_a_guard() -> None:
    trace = Trace([12, 5])
    a, b = trace.unknowns
    for reads in (lambda: range(a), lambda: f"{a}", lambda: float(a), lambda: [0] * a, lambda: a / 2, lambda: hash(a) and int(a)):
        with pytest.raises(Refused):
            reads()
    blocks = -(-a // 8)
    assert list(range(blocks)) == [0, 1]
    formulas = trace.formulas([a * b])
    assert formulas([16, 3]) == [48]
    assert formulas([17, 3]) is None
    with pytest.raises(Coincidence):
        bool(a == 12)


def test_recipes() -> None:
    trace = Trace([12])
    (a,) = trace.unknowns
    wanted: list[Any] = []

    def place(size: Any) -> int:
        wanted.append(size)
        return len(wanted) - 1

    made = recipe(((a, 3), "x", (a * 2,)), place)
    formulas = trace.formulas(wanted)
    numbers_ = formulas([20])
    assert numbers_ is not None
    assert made(numbers_) == ((20, 3), "x", (40,))
    assert presently(((a, 3), (a * 2,))) == ((12, 3), (24,))
