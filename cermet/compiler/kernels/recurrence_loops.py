"""The kernels of a recurrence: all steps of a sequence for some rows of the batch, forwards and back.

    for each group of rows                                        the parallel index counts row tiles
        for each step
            forward                                               backward
                for each panel of units                               gradients of the gates of all units
                    products of the state with that panel             for each panel: products of those with the weights
                    gates, new state

Rows depend on nobody else's, so a worker runs its rows through the whole sequence without waiting for another. The weights are
packed once and stay in the nearest cache that holds them; the products of one panel go from the register tile to worker memory and
from there, still in the first-level cache, through the gates.

Where a row has no step (``keep`` is false) its state passes unchanged.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from llvmlite import ir

from cermet.compiler.kernels.irtools import Emit, Index, KernelEmit, Value, acc_type, new_module
from cermet.compiler.kernels.microkernel import Tile, store_tile, tile_fma
from cermet.compiler.kernels.recurrence_cells import GATES, SAVED, Cell, back_function, cell_function
from cermet.compiler.llvm.builder import BOOL, I8, I32, I64, PTR, VOID, constant

__all__ = ["BACKWARD_PARAMS", "FORWARD_PARAMS", "Variant", "backward_module", "forward_module", "group_of"]

_SHAPE = ("steps", "units", "panels", "tiles", "low", "more", "blocks", "kc")
_KEEP = ("keep", "keep_t", "keep_b")
FORWARD_PARAMS = (
    "x", "x_t", "x_b", "w", "h0", "h0_b", "c0", "c0_b", "bias", *_KEEP, "y", "y_t", "y_b", "before", "before_t", "before_b",
    "c", "c_t", "c_b", "saved", "saved_t", "saved_b", "sums", "ld", *_SHAPE,
)  # fmt: skip
BACKWARD_PARAMS = (
    "w", *_KEEP, "dy", "dy_t", "dy_b", "dhn", "dhn_b", "dcn", "dcn_b", "h", "h_t", "h_b", "c", "c_t", "c_b", "c0", "c0_b",
    "saved", "saved_t", "saved_b", "dx", "dx_t", "dx_b", "da", "da_t", "da_b", "dh", "dc", "state", "state_b", *_SHAPE,
)  # fmt: skip
_GROUP_ROWS = 48
"""Rows that go through a step together: their products of one panel fit the first-level cache."""


@dataclass(frozen=True)
class Variant:
    """What is compiled into a kernel.

    Attributes:
        cell: the step.
        high, low: rows of the first tiles and of the others (0: there are none).
        nv: vectors of a panel.
        masked: rows have steps of their own.
        given: backward: which of the gradients of (steps, last hidden state, last cell state) there are.
    """

    cell: Cell
    high: int
    low: int
    nv: int
    masked: bool
    given: tuple[bool, bool, bool] = (False, False, False)

    @property
    def key(self) -> str:
        flags = "".join("01"[f] for f in (self.masked, *self.given))
        return f"{self.cell.key} {self.high} {self.low} {self.nv} {flags}"


def _tile_function(module: ir.Module, target: Any, tile: Tile) -> ir.Function:
    """``tile(a, row, b, ahead, k, c, ldc, first)``: C = A·B where ``first``, else C += A·B.

    A lies row by row, ``row`` elements apart, B as a panel. ``ahead`` is where the following panel begins: it is brought closer while
    this one is used, since the weights as a whole lie farther away than a single step of the loop can wait for.
    """
    em = Emit(module, f"tile{tile.mr}", [PTR, I64, PTR, PTR, I64, PTR, I64, BOOL], target, internal=True)
    a, row, b, ahead, k, c, ldc, first = em.args
    element, size = acc_type(tile.acc), tile.acc.itemsize
    offsets: list[Index] = [em.mul(row, i) for i in range(tile.mr)]

    def load_a(at: Sequence[Value], i: int, step: int) -> Value:
        return em.load(em.at(em.at(at[0], step, element), offsets[i], element), tile.acc)

    def load_b(at: Sequence[Value], j: int, step: int) -> Value:
        return em.load(em.at(at[1], step * tile.nr + j * tile.lanes, element), tile.acc, tile.lanes)

    def advance(at: Sequence[Value], steps: int) -> Sequence[Value]:
        for line in range(0, steps * tile.nr * size, 64):
            place = em.at(at[2], line, I8)
            em.x.call("llvm.prefetch.p0", VOID, (place, constant(I32, 0), constant(I32, 2), constant(I32, 1)))
        ahead = em.at(at[2], steps * tile.nr, element)
        return [em.at(at[0], steps, element), em.at(at[1], steps * tile.nr, element), ahead]

    accs = tile_fma(em, tile, k, [a, b, ahead], load_a, load_b, advance)
    store_tile(em, tile, accs, c, ldc, first)
    return em.done()


def group_of(high: int) -> int:
    """Row tiles that go through a step together."""
    return max(1, _GROUP_ROWS // high)


class _Kernel:
    """What both directions share: row tiles, products, rows without a step."""

    def __init__(self, target: Any, v: Variant, name: str, params: tuple[str, ...]) -> None:
        self.target, self.v, self.dtype = target, v, v.cell.dtype
        self.element = acc_type(self.dtype)
        self.module = new_module(name, target)
        lanes = v.cell.lanes
        self.nr = v.nv * lanes
        self.functions = {
            rows: _tile_function(self.module, target, Tile(rows, v.nv, lanes, self.dtype)) for rows in {v.high, v.low or v.high}
        }
        self.helpers()
        self.em = KernelEmit(self.module, name, params, target)
        for p in params:
            pointer = p in _POINTERS
            setattr(self, p, self.em.slot(p, PTR if pointer else ir.IntType(64)))

    def helpers(self) -> None:
        raise NotImplementedError

    def __getattr__(self, name: str) -> Any:  # the parameters, for type checkers
        raise AttributeError(name)

    def row_of(self, tile: Value) -> Value:
        """The first row of a tile: the first ``more`` tiles have one row more than the ``low`` others."""
        em = self.em
        return em.add(em.mul(tile, self.low), em.min(tile, self.more))

    def at(self, ptr: Value, *terms: tuple[Index, Index]) -> Value:
        """``ptr`` moved by the sum of products, in elements."""
        em, offset = self.em, 0
        for a, b in terms:
            offset = em.add(offset, em.mul(a, b))
        return em.at(ptr, offset, self.element)

    def at_first(self, first: Value, ptr: Value, row: Value, then: tuple[Value, Value]) -> tuple[Value, Value]:
        """``ptr`` with its row stride where ``first`` holds, else ``then``."""
        return self.em.x.select(first, ptr, then[0]), self.em.x.select(first, row, then[1])

    @contextmanager
    def groups(self) -> Iterator[None]:
        """For each group of tiles of the block range: sets ``t0 t1`` and the rows ``r0 r1``."""
        em = self.em
        first = em.div(em.mul(em.begin, self.tiles), self.blocks)
        last = em.div(em.mul(em.end, self.tiles), self.blocks)
        size = group_of(self.v.high)
        with em.loop(first, last, size) as t0:
            self.t0, self.t1 = t0, em.min(em.add(t0, size), last)
            self.r0, self.r1 = self.row_of(self.t0), self.row_of(self.t1)
            yield

    def products(self, a: tuple[Value, Value], panel: Value, k: Value, c: tuple[Value, Index], fresh: bool, then: Value) -> None:
        """Products of the group's rows with one panel.

        Args:
            a: address of row 0 and row stride of the left factor.
            k: how many products a sum has.
            c: address of row 0 and row stride of the sums.
            fresh: overwrite what is there.
            then: the panel that comes after this one.
        """
        em = self.em
        with em.loop(0, k, self.kc) as kb:
            here = em.min(self.kc, em.sub(k, kb))
            b = self.at(panel, (kb, self.nr))
            first = em.cmp("eq", kb, 0) if fresh else constant(BOOL, 0)
            behind = em.add(kb, here)
            ahead = em.x.select(em.cmp("slt", behind, k), self.at(panel, (behind, self.nr)), then)
            with em.loop(self.t0, self.t1) as tile:
                row = self.row_of(tile)
                left, sums = self.at(a[0], (row, a[1]), (kb, 1)), self.at(c[0], (row, c[1]))

                def run(rows: int, left: Value = left, sums: Value = sums) -> None:
                    em.call(self.functions[rows], [left, a[1], b, ahead, here, sums, c[1], first])

                if not self.v.low:
                    run(self.v.high)
                else:
                    em.choose(em.cmp("slt", tile, self.more), lambda: run(self.v.high), lambda: run(self.v.low))

    def has_step(self, step: Value, row: Value) -> Value:
        em = self.em
        at = em.at(self.keep, em.add(em.mul(step, self.keep_t), em.mul(row, self.keep_b)), I8)
        return em.cmp("ne", em.x.zext(em.load_raw(I8, at, 1), 64), 0)

    def copy(self, src: Value | None, dst: Value, count: Value) -> None:
        """Copy ``count`` elements, or zeros for None."""
        em, width = self.em, self.v.cell.lanes
        whole = em.x.and_(count, em.index(-width))
        for start, stop, lanes in ((0, whole, width), (whole, count, 1)):
            with em.loop(start, stop, lanes) as j:
                value = em.zero(self.dtype, lanes) if src is None else em.load(em.at(src, j, self.element), self.dtype, lanes)
                em.store(value, em.at(dst, j, self.element), self.dtype)


class _Forward(_Kernel):
    def __init__(self, target: Any, v: Variant) -> None:
        super().__init__(target, v, "forward", FORWARD_PARAMS)

    def helpers(self) -> None:
        self.cell = cell_function(self.module, self.target, self.v.cell)

    def build(self) -> ir.Module:
        em, v = self.em, self.v
        with self.groups():
            # The state, before and after a step, close together in worker memory: rows of a result can be far apart, at distances
            # that compete for a few places of the cache.
            rows = em.sub(self.r1, self.r0)
            self.states = [self.at(em.scratch, (self.sums, 1))]
            self.states.append(self.at(self.states[0], (rows, self.ld)))
            with em.loop(self.r0, self.r1) as r:
                h0 = self.at(self.h0, (r, self.h0_b))
                self.copy(h0, self.at(self.states[0], (em.sub(r, self.r0), self.ld)), self.units)
                if v.cell.before:
                    self.copy(h0, self.at(self.before, (r, self.before_b)), self.units)
            with em.loop(0, self.steps) as s:
                self.step(s)
        em.done()
        return self.module

    def step(self, s: Value) -> None:
        em = self.em
        first = em.cmp("eq", s, 0)
        back = em.sub(s, 1)
        even = em.cmp("eq", em.x.and_(s, em.index(1)), 0)
        # Row 0's place, which lies before the group's rows.
        origin = em.mul(em.sub(0, self.r0), self.ld)
        h = em.at(em.x.select(even, *self.states), origin, self.element), self.ld
        self.state = em.at(em.x.select(even, *reversed(self.states)), origin, self.element)
        c = self.at_first(first, self.c0, self.c0_b, (self.at(self.c, (back, self.c_t)), self.c_b))
        gates = GATES[self.v.cell.kind]
        acc_step = em.mul(em.sub(self.r1, self.r0), self.nr)
        with em.loop(0, self.panels) as u:
            with em.loop(0, gates) as g:
                panel = self.at(self.w, (em.mul(em.add(em.mul(g, self.panels), u), self.units), self.nr))
                after = em.add(g, 1)
                other = em.x.select(em.cmp("slt", after, gates), em.add(em.mul(after, self.panels), u), em.add(u, 1))
                then = self.at(self.w, (em.mul(other, self.units), self.nr))
                sums = self.at(em.scratch, (g, acc_step), (em.sub(0, self.r0), self.nr))
                self.products(h, panel, self.units, (sums, self.nr), True, then)
            with em.loop(self.r0, self.r1) as r:
                self.row(s, u, r, h, c, acc_step)

    def row(self, s: Value, u: Value, r: Value, h: tuple[Value, Value], c: tuple[Value, Value], acc_step: Value) -> None:
        em, v = self.em, self.v
        j0 = em.mul(u, self.nr)
        count = em.min(self.nr, em.sub(self.units, j0))
        old, old_c = self.at(h[0], (r, h[1]), (j0, 1)), self.at(c[0], (r, c[1]), (j0, 1))
        y = self.at(self.y, (s, self.y_t), (r, self.y_b), (j0, 1))
        c_new = self.at(self.c, (s, self.c_t), (r, self.c_b), (j0, 1))
        saved = self.at(self.saved, (s, self.saved_t), (r, self.saved_b), (j0, 1))
        after = em.add(s, 1)
        # After the last step there is no next one to write its state before: the state itself is written twice instead.
        before = self.at(self.before, (after, self.before_t), (r, self.before_b), (j0, 1))
        before = em.x.select(em.cmp("slt", after, self.steps), before, y)
        x = self.at(self.x, (s, self.x_t), (r, self.x_b), (j0, 1))
        acc = self.at(em.scratch, (em.sub(r, self.r0), self.nr))
        state = self.at(self.state, (r, self.ld), (j0, 1))
        bias = self.at(self.bias, (j0, 1))

        def run() -> None:
            em.call(self.cell, [acc, acc_step, x, self.units, bias, old, old_c, state, y, c_new, saved, before, count])

        def carry() -> None:
            self.copy(old, y, count)
            self.copy(old, state, count)
            if v.cell.kind == "lstm":
                self.copy(old_c, c_new, count)
            if v.cell.before == "all":
                self.copy(old, before, count)
            if v.cell.saves:
                for k in range(SAVED[v.cell.kind]):
                    self.copy(None, self.at(saved, (k, self.units)), count)

        if v.masked:
            em.choose(self.has_step(s, r), run, carry)
        else:
            run()


class _Backward(_Kernel):
    def __init__(self, target: Any, v: Variant) -> None:
        super().__init__(target, v, "backward", BACKWARD_PARAMS)

    def helpers(self) -> None:
        self.back = back_function(self.module, self.target, self.v.cell, self.v.given[0])

    def build(self) -> ir.Module:
        em, v = self.em, self.v
        lstm = v.cell.kind == "lstm"
        with self.groups():
            with em.loop(self.r0, self.r1) as r:
                state = self.at(self.state, (r, self.state_b))
                self.copy(None, state, self.state_b)
                if v.given[1]:
                    self.copy(self.at(self.dhn, (r, self.dhn_b)), state, self.units)
                if lstm:
                    dcn = self.at(self.dcn, (r, self.dcn_b)) if v.given[2] else None
                    self.copy(dcn, self.at(self.dc, (r, self.units)), self.units)
            with em.loop(0, self.steps) as s:
                self.step(s)
            with em.loop(self.r0, self.r1) as r:
                self.copy(self.at(self.state, (r, self.state_b)), self.at(self.dh, (r, self.units)), self.units)
        em.done()
        return self.module

    def step(self, s: Value) -> None:
        em = self.em
        after = em.add(s, 1)
        last = em.cmp("eq", after, self.steps)
        c_before = self.at_first(last, self.c0, self.c0_b, (self.at(self.c, (after, self.c_t)), self.c_b))
        with em.loop(self.r0, self.r1) as r:
            self.row(s, r, self.at(c_before[0], (r, c_before[1])))
        gru = self.v.cell.kind == "gru"
        left, left_t, left_b = (self.da, self.da_t, self.da_b) if gru else (self.dx, self.dx_t, self.dx_b)
        products = em.mul(self.units, GATES[self.v.cell.kind])
        with em.loop(0, self.panels) as u:
            panel = self.at(self.w, (em.mul(u, products), self.nr))
            then = self.at(panel, (products, self.nr))
            sums = self.at(self.state, (u, self.nr))
            self.products((self.at(left, (s, left_t)), left_b), panel, products, (sums, self.state_b), False, then)

    def row(self, s: Value, r: Value, c_before: Value) -> None:
        em, v = self.em, self.v

        def of(name: str) -> Value:
            return self.at(getattr(self, name), (s, getattr(self, name + "_t")), (r, getattr(self, name + "_b")))

        state, dc = self.at(self.state, (r, self.state_b)), self.at(self.dc, (r, self.units))
        dx, da = of("dx"), of("da")

        def run() -> None:
            em.call(self.back, [state, dc, of("dy"), of("h"), of("c"), c_before, of("saved"), self.units, dx, da])

        def skip() -> None:
            # No gradient enters here, and the product adds nothing: what came from later steps goes on as it is.
            count = em.mul(self.units, GATES[v.cell.kind])
            self.copy(None, dx, count)
            if v.cell.kind == "gru":
                self.copy(None, da, count)

        if v.masked:
            em.choose(self.has_step(s, r), run, skip)
        else:
            run()


_POINTERS = {
    "x", "w", "h0", "c0", "bias", "keep", "y", "before", "c", "saved", "dy", "dhn", "dcn", "h", "dx", "da", "dh", "dc", "state",
}  # fmt: skip


def forward_module(target: Any, v: Variant) -> ir.Module:
    """The module whose entry ``forward`` runs all steps."""
    return _Forward(target, v).build()


def backward_module(target: Any, v: Variant) -> ir.Module:
    """The module whose entry ``backward`` runs all steps back."""
    return _Backward(target, v).build()
