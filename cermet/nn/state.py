"""What a Module does seldom: calls with hooks, and state dicts in and out."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, NamedTuple, cast

from cermet.frontend.autograd import Function, Mode
from cermet.frontend.core import TensorBase, fn_of
from cermet.lazy.record import local

HOOK_TABLES = (
    "_forward_pre_hooks",
    "_forward_hooks",
    "_backward_pre_hooks",
    "_backward_hooks",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)
_EXTRA = "_extra_state"


class IncompatibleKeys(NamedTuple):
    """What `load_state_dict` did not find a place or a value for."""

    missing_keys: list[str]
    unexpected_keys: list[str]

    def __repr__(self) -> str:
        if not self.missing_keys and not self.unexpected_keys:
            return "<All keys matched successfully>"
        return f"IncompatibleKeys(missing_keys={self.missing_keys}, unexpected_keys={self.unexpected_keys})"

    def __str__(self) -> str:
        return repr(self)


# ------------------------------------------------------------------------------------------------------------------ call


class _Passed(Function):
    """The identity on some tensors, with a function of their gradients in the backward pass."""

    @staticmethod
    def forward(ctx: Any, on_gradients: Any, *tensors: Any) -> Any:
        ctx.on_gradients = on_gradients
        ctx.set_materialize_grads(False)
        return tuple(t.detach() for t in tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return (None, *ctx.on_gradients(grads))


def _pass_through(value: Any, on_gradients: Any) -> Any:
    """A tensor, or the tensors of a (nested) tuple or dict, through `_Passed`."""
    found: list[Any] = []

    def collect(v: Any) -> None:
        if isinstance(v, TensorBase):
            found.append(v)
        elif isinstance(v, list | tuple):
            for x in v:
                collect(x)

    collect(value)
    if not any(fn_of(t) is not None for t in found):
        return value
    passed = iter(_Passed.apply(on_gradients, *found))

    def rebuild(v: Any) -> Any:
        if isinstance(v, TensorBase):
            return next(passed)
        if isinstance(v, tuple) and hasattr(v, "_fields"):
            return type(v)(*[rebuild(x) for x in v])
        return type(v)([rebuild(x) for x in v]) if isinstance(v, list | tuple) else v

    return rebuild(value)


def _replaced(result: Any, grads: tuple[Any, ...]) -> tuple[Any, ...]:
    if result is None:
        return grads
    return result if isinstance(result, tuple) else (result,)


def call_with_hooks(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Pre-hooks, forward, hooks; where there are backward hooks, inputs and outputs pass an identity that reports their
    gradients."""
    for hook, with_kwargs in list(module._forward_pre_hooks.values()):
        if with_kwargs:
            result = hook(module, args, kwargs)
            if result is not None:
                args, kwargs = result
        else:
            result = hook(module, args)
            if result is not None:
                args = result if isinstance(result, tuple) else (result,)
    backward = (module._backward_hooks or module._backward_pre_hooks) and local.tape.grad
    seen: dict[str, Any] = {}
    if backward:
        args = _pass_through(args, lambda g: _on_input_gradients(module, g, seen))
    try:
        out = module.forward(*args, **kwargs)
    except Exception:
        for hook, with_kwargs, always in list(module._forward_hooks.values()):
            if always:
                hook(module, args, kwargs, None) if with_kwargs else hook(module, args, None)
        raise
    for hook, with_kwargs, _ in list(module._forward_hooks.values()):
        result = hook(module, args, kwargs, out) if with_kwargs else hook(module, args, out)
        if result is not None:
            out = result
    if backward:
        has_inputs = any(isinstance(a, TensorBase) and fn_of(a) is not None for a in args)
        out = _pass_through(out, lambda g: _on_output_gradients(module, g, seen, has_inputs))
    return out


def _on_output_gradients(module: Any, grads: tuple[Any, ...], seen: dict[str, Any], has_inputs: bool) -> tuple[Any, ...]:
    for hook in list(module._backward_pre_hooks.values()):
        grads = _replaced(hook(module, grads), grads)
    seen["output"] = grads
    if not has_inputs:
        for hook in list(module._backward_hooks.values()):
            hook(module, (), grads)
    return grads


def _on_input_gradients(module: Any, grads: tuple[Any, ...], seen: dict[str, Any]) -> tuple[Any, ...]:
    for hook in list(module._backward_hooks.values()):
        grads = _replaced(hook(module, grads, seen.get("output", ())), grads)
    return grads


# ------------------------------------------------------------------------------------------------------------ state dict


def _has_extra(module: Any) -> bool:
    from cermet.nn.module import Module

    return type(module).get_extra_state is not Module.get_extra_state


def save_own(module: Any, destination: Any, prefix: str, keep_vars: bool) -> None:
    """Put the module's own parameters and persistent buffers into ``destination``."""
    for name, p in module._parameters.items():
        if p is not None:
            destination[prefix + name] = p if keep_vars else p.detach()
    for name, b in module._buffers.items():
        if b is not None and name not in module._non_persistent_buffers_set:
            destination[prefix + name] = b if keep_vars else b.detach()
    if _has_extra(module):
        destination[prefix + _EXTRA] = module.get_extra_state()


def state_dict(module: Any, destination: Any, prefix: str, keep_vars: bool) -> Any:
    """See `Module.state_dict`."""
    if destination is None:
        destination = OrderedDict()
        destination._metadata = OrderedDict()
    metadata = {"version": module._version}
    if hasattr(destination, "_metadata"):
        destination._metadata[prefix[:-1]] = metadata
    for hook in module._state_dict_pre_hooks.values():
        hook(module, prefix, keep_vars)
    module._save_to_state_dict(destination, prefix, keep_vars)
    for name, child in module._modules.items():
        if child is not None:
            child.state_dict(destination=destination, prefix=prefix + name + ".", keep_vars=keep_vars)
    for hook in module._state_dict_hooks.values():
        result = hook(module, destination, prefix, metadata)
        if result is not None:
            destination = result
    return destination


def _load_one(module: Any, name: str, target: Any, value: Any, key: str, assign: bool, errors: list[str]) -> None:
    from cermet.nn.parameter import Parameter, is_lazy

    if not isinstance(value, TensorBase):
        errors.append(f"{key}: the state dict holds a {type(value).__name__}, not a tensor")
        return
    value = cast("Any", value)
    if is_lazy(target):
        target.materialize(tuple(value.shape))
    # Old checkpoints hold scalars as one-element vectors.
    if tuple(value.shape) == (1,) and tuple(target.shape) == ():
        value = value[0]
    if tuple(value.shape) != tuple(target.shape):
        errors.append(f"{key}: size mismatch: {list(value.shape)} in the state dict, {list(target.shape)} in the module")
        return
    if not assign:
        target._write(value.detach().to(target.dtype))
    elif isinstance(target, Parameter):
        module._parameters[name] = value if isinstance(value, Parameter) else Parameter(value.detach(), target.requires_grad)
    else:
        module._buffers[name] = value


def load_own(
    module: Any,
    given: Any,
    prefix: str,
    metadata: Any,
    strict: bool,
    missing: list[str],
    unexpected: list[str],
    errors: list[str],
) -> None:
    """Load the module's own parameters and buffers from ``given``, collecting what does not fit."""
    for hook, with_module in list(module._load_state_dict_pre_hooks.values()):
        extra = (module,) if with_module else ()
        hook(*extra, given, prefix, metadata, strict, missing, unexpected, errors)
    buffers = {k: v for k, v in module._buffers.items() if k not in module._non_persistent_buffers_set}
    assign = bool(metadata.get("assign_to_params_buffers", False))
    with Mode(False):
        for name, target in [*module._parameters.items(), *buffers.items()]:
            if target is None:
                continue
            key = prefix + name
            if key in given:
                _load_one(module, name, target, given[key], key, assign, errors)
            elif strict:
                missing.append(key)
    if _has_extra(module):
        if prefix + _EXTRA in given:
            module.set_extra_state(given[prefix + _EXTRA])
        elif strict:
            missing.append(prefix + _EXTRA)
    elif strict and prefix + _EXTRA in given:
        unexpected.append(prefix + _EXTRA)
    if strict:
        _find_unexpected(module, given, prefix, buffers, unexpected)


def _find_unexpected(module: Any, given: Any, prefix: str, buffers: Any, unexpected: list[str]) -> None:
    for key in given:
        if not key.startswith(prefix) or key == prefix + _EXTRA:
            continue
        first, _, rest = key[len(prefix) :].partition(".")
        known = (
            first in module._modules if rest else (module._parameters.get(first) is not None or buffers.get(first) is not None)
        )
        if not known:
            unexpected.append(key)


def load_state_dict(module: Any, given: Mapping[str, Any], strict: bool, assign: bool) -> IncompatibleKeys:
    """See `Module.load_state_dict`."""
    if not isinstance(given, Mapping):
        raise TypeError(f"load_state_dict: a {type(given).__name__} is no dict of names and tensors")
    missing: list[str] = []
    unexpected: list[str] = []
    errors: list[str] = []
    versions = getattr(given, "_metadata", None) or {}
    entries = OrderedDict(given)

    def load(m: Any, prefix: str) -> None:
        metadata = dict(versions.get(prefix[:-1], {}))
        if assign:
            metadata["assign_to_params_buffers"] = True
        m._load_from_state_dict(entries, prefix, metadata, True, missing, unexpected, errors)
        for name, child in m._modules.items():
            if child is not None:
                load(child, prefix + name + ".")
        keys = IncompatibleKeys(missing, unexpected)
        for hook in list(m._load_state_dict_post_hooks.values()):
            hook(m, keys)

    load(module, "")
    if strict:
        quoted = lambda keys: ", ".join(f'"{k}"' for k in keys)
        if missing:
            errors.insert(0, f"missing in the state dict: {quoted(missing)}")
        if unexpected:
            errors.insert(0, f"without a place in the module: {quoted(unexpected)}")
    if errors:
        text = "\n\t".join(errors)
        raise RuntimeError(f"{type(module).__name__}.load_state_dict: the state dict does not fit the module:\n\t{text}")
    return IncompatibleKeys(missing, unexpected)
