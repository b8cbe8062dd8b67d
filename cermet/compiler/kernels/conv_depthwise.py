"""Depthwise convolution, forward and input gradient: each channel by itself, vectors along the channels.

One parallel block is one row of the result. Along it a tile of neighbouring pixels x vectors of channels stays in registers over all
taps; addresses are a base and a stride, so that beside the multiply-adds there is nothing to do. The pixels whose taps all lie inside the
image are found beforehand; those at the edges go one at a time with the taps they have. The geometry is that of `conv_table`: the
gradient of a strided convolution is one dense convolution for each of its phases.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cermet.compiler.kernels.conv_table import Axis
from cermet.compiler.kernels.finish import Finish, Output
from cermet.compiler.kernels.irtools import Index, KernelEmit, Value, acc_type, new_module
from cermet.compiler.llvm.builder import BOOL, I64, PTR, constant, memory_type
from cermet.dtypes import DType

__all__ = ["DepthwiseKernel"]

MOST_UNROLLED = 7
_AXIS = ("out", "in", "phases", "step", "kstep", "ostep", "table")
_OWN = ("channels", "src_n", "src_h", "src_w", "dst_n", "dst_h", "dst_w", "w_block", "w_h", "w_w")
PHASE = 6
"""Words of a phase in the table: first tap, taps, position of the first, pixels, and the range of pixels that no tap leaves."""


@dataclass(frozen=True)
class DepthwiseKernel:
    """What is compiled in. Strides are in bytes; weights are packed in blocks of ``vectors * lanes`` channels (`PackWeights`).

    Attributes:
        source: dtype of the image that is read.
        compute: dtype of the weights and the sums.
        pixels, vectors, lanes: the register tile.
        across: taps along a row where all pixels have as many and they are few; 0: known at run time.
        output: how results leave the kernel; its rows are the pixels of an image.
    """

    source: DType
    compute: DType
    pixels: int
    vectors: int
    lanes: int
    across: int
    output: Output
    ENTRY = "conv_depthwise"

    @property
    def key(self) -> str:
        tile = f"{self.pixels}x{self.vectors}x{self.lanes}"
        return f"conv_depthwise:{self.source.name}:{self.compute.name}:{tile}:{self.across}:{self.output.key}"

    def params(self) -> list[str]:
        """The named parameters; the phases of both axes follow."""
        return ["src", "weights", "dst", *_OWN, *(f"{p}{d}" for d in (0, 1) for p in _AXIS), *self.output.params]

    @staticmethod
    def phases(a: Axis) -> list[int]:
        """The table of an axis."""
        words: list[int] = []
        for r, (k0, count, first) in enumerate(a.phases):
            pixels = max(0, -(-(a.out - r) // len(a.phases)))
            last = first + a.ostep * (count - 1)
            low, high = (first, last) if a.ostep > 0 else (last, first)
            if count == 0:
                begin = end = 0
            else:
                begin = min(pixels, max(0, -(low // a.step)))
                end = min(pixels, max(begin, (a.src - 1 - high) // a.step + 1))
            words += [k0, count, first, pixels, begin, end]
        return words

    def build(self, target: Any) -> Any:
        """The LLVM module."""
        module = new_module("conv_depthwise", target)
        finish = Finish(module, target, self.output, self.lanes) if self.output.epilogue else None
        _Body(KernelEmit(module, self.ENTRY, self.params(), target), self, finish).write()
        return module


class _Body:
    """Writes the kernel."""

    def __init__(self, k: KernelEmit, spec: DepthwiseKernel, finish: Finish | None) -> None:
        self.k, self.spec, self.finish = k, spec, finish
        if finish is not None:
            finish.prepare(k)
        self.s = {p: k.slot(p) for p in spec.params()[3:]}
        self.source, self.weights, self.dest = (k.slot(p, PTR) for p in ("src", "weights", "dst"))
        self.width = spec.vectors * spec.lanes

    def _on(self, ptr: Value, offset: Index) -> Value:
        return self.k.x.line(PTR, f"getelementptr i8, ptr {ptr.get_reference()}, i64 {self.k.index(offset).get_reference()}")

    def _phase(self, d: int, r: Index) -> list[Value]:
        k = self.k
        at = k.add(self.s[f"table{d}"], k.mul(r, PHASE))
        return [k.load_raw(I64, k.at(k.args[0], k.add(at, i), I64), 8) for i in range(PHASE)]

    def write(self) -> None:
        k, s = self.k, self.s
        with k.loop(k.begin, k.end) as block:
            image, y = k.divmod(block, s["out0"])
            j, r = k.divmod(y, s["phases0"])
            k0, count, first, *_ = self._phase(0, r)
            at = k.add(k.mul(j, s["step0"]), first)
            low, high = self._inside(0, at, count)
            row = self._on(self.source, k.add(k.mul(image, s["src_n"]), k.mul(at, s["src_h"])))
            if self.finish is None:
                to = self._on(self.dest, k.add(k.mul(image, s["dst_n"]), k.mul(y, s["dst_h"])))
            else:
                to = k.scratch
            taps = _Rows(row, self._on(self.weights, k.mul(k0, s["w_h"])), low, high)
            with k.loop(0, s["phases1"]) as r1:
                self._row(taps, r1, self._on(to, k.mul(r1, s["dst_w"])))
            if self.finish is not None:
                place = (image, k.mul(y, s["out1"]), 0)
                self.finish.call(k, to, s["channels"], s["out1"], s["channels"], place, None, constant(BOOL, 1))
        k.done()

    def _inside(self, d: int, at: Value, count: Value) -> tuple[Value, Value]:
        """The range of taps whose source position, ``at`` for the first one, lies inside the image."""
        k, s = self.k, self.s

        def body(i: Value, found: list[Value]) -> list[Value]:
            low, high = found
            there = k.x.icmp("ult", k.add(at, k.mul(i, s[f"ostep{d}"])), s[f"in{d}"])
            before = k.x.and_(k.x.not_(there), k.cmp("eq", high, low))
            low = k.select(before, k.add(i, 1), low)
            return [low, k.select(there, k.add(i, 1), k.select(before, low, high))]

        low, high = k.fold(0, count, 1, [k.index(0), k.index(0)], body)
        return low, high

    def _row(self, taps: _Rows, r: Value, to: Value) -> None:
        """All pixels of one phase of a row; ``to`` is where the first one goes."""
        k, s, spec = self.k, self.s, self.spec
        k0, count, first, pixels, begin, end = self._phase(1, r)
        columns = _Columns(self._on(taps.weights, k.mul(k0, s["w_w"])), count, first)

        def edge(j: Value) -> None:
            at = k.add(k.mul(j, s["step1"]), first)
            low, high = self._inside(1, at, count)
            self._tile(1, taps, columns, (low, high), self._on(taps.source, k.mul(at, s["src_w"])), self._to(to, j))

        def inner(j: Value, n: int) -> None:
            at = k.add(k.mul(j, s["step1"]), first)
            self._tile(n, taps, columns, None, self._on(taps.source, k.mul(at, s["src_w"])), self._to(to, j))

        with k.loop(0, begin) as j:
            edge(j)
        whole = k.add(begin, k.mul(k.div(k.sub(end, begin), spec.pixels), spec.pixels))
        with k.loop(begin, whole, spec.pixels) as j:
            inner(j, spec.pixels)
        with k.loop(whole, end) as j:
            inner(j, 1)
        with k.loop(end, pixels) as j:
            edge(j)

    def _to(self, to: Value, j: Value) -> Value:
        return self._on(to, self.k.mul(j, self.k.mul(self.s["phases1"], self.s["dst_w"])))

    def _tile(self, n: int, taps: _Rows, columns: _Columns, some: tuple[Value, Value] | None, source: Value, to: Value) -> None:
        """``n`` neighbours of one phase, all channels. ``some``: the range of taps along the row, where not all."""
        k, s, spec = self.k, self.s, self.spec
        type_, element = memory_type(spec.source), acc_type(spec.compute)
        apart = [k.mul(k.mul(s["src_w"], s["step1"]), i) for i in range(n)]
        away = [k.mul(k.mul(s["dst_w"], s["phases1"]), i) for i in range(n)]
        low, high = some if some is not None else (k.index(0), columns.count)

        def tap(i: Index, row: tuple[Value, Value], acc: list[Value]) -> list[Value]:
            at, w = row
            at = self._on(at, k.mul(k.mul(s["src_w"], s["ostep1"]), i))
            w = self._on(w, k.mul(k.mul(s["w_w"], s["kstep1"]), i))
            ws = [k.load(k.at(w, v * spec.lanes, element), spec.compute, spec.lanes) for v in range(spec.vectors)]
            out = []
            for p in range(n):
                pixel = self._on(at, apart[p])
                for v in range(spec.vectors):
                    x = k.load(k.at(pixel, v * spec.lanes, type_), spec.source, spec.lanes)
                    out.append(k.mul_add(x, ws[v], acc[p * spec.vectors + v]))
            return out

        with k.loop(0, s["channels"], self.width) as c:
            # The last channels overlap those before; so do their weights.
            channel = k.min(c, k.sub(s["channels"], self.width))
            start = k.at(source, channel, type_)
            weights = self._on(columns.weights, k.mul(k.div(c, self.width), s["w_block"]))

            def row(i: Value, acc: list[Value], start: Value = start, weights: Value = weights) -> list[Value]:
                at = self._on(start, k.mul(i, k.mul(s["src_h"], s["ostep0"])))
                w = self._on(weights, k.mul(i, k.mul(s["w_h"], s["kstep0"])))
                if spec.across and some is None:
                    for t in range(spec.across):
                        acc = tap(t, (at, w), acc)
                    return acc
                return k.fold(low, high, 1, acc, lambda t, acc: tap(t, (at, w), acc))

            acc = k.fold(taps.low, taps.high, 1, [k.zero(spec.compute, spec.lanes)] * (n * spec.vectors), row)
            result = spec.output.dtype if self.finish is None else spec.compute
            for p in range(n):
                place = k.at(self._on(to, away[p]), channel, memory_type(result))
                for v in range(spec.vectors):
                    k.store(acc[p * spec.vectors + v], k.at(place, v * spec.lanes, memory_type(result)), result)


@dataclass
class _Rows:
    """Where the first tap of a row of the result reads, its weights, and which taps down the image there are."""

    source: Value
    weights: Value
    low: Value
    high: Value


@dataclass
class _Columns:
    """The weights of a phase's first tap along the row, the number of its taps, and the position the first one reads."""

    weights: Value
    count: Value
    first: Value
