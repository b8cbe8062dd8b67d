"""Evaluation by the reference interpreter: on request, and when a kernel met bad data: then it finds the op, spares what does not depend on
it, and raises."""

from __future__ import annotations

from typing import Any

from cermet.compiler.reference import run_reference
from cermet.graph.node import Node
from cermet.lazy.record import Tape, describe_location
from cermet.lazy.values import buffer_from_array, held_mask, set_value, settle_clones, stored_array

__all__ = ["evaluate_reference"]


def evaluate_reference(tape: Tape, nodes: list[Node], counts: tuple[int, ...]) -> None:
    """Compute the held nodes of a tape one by one; raises the first error after all that does not depend on it has its value."""
    held = held_mask(nodes, counts)
    clones = tape.clones
    tape.reset()
    wanted = [n for n, h in zip(nodes, held, strict=True) if h and n.call.outs is None]
    error: Exception | None = None
    values: dict[Node, Any] = {}
    try:
        values = run_reference(nodes, stored_array)
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


def _salvage(good: list[Node]) -> dict[Node, Any]:
    values: dict[Node, Any] = {}
    rest = list(good)
    while True:
        try:
            return run_reference(rest, stored_array)
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
