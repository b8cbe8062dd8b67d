"""1x1 convolutions of stride 1 as what they are: matrix products over pixels, by the kernels of `contraction`.

    forward      y[pixel, o] = sum over c of  x[pixel, c] * w[o, c]
    input_grad   x[pixel, c] = sum over o of  y[pixel, o] * w[o, c]
    weight_grad  w[o, c]     = sum over pixels of  y[pixel, o] * x[pixel, c]

Any strides will do, as long as the pixels of an image (for the weights' gradient: of all images) are one stride apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import Any

from cermet.compiler.kernels import contraction
from cermet.compiler.kernels.conv_base import ConvSpec
from cermet.compiler.kernels.finish import Epilogue
from cermet.compiler.kernels.plan import Arg, Operand, Plan

__all__ = ["is_pointwise", "plan_pointwise"]

FEW_PIXELS = 2048
"""Pixels up to which the matrix kernels, which pack what they read, are ahead of the tap kernels, which read images in place."""
WIDE = 128
"""Channels from which on that holds for the weights' gradient."""


def is_pointwise(direction: str, s: ConvSpec) -> bool:
    """Whether a convolution in this direction is one matrix product, and better computed as such."""
    ones = all(k == 1 for k in s.kernel) and all(t == 1 for t in s.stride) and not any(s.padding)
    if not ones or s.groups != 1 or s.size != s.out:
        return False
    steps = _pixel_step(s.size, s.x_strides), _pixel_step(s.out, s.y_strides)
    if None in steps:
        return False
    pixels = prod(s.size)
    if direction != "weight_grad":
        last = all(strides[1] == 1 or channels == 1 for channels, strides in ((s.c, s.x_strides), (s.o, s.y_strides)))
        return not last or s.n * pixels <= FEW_PIXELS
    if s.n == 1:
        return True
    return min(s.c, s.o) >= WIDE and s.x_strides[0] == pixels * steps[0] and s.y_strides[0] == pixels * steps[1]


def _pixel_step(size: Sequence[int], strides: Sequence[int]) -> Any:
    """The distance of successive pixels of an image in row-major order, None where there is no such."""
    step = expected = None
    for extent, stride in zip(reversed(size), reversed(strides[2:]), strict=True):
        if extent == 1:
            continue
        if step is None:
            step = expected = stride
        elif stride != expected:
            return None
        expected = expected * extent
    return 1 if step is None else step


def plan_pointwise(direction: str, s: ConvSpec, target: Any, epilogue: Epilogue | None, epilogue_args: tuple[Arg, ...]) -> Plan:
    """The launches, over the operands "x", "w" and "y"."""
    pixels = prod(s.size)
    x = (s.x_strides[0], _pixel_step(s.size, s.x_strides), s.x_strides[1])
    y = (s.y_strides[0], _pixel_step(s.out, s.y_strides), s.y_strides[1])
    o, c = s.w_strides[:2]
    strides: tuple[tuple[int, ...], ...]
    if direction == "forward":
        names = {"a": "x", "b": "w", "out": "y"}
        sizes, strides = (pixels, s.o, s.c), (x, (0, c, o), y)
    elif direction == "input_grad":
        names = {"a": "y", "b": "w", "out": "x"}
        sizes, strides = (pixels, s.c, s.o), (y, (0, o, c), x)
    else:
        names = {"a": "y", "b": "x", "out": "w"}
        sizes, strides = (s.o, s.c, s.n * pixels), ((y[2], y[1]), (x[1], x[2]), (o, c))
    batch = (s.n,) if direction != "weight_grad" else ()
    spec = contraction.ContractionSpec(s.dtype, s.dtype, s.dtype, *sizes, batch, *strides)
    made = contraction.plan(spec, target, epilogue, epilogue_args)
    launches = []
    for launch in made.launches:
        args = [replace(a, name=names.get(a.name, a.name)) if isinstance(a, Operand) else a for a in launch.args]
        launches.append(replace(launch, args=args))
    return Plan(launches, made.temps)
