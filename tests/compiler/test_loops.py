"""The loop IR itself: what the verifier refuses, what the fingerprint tells apart, how a kernel reads."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest

from cermet import dtypes as dt
from cermet.compiler.loops.interpret import interpret
from cermet.compiler.loops.ir import Assign, Define, Expr, For, Guard, Kernel, Param, Reduce, Register, Stmt, Store, Var, const
from cermet.compiler.loops.text import fingerprint, to_text
from cermet.compiler.loops.verify import VerifyError, verify

X = Param("x", "buffer", dt.float32)
I = Param("i", "buffer", dt.int64)
Y = Param("y", "buffer", dt.float32, readonly=False)
N = Param("n", "int")
V, W, R = Var("v"), Var("w"), Var("r")
ACC = Register("acc", dt.float32)
ONE = const(1.0, dt.float32)


def op(name: str, *args: Expr, dtype: dt.DType | None = None, attr: Any = None) -> Expr:
    return Expr(name, args, args[-1].dtype if dtype is None else dtype, attr)


def kernel(*body: Stmt) -> Kernel:
    return Kernel("k", [X, I, Y, N], list(body))


def store(value: Expr, at: Expr | None = None, mask: Expr | None = None, buffer: Param = Y) -> Store:
    return Store(buffer, const(0) if at is None else at, value, mask)


def in_vector(*body: Stmt) -> Kernel:
    return kernel(For(V, const(8), list(body), "vector"))


POSITIVE = op("gt", V.expr, const(0), dtype=dt.bool)

WRONG: dict[str, tuple[Kernel, str]] = {
    "unknown operation": (kernel(store(op("frobnicate", ONE))), "unknown operation"),
    "arity": (kernel(store(op("add", ONE))), "takes 2 operands"),
    "mixed dtypes": (kernel(store(op("add", const(1), ONE))), "add of int64 and float32"),
    "result dtype": (kernel(store(op("lt", ONE, ONE))), "gives bool"),
    "floating operation of integers": (kernel(store(op("exp", const(1), dtype=dt.int64))), "floating"),
    "division of integers": (kernel(store(op("div", const(1), const(1)))), "floating"),
    "shift of floats": (kernel(store(op("shl", ONE, ONE))), "integers"),
    "select by a number": (kernel(store(op("select", ONE, ONE, ONE))), "expected bool"),
    "bitcast of widths": (kernel(store(op("bitcast", ONE, dtype=dt.float64))), "widths"),
    "16-bit arithmetic": (kernel(store(op("add", ONE, ONE, dtype=dt.float16))), "memory only"),
    "constant": (kernel(store(const("one", dt.float32))), "constant"),
    "philox word": (kernel(store(op("cast", op("philox", const(1), const(1), attr=7), dtype=dt.float32))), "word"),
    "store dtype": (kernel(store(const(1))), "expected float32"),
    "store to readonly": (kernel(store(ONE, buffer=X)), "readonly"),
    "store to a stranger": (kernel(store(ONE, buffer=Param("z", "buffer", dt.float32, False))), "not a parameter"),
    "store to an int": (kernel(Store(N, const(0), const(0))), "no buffer"),
    "store offset": (kernel(store(ONE, at=ONE)), "expected int64"),
    "mask dtype": (kernel(store(ONE, mask=ONE)), "expected bool"),
    "load from a stranger": (kernel(store(Param("z", "buffer", dt.float32).load(0))), "not a parameter"),
    "load dtype": (kernel(store(Expr("load", (const(0),), dt.float32, I))), "gives int64"),
    "load offset": (kernel(store(Expr("load", (ONE,), dt.float32, X))), "offset must be int64"),
    "value of a buffer": (kernel(store(Expr("param", (), dt.float32, X))), "load from it"),
    "variable out of scope": (kernel(For(R, const(2), [store(ONE)]), store(X.load(R.expr))), "outside its loop"),
    "loop variable twice": (kernel(For(R, const(2), [For(R, const(2), [store(ONE)])])), "enclosing loop"),
    "register before its definition": (kernel(store(ACC.expr)), "before it is defined"),
    "register out of scope": (kernel(For(R, const(2), [Define(ACC, ONE)]), store(ACC.expr)), "out of its scope"),
    "register twice": (kernel(Define(ACC, ONE), Define(ACC, ONE)), "already"),
    "register of a guard": (kernel(Guard(const(True, dt.bool), [Define(ACC, ONE)]), store(ACC.expr)), "out of its scope"),
    "assign before definition": (kernel(Assign(ACC, ONE)), "not defined"),
    "reduce before definition": (kernel(Reduce(ACC, "add", ONE)), "not defined"),
    "reduction": (kernel(Define(ACC, ONE), Reduce(ACC, "sub", ONE)), "no reduction"),
    "reduction of dtype": (kernel(Define(ACC, ONE), Reduce(ACC, "and", ONE)), "float32"),
    "parallel inside": (kernel(For(R, const(2), [For(W, const(2), [store(ONE)], "parallel")])), "outermost"),
    "parallel beside": (kernel(For(R, const(2), [store(ONE)], "parallel"), store(ONE)), "outermost"),
    "kind": (kernel(For(R, const(2), [], "sideways")), "kind"),  # type: ignore[arg-type]
    "extent dtype": (kernel(For(R, ONE, [])), "expected int64"),
    "extent by lane": (in_vector(For(R, V.expr, [store(ONE)])), "lane to lane"),
    "extent by loaded lane": (in_vector(For(R, I.load(V.expr), [store(ONE)])), "lane to lane"),
    "guard by lane": (in_vector(Guard(POSITIVE, [store(ONE)])), "lane to lane"),
    "assign from lanes": (kernel(Define(ACC, ONE), For(V, const(8), [Assign(ACC, X.load(V.expr))], "vector")), "only Reduce"),
    "read while reducing": (
        kernel(Define(ACC, ONE), For(V, const(8), [Reduce(ACC, "add", X.load(V.expr)), store(ACC.expr, V.expr)], "vector")),
        "reduces into it",
    ),
    "two reductions": (
        kernel(Define(ACC, ONE), For(V, const(8), [Reduce(ACC, "add", ONE), Reduce(ACC, "mul", ONE)], "vector")),
        "one vector loop",
    ),
    "race": (in_vector(store(X.load(V.expr))), "one element"),
    "parameter twice": (Kernel("k", [X, X], []), "twice"),
}


@pytest.mark.parametrize("what", WRONG)
def test_refused(what: str) -> None:
    wrong, message = WRONG[what]
    with pytest.raises(VerifyError, match=message) as caught:
        verify(wrong)
    assert "kernel k" in str(caught.value)


def test_the_statement_is_named() -> None:
    with pytest.raises(VerifyError, match=r"store to y\[\(r \* 3\)\]"):
        verify(kernel(For(R, const(4), [store(const(1), R.expr * 3)])))


def test_accepted() -> None:
    uniform = Register("uniform", dt.int64)
    lane = Register("lane", dt.float32)
    verify(
        kernel(
            Define(uniform, const(3)),
            Define(ACC, ONE),
            For(
                V,
                N.expr,
                [
                    Define(lane, X.load(V.expr)),
                    For(R, uniform.expr, [Assign(lane, op("add", lane.expr, ONE))]),
                    Guard(op("lt", uniform.expr, const(5), dtype=dt.bool), [store(lane.expr, V.expr, POSITIVE)]),
                    Reduce(ACC, "add", lane.expr),
                ],
                "vector",
            ),
            store(ACC.expr),
        )
    )


def deep(n: int) -> Kernel:
    e: Expr = X.load(V.expr)
    for _ in range(n):
        e = op("add", e, e)  # shared: a walk without memory would never end
    return in_vector(store(op("mul", e, const(0.0, dt.float32)), V.expr))


def test_deep_shared_expressions_take_linear_time() -> None:
    k = deep(20_000)
    start = time.perf_counter()
    verify(k)
    fingerprint(k)
    text = to_text(k)
    assert time.perf_counter() - start < 5
    assert len(text.splitlines()) < 21_000
    x, y = np.zeros(8, np.float32), np.ones(8, np.float32)
    interpret(k, [x, np.zeros(1, np.int64), y, 0])
    assert not y.any()


# -- fingerprints --------------------------------------------------------------------------------------------------


def sample(
    name: str = "a", value: float = 1.0, kind: Any = "vector", extent: int = 8, dtype: dt.DType = dt.float32, other: str = "add",
    readonly: bool = True, swapped: bool = False, inplace: bool = True, unroll: bool = False, nested: bool = False,
) -> Kernel:  # fmt: skip
    x, y = Param(name + "x", "buffer", dtype, readonly), Param(name + "y", "buffer", dtype, False)
    v, w = Var(name + "v"), Var(name + "w")
    left, right = x.load(v.expr), const(value, dtype)
    body: list[Stmt] = [Store(y, v.expr, op(other, right, left) if swapped else op(other, left, right))]
    extra: list[Stmt] = [Store(y, const(0), const(value, dtype))]
    inner = For(w, const(2), extra)
    loop = For(v, const(extent), [*body, inner] if nested else body, kind, unroll)
    return Kernel(name, [x, y], [loop] if nested else [loop, inner], inplace)


def test_names_and_identities_do_not_matter() -> None:
    assert fingerprint(sample("a")) == fingerprint(sample("b")) == fingerprint(sample("a"))


def test_everything_else_matters() -> None:
    variants = [
        sample(), sample(value=2.0), sample(value=-0.0), sample(value=0.0), sample(value=float("nan")), sample(kind="serial"),
        sample(extent=9), sample(dtype=dt.float64), sample(dtype=dt.float16), sample(other="mul"), sample(readonly=False),
        sample(swapped=True), sample(inplace=False), sample(unroll=True), sample(nested=True),
    ]  # fmt: skip
    assert len({fingerprint(k) for k in variants}) == len(variants)


def test_constants_of_equal_value_and_unlike_type_differ() -> None:
    def one(value: Any, d: dt.DType) -> Kernel:
        y = Param("y", "buffer", d, False)
        return Kernel("k", [y], [Store(y, const(0), const(value, d))])

    assert fingerprint(one(1, dt.int64)) != fingerprint(one(1.0, dt.float64))
    assert fingerprint(one(0, dt.int32)) != fingerprint(one(False, dt.bool))


def test_which_parameter_is_used_matters() -> None:
    a, b = Param("a", "buffer", dt.float32), Param("b", "buffer", dt.float32)
    first = Kernel("k", [a, b, Y], [store(op("sub", a.load(0), b.load(0)))])
    second = Kernel("k", [a, b, Y], [store(op("sub", b.load(0), a.load(0)))])
    assert fingerprint(first) != fingerprint(second)


def test_text() -> None:
    body = For(V, N.expr, [Store(Y, V.expr, op("mul", X.load(V.expr), const(2.0, dt.float32)))], "vector")
    assert to_text(kernel(body)).splitlines() == [
        "kernel k(x: buffer float32, i: buffer int64, y: out buffer float32, n: int):",
        "    vector v < n:",
        "        y[v] = (x[v] * 2.0)",
    ]


# -- the interpreter -----------------------------------------------------------------------------------------------


def test_the_interpreter_refuses_to_leave_a_buffer() -> None:
    for k in (in_vector(store(X.load(V.expr + 1), V.expr)), in_vector(store(ONE, V.expr - 1))):
        with pytest.raises(IndexError, match="elements"):
            interpret(k, [np.zeros(8, np.float32), np.zeros(1, np.int64), np.zeros(8, np.float32), 0])


def test_blocks_as_lanes_and_one_by_one_agree() -> None:
    p = Var("p")
    lanes = kernel(For(p, const(4), [For(R, const(3), [store(X.load(p.expr * 3 + R.expr), p.expr * 3 + R.expr)])], "parallel"))
    blocks = kernel(
        For(p, const(4), [For(V, const(3), [store(X.load(p.expr * 3 + V.expr), p.expr * 3 + V.expr)], "vector")], "parallel")
    )
    x = np.arange(12, dtype=np.float32)
    for k in (lanes, blocks):
        y = np.zeros(12, np.float32)
        interpret(k, [x, np.zeros(1, np.int64), y, 0])
        np.testing.assert_array_equal(x, y)
