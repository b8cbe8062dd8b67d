"""Evaluation: turns a thread's tape into values. The only room that joins graph, compiler and runtime.

What is computed is decided by handles: nodes that something outside the tape refers to (a tensor, a storage, a saved-for-backward slot).
A node's reference count beyond the references the recording itself makes tells that, at no cost while recording.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from cermet import config
from cermet.graph.node import Meta, Node
from cermet.lazy.record import Tape, describe_location, local
from cermet.ops.leaf import data_call, scalar_call
from cermet.runtime.buffer import Buffer

__all__ = ["array_of", "buffer_of", "evaluate", "realize", "held_mask"]

_getrefcount = sys.getrefcount


def _baseline() -> int:
    """The reference count that ``map(getrefcount, list)`` reports for an object which only that list holds."""
    items = [object()]
    return next(iter(map(_getrefcount, items)))


_BASE = _baseline()


def held_mask(nodes: Sequence[Node], counts: Sequence[int]) -> list[bool]:
    """For each node of a recording, whether anything outside the recording holds it.

    ``counts`` are the nodes' reference counts, taken while only the tape's list and other nodes' inputs were counted in.
    """
    inner: dict[Node, int] = {}
    for n in nodes:
        for i in n.inputs:
            inner[i] = inner.get(i, 0) + 1
    return [c - _BASE - inner.get(n, 0) > 0 for n, c in zip(nodes, counts, strict=True)]


def evaluate(tape: Tape) -> None:
    """Compute every held pending node of the tape, and begin a new recording.

    When one op fails, all values that do not depend on it are still computed; then the error is raised, naming the op and the line
    that recorded it.
    """
    nodes = tape.nodes
    if not nodes:
        return
    counts = tuple(map(_getrefcount, nodes))
    if config.reference:
        evaluate_reference(tape, nodes, counts)
    else:
        from cermet.lazy import run

        try:
            run.run_tape(tape, nodes, counts)
        except BaseException:
            # What failed stays pending under an epoch that is over; a later look at it records it again (see Tape.adopt).
            tape.reset()
            raise


def set_value(node: Node, buffer: Any) -> None:
    """Give a node its value and let go of what it was computed from. The buffer is set first: see `Tape.adopt`."""
    node.buffer = buffer
    m = node.meta
    node.call = data_call(m) if type(buffer) is Buffer else scalar_call(m.dtype, m.device)
    node.inputs = ()
    node.epoch = None


def evaluate_reference(tape: Tape, nodes: list[Node], counts: tuple[int, ...]) -> None:
    from cermet.compiler.reference import run_reference

    held = held_mask(nodes, counts)
    clones = tape.clones
    tape.reset()
    wanted = [n for n, h in zip(nodes, held, strict=True) if h and n.call.outs is None]
    error: Exception | None = None
    values: dict[Node, Any] = {}
    try:
        values = run_reference(nodes, array_of)
    except Exception as e:
        error = e
        failed = getattr(e, "node", None)
        bad = {failed}
        for n in nodes:
            if any(i in bad for i in n.inputs):
                bad.add(n)
        good = [n for n in nodes if n not in bad]
        values = _salvage(good)
        wanted = [n for n in wanted if n in values]
    for n in wanted:
        set_value(n, buffer_from_array(values[n]))
    settle_clones(clones)
    if error is not None:
        failed = getattr(error, "node", None)
        raise evaluation_error(error, failed) from error


def settle_clones(clones: dict[Node, Node]) -> None:
    """Give the values of adopted nodes to the nodes they were adopted from."""
    for original, clone in clones.items():
        if clone.buffer is not None and original.buffer is None:
            set_value(original, clone.buffer)


def _salvage(good: list[Node]) -> dict[Node, Any]:
    from cermet.compiler.reference import run_reference

    values: dict[Node, Any] = {}
    rest = list(good)
    while True:
        try:
            return run_reference(rest, array_of)
        except Exception as e:
            bad = {getattr(e, "node", None)}
            for n in rest:
                if any(i in bad for i in n.inputs):
                    bad.add(n)
            rest = [n for n in rest if n not in bad]
            if not rest:
                return values


def evaluation_error(error: Exception, node: Node | None) -> Exception:
    """The same kind of error, its text naming the op and the user's line."""
    if node is None:
        return error
    text = f"{error} (while computing {node.call.op.name}, recorded at {describe_location(node.where)})"
    try:
        return type(error)(text)
    except Exception:
        return RuntimeError(text)


# ----------------------------------------------------------------------------------------------------------- values


def buffer_from_array(array: Any) -> Buffer:
    """A buffer with a contiguous copy of a NumPy array."""
    import numpy as np

    a = np.ascontiguousarray(array)
    b = Buffer(a.nbytes)
    if a.nbytes:
        b.view(a.dtype, a.shape, writeable=True)[...] = a
    return b


def realize(nodes: Sequence[Node]) -> None:
    """Make sure that all given nodes have values."""
    tape: Tape = local.tape
    for n in nodes:
        if n.buffer is None and n.epoch is not tape.epoch:
            tape.adopt(n)
    if any(n.buffer is None for n in nodes):
        evaluate(tape)


def buffer_of(node: Node) -> Any:
    """The node's value, computed now if need be: a `Buffer`, or a Python number for a run-time scalar."""
    if node.buffer is None:
        tape: Tape = local.tape
        if node.epoch is not tape.epoch:
            clone = tape.adopt(node)
            evaluate(tape)
            if node.buffer is None:
                set_value(node, clone.buffer)
        else:
            evaluate(tape)
        if node.buffer is None:
            raise RuntimeError(f"{node!r} has no value after an evaluation; please report this")
    return node.buffer


def array_of(node: Node) -> Any:
    """The node's value as a NumPy array that shares its memory (read-only)."""
    import numpy as np

    value = buffer_of(node)
    m: Meta = node.meta
    if isinstance(value, Buffer):
        return value.view(m.dtype.numpy, m.shape)
    return np.asarray(value).astype(m.dtype.numpy)
