"""How a step of an optimizer is recorded: the updates of all parameters of a group in one go.

Recording an update means nodes for it and for each of its results; that is done here in one loop, without tensors around values that nobody
sees, without walking the stack for each, and with what depends on an update's call alone (the calls that pick its results) kept with it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from cermet.frontend.core import new_tensor, node_of, on_recorded, write
from cermet.frontend.gradients import Accumulate
from cermet.frontend.trace import Trace, trace
from cermet.graph.node import Call, Node
from cermet.lazy.record import local, record
from cermet.ops.define import OpDef, getitem

__all__ = ["put", "record_rule", "record_updates"]

_new = object.__new__
_picks: dict[Call, tuple[Call, ...]] = {}  # an update's call -> the calls that pick its results


def record_updates(
    op: OpDef, attrs: tuple[Any, ...], entries: Sequence[tuple[Any, ...]], numbers: Sequence[Node], where: Any
) -> None:
    """Record ``op`` on (parameter, gradient, states, numbers) for each entry (parameter, states), and make its results the values of the
    entry's tensors. Every parameter has a gradient.

    Args:
        numbers: run-time scalars that all entries share. where: the user's line.
    """
    tape = local.tape
    calls, tail = op.calls, tuple(numbers)
    tail_metas = tuple([n.meta for n in tail])
    node = None
    for kept in entries:
        p = kept[0]
        fn = p._fn
        g = fn.grad if type(fn) is Accumulate else p.grad
        nodes = [p._node if p._alias is None else node_of(p), g._node if g._alias is None else node_of(g)]
        metas = [nodes[0].meta, nodes[1].meta]
        for t in kept[1:]:
            n = t._node if t._alias is None else node_of(t)
            nodes.append(n)
            metas.append(n.meta)
        signature = (attrs, (*metas, *tail_metas))
        call = calls.get(signature) or op.call_for(*signature)
        node = record(tape, call, (*nodes, *tail), where)
        if call.outs is None:
            put(p, node)
            tape.nbytes += call.meta.nbytes
            continue
        picks = _picks.get(call)
        if picks is None:
            if len(_picks) > 20_000:  # as many as `OpDef.call_for` keeps
                _picks.clear()
            picks = _picks[call] = tuple([getitem(node, i).call for i in range(len(call.outs))])
        made = (node,)
        key, pending, pos = tape.key, tape.nodes, node.pos
        for t, pick in zip(kept, picks, strict=True):
            # `record`, for an input that was recorded just now: most nodes of a step are made here.
            key += (pick.id, pos)
            result = _new(Node)
            result.call = pick
            result.inputs = made
            m = result.meta = pick.meta
            result.buffer = None
            result.epoch = node.epoch
            result.pos = len(pending)
            result.where = where
            pending.append(result)
            tape.nbytes += m.nbytes
            if t._alias is None:
                t._node = result
            else:
                put(t, result)
    if node is not None:
        on_recorded(tape, node)


_rules: dict[Any, Trace] = {}  # (rule, its options, metas) -> what it records


def record_rule(
    name: Any, rule: Callable[..., Sequence[Any]], options: tuple[Any, ...], tensors: Sequence[Any], where: Any
) -> Sequence[Any]:
    """The results of ``rule(*tensors)``, a function that computes with tensors and does nothing else.

    The first call with tensors of some metas runs the rule; later ones record the same nodes without running it. Gradients are not
    recorded while this is used.

    Args:
        name, options: what the rule does follows from these and the metas; hashable. where: the user's line.
    """
    tape = local.tape
    handles = [new_tensor(node_of(t)) for t in tensors]
    nodes = [t._node for t in handles]
    if tape.eager or tape.capture is not None or len(set(nodes)) != len(nodes):
        return rule(*handles)
    key = (name, options, tuple([n.meta for n in nodes]))
    known = _rules.get(key)
    if known is not None:
        return known.replay(handles, where)
    epoch, before = tape.epoch, len(tape.nodes)
    out = tuple(rule(*handles))
    if tape.epoch is epoch:
        made = trace(handles, tape.nodes[before:], out, tuple, False)
        if made is not None:
            if len(_rules) > 4096:
                _rules.clear()
            _rules[key] = made
    return out


def put(t: Any, node: Node) -> None:
    """Make a node of its meta the new value of a tensor, under no_grad."""
    if t._alias is None:
        t._node = node
    else:
        write(t, new_tensor(node))
