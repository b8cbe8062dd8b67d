"""The accuracy of the vector math (a quick version of bench/vmath_ulp.py), its special values, and that lanes do not matter."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("scipy")
pytest.importorskip("mpmath")

from bench import vmath_ulp as ulp
from cermet.compiler.llvm.vmath import FUNCTIONS
from cermet.compiler.loops.ir import MATH

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

NAMES = sorted(FUNCTIONS)
DTYPES = [np.float32, np.float64]


def test_every_function_of_the_loop_ir_is_there() -> None:
    assert set(FUNCTIONS) == set(MATH)


@pytest.mark.parametrize("name", NAMES)
def test_float32_error(name: str) -> None:
    worst, where = ulp.sweep_single(name, 17)
    assert worst <= ulp.bound(name), where


@pytest.mark.parametrize("name", NAMES)
def test_float64_error(name: str) -> None:
    worst, where = ulp.sweep_double(name, 6)
    assert worst <= ulp.bound(name), where


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_special_values(name: str, dtype: type) -> None:
    assert ulp.special_failures(name, dtype) == []
    assert ulp.special_failures(name, dtype, lanes=1) == []


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_the_bits_do_not_depend_on_the_lanes(name: str, dtype: type) -> None:
    assert ulp.lane_failures(name, dtype, 8) == 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_sines_stay_within_one(dtype: type) -> None:
    x = np.concatenate([ulp.points("sin", dtype, 14), (np.arange(-500, 500) * np.pi / 2).astype(dtype)])
    x = x[np.isfinite(x)]
    for name in ("sin", "cos"):
        assert np.abs(ulp.function(name, dtype, 4)(x)).max() <= 1


def test_odd_functions_are_odd_bit_for_bit() -> None:
    x = np.abs(ulp.points("tanh", np.float32, 12))
    for name in ("sin", "tan", "asin", "atan", "sinh", "tanh", "asinh", "atanh", "erf", "erfinv"):
        f = ulp.function(name, np.float32, 8)
        a, b = f(x), -f(-x)
        same = (a.view(np.uint32) == b.view(np.uint32)) | (np.isnan(a) & np.isnan(b))
        assert same.all(), name


def test_large_and_small_lanes_mix() -> None:
    """A vector with one huge argument: the others keep the bits they have without it."""
    x = np.linspace(-3, 3, 64)
    alone = ulp.function("sin", np.float64, 4)(x)
    x[::4] = 1e300
    mixed = ulp.function("sin", np.float64, 4)(x)
    keep = np.arange(64) % 4 != 0
    assert (alone[keep] == mixed[keep]).all()
    assert np.allclose(mixed[::4], np.sin(1e300), rtol=1e-15)
