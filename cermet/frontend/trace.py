"""What a function recorded, taken down so that it can be recorded again on other tensors: nodes, gradient functions, results."""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter
from typing import Any

from cermet.frontend.core import TensorBase, new_tensor, on_recorded
from cermet.frontend.gradients import GradFn, Pick
from cermet.graph.node import Call, Node
from cermet.lazy.record import local, record, user_location
from cermet.ops.leaf import item

__all__ = ["MOST_NODES", "Trace", "trace"]

MOST_NODES = 128  # of one call; where more are recorded, finding out which is no longer what takes the time


class Trace:
    """What came of one call. Values are numbered: the tensors given, then numbers and recorded nodes in order.

    Attributes:
        steps: (call, numbers of the inputs, None), or (call, None, number) for a run-time scalar.
        pickers: per step, what picks the inputs out of the values; None for a scalar.
        grads: (value, call, edges as values or None, saved values) for a gradient function; (value, None, parent, index) for a result of one.
        outs: values of the results. kind: None where the result is one tensor, else the type of the tuple.
        nbytes: of all results.
    """

    __slots__ = ("grads", "kind", "nbytes", "outs", "pickers", "steps")

    def __init__(self, steps: list[Any], grads: list[Any], outs: list[int], kind: Any) -> None:
        self.steps = steps
        self.pickers = [None if places is None else _picker(places) for _, places, _ in steps]
        self.grads = grads
        self.outs = outs
        self.kind = kind
        self.nbytes = sum([c.meta.nbytes for c, places, _ in steps if places is not None and c.outs is None])

    def replay(self, tensors: Sequence[Any], where: Any = None) -> Any:
        """Record the same on other tensors of the same metas, of which the same ones have gradient functions; ``where``: the user's line."""
        tape = local.tape
        where = where or user_location(3)
        values: list[Any] = []
        fns: list[Any] = []
        for t in tensors:
            values.append(t._node)
            fns.append(t._fn)
        for (call, _, number), pick in zip(self.steps, self.pickers, strict=True):
            if pick is None:
                values.append(Node(call, (), number))
            else:
                values.append(record(tape, call, pick(values), where))
            fns.append(None)
        for value, call, edges, saved in self.grads:
            if call is None:
                fns[value] = Pick(fns[edges], saved)
            else:
                links = tuple([None if e is None else fns[e] for e in edges])
                fns[value] = GradFn(call, links, tuple([values[k] for k in saved]), where)
        tape.nbytes += self.nbytes
        out = []
        for k in self.outs:
            out.append(new_tensor(values[k], fns[k]))
        if len(tape.nodes) > tape.most_nodes or tape.nbytes > tape.most_bytes:
            on_recorded(tape, values[-1])
        kind = self.kind
        if kind is None:
            return out[0]
        return tuple(out) if kind is tuple else kind(*out)


def _picker(places: Sequence[int]) -> Any:
    if len(places) > 1:
        return itemgetter(*places)
    if not places:
        return lambda values: ()
    only = places[0]
    return lambda values: (values[only],)


def trace(tensors: Sequence[Any], recorded: Sequence[Node], outs: Sequence[Any], kind: Any, grad: bool) -> Trace | None:
    """Take down what was recorded when ``outs`` were made of ``tensors``; None where other tensors of their metas could need something else.

    Args:
        recorded: the nodes, in order. kind: type of the tuple of results, None for a single one. grad: whether gradients were recorded.
    """
    where = {t._node: k for k, t in enumerate(tensors)}
    steps: list[tuple[Call, Any, Any]] = []
    for node in recorded:
        for i in node.inputs:
            if i not in where:
                if not isinstance(i.buffer, int | float):
                    return None  # a value in memory that was not passed
                where[i] = len(where)
                steps.append((i.call, None, i.buffer))
        steps.append((node.call, tuple([where[i] for i in node.inputs]), None))
        where[node] = len(where)
    results = [where.get(t._node, -1) for t in outs]
    if min(results) < len(tensors) or len({id(t) for t in outs}) != len(outs):
        return None
    grads = _Gradients(tensors, steps, where, grad)
    if not all(grads.match(t._fn, k) for t, k in zip(outs, results, strict=True)):
        return None
    return Trace(steps, [grads.found[k] for k in sorted(grads.found)], results, kind)


class _Gradients:
    """Compares gradient functions with those that recording gives by itself, so that one which was cut off or put in by hand is noticed."""

    def __init__(self, tensors: Sequence[TensorBase], steps: list[Any], where: dict[Node, int], grad: bool) -> None:
        self.tensors = tensors
        self.steps = steps
        self.where = where
        self.found: dict[int, Any] = {}
        self.seen: dict[int, Any] = {}
        self.tracked = [grad and t._fn is not None for t in tensors]
        for call, places, _ in steps:
            flows = places is not None and any(self.tracked[k] for k in places)
            self.tracked.append(flows and (call.meta.dtype.kind == "f" if call.op is item else call.differentiable))

    def match(self, fn: Any, value: int) -> bool:
        """Whether ``fn`` is what a value's gradient function must be; notes how it is made."""
        if not self.tracked[value]:
            return fn is None
        if value in self.seen:
            return self.seen[value] is fn or type(fn) is Pick
        self.seen[value] = fn
        first = len(self.tensors)
        if value < first:
            return fn is self.tensors[value]._fn
        call, places, _ = self.steps[value - first]
        if call.op is item:
            if type(fn) is not Pick or fn.index != call.attrs[0] or not self.match(fn.parent, places[0]):
                return False
            self.found[value] = (value, None, places[0], fn.index)
            return True
        if type(fn) is not GradFn or fn.call is not call or fn.hooks:
            return False
        if any(n not in self.where for n in fn.saved):
            return False
        for e, k in zip(fn.edges, places, strict=True):
            if not self.match(e, k):
                return False
        edges = tuple([k if self.tracked[k] else None for k in places])
        self.found[value] = (value, call, edges, tuple([self.where[n] for n in fn.saved]))
        return True
