"""Products of matrices against NumPy in float64, over shapes, strides and dtypes of all kinds."""

from __future__ import annotations

import itertools
from dataclasses import replace
from math import prod
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cermet import dtypes as dt
from cermet.compiler.kernels import blocking
from cermet.compiler.kernels.contraction import ContractionSpec, Epilogue, plan
from cermet.compiler.kernels.plan import Operand
from cermet.compiler.llvm.target import Target, host, named
from cermet.compiler.loops import ir
from tests.compiler.harness import STATS, Bound, Guarded

FLOATS = (dt.float32, dt.float64)
HALVES = (dt.float16, dt.bfloat16)
INTS = (dt.int8, dt.uint8, dt.int16, dt.int32, dt.int64)
_rng = np.random.default_rng(0)


# -- operands ----------------------------------------------------------------------------------------------------------


class Matrix:
    """A batch of matrices somewhere in guarded memory: ``order`` says how its dimensions lie, outermost first, ``gaps`` how many
    elements are left out after each step, ``repeated`` which batch dimensions have stride 0."""

    def __init__(
        self, shape: tuple[int, ...], dtype: dt.DType, order: Any = None, gaps: Any = None, repeated: tuple[int, ...] = ()
    ) -> None:
        rank = len(shape)
        strides, step = [0] * rank, 1
        for axis in reversed(order or range(rank)):
            step += gaps[axis] if gaps else 0
            strides[axis] = 0 if axis in repeated else step
            step *= 1 if axis in repeated else max(shape[axis], 1)
        self.dtype, self.strides = dtype, tuple(strides)
        last = sum((n - 1) * s for n, s in zip(shape, strides, strict=True)) if 0 not in shape else -1
        self.memory = Guarded((last + 1) * dtype.itemsize)
        flat = self.memory.array.view(dtype.numpy)
        self.array = np.lib.stride_tricks.as_strided(flat, shape, [s * dtype.itemsize for s in strides])
        self.address = int(self.memory.array.ctypes.data)

    def filled(self) -> Matrix:
        if self.dtype.kind == "f":
            self.array[...] = _rng.standard_normal(self.array.shape).astype(self.dtype.numpy)
        else:
            info = np.iinfo(self.dtype.numpy)
            self.array[...] = _rng.integers(info.min, info.max, self.array.shape, endpoint=True, dtype=self.dtype.numpy)
        return self


def spec_of(a: Matrix, b: Matrix, c: Matrix) -> ContractionSpec:
    (*batch, m, n), k = c.array.shape, a.array.shape[-1]
    return ContractionSpec(a.dtype, b.dtype, c.dtype, m, n, k, tuple(batch), a.strides, b.strides, c.strides)


def bind(a: Matrix, b: Matrix, c: Matrix, target: Target) -> Bound:
    return Bound(plan(spec_of(a, b, c), target), target, {"a": a.address, "b": b.address, "out": c.address}, guarded=True)


def agrees(a: Matrix, b: Matrix, c: np.ndarray, dtype: dt.DType) -> None:
    """Within the rounding of a sum of k products in the accumulator dtype, and of one store."""
    k = a.array.shape[-1]
    if dtype.kind != "f":
        np.testing.assert_array_equal(c, a.array @ b.array)
        return
    x, y = a.array.astype(np.float64), b.array.astype(np.float64)
    exact, size = x @ y, np.abs(x) @ np.abs(y)
    store = 0.0 if dtype.itemsize > 2 else float(ml_dtypes.finfo(dtype.numpy).eps)
    bound = (k + 4) * float(ml_dtypes.finfo(dtype.compute.numpy).eps) * size + store * np.abs(exact) + 1e-7 * (store > 0)
    error = np.abs(c.astype(np.float64) - exact)
    assert (error <= bound).all(), f"worst error {np.nanmax(error - bound)} over the bound"


def check(
    shape: tuple[int, ...], dtype: dt.DType, target: Target | None = None, orders: Any = (None, None, None), **more: Any
) -> None:
    """Compute ``(*batch, m, n, k)`` and compare; then again in pieces, and compare bits."""
    *batch, m, n, k = shape
    out = more.get("out", dtype)
    a, b, c = (
        Matrix((*batch, *last), d, order)
        for last, d, order in zip(((m, k), (k, n), (m, n)), (dtype, dtype, out), orders, strict=True)
    )
    a.filled(), b.filled()
    bound = bind(a, b, c, target or host())
    bound.run()
    agrees(a, b, c.array, out)
    first = c.array.copy()
    bound.run((0.3, 0.31, 0.8))
    assert first.tobytes() == c.array.tobytes()


def transposed(rank: int) -> tuple[int, ...]:
    return (*range(rank - 2), rank - 1, rank - 2)


# -- tests -------------------------------------------------------------------------------------------------------------

SHAPES = [
    (1, 1, 1), (5, 7, 9), (64, 64, 64), (65, 33, 100), (13, 17, 0), (3, 200, 50), (200, 3, 50), (7, 100, 31), (2, 40, 700),
    (130, 300, 700), (1, 300, 65), (300, 1, 65), (1, 1, 5000), (1, 2000, 9),
]  # fmt: skip


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_transposition(shape: tuple[int, ...], dtype: dt.DType) -> None:
    for orders in itertools.product((None, (1, 0)), repeat=3):
        check(shape, dtype, orders=orders)


@pytest.mark.parametrize("dtype", HALVES + INTS, ids=str)
@pytest.mark.parametrize("shape", [(5, 7, 9), (65, 33, 100), (13, 17, 0), (130, 70, 1100), (1, 90, 200), (90, 1, 200)], ids=str)
def test_narrow_dtypes(shape: tuple[int, ...], dtype: dt.DType) -> None:
    for orders in ((None, None, None), ((1, 0), None, None), (None, (1, 0), (1, 0))):
        check(shape, dtype, orders=orders)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_half_inputs_with_a_wide_result(dtype: dt.DType) -> None:
    check((70, 50, 90), dtype, out=dt.float32)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_halves_are_rounded_once(dtype: dt.DType) -> None:
    # 1 + 2**-20 + ... : each term vanishes in the 16-bit format, but not their sum.
    k = 3000
    a, b, c = Matrix((3, k), dtype), Matrix((k, 20), dtype), Matrix((3, 20), dtype)
    a.array[...], b.array[...] = 2.0**-6, 2.0**-6
    bind(a, b, c, host()).run()
    assert (c.array == np.float32(k * 2.0**-12).astype(dtype.numpy)).all()


@pytest.mark.parametrize("shape", [(64, 64, 20000), (10, 17, 20003), (300, 40, 17000), (2, 20, 30, 40000)], ids=str)
def test_long_sums_are_split(shape: tuple[int, ...]) -> None:
    for orders in ((None, None, None), (transposed(len(shape) - 1), None, transposed(len(shape) - 1))):
        check(shape, dt.float32, orders=orders)


@pytest.mark.parametrize(
    "shape", [(3, 4, 5, 6), (40, 8, 8, 8), (2, 3, 2, 33, 20, 17), (6, 1, 30, 40), (2, 3, 30, 1, 40)], ids=str
)
def test_batches(shape: tuple[int, ...]) -> None:
    rank = len(shape) - 1
    for dtype in (dt.float32, dt.bfloat16, dt.int32):
        check(shape, dtype)
        check(shape, dtype, orders=(transposed(rank), None, None))
        check(shape, dtype, orders=(None, tuple(reversed(range(rank))), tuple(reversed(range(rank)))))


@pytest.mark.parametrize("size", [0, 1, 4])
def test_a_shared_right_operand(size: int) -> None:
    for m in (1, 7, 50):
        a, c = Matrix((size, m, 30), dt.float32).filled(), Matrix((size, m, 40), dt.float32)
        b = Matrix((size, 30, 40), dt.float32, repeated=(0,))
        b.filled()
        bind(a, b, c, host()).run()
        agrees(a, b, c.array, dt.float32)


def test_large_right_operands_are_packed_in_pieces() -> None:
    k, n, m = 1400, 9000, 200
    a, b, c = (Matrix(s, dt.float32) for s in ((m, k), (k, n), (m, n)))
    a.filled(), b.filled()
    bound = bind(a, b, c, host())
    assert len(bound.plan.launches) > 2
    assert max(bound.plan.temps) <= 17 << 20
    bound.run()
    agrees(a, b, c.array, dt.float32)


def test_infinities_and_nans_stay_in_their_row_and_column() -> None:
    a, b, c = Matrix((20, 30), dt.float32), Matrix((30, 50), dt.float32), Matrix((20, 50), dt.float32)
    a.filled(), b.filled()
    a.array[3, 4], b.array[7, 49] = np.inf, np.nan
    bind(a, b, c, host()).run()
    assert np.isnan(c.array[:, 49]).all()
    assert np.isinf(c.array[3, :49]).all()
    rest = np.delete(c.array[:, :49], 3, axis=0)
    assert np.isfinite(rest).all()


def test_a_new_batch_size_compiles_nothing() -> None:
    check((128, 300, 200), dt.float32)
    before = STATS["compiled"]
    for m in (96, 100, 127):
        check((m, 300, 200), dt.float32)
    assert STATS["compiled"] == before


def test_empty_results_need_no_launch() -> None:
    for shape in ((0, 3, 4), (3, 0, 4), (0, 0, 0)):
        a, b, c = (Matrix(s, dt.float32) for s in ((shape[0], shape[2]), (shape[2], shape[1]), shape[:2]))
        assert plan(spec_of(a, b, c), host()).launches == []


def test_specs_are_checked() -> None:
    good = ContractionSpec(dt.float32, dt.float32, dt.float32, 2, 3, 4, (5,), (8, 4, 1), (12, 3, 1), (6, 3, 1))
    with pytest.raises(ValueError, match="dtypes"):
        replace(good, dtype_b=dt.float64)
    with pytest.raises(ValueError, match="strides_a needs 3"):
        replace(good, strides_a=(4, 1))
    with pytest.raises(ValueError, match="three batch"):
        replace(good, batch=(1, 1, 1, 1))


sizes = st.one_of(st.integers(0, 9), st.integers(1, 70), st.sampled_from([128, 257]))


@st.composite
def operands(draw: Any) -> tuple[Matrix, Matrix, Matrix]:
    dtype = draw(st.sampled_from([dt.float32, dt.float32, dt.float64, dt.bfloat16, dt.float16, dt.int32, dt.uint8]))
    batch = tuple(draw(st.lists(st.integers(0, 4), max_size=3).filter(lambda b: prod(b) < 20)))
    m, n, k = draw(sizes), draw(sizes), draw(sizes)
    made = []
    for last in ((m, k), (k, n), (m, n)):
        shape = (*batch, *last)
        order = draw(st.permutations(range(len(shape))))
        gaps = draw(st.lists(st.sampled_from([0, 0, 0, 1, 5]), min_size=len(shape), max_size=len(shape)))
        repeated = () if last == (m, n) else tuple(i for i in range(len(batch)) if draw(st.integers(0, 4)) == 0)
        made.append(Matrix(shape, dtype, order, gaps, repeated))
    return made[0].filled(), made[1].filled(), made[2]


@settings(max_examples=150, deadline=None)
@given(operands())
def test_any_strides(abc: tuple[Matrix, Matrix, Matrix]) -> None:
    a, b, c = abc
    bind(a, b, c, host()).run()
    agrees(a, b, c.array, c.dtype)


@pytest.mark.parametrize("name", ["x86-64", "x86-64-v3"])
@pytest.mark.parametrize("dtype", [dt.float32, dt.float64, dt.float16, dt.bfloat16, dt.int16], ids=str)
def test_other_instruction_sets(name: str, dtype: dt.DType) -> None:
    here = host()
    if not here.is_x86 or (name == "x86-64-v3" and not here.has_fma):
        pytest.skip("this machine cannot run it")
    for shape in ((5, 7, 9), (65, 133, 100), (4, 90, 60), (90, 4, 60), (1, 70, 80)):
        for orders in itertools.product((None, (1, 0)), (None, (1, 0)), (None,)):
            check(shape, dtype, named(name), orders)


@pytest.mark.parametrize("name", ["x86-64-v4", "aarch64"])
def test_code_for_machines_elsewhere(name: str) -> None:
    from cermet.compiler.llvm.jit import compile_object

    target = named(name)
    for shape in ((500, 500, 500), (64, 64, 64), (1, 500, 500)):
        for dtype in (dt.float32, dt.float16):
            a, b, c = (Matrix(s, dtype) for s in ((shape[0], shape[2]), (shape[2], shape[1]), shape[:2]))
            for launch in plan(spec_of(a, b, c), target).launches:
                assert compile_object(launch.build(), target)


def test_blocks_depend_on_the_shape_alone() -> None:
    tile = blocking.choose_tile(host(), dt.float32, 1000, 1000)
    assert tile.mr * tile.nv + tile.nv + 1 <= host().vector_registers


# -- epilogues ---------------------------------------------------------------------------------------------------------


def bias_relu(dtype: dt.DType, shape: tuple[int, ...]) -> Epilogue:
    """``y[b, m, n] = max(acc + bias[n], 0) + m + 1000 b``."""
    _, m_size, n_size = shape
    bias, y = ir.Param("bias", "buffer", dtype), ir.Param("y", "buffer", dtype, readonly=False)
    acc, b, m, n = ir.Register("acc", dtype.compute), ir.Var("b"), ir.Var("m"), ir.Var("n")
    zero, index = ir.const(0, dtype.compute), m.expr + b.expr * 1000
    value = ir.Expr("max", (ir.Expr("add", (acc.expr, bias.load(n.expr)), dtype.compute), zero), dtype.compute)
    value = ir.Expr("add", (value, ir.Expr("cast", (index,), dtype.compute, dtype.compute)), dtype.compute)
    offset = (b.expr * m_size + m.expr) * n_size + n.expr
    return Epilogue([bias, y], acc, b, m, n, [ir.Store(y, offset, value)], f"bias_relu{dtype.name}{m_size}x{n_size}")


@pytest.mark.parametrize("dtype", [dt.float32, dt.float64, dt.bfloat16], ids=str)
@pytest.mark.parametrize(
    "shape", [(1, 5, 7, 9), (1, 64, 64, 64), (1, 65, 133, 900), (3, 20, 30, 40), (3, 1, 60, 40), (2, 60, 1, 40), (1, 20, 30, 0),
              (1, 64, 30, 20000), (4, 200, 40, 30)], ids=str,
)  # fmt: skip
def test_an_epilogue_replaces_the_store(shape: tuple[int, ...], dtype: dt.DType) -> None:
    batch, m, n, k = shape
    for repeated in ((), (0,)):
        a, b = Matrix((batch, m, k), dtype).filled(), Matrix((batch, k, n), dtype, repeated=repeated).filled()
        y, bias = Matrix((batch, m, n), dtype), Matrix((n,), dtype).filled()
        made = plan(spec_of(a, b, y), host(), bias_relu(dtype, (batch, m, n)), [Operand("bias"), Operand("y")])
        buffers = {"a": a.address, "b": b.address, "out": 0, "bias": bias.address, "y": y.address}
        bound = Bound(made, host(), buffers, guarded=True)
        bound.run()
        exact = a.array.astype(np.float64) @ b.array.astype(np.float64) + bias.array.astype(np.float64)
        exact = np.maximum(exact, 0.0) + np.arange(m, dtype=np.float64)[:, None] + 1000.0 * np.arange(batch)[:, None, None]
        eps = float(ml_dtypes.finfo(dtype.numpy).eps)
        np.testing.assert_allclose(y.array.astype(np.float64), exact, rtol=4 * eps, atol=(k + 4) * 1e-6)
        first = y.array.copy()
        bound.run((0.5, 0.7))
        assert first.tobytes() == y.array.tobytes()


def test_an_epilogue_needs_its_arguments() -> None:
    a, b, c = (Matrix((4, 4), dt.float32) for _ in range(3))
    with pytest.raises(ValueError, match="2 parameters but 0 arguments"):
        plan(spec_of(a, b, c), host(), bias_relu(dt.float32, (1, 4, 4)))
