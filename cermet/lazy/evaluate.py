"""Evaluation: turns a thread's tape into values. The only room that joins graph, compiler and runtime.

What is computed is decided by handles: nodes that something outside the tape refers to (a tensor, a storage, a saved-for-backward slot).
A node's reference count beyond the references the recording itself makes tells that, at no cost while recording.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from cermet import config
from cermet.graph.node import Node
from cermet.lazy.record import Tape, local
from cermet.lazy.values import set_value, stored_array, stored_number

__all__ = ["array_of", "buffer_of", "evaluate", "number_of", "realize", "settle"]


_run_tape: Any = None


def _load() -> None:
    global _run_tape
    from cermet.lazy import run

    _run_tape = run.run_tape


def evaluate(tape: Tape) -> None:
    """Compute every held pending node of the tape, and begin a new recording.

    When one op fails, all values that do not depend on it are still computed; then the error is raised, naming the op and the line
    that recorded it.
    """
    nodes = tape.nodes
    if not nodes or tape.capture is not None:
        return
    counts = tuple(map(sys.getrefcount, nodes))
    # Loaded at the first evaluation: with LLVM beneath it the compiler takes longer to import than all else together.
    if config.reference:
        from cermet.lazy.by_reference import evaluate_reference

        evaluate_reference(tape, nodes, counts)
    else:
        if _run_tape is None:
            _load()
        try:
            _run_tape(tape, nodes, counts)
        except BaseException:
            # What failed stays pending under an epoch that is over; a later look at it records it again (see Tape.adopt).
            tape.reset()
            raise


def realize(nodes: Sequence[Node]) -> None:
    """Make sure that all given nodes have values."""
    tape: Tape = local.tape
    if tape.capture is not None:
        return
    pending = False
    for n in nodes:
        if n.buffer is None:
            pending = True
            if n.epoch is not tape.epoch:
                tape.adopt(n)
    if pending:
        evaluate(tape)


def settle(most: int) -> None:
    """Evaluate what this thread has pending if that is more than ``most`` nodes."""
    tape: Tape = local.tape
    if len(tape.nodes) > most:
        evaluate(tape)


def buffer_of(node: Node) -> Any:
    """The node's value, computed now if need be: a `Buffer`, or a Python number for a run-time scalar."""
    tape: Tape = local.tape
    tape.looks += 1
    if node.buffer is None:
        if tape.capture is not None:
            tape.capture.observed(node)
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
    """The node's value as a NumPy array that shares its memory (read-only); computed now if need be."""
    buffer_of(node)
    return stored_array(node)


def number_of(node: Node) -> Any:
    """The value of a node of one element as a Python number; computed now if need be."""
    buffer_of(node)
    return stored_number(node)
