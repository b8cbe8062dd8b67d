"""Values for the sample inputs of op records, and the distance in units in the last place."""

from __future__ import annotations

import math
import zlib
from typing import Any

import numpy as np

import cermet as ct
from cermet import dtypes as dt
from cermet.ops.define import Arg, Sample


def seed_of(*parts: Any) -> np.random.Generator:
    """A generator that depends on what is tested, not on what ran before."""
    return np.random.default_rng(zlib.crc32(repr(parts).encode()))


def array(arg: Arg, dtype: dt.DType, rng: np.random.Generator) -> Any:
    """A NumPy array for a sample input, in the argument's dtype or the one under test."""
    d = arg.dtype or dtype
    n = math.prod(arg.shape)
    domain = arg.domain
    if domain == "bool":
        d = dt.bool if arg.dtype is None else d
        return (rng.random(arg.shape) < 0.5).astype(d.numpy)
    if domain == "distinct":
        order = rng.permutation(n)
        values = order + 1 if d.kind == "u" else order - n // 2 + 1
        if d.kind == "b":
            values = order % 2
        scaled = values * 0.375 + 0.0625 if d.kind == "f" else values
        return np.asarray(scaled, np.float64).reshape(arg.shape).astype(d.numpy)
    if isinstance(domain, tuple) and domain and domain[0] == "index":
        return rng.integers(-domain[1], domain[1], arg.shape).astype(d.numpy)
    low, high = domain
    if d.kind == "f":
        return rng.uniform(low, high, arg.shape).astype(d.numpy)
    if d.kind == "b":
        return (rng.random(arg.shape) < 0.5).astype(np.bool_)
    first, last = math.ceil(low), math.floor(high)
    if d.kind == "u":
        first, last = max(first, 0), max(last, 2)
    return rng.integers(first, max(first + 1, last), arg.shape).astype(d.numpy)


def arrays(sample: Sample, dtype: dt.DType, *seed: Any) -> list[Any]:
    """All inputs of a sample."""
    rng = seed_of(dtype.name, *seed)
    return [array(a, dtype, rng) for a in sample.args]


def dtype_of(a: Any) -> dt.DType:
    return dt.from_numpy_dtype(a.dtype)


def tensors(values: list[Any], requires_grad: bool = False) -> list[Any]:
    """Tensors of arrays; floating ones are leaves that want gradients."""
    return [ct.tensor(v).requires_grad_() if requires_grad and v.dtype.kind == "f" else ct.tensor(v) for v in values]


def widened(values: list[Any]) -> list[Any]:
    """Floating arrays as float64: what the references are defined on."""
    return [v.astype(np.float64) if dtype_of(v).kind == "f" else v for v in values]


def assert_near(got: Any, want: Any, ulp: float, name: str, whole: bool = False) -> None:
    """``got`` lies within ``ulp`` units in the last place of its dtype (``whole``: of the greatest element, for sums) of
    ``want``."""
    d = dtype_of(got)
    assert got.shape == np.shape(want), f"{name}: shape {got.shape}, expected {np.shape(want)}"
    if d.kind != "f":
        np.testing.assert_array_equal(got, np.asarray(want).astype(d.numpy), err_msg=name)
        return
    got, want = got.astype(np.float64), np.asarray(want, np.float64)
    info = dt.finfo(d)
    with np.errstate(all="ignore"):
        want = np.where(np.abs(want) > info.max * (1 + info.eps / 4), np.copysign(np.inf, want), want)
        finite = np.isfinite(want)
        np.testing.assert_array_equal(got[~finite], want[~finite], err_msg=name)
        size = np.abs(want[finite])
        if whole and size.size:
            size = np.maximum(size, max(size.max(), 1.0))
        unit = np.maximum(
            info.eps * 2.0 ** np.floor(np.log2(np.maximum(size, info.smallest_normal))), info.smallest_normal * info.eps
        )
        error = np.abs(got[finite] - want[finite]) / unit
    # One half is the rounding of the result itself; a 16-bit result is computed in float32, so that is all there is.
    allowed = max(ulp, 0.51) if d.itemsize > 2 else max(0.51 + ulp / 64, 1.0)
    if error.size and error.max() > allowed:
        at = int(error.argmax())
        raise AssertionError(
            f"{name}: {error.max():.3g} ulp off (allowed {allowed}): "
            f"got {got[finite].flat[at]!r}, expected {want[finite].flat[at]!r}"
        )
