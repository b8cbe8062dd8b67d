"""Tables of vectors looked up by index."""

from __future__ import annotations

from typing import Any

import numpy as np

from cermet import dtypes as dt
from cermet.graph.node import Meta
from cermet.ops.composing import maximum_of, narrow, shaped, sum_of, wide
from cermet.ops.define import Arg, Failing, OpDef, Sample, whole_of
from cermet.ops.elementwise import div, eq, lt, mul, where
from cermet.ops.gather import gather, scatter
from cermet.ops.movement import expand, reshape
from cermet.ops.public import public
from cermet.ops.support import check_floating, full_value, promote, to_dtype, zeros_like_value

_NO_PADDING = -1


def _rows(index: Any, count: int, width: int) -> Any:
    """Index (*) as the full-shape int64 index (*, D) of the rows. A negative one is made too large: it must be an error."""
    i = to_dtype(index, dt.int64)
    checked = where(lt(i, zeros_like_value(i, ())), full_value(i, whole_of(count), ()), i)
    return expand(reshape(checked, shape=(*index.shape, 1)), shape=(*index.shape, width))


def _infer(table: Meta, index: Meta, **_: Any) -> Meta:
    check_floating(table, "embedding")
    if table.ndim != 2:
        raise ValueError(f"embedding: the weight must have 2 dimensions (num_embeddings, dim), got shape {list(table.shape)}")
    if index.dtype.kind not in "iu":
        raise TypeError(f"embedding: indices must be integers, got {index.dtype}; convert with .long()")
    return table.with_shape((*index.shape, table.shape[1]))


def _grad_decompose(g: Any, index: Any, *, count: int, padding: int, by_frequency: bool) -> Any:
    """Rows added where they came from, in float32 for 16-bit floats; none for the padding row."""
    w = wide(g)
    width = g.shape[-1]
    rows = _rows(index, count, width)
    if by_frequency:
        ones = full_value(w, 1, tuple(index.shape))
        where_ = to_dtype(index, dt.int64)
        seen = scatter(full_value(w, 0, (count,)), ones, where_, dims=(0,), rest=(), mode="add")
        w = div(w, reshape(gather(seen, where_, dims=(0,), rest=()), shape=(*index.shape, 1)))
    if padding != _NO_PADDING:
        w = where(eq(rows, padding), zeros_like_value(w, ()), w)
    at = len(index.shape)
    return narrow(scatter(zeros_like_value(w, (count, width)), w, rows, dims=(0,), rest=(at,), mode="add"), g)


def _grad_reference(g: Any, index: Any, *, count: int, padding: int, by_frequency: bool) -> Any:
    out = np.zeros((count, g.shape[-1]), g.dtype)
    flat = index.reshape(-1)
    rows = g.reshape(flat.size, g.shape[-1]).copy()
    if by_frequency:
        rows /= np.bincount(flat, minlength=count)[flat][:, None]
    rows[flat == padding] = 0
    np.add.at(out, flat, rows)
    return out


_INDEX = Arg((2, 3), (0, 5), dt.int64)
_ATTRS = {"padding": _NO_PADDING, "by_frequency": False}

embedding_grad: OpDef = OpDef(
    "embedding_grad",
    "composite",
    lambda g, index, *, count, padding, by_frequency: g.with_shape((count, g.shape[-1])),
    attrs=("count", "padding", "by_frequency"),
    vjp="auto",
    decompose=_grad_decompose,
    reference=_grad_reference,
    dtypes=dt.FLOATING,
    samples=(
        Sample((Arg((2, 3, 4)), _INDEX), {"count": 5, **_ATTRS}),
        Sample((Arg((2, 3, 4)), _INDEX), {"count": 5, "padding": 2, "by_frequency": True}),
    ),
    ulp=32,
    doc="The gradient of embedding for its table.",
)

embedding_op: OpDef = OpDef(
    "embedding",
    "composite",
    _infer,
    attrs=("padding", "by_frequency"),
    vjp=lambda c, g: (embedding_grad(g, c[1], count=c.metas[0].shape[0], padding=c.padding, by_frequency=c.by_frequency), None),
    saves=(1,),
    decompose=lambda table, index, *, padding, by_frequency: gather(
        table, _rows(index, *table.shape), dims=(0,), rest=(len(index.shape),)
    ),
    reference=lambda table, index, *, padding, by_frequency: _np_take(table, index),
    dtypes=dt.FLOATING,
    samples=(Sample((Arg((5, 4)), _INDEX), _ATTRS), Sample((Arg((5, 4)), Arg((), (0, 5), dt.int64)), _ATTRS)),
    failing=(Failing((Arg((5, 4)), Arg((3,))), _ATTRS, TypeError, "integers"),),
    onnx="Gather",
    ulp=0,
    doc="Rows of a table (num_embeddings, dim) at integer indices.",
)


def _np_take(table: Any, index: Any) -> Any:
    bad = (index < 0) | (index >= table.shape[0])
    if bad.any():
        raise IndexError(f"embedding: there is no row {int(index[bad].flat[0])} in a table of {table.shape[0]}")
    return table[index]


def _padding(padding_idx: int | None, count: int, name: str) -> int:
    if padding_idx is None:
        return _NO_PADDING
    if not -count <= padding_idx < count:
        raise ValueError(f"{name}: padding_idx {padding_idx} is out of range for {count} rows")
    return padding_idx % count


@public(namespaces=("nn.functional",), method=False)
def embedding(
    input: Any,
    weight: Any,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Any:
    """Rows of ``weight`` (num_embeddings, dim) at the indices ``input`` (*), as (*, dim).

    Args:
        padding_idx: a row that gets no gradient. max_norm: rows looked up are first scaled down, in place, to at most this norm.
        scale_grad_by_freq: divide gradients by how often the row occurs in ``input``. sparse: ignored, gradients are dense.

    Raises:
        IndexError (at evaluation): for an index out of range. TypeError: for indices that are not integers.
    """
    padding = _padding(padding_idx, weight.shape[0], "embedding")
    if max_norm is not None:
        _limit_norms(weight, input, float(max_norm), float(norm_type))
    return embedding_op(weight, input, padding=padding, by_frequency=bool(scale_grad_by_freq))


def _limit_norms(weight: Any, index: Any, max_norm: float, norm_type: float) -> None:
    """Scale the rows that ``index`` names down to ``max_norm``."""
    w = weight.detach()
    norms = (w.abs() ** norm_type).sum(-1) ** (1.0 / norm_type)
    flat = to_dtype(index, dt.int64).reshape(-1)
    used = scatter(
        zeros_like_value(norms, tuple(norms.shape)), full_value(norms, 1, tuple(flat.shape)), flat, dims=(0,), rest=(), mode="max"
    )
    factor = where((norms > max_norm).logical_and(used > 0), max_norm / (norms + 1e-7), full_value(norms, 1, ()))
    w._write(w * factor.unsqueeze(-1))


@public(namespaces=("nn.functional",), method=False)
def embedding_bag(
    input: Any,
    weight: Any,
    offsets: Any = None,
    max_norm: float | None = None,
    norm_type: float = 2,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: Any = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Any:
    """Sums, means or maxima of bags of rows: ``input`` (B, N) is B bags of N, or (N) with ``offsets`` (B), where each bag begins.

    Raises:
        ValueError: for an unknown mode or inputs that do not fit.
    """
    if mode not in ("sum", "mean", "max"):
        raise ValueError(f"embedding_bag: mode={mode!r}; known are 'sum', 'mean' and 'max'")
    if per_sample_weights is not None and mode != "sum":
        raise NotImplementedError("embedding_bag: per_sample_weights need mode='sum'")
    if len(input.shape) == 1:
        if offsets is None:
            raise ValueError("embedding_bag: a 1-dimensional input needs offsets")
        return _ragged_bags(
            input, weight, offsets, mode, per_sample_weights, include_last_offset, padding_idx, max_norm, norm_type
        )
    if offsets is not None:
        raise ValueError("embedding_bag: offsets must be None for a 2-dimensional input: each row is a bag")
    rows = embedding(input, weight, padding_idx, max_norm, norm_type, scale_grad_by_freq)
    keep = None if padding_idx is None else input.ne(padding_idx % weight.shape[0])
    return _bags(rows, keep, mode, per_sample_weights)


def _bags(rows: Any, keep: Any, mode: str, weights: Any) -> Any:
    """Reduce (B, N, D) over N; ``keep`` (B, N) marks what counts."""
    if weights is not None:
        rows = mul(rows, weights.unsqueeze(-1))
    if mode == "max":
        if keep is not None:
            rows = where(keep.unsqueeze(-1), rows, full_value(rows, -float("inf"), ()))
        return maximum_of(rows, 1)
    if keep is None:
        total = sum_of(rows, 1)
        return div(total, float(max(rows.shape[1], 1))) if mode == "mean" else total
    total = sum_of(where(keep.unsqueeze(-1), rows, zeros_like_value(rows, ())), 1)
    if mode == "sum":
        return total
    count = sum_of(to_dtype(keep, rows.dtype), 1)
    return div(total, shaped(count.clamp(min=1.0), (rows.shape[0], 1)))


def _ragged_bags(
    index: Any, weight: Any, offsets: Any, mode: str, weights: Any, last: bool, padding_idx: Any, max_norm: Any, norm_type: float
) -> Any:
    """Each index's bag from the offsets, then a scatter of the rows into their bags."""
    begin = to_dtype(offsets, dt.int64)
    if last:
        begin = begin[:-1]
    bags, n = begin.shape[0], index.shape[0]
    place = full_value(begin, 0, (n, bags)) + _ramp(begin, n).unsqueeze(-1)
    bag = sum_of(to_dtype(place >= begin, dt.int64), 1) - 1
    rows = embedding(index, weight, padding_idx, max_norm, norm_type)
    width = weight.shape[1]
    if weights is not None:
        rows = mul(*promote(rows, weights.unsqueeze(-1)))
    keep = full_value(rows, 1, (n,)) if padding_idx is None else to_dtype(index.ne(padding_idx % weight.shape[0]), rows.dtype)
    at = expand(reshape(bag, shape=(n, 1)), shape=(n, width))
    count = scatter(zeros_like_value(rows, (bags,)), keep, bag, dims=(0,), rest=(), mode="add").unsqueeze(-1)
    if mode == "max":
        low = full_value(rows, -float("inf"), (bags, width))
        rows = where((keep > 0).unsqueeze(-1), rows, full_value(rows, -float("inf"), ()))
        return where(count > 0, scatter(low, rows, at, dims=(0,), rest=(1,), mode="max"), zeros_like_value(rows, ()))
    total = scatter(zeros_like_value(rows, (bags, width)), mul(rows, keep.unsqueeze(-1)), at, dims=(0,), rest=(1,), mode="add")
    return div(total, count.clamp(min=1.0)) if mode == "mean" else total


def _ramp(like: Any, n: int) -> Any:
    from cermet.ops.support import index_value

    return index_value(like, (n,), 0)
