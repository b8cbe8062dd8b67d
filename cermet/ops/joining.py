"""Putting values together: cat, stack and their kin, repetition, rotation, and padding."""

from __future__ import annotations

from typing import Any

import numpy as np

from cermet import dtypes as dt
from cermet.graph.node import Meta
from cermet.ops.define import Arg, Failing, OpDef, Sample, ShapeError, whole_of
from cermet.ops.elementwise import choose, lt, where
from cermet.ops.movement import expand, reshape, slice_, unslice
from cermet.ops.public import public
from cermet.ops.support import full_value, index_value, is_number, promote, wrap_dim

__all__ = ["cat", "cut", "flipped", "pad_constant"]


def cut(x: Any, dim: int, start: int, size: int, step: int = 1) -> Any:
    """``size`` elements from ``start`` along one dimension, copying nothing (and sharing nothing)."""
    shape = list(x.shape)
    starts, steps = [0] * len(shape), [1] * len(shape)
    starts[dim], steps[dim], shape[dim] = start, step, size
    return slice_(x, starts=tuple(starts), steps=tuple(steps), sizes=tuple(shape))


def flipped(x: Any, dims: tuple[int, ...]) -> Any:
    """The order of the elements along ``dims`` turned round."""
    shape = tuple(x.shape)
    if 0 in shape:
        return x
    starts = tuple([n - 1 if d in dims else 0 for d, n in enumerate(shape)])
    return slice_(x, starts=starts, steps=tuple([-1 if d in dims else 1 for d in range(len(shape))]), sizes=shape)


def pad_constant(x: Any, before: tuple[int, ...], after: tuple[int, ...], value: Any = 0) -> Any:
    """``x`` with ``before`` and ``after`` elements of ``value`` added to each dimension (negative numbers take away)."""
    shape = tuple(x.shape)
    low = tuple([max(-b, 0) for b in before])
    kept = tuple([max(n - max(-b, 0) - max(-a, 0), 0) for n, b, a in zip(shape, before, after)])
    if kept != shape:
        x = slice_(x, starts=low, steps=(1,) * len(shape), sizes=kept)
    full = tuple([n + max(b, 0) + max(a, 0) for n, b, a in zip(kept, before, after)])
    if full == kept:
        return x
    starts, steps = tuple([max(b, 0) for b in before]), (1,) * len(shape)
    out = unslice(x, shape=full, starts=starts, steps=steps)
    if is_number(value) and value == 0:
        return out
    inside = unslice(full_value(x, True, kept, dt.bool), shape=full, starts=starts, steps=steps)
    return choose(inside, out, value)


# ---------------------------------------------------------------------------------------------------------------- cat


def _cat_infer(*metas: Meta, dim: int) -> Meta:
    first = metas[0]
    for k, m in enumerate(metas):
        if m.dtype is not first.dtype:
            raise TypeError(f"cat: expected inputs of one dtype, got {first.dtype} and {m.dtype}")
        if m.ndim != first.ndim or any(a != b for d, (a, b) in enumerate(zip(m.shape, first.shape)) if d != dim):
            raise ShapeError(
                f"cat: sizes must agree except in dimension {dim}: input 0 has shape {list(first.shape)}, "
                f"input {k} {list(m.shape)}"
            )
    size = sum(m.shape[dim] for m in metas)
    return first.with_shape((*first.shape[:dim], size, *first.shape[dim + 1 :]))


def _cat_vjp(c: Any, g: Any) -> Any:
    out, at = [], 0
    for need, m in zip(c.needs, c.metas):
        out.append(cut(g, c.dim, at, m.shape[c.dim]) if need else None)
        at += m.shape[c.dim]
    return tuple(out)


def _cat_decompose(*xs: Any, dim: int) -> Any:
    """A balanced tree of choices by position, so that n parts cost log n comparisons an element, not n."""
    shape = tuple(xs[0].shape)
    total = sum(x.shape[dim] for x in xs)
    full = (*shape[:dim], total, *shape[dim + 1 :])
    place = index_value(xs[0], full, dim)
    steps = (1,) * len(full)
    parts, at = [], 0
    for x in xs:
        if x.shape[dim]:
            parts.append(
                (at, unslice(x, shape=full, starts=tuple([at if d == dim else 0 for d in range(len(full))]), steps=steps))
            )
        at += x.shape[dim]
    if not parts:
        return xs[0]
    while len(parts) > 1:
        joined = [
            (parts[k][0], where(lt(place, whole_of(parts[k + 1][0])), parts[k][1], parts[k + 1][1]))
            for k in range(0, len(parts) - 1, 2)
        ]
        parts = joined + ([parts[-1]] if len(parts) % 2 else [])
    return parts[0][1]


cat_op = OpDef(
    "cat",
    "composite",
    _cat_infer,
    attrs=("dim",),
    vjp=_cat_vjp,
    decompose=_cat_decompose,
    reference=lambda *xs, dim: np.concatenate(xs, axis=dim),
    dtypes=dt.ALL,
    samples=(
        Sample((Arg((2, 3)), Arg((4, 3))), {"dim": 0}),
        Sample((Arg((2, 3)), Arg((2, 1)), Arg((2, 2))), {"dim": 1}),
        Sample((Arg((2, 0)), Arg((2, 3))), {"dim": 1}),
        Sample((Arg((3,)),), {"dim": 0}),
    ),
    failing=(Failing((Arg((2, 3)), Arg((2, 4))), {"dim": 0}, ValueError, "sizes must agree"),),
    ulp=0,
    onnx="Concat",
    doc="The inputs one after another along a dimension.",
)


def _tensors(tensors: Any, name: str) -> list[Any]:
    out = list(tensors)
    if not out:
        raise RuntimeError(f"{name}: expected at least one tensor")
    return out


@public(method=False, aliases=("concat", "concatenate"), autocast="widest")
def cat(tensors: Any, dim: int = 0) -> Any:
    """The tensors one after another along ``dim``; all other sizes must agree. Empty vectors are passed over.

    Raises:
        RuntimeError: for no tensors. ValueError: for sizes that do not agree.
    """
    xs = _tensors(tensors, "cat")
    if any(x.dtype is not xs[0].dtype for x in xs):
        xs = list(promote(*xs))
    if any(len(x.shape) == 0 for x in xs):
        raise RuntimeError("cat: 0-dimensional tensors cannot be joined; use stack")
    kept = [x for x in xs if tuple(x.shape) != (0,)] or xs[:1]
    return cat_op(*kept, dim=wrap_dim(dim, len(kept[0].shape), "cat"))


@public(method=False, autocast="widest")
def stack(tensors: Any, dim: int = 0) -> Any:
    """The tensors, all of one shape, along a new dimension.

    Raises:
        RuntimeError: for no tensors, or shapes that differ.
    """
    xs = _tensors(tensors, "stack")
    shape = tuple(xs[0].shape)
    for k, x in enumerate(xs):
        if tuple(x.shape) != shape:
            raise RuntimeError(f"stack: expected tensors of one shape, input 0 has {list(shape)}, input {k} {list(x.shape)}")
    if any(x.dtype is not xs[0].dtype for x in xs):
        xs = list(promote(*xs))
    d = wrap_dim(dim, len(shape) + 1, "stack")
    return cat_op(*[reshape(x, shape=(*shape[:d], 1, *shape[d:])) for x in xs], dim=d)


def _at_least(x: Any, n: int) -> Any:
    """NumPy's way of giving a value n dimensions for hstack (1), vstack (2) and dstack (3)."""
    shape = tuple(x.shape)
    if len(shape) >= n:
        return x
    new = {1: (1,), 2: (1, *(shape or (1,))), 3: (1, *(shape or (1,)), 1) if len(shape) < 2 else (*shape, 1)}[n]
    return reshape(x, shape=new)


@public(method=False, autocast="widest")
def hstack(tensors: Any) -> Any:
    """The tensors side by side: along the second dimension, vectors along the first."""
    xs = [_at_least(x, 1) for x in _tensors(tensors, "hstack")]
    return cat(xs, 0 if len(xs[0].shape) == 1 else 1)


@public(method=False, aliases=("row_stack",), autocast="widest")
def vstack(tensors: Any) -> Any:
    """The tensors below one another; vectors are rows."""
    return cat([_at_least(x, 2) for x in _tensors(tensors, "vstack")], 0)


@public(method=False, autocast="widest")
def dstack(tensors: Any) -> Any:
    """The tensors behind one another, along the third dimension."""
    return cat([_at_least(x, 3) for x in _tensors(tensors, "dstack")], 2)


@public(method=False, autocast="widest")
def column_stack(tensors: Any) -> Any:
    """The tensors side by side; vectors are columns."""
    xs = [
        reshape(x, shape=(x.shape[0] if len(x.shape) else 1, 1)) if len(x.shape) < 2 else x
        for x in _tensors(tensors, "column_stack")
    ]
    return cat(xs, 1)


def _atleast(n: int) -> Any:
    def fn(*tensors: Any) -> Any:
        if len(tensors) == 1 and isinstance(tensors[0], tuple | list):
            tensors = tuple(tensors[0])
        out = tuple([_at_least(t, n) for t in tensors])
        return out if len(out) != 1 else out[0]

    fn.__name__ = fn.__qualname__ = f"atleast_{n}d"
    fn.__doc__ = f"The tensors with at least {n} dimensions."
    return public(method=False)(fn)


atleast_1d, atleast_2d, atleast_3d = _atleast(1), _atleast(2), _atleast(3)

# ------------------------------------------------------------------------------------------------ repetition, rotation


@public()
def repeat(input: Any, *repeats: Any) -> Any:
    """The value repeated that many times along each dimension; more numbers than dimensions add dimensions in front.

    Raises:
        RuntimeError: for fewer numbers than dimensions, or negative ones.
    """
    times = tuple(repeats[0]) if len(repeats) == 1 and isinstance(repeats[0], tuple | list) else tuple(repeats)
    shape = tuple(input.shape)
    if len(times) < len(shape):
        raise RuntimeError(
            f"repeat: {len(times)} numbers for a tensor of {len(shape)} dimensions; there must be at least as many"
        )
    if any(n < 0 for n in times):
        raise RuntimeError(f"repeat: numbers must not be negative, got {times}")
    shape = (1,) * (len(times) - len(shape)) + shape
    split = tuple([s for n in shape for s in (1, n)])
    spread = tuple([s for t, n in zip(times, shape) for s in (int(t), n)])
    return reshape(expand(reshape(input, shape=split), shape=spread), shape=tuple([int(t) * n for t, n in zip(times, shape)]))


@public()
def tile(input: Any, *dims: Any) -> Any:
    """As `repeat`; fewer numbers than dimensions repeat the last ones."""
    times = tuple(dims[0]) if len(dims) == 1 and isinstance(dims[0], tuple | list) else tuple(dims)
    return repeat(input, (1,) * (len(input.shape) - len(times)) + times)


@public()
def repeat_interleave(input: Any, repeats: Any = None, dim: int | None = None, *, output_size: int | None = None) -> Any:
    """Each element (each slice along ``dim``) repeated ``repeats`` times, one after another. A tensor of repeats is looked at.

    With ``input`` alone: the indices 0, 1, … each as often as the tensor says.
    """
    if repeats is None:
        counts = input.numpy()
        return _indices_of(counts)
    if dim is None:
        input, dim = reshape(input, shape=(input.numel(),)), 0
    d = wrap_dim(dim, len(input.shape), "repeat_interleave")
    if not isinstance(repeats, int):
        counts = np.asarray(repeats.numpy() if hasattr(repeats, "numpy") else repeats)
        if counts.size > 1:
            from cermet.ops.indexing import index_select

            if counts.shape != (input.shape[d],):
                raise RuntimeError(f"repeat_interleave: {counts.size} repeats for {input.shape[d]} elements in dimension {d}")
            return index_select(input, d, _indices_of(counts))
        repeats = int(counts.reshape(()))
    shape = tuple(input.shape)
    split = reshape(input, shape=(*shape[: d + 1], 1, *shape[d + 1 :]))
    spread = expand(split, shape=(*shape[: d + 1], repeats, *shape[d + 1 :]))
    return reshape(spread, shape=(*shape[:d], shape[d] * repeats, *shape[d + 1 :]))


def _indices_of(counts: Any) -> Any:
    from cermet.ops.define import hooks

    return hooks.to_tensor(np.repeat(np.arange(len(counts), dtype=np.int64), counts), dtype=dt.int64, like=None)


@public()
def flip(input: Any, *dims: Any) -> Any:
    """The order of the elements along ``dims`` turned round.

    Raises:
        RuntimeError: when a dimension is named twice.
    """
    wanted = tuple(dims[0]) if len(dims) == 1 and isinstance(dims[0], tuple | list) else dims
    found = tuple([wrap_dim(d, len(input.shape), "flip") for d in wanted])
    if len(set(found)) != len(found):
        raise RuntimeError(f"flip: dims {wanted} name a dimension twice")
    return flipped(input, found)


@public()
def fliplr(input: Any) -> Any:
    """The order along the second dimension turned round."""
    if len(input.shape) < 2:
        raise RuntimeError(f"fliplr: expected at least two dimensions, got shape {list(input.shape)}")
    return flipped(input, (1,))


@public()
def flipud(input: Any) -> Any:
    """The order along the first dimension turned round."""
    if len(input.shape) < 1:
        raise RuntimeError("flipud: expected at least one dimension")
    return flipped(input, (0,))


@public()
def roll(input: Any, shifts: Any, dims: Any = None) -> Any:
    """Elements moved ``shifts`` places along ``dims``; what leaves at one end enters at the other. Without dims: as one flat row.

    Raises:
        RuntimeError: when there are not as many shifts as dims.
    """
    shape = tuple(input.shape)
    if dims is None or dims == ():
        flat = reshape(input, shape=(input.numel(),))
        return reshape(roll(flat, shifts, 0), shape=shape)
    many = tuple(shifts) if isinstance(shifts, tuple | list) else (shifts,)
    where_to = tuple(dims) if isinstance(dims, tuple | list) else (dims,)
    if len(many) != len(where_to):
        raise RuntimeError(f"roll: {len(many)} shifts for {len(where_to)} dims; there must be as many")
    out = input
    for shift, dim in zip(many, where_to):
        d = wrap_dim(dim, len(shape), "roll")
        n = shape[d]
        k = shift % n if n else 0
        if k:
            out = cat_op(cut(out, d, n - k, k), cut(out, d, 0, n - k), dim=d)
    return out


@public()
def rot90(input: Any, k: int = 1, dims: Any = (0, 1)) -> Any:
    """Turned by 90 degrees ``k`` times in the plane of two dims, the axis of the first onto that of the second.

    Raises:
        RuntimeError: unless two different dims are given.
    """
    from cermet.ops.movement import permute

    if len(dims) != 2:
        raise RuntimeError(f"rot90: expected two dims, got {dims}")
    a, b = (wrap_dim(d, len(input.shape), "rot90") for d in dims)
    if a == b:
        raise RuntimeError(f"rot90: dims {dims} name one dimension")
    order = list(range(len(input.shape)))
    order[a], order[b] = b, a
    k %= 4
    if k == 0:
        return flipped(input, ())
    if k == 2:
        return flipped(input, (a, b))
    return permute(flipped(input, (b,)), dims=tuple(order)) if k == 1 else flipped(permute(input, dims=tuple(order)), (b,))


# ---------------------------------------------------------------------------------------------------------------- pad


def _pad_edges(x: Any, d: int, before: int, after: int, mode: str) -> Any:
    """One dimension padded with its own elements."""
    n = x.shape[d]
    limit = {"reflect": n - 1, "circular": n, "replicate": max(before, after) if n else 0}[mode]
    if max(before, after) > limit:
        raise RuntimeError(
            f"pad: {mode} padding of ({before}, {after}) needs a dimension of more than size {n}, in shape {list(x.shape)}"
        )
    x = cut(x, d, max(-before, 0), n - max(-before, 0) - max(-after, 0)) if min(before, after) < 0 else x
    n, before, after = x.shape[d], max(before, 0), max(after, 0)
    low, high = None, None
    if mode == "reflect":
        low = cut(x, d, before, before, -1) if before else None
        high = cut(x, d, n - 2, after, -1) if after else None
    elif mode == "circular":
        low = cut(x, d, n - before, before) if before else None
        high = cut(x, d, 0, after) if after else None
    else:
        low = _repeated(cut(x, d, 0, 1), d, before) if before else None
        high = _repeated(cut(x, d, n - 1, 1), d, after) if after else None
    parts = [p for p in (low, x, high) if p is not None]
    return cat_op(*parts, dim=d) if len(parts) > 1 else x


def _repeated(x: Any, d: int, times: int) -> Any:
    return expand(x, shape=tuple([times if k == d else s for k, s in enumerate(x.shape)]))


@public(namespaces=("nn.functional",), method=False)
def pad(input: Any, pad: Any, mode: str = "constant", value: float | None = None) -> Any:
    """``input`` padded: ``pad`` holds (before, after) for the last dimension, then for the one before it, and so on.

    Args:
        mode: ``"constant"`` (``value``, 0), ``"reflect"`` (mirrored without the edge), ``"replicate"`` (the edge),
        ``"circular"``.

    Raises:
        RuntimeError: for an odd number of numbers, more than the dimensions, or padding larger than the mode allows.
        NotImplementedError: for an unknown mode.
    """
    sizes = [int(p) for p in pad]
    ndim = len(input.shape)
    if len(sizes) % 2 or len(sizes) > 2 * ndim:
        raise RuntimeError(f"pad: expected pairs of numbers for at most {ndim} dimensions, got {tuple(pad)}")
    if mode == "constant":
        before, after = [0] * ndim, [0] * ndim
        for k in range(len(sizes) // 2):
            before[ndim - 1 - k], after[ndim - 1 - k] = sizes[2 * k], sizes[2 * k + 1]
        if any(n + b + a < 0 for n, b, a in zip(input.shape, before, after)):
            raise RuntimeError(f"pad: padding {tuple(pad)} takes more than shape {list(input.shape)} has")
        return pad_constant(input, tuple(before), tuple(after), 0 if value is None else value)
    if mode not in ("reflect", "replicate", "circular"):
        raise NotImplementedError(f"pad: unknown mode {mode!r}; expected 'constant', 'reflect', 'replicate' or 'circular'")
    if value is not None and value != 0:
        raise ValueError(f"pad: mode {mode!r} takes no value, got {value}")
    out = input
    for k in range(len(sizes) // 2):
        if sizes[2 * k] or sizes[2 * k + 1]:
            out = _pad_edges(out, ndim - 1 - k, sizes[2 * k], sizes[2 * k + 1], mode)
    return out
