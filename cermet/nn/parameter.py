"""Parameters: tensors that a Module registers when they are assigned to it; and stand-ins for those whose shape is not known
yet."""

from __future__ import annotations

from typing import Any

import numpy as np

from cermet import dtypes as dt
from cermet.frontend.core import new_tensor, node_of
from cermet.frontend.interop import from_array
from cermet.frontend.tensor import Tensor
from cermet.ops.public import PUBLIC

__all__ = ["Buffer", "Parameter", "UninitializedBuffer", "UninitializedParameter", "empty", "full", "is_lazy"]


def empty(*shape: int, dtype: Any = None, device: Any = None) -> Any:
    """A tensor to be filled in."""
    from cermet.ops.creation import resolve_device

    resolve_device(device)
    return PUBLIC[("", "zeros")].fn(shape, dtype=dtype)


def full(shape: tuple[int, ...], value: float, dtype: Any = None, device: Any = None) -> Any:
    """A tensor of one value, in memory."""
    d = dtype or dt.get_default_dtype()
    return from_array(np.full(shape, value, d.numpy), d)


class Parameter(Tensor):
    """A tensor that is a parameter of the Module it is assigned to.

    Args:
        data: its value (shared until one of the two is written to). requires_grad: whether it collects gradients.
    """

    __slots__ = ()

    def __new__(cls, data: Any = None, requires_grad: bool = True) -> Any:
        t = super().__new__(cls, data)
        if requires_grad:
            t.requires_grad_()
        return t

    def __repr__(self) -> str:
        return f"Parameter containing:\n{super().__repr__()}"

    def __reduce_ex__(self, protocol: Any) -> Any:
        return (_rebuild, (type(self), self._array().copy(), self.dtype, self.requires_grad))


def _rebuild(cls: Any, array: Any, dtype: Any, requires_grad: bool) -> Any:
    from cermet.frontend.interop import to_tensor

    return cls(to_tensor(array, dtype=dtype), requires_grad)


class Buffer(Tensor):
    """A tensor that is a buffer of the Module it is assigned to: saved with it, not trained."""

    __slots__ = ()

    def __new__(cls, data: Any = None, *, persistent: bool = True) -> Any:
        t = super().__new__(cls, data)
        t.persistent = persistent
        return t


class _Uninitialized:
    """What stand-ins share: they know their dtype, and take their shape once."""

    __slots__ = ()

    _initialized: Any = Tensor

    def materialize(self, shape: Any, device: Any = None, dtype: Any = None) -> None:
        """Give it a shape; it becomes an ordinary parameter or buffer with undefined contents."""
        me: Any = self
        value = empty(*shape, dtype=dtype or me.dtype, device=device)
        grad = me.requires_grad
        me.__class__ = self._initialized
        me._fn = None
        me._node = node_of(value)
        if grad:
            me.requires_grad_()

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"

    @property
    def shape(self) -> Any:
        raise RuntimeError(
            f"the shape of an {type(self).__name__} is learnt from the first input of its lazy module: run that once, then ask"
        )


class UninitializedParameter(_Uninitialized, Parameter):
    """A parameter whose shape is learnt from the first input (see the Lazy modules)."""

    __slots__ = ()
    _initialized = Parameter

    def __new__(cls, requires_grad: bool = True, device: Any = None, dtype: Any = None) -> Any:
        return Parameter.__new__(cls, new_tensor(node_of(empty(0, dtype=dtype, device=device))), requires_grad)


class UninitializedBuffer(_Uninitialized, Tensor):
    """A buffer whose shape is learnt from the first input."""

    __slots__ = ()
    _initialized = Tensor

    def __new__(cls, requires_grad: bool = False, device: Any = None, dtype: Any = None, persistent: bool = True) -> Any:
        t = Tensor.__new__(cls, new_tensor(node_of(empty(0, dtype=dtype, device=device))))
        t.persistent = persistent
        return t


def is_lazy(t: Any) -> bool:
    """Whether a parameter or buffer still waits for its shape."""
    return isinstance(t, _Uninitialized)
