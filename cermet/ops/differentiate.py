"""Gradients of composites, derived from their decompositions.

A composite whose record says ``vjp="auto"`` records one node for its whole gradient, `composite_vjp`. Inside the compiler that node is
decomposed by running the composite's decomposition and differentiating it in reverse, node by node; what it shares with the forward
decomposition is merged by common-subexpression elimination. The gradient node is itself a composite, so it can be differentiated again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cermet.graph.node import Call, Meta, Node, toposort
from cermet.ops.define import OUT, OpDef, VjpContext, constant, getitem
from cermet.ops.movement import expand

__all__ = ["composite_vjp", "node_vjp"]


def node_vjp(outputs: Sequence[Node], grads: Sequence[Node | None], inputs: Sequence[Node]) -> list[Node | None]:
    """Reverse-mode differentiation of a graph of nodes.

    Args:
        outputs: nodes to differentiate; grads: their gradients (None where there is none).
        inputs: nodes with respect to which. The graph between must consist of differentiable calls.
    """
    wanted = set(inputs)
    order = toposort(list(outputs))
    leads = set(wanted)
    for n in order:
        if n not in leads and any(i in leads for i in n.inputs):
            leads.add(n)
    slots: dict[tuple[Node, int], Node] = {}
    for n, g in zip(outputs, grads, strict=True):
        if g is not None:
            _add(slots, n, g)
    for n in reversed(order):
        if n in wanted or n not in leads or not n.inputs or n.call.op.name == "item":
            continue
        outs = n.call.outs
        gs = [slots.get((n, k)) for k in range(len(outs) if outs else 1)]
        if all(g is None for g in gs) or not n.call.differentiable:
            continue
        needs = tuple([i in leads and i.meta.dtype.kind == "f" for i in n.inputs])
        for i, g in zip(n.inputs, _apply_vjp(n, gs, needs), strict=True):
            if g is not None and i in leads:
                _add(slots, i, g)
    return [slots.get((n, 0)) for n in inputs]


def _add(slots: dict[tuple[Node, int], Node], node: Node, g: Node) -> None:
    key = (node.inputs[0], node.call.attrs[0]) if node.call.op.name == "item" else (node, 0)
    slots[key] = slots[key] + g if key in slots else g


def _apply_vjp(n: Node, gs: list[Any], needs: tuple[bool, ...]) -> Sequence[Any]:
    op = n.call.op
    saved: dict[int, Any] = {}
    for i in n.call.saves:
        saved[i] = n.inputs[i] if i >= 0 else getitem(n, OUT - i) if n.call.outs else n
    out = gradient_rule(op)(VjpContext(n.call, saved, needs), *gs)
    return out if isinstance(out, tuple | list) else (out,)


def gradient_rule(op: OpDef) -> Any:
    """The op's vjp, or the derived one."""
    return auto_vjp if op.vjp == "auto" else op.vjp


def auto_vjp(c: VjpContext, *gs: Any) -> tuple[Any, ...]:
    """Record one `composite_vjp` node for all gradients that are needed."""
    call = c.call
    outs = call.outs or (call.meta,)
    present = tuple([g is not None for g in gs])
    out = composite_vjp(
        *[g for g in gs if g is not None], *[c[i] for i in range(len(call.inputs))], call=call, needs=c.needs, present=present
    )
    assert len(outs) == len(gs)
    results = iter(out if isinstance(out, tuple) else (out,))
    return tuple([next(results) if need else None for need in c.needs])


def _infer(*metas: Meta, call: Call, needs: tuple[bool, ...], present: tuple[bool, ...]) -> Any:
    found = tuple([m for m, need in zip(call.inputs, needs, strict=True) if need])
    return found if len(found) > 1 else found[0]


def _decompose(*nodes: Node, call: Call, needs: tuple[bool, ...], present: tuple[bool, ...]) -> Any:
    count = sum(present)
    given, inputs = nodes[:count], nodes[count:]
    outs = call.op.decompose(*inputs, **call.op.named(call))
    outs = list(outs) if isinstance(outs, tuple) else [outs]
    it = iter(given)
    gs = [next(it) if p else None for p in present]
    # Distinct handles for the inputs keep an input that is used twice, or passed through, apart.
    wanted = [n for n, need in zip(inputs, needs, strict=True) if need]
    found = node_vjp(outs, gs, wanted)
    result = tuple([_zeros(n) if g is None else g for n, g in zip(wanted, found, strict=True)])
    return result if len(result) > 1 else result[0]


def _zeros(n: Node) -> Node:
    return expand(constant(0, n.meta.dtype, n), shape=n.meta.shape)


composite_vjp = OpDef(
    "composite_vjp",
    "composite",
    _infer,
    attrs=("call", "needs", "present"),
    vjp="auto",
    decompose=_decompose,
    doc="The gradients of a composite op, derived from its decomposition.",
)
