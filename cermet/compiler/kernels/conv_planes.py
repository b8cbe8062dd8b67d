"""Depthwise convolution of stride 1 on images in NCHW order: one plane at a time, vectors along the rows.

A plane is copied into scratch with its borders of zeros, where it stays in the near caches for all taps. So images that come from outside
need not be turned into channels-last order and back, which would cost more than the convolution.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cermet.compiler.kernels.irtools import Index, KernelEmit, Value, acc_type, new_module
from cermet.compiler.llvm.builder import PTR, memory_type
from cermet.dtypes import DType

__all__ = ["PlaneGradKernel", "PlaneGradSum", "PlaneKernel"]

_PLANE = ("n", "c", "h", "w", "high", "wide", "pitch", "pad_h", "pad_w", "s_n", "s_c", "s_h")


class _Plane:
    """Copies planes of an image into scratch: ``h`` rows of ``pitch`` elements in which the image (``high`` x ``wide``) starts at
    (``pad_h``, ``pad_w``), zeros around it. Pads may be negative. Strides are in elements."""

    def __init__(self, k: KernelEmit, source: DType, compute: DType, lanes: int, slots: dict[str, Value], src: Value) -> None:
        self.k, self.source, self.compute, self.lanes, self.s, self.src = k, source, compute, lanes, slots, src

    def copy(self, image: Value, channel: Value, to: Value) -> None:
        k, s, lanes, element = self.k, self.s, self.lanes, acc_type(self.compute)
        with k.loop(0, k.mul(s["h"], s["pitch"]), lanes) as i:
            k.store(k.zero(self.compute, lanes), k.at(to, i, element), self.compute)
        from_ = k.at(self.src, k.add(k.mul(image, s["s_n"]), k.mul(channel, s["s_c"])), memory_type(self.source))
        zero = k.index(0)
        top, left = k.x.smax(s["pad_h"], zero), k.x.smax(s["pad_w"], zero)
        bottom, right = k.min(s["h"], k.add(s["pad_h"], s["high"])), k.min(s["w"], k.add(s["pad_w"], s["wide"]))
        whole = k.add(left, k.x.and_(k.x.smax(k.sub(right, left), zero), k.index(-lanes)))
        with k.loop(top, bottom) as r:
            row = k.at(from_, k.sub(k.mul(k.sub(r, s["pad_h"]), s["s_h"]), s["pad_w"]), memory_type(self.source))
            out = k.at(to, k.mul(r, s["pitch"]), element)
            with k.loop(left, whole, lanes) as q:
                k.store(k.load(k.at(row, q, memory_type(self.source)), self.source, lanes), k.at(out, q, element), self.compute)
            with k.loop(whole, right) as q:
                k.store(k.load(k.at(row, q, memory_type(self.source)), self.source), k.at(out, q, element), self.compute)


@dataclass(frozen=True)
class PlaneKernel:
    """Forward and input gradient. One parallel block is one plane of the result.

    Attributes:
        source: dtype of all operands in memory; ``compute``: of the sums.
        vectors, lanes: neighbouring outputs that stay in registers.
        across: taps along a row, 0: known at run time.
    """

    source: DType
    compute: DType
    vectors: int
    lanes: int
    across: int
    ENTRY = "conv_planes"
    OWN = ("out_h", "out_w", "taps_h", "taps_w", "step_h", "step_w", "w_c", "w_h", "w_w", "dst_n", "dst_c", "dst_h", "spill_at")

    @property
    def key(self) -> str:
        return f"conv_planes:{self.source.name}:{self.compute.name}:{self.vectors}x{self.lanes}:{self.across}"

    def params(self) -> list[str]:
        """Strides in elements; ``step`` is the dilation; negative strides of weights go through the taps backwards."""
        return ["src", "weights", "dst", *_PLANE, *self.OWN]

    def build(self, target: Any) -> Any:
        """The LLVM module."""
        module = new_module("conv_planes", target)
        k = KernelEmit(module, self.ENTRY, self.params(), target)
        s = {p: k.slot(p) for p in (*_PLANE, *self.OWN)}
        plane = _Plane(k, self.source, self.compute, self.lanes, s, k.slot("src", PTR))
        type_ = memory_type(self.source)
        with k.loop(k.begin, k.end) as block:
            image, channel = k.divmod(block, s["c"])
            plane.copy(image, channel, k.scratch)
            weights = k.at(k.slot("weights", PTR), k.mul(channel, s["w_c"]), type_)
            to = k.at(k.slot("dst", PTR), k.add(k.mul(image, s["dst_n"]), k.mul(channel, s["dst_c"])), type_)
            with k.loop(0, s["out_h"]) as y, k.loop(0, s["out_w"], self.vectors * self.lanes) as x:
                acc = self._sums(k, s, weights, y, x)
                self._store(k, s, acc, k.at(to, k.add(k.mul(y, s["dst_h"]), x), type_), k.sub(s["out_w"], x))
        k.done()
        return module

    def _sums(self, k: KernelEmit, s: dict[str, Value], weights: Value, y: Value, x: Value) -> list[Value]:
        element, type_ = acc_type(self.compute), memory_type(self.source)

        def tap(row: Value, w: Value, t: Index, acc: list[Value]) -> list[Value]:
            weight = k.broadcast(k.load(k.at(w, k.mul(s["w_w"], t), type_), self.source), self.lanes)
            at = k.at(row, k.mul(s["step_w"], t), element)
            return [
                k.mul_add(weight, k.load(k.at(at, v * self.lanes, element), self.compute, self.lanes), a)
                for v, a in enumerate(acc)
            ]

        def down(t: Value, acc: list[Value]) -> list[Value]:
            row = k.at(k.scratch, k.add(k.mul(k.add(y, k.mul(t, s["step_h"])), s["pitch"]), x), element)
            w = k.at(weights, k.mul(t, s["w_h"]), type_)
            if not self.across:
                return k.fold(0, s["taps_w"], 1, acc, lambda i, acc: tap(row, w, i, acc))
            for i in range(self.across):
                acc = tap(row, w, i, acc)
            return acc

        return k.fold(0, s["taps_h"], 1, [k.zero(self.compute, self.lanes)] * self.vectors, down)

    def _store(self, k: KernelEmit, s: dict[str, Value], acc: list[Value], to: Value, left: Value) -> None:
        element, type_ = acc_type(self.compute), memory_type(self.source)

        def every() -> None:
            for v, value in enumerate(acc):
                k.store(value, k.at(to, v * self.lanes, type_), self.source)

        def some() -> None:
            spill = k.at(k.scratch, s["spill_at"], element)
            for v, value in enumerate(acc):
                k.store(value, k.at(spill, v * self.lanes, element), self.compute)
            whole = k.x.and_(left, k.index(-self.lanes))
            with k.loop(0, whole, self.lanes) as i:
                k.store(k.load(k.at(spill, i, element), self.compute, self.lanes), k.at(to, i, type_), self.source)
            with k.loop(whole, left) as i:
                k.store(k.load(k.at(spill, i, element), self.compute), k.at(to, i, type_), self.source)

        k.choose(k.cmp("sge", left, self.vectors * self.lanes), every, some)


@dataclass(frozen=True)
class PlaneGradKernel:
    """The gradient of the weights: partial results ``[n][c][tap]``. One parallel block is one plane of the input and of dy.

    Attributes:
        source: dtype of the image and of dy.
        across: taps along a row.
    """

    source: DType
    compute: DType
    lanes: int
    across: int
    ENTRY = "conv_planes_grad"
    OWN = ("taps_h", "step_h", "step_w", "dy_at")

    @property
    def key(self) -> str:
        return f"conv_planes_grad:{self.source.name}:{self.compute.name}:{self.lanes}:{self.across}"

    def params(self) -> list[str]:
        """As those of `PlaneKernel`; the rows of dy are padded with zeros to ``d_pitch``, a multiple of two vectors."""
        return ["src", "dy", "partial", *_PLANE, *(f"d_{p}" for p in _PLANE), *self.OWN]

    def build(self, target: Any) -> Any:
        """The LLVM module."""
        module = new_module("conv_planes_grad", target)
        k = KernelEmit(module, self.ENTRY, self.params(), target)
        s = {p: k.slot(p) for p in (*_PLANE, *self.OWN)}
        d = {p: k.slot(f"d_{p}") for p in _PLANE}
        element = acc_type(self.compute)
        x = _Plane(k, self.source, self.compute, self.lanes, s, k.slot("src", PTR))
        dy = _Plane(k, self.source, self.compute, self.lanes, d, k.slot("dy", PTR))
        gradient = k.at(k.scratch, s["dy_at"], element)
        with k.loop(k.begin, k.end) as block:
            image, channel = k.divmod(block, s["c"])
            x.copy(image, channel, k.scratch)
            dy.copy(image, channel, gradient)
            with k.loop(0, s["taps_h"]) as t:
                sums = self._row(k, s, d, gradient, t)
                to = k.at(k.slot("partial", PTR), k.mul(k.add(k.mul(block, s["taps_h"]), t), self.across), element)
                for i, value in enumerate(sums):
                    k.store(self._total(k, value), k.at(to, i, element), self.compute)
        k.done()
        return module

    def _row(self, k: KernelEmit, s: dict[str, Value], d: dict[str, Value], gradient: Value, t: Value) -> list[Value]:
        """Vectors whose lanes add up to the sums of one row of taps."""
        element, lanes, compute = acc_type(self.compute), self.lanes, self.compute

        def along(y: Value) -> Callable[[Value, list[Value]], list[Value]]:
            above = k.at(k.scratch, k.mul(k.add(y, k.mul(t, s["step_h"])), s["pitch"]), element)
            row = k.at(gradient, k.mul(y, d["pitch"]), element)

            def body(x: Value, acc: list[Value]) -> list[Value]:
                out = list(acc)
                for half in range(2):
                    dy = k.load(k.at(k.at(row, x, element), half * lanes, element), compute, lanes)
                    for i in range(self.across):
                        at = k.at(k.at(above, k.add(x, k.mul(s["step_w"], i)), element), half * lanes, element)
                        n = half * self.across + i
                        out[n] = k.mul_add(dy, k.load(at, compute, lanes), out[n])
                return out

            return body

        start = [k.zero(compute, lanes)] * (2 * self.across)
        acc = k.fold(0, d["h"], 1, start, lambda y, acc: k.fold(0, d["pitch"], 2 * lanes, acc, along(y)))
        return [k.plus(a, b) for a, b in zip(acc[: self.across], acc[self.across :], strict=True)]

    def _total(self, k: KernelEmit, value: Value) -> Value:
        """The sum of all lanes, by halves."""
        width = self.lanes
        while width > 1:
            width //= 2
            low = k.x.shuffle(value, None, list(range(width))) if width > 1 else k.x.extract(value, 0)
            high = k.x.shuffle(value, None, list(range(width, 2 * width))) if width > 1 else k.x.extract(value, 1)
            value = k.plus(low, high)
        return value


@dataclass(frozen=True)
class PlaneGradSum:
    """Adds the partial results of all images, in order. One parallel block is one channel."""

    compute: DType
    result: DType
    ENTRY = "conv_planes_sum"
    PARAMS = ("src", "dst", "n", "c", "taps_h", "taps_w", "w_c", "w_h", "w_w")

    @property
    def key(self) -> str:
        return f"conv_planes_sum:{self.compute.name}:{self.result.name}"

    def build(self, target: Any) -> Any:
        """The LLVM module."""
        module = new_module("conv_planes_sum", target)
        k = KernelEmit(module, self.ENTRY, self.PARAMS, target)
        s = {p: k.slot(p) for p in self.PARAMS[2:]}
        taps = k.mul(s["taps_h"], s["taps_w"])
        element = acc_type(self.compute)
        with k.loop(k.begin, k.end) as c, k.loop(0, s["taps_h"]) as i, k.loop(0, s["taps_w"]) as j:
            first = k.add(k.mul(c, taps), k.add(k.mul(i, s["taps_w"]), j))
            from_ = k.at(k.slot("src", PTR), first, element)

            def add(n: Value, acc: list[Value], from_: Value = from_) -> list[Value]:
                return [k.plus(acc[0], k.load(k.at(from_, k.mul(n, k.mul(s["c"], taps)), element), self.compute))]

            [total] = k.fold(0, s["n"], 1, [k.zero(self.compute)], add)
            at = k.add(k.mul(c, s["w_c"]), k.add(k.mul(i, s["w_h"]), k.mul(j, s["w_w"])))
            k.store(total, k.at(k.slot("dst", PTR), at, memory_type(self.result)), self.result)
        k.done()
        return module
