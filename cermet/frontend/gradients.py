"""Gradient functions and the backward walk. Autograd is recording too: each rule is written with ops, so it can itself be differentiated.

Ownership runs one way, so that reference counts alone decide what lives: a tensor holds its gradient function, which holds those of its
inputs and the saved *nodes* (values, never tensors). A leaf's accumulator holds the gradient; the leaf holds the accumulator.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from cermet.graph.node import Call, Meta, Node
from cermet.lazy.record import describe_location
from cermet.ops.autocast import state as autocast
from cermet.ops.define import OUT, VjpContext
from cermet.ops.differentiate import gradient_rule

__all__ = ["Accumulate", "Edge", "GradFn", "Pick", "run_backward"]


class GradFn:
    """The gradient of one recorded call.

    hooks: None, or result index -> {token: hook}, run when that result's gradient is complete.

    edges: per input, where its gradient goes (`GradFn`, `Pick`, `Accumulate`) or None.
    saved: nodes in the order of ``call.op.saves``; None once released.
    """

    __slots__ = ("__weakref__", "call", "edges", "hooks", "saved", "where")

    def __init__(self, call: Call, edges: tuple[Any, ...], saved: Any, where: Any) -> None:
        self.call = call
        self.edges = edges
        self.saved = saved
        self.where = where
        self.hooks: Any = None

    @property
    def metas(self) -> tuple[Meta, ...]:
        return self.call.outs or (self.call.meta,)

    def name(self) -> str:
        return "".join(part.capitalize() for part in self.call.op.name.split("_")) + "Backward"

    @property
    def next_functions(self) -> tuple[tuple[Any, int], ...]:
        return tuple((e.parent, e.index) if type(e) is Pick else (e, 0) for e in self.edges)

    def backward(self, grads: list[Any], wrap: Callable[[Node, Any], Any], keep: bool) -> Sequence[Any]:
        """Gradients of the inputs, given those of the results; ``wrap`` makes a tensor of a saved node and its own edge."""
        saved = self.saved
        if saved is None:
            raise RuntimeError(
                f"backward through {self.call.op.name} a second time: its saved values were released by the first backward. "
                f"Pass retain_graph=True to the first. Recorded at {describe_location(self.where)}"
            )
        op = self.call.op
        values = {}
        for index, node in zip(self.call.saves, saved, strict=True):
            values[index] = wrap(node, self.edges[index] if index >= 0 else self if index == OUT else Pick(self, OUT - index))
        if not keep:
            self.saved = None
        needs = tuple([e is not None for e in self.edges])
        out = gradient_rule(op)(VjpContext(self.call, values, needs), *grads)
        out = out if isinstance(out, tuple | list) else (out,)
        if len(out) != len(self.edges):
            raise RuntimeError(f"the gradient rule of {op.name} returned {len(out)} gradients for {len(self.edges)} inputs")
        return out

    def release(self) -> None:
        self.saved = None

    def __repr__(self) -> str:
        return f"<{self.name()}>"


class Pick:
    """Result ``index`` of a gradient function with several results."""

    __slots__ = ("__weakref__", "index", "parent")

    def __init__(self, parent: Any, index: int) -> None:
        self.parent = parent
        self.index = index

    @property
    def metas(self) -> tuple[Meta, ...]:
        return (self.parent.metas[self.index],)

    def name(self) -> str:
        return self.parent.name()

    @property
    def next_functions(self) -> Any:
        return self.parent.next_functions

    def __repr__(self) -> str:
        return f"<{self.name()} result {self.index}>"


class Accumulate:
    """Where the gradients of one leaf arrive. Holds the leaf's ``grad``; knows its meta, never the tensor."""

    __slots__ = ("__weakref__", "grad", "hooks", "meta", "post_hooks")

    def __init__(self, meta: Meta) -> None:
        self.meta = meta
        self.grad: Any = None
        self.hooks: Any = None
        self.post_hooks: Any = None

    @property
    def metas(self) -> tuple[Meta, ...]:
        return (self.meta,)

    edges = ()
    next_functions = ()

    def name(self) -> str:
        return "AccumulateGrad"

    def __repr__(self) -> str:
        return "<AccumulateGrad>"


Edge = GradFn | Pick | Accumulate | None


class _Walk:
    """One backward walk: how many gradients each function still waits for, and those that have come."""

    def __init__(self, roots: list[tuple[Any, Any]], targets: set[Any] | None) -> None:
        self.slots: dict[Any, Any] = {}
        self.waiting: dict[Any, int] = {}
        self.useful: set[Any] | None = None
        self._count(roots)
        if targets is not None:
            self._mark_useful(roots, targets)

    def _count(self, roots: list[tuple[Any, Any]]) -> None:
        # Kahn's order over functions; a Pick counts for its parent.
        seen = set()
        stack = [_owner(e) for e, _ in roots]
        for f in stack:
            self.waiting.setdefault(f, 0)
        while stack:
            f = stack.pop()
            if f in seen:
                continue
            seen.add(f)
            for e in f.edges:
                if e is not None:
                    owner = _owner(e)
                    self.waiting[owner] = self.waiting.get(owner, 0) + 1
                    if owner not in seen:
                        stack.append(owner)

    def _mark_useful(self, roots: list[tuple[Any, Any]], targets: set[Any]) -> None:
        """Functions from which some target is reached; only these need to run."""
        order: list[Any] = []
        seen = set()
        stack: list[tuple[Any, bool]] = [(_owner(e), False) for e, _ in roots]
        while stack:
            f, done = stack.pop()
            if done:
                order.append(f)
                continue
            if f in seen:
                continue
            seen.add(f)
            stack.append((f, True))
            stack.extend((_owner(e), False) for e in f.edges if e is not None)
        useful = {_owner(t) for t in targets}
        for f in order:
            if f not in useful and any(e is not None and (e in targets or _owner(e) in useful) for e in f.edges):
                useful.add(f)
        self.useful = useful

    def add(self, edge: Any, grad: Any) -> None:
        owner = _owner(edge)
        slots = self.slots.get(owner)
        if slots is None:
            slots = self.slots[owner] = [None] * len(owner.metas)
        index = edge.index if type(edge) is Pick else 0
        slots[index] = grad if slots[index] is None else slots[index] + grad


def _owner(edge: Any) -> Any:
    return edge.parent if type(edge) is Pick else edge


def add_hook(edge: Any, hook: Callable[[Any], Any]) -> Callable[[], None]:
    """Run ``hook(gradient)`` when the gradient of ``edge`` is complete; a result that is not None replaces it. Returns the remover."""
    owner, index = (edge.parent, edge.index) if type(edge) is Pick else (edge, 0)
    if owner.hooks is None:
        owner.hooks = {}
    hooks = owner.hooks.setdefault(index, {})
    token = object()
    hooks[token] = hook
    return lambda: hooks.pop(token, None) and None


def _run_hooks(hooks: dict[Any, Any], grad: Any) -> Any:
    for hook in list(hooks.values()):
        new = hook(grad)
        if new is not None:
            grad = new
    return grad


def run_backward(
    roots: list[tuple[Any, Any]],
    wrap: Callable[[Node, Any], Any],
    keep: bool,
    targets: list[Any] | None = None,
    accumulate: Callable[[Accumulate, Any], None] | None = None,
    retained: dict[Any, Callable[[Any], None]] | None = None,
) -> dict[Any, Any]:
    """Send gradients from ``roots`` (edge, gradient) down to the leaves; iterative.

    Args:
        targets: edges whose gradients are wanted (for ``grad``); None for all leaves (for ``backward``).
        accumulate: what to do with a leaf's gradient; None keeps leaves untouched.

    Returns:
        edge -> gradient for the targets that were reached.
    """
    if autocast.dtype is not None:  # gradients have the dtypes that the forward pass recorded
        lower, autocast.dtype = autocast.dtype, None
        try:
            return run_backward(roots, wrap, keep, targets, accumulate, retained)
        finally:
            autocast.dtype = lower
    target_set = None if targets is None else set(targets)
    walk = _Walk(roots, target_set)
    found: dict[Any, Any] = {}
    for edge, grad in roots:
        walk.add(edge, grad)
    ready = [f for f in dict.fromkeys(_owner(e) for e, _ in roots) if walk.waiting[f] == 0]
    while ready:
        f = ready.pop()
        slots = walk.slots.pop(f, None)
        if slots is not None:
            _apply_edge_hooks(f, slots)
            if target_set is not None:
                _collect_targets(f, slots, target_set, found)
            if type(f) is Accumulate:
                if accumulate is not None and slots[0] is not None:
                    accumulate(f, slots[0])
                continue
        if type(f) is Accumulate:
            continue
        run = slots is not None and any(s is not None for s in slots) and (walk.useful is None or _leads_on(f, walk, target_set))
        grads = f.backward(slots, wrap, keep) if run else (None,) * len(f.edges)
        for edge, g in zip(f.edges, grads, strict=True):
            if edge is None:
                continue
            if g is not None:
                walk.add(edge, g)
            owner = _owner(edge)
            walk.waiting[owner] -= 1
            if walk.waiting[owner] == 0:
                ready.append(owner)
    return found


def _leads_on(f: Any, walk: _Walk, targets: Any) -> bool:
    useful = walk.useful or set()
    return any(e is not None and (e in targets or _owner(e) in useful) for e in f.edges)


def _apply_edge_hooks(f: Any, slots: list[Any]) -> None:
    if f.hooks:
        for i, hooks in f.hooks.items():
            if slots[i] is not None:
                slots[i] = _run_hooks(hooks, slots[i])


def _collect_targets(f: Any, slots: list[Any], targets: set[Any], found: dict[Any, Any]) -> None:
    if f in targets:
        found[f] = slots[0]
    for t in targets:
        if type(t) is Pick and t.parent is f and slots[t.index] is not None:
            found[t] = slots[t.index]
