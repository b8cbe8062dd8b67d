"""Winograd's convolution as kernels: 3x3 taps, stride 1, forward and input gradient (see `winograd` for the mathematics).

The image is cut into tiles of m x m outputs. A first launch transforms the weights into a matrix for each of the (m + 2)^2 points,
packed for the register tile. Then one kernel works on a group of tiles at a time, in scratch that stays in the near caches:

    gather     the input of each tile, transformed:              V[point][tile][input channel]
    multiply   for each point the matrix product with weights:   M[point][tile][output channel]
    scatter    each tile's sums transformed back and stored, or handed to an epilogue

so that no transformed image is ever in memory. Taps in the padding read a row of zeros, through a list of addresses for each tile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llvmlite import ir

from cermet.compiler.kernels.finish import Finish, Output
from cermet.compiler.kernels.irtools import Emit, Index, KernelEmit, Value, acc_type, new_module, widen
from cermet.compiler.kernels.packing import transposed
from cermet.compiler.kernels.winograd import Matrix, apply_2d, transforms
from cermet.compiler.llvm.builder import BOOL, I64, PTR, constant, memory_type, vector
from cermet.dtypes import DType

__all__ = ["TileReader", "WinogradKernel", "WinogradWeights"]

TAPS = 9


@dataclass(frozen=True)
class WinogradWeights:
    """Transformed weights ``[point][panel][reduced channel][channels of a panel]``, points ``u_point`` elements apart.

    One parallel block makes one panel for ``span`` reduced channels; the last block writes ``zeros`` zeros behind everything.
    Columns beyond the last output channel repeat it. Strides are in elements.

    Attributes:
        source: dtype in memory.
        outputs: m.
        vectors, lanes: a panel's width.
        dense: a filter's nine taps lie next to each other.
        flip: the taps are used in reverse order (the gradient of the input).
    """

    source: DType
    compute: DType
    outputs: int
    vectors: int
    lanes: int
    dense: bool
    flip: bool
    ENTRY = "winograd_weights"
    PARAMS = (
        "src", "dst", "outs", "reduced", "panels", "parts", "span", "zeros", "zeros_at", "u_point", "s_n", "s_k", "s_h", "s_w",
    )  # fmt: skip

    @property
    def key(self) -> str:
        how = f"{'dense' if self.dense else 'any'}{' flip' if self.flip else ''}"
        return f"winograd_weights:{self.source.name}:{self.compute.name}:{self.outputs}:{self.vectors}x{self.lanes}:{how}"

    def build(self, target: Any) -> Any:
        """The LLVM module."""
        module = new_module("winograd_weights", target)
        k = KernelEmit(module, self.ENTRY, self.PARAMS, target)
        s = {p: k.slot(p) for p in self.PARAMS[2:]}
        dst, element = k.slot("dst", PTR), acc_type(self.compute)
        last = k.mul(s["panels"], s["parts"])
        with k.loop(k.begin, k.end) as block:

            def zeros() -> None:
                with k.loop(0, s["zeros"]) as i:
                    k.store(k.zero(self.compute), k.at(dst, k.add(s["zeros_at"], i), element), self.compute)

            def weights(block: Value = block) -> None:
                panel, part = k.divmod(block, s["parts"])
                low = k.mul(part, s["span"])
                with k.loop(low, k.min(k.add(low, s["span"]), s["reduced"])) as c, k.loop(0, self.vectors) as v:
                    column = k.add(k.mul(panel, self.vectors * self.lanes), k.mul(v, self.lanes))
                    row = k.add(k.mul(panel, s["reduced"]), c)
                    to = k.at(dst, k.add(k.mul(row, self.vectors * self.lanes), k.mul(v, self.lanes)), element)
                    self._vector(k, s, column, c, to)

            k.choose(k.cmp("eq", block, last), zeros, weights)
        k.done()
        return module

    def _vector(self, k: KernelEmit, s: dict[str, Value], first: Value, c: Value, to: Value) -> None:
        """All points of one vector of output channels, from ``first`` on, and one reduced channel."""
        type_ = memory_type(self.source)
        base = k.at(k.slot("src", PTR), k.mul(c, s["s_k"]), type_)
        last = k.sub(s["outs"], 1)
        filters = [k.at(base, k.mul(k.min(k.add(first, i), last), s["s_n"]), type_) for i in range(self.lanes)]
        taps = self._dense(k, filters) if self.dense else self._gathered(k, s, filters)
        if self.flip:
            taps = taps[::-1]
        for column in apply_2d(k, transforms(self.outputs).weights, lambda i, j: taps[3 * i + j]):
            for value in column:
                k.store(value, to, self.compute)
                to = k.at(to, s["u_point"], acc_type(self.compute))

    def _gathered(self, k: KernelEmit, s: dict[str, Value], filters: list[Value]) -> list[Value]:
        type_ = memory_type(self.source)
        taps = []
        for t in range(TAPS):
            offset = k.add(k.mul(s["s_h"], t // 3), k.mul(s["s_w"], t % 3))
            taps.append(self._inserted(k, [k.at(f, offset, type_) for f in filters]))
        return taps

    def _inserted(self, k: KernelEmit, places: list[Value]) -> Value:
        """A vector of single elements."""
        type_ = memory_type(self.source)
        row = k.x.poison(vector(type_, self.lanes))
        for lane, place in enumerate(places):
            row = k.x.insert(row, k.load_raw(type_, place, self.source.itemsize), lane)
        return widen(k.x, row, self.source)

    def _dense(self, k: KernelEmit, filters: list[Value]) -> list[Value]:
        """The first eight taps by transposing squares in registers, the last one by one."""
        side, type_ = min(self.lanes, 8), memory_type(self.source)
        taps: list[Value] = []
        for first in range(0, 8, side):
            parts = []
            for low in range(0, self.lanes, side):
                rows = [k.load(k.at(f, first, type_), self.source, side) for f in filters[low : low + side]]
                parts.append(transposed(k.x, rows))
            for step in range(side):
                whole = parts[0][step]
                if len(parts) == 2:
                    whole = k.x.shuffle(whole, parts[1][step], list(range(2 * side)))
                taps.append(whole)
        return [*taps, self._inserted(k, [k.at(f, 8, type_) for f in filters])]


_OWN = (
    "tiles", "group", "tile_rows", "tile_columns", "reduced", "outs", "chunk", "chunks", "u_point", "v_row", "v_point", "m_row",
    "m_point", "m_at", "strip_at", "high", "wide", "pad_h", "pad_w", "src_n", "src_h", "src_w", "out_h", "out_w", "dst_n",
    "dst_h", "dst_w",
)  # fmt: skip


@dataclass(frozen=True)
class WinogradKernel:
    """What is compiled in. One parallel block is a group of tiles and a chunk of output channels.

    Attributes:
        compute: dtype of the source, the transformed weights and the sums.
        outputs: m.
        rows, vectors, lanes: the register tile of the products: image tiles x vectors of output channels.
        output: how results leave the kernel; its rows are the pixels of an image.
    """

    compute: DType
    outputs: int
    rows: int
    vectors: int
    lanes: int
    output: Output
    ENTRY = "winograd"

    @property
    def key(self) -> str:
        return f"winograd:{self.compute.name}:{self.outputs}:{self.rows}x{self.vectors}x{self.lanes}:{self.output.key}"

    def params(self) -> list[str]:
        """Named parameters, in order. Strides of images in bytes, those of scratch in elements, ``…_at`` in bytes."""
        return ["src", "weights", "zeros", "dst", *_OWN, *self.output.params]

    @property
    def columns(self) -> int:
        """Output channels of a register tile."""
        return self.vectors * self.lanes

    def build(self, target: Any) -> Any:
        """The LLVM module."""
        module = new_module("winograd", target)
        tile = tile_function(module, target, self.compute, self.rows, self.vectors, self.lanes)
        finish = Finish(module, target, self.output, self.lanes) if self.output.epilogue else None
        _Body(KernelEmit(module, self.ENTRY, self.params(), target), self, tile, finish).write()
        return module


def tile_function(module: ir.Module, target: Any, compute: DType, rows: int, vectors: int, lanes: int, name: str = "tile") -> Any:
    """``tile(a, a_row, b, k, c, c_row)``: C = A B for A with rows of unit stride and B a packed panel; strides in elements."""
    em = Emit(module, name, [PTR, I64, PTR, I64, PTR, I64], target, internal=True)
    a, a_row, b, count, c, c_row = em.args
    element, width = acc_type(compute), vectors * lanes
    starts = [em.at(a, em.mul(a_row, i), element) for i in range(rows)]

    def product(at: Index, acc: list[Value]) -> list[Value]:
        panel = em.at(b, em.mul(at, width), element)
        bs = [em.load(em.at(panel, v * lanes, element), compute, lanes) for v in range(vectors)]
        out = []
        for i, start in enumerate(starts):
            value = em.broadcast(em.load(em.at(start, at, element), compute), lanes)
            out += [em.mul_add(value, bs[v], acc[i * vectors + v]) for v in range(vectors)]
        return out

    def turn(steps: int) -> Any:
        def body(at: Value, acc: list[Value]) -> list[Value]:
            for step in range(steps):
                acc = product(em.add(at, step), acc)
            return acc

        return body

    acc = [em.zero(compute, lanes)] * (rows * vectors)
    whole = em.x.and_(count, em.index(-4))
    acc = em.fold(0, whole, 4, acc, turn(4))
    acc = em.fold(whole, count, 1, acc, turn(1))
    for i in range(rows):
        to = em.at(c, em.mul(c_row, i), element)
        for v in range(vectors):
            em.store(acc[i * vectors + v], em.at(to, v * lanes, element), compute)
    return em.done()


class TileReader:
    """Reads an image in square tiles and transforms them.

    Args:
        matrix: what is applied from both sides; a tile has as many pixels a side as it has columns.
        source, zeros: addresses (integers) of the image and of a pixel of zeros.
        geometry: extents (2) and byte strides (batch, 2) of the image.
    """

    def __init__(
        self, k: KernelEmit, compute: DType, lanes: int, matrix: Matrix, source: Value, zeros: Value, geometry: Sequence[Value]
    ) -> None:
        self.k, self.compute, self.lanes, self.matrix = k, compute, lanes, matrix
        self.source, self.zeros = source, zeros
        self.high, self.wide, self.step_n, self.step_h, self.step_w = geometry
        self.side = len(matrix[0])
        self.addresses = k.alloca(I64, self.side**2)

    def list(self, image: Value, y: Value, x: Value) -> None:
        """Note the addresses of the pixels of the tile whose first one is at (y, x), which may lie outside."""
        k = self.k
        base = k.add(self.source, k.mul(image, self.step_n))
        base = k.add(base, k.add(k.mul(y, self.step_h), k.mul(x, self.step_w)))

        def inside(at: Value, extent: Value) -> Value:
            # One unsigned comparison: negative positions are very large ones.
            return k.x.icmp("ult", at, extent)

        across = [(inside(k.add(x, j), self.wide), k.mul(self.step_w, j)) for j in range(self.side)]
        for i in range(self.side):
            row, there = k.add(base, k.mul(self.step_h, i)), inside(k.add(y, i), self.high)
            for j, (within, offset) in enumerate(across):
                at = k.select(k.x.and_(there, within), k.add(row, offset), self.zeros)
                k.store_raw(at, k.at(self.addresses, i * self.side + j, I64), 8)

    def transform(self, channel: Value, to: Value, point: Value) -> None:
        """Transform a vector of channels of the listed pixels; results go ``point`` elements apart, column by column."""
        k, element = self.k, acc_type(self.compute)

        def pixel(i: int, j: int) -> Value:
            pointer = k.load_raw(PTR, k.at(self.addresses, i * self.side + j, I64), 8)
            return k.load(k.at(pointer, channel, element), self.compute, self.lanes)

        for column in apply_2d(k, self.matrix, pixel):
            for value in column:
                k.store(value, to, self.compute)
                to = k.at(to, point, element)


class _Body:
    """Writes the kernel."""

    def __init__(self, k: KernelEmit, spec: WinogradKernel, tile: Any, finish: Finish | None) -> None:
        self.k, self.spec, self.tile, self.finish = k, spec, tile, finish
        if finish is not None:
            finish.prepare(k)
        self.maps = transforms(spec.outputs)
        self.side = self.maps.points
        self.element = acc_type(spec.compute)
        self.s = {name: k.slot(name) for name in _OWN}
        self.weights, self.dest = k.slot("weights", PTR), k.slot("dst", PTR)
        geometry = [self.s[name] for name in ("high", "wide", "src_n", "src_h", "src_w")]
        self.reader = TileReader(k, spec.compute, spec.lanes, self.maps.data, k.slot("src"), k.slot("zeros"), geometry)
        self.v = k.scratch
        self.m = self._bytes_on(k.scratch, self.s["m_at"])
        self.strip = self._bytes_on(k.scratch, self.s["strip_at"])
        self.spill = k.alloca(self.element, spec.outputs**2 * spec.lanes)

    def _bytes_on(self, ptr: Value, offset: Index) -> Value:
        return self.k.x.line(PTR, f"getelementptr i8, ptr {ptr.get_reference()}, i64 {self.k.index(offset).get_reference()}")

    def write(self) -> None:
        k, s = self.k, self.s

        def body(block: Value, carried: list[Value]) -> list[Value]:
            group, chunk = k.divmod(block, s["chunks"])
            first = k.mul(group, s["group"])
            count = k.min(s["group"], k.sub(s["tiles"], first))
            column = k.mul(chunk, s["chunk"])
            columns = k.min(s["chunk"], k.sub(s["outs"], column))
            with k.when(k.cmp("ne", group, carried[0])):  # the same input serves several chunks of output channels
                self._gather(first, count)
            self._multiply(count, column, columns)
            self._scatter(first, count, column, columns)
            return [group]

        k.fold(k.begin, k.end, 1, [k.index(-1)], body)
        k.done()

    def _place(self, number: Value) -> tuple[Value, Value, Value]:
        """Image, row and column of the first output of a tile."""
        k, s, m = self.k, self.s, self.spec.outputs
        rest, x = k.divmod(number, s["tile_columns"])
        image, y = k.divmod(rest, s["tile_rows"])
        return image, k.mul(y, m), k.mul(x, m)

    # -- gather ----------------------------------------------------------------------------------------------------

    def _gather(self, first: Value, count: Value) -> None:
        k, s, spec = self.k, self.s, self.spec
        with k.loop(0, count) as t:
            image, y, x = self._place(k.add(first, t))
            self.reader.list(image, k.sub(y, s["pad_h"]), k.sub(x, s["pad_w"]))
            row = k.at(self.v, k.mul(t, s["v_row"]), self.element)
            with k.loop(0, s["reduced"], spec.lanes) as c:
                # The last vector overlaps the one before it.
                channel = k.min(c, k.sub(s["reduced"], spec.lanes))
                self.reader.transform(channel, k.at(row, channel, self.element), s["v_point"])

    # -- multiply --------------------------------------------------------------------------------------------------

    def _multiply(self, count: Value, column: Value, columns: Value) -> None:
        k, s, spec = self.k, self.s, self.spec
        with k.loop(0, self.side**2) as p:
            a = k.at(self.v, k.mul(p, s["v_point"]), self.element)
            b = k.at(self.weights, k.add(k.mul(p, s["u_point"]), k.mul(column, s["reduced"])), self.element)
            c = k.at(self.m, k.mul(p, s["m_point"]), self.element)
            with k.loop(0, columns, spec.columns) as j, k.loop(0, count, spec.rows) as i:
                panel = k.at(b, k.mul(j, s["reduced"]), self.element)
                rows = k.at(a, k.mul(i, s["v_row"]), self.element)
                to = k.at(c, k.add(k.mul(i, s["m_row"]), j), self.element)
                k.call(self.tile, [rows, s["v_row"], panel, s["reduced"], to, s["m_row"]])

    # -- scatter ---------------------------------------------------------------------------------------------------

    def _scatter(self, first: Value, count: Value, column: Value, columns: Value) -> None:
        k, s, m = self.k, self.s, self.spec.outputs
        with k.loop(0, count) as t:
            image, y, x = self._place(k.add(first, t))
            inside = k.min(m, k.sub(s["out_h"], y)), k.min(m, k.sub(s["out_w"], x))
            from_ = k.at(self.m, k.mul(t, s["m_row"]), self.element)
            if self.finish is None:
                self._put(from_, image, (y, x), inside, column, columns)
            else:
                with k.loop(0, columns, self.spec.lanes) as c:
                    self._to_strip(self._sums(k.at(from_, c, self.element)), c)
                self._finish(image, (y, x), inside, column, columns)

    def _put(
        self, from_: Value, image: Value, at: tuple[Value, Value], inside: tuple[Value, Value], column: Value, columns: Value
    ) -> None:
        """Store a tile."""
        k, s, m, lanes = self.k, self.s, self.spec.outputs, self.spec.lanes
        (y, x), (rows, across) = at, inside
        offset = k.add(k.mul(image, s["dst_n"]), k.add(k.mul(y, s["dst_h"]), k.mul(x, s["dst_w"])))
        to = k.at(self._bytes_on(self.dest, offset), column, self._result())
        whole = k.x.and_(k.cmp("eq", rows, m), k.cmp("eq", across, m))
        with k.loop(0, columns, lanes) as c:
            values = self._sums(k.at(from_, c, self.element))
            full = k.x.and_(whole, k.cmp("sle", k.add(c, lanes), columns))
            place = k.at(to, c, self._result())
            left = k.min(k.sub(columns, c), lanes)
            k.choose(full, lambda: self._store(values, place), lambda: self._store_some(values, place, rows, across, left))

    def _sums(self, from_: Value) -> list[list[Value]]:
        """The outputs of a tile for one vector of channels."""
        k, n = self.k, self.side
        places = [from_]  # points are numbered column by column, as `TileReader.transform` leaves them
        for _ in range(n * n - 1):
            places.append(k.at(places[-1], self.s["m_point"], self.element))
        return list(apply_2d(k, self.maps.result, lambda i, j: k.load(places[i * n + j], self.spec.compute, self.spec.lanes)))

    def _store(self, values: list[list[Value]], to: Value) -> None:
        for row in values:
            at = to
            for value in row:
                self.k.store(value, at, self.spec.output.dtype)
                at = self._bytes_on(at, self.s["dst_w"])
            to = self._bytes_on(to, self.s["dst_h"])

    def _store_some(self, values: list[list[Value]], to: Value, rows: Value, across: Value, left: Value) -> None:
        """What of a tile lies in the image, ``left`` channels of it."""
        k, s, spec = self.k, self.s, self.spec
        for i, value in enumerate(v for row in values for v in row):
            k.store(value, k.at(self.spill, i * spec.lanes, self.element), spec.compute)

        def each(store: Any) -> None:
            with k.loop(0, rows) as i, k.loop(0, across) as j:
                from_ = k.at(self.spill, k.mul(k.add(k.mul(i, spec.outputs), j), spec.lanes), self.element)
                store(from_, self._bytes_on(to, k.add(k.mul(i, s["dst_h"]), k.mul(j, s["dst_w"]))))

        def vectors(from_: Value, at: Value) -> None:
            k.store(k.load(from_, spec.compute, spec.lanes), at, spec.output.dtype)

        def scalars(from_: Value, at: Value) -> None:
            with k.loop(0, left) as c:
                value = k.load(k.at(from_, c, self.element), spec.compute)
                k.store(value, k.at(at, c, self._result()), spec.output.dtype)

        k.choose(k.cmp("eq", left, spec.lanes), lambda: each(vectors), lambda: each(scalars))

    def _to_strip(self, values: list[list[Value]], c: Value) -> None:
        """Keep a tile's outputs for the epilogue: a row of channels for each pixel."""
        k = self.k
        to = k.at(self.strip, c, self.element)
        for row in values:
            for value in row:
                k.store(value, to, self.spec.compute)
                to = k.at(to, self.s["m_point"], self.element)

    def _finish(self, image: Value, at: tuple[Value, Value], inside: tuple[Value, Value], column: Value, columns: Value) -> None:
        """Hand the rows of a tile that lie in the image to the epilogue."""
        assert self.finish is not None
        k, s = self.k, self.s
        (y, x), (rows, across) = at, inside
        with k.loop(0, rows) as i:
            from_ = k.at(self.strip, k.mul(k.mul(i, self.spec.outputs), s["m_point"]), self.element)
            pixel = k.add(k.mul(k.add(y, i), s["out_w"]), x)
            self.finish.call(k, from_, s["m_point"], across, columns, (image, pixel, column), None, constant(BOOL, 1))

    def _result(self) -> Any:
        return memory_type(self.spec.output.dtype)
