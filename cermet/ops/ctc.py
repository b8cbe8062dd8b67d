"""Connectionist temporal classification (Graves et al. 2006): the likelihood of a label sequence under all its alignments.

The recursions run over the label sequence with blanks between (b, l1, b, l2, .., b), in logarithms, one step of time after another.
The gradient is explicit: minus the posterior probability of each place at each step, from the forward and the backward recursion.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from cermet import dtypes as dt
from cermet.graph.node import Meta, meta
from cermet.ops.arithmetic import clamp_min, maximum
from cermet.ops.composing import crop, narrow, shaped, spread_like, wide
from cermet.ops.define import OUT, Arg, Failing, OpDef, Sample, hooks
from cermet.ops.elementwise import add, div, eq, le, lt, mul, ne, neg, sub, where
from cermet.ops.gather import gather
from cermet.ops.joining import cat_op, pad_constant
from cermet.ops.loss import check_reduction
from cermet.ops.mathematics import exp, log
from cermet.ops.movement import reshape, slice_
from cermet.ops.public import public
from cermet.ops.support import check_floating, full_value, index_value, to_dtype, zeros_like_value

__all__: list[str] = []

LOW = -1e30
"""The logarithm of nothing: finite, so that differences of two are no NaN."""


def _infer(lp: Meta, skip: Meta, steps: Meta, labels: Meta) -> Meta:
    check_floating(lp, "ctc_loss")
    if lp.ndim != 3 or skip.shape != lp.shape[1:] or steps.shape != lp.shape[1:2] or labels.shape != lp.shape[1:2]:
        raise ValueError(
            f"ctc_loss: log-probabilities of shape {list(lp.shape)} (T, N, places), skips {list(skip.shape)}, "
            f"lengths {list(steps.shape)} and {list(labels.shape)} do not fit"
        )
    if lp.shape[0] == 0:
        raise ValueError("ctc_loss: expected at least one step of time")
    return meta(lp.shape[1:2], lp.dtype, lp.device)


def _sum_exp(parts: list[Any]) -> Any:
    """log(sum(exp)) of several values."""
    top = parts[0]
    for p in parts[1:]:
        top = maximum(top, p)
    top = clamp_min(top, LOW)
    total = None
    for p in parts:
        e = exp(sub(p, top))
        total = e if total is None else add(total, e)
    return add(log(total), top)


def _moved(x: Any, by: int) -> Any:
    """(N, places) moved along the places; nothing moves in."""
    n, places = x.shape
    k = abs(by)
    if k >= places:
        return full_value(x, LOW, (n, places))
    kept = crop(x, (0, 0) if by > 0 else (0, k), (n, places - k))
    return pad_constant(kept, (0, max(by, 0)), (0, max(-by, 0)), LOW)


class _Lattice:
    """What both recursions read: log-probabilities, where a blank may be passed over, and the masks of starts and ends."""

    def __init__(self, lp: Any, skip: Any, steps: Any, labels: Any) -> None:
        self.lp = wide(lp)
        self.count, n, places = lp.shape
        self.shape = (n, places)
        self.skip = skip
        self.steps = spread_like(shaped(steps, (n, 1)), self.shape)
        last = spread_like(shaped(add(labels, labels), (n, 1)), self.shape)
        self.place = index_value(lp, self.shape, 1, dt.int64)
        self.low = full_value(self.lp, LOW, ())
        self.zero = zeros_like_value(self.lp, ())
        # An alignment ends at the last label or at the blank after it.
        self.ends = add(eq(self.place, last), eq(self.place, sub(last, 1)))

    def at(self, t: int) -> Any:
        return shaped(crop(self.lp, (t, 0, 0), (1, *self.shape)), self.shape)

    def forward(self) -> list[Any]:
        """Per step, the log-likelihood of all beginnings that stand at a place; held after a sequence's last step."""
        start = where(le(self.place, 1), self.zero, self.low)
        out = [add(start, self.at(0))]
        for t in range(1, self.count):
            a = out[-1]
            two = where(self.skip, _moved(a, 2), self.low)
            new = add(_sum_exp([a, _moved(a, 1), two]), self.at(t))
            out.append(where(lt(full_value(self.steps, t, ()), self.steps), new, a))
        return out

    def backward(self) -> list[Any]:
        """Per step, the log-likelihood of all continuations after it, from a place; nothing after a sequence's last step."""
        end = where(self.ends, self.zero, self.low)
        out: list[Any] = [None] * self.count
        b = full_value(self.lp, LOW, self.shape)
        for t in range(self.count - 1, -1, -1):
            if t + 1 < self.count:
                c = add(b, self.at(t + 1))
                two = _moved(where(self.skip, c, self.low), -2)
                b = _sum_exp([c, _moved(c, -1), two])
            b = where(eq(self.steps, t + 1), end, b)
            b = out[t] = where(lt(full_value(self.steps, t, ()), self.steps), b, self.low)
        return out

    def likelihood(self, last: Any) -> Any:
        """The log-likelihood of each sequence (N,), from the held last step of the forward recursion."""
        from cermet.ops.composing import maximum_of, sum_of

        ending = where(self.ends, last, self.low)
        top = clamp_min(maximum_of(ending, 1, True), LOW)
        return add(log(sum_of(exp(sub(ending, top)), 1)), shaped(top, (self.shape[0],)))


def _decompose(lp: Any, skip: Any, steps: Any, labels: Any) -> Any:
    lattice = _Lattice(lp, skip, steps, labels)
    total = lattice.likelihood(lattice.forward()[-1])
    infinite = full_value(total, math.inf, ())
    return narrow(where(lt(total, LOW / 2), infinite, neg(total)), lp)


def _grad_decompose(g: Any, lp: Any, skip: Any, steps: Any, labels: Any, nll: Any) -> Any:
    lattice = _Lattice(lp, skip, steps, labels)
    forward, backward = lattice.forward(), lattice.backward()
    n, places = lattice.shape
    loss = spread_like(shaped(wide(nll), (n, 1)), lattice.shape)
    scale = spread_like(shaped(neg(wide(g)), (n, 1)), lattice.shape)
    possible = lt(loss, -LOW)
    rows = []
    for t in range(lattice.count):
        here = lt(full_value(lattice.steps, t, ()), lattice.steps)
        posterior = exp(add(add(forward[t], backward[t]), where(possible, loss, lattice.low)))
        rows.append(reshape(where(mul(here, possible), mul(scale, posterior), lattice.zero), shape=(1, n, places)))
    return narrow(cat_op(*rows, dim=0) if len(rows) > 1 else rows[0], lp)


def _np_add(x: Any, y: Any) -> Any:
    return np.logaddexp(x, y)


def _reference(lp: Any, skip: Any, steps: Any, labels: Any) -> Any:
    out = []
    for n in range(lp.shape[1]):
        a = np.full(lp.shape[2], -np.inf)
        a[: min(2, len(a))] = lp[0, n, : min(2, len(a))]
        for t in range(1, int(steps[n])):
            new = a.copy()
            new[1:] = _np_add(new[1:], a[:-1])
            new[2:] = np.where(skip[n, 2:], _np_add(new[2:], a[:-2]), new[2:])
            a = new + lp[t, n]
        last = 2 * int(labels[n])
        ends = [a[k] for k in (last - 1, last) if 0 <= k < len(a)]
        out.append(-np.logaddexp.reduce(ends))
    return np.array(out)


def _sample(t: int, n: int, places: int, steps: tuple[int, int], labels: tuple[int, int]) -> Sample:
    lp = Arg((t, n, places), (-2.0, 0.0))
    return Sample((lp, Arg((n, places), "bool", dt.bool), Arg((n,), steps, dt.int64), Arg((n,), labels, dt.int64)))


ctc_grad = OpDef(
    "ctc_grad",
    "composite",
    lambda g, lp, *rest: lp,
    vjp="auto",
    decompose=_grad_decompose,
    dtypes=dt.FLOATING,
    doc="The gradient of ctc for its log-probabilities: minus the posterior probability of each place at each step.",
)

ctc_op = OpDef(
    "ctc",
    "composite",
    _infer,
    vjp=lambda c, g: (ctc_grad(g, c[0], c[1], c[2], c[3], c.out), None, None, None),
    saves=(0, 1, 2, 3, OUT),
    decompose=_decompose,
    reference=_reference,
    dtypes=dt.FLOATING,
    samples=(
        _sample(6, 3, 7, (4, 7), (1, 3)),
        _sample(4, 2, 5, (3, 4), (0, 2)),
        _sample(1, 2, 3, (1, 1), (0, 1)),
    ),
    failing=(
        Failing(
            (Arg((4, 2, 5)), Arg((3, 5), "bool", dt.bool), Arg((2,), (1, 4), dt.int64), Arg((2,), (1, 2), dt.int64)),
            {},
            ValueError,
            "fit",
        ),
    ),
    ulp=256,
    doc="Minus the log-likelihood of label sequences. Inputs: log-probabilities of the places of the sequence with blanks "
    "(T, N, 2 S + 1), whether a place may be reached from two before it, lengths in time, numbers of labels.",
)


# ------------------------------------------------------------------------------------------------------------------ public


def _integer(x: Any, like: Any) -> Any:
    """A list, tuple or tensor of lengths as an int64 tensor of one dimension."""
    t = hooks.to_tensor(x, dtype=None, like=None)
    if t.dtype.kind not in "iu":
        raise RuntimeError(f"ctc_loss: lengths and targets must be integers, got {t.dtype}")
    t = to_dtype(t, dt.int64)
    return shaped(t, (1,)) if len(t.shape) == 0 else t


def _rows_of(targets: Any, lengths: Any, count: int) -> Any:
    """Targets (N, S) from targets written one after another."""
    if len(targets.shape) == 2:
        return targets
    sizes = np.asarray(lengths.tolist(), np.int64)
    if int(sizes.sum()) != targets.shape[0]:
        raise RuntimeError(f"ctc_loss: {targets.shape[0]} targets for target_lengths that add up to {int(sizes.sum())}")
    longest = max(1, int(sizes.max(initial=0)))
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    index = np.minimum(starts[:, None] + np.arange(longest), max(targets.shape[0] - 1, 0))
    if targets.shape[0] == 0:
        return full_value(targets, 0, (count, 1))
    flat = targets.index_select(0, hooks.to_tensor(index.reshape(-1), dtype=dt.int64, like=None))
    return shaped(flat, (count, longest))


def _with_blanks(targets: Any, lengths: Any, blank: int) -> tuple[Any, Any]:
    """The sequence with blanks between (N, 2 S + 1), and where a place may be reached from two before it."""
    n, size = targets.shape
    inside = lt(index_value(targets, (n, size), 1, dt.int64), shaped(lengths, (n, 1)))
    labels = where(inside, targets, full_value(targets, blank, ()))
    every = full_value(labels, blank, (n, size))
    pairs = cat_op(*[shaped(v, (n, size, 1)) for v in (every, labels)], dim=2)
    sequence = cat_op(shaped(pairs, (n, 2 * size)), full_value(labels, blank, (n, 1)), dim=1)
    before = pad_constant(slice_(sequence, starts=(0, 0), steps=(1, 1), sizes=(n, max(2 * size - 1, 0))), (0, 2), (0, 0), blank)
    return sequence, mul(ne(sequence, blank), ne(sequence, before))


@public(namespaces=("nn.functional", ""), method=False, autocast="float32")
def ctc_loss(
    log_probs: Any,
    targets: Any,
    input_lengths: Any,
    target_lengths: Any,
    blank: int = 0,
    reduction: str = "mean",
    zero_infinity: bool = False,
) -> Any:
    """Connectionist temporal classification loss (Graves et al. 2006).

    Args:
        log_probs: (T, N, C) or (T, C), from `log_softmax`. targets: (N, S), or all targets one after another; class indices.
        input_lengths, target_lengths: (N,) or a list; for each sequence its steps of time and its labels.
        blank: the class that stands for no label. zero_infinity: a target too long for its input counts as a loss of 0.
        reduction: "mean" divides each loss by its number of labels (at least 1) and averages; "sum"; "none".

    Raises:
        RuntimeError, ValueError: where shapes, dtypes, lengths or the blank do not fit.
    """
    kind = check_reduction(reduction, "ctc_loss")
    single = len(log_probs.shape) == 2
    lp = shaped(log_probs, (log_probs.shape[0], 1, log_probs.shape[1])) if single else log_probs
    if len(lp.shape) != 3:
        raise RuntimeError(f"ctc_loss: expected log_probs (T, N, C) or (T, C), got shape {list(log_probs.shape)}")
    steps, n, classes = lp.shape
    if not 0 <= blank < classes:
        raise RuntimeError(f"ctc_loss: blank={blank} is none of the {classes} classes")
    t, have, want = _integer(targets, lp), _integer(input_lengths, lp), _integer(target_lengths, lp)
    if single and len(t.shape) == 1:
        t = shaped(t, (1, t.shape[0]))
    if tuple(have.shape) != (n,) or tuple(want.shape) != (n,):
        raise RuntimeError(
            f"ctc_loss: expected {n} input_lengths and target_lengths, got {list(have.shape)} and {list(want.shape)}"
        )
    rows = _rows_of(t, want, n)
    if rows.shape[0] != n:
        raise RuntimeError(f"ctc_loss: expected targets of {n} sequences, got shape {list(t.shape)}")
    sequence, skip = _with_blanks(rows, want, int(blank))
    places = sequence.shape[1]
    index = spread_like(shaped(sequence, (1, n, places)), (steps, n, places))
    each = ctc_op(gather(lp, index, dims=(2,), rest=(0, 1)), skip, have, want)
    if zero_infinity:
        each = where(eq(each, math.inf), zeros_like_value(each, ()), each)
    if kind == "mean":
        return div(each, to_dtype(clamp_min(want, 1), each.dtype)).mean()
    if kind == "sum":
        return each.sum()
    return shaped(each, ()) if single else each
