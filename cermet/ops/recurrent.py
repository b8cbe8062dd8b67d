"""Recurrent layers: one direction of one layer over all time steps is one node.

What does not depend on the state is outside: the inputs come multiplied with their weights, all steps in one contraction. The node
becomes one primitive for all steps (`cermet.ops.recurrence`), its gradient another one and a contraction over all steps for
the recurrent weights. The first result is what the way back reads; it is empty where no gradient is wanted (``saves``), and a gradient that
is asked for all the same runs the steps again.

A single step, and layers with a projection (Sak et al. 2014, arXiv:1402.1128), are composed of ordinary ops step by step; so is the
gradient of the gradient, which is derived from that form.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from cermet import dtypes as dt
from cermet.graph.node import Meta, meta
from cermet.ops.composing import crop, narrow, shaped, spread_like, sum_of, wide
from cermet.ops.contraction import contract
from cermet.ops.define import OUT, Arg, Failing, OpDef, Sample, ShapeError, VjpContext
from cermet.ops.differentiate import auto_vjp
from cermet.ops.elementwise import add, gt, mul, sub, where
from cermet.ops.joining import cat_op
from cermet.ops.mathematics import sigmoid, tanh
from cermet.ops.movement import permute, reshape
from cermet.ops.recurrence import GATES, backward_parts, forward_parts, part, recurrence, recurrence_grad
from cermet.ops.support import check_floating, same_dtype, zeros_like_value

__all__ = ["GATES", "cell", "recurrent"]

_ATTRS = ("kind", "reverse", "bias", "projected", "masked", "saves", "batch_first")


# ------------------------------------------------------------------------------------------------------------- one step


def _gate(x: Any, k: int, size: int) -> Any:
    """Columns k size .. (k + 1) size of (B, gates size)."""
    return crop(x, (0, k * size), (x.shape[0], size))


def cell(kind: str, x: Any, a: Any, state: Any) -> tuple[Any, ...]:
    """One step without its product.

    Args:
        x: (B, gates H), from the input. a: (B, gates H), from the hidden state.
        state: (B, H): the cell state of an LSTM, the hidden state of a GRU, unused otherwise.

    Returns:
        The new hidden state, and for an LSTM the new cell state; (B, H) each.
    """
    size = x.shape[1] // GATES[kind]
    if kind == "lstm":
        s = add(x, a)
        i, f, g, o = [_gate(s, k, size) for k in range(4)]
        c = add(mul(sigmoid(f), state), mul(sigmoid(i), tanh(g)))
        return mul(sigmoid(o), tanh(c)), c
    if kind == "gru":
        r = sigmoid(add(_gate(x, 0, size), _gate(a, 0, size)))
        z = sigmoid(add(_gate(x, 1, size), _gate(a, 1, size)))
        n = tanh(add(_gate(x, 2, size), mul(r, _gate(a, 2, size))))
        return (add(n, mul(z, sub(state, n))),)
    s = add(x, a)
    if kind == "rnn_tanh":
        return (tanh(s),)
    from cermet.ops.activation import relu_op

    return (relu_op(s),)


class _Given(NamedTuple):
    """The inputs of the op by name; None for those that it was not given. All wide."""

    x: Any
    w: Any
    h: Any
    c: Any
    b: Any
    p: Any
    keep: Any


class _Step(NamedTuple):
    """What the walk back needs of one step: number, input, hidden state before, product, state before, the cell's results."""

    t: int
    x: Any
    h: Any
    a: Any
    state: Any
    out: tuple[Any, ...]


def _given(values: tuple[Any, ...], kind: str, bias: bool, projected: bool, masked: bool) -> _Given:
    it = iter(values)
    x, w, h = next(it), next(it), next(it)
    c = next(it) if kind == "lstm" else None
    b = next(it) if bias else None
    p = next(it) if projected else None
    keep = next(it) if masked else None
    return _Given(*[v if v is None or v.dtype.kind != "f" else wide(v) for v in (x, w, h, c, b, p, keep)])


def _at(x: Any, t: int) -> Any:
    """Step t of (T, B, F) as (B, F)."""
    _, rows, width = x.shape
    return shaped(crop(x, (t, 0, 0), (1, rows, width)), (rows, width))


def _kept(keep: Any, t: int, shape: Any) -> Any:
    """Whether each sequence has a step t, spread over ``shape`` (B, F)."""
    rows = keep.shape[1]
    return spread_like(shaped(crop(keep, (t, 0), (1, rows)), (rows, 1)), shape)


def _walk(v: _Given, kind: str, reverse: bool) -> tuple[list[_Step], list[Any], Any, Any]:
    """All steps; hidden states by time; the last hidden state and cell state. A sequence without a step t keeps its state there."""
    steps: list[_Step] = []
    h, c = v.h, v.c
    turned = permute(v.w, dims=(1, 0))
    ys: list[Any] = [None] * v.x.shape[0]
    for t in _order(v.x.shape[0], reverse):
        a = contract(h, turned)
        if v.b is not None:
            a = add(a, v.b)
        state = c if kind == "lstm" else h
        x = _at(v.x, t)
        out = cell(kind, x, a, state)
        steps.append(_Step(t, x, h, a, state, out))
        new = out[0] if v.p is None else contract(out[0], permute(v.p, dims=(1, 0)))
        if v.keep is None:
            h, ys[t] = new, new
            c = out[1] if kind == "lstm" else None
        else:
            has = _kept(v.keep, t, new.shape)
            h, ys[t] = where(has, new, h), where(has, new, zeros_like_value(new, ()))
            c = where(_kept(v.keep, t, c.shape), out[1], c) if kind == "lstm" else None
    return steps, ys, h, c


def _stacked(parts: list[Any]) -> Any:
    """(B, F) each as (T, B, F)."""
    rows = [reshape(x, shape=(1, *x.shape)) for x in parts]
    return cat_op(*rows, dim=0) if len(rows) > 1 else rows[0]


def _turned(x: Any, batch_first: bool) -> Any:
    """(B, T, F) as (T, B, F), and the other way round."""
    return permute(x, dims=(1, 0, 2)) if batch_first else x


def _sizes(shape: Any, batch_first: bool) -> tuple[int, int]:
    """Steps and rows."""
    return (shape[1], shape[0]) if batch_first else (shape[0], shape[1])


def _whole(steps: int, projected: bool) -> bool:
    """Whether one primitive runs all steps."""
    return steps > 1 and not projected


def _all_steps(v: _Given, a: dict[str, Any], saves: bool) -> Any:
    """The primitive's vector."""
    inputs = [i for i in (v.x, v.w, v.h, v.c, v.b, v.keep) if i is not None]
    named = {n: a[n] for n in ("kind", "reverse", "bias", "masked", "batch_first")}
    return recurrence(*inputs, saves=saves, **named)


def _parts(v: _Given, a: dict[str, Any], saves: bool) -> dict[str, Any]:
    steps, rows = _sizes(v.x.shape, a["batch_first"])
    return forward_parts(a["kind"], steps, rows, v.h.shape[1], a["reverse"], saves, a["batch_first"])[0]


def _decompose(*values: Any, **a: Any) -> Any:
    kind, reverse, batch_first, saves = a["kind"], a["reverse"], a["batch_first"], a["saves"]
    v = _given(values, kind, a["bias"], a["projected"], a["masked"])
    like = values[0]
    steps, rows = _sizes(v.x.shape, batch_first)
    if not _whole(steps, a["projected"]):
        _, ys, h, c = _walk(v._replace(x=_turned(v.x, batch_first)), kind, reverse)
        y, vector = _turned(_stacked(ys), batch_first), zeros_like_value(v.x, (0,))
    else:
        vector = _all_steps(v, a, saves)
        parts = _parts(v, a, saves)
        y = part(vector, parts["y"])
        last = 0 if reverse else steps - 1
        c = part(vector, parts["c"]) if kind == "lstm" else None
        h = _at(_turned(y, batch_first), last)
        c = _at(_turned(c, batch_first), last) if c is not None and saves else c
        if v.keep is not None:
            has = _turned(reshape(v.keep, shape=(steps, rows, 1)), batch_first)
            y = where(spread_like(has, y.shape), y, zeros_like_value(y, ()))
        vector = vector if saves else zeros_like_value(v.x, (0,))
    out = (vector, narrow(y, like), narrow(h, like))
    return (*out, narrow(c, like)) if kind == "lstm" else out


# ------------------------------------------------------------------------------------------------------------- gradient


class _Sums:
    """Gradients that all steps add to, collected until the end."""

    def __init__(self) -> None:
        self.x: dict[int, Any] = {}
        self.a: list[Any] = []
        self.h: list[Any] = []
        self.projected: list[tuple[Any, Any]] = []


def _slope(s: Any) -> Any:
    """The derivative of the sigmoid with value s."""
    return mul(s, sub(1.0, s))


def _joined(*parts: Any) -> Any:
    return cat_op(*parts, dim=1)


def _lstm_back(s: _Step, dh: Any, dc: Any) -> tuple[Any, Any, Any]:
    v = add(s.x, s.a)
    size = s.state.shape[1]
    i, f, g, o = [_gate(v, k, size) for k in range(4)]
    i, f, g, o = sigmoid(i), sigmoid(f), tanh(g), sigmoid(o)
    u = tanh(s.out[1])
    dc = add(dc, mul(mul(dh, o), sub(1.0, mul(u, u))))
    gates = (
        mul(mul(dc, g), _slope(i)),
        mul(mul(dc, s.state), _slope(f)),
        mul(mul(dc, i), sub(1.0, mul(g, g))),
        mul(mul(dh, u), _slope(o)),
    )
    da = _joined(*gates)
    return da, da, mul(dc, f)


def _gru_back(s: _Step, dh: Any) -> tuple[Any, Any, Any]:
    size = s.state.shape[1]
    last = _gate(s.a, 2, size)
    r = sigmoid(add(_gate(s.x, 0, size), _gate(s.a, 0, size)))
    z = sigmoid(add(_gate(s.x, 1, size), _gate(s.a, 1, size)))
    n = tanh(add(_gate(s.x, 2, size), mul(r, last)))
    dn = mul(mul(dh, sub(1.0, z)), sub(1.0, mul(n, n)))
    dz = mul(mul(dh, sub(s.state, n)), _slope(z))
    dr = mul(mul(dn, last), _slope(r))
    return _joined(dr, dz, dn), _joined(dr, dz, mul(dn, r)), mul(dh, z)


def _back_through_cell(kind: str, s: _Step, dh: Any, dc: Any) -> tuple[Any, Any, Any]:
    """Gradients of the cell's inputs: x, a, and the state (None where it is unused)."""
    if kind == "lstm":
        return _lstm_back(s, dh, dc)
    if kind == "gru":
        return _gru_back(s, dh)
    h = s.out[0]
    da = mul(dh, sub(1.0, mul(h, h))) if kind == "rnn_tanh" else where(gt(h, 0.0), dh, zeros_like_value(dh, ()))
    return da, da, None


def _back(kind: str, v: _Given, s: _Step, dy: Any, dh: Any, dc: Any, sums: _Sums) -> tuple[Any, Any]:
    """One step back: from the gradients of the states after it to those of the states before."""
    has = None if v.keep is None else _kept(v.keep, s.t, dh.shape)
    zero = zeros_like_value(dh, ())
    through = add(dh, dy) if has is None else where(has, add(dh, dy), zero)
    dc_in = dc
    if has is not None and dc is not None:
        dc_in = where(_kept(v.keep, s.t, dc.shape), dc, zero)
    du = through
    if v.p is not None:
        du = contract(through, v.p)
        sums.projected.append((through, s.out[0]))
    dx, da, dstate = _back_through_cell(kind, s, du, dc_in)
    sums.x[s.t] = dx
    sums.a.append(da)
    sums.h.append(s.h)
    before = contract(da, v.w)
    if kind == "gru":
        before = add(before, dstate)
    if has is not None:
        before = add(before, where(has, zero, dh))
    if kind != "lstm":
        return before, None
    return before, dstate if has is None else add(dstate, where(_kept(v.keep, s.t, dc.shape), zero, dc))


def _outer(left: list[Any], right: list[Any]) -> Any:
    """The sum over steps of left^T right, as one contraction over all steps."""
    a, b = _stacked(left), _stacked(right)
    a, b = [shaped(m, (m.shape[0] * m.shape[1], m.shape[2])) for m in (a, b)]
    return contract(permute(a, dims=(1, 0)), b)


def _grad_by_steps(*values: Any, given: tuple[bool, ...], **a: Any) -> Any:
    """The gradients of the inputs in ordinary ops, step by step."""
    kind, batch_first = a["kind"], a["batch_first"]
    found = iter(values[: sum(given)])
    inputs = values[sum(given) :]
    v = _given(inputs, kind, a["bias"], a["projected"], a["masked"])
    v = v._replace(x=_turned(v.x, batch_first))
    steps, _, _, _ = _walk(v, kind, a["reverse"])
    dy, dh, dc = [wide(next(found)) if g else None for g in given]
    shape = (*v.x.shape[:2], v.h.shape[1])
    dy = zeros_like_value(v.x, shape) if dy is None else _turned(dy, batch_first)
    dh = zeros_like_value(v.x, v.h.shape) if dh is None else dh
    dc = zeros_like_value(v.x, v.c.shape) if dc is None and v.c is not None else dc
    sums = _Sums()
    for s in reversed(steps):
        dh, dc = _back(kind, v, s, _at(dy, s.t), dh, dc, sums)
    dx = _turned(_stacked([sums.x[t] for t in range(v.x.shape[0])]), batch_first)
    out = [dx, _outer(sums.a, sums.h), dh]
    if kind == "lstm":
        out.append(dc)
    if a["bias"]:
        out.append(sum_of(_stacked(sums.a), (0, 1)))
    if a["projected"]:
        out.append(_outer([left for left, _ in sums.projected], [u for _, u in sums.projected]))
    return tuple([narrow(g, x) for g, x in zip(out, inputs)])


def _grad_decompose(*values: Any, given: tuple[bool, ...], traced: bool, **a: Any) -> Any:
    count = sum(given)
    gradients, inputs = values[:count], values[count + traced :]
    kind, batch_first = a["kind"], a["batch_first"]
    steps, rows = _sizes(inputs[0].shape, batch_first)
    if not _whole(steps, a["projected"]):
        return _grad_by_steps(*gradients, *inputs, given=given, **a)
    v = _given(inputs, kind, a["bias"], a["projected"], a["masked"])
    vector = values[count] if traced else _all_steps(v, a, True)
    rest = [i for i in (v.c, v.keep) if i is not None]
    back = recurrence_grad(
        *[wide(g) for g in gradients], vector, v.w, *rest, kind=kind, reverse=a["reverse"], masked=a["masked"],
        batch_first=batch_first, given=given, shape=(steps, rows),
    )  # fmt: skip
    parts = backward_parts(kind, steps, rows, v.h.shape[1], batch_first)[0]
    found = {name: part(back, where_) for name, where_ in parts.items()}
    da, before = [_flat(x) for x in (found.get("da", found["dx"]), part(vector, _parts(v, a, True)["before"]))]
    out = [found["dx"], contract(permute(da, dims=(1, 0)), before), found["dh"]]
    if kind == "lstm":
        out.append(found["dc"])
    if a["bias"]:
        out.append(sum_of(da, 0))
    return tuple([narrow(g, x) for g, x in zip(out, inputs)])


def _flat(x: Any) -> Any:
    """All steps of all rows, one behind the other."""
    return shaped(x, (x.shape[0] * x.shape[1], x.shape[2]))


def _grad_infer(*metas: Meta, given: tuple[bool, ...], traced: bool = False, masked: bool, **_: Any) -> Any:
    inputs = metas[sum(given) + traced :]
    return tuple(inputs[:-1] if masked else inputs)


recurrent_grad_steps = OpDef(
    "recurrent_grad_steps",
    "composite",
    _grad_infer,
    attrs=(*_ATTRS, "given"),
    vjp="auto",
    decompose=_grad_by_steps,
    dtypes=dt.FLOATING,
    doc="As recurrent_grad, composed of ordinary ops step by step, so that it can be differentiated.",
)


def _grad_vjp(c: Any, *gs: Any) -> tuple[Any, ...]:
    """By way of the form in steps, which computes the same from the inputs alone."""
    named = {n: c.call.attr(n) for n in recurrent_grad_steps.attrs}
    at = sum(named["given"])
    places = [k for k in range(len(c.metas)) if not (c.call.attr("traced") and k == at)]
    call = recurrent_grad_steps.call_for(tuple(named.values()), tuple([c.metas[k] for k in places]))
    needs = tuple([c.needs[k] for k in places])
    out: list[Any] = [None] * len(c.metas)
    if any(needs):
        saved = {k: c[place] for k, place in enumerate(places)}
        for place, g in zip(places, auto_vjp(VjpContext(call, saved, needs), *gs)):
            out[place] = g
    return tuple(out)


recurrent_grad = OpDef(
    "recurrent_grad",
    "composite",
    _grad_infer,
    attrs=(*_ATTRS, "given", "traced"),
    vjp=_grad_vjp,
    saves=lambda n, attrs: tuple(range(n)),
    decompose=_grad_decompose,
    dtypes=dt.FLOATING,
    doc="The gradient of recurrent. Inputs: the gradients that are given of hidden states, last hidden state and last cell state; its "
    "first result, where that was saved; its inputs. Results: the gradients of those, but for the mask.",
)


def _traced(call: Any) -> bool:
    """Whether the call's first result holds what its gradient reads."""
    steps, _ = _sizes(call.inputs[0].shape, call.attr("batch_first"))
    return bool(call.attr("saves")) and _whole(steps, call.attr("projected"))


def _vjp(c: Any, _: Any, *gs: Any) -> tuple[Any, ...]:
    named = {n: c.call.attr(n) for n in _ATTRS}
    if all(g is None for g in gs):
        return (None,) * len(c.metas)
    given = tuple([g is not None for g in gs]) + (False,) * (3 - len(gs))
    traced = _traced(c.call)
    out = recurrent_grad(
        *[g for g in gs if g is not None], *([c.out] if traced else []), *[c[i] for i in range(len(c.metas))],
        given=given, traced=traced, **named,
    )  # fmt: skip
    found = [g if need else None for g, need in zip(out, c.needs)]
    return (*found, None) if named["masked"] else tuple(found)


# --------------------------------------------------------------------------------------------------------------- record


def _infer(
    *metas: Meta, kind: str, reverse: bool, bias: bool, projected: bool, masked: bool, saves: bool, batch_first: bool
) -> Any:
    floats = metas[:-1] if masked else metas
    for m in floats:
        check_floating(m, kind)
    same_dtype(kind, *floats)
    x, w, h = metas[:3]
    gates = GATES[kind]
    if x.ndim != 3 or w.ndim != 2 or x.shape[2] != w.shape[0] or w.shape[0] % gates:
        raise ShapeError(
            f"{kind}: inputs of shape {list(x.shape)} do not fit recurrent weights of shape {list(w.shape)}: expected "
            f"({'B, T' if batch_first else 'T, B'}, {gates} H) and ({gates} H, features of the hidden state)"
        )
    steps, rows = _sizes(x.shape, batch_first)
    if steps == 0:
        raise RuntimeError(f"{kind}: expected a sequence of at least one step")
    if h.shape != (rows, w.shape[1]):
        raise ShapeError(f"{kind}: expected a hidden state of shape {[rows, w.shape[1]]}, got {list(h.shape)}")
    if kind == "lstm" and metas[3].shape != (rows, w.shape[0] // gates):
        raise ShapeError(f"{kind}: expected a cell state of shape {[rows, w.shape[0] // gates]}, got {list(metas[3].shape)}")
    if masked and metas[-1].shape != (steps, rows):
        raise ShapeError(f"{kind}: expected a mask of shape {[steps, rows]}, got {list(metas[-1].shape)}")
    units = w.shape[0] // gates
    kept = saves and _whole(steps, projected)
    size = forward_parts(kind, steps, rows, units, reverse, True, batch_first)[1] if kept else 0
    vector = meta((size,), x.dtype.compute, x.device)
    y = meta((*x.shape[:2], w.shape[1]), x.dtype, x.device)
    return (vector, y, h, metas[3]) if kind == "lstm" else (vector, y, h)


def _np_sigmoid(x: Any) -> Any:
    return 0.5 * (1 + np.tanh(0.5 * x))


def _np_cell(kind: str, x: Any, a: Any, state: Any) -> tuple[Any, Any]:
    """(hidden state, cell state or None)."""
    if kind == "lstm":
        i, f, g, o = np.split(x + a, 4, 1)
        c = _np_sigmoid(f) * state + _np_sigmoid(i) * np.tanh(g)
        return _np_sigmoid(o) * np.tanh(c), c
    if kind == "gru":
        (xr, xz, xn), (ar, az, an) = np.split(x, 3, 1), np.split(a, 3, 1)
        z = _np_sigmoid(xz + az)
        return (1 - z) * np.tanh(xn + _np_sigmoid(xr + ar) * an) + z * state, None
    return (np.tanh(x + a) if kind == "rnn_tanh" else np.maximum(x + a, 0)), None


def _order(steps: int, reverse: bool) -> range:
    return range(steps - 1, -1, -1) if reverse else range(steps)


def _reference(
    *values: Any, kind: str, reverse: bool, bias: bool, projected: bool, masked: bool, saves: bool, batch_first: bool
) -> Any:
    it = iter(values)
    x, w, h = next(it), next(it), next(it)
    vector = np.zeros(0, x.dtype)
    if saves and _whole(_sizes(x.shape, batch_first)[0], projected):
        named = {"kind": kind, "reverse": reverse, "bias": bias, "masked": masked, "batch_first": batch_first}
        vector = recurrence.reference(*values, saves=True, **named)  # type: ignore[misc]
    x = x.swapaxes(0, 1) if batch_first else x
    c = next(it) if kind == "lstm" else None
    b = next(it) if bias else 0.0
    p = next(it) if projected else None
    keep = next(it) if masked else np.ones(x.shape[:2], bool)
    y = np.zeros((*x.shape[:2], h.shape[1]), x.dtype)
    for t in _order(len(x), reverse):
        new, new_c = _np_cell(kind, x[t], h @ w.T + b, c if kind == "lstm" else h)
        new = new if p is None else new @ p.T
        has = keep[t][:, None]
        h, y[t] = np.where(has, new, h), np.where(has, new, 0)
        c = np.where(has, new_c, c) if kind == "lstm" else None
    y = y.swapaxes(0, 1) if batch_first else y
    return (vector, y, h, c) if kind == "lstm" else (vector, y, h)


def _sample(
    kind: str,
    reverse: bool = False,
    bias: bool = False,
    projected: bool = False,
    masked: bool = False,
    t: int = 3,
    saves: bool = False,
    batch_first: bool = False,
) -> Sample:
    n, size, rows = GATES[kind], 3, 2
    hidden = 2 if projected else size
    shape = (rows, t, n * size) if batch_first else (t, rows, n * size)
    args = [Arg(shape), Arg((n * size, hidden), (-1.0, 1.0)), Arg((rows, hidden), (-1.0, 1.0))]
    if kind == "lstm":
        args.append(Arg((rows, size), (-1.0, 1.0)))
    if bias:
        args.append(Arg((n * size,), (-1.0, 1.0)))
    if projected:
        args.append(Arg((hidden, size), (-1.0, 1.0)))
    if masked:
        args.append(Arg((t, rows), "bool", dt.bool))
    values = (kind, reverse, bias, projected, masked, saves, batch_first)
    # What is saved has no gradient of its own, and the tests of records would ask for one.
    return Sample(tuple(args), dict(zip(_ATTRS, values, strict=True)), not saves)


recurrent = OpDef(
    "recurrent",
    "composite",
    _infer,
    attrs=_ATTRS,
    vjp=_vjp,
    saves=lambda n, attrs: (*range(n), OUT),
    decompose=_decompose,
    reference=_reference,
    dtypes=dt.FLOATING,
    samples=(
        _sample("lstm"),
        _sample("gru", bias=True),
        _sample("rnn_tanh", reverse=True),
        _sample("rnn_relu", t=1),
        _sample("gru", masked=True, reverse=True),
        _sample("lstm", projected=True),
        _sample("lstm", projected=True, masked=True, reverse=True),
        _sample("lstm", batch_first=True, masked=True, bias=True),
        _sample("lstm", saves=True, batch_first=True, reverse=True),
        _sample("gru", saves=True, masked=True, bias=True),
        _sample("lstm", projected=True, batch_first=True, saves=True),
    ),
    failing=(
        Failing(
            (Arg((3, 2, 12)), Arg((12, 4)), Arg((2, 3)), Arg((2, 3))),
            _sample("lstm").attrs,
            ValueError,
            "hidden state",
        ),
    ),
    ulp=64,
    doc="One direction of a recurrent layer over (T, B, gates H), or (B, T, gates H) with batch_first. Inputs: inputs times weights, "
    "recurrent weights, hidden state, cell state (LSTM), bias of the product, projection, and a mask (T, B) of the steps that each "
    "sequence has. Results: what the gradient reads (empty unless saves), hidden states laid out as the inputs, the last one, the "
    "last cell state (LSTM).",
)
