"""The two primitives of data-dependent access: `gather` reads at indices, `scatter` writes there. Everything with an index
tensor is built on them.

Indices come in the full shape of the result (of the update); they are usually expanded views, which cost nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cermet import dtypes as dt
from cermet.graph.node import Meta
from cermet.ops.define import OUT, Arg, Failing, OpDef, Sample
from cermet.ops.elementwise import div, eq, mul, where
from cermet.ops.support import cast, full_value, same_dtype, zeros_like_value

__all__ = ["gather", "scatter"]


def _check_indices(name: str, x: Meta, shape: tuple[int, ...], indices: tuple[Meta, ...], dims: Any, rest: Any) -> None:
    if len(dims) != len(indices) or len(dims) + len(rest) != x.ndim:
        raise ValueError(f"{name}: {len(indices)} indices for dims {dims} and rest {rest} of a value of {x.ndim} dimensions")
    for m in indices:
        if m.dtype is not dt.int64:
            raise TypeError(f"{name}: indices must be int64, got {m.dtype}; convert with .long()")
        if m.shape != shape:
            raise ValueError(f"{name}: an index has shape {list(m.shape)}, expected {list(shape)}")
    free = [d for d in range(x.ndim) if d not in dims]
    for d, p in zip(free, rest):
        if shape[p] > x.shape[d]:
            raise ValueError(f"{name}: dimension {p} of size {shape[p]} reads dimension {d} of size {x.shape[d]}")


def checked_index(index: Any, dim: int, size: int) -> Any:
    """A NumPy index array with negative entries counted from the end.

    Raises:
        IndexError: naming the first entry that is out of range.
    """
    bad = (index < -size) | (index >= size)
    if bad.any():
        raise IndexError(f"index {int(index[bad].flat[0])} does not exist in dimension {dim} of size {size}")
    return np.where(index < 0, index + size, index)


def _key(shape: tuple[int, ...], place: tuple[int, ...], indices: Any, dims: Any, rest: Any) -> tuple[Any, ...]:
    """The NumPy index that reads (or writes) position by position."""
    key: list[Any] = [None] * len(shape)
    for d, index in zip(dims, indices):
        key[d] = checked_index(index, d, shape[d])
    free = [d for d in range(len(shape)) if d not in dims]
    grid = np.indices(place, sparse=True) if place else ()
    for d, p in zip(free, rest):
        key[d] = grid[p]
    return tuple(key)


def _gather_infer(x: Meta, *indices: Meta, dims: tuple[int, ...], rest: tuple[int, ...]) -> Meta:
    shape = indices[0].shape
    _check_indices("gather", x, shape, indices, dims, rest)
    return x.with_shape(shape)


def _gather_vjp(c: Any, g: Any) -> Any:
    n = len(c.metas) - 1
    gx = scatter(zeros_like_value(g, c.metas[0].shape), g, *[c[k + 1] for k in range(n)], dims=c.dims, rest=c.rest, mode="add")
    return (gx, *[None] * n)


def _index(n: int, *shape: int) -> Arg:
    return Arg(shape, ("index", n), dt.int64)


gather: OpDef = OpDef(
    "gather",
    "gather",
    _gather_infer,
    attrs=("dims", "rest"),
    vjp=_gather_vjp,
    saves=lambda n, attrs: tuple(range(1, n)),
    reference=lambda x, *indices, dims, rest: x[_key(x.shape, indices[0].shape, indices, dims, rest)],
    dtypes=dt.ALL,
    samples=(
        Sample((Arg((5,)), _index(5, 3)), {"dims": (0,), "rest": ()}),
        Sample((Arg((4, 3)), _index(4, 2, 3)), {"dims": (0,), "rest": (1,)}),
        Sample((Arg((4, 3)), _index(3, 2, 2)), {"dims": (1,), "rest": (0,)}),
        Sample((Arg((2, 3, 4)), _index(2, 5, 3), _index(4, 5, 3)), {"dims": (0, 2), "rest": (1,)}),
        Sample((Arg((4, 3)), _index(4, 0, 3)), {"dims": (0,), "rest": (1,)}),
    ),
    failing=(Failing((Arg((5,)), Arg((3,), (0, 4), dt.int32)), {"dims": (0,), "rest": ()}, TypeError, "int64"),),
    ulp=0,
    onnx="GatherND",
    doc="The elements at index tensors: `dims` of the input are indexed, each other dim is read at an output dim (`rest`).",
)


# ---------------------------------------------------------------------------------------------------------------- scatter

_MODES = ("set", "add", "mul", "min", "max")


def _scatter_infer(base: Meta, update: Meta, *indices: Meta, dims: tuple[int, ...], rest: tuple[int, ...], mode: str) -> Meta:
    same_dtype("scatter", base, update)
    if mode not in _MODES:
        raise ValueError(f"scatter: unknown mode {mode!r}; expected one of {', '.join(_MODES)}")
    _check_indices("scatter", base, update.shape, indices, dims, rest)
    return base


def _scatter_reference(base: Any, update: Any, *indices: Any, dims: Any, rest: Any, mode: str) -> Any:
    out = np.array(base)
    if update.size == 0:
        return out
    key = np.broadcast_arrays(*_key(base.shape, update.shape, indices, dims, rest)) if base.ndim else ()
    flat = tuple(k.reshape(-1) for k in key)
    values = np.asarray(update).reshape(-1)
    if mode == "set":
        # NumPy leaves open which of equal places wins; ours is the last.
        where_ = np.ravel_multi_index(flat, base.shape) if base.ndim else np.zeros(1, np.int64)
        _, first = np.unique(where_[::-1], return_index=True)
        last = len(where_) - 1 - first
        out.reshape(-1)[where_[last]] = values[last]
        return out
    ufunc: Any = {"add": np.add, "mul": np.multiply, "min": np.minimum, "max": np.maximum}[mode]
    if out.dtype == np.bool_ and mode in ("add", "mul"):
        ufunc = np.logical_or if mode == "add" else np.logical_and
    ufunc.at(out, flat, values)
    return out


def _scatter_vjp(c: Any, g: Any) -> Any:
    n = len(c.metas) - 2
    indices = [c[k + 2] for k in range(n)]
    a = {"dims": c.dims, "rest": c.rest}
    gb: Any = None
    gu: Any = None
    if c.mode == "add":
        gb, gu = g, gather(g, *indices, **a) if c.needs[1] else None
    elif c.mode == "set":
        gb = scatter(g, zeros_like_value(g, c.metas[1].shape), *indices, **a, mode="set") if c.needs[0] else None
        gu = gather(g, *indices, **a) if c.needs[1] else None
    elif c.mode == "mul":
        gb, gu = _scatter_mul_vjp(c, g, indices, a)
    else:
        gb, gu = _scatter_extreme_vjp(c, g, indices, a)
    return (gb, gu, *[None] * n)


def _scatter_mul_vjp(c: Any, g: Any, indices: list[Any], a: dict[str, Any]) -> tuple[Any, Any]:
    """The product of all other factors. Where one factor is zero the others' product is made without it; where two are, it is
    zero."""
    base, update = c[0], c[1]
    others = scatter(full_value(g, 1, c.metas[0].shape), update, *indices, **a, mode="mul")
    gb = mul(g, others) if c.needs[0] else None
    if not c.needs[1]:
        return gb, None
    zero = eq(update, 0)
    one = full_value(g, 1, ())
    count = scatter(cast(eq(base, 0), dtype=g.dtype), cast(zero, dtype=g.dtype), *indices, **a, mode="add")
    alone = mul(zero, eq(gather(count, *indices, **a), 1))
    without = scatter(base, where(alone, one, update), *indices, **a, mode="mul")
    at_zero = gather(mul(g, without), *indices, **a)
    elsewhere = div(gather(mul(g, c.out), *indices, **a), where(zero, one, update))
    return gb, where(alone, at_zero, elsewhere)


def _scatter_extreme_vjp(c: Any, g: Any, indices: list[Any], a: dict[str, Any]) -> tuple[Any, Any]:
    """Evenly among the base's element and the updates that attain the extremum (PyTorch's rule)."""
    hit_b = cast(eq(c[0], c.out), dtype=g.dtype)
    hit_u = cast(eq(c[1], gather(c.out, *indices, **a)), dtype=g.dtype)
    share = div(g, scatter(hit_b, hit_u, *indices, **a, mode="add"))
    return mul(share, hit_b), mul(gather(share, *indices, **a), hit_u) if c.needs[1] else None


def _scatter_saves(n: int, attrs: tuple[Any, ...]) -> tuple[int, ...]:
    """The indices; the values too where the gradient depends on them."""
    indices = tuple(range(2, n))
    return indices if attrs[2] in ("set", "add") else (0, 1, *indices, OUT)


_SET = {"dims": (0,), "rest": (1,), "mode": "set"}
scatter: OpDef = OpDef(
    "scatter",
    "scatter",
    _scatter_infer,
    attrs=("dims", "rest", "mode"),
    vjp=_scatter_vjp,
    saves=_scatter_saves,
    reference=_scatter_reference,
    dtypes=dt.ALL,
    samples=(
        Sample((Arg((4, 3)), Arg((2, 3)), _index(4, 2, 3)), _SET, gradient=False),
        Sample((Arg((5,)), Arg((1,)), _index(5, 1)), {"dims": (0,), "rest": (), "mode": "set"}),
        Sample((Arg((4, 3)), Arg((6, 3)), _index(4, 6, 3)), {**_SET, "mode": "add"}),
        Sample((Arg((4, 3)), Arg((4, 6)), _index(3, 4, 6)), {"dims": (1,), "rest": (0,), "mode": "add"}),
        Sample((Arg((4, 3), (1.0, 2.0)), Arg((6, 3), (1.0, 2.0)), _index(4, 6, 3)), {**_SET, "mode": "mul"}),
        Sample((Arg((4, 3), "distinct"), Arg((6, 3), "distinct"), _index(4, 6, 3)), {**_SET, "mode": "max"}),
        Sample((Arg((4, 3), "distinct"), Arg((6, 3), "distinct"), _index(4, 6, 3)), {**_SET, "mode": "min"}),
        Sample((Arg((4, 3)), Arg((0, 3)), _index(4, 0, 3)), {**_SET, "mode": "add"}),
    ),
    failing=(Failing((Arg((4, 3)), Arg((2, 3)), Arg((2, 2), (0, 3), dt.int64)), _SET, ValueError, "shape"),),
    ulp=4,
    onnx="ScatterND",
    doc="The base with `base[...] op= update[p]` done at index tensors for each position p of the update, in row-major order.",
)
