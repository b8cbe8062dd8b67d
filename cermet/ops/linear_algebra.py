"""`cermet.linalg`: norms of vectors and matrices, products of several matrices, powers. Factorisations are not here yet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from cermet.dtypes import DType
from cermet.ops.contraction import matmul
from cermet.ops.define import ShapeError
from cermet.ops.elementwise import add
from cermet.ops.public import PUBLIC, public
from cermet.ops.support import floating, to_dtype, wrap_dim, wrap_dims

_HERE = ("linalg",)


def _top(name: str) -> Any:
    return PUBLIC["", name].fn


@public(namespaces=_HERE, method=False)
def vector_norm(x: Any, ord: Any = 2, dim: Any = None, keepdim: bool = False, *, dtype: DType | None = None) -> Any:
    """The norm of order ``ord`` over ``dim`` (all dims of the flattened tensor where None): (sum |x|^ord)^(1/ord), the maximum and minimum
    magnitude for ``inf`` and ``-inf``, how many elements are not zero for 0."""
    x = to_dtype(x, dtype) if dtype is not None else floating(x)
    dims = wrap_dims(dim, x.ndim, "vector_norm")
    magnitude = _top("abs")(x)
    if ord in (math.inf, -math.inf):
        return _top("amax" if ord > 0 else "amin")(magnitude, dim=dims, keepdim=keepdim)
    if ord == 0:
        return _top("sum")(to_dtype(_top("ne")(x, 0), x.dtype), dim=dims, keepdim=keepdim)
    if ord == 2:
        return _top("norm")(x, p=2, dim=dims, keepdim=keepdim)
    if ord == 1:
        return _top("sum")(magnitude, dim=dims, keepdim=keepdim)
    return _top("pow")(_top("sum")(_top("pow")(magnitude, ord), dim=dims, keepdim=keepdim), 1.0 / ord)


@public(namespaces=_HERE, method=False)
def matrix_norm(
    A: Any, ord: Any = "fro", dim: Sequence[int] = (-2, -1), keepdim: bool = False, *, dtype: DType | None = None
) -> Any:
    """The norm of matrices over two dims: ``"fro"`` (Frobenius), 1 and -1 (largest and smallest column sum of magnitudes), inf and -inf (of
    row sums).

    Raises:
        NotImplementedError: for ``"nuc"``, 2 and -2, which need singular values.
        ValueError: for another order.
    """
    A = to_dtype(A, dtype) if dtype is not None else floating(A)
    rows, columns = (wrap_dim(d, A.ndim, "matrix_norm") for d in dim)
    if rows == columns:
        raise ShapeError(f"matrix_norm: the two dims must differ, got {tuple(dim)}")
    if ord == "fro":
        return vector_norm(A, 2, (rows, columns), keepdim)
    if ord in ("nuc", 2, -2):
        raise NotImplementedError(
            f"matrix_norm: order {ord!r} needs singular values, which are not there yet; 'fro', 1, -1, inf, -inf are"
        )
    if ord not in (1, -1, math.inf, -math.inf):
        raise ValueError(f"matrix_norm: unknown order {ord!r}; expected 'fro', 1, -1, inf or -inf")
    summed, kept = (rows, columns) if abs(ord) == 1 else (columns, rows)
    sums = _top("sum")(_top("abs")(A), dim=summed, keepdim=True)
    out = _top("amax" if ord > 0 else "amin")(sums, dim=kept, keepdim=True)
    if keepdim:
        return out
    for d in sorted((rows, columns), reverse=True):
        out = _top("squeeze")(out, d)
    return out


@public(namespaces=_HERE, method=False)
def norm(A: Any, ord: Any = None, dim: Any = None, keepdim: bool = False, *, dtype: DType | None = None) -> Any:
    """A vector norm, or a matrix norm where ``dim`` names two dims (or ``ord`` is given for a matrix without ``dim``)."""
    if ord is None:
        return vector_norm(A, 2, dim, keepdim, dtype=dtype)
    if dim is None and A.ndim == 2:
        return matrix_norm(A, ord, (0, 1), keepdim, dtype=dtype)
    if isinstance(dim, tuple | list) and len(dim) == 2:
        return matrix_norm(A, ord, dim, keepdim, dtype=dtype)
    if isinstance(ord, str):
        raise ShapeError(f"norm: order {ord!r} is for matrices: pass two dims, got dim={dim} for shape {list(A.shape)}")
    return vector_norm(A, ord, dim, keepdim, dtype=dtype)


@public(namespaces=_HERE, method=False, autocast="lower")
def multi_dot(tensors: Sequence[Any]) -> Any:
    """The product of two or more matrices, in the order of fewest multiplications (Cormen et al., Introduction to Algorithms, 15.2); the
    first and the last may be vectors.

    Raises:
        ShapeError: for fewer than two tensors, or sizes that do not chain.
    """
    parts = list(tensors)
    if len(parts) < 2:
        raise ShapeError(f"multi_dot: expected at least two tensors, got {len(parts)}")
    first, last = parts[0].ndim == 1, parts[-1].ndim == 1
    if first:
        parts[0] = _top("unsqueeze")(parts[0], 0)
    if last:
        parts[-1] = _top("unsqueeze")(parts[-1], 1)
    for k, (a, b) in enumerate(pairwise(parts)):
        if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[0]:
            raise ShapeError(f"multi_dot: tensors {k} and {k + 1} of shapes {list(a.shape)} and {list(b.shape)} do not chain")
    out = _chain(parts, _cheapest([p.shape[0] for p in parts] + [parts[-1].shape[1]]), 0, len(parts) - 1)
    if last:
        out = _top("squeeze")(out, 1)
    return _top("squeeze")(out, 0) if first else out


def _cheapest(sizes: Sequence[int]) -> dict[tuple[int, int], int]:
    """Where to cut each run of matrices i..j, by dynamic programming."""
    n = len(sizes) - 1
    cost = {(i, i): 0 for i in range(n)}
    cut: dict[tuple[int, int], int] = {}
    for length in range(2, n + 1):
        for i in range(n - length + 1):
            j = i + length - 1
            options = [(cost[i, k] + cost[k + 1, j] + sizes[i] * sizes[k + 1] * sizes[j + 1], k) for k in range(i, j)]
            cost[i, j], cut[i, j] = min(options)
    return cut


def _chain(parts: Sequence[Any], cut: dict[tuple[int, int], int], i: int, j: int) -> Any:
    if i == j:
        return parts[i]
    k = cut[i, j]
    return matmul(_chain(parts, cut, i, k), _chain(parts, cut, k + 1, j))


@public(namespaces=_HERE, method=False)
def matrix_power(A: Any, n: int) -> Any:
    """The n-th power of square matrices, n >= 0, by repeated squaring.

    Raises:
        ShapeError: for matrices that are not square.
        NotImplementedError: for n < 0, which needs an inverse.
    """
    if A.ndim < 2 or A.shape[-1] != A.shape[-2]:
        raise ShapeError(f"matrix_power: expected square matrices, got shape {list(A.shape)}")
    if n < 0:
        raise NotImplementedError(f"matrix_power: n={n} needs an inverse, which is not there yet")
    out = None
    while n:
        if n & 1:
            out = A if out is None else matmul(out, A)
        n >>= 1
        if n:
            A = matmul(A, A)
    if out is None:
        eye = _top("eye")(A.shape[-1], dtype=A.dtype)
        out = add(_top("zeros_like")(A), eye)
    return out
