"""Differences, sums along a path, and products of small sets: functions made of shape, scan and arithmetic."""

from __future__ import annotations

import itertools
import math
from typing import Any

from cermet.ops.elementwise import choose, div, eq, mul, sub
from cermet.ops.joining import cat, cut, pad_constant
from cermet.ops.movement import diagonal_, expand, reshape
from cermet.ops.public import public
from cermet.ops.reduction import reduce_sum
from cermet.ops.scan import scan
from cermet.ops.statistics import mean_op, norm_of
from cermet.ops.support import as_value, is_number, to_dtype, unbroadcast, wrap_dim


@public()
def diff(input: Any, n: int = 1, dim: int = -1, prepend: Any = None, append: Any = None) -> Any:
    """Differences of neighbours along ``dim``, taken ``n`` times; ``prepend`` and ``append`` are joined on first.

    Raises:
        RuntimeError: for scalars or negative ``n``.
    """
    from cermet.ops.logic import logical_xor

    if len(input.shape) == 0 or n < 0:
        raise RuntimeError(f"diff: expected at least one dimension and n >= 0, got shape {list(input.shape)} and n={n}")
    d = wrap_dim(dim, len(input.shape), "diff")
    parts = [p for p in (prepend, input, append) if p is not None]
    x = cat(parts, d) if len(parts) > 1 else input
    for _ in range(min(n, x.shape[d])):
        size = x.shape[d] - 1
        high, low = cut(x, d, 1, size), cut(x, d, 0, size)
        x = logical_xor(high, low) if x.dtype.kind == "b" else sub(high, low)
    return x


def _areas(y: Any, x: Any, dx: Any, d: int) -> Any:
    """The trapezoids between neighbours."""
    n = y.shape[d] - 1
    both = mul(cut(y, d, 1, n) + cut(y, d, 0, n), 0.5)
    if x is None:
        return mul(both, as_value(dx, both, both.dtype) if is_number(dx) else dx)
    if len(x.shape) == 1:
        x = reshape(x, shape=tuple([x.shape[0] if k == d else 1 for k in range(len(y.shape))]))
    return mul(both, sub(cut(x, d, 1, n), cut(x, d, 0, n)))


@public(aliases=("trapz",))
def trapezoid(y: Any, x: Any = None, *, dx: Any = 1.0, dim: int = -1) -> Any:
    """The area under ``y`` along ``dim`` by the trapezoid rule, at places ``x`` or ``dx`` apart."""
    d = wrap_dim(dim, len(y.shape), "trapezoid")
    return reduce_sum(_areas(y, x, dx, d), dims=(d,), keepdim=False)


@public()
def cumulative_trapezoid(y: Any, x: Any = None, *, dx: Any = 1.0, dim: int = -1) -> Any:
    """The running area under ``y`` along ``dim`` by the trapezoid rule."""
    d = wrap_dim(dim, len(y.shape), "cumulative_trapezoid")
    return scan(_areas(y, x, dx, d), dim=d, mode="sum")


@public()
def cross(input: Any, other: Any, dim: int | None = None) -> Any:
    """The vector product along ``dim`` (the first of size 3).

    Raises:
        RuntimeError: unless that dimension has size 3 in both.
    """
    shape = tuple(input.shape)
    d = next((k for k, s in enumerate(shape) if s == 3), 0) if dim is None else wrap_dim(dim, len(shape), "cross")
    if not shape or shape[d] != 3 or other.shape[d] != 3:
        raise RuntimeError(f"cross: dimension {d} must have size 3, got shapes {list(shape)} and {list(other.shape)}")

    def turned(x: Any, by: int) -> Any:
        return cat([cut(x, d, by, 3 - by), cut(x, d, 0, by)], d)

    return sub(mul(turned(input, 1), turned(other, 2)), mul(turned(input, 2), turned(other, 1)))


@public()
def trace(input: Any) -> Any:
    """The sum of a matrix's diagonal.

    Raises:
        RuntimeError: for anything but a matrix.
    """
    if len(input.shape) != 2:
        raise RuntimeError(f"trace: expected a matrix, got shape {list(input.shape)}")
    from cermet.ops.statistics import sum_

    return sum_(diagonal_(input, offset=0, dim1=0, dim2=1))


@public()
def sum_to_size(input: Any, *size: Any) -> Any:
    """Summed down to a shape that broadcasts to the input's."""
    from cermet.graph.node import meta
    from cermet.ops.support import shape_of

    return unbroadcast(input, meta(shape_of(size, "sum_to_size"), input.dtype))


@public()
def cov(input: Any, *, correction: int = 1) -> Any:
    """The covariance matrix of variables in rows, observations in columns, divided by their number less ``correction``."""
    x = input if len(input.shape) == 2 else reshape(input, shape=(1, math.prod(input.shape)))
    n = x.shape[1]
    centred = sub(x, mean_op(x, dims=(1,), keepdim=True))
    rows = x.shape[0]
    pairs = mul(reshape(centred, shape=(rows, 1, n)), reshape(centred, shape=(1, rows, n)))
    out = div(reduce_sum(pairs, dims=(2,), keepdim=False), float(max(0, n - correction)))
    return out if len(input.shape) == 2 else reshape(out, shape=())


@public()
def corrcoef(input: Any) -> Any:
    """The correlation matrix of variables in rows, observations in columns."""
    from cermet.ops.arithmetic import clamp
    from cermet.ops.mathematics import sqrt

    c = cov(input)
    if len(c.shape) == 0:
        return div(c, c)
    n = c.shape[0]
    s = sqrt(diagonal_(c, offset=0, dim1=0, dim2=1))
    return clamp(div(div(c, reshape(s, shape=(n, 1))), s), -1.0, 1.0)


@public(method=False)
def vander(x: Any, N: int | None = None, increasing: bool = False) -> Any:
    """The powers N - 1 … 0 (``increasing``: 0 … N - 1) of a vector's elements as rows."""
    from cermet.ops.mathematics import pow_

    n = x.shape[0] if N is None else N
    columns = [pow_(x, k) if k else mul(x, 0) + 1 for k in range(n)]
    return cat([reshape(c, shape=(x.shape[0], 1)) for c in (columns if increasing else columns[::-1])], 1)


@public(method=False)
def block_diag(*tensors: Any) -> Any:
    """The matrices (vectors as rows, scalars as 1 x 1) on the diagonal of one of zeros."""
    from cermet.ops.joining import atleast_2d

    blocks = [atleast_2d(t) for t in tensors]
    width, at, out = sum(b.shape[1] for b in blocks), 0, []
    for b in blocks:
        out.append(pad_constant(b, (0, at), (0, width - at - b.shape[1])))
        at += b.shape[1]
    return cat(out, 0)


@public(method=False)
def cartesian_prod(*tensors: Any) -> Any:
    """All combinations of the elements of vectors, one in a row."""
    if len(tensors) == 1:
        return tensors[0]
    sizes = [t.shape[0] for t in tensors]
    shape = tuple(sizes)
    columns = []
    for k, t in enumerate(tensors):
        lined = reshape(t, shape=tuple([sizes[k] if d == k else 1 for d in range(len(sizes))]))
        columns.append(reshape(expand(lined, shape=shape), shape=(math.prod(shape), 1)))
    return cat(columns, 1)


@public(method=False)
def combinations(input: Any, r: int = 2, with_replacement: bool = False) -> Any:
    """All subsets of ``r`` elements of a vector, one in a row, in the order of `itertools.combinations`."""
    from cermet.ops.define import hooks
    from cermet.ops.gather import gather

    choose_from = itertools.combinations_with_replacement if with_replacement else itertools.combinations
    import numpy as np

    found = np.array(list(choose_from(range(input.shape[0]), r)), np.int64).reshape(-1, r)
    return gather(input, hooks.to_tensor(found, dtype=None, like=None), dims=(0,), rest=())


@public(inplace=True)
def renorm(input: Any, p: Any, dim: int, maxnorm: float) -> Any:
    """The input with each slice along ``dim`` whose p-norm exceeds ``maxnorm`` scaled down to it."""
    d = wrap_dim(dim, len(input.shape), "renorm")
    norms = norm_of(input, p, tuple([k for k in range(len(input.shape)) if k != d]), True)
    over = to_dtype(norms > maxnorm, input.dtype)
    scale = div(float(maxnorm), norms + 1e-7)
    return mul(input, choose(eq(over, 0), 1.0, scale))
