"""What rules of several ops share: casting, promotion, reducing a gradient to a broadcast input's shape, checking dims.

Works on values (tensors or nodes) through ops and their ``shape`` and ``dtype`` alone.
"""

from __future__ import annotations

from collections import namedtuple
from typing import Any

import numpy as np

from cermet import dtypes as dt
from cermet.dtypes import DType
from cermet.graph.node import Meta, Node
from cermet.graph.sizes import Size
from cermet.ops.define import Arg, OpDef, Sample, constant, hooks

_NUMBERS = (bool, int, float, np.number, np.bool_, Size)
_PLAIN = (float, int, bool)


def is_number(x: Any) -> bool:
    """A Python or NumPy scalar: joins a tensor without deciding its width."""
    return isinstance(x, _NUMBERS)


cast: OpDef = OpDef(
    "cast",
    "elementwise",
    lambda m, *, dtype: m.with_dtype(dtype),
    attrs=("dtype",),
    vjp=lambda c, g: cast(g, dtype=c.metas[0].dtype),
    lower=lambda b, x, *, dtype: b.cast(x, dtype),
    reference=lambda x, *, dtype: np.asarray(x).astype(dtype.numpy),
    dtypes=dt.ALL,
    samples=(
        Sample((Arg((3, 4)),), {"dtype": dt.float64}),
        Sample((Arg((5,)),), {"dtype": dt.int64}, gradient=False),
        Sample((Arg((2, 0, 3)),), {"dtype": dt.float32}),
        Sample((Arg(()),), {"dtype": dt.bool}, gradient=False),
    ),
    onnx="Cast",
    ulp=0.5,
    doc="The same values in another dtype; floating to integer truncates, out-of-range values saturate, NaN gives 0.",
)


def to_dtype(x: Any, dtype: DType) -> Any:
    """``x`` cast to ``dtype`` where it is not already."""
    return x if x.dtype is dtype else cast(x, dtype=dtype)


def floating(x: Any) -> Any:
    """``x`` as a floating value: integers and bools go to the default dtype."""
    return x if x.dtype.kind == "f" else cast(x, dtype=dt.get_default_dtype())


def as_value(x: Any, like: Any = None, dtype: DType | None = None) -> Any:
    """A tensor (or node) from an argument: numbers become run-time scalars."""
    if isinstance(x, Node):
        return x
    if type(like) is Node and is_number(x):
        return constant(x, dtype or like.meta.dtype, like)  # inside a decomposition
    return hooks.to_tensor(x, dtype=dtype, like=like)


def result_dtype(*args: Any) -> DType:
    """PyTorch's result type: tensors with dims decide first, then 0-dimensional tensors, then Python numbers; a later class
    only counts where its category (bool < integer < floating) is higher."""
    best: list[DType | None] = [None, None, None]
    for x in args:
        if is_number(x):
            rank, d = 2, dt.int64 if type(x) is Size else dt.of_scalar(x.item() if isinstance(x, np.generic) else x)
        else:
            rank, d = (0 if len(x.shape) else 1), x.dtype
        known = best[rank]
        best[rank] = d if known is None else dt.promote_types(known, d)
    out: DType | None = None
    for d2 in best:
        if d2 is not None and (out is None or dt.category(d2) > dt.category(out)):
            out = d2 if out is None or dt.category(d2) > dt.category(out) else out
    assert out is not None
    return out


def pair(x: Any, y: Any, float_result: bool = False) -> tuple[Any, Any]:
    """Two operands in their common dtype, as `promote`; what programs write most often takes a short way."""
    d: Any = getattr(x, "dtype", None)
    if type(d) is DType:
        if type(y) in _PLAIN:
            # A number never decides the width: beside a floating tensor it is one of its dtype.
            if d.kind == "f":
                return x, float(y)
        elif (not float_result or d.kind == "f") and getattr(y, "dtype", None) is d:
            return x, y
    a, b = promote(x, y, float_result=float_result)
    return a, b


def promote(*args: Any, float_result: bool = False) -> tuple[Any, ...]:
    """The arguments as values of their common dtype; numbers become run-time scalars of it."""
    args = tuple([x if is_number(x) or (hasattr(x, "dtype") and type(x.dtype) is DType) else as_value(x) for x in args])
    d = result_dtype(*args)
    if float_result and d.kind != "f":
        d = dt.get_default_dtype()
    like = next((x for x in args if not is_number(x)), None)
    return tuple([as_value(x, like, d) if is_number(x) else to_dtype(x, d) for x in args])


def unbroadcast(g: Any, m: Meta) -> Any:
    """Sum a gradient of a broadcast result down to an input's shape."""
    from cermet.ops.movement import reshape
    from cermet.ops.reduction import reduce_sum

    shape = tuple(g.shape)
    if shape == m.shape:
        return g
    lead = len(shape) - len(m.shape)
    dims = tuple(k for k, size in enumerate(shape) if k < lead or (m.shape[k - lead] == 1 and size != 1))
    if dims:
        g = reduce_sum(g, dims=dims, keepdim=False)
    return g if tuple(g.shape) == m.shape else reshape(g, shape=m.shape)


def wrap_dim(dim: Any, ndim: int, name: str) -> int:
    """A dimension in [0, ndim).

    Raises:
        IndexError: when it is outside [-ndim, ndim). TypeError: when it is no integer.
    """
    try:
        d = dim.__index__()
    except AttributeError:
        raise TypeError(f"{name}: dim must be an integer, got {dim!r} of type {type(dim).__name__}") from None
    low = max(ndim, 1)
    if not -low <= d < low:
        raise IndexError(f"{name}: dim {d} is out of range for a tensor of {ndim} dimensions; expected {-low} to {low - 1}")
    return d % low


def wrap_dims(dims: Any, ndim: int, name: str) -> tuple[int, ...]:
    """Sorted distinct dimensions; None or an empty sequence means all.

    Raises:
        RuntimeError: when one appears twice.
    """
    if dims is None or (isinstance(dims, tuple | list) and len(dims) == 0):
        return tuple(range(ndim))
    if not isinstance(dims, tuple | list):
        dims = (dims,)
    out = tuple(sorted(wrap_dim(d, ndim, name) for d in dims))
    if len(set(out)) != len(out):
        raise RuntimeError(f"{name}: dim {tuple(dims)} names a dimension twice")
    return out if ndim else ()


def check_floating(m: Meta, name: str) -> None:
    """Raise TypeError unless floating."""
    if m.dtype.kind != "f":
        raise TypeError(f"{name}: expected a floating dtype, got {m.dtype}; convert with .float() first")


def same_dtype(name: str, *metas: Meta) -> None:
    """Raise TypeError unless all dtypes are equal."""
    if any(m.dtype is not metas[0].dtype for m in metas):
        got = ", ".join(m.dtype.name for m in metas)
        raise TypeError(f"{name}: expected inputs of one dtype, got {got}; convert with .to(dtype)")


def full_value(like: Any, value: Any, shape: tuple[int, ...], dtype: DType | None = None) -> Any:
    """A constant of ``shape`` beside ``like`` (a tensor or node), of its dtype unless given."""
    from cermet.ops.movement import expand

    d = dtype or like.dtype
    scalar = constant(value, d, like) if type(like) is Node else as_value(value, like, d)
    return expand(scalar, shape=tuple(shape)) if shape else scalar


def zeros_like_value(like: Any, shape: tuple[int, ...]) -> Any:
    """Zeros of ``shape`` beside ``like``."""
    return full_value(like, 0, shape)


def index_value(like: Any, shape: tuple[int, ...], dim: int, dtype: DType = dt.int64) -> Any:
    """The index along ``dim`` in every element of ``shape``, beside ``like``."""
    from cermet.ops.leaf import iota

    device = like.meta.device if type(like) is Node else like.device
    call = iota.call_for((tuple(shape), dim, dtype, device), ())
    if type(like) is Node:
        return Node(call, ())
    return hooks.finish(call, (), None)


def view(op: OpDef, x: Any, **attrs: Any) -> Any:
    """``op`` (a movement op) applied so that a tensor result shares memory with ``x``; on nodes the op alone."""
    if type(x) is Node:
        return op(x, **attrs)
    return hooks.view(op, x, tuple([attrs[a] for a in op.attrs]))


def no_gradient(c: Any, g: Any) -> Any:
    """The vjp of a function that is constant between its jumps: zeros."""
    return zeros_like_value(g, c.metas[0].shape)


def shape_of(sizes: Any, name: str) -> tuple[int, ...]:
    """A shape from ``f(2, 3)``, ``f((2, 3))`` or ``f(cermet.Size)``.

    Raises:
        TypeError: for sizes that are not integers. RuntimeError: for negative ones.
    """
    if len(sizes) == 1 and isinstance(sizes[0], tuple | list):
        sizes = sizes[0]
    out = []
    for size in sizes:
        try:
            out.append(size.__index__())
        except AttributeError:
            raise TypeError(f"{name}: sizes must be integers, got {size!r} of type {type(size).__name__}") from None
        if out[-1] < 0:
            raise RuntimeError(f"{name}: sizes must not be negative, got {tuple(sizes)}")
    return tuple(out)


def check_dtype(dtype: Any, name: str) -> None:
    """Raise TypeError unless ``dtype`` is None or a Cermet dtype."""
    if dtype is not None and type(dtype) is not DType:
        raise TypeError(f"{name}: dtype must be a cermet dtype such as cermet.float32, got {dtype!r}")


def result_tuple(name: str, *fields: str) -> Any:
    """The type of several named results, such as (values, indices)."""
    return namedtuple(name, fields)
