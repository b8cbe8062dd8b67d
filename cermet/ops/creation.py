"""Tensors from nothing: constants, ramps, grids. All stay pending and cost nothing until a kernel reads them.

A fill value is a run-time scalar, so another value never compiles anything.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from cermet import dtypes as dt
from cermet.devices import Device, canonical, cpu
from cermet.dtypes import DType
from cermet.ops.define import hooks
from cermet.ops.elementwise import add, choose, eq, ge, le, mul, where
from cermet.ops.leaf import iota
from cermet.ops.movement import expand, reshape
from cermet.ops.public import public
from cermet.ops.support import check_dtype, index_value, is_number, shape_of, to_dtype, view

__all__ = ["filled", "ramp", "resolve_device"]


def resolve_device(device: Any) -> Device:
    """The device of a ``device=`` argument, the CPU for None.

    Raises:
        RuntimeError: when it is not here.
    """
    return cpu if device is None else canonical(device if isinstance(device, Device) else Device(device))


def filled(shape: tuple[int, ...], value: Any, dtype: DType) -> Any:
    """A tensor of ``shape`` full of ``value``."""
    return expand(hooks.to_tensor(value, dtype=dtype, like=None), shape=shape)


def ramp(n: int, dtype: DType = dt.int64) -> Any:
    """0, 1, … n - 1."""
    return hooks.finish(iota.call_for(((n,), 0, dtype, cpu), ()), (), None)


def _finished(out: Any, requires_grad: bool) -> Any:
    return out.requires_grad_() if requires_grad else out


def _sizes(size: tuple[Any, ...], named: Any, name: str) -> tuple[int, ...]:
    if named is not None:
        if size:
            raise TypeError(f"{name}: size was given twice")
        size = (tuple(named) if isinstance(named, tuple | list) else named,)
    return shape_of(size, name)


def _constant(name: str, value: int, doc: str) -> None:
    """Declare ``name(*size)`` and ``name_like(input)``."""

    def make(
        *size: Any,
        dtype: Any = None,
        layout: Any = None,
        device: Any = None,
        requires_grad: bool = False,
        pin_memory: bool = False,
        **named: Any,
    ) -> Any:
        shape = _sizes(size, named.pop("size", None), name)
        named.pop("memory_format", None)
        if named:
            raise TypeError(f"{name}: unexpected arguments {sorted(named)}")
        check_dtype(dtype, name)
        resolve_device(device)
        return _finished(filled(shape, value, dtype or dt.get_default_dtype()), requires_grad)

    def like(
        input: Any,
        *,
        dtype: Any = None,
        layout: Any = None,
        device: Any = None,
        requires_grad: bool = False,
        memory_format: Any = None,
    ) -> Any:
        check_dtype(dtype, name + "_like")
        resolve_device(device)
        return _finished(filled(tuple(input.shape), value, dtype or input.dtype), requires_grad)

    make.__name__ = make.__qualname__ = name
    make.__doc__ = f"A tensor of the given size {doc}."
    like.__name__ = like.__qualname__ = name + "_like"
    like.__doc__ = f"A tensor of the input's shape and dtype {doc}."
    public(method=False)(make)
    public(method=False)(like)


_constant("zeros", 0, "full of zeros")
_constant("ones", 1, "full of ones")
_constant("empty", 0, "with unspecified values (zeros: memory is only taken when something is computed)")


@public(method=False)
def full(
    size: Any,
    fill_value: Any,
    *,
    dtype: Any = None,
    layout: Any = None,
    device: Any = None,
    requires_grad: bool = False,
    pin_memory: bool = False,
) -> Any:
    """A tensor of ``size`` full of ``fill_value``; the dtype follows the value (bool, int64 or the default floating dtype)."""
    check_dtype(dtype, "full")
    resolve_device(device)
    if dtype is None:
        dtype = (
            dt.of_scalar(fill_value.item() if isinstance(fill_value, np.generic) else fill_value)
            if is_number(fill_value)
            else None
        )
    shape = shape_of((tuple(size),) if isinstance(size, tuple | list) else (size,), "full")
    return _finished(filled(shape, fill_value, dtype or fill_value.dtype), requires_grad)


@public(method=False)
def full_like(
    input: Any,
    fill_value: Any,
    *,
    dtype: Any = None,
    layout: Any = None,
    device: Any = None,
    requires_grad: bool = False,
    memory_format: Any = None,
) -> Any:
    """A tensor of the input's shape and dtype full of ``fill_value``."""
    check_dtype(dtype, "full_like")
    resolve_device(device)
    return _finished(filled(tuple(input.shape), fill_value, dtype or input.dtype), requires_grad)


@public(method=False)
def empty_strided(size: Any, stride: Any, *, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Any:
    """As `empty`; strides are the compiler's, so ``stride`` has no effect."""
    check_dtype(dtype, "empty_strided")
    return _finished(filled(shape_of((tuple(size),), "empty_strided"), 0, dtype or dt.get_default_dtype()), requires_grad)


# ------------------------------------------------------------------------------------------------ ramps


def _number(x: Any) -> Any:
    return x.item() if hasattr(x, "item") else x


@public(method=False)
def arange(
    start: Any,
    end: Any = None,
    step: Any = 1,
    *,
    dtype: Any = None,
    layout: Any = None,
    device: Any = None,
    requires_grad: bool = False,
    pin_memory: bool = False,
) -> Any:
    """Values from ``start`` (0) in steps of ``step`` up to but not including ``end``; int64 when all are integers.

    Raises:
        RuntimeError: for a step of 0, or one that leads away from the end.
    """
    check_dtype(dtype, "arange")
    resolve_device(device)
    start, end, step = _number(start), _number(end), _number(step)
    if end is None:
        start, end = 0, start
    if step == 0:
        raise RuntimeError("arange: step must not be 0")
    if (end - start) * step < 0:
        raise RuntimeError(f"arange: a step of {step} does not lead from {start} to {end}")
    whole = all(isinstance(v, int) for v in (start, end, step))
    d = dtype or (dt.int64 if whole else dt.get_default_dtype())
    n = -((start - end) // step) if whole else math.ceil((end - start) / step)
    if whole and d.kind != "f":
        out = ramp(n, dt.int64)
        if step != 1:
            out = mul(out, step)
        return to_dtype(add(out, start) if start != 0 else out, d)
    # In float64, so that the last value is as near to its place as the first; integers below 2^53 are exact.
    out = ramp(n, dt.float64)
    out = add(mul(out, float(step)), float(start))
    return _finished(to_dtype(out, d), requires_grad)


@public(method=False)
def range_(start: Any = 0, end: Any = None, step: Any = 1, *, dtype: Any = None, requires_grad: bool = False) -> Any:
    """Values from ``start`` in steps of ``step`` up to and including ``end`` (`arange` excludes it)."""
    n = int((_number(end) - _number(start)) / _number(step)) + 1
    out = add(mul(ramp(n, dt.float64), float(_number(step))), float(_number(start)))
    return _finished(to_dtype(out, dtype or dt.get_default_dtype()), requires_grad)


def _spaced(start: Any, end: Any, steps: int, name: str) -> Any:
    """``steps`` float64 values from start to end; each is computed from the nearer end, so that both are exact."""
    if steps < 0:
        raise RuntimeError(f"{name}: steps must not be negative, got {steps}")
    start, end = (float(v) if is_number(v) else to_dtype(v, dt.float64) for v in (start, end))
    if steps == 1:
        return filled((1,), start, dt.float64)
    i = ramp(steps, dt.float64)
    step = (end - start) / (steps - 1) if steps else 0.0
    back = mul(add(mul(i, -1.0), float(steps - 1)), step)
    return where(le(i, float(steps // 2)), add(mul(i, step), start), add(mul(back, -1.0), end))


@public(method=False)
def linspace(
    start: Any, end: Any, steps: int, *, dtype: Any = None, layout: Any = None, device: Any = None, requires_grad: bool = False
) -> Any:
    """``steps`` evenly spaced values from ``start`` to ``end``, both included.

    Raises:
        RuntimeError: for a negative number of steps.
    """
    check_dtype(dtype, "linspace")
    resolve_device(device)
    return _finished(to_dtype(_spaced(start, end, int(steps), "linspace"), dtype or dt.get_default_dtype()), requires_grad)


@public(method=False)
def logspace(
    start: Any,
    end: Any,
    steps: int,
    base: float = 10.0,
    *,
    dtype: Any = None,
    layout: Any = None,
    device: Any = None,
    requires_grad: bool = False,
) -> Any:
    """``base`` to the power of ``steps`` evenly spaced exponents from ``start`` to ``end``."""
    from cermet.ops.mathematics import pow_op

    check_dtype(dtype, "logspace")
    resolve_device(device)
    exponents = _spaced(start, end, int(steps), "logspace")
    out = pow_op(expand(hooks.to_tensor(float(base), dtype=dt.float64, like=None), shape=tuple(exponents.shape)), exponents)
    return _finished(to_dtype(out, dtype or dt.get_default_dtype()), requires_grad)


# ------------------------------------------------------------------------------------------------ matrices and grids


@public(method=False)
def eye(
    n: int, m: int | None = None, *, dtype: Any = None, layout: Any = None, device: Any = None, requires_grad: bool = False
) -> Any:
    """An n x m (n x n) matrix of ones on the diagonal, zeros elsewhere."""
    check_dtype(dtype, "eye")
    resolve_device(device)
    rows, cols = shape_of((n, n if m is None else m), "eye")
    hit = eq(reshape(ramp(rows), shape=(rows, 1)), ramp(cols))
    return _finished(to_dtype(hit, dtype or dt.get_default_dtype()), requires_grad)


@public(method=False)
def tril_indices(row: int, col: int, offset: int = 0, *, dtype: Any = None, device: Any = None, layout: Any = None) -> Any:
    """Rows and columns (2, count) where a row x col matrix has its lower triangle, the ``offset``-th diagonal included."""
    found = np.stack(np.tril_indices(row, offset, col)).astype(np.int64)
    return hooks.to_tensor(found, dtype=dtype or dt.int64, like=None)


@public(method=False)
def triu_indices(row: int, col: int, offset: int = 0, *, dtype: Any = None, device: Any = None, layout: Any = None) -> Any:
    """Rows and columns (2, count) where a row x col matrix has its upper triangle, the ``offset``-th diagonal included."""
    found = np.stack(np.triu_indices(row, offset, col)).astype(np.int64)
    return hooks.to_tensor(found, dtype=dtype or dt.int64, like=None)


@public(method=False)
def meshgrid(*tensors: Any, indexing: str = "ij") -> tuple[Any, ...]:
    """Coordinate grids of vectors (or scalars): each a view of its vector, in the common shape.

    Args:
        indexing: ``"ij"`` keeps the order of the inputs, ``"xy"`` exchanges the first two dimensions.

    Raises:
        RuntimeError: for inputs of more than one dimension, or of different dtypes.
    """
    if len(tensors) == 1 and isinstance(tensors[0], tuple | list):
        tensors = tuple(tensors[0])
    if indexing not in ("ij", "xy"):
        raise RuntimeError(f"meshgrid: indexing must be 'ij' or 'xy', got {indexing!r}")
    if any(len(t.shape) > 1 for t in tensors):
        raise RuntimeError(f"meshgrid: expected scalars or vectors, got shapes {[list(t.shape) for t in tensors]}")
    if any(t.dtype is not tensors[0].dtype for t in tensors):
        raise RuntimeError("meshgrid: expected tensors of one dtype")
    order = list(range(len(tensors)))
    if indexing == "xy" and len(tensors) > 1:
        order[:2] = [1, 0]
    sizes = [t.shape[0] if len(t.shape) else 1 for t in tensors]
    shape = tuple([sizes[k] for k in order])
    out = []
    for k, t in enumerate(tensors):
        place = order.index(k)
        lined = view(reshape, t, shape=tuple([sizes[k] if d == place else 1 for d in range(len(shape))]))
        out.append(view(expand, lined, shape=shape))
    return tuple(out)


def triangle(x: Any, diagonal: int, lower: bool) -> Any:
    """The last two dimensions' elements on one side of a diagonal, zeros on the other."""
    shape = tuple(x.shape)
    rows, cols = shape[-2:]
    i = index_value(x, (rows, cols), 0)
    j = index_value(x, (rows, cols), 1)
    edge = add(i, diagonal)
    return choose(le(j, edge) if lower else ge(j, edge), x, 0)


def _check_matrix(x: Any, name: str) -> None:
    if len(x.shape) < 2:
        raise RuntimeError(f"{name}: expected at least two dimensions, got shape {list(x.shape)}")


@public(inplace=True)
def tril(input: Any, diagonal: int = 0) -> Any:
    """The lower triangles of matrices (..., rows, columns) with their ``diagonal``-th diagonal; zeros elsewhere.

    Raises:
        RuntimeError: for fewer than two dimensions.
    """
    _check_matrix(input, "tril")
    return triangle(input, int(diagonal), True)


@public(inplace=True)
def triu(input: Any, diagonal: int = 0) -> Any:
    """The upper triangles of matrices (..., rows, columns) with their ``diagonal``-th diagonal; zeros elsewhere.

    Raises:
        RuntimeError: for fewer than two dimensions.
    """
    _check_matrix(input, "triu")
    return triangle(input, int(diagonal), False)
