"""Row kernels against NumPy: pieces put together, gathers and scatters of rows, scans of long and short lines, selections, sums of all shapes."""

from __future__ import annotations

import numpy as np
import pytest

import cermet as ct
from cermet import config
from cermet.compiler.loops import ir
from cermet.compiler.loops.ir import For, Kernel, Param, Store, Var
from cermet.compiler.loops.text import fingerprint

RNG = np.random.default_rng(7)


def reals(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def near(got: ct.Tensor, want: np.ndarray, tolerance: float = 1e-5) -> None:
    assert tuple(got.shape) == want.shape
    np.testing.assert_allclose(got.detach().numpy(), want, rtol=tolerance, atol=tolerance * max(1.0, np.abs(want).max(initial=0)))


# ------------------------------------------------------------------------------------------------------------- pieces


@pytest.mark.parametrize("sizes", [(3, 5), (64, 64), (1, 1, 1), (5,) * 30, (100,) * 60, (0, 7, 0, 3)], ids=str)
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_cat_of_pieces(sizes: tuple[int, ...], axis: int) -> None:
    parts = [reals(*[size if k == axis else 19 for k in range(3)]) for size in sizes]
    tensors = [ct.from_numpy(p) for p in parts]
    np.testing.assert_array_equal(ct.cat(tensors, axis).numpy(), np.concatenate(parts, axis))
    doubled = ct.relu(ct.cat([t * 2 for t in tensors], axis))
    np.testing.assert_array_equal(doubled.numpy(), np.maximum(2 * np.concatenate(parts, axis), 0))


def test_pad_and_roll() -> None:
    x = reals(40, 50, 20)
    t = ct.from_numpy(x)
    pad = ct.nn.functional.pad
    np.testing.assert_array_equal(pad(t, (1, 2, 3, 4)).numpy(), np.pad(x, ((0, 0), (3, 4), (1, 2))))
    np.testing.assert_array_equal(
        pad(t, (1, 0, 3, 4, 0, 5), value=2.5).numpy(), np.pad(x, ((0, 5), (3, 4), (1, 0)), constant_values=2.5)
    )
    np.testing.assert_array_equal(ct.roll(t, (3, -5), (0, 1)).numpy(), np.roll(x, (3, -5), (0, 1)))


def test_pieces_never_overwrite_what_another_piece_reads() -> None:
    x = reals(50, 60, 20)
    y = ct.from_numpy(x).clone()
    ct.realize(y)
    z = ct.roll(y, 7, 0)
    del y  # its memory may be taken over
    np.testing.assert_array_equal(z.numpy(), np.roll(x, 7, 0))
    y = ct.from_numpy(x).clone()
    ct.realize(y)
    y[1:] = y[:-1]
    np.testing.assert_array_equal(y.numpy(), np.concatenate([x[:1], x[:-1]]))


# ----------------------------------------------------------------------------------------------- gathers and scatters


@pytest.mark.parametrize(("rows", "count", "width"), [(50, 1000, 64), (7, 40, 33), (3, 9000, 130), (3000, 5000, 16)])
def test_rows_by_index(rows: int, count: int, width: int) -> None:
    index, update, base = RNG.integers(0, rows, count), reals(count, width), reals(rows, width)
    i, u, b = (ct.from_numpy(a) for a in (index, update, base))
    np.testing.assert_array_equal(ct.index_select(b, 0, i).numpy(), base[index])
    want = base.astype(np.float64)
    np.add.at(want, index, update.astype(np.float64))
    near(b.index_add(0, i, u), want)
    weight = ct.from_numpy(base).requires_grad_(True)
    (ct.nn.functional.embedding(i, weight) * u).sum().backward()
    assert weight.grad is not None
    near(weight.grad, want - base)
    last = base.copy()
    last[index] = update
    written = b.clone()
    written[i] = u
    np.testing.assert_array_equal(written.numpy(), last)


def test_a_bad_row_index_is_reported_though_it_is_checked_once_a_row() -> None:
    bad = ct.from_numpy(np.full(1000, 50))
    with pytest.raises(IndexError, match="index 50 does not exist in dimension 0 of size 50"):
        ct.zeros(50, 64).index_add(0, bad, ct.ones(1000, 64)).numpy()
    with pytest.raises(IndexError, match="index 50 does not exist"):
        ct.zeros(50, 64)[bad].numpy()


# --------------------------------------------------------------------------------------------------------------- scans


@pytest.mark.parametrize("shape", [(1,), (9, 100), (3, 40000), (70000,), (17, 300), (6, 1, 50), (2, 3, 33000), (3, 0)], ids=str)
def test_scans_of_lines(shape: tuple[int, ...]) -> None:
    x = reals(*shape)
    t = ct.from_numpy(x)
    for d in range(len(shape)):
        near(ct.cumsum(t, d), np.cumsum(x.astype(np.float64), d), 1e-4)
        near(ct.cummax(t, d)[0], np.maximum.accumulate(x, d) if x.size else x)


def test_long_scans_have_the_same_bits_on_any_number_of_threads() -> None:
    x = ct.from_numpy(reals(3, 100_000))
    found = []
    for threads in (1, 2):
        with config.scope(num_threads=threads):
            found.append(ct.cumsum(x, 1).numpy())
    np.testing.assert_array_equal(found[0], found[1])


# ---------------------------------------------------------------------------------------------------------- selections


@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, np.int64, np.int32, np.int8])
@pytest.mark.parametrize(
    ("shape", "dim", "k"), [((1000,), 0, 8), ((6, 11), 1, 11), ((7, 300), 1, 5), ((300, 7), 0, 5), ((4, 512), 1, 64)]
)
def test_topk_is_stable_and_orders_nan_last(shape: tuple[int, ...], dim: int, k: int, dtype: type, largest: bool) -> None:
    x = (RNG.standard_normal(shape) * 20).astype(dtype)
    if x.dtype.kind == "f":
        x.flat[[3, 10, 5, 7, 8, 9]] = [np.nan, np.nan, np.inf, -np.inf, -0.0, 0.0]
    else:  # what an empty list must not be taken for
        x.flat[[0, 3, 9, 12]] = [np.iinfo(dtype).min, np.iinfo(dtype).max, np.iinfo(dtype).min, np.iinfo(dtype).max]
    order = np.argsort(x, dim, kind="stable")
    if largest:
        order = shape[dim] - 1 - np.flip(np.argsort(np.flip(x, dim), dim, kind="stable"), dim)
    order = np.take(order, range(k), dim)
    values, places = ct.topk(ct.from_numpy(x), k, dim, largest=largest)
    np.testing.assert_array_equal(places.numpy(), order)
    np.testing.assert_array_equal(values.numpy(), np.take_along_axis(x, order, dim))


# ---------------------------------------------------------------------------------------------------------------- rows


@pytest.mark.parametrize("shape", [(9, 1024), (13, 100), (4, 70000), (70000, 4), (300, 300), (5, 40, 37), (2, 20000, 3)], ids=str)
def test_sums_of_all_shapes(shape: tuple[int, ...]) -> None:
    x = reals(*shape)
    t = ct.from_numpy(x)
    for d in range(len(shape)):
        near(t.sum(d), x.astype(np.float64).sum(d), 1e-4)
        near(t.var(d), x.astype(np.float64).var(d, ddof=1), 1e-4)
        np.testing.assert_array_equal(t.amax(d).numpy(), x.max(d))
    near(t.sum(), np.asarray(x.astype(np.float64).sum()), 1e-3)


@pytest.mark.parametrize("width", [3, 100, 1024, 70000])
def test_softmax_keeps_its_exponentials_in_the_result(width: int) -> None:
    x = reals(5, width)
    t = ct.from_numpy(x).requires_grad_(True)
    y = ct.softmax(t, -1)
    wide = x.astype(np.float64)
    e = np.exp(wide - wide.max(1, keepdims=True))
    want = e / e.sum(1, keepdims=True)
    near(y, want)
    g = reals(5, width)
    (grad,) = ct.autograd.grad(y, t, ct.from_numpy(g))
    near(grad, want * (g - (g * want).sum(1, keepdims=True)), 1e-4)


def test_large_results_written_past_the_caches() -> None:
    from cermet.compiler.llvm.target import host

    n = host().l3 // 4 + 77  # read and written, this is past the last cache; and it is no multiple of a vector
    if n > 1 << 25:
        pytest.skip("the last cache is too large for a quick test")
    x = np.arange(n, dtype=np.float32)
    t = ct.from_numpy(x)
    np.testing.assert_array_equal((t + 1).numpy(), x + 1)
    y = t + 1
    ct.realize(y)
    y += 1  # in place: the same kernel writes the ordinary way
    np.testing.assert_array_equal(y.numpy(), x + 2)


def test_hints_are_part_of_a_kernels_identity() -> None:
    def kernel(stream: bool, wide: int) -> Kernel:
        out, p, v = Param("o", "buffer", ct.float32, readonly=False), Var("p"), Var("v")
        store = Store(out, v.expr, ir.const(0.0, ct.float32), None, stream)
        return Kernel("k", [out], [For(p, ir.const(1), [For(v, ir.const(64), [store], "vector", False, wide)], "parallel")])

    assert len({fingerprint(kernel(s, w)) for s in (False, True) for w in (0, 2)}) == 4
