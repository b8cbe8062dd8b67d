"""When depthwise convolutions are computed plane by plane, and their launches (see `conv_planes`)."""

from __future__ import annotations

from math import prod
from typing import Any

from cermet.compiler.kernels.conv_base import ConvSpec, Maker
from cermet.compiler.kernels.conv_planes import PlaneGradKernel, PlaneGradSum, PlaneKernel
from cermet.compiler.kernels.irtools import rounded_up
from cermet.compiler.kernels.plan import Arg, Operand, Plan

__all__ = ["Planes", "by_planes"]

LARGEST = 128 << 10
"""Bytes of a plane that is to stay in the second-level cache."""
MOST_UNROLLED = 7


def by_planes(direction: str, s: ConvSpec, target: Any) -> bool:
    """Whether a convolution is depthwise, of stride 1, on images whose rows lie along memory and whose planes fit the cache."""
    if not (s.groups == s.c == s.o and len(s.size) == 2 and s.stride == (1, 1) and s.n * prod(s.size) * prod(s.out) > 0):
        return False
    rows = all(t[3] == 1 and t[1] != 1 for t in (s.x_strides, s.y_strides)) and s.c > 1
    nbytes = s.dtype.compute.itemsize * prod(e + d * k for e, d, k in zip(s.size, s.dilation, s.kernel, strict=True))
    return rows and nbytes <= LARGEST and (direction != "weight_grad" or s.kernel[1] <= MOST_UNROLLED)


class Planes(Maker):
    """All directions."""

    def plan(self) -> Plan:
        """The launches."""
        s, item = self.spec, self.compute.itemsize
        reach = [d * (k - 1) for d, k in zip(s.dilation, s.kernel, strict=True)]
        if self.direction == "weight_grad":
            return self.gradient(reach)
        w_c, _, w_h, w_w = s.w_strides
        if self.direction == "forward":
            (name, size, strides), (to, out, into) = ("x", s.size, s.x_strides), ("y", s.out, s.y_strides)
            pads, weights, steps = s.padding, Operand("w"), (w_h, w_w)
        else:
            (name, size, strides), (to, out, into) = ("y", s.out, s.y_strides), ("x", s.size, s.x_strides)
            pads, steps = tuple(r - p for r, p in zip(reach, s.padding, strict=True)), (-w_h, -w_w)
            last = (s.kernel[0] - 1) * w_h + (s.kernel[1] - 1) * w_w
            weights = Operand("w", last * s.dtype.itemsize)
        vectors = 4 if out[1] > 2 * self.lanes else 2 if out[1] > self.lanes else 1
        across = s.kernel[1] if s.kernel[1] <= MOST_UNROLLED else 0
        kernel = PlaneKernel(s.dtype, self.compute, vectors, self.lanes, across)
        high, wide = (e + r for e, r in zip(out, reach, strict=True))
        pitch = rounded_up(rounded_up(out[1], vectors * self.lanes) + reach[1], self.lanes)
        spill = high * pitch
        args: list[Arg] = [
            Operand(name), weights, Operand(to), s.n, s.c, high, wide, *size, pitch, *pads, *strides[:3], *out, *s.kernel,
            *s.dilation, w_c, *steps, *into[:3], spill,
        ]  # fmt: skip
        scratch = (spill + vectors * self.lanes) * item
        self.launch(kernel, args, s.n * s.c, scratch, 2 * s.macs, 1 + s.n * s.c * (1 << 18) // max(1, 2 * s.macs))
        return Plan(self.launches, self.temps)

    def gradient(self, reach: list[int]) -> Plan:
        """The launches of the gradient of the weights."""
        s, item = self.spec, self.compute.itemsize
        kernel = PlaneGradKernel(s.dtype, self.compute, self.lanes, s.kernel[1])
        d_pitch = rounded_up(s.out[1], 2 * self.lanes)
        high, wide = (e + r for e, r in zip(s.out, reach, strict=True))
        pitch = rounded_up(d_pitch + reach[1], self.lanes)
        partial = self.temp(s.n * s.c * prod(s.kernel))
        dy_at = rounded_up(high * pitch, 16)
        args: list[Arg] = [
            Operand("x"), Operand("y"), partial, s.n, s.c, high, wide, *s.size, pitch, *s.padding, *s.x_strides[:3],
            s.n, s.c, *s.out, *s.out, d_pitch, 0, 0, *s.y_strides[:3], s.kernel[0], *s.dilation, dy_at,
        ]  # fmt: skip
        scratch = (dy_at + s.out[0] * d_pitch) * item
        self.launch(kernel, args, s.n * s.c, scratch, 2 * s.macs, 1 + s.n * s.c * (1 << 18) // max(1, 2 * s.macs))
        w_c, _, w_h, w_w = s.w_strides
        self.launch(PlaneGradSum(self.compute, s.dtype), [partial, Operand("w"), s.n, s.c, *s.kernel, w_c, w_h, w_w], s.c)
        return Plan(self.launches, self.temps)
