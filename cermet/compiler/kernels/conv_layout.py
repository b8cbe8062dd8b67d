"""Copies that bring operands of a convolution into the order its kernels read: packed weights, channels-last activations."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from typing import Any

from cermet.compiler.kernels.irtools import Index, KernelEmit, Value, acc_type, new_module, widen
from cermet.compiler.llvm.builder import PTR, memory_type, vector
from cermet.dtypes import DType

__all__ = ["PackWeights", "Relayout"]


@dataclass(frozen=True)
class PackWeights:
    """Weights in blocks of output channels: ``[group][block][taps...][reduced channel][channels of a block]``.

    The last block of a group overlaps the one before where there are more channels than a block has, and is filled up with
    zeros where there are fewer. One parallel block packs one block of channels. Behind the weights come ``zeros`` zeros (parallel
    block number ``groups * blocks``): what taps in the padding read. Strides are in elements: ``s_g`` between groups, ``s_n``
    between output channels, ``s_k`` between reduced ones. With ``mixing``, every so many channels are a group, ``s_g`` apart.
    """

    source: DType
    compute: DType
    rank: int
    vectors: int
    lanes: int
    mixing: int = 0
    ENTRY = "conv_pack"

    @property
    def channels(self) -> int:
        return self.vectors * self.lanes

    @property
    def key(self) -> str:
        return f"conv_pack:{self.source.name}:{self.compute.name}:{self.rank}d:{self.vectors}x{self.lanes}:{self.mixing}"

    def params(self) -> list[str]:
        own = ["src", "dst", "groups", "blocks", "outs", "reduced", "zeros", "s_g", "s_n", "s_k"]
        return own + [f"{p}{d}" for d in range(self.rank) for p in ("taps", "s")]

    def build(self, target: Any) -> Any:
        """The LLVM module."""
        module = new_module("conv_pack", target)
        k = KernelEmit(module, self.ENTRY, self.params(), target)
        s = {p: k.slot(p) for p in self.params()[2:]}
        dst, element = k.slot("dst", PTR), acc_type(self.compute)
        per_block = reduce(k.mul, [s[f"taps{d}"] for d in range(self.rank)], k.mul(s["reduced"], self.channels))
        last = k.mul(s["groups"], s["blocks"])
        with k.loop(k.begin, k.end) as block:
            to = k.at(dst, k.mul(block, per_block), element)

            def zeros(to: Value = to) -> None:
                with k.loop(0, s["zeros"]) as i:
                    k.store(k.zero(self.compute), k.at(to, i, element), self.compute)

            def weights(block: Value = block, to: Value = to) -> None:
                self._block(k, s, block, to)

            k.choose(k.cmp("eq", block, last), zeros, weights)
        k.done()
        return module

    def _block(self, k: KernelEmit, s: dict[str, Value], block: Value, to: Value) -> None:
        group, n = k.divmod(block, s["blocks"])
        low = k.min(k.mul(n, self.channels), k.x.smax(k.sub(s["outs"], self.channels), k.index(0)))
        count = k.min(k.sub(s["outs"], low), self.channels)
        if self.mixing:
            across, within = k.divmod(low, self.mixing)
            start = k.add(k.mul(across, s["s_g"]), k.mul(within, s["s_n"]))
        else:
            start = k.add(k.mul(group, s["s_g"]), k.mul(low, s["s_n"]))
        base = k.at(k.slot("src", PTR), start, memory_type(self.source))

        def every() -> None:
            with k.loop(0, s["reduced"]) as c:
                self._taps(k, s, 0, k.mul(c, s["s_k"]), k.mul(c, self.channels), lambda a, b: self._row(k, s, base, a, to, b))

        def some() -> None:
            with k.loop(0, s["reduced"]) as c:
                self._taps(
                    k, s, 0, k.mul(c, s["s_k"]), k.mul(c, self.channels), lambda a, b: self._few(k, s, base, a, to, b, count)
                )

        k.choose(k.cmp("eq", count, self.channels), every, some)

    def _taps(self, k: KernelEmit, s: dict[str, Value], d: int, from_: Index, at: Index, leaf: Any) -> None:
        """All taps of one reduced channel: the innermost loops, because a weight's taps usually lie together."""
        if d == self.rank:
            leaf(from_, at)
            return
        step = reduce(k.mul, [s[f"taps{i}"] for i in range(d + 1, self.rank)], k.mul(s["reduced"], self.channels))
        with k.loop(0, s[f"taps{d}"]) as i:
            self._taps(k, s, d + 1, k.add(from_, k.mul(i, s[f"s{d}"])), k.add(at, k.mul(i, step)), leaf)

    def _row(self, k: KernelEmit, s: dict[str, Value], base: Value, from_: Value, to: Value, at: Value) -> None:
        """All channels of a block, gathered into vectors."""
        type_ = memory_type(self.source)
        group = source = k.at(base, from_, type_)
        values = []
        for lane in range(self.channels):
            values.append(k.load_raw(type_, source, self.source.itemsize))
            if self.mixing and (lane + 1) % self.mixing == 0:
                group = source = k.at(group, s["s_g"], type_)
            else:
                source = k.at(source, s["s_n"], type_)
        for v in range(self.vectors):
            row = k.x.poison(vector(type_, self.lanes))
            for lane in range(self.lanes):
                row = k.x.insert(row, values[v * self.lanes + lane], lane)
            k.store(widen(k.x, row, self.source), k.at(to, k.add(at, v * self.lanes), acc_type(self.compute)), self.compute)

    def _few(self, k: KernelEmit, s: dict[str, Value], base: Value, from_: Value, to: Value, at: Value, count: Value) -> None:
        """``count`` channels, then zeros."""
        type_, element = memory_type(self.source), acc_type(self.compute)
        with k.loop(0, count) as lane:
            value = k.load(k.at(base, k.add(from_, k.mul(lane, s["s_n"])), type_), self.source)
            k.store(value, k.at(to, k.add(at, lane), element), self.compute)
        with k.loop(count, self.channels) as lane:
            k.store(k.zero(self.compute), k.at(to, k.add(at, lane), element), self.compute)


@dataclass(frozen=True)
class Relayout:
    """A strided copy that converts: ``dst[n, rows..., x, c] = src[n, rows..., x - left, c]``, zero where that x is not.

    One parallel block copies one row (all x and c of one n and one position in the other dimensions). Strides are in elements.

    Attributes:
        how: ``"in"`` and ``"out"``: x is dense on one side (the source; the destination) and c on the other, and squares of a
            vector's lanes are transposed in registers. ``"weave"`` and ``"unweave"``: the same for ``few`` channels, which lie without
            gaps between pixels. ``"x"``, ``"c"``: dense on both sides, copied in vectors. ``""``: element by element.
        few: channels, where so few that it matters.
    """

    source: DType
    dest: DType
    rank: int
    lanes: int
    how: str = ""
    few: int = 0
    ENTRY = "conv_relayout"

    @property
    def key(self) -> str:
        return f"conv_relayout:{self.source.name}:{self.dest.name}:{self.rank}d:{self.lanes}{self.how}{self.few or ''}"

    @staticmethod
    def choice(channels: int, lanes: int, x: tuple[int, int], c: tuple[int, int]) -> tuple[str, int]:
        """``how`` and ``few`` for strides (source, destination) of x and c."""
        if x[0] == 1 and c[1] == 1 and 1 < channels <= 4 and x[1] == channels:
            return "weave", channels
        if c[0] == 1 and x[1] == 1 and 1 < channels <= 4 and x[0] == channels:
            return "unweave", channels
        if x == (1, 1):
            return "x", 0
        if channels < lanes:
            return "", 0
        return ("in" if x[0] == 1 and c[1] == 1 else "out" if c[0] == 1 and x[1] == 1 else "c" if c == (1, 1) else ""), 0

    def params(self) -> list[str]:
        own = ["src", "dst", "columns", "left", "width", "channels", "src_x", "dst_x", "src_c", "dst_c"]
        # The outer extents, fastest last; the batch is the first of them.
        return own + [f"{p}{d}" for d in range(self.rank) for p in ("extent", "src_s", "dst_s")]

    def build(self, target: Any) -> Any:
        """The LLVM module."""
        module = new_module("conv_relayout", target)
        k = KernelEmit(module, self.ENTRY, self.params(), target)
        s = {p: k.slot(p) for p in self.params()[2:]}
        # Columns low .. high of the destination have a source.
        low = k.min(s["left"], s["columns"])
        high = k.x.smax(k.min(s["columns"], k.add(s["left"], s["width"])), low)
        with k.loop(k.begin, k.end) as block:
            rest: Index = block
            from_: Index = 0
            to: Index = 0
            for d in reversed(range(self.rank)):
                rest, i = k.divmod(rest, s[f"extent{d}"])
                from_ = k.add(from_, k.mul(i, s[f"src_s{d}"]))
                to = k.add(to, k.mul(i, s[f"dst_s{d}"]))
            src = k.at(k.slot("src", PTR), k.sub(from_, k.mul(s["left"], s["src_x"])), memory_type(self.source))
            dst = k.at(k.slot("dst", PTR), to, memory_type(self.dest))
            for first, last in ((0, low), (high, s["columns"])):
                self._each(k, s, None, dst, (first, last), (0, s["channels"]))
            if self.how in ("in", "out"):
                self._squares(k, s, src, dst, low, high)
            elif self.how:
                self._vectors(k, s, src, dst, low, high)
            else:
                self._each(k, s, src, dst, (low, high), (0, s["channels"]))
        k.done()
        return module

    def _vectors(self, k: KernelEmit, s: dict[str, Value], src: Value, dst: Value, low: Value, high: Value) -> None:
        """Whole vectors along x or c, the last of them overlapping the one before."""
        n = self.lanes
        begin, end = (k.index(0), s["channels"]) if self.how == "c" else (low, high)

        def every() -> None:
            def strip(across: Value) -> None:
                with k.loop(begin, end, n) as i:
                    at = k.min(i, k.sub(end, n))
                    x, c = (across, at) if self.how == "c" else (at, across)
                    from_ = k.at(src, k.add(k.mul(x, s["src_x"]), k.mul(c, s["src_c"])), memory_type(self.source))
                    to = k.at(dst, k.add(k.mul(x, s["dst_x"]), k.mul(c, s["dst_c"])), memory_type(self.dest))
                    if self.few:
                        self._woven(k, s, from_, to)
                    else:
                        k.store(k.load(from_, self.source, n), to, self.dest)

            if self.few:
                strip(k.index(0))
                return
            with k.loop(*((low, high) if self.how == "c" else (0, s["channels"]))) as across:
                strip(across)

        k.choose(k.cmp("sge", k.sub(end, begin), n), every, lambda: self._each(k, s, src, dst, (low, high), (0, s["channels"])))

    def _woven(self, k: KernelEmit, s: dict[str, Value], from_: Value, to: Value) -> None:
        """A vector of pixels of each channel becomes as many vectors of whole pixels, or the reverse."""
        n, few = self.lanes, self.few
        weaving = self.how == "weave"
        steps = [k.mul(s["src_c"], i) if weaving else n * i for i in range(few)]
        rows = [k.load(k.at(from_, step, memory_type(self.source)), self.source, n) for step in steps]
        for v in range(few):
            # For each lane: which of the loaded vectors, and which lane of it.
            places = [divmod(lane * few + v, n) if not weaving else divmod(v * n + lane, few)[::-1] for lane in range(n)]
            made = rows[0]
            for i, row in enumerate(rows):
                if i == 0:
                    made = k.x.shuffle(row, None, [lane if which == 0 else 0 for which, lane in places])
                else:
                    made = k.x.shuffle(made, row, [n + lane if which == i else j for j, (which, lane) in enumerate(places)])
            step = n * v if weaving else k.mul(s["dst_c"], v)
            k.store(made, k.at(to, step, memory_type(self.dest)), self.dest)

    def _each(
        self,
        k: KernelEmit,
        s: dict[str, Value],
        src: Value | None,
        dst: Value,
        columns: tuple[Index, Index],
        channels: tuple[Index, Index],
    ) -> None:
        """Element by element; zeros where there is no source."""
        with k.loop(*channels) as c, k.loop(*columns) as x:
            value = k.zero(self.source.compute)
            if src is not None:
                at = k.add(k.mul(x, s["src_x"]), k.mul(c, s["src_c"]))
                value = k.load(k.at(src, at, memory_type(self.source)), self.source)
            k.store(value, k.at(dst, k.add(k.mul(x, s["dst_x"]), k.mul(c, s["dst_c"])), memory_type(self.dest)), self.dest)

    def _squares(self, k: KernelEmit, s: dict[str, Value], src: Value, dst: Value, low: Value, high: Value) -> None:
        """Squares of lanes × lanes; the last of a row or column overlaps the one before it."""
        n, channels = self.lanes, s["channels"]

        def squares() -> None:
            with k.loop(0, channels, n) as c0, k.loop(low, high, n) as x0:
                c, x = k.min(c0, k.sub(channels, n)), k.min(x0, k.sub(high, n))
                from_ = k.at(src, k.add(k.mul(x, s["src_x"]), k.mul(c, s["src_c"])), memory_type(self.source))
                to = k.at(dst, k.add(k.mul(x, s["dst_x"]), k.mul(c, s["dst_c"])), memory_type(self.dest))
                # Rows of the source run along its dense dimension.
                stride, across = (s["src_c"], s["dst_x"]) if self.how == "in" else (s["src_x"], s["dst_c"])
                rows = [k.load(k.at(from_, k.mul(stride, i), memory_type(self.source)), self.source, n) for i in range(n)]
                for i, row in enumerate(transpose(k, rows)):
                    k.store(row, k.at(to, k.mul(across, i), memory_type(self.dest)), self.dest)

        enough = k.x.and_(k.cmp("sge", k.sub(high, low), n), k.cmp("sge", channels, n))
        k.choose(enough, squares, lambda: self._each(k, s, src, dst, (low, high), (0, channels)))


def transpose(k: KernelEmit, rows: list[Value]) -> list[Value]:
    """A square of vectors transposed in registers: at each step, halves of ever larger squares change places."""
    n, step = len(rows), 1
    while step < n:
        made = list(rows)
        for i in range(n):
            if i & step:
                continue
            a, b = rows[i], rows[i + step]
            made[i] = k.x.shuffle(a, b, [lane - step + n if lane & step else lane for lane in range(n)])
            made[i + step] = k.x.shuffle(a, b, [lane + n if lane & step else lane + step for lane in range(n)])
        rows, step = made, 2 * step
    return rows
