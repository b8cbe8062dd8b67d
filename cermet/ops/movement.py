"""Movement ops: reindexings that copy nothing. The compiler turns each into an index map of the kernel that reads it.

Every movement op has one input. ``write`` gives the base with the viewed part replaced: the functional form of an in-place write
through a view.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from cermet import dtypes as dt
from cermet.graph.node import Meta
from cermet.ops.define import Arg, Failing, OpDef, Sample, ShapeError

ALL = dt.ALL


def _movement(name: str, infer: Any, **record: Any) -> OpDef:
    return OpDef(name, "movement", infer, dtypes=ALL, ulp=0, **record)


copy = OpDef(
    "copy",
    "elementwise",
    lambda m: m,
    vjp=lambda c, g: g,
    lower=lambda b, x: x,
    reference=np.array,
    dtypes=ALL,
    samples=(Sample((Arg((3, 4)),)), Sample((Arg(()),))),
    onnx="Identity",
    ulp=0,
    doc="The same values in memory of their own.",
)

# ------------------------------------------------------------------------------------------------------------ reshape


def _reshape_infer(m: Meta, *, shape: tuple[int, ...]) -> Meta:
    if math.prod(shape) != m.numel:
        raise ShapeError(f"reshape: shape {list(shape)} has {math.prod(shape)} elements, the input {list(m.shape)} has {m.numel}")
    return m.with_shape(shape)


reshape: OpDef = _movement(
    "reshape",
    _reshape_infer,
    attrs=("shape",),
    vjp=lambda c, g: reshape(g, shape=c.metas[0].shape),
    write=lambda base, update, *, shape: reshape(update, shape=tuple(base.shape)),
    reference=lambda x, *, shape: x.reshape(shape),
    samples=(
        Sample((Arg((3, 4)),), {"shape": (12,)}),
        Sample((Arg((2, 3, 4)),), {"shape": (4, 6)}),
        Sample((Arg((0, 3)),), {"shape": (3, 0, 2)}),
        Sample((Arg((1,)),), {"shape": ()}),
    ),
    failing=(Failing((Arg((3, 4)),), {"shape": (5, 2)}, ValueError, "elements"),),
    onnx="Reshape",
    doc="The same elements in row-major order under another shape.",
)


# ------------------------------------------------------------------------------------------------------------ permute


def _inverse(order: tuple[int, ...]) -> tuple[int, ...]:
    out = [0] * len(order)
    for k, d in enumerate(order):
        out[d] = k
    return tuple(out)


def _permute_infer(m: Meta, *, dims: tuple[int, ...]) -> Meta:
    if sorted(dims) != list(range(m.ndim)):
        raise ShapeError(f"permute: dims {dims} are not an ordering of the {m.ndim} dimensions of the input {list(m.shape)}")
    return m.with_shape(tuple([m.shape[d] for d in dims]))


permute: OpDef = _movement(
    "permute",
    _permute_infer,
    attrs=("dims",),
    vjp=lambda c, g: permute(g, dims=_inverse(c.dims)),
    write=lambda base, update, *, dims: permute(update, dims=_inverse(dims)),
    reference=lambda x, *, dims: np.transpose(x, dims),
    samples=(
        Sample((Arg((3, 4)),), {"dims": (1, 0)}),
        Sample((Arg((2, 3, 4)),), {"dims": (2, 0, 1)}),
        Sample((Arg((2, 0, 3)),), {"dims": (1, 2, 0)}),
    ),
    failing=(Failing((Arg((3, 4)),), {"dims": (0, 0)}, ValueError, "ordering"),),
    onnx="Transpose",
    doc="The dimensions in another order.",
)


# ------------------------------------------------------------------------------------------------------------ expand


def _expand_infer(m: Meta, *, shape: tuple[int, ...]) -> Meta:
    lead = len(shape) - m.ndim
    if lead < 0 or any(s != shape[k + lead] and s != 1 for k, s in enumerate(m.shape)):
        raise ShapeError(
            f"expand: {list(m.shape)} does not expand to {list(shape)}: sizes must be equal, or 1 in the input, counted from the last"
        )
    return m.with_shape(shape)


def _expand_vjp(c: Any, g: Any) -> Any:
    from cermet.ops.support import unbroadcast

    return unbroadcast(g, c.metas[0])


expand = _movement(
    "expand",
    _expand_infer,
    attrs=("shape",),
    vjp=_expand_vjp,
    reference=lambda x, *, shape: np.broadcast_to(x, shape).copy(),
    samples=(
        Sample((Arg((3, 1)),), {"shape": (3, 4)}),
        Sample((Arg((4,)),), {"shape": (2, 3, 4)}),
        Sample((Arg(()),), {"shape": (2, 0)}),
    ),
    failing=(Failing((Arg((3, 2)),), {"shape": (3, 4)}, ValueError, "expand"),),
    onnx="Expand",
    doc="Dimensions of size 1 repeated, new ones added in front.",
)


# ------------------------------------------------------------------------------------------------------------ slice


def _slice_infer(m: Meta, *, starts: tuple[int, ...], steps: tuple[int, ...], sizes: tuple[int, ...]) -> Meta:
    for k, (a, s, n, size) in enumerate(zip(starts, steps, sizes, m.shape, strict=True)):
        if n and not (0 <= a < size and 0 <= a + s * (n - 1) < size):
            raise IndexError(f"slice: {n} elements from {a} in steps of {s} leave dimension {k} of size {size}")
    return m.with_shape(sizes)


def _slices(starts: Any, steps: Any, sizes: Any) -> tuple[Any, ...]:
    out = []
    for a, s, n in zip(starts, steps, sizes, strict=True):
        stop = a + s * n
        out.append(slice(0, 0) if n == 0 else slice(a, None if stop < 0 else stop, s))
    return tuple(out)


slice_ = _movement(
    "slice",
    _slice_infer,
    attrs=("starts", "steps", "sizes"),
    vjp=lambda c, g: unslice(g, shape=c.metas[0].shape, starts=c.starts, steps=c.steps),
    write=lambda base, update, *, starts, steps, sizes: put_slice(base, update, starts=starts, steps=steps),
    reference=lambda x, *, starts, steps, sizes: x[_slices(starts, steps, sizes)],
    samples=(
        Sample((Arg((5, 4)),), {"starts": (1, 0), "steps": (2, 1), "sizes": (2, 4)}),
        Sample((Arg((5, 4)),), {"starts": (4, 3), "steps": (-1, -2), "sizes": (5, 2)}),
        Sample((Arg((5,)),), {"starts": (2,), "steps": (1,), "sizes": (0,)}),
    ),
    failing=(Failing((Arg((5,)),), {"starts": (3,), "steps": (1,), "sizes": (3,)}, IndexError, "leave"),),
    onnx="Slice",
    doc="Every `step`-th element from `start`, `size` of them, in each dimension; steps may be negative.",
)


def _unslice_reference(x: Any, *, shape: Any, starts: Any, steps: Any) -> Any:
    out = np.zeros(shape, x.dtype)
    out[_slices(starts, steps, x.shape)] = x
    return out


unslice: OpDef = _movement(
    "unslice",
    lambda m, *, shape, starts, steps: m.with_shape(shape),
    attrs=("shape", "starts", "steps"),
    vjp=lambda c, g: slice_(g, starts=c.starts, steps=c.steps, sizes=c.metas[0].shape),
    reference=_unslice_reference,
    samples=(
        Sample((Arg((2, 4)),), {"shape": (5, 4), "starts": (1, 0), "steps": (2, 1)}),
        Sample((Arg((5, 2)),), {"shape": (5, 4), "starts": (4, 3), "steps": (-1, -2)}),
        Sample((Arg((0,)),), {"shape": (5,), "starts": (2,), "steps": (1,)}),
        Sample((Arg((3,)),), {"shape": (7,), "starts": (2,), "steps": (1,)}),
    ),
    doc="Zeros of `shape` with the input at the places that `slice` would read: padding and dilation in one.",
)


def _put_slice_reference(base: Any, update: Any, *, starts: Any, steps: Any) -> Any:
    out = np.array(base)
    out[_slices(starts, steps, update.shape)] = update
    return out


def _put_slice_vjp(c: Any, g: Any) -> Any:
    sizes = c.metas[1].shape
    gu = slice_(g, starts=c.starts, steps=c.steps, sizes=sizes) if c.needs[1] else None
    gb = None
    if c.needs[0]:
        from cermet.ops.support import zeros_like_value

        gb = put_slice(g, zeros_like_value(g, sizes), starts=c.starts, steps=c.steps)
    return gb, gu


def _put_slice_infer(base: Meta, update: Meta, *, starts: Any, steps: Any) -> Meta:
    from cermet.ops.support import same_dtype

    same_dtype("put_slice", base, update)
    _slice_infer(base, starts=starts, steps=steps, sizes=update.shape)
    return base


def _put_slice_decompose(base: Any, update: Any, *, starts: Any, steps: Any) -> Any:
    from cermet.ops.elementwise import where
    from cermet.ops.support import full_value

    shape = tuple(base.shape)
    inside = unslice(full_value(base, True, update.shape, dt.bool), shape=shape, starts=starts, steps=steps)
    return where(inside, unslice(update, shape=shape, starts=starts, steps=steps), base)


put_slice: OpDef = OpDef(
    "put_slice",
    "composite",
    _put_slice_infer,
    attrs=("starts", "steps"),
    vjp=_put_slice_vjp,
    decompose=_put_slice_decompose,
    reference=_put_slice_reference,
    dtypes=ALL,
    samples=(
        Sample((Arg((5, 4)), Arg((2, 4))), {"starts": (1, 0), "steps": (2, 1)}),
        Sample((Arg((5,)), Arg((0,))), {"starts": (1,), "steps": (1,)}),
        Sample((Arg((5,)), Arg((5,))), {"starts": (4,), "steps": (-1,)}),
    ),
    ulp=0,
    doc="The base with the elements that `slice` would read replaced by the update.",
)


# ------------------------------------------------------------------------------------------------------------ diagonal


def _diagonal_infer(m: Meta, *, offset: int, dim1: int, dim2: int) -> Meta:
    rows, cols = m.shape[dim1], m.shape[dim2]
    n = max(0, min(rows, cols - offset) if offset >= 0 else min(rows + offset, cols))
    return m.with_shape((*[s for k, s in enumerate(m.shape) if k not in (dim1, dim2)], n))


def _diagonal_vjp(c: Any, g: Any) -> Any:
    from cermet.ops.support import zeros_like_value

    return put_diagonal(zeros_like_value(g, c.metas[0].shape), g, offset=c.offset, dim1=c.dim1, dim2=c.dim2)


diagonal_ = _movement(
    "diagonal",
    _diagonal_infer,
    attrs=("offset", "dim1", "dim2"),
    vjp=_diagonal_vjp,
    write=lambda base, update, *, offset, dim1, dim2: put_diagonal(base, update, offset=offset, dim1=dim1, dim2=dim2),
    reference=lambda x, *, offset, dim1, dim2: np.diagonal(x, offset, dim1, dim2).copy(),
    samples=(
        Sample((Arg((3, 4)),), {"offset": 0, "dim1": 0, "dim2": 1}),
        Sample((Arg((3, 4)),), {"offset": 2, "dim1": 0, "dim2": 1}),
        Sample((Arg((2, 3, 4)),), {"offset": -1, "dim1": 2, "dim2": 0}),
        Sample((Arg((2, 3)),), {"offset": 5, "dim1": 0, "dim2": 1}),
    ),
    doc="The elements whose indices along two dimensions differ by `offset`, as a new last dimension.",
)


def _put_diagonal_reference(base: Any, update: Any, *, offset: int, dim1: int, dim2: int) -> Any:
    out = np.array(base)
    view = np.moveaxis(out, (dim1, dim2), (-2, -1))
    n = update.shape[-1]
    i = np.arange(n) - min(offset, 0)
    j = np.arange(n) + max(offset, 0)
    view[..., i, j] = update
    return out


def _put_diagonal_vjp(c: Any, g: Any) -> Any:
    from cermet.ops.support import zeros_like_value

    a = {"offset": c.offset, "dim1": c.dim1, "dim2": c.dim2}
    gb = put_diagonal(g, zeros_like_value(g, c.metas[1].shape), **a) if c.needs[0] else None
    return gb, diagonal_(g, **a) if c.needs[1] else None


def _put_diagonal_decompose(base: Any, update: Any, *, offset: int, dim1: int, dim2: int) -> Any:
    """where(column == row + offset, update moved to its row, base)."""
    from cermet.ops.elementwise import add, eq, where
    from cermet.ops.support import index_value

    shape = tuple(base.shape)
    rest = [k for k in range(len(shape)) if k not in (dim1, dim2)]
    n = update.shape[-1]
    if n == 0:
        return base
    low = -min(offset, 0)
    rows = unslice(update, shape=(*update.shape[:-1], shape[dim1]), starts=(*[0] * len(rest), low), steps=(1,) * (len(rest) + 1))
    order = sorted([*rest, dim1])
    positions = [*rest, dim1]
    aligned = permute(rows, dims=tuple([positions.index(k) for k in order]))
    aligned = reshape(aligned, shape=tuple([1 if k == dim2 else shape[k] for k in range(len(shape))]))
    hit = eq(index_value(base, shape, dim2), add(index_value(base, shape, dim1), offset))
    return where(hit, expand(aligned, shape=shape), base)


put_diagonal: OpDef = OpDef(
    "put_diagonal",
    "composite",
    lambda base, update, *, offset, dim1, dim2: base,
    attrs=("offset", "dim1", "dim2"),
    vjp=_put_diagonal_vjp,
    decompose=_put_diagonal_decompose,
    reference=_put_diagonal_reference,
    dtypes=ALL,
    samples=(
        Sample((Arg((3, 4)), Arg((3,))), {"offset": 0, "dim1": 0, "dim2": 1}),
        Sample((Arg((3, 4)), Arg((2,))), {"offset": -1, "dim1": 0, "dim2": 1}),
        Sample((Arg((2, 3, 4)), Arg((3, 1))), {"offset": 1, "dim1": 2, "dim2": 0}),
    ),
    ulp=0,
    doc="The base with the elements that `diagonal` would read replaced by the update.",
)


# ------------------------------------------------------------------------------------------------------------ windows


def _windows_infer(m: Meta, *, dim: int, size: int, step: int, dilation: int) -> Meta:
    span = dilation * (size - 1) + 1
    n = (m.shape[dim] - span) // step + 1
    if m.shape[dim] < span:
        raise ShapeError(
            f"windows: a window of {size} with dilation {dilation} spans {span}, dimension {dim} has only {m.shape[dim]}"
        )
    return m.with_shape((*m.shape[:dim], n, *m.shape[dim + 1 :], size))


def _windows_reference(x: Any, *, dim: int, size: int, step: int, dilation: int) -> Any:
    n = (x.shape[dim] - dilation * (size - 1) - 1) // step + 1
    index = np.arange(n)[:, None] * step + np.arange(size)[None, :] * dilation
    return np.moveaxis(np.take(x, index, axis=dim), dim + 1, -1).copy()


def _windows_vjp(c: Any, g: Any) -> Any:
    """Sum over the window's taps of the gradient put back where the tap read: `size` strided pads."""
    shape = c.metas[0].shape
    dim, size, step, dilation = c.dim, c.size, c.step, c.dilation
    ndim = len(shape)
    total = None
    for k in range(size):
        sizes = list(g.shape)
        sizes[-1] = 1
        tap = slice_(g, starts=(*[0] * ndim, k), steps=(1,) * (ndim + 1), sizes=tuple(sizes))
        tap = reshape(tap, shape=tuple(sizes[:-1]))
        starts = tuple([k * dilation if d == dim else 0 for d in range(ndim)])
        steps = tuple([step if d == dim else 1 for d in range(ndim)])
        part = unslice(tap, shape=shape, starts=starts, steps=steps)
        total = part if total is None else total + part
    return total


windows = _movement(
    "windows",
    _windows_infer,
    attrs=("dim", "size", "step", "dilation"),
    vjp=_windows_vjp,
    reference=_windows_reference,
    samples=(
        Sample((Arg((7,)),), {"dim": 0, "size": 3, "step": 1, "dilation": 1}),
        Sample((Arg((2, 9)),), {"dim": 1, "size": 3, "step": 2, "dilation": 2}),
        Sample((Arg((6, 4)),), {"dim": 0, "size": 2, "step": 2, "dilation": 1}),
    ),
    failing=(Failing((Arg((3,)),), {"dim": 0, "size": 4, "step": 1, "dilation": 1}, ValueError, "spans"),),
    doc="Sliding windows along `dim`: the window's number stays there, the place in the window is a new last dimension.",
)
