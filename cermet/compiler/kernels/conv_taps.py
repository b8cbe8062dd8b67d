"""The tap convolution: one kernel for the forward pass, the gradient of the input, and the depthwise forms of both.

A tile of pixels × output channels stays in registers over all taps and input channels. Per (tap, channel): one broadcast load a
pixel from the address that the table gives (see conv_table), the vectors of packed weights, one fused multiply-add a pair. All
sizes are run-time values: a new batch, image or channel count compiles nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from cermet.compiler.kernels.conv_table import PixelTable
from cermet.compiler.kernels.finish import Epilogue, Finish, Output, _substituted
from cermet.compiler.kernels.irtools import Index, KernelEmit, Value, acc_type, new_module
from cermet.compiler.llvm.builder import BOOL, I64, PTR, constant, memory_type
from cermet.compiler.loops.ir import Expr, Param, Var
from cermet.dtypes import DType

__all__ = ["TapKernel", "Tile", "with_order"]

UNROLL = 4
_OWN = ("chunks", "phase_count", "part_blocks", "groups", "blocks", "tiles", "run", "outs", "taps", "src_g", "w_block", "pitch")


def with_order(epilogue: Epilogue) -> Epilogue:
    """An epilogue for pixels in either order: its first parameter says whether the batch counts fastest.

    The kernel hands over (pixel // fold, pixel % fold): batch and position where positions count fastest, else the reverse.
    """
    order = Param("batch_inner", "int")
    high, low = Var("high"), Var("low")
    between: Expr = order.expr * (low.expr - high.expr)
    body = _substituted(epilogue.body, {epilogue.b: high.expr + between, epilogue.m: low.expr - between})
    return replace(epilogue, params=[order, *epilogue.params], b=high, m=low, body=body, key=f"{epilogue.key} ordered")


@dataclass(frozen=True)
class Tile:
    """A register tile: ``pixels`` × ``vectors`` of ``lanes`` output channels."""

    pixels: int
    vectors: int
    lanes: int

    @property
    def channels(self) -> int:
        return self.vectors * self.lanes


@dataclass(frozen=True)
class TapKernel:
    """What is compiled in.

    Attributes:
        compute: dtype of the source, the weights and the sums (float32 or float64).
        result: dtype of the destination in memory.
        rank: spatial dimensions.
        tile: the register tile.
        mixing: 0 where a group has many channels. Else groups have ``mixing`` channels in and out, a divisor of a vector's lanes:
            then a vector of outputs spans several groups, computed from the vector of the same input channels (1: depthwise).
        epilogue: run on each result instead of storing it (see `with_order`).
        scattered: neighbours in a tile are not neighbours in the image (the gradient of a strided convolution): the epilogue, not
            an ordered one, is called for one pixel at a time, whose number is where its address would be.
        wide: the epilogue gets all channels of a parallel block at once. For little work a tile, where calls would take as long as
            that; there is one group then.
    """

    compute: DType
    result: DType
    rank: int
    tile: Tile
    mixing: int = 0
    epilogue: Epilogue | None = None
    scattered: bool = False
    wide: bool = False

    ENTRY = "conv_taps"

    @property
    def key(self) -> str:
        t = self.tile
        tile = f"{t.pixels}x{t.vectors}x{t.lanes}"
        how = f"{self.output.key}{' scattered' if self.scattered else ''}{' wide' if self.wide else ''}"
        return f"conv_taps:{self.mixing}:{self.compute.name}:{self.result.name}:{self.rank}d:{tile}:{how}"

    @property
    def output(self) -> Output:
        """How results leave the kernel. Its rows are pixels, which count through batch and image in one."""
        return Output(self.compute, self.result, True, epilogue=self.epilogue, folded=True)

    def params(self) -> list[str]:
        """The named parameters, in order; the phases of the axes follow them."""
        return ["src", "weights", "zeros", "dst", *_OWN, *PixelTable.params(self.rank), *self.output.params]

    def pitch(self, part_blocks: int) -> int:
        """Elements from one pixel to the next where a tile waits for its epilogue."""
        return self.tile.channels * (part_blocks + 1 if self.wide else 1)

    def scratch(self, tiles: int, taps: int, pitch: int) -> int:
        """Bytes of scratch for chunks of so many tiles."""
        entry = PixelTable.scratch_words(self.rank, self.tile.pixels, tiles) + tiles + tiles * taps * self._words() + 16
        return 8 * entry + self.tile.pixels * pitch * self.compute.itemsize

    def _words(self) -> int:
        return -(-(self.tile.pixels + 1) // 4) * 4

    def build(self, target: Any) -> Any:
        """The LLVM module."""
        module = new_module("conv_taps", target)
        finish = Finish(module, target, self.output, self.tile.lanes) if self.epilogue else None
        _Body(KernelEmit(module, self.ENTRY, self.params(), target), self, finish).write()
        return module


class _Body:
    """Writes the kernel."""

    def __init__(self, k: KernelEmit, spec: TapKernel, finish: Finish | None) -> None:
        self.k, self.spec, self.tile, self.finish = k, spec, spec.tile, finish
        if finish is not None:
            finish.prepare(k)
        self.element = acc_type(spec.compute)
        self.table = PixelTable(k, spec.rank, spec.tile.pixels, k.slot("zeros"))
        self.s = {name: k.slot(name) for name in _OWN}
        self.weights = k.slot("weights", PTR)
        # Scratch: coordinates, counts, the tile's spill area, then the entries.
        self.capacity = k.add(k.mul(self.s["tiles"], self.tile.pixels), 8)
        self.counts = k.at(k.scratch, k.mul(self.capacity, spec.rank + 2), I64)
        spill_words = k.div(k.mul(self.s["pitch"], self.tile.pixels * spec.compute.itemsize), 8)
        self.spill = k.at(self.counts, self.s["tiles"], I64)
        self.table_at = k.at(self.spill, spill_words, I64)
        self.stride = k.mul(self.s["taps"], self.table.words)  # words of a tile's entries

    def write(self) -> None:
        k, s = self.k, self.s
        with k.loop(k.begin, k.end) as block:
            rest, chunk = k.divmod(block, s["chunks"])
            part, phase_index = k.divmod(rest, s["phase_count"])
            phase = self.table.phase(phase_index)
            first = k.mul(chunk, k.mul(s["tiles"], self.tile.pixels))
            pixels = k.min(k.sub(self.table.pixel_count(phase), first), k.mul(s["tiles"], self.tile.pixels))
            with k.when(k.cmp("sgt", pixels, 0)):
                tiles = k.ceil_div(pixels, self.tile.pixels)
                self._tables(phase, first, pixels, tiles)
                low = k.mul(part, s["part_blocks"])
                high = k.min(k.add(low, s["part_blocks"]), k.mul(s["groups"], s["blocks"]))
                if self.spec.wide:
                    with k.loop(0, tiles) as tile:
                        with k.loop(low, high) as block_n:
                            self._tile(tile, block_n, first, pixels, low)
                        self._finish_wide(tile, (low, high), first, pixels)
                elif self.spec.mixing:  # little work a tile: go through memory in its own order
                    with k.loop(0, tiles) as tile, k.loop(low, high) as block_n:
                        self._tile(tile, block_n, first, pixels)
                else:  # much: keep the weights of a block in the cache
                    with k.loop(low, high) as block_n, k.loop(0, tiles) as tile:
                        self._tile(tile, block_n, first, pixels)
        k.done()

    def _tables(self, phase: list[dict[str, Value]], first: Value, pixels: Value, tiles: Value) -> None:
        k = self.k
        # Beyond the last tile a few pixels more, so that whole vectors of coordinates are defined.
        total = k.add(k.mul(tiles, self.tile.pixels), self.table.lanes - self.tile.pixels)
        self.table.coordinates(k.scratch, self.capacity, phase, first, pixels, total)
        with k.loop(0, tiles) as tile:
            entries = k.at(self.table_at, k.mul(tile, self.stride), I64)
            at = k.mul(tile, self.tile.pixels)
            count = self.table.entries(k.scratch, self.capacity, phase, at, entries)
            k.store_raw(count, k.at(self.counts, tile, I64), 8)

    def _tile(self, tile: Value, block_n: Value, first: Value, pixels: Value, low: Value | None = None) -> None:
        """One tile: all taps, then the stores. ``block_n`` counts on over the groups; ``low`` is the first one of a wide strip."""
        k, s, t = self.k, self.s, self.tile
        weights = self._on(self.weights, k.mul(block_n, s["w_block"]))
        group, block = k.divmod(block_n, s["blocks"])
        # The last block of channels overlaps the one before it rather than being a partial one.
        within = k.min(k.mul(block, t.channels), k.x.smax(k.sub(s["outs"], t.channels), k.index(0)))
        channel = k.add(k.mul(group, s["outs"]), within)
        source = channel if self.spec.mixing else k.mul(group, s["src_g"])
        entries = k.at(self.table_at, k.mul(tile, self.stride), I64)
        count = k.load_raw(I64, k.at(self.counts, tile, I64), 8)
        zeros = [k.zero(self.spec.compute, t.lanes)] * (t.pixels * t.vectors)

        def entry(e: Value, acc: list[Value]) -> list[Value]:
            row = k.at(entries, k.mul(e, self.table.words), I64)
            pointers = [k.load_raw(PTR, k.at(row, i, I64), 8) for i in range(t.pixels)]
            offset = k.load_raw(I64, k.at(row, t.pixels, I64), 8)
            mix = self._mixed if self.spec.mixing else self._dense
            return mix(pointers, self._on(weights, offset), source, acc)

        acc = k.fold(0, count, 1, zeros, entry)
        if low is not None:
            self._spill(acc, k.sub(channel, self._first_channel(low)))
        elif self.finish is None:
            self._store(tile, channel, pixels, acc)
        else:
            # What overlaps the block before has been finished there.
            skip = k.sub(k.mul(block, t.channels), within)
            self._finish(tile, (channel, skip, k.sub(k.min(s["outs"], t.channels), skip)), first, pixels, acc)

    def _on(self, ptr: Value, offset: Value) -> Value:
        """The address ``offset`` bytes on."""
        return self.k.x.line(PTR, f"getelementptr i8, ptr {ptr.get_reference()}, i64 {offset.get_reference()}")

    def _dense(self, pointers: list[Value], w: Value, source: Value, acc: list[Value]) -> list[Value]:
        """All channels of one tap, from number ``source`` on."""
        k = self.k
        whole = k.add(source, k.x.and_(self.s["run"], k.index(-UNROLL)))
        stop = k.add(source, self.s["run"])
        # One index serves input and weights, so the weights start as far before.
        w = k.at(w, k.mul(source, -self.tile.channels), self.element)

        def steps(n: int) -> Any:
            def body(i: Value, acc: list[Value]) -> list[Value]:
                for u in range(n):
                    acc = self._rank_one(pointers, w, k.add(i, u), acc)
                return acc

            return body

        acc = k.fold(source, whole, UNROLL, acc, steps(UNROLL))
        return k.fold(whole, stop, 1, acc, steps(1))

    def _rank_one(self, pointers: list[Value], w: Value, i: Value, acc: list[Value]) -> list[Value]:
        k, t = self.k, self.tile
        row = k.at(w, k.mul(i, t.channels), self.element)
        ws = [k.load(k.at(row, v * t.lanes, self.element), self.spec.compute, t.lanes) for v in range(t.vectors)]
        out = []
        for p, pointer in enumerate(pointers):
            value = k.broadcast(k.load(k.at(pointer, i, self.element), self.spec.compute), t.lanes)
            out += [k.mul_add(value, ws[v], acc[p * t.vectors + v]) for v in range(t.vectors)]
        return out

    def _mixed(self, pointers: list[Value], w: Value, source: Value, acc: list[Value]) -> list[Value]:
        """One tap of small groups: each vector of inputs meets the weights once for every channel of a group."""
        k, t, mixing = self.k, self.tile, self.spec.mixing
        acc = list(acc)
        for v in range(t.vectors):
            rows = [k.at(w, m * t.channels + v * t.lanes, self.element) for m in range(mixing)]
            ws = [k.load(row, self.spec.compute, t.lanes) for row in rows]
            for p, pointer in enumerate(pointers):
                inputs = k.load(k.at(k.at(pointer, source, self.element), v * t.lanes, self.element), self.spec.compute, t.lanes)
                for m in range(mixing):
                    lanes = [lane - lane % mixing + m for lane in range(t.lanes)]
                    value = inputs if mixing == 1 else k.x.shuffle(inputs, None, lanes)
                    acc[p * t.vectors + v] = k.mul_add(value, ws[m], acc[p * t.vectors + v])
        return acc

    # -- results ---------------------------------------------------------------------------------------------------

    def _store(self, tile: Value, channel: Value, pixels: Value, acc: list[Value]) -> None:
        k, s, t = self.k, self.s, self.tile
        at = k.mul(tile, t.pixels)
        addresses = k.at(self.table.array(k.scratch, 1, self.capacity), at, I64)
        valid = k.min(k.sub(pixels, at), t.pixels)
        wide = k.cmp("sge", s["outs"], t.channels)
        whole = k.x.and_(wide, k.cmp("eq", valid, t.pixels))

        def row(i: Index) -> Value:
            base = k.load_raw(PTR, k.at(addresses, i, I64), 8)
            return k.x.line(PTR, f"getelementptr {self._result()}, ptr {base.get_reference()}, i64 {channel.get_reference()}")

        def direct() -> None:
            for p in range(t.pixels):
                to = row(p)
                for v in range(t.vectors):
                    k.store(acc[p * t.vectors + v], k.at(to, v * t.lanes, self._result()), self.spec.result)

        def spilled() -> None:
            self._spill(acc)
            with k.loop(0, valid) as p:
                from_ = k.at(self.spill, k.mul(p, t.channels), self.element)
                self._copy_row(from_, row(p), wide)

        k.choose(whole, direct, spilled)

    def _spill(self, acc: list[Value], column: Index = 0) -> None:
        k, t = self.k, self.tile
        for p in range(t.pixels):
            row = k.at(self.spill, k.add(k.mul(self.s["pitch"] if self.spec.wide else t.channels, p), column), self.element)
            for v in range(t.vectors):
                k.store_raw(acc[p * t.vectors + v], k.at(row, v * t.lanes, self.element), self.spec.compute.itemsize)

    def _first_channel(self, block: Value) -> Value:
        k, channels = self.k, self.tile.channels
        return k.min(k.mul(block, channels), k.x.smax(k.sub(self.s["outs"], channels), k.index(0)))

    def _finish_wide(self, tile: Value, blocks: tuple[Value, Value], first: Value, pixels: Value) -> None:
        """Hand all channels of a tile to the epilogue."""
        assert self.finish is not None
        k, (low, high), channels = self.k, blocks, self.tile.channels
        at, column = k.mul(tile, self.tile.pixels), k.mul(low, channels)
        from_ = k.at(self.spill, k.sub(column, self._first_channel(low)), self.element)
        rows = k.min(k.sub(pixels, at), self.tile.pixels)
        count = k.sub(k.min(k.mul(high, channels), self.s["outs"]), column)
        self.finish.call(k, from_, self.s["pitch"], rows, count, (0, k.add(first, at), column), None, constant(BOOL, 1))

    def _finish(self, tile: Value, columns: tuple[Value, Value, Value], first: Value, pixels: Value, acc: list[Value]) -> None:
        """Hand a tile to the epilogue; ``columns``: its first channel, how many of it to leave out, how many are left."""
        assert self.finish is not None
        k, at = self.k, self.k.mul(tile, self.tile.pixels)
        self._spill(acc)
        channel, skip, count = columns
        from_ = k.at(self.spill, skip, self.element)
        rows = k.min(k.sub(pixels, at), self.tile.pixels)
        if self.spec.scattered:
            numbers = k.at(self.table.array(k.scratch, 1, self.capacity), at, I64)
            with k.loop(0, rows) as i:
                place = (0, k.load_raw(I64, k.at(numbers, i, I64), 8), k.add(channel, skip))
                row = k.at(from_, k.mul(i, self.tile.channels), self.element)
                self.finish.call(k, row, self.tile.channels, 1, count, place, None, constant(BOOL, 1))
            return
        place = (0, k.add(first, at), k.add(channel, skip))
        self.finish.call(k, from_, self.tile.channels, rows, count, place, None, constant(BOOL, 1))

    def _copy_row(self, from_: Value, to: Value, wide: Value) -> None:
        """One pixel's channels from the spill area: a whole block of them, or one by one where there are fewer."""
        k, t, spec = self.k, self.tile, self.spec

        def vectors() -> None:
            for v in range(t.vectors):
                value = k.load(k.at(from_, v * t.lanes, self.element), spec.compute, t.lanes)
                k.store(value, k.at(to, v * t.lanes, self._result()), spec.result)

        def scalars() -> None:
            with k.loop(0, self.s["outs"]) as c:
                k.store(k.load(k.at(from_, c, self.element), spec.compute), k.at(to, c, self._result()), spec.result)

        k.choose(wide, vectors, scalars)

    def _result(self) -> Any:
        return memory_type(self.spec.result)
