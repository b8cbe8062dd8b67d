"""The recurrence proper of a recurrent layer as two primitives: all steps forwards, and all steps back.

Each has one result, a flat vector whose parts (`forward_parts`, `backward_parts`) are seen by slices. Products with the inputs'
weights and the gradients of both weights are contractions over all steps, outside.

With a = h W^T + b for the state h before a step, s the logistic function and x what entered (products of the input with its weights):

    rnn     h' = tanh(x + a), or max(x + a, 0)
    lstm    i, f, o = s(x + a);  g = tanh(x + a);  c' = f c + i g;  h' = o tanh(c')       parts in the order i, f, g, o
    gru     r, z = s(x + a);  n = tanh(x + r a);  h' = n + z (h - n)                      parts in the order r, z, n

Elman 1990; Hochreiter, Schmidhuber 1997, with the forget gate of Gers et al. 2000; Cho et al. 2014 (arXiv:1406.1078), the reset gate
applied after the product as in PyTorch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from cermet import dtypes as dt
from cermet.graph.node import Call, Meta, meta
from cermet.ops.composing import crop, shaped
from cermet.ops.define import Arg, OpDef, Sample, ShapeError
from cermet.ops.support import same_dtype

__all__ = [
    "GATES", "Part", "backward_parts", "forward_parts", "part", "recurrence", "recurrence_grad", "takes_any_strides",
]  # fmt: skip

GATES = {"rnn_tanh": 1, "rnn_relu": 1, "lstm": 4, "gru": 3}
"""Kind -> rows of the weights per unit."""
_SAVED = {"rnn_tanh": 0, "rnn_relu": 0, "lstm": 4, "gru": 4}

Part = tuple[int, tuple[int, ...]]
"""Offset in the vector, shape."""


def _sequence(steps: int, rows: int, width: int, batch_first: bool) -> tuple[int, ...]:
    return (rows, steps, width) if batch_first else (steps, rows, width)


def _laid_out(shapes: dict[str, tuple[int, ...]]) -> tuple[dict[str, Part], int]:
    parts, total = {}, 0
    for name, shape in shapes.items():
        parts[name] = (total, shape)
        total += math.prod(shape)
    return parts, total


def forward_parts(
    kind: str, steps: int, rows: int, units: int, reverse: bool, saves: bool, batch_first: bool
) -> tuple[dict[str, Part], int]:
    """Parts of the forward result, and its size: ``y`` hidden states; ``c`` cell states, of all steps where the way back needs
    them, else the last; ``before`` the hidden states before each step; ``saved`` i f g o, or r z n and the product of n.

    With steps outermost the states before are the states after one step earlier: both are views of one run of steps + 1.
    """
    shapes = {}
    sequence = _sequence(steps, rows, units, batch_first)
    joined = saves and not batch_first
    shapes["y"] = (steps + 1, rows, units) if joined else sequence
    if saves and batch_first:
        shapes["before"] = sequence
    if kind == "lstm":
        shapes["c"] = sequence if saves else (rows, units)
    if saves and _SAVED[kind]:
        shapes["saved"] = _sequence(steps, rows, _SAVED[kind] * units, batch_first)
    parts, total = _laid_out(shapes)
    if joined:
        early, late = (0, sequence), (rows * units, sequence)
        parts["y"], parts["before"] = (early, late) if reverse else (late, early)
    return parts, total


def backward_parts(kind: str, steps: int, rows: int, units: int, batch_first: bool) -> tuple[dict[str, Part], int]:
    """Parts of the backward result, and its size: gradients ``dx`` of what entered, ``da`` of the recurrent products (GRU, elsewhere
    the same), ``dh`` and ``dc`` of the initial states."""
    gates = _sequence(steps, rows, GATES[kind] * units, batch_first)
    shapes = {"dx": gates}
    if kind == "gru":
        shapes["da"] = gates
    shapes["dh"] = (rows, units)
    if kind == "lstm":
        shapes["dc"] = (rows, units)
    return _laid_out(shapes)


def part(vector: Any, where: Part) -> Any:
    """One part of a result, in its shape."""
    offset, shape = where
    return shaped(crop(vector, (offset,), (math.prod(shape),)), shape)


def takes_any_strides(call: Call, index: int) -> bool:
    """Whether an input of these ops may lie in memory in any way: the weights, which are packed, and the mask. Of all others the
    last dimension's elements lie next to each other."""
    weights = 1 if call.op is recurrence else sum(call.attr("given")) + 1
    return index == weights or call.inputs[index].dtype is dt.bool


# -------------------------------------------------------------------------------------------------------------- forward

_ATTRS = ("kind", "reverse", "bias", "masked", "saves", "batch_first")


def _sizes(x: tuple[int, ...], kind: str, batch_first: bool) -> tuple[int, int, int]:
    """Steps, rows, units."""
    steps, rows = (x[1], x[0]) if batch_first else x[:2]
    return steps, rows, x[2] // GATES[kind]


def _infer(*metas: Meta, kind: str, reverse: bool, bias: bool, masked: bool, saves: bool, batch_first: bool) -> Meta:
    same_dtype("recurrence", *(metas[:-1] if masked else metas))
    x, w = metas[:2]
    steps, rows, units = _sizes(x.shape, kind, batch_first)
    if x.ndim != 3 or w.shape != (GATES[kind] * units, units) or metas[2].shape != (rows, units):
        raise ShapeError(
            f"recurrence: inputs {list(x.shape)}, weights {list(w.shape)} and state {list(metas[2].shape)} do not fit: expected "
            f"(T, B, {GATES[kind]} H), ({GATES[kind]} H, H) and (B, H)"
        )
    return meta((forward_parts(kind, steps, rows, units, reverse, saves, batch_first)[1],), x.dtype, x.device)


def _sigmoid(x: Any) -> Any:
    return 0.5 * (1 + np.tanh(0.5 * x))


def _step(kind: str, x: Any, a: Any, h: Any, c: Any) -> tuple[Any, Any, list[Any]]:
    """The new hidden and cell states, and what the way back reads."""
    if kind == "lstm":
        i, f, g, o = np.split(x + a, 4, 1)
        i, f, g, o = _sigmoid(i), _sigmoid(f), np.tanh(g), _sigmoid(o)
        c = f * c + i * g
        return o * np.tanh(c), c, [i, f, g, o]
    if kind == "gru":
        (xr, xz, xn), (ar, az, an) = np.split(x, 3, 1), np.split(a, 3, 1)
        r, z = _sigmoid(xr + ar), _sigmoid(xz + az)
        n = np.tanh(xn + r * an)
        return n + z * (h - n), None, [r, z, n, an]
    return (np.tanh(x + a) if kind == "rnn_tanh" else np.maximum(x + a, 0)), None, []


def _order(steps: int, reverse: bool) -> range:
    return range(steps - 1, -1, -1) if reverse else range(steps)


def _views(vector: Any, parts: dict[str, Part], batch_first: bool) -> dict[str, Any]:
    """Views of the parts, steps first."""
    found = {}
    for name, (offset, shape) in parts.items():
        view = vector[offset : offset + math.prod(shape)].reshape(shape)
        found[name] = view.swapaxes(0, 1) if batch_first and len(shape) == 3 else view
    return found


def _by_step(x: Any, batch_first: bool) -> Any:
    return x.swapaxes(0, 1) if batch_first else x


def _reference(*values: Any, kind: str, reverse: bool, bias: bool, masked: bool, saves: bool, batch_first: bool) -> Any:
    it: Iterator[Any] = iter(values)
    x, w, h = _by_step(next(it), batch_first), next(it), next(it)
    c = next(it) if kind == "lstm" else None
    b = next(it) if bias else 0.0
    steps, rows, units = len(x), x.shape[1], w.shape[1]
    keep = next(it) if masked else np.ones((steps, rows), bool)
    parts, total = forward_parts(kind, steps, rows, units, reverse, saves, batch_first)
    out = np.zeros(total, np.result_type(x))
    v = _views(out, parts, batch_first)
    for t in _order(steps, reverse):
        if saves:
            v["before"][t] = h
        new, new_c, saved = _step(kind, x[t], h @ w.T + b, h, c)
        has = keep[t][:, None]
        h = v["y"][t] = np.where(has, new, h)
        if kind == "lstm":
            c = np.where(has, new_c, c)
            v["c"][...] = c if not saves else v["c"]
        if saves and kind == "lstm":
            v["c"][t] = c
        if saves and saved:
            v["saved"][t] = np.where(has, np.concatenate(saved, 1), 0)
    return out


def _attrs(kind: str, **more: Any) -> dict[str, Any]:
    named: dict[str, Any] = {"reverse": False, "bias": False, "masked": False, "saves": False, "batch_first": False}
    return {"kind": kind, **named, **more}


def _arguments(attrs: dict[str, Any], steps: int, rows: int, units: int) -> list[Arg]:
    kind = attrs["kind"]
    n = GATES[kind] * units
    args = [Arg(_sequence(steps, rows, n, attrs["batch_first"])), Arg((n, units), (-1.0, 1.0)), Arg((rows, units), (-1.0, 1.0))]
    if kind == "lstm":
        args.append(Arg((rows, units), (-1.0, 1.0)))
    if attrs["bias"]:
        args.append(Arg((n,), (-1.0, 1.0)))
    if attrs["masked"]:
        args.append(Arg((steps, rows), "bool", dt.bool))
    return args


def _sample(kind: str, steps: int = 4, rows: int = 3, units: int = 5, **more: Any) -> Sample:
    attrs = _attrs(kind, **more)
    return Sample(tuple(_arguments(attrs, steps, rows, units)), attrs)


recurrence: OpDef = OpDef(
    "recurrence",
    "recurrence",
    _infer,
    attrs=_ATTRS,
    reference=_reference,
    dtypes=(dt.float32, dt.float64),
    samples=(
        _sample("lstm", saves=True),
        _sample("gru", bias=True, saves=True, batch_first=True),
        _sample("rnn_tanh", reverse=True, saves=True),
        _sample("rnn_relu", 1, 7, 8, bias=True),
        _sample("lstm", 3, 8, 9, reverse=True, batch_first=True),
        _sample("lstm", 3, 13, 17, masked=True, saves=True, bias=True, batch_first=True, reverse=True),
        _sample("gru", 5, 9, 4, masked=True, reverse=True, saves=True),
        _sample("gru", 2, 1, 70, masked=True),
    ),
    ulp=64,
    doc="All steps of a recurrence. Inputs: what entered (T, B, gates H), or (B, T, gates H) with batch_first; recurrent weights "
    "(gates H, H); hidden state (B, H); cell state (LSTM); bias of the product (gates H); a mask (T, B) of the steps that each "
    "sequence has. The result is a vector of parts.",
)


# ------------------------------------------------------------------------------------------------------------- backward

_BACK_ATTRS = ("kind", "reverse", "masked", "batch_first", "given", "shape")


def _back_infer(
    *metas: Meta, kind: str, reverse: bool, masked: bool, batch_first: bool, given: tuple[bool, ...], shape: tuple[int, int]
) -> Meta:
    same_dtype("recurrence_grad", *(metas[:-1] if masked else metas))
    forward, w = metas[sum(given) : sum(given) + 2]
    units = w.shape[1]
    wanted = forward_parts(kind, *shape, units, reverse, True, batch_first)[1]
    if w.shape != (GATES[kind] * units, units) or forward.shape != (wanted,):
        raise ShapeError(
            f"recurrence_grad: a forward result of shape {list(forward.shape)} and weights {list(w.shape)} do not fit {shape[0]} "
            f"steps of {shape[1]} rows: expected a vector of {wanted}"
        )
    return meta((backward_parts(kind, *shape, units, batch_first)[1],), w.dtype, w.device)


def _step_back(kind: str, v: dict[str, Any], t: int, dh: Any, dc: Any, c_before: Any) -> tuple[list[Any], list[Any], Any, Any]:
    """Gradients of what entered and of the products, and those of the states before, past the product."""
    if kind == "lstm":
        i, f, g, o = np.split(v["saved"][t], 4, 1)
        u = np.tanh(v["c"][t])
        dc = dc + dh * o * (1 - u * u)
        d = [dc * g * i * (1 - i), dc * c_before * f * (1 - f), dc * i * (1 - g * g), dh * u * o * (1 - o)]
        return d, d, np.zeros_like(dh), dc * f
    if kind == "gru":
        r, z, n, a = np.split(v["saved"][t], 4, 1)
        dn = dh * (1 - z) * (1 - n * n)
        dz = dh * (v["before"][t] - n) * z * (1 - z)
        dr = dn * a * r * (1 - r)
        return [dr, dz, dn], [dr, dz, dn * r], dh * z, None
    h = v["y"][t]
    d = [dh * (1 - h * h) if kind == "rnn_tanh" else np.where(h > 0, dh, 0)]
    return d, d, np.zeros_like(dh), None


def _back_reference(
    *values: Any, kind: str, reverse: bool, masked: bool, batch_first: bool, given: tuple[bool, ...], shape: tuple[int, int]
) -> Any:
    it: Iterator[Any] = iter(values)
    dy, dh, dc = [next(it) if g else None for g in given]
    forward, w = next(it), next(it)
    c0 = next(it) if kind == "lstm" else None
    steps, rows = shape
    units = w.shape[1]
    keep = next(it) if masked else np.ones((steps, rows), bool)
    v = _views(forward, forward_parts(kind, steps, rows, units, reverse, True, batch_first)[0], batch_first)
    parts, total = backward_parts(kind, steps, rows, units, batch_first)
    out = np.zeros(total, forward.dtype)
    to = _views(out, parts, batch_first)
    zero = np.zeros((rows, units), forward.dtype)
    dh, dc = zero if dh is None else dh, zero if dc is None else dc
    dy = np.zeros((steps, rows, units), forward.dtype) if dy is None else _by_step(dy, batch_first)
    walk = list(_order(steps, reverse))
    for k in reversed(range(steps)):
        t = walk[k]
        c_before = None if c0 is None else c0 if k == 0 else v["c"][walk[k - 1]]
        dx, da, past, dc_before = _step_back(kind, v, t, dh + dy[t], dc, c_before)
        has = keep[t][:, None]
        to["dx"][t] = np.where(has, np.concatenate(dx, 1), 0)
        if kind == "gru":
            to["da"][t] = np.where(has, np.concatenate(da, 1), 0)
        dh = np.where(has, past + np.concatenate(da, 1) @ w, dh)
        dc = None if dc_before is None else np.where(has, dc_before, dc)
    to["dh"][...] = dh
    if kind == "lstm":
        to["dc"][...] = dc
    return out


def _back_sample(
    kind: str, steps: int = 4, rows: int = 3, units: int = 5, given: Any = (True, True, True), **more: Any
) -> Sample:
    attrs = {"kind": kind, "reverse": False, "masked": False, "batch_first": False, **more}
    given = given if kind == "lstm" else (*given[:2], False)
    attrs |= {"given": given, "shape": (steps, rows)}
    batch_first = attrs["batch_first"]
    one = Arg((rows, units), (-1.0, 1.0))
    args = [Arg(_sequence(steps, rows, units, batch_first), (-1.0, 1.0))] if given[0] else []
    args += [one] * sum(given[1:])
    total = forward_parts(kind, steps, rows, units, attrs["reverse"], True, batch_first)[1]
    args += [Arg((total,), (-1.0, 1.0)), Arg((GATES[kind] * units, units), (-1.0, 1.0))]
    if kind == "lstm":
        args.append(one)
    if attrs["masked"]:
        args.append(Arg((steps, rows), "bool", dt.bool))
    return Sample(tuple(args), attrs)


recurrence_grad: OpDef = OpDef(
    "recurrence_grad",
    "recurrence",
    _back_infer,
    attrs=_BACK_ATTRS,
    reference=_back_reference,
    dtypes=(dt.float32, dt.float64),
    samples=(
        _back_sample("lstm"),
        _back_sample("gru", batch_first=True),
        _back_sample("rnn_tanh", reverse=True, given=(True, False, False)),
        _back_sample("rnn_relu", 3, 7, 8, given=(False, True, False)),
        _back_sample("lstm", 3, 13, 17, masked=True, batch_first=True, reverse=True, given=(True, False, True)),
        _back_sample("gru", 5, 9, 4, masked=True, reverse=True),
        _back_sample("gru", 2, 1, 70, masked=True, given=(False, True, False)),
    ),
    ulp=64,
    doc="All steps of a recurrence, back. Inputs: the gradients that are given of hidden states, last hidden state and last cell "
    "state; the forward result; recurrent weights; initial cell state (LSTM); the mask. The result is a vector of parts.",
)
