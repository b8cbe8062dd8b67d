"""Parameters computed from other parameters, whenever they are read: ``register_parametrization(layer, "weight", f)``."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from cermet.frontend.autograd import Mode
from cermet.frontend.core import TensorBase
from cermet.nn.container import ModuleDict, ModuleList
from cermet.nn.module import Module
from cermet.nn.parameter import Parameter

__all__ = [
    "ParametrizationList",
    "cached",
    "is_parametrized",
    "register_parametrization",
    "remove_parametrizations",
    "type_before_parametrizations",
]


class _Cache(threading.local):
    def __init__(self) -> None:
        self.depth = 0
        self.values: dict[tuple[int, str], Any] = {}


_cache = _Cache()


@contextmanager
def cached() -> Iterator[None]:
    """Inside, each parametrized value is computed once and remembered."""
    _cache.depth += 1
    try:
        yield
    finally:
        _cache.depth -= 1
        if not _cache.depth:
            _cache.values.clear()


class ParametrizationList(ModuleList):
    """The parametrizations of one parameter, in order, and what they start from.

    Attributes:
        original: the tensor they start from; ``original0``, ``original1``, ... where the first one takes several.
        is_tensor: whether it is one tensor.
    """

    is_tensor: bool

    def __init__(self, modules: Any, original: Any, unsafe: bool = False) -> None:
        found = list(modules)
        if not found:
            raise ValueError("ParametrizationList: no parametrization was given")
        super().__init__(found)
        self.unsafe = unsafe
        new: Any = original
        with Mode(False):
            for module in reversed(found):
                if hasattr(module, "right_inverse"):
                    with suppress(NotImplementedError):
                        new = module.right_inverse(new)
        self.is_tensor = isinstance(new, TensorBase)
        if isinstance(new, TensorBase):
            _register(self, "original", original if new is original else new, original)
        else:
            self.ntensors = len(new)
            for k, t in enumerate(new):
                if not isinstance(t, TensorBase):
                    raise ValueError(
                        f"right_inverse gave a {type(t).__name__} for original{k}; it gives one tensor, or a list of them"
                    )
                _register(self, f"original{k}", t, original)
        if not unsafe:
            self._check(original)

    def _check(self, original: Any) -> None:
        with Mode(False):
            value = self()
        if not isinstance(value, TensorBase):
            raise ValueError(f"a parametrization gave a {type(value).__name__}; it gives the tensor to use")
        out: Any = value
        if out.dtype is not original.dtype or tuple(out.shape) != tuple(original.shape):
            raise ValueError(
                f"the parametrization makes {out.dtype} {list(out.shape)} of {original.dtype} {list(original.shape)}; pass unsafe=True "
                "if that is meant"
            )

    def _originals(self) -> list[Any]:
        return [self.original] if self.is_tensor else [getattr(self, f"original{k}") for k in range(self.ntensors)]

    def right_inverse(self, value: Any) -> None:
        """Set the originals so that the parametrized tensor becomes ``value``.

        Raises:
            RuntimeError: where a parametrization has no ``right_inverse``.
        """
        with Mode(False):
            new: Any = value
            for module in reversed(list(self)):
                if not hasattr(module, "right_inverse"):
                    raise RuntimeError(
                        f"{type(module).__name__} has no right_inverse, without which the parametrized tensor cannot be set"
                    )
                new = module.right_inverse(new)
            given = [new] if self.is_tensor else list(new)
            for t, v in zip(self._originals(), given, strict=True):
                t.data = v.detach()

    def forward(self, *_: Any) -> Any:
        """The parametrized value."""
        first, *rest = list(self)
        x = first(*self._originals())
        for module in rest:
            x = module(x)
        return x


def _register(owner: Module, name: str, value: Any, like: Any) -> None:
    """Under ``name``, as a parameter where the tensor that it stands for was one."""
    if isinstance(like, Parameter):
        owner.register_parameter(name, value if value is like else Parameter(value.detach(), like.requires_grad))
    else:
        owner.register_buffer(name, value)


def _value(module: Any, name: str) -> Any:
    lists = module.__dict__["_modules"]["parametrizations"]
    if not _cache.depth:
        return lists[name]()
    key = (id(module), name)
    found = _cache.values.get(key)
    if found is None:
        found = _cache.values[key] = lists[name]()
    return found


def _inject_class(module: Module) -> None:
    """Give the module a class of its own, so that properties can be put on it alone."""
    base = type(module)
    module.__class__ = type(f"Parametrized{base.__name__}", (base,), {"__module__": base.__module__, "_parametrized_base": base})


def _inject_property(module: Module, name: str) -> None:
    def get(self: Any) -> Any:
        return _value(self, name)

    def put(self: Any, value: Any) -> None:
        self.__dict__["_modules"]["parametrizations"][name].right_inverse(value)

    setattr(type(module), name, property(get, put))


def register_parametrization(module: Module, tensor_name: str, parametrization: Module, *, unsafe: bool = False) -> Module:
    """Let ``module.tensor_name`` be ``parametrization(original)`` from now on; ``original`` is trained instead.

    The original lies in ``module.parametrizations[tensor_name].original``. Where the parametrization has a ``right_inverse``, it
    gives the original from the present value, and assignment to ``module.tensor_name`` works. A second parametrization of one
    tensor applies to the result of the first.

    Args:
        unsafe: allow the parametrization to change the tensor's shape or dtype, and do not try it now.

    Raises:
        ValueError: where there is no such tensor, or shape or dtype change.
    """
    parametrization.train(module.training)
    if is_parametrized(module, tensor_name):
        lists: Any = module.parametrizations
        found = lists[tensor_name]
        if not unsafe:
            with Mode(False):
                y = getattr(module, tensor_name)
                z = parametrization(y)
            if not isinstance(z, TensorBase) or z._node.meta is not y._node.meta:
                raise ValueError(
                    "the parametrization makes a tensor of another dtype or shape; pass unsafe=True if that is meant"
                )
        if hasattr(parametrization, "right_inverse"):
            with Mode(False):
                found.right_inverse(parametrization.right_inverse(getattr(module, tensor_name)))
        found.append(parametrization)
        return module
    owned = tensor_name in module._parameters or tensor_name in module._buffers
    if not owned:
        raise ValueError(f"register_parametrization: a {type(module).__name__} has no parameter or buffer {tensor_name!r}")
    made = ParametrizationList([parametrization], getattr(module, tensor_name), unsafe)
    delattr(module, tensor_name)
    if not is_parametrized(module):
        _inject_class(module)
        module.__dict__["_modules"]["parametrizations"] = ModuleDict()
    _inject_property(module, tensor_name)
    module.__dict__["_modules"]["parametrizations"][tensor_name] = made
    return module


def is_parametrized(module: Module, tensor_name: str | None = None) -> bool:
    """Whether the module has parametrizations (of that tensor)."""
    lists = module.__dict__.get("_modules", {}).get("parametrizations")
    if not isinstance(lists, ModuleDict):
        return False
    return len(lists) > 0 if tensor_name is None else tensor_name in lists


def remove_parametrizations(module: Module, tensor_name: str, leave_parametrized: bool = True) -> Module:
    """Make ``module.tensor_name`` an ordinary parameter (or buffer) again.

    Args:
        leave_parametrized: with its present value; otherwise with that of the original.

    Raises:
        ValueError: where it is not parametrized, or there are several originals and the present value is not wanted.
    """
    if not is_parametrized(module, tensor_name):
        raise ValueError(f"remove_parametrizations: {tensor_name!r} of this {type(module).__name__} has none")
    lists: Any = module.__dict__["_modules"]["parametrizations"]
    found = lists[tensor_name]
    original = found._originals()[0]
    if leave_parametrized:
        with Mode(False):
            value: Any = getattr(module, tensor_name).detach()
        if isinstance(original, Parameter):
            if found.is_tensor:
                original.data = value
                value = original
            else:
                value = Parameter(value, original.requires_grad)
    elif found.is_tensor:
        value = original
    else:
        raise ValueError("leave_parametrized=False: there are several originals, and none is the tensor; keep the present value")
    delattr(type(module), tensor_name)
    del lists[tensor_name]
    if isinstance(value, Parameter):
        module.register_parameter(tensor_name, value)
    else:
        module.register_buffer(tensor_name, value)
    if not len(lists):
        del module.__dict__["_modules"]["parametrizations"]
        base: Any = type(module)
        module.__class__ = base._parametrized_base
    return module


def type_before_parametrizations(module: Module) -> type:
    """The module's class, or the one it had before it was parametrized."""
    return getattr(type(module), "_parametrized_base", type(module))
