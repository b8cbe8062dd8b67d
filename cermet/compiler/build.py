"""The compiler's front door: from output nodes to launches with bound arguments and a memory plan.

Joins passes, fusion, lowering and kernel families; hands back machine-independent bookkeeping and requests for machine code. Must not know
tapes, tensors or how a program is run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cermet import config
from cermet.compiler.llvm.target import Target
from cermet.compiler.passes.rewrite import live_order, rewrite
from cermet.compiler.schedule.fuse import Fusion, fuse, is_leaf, source_of
from cermet.compiler.schedule.hand import Call, hand_calls, loop_calls
from cermet.compiler.schedule.lower import lower_group
from cermet.compiler.schedule.memory import plan_arena
from cermet.compiler.schedule.tree import row_major
from cermet.graph.node import Node

__all__ = ["Schedule", "build_schedule"]


class Schedule:
    """What to run.

    Attributes:
        calls: launches in order.
        outputs: per requested output, the node that holds it (a leaf, or a node written by the calls; the same one may serve twice).
        offsets: arena offsets of intermediate nodes and temporaries.
        arena_bytes: size of the arena.
        fusion: groups and stored nodes, for debugging and tests.
    """

    def __init__(self, calls: list[Call], outputs: list[Node], offsets: dict[Any, int], arena_bytes: int, fusion: Fusion) -> None:
        self.calls = calls
        self.outputs = outputs
        self.offsets = offsets
        self.arena_bytes = arena_bytes
        self.fusion = fusion


def build_schedule(outputs: Sequence[Node], target: Target) -> Schedule:
    """Compile the graph behind ``outputs`` down to launches."""
    final = [_shared_memory(n) for n in rewrite(outputs)]
    roots = list(dict.fromkeys(n for n in final if not (n.buffer is not None)))
    order = live_order(roots)
    fusion = fuse(order, roots)
    layout = _layouts(fusion, roots)

    def strides_of(n: Node) -> tuple[int, ...] | None:
        if n in layout:
            return layout[n]
        if n.buffer is not None and n.call.op.name == "data":
            return row_major(n.meta.shape)
        return None

    calls: list[Call] = []
    for g in fusion.groups:
        evaluated = fusion.evaluated[g]
        if g.kind == "loop":
            loops = lower_group(g, evaluated, fusion.stored, strides_of)
            if config.verify:
                _verify(loops)
            calls.extend(loop_calls(loops, [n for n in g.nodes if n in evaluated], target))
        else:
            calls.extend(hand_calls(g.nodes[0], strides_of, target))  # type: ignore[arg-type]
    offsets, size = _place(calls, set(roots))
    return Schedule(calls, final, offsets, size, fusion)


def _verify(loops: list[Any]) -> None:
    from cermet.compiler.loops.verify import verify

    for call in loops:
        verify(call.kernel)


def _shared_memory(n: Node) -> Node:
    """An output that is another value under a new shape needs no memory of its own: both are row-major."""
    base = n
    while base.call.op.name == "reshape" and base.buffer is None:
        base = base.inputs[0]
    return base if base.buffer is None and base.call.op.kind not in ("movement", "leaf") else n


def _layouts(fusion: Fusion, roots: Sequence[Node]) -> dict[Node, tuple[int, ...]]:
    """Strides of everything that is stored. Outputs are row-major; the images inside a program are channels-last, which convolutions
    read and write fastest and elementwise kernels don't mind."""
    out: dict[Node, tuple[int, ...]] = {}
    wanted = set(roots)
    images: set[Node] = set()
    for g in fusion.groups:
        for n in g.nodes:
            if n.call.op.kind == "convolution":
                if n.call.attr("direction") != "weight_grad":
                    images.add(n)
                images.update(_images_read(n))
    for g in fusion.groups:
        for n in g.nodes:
            if n not in fusion.stored or n not in fusion.evaluated[g]:
                continue
            last = n in images or (g.kind == "loop" and any(_reads_image(x, n, images) for m in g.nodes for x in m.inputs))
            if n not in wanted and last and n.meta.ndim == 4:
                images.add(n)
                out[n] = _channels_last(n.meta.shape)
            else:
                out[n] = row_major(n.meta.shape)
    return out


def _images_read(conv: Node) -> list[Node]:
    """The operands of a convolution that are images (not weights)."""
    direction = conv.call.attr("direction")
    operands = conv.inputs if direction == "weight_grad" else conv.inputs[:1]
    return [x for x in operands if not is_leaf(x) and x.call.op.kind != "movement"]


def _reads_image(x: Node, n: Node, images: set[Node]) -> bool:
    return source_of(x) in images and x.meta.shape == n.meta.shape


def _channels_last(shape: tuple[int, ...]) -> tuple[int, ...]:
    _, c, h, w = shape
    return (h * w * c, 1, w * c, c)


def _place(calls: list[Call], outputs: set[Node]) -> tuple[dict[Any, int], int]:
    """Lifetimes of intermediates and temporaries, and their places."""
    first: dict[Any, int] = {}
    last: dict[Any, int] = {}
    nbytes: dict[Any, int] = {}
    for k, call in enumerate(calls):
        for arg in call.args:
            value = arg[1]
            if arg[0] == "temp":
                nbytes[value] = value.nbytes
            elif arg[0] == "node" and value not in outputs and value.buffer is None:
                nbytes[value] = value.meta.nbytes
            else:
                continue
            first.setdefault(value, k)
            last[value] = k
    births: list[list[tuple[Any, int]]] = [[] for _ in calls]
    deaths: list[list[Any]] = [[] for _ in calls]
    for value, k in first.items():
        births[k].append((value, nbytes[value]))
        deaths[last[value]].append(value)
    return plan_arena(births, deaths)


