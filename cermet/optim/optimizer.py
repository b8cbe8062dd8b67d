"""What all optimizers share: parameter groups, state, hooks, state dicts, and a step that ends with one evaluation.

An update is recorded like any other arithmetic, so that forward pass, backward pass and update become one program. For that
program to be the same in every step, the first one included, states are born as values in memory (not as recorded zeros),
parameters are computed when they are given to an optimizer, and every number that may change (learning rate, step count, decay)
enters as a run-time scalar.
"""

from __future__ import annotations

import functools
import warnings
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from itertools import chain
from typing import Any

from cermet import dtypes as dt
from cermet.devices import cpu
from cermet.frontend.autograd import Mode
from cermet.frontend.core import TensorBase, data_tensor, new_tensor, node_of, scalar_tensor, write
from cermet.frontend.tensor import RemovableHandle
from cermet.graph.node import Node, meta
from cermet.lazy.evaluate import realize, settle
from cermet.lazy.number import real, whole
from cermet.lazy.record import local, scalar_node, user_location
from cermet.ops.define import OpDef
from cermet.ops.leaf import scalar_call
from cermet.optim.recording import put, record_rule, record_updates
from cermet.runtime.buffer import Buffer

__all__ = ["Optimizer", "register_optimizer_step_post_hook", "register_optimizer_step_pre_hook", "required"]


class _Required:
    """The default of an option that every parameter group must give."""

    def __repr__(self) -> str:
        return "<required parameter>"


required = _Required()

Params = Iterable[Any]
Hook = Callable[..., Any]

_global_pre_hooks: OrderedDict[object, Hook] = OrderedDict()
_global_post_hooks: OrderedDict[object, Hook] = OrderedDict()
_HOOK_TABLES = (
    "_optimizer_step_pre_hooks", "_optimizer_step_post_hooks", "_optimizer_state_dict_pre_hooks",
    "_optimizer_state_dict_post_hooks", "_optimizer_load_state_dict_pre_hooks", "_optimizer_load_state_dict_post_hooks",
)  # fmt: skip


def _hooked(table: OrderedDict[object, Hook], hook: Hook, prepend: bool = False) -> RemovableHandle:
    token = object()
    table[token] = hook
    if prepend:
        table.move_to_end(token, last=False)
    return RemovableHandle(lambda: table.pop(token, None))


def register_optimizer_step_pre_hook(hook: Hook) -> RemovableHandle:
    """Call ``hook(optimizer, args, kwargs)`` before every step of every optimizer; see `Optimizer.register_step_pre_hook`."""
    return _hooked(_global_pre_hooks, hook)


def register_optimizer_step_post_hook(hook: Hook) -> RemovableHandle:
    """Call ``hook(optimizer, args, kwargs)`` after every step of every optimizer."""
    return _hooked(_global_post_hooks, hook)


def _with_hooks(step: Callable[..., Any]) -> Callable[..., Any]:
    """``step`` between its hooks; every class that defines a step gets it through this."""

    @functools.wraps(step)
    def hooked(*args: Any, **kwargs: Any) -> Any:
        self = args[0]
        for hook in chain(_global_pre_hooks.values(), self._optimizer_step_pre_hooks.values()):
            changed = hook(self, args, kwargs)
            if changed is not None:
                if not (isinstance(changed, tuple) and len(changed) == 2):
                    raise RuntimeError(
                        f"a step pre-hook of {type(self).__name__} returned {changed!r}; return None, or the tuple (args, kwargs) "
                        "that the step shall get instead"
                    )
                args, kwargs = changed
        out = step(*args, **kwargs)
        if "_opt_called" in self.__dict__:
            self._opt_called = True  # a schedule wants to know that it is stepped after the optimizer
        for hook in chain(self._optimizer_step_post_hooks.values(), _global_post_hooks.values()):
            hook(self, args, kwargs)
        return out

    hooked.hooked = True  # type: ignore[attr-defined]
    return hooked


class Optimizer:
    """Base class of all optimizers.

    Args:
        params: tensors, or ``(name, tensor)`` pairs, or dicts that each define a parameter group: ``{"params": [...], "lr":
            0.1}``.
        defaults: options of groups that do not give their own.

    Attributes:
        param_groups: the groups, as dicts of their options. state: parameter -> dict of what the optimizer remembers of it.

    Raises:
        TypeError: when ``params`` is one tensor, a set, or holds what is no tensor.
        ValueError: when it is empty, names a parameter twice, or lacks a required option.
    """

    state: defaultdict[Any, dict[str, Any]]
    param_groups: list[dict[str, Any]]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "step" in cls.__dict__:
            cls.step = _with_hooks(cls.__dict__["step"])  # type: ignore[method-assign]

    def __init__(self, params: Params, defaults: dict[str, Any]) -> None:
        self._make_hook_tables()
        self.defaults = defaults
        if isinstance(params, TensorBase):
            raise TypeError(
                f"{type(self).__name__}: params is one {type(params).__name__}; put it into a list of tensors: [tensor]"
            )
        self.state = defaultdict(dict)
        self.param_groups = []
        groups = list(params)
        if not groups:
            raise ValueError(
                f"{type(self).__name__}: params is empty (a generator that was used up before?); give one tensor or more"
            )
        if not isinstance(groups[0], dict):
            groups = [{"params": groups}]
        for group in groups:
            self.add_param_group(group)

    def _make_hook_tables(self) -> None:
        for name in _HOOK_TABLES:
            setattr(self, name, OrderedDict())

    def __getstate__(self) -> dict[str, Any]:
        return {"defaults": self.defaults, "state": self.state, "param_groups": self.param_groups}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if "_optimizer_step_pre_hooks" not in self.__dict__:
            self._make_hook_tables()
        self.defaults.setdefault("differentiable", False)

    def __repr__(self) -> str:
        lines = [f"{type(self).__name__} ("]
        for i, group in enumerate(self.param_groups):
            lines.append(f"Parameter Group {i}")
            lines += [f"    {key}: {group[key]}" for key in sorted(group) if key != "params"]
        return "\n".join([*lines, ")"])

    # ------------------------------------------------------------------------------------------------------ groups

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters with its options, such as ``{"params": head.parameters(), "lr": 1e-3}``.

        Raises:
            TypeError, ValueError: as for the constructor.
        """
        if not isinstance(param_group, dict):
            raise TypeError(
                f"add_param_group: a group is a dict such as {{'params': [tensor], 'lr': 0.1}}, got {type(param_group).__name__}"
            )
        params = _listed(param_group["params"])
        names = [p[0] for p in params if isinstance(p, tuple)]
        params = [p[1] if isinstance(p, tuple) else p for p in params]
        param_group["params"] = params
        if names:
            if len(names) != len(params):
                raise ValueError(
                    f"{len(names)} of the {len(params)} parameters of a group came as (name, tensor): name all of them or none"
                )
            param_group["param_names"] = names
        for i, p in enumerate(params):
            if not isinstance(p, TensorBase):
                raise TypeError(f"parameter {i} of the group is of type {type(p).__name__}, not a Tensor")
            if not self.defaults.get("differentiable") and not (p.is_leaf or p.retains_grad):  # type: ignore[attr-defined]
                raise ValueError(
                    f"parameter {i} of the group is not a leaf: an operation made it, so that no gradient is kept for it. Give "
                    "the tensors that it was made from, or call retain_grad() on it first"
                )
        for name, default in self.defaults.items():
            if default is required and name not in param_group:
                raise ValueError(f"the group has no {name!r}, and {type(self).__name__} has no default for it")
            param_group.setdefault(name, default)
        self._check_disjoint(param_group)
        self.param_groups.append(param_group)
        # Otherwise the first step's program would hold the initialisation, and the second step would be another program.
        if not self.defaults.get("differentiable"):
            realize([node_of(p) for p in params])

    def _check_disjoint(self, param_group: dict[str, Any]) -> None:
        params = set(param_group["params"])
        if len(params) != len(param_group["params"]):
            warnings.warn(
                "a parameter stands more than once in one group and would be updated as often in each step; list it once",
                stacklevel=4,
            )
        for group in self.param_groups:
            if ("param_names" in param_group) != ("param_names" in group):
                how = "with names" if "param_names" in param_group else "without names"
                raise ValueError(
                    f"this group comes {how} and an earlier one does not: name the parameters of all groups or of none"
                )
            if not params.isdisjoint(group["params"]):
                raise ValueError("a parameter of this group already stands in an earlier group: each belongs to one group only")

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients of all parameters, or make them zero in place."""
        for group in self.param_groups:
            for p in group["params"]:
                g = p.grad
                if g is None:
                    continue
                if set_to_none:
                    p.grad = None
                else:
                    with Mode(False):
                        g.detach_()
                        write(g, filled(g, 0))

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update the parameters by their gradients. ``closure`` evaluates the model again and returns the loss."""
        raise NotImplementedError

    # ------------------------------------------------------------------------------------------------------- hooks

    def register_step_pre_hook(self, hook: Hook) -> RemovableHandle:
        """Call ``hook(optimizer, args, kwargs)`` before each step; a returned ``(args, kwargs)`` replaces them."""
        return _hooked(self._optimizer_step_pre_hooks, hook)  # type: ignore[attr-defined]

    def register_step_post_hook(self, hook: Hook) -> RemovableHandle:
        """Call ``hook(optimizer, args, kwargs)`` after each step."""
        return _hooked(self._optimizer_step_post_hooks, hook)  # type: ignore[attr-defined]

    def register_state_dict_pre_hook(self, hook: Hook, prepend: bool = False) -> RemovableHandle:
        """Call ``hook(optimizer)`` before a state dict is made."""
        return _hooked(self._optimizer_state_dict_pre_hooks, hook, prepend)  # type: ignore[attr-defined]

    def register_state_dict_post_hook(self, hook: Hook, prepend: bool = False) -> RemovableHandle:
        """Call ``hook(optimizer, state_dict)`` with each new state dict; a returned one replaces it."""
        return _hooked(self._optimizer_state_dict_post_hooks, hook, prepend)  # type: ignore[attr-defined]

    def register_load_state_dict_pre_hook(self, hook: Hook, prepend: bool = False) -> RemovableHandle:
        """Call ``hook(optimizer, state_dict)`` before a state dict is loaded; a returned one replaces it."""
        return _hooked(self._optimizer_load_state_dict_pre_hooks, hook, prepend)  # type: ignore[attr-defined]

    def register_load_state_dict_post_hook(self, hook: Hook, prepend: bool = False) -> RemovableHandle:
        """Call ``hook(optimizer)`` after a state dict was loaded."""
        return _hooked(self._optimizer_load_state_dict_post_hooks, hook, prepend)  # type: ignore[attr-defined]

    # ------------------------------------------------------------------------------------------------------- state

    def state_dict(self) -> dict[str, Any]:
        """``{"state": {number: state}, "param_groups": [options]}``; parameters are numbered in the order of the groups. The
        tensors are the optimizer's own: ``copy.deepcopy`` keeps a snapshot."""
        for hook in self._optimizer_state_dict_pre_hooks.values():  # type: ignore[attr-defined]
            hook(self)
        numbers: dict[int, int] = {}
        groups = []
        for group in self.param_groups:
            for p in group["params"]:
                numbers.setdefault(id(p), len(numbers))
            packed = {k: v for k, v in group.items() if k != "params"}
            packed["params"] = [numbers[id(p)] for p in group["params"]]
            groups.append(packed)
        state = {numbers[id(k)] if isinstance(k, TensorBase) else k: v for k, v in self.state.items()}
        out: dict[str, Any] = {"state": state, "param_groups": groups}
        for hook in self._optimizer_state_dict_post_hooks.values():  # type: ignore[attr-defined]
            changed = hook(self, out)
            out = out if changed is None else changed
        return out

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over state and options of another optimizer of the same class and the same groups.

        Raises:
            ValueError: when the numbers of groups or of parameters in a group differ.
        """
        state_dict = dict(state_dict)
        for hook in self._optimizer_load_state_dict_pre_hooks.values():  # type: ignore[attr-defined]
            changed = hook(self, state_dict)
            state_dict = state_dict if changed is None else changed
        saved = deepcopy(state_dict["param_groups"])
        groups = self.param_groups
        if len(groups) != len(saved):
            raise ValueError(f"load_state_dict: groups of parameters: {len(saved)} in the state dict, {len(groups)} here")
        for i, (own, new) in enumerate(zip(groups, saved)):
            if len(own["params"]) != len(new["params"]):
                raise ValueError(
                    f"load_state_dict: parameters in group {i}: {len(new['params'])} in the state dict, {len(own['params'])} here"
                )
        owners = dict(zip(chain.from_iterable(g["params"] for g in saved), chain.from_iterable(g["params"] for g in groups)))
        state: defaultdict[Any, dict[str, Any]] = defaultdict(dict)
        for k, value in state_dict["state"].items():
            if k in owners:
                state[owners[k]] = _adapted(owners[k], value)
            else:
                state[k] = value
        for own, new in zip(groups, saved):
            new["params"] = own["params"]
            if "param_names" in own:
                new["param_names"] = own["param_names"]
            else:
                new.pop("param_names", None)
        self.__setstate__({"state": state, "param_groups": saved})
        for hook in self._optimizer_load_state_dict_post_hooks.values():  # type: ignore[attr-defined]
            hook(self)


def _listed(params: Any) -> list[Any]:
    if isinstance(params, TensorBase):
        return [params]
    if isinstance(params, set):
        raise TypeError(
            "params is a set, whose order differs from run to run, while state dicts tell parameters apart by their place; give a "
            "list"
        )
    return list(params)


def _adapted(p: Any, value: Any, key: Any = None) -> Any:
    """A loaded state as one of ``p``: in its dtype, but for step counts, in handles of its own (a later step must not write to
    what was loaded)."""
    if isinstance(value, TensorBase):
        own = new_tensor(node_of(value))
        return own.to(p.dtype) if key != "step" and p.dtype.kind == "f" and own.dtype is not p.dtype else own
    if isinstance(value, dict):
        return {k: _adapted(p, v, k) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)([_adapted(p, v) for v in value])
    return value


# ------------------------------------------------------------------------------------------------- for the optimizers


SEPARATE = 150  # pending nodes from which on a step's gradients and updates are two programs


class Stepper(Optimizer):
    """An optimizer whose step updates each group by `_update`, and ends with one evaluation of everything that is pending and
    held."""

    _where: Any = None

    def _update(self, group: dict[str, Any], params: list[Any]) -> None:
        """Record the update of the parameters of one group; all have gradients."""
        raise NotImplementedError

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step.

        Args:
            closure: evaluates the model again, calls backward and returns the loss, which is returned.
        """
        loss = None
        if closure is not None:
            with Mode(True):
                loss = closure()
        # The gradients are held, so they are computed for themselves anyway; updates in a program of their own never depend on the shape
        # of a batch, and need not be planned again for a new one. In small steps one program is cheaper to run than two.
        settle(SEPARATE)
        updated: list[Any] = []
        self._where = user_location()
        tape = local.tape
        before, tape.grad = tape.grad, bool(self.defaults.get("differentiable"))
        try:
            capture = local.tape.capture
            for group in self.param_groups if capture is None else capture.groups(self):
                params = [p for p in group["params"] if p.grad is not None]
                if params:
                    self._update(group, params)
                    updated += params
        finally:
            tape.grad = before
        # Only nodes of new values are named here: an old value that nothing holds gives its memory to the new one.
        realize([node_of(p) for p in updated])
        return loss

    def _apply(self, op: OpDef, attrs: tuple[Any, ...], entries: Sequence[tuple[Any, ...]], numbers: tuple[Any, ...]) -> None:
        """Record an update op of (parameter, gradient, states, numbers) for each entry (parameter, states), and make its results the
        values of parameter and states."""
        if not self.defaults.get("differentiable"):
            record_updates(op, attrs, entries, [t._node for t in numbers], self._where)
            return
        # Gradients shall flow through the update: record what it is made of, which has gradients.
        assert op.decompose is not None
        named = dict(zip(op.attrs, attrs, strict=True))
        for kept in entries:
            p, *states = kept
            out = op.decompose(p, p.grad, *states, *numbers, **named)
            assign(kept, out if isinstance(out, tuple) else (out,))

    def _apply_rule(
        self, rule: Callable[..., tuple[Any, ...]], kept: tuple[Any, ...], numbers: tuple[Any, ...], maximize: bool, **flags: bool
    ) -> None:
        """Record ``rule(parameter, gradient, *states, *numbers, **flags)`` on the tensors of ``kept``, parameter and states, in the dtype
        they are computed in, and make its results their values. The rule computes with tensors and does nothing else."""
        p, *states = kept
        if self.defaults.get("differentiable"):
            assign(kept, rule(*widened(p, gradient_of(p, maximize), *states), *numbers, **flags))
            return
        metas = [node_of(t).meta for t in kept]

        def whole(p: Any, g: Any, *rest: Any) -> tuple[Any, ...]:
            held = rest[: len(states)]
            out = rule(*widened(p, -g if maximize else g, *held), *rest[len(states) :], **flags)
            return tuple([v if v._node.meta is m else v.to(m.dtype) for v, m in zip(out, metas, strict=True)])

        options = (maximize, *flags.items())
        for t, v in zip(kept, record_rule(rule, whole, options, (p, p.grad, *states, *numbers), self._where), strict=True):
            put(t, v._node)

    def _number(self, value: Any) -> Any:
        """An option that may be a tensor as a number (as it is, where gradients shall flow into it)."""
        if isinstance(value, TensorBase) and not self.defaults.get("differentiable"):
            return _looked_at(value)
        return value


def assign(targets: Sequence[Any], values: Sequence[Any]) -> None:
    """Make each value (cast where needed) the new value of its target and of all that shares its memory."""
    for t, v in zip(targets, values, strict=True):
        m = node_of(t).meta
        write(t, v if v._node.meta is m else v.to(m.dtype))


def filled(like: Any, value: float, shape: tuple[int, ...] | None = None) -> Any:
    """A tensor in memory of one value, beside ``like`` and of its dtype."""
    m = node_of(like).meta
    if shape is not None:
        m = m.with_shape(shape)
    buffer = Buffer(m.nbytes)
    if m.numel:
        buffer.view(m.dtype.numpy, m.shape, writeable=True)[...] = value
    return data_tensor(m, buffer)


_COUNTER = meta((), dt.float32, cpu)


def counter(value: float = 0.0) -> Any:
    """A number that state dicts hold as a float32 tensor of no dimension, as PyTorch keeps step counts."""
    return scalar_tensor(real(value), dt.float32, cpu)


def number_of(value: Any) -> float:
    """The number in a counter; older state dicts hold plain numbers."""
    if not isinstance(value, TensorBase):
        return real(value)
    buffer = node_of(value).buffer
    return buffer if type(buffer) is float else _looked_at(value)


def _looked_at(value: Any) -> Any:
    """The number in a tensor of one element. While a step is captured: a `Number`, which each replay reads anew."""
    capture = local.tape.capture
    return value.item() if capture is None else capture.number_at(value)


def set_number(state: dict[str, Any], name: str, value: float) -> None:
    """Put a number into the counter ``name``, keeping the tensor that users may hold."""
    t = state.get(name)
    if isinstance(t, TensorBase) and t._node.meta is _COUNTER:
        with Mode(False):
            put(t, scalar_node(value, dt.float32, cpu))
    else:
        state[name] = counter(value)


def advance(state: dict[str, Any], made: dict[float, Node] | None = None) -> int:
    """Count one step; returns its number, the first being 1. ``made``: counts by number, shared by the parameters of a group."""
    t = state["step"]
    if made is not None and isinstance(t, TensorBase) and t._alias is None:
        node = t._node
        if type(node.buffer) is float and node.meta is _COUNTER:
            value = float(int(node.buffer) + 1)
            new = made.get(value)
            if new is None:
                new = made[value] = scalar_node(value, dt.float32, cpu)
            t._node = new
            return int(value)
    count = whole(number_of(t)) + 1
    set_number(state, "step", real(count))
    return count


def scalars(like: Any, *values: Any) -> tuple[Any, ...]:
    """Run-time scalars in the dtype that ``like`` is computed in; tensors of one element pass, cast."""
    m = node_of(like).meta
    d = m.dtype.compute
    call = scalar_call(d, m.device)
    out = []
    for v in values:
        if isinstance(v, TensorBase):
            out.append(_as_scalar(v, d, m.device))
        else:
            out.append(new_tensor(Node(call, (), v if type(v) is float else real(v))))
    return tuple(out)


def _as_scalar(t: Any, dtype: Any, device: Any) -> Any:
    return t.to(device=device, dtype=dtype).reshape(())


def widened(*tensors: Any) -> tuple[Any, ...]:
    """The tensors in the dtype that they are computed in: 16-bit floats as float32."""
    return tuple([t if t.dtype.compute is t.dtype else t.to(t.dtype.compute) for t in tensors])


def gradient_of(p: Any, maximize: bool) -> Any:
    """The direction to descend along: the gradient, turned round to maximize."""
    return -p.grad if maximize else p.grad


def check(condition: bool, message: str) -> None:
    """Raise ValueError unless ``condition``."""
    if not condition:
        raise ValueError(message)


def not_negative(**options: Any) -> None:
    """Raise ValueError for an option below 0."""
    for name, value in options.items():
        check(bool(value >= 0), f"{name}={value}: must not be negative")


def check_lr(lr: Any) -> None:
    """Raise ValueError unless ``lr`` is a non-negative number or a tensor of one element."""
    if isinstance(lr, TensorBase) and node_of(lr).meta.numel != 1:
        raise ValueError(f"lr is a tensor of shape {list(node_of(lr).meta.shape)}; give a number, or a tensor of one element")
    not_negative(lr=lr)


def check_betas(betas: Any) -> None:
    """Raise ValueError unless both lie in [0, 1)."""
    for i in (0, 1):
        check(bool(0.0 <= betas[i] < 1.0), f"betas[{i}]={betas[i]}: must lie in [0, 1)")


def check_modes(differentiable: bool, foreach: bool | None, fused: bool | None) -> None:
    """Refuse PyTorch's contradictory choices; its ``foreach`` and ``fused`` are otherwise without effect, since every step is one
    program."""
    if fused and differentiable:
        raise RuntimeError("fused=True contradicts differentiable=True: leave fused out where gradients flow through the update")
    if fused and foreach:
        raise RuntimeError("fused=True contradicts foreach=True: leave out either (neither has an effect here)")
