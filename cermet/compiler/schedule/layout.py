"""Memory order of values inside a program. Outputs are row-major; images between convolutions are channels-last, which
convolutions read and write fastest and elementwise kernels don't mind. Decided before fusion, which needs to know what runs along memory."""

from __future__ import annotations

from collections.abc import Sequence

from cermet.graph.node import Node

__all__ = ["channels_last", "fast_dim", "find_images"]


def find_images(order: Sequence[Node], outputs: Sequence[Node]) -> set[Node]:
    """Nodes (n, c, h, w), and those with h and w divided further, that are channels-last if they are stored."""
    images: set[Node] = set()
    for n in order:
        if n.call.op.kind == "reduce" and n.meta.ndim >= 4 and n.buffer is None and _pools(n, images):
            images.add(n)
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
    """The value that x shows, borders and windows of it included, if its images and channels are those of ``n``."""
    lead = n.meta.shape[:2]
    while x.meta.shape[:2] == lead and x.call.op.kind == "movement" and x.buffer is None:
        if x.call.op.name == "permute" and tuple(x.call.attr("dims")[:2]) != (0, 1):
            return None
        x = x.inputs[0]
    return x if x.meta.ndim >= 4 and x.meta.shape[:2] == lead else None


def _pools(n: Node, images: set[Node]) -> bool:
    """Whether a reduction takes together what lies in windows of an image."""
    if min(n.call.attr("dims"), default=0) < 2:
        return False
    stack, seen = [n.inputs[0]], set()
    while stack:
        x = _behind(stack.pop(), n)
        if x is None or x in seen:
            continue
        if x in images:
            return True
        seen.add(x)
        if x.call.op.kind == "elementwise" and x.buffer is None and len(seen) < 32:
            stack.extend(x.inputs)
    return False


def _image_operands(conv: Node) -> Sequence[Node]:
    return conv.inputs if conv.call.attr("direction") == "weight_grad" else conv.inputs[:1]


def channels_last(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Element strides of (n, c, *spatial) with channels innermost."""
    steps = [shape[1]]
    for extent in reversed(shape[2:]):
        steps.append(steps[-1] * extent)
    return (steps[-1], 1, *reversed(steps[:-1]))


def fast_dim(x: Node, images: set[Node]) -> int:
    """The dim of ``x`` along which its memory runs (the last one of more than one element, as a rule)."""
    shape = x.meta.shape
    if x in images and shape[1] != 1:
        return 1
    for k in range(len(shape) - 1, -1, -1):
        if shape[k] != 1:
            return k
    return len(shape) - 1
