"""The gradient of a convolution's weights: for each tap a contraction over all output pixels.

The pixels are cut into spans, each summed into its own partial result; a second kernel adds these in order. Within a span a chunk
of pixels at a time: its rows of dy are packed into scratch in blocks of output channels, then for each tap a tile of (input
channels × output channels) stays in registers over the chunk's pixels. The input is read through addresses as in the forward
convolution: in place, or from copies in scratch where pixels lie so far apart that they would compete for the same few sets of
the first-level cache.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cermet.compiler.kernels.conv_table import PixelTable
from cermet.compiler.kernels.irtools import Index, KernelEmit, Value, acc_type, new_module
from cermet.compiler.llvm.builder import I64, PTR, memory_type
from cermet.dtypes import DType

__all__ = ["PIXELS", "SumWeights", "WeightGradKernel"]

PIXELS = 8
"""Pixels of one entry of the address list."""
WORDS = 12
_OWN = (
    "zeros", "tap_parts", "tap_span", "parts", "part_blocks", "groups", "blocks", "span", "tiles", "run", "row_tiles", "outs",
    "src_g", "span_bytes", "group_bytes", "pitch",
)  # fmt: skip


@dataclass(frozen=True)
class WeightGradKernel:
    """What is compiled in.

    Attributes:
        compute: dtype of the input and of the sums.
        gradient: dtype of dy in memory.
        rank: spatial dimensions.
        rows, vectors, lanes: the register tile: input channels × vectors of output channels.
        mixing: as in `TapKernel`; ``rows`` is then the same.
        copying: the input channels of a chunk's pixels are copied side by side for each tap; there is one group then.
    """

    compute: DType
    gradient: DType
    rank: int
    rows: int
    vectors: int
    lanes: int
    mixing: int = 0
    copying: bool = False
    ENTRY = "conv_weight_grad"

    @property
    def channels(self) -> int:
        return self.vectors * self.lanes

    @property
    def key(self) -> str:
        tile = f"{self.rows}x{self.vectors}x{self.lanes}"
        how = "copying" if self.copying else "in_place"
        return f"conv_weight_grad:{how}:{self.mixing}:{self.compute.name}:{self.gradient.name}:{self.rank}d:{tile}"

    def params(self) -> list[str]:
        """Named parameters; the phases of the axes follow."""
        return ["src", "dst", "partial", *_OWN, *PixelTable.params(self.rank)]

    def pitch(self, run: int) -> int:
        """Bytes between copied pixels: an odd number of cache lines, so that all sets of the cache are used."""
        return (-(-run * self.compute.itemsize // 64) | 1) * 64 if self.copying else 0

    def scratch(self, tiles: int, part_blocks: int, zeros: int, run: int) -> int:
        """Bytes of scratch for chunks of ``tiles * PIXELS`` pixels and a row of ``zeros`` zeros."""
        words = PixelTable.scratch_words(self.rank, PIXELS, tiles) + tiles * WORDS + 16
        values = (part_blocks * tiles * PIXELS * self.channels + zeros) * self.compute.itemsize
        return 8 * words + values + tiles * PIXELS * self.pitch(run) + 128

    def build(self, target: Any) -> Any:
        """The LLVM module."""
        module = new_module("conv_weight_grad", target)
        _Body(KernelEmit(module, self.ENTRY, self.params(), target), self).write()
        return module


class _Body:
    """Writes the kernel."""

    def __init__(self, k: KernelEmit, spec: WeightGradKernel) -> None:
        self.k, self.spec = k, spec
        self.element = acc_type(spec.compute)
        self.s = {name: k.slot(name) for name in _OWN}
        self.partial = k.slot("partial", PTR)
        self.chunk = k.mul(self.s["tiles"], PIXELS)
        self.capacity = k.add(self.chunk, 8)
        # Scratch: coordinates, the list of addresses, zeros, then dy.
        self.list = k.at(k.scratch, k.mul(self.capacity, spec.rank + 2), I64)
        zeros = k.at(self.list, k.mul(self.s["tiles"], WORDS), I64)
        with k.loop(0, self.s["zeros"]) as i:
            k.store(k.zero(spec.compute), k.at(zeros, i, self.element), spec.compute)
        self.copies = self._aligned(k.at(zeros, self.s["zeros"], self.element))
        self.packed = self._bytes_on(self.copies, k.mul(self.chunk, self.s["pitch"])) if spec.copying else self.copies
        address = k.x.line(I64, f"ptrtoint ptr {zeros.get_reference()} to i64")
        self.table = PixelTable(k, spec.rank, PIXELS, address)
        # Bytes of a tile of sums, and of all tiles of one tap.
        self.tile_bytes = spec.rows * spec.channels * spec.compute.itemsize
        self.tap_bytes = k.mul(k.mul(self.s["blocks"], self.s["row_tiles"]), self.tile_bytes)
        # One phase only, as in every forward convolution.
        self.phase = self.table.phase(0)

    def _aligned(self, ptr: Value) -> Value:
        k = self.k
        raw = k.x.line(I64, f"ptrtoint ptr {ptr.get_reference()} to i64")
        up = k.x.and_(k.add(raw, 63), k.index(-64))
        return k.x.line(PTR, f"inttoptr i64 {up.get_reference()} to ptr")

    def _bytes_on(self, ptr: Value, offset: Index) -> Value:
        return self.k.x.line(PTR, f"getelementptr i8, ptr {ptr.get_reference()}, i64 {self.k.index(offset).get_reference()}")

    def write(self) -> None:
        k, s = self.k, self.s
        taps: Index = 1
        for d in self.phase:
            taps = k.mul(taps, d["count"])
        with k.loop(k.begin, k.end) as block:
            rest, tap_part = k.divmod(block, s["tap_parts"])
            span, part = k.divmod(rest, s["parts"])
            low = k.mul(part, s["part_blocks"])
            high = k.min(k.add(low, s["part_blocks"]), k.mul(s["groups"], s["blocks"]))
            first = k.mul(span, s["span"])
            last = k.min(k.add(first, s["span"]), self.table.pixel_count(self.phase))
            sums = self._bytes_on(self.partial, k.mul(span, s["span_bytes"]))
            with k.loop(first, last, self.chunk) as at:
                pixels = k.min(k.sub(last, at), self.chunk)
                tiles = k.ceil_div(pixels, PIXELS)
                self.table.coordinates(k.scratch, self.capacity, self.phase, at, pixels, k.mul(tiles, PIXELS))
                self._pack(pixels, tiles, low, high)
                fresh = k.cmp("eq", at, first)
                tap_low = k.mul(tap_part, s["tap_span"])
                tap_high = k.min(k.add(tap_low, s["tap_span"]), taps)
                with k.loop(tap_low, tap_high) as tap:
                    self._tap(tap, self._offsets(tap), tiles, low, high, sums, fresh)
        k.done()

    def _channel(self, block: Value) -> tuple[Value, Value, Value]:
        """Group, block within it and first output channel of a block that counts on over the groups.

        The last block of a group overlaps the one before it.
        """
        k = self.k
        group, inner = k.divmod(block, self.s["blocks"])
        within = k.min(k.mul(inner, self.spec.channels), k.x.smax(k.sub(self.s["outs"], self.spec.channels), k.index(0)))
        return group, inner, k.add(k.mul(group, self.s["outs"]), within)

    # -- packing dy ------------------------------------------------------------------------------------------------

    def _pack(self, pixels: Value, tiles: Value, low: Value, high: Value) -> None:
        """Pack dy of the chunk as ``[block][pixel][channel]``, zero beyond the last pixel and the last channel."""
        k, spec = self.k, self.spec
        addresses = self.table.array(k.scratch, 1, self.capacity)
        wide = k.cmp("sge", self.s["outs"], spec.channels)

        def rows(write: Callable[[Value, Value], None]) -> None:
            with k.loop(low, high) as block:
                _, _, channel = self._channel(block)
                to = k.at(self.packed, k.mul(k.mul(k.sub(block, low), self.chunk), spec.channels), self.element)
                with k.loop(0, pixels) as p:
                    from_ = k.load_raw(PTR, k.at(addresses, p, I64), 8)
                    write(k.at(from_, channel, memory_type(spec.gradient)), k.at(to, k.mul(p, spec.channels), self.element))
                with k.loop(pixels, k.mul(tiles, PIXELS)) as p, k.loop(0, spec.channels, spec.lanes) as c:
                    k.store(
                        k.zero(spec.compute, spec.lanes), k.at(to, k.add(k.mul(p, spec.channels), c), self.element), spec.compute
                    )

        def vectors(source: Value, to: Value) -> None:
            for v in range(spec.vectors):
                value = k.load(k.at(source, v * spec.lanes, memory_type(spec.gradient)), spec.gradient, spec.lanes)
                k.store(value, k.at(to, v * spec.lanes, self.element), spec.compute)

        def masked(source: Value, to: Value) -> None:
            mask = k.lane_mask(spec.channels, self.s["outs"])
            k.store(k.load_masked(source, spec.gradient, spec.channels, mask), to, spec.compute)

        k.choose(wide, lambda: rows(vectors), lambda: rows(masked))

    # -- taps ------------------------------------------------------------------------------------------------------

    def _offsets(self, number: Index) -> list[Value]:
        """The source position of a tap in each dimension, from its number."""
        k = self.k
        offsets = []
        for d in reversed(range(self.spec.rank)):
            number, i = k.divmod(number, self.phase[d]["count"])
            offsets.append(k.add(self.phase[d]["first"], k.mul(i, self.table.slots[f"ostep{d}"])))
        return offsets[::-1]

    def _tap(self, number: Value, offsets: list[Value], tiles: Value, low: Value, high: Value, sums: Value, fresh: Value) -> None:
        """All sums of one tap over a chunk."""
        k, s = self.k, self.s
        count = self._list(offsets, tiles)
        if self.spec.copying:
            self._copy(count)
        with k.loop(low, high) as block:
            group, inner, channel = self._channel(block)
            packed = k.at(self.packed, k.mul(k.mul(k.sub(block, low), self.chunk), self.spec.channels), self.element)
            # Where the sums of this block and tap are: the groups are outermost.
            of_tap = self._bytes_on(self._bytes_on(sums, k.mul(group, s["group_bytes"])), k.mul(number, self.tap_bytes))
            of_block = self._bytes_on(of_tap, k.mul(k.mul(inner, s["row_tiles"]), self.tile_bytes))
            if self.spec.mixing:
                self._tile(channel, packed, of_block, count, fresh)
            else:
                with k.loop(0, s["row_tiles"]) as tile:
                    row = k.min(k.mul(tile, self.spec.rows), k.sub(s["run"], self.spec.rows))
                    row = k.add(row, k.mul(group, s["src_g"]))
                    self._tile(row, packed, self._bytes_on(of_block, k.mul(tile, self.tile_bytes)), count, fresh)

    def _list(self, offsets: list[Value], tiles: Value) -> Value:
        """Write the source addresses of the chunk's pixels for one tap, `PIXELS` at a time; those all in padding are left out."""
        k, t = self.k, self.table
        move: Index = 0
        for d, offset in enumerate(offsets):
            move = k.add(move, k.mul(offset, t.slots[f"src_s{d}"]))
        arrays = [t.array(k.scratch, i, self.capacity) for i in range(self.spec.rank + 2)]

        def body(tile: Value, carried: list[Value]) -> list[Value]:
            at = k.mul(tile, PIXELS)
            mask = None
            for d, offset in enumerate(offsets):
                inside = t.inside(k.x.add(t.vector(arrays[2 + d], at), k.x.splat(offset, t.lanes)), d)
                mask = inside if mask is None else k.x.and_(mask, inside)
            addresses = k.x.add(t.vector(arrays[0], at), k.x.splat(k.index(move), t.lanes))
            entry = k.at(self.list, k.mul(carried[0], WORDS), I64)
            k.store_raw(k.x.select(mask, addresses, k.x.splat(t.zeros, t.lanes)), entry, 8)
            k.store_raw(k.mul(at, self.spec.channels), k.at(entry, PIXELS, I64), 8)
            return [k.add(carried[0], t.any(mask))]

        return k.fold(0, tiles, 1, [k.index(0)], body)[0]

    def _copy(self, count: Value) -> None:
        """Copy the pixels of the list, and let it lead to the copies."""
        k, s, lanes = self.k, self.s, self.spec.lanes
        with k.loop(0, count) as e, k.loop(0, PIXELS) as p:
            place = k.at(self.list, k.add(k.mul(e, WORDS), p), I64)
            source = k.load_raw(PTR, place, 8)
            to = self._bytes_on(self.copies, k.mul(k.add(k.mul(e, PIXELS), p), s["pitch"]))
            with k.loop(0, s["run"], lanes) as c:
                at = k.min(c, k.sub(s["run"], lanes))
                value = k.load(k.at(source, at, self.element), self.spec.compute, lanes)
                k.store(value, k.at(to, at, self.element), self.spec.compute)
            k.store_raw(to, place, 8)

    # -- tiles -----------------------------------------------------------------------------------------------------

    def _tile(self, row: Value, packed: Value, sums: Value, count: Value, fresh: Value) -> None:
        """Add the pixels of the list to one tile of sums; ``row`` is its first input channel."""
        k, spec = self.k, self.spec
        places = [k.at(sums, i * spec.lanes, self.element) for i in range(spec.rows * spec.vectors)]
        zero = k.zero(spec.compute, spec.lanes)
        acc = [k.x.select(fresh, zero, k.load(p, spec.compute, spec.lanes)) for p in places]

        def entry(e: Value, acc: list[Value]) -> list[Value]:
            at = k.at(self.list, k.mul(e, WORDS), I64)
            dy = k.at(packed, k.load_raw(I64, k.at(at, PIXELS, I64), 8), self.element)
            for p in range(PIXELS):
                source = k.at(k.load_raw(PTR, k.at(at, p, I64), 8), row, self.element)
                acc = self._pixel(source, k.at(dy, p * spec.channels, self.element), acc, p)
            return acc

        if spec.mixing and 2 * len(acc) <= 8:  # a second set of sums, since few would wait for their own last additions
            acc = k.fold(0, count, 1, acc + [zero] * len(acc), entry)
            half = len(acc) // 2
            acc = [k.plus(a, b) for a, b in zip(acc[:half], acc[half:], strict=True)]
        else:
            acc = k.fold(0, count, 1, acc, entry)
        for value, place in zip(acc, places, strict=True):
            k.store(value, place, spec.compute)

    def _pixel(self, source: Value, dy: Value, acc: list[Value], p: int) -> list[Value]:
        k, spec = self.k, self.spec
        if spec.mixing:
            return self._mixed(source, dy, acc, p)
        out = list(acc)
        # Whichever is fewer waits in registers for the others, which come one at a time: all together would not fit.
        if spec.rows < spec.vectors:
            values = [self._input(source, r) for r in range(spec.rows)]
            for v in range(spec.vectors):
                y = self._gradient(dy, v)
                for r, value in enumerate(values):
                    out[r * spec.vectors + v] = k.mul_add(value, y, out[r * spec.vectors + v])
            return out
        ys = [self._gradient(dy, v) for v in range(spec.vectors)]
        for r in range(spec.rows):
            value = self._input(source, r)
            for v, y in enumerate(ys):
                out[r * spec.vectors + v] = k.mul_add(value, y, out[r * spec.vectors + v])
        return out

    def _input(self, source: Value, row: int) -> Value:
        """An input channel in every lane."""
        return self.k.broadcast(self.k.load(self.k.at(source, row, self.element), self.spec.compute), self.spec.lanes)

    def _gradient(self, dy: Value, v: int) -> Value:
        """A vector of packed dy."""
        return self.k.load(self.k.at(dy, v * self.spec.lanes, self.element), self.spec.compute, self.spec.lanes)

    def _mixed(self, source: Value, dy: Value, acc: list[Value], p: int) -> list[Value]:
        """One pixel of small groups: each vector of inputs, its channels exchanged within the groups, times the vector of dy."""
        k, spec = self.k, self.spec
        out = list(acc)
        half = len(acc) // 2 if len(acc) > spec.rows * spec.vectors else 0
        for v in range(spec.vectors):
            y = self._gradient(dy, v)
            inputs = k.load(k.at(source, v * spec.lanes, self.element), spec.compute, spec.lanes)
            for m in range(spec.mixing):
                lanes = [lane - lane % spec.mixing + m for lane in range(spec.lanes)]
                value = inputs if spec.mixing == 1 else k.x.shuffle(inputs, None, lanes)
                i = m * spec.vectors + v + (p % 2) * half
                out[i] = k.mul_add(value, y, acc[i])
        return out


@dataclass(frozen=True)
class SumWeights:
    """Adds the partial sums of `WeightGradKernel` in the order of their spans and writes them where the weights lie.

    A parallel block is a block of output channels with ``span`` of the reduced channels. Strides are in elements of the result.
    """

    compute: DType
    result: DType
    rank: int
    rows: int
    vectors: int
    lanes: int
    ENTRY = "conv_sum_weights"

    @property
    def key(self) -> str:
        return f"conv_sum_weights:{self.compute.name}:{self.result.name}:{self.rank}d:{self.rows}x{self.vectors}x{self.lanes}"

    def params(self) -> list[str]:
        own = [
            "partial",
            "dst",
            "blocks",
            "outs",
            "reduced",
            "parts",
            "span",
            "row_tiles",
            "run",
            "spans",
            "span_elems",
            "s_g",
            "s_n",
            "s_k",
        ]
        # Taps as the gradient kernel numbers them, then those that lie within a run.
        return own + [f"{p}{d}" for d in range(self.rank) for p in ("taps", "s")] + ["run_taps", "s_run"]

    def build(self, target: Any) -> Any:
        module = new_module("conv_sum_weights", target)
        k = KernelEmit(module, self.ENTRY, self.params(), target)
        s = {p: k.slot(p) for p in self.params()[2:]}
        with k.loop(k.begin, k.end) as index:
            rest, part = k.divmod(index, s["parts"])
            group, block = k.divmod(rest, s["blocks"])
            low = k.mul(part, s["span"])
            high = k.min(k.add(low, s["span"]), s["reduced"])
            with k.loop(low, high) as c:
                self._taps(k, s, 0, group, group, block, c, k.add(k.mul(group, s["s_g"]), k.mul(c, s["s_k"])))
        k.done()
        return module

    def _taps(
        self, k: KernelEmit, s: dict[str, Value], d: int, tap: Value, group: Value, block: Value, c: Value, to: Value
    ) -> None:
        if d == self.rank:
            with k.loop(0, s["run_taps"]) as j:
                row = k.add(k.mul(j, s["reduced"]), c)
                self._row(k, s, tap, block, row, k.add(to, k.mul(j, s["s_run"])))
            return
        with k.loop(0, s[f"taps{d}"]) as i:
            self._taps(k, s, d + 1, k.add(k.mul(tap, s[f"taps{d}"]), i), group, block, c, k.add(to, k.mul(i, s[f"s{d}"])))

    def _row(self, k: KernelEmit, s: dict[str, Value], tap: Value, block: Value, row: Value, to: Value) -> None:
        """The output channels of one block for one (tap, row of the run); ``tap`` counts on over the groups."""
        channels = self.vectors * self.lanes
        element, result = acc_type(self.compute), memory_type(self.result)
        tile = k.min(k.div(row, self.rows), k.sub(s["row_tiles"], 1))
        within = k.sub(row, k.min(k.mul(tile, self.rows), k.sub(s["run"], self.rows)))
        at = k.add(k.mul(k.add(k.mul(tap, s["blocks"]), block), s["row_tiles"]), tile)
        at = k.mul(k.add(k.mul(at, self.rows), within), channels)
        base = k.at(k.slot("partial", PTR), at, element)

        def add(i: Value, acc: list[Value]) -> list[Value]:
            from_ = k.at(base, k.mul(i, s["span_elems"]), element)
            return [k.plus(a, k.load(k.at(from_, v * self.lanes, element), self.compute, self.lanes)) for v, a in enumerate(acc)]

        acc = k.fold(0, s["spans"], 1, [k.zero(self.compute, self.lanes)] * self.vectors, add)
        first = k.min(k.mul(block, channels), k.x.smax(k.sub(s["outs"], channels), k.index(0)))
        dst = k.at(k.slot("dst", PTR), k.add(to, k.mul(first, s["s_n"])), result)
        whole = k.cmp("eq", first, k.mul(block, channels))
        count = k.sub(s["outs"], first)

        def every() -> None:
            for i in range(channels):
                k.store(k.x.extract(acc[i // self.lanes], i % self.lanes), k.at(dst, k.mul(s["s_n"], i), result), self.result)

        def some() -> None:
            # The overlapping part belongs to the block before.
            skip = k.sub(k.mul(block, channels), first)
            for i in range(channels):
                wanted = k.x.and_(k.cmp("sge", k.index(i), skip), k.cmp("slt", k.index(i), count))
                with k.when(wanted):
                    value = k.x.extract(acc[i // self.lanes], i % self.lanes)
                    k.store(value, k.at(dst, k.mul(s["s_n"], i), result), self.result)

        k.choose(k.x.and_(whole, k.cmp("sge", count, channels)), every, some)
