"""When Winograd's convolution is worth it, and its launches (see `conv_winograd`)."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

from cermet import config
from cermet.compiler.kernels.conv_base import ConvSpec, Image, Maker, channels_last
from cermet.compiler.kernels.conv_winograd import WinogradKernel, WinogradWeights
from cermet.compiler.kernels.conv_winograd_grad import WinogradGradKernel, WinogradGradSum
from cermet.compiler.kernels.finish import Epilogue, Output
from cermet.compiler.kernels.irtools import rounded_up
from cermet.compiler.kernels.plan import Arg, Operand, Plan, Temp

__all__ = ["Winograd", "WinogradGrad", "winograd_gradient", "winograd_outputs"]

LEAST_CHANNELS = 16


@dataclass(frozen=True)
class _Blocking:
    """Image tiles of a group, output channels of a chunk, and how many there are."""

    group: int
    chunk: int
    groups: int
    chunks: int


def winograd_outputs(direction: str, s: ConvSpec, target: Any) -> int:
    """The m of the fastest variant by the cost model, or 0 where the direct kernels are to be used."""
    if not config.winograd or direction not in ("forward", "input_grad") or not _fits(s):
        return 0
    large, small = (_cost(direction, s, target, m) for m in (4, 2))
    best, cost = (4, large) if large < small else (2, small)
    return best if cost * 19 < _direct_cost(direction, s, target) * 20 else 0


def _fits(s: ConvSpec) -> bool:
    return (
        s.kernel == (3, 3)
        and s.stride == s.dilation == (1, 1)
        and s.groups == 1
        and s.dtype.compute.itemsize == 4
        and min(s.c, s.o) >= LEAST_CHANNELS
        and s.n * prod(s.size) * prod(s.out) > 0
    )


def _sizes(direction: str, s: ConvSpec) -> tuple[int, int, tuple[int, ...]]:
    """Channels summed, channels made, extents of the result."""
    return (s.c, s.o, s.out) if direction == "forward" else (s.o, s.c, s.size)


def _tile(target: Any) -> tuple[int, int]:
    """Rows and vectors of the register tile."""
    return (9, 3) if getattr(target, "vector_registers", 16) >= 32 else (6, 2)


def _blocking(target: Any, m: int, reduced: int, outs: int, tiles: int) -> _Blocking:
    rows, vectors = _tile(target)
    width = vectors * max(1, target.vector_bytes // 4)
    points = (m + 2) ** 2
    # The sums and inputs of a group pass through the second-level cache point by point; few groups read the weights often.
    near = GROUP_BYTES // (points * 4 * (reduced + min(outs, 256)))
    least = (2 if points * reduced * outs * 4 < target.l2 * 8 else 4) * rows
    group = max(least, min(near, 96) // rows * rows)
    groups = -(-tiles // group)
    group = rounded_up(-(-tiles // groups), rows)
    groups = -(-tiles // group)
    panels = -(-outs // width)
    chunks = -(-panels // max(1, 256 // width))
    if groups * chunks < 8:  # something to share out
        group = max(2 * rows, rounded_up(-(-tiles // 8), rows))
        groups = -(-tiles // group)
    while groups * chunks < 8 and panels // (2 * chunks) >= 4:
        chunks *= 2
    chunk = -(-panels // chunks) * width
    return _Blocking(group, chunk, groups, -(-outs // chunk))


GROUP_BYTES = 640 << 10


def _cost(direction: str, s: ConvSpec, target: Any, m: int) -> int:
    """Cycles of one core, roughly: products, transforms, and weights that come from far. In integers, as plans for all batch sizes are
    made with letters."""
    reduced, outs, extents = _sizes(direction, s)
    lanes = max(1, target.vector_bytes // 4)
    points, tiles = (m + 2) ** 2, s.n * prod(-(-e // m) for e in extents)
    rows, vectors = _tile(target)
    b = _blocking(target, m, reduced, outs, tiles)
    # Vectors of channels.
    ins, made = -(-reduced // lanes), -(-outs // (lanes * vectors)) * vectors
    products = points * b.groups * rounded_up(min(b.group, tiles), rows) * reduced * made * 5 // 9
    gather = tiles * ins * (60 if m == 2 else 230)
    scatter = tiles * made * (50 if m == 2 else 200)
    weights = made * reduced * (80 if m == 2 else 180)
    nbytes = points * reduced * outs * 4
    if nbytes < target.l3 // 4:
        far = nbytes // 8 + b.groups * nbytes // 32
    else:  # written to memory and read from there
        far = nbytes * 2 // 3 + b.groups * nbytes // 10
    return products + gather * max(1, b.chunks // 2) + scatter + weights + far


def _direct_cost(direction: str, s: ConvSpec, target: Any) -> int:
    """Cycles of one core for the direct kernels."""
    reduced, outs, extents = _sizes(direction, s)
    lanes = max(1, target.vector_bytes // 4)
    source = s.size if direction == "forward" else s.out
    reached = s.n
    for extent, size, padding in zip(extents, source, s.padding, strict=True):
        shift = padding if direction == "forward" else 2 - padding
        reached = reached * sum(max(0, min(extent, size + shift - t) - max(0, shift - t)) for t in range(3))
    made = -(-outs // (2 * lanes)) * 2
    return reached * reduced * made * 5 // 9 + reduced * outs * 9 // 2


class Winograd(Maker):
    """Forward and input gradient through Winograd's algorithm."""

    def plan(self, outputs: int, epilogue: Epilogue | None, epilogue_args: tuple[Arg, ...]) -> Plan:
        """The launches of F(outputs x outputs, 3 x 3)."""
        s = self.spec
        forward = self.direction == "forward"
        if forward:
            source, result = self.source("x", s.c, s.size, s.x_strides), ("y", s.o, s.out, s.y_strides)
            pads = s.padding
        else:
            source, result = self.source("y", s.o, s.out, s.y_strides), ("x", s.c, s.size, s.x_strides)
            pads = tuple(2 - p for p in s.padding)
        reduced, outs = source.channels, result[1]
        dst = Image(Operand(result[0]), s.dtype, result[3], outs, result[2])
        direct = dst.strides[1] == 1 or epilogue is not None
        into = dst
        if not direct:
            strides = channels_last(s.n, outs, dst.size)
            into = Image(self.temp(s.n * outs * prod(dst.size)), self.compute, strides, outs, dst.size)
        rows, vectors = _tile(self.target)
        tile_rows, tile_columns = (-(-e // outputs) for e in dst.size)
        tiles = s.n * tile_rows * tile_columns
        b = _blocking(self.target, outputs, reduced, outs, tiles)
        out = Output(self.compute, into.dtype, True, epilogue=epilogue)
        kernel = WinogradKernel(self.compute, outputs, rows, vectors, self.lanes, out)
        packed, zeros, u_point = self.weights(kernel, reduced, outs, forward)
        points, item = (outputs + 2) ** 2, self.compute.itemsize
        # A tile's points lie together, a cache line apart from a power of two.
        v_point, m_point = rounded_up(reduced, 16) + 16, b.chunk + 16
        v_row, m_row = points * v_point + 16, points * m_point + 16
        m_at = b.group * v_row * item
        strip_at = m_at + b.group * m_row * item
        scratch = strip_at + (outputs**2 * m_point * item if epilogue else 0)
        (src_n, *src), (dst_n, *to) = source.bytes, into.bytes
        args: list[Arg] = [
            source.at, packed, zeros, 0 if epilogue else into.at, tiles, b.group, tile_rows, tile_columns, reduced, outs, b.chunk,
            b.chunks, u_point, v_row, v_point, m_row, m_point, m_at, strip_at, *source.size, *pads, src_n, *src, *dst.size, dst_n,
            *to,
        ]  # fmt: skip
        if epilogue is not None:
            args += [prod(dst.size), *epilogue_args]
        total = b.groups * b.chunks
        self.launch(kernel, args, total, scratch, 2 * s.macs, 1 + total * (1 << 19) // max(1, 2 * s.macs))
        if not direct:
            self.relayout(into, dst, 0, dst.size[-1], dst.size[-1])
        return Plan(self.launches, self.temps)

    def weights(self, kernel: WinogradKernel, reduced: int, outs: int, forward: bool) -> tuple[Temp, Temp, int]:
        """Transform the weights; their address, that of enough zeros for a pixel, and elements between points."""
        s, points = self.spec, (kernel.outputs + 2) ** 2
        panels = -(-outs // kernel.columns)
        u_point = panels * reduced * kernel.columns + 16
        so, sc, sh, sw = s.w_strides
        dense = (sh, sw) == (3, 1)
        packed = self.temp(points * u_point + reduced)
        make = WinogradWeights(s.dtype, self.compute, kernel.outputs, kernel.vectors, kernel.lanes, dense, not forward)
        span = 16
        parts = -(-reduced // span)
        n, k = (so, sc) if forward else (sc, so)
        args: list[Arg] = [
            Operand("w"), packed, outs, reduced, panels, parts, span, reduced, points * u_point, u_point, n, k, sh, sw
        ]  # fmt: skip
        self.launch(make, args, panels * parts + 1)
        return packed, Temp(packed.index, points * u_point * self.compute.itemsize), u_point


GRAD_TILES = 30
"""Image tiles whose transforms stay in scratch at a time."""
GRAD_CHANNELS = 128, 64
"""Input and output channels of one parallel block, at most."""


def winograd_gradient(s: ConvSpec, target: Any) -> bool:
    """Whether the gradient of the weights is faster so, by the cost model."""
    rows, vectors = _tile(target)
    lanes = max(1, target.vector_bytes // 4)
    if not config.winograd or not _fits(s) or s.c < max(rows, lanes) or s.o < vectors * lanes:
        return False
    tiles, points = s.n * prod(-(-e // 4) for e in s.out), 36
    made = -(-s.o // (lanes * vectors)) * vectors
    products = points * tiles * rounded_up(s.c, rows) * made * 5 // 8
    gather = tiles * (-(-s.c // lanes) * -(-s.o // GRAD_CHANNELS[1]) * 230 + made * -(-s.c // GRAD_CHANNELS[0]) * 200)
    nbytes = points * s.c * s.o * 4
    sums = nbytes * (tiles // GRAD_TILES + 1) // 12 + nbytes // 2 * (1 if nbytes < target.l3 // 4 else 2)
    return products + gather + sums < _direct_cost("forward", s, target)


class WinogradGrad(Maker):
    """The gradient of the weights through Winograd's algorithm."""

    def plan(self) -> Plan:
        """The launches of F(4x4, 3x3), differentiated."""
        s, m = self.spec, 4
        x, y = self.source("x", s.c, s.size, s.x_strides), self.source("y", s.o, s.out, s.y_strides)
        rows, vectors = _tile(self.target)
        kernel = WinogradGradKernel(self.compute, m, rows, vectors, self.lanes)
        points, item = (m + 2) ** 2, self.compute.itemsize
        tile_rows, tile_columns = (-(-e // m) for e in s.out)
        tiles = s.n * tile_rows * tile_columns
        row_tiles, column_tiles = -(-s.c // rows), -(-s.o // kernel.columns)
        row_chunks, column_chunks = -(-s.c // GRAD_CHANNELS[0]), -(-s.o // GRAD_CHANNELS[1])
        row_chunk, column_chunk = -(-row_tiles // row_chunks), -(-column_tiles // column_chunks)
        row_chunks, column_chunks = -(-row_tiles // row_chunk), -(-column_tiles // column_chunk)
        elements = points * row_tiles * column_tiles * rows * kernel.columns
        spans = max(1, min(-(-16 // (row_chunks * column_chunks)), tiles // (2 * GRAD_TILES)))
        span = -(-tiles // spans)
        spans = -(-tiles // span)
        group = -(-span // -(-span // GRAD_TILES))
        # Behind a chunk's channels there is room for what its last vector or tile overlaps.
        v_point, z_point = rounded_up(row_chunk * rows + 16, 16) + 16, rounded_up(column_chunk * kernel.columns, 16) + 16
        v_row, z_row = points * v_point + 16, points * z_point + 16
        zeros = max(s.c, s.o)
        sums = self.temp(spans * elements)
        args: list[Arg] = [
            x.at, y.at, sums, tiles, span, group, tile_rows, tile_columns, s.c, s.o, row_tiles, column_tiles, row_chunk,
            column_chunk, row_chunks, column_chunks, elements, v_row, v_point, z_row, z_point, group * v_row, group * (v_row + z_row),
            zeros, *s.padding, *s.size, *x.bytes, *s.out, *y.bytes,
        ]  # fmt: skip
        total = spans * row_chunks * column_chunks
        scratch = (group * (v_row + z_row) + zeros) * item
        self.launch(kernel, args, total, scratch, 2 * s.macs, 1 + total * (1 << 19) // max(1, 2 * s.macs))
        so, sc, sh, sw = s.w_strides
        add = WinogradGradSum(self.compute, s.dtype, m, rows, vectors, self.lanes, (sh, sw) == (3, 1))
        self.launch(add, [sums, Operand("w"), s.c, s.o, row_tiles, column_tiles, spans, elements, so, sc, sh, sw], row_tiles)
        return Plan(self.launches, self.temps)
