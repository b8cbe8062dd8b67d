"""Matrix products: the `contract` primitive, `linear` as one node, and PyTorch's product functions written with them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from cermet import dtypes as dt
from cermet.graph.node import Meta, broadcast_shapes, meta
from cermet.ops.composing import scaled, shaped, spread_like, sum_of, swap_last
from cermet.ops.define import Arg, Failing, OpDef, Sample, ShapeError
from cermet.ops.elementwise import add, mul
from cermet.ops.movement import permute, reshape
from cermet.ops.public import public
from cermet.ops.support import promote, same_dtype, wrap_dim

NUMERIC = (*dt.INTEGRAL, *dt.FLOATING)


def _contract_infer(a: Meta, b: Meta) -> Meta:
    same_dtype("matmul", a, b)
    if a.ndim < 2 or b.ndim != a.ndim or a.shape[:-2] != b.shape[:-2] or a.shape[-1] != b.shape[-2]:
        raise ShapeError(
            f"matmul: shapes {list(a.shape)} and {list(b.shape)} cannot be multiplied: expected (..., M, K) and (..., K, N); "
            f"the inner sizes are {a.shape[-1] if a.ndim else '-'} and {b.shape[-2] if b.ndim > 1 else '-'}"
        )
    if a.dtype is dt.bool:
        raise TypeError("matmul: bool is not supported; convert with .int() or .float() first")
    return meta((*a.shape[:-1], b.shape[-1]), a.dtype, a.device)


def _contract_vjp(c: Any, g: Any) -> Any:
    ga = contract(g, swap_last(c[1])) if c.needs[0] else None
    gb = contract(swap_last(c[0]), g) if c.needs[1] else None
    return ga, gb


contract: OpDef = OpDef(
    "contract",
    "contraction",
    _contract_infer,
    vjp=_contract_vjp,
    saves=(0, 1),
    reference=np.matmul,
    dtypes=NUMERIC,
    samples=(
        Sample((Arg((3, 4)), Arg((4, 5)))),
        Sample((Arg((2, 3, 4)), Arg((2, 4, 1)))),
        Sample((Arg((2, 1, 3, 2)), Arg((2, 1, 2, 3)))),
        Sample((Arg((3, 0)), Arg((0, 2)))),
        Sample((Arg((0, 3)), Arg((3, 2)))),
        Sample((Arg((17, 33)), Arg((33, 19)))),
    ),
    failing=(
        Failing((Arg((3, 4)), Arg((3, 4))), {}, ValueError, "inner sizes"),
        Failing((Arg((2, 3, 4)), Arg((3, 4, 5))), {}, ValueError, "cannot be multiplied"),
    ),
    onnx="MatMul",
    ulp=64,
    doc="Matrix products of (*batch, M, K) and (*batch, K, N) with equal batch dims; 16-bit floats accumulate in "
    "float32, integers wrap.",
)


# --------------------------------------------------------------------------------------------------------------- linear


def _linear_infer(x: Meta, w: Meta, *bias: Meta) -> Meta:
    same_dtype("linear", x, w, *bias)
    if w.ndim != 2 or x.ndim < 1 or x.shape[-1] != w.shape[1]:
        raise ShapeError(
            f"linear: an input of shape {list(x.shape)} does not fit a weight of shape {list(w.shape)}: "
            "expected (*, in_features) and (out_features, in_features)"
        )
    if bias and bias[0].shape not in ((w.shape[0],), (1,), ()):
        raise ShapeError(f"linear: the bias has shape {list(bias[0].shape)}, expected [{w.shape[0]}]")
    return meta((*x.shape[:-1], w.shape[0]), x.dtype, x.device)


def _rows(x: Any) -> Any:
    """(*, K) as (M, K)."""
    shape = tuple(x.shape)
    return shaped(x, (math.prod(shape[:-1]), shape[-1]))


def _linear_decompose(x: Any, w: Any, *bias: Any) -> Any:
    y = shaped(contract(_rows(x), permute(w, dims=(1, 0))), (*x.shape[:-1], w.shape[0]))
    return add(y, bias[0]) if bias else y


def _linear_vjp(c: Any, g: Any) -> Any:
    gx = linear_op(g, permute(c[1], dims=(1, 0))) if c.needs[0] else None
    gw = linear_weight_grad(g, c[0]) if c.needs[1] else None
    if len(c.metas) == 2:
        return gx, gw
    gb = None
    if c.needs[2]:
        shape = c.metas[2].shape
        lead = len(c.meta.shape) - (1 if shape == (c.meta.shape[-1],) else 0)
        gb = shaped(sum_of(g, tuple(range(lead))), shape) if lead else g
    return gx, gw, gb


def _linear_reference(x: Any, w: Any, *bias: Any) -> Any:
    y = x @ w.T
    return y + bias[0] if bias else y


linear_op: OpDef = OpDef(
    "linear",
    "composite",
    _linear_infer,
    vjp=_linear_vjp,
    saves=(0, 1),
    decompose=_linear_decompose,
    reference=_linear_reference,
    dtypes=dt.FLOATING,
    samples=(
        Sample((Arg((3, 4)), Arg((5, 4)), Arg((5,)))),
        Sample((Arg((2, 3, 4)), Arg((5, 4)))),
        Sample((Arg((4,)), Arg((5, 4)), Arg((5,)))),
        Sample((Arg((0, 4)), Arg((5, 4)), Arg((5,)))),
    ),
    failing=(
        Failing((Arg((3, 4)), Arg((4, 5))), {}, ValueError, "does not fit"),
        Failing((Arg((3, 4)), Arg((5, 4)), Arg((4,))), {}, ValueError, "bias"),
    ),
    onnx="Gemm",
    ulp=64,
    doc="x @ w.T + b for x of shape (*, in), w of shape (out, in) and b of shape (out).",
)


def _weight_grad_infer(g: Meta, x: Meta) -> Meta:
    return meta((g.shape[-1], x.shape[-1]), g.dtype, g.device)


linear_weight_grad: OpDef = OpDef(
    "linear_weight_grad",
    "composite",
    _weight_grad_infer,
    vjp=lambda c, g: (
        linear_op(c[1], g) if c.needs[0] else None,
        linear_op(c[0], permute(g, dims=(1, 0))) if c.needs[1] else None,
    ),
    saves=(0, 1),
    decompose=lambda g, x: contract(permute(_rows(g), dims=(1, 0)), _rows(x)),
    reference=lambda g, x: g.reshape(-1, g.shape[-1]).T @ x.reshape(-1, x.shape[-1]),
    dtypes=dt.FLOATING,
    samples=(Sample((Arg((3, 5)), Arg((3, 4)))), Sample((Arg((2, 3, 5)), Arg((2, 3, 4)))), Sample((Arg((5,)), Arg((4,))))),
    ulp=64,
    doc="The gradient of linear's weight: the sum over rows of outer products of the result's gradient and the input.",
)


@public(namespaces=("nn.functional",), method=False, autocast="lower")
def linear(input: Any, weight: Any, bias: Any = None) -> Any:
    """``input @ weight.T + bias``.

    Args:
        input: (*, in_features). weight: (out_features, in_features) or (in_features). bias: (out_features) or ().

    Raises:
        ValueError: where the shapes do not fit.
    """
    if len(weight.shape) == 1:
        out = linear_op(input, reshape(weight, shape=(1, weight.shape[0])))
        out = reshape(out, shape=tuple(out.shape[:-1]))
        return out if bias is None else add(out, bias)
    return linear_op(input, weight) if bias is None else linear_op(input, weight, bias)


@public(namespaces=("nn.functional",), method=False, autocast="lower")
def bilinear(input1: Any, input2: Any, weight: Any, bias: Any = None) -> Any:
    """``y[..., o] = input1[..., i] weight[o, i, j] input2[..., j] + bias[o]``."""
    out = einsum("...i,oij,...j->...o", input1, weight, input2)
    return out if bias is None else add(out, bias)


# ------------------------------------------------------------------------------------------------------------- products


def _check_dim(name: str, x: Any, ndim: int, what: str) -> None:
    if len(x.shape) != ndim:
        raise ShapeError(f"{name}: {what} must have {ndim} dimension{'s' if ndim > 1 else ''}, got shape {list(x.shape)}")


def product(a: Any, b: Any) -> Any:
    """Matrix product with NumPy's rules for batches and vectors, on values."""
    sa, sb = tuple(a.shape), tuple(b.shape)
    na, nb = len(sa), len(sb)
    if na == nb and na >= 2 and sa[:-2] == sb[:-2]:
        return contract(a, b)
    if na == 0 or nb == 0:
        raise ShapeError(
            f"matmul: both inputs need at least one dimension, got shapes {list(sa)} and {list(sb)}; use * for scalars"
        )
    if na == 1:
        out = product(reshape(a, shape=(1, sa[0])), b)
        return shaped(out, (*out.shape[:-2], out.shape[-1])) if nb > 1 else out
    if nb == 1:
        out = product(a, reshape(b, shape=(sb[0], 1)))
        return shaped(out, out.shape[:-1])
    # One matrix for all batches: fold the batch into the rows, so that it is one large product and the gradient needs no sum.
    if math.prod(sb[:-2]) == 1 and na >= nb:
        if sa[-1] != sb[-2]:
            raise ShapeError(
                f"matmul: shapes {list(sa)} and {list(sb)} cannot be multiplied: the inner sizes are {sa[-1]} and {sb[-2]}"
            )
        return linear_op(a, permute(shaped(b, sb[-2:]), dims=(1, 0)))
    try:
        batch = broadcast_shapes(sa[:-2], sb[:-2])
    except ValueError as e:
        raise ShapeError(f"matmul: the batch dimensions do not fit: {e}") from None
    return contract(spread_like(a, (*batch, *sa[-2:])), spread_like(b, (*batch, *sb[-2:])))


@public(autocast="lower")
def matmul(input: Any, other: Any) -> Any:
    """Matrix product; leading dimensions are batches and broadcast, a vector counts as a row on the left and a column on the
    right.

    Raises:
        ValueError: where the shapes do not fit. TypeError: for inputs of different dtypes.
    """
    if len(input.shape) == 1 and len(other.shape) == 1:
        return dot(input, other)
    return product(input, other)


@public(autocast="lower")
def mm(input: Any, mat2: Any) -> Any:
    """Product of two matrices."""
    _check_dim("mm", input, 2, "input")
    _check_dim("mm", mat2, 2, "mat2")
    return contract(input, mat2)


@public(autocast="lower")
def bmm(input: Any, mat2: Any) -> Any:
    """Products of two stacks of matrices, (B, M, K) and (B, K, N)."""
    _check_dim("bmm", input, 3, "input")
    _check_dim("bmm", mat2, 3, "mat2")
    return contract(input, mat2)


@public(autocast="lower")
def mv(input: Any, vec: Any) -> Any:
    """Product of a matrix and a vector."""
    _check_dim("mv", input, 2, "input")
    _check_dim("mv", vec, 1, "vec")
    return product(input, vec)


@public(aliases=("vdot",), autocast="widest")
def dot(input: Any, other: Any) -> Any:
    """Sum of the products of two vectors' elements."""
    _check_dim("dot", input, 1, "input")
    _check_dim("dot", other, 1, "other")
    n = input.shape[0]
    if n != other.shape[0]:
        raise ShapeError(f"dot: vectors of different lengths, {n} and {other.shape[0]}")
    return reshape(contract(reshape(input, shape=(1, n)), reshape(other, shape=(n, 1))), shape=())


@public()
def inner(input: Any, other: Any) -> Any:
    """Sums of products over the last dimension of both."""
    if len(input.shape) == 0 or len(other.shape) == 0:
        return mul(*promote(input, other))
    return tensordot(input, other, dims=([-1], [-1]))


@public(aliases=("ger",))
def outer(input: Any, vec2: Any) -> Any:
    """The matrix of all products of two vectors' elements."""
    _check_dim("outer", input, 1, "input")
    _check_dim("outer", vec2, 1, "vec2")
    a, b = promote(input, vec2)
    return mul(reshape(a, shape=(a.shape[0], 1)), b)


def _weighted_sum(input: Any, product_: Any, beta: float, alpha: float) -> Any:
    # With beta 0 the input does not count at all, not even its NaN.
    p = scaled(product_, alpha)
    if beta == 0:
        return p
    return add(scaled(input, beta), p)


@public(inplace=True, autocast="lower")
def addmm(input: Any, mat1: Any, mat2: Any, *, beta: float = 1, alpha: float = 1) -> Any:
    """``beta * input + alpha * mat1 @ mat2``; input broadcasts."""
    return _weighted_sum(input, mm(mat1, mat2), beta, alpha)


@public(inplace=True, autocast="lower")
def addmv(input: Any, mat: Any, vec: Any, *, beta: float = 1, alpha: float = 1) -> Any:
    """``beta * input + alpha * mat @ vec``."""
    return _weighted_sum(input, mv(mat, vec), beta, alpha)


@public(inplace=True)
def addr(input: Any, vec1: Any, vec2: Any, *, beta: float = 1, alpha: float = 1) -> Any:
    """``beta * input + alpha * outer(vec1, vec2)``."""
    return _weighted_sum(input, outer(vec1, vec2), beta, alpha)


@public(inplace=True, autocast="lower")
def baddbmm(input: Any, batch1: Any, batch2: Any, *, beta: float = 1, alpha: float = 1) -> Any:
    """``beta * input + alpha * bmm(batch1, batch2)``."""
    return _weighted_sum(input, bmm(batch1, batch2), beta, alpha)


@public(inplace=True, autocast="lower")
def addbmm(input: Any, batch1: Any, batch2: Any, *, beta: float = 1, alpha: float = 1) -> Any:
    """``beta * input + alpha *`` the sum over the batch of ``batch1 @ batch2``."""
    _check_dim("addbmm", batch1, 3, "batch1")
    _check_dim("addbmm", batch2, 3, "batch2")
    return _weighted_sum(input, einsum("bij,bjk->ik", batch1, batch2), beta, alpha)


@public(method=False, autocast="lower")
def tensordot(a: Any, b: Any, dims: Any = 2) -> Any:
    """Sum of products over several dimensions.

    Args:
        dims: an int n (the last n of ``a`` with the first n of ``b``), or two lists of dimensions to pair.

    Raises:
        ValueError: where paired dimensions differ in size.
    """
    na, nb = len(a.shape), len(b.shape)
    if isinstance(dims, int):
        left, right = list(range(na - dims, na)), list(range(dims))
    else:
        given = [d if isinstance(d, list | tuple) else [d] for d in (dims.tolist() if hasattr(dims, "tolist") else dims)]
        left, right = [wrap_dim(d, na, "tensordot") for d in given[0]], [wrap_dim(d, nb, "tensordot") for d in given[1]]
    if len(left) != len(right) or any(a.shape[i] != b.shape[j] for i, j in zip(left, right)):
        raise ShapeError(
            f"tensordot: dims {left} of shape {list(a.shape)} do not pair with dims {right} of shape {list(b.shape)}"
        )
    keep_a, keep_b = [k for k in range(na) if k not in left], [k for k in range(nb) if k not in right]
    inner_size = math.prod([a.shape[k] for k in left])
    rows, cols = [a.shape[k] for k in keep_a], [b.shape[k] for k in keep_b]
    x = shaped(permute(a, dims=(*keep_a, *left)), (math.prod(rows), inner_size))
    y = shaped(permute(b, dims=(*right, *keep_b)), (inner_size, math.prod(cols)))
    return shaped(contract(x, y), (*rows, *cols))


@public()
def kron(input: Any, other: Any) -> Any:
    """Kronecker product; the one with fewer dimensions gets leading ones."""
    a, b = promote(input, other)
    n = max(len(a.shape), len(b.shape))
    sa, sb = (1,) * (n - len(a.shape)) + tuple(a.shape), (1,) * (n - len(b.shape)) + tuple(b.shape)
    x = shaped(a, [s for pair in zip(sa, (1,) * n) for s in pair])
    y = shaped(b, [s for pair in zip((1,) * n, sb) for s in pair])
    return shaped(mul(x, y), [p * q for p, q in zip(sa, sb)])


@public(method=False, autocast="lower")
def einsum(equation: Any, *operands: Any) -> Any:
    """Sums of products in Einstein's notation: ``einsum("bij,bjk->bik", x, y)``, with ``...``, repeated and implicit labels.

    Raises:
        ValueError: for a malformed equation, or where sizes of one label differ.
    """
    from cermet.ops.einsum import evaluate

    return evaluate(equation, operands)
