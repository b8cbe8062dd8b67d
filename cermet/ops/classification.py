"""Losses on class indices. The gradient is an elementwise rule over the logits, never a scatter.

With smoothing e over C classes, class weights w and target t, the loss of a row x is (PyTorch's definition)

    (1 - e) w[t] (lse(x) - x[t])  +  (e / C) sum_c w[c] (lse(x) - x[c])

and the mean divides the sum over rows by the sum of w[t]. Rows whose target is ``ignore_index`` count nowhere.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from cermet import dtypes as dt
from cermet.graph.node import Meta, meta
from cermet.graph.sizes import at_least
from cermet.ops.composing import maximum_of, narrow, shaped, sum_of, wide
from cermet.ops.define import Arg, Failing, OpDef, Sample, count_of
from cermet.ops.elementwise import add, div, eq, lt, mul, ne, neg, sub, where
from cermet.ops.gather import gather
from cermet.ops.loss import check_reduction
from cermet.ops.mathematics import exp, log
from cermet.ops.public import public
from cermet.ops.support import check_floating, full_value, index_value, promote, to_dtype, zeros_like_value


def _row_shape(shape: Any, dim: int) -> tuple[int, ...]:
    return tuple([1 if k == dim else s for k, s in enumerate(shape)])


def _infer_rows(name: str, x: Meta, target: Meta, weight: tuple[Meta, ...], dim: int, reduction: str) -> Meta:
    check_floating(x, name)
    rest = tuple([s for k, s in enumerate(x.shape) if k != dim])
    if target.dtype.kind not in "iu":
        raise TypeError(f"{name}: class indices must be integers, got {target.dtype}; convert with .long()")
    if target.shape != rest:
        raise ValueError(
            f"{name}: a target of shape {list(target.shape)} does not fit an input of shape {list(x.shape)}: expected "
            f"{list(rest)} "
            "class indices, or probabilities of the input's shape"
        )
    if weight and weight[0].shape != (x.shape[dim],):
        raise ValueError(f"{name}: weight must have one element per class, [{x.shape[dim]}], got {list(weight[0].shape)}")
    return x.with_shape(rest if reduction == "none" else ())


class _Rows:
    """What loss and gradient share: masks and weights of each row, with the class dim kept at size 1."""

    def __init__(self, x: Any, target: Any, weight: tuple[Any, ...], dim: int, ignore: int) -> None:
        shape = tuple(x.shape)
        row = _row_shape(shape, dim)
        t = shaped(to_dtype(target, dt.int64), row)
        self.dim, self.target = dim, t
        self.valid = ne(t, ignore)
        classes = index_value(x, shape, dim, dt.int64)
        self.hit = eq(classes, t)
        self.zero = zeros_like_value(x, ())
        per_class = tuple([s if k == dim else 1 for k, s in enumerate(shape)])
        self.weight = shaped(to_dtype(wide(weight[0]), x.dtype), per_class) if weight else None
        picked = full_value(x, 1.0, row) if self.weight is None else sum_of(where(self.hit, self.weight, self.zero), dim, True)
        self.row_weight = where(self.valid, picked, self.zero)

    def masked(self, v: Any) -> Any:
        """Zero in ignored rows."""
        return where(self.valid, v, self.zero)

    def divisor(self) -> Any:
        """The sum of row weights: what the mean divides by."""
        return sum_of(self.row_weight, tuple(range(len(self.row_weight.shape))))

    def at_target(self, v: Any) -> Any:
        """``v`` at the target class of each row; ignored rows read class 0. An index out of range is an error, a negative one
        too."""
        zero = zeros_like_value(self.target, ())
        beyond = full_value(self.target, v.shape[self.dim], ())
        checked = where(lt(self.target, zero), beyond, self.target)
        rest = tuple([k for k in range(len(v.shape)) if k != self.dim])
        return gather(v, where(self.valid, checked, zero), dims=(self.dim,), rest=rest)


def _finish(row: Any, rows: _Rows, dim: int, reduction: str) -> Any:
    if reduction == "none":
        return shaped(row, tuple([s for k, s in enumerate(row.shape) if k != dim]))
    total = sum_of(row, tuple(range(len(row.shape))))
    return div(total, rows.divisor()) if reduction == "mean" else total


def _row_gradient(g: Any, rows: _Rows, reduction: str) -> Any:
    """The loss's gradient as one value per row."""
    if reduction == "none":
        return shaped(g, rows.valid.shape)
    return div(g, rows.divisor()) if reduction == "mean" else g


def _log_sum_exp(x: Any, dim: int) -> Any:
    top = maximum_of(x, dim, True)
    return add(log(sum_of(exp(sub(x, top)), dim, True)), top)


# -------------------------------------------------------------------------------------------------------- cross entropy


def _cross_entropy(x: Any, target: Any, *weight: Any, dim: int, ignore: int, smoothing: float, reduction: str) -> Any:
    v = wide(x)
    rows = _Rows(v, target, weight, dim, ignore)
    lse = _log_sum_exp(v, dim)
    loss = mul(sub(lse, rows.at_target(v)), rows.row_weight)
    if smoothing:
        each = sub(lse, v)
        each = each if rows.weight is None else mul(each, rows.weight)
        loss = add(mul(loss, 1 - smoothing), mul(sum_of(each, dim, True), smoothing / x.shape[dim]))
    return narrow(_finish(rows.masked(loss), rows, dim, reduction), x)


def _cross_entropy_grad(
    g: Any, x: Any, target: Any, *weight: Any, dim: int, ignore: int, smoothing: float, reduction: str
) -> Any:
    """Per row: a p - (1 - e) w[t] onehot(t) - (e / C) w, where a is the sum of the other two coefficients over the classes."""
    v = wide(x)
    rows = _Rows(v, target, weight, dim, ignore)
    p = exp(sub(v, _log_sum_exp(v, dim)))
    w_t = rows.row_weight
    if not smoothing:
        d = mul(sub(p, where(rows.hit, full_value(v, 1.0, ()), rows.zero)), w_t)
    else:
        small = smoothing / x.shape[dim]
        w = full_value(v, 1.0, _row_shape(v.shape, dim)) if rows.weight is None else rows.weight
        total = float(x.shape[dim]) if rows.weight is None else sum_of(w, dim, True)
        main = mul(w_t, 1 - smoothing)
        spread = mul(w, small)
        a = add(main, mul(total, small) if rows.weight is not None else float(x.shape[dim]) * small)
        d = sub(sub(mul(p, a), where(rows.hit, main, rows.zero)), spread)
    return narrow(rows.masked(mul(d, _row_gradient(wide(g), rows, reduction))), x)


def _np_onehot(target: Any, classes: int, dim: int) -> tuple[Any, Any]:
    t = np.expand_dims(target, dim)
    shape = [1] * t.ndim
    shape[dim] = classes
    return np.arange(classes).reshape(shape) == t, shape


def _np_cross_entropy(
    x: Any, target: Any, *weight: Any, dim: int, ignore: int, smoothing: float, reduction: str, logs: Any = None
) -> Any:
    classes = x.shape[dim]
    bad = ((target < 0) | (target >= classes)) & (target != ignore)
    if bad.any():
        raise IndexError(f"target {int(target[bad].flat[0])} is out of range for {classes} classes")
    hit, shape = _np_onehot(target, classes, dim)
    w = (weight[0] if weight else np.ones(classes)).reshape(shape)
    top = x.max(dim, keepdims=True)
    logp = x - top - np.log(np.exp(x - top).sum(dim, keepdims=True)) if logs is None else logs
    valid = target != ignore
    wt = (hit * w).sum(dim) * valid
    loss = -(1 - smoothing) * (hit * w * logp).sum(dim) - smoothing / classes * (w * logp).sum(dim)
    loss = np.where(valid, loss, 0)
    return loss if reduction == "none" else loss.sum() if reduction == "sum" else loss.sum() / wt.sum()


_ATTRS = ("dim", "ignore", "smoothing", "reduction")


def _class_samples(smooth: bool) -> tuple[Sample, ...]:
    def attrs(dim: int, reduction: str, ignore: int = -100, smoothing: float = 0.0) -> dict[str, Any]:
        named = {"dim": dim, "ignore": ignore, "reduction": reduction}
        return {**named, "smoothing": smoothing} if smooth else named

    index = lambda *s: Arg(s, (0, 4), dt.int64)
    out = [
        Sample((Arg((6, 4)), index(6)), attrs(1, "mean")),
        Sample((Arg((6, 4)), index(6), Arg((4,), (0.5, 2.0), constant=True)), attrs(1, "mean", 2)),
        Sample((Arg((2, 4, 3)), index(2, 3)), attrs(1, "sum", 0)),
        Sample((Arg((4,)), index()), attrs(0, "none")),
    ]
    if smooth:
        out.append(Sample((Arg((5, 4)), index(5), Arg((4,), (0.5, 2.0), constant=True)), attrs(1, "mean", 1, 0.1)))
        out.append(Sample((Arg((5, 4)), index(5)), attrs(1, "none", 1, 0.3)))
    return tuple(out)


def _with_gradient(samples: tuple[Sample, ...]) -> tuple[Sample, ...]:
    """The same samples with the loss's gradient in front."""
    return tuple(Sample((Arg(s.args[1].shape if s.attrs["reduction"] == "none" else ()), *s.args), s.attrs) for s in samples)


cross_entropy_grad = OpDef(
    "cross_entropy_grad",
    "composite",
    lambda g, x, *_, **__: x,
    attrs=_ATTRS,
    vjp="auto",
    decompose=_cross_entropy_grad,
    dtypes=dt.FLOATING,
    samples=_with_gradient(_class_samples(True)),
    ulp=128,
    doc="The gradient of cross_entropy for the logits.",
)


def _cross_entropy_vjp(c: Any, g: Any) -> Any:
    inputs = [c[k] for k in range(len(c.metas))]
    named = {"dim": c.dim, "ignore": c.ignore, "smoothing": c.smoothing, "reduction": c.reduction}
    return (cross_entropy_grad(g, *inputs, **named), *[None] * (len(inputs) - 1))


def _class_loss(name: str, suffix: int, vjp: Any, decompose: Any, reference: Any, smooth: bool, doc: str) -> OpDef:
    """The record for 2 (no weights) or 3 inputs."""

    def infer(x: Meta, target: Meta, *weight: Meta, dim: int, ignore: int, reduction: str, smoothing: float = 0.0) -> Meta:
        return _infer_rows(name, x, target, weight, dim, reduction)

    bad = {"dim": 1, "ignore": -100, "reduction": "mean", **({"smoothing": 0.0} if smooth else {})}
    return OpDef(
        name if suffix == 2 else name + "_weighted",
        "composite",
        infer,
        attrs=_ATTRS if smooth else ("dim", "ignore", "reduction"),
        vjp=vjp,
        saves=tuple(range(suffix)),
        decompose=decompose,
        reference=reference,
        dtypes=dt.FLOATING,
        ulp=128,
        doc=doc,
        samples=tuple(s for s in _class_samples(smooth) if len(s.args) == suffix),
        failing=(
            Failing((Arg((6, 4)), Arg((5,), (0, 4), dt.int64), *[Arg((4,))] * (suffix - 2)), bad, ValueError, "does not fit"),
        ),
    )


cross_entropy_ops = {
    n: _class_loss(
        "cross_entropy",
        n,
        _cross_entropy_vjp,
        _cross_entropy,
        _np_cross_entropy,
        True,
        "Cross entropy of softmax(x) and class indices.",
    )
    for n in (2, 3)
}


# ------------------------------------------------------------------------------------------------------------------ nll


def _nll(x: Any, target: Any, *weight: Any, dim: int, ignore: int, reduction: str) -> Any:
    v = wide(x)
    rows = _Rows(v, target, weight, dim, ignore)
    row = rows.masked(neg(mul(rows.at_target(v), rows.row_weight)))
    return narrow(_finish(row, rows, dim, reduction), x)


def _nll_grad(g: Any, x: Any, target: Any, *weight: Any, dim: int, ignore: int, reduction: str) -> Any:
    v = wide(x)
    rows = _Rows(v, target, weight, dim, ignore)
    return narrow(where(rows.hit, neg(mul(rows.row_weight, _row_gradient(wide(g), rows, reduction))), rows.zero), x)


def _nll_vjp(c: Any, g: Any) -> Any:
    inputs = [c[k] for k in range(len(c.metas))]
    return (nll_grad(g, *inputs, dim=c.dim, ignore=c.ignore, reduction=c.reduction), *[None] * (len(inputs) - 1))


nll_grad = OpDef(
    "nll_grad",
    "composite",
    lambda g, x, *_, **__: x,
    attrs=("dim", "ignore", "reduction"),
    vjp="auto",
    decompose=_nll_grad,
    dtypes=dt.FLOATING,
    samples=_with_gradient(_class_samples(False)),
    doc="The gradient of nll_loss for the log-probabilities.",
)
nll_ops = {
    n: _class_loss(
        "nll_loss",
        n,
        _nll_vjp,
        _nll,
        lambda x, t, *w, dim, ignore, reduction: _np_cross_entropy(
            x, t, *w, dim=dim, ignore=ignore, smoothing=0.0, reduction=reduction, logs=x
        ),
        False,
        "-x[target] per row, weighted.",
    )
    for n in (2, 3)
}


# --------------------------------------------------------------------------------------------------------- probabilities


def _soft(x: Any, target: Any, *weight: Any, dim: int, smoothing: float, reduction: str) -> Any:
    v, t = wide(x), wide(target)
    classes = x.shape[dim]
    if smoothing:
        t = add(mul(t, 1 - smoothing), smoothing / classes)
    each = mul(t, sub(v, _log_sum_exp(v, dim)))
    if weight:
        each = mul(each, shaped(wide(weight[0]), tuple([s if k == dim else 1 for k, s in enumerate(v.shape)])))
    row = neg(sum_of(each, dim))
    dims = tuple(range(len(row.shape)))
    if reduction == "mean":
        n = at_least(math.prod([s for k, s in enumerate(v.shape) if k != dim]), 1)
        row = div(sum_of(row, dims), count_of(n))
    elif reduction == "sum":
        row = sum_of(row, dims)
    return narrow(row, x)


def _soft_infer(x: Meta, target: Meta, *weight: Meta, dim: int, smoothing: float, reduction: str) -> Meta:
    check_floating(x, "cross_entropy")
    if x.shape != target.shape:
        raise ValueError(f"cross_entropy: probabilities of shape {list(target.shape)} for an input of shape {list(x.shape)}")
    rest = tuple([s for k, s in enumerate(x.shape) if k != dim])
    return meta(rest if reduction == "none" else (), x.dtype, x.device)


def _np_soft(x: Any, t: Any, *weight: Any, dim: int, smoothing: float, reduction: str) -> Any:
    top = x.max(dim, keepdims=True)
    logp = x - top - np.log(np.exp(x - top).sum(dim, keepdims=True))
    shape = [1] * x.ndim
    shape[dim] = -1
    w = weight[0].reshape(shape) if weight else 1.0
    row = -(w * (t * (1 - smoothing) + smoothing / x.shape[dim]) * logp).sum(dim)
    return row if reduction == "none" else row.sum() if reduction == "sum" else row.sum() / max(1, row.size)


cross_entropy_soft = OpDef(
    "cross_entropy_soft",
    "composite",
    _soft_infer,
    attrs=("dim", "smoothing", "reduction"),
    vjp="auto",
    decompose=_soft,
    reference=_np_soft,
    dtypes=dt.FLOATING,
    samples=(
        Sample((Arg((5, 4)), Arg((5, 4), (0.0, 1.0))), {"dim": 1, "smoothing": 0.0, "reduction": "mean"}),
        Sample(
            (Arg((2, 4, 3)), Arg((2, 4, 3), (0.0, 1.0)), Arg((4,), (0.5, 2.0))), {"dim": 1, "smoothing": 0.1, "reduction": "none"}
        ),
    ),
    failing=(Failing((Arg((5, 4)), Arg((5, 3))), {"dim": 1, "smoothing": 0.0, "reduction": "mean"}, ValueError, "shape"),),
    ulp=128,
    doc="Cross entropy of softmax(x) and probabilities.",
)


# --------------------------------------------------------------------------------------------------------------- public


def _class_dim(x: Any, name: str) -> int:
    if len(x.shape) == 0:
        raise ValueError(f"{name}: expected an input of at least 1 dimension (C), (N, C) or (N, C, ...), got a scalar")
    return 0 if len(x.shape) == 1 else 1


@public(namespaces=("nn.functional",), method=False, autocast="float32")
def cross_entropy(
    input: Any,
    target: Any,
    weight: Any = None,
    size_average: Any = None,
    ignore_index: int = -100,
    reduce: Any = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Any:
    """Cross entropy of softmax(input) and the target.

    Args:
        input: logits (C), (N, C) or (N, C, d1, ...).
        target: class indices (), (N) or (N, d1, ...); or probabilities of the input's shape and a floating dtype.
        weight: one weight per class. ignore_index: rows with this target count nowhere.
        label_smoothing: in [0, 1], how much of the target is spread evenly over all classes.

    Raises:
        ValueError, TypeError: where shapes or dtypes do not fit. IndexError (at evaluation): for a class index out of range.
    """
    kind = check_reduction(reduction, "cross_entropy", size_average, reduce)
    if not 0.0 <= label_smoothing <= 1.0:
        raise RuntimeError(f"cross_entropy: label_smoothing={label_smoothing}; it must lie in [0, 1]")
    dim = _class_dim(input, "cross_entropy")
    given = () if weight is None else (weight,)
    smoothing = float(label_smoothing)
    if target.dtype.kind == "f":
        x, t = promote(input, target)
        return cross_entropy_soft(x, t, *given, dim=dim, smoothing=smoothing, reduction=kind)
    op = cross_entropy_ops[2 + len(given)]
    return op(input, target, *given, dim=dim, ignore=int(ignore_index), smoothing=smoothing, reduction=kind)


@public(namespaces=("nn.functional",), method=False, autocast="float32")
def nll_loss(
    input: Any,
    target: Any,
    weight: Any = None,
    size_average: Any = None,
    ignore_index: int = -100,
    reduce: Any = None,
    reduction: str = "mean",
) -> Any:
    """Negative log likelihood: ``-input[target]`` per row of log-probabilities (C), (N, C) or (N, C, d1, ...).

    Raises:
        ValueError, TypeError: where shapes or dtypes do not fit. IndexError (at evaluation): for a class index out of range.
    """
    kind = check_reduction(reduction, "nll_loss", size_average, reduce)
    given = () if weight is None else (weight,)
    op = nll_ops[2 + len(given)]
    return op(input, target, *given, dim=_class_dim(input, "nll_loss"), ignore=int(ignore_index), reduction=kind)
