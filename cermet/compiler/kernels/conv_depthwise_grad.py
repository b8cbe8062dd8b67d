"""The gradient of a depthwise convolution's weights: for each channel and tap a sum over all pixels, vectors along the channels.

Rows of the output are cut into spans, each summed into a partial result of its own (added up by `SumWeights`). Within a row, the taps
of one kernel row stay in registers for a few vectors of channels while the pixels pass by; pixels at the edges, which lack taps, are
added in memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cermet.compiler.kernels.conv_depthwise import PHASE
from cermet.compiler.kernels.irtools import Index, KernelEmit, Value, acc_type, new_module
from cermet.compiler.llvm.builder import I64, PTR, memory_type
from cermet.dtypes import DType

__all__ = ["DepthwiseGradKernel"]

_AXIS = ("out", "in", "step", "ostep", "table")
_OWN = ("channels", "blocks", "rows_all", "span", "elements", "src_n", "src_h", "src_w", "dy_n", "dy_h", "dy_w", "taps0")


@dataclass(frozen=True)
class DepthwiseGradKernel:
    """What is compiled in. Partial results are ``[span][tap][block of channels][channel]``; the last block overlaps the one before.

    Attributes:
        source, gradient: dtypes of the image and of dy in memory.
        compute: dtype of the sums.
        vectors, lanes: channels of a block.
        across: taps along a row.
    """

    source: DType
    gradient: DType
    compute: DType
    vectors: int
    lanes: int
    across: int
    ENTRY = "conv_depthwise_grad"
    rows = 1

    @property
    def channels(self) -> int:
        return self.vectors * self.lanes

    @property
    def key(self) -> str:
        dtypes = f"{self.source.name}:{self.gradient.name}:{self.compute.name}"
        return f"conv_depthwise_grad:{dtypes}:{self.vectors}x{self.lanes}:{self.across}"

    def params(self) -> list[str]:
        """Strides are in bytes. The tables of both axes (`DepthwiseKernel.phases`, one phase) follow."""
        return ["src", "dy", "partial", *_OWN, *(f"{p}{d}" for d in (0, 1) for p in _AXIS)]

    def build(self, target: Any) -> Any:
        """The LLVM module."""
        module = new_module("conv_depthwise_grad", target)
        _Body(KernelEmit(module, self.ENTRY, self.params(), target), self).write()
        return module


class _Body:
    """Writes the kernel."""

    def __init__(self, k: KernelEmit, spec: DepthwiseGradKernel) -> None:
        self.k, self.spec = k, spec
        self.s = {p: k.slot(p) for p in spec.params()[3:]}
        self.source, self.dy, self.partial = (k.slot(p, PTR) for p in ("src", "dy", "partial"))
        self.element = acc_type(spec.compute)

    def _on(self, ptr: Value, offset: Index) -> Value:
        return self.k.x.line(PTR, f"getelementptr i8, ptr {ptr.get_reference()}, i64 {self.k.index(offset).get_reference()}")

    def _table(self, d: int) -> list[Value]:
        k = self.k
        return [k.load_raw(I64, k.at(k.args[0], k.add(self.s[f"table{d}"], i), I64), 8) for i in range(PHASE)]

    def write(self) -> None:
        k, s, spec = self.k, self.s, self.spec
        self.down, self.along = self._table(0), self._table(1)
        with k.loop(k.begin, k.end) as span:
            sums = k.at(self.partial, k.mul(span, s["elements"]), self.element)
            with k.loop(0, s["elements"], spec.lanes) as i:
                k.store(k.zero(spec.compute, spec.lanes), k.at(sums, i, self.element), spec.compute)
            first = k.mul(span, s["span"])
            with k.loop(first, k.min(k.add(first, s["span"]), s["rows_all"])) as row:
                image, y = k.divmod(row, s["out0"])
                at = k.add(k.mul(y, s["step0"]), self.down[2])
                source = self._on(self.source, k.add(k.mul(image, s["src_n"]), k.mul(at, s["src_h"])))
                dy = self._on(self.dy, k.add(k.mul(image, s["dy_n"]), k.mul(y, s["dy_h"])))
                with k.loop(0, s["blocks"]) as block, k.loop(0, s["taps0"]) as tap:
                    inside = k.x.icmp("ult", k.add(at, k.mul(tap, s["ostep0"])), s["in0"])
                    with k.when(inside):
                        self._tap_row(source, dy, sums, block, tap)
        k.done()

    def _tap_row(self, source: Value, dy: Value, sums: Value, block: Value, tap: Value) -> None:
        """Add one row of pixels to the sums of one row of taps and one block of channels."""
        k, s, spec = self.k, self.s, self.spec
        channel = k.min(k.mul(block, spec.channels), k.sub(s["channels"], spec.channels))
        source = self._on(source, k.mul(tap, k.mul(s["ostep0"], s["src_h"])))
        source = k.at(source, channel, memory_type(spec.source))
        dy = k.at(dy, channel, memory_type(spec.gradient))
        number = k.add(k.mul(k.mul(tap, spec.across), s["blocks"]), block)
        base = k.at(sums, k.mul(number, spec.channels), self.element)
        step = k.mul(s["blocks"], spec.channels)
        places = [
            [k.at(k.at(base, k.mul(step, t), self.element), v * spec.lanes, self.element) for v in range(spec.vectors)]
            for t in range(spec.across)
        ]
        _, _, first, pixels, begin, end = self.along

        def gradient(j: Value) -> list[Value]:
            at, type_ = self._on(dy, k.mul(j, s["dy_w"])), memory_type(spec.gradient)
            return [k.load(k.at(at, v * spec.lanes, type_), spec.gradient, spec.lanes) for v in range(spec.vectors)]

        def image(j: Value, t: int, v: int) -> Value:
            position = k.add(k.add(k.mul(j, s["step1"]), first), k.mul(s["ostep1"], t))
            at = k.at(self._on(source, k.mul(position, s["src_w"])), v * spec.lanes, memory_type(spec.source))
            return k.load(at, spec.source, spec.lanes)

        def edge(j: Value) -> None:
            values = gradient(j)
            for t in range(spec.across):
                position = k.add(k.add(k.mul(j, s["step1"]), first), k.mul(s["ostep1"], t))
                with k.when(k.x.icmp("ult", position, s["in1"])):
                    for v in range(spec.vectors):
                        old = k.load(places[t][v], spec.compute, spec.lanes)
                        k.store(k.mul_add(image(j, t, v), values[v], old), places[t][v], spec.compute)

        for low, high in ((k.index(0), begin), (end, pixels)):
            with k.loop(low, high) as j:
                edge(j)

        def pixel(j: Value, acc: list[Value]) -> list[Value]:
            values = gradient(j)
            out = []
            for t in range(spec.across):
                out += [k.mul_add(image(j, t, v), values[v], acc[t * spec.vectors + v]) for v in range(spec.vectors)]
            return out

        flat = [p for row in places for p in row]
        acc = k.fold(begin, end, 1, [k.load(p, spec.compute, spec.lanes) for p in flat], pixel)
        for value, place in zip(acc, flat, strict=True):
            k.store(value, place, spec.compute)
