"""Recording: each thread's tape of nodes that have been asked for and not yet computed.

The tape holds the nodes in order, and, as they come, the key that names the program: for each node its call's number and where its
inputs stand (a position on the tape, or the number of a leaf). Two recordings with equal keys are the same program on
other data. This room knows nodes; it must not know tensors, the compiler or the runtime.
"""

from __future__ import annotations

import sys
import threading
from typing import Any

from cermet import config
from cermet.dtypes import DType
from cermet.graph.node import Call, Meta, Node, toposort
from cermet.ops.leaf import scalar_call

__all__ = ["Tape", "local", "record", "scalar_node", "tape"]


class Tape:
    """What one thread has recorded since its last evaluation, and the thread's modes.

    Attributes:
        nodes: pending nodes in order; ``nodes[i].pos == i``.
        key: flat structure key, see the module's text.
        leaves: node -> number, in order of first use: inputs whose value is known.
        leaf_ids: numbers of the leaves' calls.
        epoch: an object; a node belongs to this recording when ``node.epoch is tape.epoch``.
        grad: whether gradients are recorded. eager: whether each op is evaluated at once.
        capture: the capture this tape belongs to (see `cermet.capture`), or None; its nodes are never evaluated here.
        looks: counts what makes a call depend on more than the metas of its tensors: a value looked at, a random number drawn.
        nbytes: bytes of all pending results; most_nodes, most_bytes: past these everything pending is evaluated.
    """

    __slots__ = (
        "capture", "clones", "eager", "epoch", "grad", "key", "leaf_ids", "leaves", "looks", "most_bytes", "most_nodes", "nbytes", "nodes",
    )  # fmt: skip

    def __init__(self) -> None:
        self.grad = True
        self.eager = bool(config.eager)
        self.capture: Any = None
        self.looks = 0
        self.reset()

    def reset(self) -> None:
        """Begin a new recording. The old lists are replaced, not cleared: an evaluation may still hold them."""
        self.nodes: list[Node] = []
        self.key: list[int] = []
        self.leaves: dict[Node, int] = {}
        self.leaf_ids: list[int] = []
        self.clones: dict[Node, Node] = {}
        self.epoch = object()
        self.nbytes = 0
        self.most_nodes = config.pending_nodes
        self.most_bytes = config.pending_bytes

    def adopt(self, node: Node) -> Node:
        """A node of this recording, or with a known value, that equals ``node``.

        A pending node of another recording (another thread's, or one whose evaluation failed) is recorded here again with all that
        it needs: nodes are pure, so computing one twice is only work.
        """
        if node.buffer is not None or node.epoch is self.epoch:
            return node
        for n in toposort([node]):
            if n.buffer is None and n.epoch is not self.epoch and n not in self.clones:
                inputs = tuple([self.clones.get(i, i) for i in n.inputs])
                self.clones[n] = record(self, n.call, inputs, n.where)
        return self.clones[node]


class _Local(threading.local):
    def __init__(self) -> None:
        self.tape = Tape()


local = _Local()


def tape() -> Tape:
    """This thread's tape."""
    return local.tape


_new = object.__new__


def record(t: Tape, call: Call, inputs: tuple[Node, ...], where: Any) -> Node:
    """Put a new node on the tape. Every input must have a known value or be pending; this is the hot path of recording."""
    epoch = t.epoch
    key = t.key
    key.append(call.id)
    for n in inputs:
        if n.epoch is epoch:
            key.append(n.pos)
        elif n.buffer is not None:
            leaves = t.leaves
            number = leaves.get(n)
            if number is None:
                number = leaves[n] = -1 - len(leaves)
                t.leaf_ids.append(n.call.id)
            key.append(number)
        else:
            return _record_adopted(t, call, inputs, where)
    node = _new(Node)  # `Node(call, inputs)`, without a call of its __init__
    node.call = call
    node.inputs = inputs
    node.meta = call.meta
    node.buffer = None
    node.epoch = epoch
    nodes = t.nodes
    node.pos = len(nodes)
    node.where = where
    nodes.append(node)
    return node


def _record_adopted(t: Tape, call: Call, inputs: tuple[Node, ...], where: Any) -> Node:
    # The half-written key entry of the failed fast path must go first: adopting records nodes of its own.
    written = 1
    for n in inputs:
        if n.epoch is not t.epoch and n.buffer is None:
            break
        written += 1
    del t.key[-written:]
    return record(t, call, tuple([t.adopt(n) for n in inputs]), where)


def scalar_node(value: Any, dtype: DType, device: Any) -> Node:
    """A run-time scalar: a leaf whose value is no part of any key."""
    return Node(scalar_call(dtype, device), (), value)


_number_calls: dict[tuple[DType, Any], Call] = {}


def number_node(value: float, like: Meta) -> Node:
    """A run-time scalar of the dtype and device of ``like``: `scalar_node` for the operators, which write most of them."""
    key = (like.dtype, like.device)
    call = _number_calls.get(key)
    if call is None:
        call = _number_calls[key] = scalar_call(*key)
    return Node(call, (), value)


_internal: dict[int, bool] = {}


def user_location(depth: int = 2) -> Any:
    """``(code, instruction)`` of the nearest caller outside this package, or None; costs about 0.2 us."""
    f: Any = sys._getframe(depth)
    while f is not None:
        g = f.f_globals
        inside = _internal.get(id(g))
        if inside is None:
            name = g.get("__name__", "")
            inside = _internal[id(g)] = isinstance(name, str) and (name == "cermet" or name.startswith("cermet."))
        if not inside:
            return (f.f_code, f.f_lasti)
        f = f.f_back
    return None


def describe_location(where: Any) -> str:
    """``file:line`` of a location, or an empty text."""
    if where is None:
        return ""
    code, instruction = where
    line = code.co_firstlineno
    for start, end, number in code.co_lines():
        if start <= instruction < end and number is not None:
            line = number
    return f"{code.co_filename}:{line}"
