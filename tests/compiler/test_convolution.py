"""Convolution in its three directions against NumPy in float64, over shapes, layouts and dtypes of all kinds."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from math import prod
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cermet import config
from cermet import dtypes as dt
from cermet.compiler.kernels import convolution
from cermet.compiler.kernels.convolution import ConvSpec, channels_first, channels_last, plan
from cermet.compiler.kernels.finish import Epilogue
from cermet.compiler.kernels.plan import Operand
from cermet.compiler.llvm.target import host
from cermet.compiler.loops.ir import Expr, Param, Register, Store, Var
from tests.compiler.harness import Bound

TOLERANCE = {"float64": 1e-12, "float32": 2e-5, "float16": 4e-3, "bfloat16": 3e-2}
DIRECTIONS = {"forward": "y", "input_grad": "x", "weight_grad": "w"}


# -- reference ---------------------------------------------------------------------------------------------------------


def reached(s: ConvSpec) -> Iterator[tuple[tuple[int, ...], tuple[slice, ...], tuple[slice, ...]]]:
    """For each tap with any effect: the tap, the output positions it serves, the input positions it reads."""
    for tap in itertools.product(*map(range, s.kernel)):
        served, read = [], []
        for d, k in enumerate(tap):
            offset = k * s.dilation[d] - s.padding[d]
            inside = [j for j in range(s.out[d]) if 0 <= j * s.stride[d] + offset < s.size[d]]
            if not inside:
                break
            served.append(slice(inside[0], inside[-1] + 1))
            read.append(slice(inside[0] * s.stride[d] + offset, inside[-1] * s.stride[d] + offset + 1, s.stride[d]))
        else:
            yield tap, tuple(served), tuple(read)


def flat(a: np.ndarray) -> np.ndarray:
    return a.reshape(*a.shape[:2], prod(a.shape[2:]))


def reference(direction: str, s: ConvSpec, x: np.ndarray, w: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The definition, a tap at a time, in float64."""
    x, w, y = (a.astype(np.float64) for a in (x, w, y))
    result = np.zeros_like({"forward": y, "input_grad": x, "weight_grad": w}[direction])
    cg, og = s.c // s.groups, s.o // s.groups
    for tap, served, read in reached(s):
        for g in range(s.groups):
            c, o = (slice(None), slice(g * cg, (g + 1) * cg)), (slice(None), slice(g * og, (g + 1) * og))
            weights = w[(o[1], slice(None), *tap)]
            if direction == "forward":
                result[(*o, *served)] += np.einsum("nc...,oc->no...", x[(*c, *read)], weights)
            elif direction == "input_grad":
                result[(*c, *read)] += np.einsum("no...,oc->nc...", y[(*o, *served)], weights)
            else:
                result[(o[1], slice(None), *tap)] += np.einsum("nop,ncp->oc", flat(y[(*o, *served)]), flat(x[(*c, *read)]))
    return result


# -- cases -------------------------------------------------------------------------------------------------------------


def laid_out(shape: tuple[int, ...], last: bool, dtype: dt.DType) -> np.ndarray:
    """An array of a logical shape (n, c, ...) whose memory is channels-first or channels-last."""
    if not last:
        return np.empty(shape, dtype.numpy)
    return np.moveaxis(np.empty((shape[0], *shape[2:], shape[1]), dtype.numpy), -1, 1)


def elements(a: np.ndarray) -> tuple[int, ...]:
    return tuple(s // a.itemsize for s in a.strides)


def out_extent(size: int, kernel: int, stride: int, padding: int, behind: int, dilation: int) -> int:
    return max(0, (size + padding + behind - dilation * (kernel - 1) - 1) // stride + 1)


def make(
    dtype: dt.DType, n: int, c: int, o: int, size: tuple[int, ...], kernel: tuple[int, ...],
    stride: tuple[int, ...] | None = None, padding: tuple[int, ...] | None = None, dilation: tuple[int, ...] | None = None,
    groups: int = 1, behind: int | None = None, last: tuple[bool, bool, bool] = (True, False, True),
) -> tuple[ConvSpec, dict[str, np.ndarray]]:  # fmt: skip
    """A convolution and its operands; ``last`` says which of x, w and y are channels-last."""
    rank = len(size)
    stride, dilation, padding = stride or (1,) * rank, dilation or (1,) * rank, padding or (0,) * rank
    out = tuple(
        out_extent(*a, p if behind is None else behind, d) for *a, p, d in zip(size, kernel, stride, padding, padding, dilation)
    )
    x, w = laid_out((n, c, *size), last[0], dtype), laid_out((o, c // groups, *kernel), last[1], dtype)
    y = laid_out((n, o, *out), last[2], dtype)
    spec = ConvSpec(dtype, n, c, o, size, kernel, out, stride, padding, dilation, groups, elements(x), elements(w), elements(y))
    return spec, {"x": x, "w": w, "y": y}


@st.composite
def convolutions(draw: Any) -> tuple[ConvSpec, dict[str, np.ndarray]]:
    rank = draw(st.sampled_from([1, 2, 2, 2, 3]))

    def per_dim(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(low, high)) for _ in range(rank))

    if draw(st.integers(0, 4)) == 0:  # depthwise
        groups = c = o = draw(st.sampled_from([1, 5, 8, 11, 16, 24, 35]))
    else:
        groups = draw(st.sampled_from([1, 1, 1, 2, 3]))
        c = groups * draw(st.sampled_from([1, 2, 3, 5, 8, 16, 20]))
        o = groups * draw(st.sampled_from([1, 2, 3, 7, 8, 10, 16, 24, 33]))
    most = 9 if rank < 3 else 5
    return make(
        draw(st.sampled_from([dt.float32] * 4 + [dt.float64, dt.float16, dt.bfloat16])),
        draw(st.sampled_from([0, 1, 1, 2, 3, 5, 9])), c, o,
        per_dim(1, most), per_dim(1, 4 if rank < 3 else 3), per_dim(1, 3), per_dim(0, 4), per_dim(1, 3), groups,
        draw(st.integers(0, 2)), (draw(st.booleans()), draw(st.booleans()), draw(st.booleans())),
    )  # fmt: skip


def run(direction: str, spec: ConvSpec, arrays: dict[str, np.ndarray], cuts: list[float] | None = None) -> None:
    Bound(plan(direction, spec, host()), host(), {k: a.ctypes.data for k, a in arrays.items()}).run(cuts)


def check(spec: ConvSpec, arrays: dict[str, np.ndarray], directions: tuple[str, ...] = tuple(DIRECTIONS)) -> None:
    """All directions against the reference, and bit for bit against the same launches cut into sub-ranges."""
    rng = np.random.default_rng(0)
    for direction in directions:
        name = DIRECTIONS[direction]
        for a in arrays.values():
            a[...] = rng.standard_normal(a.shape)
        want = reference(direction, spec, **arrays)
        arrays[name][...] = np.nan
        run(direction, spec, arrays)
        got = arrays[name].copy()
        scale = max(1.0, np.abs(want).max(initial=0.0))
        np.testing.assert_allclose(
            got.astype(np.float64), want, atol=TOLERANCE[spec.dtype.name] * scale, rtol=0, err_msg=f"{direction} {spec}"
        )
        arrays[name][...] = np.nan
        run(direction, spec, arrays, [0.3, 0.5, 0.8])
        assert arrays[name].tobytes() == got.tobytes(), f"{direction} depends on how its blocks are split: {spec}"


# -- tests -------------------------------------------------------------------------------------------------------------


@given(convolutions())
@example(make(dt.float32, 2, 3, 4, (2, 2), (5, 5), padding=(4, 4)))  # kernel larger than the input
@example(make(dt.float32, 2, 8, 16, (3, 3), (2, 2), padding=(5, 5)))  # padding larger than the kernel
@example(make(dt.float32, 0, 8, 16, (5, 5), (3, 3)))  # empty batch
@example(make(dt.float32, 2, 0, 16, (5, 5), (3, 3)))  # nothing to sum
@example(make(dt.float32, 1, 4, 8, (32, 32), (16, 16), stride=(16, 16)))  # patches
@example(make(dt.float32, 2, 16, 8, (9, 9), (1, 1), stride=(4, 4)))  # pixels that no tap reads
@example(make(dt.float32, 2, 16, 8, (9, 9), (3, 3), stride=(2, 2), dilation=(2, 2)))  # stride and dilation share a factor
def test_all_directions(case: tuple[ConvSpec, dict[str, np.ndarray]]) -> None:
    check(*case)


@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize(
    ("n", "c", "size", "o", "kernel", "stride", "groups"),
    [
        (2, 64, 14, 64, 3, 1, 1),
        (2, 3, 64, 64, 7, 2, 1),
        (16, 64, 4, 64, 3, 1, 1),
        (32, 1, 28, 32, 3, 1, 1),
        (2, 64, 14, 128, 1, 2, 1),
        (2, 96, 14, 96, 5, 2, 96),
        (3, 64, 14, 64, 3, 2, 16),
        (40, 512, 1, 100, 3, 1, 1),
        (8, 256, 4, 130, 3, 1, 1),
        (3, 131, 9, 136, 3, 2, 1),
    ],
)
def test_shapes_of_networks(n: int, c: int, size: int, o: int, kernel: int, stride: int, groups: int, last: bool) -> None:
    check(
        *make(
            dt.float32,
            n,
            c,
            o,
            (size,) * 2,
            (kernel,) * 2,
            (stride,) * 2,
            (kernel // 2,) * 2,
            groups=groups,
            last=(last, False, last),
        )
    )


@pytest.mark.parametrize(
    ("n", "c", "size", "o", "kernel", "stride", "groups"),
    [
        (2, 8, 9, 20, 3, 1, 1),
        (32, 8, 3, 20, 3, 1, 1),  # the batch counts fastest
        (2, 8, 9, 5, 3, 1, 1),
        (3, 24, 5, 24, 3, 1, 24),  # depthwise
        (2, 8, 6, 24, 3, 1, 2),
        (2, 32, 13, 40, 3, 1, 1),  # Winograd
        (2, 17, 9, 40, 3, 2, 1),
        (2, 40, 7, 17, 1, 1, 1),
        (2, 16, 7, 24, 1, 2, 1),
        (40, 24, 8, 70, 1, 1, 1),  # many channels at once
        (40, 24, 8, 17, 1, 1, 1),
        (2, 24, 9, 24, 5, 2, 24),
    ],
)
@pytest.mark.parametrize("direction", ["forward", "input_grad"])
def test_epilogue(direction: Any, n: int, c: int, size: int, o: int, kernel: int, stride: int, groups: int) -> None:
    """Bias, a residual that is read and overwritten in place, and a store in NCHW order, in either order of the pixels."""
    spec, arrays = make(
        dt.float32, n, c, o, (size, size), (kernel,) * 2, (stride,) * 2, padding=(kernel // 2,) * 2, groups=groups
    )
    result = arrays[DIRECTIONS[direction]].shape
    pixels, outs = prod(result[2:]), result[1]
    bias, y = Param("bias", "buffer", dt.float32), Param("y", "buffer", dt.float32, readonly=False)
    acc, b, m, ch = Register("acc", dt.float32), Var("b"), Var("m"), Var("n")
    place = b.expr * (pixels * outs) + ch.expr * pixels + m.expr
    total = Expr("add", (Expr("add", (acc.expr, bias.load(ch.expr)), dt.float32), y.load(place)), dt.float32)
    epilogue = Epilogue([bias, y], acc, b, m, ch, [Store(y, place, total)], f"test {pixels} {outs}")
    rng = np.random.default_rng(0)
    for a in arrays.values():
        a[...] = rng.standard_normal(a.shape)
    shift, residual = rng.standard_normal(outs).astype(np.float32), rng.standard_normal(result).astype(np.float32)
    want = reference(direction, spec, **arrays) + shift[:, None, None] + residual
    made = plan(direction, spec, host(), epilogue, [Operand("bias"), Operand("residual")])
    Bound(made, host(), {k: a.ctypes.data for k, a in {**arrays, "bias": shift, "residual": residual}.items()}).run([0.4])
    np.testing.assert_allclose(residual, want, atol=1e-4)
    with pytest.raises(ValueError, match="goes with images"):
        plan("weight_grad", spec, host(), epilogue, [Operand("bias"), Operand("residual")])


@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize(
    ("dtype", "n", "c", "size", "kernel", "stride", "padding", "dilation"),
    [
        (dt.float32, 2, 24, (14, 56), (3, 3), (1, 1), (1, 1), (1, 1)),
        (dt.float32, 3, 19, (13, 17), (3, 3), (2, 2), (1, 1), (1, 1)),
        (dt.float32, 1, 8, (9, 11), (5, 3), (1, 1), (4, 0), (2, 3)),
        (dt.float32, 2, 33, (7, 7), (7, 7), (1, 1), (3, 3), (1, 1)),
        (dt.float32, 2, 16, (12, 40), (2, 9), (1, 1), (0, 9), (1, 1)),  # more taps than are unrolled, padding beyond the kernel
        (dt.float64, 2, 12, (6, 7), (3, 3), (1, 2), (1, 0), (1, 2)),
        (dt.bfloat16, 2, 16, (8, 9), (3, 3), (1, 1), (1, 1), (1, 1)),
    ],
)
def test_depthwise(
    dtype: dt.DType, n: int, c: int, size: Any, kernel: Any, stride: Any, padding: Any, dilation: Any, last: bool
) -> None:
    check(*make(dtype, n, c, c, size, kernel, stride, padding, dilation, groups=c, last=(last, False, last)))


@pytest.mark.parametrize("outputs", [4, 2, 0])
@pytest.mark.parametrize(
    ("dtype", "n", "c", "o", "size", "padding", "last"),
    [
        (dt.float32, 2, 64, 64, (14, 14), (1, 1), True),
        (dt.float32, 1, 32, 40, (13, 17), (1, 1), True),
        (dt.float32, 3, 37, 45, (9, 5), (0, 2), False),
        (dt.float32, 1, 16, 16, (3, 3), (1, 1), True),
        (dt.float32, 2, 130, 17, (8, 8), (2, 0), True),
        (dt.float32, 9, 70, 150, (15, 15), (1, 1), True),
        (dt.bfloat16, 2, 32, 32, (9, 9), (1, 1), True),
    ],
)
def test_winograd(
    monkeypatch: Any, outputs: int, dtype: dt.DType, n: int, c: int, o: int, size: tuple[int, int], padding: Any, last: bool
) -> None:
    """Every variant, whatever the cost model thinks of it: ragged tiles, images of any order, channels of any number."""
    monkeypatch.setattr(convolution, "winograd_outputs", lambda *_: outputs)
    monkeypatch.setattr(convolution, "winograd_gradient", lambda *_: outputs == 4)
    check(*make(dtype, n, c, o, size, (3, 3), padding=padding, last=(last, False, last)))


def test_error_of_winograd() -> None:
    """Within a few times the error of direct sums, against float64; relative to the largest result."""
    for c in (32, 512):
        spec, arrays = make(dt.float32, 1, c, 32, (28, 28), (3, 3), padding=(1, 1))
        rng = np.random.default_rng(0)
        for direction, name in DIRECTIONS.items():
            for a in arrays.values():
                a[...] = rng.standard_normal(a.shape)
            want = reference(direction, spec, **arrays)
            errors = []
            for winograd in (True, False):
                with config.scope(winograd=winograd):
                    made = plan(direction, spec, host())
                assert any("winograd" in launch.key for launch in made.launches) == winograd
                Bound(made, host(), {k: a.ctypes.data for k, a in arrays.items()}).run()
                errors.append(np.abs(arrays[name] - want).max() / np.abs(want).max())
            assert errors[0] < 5e-6 and errors[0] < 20 * errors[1], (direction, c, errors)


def test_winograd_has_blocks_to_share_at_batch_1() -> None:
    for c, size in ((64, 56), (128, 28), (64, 32), (256, 14)):
        spec, _ = make(dt.float32, 1, c, c, (size, size), (3, 3), padding=(1, 1))
        main = max(plan("forward", spec, host()).launches, key=lambda launch: launch.flops)
        assert main.blocks >= 4


@pytest.mark.parametrize(
    ("n", "c", "size", "kernel"), [(32, 256, 8, 3), (32, 512, 4, 3), (8, 512, 7, 3), (8, 1024, 14, 1), (32, 64, 32, 3)]
)
def test_gradients_of_wide_weights_have_blocks_to_share(n: int, c: int, size: int, kernel: int) -> None:
    """Whatever is few: images, pixels or taps."""
    spec, _ = make(dt.float32, n, c, c, (size, size), (kernel, kernel), padding=(kernel // 2,) * 2)
    main = max(plan("weight_grad", spec, host()).launches, key=lambda launch: launch.flops)
    assert 16 <= main.blocks <= 64


def test_many_spans_of_pixels() -> None:
    """More pixels than one partial sum takes."""
    check(*make(dt.float32, 3, 5, 7, (61, 67), (1, 3), padding=(0, 1)), directions=("weight_grad",))


def test_odd_strides() -> None:
    """Operands that are views: every second channel of a larger tensor, rows apart."""
    spec, _ = make(dt.float32, 2, 8, 12, (6, 7), (3, 3), padding=(1, 1))
    x = np.empty((2, 9, 8, 16), np.float32)[:, 1:7, :7, ::2].transpose(0, 3, 1, 2)
    y = np.empty((2, 12, 6, 14), np.float32)[..., ::2]
    w = np.empty((12, 3, 3, 8), np.float32).transpose(0, 3, 2, 1)
    spec = ConvSpec(
        dt.float32, 2, 8, 12, (6, 7), (3, 3), (6, 7), (1, 1), (1, 1), (1, 1), 1, elements(x), elements(w), elements(y)
    )
    check(spec, {"x": x, "w": w, "y": y})


def test_reads_stay_within_operands() -> None:
    """NaN before and behind the operands never reaches a result."""
    for c, o in ((3, 5), (8, 16), (20, 33)):
        spec, arrays = make(dt.float32, 1, c, o, (5, 6), (3, 3), padding=(1, 1))
        rng = np.random.default_rng(0)
        walled = {}
        for name, a in arrays.items():
            wall = np.full(a.size + 128, np.nan, np.float32)
            wall[64:-64] = rng.standard_normal(a.size)
            walled[name] = np.lib.stride_tricks.as_strided(wall[64:], a.shape, a.strides)
        for direction, name in DIRECTIONS.items():
            run(direction, spec, walled)
            assert np.isfinite(walled[name]).all()


def test_sizes_are_not_in_the_keys() -> None:
    """Another batch, image, padding or number of channels of the same kind compiles nothing."""
    for direction in DIRECTIONS:
        keys = []
        for n, size, c, padding in ((2, 16, 32, 1), (7, 15, 64, 2)):
            spec, _ = make(dt.float32, n, c, c, (size, size), (3, 3), padding=(padding, padding))
            keys.append([launch.key for launch in plan(direction, spec, host()).launches])
        assert keys[0] == keys[1], direction


def test_strides_of_dense_tensors() -> None:
    assert channels_last(2, 3, (4, 5)) == (60, 1, 15, 3)
    assert channels_first(2, 3, (4, 5)) == (60, 20, 5, 1)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"groups": 3}, "3 groups do not divide"),
        ({"kernel": (3,)}, "kernel .* must have 2 entries"),
        ({"dtype": dt.int32}, "expected a floating dtype"),
        ({"stride": (0, 1)}, "must be positive"),
    ],
)
def test_bad_specs(change: dict[str, Any], text: str) -> None:
    spec, _ = make(dt.float32, 2, 8, 16, (5, 5), (3, 3))
    with pytest.raises(ValueError, match=text):
        ConvSpec(**{**spec.__dict__, **change})


def test_unknown_direction() -> None:
    spec, _ = make(dt.float32, 2, 8, 16, (5, 5), (3, 3))
    with pytest.raises(ValueError, match="expected forward, input_grad or weight_grad"):
        plan("sideways", spec, host())  # type: ignore[arg-type]
