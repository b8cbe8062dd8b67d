"""Module: what models are made of. Parameters, buffers and submodules by attribute; hooks; modes; conversion; saving (with
`cermet.nn.state`)."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from cermet import dtypes as dt
from cermet.frontend.autograd import Mode
from cermet.frontend.core import TensorBase
from cermet.frontend.tensor import RemovableHandle, Tensor
from cermet.nn import state
from cermet.nn.parameter import Buffer, Parameter, is_lazy

__all__ = ["Module"]

_TABLES = ("_parameters", "_buffers", "_modules")
_tokens = itertools.count()


def _add_hook(table: dict[int, Any], hook: Any, prepend: bool = False) -> RemovableHandle:
    token = next(_tokens)
    table[token] = hook
    if prepend and isinstance(table, OrderedDict):
        table.move_to_end(token, last=False)
    return RemovableHandle(lambda: table.pop(token, None))


def _indent(text: str, spaces: int = 2) -> str:
    first, *rest = text.split("\n")
    return "\n".join([first, *[" " * spaces + line for line in rest]])


class Module:
    """Base class of all models and layers. Subclasses call ``super().__init__()``, assign parameters and submodules as
    attributes, and define
    ``forward``.

    Attributes:
        training: whether in training mode (`train`) or evaluation mode (`eval`).
    """

    training: bool
    _version = 1
    dump_patches = False
    call_super_init = False
    forward: Callable[..., Any]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if not self.call_super_init and (args or kwargs):
            given = f"{len(args)} positional arguments" if args else f"an unexpected keyword argument {next(iter(kwargs))!r}"
            raise TypeError(f"{type(self).__name__}.__init__() got {given}")
        fields = self.__dict__
        fields["training"] = True
        for name in _TABLES:
            fields[name] = {}
        fields["_non_persistent_buffers_set"] = set()
        # One flag decides the fast path of a call.
        fields["_hooked"] = False
        for name in state.HOOK_TABLES:
            fields[name] = OrderedDict()
        if self.call_super_init:
            super().__init__(*args, **kwargs)

    # ------------------------------------------------------------------------------------------------------ call

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._hooked:
            return state.call_with_hooks(self, args, kwargs)
        return self.forward(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        # Reached only for what is no plain attribute.
        fields = self.__dict__
        for table in _TABLES:
            found = fields.get(table)
            if found is not None and name in found:
                return found[name]
        if name == "forward":
            raise NotImplementedError(f"{type(self).__name__} defines no forward method")
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        fields = self.__dict__
        if isinstance(value, Parameter):
            if "_parameters" not in fields:
                raise AttributeError(
                    "there is no place for parameters before Module.__init__ has run: call super().__init__() first"
                )
            self._forget(name, "_parameters")
            self.register_parameter(name, value)
            return
        if isinstance(value, Module):
            if "_modules" not in fields:
                raise AttributeError(
                    "there is no place for modules before Module.__init__ has run: call super().__init__() first"
                )
            self._forget(name, "_modules")
            fields["_modules"][name] = value
            return
        for table, kind in (("_parameters", Parameter), ("_modules", Module), ("_buffers", TensorBase)):
            found = fields.get(table)
            if found is not None and name in found:
                if value is not None and not isinstance(value, kind):
                    what = {"_parameters": "parameter", "_modules": "child module", "_buffers": "buffer"}[table]
                    wanted = {"_parameters": "cermet.nn.Parameter", "_modules": "cermet.nn.Module", "_buffers": "cermet.Tensor"}[
                        table
                    ]
                    raise TypeError(f"cannot assign '{type(value).__name__}' as {what} '{name}' ({wanted} or None expected)")
                found[name] = value
                return
        if isinstance(value, Buffer):
            self.register_buffer(name, value, getattr(value, "persistent", True))
            return
        object.__setattr__(self, name, value)

    def _forget(self, name: str, keep: str) -> None:
        fields = self.__dict__
        fields.pop(name, None)
        for table in _TABLES:
            if table != keep and name in fields[table]:
                del fields[table][name]
        fields["_non_persistent_buffers_set"].discard(name)

    def __delattr__(self, name: str) -> None:
        for table in _TABLES:
            if name in self.__dict__[table]:
                del self.__dict__[table][name]
                self._non_persistent_buffers_set.discard(name)
                return
        object.__delattr__(self, name)

    def __dir__(self) -> list[str]:
        names = {*dir(type(self)), *self.__dict__, *self._parameters, *self._modules, *self._buffers}
        return sorted(n for n in names if not n[:1].isdigit())

    def __setstate__(self, fields: dict[str, Any]) -> None:
        self.__dict__.update(fields)

    # ------------------------------------------------------------------------------------------------- registration

    def _check_name(self, name: Any, what: str, table: str) -> None:
        if table not in self.__dict__:
            raise AttributeError(f"there is no place for a {what} before Module.__init__ has run: call super().__init__() first")
        if not isinstance(name, str):
            raise TypeError(f"the name of a {what} is a string, got a {type(name).__name__}")
        if "." in name:
            raise KeyError(f"the name of a {what} cannot contain a dot, which separates modules in paths; got {name!r}")
        if name == "":
            raise KeyError(f"the name of a {what} is empty")
        if hasattr(self, name) and name not in self.__dict__[table]:
            raise KeyError(f"attribute '{name}' already exists")

    def register_parameter(self, name: str, param: Parameter | None) -> None:
        """Add a parameter under ``name``; None keeps the name for later and out of the state dict.

        Raises:
            KeyError, TypeError: for names that are taken or malformed, and values that are no leaf Parameter.
        """
        self._check_name(name, "parameter", "_parameters")
        if param is not None:
            if not isinstance(param, Parameter):
                raise TypeError(
                    f"cannot assign '{type(param).__name__}' object to parameter '{name}' (cermet.nn.Parameter or None required)"
                )
            if param.grad_fn is not None:
                raise ValueError(f"cannot assign a tensor with a gradient history to parameter '{name}': parameters are leaves")
        self._parameters[name] = param

    def register_buffer(self, name: str, tensor: Tensor | None, persistent: bool = True) -> None:
        """Add a buffer: state that is saved (where ``persistent``) and converted with the module, but not trained."""
        self._check_name(name, "buffer", "_buffers")
        if tensor is not None and not isinstance(tensor, TensorBase):
            raise TypeError(f"cannot assign '{type(tensor).__name__}' object to buffer '{name}' (cermet.Tensor or None required)")
        self._buffers[name] = tensor
        left_out = self._non_persistent_buffers_set
        (left_out.discard if persistent else left_out.add)(name)

    def add_module(self, name: str, module: Module | None) -> None:
        """Add a submodule under ``name``."""
        if not isinstance(module, Module) and module is not None:
            raise TypeError(f"{type(module).__name__} is not a Module subclass")
        self._check_name(name, "module", "_modules")
        self._modules[name] = module

    def register_module(self, name: str, module: Module | None) -> None:
        """Alias of `add_module`."""
        self.add_module(name, module)

    # ----------------------------------------------------------------------------------------------------- lookup

    def get_submodule(self, target: str) -> Module:
        """The submodule at a dotted path; "" is the module itself.

        Raises:
            AttributeError: where the path leads nowhere or to something else.
        """
        found: Any = self
        for part in target.split(".") if target else ():
            if not hasattr(found, part):
                raise AttributeError(f"{type(found).__name__} has no attribute `{part}`")
            found = getattr(found, part)
            if not isinstance(found, Module):
                raise AttributeError(f"`{part}` is not a Module")
        return found

    def get_parameter(self, target: str) -> Parameter:
        """The parameter at a dotted path."""
        path, _, name = target.rpartition(".")
        found = getattr(self.get_submodule(path), name)
        if not isinstance(found, Parameter):
            raise AttributeError(f"`{name}` is not a Parameter")
        return found

    def get_buffer(self, target: str) -> Tensor:
        """The buffer at a dotted path."""
        path, _, name = target.rpartition(".")
        owner = self.get_submodule(path)
        if name not in owner._buffers:
            raise AttributeError(f"`{name}` is not a buffer")
        return owner._buffers[name]

    def set_submodule(self, target: str, module: Module, strict: bool = False) -> None:
        """Replace (or, unless ``strict``, add) the submodule at a dotted path."""
        if target == "":
            raise ValueError("set_submodule: the path is empty; give one such as 'encoder.0'")
        path, _, name = target.rpartition(".")
        owner = self.get_submodule(path)
        if strict and not hasattr(owner, name):
            raise AttributeError(f"{type(owner).__name__} has no attribute `{name}`")
        if not isinstance(module, Module):
            raise ValueError(f"`module` is not a Module, found {type(module).__name__}")
        setattr(owner, name, module)

    # -------------------------------------------------------------------------------------------------- iteration

    def named_modules(
        self, memo: set[Any] | None = None, prefix: str = "", remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Module]]:
        """All modules with their dotted names, the module itself ("") first."""
        seen = set() if memo is None else memo
        if self in seen:
            return
        yield prefix, self
        if remove_duplicate:
            seen.add(self)
        inner = f"{prefix}." if prefix else ""
        for name, child in self._modules.items():
            if child is not None:
                yield from child.named_modules(seen, inner + name, remove_duplicate)

    def modules(self) -> Iterator[Module]:
        """All modules, each once."""
        for _, module in self.named_modules():
            yield module

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """The direct submodules, each once."""
        seen = set()
        for name, module in self._modules.items():
            if module is not None and module not in seen:
                seen.add(module)
                yield name, module

    def children(self) -> Iterator[Module]:
        """The direct submodules."""
        for _, module in self.named_children():
            yield module

    def _named_members(self, table: str, prefix: str, recurse: bool, remove_duplicate: bool) -> Iterator[tuple[str, Any]]:
        seen: set[int] = set()
        modules = self.named_modules(prefix=prefix, remove_duplicate=remove_duplicate) if recurse else [(prefix, self)]
        for path, module in modules:
            for name, value in module.__dict__[table].items():
                if value is None or id(value) in seen:
                    continue
                if remove_duplicate:
                    seen.add(id(value))
                yield path + ("." if path else "") + name, value

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Parameter]]:
        """All parameters with their dotted names."""
        yield from self._named_members("_parameters", prefix, recurse, remove_duplicate)

    def parameters(self, recurse: bool = True) -> Iterator[Parameter]:
        """All parameters, each once."""
        for _, value in self.named_parameters(recurse=recurse):
            yield value

    def named_buffers(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Tensor]]:
        """All buffers with their dotted names."""
        yield from self._named_members("_buffers", prefix, recurse, remove_duplicate)

    def buffers(self, recurse: bool = True) -> Iterator[Tensor]:
        """All buffers, each once."""
        for _, value in self.named_buffers(recurse=recurse):
            yield value

    # ------------------------------------------------------------------------------------------------------- modes

    def train(self, mode: bool = True) -> Module:
        """Switch this module and all below to training (or, with False, evaluation) mode."""
        if not isinstance(mode, bool):
            raise ValueError(f"train(mode={mode!r}): give True or False")
        for child in self.children():
            child.train(mode)
        self.training = mode
        return self

    def eval(self) -> Module:
        """Switch to evaluation mode."""
        return self.train(False)

    def requires_grad_(self, requires_grad: bool = True) -> Module:
        """Make all parameters collect gradients, or stop them."""
        for p in self.parameters():
            p.requires_grad_(requires_grad)
        return self

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients of all parameters (or make them zero)."""
        for p in self.parameters():
            if p.grad is not None:
                p.grad = None if set_to_none else p.grad.detach() * 0

    def apply(self, fn: Callable[[Module], None]) -> Module:
        """Call ``fn`` with every submodule, then with this one."""
        for module in self.children():
            module.apply(fn)
        fn(self)
        return self

    # -------------------------------------------------------------------------------------------------- conversion

    def _apply(self, fn: Callable[[Any], Any], recurse: bool = True) -> Module:
        """Replace every parameter, gradient and buffer by ``fn`` of it."""
        if recurse:
            for module in self.children():
                module._apply(fn)
        with Mode(False):
            for p in self._parameters.values():
                if p is None or is_lazy(p):
                    continue
                new = fn(p)
                if new is not p:
                    grad = p.grad
                    p.data = new
                    if grad is not None:
                        p.grad = fn(grad)
            for name, b in self._buffers.items():
                if b is not None and not is_lazy(b):
                    self._buffers[name] = fn(b)
        return self

    def to(self, *args: Any, **kwargs: Any) -> Module:
        """Convert floating parameters and buffers to a dtype: ``to(dtype)``, ``to(device)``, ``to(device, dtype)``,
        ``to(tensor)``.

        Raises:
            TypeError: for a dtype that is not floating.
        """
        dtype, device = kwargs.get("dtype"), kwargs.get("device")
        for a in args:
            if isinstance(a, dt.DType):
                dtype = a
            elif isinstance(a, TensorBase):
                dtype, device = a._node.meta.dtype, a._node.meta.device
            elif a is not None and not isinstance(a, bool):
                device = a
        if dtype is not None and dtype.kind != "f":
            raise TypeError(f"Module.to({dtype}): parameters have gradients and so floating dtypes; give one of those")

        def convert(t: Any) -> Any:
            wanted = dtype if dtype is not None and t.dtype.kind == "f" else None
            if device is not None:
                return t.to(device=device, dtype=wanted or t.dtype)
            return t if wanted is None or t.dtype is wanted else t.to(wanted)

        return self._apply(convert)

    def type(self, dst_type: Any) -> Module:
        """Convert all parameters and buffers to a dtype."""
        return self._apply(lambda t: t.to(dst_type))

    def float(self) -> Module:
        """Convert floating parameters and buffers to float32."""
        return self.to(dt.float32)

    def double(self) -> Module:
        """Convert floating parameters and buffers to float64."""
        return self.to(dt.float64)

    def half(self) -> Module:
        """Convert floating parameters and buffers to float16."""
        return self.to(dt.float16)

    def bfloat16(self) -> Module:
        """Convert floating parameters and buffers to bfloat16."""
        return self.to(dt.bfloat16)

    def cpu(self) -> Module:
        """Move to the CPU."""
        return self.to(device="cpu")

    def share_memory(self) -> Module:
        """Do nothing: values are immutable and shared as they are."""
        return self

    # ------------------------------------------------------------------------------------------------------- hooks

    def register_forward_pre_hook(self, hook: Any, *, prepend: bool = False, with_kwargs: bool = False) -> RemovableHandle:
        """Call ``hook(module, args)`` (``(module, args, kwargs)`` with ``with_kwargs``) before forward; a result replaces the
        arguments."""
        self._hooked = True
        return _add_hook(self._forward_pre_hooks, (hook, with_kwargs), prepend)

    def register_forward_hook(
        self, hook: Any, *, prepend: bool = False, with_kwargs: bool = False, always_call: bool = False
    ) -> RemovableHandle:
        """Call ``hook(module, args, output)`` after forward (also after a failing one with ``always_call``); a result replaces
        the output."""
        self._hooked = True
        return _add_hook(self._forward_hooks, (hook, with_kwargs, always_call), prepend)

    def register_full_backward_pre_hook(self, hook: Any, prepend: bool = False) -> RemovableHandle:
        """Call ``hook(module, grad_output)`` when the gradients of the output are complete; a result replaces them."""
        self._hooked = True
        return _add_hook(self._backward_pre_hooks, hook, prepend)

    def register_full_backward_hook(self, hook: Any, prepend: bool = False) -> RemovableHandle:
        """Call ``hook(module, grad_input, grad_output)`` when the gradients of the inputs are complete; a result replaces
        grad_input."""
        self._hooked = True
        return _add_hook(self._backward_hooks, hook, prepend)

    register_backward_hook = register_full_backward_hook

    def register_state_dict_pre_hook(self, hook: Any) -> RemovableHandle:
        """Call ``hook(module, prefix, keep_vars)`` before the state dict is made."""
        return _add_hook(self._state_dict_pre_hooks, hook)

    def register_state_dict_post_hook(self, hook: Any) -> RemovableHandle:
        """Call ``hook(module, state_dict, prefix, local_metadata)`` after the state dict is made."""
        return _add_hook(self._state_dict_hooks, hook)

    _register_state_dict_hook = register_state_dict_post_hook

    def register_load_state_dict_pre_hook(self, hook: Any) -> RemovableHandle:
        """Call ``hook(module, state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs)`` before
        loading."""
        return _add_hook(self._load_state_dict_pre_hooks, (hook, True))

    def _register_load_state_dict_pre_hook(self, hook: Any, with_module: bool = False) -> RemovableHandle:
        return _add_hook(self._load_state_dict_pre_hooks, (hook, with_module))

    def register_load_state_dict_post_hook(self, hook: Any) -> RemovableHandle:
        """Call ``hook(module, incompatible_keys)`` after loading."""
        return _add_hook(self._load_state_dict_post_hooks, hook)

    # -------------------------------------------------------------------------------------------------------- state

    def state_dict(self, *args: Any, destination: Any = None, prefix: str = "", keep_vars: bool = False) -> Any:
        """An ordered dict of all parameters and persistent buffers by dotted name, detached (as they are with ``keep_vars``). The
        tensors
        share memory with the module: ``copy.deepcopy`` keeps a snapshot."""
        if args:
            destination, prefix, keep_vars = (*args, prefix, keep_vars)[:3] if len(args) < 3 else args[:3]
        return state.state_dict(self, destination, prefix, keep_vars)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Copy values into parameters and buffers (or put the given tensors in their place with ``assign``).

        Returns:
            ``(missing_keys, unexpected_keys)``.

        Raises:
            RuntimeError: naming every tensor whose shape differs and, with ``strict``, every missing and unexpected key.
        """
        return state.load_state_dict(self, state_dict, strict, assign)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        state.save_own(self, destination, prefix, keep_vars)

    def _load_from_state_dict(
        self,
        state_dict: Any,
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: Any,
        unexpected_keys: Any,
        error_msgs: Any,
    ) -> None:
        state.load_own(self, state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs)

    def get_extra_state(self) -> Any:
        """What a subclass wants saved beside tensors."""
        raise RuntimeError(f"{type(self).__name__} defines no get_extra_state")

    def set_extra_state(self, state: Any) -> None:
        """The counterpart of `get_extra_state`."""
        raise RuntimeError(f"{type(self).__name__} defines no set_extra_state, and a state dict holds some")

    # -------------------------------------------------------------------------------------------------------- text

    def _get_name(self) -> str:
        return type(self).__name__

    def extra_repr(self) -> str:
        """What stands in the parentheses of the module's text."""
        return ""

    def __repr__(self) -> str:
        extra = self.extra_repr()
        lines = [f"({name}): {_indent(repr(m))}" for name, m in self._modules.items()]
        if not lines:
            if "\n" not in extra:
                return f"{self._get_name()}({extra})"
        body = "\n  ".join([*(extra.split("\n") if extra else []), *lines])
        return f"{self._get_name()}(\n  {body}\n)"
