"""Gradients that flow into a captured function from outside: ``compiled(x).sum().backward()``.

The forward program also gives the values that the backward pass reads; backward is a program of its own, planned when it is first needed,
one for each choice of results that get a gradient. Between the two stands one gradient function, whatever the captured one was made of.
"""

from __future__ import annotations

import ctypes
from typing import Any

from cermet import dtypes as dt
from cermet.capture.errors import CaptureError
from cermet.capture.program import become_leaf, bind, is_number
from cermet.devices import cpu
from cermet.frontend.core import new_tensor, node_of
from cermet.frontend.gradients import Accumulate, GradFn, Pick, run_backward
from cermet.graph.node import Meta, Node, toposort
from cermet.lazy import evaluate as ev
from cermet.lazy.number import Number
from cermet.lazy.record import Tape, local, record
from cermet.ops.leaf import data_call, scalar_call
from cermet.runtime.buffer import Buffer

__all__ = ["OuterGrad", "released", "spent_edge"]

_STAND_IN = Buffer(0)
_PROBE = Node(scalar_call(dt.float32, cpu), (), 0.0)  # shows whether a wrapper of saved values records gradients


def _owner(edge: Any) -> Any:
    return edge.parent if type(edge) is Pick else edge


def _functions(roots: list[Any], inside: dict[int, Any]) -> list[Any]:
    """Gradient functions made inside that are reached from ``roots``, consumers first."""
    out: list[Any] = []
    seen: set[int] = set()
    stack = [_owner(e) for e in roots]
    while stack:
        f = stack.pop()
        if id(f) in seen or id(f) not in inside:
            continue
        seen.add(id(f))
        out.append(f)
        stack += [_owner(e) for e in f.edges if e is not None]
    return out


def released(edge: Any) -> bool:
    """Whether a backward pass inside has let go of values below this edge."""
    seen: set[int] = set()
    stack = [_owner(edge)]
    while stack:
        f = stack.pop()
        if id(f) in seen or not isinstance(f, GradFn):
            continue
        seen.add(id(f))
        if f.saved is None:
            return True
        stack += [_owner(e) for e in f.edges if e is not None]
    return False


def spent_edge(edge: Any) -> Any:
    """A gradient function that says that its values were released, as the one of the captured run would."""
    f = _owner(edge)
    spent = GradFn(f.call, (), None, f.where)
    return Pick(spent, edge.index) if type(edge) is Pick else spent


class _Given:
    """A gradient given as a number, in place of a number's value."""

    def __init__(self, place: int) -> None:
        self.place = place


class OuterGrad:
    """The gradient of one entry's results.

    Attributes:
        roots: (number of the result's leaf, its edge, its meta). targets: edges that lead outside, where gradients go.
        saved: nodes of the forward program that the backward pass reads.
    """

    def __init__(self, run: Any, roots: list[tuple[int, Any, Meta]]) -> None:
        self.run = run
        self.roots = roots
        self.places = {k: n for n, (k, _, _) in enumerate(roots)}
        self.functions = _functions([e for _, e, _ in roots], run.recorder.inside)
        targets: dict[int, Any] = {}
        for f in self.functions:
            for e in f.edges:
                if e is not None and id(_owner(e)) not in run.recorder.inside:
                    targets.setdefault(id(e), e)
        self.targets = list(targets.values())
        self.plans: dict[tuple[int, ...], Any] = {}
        self.saved = self._read()

    @staticmethod
    def of(run: Any) -> OuterGrad | None:
        """What is needed for the results that carry gradients; None where none does."""
        roots = []
        for k, found in enumerate(run.results):
            if found is not None and found[1] is not None and not released(found[1]):
                roots.append((k, found[1], found[0].meta))
        return OuterGrad(run, roots) if roots else None

    def _walk(self, tape: Tape, given: list[Node | None]) -> list[Node | None]:
        """The backward pass, recorded on ``tape``: a node per target, or None where no gradient arrives."""
        before, local.tape = local.tape, tape
        try:
            roots = [(e, new_tensor(g)) for (_, e, _), g in zip(self.roots, given, strict=True) if g is not None]
            found = run_backward(roots, lambda node, _: new_tensor(node), True, self.targets)
            out = []
            for e in self.targets:
                g = found.get(e)
                out.append(None if g is None else node_of(g))
            return out
        finally:
            local.tape = before

    def _read(self) -> list[Node]:
        """Nodes of the forward pass that the backward pass reads. What only moves or indexes is computed again rather than kept."""
        tape = self.run.recorder.tape
        before = len(tape.nodes)
        tape.grad, grad = False, tape.grad
        given = [Node(data_call(m), (), _STAND_IN) for _, _, m in self.roots]
        found = self._walk(tape, list(given))
        tape.grad = grad
        start = set(tape.nodes[before:])
        needed: dict[Node, None] = {}
        seen: set[Node] = set()
        stack = [n for n in found if n is not None]
        while stack:
            n = stack.pop()
            if n in seen or n in given:
                continue
            seen.add(n)
            if n.buffer is not None or (n not in start and n.call.op.kind not in ("movement", "leaf")):
                needed[n] = None
            else:
                stack += n.inputs
        return list(needed)

    def needed(self) -> list[Node]:
        """Nodes whose values a run must keep."""
        return self.saved

    def settle(self, entry: Any, maker: Any) -> None:
        """Note where the kept values come from, and let go of what the template no longer needs."""
        self.sources = [maker.of(n) for n in self.saved]
        recorder = self.run.recorder
        for n in self.saved:
            if n.buffer is None:
                become_leaf(n)
        args = {
            id(f.before.get("_fn")): recorder.args[id(f.obj)] for f in recorder.outside.values() if id(f.obj) in recorder.args
        }
        self.edges = [(args.get(id(e)), e) for e in self.targets]
        self.call = _Named(tuple([m for _, _, m in self.roots]))
        self.run = None

    def edge(self, made: Any, tensors: list[Any]) -> Compiled:
        """The gradient function of one replay's results."""
        edges = tuple([tensors[k]._fn if k is not None else e for k, e in self.edges])
        f = Compiled(self.call, edges, (), None)  # type: ignore[arg-type]
        f.outer = self
        f.values = [made.node(s) for s in self.sources]
        return f

    def root(self, leaf: int) -> Any:
        """How a result's edge is got from a replay."""
        place = self.places[leaf]
        if len(self.roots) == 1:
            return lambda made: made.edge
        return lambda made: Pick(made.edge, place)

    def plan(self, kinds: tuple[int, ...]) -> _Plan:
        """The backward program for gradients given as nothing (0), tensors (1) or numbers (2)."""
        found = self.plans.get(kinds)
        if found is None:
            found = self.plans[kinds] = _Plan(self, kinds)
        return found


class _Named:
    """The stand-in for a `Call` that the gradient function carries."""

    def __init__(self, metas: tuple[Meta, ...]) -> None:
        self.op = self
        self.name = "compiled"
        self.saves = ()
        self.outs = metas
        self.meta = metas[0]


class _Plan:
    """A backward program: where its operands come from and its results go."""

    def __init__(self, outer: OuterGrad, kinds: tuple[int, ...]) -> None:
        given: list[Node | None] = []
        for k, ((_, _, m), kind) in enumerate(zip(outer.roots, kinds, strict=True)):
            if kind == 0:
                given.append(None)
            elif kind == 1:
                given.append(Node(data_call(m), (), _STAND_IN))
            else:
                given.append(Node(scalar_call(m.dtype, m.device), (), _Given(k)))
        tape = Tape()
        tape.grad = tape.eager = False
        tape.most_nodes = tape.most_bytes = 1 << 62
        found = outer._walk(tape, given)
        self.bound = bind([n for n in dict.fromkeys(found) if n is not None and n.buffer is None])
        saved = {n: k for k, n in enumerate(outer.saved)}
        place = {n: k for k, n in enumerate(given) if n is not None}
        numbers = {id(n.buffer): k for k, n in enumerate(outer.saved) if type(n.buffer) is Number}

        def source(n: Node) -> tuple[str, Any]:
            if n in place:
                return "given", place[n]
            return ("saved", saved[n]) if n in saved else ("constant", n)

        self.inputs = [source(n) for n in self.bound.inputs]
        self.scalars: list[tuple[str, Any]] = []
        for x in self.bound.scalars:
            if type(x) is _Given:
                self.scalars.append(("given", x.place))
            elif type(x) is Number:
                self.scalars.append(("saved", numbers[id(x)]))
            else:
                self.scalars.append(("constant", x))
        self.results: list[Any] = []
        for n in found:
            if n is None:
                self.results.append(None)
                continue
            at = self.bound.places.get(n, n)
            self.results.append((n.meta, at if isinstance(at, int) else source(at)))

    def run(self, values: list[Node], given: list[Node | None]) -> list[Any]:
        """Gradients as tensors, or None."""

        def node(source: tuple[str, Any]) -> Any:
            kind, at = source
            return given[at] if kind == "given" else values[at] if kind == "saved" else at

        bound = self.bound
        outs = [Buffer(n) for n in bound.outputs]
        if bound.program is not None:
            bases = [node(s).buffer.ptr for s in self.inputs] + [b.ptr for b in outs]
            word = ctypes.c_int64(0)
            if bound.has_status:
                bases.append(ctypes.addressof(word))
            scalars = [s[1] if s[0] == "constant" else node(s).buffer for s in self.scalars]
            bound.program.run(bases, scalars)
            if word.value:
                raise IndexError("an index in the gradient of a compiled function is out of range")
        results: list[Any] = []
        for r in self.results:
            if r is None:
                results.append(None)
            elif isinstance(r[1], int):
                results.append(new_tensor(Node(data_call(r[0]), (), outs[r[1]])))
            else:
                results.append(new_tensor(node(r[1])))
        return results


class Compiled(GradFn):
    """The gradient function of a compiled function's results."""

    __slots__ = ("outer", "values")

    outer: OuterGrad
    values: Any

    def backward(self, grads: list[Any], wrap: Any, keep: bool) -> Any:
        """Gradients of what the function read, by the backward program; with ``create_graph`` by the rules of the operators."""
        values = self.values
        if values is None:
            raise RuntimeError(
                "backward through a compiled function a second time: its saved values were released by the first backward. Pass "
                "retain_graph=True to the first"
            )
        if not keep:
            self.values = None
        if wrap(_PROBE, self)._fn is not None:
            return self._recorded(grads, wrap, values)
        nodes = [None if g is None else node_of(g) for g in grads]
        ev.realize([n for n in nodes if n is not None])
        kinds = tuple([0 if n is None else 2 if is_number(n.buffer) else 1 for n in nodes])
        return self.outer.plan(kinds).run(values, nodes)

    def release(self) -> None:
        self.values = None

    def name(self) -> str:
        return "CompiledBackward"

    def _recorded(self, grads: list[Any], wrap: Any, values: list[Node]) -> list[Any]:
        outer = self.outer
        nodes: dict[Node, Node] = dict(zip(outer.saved, values, strict=True))
        numbers = {id(s.buffer): v for s, v in nodes.items() if type(s.buffer) is Number}
        edges: dict[int, Any] = {id(e): now for e, now in zip(outer.targets, self.edges, strict=True)}
        made: dict[int, GradFn] = {}

        def again(edge: Any) -> Any:
            if edge is None or id(edge) in edges:
                return None if edge is None else edges[id(edge)]
            if type(edge) is Pick:
                inner = made.get(id(edge.parent))
                return None if inner is None else Pick(inner, edge.index)
            return made.get(id(edge))

        for f in _inputs_first(outer.functions):
            if type(f) is Accumulate:
                continue
            if type(f) is not GradFn or f.hooks:
                raise CaptureError(
                    "gradients of gradients (create_graph=True) through a compiled function that holds an autograd.Function or hooks: "
                    "call the function that is not compiled"
                )
            saved = tuple([_actual(n, nodes, numbers) for n in f.saved])
            made[id(f)] = GradFn(f.call, tuple([again(e) for e in f.edges]), saved, f.where)
        roots = [(again(e), g) for (_, e, _), g in zip(outer.roots, grads, strict=True) if g is not None]
        found = run_backward(roots, wrap, True, list(self.edges))
        return [found.get(e) for e in self.edges]


def _inputs_first(functions: list[Any]) -> list[Any]:
    """Gradient functions ordered so that each comes after those its edges lead to."""
    inside = {id(f): f for f in functions}
    out: list[Any] = []
    done: set[int] = set()
    stack = [(f, False) for f in reversed(functions)]
    while stack:
        f, expanded = stack.pop()
        if expanded:
            out.append(f)
        elif id(f) not in done:
            done.add(id(f))
            stack.append((f, True))
            stack += [(_owner(e), False) for e in f.edges if e is not None and id(_owner(e)) in inside]
    return out


def _actual(node: Node, nodes: dict[Node, Node], numbers: dict[int, Node]) -> Node:
    """A node of the template over the values of this replay."""
    if node not in nodes:
        for n in toposort([node]):
            if n in nodes:
                continue
            if n.buffer is not None:
                nodes[n] = numbers[id(n.buffer)] if type(n.buffer) is Number else n
            else:
                nodes[n] = record(local.tape, n.call, tuple([nodes[i] for i in n.inputs]), n.where)
    return nodes[node]
