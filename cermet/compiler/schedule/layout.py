"""Memory order of values inside a program. Outputs are row-major; images between convolutions are channels-last, which
convolutions read and write fastest and elementwise kernels don't mind. Decided before fusion, which needs to know what runs along memory."""

from __future__ import annotations

from collections.abc import Sequence

from cermet.graph.node import Node

__all__ = ["channels_last", "fast_dim", "find_images"]


def find_images(order: Sequence[Node], outputs: Sequence[Node]) -> set[Node]:
    """Four-dimensional nodes that are channels-last if they are stored."""
    images: set[Node] = set()
    for n in order:
        if n.meta.ndim != 4 or n.buffer is not None or n.call.op.kind in ("leaf", "movement"):
            continue
        if n.call.op.kind == "convolution":
            if n.call.attr("direction") != "weight_grad":
                images.add(n)
        elif n.call.op.kind == "elementwise" and any(_behind(x, n) in images for x in n.inputs):
            images.add(n)
    for n in order:
        if n.call.op.kind == "convolution":
            images.update(x for x in _image_operands(n) if x.buffer is None and x.call.op.kind == "elementwise")
    for n in reversed(order):
        # What is combined with an image element by element had better lie as the image does.
        if n in images and n.call.op.kind == "elementwise":
            images.update(x for x in n.inputs if x.meta is n.meta and x.buffer is None and x.call.op.kind == "elementwise")
    return images.difference(outputs)


def _behind(x: Node, n: Node) -> Node | None:
    """The value of n's shape that x is, through reshapes that change nothing."""
    return x if x.meta.shape == n.meta.shape else None


def _image_operands(conv: Node) -> Sequence[Node]:
    return conv.inputs if conv.call.attr("direction") == "weight_grad" else conv.inputs[:1]


def channels_last(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Element strides of (n, c, h, w) with channels innermost."""
    _, c, h, w = shape
    return (h * w * c, 1, w * c, c)


def fast_dim(x: Node, images: set[Node]) -> int:
    """The dim of ``x`` along which its memory runs (the last one of more than one element, as a rule)."""
    shape = x.meta.shape
    if x in images and shape[1] != 1:
        return 1
    for k in range(len(shape) - 1, -1, -1):
        if shape[k] != 1:
            return k
    return len(shape) - 1
