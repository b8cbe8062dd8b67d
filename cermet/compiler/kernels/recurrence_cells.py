"""One step of a recurrent cell for one row of the batch: from the products to the new state, and back.

Two functions of a module: ``cell`` adds the inputs to the recurrent products, applies the gates and writes the new state
with what the way back needs; ``back`` turns the gradient of a state into those of the gates. Both go along the units in vectors;
what is left behind the last whole vector is done under a mask, or one by one where the machine has none.

Formulas: see `cermet.ops.recurrence`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llvmlite import ir

from cermet.compiler.kernels.irtools import Emit, Index, Value, acc_type
from cermet.compiler.llvm.builder import I32, I64, PTR, VOID, LaneBuilder, constant
from cermet.compiler.llvm.vmath.gates import bounded_tanh, logistic
from cermet.dtypes import DType

__all__ = ["GATES", "SAVED", "Cell", "back_function", "cell_function"]

GATES = {"rnn_tanh": 1, "rnn_relu": 1, "lstm": 4, "gru": 3}
"""Kind -> products per unit."""
SAVED = {"rnn_tanh": 0, "rnn_relu": 0, "lstm": 4, "gru": 4}
"""Kind -> values per unit and step that the way back reads beside the states: i f g o; r z n and the product of n."""


@dataclass(frozen=True)
class Cell:
    """What is compiled into the step.

    Attributes:
        kind: a key of `GATES`.
        dtype: float32 or float64.
        lanes: of a vector.
        tail: the units are not a multiple of the lanes.
        bias: a bias is added to the product.
        saves: the gates are written for the way back.
        before: the state before the step is written too (``"all"`` steps, the ``"first"``, or ``""``).
    """

    kind: str
    dtype: DType
    lanes: int
    tail: bool
    bias: bool = False
    saves: bool = False
    before: str = ""

    @property
    def key(self) -> str:
        flags = "".join(c for c, on in (("t", self.tail), ("b", self.bias), ("s", self.saves)) if on)
        return f"{self.kind} {self.dtype.name} {self.lanes} {flags} {self.before}"


class _Lanes:
    """Loads and stores at one place of the row, as whole vectors, under a mask, or as scalars."""

    def __init__(self, em: Emit, dtype: DType, at: Index, lanes: int, mask: Value | None) -> None:
        self.em, self.dtype, self.at, self.lanes, self.mask = em, dtype, at, lanes, mask
        self.x: LaneBuilder = em.x.with_lanes(lanes)
        self.element = acc_type(dtype)

    def place(self, ptr: Value, offset: Index = 0) -> Value:
        return self.em.at(self.em.at(ptr, offset, self.element), self.at, self.element)

    def load(self, ptr: Value, offset: Index = 0) -> Value:
        where = self.place(ptr, offset)
        if self.mask is None:
            return self.em.load(where, self.dtype, self.lanes)
        return self.em.load_masked(where, self.dtype, self.lanes, self.mask)

    def store(self, value: Value, ptr: Value, offset: Index = 0) -> None:
        where = self.place(ptr, offset)
        if self.mask is None:
            self.em.store(value, where, self.dtype)
        else:
            self.em.store_masked(value, where, self.dtype, self.mask)

    def sigmoid(self, v: Value) -> Value:
        return logistic(self.x, v)

    def tanh(self, v: Value) -> Value:
        return bounded_tanh(self.x, v)

    def rest(self, v: Value) -> Value:
        """1 - v."""
        return self.x.fsub(self.x.f(1.0, v), v)

    def slope(self, s: Value) -> Value:
        """The derivative of the sigmoid with value s."""
        return self.x.fmul(s, self.rest(s))

    def tanh_slope(self, t: Value) -> Value:
        """The derivative of the hyperbolic tangent with value t."""
        return self.rest(self.x.fmul(t, t))


def along(em: Emit, cell: Cell, count: Value, body: Callable[[_Lanes], None]) -> None:
    """Run ``body`` along ``count`` units.

    Two vectors at a time where there are that many: each waits long for its own results, and the two take turns.
    """
    whole = em.x.and_(count, em.index(-cell.lanes)) if cell.tail else count
    pairs = em.x.and_(count, em.index(-2 * cell.lanes))
    with em.loop(0, pairs, 2 * cell.lanes) as j:
        body(_Lanes(em, cell.dtype, j, 2 * cell.lanes, None))
    with em.loop(pairs, whole, cell.lanes) as j:
        body(_Lanes(em, cell.dtype, j, cell.lanes, None))
    if not cell.tail:
        return
    if em.target.has_masked and cell.lanes > 1:
        with em.when(em.cmp("slt", whole, count)):
            body(_Lanes(em, cell.dtype, whole, cell.lanes, em.lane_mask(cell.lanes, em.sub(count, whole))))
        return
    with em.loop(whole, count) as j:
        body(_Lanes(em, cell.dtype, j, 1, None))


CELL_ARGS = ("acc", "acc_step", "x", "units", "bias", "h", "c", "state", "y", "c_new", "saved", "before", "count")
_CELL_POINTERS = {"acc", "x", "bias", "h", "c", "state", "y", "c_new", "saved", "before"}


def cell_function(module: ir.Module, target: Any, cell: Cell) -> ir.Function:
    """``cell(CELL_ARGS)``: one row, ``count`` units.

    ``acc`` holds the products, ``acc_step`` elements from gate to gate; ``x``, ``bias`` and ``saved`` are ``units`` elements from
    gate to gate. ``h`` and ``c`` are the states before; the new ones go to ``state``, ``y`` and ``before``, and to ``c_new``.
    """
    types = [PTR if name in _CELL_POINTERS else I64 for name in CELL_ARGS]
    em = Emit(module, "cell", types, target, internal=True)
    a = dict(zip(CELL_ARGS, em.args, strict=True))
    units = a["units"]
    _announce(em, cell, a)

    def body(v: _Lanes) -> None:
        def product(k: int) -> Value:
            value = v.load(a["acc"], em.mul(a["acc_step"], k))
            return v.x.fadd(value, v.load(a["bias"], em.mul(units, k))) if cell.bias else value

        def entered(k: int) -> Value:
            return v.load(a["x"], em.mul(units, k))

        new, saved = _forward(cell.kind, v, product, entered, a)
        if cell.saves:
            for k, value in enumerate(saved):
                v.store(value, a["saved"], em.mul(units, k))
        v.store(new, a["state"])
        v.store(new, a["y"])
        if cell.before == "all":
            v.store(new, a["before"])

    along(em, cell, a["count"], body)
    return em.done()


def _announce(em: Emit, cell: Cell, a: dict[str, Value]) -> None:
    """Ask for the memory that this row's next panel will touch.

    A row takes a line or two from many places, each in turn a long way from the last: no processor sees a stream in that. Past the
    end of the row this asks for something else, which does no harm.
    """
    element = acc_type(cell.dtype)

    def ask(name: str, k: int, write: bool) -> None:
        place = em.at(em.at(a[name], em.mul(a["units"], k), element), a["count"], element)
        em.x.call(
            "llvm.prefetch.p0", VOID, (place, constant(I32, int(write)), constant(I32, 3), constant(I32, 1))
        )  # fmt: skip

    for k in range(GATES[cell.kind]):
        ask("x", k, False)
    for k in range(SAVED[cell.kind] if cell.saves else 0):
        ask("saved", k, True)
    ask("y", 0, True)
    if cell.kind == "lstm":
        ask("c", 0, False)
        ask("c_new", 0, True)
    if cell.before == "all":
        ask("before", 0, True)


def _forward(
    kind: str, v: _Lanes, product: Callable[[int], Value], entered: Callable[[int], Value], a: dict[str, Value]
) -> tuple[Value, list[Value]]:
    """The new hidden state, and what is saved; stores the new cell state of an LSTM."""
    x, em = v.x, v.em
    if kind == "lstm":
        i, f, g, o = [x.fadd(product(k), entered(k)) for k in range(4)]
        i, f, g, o = v.sigmoid(i), v.sigmoid(f), v.tanh(g), v.sigmoid(o)
        c = em.mul_add(f, v.load(a["c"]), x.fmul(i, g))
        v.store(c, a["c_new"])
        return x.fmul(o, v.tanh(c)), [i, f, g, o]
    if kind == "gru":
        r = v.sigmoid(x.fadd(product(0), entered(0)))
        z = v.sigmoid(x.fadd(product(1), entered(1)))
        last = product(2)
        n = v.tanh(em.mul_add(r, last, entered(2)))
        return em.mul_add(z, x.fsub(v.load(a["h"]), n), n), [r, z, n, last]
    s = x.fadd(product(0), entered(0))
    return (v.tanh(s) if kind == "rnn_tanh" else x.maximum(s, x.f(0.0, s))), []


BACK_ARGS = ("state", "dc", "dy", "h", "c", "c_before", "saved", "units", "dx", "da")


def back_function(module: ir.Module, target: Any, cell: Cell, given: bool) -> ir.Function:
    """``back(BACK_ARGS)``: one row, all units.

    ``state`` holds the gradient of the hidden state that comes from later steps, and gets what reaches the state before without
    passing the product; ``dc`` likewise for the cell state. ``h`` is the hidden state before the step (GRU) or after it (plain).

    Args:
        given: results of the steps have gradients of their own, ``dy``.
    """
    em = Emit(module, "back", [I64 if name == "units" else PTR for name in BACK_ARGS], target, internal=True)
    a = dict(zip(BACK_ARGS, em.args, strict=True))
    units = a["units"]

    def body(v: _Lanes) -> None:
        dh = v.load(a["state"])
        if given:
            dh = v.x.fadd(dh, v.load(a["dy"]))
        saved = [v.load(a["saved"], em.mul(units, k)) for k in range(SAVED[cell.kind])]
        dx, da, left = _backward(cell.kind, v, dh, saved, a)
        for k, value in enumerate(dx):
            v.store(value, a["dx"], em.mul(units, k))
        for k, value in enumerate(da):
            v.store(value, a["da"], em.mul(units, k))
        v.store(left, a["state"])

    along(em, cell, units, body)
    return em.done()


def _backward(kind: str, v: _Lanes, dh: Value, saved: list[Value], a: dict[str, Value]) -> tuple[list[Value], list[Value], Value]:
    """Gradients of what entered, of the products where they differ, and of the hidden state before, past the product."""
    x, em = v.x, v.em
    zero = x.f(0.0, dh)
    if kind == "lstm":
        i, f, g, o = saved
        u = v.tanh(v.load(a["c"]))
        dc = em.mul_add(x.fmul(dh, o), v.tanh_slope(u), v.load(a["dc"]))
        v.store(x.fmul(dc, f), a["dc"])
        gates = [
            x.fmul(x.fmul(dc, g), v.slope(i)),
            x.fmul(x.fmul(dc, v.load(a["c_before"])), v.slope(f)),
            x.fmul(x.fmul(dc, i), v.tanh_slope(g)),
            x.fmul(x.fmul(dh, u), v.slope(o)),
        ]
        return gates, [], zero
    if kind == "gru":
        r, z, n, last = saved
        dn = x.fmul(x.fmul(dh, v.rest(z)), v.tanh_slope(n))
        dz = x.fmul(x.fmul(dh, x.fsub(v.load(a["h"]), n)), v.slope(z))
        dr = x.fmul(x.fmul(dn, last), v.slope(r))
        return [dr, dz, dn], [dr, dz, x.fmul(dn, r)], x.fmul(dh, z)
    h = v.load(a["h"])
    if kind == "rnn_tanh":
        return [x.fmul(dh, v.tanh_slope(h))], [], zero
    return [x.select(x.fcmp("ogt", h, zero), dh, zero)], [], zero
