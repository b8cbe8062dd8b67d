"""Losses on margins and distances: plain functions on ops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cermet import dtypes as dt
from cermet.ops.arithmetic import abs_, clamp_min
from cermet.ops.composing import shaped, sum_of
from cermet.ops.elementwise import add, div, eq, lt, mul, ne, neg, sub, where
from cermet.ops.gather import gather
from cermet.ops.loss import check_reduction, reduced
from cermet.ops.mathematics import exp, log1p, sqrt
from cermet.ops.public import public
from cermet.ops.support import index_value, promote, to_dtype, zeros_like_value


def _hinge(x: Any) -> Any:
    """max(x, 0)."""
    return clamp_min(x, zeros_like_value(x, ()))


def _softplus(x: Any) -> Any:
    return add(log1p(exp(neg(abs_(x)))), _hinge(x))


def _kept(name: str, reduction: str, size_average: Any, reduce: Any) -> str:
    return check_reduction(reduction, name, size_average, reduce)


@public(namespaces=("nn.functional",), method=False, autocast="float32")
def soft_margin_loss(input: Any, target: Any, size_average: Any = None, reduce: Any = None, reduction: str = "mean") -> Any:
    """log(1 + exp(-y x)) for targets y of 1 and -1."""
    x, y = promote(input, target)
    return reduced(_softplus(neg(mul(x, y))), _kept("soft_margin_loss", reduction, size_average, reduce))


@public(namespaces=("", "nn.functional"), method=False, autocast="float32")
def margin_ranking_loss(
    input1: Any,
    input2: Any,
    target: Any,
    margin: float = 0,
    size_average: Any = None,
    reduce: Any = None,
    reduction: str = "mean",
) -> Any:
    """max(0, -y (x1 - x2) + margin)."""
    a, b, y = promote(input1, input2, target)
    kind = _kept("margin_ranking_loss", reduction, size_average, reduce)
    return reduced(_hinge(add(neg(mul(y, sub(a, b))), float(margin))), kind)


@public(namespaces=("", "nn.functional"), method=False, autocast="float32")
def hinge_embedding_loss(
    input: Any, target: Any, margin: float = 1.0, size_average: Any = None, reduce: Any = None, reduction: str = "mean"
) -> Any:
    """The input for targets of 1, max(0, margin - x) for targets of -1; other targets count as both."""
    x, y = promote(input, target)
    zero = zeros_like_value(x, ())
    low = where(ne(y, 1), _hinge(add(neg(x), float(margin))), zero)
    return reduced(add(low, where(ne(y, -1), x, zero)), _kept("hinge_embedding_loss", reduction, size_average, reduce))


@public(namespaces=("", "nn.functional"), method=False, autocast="float32")
def cosine_embedding_loss(
    input1: Any,
    input2: Any,
    target: Any,
    margin: float = 0,
    size_average: Any = None,
    reduce: Any = None,
    reduction: str = "mean",
) -> Any:
    """1 - cos for targets of 1, max(0, cos - margin) for targets of -1, over the last dimension."""
    a, b = promote(input1, input2)
    dim = len(a.shape) - 1
    dot = sum_of(mul(a, b), dim)
    # The small number is PyTorch's: it keeps the gradient finite for vectors of zeros.
    norm = sqrt(mul(add(sum_of(mul(a, a), dim), 1e-12), add(sum_of(mul(b, b), dim), 1e-12)))
    cos = div(dot, norm)
    zero = zeros_like_value(cos, ())
    loss = add(where(eq(target, 1), add(neg(cos), 1.0), zero), where(eq(target, -1), _hinge(add(cos, -float(margin))), zero))
    return reduced(loss, _kept("cosine_embedding_loss", reduction, size_average, reduce))


def _distance(a: Any, b: Any, p: float, eps: float) -> Any:
    """The p-norm of a - b + eps over the last dimension."""
    d = abs_(add(sub(a, b), eps))
    dim = len(d.shape) - 1
    return sqrt(sum_of(mul(d, d), dim)) if p == 2 else sum_of(d**p, dim) ** (1.0 / p)


def _triplet(anchor: Any, positive: Any, negative: Any, distance: Callable[[Any, Any], Any], margin: float, swap: bool) -> Any:
    far, near = distance(anchor, negative), distance(anchor, positive)
    if swap:
        other = distance(positive, negative)
        far = where(lt(other, far), other, far)
    return _hinge(add(sub(near, far), float(margin)))


@public(namespaces=("", "nn.functional"), method=False, autocast="float32")
def triplet_margin_loss(
    anchor: Any,
    positive: Any,
    negative: Any,
    margin: float = 1.0,
    p: float = 2,
    eps: float = 1e-6,
    swap: bool = False,
    size_average: Any = None,
    reduce: Any = None,
    reduction: str = "mean",
) -> Any:
    """max(0, d(a, p) - d(a, n) + margin); ``swap`` takes the positive's distance to the negative where that is smaller."""
    if margin <= 0:
        raise ValueError(f"triplet_margin_loss: margin={margin}; give a positive number")
    kind = _kept("triplet_margin_loss", reduction, size_average, reduce)
    return reduced(_triplet(anchor, positive, negative, lambda a, b: _distance(a, b, p, eps), margin, swap), kind)


@public(namespaces=("nn.functional",), method=False, autocast="float32")
def triplet_margin_with_distance_loss(
    anchor: Any,
    positive: Any,
    negative: Any,
    *,
    distance_function: Any = None,
    margin: float = 1.0,
    swap: bool = False,
    reduction: str = "mean",
) -> Any:
    """`triplet_margin_loss` with any distance; the Euclidean one by default."""
    if margin <= 0:
        raise ValueError(f"triplet_margin_with_distance_loss: margin={margin}; give a positive number")
    distance = distance_function or (lambda a, b: _distance(a, b, 2, 1e-6))
    kind = check_reduction(reduction, "triplet_margin_with_distance_loss")
    return reduced(_triplet(anchor, positive, negative, distance, margin, swap), kind)


def _as_rows(name: str, x: Any) -> tuple[Any, bool]:
    """(N, C) of (N, C) or (C)."""
    if len(x.shape) not in (1, 2):
        raise ValueError(f"{name}: expected an input of shape (N, C) or (C), got {list(x.shape)}")
    return (shaped(x, (1, x.shape[0])), True) if len(x.shape) == 1 else (x, False)


@public(namespaces=("nn.functional",), method=False, autocast="float32")
def multi_margin_loss(
    input: Any,
    target: Any,
    p: int = 1,
    margin: float = 1.0,
    weight: Any = None,
    size_average: Any = None,
    reduce: Any = None,
    reduction: str = "mean",
) -> Any:
    """The sum over other classes of max(0, margin - x[y] + x[i]) ** p, over the number of classes.

    Raises:
        ValueError: for ``p`` other than 1 and 2.
    """
    if p not in (1, 2):
        raise ValueError(f"multi_margin_loss: p={p}; give 1 or 2")
    x, single = _as_rows("multi_margin_loss", input)
    n, classes = x.shape
    t = shaped(to_dtype(target, dt.int64), (n, 1))
    gap = _hinge(add(sub(x, gather(x, t, dims=(1,), rest=(0,))), float(margin)))
    gap = mul(gap, gap) if p == 2 else gap
    if weight is not None:
        gap = mul(gap, gather(weight, t, dims=(0,), rest=()))
    others = ne(index_value(x, (n, classes), 1), t)
    row = div(sum_of(where(others, gap, zeros_like_value(gap, ())), 1), float(classes))
    kind = _kept("multi_margin_loss", reduction, size_average, reduce)
    return reduced(shaped(row, ()) if single else row, kind)


@public(namespaces=("nn.functional",), method=False, autocast="float32")
def multilabel_soft_margin_loss(
    input: Any, target: Any, weight: Any = None, size_average: Any = None, reduce: Any = None, reduction: str = "mean"
) -> Any:
    """Binary cross entropy of each label, averaged over the last dimension."""
    x, y = promote(input, target)
    each = add(mul(y, _softplus(neg(x))), mul(add(neg(y), 1.0), _softplus(x)))
    if weight is not None:
        each = mul(*promote(each, weight))
    dim = len(each.shape) - 1
    row = div(sum_of(each, dim), float(max(each.shape[dim], 1)))
    return reduced(row, _kept("multilabel_soft_margin_loss", reduction, size_average, reduce))


@public(namespaces=("nn.functional",), method=False, autocast="float32")
def multilabel_margin_loss(input: Any, target: Any, size_average: Any = None, reduce: Any = None, reduction: str = "mean") -> Any:
    """The sum over labels y and classes i that are none of max(0, 1 - (x[y] - x[i])), over the number of classes.

    Args:
        input: (N, C) or (C). target: of that shape, class indices; those after the first -1 count for nothing.

    Raises:
        ValueError: where the shapes do not fit.
    """
    x, single = _as_rows("multilabel_margin_loss", input)
    if tuple(target.shape) != tuple(input.shape):
        raise ValueError(
            f"multilabel_margin_loss: expected targets of the input's shape {list(input.shape)}, got {list(target.shape)}"
        )
    n, classes = x.shape
    t = shaped(to_dtype(target, dt.int64), (n, classes))
    # A label counts while no label so far is negative.
    counts = (t < 0).to(dt.int64).cumsum(1).eq(0)
    labels = where(counts, t, zeros_like_value(t, ()))
    hit = eq(shaped(labels, (n, classes, 1)), index_value(x, (n, classes, classes), 2))
    is_label = (to_dtype(hit, dt.int64) * shaped(to_dtype(counts, dt.int64), (n, classes, 1))).sum(1) > 0
    known = gather(x, labels, dims=(1,), rest=(0,))
    gap = _hinge(add(sub(shaped(x, (n, 1, classes)), shaped(known, (n, classes, 1))), 1.0))
    counted = mul(shaped(counts, (n, classes, 1)), shaped(is_label.logical_not(), (n, 1, classes)))
    row = div(sum_of(where(counted, gap, zeros_like_value(gap, ())), (1, 2)), float(classes))
    kind = _kept("multilabel_margin_loss", reduction, size_average, reduce)
    return reduced(shaped(row, ()) if single else row, kind)
