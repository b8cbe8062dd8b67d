"""Replays checked against the function itself."""

from __future__ import annotations

from typing import Any

import numpy as np

from cermet.capture.entry import MISS, Entry
from cermet.capture.errors import CaptureError
from cermet.capture.signature import Tree
from cermet.frontend.core import Storage, TensorBase, node_of
from cermet.lazy import evaluate as ev
from cermet.lazy.values import stored_array

__all__ = ["State", "verified"]


class State:
    """Everything that an entry writes, with its values: they are held, so that a replay writes elsewhere."""

    def __init__(self, entry: Entry, tensors: list[Any]) -> None:
        self.accumulators = [tensors[h]._fn if isinstance(h, int) else h for h, _ in entry.gradients]
        self.grads = [(a, a.grad, None if a.grad is None else node_of(a.grad)) for a in self.accumulators]
        self.tensors: list[Any] = [t for t, _ in entry.counts]
        self.storages: list[Storage] = []
        for k, _ in entry.writes:
            cell = entry.cells[k]
            if cell.kind == "storage":
                self.storages.append(cell.holder)
            elif cell.kind == "arg":
                self.tensors.append(tensors[cell.holder])
            elif cell.kind == "handle":
                self.tensors.append(cell.holder)
        self.nodes = [node_of(t) for t in self.tensors]
        self.stored = [s.node for s in self.storages]
        self.draws = [(g, g.state()) for g, _ in entry.draws]

    def values(self) -> list[Any]:
        nodes = [node_of(t) for t in self.tensors] + [s.node for s in self.storages]
        nodes += [node_of(a.grad) for a in self.accumulators if a.grad is not None]
        ev.realize(nodes)
        return [stored_array(n).copy() for n in nodes]

    def restore(self) -> None:
        for t, n in zip(self.tensors, self.nodes, strict=True):
            if t._alias is None:
                t._node = n
            else:
                t._alias.storage.node = n
                t._alias.storage.version += 1
        for s, n in zip(self.storages, self.stored, strict=True):
            s.node = n
            s.version += 1
        for a, g, node in self.grads:
            a.grad = g
            if g is not None and g._alias is None:
                g._node = node
        for generator, state in self.draws:
            generator.restore(state)


def verified(compiled: Any, entry: Entry, args: Any, kwargs: Any, leaves: Any) -> Any:
    """What ``entry`` gives for a call, after the function itself gave the same.

    Raises:
        CaptureError: naming the first value that differs.
    """
    state = State(entry, leaves.tensors)
    replayed = entry.replay(leaves.tensors, leaves.floats)
    if replayed is MISS:
        return MISS
    first = Tree(replayed)
    after = state.values()
    draws = [g.state() for g, _ in state.draws]
    results = [_value(x) for x in first.leaves]
    state.restore()
    ordinary = compiled._fn(*args, **kwargs)
    second = Tree(ordinary)
    if len(first.leaves) != len(second.leaves) or any(
        type(a) is not type(b) for a, b in zip(first.leaves, second.leaves, strict=True)
    ):
        raise CaptureError("the replay of a compiled function gave a result of another structure than the function itself")
    for k, (a, b) in enumerate(zip(results, [_value(x) for x in second.leaves], strict=True)):
        _compare(a, b, f"result {k}")
    values = state.values()
    if len(values) != len(after) or draws != [g.state() for g, _ in state.draws]:
        raise CaptureError(
            "the replay of a compiled function left other gradients, or drew other random numbers, than the function"
        )
    for k, (a, b) in enumerate(zip(after, values, strict=True)):
        _compare(a, b, f"tensor {k} of those it writes to")
    return ordinary


def _value(x: Any) -> Any:
    return x._array().copy() if isinstance(x, TensorBase) else x  # type: ignore[attr-defined]


def _compare(a: Any, b: Any, what: str) -> None:
    if isinstance(a, np.ndarray):
        equal = a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()
    else:
        equal = a is b or a == b or (a != a and b != b)
    if not equal:
        raise CaptureError(
            f"the replay of a compiled function differs from the function itself in {what}: it read something that a capture cannot "
            "see (a file, a clock, Python's random numbers, a value kept inside an object of another library). Pass it as an argument"
        )
