"""The Tensor handle: how an op on tensors is recorded, how aliases share a storage, how in-place writes reach every alias.

A tensor is a handle on a node. One that shares memory with others also holds an `Alias`: the storage (current version of the base value),
the history (its gradient function), and the chain of movement ops by which it views the base. A write through any alias makes a new version
of the base, by ops, so it is differentiable and never disturbs what was saved.

This room knows recording and gradients; it must not know how values are computed, formatted or exchanged with other libraries.
"""

from __future__ import annotations

from typing import Any

from cermet.frontend.gradients import Accumulate, GradFn, Pick
from cermet.graph.node import Call, Meta, Node
from cermet.lazy.record import Tape, local, number_node, record, scalar_node, user_location
from cermet.ops.define import OUT, OpDef, getitem, hooks

__all__ = ["Alias", "History", "Storage", "TensorBase", "apply", "new_tensor", "on_recorded"]


class Storage:
    """The current version of a value that several tensors share."""

    __slots__ = ("node", "version")

    def __init__(self, node: Node) -> None:
        self.node = node
        self.version = 0


class History:
    """The gradient function of a storage's current version, as seen by one base tensor and its views."""

    __slots__ = ("fn",)

    def __init__(self, fn: Any) -> None:
        self.fn = fn


class Alias:
    """How one tensor views a storage. ``chain`` holds (op, attrs) from the base to this tensor."""

    __slots__ = ("chain", "history", "storage", "version")

    def __init__(self, storage: Storage, history: History, chain: tuple[Any, ...]) -> None:
        self.storage = storage
        self.history = history
        self.chain = chain
        self.version = storage.version


class TensorBase:
    """Slots of a tensor; `cermet.frontend.tensor.Tensor` adds what users see.

    _node: the value. _fn: where its gradient goes (`GradFn`, `Pick`, `Accumulate`) or None. _alias: None while nothing shares its memory.
    _retain: whether a non-leaf keeps its gradient. _grad: that gradient.
    """

    __slots__ = ("__dict__", "__weakref__", "_alias", "_fn", "_grad", "_node")

    _node: Node
    _fn: Any
    _alias: Alias | None
    _grad: Any


_new = object.__new__
tensor_type: Any = TensorBase
evaluate_hook: list[Any] = [None]


def new_tensor(node: Node, fn: Any = None) -> Any:
    """A plain tensor on ``node``."""
    t = _new(tensor_type)
    t._node = node
    t._fn = fn
    t._alias = None
    t._grad = None
    return t


def node_of(t: TensorBase) -> Node:
    """The node of the tensor's current value."""
    if t._alias is not None and t._alias.version != t._alias.storage.version:
        _sync(t)
    return t._node


def fn_of(t: TensorBase) -> Any:
    """Where the tensor's gradient goes, for its current value."""
    if t._alias is not None and t._alias.version != t._alias.storage.version:
        _sync(t)
    return t._fn


def _sync(t: TensorBase) -> None:
    """Bring a tensor whose storage has a newer version up to it, by replaying its chain."""
    alias = t._alias
    assert alias is not None
    current = new_tensor(alias.storage.node, alias.history.fn)
    alias.version = alias.storage.version
    tape = local.tape
    before, tape.grad = tape.grad, True  # a view of a tracked base is tracked wherever it is looked at
    try:
        for op, attrs in alias.chain:
            current = apply(op, (current,), attrs)
    finally:
        tape.grad = before
    t._node = current._node
    if not (type(t._fn) is Accumulate and alias.history.fn is None):
        t._fn = current._fn


def on_recorded(tape: Tape, node: Node) -> None:
    """What happens after each recorded node beside recording: eager evaluation, and the limits on what may be pending."""
    if tape.eager or len(tape.nodes) > tape.most_nodes or tape.nbytes > tape.most_bytes:
        evaluate_hook[0](tape)


def apply(op: OpDef, tensors: tuple[Any, ...], attrs: tuple[Any, ...] = ()) -> Any:
    """Record ``op`` on tensors (Python numbers among them become run-time scalars of the first tensor's dtype).

    Returns:
        The result; of an op with several results, a tuple of them.
    """
    nodes = []
    metas = []
    fns = []
    tracked = False
    for t in tensors:
        if not isinstance(t, TensorBase):
            return _apply_mixed(op, tensors, attrs)
        alias = t._alias
        if alias is not None and alias.version != alias.storage.version:
            _sync(t)
        node = t._node
        nodes.append(node)
        metas.append(node.meta)
        fn = t._fn
        fns.append(fn)
        if fn is not None:
            tracked = True
    call = op.calls.get((attrs, tuple(metas)))
    if call is None:
        call = op.call_for(attrs, tuple(metas))
    return finish(call, tuple(nodes), tuple(fns) if tracked and call.differentiable else None)


def _apply_mixed(op: OpDef, tensors: tuple[Any, ...], attrs: tuple[Any, ...]) -> Any:
    """`apply` with numbers or nodes among the inputs."""
    like = next((t for t in tensors if isinstance(t, TensorBase)), None)
    if like is None:
        raise TypeError(f"{op.name}: expected at least one tensor among its inputs, got {[type(t).__name__ for t in tensors]}")
    m = node_of(like).meta
    wrapped = []
    for t in tensors:
        if not isinstance(t, TensorBase):
            t = new_tensor(t if type(t) is Node else number_node(t, m))
        wrapped.append(t)
    return apply(op, tuple(wrapped), attrs)


def finish(call: Call, inputs: tuple[Node, ...], fns: tuple[Any, ...] | None) -> Any:
    """Record a call and wrap its result; ``fns`` are the inputs' edges where some input is tracked, else None."""
    tape = local.tape
    node = record(tape, call, inputs, user_location(2))
    if fns is not None and tape.grad:
        fn: Any = _new(GradFn)  # `GradFn(call, fns, saved, node.where)`, without a call of its __init__
        fn.call = call
        fn.edges = fns
        fn.where = node.where
        fn.hooks = None
        saves = call.saves
        if not saves:
            fn.saved = ()
        elif len(saves) == 1:
            i = saves[0]
            fn.saved = (node if i < 0 else inputs[i],)
        else:
            fn.saved = tuple([node if i < 0 else inputs[i] for i in saves])
    else:
        fn = None
    if call.outs is not None:
        return _finish_many(tape, node, fn)
    t = _new(tensor_type)
    t._node = node
    t._fn = fn
    t._alias = None
    t._grad = None
    tape.nbytes += call.meta.nbytes
    if tape.eager or len(tape.nodes) > tape.most_nodes or tape.nbytes > tape.most_bytes:
        evaluate_hook[0](tape)
    return t


def _finish_many(tape: Tape, node: Node, fn: Any) -> tuple[Any, ...]:
    out = []
    for i, m in enumerate(node.call.outs or ()):
        template = getitem(node, i)
        picked = record(tape, template.call, (node,), node.where)
        edge = Pick(fn, i) if fn is not None and m.dtype.kind == "f" else None
        out.append(new_tensor(picked, edge))
        tape.nbytes += m.nbytes
    if fn is not None and OUT in fn.call.saves:
        fn.saved = tuple([out[OUT - i]._node if i < 0 else s for i, s in zip(fn.call.saves, fn.saved, strict=True)])
    on_recorded(tape, node)
    return tuple(out)


# ---------------------------------------------------------------------------------------------------------------- aliases


def share(t: TensorBase) -> Alias:
    """The tensor's alias record, made now if nothing shared its memory so far."""
    alias = t._alias
    if alias is None:
        alias = t._alias = Alias(Storage(t._node), History(t._fn), ())
    elif alias.version != alias.storage.version:
        _sync(t)
    return alias


def view(op: OpDef, t: TensorBase, attrs: tuple[Any, ...]) -> Any:
    """A tensor that shares memory with ``t`` through one movement op."""
    out = apply(op, (t,), attrs)
    alias = share(t)
    out._alias = Alias(alias.storage, alias.history, (*alias.chain, (op, attrs)))
    return out


def detached(t: TensorBase) -> Any:
    """A tensor that shares memory with ``t`` and takes no part in its gradients."""
    alias = share(t)
    out = new_tensor(t._node, None)
    out._alias = Alias(alias.storage, History(None), alias.chain)
    return out


def write(t: TensorBase, value: TensorBase) -> None:
    """Make ``value`` (same shape and dtype) the new value of ``t`` and of everything that shares its memory.

    Raises:
        RuntimeError: for a leaf that requires grad while gradients are recorded, for a view of one, and for views whose elements overlap.
    """
    tape = local.tape
    check_writable(t)
    alias = t._alias
    if alias is None:
        t._node = value._node
        if (tape.grad and type(t._fn) is not Accumulate) or (tape.grad and value._fn is not None):
            t._fn = value._fn
        return
    old_fn = alias.history.fn
    base = _write_through(alias, value)
    storage = alias.storage
    storage.node = base._node
    storage.version += 1
    if tape.grad:
        if base._fn is not None or type(old_fn) is not Accumulate:
            alias.history.fn = base._fn
    if not alias.chain:
        alias.version = storage.version
        t._node = storage.node
        if tape.grad and not (type(t._fn) is Accumulate and base._fn is None):
            t._fn = alias.history.fn
    else:
        _sync(t)


def check_writable(t: TensorBase) -> None:
    """Raise where an in-place write would change a leaf that gradients are recorded for."""
    if not local.tape.grad:
        return
    if type(t._fn) is Accumulate:
        raise RuntimeError(
            "in-place write to a leaf whose gradient is wanted: nothing could be recorded before its present value; wrap the write "
            "in `with cermet.no_grad():`, or write to a .clone()"
        )
    if t._alias is not None and t._alias.chain and type(t._alias.history.fn) is Accumulate:
        raise RuntimeError(
            "in-place write to a view of a leaf whose gradient is wanted: it would change the leaf too; wrap the write in "
            "`with cermet.no_grad():`, or write to a .clone()"
        )


def _write_through(alias: Alias, value: TensorBase) -> Any:
    """The base's new value after ``value`` is written where the chain views it."""
    if not alias.chain:
        return value
    levels = [new_tensor(alias.storage.node, alias.history.fn)]
    for op, attrs in alias.chain[:-1]:
        levels.append(apply(op, (levels[-1],), attrs))
    update: Any = value
    for (op, attrs), base in zip(reversed(alias.chain), reversed(levels), strict=True):
        if op.write is None:
            raise RuntimeError(
                f"in-place write to a view made by {op.name}: several of its elements refer to one memory location; "
                "write to a .clone() or to the tensor it views"
            )
        update = op.write(base, update, **dict(zip(op.attrs, attrs, strict=True)))
    return update


def data_tensor(m: Meta, buffer: Any) -> Any:
    """A tensor on a value in memory."""
    from cermet.ops.leaf import data_call

    return new_tensor(Node(data_call(m), (), buffer))


def scalar_tensor(value: Any, dtype: Any, device: Any) -> Any:
    """A 0-dimensional tensor on a run-time scalar."""
    return new_tensor(scalar_node(value, dtype, device))


def is_leaf(t: TensorBase) -> bool:
    return not isinstance(fn_of(t), GradFn | Pick)


def looked() -> None:
    """Note that what is recorded next depends on more than the metas of the tensors given (see `cermet.frontend.memo`)."""
    local.tape.looks += 1


hooks.apply_tensor = apply
hooks.looked = looked
hooks.finish = finish
hooks.view = view
