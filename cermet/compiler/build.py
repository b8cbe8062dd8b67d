"""The compiler's front door: from output nodes to launches with bound arguments and a memory plan.

Joins passes, fusion, lowering and kernel families; hands back machine-independent bookkeeping and requests for machine code. Must not know
tapes, tensors or how a program is run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from cermet import config
from cermet.compiler.llvm.target import Target
from cermet.compiler.passes.rewrite import live_order, rewrite
from cermet.compiler.schedule.attend import attention_calls, result_layouts, results_of
from cermet.compiler.schedule.epilogue import find_epilogues
from cermet.compiler.schedule.fuse import Fusion, Group, fuse
from cermet.compiler.schedule.hand import Call, hand_calls, loop_calls
from cermet.compiler.schedule.joins import homes_of, redirect
from cermet.compiler.schedule.layout import channels_last, find_images
from cermet.compiler.schedule.lower import lower_group
from cermet.compiler.schedule.memo import remembered, signature
from cermet.compiler.schedule.memory import plan_arena
from cermet.compiler.schedule.tree import row_major
from cermet.graph.node import Node
from cermet.graph.sizes import concrete

__all__ = ["Schedule", "build_schedule", "place"]


class Schedule:
    """What to run.

    Attributes:
        calls: launches in order.
        outputs: per requested output, the node that holds it (a leaf, or a node written by the calls; the same one may serve twice).
        offsets: arena offsets of intermediate nodes and temporaries.
        arena_bytes: size of the arena.
        fusion: groups and stored nodes, for debugging and tests.
        donations: (output, data leaf whose memory it may take over if nobody else holds the leaf when the program runs).
    """

    def __init__(
        self,
        calls: list[Call],
        outputs: list[Node],
        offsets: dict[Any, int],
        arena_bytes: int,
        fusion: Fusion,
        donations: list[tuple[Node, Node]],
    ) -> None:
        self.calls = calls
        self.outputs = outputs
        self.offsets = offsets
        self.arena_bytes = arena_bytes
        self.fusion = fusion
        self.donations = donations


def build_schedule(outputs: Sequence[Node], target: Target) -> Schedule:
    """Compile the graph behind ``outputs`` down to launches."""
    final = [_shared_memory(n) for n in rewrite(outputs)]
    roots = list(dict.fromkeys(n for n in final if not (n.buffer is not None)))
    order = live_order(roots)
    images = find_images(order, roots)
    fusion = fuse(order, roots, images)
    layout = _layouts(fusion, images)
    layout.update(result_layouts(order, fusion.stored, set(roots)))
    several = results_of(fusion.stored)
    homes = homes_of(order, fusion.stored)
    layout.update({part: strides for part, (_, _, strides) in homes.items()})

    def strides_of(n: Node) -> tuple[int, ...] | None:
        if n in layout:
            return layout[n]
        if n.buffer is not None and n.call.op.name == "data":
            return row_major(n.meta.shape)
        return None

    epilogues = find_epilogues(fusion, roots, strides_of)
    inside = {f.producer for f in epilogues.values()}
    calls: list[Call] = []
    for g in fusion.groups:
        evaluated = fusion.evaluated[g]
        if g in epilogues:
            fused = epilogues[g]
            calls.extend(hand_calls(fused.producer, strides_of, target, fused))  # type: ignore[arg-type]
        elif g.kind != "loop" and g.nodes[0] in inside:
            continue
        elif g.kind == "loop":
            key, nodes = signature(g, evaluated, fusion.stored, strides_of)
            calls.extend(remembered((target, key), nodes, partial(_loop_group, g, fusion, strides_of, target)))
        elif g.kind == "attention":
            calls.extend(attention_calls(g.nodes[0], several[g.nodes[0]], strides_of, target))  # type: ignore[arg-type]
        elif g.kind not in ("join", "result"):  # written by others' launches
            calls.extend(hand_calls(g.nodes[0], strides_of, target))  # type: ignore[arg-type]
    redirect(calls, homes)
    offsets, size, donations = place(calls, set(roots), set(final), _nbytes)
    return Schedule(calls, final, offsets, size, fusion, donations)


def _loop_group(g: Group, fusion: Fusion, strides_of: Any, target: Target) -> list[Call]:
    """Lower one loop group."""
    evaluated = fusion.evaluated[g]
    loops = lower_group(g, evaluated, fusion.stored, strides_of, target.l3)
    if config.verify:
        from cermet.compiler.loops.verify import verify

        for call in loops:
            verify(call.kernel)
    return loop_calls(loops, [n for n in g.nodes if n in evaluated], target)


def _shared_memory(n: Node) -> Node:
    """An output that is another value under a new shape needs no memory of its own: both are row-major."""
    base = n
    while base.call.op.name == "reshape" and base.buffer is None:
        base = base.inputs[0]
    return base if base.buffer is None and base.call.op.kind not in ("movement", "leaf") else n


def _layouts(fusion: Fusion, images: set[Node]) -> dict[Node, tuple[int, ...]]:
    """Strides of everything that is stored."""
    return {n: channels_last(n.meta.shape) if n in images else row_major(n.meta.shape) for n in fusion.stored}


class _Lifetimes:
    """When each value is first written and last used, and which takes over the memory of which."""

    def __init__(self, calls: Sequence[Any], outputs: set[Any], nbytes: Callable[[str, Any], int]) -> None:
        self._nbytes_of = nbytes
        self.first: dict[Any, int] = {}
        self.last: dict[Any, int] = {}
        self.nbytes: dict[Any, int] = {}
        self.leaf_last: dict[Node, int] = {}
        self.outputs = outputs
        for k, call in enumerate(calls):
            for arg in call.args:
                self._see(arg, k)

    def _see(self, arg: tuple[Any, ...], k: int) -> None:
        value = arg[1]
        if arg[0] == "temp":
            self.nbytes[value] = self._nbytes_of("temp", value)
        elif arg[0] != "node":
            return
        elif value.buffer is not None:
            self.leaf_last[value] = k
            return
        elif value in self.outputs:
            return
        else:
            self.nbytes[value] = self._nbytes_of("node", value)
        self.first.setdefault(value, k)
        self.last[value] = k


def _nbytes(kind: str, value: Any) -> int:
    """Bytes of an argument's value. Presently: for other sizes of the same program the arena is planned anew."""
    return int(concrete(value.nbytes if kind == "temp" else value.meta.nbytes))


def place(
    calls: Sequence[Any], outputs: set[Any], results: set[Any], nbytes: Callable[[str, Any], int]
) -> tuple[dict[Any, int], int, list[tuple[Any, Any]]]:
    """Places of intermediates and temporaries in the arena, its size, and (output, leaf whose memory it may take over).

    ``outputs`` are written by the calls; ``results`` also holds leaves that are results themselves. Of a call, ``args`` and ``inplace``
    are read (see `Call`); of a value, whether its ``buffer`` is None; ``nbytes`` is asked with the argument's kind and the value.
    """
    life = _Lifetimes(calls, outputs, nbytes)
    heir: dict[Any, Any] = {}  # value -> the one whose memory it takes over
    given: set[Any] = set()
    donations: list[tuple[Node, Node]] = []
    last_check = max([k for k, c in enumerate(calls) if any(a[0] == "status" for a in c.args)], default=-1)
    for k, call in enumerate(calls):
        for m, n in call.inplace:
            if m in given or n in heir:
                continue
            if m.buffer is None and n not in outputs and life.last.get(m) == k and m not in outputs and life.first.get(n) == k:
                heir[n] = m
                given.add(m)
            elif m.buffer is not None and m not in results and n in outputs and life.leaf_last.get(m) == k and k > last_check:
                donations.append((n, m))
    births: list[list[tuple[Any, int]]] = [[] for _ in calls]
    deaths: list[list[Any]] = [[] for _ in calls]
    for value, k in life.first.items():
        if value not in heir:
            births[k].append((value, life.nbytes[value]))
    for value, k in life.last.items():
        if value not in given:
            owner = value
            while owner in heir:
                owner = heir[owner]
            deaths[k].append(owner)
    offsets, size = plan_arena(births, deaths)
    for value in heir:
        owner = value
        while owner in heir:
            owner = heir[owner]
        offsets[value] = offsets[owner]
    return offsets, size, donations
