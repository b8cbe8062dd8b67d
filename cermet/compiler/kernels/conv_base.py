"""What all convolution kernels' plans share: the record of a convolution, images in memory, copies into the order that is read."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

from cermet.compiler.kernels.conv_layout import PackWeights, Relayout
from cermet.compiler.kernels.conv_table import Axis, backward_axis, forward_axis, run_axis
from cermet.compiler.kernels.plan import Arg, KernelLaunch, Operand, Temp
from cermet.dtypes import DType

__all__ = ["ConvSpec", "Image", "Maker", "cheapest", "channels_first", "channels_last"]


@dataclass(frozen=True)
class ConvSpec:
    """One convolution. Strides of operands are in elements; ``size``, ``kernel`` … have one entry a spatial dimension (1 to 3).

    Attributes:
        dtype: of all operands: a floating dtype. 16-bit floats are summed in float32 and rounded once.
        n, c, o: batch, input channels, output channels (all groups together).
        size, kernel, out: spatial extents of x, w and y. The padding behind the last element follows from ``out``.
        stride, padding, dilation: ``padding`` is the one before the first element.
        groups: divides c and o.
        x_strides: (n, c, *spatial); w_strides: (o, c within the group, *kernel); y_strides: (n, o, *spatial).
    """

    dtype: DType
    n: int
    c: int
    o: int
    size: tuple[int, ...]
    kernel: tuple[int, ...]
    out: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    x_strides: tuple[int, ...]
    w_strides: tuple[int, ...]
    y_strides: tuple[int, ...]

    def __post_init__(self) -> None:
        rank = len(self.size)
        for name in ("kernel", "out", "stride", "padding", "dilation"):
            if len(getattr(self, name)) != rank:
                raise ValueError(f"ConvSpec: {name} {getattr(self, name)} must have {rank} entries, as size {self.size} has")
        if self.dtype.kind != "f" or not 1 <= rank <= 3:
            raise ValueError(f"ConvSpec: expected a floating dtype and 1 to 3 spatial dimensions, not {self.dtype!r} and {rank}")
        if self.groups < 1 or self.c % self.groups or self.o % self.groups:
            raise ValueError(f"ConvSpec: {self.groups} groups do not divide {self.c} input and {self.o} output channels")
        if min(self.stride + self.dilation, default=1) < 1:
            raise ValueError(f"ConvSpec: stride {self.stride} and dilation {self.dilation} must be positive")

    @property
    def macs(self) -> int:
        """Multiplications of any direction, the padding's included."""
        return self.n * self.o * prod(self.out) * (self.c // self.groups) * prod(self.kernel)


def channels_last(n: int, c: int, size: tuple[int, ...]) -> tuple[int, ...]:
    """Strides (n, c, *spatial) of a dense tensor whose channels lie together."""
    steps = [c]
    for extent in reversed(size):
        steps.append(steps[-1] * extent)
    return (steps[-1], 1, *reversed(steps[:-1]))


def channels_first(n: int, c: int, size: tuple[int, ...]) -> tuple[int, ...]:
    """Strides of a dense tensor in the order (n, c, *spatial)."""
    steps = [1]
    for extent in reversed((c, *size)):
        steps.append(steps[-1] * extent)
    return tuple(reversed(steps))[0:]


@dataclass(frozen=True)
class Image:
    """An activation as a kernel sees it: where it is, and its strides (batch, channel, *spatial) in elements of ``dtype``."""

    at: Arg
    dtype: DType
    strides: tuple[int, ...]
    channels: int
    size: tuple[int, ...]

    @property
    def bytes(self) -> list[int]:
        """Byte strides (batch, *spatial)."""
        s = self.strides
        return [v * self.dtype.itemsize for v in (s[0], *s[2:])]


class Maker:
    """What the directions share: temporaries, copies into the form the kernels read."""

    def __init__(self, direction: str, spec: ConvSpec, target: Any) -> None:
        self.direction, self.spec, self.target = direction, spec, target
        self.compute = spec.dtype.compute
        self.rank = len(spec.size)
        self.lanes = max(1, target.vector_bytes // self.compute.itemsize)
        self.temps: list[int] = []
        self.launches: list[KernelLaunch] = []
        self.cg, self.og = spec.c // spec.groups, spec.o // spec.groups

    def temp(self, elements: int) -> Temp:
        """A temporary of so many elements of the computing dtype."""
        self.temps.append(max(elements, 1) * self.compute.itemsize)
        return Temp(len(self.temps) - 1)

    def launch(self, kernel: Any, args: list[Arg], blocks: int, scratch: int = 0, flops: int = 0, grain: int = 1) -> None:
        if blocks > 0:
            target = self.target
            key = f"{kernel.key}:{getattr(target, 'code_key', '')}"
            self.launches.append(
                KernelLaunch(
                    key, lambda: kernel.build(target), kernel.ENTRY, args, blocks, scratch, max(1, min(grain, blocks)), flops
                )
            )

    def source(self, name: str, channels: int, size: tuple[int, ...], strides: tuple[int, ...], any_dtype: bool = False) -> Image:
        """The operand in place where its channels lie together, else a channels-last copy."""
        image = Image(Operand(name), self.spec.dtype, strides, channels, size)
        contiguous = strides[1] == 1 or channels == 1
        if contiguous and (any_dtype or self.spec.dtype is self.compute):
            return image
        return self.copied(image, 0, size[-1])

    def copied(self, image: Image, left: int, columns: int) -> Image:
        """A channels-last copy in the computing dtype, with ``columns`` columns of which ``left`` come before the first."""
        size = (*image.size[:-1], columns)
        strides = channels_last(self.spec.n, image.channels, size)
        made = Image(self.temp(self.spec.n * image.channels * prod(size)), self.compute, strides, image.channels, size)
        self.relayout(image, made, left, columns, image.size[-1])
        return made

    def relayout(self, src: Image, dst: Image, left: int, columns: int, width: int) -> None:
        outer = [
            (self.spec.n, src.strides[0], dst.strides[0]),
            *zip(src.size[:-1], src.strides[2:-1], dst.strides[2:-1], strict=True),
        ]
        (from_x, to_x), (from_c, to_c) = (src.strides[-1], dst.strides[-1]), (src.strides[1], dst.strides[1])
        if (
            left == 0 and columns == width < 32 and outer[-1][1:] == (width * from_x, width * to_x)
        ):  # short rows, one behind the other
            columns = width = columns * outer[-1][0]
            outer[-1] = (1, 0, 0)
        how = Relayout.choice(src.channels, self.lanes, (from_x, to_x), (from_c, to_c))
        kernel = Relayout(src.dtype, dst.dtype, self.rank, self.lanes, *how)
        args: list[Arg] = [src.at, dst.at, columns, left, width, src.channels, from_x, to_x, from_c, to_c]
        for row in outer:
            args += row
        blocks = prod(extent for extent, _, _ in outer)
        self.launch(kernel, args, blocks if columns * src.channels else 0, grain=1 + (1 << 14) // max(1, columns * src.channels))

    def run_source(self) -> tuple[Image, list[Axis]] | None:
        """A form of x in which a row of the window is one run of kw*C elements and no tap misses; None where that does not pay.

        Short channels make for short inner loops, so runs pay there even if x must be copied to get its borders.
        """
        s = self.spec
        kw, step, left = s.kernel[-1], s.stride[-1], s.padding[-1]
        if s.groups != 1 or s.dilation[-1] != 1 or kw == 1:
            return None
        columns = (s.out[-1] - 1) * step + kw
        bare = s.dtype is self.compute and (s.c == 1 or s.x_strides[1] == 1)
        dense = bare and s.x_strides[-1] == s.c and left == 0 and columns <= s.size[-1]
        if not dense and s.c > (8 if bare else 32):
            return None
        image = Image(Operand("x"), s.dtype, s.x_strides, s.c, s.size)
        if not dense:
            image = self.copied(image, left, columns)
        axes = [forward_axis(*a) for a in zip(s.out[:-1], s.size, s.kernel, s.stride, s.padding, s.dilation, strict=False)]
        return image, [*axes, run_axis(s.out[-1], step)]

    def forward_axes(self) -> list[Axis]:
        s = self.spec
        return [forward_axis(*a) for a in zip(s.out, s.size, s.kernel, s.stride, s.padding, s.dilation, strict=True)]

    def backward_axes(self) -> list[Axis]:
        s = self.spec
        return [backward_axis(*a) for a in zip(s.size, s.out, s.kernel, s.stride, s.padding, s.dilation, strict=True)]

    def many_registers(self) -> bool:
        """Whether there are twice as many vector registers as AVX2 has."""
        return bool(getattr(self.target, "vector_registers", 16) >= 32)

    def mixing(self) -> int:
        """Channels of a group where they are few and as many go in as out (1: depthwise), else 0; see `TapKernel`."""
        fits = self.cg == self.og and self.cg in (1, 2, 4) and self.spec.groups > 1 and self.lanes % self.cg == 0
        return self.cg if fits and self.spec.c >= self.lanes else 0

    def pack(self, tile: Any, groups: int, outs: int, reduced: int, blocks: int, zeros: int) -> tuple[Temp, Temp]:
        """Pack the weights; returns the addresses of the packed weights and of ``zeros`` zeros."""
        s = self.spec
        so, sc, *taps = s.w_strides
        kernel = PackWeights(s.dtype, self.compute, self.rank, tile.vectors, tile.lanes, self.mixing())
        elements = groups * blocks * prod(s.kernel) * reduced * tile.channels
        packed = self.temp(elements + zeros)
        n, k = (so, sc) if self.direction == "forward" else (sc, so)
        args: list[Arg] = [Operand("w"), packed, groups, blocks, outs, reduced, zeros, self.og * so, n, k]
        for extent, stride in zip(s.kernel, taps, strict=True):
            args += [extent, stride]
        self.launch(kernel, args, groups * blocks + 1)
        return packed, Temp(packed.index, elements * self.compute.itemsize)


def cheapest(shapes: list[tuple[int, int]], costs: list[float]) -> tuple[int, int]:
    """The first register tile, or another that saves at least a tenth: few kinds of tile mean few kernels to compile."""
    best = min(range(len(shapes)), key=costs.__getitem__)
    return shapes[best] if costs[best] <= 0.9 * costs[0] else shapes[0]
