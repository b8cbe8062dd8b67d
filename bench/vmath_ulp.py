"""The accuracy of the vector math: the worst error of every function, in units in the last place (ulp).

    python bench/vmath_ulp.py [--quick] [--only NAME ...] [--speed]

float32 is swept densely (every 512th bit pattern, and every value near hard points) against float64 of SciPy
and NumPy (and the worst points against mpmath); float64 is measured against mpmath at a few thousand points. An error is
|computed - exact| over the spacing of the format at the exact value. Exits with 1 when a bound is broken.
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import sys
from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm
import mpmath as mp
import numpy as np
import scipy.special as sp
from llvmlite import ir

from cermet.compiler.llvm.builder import LaneBuilder
from cermet.compiler.llvm.vmath import FUNCTIONS, emit

BINARY = {"atan2", "pow"}
LOOSE = {"pow", "lgamma", "digamma"}
_ALIVE: list[Any] = []


# -- compile and call --------------------------------------------------------------------------------------------------


@functools.cache
def _machine() -> Any:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    target = llvm.Target.from_default_triple()
    return target.create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=3, jit=True
    )


def build(name: str, dtype: type, lanes: int) -> ir.Module:
    """A module with ``void kernel(out, x, y, count of vectors)`` applying the function ``lanes`` at a time."""
    module = ir.Module()
    element = ir.FloatType() if dtype is np.float32 else ir.DoubleType()
    value = element if lanes == 1 else ir.VectorType(element, lanes)
    p, i64 = ir.PointerType(), ir.IntType(64)
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [p, p, p, i64]), "kernel")
    out, x, y, count = function.args
    q = ir.IRBuilder(function.append_basic_block())
    entry, loop, done = q.block, q.append_basic_block(), q.append_basic_block()
    q.branch(loop)
    q.position_at_end(loop)
    k = q.phi(i64)
    k.add_incoming(ir.Constant(i64, 0), entry)
    b = LaneBuilder(q, lanes)
    size = np.dtype(dtype).itemsize

    def load(base: Any) -> Any:
        return q.load(q.gep(base, [k], source_etype=value), align=size, typ=value)

    args = [load(x), load(y)] if name in BINARY else [load(x)]
    result = emit(b, name, *args)
    q.store(result, q.gep(out, [k], source_etype=value), align=size)
    following = q.add(k, ir.Constant(i64, 1))
    k.add_incoming(following, q.block)
    q.cbranch(q.icmp_unsigned("<", following, count), loop, done)
    q.position_at_end(done)
    q.ret_void()
    return module


@functools.cache
def function(name: str, dtype: type, lanes: int) -> Callable[..., np.ndarray]:
    """The compiled function on arrays (any length)."""
    machine = _machine()
    module = llvm.parse_assembly(str(build(name, dtype, lanes)))
    module.triple = machine.triple
    module.verify()
    options = llvm.create_pipeline_tuning_options(speed_level=3)
    pass_builder = llvm.create_pass_builder(machine, options)
    pass_builder.getModulePassManager().run(module, pass_builder)
    engine = llvm.create_mcjit_compiler(module, machine)
    engine.finalize_object()
    _ALIVE.append(engine)
    signature = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)
    native = signature(engine.get_function_address("kernel"))

    def call(x: np.ndarray, y: np.ndarray | None = None) -> np.ndarray:
        count = -(-len(x) // lanes)
        padded = [np.ones(count * lanes, dtype) for _ in range(3)]
        for p, v in zip(padded[1:], (x, y), strict=True):
            if v is not None:
                p[: len(v)] = v
        if count:
            native(padded[0].ctypes.data, padded[1].ctypes.data, padded[2].ctypes.data, count)
        return padded[0][: len(x)]

    call.native = native  # type: ignore[attr-defined]
    return call


# -- references --------------------------------------------------------------------------------------------------------


def _mp_erfinv(x: Any) -> Any:
    return mp.erfinv(x) if abs(x) < 1 else mp.mpf("inf") * mp.sign(x) if abs(x) == 1 else mp.nan


def _mp_lgamma(x: Any) -> Any:
    return mp.re(mp.loggamma(x))


MP: dict[str, Callable[..., Any]] = {
    "exp": mp.exp,
    "exp2": lambda x: mp.mpf(2) ** x,
    "expm1": mp.expm1,
    "log": mp.log,
    "log2": lambda x: mp.log(x) / mp.log(2),
    "log10": mp.log10,
    "log1p": mp.log1p,
    "sin": mp.sin,
    "cos": mp.cos,
    "tan": mp.tan,
    "asin": mp.asin,
    "acos": mp.acos,
    "atan": mp.atan,
    "atan2": mp.atan2,
    "sinh": mp.sinh,
    "cosh": mp.cosh,
    "tanh": mp.tanh,
    "asinh": mp.asinh,
    "acosh": mp.acosh,
    "atanh": mp.atanh,
    "erf": mp.erf,
    "erfc": mp.erfc,
    "erfinv": _mp_erfinv,
    "lgamma": _mp_lgamma,
    "digamma": mp.digamma,
    "pow": mp.power,
}


def _wide_lgamma(x: np.ndarray) -> np.ndarray:
    # SciPy gives -inf at -inf (C and everybody else +inf), and infinity for subnormals.
    return np.where(np.isinf(x), np.inf, np.where((np.abs(x) < 1e-300) & (x != 0), -np.log(np.abs(x)), sp.gammaln(x)))


def _wide_erfinv(x: np.ndarray) -> np.ndarray:
    return np.copysign(sp.erfinv(x), x)  # SciPy loses the sign of zero


WIDE: dict[str, Callable[..., Any]] = {
    "exp": np.exp,
    "exp2": np.exp2,
    "expm1": np.expm1,
    "log": np.log,
    "log2": np.log2,
    "log10": np.log10,
    "log1p": np.log1p,
    "sin": np.sin,
    "cos": np.cos,
    "tan": np.tan,
    "asin": np.arcsin,
    "acos": np.arccos,
    "atan": np.arctan,
    "atan2": np.arctan2,
    "sinh": np.sinh,
    "cosh": np.cosh,
    "tanh": np.tanh,
    "asinh": np.arcsinh,
    "acosh": np.arccosh,
    "atanh": np.arctanh,
    "erf": sp.erf,
    "erfc": sp.erfc,
    "erfinv": _wide_erfinv,
    "lgamma": _wide_lgamma,
    "digamma": sp.psi,
    "pow": np.power,
}

# Where each function is smooth and much used (swept linearly), and its hard points: zeros, poles, thresholds, limits.
RANGES: dict[str, tuple[float, float]] = {
    "exp": (-20, 20),
    "exp2": (-20, 20),
    "expm1": (-3, 3),
    "log": (0, 4),
    "log2": (0, 4),
    "log10": (0, 4),
    "log1p": (-1, 3),
    "sin": (-20, 20),
    "cos": (-20, 20),
    "tan": (-20, 20),
    "asin": (-1, 1),
    "acos": (-1, 1),
    "atan": (-4, 4),
    "sinh": (-5, 5),
    "cosh": (-5, 5),
    "tanh": (-5, 5),
    "asinh": (-5, 5),
    "acosh": (1, 5),
    "atanh": (-1, 1),
    "erf": (-4, 4),
    "erfc": (-5, 11),
    "erfinv": (-1, 1),
    "lgamma": (-8, 16),
    "digamma": (-8, 16),
}
_PI = [k * np.pi / 4 for k in range(-9, 10)] + [
    1e5,
    1e9,
    33000.0,
    12345.678,
    1e15,
    1e22,
    1e38,
    5.3193726483265414e255 / 1e200,
    6381956970095103 * 2.0**797,
]
HARD: dict[str, list[float]] = {
    "exp": [0, 88.72284, -87.33655, -103.972, 709.782712893384, -708.3964, -745.1332],
    "exp2": [0, 0.5, 128, -126, -149, -150, 1024, -1022, -1074, -1075],
    "expm1": [0, 0.34657, -0.34657, 88.72284, -18, -40, 709.782712893384],
    "log": [1, 0.70710678, 1.41421356, 2, 0.5],
    "log2": [1, 0.70710678, 1.41421356, 2, 8],
    "log10": [1, 0.70710678, 1.41421356, 10, 1000],
    "log1p": [0, -1, 0.41421356, -0.29289, 1, 1e30],
    "sin": _PI,
    "cos": _PI,
    "tan": _PI,
    "asin": [0, 0.5, -0.5, 1, -1],
    "acos": [0, 0.5, -0.5, 1, -1],
    "atan": [0, 1, -1],
    "sinh": [0, 1, -1, 89.4159, 710.4758],
    "cosh": [0, 89.4159, 710.4758],
    "tanh": [0, 0.17, 9.01, 19, 0.5],
    "asinh": [0, 1, 16384, 2.0**30],
    "acosh": [1, 2, 16384, 2.0**30],
    "atanh": [0, 0.5, 1, -1],
    "erf": [0, 1, -1, 3.92, 5.9],
    "erfc": [0, 0.5, -0.5, 10.0545, 26.543, 27.226],
    "erfinv": [0, 1, -1, 0.99663, 0.9999999],
    "lgamma": [
        0,
        1,
        2,
        0.5,
        3,
        8,
        12,
        -1,
        -2,
        -3,
        -0.5,
        -2.457024738220,
        -2.7476826467,
        -3.14358088834,
        -3.95529428454,
        -4.03936183,
        1e36,
        2.5e305,
    ],
    "digamma": [0, 1, 1.4616321449683623, 3, 10, -1, -2, -0.5, -0.504083008264455, -1.573498473162, -2.610720868444, 1e30],
}


def points(name: str, dtype: type, density: int) -> np.ndarray:
    """The arguments of the sweep: ``2**density`` bit patterns of the whole range, a linear range, all values near hard points."""
    unsigned, bits = (np.uint32, 32) if dtype is np.float32 else (np.uint64, 64)
    rng = np.random.default_rng(0)
    whole = np.arange(2**density, dtype=np.uint64) << np.uint64(bits - density)
    whole += rng.integers(0, 2 ** (bits - density), len(whole), dtype=np.uint64)
    low, high = RANGES[name]
    linear = rng.uniform(low, high, 2 ** (density - 1))
    around = max(8, 2 ** (density - 10))
    near = []
    for h in HARD[name]:
        steps = np.arange(-around, around + 1)
        if h == 0:
            near += [steps * np.finfo(dtype).smallest_subnormal, steps * np.finfo(dtype).tiny * dtype(1.37), steps * dtype(1e-5)]
        elif abs(h) < np.finfo(dtype).max:
            near.append(dtype(h) + steps * np.spacing(dtype(h)))
            near.append(dtype(h) * (1 + steps * 1e-6))
    ends = [0.0, -0.0, np.inf, -np.inf, np.nan, 1, -1, np.finfo(dtype).max, np.finfo(dtype).tiny, -np.finfo(dtype).tiny]
    return np.concatenate(
        [whole.astype(unsigned).view(dtype), linear.astype(dtype), *[np.asarray(v, dtype) for v in near], np.asarray(ends, dtype)]
    )


def pairs(name: str, dtype: type, density: int) -> tuple[np.ndarray, np.ndarray]:
    """Arguments for pow and atan2: any bits, moderate ones, and pow's near 1 or where the result is in range."""
    rng = np.random.default_rng(1)
    n = 2**density
    unsigned, bits = (np.uint32, 32) if dtype is np.float32 else (np.uint64, 64)
    x, y = (rng.integers(0, 2**bits, n, dtype=np.uint64).astype(unsigned).view(dtype) for _ in range(2))
    u, v = (rng.uniform(-4, 4, n).astype(dtype) for _ in range(2))
    if name == "atan2":
        return np.concatenate([x, u, x]), np.concatenate([y, v, (x * rng.uniform(-3, 3, n)).astype(dtype)])
    u = np.abs(u)
    reach = 150 if dtype is np.float32 else 1080
    positive = np.abs(x)
    with np.errstate(all="ignore"):
        fitting = (rng.uniform(-reach, reach, n) / np.log2(positive.astype(np.float64))).astype(dtype)
        near = (1 + rng.uniform(-1, 1, n) * 2.0 ** -rng.integers(1, np.finfo(dtype).nmant, n)).astype(dtype)
        far = (rng.uniform(-reach, reach, n) / np.log2(near.astype(np.float64))).astype(dtype)
    whole = rng.integers(-40, 40, n).astype(dtype)
    return np.concatenate([x, u, positive, near, -u]), np.concatenate([y, v, fitting, far, whole])


def ulp_errors(got: np.ndarray, exact: np.ndarray, dtype: type) -> np.ndarray:
    """The error against float64 results, in ulp; infinite where one is NaN and the other is not."""
    info = np.finfo(dtype)
    top = 2.0**128 if dtype is np.float32 else np.inf
    g, e = got.astype(np.float64), exact.astype(np.float64)
    over = np.abs(e) >= top * (1 - 2.0**-25) if dtype is np.float32 else np.isinf(e)
    same = (g == e) | (np.isnan(g) & np.isnan(e)) | (over & np.isinf(g) & (np.sign(g) == np.sign(e)))
    g = np.where(np.isinf(g), np.copysign(top, g), g)
    with np.errstate(all="ignore"):
        _, exponent = np.frexp(e)
        ulp = np.ldexp(1.0, np.maximum(exponent - 1, np.log2(float(info.tiny)).astype(int)) - info.nmant)
        error = np.abs(g - e) / ulp
    error = np.where(same, 0.0, error)
    return np.where(np.isnan(error), np.inf, error)


def exact_error(got: float, exact: Any, dtype: type) -> float:
    """The same for one value and an mpmath number."""
    info = np.finfo(dtype)
    if isinstance(exact, mp.mpc):
        exact = mp.nan if abs(mp.im(exact)) > 0 else mp.re(exact)
    if mp.isnan(exact) or np.isnan(got):
        return 0.0 if mp.isnan(exact) and np.isnan(got) else np.inf
    limit = mp.mpf(2) ** int(info.maxexp)
    last = mp.mpf(2) ** (int(info.maxexp) - info.nmant - 1)  # the spacing below the limit
    edge = limit - last / 2
    value = mp.mpf(float(got)) if not np.isinf(got) else limit * (1 if got > 0 else -1)
    if abs(exact) >= edge:
        return 0.0 if np.isinf(got) and (got > 0) == (exact > 0) else float(abs(value - mp.sign(exact) * limit) / last)
    exponent = int(mp.frexp(exact)[1]) - 1 if exact else -(10**6)
    ulp = mp.mpf(2) ** (max(exponent, int(np.log2(float(info.tiny)))) - info.nmant)
    return float(abs(value - exact) / ulp)


def mp_value(name: str, *args: float) -> Any:
    """The function at exact arguments, to some 40 digits (more where the argument is huge)."""
    x = args[0]
    digits = 45 + (abs(int(np.log10(abs(x)))) if x and np.isfinite(x) and abs(x) > 1 else 0)
    with mp.workdps(min(digits, 400)):
        try:
            return +MP[name](*[mp.mpf(float(a)) for a in args])
        except (ValueError, ZeroDivisionError, OverflowError):
            return None


# -- the sweeps --------------------------------------------------------------------------------------------------------


def sweep_single(name: str, density: int) -> tuple[float, str]:
    """The worst float32 error, and where."""
    args = pairs(name, np.float32, density - 2) if name in BINARY else (points(name, np.float32, density),)
    worst, where = 0.0, ""
    for start in range(0, len(args[0]), 1 << 20):
        part = [a[start : start + (1 << 20)] for a in args]
        with np.errstate(all="ignore"):
            got = function(name, np.float32, 8)(*part)
            wide = [a.astype(np.float64) for a in part]
            error = ulp_errors(got, WIDE[name](*wide), np.float32)
        # Where float64 may itself be off (near zeros of the gammas), ask mpmath.
        for k in np.argsort(error)[-3:]:
            e = float(error[k])
            if e > worst and all(np.isfinite(w[k]) for w in wide):
                exact = mp_value(name, *(float(w[k]) for w in wide))
                e = e if exact is None else exact_error(got[k], exact, np.float32)
            if e > worst:
                worst, where = e, ", ".join(f"{a[k]!r}" for a in part)
    return worst, where


def sweep_double(name: str, density: int) -> tuple[float, str]:
    """The worst float64 error, and where."""
    args = pairs(name, np.float64, density - 2) if name in BINARY else (points(name, np.float64, density),)
    got = function(name, np.float64, 4)(*args)
    worst, where = 0.0, ""
    for *xs, g in zip(*args, got, strict=True):
        if not all(map(np.isfinite, xs)):
            continue
        exact = mp_value(name, *map(float, xs))
        if exact is None:
            continue
        error = exact_error(g, exact, np.float64)
        if name in ("lgamma", "digamma") and xs[0] < 0 and np.isfinite(error):
            # In ulp of the terms of the reflection formula, which cancel near zeros.
            term = max(1.0, abs(float(mp_value(name, 1 - float(xs[0])))) + abs(float(exact)))
            error *= float(np.spacing(abs(float(exact))) / np.spacing(term))
        if error > worst:
            worst, where = error, ", ".join(repr(x) for x in xs)
    return worst, where


SPECIAL = [0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 2.0, -2.0, 3.0, -3.0, 1.5, -1.5, 1e30, -1e30, np.inf, -np.inf, np.nan]


def special_failures(name: str, dtype: type, lanes: int = 4) -> list[str]:
    """Arguments where NaN, infinity, zero or the sign of zero is not NumPy's."""
    ends = [np.finfo(dtype).smallest_subnormal, np.finfo(dtype).tiny, np.finfo(dtype).max]
    values = np.array(SPECIAL + ends + [-v for v in ends], dtype)
    args = [np.repeat(values, len(values)), np.tile(values, len(values))] if name in BINARY else [values]
    got = function(name, dtype, lanes)(*args)
    with np.errstate(all="ignore"):
        want = WIDE[name](*[a.astype(np.float64) for a in args]).astype(dtype)
    out = []
    for k in range(len(got)):
        g, w = got[k], want[k]
        special = np.isnan(w) or np.isinf(w) or w == 0 or np.isnan(g) or np.isinf(g) or g == 0
        if special and not ((np.isnan(g) and np.isnan(w)) or (g == w and np.signbit(g) == np.signbit(w))):
            out.append(f"{name}({', '.join(repr(a[k]) for a in args)}) = {g!r}, not {w!r}")
    return out


def lane_failures(name: str, dtype: type, density: int = 12) -> int:
    """At how many points the bits depend on the number of lanes."""
    args = pairs(name, dtype, density) if name in BINARY else (points(name, dtype, density),)
    kind = np.uint32 if dtype is np.float32 else np.uint64
    results = [function(name, dtype, lanes)(*args) for lanes in (1, 2, 4, 8, 16)]
    return sum(int(np.sum((r.view(kind) != results[0].view(kind)) & ~np.isnan(r))) for r in results[1:])


def bound(name: str) -> float:
    """The error allowed, in ulp."""
    return 4.0 if name in LOOSE else 2.0


def throughput(name: str, count: int = 4096) -> tuple[float, float]:
    """Nanoseconds an element for float32, ours and NumPy's (or SciPy's)."""
    import time

    rng = np.random.default_rng(0)
    x = rng.uniform(*RANGES.get(name, (0.1, 4.0)), count).astype(np.float32)
    y = np.full(count, 1.7, np.float32)
    out = np.empty_like(x)
    native = function(name, np.float32, 8).native  # type: ignore[attr-defined]
    pointers = out.ctypes.data, x.ctypes.data, y.ctypes.data, count // 8
    reference, args = {"lgamma": sp.gammaln, "erfinv": sp.erfinv}.get(name, WIDE[name]), [x, y] if name in BINARY else [x]

    def best(f: Callable[[], Any]) -> float:
        times = []
        for _ in range(7):
            start = time.perf_counter()
            for _ in range(50):
                f()
            times.append((time.perf_counter() - start) / 50)
        return min(times) / count * 1e9

    with np.errstate(all="ignore"):
        return best(lambda: native(*pointers)), best(lambda: reference(*args, out=out))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer points")
    parser.add_argument("--only", nargs="*", help="these functions alone")
    parser.add_argument("--speed", action="store_true", help="time an element against NumPy instead")
    options = parser.parse_args()
    broken = 0
    np.seterr(all="ignore")
    for name in options.only or FUNCTIONS:
        if options.speed:
            ours, theirs = throughput(name)
            print(
                f"{name:8} float32 {ours:7.2f} ns an element, NumPy or SciPy {theirs:7.2f}, ratio {theirs / ours:5.2f}",
                flush=True,
            )
            continue
        for dtype in (np.float32, np.float64):
            single = dtype is np.float32
            density = (18 if single else 8) if options.quick else (23 if single else 12)
            worst, where = sweep_single(name, density) if single else sweep_double(name, density)
            failures = special_failures(name, dtype)
            uneven = lane_failures(name, dtype)
            good = worst <= bound(name) and not failures and not uneven
            broken += not good
            print(f"{name:8} {np.dtype(dtype).name} {worst:8.3f} ulp at {where} {'' if good else '  BROKEN'}", flush=True)
            for line in failures:
                print("    " + line)
            if uneven:
                print(f"    {uneven} results depend on the number of lanes")
    sys.exit(1 if broken else 0)


if __name__ == "__main__":
    main()
