"""Public functions that were called before with arguments of the same kinds.

What a public function does with its arguments (names, defaults, promotion, shape checks) follows from the metas of its tensors and the
values of all else. Where all of that ends in recorded operators on the tensors that were passed, or in a view of one of them, the outcome is
remembered by this signature: the next such call puts the same nodes on the tape, and gives them the same gradient functions. A call is
remembered only if nothing else came of it: no write, no random number drawn, no value looked at, no choice by how a view lies in memory,
no gradient cut off.
"""

from __future__ import annotations

from typing import Any

from cermet import dtypes as dt
from cermet.frontend.core import Alias, TensorBase, finish, new_tensor, node_of, on_recorded, share
from cermet.frontend.gradients import GradFn
from cermet.frontend.trace import MOST_NODES, trace
from cermet.graph.node import Call, Node
from cermet.lazy.record import local, record, user_location
from cermet.ops.autocast import state as autocast
from cermet.ops.define import OUT
from cermet.ops.movement import reshape, slice_
from cermet.ops.public import Entry, dispatch

__all__ = ["call", "row"]

MOST = 1024  # signatures kept of one function
TRIES = 32  # calls after which a function of which none could be remembered is left alone

_PLAIN = frozenset((int, float, bool, str, type(None), dt.DType))
_WHOLE = frozenset((int,))
_SEQUENCES = frozenset((tuple, list))
_BOUNDS = frozenset((int, type(None)))
_NEVER: Any = (None, None, None)  # known of a signature: its calls cannot be remembered
_VIEWED = object()  # in a signature: the tensor that follows is a view, of which reshaping may need a copy


def call(entry: Entry, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call the public function of ``entry``."""
    tape = local.tape
    if tape.capture is not None or tape.eager:
        return entry.fn(*args, **kwargs)
    key: list[Any] = [tape.grad, autocast.dtype]
    add = key.append
    tensors: list[Any] = []
    values: Any = args
    if kwargs:
        add(tuple(kwargs))
        values = (*args, *kwargs.values())
    for a in values:
        kind = type(a)
        if kind in _PLAIN:
            add(kind)
            add(a)
            if kind is float and a == 0:
                add(repr(a))  # equal, and yet another number: -0.0
        elif isinstance(a, TensorBase):
            alias = a._alias
            if alias is not None:
                if alias.version != alias.storage.version:
                    node_of(a)
                if alias.chain:
                    add(_VIEWED)
            add(a._node.meta)
            add(a._fn is None)
            tensors.append(a)
        elif kind in _SEQUENCES and _WHOLE.issuperset(map(type, a)):
            add(kind)
            add(tuple(a))
        else:
            plain = _listed(a, tensors) if kind in _SEQUENCES else None
            if plain is None:
                plain = _index_key(a)
                if plain is None:
                    return entry.fn(*args, **kwargs)
            add(plain)
    signature = tuple(key)
    known = entry.seen.get(signature)
    if known is None:
        return _first(entry, args, kwargs, signature, tensors)
    made, places, default = known
    if default is not dt._default:
        return entry.fn(*args, **kwargs)
    if type(made) is not Call:
        return _viewed(tensors[0], made, places) if type(made) is tuple else made.replay(tensors)
    inputs = []
    fns = []
    tracked = False
    for place in places:
        if type(place) is int:
            t = tensors[place]
            inputs.append(t._node)
            fn = t._fn
            fns.append(fn)
            if fn is not None:
                tracked = True
        else:
            inputs.append(Node(place[0], (), place[1]))
            fns.append(None)
    return finish(made, tuple(inputs), tuple(fns) if tracked and made.differentiable else None)


def _index_key(a: Any) -> Any:
    """An index of slices, whole numbers, None and Ellipsis in a form that can be hashed; None for anything else."""
    out: list[Any] = []
    for item in a if type(a) is tuple else (a,):
        kind = type(item)
        if kind is slice:
            bounds = (item.start, item.stop, item.step)
            if not _BOUNDS.issuperset(map(type, bounds)):
                return None
            out.append(bounds)
        elif kind is int or item is None or item is Ellipsis:
            out.append(item)
        else:
            return None
    return (type(a), tuple(out))


def _listed(a: Any, tensors: list[Any]) -> Any:
    """The key of a list or tuple of tensors, which are added to ``tensors``; None where it holds anything else."""
    out: list[Any] = [type(a)]
    for t in a:
        if not isinstance(t, TensorBase):
            return None
    for t in a:
        node = node_of(t)
        alias = t._alias
        out += (node.meta, t._fn is None, alias is not None and bool(alias.chain))
        tensors.append(t)
    return tuple(out)


def row(t: Any, index: int) -> Any:
    """``t[index]`` for a whole number in range: a view. Loops over rows ask for many different ones, so none is remembered."""
    m = t._node.meta
    shape = m.shape
    rest = shape[1:]
    attrs = ((index % shape[0],) + (0,) * len(rest), (1,) * len(shape), (1, *rest))
    first = slice_.calls.get((attrs, (m,))) or slice_.call_for(attrs, (m,))
    last = reshape.calls.get(((rest,), (first.meta,))) or reshape.call_for((rest,), (first.meta,))
    return _viewed(t, (first, last), ((slice_, attrs), (reshape, (rest,))))


def _viewed(t: Any, calls: tuple[Call, ...], links: tuple[Any, ...]) -> Any:
    """The view of ``t`` through some movement ops; ``links``: what they add to its chain."""
    tape = local.tape
    where = user_location(3)
    node, fn = t._node, t._fn if tape.grad else None
    for call in calls:
        before, node = node, record(tape, call, (node,), where)
        tape.nbytes += call.meta.nbytes
        if fn is not None:
            fn = (
                GradFn(call, (fn,), tuple([node if i == OUT else before for i in call.saves]), where)
                if call.differentiable
                else None
            )
    out = new_tensor(node, fn)
    alias = share(t)
    out._alias = Alias(alias.storage, alias.history, (*alias.chain, *links))
    if tape.eager or len(tape.nodes) > tape.most_nodes or tape.nbytes > tape.most_bytes:
        on_recorded(tape, node)
    return out


def _first(entry: Entry, args: Any, kwargs: Any, signature: Any, tensors: list[Any]) -> Any:
    """Call the function itself, and remember the call if it was one operator on its tensors."""
    tape = local.tape
    epoch, before, looks = tape.epoch, len(tape.nodes), tape.looks
    nodes = [t._node for t in tensors]
    if len(entry.seen) >= MOST:
        entry.seen.clear()
    out = entry.fn(*args, **kwargs)
    if tape.epoch is not epoch or len(set(nodes)) != len(nodes):
        return out  # something was evaluated, or one value came under two names: tells nothing of other calls
    if tape.looks == looks and _remembered(entry, signature, tensors, nodes, out, tape.nodes[before:], tape.grad):
        entry.tries = 0
        return out
    entry.seen[signature] = _NEVER
    entry.tries += 1
    if entry.tries > TRIES and all(known is _NEVER for known in entry.seen.values()):
        entry.plain = True
        entry.seen.clear()
    return out


def _remembered(
    entry: Entry, signature: Any, tensors: list[Any], nodes: list[Node], out: Any, recorded: list[Node], grad: bool
) -> bool:
    single = isinstance(out, TensorBase)
    outs = [out] if single else list(out) if isinstance(out, tuple) else []
    if not (0 < len(recorded) <= MOST_NODES and outs and all(isinstance(t, TensorBase) for t in outs)):
        return False
    if any(t._node is not n for t, n in zip(tensors, nodes, strict=True)):
        return False  # a write to an argument
    if single and out._alias is not None:
        return len(tensors) == 1 and _remembered_view(entry, signature, tensors[0], out, recorded, grad)
    if any(t._alias is not None for t in outs):
        return False
    plan = trace(tensors, recorded, outs, None if single else type(out), grad)
    if plan is None:
        return False
    known: Any = (plan, None, dt._default)
    if single and len(recorded) == 1:  # by far the commonest; `finish` needs no more
        steps = plan.steps
        call, places, _ = steps[-1]
        inputs = [k if k < len(tensors) else (steps[k - len(tensors)][0], steps[k - len(tensors)][2]) for k in places]
        known = (call, tuple(inputs), dt._default)
    entry.seen[signature] = known
    return True


def _remembered_view(entry: Entry, signature: Any, t: Any, out: Any, recorded: list[Node], grad: bool) -> bool:
    if out is t or out._node is not recorded[-1]:
        return False
    old, new = t._alias, out._alias
    if old is None or new.storage is not old.storage or new.history is not old.history:
        return False
    links = new.chain[len(old.chain) :]
    calls = tuple([n.call for n in recorded])
    if new.chain[: len(old.chain)] != old.chain or [(c.op, c.attrs) for c in calls] != list(links):
        return False
    if any(n.inputs != (i,) for n, i in zip(recorded, [t._node, *recorded[:-1]], strict=True)):
        return False
    fn = out._fn
    if grad and t._fn is not None:
        for call in reversed(calls):
            if type(fn) is not GradFn or fn.call is not call:
                return False
            fn = fn.edges[0]
        if fn is not t._fn:
            return False
    elif fn is not None:
        return False
    entry.seen[signature] = (calls, links, dt._default)
    return True


dispatch[0] = call
