"""Recurrent layers against their equations in NumPy float64 (Hochreiter and Schmidhuber 1997; Cho et al. 2014; Sak et al. 2014)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import cermet as ct
from cermet import config, nn
from cermet.autograd import gradcheck, gradgradcheck
from cermet.nn.utils import rnn as sequences

KINDS = ("RNN", "LSTM", "GRU")


def sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def step(kind: str, a: Any, r: Any, h: Any, c: Any) -> tuple[Any, Any]:
    """One step from what entered and the recurrent product."""
    if kind == "LSTM":
        i, f, g, o = np.split(a + r, 4, axis=1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        return sigmoid(o) * np.tanh(c), c
    if kind == "GRU":
        (ar, az, an), (rr, rz, rn) = np.split(a, 3, axis=1), np.split(r, 3, axis=1)
        z = sigmoid(az + rz)
        return (1 - z) * np.tanh(an + sigmoid(ar + rr) * rn) + z * h, c
    return (np.maximum(a + r, 0) if kind == "relu" else np.tanh(a + r)), c


def expected(m: Any, x: Any, states: Any, lengths: Any = None) -> tuple[Any, Any, Any]:
    """Outputs (T, B, *), last hidden and cell states of a module for (T, B, F), by the equations."""
    p = {name: v.detach().numpy().astype(np.float64) for name, v in m.named_parameters()}
    kind = "relu" if m.mode == "RNN_RELU" else m.mode.split("_")[0]
    steps, rows = x.shape[:2]
    lengths = np.full(rows, steps) if lengths is None else lengths
    last: tuple[list[Any], list[Any]] = ([], [])
    for layer in range(m.num_layers):
        outs = []
        for suffix in [f"_l{layer}", f"_l{layer}_reverse"][: 2 if m.bidirectional else 1]:
            h, c = states[0][len(last[0])], states[1][len(last[0])]
            y = np.zeros((steps, rows, h.shape[1]))
            b, d = (p["bias_ih" + suffix], p["bias_hh" + suffix]) if m.bias else (0.0, 0.0)
            for t in range(steps)[:: -1 if "reverse" in suffix else 1]:
                new, new_c = step(kind, x[t] @ p["weight_ih" + suffix].T + b, h @ p["weight_hh" + suffix].T + d, h, c)
                if m.proj_size:
                    new = new @ p["weight_hr" + suffix].T
                has = (t < lengths)[:, None]
                h, c, y[t] = np.where(has, new, h), np.where(has, new_c, c), np.where(has, new, 0)
            outs.append(y)
            last[0].append(h)
            last[1].append(c)
        x = np.concatenate(outs, -1)
    return x, np.stack(last[0]), np.stack(last[1])


def made(kind: str, features: int, hidden: int, **options: Any) -> Any:
    """A float64 module with parameters that are not small."""
    m = getattr(nn, kind)(features, hidden, dtype=ct.float64, **options)
    rng = np.random.default_rng(0)
    with ct.no_grad():
        for p in m.parameters():
            p.copy_(ct.tensor(rng.standard_normal(tuple(p.shape)) * 0.4))
    return m


def initial(m: Any, rows: int) -> tuple[Any, Any]:
    rng = np.random.default_rng(7)
    lead = m.num_layers * (2 if m.bidirectional else 1)
    return rng.standard_normal((lead, rows, m.proj_size or m.hidden_size)), rng.standard_normal((lead, rows, m.hidden_size))


def given(m: Any, states: Any) -> Any:
    tensors = tuple(ct.tensor(s) for s in states)
    return tensors if m.mode == "LSTM" else tensors[0]


def near(got: Any, want: Any) -> None:
    np.testing.assert_allclose(got.detach().numpy(), want, rtol=1e-9, atol=1e-12)


def agrees(m: Any, result: Any, want: Any) -> None:
    near(result[0], want[0])
    last = result[1] if m.mode == "LSTM" else (result[1],)
    for got, w in zip(last, want[1:]):
        near(got, w)


OPTIONS: list[dict[str, Any]] = [
    {},
    {"bias": False},
    {"bidirectional": True, "num_layers": 2},
    {"batch_first": True, "num_layers": 2, "bidirectional": True},
]
CASES = [(k, o) for k in KINDS for o in OPTIONS] + [
    ("RNN", {"nonlinearity": "relu", "num_layers": 2}),
    ("LSTM", {"proj_size": 3, "num_layers": 2, "bidirectional": True}),
    ("LSTM", {"proj_size": 2, "batch_first": True}),
]


@pytest.mark.parametrize(("kind", "options"), CASES, ids=lambda v: str(v))
def test_layers(kind: str, options: dict[str, Any]) -> None:
    """All arguments, with and without initial states, with and without a batch, also for one step and one row."""
    m = made(kind, 4, 6, **options)
    for steps, rows in ((5, 3), (1, 2), (2, 1)):
        x = np.random.default_rng(1).standard_normal((steps, rows, 4))
        t = ct.tensor(x.swapaxes(0, 1).copy() if m.batch_first else x)
        states = initial(m, rows)
        nothing = tuple(np.zeros_like(s) for s in states)
        for hx, s in ((given(m, states), states), (None, nothing)):
            y, *rest = m(t, hx)
            agrees(m, (y.transpose(0, 1) if m.batch_first else y, *rest), expected(m, x, s))
    y, _ = m(ct.tensor(x[:, 0]))
    near(y, expected(m, x[:, :1], tuple(s[:, :1] for s in nothing))[0][:, 0])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("both", [False, True])
def test_packed(kind: str, both: bool) -> None:
    """Sequences of different lengths, sorted or not, give what each gives alone; states stand in the caller's order."""
    m = made(kind, 3, 5, num_layers=2, bidirectional=both)
    for lengths in ([5, 3, 3, 1], [2, 5, 1, 4]):
        x = np.random.default_rng(2).standard_normal((5, 4, 3))
        ordered = lengths == sorted(lengths, reverse=True)
        states = initial(m, 4)
        packed = sequences.pack_padded_sequence(ct.tensor(x), lengths, enforce_sorted=ordered)
        out, last = m(packed, given(m, states))
        y, sizes = sequences.pad_packed_sequence(out, total_length=5)
        assert sizes.tolist() == lengths
        agrees(m, (y, last), expected(m, x, states, np.array(lengths)))


@pytest.mark.parametrize(("kind", "options"), CASES, ids=lambda v: str(v))
def test_gradients(kind: str, options: dict[str, Any]) -> None:
    """Of all parameters, the input and the initial states, against differences of the equations."""
    m = made(kind, 3, 5, **options)
    rng = np.random.default_rng(3)
    lengths = np.array([4, 4, 2]) if not m.batch_first else None
    x, states = rng.standard_normal((4, 3, 3)), initial(m, 3)
    weights = [rng.standard_normal(np.shape(v)) for v in expected(m, x, states, lengths)]
    t = ct.tensor(x.swapaxes(0, 1).copy() if m.batch_first else x).requires_grad_()
    hx = tuple(ct.tensor(s).requires_grad_() for s in states)[: 2 if m.mode == "LSTM" else 1]
    source = t if lengths is None else sequences.pack_padded_sequence(t, lengths.tolist())
    y, last = m(source, hx if m.mode == "LSTM" else hx[0])
    y = y if lengths is None else sequences.pad_packed_sequence(y)[0]
    y = y.transpose(0, 1) if m.batch_first else y
    results = (y, *(last if m.mode == "LSTM" else (last,)))
    sum((r * ct.tensor(w)).sum() for r, w in zip(results, weights)).backward()

    def value() -> float:
        found = expected(m, x, states, lengths)[: len(results)]
        return float(sum((v * w).sum() for v, w in zip(found, weights)))

    gx = t.grad.numpy().swapaxes(0, 1) if m.batch_first else t.grad.numpy()
    places: list[tuple[Any, Any]] = [(x, gx), *[(s, g.grad.numpy()) for s, g in zip(states, hx)]]
    for array, g in places:
        direction = rng.standard_normal(array.shape)
        array += 1e-6 * direction
        high = value()
        array -= 2e-6 * direction
        slope = (high - value()) / 2e-6
        array += 1e-6 * direction
        np.testing.assert_allclose((g * direction).sum(), slope, rtol=2e-6, atol=1e-8)
    for p in m.parameters():
        direction, old = ct.tensor(rng.standard_normal(tuple(p.shape))), p.detach().clone()
        ends = []
        for h in (1e-6, -1e-6):
            with ct.no_grad():
                p.copy_(old + h * direction)
            ends.append(value())
        with ct.no_grad():
            p.copy_(old)
        np.testing.assert_allclose((p.grad * direction).sum().item(), (ends[0] - ends[1]) / 2e-6, rtol=2e-6, atol=1e-8)


@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
def test_gradients_of_gradients(kind: str) -> None:
    m = made(kind, 2, 3, batch_first=kind == "GRU")
    x = ct.tensor(np.random.default_rng(4).standard_normal((3, 2, 2))).requires_grad_()

    def run(x: Any, *weights: Any) -> Any:
        for name, w in zip(("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"), weights):
            m._parameters[name] = w
        return m(x)[0].tanh()

    values = [p.detach().clone().requires_grad_() for p in m.parameters()]
    assert gradcheck(run, (x, *values))
    assert gradgradcheck(lambda x, w: run(x, values[0], w, *values[2:]), (x, values[1]))


@pytest.mark.parametrize("kind", KINDS)
def test_same_bits(kind: str) -> None:
    """For any number of threads, at once or deferred; and near the reference."""
    ct.manual_seed(0)
    m = getattr(nn, kind)(9, 33)
    x = ct.tensor(np.random.default_rng(5).standard_normal((6, 45, 9)).astype(np.float32))

    def run() -> list[Any]:
        m.zero_grad()
        y, _ = m(x)
        (y * y).sum().backward()
        return [y.detach().numpy().copy(), *[p.grad.numpy().copy() for p in m.parameters()]]

    first = run()
    for options in ({"num_threads": 1}, {"num_threads": 3}, {"eager": True}):
        with config.scope(**options):
            for a, b in zip(first, run(), strict=True):
                assert a.tobytes() == b.tobytes(), f"{kind} {options}"
    with config.scope(reference=True):
        for a, b in zip(first, run(), strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4 * np.abs(b).max())


@pytest.mark.parametrize("hidden", [8, 70, 300])
@pytest.mark.parametrize("rows", [1, 2, 4, 7, 16, 50])
def test_shapes_of_blocks(hidden: int, rows: int) -> None:
    """Row tiles, panels and blocks of all kinds, in float32 against the equations."""
    m = nn.GRU(3, hidden)
    x = np.random.default_rng(6).standard_normal((3, rows, 3)).astype(np.float32)
    with ct.no_grad():
        y, h = m(ct.tensor(x))
    zeros = np.zeros((1, rows, hidden))
    want = expected(m, x.astype(np.float64), (zeros, zeros))
    np.testing.assert_allclose(y.numpy(), want[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(h.numpy(), want[1], rtol=1e-5, atol=1e-6)


def test_backward_after_the_output_was_seen() -> None:
    """What the way back needs is kept, also where the forward pass has been computed long before."""
    m = made("LSTM", 3, 4)
    x = ct.tensor(np.random.default_rng(8).standard_normal((5, 2, 3)))
    m(x)[0].sum().backward()
    at_once = [p.grad.numpy().copy() for p in m.parameters()]
    m.zero_grad()
    y, _ = m(x)
    str(y)
    y.sum().backward()
    for a, p in zip(at_once, m.parameters()):
        assert a.tobytes() == p.grad.numpy().tobytes()


@pytest.mark.parametrize("dtype", [ct.float16, ct.bfloat16])
def test_short_floats(dtype: Any) -> None:
    """Computed in float32, rounded once for each result."""
    m = made("LSTM", 3, 4)
    x = np.random.default_rng(9).standard_normal((3, 2, 3))
    want = expected(m, x, (np.zeros((1, 2, 4)),) * 2)
    y, _ = m.to(dtype)(ct.tensor(x).to(dtype))
    assert y.dtype is dtype
    np.testing.assert_allclose(y.detach().double().numpy(), want[0], atol=0.05)
    y.sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in m.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_views_as_inputs(kind: str) -> None:
    """Inputs that lie in memory in other ways: transposed, reversed, repeated; gradients that are repeated."""
    m = made(kind, 4, 5)
    base = np.random.default_rng(10).standard_normal((4, 6, 3))
    x = ct.tensor(base).permute(1, 2, 0).flip(0)
    zeros = tuple(np.zeros((1, 3, 5)) for _ in range(2))
    near(m(x)[0], expected(m, np.ascontiguousarray(base.transpose(1, 2, 0)[::-1]), zeros)[0])
    hidden = ct.tensor(np.full((1, 1, 1), 0.3)).expand(1, 3, 5)
    states = (np.full((1, 3, 5), 0.3),) * 2
    near(m(x, (hidden, hidden) if kind == "LSTM" else hidden)[0], expected(m, x.numpy(), states)[0])


@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
def test_cells(kind: str) -> None:
    """A cell's step is a layer's; with and without a batch, bias and state."""
    for bias in (True, False):
        cell = getattr(nn, kind + "Cell")(3, 4, bias=bias, dtype=ct.float64)
        layer = getattr(nn, kind)(3, 4, bias=bias, dtype=ct.float64)
        layer.load_state_dict({n + "_l0": v for n, v in cell.state_dict().items()})
        x = np.random.default_rng(11).standard_normal((5, 2, 3))
        want = expected(layer, x, initial(layer, 2))[0]
        hx = given(layer, initial(layer, 2))
        hx = tuple(s[0] for s in hx) if kind == "LSTM" else hx[0]
        for t in range(5):
            hx = cell(ct.tensor(x[t]), hx)
            near(hx[0] if kind == "LSTM" else hx, want[t])
        alone = cell(ct.tensor(x[0, 0]))
        near(alone[0] if kind == "LSTM" else alone, expected(layer, x[:1, :1], (np.zeros((1, 1, 4)),) * 2)[0][0, 0])


def test_refusals() -> None:
    m = nn.LSTM(3, 4, num_layers=2)
    with pytest.raises(RuntimeError, match="5 features"):
        m(ct.zeros(2, 2, 5))
    with pytest.raises(RuntimeError, match="hidden state has shape"):
        m(ct.zeros(2, 2, 3), (ct.zeros(1, 2, 4), ct.zeros(2, 2, 4)))
    with pytest.raises(RuntimeError, match="at least one step"):
        m(ct.zeros(0, 2, 3))
    with pytest.raises(ValueError, match="shape"):
        m(ct.zeros(3))
    with pytest.raises(ValueError, match="proj_size"):
        nn.LSTM(3, 4, proj_size=4)
    assert tuple(m(ct.zeros(2, 0, 3))[0].shape) == (2, 0, 4)
