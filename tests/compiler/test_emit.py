"""Compiled kernels against the interpreter: kernels made by hand for each shape of loop, and random ones."""

from __future__ import annotations

import ctypes
from typing import Any

import llvmlite.binding as llvm
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cermet import dtypes as dt
from cermet.compiler.llvm import jit
from cermet.compiler.llvm.emit import ENTRY, emit_module
from cermet.compiler.llvm.target import NAMED, host
from cermet.compiler.loops.interpret import interpret, philox
from cermet.compiler.loops.ir import (
    MATH,
    PAIR_FIRST,
    PAIR_TURNED,
    RUNNING,
    Assign,
    Define,
    Expr,
    For,
    Guard,
    Kernel,
    Param,
    Reduce,
    Register,
    Store,
    Var,
    const,
)
from cermet.compiler.loops.verify import verify

FUNCTION = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p)
LENGTHS = (0, 1, 2, 7, 8, 9, 15, 16, 17, 31, 33, 64, 65, 100, 257)


def slots(kernel: Kernel, args: list[Any]) -> np.ndarray:
    """The argument array of the kernel ABI."""
    made = np.zeros(len(args), np.int64)
    for k, (param, arg) in enumerate(zip(kernel.params, args, strict=True)):
        if param.kind == "buffer":
            made[k] = arg.ctypes.data
        elif param.kind == "scalar" and param.dtype.kind == "f":
            made[k : k + 1].view(param.dtype.compute.numpy)[0] = arg
        else:
            made[k] = int(arg)
    return made


def run(kernel: Kernel, args: list[Any], blocks: int = 1, scratch: int = 0, target: Any = None, effort: int = jit.LIGHT) -> None:
    """Compile for this machine and call it, in two halves: how the blocks are divided must not matter."""
    verify(kernel)
    module = emit_module(kernel, host() if target is None else target)
    body = jit.compile_object(module, host() if target is None else target, effort)
    code = jit._load(body, jit.Request(kernel.name, lambda: None, ENTRY))
    function = FUNCTION(code.address)
    array = slots(kernel, args)
    private = np.zeros(scratch + 64, np.uint8)
    half = blocks // 2
    function(array.ctypes.data, half, blocks, private.ctypes.data)
    function(array.ctypes.data, 0, half, private.ctypes.data)


def same(kernel: Kernel, args: list[Any], blocks: int = 1, scratch: int = 0, rtol: float = 0.0, **how: Any) -> list[Any]:
    """Run compiled and interpreted, compare every buffer, and return the compiled results."""
    mine = [a.copy() if isinstance(a, np.ndarray) else a for a in args]
    theirs = [a.copy() if isinstance(a, np.ndarray) else a for a in args]
    run(kernel, mine, blocks, scratch, **how)
    interpret(kernel, theirs, blocks, scratch)
    for param, x, y in zip(kernel.params, mine, theirs, strict=True):
        if param.kind == "buffer":
            name = f"{kernel.name}: {param.name}"
            wide = np.float64 if param.dtype.kind == "f" else param.dtype.numpy
            x64, y64 = x.astype(wide), y.astype(wide)
            if rtol:
                np.testing.assert_allclose(x64, y64, rtol=rtol, atol=rtol, err_msg=name)
            else:
                np.testing.assert_array_equal(x64, y64, err_msg=name)
    return mine


def data(dtype: dt.DType, n: int, seed: int = 0, special: bool = True) -> np.ndarray:
    """Test values; with the awkward ones first."""
    rng = np.random.default_rng(seed)
    if dtype.kind == "f":
        x = rng.normal(size=n) * 3
        awkward = [0.0, -0.0, 1.0, -1.0, 0.5, 2.5, -2.5, 1e-40, 65504.0, 1e30, -1e30, np.inf, -np.inf, np.nan]
    elif dtype.kind == "b":
        return rng.integers(0, 2, n).astype(np.bool_)
    else:
        info = np.iinfo(dtype.numpy)
        x = rng.integers(max(info.min, -50), min(info.max, 50), n)
        awkward = [0, 1, info.min, info.max, info.min + 1, max(info.min, -1), 2, 3]
    if special:
        x[: len(awkward)] = awkward[:n]
    with np.errstate(all="ignore"):
        return rng.permutation(x).astype(dtype.numpy)


def ins(*dtypes: dt.DType) -> list[Param]:
    return [Param(f"x{k}", "buffer", d) for k, d in enumerate(dtypes)]


def out(dtype: dt.DType, name: str = "out") -> Param:
    return Param(name, "buffer", dtype, readonly=False)


def op(name: str, *args: Expr, dtype: dt.DType | None = None, attr: Any = None) -> Expr:
    return Expr(name, args, args[-1].dtype if dtype is None else dtype, attr)


def cast(x: Expr, to: dt.DType) -> Expr:
    return Expr("cast", (x,), to.compute, to)


def elementwise(name: str, buffers: list[Param], result: Param, value: Any, length: int | None = None) -> Kernel:
    """``out[v] = value(loads)`` over blocks of 64 elements (of a length known when compiling, or given at run time)."""
    n = Param("n", "int")
    size = n.expr if length is None else const(length)
    p, v = Var("p"), Var("v")
    extent = op("min", const(64), size - p.expr * 64) if length is None else const(min(64, length))
    at = p.expr * 64 + v.expr
    body = For(v, extent, [Store(result, at, value(*[b.load(at) for b in buffers]))], "vector")
    blocks = op("idiv", size + 63, const(64))
    return Kernel(name, [*buffers, result, n], [For(p, blocks, [body], "parallel")])


def check_elementwise(name: str, dtypes: list[dt.DType], result: dt.DType, value: Any, n: int = 100, rtol: float = 0.0) -> None:
    buffers = ins(*dtypes)
    arrays = [data(d, n, k) for k, d in enumerate(dtypes)]
    kernel = elementwise(name, buffers, out(result), value)
    same(kernel, [*arrays, np.zeros(n, result.numpy), n], -(-n // 64), rtol=rtol)


# -- elementwise ---------------------------------------------------------------------------------------------------

FLOATS = [dt.float16, dt.bfloat16, dt.float32, dt.float64]
INTS = [dt.uint8, dt.int8, dt.int16, dt.int32, dt.int64]


@pytest.mark.parametrize("d", dt.ALL, ids=lambda d: d.name)
@pytest.mark.parametrize("name", ["add", "sub", "mul", "min", "max"])
def test_arithmetic(name: str, d: dt.DType) -> None:
    check_elementwise(name, [d, d], d, lambda x, y: op(name, x, y))


@pytest.mark.parametrize("d", FLOATS, ids=lambda d: d.name)
@pytest.mark.parametrize("name", ["div", "copysign", "fmin", "fmax"])
def test_floating_binary(name: str, d: dt.DType) -> None:
    check_elementwise(name, [d, d], d, lambda x, y: op(name, x, y))


@pytest.mark.parametrize("value", [0.0, 1.5, np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("name", ["min", "max", "fmin", "fmax"])
def test_extremes_with_a_constant(name: str, value: float) -> None:
    for n in (5, 100):
        check_elementwise(name, [dt.float32], dt.float32, lambda x: op(name, x, const(value, dt.float32)), n=n)
        check_elementwise(name, [dt.float32], dt.float32, lambda x: op(name, const(value, dt.float32), x), n=n)


@pytest.mark.parametrize("d", FLOATS, ids=lambda d: d.name)
@pytest.mark.parametrize("name", ["neg", "abs", "sign", "floor", "ceil", "trunc", "rint", "sqrt", "rsqrt"])
def test_floating_unary(name: str, d: dt.DType) -> None:
    check_elementwise(name, [d], d, lambda x: op(name, x))


@pytest.mark.parametrize("d", INTS, ids=lambda d: d.name)
@pytest.mark.parametrize("name", ["neg", "abs", "sign", "not"])
def test_integer_unary(name: str, d: dt.DType) -> None:
    check_elementwise(name, [d], d, lambda x: op(name, x))


@pytest.mark.parametrize("d", INTS, ids=lambda d: d.name)
@pytest.mark.parametrize("name", ["idiv", "imod", "tdiv", "trem", "and", "or", "xor", "shl", "shr"])
def test_integer_binary(name: str, d: dt.DType) -> None:
    check_elementwise(name, [d, d], d, lambda x, y: op(name, x, y), n=500)


@pytest.mark.parametrize("divisor", [1, 2, 3, 7, 16, -1, -3, 0])
@pytest.mark.parametrize("name", ["idiv", "imod", "tdiv", "trem"])
@pytest.mark.parametrize("d", [dt.int32, dt.int64], ids=lambda d: d.name)
def test_division_by_a_constant(name: str, divisor: int, d: dt.DType) -> None:
    check_elementwise(name, [d], d, lambda x: op(name, x, const(divisor, d)))


@pytest.mark.parametrize("d", dt.ALL, ids=lambda d: d.name)
@pytest.mark.parametrize("name", ["eq", "ne", "lt", "le", "gt", "ge"])
def test_comparison(name: str, d: dt.DType) -> None:
    check_elementwise(name, [d, d], dt.bool, lambda x, y: op(name, x, y, dtype=dt.bool))


@pytest.mark.parametrize("to", dt.ALL, ids=lambda d: d.name)
@pytest.mark.parametrize("d", dt.ALL, ids=lambda d: d.name)
def test_cast(d: dt.DType, to: dt.DType) -> None:
    check_elementwise("cast", [d], to, lambda x: cast(x, to))


@pytest.mark.parametrize("n", [7, 300])
@pytest.mark.parametrize("d", FLOATS, ids=lambda d: d.name)
def test_fmod_is_exact(d: dt.DType, n: int) -> None:
    check_elementwise("fmod", [d, d], d, lambda x, y: op("fmod", x, y), n=n)


@pytest.mark.parametrize("d", [dt.float32, dt.float64], ids=lambda d: d.name)
def test_fmod_of_far_apart_operands(d: dt.DType) -> None:
    rng = np.random.default_rng(0)
    low, high = (-149, 127) if d is dt.float32 else (-1074, 1023)
    n = 400
    arrays = [(rng.uniform(1, 2, n) * 2.0 ** rng.integers(low, high, n)).astype(d.numpy) for _ in range(2)]
    kernel = elementwise("fmod", ins(d, d), out(d), lambda x, y: op("fmod", x, y))
    for target in (host(), NAMED["x86-64"]) if host().is_x86 else (host(),):
        same(kernel, [*arrays, np.zeros(n, d.numpy), n], -(-n // 64), target=target)


@pytest.mark.parametrize("d", [dt.float32, dt.float64], ids=lambda d: d.name)
def test_fma_rounds_once(d: dt.DType) -> None:
    check_elementwise("fma", [d, d, d], d, lambda x, y, z: op("fma", x, y, z), rtol=1e-15 if d is dt.float64 else 0.0)


@pytest.mark.parametrize("d", [dt.float32, dt.float64], ids=lambda d: d.name)
def test_float_bits(d: dt.DType) -> None:
    check_elementwise("nextafter", [d, d], d, lambda x, y: op("nextafter", x, y))
    check_elementwise("isnan", [d], dt.bool, lambda x: op("isnan", x, dtype=dt.bool))
    check_elementwise("signbit", [d], dt.bool, lambda x: op("signbit", x, dtype=dt.bool))
    bits = dt.int32 if d is dt.float32 else dt.int64
    check_elementwise("bitcast", [d], bits, lambda x: op("bitcast", x, dtype=bits))
    check_elementwise("bitcast", [bits], d, lambda x: op("bitcast", x, dtype=d))


@pytest.mark.parametrize("n", LENGTHS)
def test_lengths(n: int) -> None:
    for d in (dt.float32, dt.float16, dt.bool, dt.int64):
        check_elementwise("lengths", [d, d], d, lambda x, y: op("max", x, y), n=n)


@pytest.mark.parametrize("n", [1, 8, 10, 16, 40, 64])
def test_known_lengths(n: int) -> None:
    buffers = ins(dt.float32)
    kernel = elementwise("known", buffers, out(dt.float32), lambda x: op("mul", x, x), length=n)
    same(kernel, [data(dt.float32, n), np.zeros(n, np.float32), n], 1)


def test_select_where_and_scalars() -> None:
    x, y = ins(dt.float32, dt.float32)
    a, k, t = Param("a", "scalar", dt.float32), Param("k", "scalar", dt.int32), Param("t", "scalar", dt.bool)
    h = Param("h", "scalar", dt.float64)
    v = Var("v")
    result = out(dt.float64)
    chosen = op("select", op("lt", x.load(v.expr), a.expr, dtype=dt.bool), x.load(v.expr), y.load(v.expr))
    chosen = op("add", cast(chosen, dt.float64), op("mul", h.expr, cast(k.expr, dt.float64)))
    value = op("select", t.expr, chosen, const(7.0, dt.float64))
    kernel = Kernel("scalars", [x, y, a, k, t, h, result], [For(v, const(37), [Store(result, v.expr, value)], "vector")])
    for flag in (0, 1):
        same(kernel, [data(dt.float32, 37, 1), data(dt.float32, 37, 2), 0.25, -3, flag, 1.5, np.zeros(37)])


def test_deep_and_shared_expressions() -> None:
    def value(x: Expr) -> Expr:
        for k in range(3000):
            x = op("add", op("mul", x, const(0.5, dt.float32)), x) if k % 2 else op("min", x, const(2.0, dt.float32))
        return x

    check_elementwise("deep", [dt.float32], dt.float32, value, n=20)


def test_philox_known_answers() -> None:
    # Of the Random123 distribution's kat_vectors, those with the high half of the counter 0.
    words = philox(np.zeros(1, np.int64), np.zeros(1, np.int64))
    assert [int(w[0]) for w in words] == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]


@pytest.mark.parametrize("word", range(7))
def test_philox(word: int) -> None:
    check_elementwise("philox", [dt.int64, dt.int64], dt.int64, lambda k, c: op("philox", k, c, attr=word))
    check_elementwise("philox", [dt.int64], dt.int64, lambda c: op("philox", const(-12345678901234), c, attr=word))


@pytest.mark.parametrize("target", [None, *NAMED])
@pytest.mark.parametrize("first", [0, 1, 2, 3, -6, 2**40 + 5])
@pytest.mark.parametrize("attr", [RUNNING, PAIR_FIRST, PAIR_TURNED])
def test_running_words(attr: int, first: int, target: Any) -> None:
    """Consecutive numbers, wherever in a block they start, in lanes of several widths and in strides."""
    for result, steps in ((dt.float32, (1, 3)), (dt.int64, (1,))):
        for step in steps:
            r, n, v = out(result), 100, Var("v")
            word = op("shr", op("philox", const(77), v.expr * step + first, attr=attr), const(8))
            value = word if result is dt.int64 else op("cast", word, dtype=result)
            kernel = Kernel(
                "running", [r], [For(Var("p"), const(1), [For(v, const(n), [Store(r, v.expr, value)], "vector")], "parallel")]
            )
            if target is None:
                (got,) = same(kernel, [np.zeros(n, result.numpy)])
                assert len(np.unique(got)) >= n // (1 + (attr == PAIR_FIRST and step == 1))
            else:
                emit_module(kernel, NAMED[target])


def _arguments(name: str, d: dt.DType) -> list[np.ndarray]:
    x = data(d, 300, 1, special=False).astype(np.float64)
    unit = {"asin", "acos", "atanh", "erfinv"}
    positive = {"log", "log2", "log10", "pow", "lgamma", "digamma"}
    if name in unit:
        x = np.tanh(x)
    elif name in positive:
        x = np.abs(x) + 1e-3
    elif name in ("log1p", "acosh"):
        x = np.abs(x) + (name == "acosh")
    return [x.astype(d.numpy), data(d, 300, 2, special=False)]


@pytest.mark.parametrize("d", [dt.float32, dt.float64], ids=lambda d: d.name)
@pytest.mark.parametrize("name", MATH)
def test_mathematical_functions(name: str, d: dt.DType) -> None:
    """Roughly right, as vectors and as scalars; how nearly is the vector math's own tests' business."""
    arity = 2 if name in ("pow", "atan2") else 1
    buffers = ins(*[d] * arity)
    kernel = elementwise(name, buffers, out(d), lambda *x: op(name, *x))
    n = 300
    same(kernel, [*_arguments(name, d)[:arity], np.zeros(n, d.numpy), n], -(-n // 64), rtol=2e-6 if d is dt.float32 else 1e-13)


# -- access patterns -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("d", [dt.float32, dt.bfloat16, dt.bool, dt.int64], ids=lambda d: d.name)
@pytest.mark.parametrize("step", [-1, 0, 1, 2, 3, -2])
@pytest.mark.parametrize("n", [5, 41])
def test_strided_loads(d: dt.DType, step: int, n: int) -> None:
    (x,), result, v = ins(d), out(d), Var("v")
    start = 0 if step >= 0 else -step * (n - 1)
    kernel = Kernel("strided", [x, result], [For(v, const(n), [Store(result, v.expr, x.load(v.expr * step + start))], "vector")])
    same(kernel, [data(d, abs(step) * n + 1), np.zeros(n, d.numpy)])


@pytest.mark.parametrize("step", [1, 2, -1, 5])
def test_strides_given_at_run_time(step: int) -> None:
    (x,), result, v, n = ins(dt.float32), out(dt.float32), Var("v"), 33
    s, o = Param("s", "int"), Param("o", "int")
    at = v.expr * s.expr + o.expr
    kernel = Kernel("runtime", [x, result, s, o], [For(v, const(n), [Store(result, at, x.load(at))], "vector")])
    size = abs(step) * n + 1
    same(kernel, [data(dt.float32, size), np.zeros(size, np.float32), step, 0 if step > 0 else n])


def test_offsets_that_are_not_affine() -> None:
    (x,), result, v = ins(dt.float32), out(dt.float32), Var("v")
    at = op("imod", v.expr * 7, const(45))
    kernel = Kernel(
        "modulo", [x, result], [For(v, const(45), [Store(result, at, x.load(op("idiv", v.expr, const(3))))], "vector")]
    )
    same(kernel, [data(dt.float32, 45), np.zeros(45, np.float32)])


@pytest.mark.parametrize("d", [dt.float32, dt.float64, dt.float16, dt.int8, dt.bool], ids=lambda d: d.name)
@pytest.mark.parametrize("pad", [0, 3, 20])
def test_masked_loads_read_nothing_outside(d: dt.DType, pad: int) -> None:
    """Padding: the interpreter refuses to read outside; compiled code is checked by the zeros it must see."""
    (x,), result, v = ins(d), out(d), Var("v")
    n = 29
    at = v.expr - pad
    mask = op("and", op("ge", at, const(0), dtype=dt.bool), op("lt", at, const(n), dtype=dt.bool))
    kernel = Kernel("pad", [x, result], [For(v, const(n + 2 * pad), [Store(result, v.expr, x.load(at, mask))], "vector")])
    same(kernel, [data(d, n), np.ones(n + 2 * pad, d.numpy)])


def test_masked_load_from_an_unreadable_address() -> None:
    (x,), result, v = ins(dt.float32), out(dt.float32), Var("v")
    for mask in (op("lt", v.expr, const(0), dtype=dt.bool), op("lt", const(1), const(0), dtype=dt.bool)):
        for step in (0, 1, 3):
            body = [Store(result, v.expr, x.load(v.expr * step + (1 << 50), mask))]
            kernel = Kernel("nowhere", [x, result], [For(v, const(21), body, "vector")])
            got = same(kernel, [np.ones(1, np.float32), np.ones(21, np.float32)])
            assert not got[1].any()


@pytest.mark.parametrize("d", [dt.float32, dt.float64, dt.float16, dt.uint8], ids=lambda d: d.name)
@pytest.mark.parametrize("step", [1, 2, -1])
def test_masked_stores(d: dt.DType, step: int) -> None:
    (x,), result, v, n = ins(d), out(d), Var("v"), 37
    at = v.expr * step + (0 if step > 0 else n - 1)
    mask = op("ne", op("imod", v.expr, const(3)), const(0), dtype=dt.bool)
    kernel = Kernel("masked", [x, result], [For(v, const(n), [Store(result, at, x.load(v.expr), mask)], "vector")])
    same(kernel, [data(d, n), np.zeros(abs(step) * n, d.numpy)])


def test_stores_under_a_uniform_mask() -> None:
    (x,), result, v, w, n = ins(dt.float32), out(dt.float32), Var("v"), Var("w"), 19
    mask = op("eq", op("imod", w.expr, const(2)), const(0), dtype=dt.bool)
    at = w.expr * n + v.expr
    inner = For(v, const(n), [Store(result, at, x.load(at, mask), mask)], "vector")
    kernel = Kernel("uniform", [x, result], [For(w, const(4), [inner], "parallel")])
    same(kernel, [data(dt.float32, 4 * n), np.ones(4 * n, np.float32)], 4)


@pytest.mark.parametrize("d", [dt.float32, dt.int8], ids=lambda d: d.name)
def test_gather_and_scatter(d: dt.DType) -> None:
    index, x = Param("index", "buffer", dt.int64), Param("x", "buffer", d)
    gathered, scattered = out(d, "gathered"), out(d, "scattered")
    v, n = Var("v"), 43
    body = [
        Store(gathered, v.expr, x.load(index.load(v.expr))),
        Store(scattered, index.load(v.expr), x.load(v.expr)),
    ]
    kernel = Kernel("gather", [index, x, gathered, scattered], [For(v, const(n), body, "vector")], inplace=False)
    rng = np.random.default_rng(3)
    same(kernel, [rng.integers(0, n, n), data(d, n), np.zeros(n, d.numpy), np.zeros(n, d.numpy)])


def test_a_row_gathered_by_index() -> None:
    """An embedding: a uniform load gives the row, the columns are contiguous."""
    index, table, result = Param("index", "buffer", dt.int64), Param("table", "buffer", dt.float32), out(dt.float32)
    p, v, width = Var("p"), Var("v"), 24
    body = For(
        v, const(width), [Store(result, p.expr * width + v.expr, table.load(index.load(p.expr) * width + v.expr))], "vector"
    )
    kernel = Kernel("embedding", [index, table, result], [For(p, const(9), [body], "parallel")], inplace=False)
    rng = np.random.default_rng(3)
    same(kernel, [rng.integers(0, 5, 9), data(dt.float32, 5 * width), np.zeros(9 * width, np.float32)], 9)


def test_in_place() -> None:
    x = Param("x", "buffer", dt.float32)
    result = out(dt.float32)
    kernel = elementwise("inplace", [x], result, lambda a: op("mul", a, const(2.0, dt.float32)))
    a = np.arange(100, dtype=np.float32)
    run(kernel, [a, a, 100], 2)
    np.testing.assert_array_equal(a, 2 * np.arange(100))


# -- reductions ----------------------------------------------------------------------------------------------------

REDUCTIONS = [("add", -0.0), ("mul", 1.0), ("min", np.inf), ("max", -np.inf)]


@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize("name,start", REDUCTIONS)
def test_reduction_of_all(name: str, start: float, n: int) -> None:
    (x,), result, v, acc = ins(dt.float32), out(dt.float32), Var("v"), Register("acc", dt.float32)
    body = [
        Define(acc, const(start, dt.float32)),
        For(v, Param("n", "int").expr, [Reduce(acc, name, x.load(v.expr))], "vector"),
        Store(result, const(0), acc.expr),
    ]
    length = body[1].extent.attr
    kernel = Kernel("reduce", [x, result, length], body)
    values = data(dt.float32, n, special=False) * (0.3 if name == "mul" else 1)
    same(kernel, [values.astype(np.float32), np.zeros(1, np.float32), n], rtol=1e-5 if name in ("add", "mul") else 0)


@pytest.mark.parametrize("d", [dt.uint8, dt.int8, dt.int32, dt.int64, dt.bool], ids=lambda d: d.name)
@pytest.mark.parametrize("name", ["add", "mul", "min", "max", "and", "or"])
def test_integer_reductions(name: str, d: dt.DType) -> None:
    (x,), result, v, acc, n = ins(d), out(d), Var("v"), Register("acc", d), 77
    start = 1 if name == "mul" else 0
    body = [
        Define(acc, x.load(0) if name in ("min", "max", "and", "or") else const(start, d)),
        For(v, const(n), [Reduce(acc, name, x.load(v.expr))], "vector"),
        Store(result, const(0), acc.expr),
    ]
    same(Kernel("reduce", [x, result], body), [data(d, n), np.zeros(1, d.numpy)])


def test_nan_in_extremes() -> None:
    (x,), result, v, acc, n = ins(dt.float32), out(dt.float32), Var("v"), Register("acc", dt.float32), 50
    for name in ("min", "max"):
        body = [
            Define(acc, x.load(0)),
            For(v, const(n), [Reduce(acc, name, x.load(v.expr))], "vector"),
            Store(result, const(0), acc.expr),
        ]
        for where in (0, 3, 31, 32, 49):
            values = np.ones(n, np.float32)
            values[where] = np.nan
            assert np.isnan(same(Kernel("nan", [x, result], body), [values, np.zeros(1, np.float32)])[1][0])


def softmax(rows: int, width: int | None) -> Kernel:
    """Three passes over a row, the middle one storing what the last reads."""
    x, y, n = Param("x", "buffer", dt.float32), out(dt.float32), Param("n", "int")
    p, a, b, c = Var("p"), Var("a"), Var("b"), Var("c")
    m, s = Register("m", dt.float32), Register("s", dt.float32)
    size = n.expr if width is None else const(width)
    row = p.expr * size
    e = op("add", op("mul", op("sub", x.load(row + b.expr), m.expr), const(0.125, dt.float32)), const(3.0, dt.float32))
    body = [
        Define(m, const(float("-inf"), dt.float32)),
        For(a, size, [Reduce(m, "max", x.load(row + a.expr))], "vector"),
        Define(s, const(0.0, dt.float32)),
        For(b, size, [Store(y, row + b.expr, e), Reduce(s, "add", e)], "vector"),
        For(c, size, [Store(y, row + c.expr, op("div", y.load(row + c.expr), s.expr))], "vector"),
    ]
    return Kernel("softmax", [x, y, n], [For(p, const(rows), body, "parallel")])


@pytest.mark.parametrize("width", LENGTHS)
@pytest.mark.parametrize("known", [False, True])
def test_row_kernel_of_three_stages(width: int, known: bool) -> None:
    kernel = softmax(5, width if known else None)
    same(kernel, [data(dt.float32, 5 * width, special=False), np.zeros(5 * width, np.float32), width], 5, rtol=2e-6)


@pytest.mark.parametrize("rows", [1, 6])
@pytest.mark.parametrize("columns", [1, 8, 30, 100])
def test_column_reduction(rows: int, columns: int) -> None:
    (x,), result, v, r, acc = ins(dt.float32), out(dt.float32), Var("v"), Var("r"), Register("acc", dt.float32)
    low = Register("low", dt.float32)
    value = x.load(r.expr * columns + v.expr)
    body = [
        Define(acc, const(0.0, dt.float32)),
        Define(low, const(np.inf, dt.float32)),
        For(r, const(rows), [Reduce(acc, "add", value), Reduce(low, "min", value)], "serial"),
        Store(result, v.expr, op("add", acc.expr, low.expr)),
    ]
    kernel = Kernel("columns", [x, result], [For(v, const(columns), body, "vector")])
    same(kernel, [data(dt.float32, rows * columns, special=False), np.zeros(columns, np.float32)], rtol=1e-5)


def test_reduction_over_two_axes() -> None:
    (x,), result = ins(dt.float32), out(dt.float32)
    p, r, v, acc = Var("p"), Var("r"), Var("v"), Register("acc", dt.float32)
    at = p.expr * 60 + r.expr * 20 + v.expr
    inner = For(r, const(3), [For(v, const(20), [Reduce(acc, "add", x.load(at))], "vector")], "serial")
    body = [Define(acc, const(0.0, dt.float32)), inner, Store(result, p.expr, acc.expr)]
    kernel = Kernel("two", [x, result], [For(p, const(4), body, "parallel")])
    same(kernel, [data(dt.float32, 240, special=False), np.zeros(4, np.float32)], 4, rtol=1e-5)


@pytest.mark.parametrize("unroll", [False, True])
def test_cumulative_sum(unroll: bool) -> None:
    """Serial inside lanes: every lane scans its own column, and stores as it goes."""
    (x,), result, v, r, acc = ins(dt.float32), out(dt.float32), Var("v"), Var("r"), Register("acc", dt.float32)
    at = r.expr * 21 + v.expr
    scan = For(r, const(7), [Assign(acc, op("add", acc.expr, x.load(at))), Store(result, at, acc.expr)], "serial", unroll)
    kernel = Kernel("scan", [x, result], [For(v, const(21), [Define(acc, const(0.0, dt.float32)), scan], "vector")])
    same(kernel, [data(dt.float32, 147, special=False), np.zeros(147, np.float32)])


def test_argmax() -> None:
    """Two registers that change together, one an index."""
    (x,), result, v, r = ins(dt.float32), out(dt.int64), Var("v"), Var("r")
    best, where = Register("best", dt.float32), Register("where", dt.int64)
    value = x.load(v.expr * 9 + r.expr)
    more = op("gt", value, best.expr, dtype=dt.bool)
    scan = For(
        r,
        const(9),
        [Assign(where, op("select", more, r.expr, where.expr)), Assign(best, op("select", more, value, best.expr))],
        "serial",
    )
    body = [Define(best, const(-np.inf, dt.float32)), Define(where, const(-1)), scan, Store(result, v.expr, where.expr)]
    kernel = Kernel("argmax", [x, result], [For(v, const(13), body, "vector")])
    same(kernel, [data(dt.float32, 117, special=False), np.zeros(13, np.int64)])


def test_guards_and_registers() -> None:
    (x,), result, p, r, acc = ins(dt.float32), out(dt.float32), Var("p"), Var("r"), Register("acc", dt.float32)
    odd = op("eq", op("imod", r.expr, const(2)), const(1), dtype=dt.bool)
    # The load in the guard must stay there: at r = 0 it would read before the buffer.
    value = x.load(p.expr * 6 + r.expr - 1)
    body = [
        Define(acc, const(1.0, dt.float32)),
        For(
            r,
            const(6),
            [Guard(odd, [Reduce(acc, "add", value)]), Guard(odd, [Assign(acc, op("mul", acc.expr, value))])],
            "serial",
        ),
        Store(result, p.expr, acc.expr),
    ]
    kernel = Kernel("guards", [x, result], [For(p, const(3), body, "parallel")])
    same(kernel, [data(dt.float32, 18, special=False), np.zeros(3, np.float32)], 3)


def test_nothing_is_read_by_a_loop_that_does_not_run() -> None:
    (x,), result, r, n = ins(dt.float32), out(dt.float32), Var("r"), Param("n", "int")
    acc, v = Register("acc", dt.float32), Var("v")
    far = x.load(const(1 << 50))
    loops = [For(r, n.expr, [Reduce(acc, "add", far)], "serial"), For(v, n.expr, [Reduce(acc, "add", far)], "vector")]
    kernel = Kernel("never", [x, result, n], [Define(acc, const(4.0, dt.float32)), *loops, Store(result, const(0), acc.expr)])
    assert same(kernel, [np.ones(1, np.float32), np.zeros(1, np.float32), 0])[1][0] == 4.0


def test_scratch_carries_values_between_loops() -> None:
    (x,), result, tmp, v, w = ins(dt.float32), out(dt.float32), Param("tmp", "scratch", dt.float32, False), Var("v"), Var("w")
    body = [
        For(v, const(20), [Store(tmp, v.expr, op("mul", x.load(v.expr), x.load(v.expr)))], "vector"),
        For(w, const(20), [Store(result, w.expr, op("add", tmp.load(w.expr), tmp.load(w.expr * -1 + 19)))], "vector"),
    ]
    same(
        Kernel("scratch", [x, result, tmp], body),
        [data(dt.float32, 20, special=False), np.zeros(20, np.float32), 64],
        scratch=256,
    )


def test_load_after_store_sees_it() -> None:
    buffer, result, v = out(dt.float32, "buffer"), out(dt.float32), Var("v")
    load = buffer.load(v.expr)
    body = [
        Store(result, v.expr, load),
        Store(buffer, v.expr, op("add", load, const(1.0, dt.float32))),
        Store(result, v.expr, op("mul", load, load)),
    ]
    kernel = Kernel("reload", [buffer, result], [For(v, const(11), body, "vector")])
    same(kernel, [data(dt.float32, 11, special=False), np.zeros(11, np.float32)])


# -- random kernels ------------------------------------------------------------------------------------------------


@st.composite
def expressions(draw: Any, leaves: list[Expr], depth: int = 5) -> Expr:
    """A random float32 expression; its comparisons and selects bring in bool, its casts other dtypes."""
    pool = list(leaves)
    for _ in range(draw(st.integers(1, 3 * depth))):
        x, y = draw(st.sampled_from(pool)), draw(st.sampled_from(pool))
        kind = draw(st.integers(0, 6))
        if kind <= 2:
            made = op(draw(st.sampled_from(["add", "sub", "mul", "min", "max", "copysign"])), x, y)
        elif kind == 3:
            made = op(draw(st.sampled_from(["neg", "abs", "floor", "rint", "sqrt", "sign"])), x)
        elif kind == 4:
            made = op("select", op(draw(st.sampled_from(["lt", "ge", "ne"])), x, y, dtype=dt.bool), y, x)
        elif kind == 5:
            via = draw(st.sampled_from([dt.float16, dt.bfloat16, dt.float64, dt.int32, dt.int8, dt.bool]))
            made = cast(cast(x, via), dt.float32)
        else:
            made = op("add", x, const(draw(st.sampled_from([0.0, -0.0, 1.5, -3.0, 1e10])), dt.float32))
        pool.append(made)
    return pool[-1]


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_random_elementwise(choose: Any) -> None:
    dtypes = choose.draw(st.lists(st.sampled_from(FLOATS), min_size=1, max_size=3))
    buffers, v, s = ins(*dtypes), Var("v"), Param("s", "int")
    n = choose.draw(st.sampled_from([3, 16, 37, 70]))
    leaves = []
    for b in buffers:
        step = choose.draw(st.sampled_from([1, 1, 1, 0, -1, 2, "s"]))
        at = v.expr * s.expr if step == "s" else v.expr * step + (n - 1 if step == -1 else 0)
        mask = op("lt", v.expr, const(n - 2), dtype=dt.bool) if choose.draw(st.booleans()) else None
        leaves.append(cast(b.load(at, mask), dt.float32))
    result = out(choose.draw(st.sampled_from([dt.float32, dt.float16, dt.bool])))
    value = choose.draw(expressions(leaves))
    kernel = Kernel(
        "random", [*buffers, result, s], [For(v, const(n), [Store(result, v.expr, cast(value, result.dtype))], "vector")]
    )
    arrays = [data(d, 2 * n, k) for k, d in enumerate(dtypes)]
    same(kernel, [*arrays, np.zeros(n, result.dtype.numpy), 2])


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_random_nests(choose: Any) -> None:
    """Loops in one another with registers and a reduction, over small integers so that any order of summation is exact."""
    shape = [choose.draw(st.integers(1, 20)) for _ in range(3)]
    kinds = choose.draw(st.sampled_from([("vector", "serial"), ("serial", "vector"), ("serial", "serial"), ("vector", "vector")]))
    p, a, b = Var("p"), Var("a"), Var("b")
    x, y = Param("x", "buffer", dt.float32), Param("y", "buffer", dt.int32)
    result, rows = out(dt.float32), out(dt.float32, "rows")
    total, part = Register("total", dt.float32), Register("part", dt.float32)
    order = choose.draw(st.permutations([0, 1, 2]))
    stride = [0, 0, 0]
    size = 1
    for axis in order:
        stride[axis], size = size, size * shape[axis]
    at = p.expr * stride[0] + a.expr * stride[1] + b.expr * stride[2]
    name = choose.draw(st.sampled_from(["add", "min", "max"]))
    value = op("add", x.load(at), cast(y.load(at), dt.float32))
    unroll = choose.draw(st.booleans())
    inner = For(b, const(shape[2]), [Reduce(part, name, value)], kinds[1], unroll)
    row = p.expr * shape[1] + a.expr
    body = [
        Define(part, const(0.0, dt.float32)),
        inner,
        Store(rows, row, part.expr),
        Reduce(total, "add", op("mul", part.expr, const(2.0, dt.float32))),
    ]
    outer = [Define(total, const(5.0, dt.float32)), For(a, const(shape[1]), body, kinds[0]), Store(result, p.expr, total.expr)]
    kernel = Kernel("nest", [x, y, result, rows], [For(p, const(shape[0]), outer, "parallel")], inplace=False)
    rng = np.random.default_rng(size)
    arrays = [rng.integers(-9, 9, size).astype(np.float32), rng.integers(-9, 9, size).astype(np.int32)]
    same(kernel, [*arrays, np.zeros(shape[0], np.float32), np.zeros(shape[0] * shape[1], np.float32)], shape[0])


# -- targets -------------------------------------------------------------------------------------------------------


def sampler() -> list[Kernel]:
    """Kernels that touch every awkward corner of code generation."""
    made = [softmax(3, None)]
    half = elementwise("half", ins(dt.float16, dt.bfloat16), out(dt.float16), lambda x, y: op("add", x, y))
    rounds = elementwise(
        "rounds", ins(dt.float32), out(dt.float32), lambda x: op("floor", op("rint", op("ceil", op("trunc", x))))
    )
    fma = elementwise("fma", ins(dt.float64, dt.float64), out(dt.float64), lambda x, y: op("fma", x, y, x))
    fma32 = elementwise("fma", ins(dt.float32, dt.float32), out(dt.float32), lambda x, y: op("fma", x, y, x))
    ints = elementwise("ints", ins(dt.int32, dt.int32), out(dt.int32), lambda x, y: op("idiv", x, op("shr", y, x)))
    casts = elementwise("casts", ins(dt.float64), out(dt.uint8), lambda x: cast(cast(x, dt.int64), dt.uint8))
    random = elementwise("random", ins(dt.int64), out(dt.int64), lambda c: op("philox", const(5), c, attr=2))
    return [*made, half, rounds, fma, fma32, ints, casts, random]


@pytest.mark.parametrize("effort", [jit.LIGHT, jit.FULL])
@pytest.mark.parametrize("name", sorted(NAMED))
def test_other_targets_emit_objects(name: str, effort: int) -> None:
    for kernel in sampler():
        target = NAMED[name]
        body = jit.compile_object(emit_module(kernel, target), target, effort)
        assert body[:4] == b"\x7fELF"
        assert llvm.ObjectFileRef.from_data(body).sections()


def test_the_baseline_gives_the_same_results() -> None:
    """x86-64 without SSE4, FMA or F16C runs here too: what it composes must equal the instructions it lacks."""
    if not host().is_x86:
        pytest.skip("x86 only")
    target = NAMED["x86-64"]
    n = 100
    for kernel in sampler()[1:]:
        arrays = [data(p.dtype, n, k) for k, p in enumerate(kernel.params[:-2])]
        rtol = 1e-15 if kernel.name == "fma" else 0.0
        same(kernel, [*arrays, np.zeros(n, kernel.params[-2].dtype.numpy), n], 2, target=target, rtol=rtol)


def test_both_efforts_agree() -> None:
    for kernel in sampler()[1:]:
        arrays = [data(p.dtype, 100, k) for k, p in enumerate(kernel.params[:-2])]
        rtol = 1e-15 if kernel.name == "fma" else 0.0
        same(kernel, [*arrays, np.zeros(100, kernel.params[-2].dtype.numpy), 100], 2, effort=jit.FULL, rtol=rtol)


def test_targets_by_name() -> None:
    from cermet import config
    from cermet.compiler.llvm.target import named

    assert named("") == named("host") == host()
    assert named("x86-64-v4").vector_bytes == 64 and named("x86-64").vector_bytes == 16
    narrow = named("x86-64-v4,-avx512f")
    assert narrow.vector_bytes == 32 and not narrow.has_avx512
    with pytest.raises(ValueError, match="unknown target"):
        named("pdp11")
    other = "aarch64" if host().is_x86 else "x86-64"
    with config.scope(cpu=other), pytest.raises(ValueError, match="cannot run"):
        host()
    if host().is_x86:
        with config.scope(cpu="x86-64"):
            assert host().vector_bytes == 16
        if not host().has_avx512:
            with config.scope(cpu="x86-64-v4"), pytest.raises(ValueError, match="lacks"):
                host()
