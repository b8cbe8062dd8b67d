"""What every op record promises, checked for every record: values, lowering, decomposition, gradients, refusals, laziness."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import cermet as ct
from cermet import dtypes as dt
from cermet.compiler.reference import _by_decomposition, apply_reference
from cermet.frontend.autograd import grad
from cermet.graph.node import meta
from cermet.lazy.record import local
from cermet.ops.define import REGISTRY, OpDef, Sample
from tests.ops.interpreter import run_lower
from tests.ops.sampling import array, arrays, assert_near, dtype_of, seed_of, tensors, widened

OPS = [op for op in REGISTRY.values() if op.samples]
NAMES = [op.name for op in OPS]
# Reductions and what is composed of them add many terms: their error is measured against the greatest of the results.
SUMS = ("attention", "reduce", "scan", "scatter", "composite", "contraction", "convolution", "recurrence")


def cases(op: OpDef) -> list[tuple[Sample, dt.DType]]:
    """All samples in the widest dtypes the op takes, the first two in the others."""
    main = [d for d in (dt.float32, dt.float64) if d in op.dtypes] or list(op.dtypes[-1:])
    return [(s, d) for d in op.dtypes for k, s in enumerate(op.samples) if d in main or k < 2]


def call_of(op: OpDef, values: list[Any], attrs: dict[str, Any]) -> Any:
    metas = tuple([meta(v.shape, dtype_of(v)) for v in values])
    return op.call_for(tuple([attrs[a] for a in op.attrs]), metas)


def listed(x: Any) -> list[Any]:
    return list(x) if isinstance(x, tuple | list) else [x]


def expected(op: OpDef, values: list[Any], attrs: dict[str, Any]) -> list[Any]:
    """The definition: the reference in float64 (the decomposition where there is no reference)."""
    wide = widened(values)
    with np.errstate(all="ignore"):
        if op.reference is not None:
            return listed(op.reference(*wide, **attrs))
        return listed(apply_reference(call_of(op, wide, attrs), wide))


@pytest.mark.parametrize("op", OPS, ids=NAMES)
def test_values(op: OpDef) -> None:
    """What is evaluated equals the reference in float64, in every dtype."""
    work = []
    for sample, d in cases(op):
        values = arrays(sample, d, op.name)
        outs = op(*tensors(values), **sample.attrs) if values else op(**sample.attrs)
        work.append((sample, d, values, listed(outs)))
    for sample, d, values, outs in work:
        for got, want in zip(outs, expected(op, values, sample.attrs), strict=True):
            name = f"{op.name} {d.name} {[v.shape for v in values]} {sample.attrs}"
            assert_near(got._array(), want, op.ulp, name, whole=op.kind in SUMS)


@pytest.mark.parametrize("op", [op for op in OPS if op.lower], ids=[op.name for op in OPS if op.lower])
def test_lowering(op: OpDef) -> None:
    """The loop IR that an op lowers to computes its reference."""
    for sample, d in cases(op):
        values = arrays(sample, d, op.name)
        call = call_of(op, values, sample.attrs)
        got = run_lower(op, values, [m.dtype for m in call.inputs], sample.attrs, call.meta.dtype)
        want = expected(op, values, sample.attrs)[0]
        assert_near(got, np.broadcast_to(want, got.shape), max(op.ulp, 2.0), f"lowering of {op.name} {d.name} {sample.attrs}")


COMPOSED = [op for op in OPS if op.decompose is not None and op.reference is not None]


@pytest.mark.parametrize("op", COMPOSED, ids=[op.name for op in COMPOSED])
def test_decomposition(op: OpDef) -> None:
    """A composite's decomposition computes its reference."""
    wide = dt.float64 if dt.float64 in op.dtypes else op.dtypes[-1]
    for sample in op.samples:
        values = arrays(sample, wide, op.name)
        got = listed(_by_decomposition(call_of(op, values, sample.attrs), values))
        for g, want in zip(got, listed(op.reference(*values, **sample.attrs)), strict=True):  # type: ignore[misc]
            assert_near(np.asarray(g), want, max(op.ulp * 4, 32), f"decomposition of {op.name} {sample.attrs}", whole=True)


# ---------------------------------------------------------------------------------------------------------- gradients


def differentiable(op: OpDef) -> list[Sample]:
    if op.vjp is None or dt.float64 not in op.dtypes:
        return []
    return [s for s in op.samples if s.gradient and any(a.dtype is None and a.domain != "bool" for a in s.args)]


SMOOTH = [op for op in OPS if differentiable(op)]


def weighted(op: OpDef, values: list[Any], attrs: dict[str, Any], weights: list[Any]) -> float:
    with np.errstate(all="ignore"):
        outs = expected(op, values, attrs)
    return float(sum(np.sum(np.asarray(o, np.float64) * w) for o, w in zip(outs, weights, strict=True) if w is not None))


def setup(op: OpDef, sample: Sample) -> tuple[list[Any], list[Any], list[Any], list[Any]]:
    """Arrays, weights of the floating results, a direction for each floating input, and which inputs those are."""
    rng = seed_of("gradient", op.name, sample.attrs)
    values = arrays(sample, dt.float64, "gradient", op.name)
    outs = expected(op, values, sample.attrs)
    weights = [rng.uniform(0.5, 1.5, np.shape(o)) if np.asarray(o).dtype.kind == "f" else None for o in outs]
    places = [k for k, v in enumerate(values) if v.dtype == np.float64 and not sample.args[k].constant]
    return values, weights, [rng.uniform(-1, 1, values[k].shape) for k in places], places


def moved(values: list[Any], place: int, direction: Any, h: float) -> list[Any]:
    return [np.asarray(v + h * direction) if k == place else v for k, v in enumerate(values)]


def total(outs: Any, weights: list[Any]) -> Any:
    out = None
    for o, w in zip(listed(outs), weights, strict=True):
        if w is not None:
            part = (o * ct.tensor(w)).sum()
            out = part if out is None else out + part
    return out


@pytest.mark.parametrize("op", SMOOTH, ids=[op.name for op in SMOOTH])
def test_gradient(op: OpDef) -> None:
    """The gradient equals central differences of the reference along random directions."""
    for sample in differentiable(op):
        values, weights, directions, places = setup(op, sample)
        inputs = tensors(values, requires_grad=True)
        loss = total(op(*inputs, **sample.attrs), weights)
        if not loss.requires_grad:
            pytest.fail(f"{op.name} {sample.attrs}: no gradient is recorded")
        grads = grad(loss, [inputs[k] for k in places], allow_unused=True)
        for k, v, g in zip(places, directions, grads, strict=True):
            h = 1e-5
            slope = weighted(op, moved(values, k, v, h), sample.attrs, weights) - weighted(
                op, moved(values, k, v, -h), sample.attrs, weights
            )
            numeric = slope / (2 * h)
            analytic = 0.0 if g is None else float(np.sum(g._array() * v))
            assert g is None or tuple(g.shape) == values[k].shape, (
                f"{op.name}: gradient of shape {g.shape} for input {values[k].shape}"
            )
            scale = max(1.0, abs(numeric))
            assert abs(analytic - numeric) <= 2e-6 * scale, f"{op.name} {sample.attrs} input {k}: {analytic} against {numeric}"


def slopes(
    op: OpDef, sample: Sample, at: list[Any], weights: Any, directions: Any, places: Any, create: bool
) -> tuple[Any, list[Any]]:
    """The gradients' sum along the directions, and the leaves; with ``create`` it can be differentiated itself."""
    inputs = tensors(at, requires_grad=True)
    loss = total(op(*inputs, **sample.attrs), weights)
    first = grad(loss, [inputs[k] for k in places], create_graph=create, allow_unused=True)
    out: Any = 0.0
    for g, v in zip(first, directions, strict=True):
        if g is not None:
            out = (g * ct.tensor(v)).sum() + out
    return out, inputs


@pytest.mark.parametrize("op", SMOOTH, ids=[op.name for op in SMOOTH])
def test_second_gradient(op: OpDef) -> None:
    """The gradient of the gradient equals central differences of the gradient along a random direction."""
    samples = [s for s in differentiable(op) if all(0 not in a.shape for a in s.args)]
    for sample in samples[-1:]:
        values, weights, directions, places = setup(op, sample)
        out, inputs = slopes(op, sample, values, weights, directions, places, True)
        if not out.requires_grad:
            continue  # linear: its second derivative is zero by construction
        second = grad(out, [inputs[k] for k in places], allow_unused=True)
        for k, v, g in zip(places, directions, second, strict=True):
            h = 1e-5
            high, low = (
                slopes(op, sample, moved(values, k, v, s), weights, directions, places, False)[0].item() for s in (h, -h)
            )
            numeric = (high - low) / (2 * h)
            analytic = 0.0 if g is None else float(np.sum(g._array() * v))
            scale = max(1.0, abs(numeric))
            assert abs(analytic - numeric) <= 1e-5 * scale, f"{op.name} {sample.attrs} input {k}: {analytic} against {numeric}"


# ---------------------------------------------------------------------------------------------------------- refusals, laziness

REFUSING = [op for op in OPS if op.failing]


@pytest.mark.parametrize("op", REFUSING, ids=[op.name for op in REFUSING])
def test_refusals(op: OpDef) -> None:
    """Inputs that must fail do, at the call, with the error the record names."""
    for bad in op.failing:
        rng = seed_of("failing", op.name)
        d = dt.float32 if dt.float32 in op.dtypes else op.dtypes[-1]
        values = [array(a, d, rng) for a in bad.args]
        with pytest.raises(bad.error, match=bad.match or None):
            op(*tensors(values), **bad.attrs)


@pytest.mark.parametrize("op", OPS, ids=NAMES)
def test_eager_equals_deferred(op: OpDef) -> None:
    """Evaluating each op at once gives the same bits."""
    sample = op.samples[0]
    d = dt.float32 if dt.float32 in op.dtypes else op.dtypes[-1]
    values = arrays(sample, d, "eager", op.name)
    late = [o._array() for o in listed(op(*tensors(values), **sample.attrs))]
    local.tape.eager = True
    try:
        soon = [o._array() for o in listed(op(*tensors(values), **sample.attrs))]
    finally:
        local.tape.eager = False
    for a, b in zip(late, soon, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("op", OPS, ids=NAMES)
def test_record_is_complete(op: OpDef) -> None:
    """A record says what it is, in which dtypes, and how its values are made."""
    assert op.doc, f"{op.name} has no doc"
    assert op.dtypes, f"{op.name} names no dtypes"
    if op.kind == "elementwise":
        assert op.lower is not None and op.reference is not None, f"{op.name} needs lower and reference"
    elif op.kind == "composite":
        assert op.decompose is not None, f"{op.name} needs a decomposition"
    else:
        assert op.reference is not None, f"{op.name} needs a reference"
