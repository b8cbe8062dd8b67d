"""What users call for gradients: backward, grad, the modes that switch recording of gradients, and Function."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from cermet.frontend.core import TensorBase, fn_of, new_tensor, node_of
from cermet.frontend.gradients import Accumulate, GradFn, Pick, run_backward
from cermet.frontend.replay import find, remember, replay, survey
from cermet.graph.node import Node
from cermet.lazy.record import local, number_node, user_location
from cermet.ops.define import hooks
from cermet.ops.support import full_value, unbroadcast

__all__ = ["Mode", "backward", "enable_grad", "grad", "inference_mode", "is_grad_enabled", "no_grad", "set_grad_enabled"]


class Mode:
    """A switch of the thread's modes: a context manager and a decorator (also for generators)."""

    def __init__(self, value: bool) -> None:
        self._value = value
        self._before: list[bool] = []

    def __enter__(self) -> Any:
        tape = local.tape
        self._before.append(tape.grad)
        tape.grad = self._value
        return self

    def __exit__(self, *_: Any) -> None:
        local.tape.grad = self._before.pop()

    def __call__(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        value = self._value

        @functools.wraps(fn)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            with Mode(value):
                return fn(*args, **kwargs)

        return wrapped


class no_grad(Mode):
    """Inside, nothing records gradients. Context manager or decorator (``@no_grad()`` or ``@no_grad``)."""

    def __new__(cls, fn: Callable[..., Any] | None = None) -> Any:
        if fn is not None:
            return Mode(False)(fn)
        return object.__new__(cls)

    def __init__(self, fn: Any = None) -> None:
        super().__init__(False)


class enable_grad(Mode):
    """Inside, gradients are recorded, also within ``no_grad``."""

    def __new__(cls, fn: Callable[..., Any] | None = None) -> Any:
        if fn is not None:
            return Mode(True)(fn)
        return object.__new__(cls)

    def __init__(self, fn: Any = None) -> None:
        super().__init__(True)


class set_grad_enabled(Mode):
    """Switch recording of gradients on or off, at once and, used as a context manager, until its end."""

    def __init__(self, mode: bool) -> None:
        super().__init__(bool(mode))
        self._outer = local.tape.grad
        local.tape.grad = self._value

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: Any) -> None:
        local.tape.grad = self._outer


class inference_mode(Mode):
    """As ``no_grad``; tensors made inside are ordinary ones."""

    def __new__(cls, mode: Any = True) -> Any:
        if callable(mode):
            return Mode(False)(mode)
        return object.__new__(cls)

    def __init__(self, mode: bool = True) -> None:
        super().__init__(not mode)


def is_grad_enabled() -> bool:
    """Whether gradients are recorded in this thread."""
    return local.tape.grad


def _plain(node: Node, _edge: Any) -> Any:
    return new_tensor(node)


def _tracked(node: Node, edge: Any) -> Any:
    return new_tensor(node, edge)


def _root_gradient(t: TensorBase, given: Any, name: str) -> Any:
    m = node_of(t).meta
    if given is None:
        if m.numel != 1:
            raise RuntimeError(
                f"{name}: gradients can be made up only for a result of one element, this one has shape {list(m.shape)}; "
                "pass its gradient, or reduce it first (.sum())"
            )
        return full_value(new_tensor(node_of(t)), 1, m.shape) if m.shape else new_tensor(number_node(1.0, m))
    g = hooks.to_tensor(given, dtype=None, like=t)
    if tuple(g.shape) != m.shape:
        raise RuntimeError(f"{name}: the gradient has shape {list(g.shape)}, the result {list(m.shape)}; they must be equal")
    return g if g.dtype is m.dtype else g.to(m.dtype)


def _roots(tensors: Sequence[Any], gradients: Any, name: str) -> list[tuple[Any, Any]]:
    if gradients is None:
        gradients = [None] * len(tensors)
    elif isinstance(gradients, TensorBase):
        gradients = [gradients]
    if len(gradients) != len(tensors):
        raise RuntimeError(f"{name}: {len(tensors)} results but {len(gradients)} gradients")
    roots = []
    for t, g in zip(tensors, gradients, strict=True):
        edge = fn_of(t)
        if edge is None:
            raise RuntimeError(
                f"{name}: the result of shape {list(t.shape)} does not require grad: it has no grad_fn. Was it made under no_grad, "
                "from integers, or of inputs without requires_grad=True?"
            )
        roots.append((edge, _root_gradient(t, g, name)))
    return roots


def _walk(roots: list[tuple[Any, Any]], keep: bool, create_graph: bool, targets: list[Any] | None) -> dict[Any, Any] | None:
    """Send gradients down from ``roots``: into ``grad`` of all leaves, or, with ``targets`` (edges), into the result by edge."""
    tape = local.tape
    accumulate = _accumulate if targets is None else None
    wrap = _tracked if create_graph else _plain
    found = (
        None
        if create_graph or tape.eager or tape.capture is not None
        else survey([(e, node_of(g)) for e, g in roots], keep, targets)
    )
    if found is None:
        return run_backward(roots, wrap, keep, targets, accumulate)
    plan = find(found, tape)
    if plan is not None:
        results = replay(plan, found, tape, user_location(3))
    else:
        epoch, before, nbytes = tape.epoch, len(tape.nodes), tape.nbytes
        results = []
        arrived = None if targets is not None else lambda f, g: results.append((f, 0, node_of(g)))
        for t, g in run_backward(roots, wrap, keep, targets, arrived).items():
            results.append((t.parent, t.index, node_of(g)) if type(t) is Pick else (t, 0, node_of(g)))
        if tape.epoch is epoch:
            remember(found, tape.nodes[before:], results, tape.nbytes - nbytes)
    # After the walk in both cases, so that both record the same nodes in the same order.
    if targets is None:
        for f, _, node in results:
            _accumulate(f, new_tensor(node))
        return None
    by_place = {(f, index): node for f, index, node in results}
    places = {t: (t.parent, t.index) if type(t) is Pick else (t, 0) for t in targets}
    return {t: new_tensor(by_place[place]) for t, place in places.items() if place in by_place}


def _accumulate(leaf: Accumulate, g: Any) -> None:
    # A fresh handle: the user may hold g through a hook, and .grad must not change under them.
    leaf.grad = new_tensor(node_of(g), fn_of(g)) if leaf.grad is None else leaf.grad + g
    if leaf.post_hooks:
        for hook, tensor_ref in list(leaf.post_hooks.values()):
            owner = tensor_ref()
            if owner is not None:
                hook(owner)


def backward(
    tensors: Any, grad_tensors: Any = None, retain_graph: bool | None = None, create_graph: bool = False, inputs: Any = None
) -> None:
    """Add the gradients of ``tensors`` to the ``grad`` of the leaves they were computed from (or of ``inputs`` alone).

    Args:
        grad_tensors: gradients of non-scalar ``tensors``, of their shapes.
        retain_graph: keep saved values for another backward; defaults to ``create_graph``.
        create_graph: record the gradients themselves, for higher derivatives.

    Raises:
        RuntimeError: for a result that does not require grad, a missing gradient, or a second walk over released values.
    """
    tensors = [tensors] if isinstance(tensors, TensorBase) else list(tensors)
    keep = create_graph if retain_graph is None else retain_graph
    tape = local.tape
    before = tape.grad
    tape.grad = create_graph
    try:
        roots = _roots(tensors, grad_tensors, "backward")
        if inputs is None:
            _walk(roots, keep, create_graph, None)
            return
        wanted = [inputs] if isinstance(inputs, TensorBase) else list(inputs)
        found = _walk(roots, keep, create_graph, [fn_of(t) for t in wanted]) or {}
        for t in wanted:
            edge = fn_of(t)
            if edge in found:
                if type(edge) is Accumulate:
                    _accumulate(edge, found[edge])
                else:
                    t._grad = found[edge] if t._grad is None else t._grad + found[edge]
    finally:
        tape.grad = before


def grad(
    outputs: Any,
    inputs: Any,
    grad_outputs: Any = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    allow_unused: bool | None = None,
    is_grads_batched: bool = False,
    materialize_grads: bool = False,
) -> tuple[Any, ...]:
    """Gradients of (the sum of) ``outputs`` with respect to ``inputs``, as a tuple; nothing is accumulated.

    Args:
        grad_outputs: gradients of non-scalar outputs.
        retain_graph, create_graph: as for `backward`.
        allow_unused: give None for an input that no output depends on, instead of an error.
        is_grads_batched: ``grad_outputs`` have a leading dimension of vectors; the results get it too.
        materialize_grads: zeros instead of None.
    """
    outputs = [outputs] if isinstance(outputs, TensorBase) else list(outputs)
    inputs = [inputs] if isinstance(inputs, TensorBase) else list(inputs)
    if is_grads_batched:
        return _batched_grad(outputs, inputs, grad_outputs, retain_graph, create_graph, allow_unused, materialize_grads)
    keep = create_graph if retain_graph is None else retain_graph
    for t in inputs:
        if fn_of(t) is None:
            raise RuntimeError(f"grad: the input of shape {list(t.shape)} does not require grad")
    tape = local.tape
    before = tape.grad
    tape.grad = create_graph
    try:
        roots = _roots(outputs, grad_outputs, "grad")
        found = _walk(roots, keep, create_graph, [fn_of(t) for t in inputs]) or {}
        out = []
        for k, t in enumerate(inputs):
            g = found.get(fn_of(t))
            if g is None and materialize_grads:
                g = full_value(new_tensor(node_of(t)), 0, t.shape)
            elif g is None and not allow_unused:
                raise RuntimeError(
                    f"grad: input {k} was not used to compute the outputs; pass allow_unused=True for None instead"
                )
            out.append(g)
        return tuple(out)
    finally:
        tape.grad = before


def _batched_grad(
    outputs: Any, inputs: Any, grad_outputs: Any, retain: Any, create: Any, unused: Any, zeros: Any
) -> tuple[Any, ...]:
    """Row by row; the graph is kept for all but the last."""
    from cermet.ops.public import PUBLIC

    stack = PUBLIC[("", "stack")].fn
    vectors: list[Any] = [grad_outputs] if isinstance(grad_outputs, TensorBase) else list(grad_outputs)
    count = vectors[0].shape[0]
    rows = []
    for k in range(count):
        keep = True if k + 1 < count else retain
        rows.append(grad(outputs, inputs, [v[k] for v in vectors], keep, create, unused, False, zeros))
    return tuple(None if column[0] is None else stack(list(column)) for column in zip(*rows, strict=True))


class FunctionContext:
    """What a `Function` passes from forward to backward."""

    def __init__(self) -> None:
        self._saved: tuple[Any, ...] = ()
        self.needs_input_grad: tuple[bool, ...] = ()
        self._non_differentiable: set[int] = set()
        self._materialize = True

    def save_for_backward(self, *tensors: Any) -> None:
        """Keep tensors (inputs, outputs or others) for backward; their values cannot be changed by later in-place writes."""
        self._saved = tuple(None if t is None else _frozen(t) for t in tensors)

    @property
    def saved_tensors(self) -> tuple[Any, ...]:
        return self._saved

    def mark_non_differentiable(self, *tensors: Any) -> None:
        """These results get no gradient."""
        self._non_differentiable = {id(t) for t in tensors}

    def set_materialize_grads(self, value: bool) -> None:
        """Whether a missing gradient of a result reaches backward as zeros (default) or as None."""
        self._materialize = value


def _frozen(t: Any) -> Any:
    return new_tensor(node_of(t), fn_of(t))


class _FunctionCall:
    """The stand-in for a `Call` that a `GradFn` of a user's Function carries."""

    def __init__(self, name: str, metas: tuple[Any, ...]) -> None:
        self.op = self
        self.name = name
        self.saves = ()
        self.outs = metas
        self.meta = metas[0]


class _FunctionGrad(GradFn):
    __slots__ = ("cls", "ctx", "spots")

    cls: Any
    ctx: Any
    spots: tuple[Any, ...]
    """For each argument of the function: its meta, or None for what is no tensor."""

    def backward(self, grads: list[Any], wrap: Any, keep: bool) -> Sequence[Any]:
        if self.ctx is None:
            raise RuntimeError(f"backward through {self.call.op.name} a second time; pass retain_graph=True to the first")
        if self.ctx._materialize:
            grads = [
                full_value(hooks.to_tensor(0.0, dtype=m.dtype, like=None), 0, m.shape) if g is None else g
                for g, m in zip(grads, self.metas, strict=True)
            ]
        out = self.cls.backward(self.ctx, *grads)
        out = out if isinstance(out, tuple | list) else (out,)
        if not keep:
            self.ctx = None
        if len(out) < len(self.spots):
            raise RuntimeError(f"{self.cls.__name__}.backward returned {len(out)} gradients for {len(self.spots)} inputs")
        return [self._fitting(k, out[k], meta) for k, meta in enumerate(self.spots) if meta is not None]

    def _fitting(self, k: int, gradient: Any, meta: Any) -> Any:
        """A gradient that backward returned, in its input's dtype, and summed where the input was broadcast."""
        if gradient is None:
            return None
        if not isinstance(gradient, TensorBase):
            raise TypeError(
                f"{self.cls.__name__}.backward returned a {type(gradient).__name__} as gradient {k}; return a tensor, or None"
            )
        found: Any = gradient
        if tuple(found.shape) != meta.shape:
            pairs = zip(reversed(found.shape), reversed(meta.shape), strict=False)
            if len(found.shape) >= len(meta.shape) and all(b in (1, a) for a, b in pairs):
                return unbroadcast(found, meta).to(meta.dtype)
            raise RuntimeError(
                f"{self.cls.__name__}.backward returned a gradient of shape {tuple(found.shape)} for argument {k} of shape {meta.shape}"
            )
        return found if found.dtype is meta.dtype else found.to(meta.dtype)


class Function:
    """An op with a gradient written by the user: subclass with static ``forward(ctx, *args)`` (or ``forward(*args)`` with
    ``setup_context(ctx, inputs, output)``) and ``backward(ctx, *grads)``, and call ``apply``."""

    @staticmethod
    def forward(*args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError("a Function needs a static forward(ctx, *args)")

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        raise NotImplementedError("a Function needs a static backward(ctx, *grads) to be differentiated")

    setup_context: Any = None

    @classmethod
    def apply(cls, *args: Any) -> Any:
        """Run forward without recording gradients inside, and tie its results to backward."""
        ctx = FunctionContext()
        ctx.needs_input_grad = tuple(isinstance(a, TensorBase) and fn_of(a) is not None for a in args)
        with Mode(False):
            if cls.setup_context is None:
                result = cls.forward(ctx, *args)
            else:
                result = cls.forward(*args)
                cls.setup_context(ctx, args, result)
        if not (any(ctx.needs_input_grad) and local.tape.grad):
            return result
        single = isinstance(result, TensorBase)
        results = (result,) if single else tuple(result)
        tensors = [r for r in results if isinstance(r, TensorBase)]
        spots = tuple(node_of(a).meta if isinstance(a, TensorBase) else None for a in args)
        edges = tuple(fn_of(a) for a in args if isinstance(a, TensorBase))
        metas = tuple(node_of(t).meta for t in tensors)
        fn = _FunctionGrad(_FunctionCall(cls.__name__, metas), edges, (), None)  # type: ignore[arg-type]
        fn.cls, fn.ctx, fn.spots = cls, ctx, spots
        wrapped = {}
        for k, t in enumerate(tensors):
            out = new_tensor(node_of(t))
            if id(t) not in ctx._non_differentiable and out.dtype.kind == "f":
                out._fn = Pick(fn, k)
            wrapped[id(t)] = out
        # A result saved for backward must be tied to this function too, for gradients of gradients.
        out_all = tuple(wrapped[id(r)] if isinstance(r, TensorBase) else r for r in results)
        return out_all[0] if single else out_all


def once_differentiable(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator for a Function's backward: its result takes no part in further gradients."""

    @functools.wraps(fn)
    def wrapped(ctx: Any, *grads: Any) -> Any:
        with Mode(False):
            return fn(ctx, *grads)

    return wrapped
