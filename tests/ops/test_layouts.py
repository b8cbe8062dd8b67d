"""The same values under any layout: transposed, sliced, reversed, expanded or empty inputs give what contiguous ones give."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

import cermet as ct
from cermet import dtypes as dt
from cermet.ops.define import REGISTRY, OpDef
from tests.ops.sampling import assert_near

UNARY = [
    op for op in REGISTRY.values()
    if op.kind == "elementwise" and op.samples and len(op.samples[0].args) == 1 and dt.float32 in op.dtypes and not op.attrs
]  # fmt: skip
BINARY = [
    op for op in REGISTRY.values()
    if op.kind == "elementwise" and op.samples and len(op.samples[0].args) == 2 and dt.float32 in op.dtypes and not op.attrs
]  # fmt: skip
REDUCTIONS = [op for op in REGISTRY.values() if op.kind == "reduce" and dt.float32 in op.dtypes]


@st.composite
def views(draw: Any, shape: tuple[int, ...] | None = None) -> tuple[Any, Any]:
    """A tensor that is a view and the NumPy array of its value; of ``shape`` where given."""
    if shape is None:
        shape = tuple(draw(st.lists(st.integers(0, 4), min_size=1, max_size=3)))
    kind = draw(st.sampled_from(("plain", "permuted", "stepped", "reversed", "offset", "expanded")))
    seed = draw(st.integers(0, 1000))
    rng = np.random.default_rng(seed)
    if kind == "permuted":
        order = tuple(draw(st.permutations(range(len(shape)))))
        a = rng.uniform(0.5, 2.0, [shape[order.index(k)] for k in range(len(shape))]).astype(np.float32)
        return ct.tensor(a).permute(order), a.transpose(order)
    if kind == "expanded" and math.prod(shape):
        a = rng.uniform(0.5, 2.0, (1, *shape[1:])).astype(np.float32)
        return ct.tensor(a).expand(shape), np.broadcast_to(a, shape)
    if kind in ("stepped", "reversed", "offset"):
        step = {"stepped": 2, "reversed": -1, "offset": 1}[kind]
        pad = {"stepped": [2 * n for n in shape], "reversed": list(shape), "offset": [n + 1 for n in shape]}[kind]
        a = rng.uniform(0.5, 2.0, pad).astype(np.float32)
        index = tuple(slice(1, None) if kind == "offset" else slice(None, None, step) for _ in shape)
        return ct.tensor(a)[index], a[index]
    a = rng.uniform(0.5, 2.0, shape).astype(np.float32)
    return ct.tensor(a), a


def agree(op: OpDef, got: Any, arrays: list[Any], **attrs: Any) -> None:
    with np.errstate(all="ignore"):
        want = op.reference(*[a.astype(np.float64) for a in arrays], **attrs)  # type: ignore[misc]
    assert_near(got._array(), want, max(op.ulp, 1), op.name, whole=op.kind == "reduce")


@settings(max_examples=80)
@given(st.sampled_from(UNARY), views())
def test_unary(op: OpDef, pair: tuple[Any, Any]) -> None:
    t, a = pair
    agree(op, op(t), [a])


@settings(max_examples=80)
@given(st.data())
def test_binary(data: st.DataObject) -> None:
    op = data.draw(st.sampled_from(BINARY))
    x, a = data.draw(views())
    shape = tuple(1 if data.draw(st.booleans()) else n for n in a.shape)[data.draw(st.integers(0, a.ndim)) :]
    y, b = data.draw(views(shape)) if shape else (ct.tensor(1.25), np.float32(1.25))
    agree(op, op(x, y), [a, np.asarray(b)])


@settings(max_examples=60)
@given(st.data())
def test_reductions(data: st.DataObject) -> None:
    op = data.draw(st.sampled_from(REDUCTIONS))
    t, a = data.draw(views())
    dims = tuple(d for d in range(a.ndim) if data.draw(st.booleans()))
    if op.identity in ("min", "max") and any(a.shape[d] == 0 for d in dims):
        return
    keep = data.draw(st.booleans())
    agree(op, op(t, dims=dims, keepdim=keep), [a], dims=dims, keepdim=keep)


@settings(max_examples=60)
@given(st.data())
def test_views_of_views(data: st.DataObject) -> None:
    """Chains of views keep element and gradient in their places."""
    shape = tuple(data.draw(st.lists(st.integers(0, 4), min_size=1, max_size=3)))
    a: Any = (np.arange(math.prod(shape), dtype=np.float32) + 1).reshape(shape)
    leaf = ct.tensor(a).requires_grad_()
    v: Any = leaf * 1
    for _ in range(data.draw(st.integers(1, 4))):
        step = data.draw(st.sampled_from(("flip", "transpose", "half", "flat", "new")))
        if step == "flip":
            v, a = v[::-1], a[::-1]
        elif step == "transpose":
            v, a = v.transpose(0, v.ndim - 1), np.swapaxes(a, 0, a.ndim - 1)
        elif step == "half":
            v, a = v[..., ::2], a[..., ::2]
        elif step == "flat":
            v, a = v.reshape(-1), a.reshape(-1)
        else:
            v, a = v.unsqueeze(0), a[None]
    np.testing.assert_array_equal(v.numpy(force=True), a)
    (v * v).sum().backward()
    seen = leaf.detach().numpy()
    kept = np.isin(seen, a)
    np.testing.assert_array_equal(leaf.grad.numpy(), np.where(kept, 2 * seen, 0))
