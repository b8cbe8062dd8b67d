"""How a tensor's elements lie in what it views: strides, contiguity, reshaping as a view or a copy, conversion of dtype and
device.

Strides are symbolic: those that the element positions would have in the base that a tensor's alias chain starts from. They
decide what is a view and what a copy by PyTorch's rule; the memory itself is planned by the compiler.
"""

from __future__ import annotations

import math
from typing import Any

from cermet import dtypes as dt
from cermet.devices import Device, canonical
from cermet.frontend import core
from cermet.frontend.core import TensorBase, apply, new_tensor, node_of, view
from cermet.ops import movement
from cermet.ops.define import hooks
from cermet.ops.public import public
from cermet.ops.support import cast, result_dtype

__all__ = ["is_contiguous", "layout_of", "reshaped", "strides_of"]


def row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The strides, in elements, of a contiguous value."""
    out = []
    step = 1
    for size in reversed(shape):
        out.append(step)
        step *= max(size, 1)
    return tuple(reversed(out))


def _fitted(shape: tuple[int, ...], strides: tuple[int, ...], new: tuple[int, ...]) -> tuple[int, ...] | None:
    """The strides under which elements laid out by ``strides`` have the shape ``new``; None where only a copy has it."""
    if math.prod(shape) == 0:
        return strides if shape == new else row_major(new)
    # Runs of dimensions that lie in one piece, each as (number of elements, stride of the last).
    runs: list[list[int]] = []
    for size, step in zip(shape, strides):
        if size == 1:
            continue
        if runs and runs[-1][1] == size * step:
            runs[-1] = [runs[-1][0] * size, step]
        else:
            runs.append([size, step])
    out: list[int] = []
    rest = list(reversed(runs))
    left, step = rest.pop() if rest else (1, 1)
    for size in new:
        if left == 1 and rest and size != 1:
            left, step = rest.pop()
        if left % size:
            return None
        left //= size
        out.append(left * step)
    return tuple(out) if left == 1 and not rest else None


def layout_of(t: TensorBase) -> tuple[tuple[int, ...], int]:
    """Where a view lies in its base: strides and offset, counted in elements."""
    alias = t._alias
    if alias is None or not alias.chain:
        return row_major(node_of(t).meta.shape), 0
    m = alias.storage.node.meta
    shape, strides, offset = m.shape, row_major(m.shape), 0
    for op, attrs in alias.chain:
        shape, strides, offset = _moved(op, dict(zip(op.attrs, attrs)), shape, strides, offset)
    return strides, offset


def _moved(op: Any, a: dict[str, Any], shape: Any, strides: Any, offset: int) -> tuple[Any, Any, int]:
    """Shape, strides and offset after one movement."""
    if op is movement.reshape:
        return a["shape"], _fitted(shape, strides, a["shape"]) or row_major(a["shape"]), offset
    if op is movement.permute:
        return tuple([shape[d] for d in a["dims"]]), tuple([strides[d] for d in a["dims"]]), offset
    if op is movement.expand:
        new = a["shape"]
        lead = len(new) - len(shape)
        kept = [0 if shape[k] != new[k + lead] else strides[k] for k in range(len(shape))]
        return new, (*[0] * lead, *kept), offset
    if op is movement.slice_:
        offset += sum(s * st for s, st in zip(a["starts"], strides))
        return a["sizes"], tuple([s * st for s, st in zip(a["steps"], strides)]), offset
    if op is movement.diagonal_:
        return _moved_diagonal(a, shape, strides, offset)
    if op is movement.windows:
        d, n = a["dim"], (shape[a["dim"]] - a["dilation"] * (a["size"] - 1) - 1) // a["step"] + 1
        new = (*shape[:d], n, *shape[d + 1 :], a["size"])
        return new, (*strides[:d], strides[d] * a["step"], *strides[d + 1 :], strides[d] * a["dilation"]), offset
    raise RuntimeError(f"the strides of a view by {op.name} are not defined")


def _moved_diagonal(a: dict[str, Any], shape: Any, strides: Any, offset: int) -> tuple[Any, Any, int]:
    one, two, k = a["dim1"], a["dim2"], a["offset"]
    rows, cols = shape[one], shape[two]
    n = max(0, min(rows, cols - k) if k >= 0 else min(rows + k, cols))
    rest = [d for d in range(len(shape)) if d not in (one, two)]
    start = offset + (k * strides[two] if k >= 0 else -k * strides[one]) if n else offset
    return (*[shape[d] for d in rest], n), (*[strides[d] for d in rest], strides[one] + strides[two]), start


def strides_of(t: TensorBase) -> tuple[int, ...]:
    """The strides of a tensor, in elements."""
    return layout_of(t)[0]


def is_contiguous(t: TensorBase) -> bool:
    """Whether the elements lie in row-major order without gaps."""
    alias = t._alias
    if alias is None or not alias.chain:
        return True
    shape = t._node.meta.shape
    if t._node.meta.numel == 0:
        return True
    return all(n == 1 or s == e for n, s, e in zip(shape, strides_of(t), row_major(shape)))


def reshaped(t: TensorBase, shape: tuple[int, ...], must_view: bool) -> Any:
    """``t`` under another shape: a view where strides allow it, else a copy (or an error with ``must_view``)."""
    alias = t._alias
    if alias is None or not alias.chain:
        return view(movement.reshape, t, (shape,))
    core.looked()  # which of the two it is depends on how the view lies in memory
    old = t._node.meta.shape
    if math.prod(shape) == t._node.meta.numel and _fitted(old, strides_of(t), shape) is None:
        if must_view:
            raise RuntimeError(
                f"view: a tensor of shape {list(old)} with strides {list(strides_of(t))} has no view of shape {list(shape)}; "
                "use .reshape()"
            )
        return apply(movement.reshape, (t,), (shape,))
    return view(movement.reshape, t, (shape,))


hooks.reshape = reshaped


# ---------------------------------------------------------------------------------------------------------- conversion


@public()
def clone(input: Any, *, memory_format: Any = None) -> Any:
    """A tensor of the same value that shares no memory with the input; gradients flow through it."""
    node = node_of(input)
    if input._fn is None:
        return new_tensor(node)
    return apply(movement.reshape, (input,), (node.meta.shape,))


def contiguous(input: Any, memory_format: Any = None) -> Any:
    """The tensor itself where it is contiguous, else a copy that is."""
    return input if is_contiguous(input) else clone(input)


def converted(t: Any, dtype: Any = None, device: Any = None, copy: bool = False) -> Any:
    """``t`` with another dtype or device; itself where nothing changes and no copy is asked for.

    Raises:
        RuntimeError: for a device that is not here.
    """
    if device is not None:
        target = canonical(device if isinstance(device, Device) else Device(device))
        if target is not node_of(t).meta.device:
            raise RuntimeError(f"to: cannot move a tensor from {node_of(t).meta.device} to {target}")
    if dtype is not None and dtype is not node_of(t).meta.dtype:
        return apply(cast, (t,), (dtype,))
    return clone(t) if copy else t


def to(self: Any, *args: Any, **kwargs: Any) -> Any:
    """The tensor with another dtype and/or device: ``to(dtype)``, ``to(device)``, ``to(device, dtype)``, ``to(other)``.

    Args:
        non_blocking: accepted, without effect. copy: make a copy even where nothing changes.

    Raises:
        TypeError: for arguments that are none of these. RuntimeError: for a device that is not here.
    """
    dtype, device = kwargs.pop("dtype", None), kwargs.pop("device", None)
    copy = kwargs.pop("copy", False)
    kwargs.pop("non_blocking", None)
    kwargs.pop("memory_format", None)
    other = kwargs.pop("other", None)
    if kwargs:
        raise TypeError(f"to: unexpected arguments {sorted(kwargs)}")
    flags = [a for a in args if isinstance(a, bool)]
    if len(flags) > 1:
        copy = flags[1]
    for a in (*args, *(() if other is None else (other,))):
        if isinstance(a, dt.DType):
            dtype = a
        elif isinstance(a, TensorBase):
            dtype, device = a._node.meta.dtype, a._node.meta.device
        elif isinstance(a, str | Device):
            device = a
        elif a is not None and not isinstance(a, bool):
            raise TypeError(f"to: expected a dtype, a device or a tensor, got {a!r}")
    if dtype is not None and not isinstance(dtype, dt.DType):
        raise TypeError(f"to: dtype must be a cermet dtype such as cermet.float32, got {dtype!r}")
    return converted(self, dtype, device, copy)


def astype(self: Any, dtype: Any) -> Any:
    """NumPy's spelling of ``to(dtype)``; NumPy dtypes are accepted."""
    return converted(self, dt.from_numpy_dtype(dtype))


_TYPE_NAMES = {
    "float32": "Float",
    "float64": "Double",
    "float16": "Half",
    "bfloat16": "BFloat16",
    "uint8": "Byte",
    "int8": "Char",
    "int16": "Short",
    "int32": "Int",
    "int64": "Long",
    "bool": "Bool",
}


def type_(self: Any, dtype: Any = None, non_blocking: bool = False) -> Any:
    """The name of the tensor's type, such as ``"cermet.FloatTensor"``; with ``dtype`` (a dtype or such a name) a conversion."""
    if dtype is None:
        return f"cermet.{_TYPE_NAMES[self.dtype.name]}Tensor"
    if isinstance(dtype, str):
        short = dtype.rpartition(".")[2]
        dtype = next((d for d in dt.ALL if f"{_TYPE_NAMES[d.name]}Tensor" == short), None)
        if dtype is None:
            raise ValueError(f"type: unknown type {short!r}")
    return converted(self, dtype)


def type_as(self: Any, other: Any) -> Any:
    """The tensor with the dtype of another."""
    return converted(self, other.dtype)


def cpu(self: Any, memory_format: Any = None) -> Any:
    """The tensor on the CPU."""
    return converted(self, None, "cpu")


def cuda(self: Any, device: Any = None, non_blocking: bool = False) -> Any:
    """The tensor on a CUDA device."""
    return converted(self, None, "cuda" if device is None else f"cuda:{device}" if isinstance(device, int) else device)


def _conversion(name: str, dtype: dt.DType) -> Any:
    def convert(self: Any, memory_format: Any = None) -> Any:
        return converted(self, dtype)

    convert.__name__ = convert.__qualname__ = name
    convert.__doc__ = f"The tensor as {dtype.name}."
    return convert


def stride(self: Any, dim: int | None = None) -> Any:
    """The steps, in elements, from one index to the next; of one dimension with ``dim``."""
    strides = strides_of(self)
    return strides if dim is None else strides[dim]


def storage_offset(self: Any) -> int:
    """The position, in elements, of the first element in what the tensor views."""
    return layout_of(self)[1]


def data_ptr(self: Any) -> int:
    """The address of the value in memory, computed now if need be; it may change with each evaluation."""
    from cermet.lazy.evaluate import buffer_of

    return int(getattr(buffer_of(node_of(self)), "ptr", 0))


def is_contiguous_method(self: Any, memory_format: Any = None) -> bool:
    """Whether the elements lie in row-major order without gaps."""
    return is_contiguous(self)


@public()
def as_strided(input: Any, size: Any, stride: Any, storage_offset: int | None = None) -> Any:
    """Elements of what the tensor views, at ``storage_offset + sum(index * stride)``; a copy, to be read.

    Raises:
        RuntimeError: when an element lies outside.
    """
    from cermet.ops.gather import gather
    from cermet.ops.support import index_value

    shape, steps = tuple(int(s) for s in size), tuple(int(s) for s in stride)
    alias = input._alias
    node_of(input)
    base = input if alias is None else new_tensor(alias.storage.node, alias.history.fn)
    start = layout_of(input)[1] if storage_offset is None else int(storage_offset)
    last = start + sum((n - 1) * s for n, s in zip(shape, steps))
    if len(shape) != len(steps) or min(steps, default=0) < 0:
        raise RuntimeError(f"as_strided: size {shape} and stride {steps} must have one length, and strides must not be negative")
    if math.prod(shape) and not (start >= 0 and last < base._node.meta.numel):
        raise RuntimeError(
            f"as_strided: size {shape}, stride {steps} and offset {start} leave the {base._node.meta.numel} elements viewed"
        )
    index: Any = apply(movement.expand, (core.scalar_tensor(start, dt.int64, input.device),), (shape,))
    for d, step in enumerate(steps):
        if shape[d] > 1 and step:
            index = index + index_value(input, shape, d) * step
    flat = apply(movement.reshape, (base,), ((base._node.meta.numel,),))
    return gather(flat, index, dims=(0,), rest=())


# ---------------------------------------------------------------------------------------------------------- new values beside one


def _beside(self: Any, shape: tuple[int, ...], value: Any, dtype: Any, device: Any, requires_grad: bool) -> Any:
    d = dtype or self.dtype
    out = apply(movement.expand, (hooks.to_tensor(value, dtype=d, like=None),), (shape,))
    return out.requires_grad_() if requires_grad else out


def new_full(self: Any, size: Any, fill_value: Any, *, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Any:
    """A tensor of ``size`` full of one value, of this tensor's dtype unless given."""
    from cermet.ops.support import shape_of

    return _beside(
        self, shape_of((size,) if isinstance(size, int) else (tuple(size),), "new_full"), fill_value, dtype, device, requires_grad
    )


def _new_filled(name: str, value: int) -> Any:
    def new(self: Any, *size: Any, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Any:
        from cermet.ops.support import shape_of

        return _beside(self, shape_of(size, name), value, dtype, device, requires_grad)

    new.__name__ = new.__qualname__ = name
    new.__doc__ = f"A tensor of the given size full of {value}, of this tensor's dtype unless given."
    return new


def new_tensor_method(self: Any, data: Any, *, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Any:
    """A new leaf of ``data``, of this tensor's dtype unless given."""
    out = hooks.to_tensor(data, dtype=dtype or self.dtype, like=None)
    out = new_tensor(node_of(out))
    return out.requires_grad_() if requires_grad else out


@public(method=False)
def is_tensor(obj: Any) -> bool:
    """Whether ``obj`` is a tensor."""
    return isinstance(obj, TensorBase)


@public(method=False)
def is_floating_point(input: Any) -> bool:
    """Whether a tensor's dtype is floating."""
    return node_of(input).meta.dtype.kind == "f"


@public(method=False)
def result_type(tensor1: Any, tensor2: Any) -> dt.DType:
    """The dtype of an operation on two tensors or numbers."""
    return result_dtype(tensor1, tensor2)


METHODS: dict[str, Any] = {
    "contiguous": contiguous,
    "to": to,
    "astype": astype,
    "type": type_,
    "type_as": type_as,
    "cpu": cpu,
    "cuda": cuda,
    "stride": stride,
    "storage_offset": storage_offset,
    "data_ptr": data_ptr,
    "is_contiguous": is_contiguous_method,
    "new_full": new_full,
    "new_tensor": new_tensor_method,
    "new_zeros": _new_filled("new_zeros", 0),
    "new_empty": _new_filled("new_empty", 0),
    "new_ones": _new_filled("new_ones", 1),
    **{
        name: _conversion(name, dtype)
        for name, dtype in {
            "float": dt.float32,
            "double": dt.float64,
            "half": dt.float16,
            "bfloat16": dt.bfloat16,
            "int": dt.int32,
            "long": dt.int64,
            "short": dt.int16,
            "char": dt.int8,
            "byte": dt.uint8,
            "bool": dt.bool,
        }.items()
    },
}
"""Tensor methods of this room, by name; `cermet.frontend.tensor` puts them on the class."""
