"""Einstein's notation: an equation is read once, then operands are combined two at a time, each pair by one contraction."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np

from cermet.graph.node import broadcast_shapes
from cermet.ops.composing import shaped, spread_like, sum_of
from cermet.ops.contraction import contract
from cermet.ops.define import ShapeError
from cermet.ops.elementwise import mul
from cermet.ops.movement import diagonal_, permute
from cermet.ops.support import promote

_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


def _from_sublists(args: tuple[Any, ...]) -> tuple[str, list[Any]]:
    """The format (operand, [labels], operand, [labels], ..., [output labels])."""

    def text(labels: Any) -> str:
        return "".join("..." if x is Ellipsis else _LETTERS[int(x)] for x in labels)

    operands, terms, output = [], [], None
    rest = list(args)
    while len(rest) >= 2:
        operands.append(rest.pop(0))
        terms.append(text(rest.pop(0)))
    if rest:
        output = text(rest.pop(0))
    return ",".join(terms) + ("" if output is None else "->" + output), operands


@lru_cache(maxsize=1024)
def parse(equation: str, shapes: tuple[tuple[int, ...], ...]) -> tuple[tuple[str, ...], str, dict[str, int]]:
    """Terms and output without ellipses (its dimensions get labels of their own, "\\x00" and up), and the size of each label.

    Raises:
        ValueError: for anything that is no equation for operands of these shapes.
    """
    text = equation.replace(" ", "")
    left, arrow, right = text.partition("->")
    terms = left.split(",")
    if len(terms) != len(shapes):
        raise ShapeError(f"einsum: {equation!r} names {len(terms)} operands, got {len(shapes)}")
    for c in left.replace("...", "").replace(",", "") + right.replace("...", ""):
        if c not in _LETTERS:
            raise ShapeError(f"einsum: {c!r} in {equation!r} is no label; labels are letters")
    spans = [len(s) - len(t.replace("...", "")) if "..." in t else 0 for s, t in zip(shapes, terms)]
    for t, s, span in zip(terms, shapes, spans):
        if span < 0 or ("..." not in t and len(t) != len(s)) or t.count("...") > 1:
            raise ShapeError(f"einsum: the term {t!r} of {equation!r} does not fit an operand of shape {list(s)}")
    most = max(spans, default=0)
    dots = "".join(chr(k) for k in range(most))
    full = tuple([t.replace("...", dots[most - span :]) for t, span in zip(terms, spans)])
    if arrow:
        output = right.replace("...", dots)
    else:
        counted = "".join(terms).replace("...", "")
        output = dots + "".join(sorted(c for c in set(counted) if counted.count(c) == 1))
    sizes = _sizes(equation, full, shapes)
    for c in output:
        if c not in sizes:
            raise ShapeError(f"einsum: the output label {c!r} of {equation!r} appears in no operand")
    if len(set(output)) != len(output):
        raise ShapeError(f"einsum: an output label of {equation!r} appears twice")
    return full, output, sizes


def _sizes(equation: str, terms: tuple[str, ...], shapes: tuple[tuple[int, ...], ...]) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for t, s in zip(terms, shapes):
        for c, n in zip(t, s):
            known = sizes.get(c, 1)
            if known != n and known != 1 and n != 1:
                raise ShapeError(f"einsum: label {c!r} of {equation!r} has size {known} in one operand and {n} in another")
            sizes[c] = n if known == 1 else known
    return sizes


@lru_cache(maxsize=1024)
def _path(terms: tuple[str, ...], output: str, shapes: tuple[tuple[int, ...], ...]) -> tuple[tuple[int, ...], ...]:
    """In which order to combine the operands: first to last for two, NumPy's greedy search for more."""
    if len(terms) <= 2:
        return ((0, 1),) if len(terms) == 2 else ()
    letters = {c: _LETTERS[k] for k, c in enumerate(dict.fromkeys("".join(terms)))}
    text = ",".join("".join(letters[c] for c in t) for t in terms) + "->" + "".join(letters[c] for c in output)
    dummies = [np.broadcast_to(np.float32(0), s) for s in shapes]
    found = np.einsum_path(text, *dummies, optimize="greedy")[0][1:]
    steps: list[tuple[int, ...]] = []
    for step in found:
        # A step of more than two operands is taken pair by pair; results are appended at the end.
        step = tuple(sorted(step))
        steps.append(step)
    return tuple(steps)


def _simplify(x: Any, labels: str, needed: set[str]) -> tuple[Any, str]:
    """Diagonals of repeated labels taken, labels that nobody else needs summed."""
    for c in set(labels):
        while labels.count(c) > 1:
            i = labels.index(c)
            j = labels.index(c, i + 1)
            x = diagonal_(x, offset=0, dim1=i, dim2=j)
            labels = labels[:i] + labels[i + 1 : j] + labels[j + 1 :] + c
    gone = [k for k, c in enumerate(labels) if c not in needed]
    if gone:
        x = sum_of(x, gone)
        labels = "".join(c for c in labels if c in needed)
    return x, labels


def _pair(x: Any, lx: str, y: Any, ly: str, needed: set[str], sizes: dict[str, int]) -> tuple[Any, str]:
    """Two operands as one."""
    x, lx = _simplify(x, lx, needed | set(ly))
    y, ly = _simplify(y, ly, needed | set(lx))
    # A label of size 1 in one operand alone broadcasts there: it is summed away (one element) and left to the other.
    x, lx, y, ly = *_drop_ones(x, lx, ly, sizes), y, ly
    y, ly = _drop_ones(y, ly, lx, sizes)
    batch = [c for c in lx if c in ly and c in needed]
    summed = [c for c in lx if c in ly and c not in needed]
    rows = [c for c in lx if c not in ly]
    cols = [c for c in ly if c not in lx]
    if not summed:
        out = batch + rows + cols
        return mul(_aligned(x, lx, out), _aligned(y, ly, out)), "".join(out)
    size = lambda cs: [sizes[c] for c in cs]
    n_rows, n_sum, n_cols = math.prod(size(rows)), math.prod(size(summed)), math.prod(size(cols))
    a = shaped(_ordered(x, lx, batch + rows + summed), (*size(batch), n_rows, n_sum))
    b = shaped(_ordered(y, ly, batch + summed + cols), (*size(batch), n_sum, n_cols))
    out = batch + rows + cols
    return shaped(contract(a, b), size(out)), "".join(out)


def _drop_ones(x: Any, lx: str, ly: str, sizes: dict[str, int]) -> tuple[Any, str]:
    gone = [k for k, c in enumerate(lx) if c in ly and x.shape[k] == 1 and sizes[c] != 1]
    if not gone:
        return x, lx
    return shaped(x, [n for k, n in enumerate(x.shape) if k not in gone]), "".join(c for k, c in enumerate(lx) if k not in gone)


def _ordered(x: Any, labels: str, order: list[str]) -> Any:
    dims = tuple([labels.index(c) for c in order])
    return x if dims == tuple(range(len(dims))) else permute(x, dims=dims)


def _aligned(x: Any, labels: str, order: list[str]) -> Any:
    """``x`` with its labels in ``order`` and size 1 for those that it lacks."""
    x = _ordered(x, labels, [c for c in order if c in labels])
    it = iter(x.shape)
    return shaped(x, [next(it) if c in labels else 1 for c in order])


def evaluate(equation: Any, operands: tuple[Any, ...]) -> Any:
    """The public function's work."""
    if not isinstance(equation, str):
        equation, found = _from_sublists((equation, *operands))
        operands = tuple(found)
    elif len(operands) == 1 and isinstance(operands[0], list | tuple):
        operands = tuple(operands[0])
    if not operands:
        raise ShapeError("einsum: expected at least one operand")
    values = list(promote(*operands)) if len(operands) > 1 else list(operands)
    shapes = tuple([tuple(x.shape) for x in values])
    terms, output, sizes = parse(equation, shapes)
    work = list(zip(values, terms))
    for step in _path(terms, output, shapes):
        chosen = [work[k] for k in step]
        work = [w for k, w in enumerate(work) if k not in step]
        while len(chosen) > 1:
            (x, lx), (y, ly), *rest = chosen
            needed = set(output).union(*[set(t) for _, t in rest], *[set(t) for _, t in work])
            chosen = [_pair(x, lx, y, ly, needed, sizes), *rest]
        work.append(chosen[0])
    while len(work) > 1:
        (x, lx), (y, ly), *rest = work
        work = [_pair(x, lx, y, ly, set(output).union(*[set(t) for _, t in rest]), sizes), *rest]
    x, labels = _simplify(*work[0], set(output))
    x = _ordered(x, labels, [c for c in output if c in labels])
    return spread_like(x, broadcast_shapes(tuple(x.shape), tuple([sizes[c] for c in output])))
