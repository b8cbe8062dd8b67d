"""Attention's kernels against NumPy in float64: shapes, strides, masks, dtypes, in guarded memory; the same bits however blocks are cut."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cermet import dtypes as dt
from cermet.compiler.kernels.attention import AttentionSpec, plan_backward, plan_forward
from cermet.compiler.llvm.target import host, named
from tests.compiler.harness import Bound, Guarded

F32, F64 = dt.float32, dt.float64
SCALE = 0.3
TOLERANCE = {8: 1e-12, 4: 6e-6, 2: 3e-2}
Case = tuple[Any, ...]

CASES: list[Case] = [
    # batch, heads, L, S, E, Ev, dtype, causal, mask (shape, kind), order of the dims in memory
    (2, 3, 5, 7, 4, 6, F32, False, None, None),
    (1, 2, 130, 200, 33, 41, F32, True, None, (0, 2, 1, 3)),
    (1, 1, 70, 500, 64, 64, F32, False, None, (0, 2, 1, 3)),
    (2, 2, 77, 77, 40, 40, F32, True, None, None),
    (1, 1, 600, 300, 16, 24, F32, True, None, None),
    (1, 2, 70, 200, 16, 8, F32, False, ("key", "bool"), None),
    (1, 2, 70, 200, 16, 8, F32, False, ("key", "added"), None),
    (1, 2, 70, 203, 16, 9, F32, False, ("both", "bool"), None),
    (2, 2, 70, 203, 16, 9, F32, False, ("full", "added"), None),
    (1, 2, 40, 60, 16, 9, F32, True, ("full", "added"), None),
    (1, 1, 1, 1, 1, 1, F32, True, None, None),
    (1, 1, 9, 0, 2, 2, F32, False, None, None),
    (2, 3, 1, 1100, 24, 20, F32, False, None, None),
    (1, 2, 3, 50, 24, 20, F32, True, ("full", "bool"), None),
    (2, 3, 40, 50, 20, 24, F64, True, None, None),
    (2, 1, 40, 50, 20, 24, F64, False, ("full", "bool"), None),
    (2, 3, 40, 50, 20, 24, dt.bfloat16, True, None, None),
    (2, 3, 40, 50, 20, 24, dt.float16, False, ("key", "bool"), None),
    (2, 2, 40, 50, 20, 24, F32, True, None, (3, 2, 1, 0)),
]


class Memory:
    """An operand in guarded memory, its dims in ``order``, outermost first."""

    def __init__(self, shape: tuple[int, ...], dtype: dt.DType, order: Any, rng: np.random.Generator) -> None:
        strides, step = [0] * len(shape), 1
        for axis in reversed(order or range(len(shape))):
            strides[axis], step = step, step * max(shape[axis], 1)
        self.memory = Guarded(step * dtype.itemsize)
        flat = self.memory.array.view(dtype.numpy)
        self.array = np.lib.stride_tricks.as_strided(flat, shape, [s * dtype.itemsize for s in strides])
        self.array[...] = rng.standard_normal(shape).astype(dtype.numpy) if dtype.kind == "f" else rng.random(shape) > 0.3
        self.strides, self.address = tuple(strides), int(self.memory.array.ctypes.data)

    @property
    def wide(self) -> np.ndarray:
        return self.array.astype(np.float64)


class Setup:
    """The operands of one case, what is expected, and the spec."""

    def __init__(self, case: Case, target: Any = None) -> None:
        b, h, l, s, e, ev, self.dtype, causal, mask, order = case
        rng = np.random.default_rng(7)
        self.acc, self.target = self.dtype.compute, target or host()
        shapes = {"q": (b, h, l, e), "k": (b, h, s, e), "v": (b, h, s, ev), "g": (b, h, l, ev), "out": (b, h, l, ev)}
        shapes |= {"dq": shapes["q"], "dk": shapes["k"], "dv": shapes["v"]}
        turned = {"out": (0, 2, 1, 3)}
        self.m = {n: Memory(shape, self.dtype, turned.get(n, order), rng) for n, shape in shapes.items()}
        strides = [(n, m.strides) for n, m in self.m.items()]
        self.m["lse"] = Memory((b, h, l), self.acc, None, rng)
        self.m["dmask"] = Memory((b, h, s, l), self.acc, None, rng)
        self.mask: Any = None
        if mask is not None:
            shape = {"key": (b, 1, 1, s), "both": (1, 1, l, s), "full": (b, h, l, s)}[mask[0]]
            self.m["mask"] = m = Memory(shape, dt.bool if mask[1] == "bool" else self.acc, None, rng)
            if mask[1] == "bool" and mask[0] != "key":
                m.array[..., 0, :] = False  # a query that sees nothing
            strides.append(("mask", tuple([0 if n == 1 else t for n, t in zip(shape, m.strides, strict=True)])))
            self.mask = m.array
        kind = None if self.mask is None else dt.bool if self.mask.dtype == bool else self.acc
        self.spec = AttentionSpec(self.dtype, causal, SCALE, (b, h), l, s, e, ev, tuple(strides), kind)
        self._expect()

    def _expect(self) -> None:
        q, k, v, g = (self.m[n].wide for n in "qkvg")
        s = q @ np.swapaxes(k, -1, -2) * SCALE
        if self.spec.causal:
            s = np.where(np.tri(*s.shape[-2:], dtype=bool), s, -np.inf)
        if self.mask is not None:
            s = np.where(self.mask, s, -np.inf) if self.mask.dtype == bool else s + self.mask
        top = s.max(-1, keepdims=True, initial=-np.inf)
        base = np.where(np.isinf(top), 0, top)
        total = np.exp(s - base).sum(-1, keepdims=True)
        with np.errstate(divide="ignore"):
            self.lse = np.where(total == 0, np.inf, base + np.log(total))
        p = np.exp(s - self.lse)
        self.out = p @ v
        ds = p * (g @ np.swapaxes(v, -1, -2) - (g * self.out).sum(-1, keepdims=True))
        turned = np.swapaxes(ds, -1, -2)
        self.gradients = {"q": ds @ k * SCALE, "k": turned @ q * SCALE, "v": np.swapaxes(p, -1, -2) @ g, "mask": turned}

    @property
    def wants(self) -> frozenset[str]:
        return frozenset("qkv") | ({"mask"} if self.spec.mask is self.acc else frozenset())

    def bind(self, plan: Any) -> Bound:
        return Bound(plan, self.target, {n: m.address for n, m in self.m.items()}, guarded=True)

    def near(self, name: str, want: np.ndarray) -> None:
        got, tolerance = self.m[name].wide, TOLERANCE[self.dtype.itemsize]
        size = max(1.0, float(np.abs(want[np.isfinite(want)]).max(initial=0.0)))
        np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance * size, err_msg=name)


def names(case: Case) -> str:
    *sizes, d, causal, mask, order = case
    return "-".join([*map(str, sizes), d.name, *(["causal"] if causal else []), *(mask or ()), *map(str, order or ())])


@pytest.mark.parametrize("case", CASES, ids=names)
def test_forward(case: Case) -> None:
    """The result and its lse, whole and with blocks in another order."""
    t = Setup(case)
    bound = t.bind(plan_forward(t.spec, t.target))
    bound.run()
    t.near("out", t.out)
    t.near("lse", t.lse[..., 0])
    bits = t.m["out"].array.copy(), t.m["lse"].array.copy()
    bound.run((0.2, 0.5, 0.7))
    for name, before in zip(("out", "lse"), bits, strict=True):
        np.testing.assert_array_equal(t.m[name].array, before)


@pytest.mark.parametrize("case", CASES, ids=names)
def test_backward(case: Case) -> None:
    """All gradients, whole and with blocks in another order."""
    t = Setup(case)
    t.m["out"].array[...], t.m["lse"].array[...] = t.out, t.lse[..., 0]
    bound = t.bind(plan_backward(t.spec, t.target, t.wants))
    bound.run()
    for name in sorted(t.wants):
        t.near(f"d{name}", t.gradients[name])
    bits = {n: t.m[f"d{n}"].array.copy() for n in t.wants}
    bound.run((0.3, 0.6))
    for name, before in bits.items():
        np.testing.assert_array_equal(t.m[f"d{name}"].array, before)


@pytest.mark.parametrize("wants", ["q", "k", "v", "qv"])
def test_some_gradients(wants: str) -> None:
    """Those that nobody wants are neither computed nor written."""
    t = Setup((2, 1, 50, 40, 20, 24, F32, True, None, None))
    t.m["out"].array[...], t.m["lse"].array[...] = t.out, t.lse[..., 0]
    before = {n: t.m[f"d{n}"].array.copy() for n in "qkv" if n not in wants}
    t.bind(plan_backward(t.spec, t.target, frozenset(wants))).run()
    for name in wants:
        t.near(f"d{name}", t.gradients[name])
    for name, was in before.items():
        np.testing.assert_array_equal(t.m[f"d{name}"].array, was)


def test_long_rows_are_cut_by_shape() -> None:
    """One head's queries are shared out in chunks; the chunks' parts are added up by another launch."""
    t = Setup((1, 1, 600, 700, 40, 72, F32, False, None, None))
    plan = plan_backward(t.spec, t.target, t.wants)
    assert plan.launches[0].blocks > 1
    assert len(plan.launches) == 3
    assert max(plan.temps) <= 16 * 700 * 72 * 4  # parts of dV, not scores
    t.m["out"].array[...], t.m["lse"].array[...] = t.out, t.lse[..., 0]
    t.bind(plan).run()
    for name in "qkv":
        t.near(f"d{name}", t.gradients[name])


def test_scratch_does_not_grow_with_length() -> None:
    def scratch(length: int) -> list[int]:
        strides = tuple([(n, (length * 64, 64, 1)) for n in ("q", "k", "v", "out", "g", "dq", "dk", "dv")])
        spec = AttentionSpec(F32, True, 1.0, (8,), length, length, 64, 64, strides)
        plans = plan_forward(spec, host()), plan_backward(spec, host(), frozenset("qkv"))
        return [p.launches[0].scratch for p in plans]

    assert scratch(8192) == scratch(65536)


@pytest.mark.parametrize("machine", ["x86-64", "x86-64-v4", "aarch64"])
def test_other_machines_have_a_tile(machine: str) -> None:
    """Kernels for other machines are at least written and verified."""
    import llvmlite.binding as llvm

    target = named(machine)
    t = Setup((1, 2, 70, 60, 24, 20, F32, True, None, None))
    for plan in (plan_forward(t.spec, target), plan_backward(t.spec, target, t.wants)):
        for launch in plan.launches:
            llvm.parse_assembly(str(launch.build())).verify()


def test_too_many_batch_dims() -> None:
    with pytest.raises(ValueError, match="at most three batch dimensions"):
        AttentionSpec(F32, False, 1.0, (2, 2, 2, 2), 3, 3, 3, 3, ())
