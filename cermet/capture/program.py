"""From captured nodes to a program: stand-ins become leaves, the nodes that are needed become a recording of their own, and its program is
found by its structure like that of any other recording. So two instances that do the same share it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cermet.graph.node import Node, toposort
from cermet.lazy.number import Number
from cermet.lazy.record import Tape
from cermet.ops.leaf import data_call, scalar_call
from cermet.runtime.buffer import Buffer

__all__ = ["Bound", "become_leaf", "bind"]

_STAND_IN = Buffer(0)


def become_leaf(node: Node, value: Any = None) -> None:
    """Make a node a leaf: of ``value``, a number or `Number`, or of data that each run gives."""
    m = node.meta
    node.call = data_call(m) if value is None else scalar_call(m.dtype, m.device)
    node.inputs = ()
    node.epoch = None
    node.buffer = _STAND_IN if value is None else value


class Bound:
    """A program and where its operands come from.

    Attributes:
        program: runs it. inputs: per base, the node whose memory it is. scalars: what each run-time scalar is, a number or `Number`.
        outputs: bytes of each result. places: wanted node -> number of its output, or the leaf that it
            equals. donations: (output, node whose memory it may take).
        has_status: whether the last base is a word that kernels set when they met bad data.
    """

    __slots__ = ("donations", "has_status", "inputs", "outputs", "places", "program", "scalars")

    def __init__(self) -> None:
        self.program: Any = None
        self.inputs: list[Node] = []
        self.scalars: list[Any] = []
        self.outputs: list[int] = []
        self.places: dict[Node, int | Node] = {}
        self.donations: list[tuple[int, Node]] = []
        self.has_status = False


def bind(wanted: Sequence[Node]) -> Bound:
    """The program that computes ``wanted``: nodes without a value, over leaves."""
    from cermet.lazy import run  # with LLVM beneath it, the slowest import of all

    out = Bound()
    if not wanted:
        return out
    # In the order of recording, as any recording is planned: what is checked comes before what is overwritten.
    order = sorted([n for n in toposort(list(wanted)) if n.buffer is None], key=_position)
    tape = Tape()
    for n in order:
        _register(tape, n)
    chosen = set(wanted)
    held = [n in chosen for n in order]
    compiled = run.program_for(tape, order, held, (tuple(tape.key), tuple(tape.leaf_ids), tuple(held)))
    leaves = list(tape.leaves)
    out.program = compiled.program
    out.inputs = [leaves[k] for k in compiled.leaves]
    out.scalars = [leaves[k].buffer for k in compiled.scalars]
    out.outputs = list(compiled.outputs)
    out.donations = [(k, leaves[leaf]) for k, leaf, _ in compiled.donations]
    out.has_status = compiled.has_status
    # What turned out to be a leaf itself (a copy of an input) is named by that leaf.
    out.places = {order[position]: n if n >= 0 else leaves[-1 - n] for position, n in compiled.results}
    return out


def _position(n: Node) -> int:
    return n.pos


def _register(tape: Tape, node: Node) -> None:
    """What `record` does, for a node that is there."""
    key = tape.key
    key.append(node.call.id)
    for n in node.inputs:
        if n.buffer is None:
            key.append(n.pos)
            continue
        number = tape.leaves.get(n)
        if number is None:
            number = tape.leaves[n] = -1 - len(tape.leaves)
            tape.leaf_ids.append(n.call.id)
        key.append(number)
    node.epoch = tape.epoch
    node.pos = len(tape.nodes)
    tape.nodes.append(node)


def is_number(value: Any) -> bool:
    """Whether the value of a leaf is a number rather than memory."""
    return type(value) is Number or isinstance(value, bool | int | float)
