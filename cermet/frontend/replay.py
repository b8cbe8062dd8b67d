"""Backward walks that were seen before, replayed.

Which nodes a backward walk records follows from its structure alone: the calls of the gradient functions, how they hang together, which of
their saved values are one and the same, where the walk starts and which gradients are wanted. So the first walk of a structure runs the
rules of the operators and leaves a `Plan` of what they recorded; later walks put the same nodes on the tape without running any rule.

What cannot be told from the structure is never planned: hooks, functions written by users, gradients of gradients, and rules whose nodes
read a value in memory that is neither saved nor given.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from operator import itemgetter
from typing import Any

from cermet.frontend.gradients import Accumulate, GradFn, Pick
from cermet.graph.node import Call, Node
from cermet.lazy.record import Tape, record
from cermet.runtime.buffer import Buffer

__all__ = ["Plan", "Survey", "find", "remember", "replay", "survey"]

MOST_PLANS = 512  # the oldest goes first; a dropped plan costs one ordinary walk

_plans: dict[tuple[int, ...], Plan] = {}
_lock = threading.Lock()


class Survey:
    """What one walk starts from.

    Attributes:
        key: the structure, as ints. values: saved nodes and the roots' gradients, each once, in order of discovery.
        functions: gradient functions in order of discovery, accumulators among them.
    """

    __slots__ = ("functions", "key", "values")

    def __init__(self, key: tuple[int, ...], values: list[Node], functions: list[Any]) -> None:
        self.key = key
        self.values = values
        self.functions = functions


class Plan:
    """What a walk records.

    Attributes:
        steps: (call, picker of its inputs among the values and the nodes made so far, 1 for a single input), or (call, None, number) for a
            run-time scalar.
        results: (number of the function, result index, position of its gradient among values and made nodes), in the order of arrival.
        release: numbers of the functions whose saved values are let go. nbytes: of all results. count: nodes put on the tape.
    """

    __slots__ = ("count", "nbytes", "release", "results", "steps")

    def __init__(
        self,
        steps: list[tuple[Call, Any, Any]],
        results: list[tuple[int, int, int]],
        release: list[int],
        nbytes: int,
        count: int,
    ) -> None:
        self.steps = steps
        self.results = results
        self.release = release
        self.nbytes = nbytes
        self.count = count


def survey(roots: list[tuple[Any, Any]], keep: bool, targets: Sequence[Any] | None) -> Survey | None:
    """The structure below ``roots`` (edge, gradient's node); None where something in it cannot be planned."""
    key: list[int] = [len(roots), keep]
    values: dict[Node, int] = {}
    numbers: dict[Any, int] = {}
    functions: list[Any] = []
    for edge, grad in roots:
        key.append(values.setdefault(grad, len(values)))
        if type(edge) is Pick:
            key.append(-2 - edge.index)
            edge = edge.parent
        if edge not in numbers:
            numbers[edge] = len(functions)
            functions.append(edge)
        key.append(numbers[edge])
    for f in functions:  # grows while it is walked
        kind = type(f)
        if f.hooks:
            return None
        if kind is Accumulate:
            if f.post_hooks:
                return None
            key.append(0)
            continue
        saved = f.saved
        if kind is not GradFn or saved is None:
            return None
        key.append(f.call.id)
        for edge in f.edges:
            if edge is None:
                key.append(-1)
                continue
            if type(edge) is Pick:
                key.append(-2 - edge.index)
                edge = edge.parent
            number = numbers.get(edge)
            if number is None:
                number = numbers[edge] = len(functions)
                functions.append(edge)
            key.append(number)
        for node in saved:
            key.append(values.setdefault(node, len(values)))
    if targets is not None:
        key.append(-1)
        for t in targets:
            owner, index = (t.parent, t.index) if type(t) is Pick else (t, 0)
            key += (numbers.get(owner, -1), index)
    return Survey(tuple(key), list(values), functions)


def find(found: Survey, tape: Tape) -> Plan | None:
    """The plan of a structure, where it is known and would not pass the tape's limits half-way."""
    plan = _plans.get(found.key)
    if plan is None or len(tape.nodes) + plan.count > tape.most_nodes or tape.nbytes + plan.nbytes > tape.most_bytes:
        return None
    return plan


def replay(plan: Plan, found: Survey, tape: Tape, where: Any) -> list[tuple[Any, int, Node]]:
    """Record what the plan says; returns (function, result index, node of the gradient) for each gradient that was wanted."""
    made = found.values
    put = made.append
    for call, pick, one in plan.steps:
        if pick is None:
            put(Node(call, (), one))
        elif one:
            put(record(tape, call, (pick(made),), where))
        else:
            put(record(tape, call, pick(made), where))
    tape.nbytes += plan.nbytes
    functions = found.functions
    for number in plan.release:
        functions[number].saved = None
    return [(functions[number], index, made[position]) for number, index, position in plan.results]


def _nothing(_: list[Node]) -> tuple[Node, ...]:
    """The inputs of a node that has none, such as an index ramp."""
    return ()


def remember(found: Survey, recorded: list[Node], results: list[tuple[Any, int, Node]], nbytes: int) -> None:
    """Make a plan of what an ordinary walk of this structure recorded, if it can be told from the structure alone."""
    where = {node: k for k, node in enumerate(found.values)}
    steps: list[tuple[Call, Any, Any]] = []
    for node in recorded:
        for i in node.inputs:
            if i in where:
                continue
            if i.buffer is None or type(i.buffer) is Buffer:
                return
            where[i] = len(where)
            steps.append((i.call, None, i.buffer))
        places = [where[i] for i in node.inputs]
        steps.append((node.call, itemgetter(*places) if places else _nothing, len(places) == 1))
        where[node] = len(where)
    numbers = {f: k for k, f in enumerate(found.functions)}
    wanted = []
    for f, index, node in results:
        if node not in where or f not in numbers:
            return
        wanted.append((numbers[f], index, where[node]))
    release = [k for k, f in enumerate(found.functions) if type(f) is GradFn and f.saved is None]
    plan = Plan(steps, wanted, release, nbytes, len(recorded))
    with _lock:
        _plans[found.key] = plan
        while len(_plans) > MOST_PLANS:
            del _plans[next(iter(_plans))]
