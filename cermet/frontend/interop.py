"""Values from outside: Python numbers and nested lists, NumPy arrays, DLPack. What is read in is copied, or shared when it is frozen."""

from __future__ import annotations

from typing import Any

import numpy as np

from cermet import dtypes as dt
from cermet.devices import cpu
from cermet.frontend import core
from cermet.frontend.core import TensorBase, data_tensor, scalar_tensor
from cermet.graph.node import meta
from cermet.lazy.number import Number, plain, real
from cermet.lazy.values import buffer_from_array
from cermet.ops.define import hooks
from cermet.ops.public import public
from cermet.runtime.buffer import Buffer

__all__ = ["as_tensor", "from_array", "to_tensor"]


def from_array(array: Any, dtype: Any = None) -> Any:
    """A tensor with the value of a NumPy array: memory is shared when the array (and what it views) is read-only, copied otherwise.

    Raises:
        TypeError: for a NumPy dtype without a Cermet dtype.
    """
    a = np.asarray(array)
    d = dtype if dtype is not None else dt.from_numpy_dtype(a.dtype)
    m = meta(tuple(a.shape), d, cpu)
    if a.dtype != d.numpy:
        a = a.astype(d.numpy)
        return data_tensor(m, buffer_from_array(a))
    if _frozen(a) and a.flags.c_contiguous and a.nbytes and a.ctypes.data % 64 == 0:
        return data_tensor(m, Buffer.from_owner(a.ctypes.data, a.nbytes, a))
    return data_tensor(m, buffer_from_array(a))


def _frozen(a: Any) -> bool:
    while isinstance(a, np.ndarray):
        if a.flags.writeable:
            return False
        a = a.base
    return a is None or isinstance(a, bytes)


def to_tensor(x: Any, dtype: Any = None, like: Any = None) -> Any:
    """A tensor of anything: tensors pass (cast where ``dtype`` says so), numbers become run-time scalars on the device of ``like``."""
    if isinstance(x, TensorBase):
        return x if dtype is None or x._node.meta.dtype is dtype else x.to(dtype)  # type: ignore[attr-defined]
    if isinstance(x, bool | int | float):
        d = dtype or dt.of_scalar(x)
        return scalar_tensor(_checked(x, d), d, cpu)
    if isinstance(x, np.generic):
        return to_tensor(x.item(), dtype or dt.from_numpy_dtype(x.dtype), like)
    if isinstance(x, np.ndarray):
        return from_array(x, dtype)
    return from_data(x, dtype)


def _checked(x: Any, d: dt.DType) -> Any:
    if type(x) is Number:
        if d.kind == "f" or x.op == "draw":
            return real(x) if d.kind == "f" else x
        x = plain(x)
    if d.kind == "b":
        return bool(x)
    if d.kind in "iu":
        if isinstance(x, float) and x != x:
            raise ValueError(f"cannot convert float NaN to {d}")
        info = np.iinfo(d.numpy)
        n = int(x)
        if not info.min <= n <= info.max:
            raise OverflowError(f"{n} does not fit into {d} ({info.min} to {info.max})")
        return n
    return float(x)


def _has_tensor(data: Any) -> bool:
    return isinstance(data, TensorBase) or (isinstance(data, list | tuple) and any(_has_tensor(x) for x in data))


def from_data(data: Any, dtype: Any = None) -> Any:
    """A tensor of nested sequences of numbers (floats take the default dtype, ints int64).

    Raises:
        ValueError: when the sequences are ragged. TypeError: for what is no number.
    """
    if hasattr(data, "__dlpack__") and not isinstance(data, np.ndarray):
        return from_array(np.from_dlpack(data).copy(), dtype)
    if hasattr(data, "__array__"):
        return from_array(np.asarray(data), dtype)
    if isinstance(data, list | tuple) and _has_tensor(data):
        data = _untensor(data)
    try:
        a = np.asarray(data)
    except ValueError as e:
        raise ValueError(f"tensor(): the nested sequences are ragged: {e}") from None
    if a.dtype == object or a.dtype.kind in "USV":
        raise TypeError(f"tensor(): expected numbers or nested sequences of them, got {type(data).__name__} holding {a.dtype}")
    if dtype is None:
        if a.dtype.kind == "f":
            dtype = dt.get_default_dtype() if not isinstance(data, np.ndarray | np.generic) else None
        if a.size == 0 and isinstance(data, list | tuple):
            dtype = dt.get_default_dtype()
    return from_array(a, dtype)


def _untensor(data: Any) -> Any:
    if isinstance(data, TensorBase):
        return data._array().tolist() if data._node.meta.dtype is not dt.bfloat16 else data.tolist()  # type: ignore[attr-defined]
    return [_untensor(x) for x in data] if isinstance(data, list | tuple) else data


def _check_device(device: Any) -> None:
    if device is not None:
        from cermet.devices import Device

        Device(device)


@public(method=False)
def tensor(data: Any, *, dtype: Any = None, device: Any = None, requires_grad: bool = False, pin_memory: bool = False) -> Any:
    """A new leaf with a copy of ``data``: a number, nested sequences, a NumPy array or a tensor.

    Raises:
        ValueError, TypeError: for ragged or non-numeric data.
    """
    _check_device(device)
    if isinstance(data, TensorBase):
        out = core.new_tensor(core.node_of(data))
        if dtype is not None:
            out = to_tensor(out, dtype)
    elif isinstance(data, np.ndarray):
        out = from_array(data, dtype)
    elif isinstance(data, bool | int | float) and not isinstance(data, np.generic):
        d = dtype or dt.of_scalar(data)
        data = plain(data)
        out = from_array(np.asarray(_checked(data, d)).astype(d.numpy), d)
    else:
        out = from_data(data, dtype)
    return out.requires_grad_() if requires_grad else out


@public(method=False, aliases=("asarray",))
def as_tensor(data: Any, dtype: Any = None, device: Any = None) -> Any:
    """A tensor of ``data``; a tensor of the right dtype is returned as it is."""
    _check_device(device)
    return to_tensor(data, dtype)


@public(method=False)
def from_numpy(array: Any) -> Any:
    """A tensor with the value of a NumPy array. A read-only array shares memory, a writable one is copied: a later write to it must not
    change what is pending."""
    if not isinstance(array, np.ndarray):
        raise TypeError(f"from_numpy expects a numpy.ndarray, got {type(array).__name__}")
    return from_array(array)


@public(method=False)
def from_dlpack(source: Any) -> Any:
    """A tensor with a copy of the value of anything that speaks DLPack."""
    return from_array(np.from_dlpack(source).copy())


hooks.to_tensor = to_tensor
