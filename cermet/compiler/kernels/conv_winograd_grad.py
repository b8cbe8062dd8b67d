"""The gradient of 3x3 weights by Winograd's algorithm: the forward computation (see `winograd`) differentiated for its weights.

    dG = sum over tiles of (A dY A^T) * (B^T d B),     dW = G^T dG G

One parallel block takes a span of image tiles and a rectangle of channels. A group of tiles at a time is transformed into scratch, then for
each point the product over the group's tiles is added to the sums. A second kernel adds the spans' sums and transforms them back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llvmlite import ir

from cermet.compiler.kernels.conv_winograd import TileReader
from cermet.compiler.kernels.irtools import Emit, Index, KernelEmit, Value, acc_type, new_module
from cermet.compiler.kernels.packing import transposed as square
from cermet.compiler.kernels.winograd import apply_2d, transforms, transposed
from cermet.compiler.llvm.builder import PTR, memory_type
from cermet.dtypes import DType

__all__ = ["WinogradGradKernel", "WinogradGradSum"]

_OWN = (
    "tiles", "span", "group", "tile_rows", "tile_columns", "c", "o", "row_tiles", "column_tiles", "row_chunk", "column_chunk",
    "row_chunks", "column_chunks", "elements", "v_row", "v_point", "z_row", "z_point", "z_at", "zeros_at", "zeros", "pad_h", "pad_w",
    "x_h", "x_w", "x_sn", "x_sh", "x_sw", "y_h", "y_w", "y_sn", "y_sh", "y_sw",
)  # fmt: skip


_GEOMETRY = ("h", "w", "sn", "sh", "sw")


@dataclass(frozen=True)
class WinogradGradKernel:
    """What is compiled in. Sums are ``[span][point][row tile][column tile][rows][columns]``, input channels down and output channels
    across; the last tile of either kind overlaps the one before it.

    Attributes:
        compute: dtype of all.
        outputs: m.
        rows, vectors, lanes: the register tile.
    """

    compute: DType
    outputs: int
    rows: int
    vectors: int
    lanes: int
    ENTRY = "winograd_grad"

    @property
    def columns(self) -> int:
        return self.vectors * self.lanes

    @property
    def key(self) -> str:
        return f"winograd_grad:{self.compute.name}:{self.outputs}:{self.rows}x{self.vectors}x{self.lanes}"

    def params(self) -> list[str]:
        """Strides of images in bytes, those of scratch and sums in elements."""
        return ["x", "y", "sums", *_OWN]

    def build(self, target: Any) -> Any:
        """The LLVM module."""
        module = new_module("winograd_grad", target)
        tile = _tile_function(module, target, self)
        _Body(KernelEmit(module, self.ENTRY, self.params(), target), self, tile).write()
        return module


def _tile_function(module: ir.Module, target: Any, spec: WinogradGradKernel) -> Any:
    """``tile(a, a_step, b, b_step, count, c, fresh)``: C = A^T B, or C += A^T B, over ``count`` rows of A and B; C is packed."""
    em = Emit(
        module, "tile", [PTR, ir.IntType(64), PTR, ir.IntType(64), ir.IntType(64), PTR, ir.IntType(1)], target, internal=True
    )
    a, a_step, b, b_step, count, c, fresh = em.args
    element, lanes, compute = acc_type(spec.compute), spec.lanes, spec.compute
    places = [em.at(c, i * lanes, element) for i in range(spec.rows * spec.vectors)]
    zero = em.zero(compute, lanes)
    old = em.blend(em.x.not_(fresh), lambda: [em.load(p, compute, lanes) for p in places], [zero] * len(places))

    def body(t: Value, acc: list[Value]) -> list[Value]:
        left, right = em.at(a, em.mul(t, a_step), element), em.at(b, em.mul(t, b_step), element)
        bs = [em.load(em.at(right, v * lanes, element), compute, lanes) for v in range(spec.vectors)]
        out = []
        for i in range(spec.rows):
            value = em.broadcast(em.load(em.at(left, i, element), compute), lanes)
            out += [em.mul_add(value, bs[v], acc[i * spec.vectors + v]) for v in range(spec.vectors)]
        return out

    for value, place in zip(em.fold(0, count, 1, old, body), places, strict=True):
        em.store(value, place, compute)
    return em.done()


class _Body:
    """Writes the kernel."""

    def __init__(self, k: KernelEmit, spec: WinogradGradKernel, tile: Any) -> None:
        self.k, self.spec, self.tile = k, spec, tile
        maps = transforms(spec.outputs)
        self.points = maps.points**2
        self.element = acc_type(spec.compute)
        self.s = s = {name: k.slot(name) for name in _OWN}
        self.sums = k.slot("sums", PTR)
        blank = k.at(k.scratch, s["zeros_at"], self.element)
        with k.loop(0, s["zeros"]) as i:
            k.store(k.zero(spec.compute), k.at(blank, i, self.element), spec.compute)
        zeros = k.x.line(ir.IntType(64), f"ptrtoint ptr {blank.get_reference()} to i64")
        self.x, self.y = (
            TileReader(k, spec.compute, spec.lanes, matrix, k.slot(name), zeros, [s[f"{name}_{g}"] for g in _GEOMETRY])
            for name, matrix in (("x", maps.data), ("y", transposed(maps.result)))
        )
        self.v = k.scratch
        self.z = k.at(k.scratch, s["z_at"], self.element)

    def write(self) -> None:
        k, s, spec = self.k, self.s, self.spec
        with k.loop(k.begin, k.end) as block:
            rest, j = k.divmod(block, s["column_chunks"])
            span, i = k.divmod(rest, s["row_chunks"])
            rows = self._chunk(i, "row", spec.rows, s["c"])
            columns = self._chunk(j, "column", spec.columns, s["o"])
            first = k.mul(span, s["span"])
            last = k.min(s["tiles"], k.add(first, s["span"]))
            sums = k.at(self.sums, k.mul(span, s["elements"]), self.element)
            with k.loop(first, last, s["group"]) as at:
                count = k.min(s["group"], k.sub(last, at))
                self._gather(at, count, rows, columns)
                self._multiply(count, rows, columns, sums, k.cmp("eq", at, first))
        k.done()

    def _chunk(self, number: Value, kind: str, size: int, channels: Value) -> tuple[Value, Value, Value, Value]:
        """A chunk's first and last tile, and its first and last channel as they are gathered."""
        k, s = self.k, self.s
        low = k.mul(number, s[f"{kind}_chunk"])
        high = k.min(k.add(low, s[f"{kind}_chunk"]), s[f"{kind}_tiles"])
        begin = k.min(k.mul(low, size), k.sub(channels, max(size, self.spec.lanes)))
        return low, high, begin, k.min(k.mul(high, size), channels)

    def _gather(self, first: Value, count: Value, rows: Any, columns: Any) -> None:
        k, s, m, lanes = self.k, self.s, self.spec.outputs, self.spec.lanes
        with k.loop(0, count) as t:
            rest, x = k.divmod(k.add(first, t), s["tile_columns"])
            image, y = k.divmod(rest, s["tile_rows"])
            y, x = k.mul(y, m), k.mul(x, m)
            self.x.list(image, k.sub(y, s["pad_h"]), k.sub(x, s["pad_w"]))
            self.y.list(image, y, x)
            for reader, to, step, point, (_, _, begin, end) in (
                (self.x, self.v, s["v_row"], s["v_point"], rows),
                (self.y, self.z, s["z_row"], s["z_point"], columns),
            ):
                row = k.at(to, k.mul(t, step), self.element)
                with k.loop(begin, end, lanes) as c:
                    channel = k.min(c, k.sub(end, lanes))
                    reader.transform(channel, k.at(row, k.sub(channel, begin), self.element), point)

    def _multiply(self, count: Value, rows: Any, columns: Any, sums: Value, fresh: Value) -> None:
        k, s, spec = self.k, self.s, self.spec
        size = spec.rows * spec.columns
        with k.loop(0, self.points) as p:
            a = k.at(self.v, k.mul(p, s["v_point"]), self.element)
            b = k.at(self.z, k.mul(p, s["z_point"]), self.element)
            of_point = k.mul(p, k.mul(s["row_tiles"], s["column_tiles"]))
            with k.loop(rows[0], rows[1]) as i:
                row = k.sub(k.min(k.mul(i, spec.rows), k.sub(s["c"], spec.rows)), rows[2])
                with k.loop(columns[0], columns[1]) as j:
                    column = k.sub(k.min(k.mul(j, spec.columns), k.sub(s["o"], spec.columns)), columns[2])
                    number = k.add(of_point, k.add(k.mul(i, s["column_tiles"]), j))
                    to = k.at(sums, k.mul(number, size), self.element)
                    left, right = k.at(a, row, self.element), k.at(b, column, self.element)
                    k.call(self.tile, [left, s["v_row"], right, s["z_row"], count, to, fresh])


@dataclass(frozen=True)
class WinogradGradSum:
    """Adds the sums of all spans, transforms them back and stores the gradient. One parallel block is one row of register tiles.

    Attributes:
        result: dtype of the gradient in memory.
        dense: a filter's nine taps lie next to each other.
    """

    compute: DType
    result: DType
    outputs: int
    rows: int
    vectors: int
    lanes: int
    dense: bool
    ENTRY = "winograd_grad_sum"
    PARAMS = ("src", "dst", "c", "o", "row_tiles", "column_tiles", "spans", "elements", "s_o", "s_c", "s_h", "s_w")

    @property
    def key(self) -> str:
        tile = f"{self.outputs}:{self.rows}x{self.vectors}x{self.lanes}"
        return f"winograd_grad_sum:{self.compute.name}:{self.result.name}:{tile}:{'dense' if self.dense else 'any'}"

    def build(self, target: Any) -> Any:
        """The LLVM module."""
        module = new_module("winograd_grad_sum", target)
        k = KernelEmit(module, self.ENTRY, self.PARAMS, target)
        s = {p: k.slot(p) for p in self.PARAMS[2:]}
        columns = self.vectors * self.lanes
        totals = k.alloca(acc_type(self.compute), (self.outputs + 2) ** 2 * self.lanes)
        with k.loop(k.begin, k.end) as block:
            base = k.min(k.mul(block, self.rows), k.sub(s["c"], self.rows))
            skip = k.sub(k.mul(block, self.rows), base)  # channels that the tile before has stored
            with k.loop(0, s["column_tiles"]) as j, k.loop(skip, self.rows) as i, k.loop(0, columns, self.lanes) as v:
                number = k.add(k.mul(block, s["column_tiles"]), j)
                within = k.add(k.mul(k.add(k.mul(number, self.rows), i), columns), v)
                from_ = k.at(k.slot("src", PTR), within, acc_type(self.compute))
                o = k.add(k.min(k.mul(j, columns), k.sub(s["o"], columns)), v)
                to = k.add(k.mul(o, s["s_o"]), k.mul(k.add(base, i), s["s_c"]))
                self._vector(k, s, totals, from_, k.at(k.slot("dst", PTR), to, memory_type(self.result)))
        k.done()
        return module

    def _vector(self, k: KernelEmit, s: dict[str, Value], totals: Value, from_: Value, to: Value) -> None:
        """The nine taps of one input channel and a vector of output channels; ``totals`` has room for the points."""
        n, element = self.outputs + 2, acc_type(self.compute)
        point = k.mul(k.mul(s["row_tiles"], s["column_tiles"]), self.rows * self.vectors * self.lanes)

        with k.loop(0, n * n) as p:
            place = k.at(from_, k.mul(point, p), element)

            def add(t: Value, acc: list[Value]) -> list[Value]:
                at = k.at(place, k.mul(t, s["elements"]), element)
                return [k.plus(acc[0], k.load(at, self.compute, self.lanes))]

            [total] = k.fold(1, s["spans"], 1, [k.load(place, self.compute, self.lanes)], add)
            k.store(total, k.at(totals, k.mul(p, self.lanes), element), self.compute)

        def summed(i: int, j: int) -> Value:
            # The points of a tile are numbered column by column.
            return k.load(k.at(totals, (i * n + j) * self.lanes, element), self.compute, self.lanes)

        rows = list(apply_2d(k, transposed(transforms(self.outputs).weights), summed))
        taps = [value for row in rows for value in row]
        type_ = memory_type(self.result)
        if self.dense and self.lanes == 8:
            for lane, row in enumerate(square(k.x, taps[:8])):
                place = k.at(to, k.mul(s["s_o"], lane), type_)
                k.store(row, place, self.result)
                k.store(k.x.extract(taps[8], lane), k.at(place, 8, type_), self.result)
            return
        for t, value in enumerate(taps):
            offset: Index = k.add(k.mul(s["s_h"], t // 3), k.mul(s["s_w"], t % 3))
            for lane in range(self.lanes):
                place = k.at(to, k.add(offset, k.mul(s["s_o"], lane)), type_)
                k.store(k.x.extract(value, lane), place, self.result)
