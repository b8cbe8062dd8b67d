"""Convolution in three directions, as implicit contractions: which launches compute one.

    forward      y[n,o,p] = sum over c, k of  x[n, g*Cg + c, p*stride - padding + k*dilation] * w[o, c, k]
    input_grad   dx from dy and w (also the forward pass of a transposed convolution)
    weight_grad  dw from dy and x

with p and k over 1, 2 or 3 spatial dimensions and zeros outside the input. No im2col buffer is made. Activations are read in
place where their channels are contiguous (channels-last) and their dtype is the one computed in; otherwise a first launch copies
them into that form. Weights are packed by a launch of their own.

Each family of kernels has a maker, which answers with the launches; `plan` chooses among them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any, Literal

from cermet.compiler.kernels.conv_base import ConvSpec, Image, Maker, channels_first, channels_last, cheapest
from cermet.compiler.kernels.conv_depthwise import MOST_UNROLLED, PHASE, DepthwiseKernel
from cermet.compiler.kernels.conv_depthwise_grad import DepthwiseGradKernel
from cermet.compiler.kernels.conv_planes_plan import Planes, by_planes
from cermet.compiler.kernels.conv_pointwise import is_pointwise, plan_pointwise
from cermet.compiler.kernels.conv_table import Axis, PixelTable
from cermet.compiler.kernels.conv_taps import TapKernel, Tile, with_order
from cermet.compiler.kernels.conv_weight_grad import PIXELS, SumWeights, WeightGradKernel
from cermet.compiler.kernels.conv_winograd_plan import Winograd, WinogradGrad, winograd_gradient, winograd_outputs
from cermet.compiler.kernels.finish import Epilogue, Output
from cermet.compiler.kernels.plan import Arg, Operand, Plan, Temp
from cermet.dtypes import DType

__all__ = ["ConvSpec", "channels_first", "channels_last", "plan"]

Direction = Literal["forward", "input_grad", "weight_grad"]
WEIGHT_BLOCKS = 16
"""Parallel blocks that the gradient of the weights is cut into at least, where its shape allows."""
NEAR_BYTES = 24 << 10
"""Bytes of packed weights that stay in the first-level cache, whatever passes by."""
FAR_BYTES = 512
"""Distance of pixels from which on the input is copied before use, where enough output channels share the copy."""


def plan(
    direction: Direction, spec: ConvSpec, target: Any, epilogue: Epilogue | None = None, epilogue_args: Sequence[Arg] = ()
) -> Plan:
    """The launches that compute ``spec`` in one direction, over operands "x", "w" and "y" (one of them the result).

    Args:
        direction: ``forward`` writes y, ``input_grad`` x, ``weight_grad`` w.
        spec: the convolution; the same in all directions.
        target: the machine.
        epilogue: runs for each element of y or x instead of the store (which is then not made). Its ``b`` is the batch, ``m`` the
            position in the image (row-major), ``n`` the channel; ``acc`` has the computing dtype. Not for ``weight_grad``.
        epilogue_args: one for each of the epilogue's parameters.

    Raises:
        ValueError: for an unknown direction, or an epilogue that does not fit.
    """
    if epilogue is not None and (direction == "weight_grad" or len(epilogue.params) != len(epilogue_args)):
        raise ValueError(
            f"convolution: an epilogue goes with images, not {direction}, and with as many arguments as it has parameters "
            f"({len(epilogue.params)}, not {len(epilogue_args)})"
        )
    if direction not in ("forward", "input_grad", "weight_grad"):
        raise ValueError(f"unknown direction {direction!r}; expected forward, input_grad or weight_grad")
    if is_pointwise(direction, spec):
        return plan_pointwise(direction, spec, target, epilogue, tuple(epilogue_args))
    if len(spec.size) == 1:
        spec = _as_2d(spec)
    if epilogue is None and by_planes(direction, spec, target):
        return Planes(direction, spec, target).plan()
    if direction == "weight_grad":
        if winograd_gradient(spec, target):
            return WinogradGrad(direction, spec, target).plan()
        few = spec.kernel[-1] <= MOST_UNROLLED
        return (_DepthwiseWeights if few and _is_depthwise(spec, target) else _Weights)(direction, spec, target).plan()
    if outputs := winograd_outputs(direction, spec, target):
        return Winograd(direction, spec, target).plan(outputs, epilogue, tuple(epilogue_args))
    maker = _Depthwise if _is_depthwise(spec, target) else _Taps
    return maker(direction, spec, target).plan(epilogue, tuple(epilogue_args))


def _is_depthwise(s: ConvSpec, target: Any) -> bool:
    """Whether every channel is a group of its own, with enough of them for a vector."""
    lanes = max(1, target.vector_bytes // s.dtype.compute.itemsize)
    return s.groups == s.c == s.o >= lanes and len(s.size) == 2 and s.n * prod(s.size) * prod(s.out) > 0


def _as_2d(s: ConvSpec) -> ConvSpec:
    def grown(strides: tuple[int, ...]) -> tuple[int, ...]:
        return (*strides[:2], 0, *strides[2:])

    return replace(
        s, size=(1, *s.size), kernel=(1, *s.kernel), out=(1, *s.out), stride=(1, *s.stride), padding=(0, *s.padding),
        dilation=(1, *s.dilation), x_strides=grown(s.x_strides), w_strides=grown(s.w_strides), y_strides=grown(s.y_strides),
    )  # fmt: skip


class _Depthwise(Maker):
    """Forward and input gradient of a depthwise convolution."""

    def plan(self, epilogue: Epilogue | None, epilogue_args: tuple[Arg, ...]) -> Plan:
        s = self.spec
        self.forward = self.direction == "forward"
        if self.forward:
            source, axes = self.source("x", s.c, s.size, s.x_strides, any_dtype=True), self.forward_axes()
            result = ("y", s.o, s.out, s.y_strides)
        else:
            source, axes = self.source("y", s.o, s.out, s.y_strides, any_dtype=True), self.backward_axes()
            result = ("x", s.c, s.size, s.x_strides)
        dst = Image(Operand(result[0]), s.dtype, result[3], result[1], result[2])
        direct = dst.strides[1] == 1 or epilogue is not None
        into = dst
        if not direct:
            strides = channels_last(s.n, dst.channels, dst.size)
            into = Image(self.temp(s.n * dst.channels * prod(dst.size)), self.compute, strides, dst.channels, dst.size)
        self.contract(source, into, axes, epilogue, epilogue_args)
        if not direct:
            self.relayout(into, dst, 0, dst.size[-1], dst.size[-1])
        return Plan(self.launches, self.temps)

    def contract(
        self, source: Image, into: Image, axes: list[Axis], epilogue: Epilogue | None, epilogue_args: tuple[Arg, ...]
    ) -> None:
        """Pack the weights and run the kernel."""
        s, item = self.spec, self.compute.itemsize
        vectors = 2 if s.c >= 2 * self.lanes else 1
        pixels = (12 if self.many_registers() else 4) // vectors * 2 // (1 if vectors == 2 else 2)
        width = vectors * self.lanes
        packed, _ = self.pack(Tile(pixels, vectors, self.lanes), 1, s.c, 1, -(-s.c // width), 0)
        across = s.kernel[1] if len(axes[1].phases) == 1 and s.kernel[1] <= MOST_UNROLLED else 0
        output = Output(self.compute, into.dtype, True, epilogue=epilogue)
        kernel = DepthwiseKernel(source.dtype, self.compute, pixels, vectors, self.lanes, across, output)
        (dst_n, *dst), row = into.bytes, 0
        if epilogue is not None:  # a row of the result is kept in scratch
            dst_n, dst, row = 0, [0, s.c * item], into.size[1] * s.c * item
        taps = [width * item * s.kernel[1], width * item]
        args: list[Arg] = [source.at, packed, 0 if epilogue else into.at, s.c, *source.bytes, dst_n, *dst]
        args += [taps[0] * s.kernel[0], *taps]
        table = len(kernel.params())
        for a in axes:
            args += [a.out, a.src, len(a.phases), a.step, a.kstep, a.ostep, table]
            table += len(kernel.phases(a))
        if epilogue is not None:
            args += [prod(into.size), *epilogue_args]
        for a in axes:
            args += kernel.phases(a)
        rows = s.n * into.size[0]
        self.launch(kernel, args, rows, row, 2 * s.macs, 1 + rows * (1 << 18) // max(1, 2 * s.macs))


class _Taps(Maker):
    """Forward and input gradient: copies where needed, packed weights, the tap kernel."""

    def plan(self, epilogue: Epilogue | None, epilogue_args: tuple[Arg, ...]) -> Plan:
        s = self.spec
        self.epilogue, self.epilogue_args = epilogue, epilogue_args
        self.forward = self.direction == "forward"
        # The result is y for the forward pass and x for the gradient; the source is the other one.
        result = ("y", s.o, s.out, s.y_strides) if self.forward else ("x", s.c, s.size, s.x_strides)
        self.reduced, self.outs = (self.cg, self.og) if self.forward else (self.og, self.cg)
        if s.n * result[1] * prod(result[2]) == 0:
            return Plan([])
        run = self.run_source() if self.forward else None
        if run is not None:
            source, axes = run
        elif self.forward:
            source, axes = self.source("x", s.c, s.size, s.x_strides), self.forward_axes()
        else:
            source = self.source("y", s.o, s.out, s.y_strides)
            axes = self.backward_axes()
        dst = Image(Operand(result[0]), s.dtype, result[3], result[1], result[2])
        direct = dst.strides[1] == 1 or dst.channels == 1 or epilogue is not None
        into = dst
        if not direct:
            strides = channels_last(s.n, dst.channels, dst.size)
            into = Image(self.temp(s.n * dst.channels * prod(dst.size)), self.compute, strides, dst.channels, dst.size)
        self.contract(source, into, axes, run is not None)
        if not direct:
            self.relayout(into, dst, 0, dst.size[-1], dst.size[-1])
        return Plan(self.launches, self.temps)

    def tile(self, outs: int) -> Tile:
        """The register tile: as many sums as the registers hold beside one row of weights and one broadcast value."""
        shapes = [(8, 2), (8, 3), (8, 1)] if self.many_registers() else [(6, 2), (4, 3), (8, 1)]
        fitting = [(p, v) for p, v in shapes if v == 1 or v * self.lanes <= outs]
        # Cycles a pixel at two multiplications or loads a cycle.
        costs = [-(-outs // (v * self.lanes)) * max(p * v, p + v) / p for p, v in fitting]
        return Tile(*cheapest(fitting, costs), self.lanes)

    def contract(self, source: Image, into: Image, axes: list[Axis], run_mode: bool) -> None:
        """Pack the weights and run the kernel."""
        s, mixing = self.spec, self.mixing()
        groups, outs, reduced = (1, into.channels, mixing) if mixing else (s.groups, self.outs, self.reduced)
        tile = self.tile(outs)
        epilogue, scattered = self.epilogue, any(len(a.phases) > 1 for a in axes)
        if epilogue is not None and not scattered:
            epilogue = with_order(epilogue)
        blocks = -(-outs // tile.channels)
        run = reduced * (s.kernel[-1] if run_mode else 1)
        kernel = TapKernel(self.compute, into.dtype, self.rank, tile, mixing, epilogue, epilogue is not None and scattered)
        near = prod(a.taps for a in axes) * run * blocks * tile.channels * self.compute.itemsize <= NEAR_BYTES
        if epilogue is not None and near and groups == 1 and blocks > 1 and not mixing and not scattered:
            kernel = replace(kernel, wide=True)
        packed, zeros = self.pack(tile, groups, outs, reduced, blocks, max(run, source.channels))
        item = self.compute.itemsize
        steps = [reduced * tile.channels * item]
        for k in reversed(s.kernel[1:]):
            steps.insert(0, steps[0] * k)
        taps = prod(a.taps for a in axes)
        tiles, parts, part_blocks, chunks, phase_count = self.blocking(axes, tile, taps, run, blocks * groups)
        args: list[Arg] = [source.at, packed, zeros, into.at if epilogue is None else 0]
        args += [chunks, phase_count, part_blocks, groups, blocks, tiles, run, outs, taps, reduced, steps[0] * s.kernel[0]]
        pitch = kernel.pitch(part_blocks)
        args.append(pitch)
        # For an epilogue addresses in the result are numbers of pixels.
        image = prod(into.size)
        places = into.bytes if epilogue is None else [image, *(prod(into.size[d + 1 :]) for d in range(self.rank))]
        geometry = PixelTable.arguments(s.n, axes, source.bytes, places, steps, len(kernel.params()))
        args += geometry
        if kernel.scattered:
            args += [image, *self.epilogue_args]
        elif epilogue is not None:
            inner = geometry[PixelTable.params(self.rank).index("batch_inner")]
            args += [s.n if inner else image, inner, *self.epilogue_args]
        args += PixelTable.tail(axes)
        total = chunks * phase_count * parts
        self.launch(
            kernel, args, total, kernel.scratch(tiles, taps, pitch), 2 * s.macs, 1 + total * (1 << 19) // max(1, 2 * s.macs)
        )

    def blocking(self, axes: list[Axis], tile: Tile, taps: int, run: int, blocks: int) -> tuple[int, int, int, int, int]:
        """Tiles of a chunk, parts of the output channels and blocks in one, chunks of a phase, phases."""
        phase_count = prod(len(a.phases) for a in axes)
        pixels = self.spec.n * prod(a.pixels for a in axes)
        # Entries of a chunk should stay in the first-level cache beside the weights that stream by.
        tiles = max(1, min(16, (16 << 10) // (8 * tile.pixels * max(taps, 1))))
        tiles = min(tiles, -(-pixels // tile.pixels))
        chunks = -(-pixels // (tiles * tile.pixels))
        # The weights that a run of chunks uses should stay in the second-level cache.
        weight_bytes = taps * run * tile.channels * self.compute.itemsize
        part_blocks = min(blocks, max(1, getattr(self.target, "l2", 1 << 19) // 2 // max(1, weight_bytes)))
        while part_blocks > 1 and chunks * phase_count * -(-blocks // part_blocks) < 32:
            part_blocks = -(-part_blocks // 2)
        return tiles, -(-blocks // part_blocks), part_blocks, chunks, phase_count


@dataclass(frozen=True)
class _Product:
    """The contraction that makes the gradient of the weights: sizes as the kernel counts them."""

    kernel: Any  # of either family: what matters here is its tile
    groups: int
    outs: int
    reduced: int
    run: int
    axes: tuple[Axis, ...]

    @property
    def blocks(self) -> int:
        """Blocks of output channels in a group."""
        return -(-self.outs // self.kernel.channels)

    @property
    def row_tiles(self) -> int:
        """Register tiles in a run of input channels."""
        return -(-self.run // self.kernel.rows)

    @property
    def elements(self) -> int:
        """Elements of one set of sums, all groups and taps together."""
        tile = self.kernel.rows * self.kernel.channels
        return self.groups * prod(a.taps for a in self.axes) * self.blocks * self.row_tiles * tile


class _Weights(Maker):
    """The gradient of the weights: copies where needed, partial sums, their sum."""

    def plan(self) -> Plan:
        s, mixing = self.spec, self.mixing()
        if s.o * self.cg * prod(s.kernel) == 0:
            return Plan([])
        run = self.run_source()
        source, axes = run if run is not None else (self.source("x", s.c, s.size, s.x_strides), self.forward_axes())
        dy = self.source("y", s.o, s.out, s.y_strides, any_dtype=True)
        groups, outs, reduced = (1, s.c, mixing) if mixing else (s.groups, self.og, self.cg)
        run_length = reduced * (s.kernel[-1] if run is not None else 1)
        kernel = self.kernel(run_length, outs, dy.dtype)
        if groups == 1 and not mixing and self.far_apart(source, list(axes)) and run_length >= self.lanes and outs >= 128:
            kernel = replace(kernel, copying=True)
        p = _Product(kernel, groups, outs, reduced, run_length, tuple(axes))
        spans, partial = self.sums(p, source, dy)
        self.add_up(p, partial, spans)
        return Plan(self.launches, self.temps)

    def far_apart(self, source: Image, axes: list[Axis]) -> bool:
        """Whether successive pixels compete for few sets of the first-level cache: many channels, or successive images."""
        names = PixelTable.params(self.rank)
        inner = PixelTable.arguments(self.spec.n, axes, source.bytes, [0] * (1 + self.rank), [0] * self.rank, 0)
        return abs(source.bytes[0] if inner[names.index("batch_inner")] else source.bytes[-1] * axes[-1].step) >= FAR_BYTES

    def kernel(self, run: int, outs: int, gradient: DType) -> WeightGradKernel:
        """The register tile for runs of ``run`` input channels."""
        wide = -(-outs // self.lanes)
        if mixing := self.mixing():
            vectors = next(v for v in (4, 2, 1) if v * mixing <= 4 and (v == 1 or v <= wide))
            return WeightGradKernel(self.compute, gradient, self.rank, mixing, vectors, self.lanes, mixing)
        shapes = [(8, 3), (12, 2), (6, 4), (20, 1)] if self.many_registers() else [(6, 2), (4, 3), (3, 4), (8, 1)]
        fitting = [(min(r, run), v) for r, v in shapes if v == 1 or v <= wide]
        # Cycles a pixel at two multiplications or loads a cycle, the address being one load more.
        costs = [-(-run // r) * -(-wide // v) * max(r * v, r + v + 1) for r, v in fitting]
        rows, vectors = cheapest(fitting, costs)
        return WeightGradKernel(self.compute, gradient, self.rank, rows, vectors, self.lanes)

    def sums(self, p: _Product, source: Image, dy: Image) -> tuple[int, Temp]:
        """Launch the kernel; returns how many partial sums it makes, and where."""
        s, item, kernel = self.spec, self.compute.itemsize, p.kernel
        pixels, every = s.n * prod(s.out), p.groups * p.blocks
        # A chunk's input of one tap and a block of its dy should stay in the first-level cache (copied input: in the second), all
        # of its dy in the second.
        l2, tap_count = getattr(self.target, "l2", 1 << 19), prod(a.taps for a in p.axes)
        room = l2 // 4 if kernel.copying else 16 << 10
        tiles = max(8, min(32, room // (PIXELS * p.run * item), (8 << 10) // (PIXELS * kernel.channels * item)))
        part_blocks = min(every, max(1, l2 // 4 // (tiles * PIXELS * kernel.channels * item)))
        spans, span = self.spans(pixels, -(-every // part_blocks), p.elements)
        partial = self.temp(spans * p.elements)
        if spans == 0:
            return spans, partial
        part_blocks, tap_span = self.parts(p, part_blocks, -(-WEIGHT_BLOCKS // spans), l2)
        parts, tap_parts = -(-every // part_blocks), -(-tap_count // tap_span)
        tiles = max(1, min(tiles, -(-span // PIXELS)))
        zeros = max(p.run, source.channels)
        args: list[Arg] = [source.at, dy.at, partial, zeros, tap_parts, tap_span, parts, part_blocks, p.groups, p.blocks]
        args += [
            span,
            tiles,
            p.run,
            p.row_tiles,
            p.outs,
            p.reduced,
            p.elements * item,
            p.elements // p.groups * item,
            kernel.pitch(p.run),
        ]
        args += PixelTable.arguments(s.n, list(p.axes), source.bytes, dy.bytes, [0] * self.rank, len(kernel.params()))
        args += PixelTable.tail(list(p.axes))
        total = tap_parts * parts * spans
        grain = 1 + total * (1 << 19) // max(1, 2 * s.macs)
        self.launch(kernel, args, total, kernel.scratch(tiles, part_blocks, zeros, p.run), 2 * s.macs, grain)
        return spans, partial

    def parts(self, p: _Product, most: int, enough: int, l2: int) -> tuple[int, int]:
        """Blocks of output channels (up to ``most``) and taps of one parallel block: enough of these, and as little repeated work
        as the cache allows.

        Parts of the taps pack the same dy again, parts of the output channels list and copy the same input. Every chunk of
        pixels passes over all sums of a parallel block, which should stay in the second-level cache beside dy and the input.
        """
        every, taps = p.groups * p.blocks, prod(a.taps for a in p.axes)
        sums = p.elements * self.compute.itemsize / (every * taps)  # bytes of one block and tap
        found = []
        part_blocks = most
        while True:
            part_blocks = -(-every // -(-every // part_blocks))  # balanced
            parts = -(-every // part_blocks)
            for tap_span in sorted({-(-taps // n) for n in range(1, taps + 1)}):
                tap_parts = -(-taps // tap_span)
                lacking = max(0, enough - parts * tap_parts)
                beyond = max(0.0, part_blocks * tap_span * sums - 0.55 * l2)
                # Vectors read and written for each pixel: coordinates, dy, and the input.
                vectors = 8 * parts * tap_parts + tap_parts * every * p.kernel.vectors
                vectors += parts * taps * (2 + (p.run // p.kernel.lanes if p.kernel.copying else 0))
                found.append((lacking, beyond, vectors, part_blocks, tap_span))
            if part_blocks == 1:
                break
            part_blocks = -(-part_blocks // 2)
        return min(found)[3:]

    def spans(self, pixels: int, parts: int, elements: int) -> tuple[int, int]:
        """How many spans the pixels are cut into, and pixels of one.

        Spans share nothing but cost partial sums, so wide layers get few of them.
        """
        if pixels == 0:
            return 0, 0
        most = max(1, min(pixels // 512, (4 << 20) // max(1, elements * self.compute.itemsize)))
        count = max(1, min(-(-WEIGHT_BLOCKS // parts), most))
        span = -(-pixels // (count * PIXELS)) * PIXELS
        return -(-pixels // span), span

    def add_up(self, p: _Product, partial: Temp, spans: int) -> None:
        """Launch the addition of the partial sums."""
        s, kernel = self.spec, p.kernel
        so, sc, *taps = s.w_strides
        add = SumWeights(self.compute, s.dtype, self.rank, kernel.rows, kernel.vectors, kernel.lanes)
        span = min(p.reduced, 16)
        parts = -(-p.reduced // span)
        args: list[Arg] = [partial, Operand("w"), p.blocks, p.outs, p.reduced, parts, span, p.row_tiles, p.run, spans, p.elements]
        args += [p.outs * so, so, sc]
        for axis, stride in zip(p.axes, taps, strict=True):
            args += [axis.taps, stride]
        args += [p.run // p.reduced, taps[-1]]
        self.launch(add, args, p.groups * p.blocks * parts)


class _DepthwiseWeights(_Weights):
    """The gradient of the weights of a depthwise convolution."""

    def plan(self) -> Plan:
        s = self.spec
        x = self.source("x", s.c, s.size, s.x_strides, any_dtype=True)
        dy = self.source("y", s.o, s.out, s.y_strides, any_dtype=True)
        axes = self.forward_axes()
        vectors = 2 if s.c >= 2 * self.lanes and s.kernel[1] <= 5 else 1
        kernel = DepthwiseGradKernel(x.dtype, dy.dtype, self.compute, vectors, self.lanes, s.kernel[1])
        p = _Product(kernel, 1, s.c, 1, 1, tuple(axes))
        rows = s.n * s.out[0]
        # Each span begins with zeros and ends in the sum of all spans: worth a few rows of pixels.
        spans = max(1, min(2 * WEIGHT_BLOCKS, rows // 4, rows * s.out[1] // 64))
        span = -(-rows // spans)
        spans = -(-rows // span)
        partial = self.temp(spans * p.elements)
        args: list[Arg] = [x.at, dy.at, partial, s.c, p.blocks, rows, span, p.elements, *x.bytes, *dy.bytes, s.kernel[0]]
        table = len(kernel.params())
        for a in axes:
            args += [a.out, a.src, a.step, a.ostep, table]
            table += PHASE
        for a in axes:
            args += DepthwiseKernel.phases(a)
        self.launch(kernel, args, spans, 0, 2 * s.macs, 1 + spans * (1 << 18) // max(1, 2 * s.macs))
        self.add_up(p, partial, spans)
        return Plan(self.launches, self.temps)
