"""The matrices of Winograd's convolution, and their emission as straight-line vector code.

``F(m, r)`` computes m neighbouring outputs of a correlation with r taps by ``m + r - 1`` products instead of ``m * r``:

    Y = A^T [(G g) * (B^T d)]            in one dimension,
    Y = A^T [(G g G^T) * (B^T d B^T^T)] A      nested in two

(Winograd, "Arithmetic Complexity of Computations", 1980; Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks",
2016). The matrices follow from the points at which polynomials are evaluated, by the Cook-Toom construction. Points decide the
rounding errors: opposite pairs of about 1 in size, exact in binary, keep F(4, 3) within three times the error of a direct sum,
where the usual 0, ±1, ±2 lose a decimal digit (figures in docs/notes/kernels.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import Any

__all__ = ["Matrix", "Transforms", "apply", "apply_2d", "transforms", "transposed"]

Matrix = tuple[tuple[Fraction, ...], ...]
_POINTS = {2: (0, 1, -1), 4: (0, Fraction(3, 4), Fraction(-3, 4), Fraction(3, 2), Fraction(-3, 2))}


@dataclass(frozen=True)
class Transforms:
    """The matrices of F(outputs, taps); one of the points is infinity.

    Attributes:
        outputs, taps: m and r.
        data: B^T, (m + r - 1) square.
        weights: G, (m + r - 1) x r.
        result: A^T, m x (m + r - 1).
    """

    outputs: int
    taps: int
    data: Matrix
    weights: Matrix
    result: Matrix

    @property
    def points(self) -> int:
        """Products in one dimension."""
        return self.outputs + self.taps - 1


@cache
def transforms(outputs: int, taps: int = 3) -> Transforms:
    """F(outputs, taps) for 2 or 4 outputs and three taps."""
    at = [Fraction(p) for p in _POINTS[outputs]]
    n = len(at) + 1
    assert n == outputs + taps - 1
    data, weights = [], []
    for i, p in enumerate(at):
        others = at[:i] + at[i + 1 :]
        scale = Fraction(1)
        for q in others:
            scale *= p - q
        data.append((*_polynomial(others), Fraction(0)))
        weights.append(tuple(p**j / scale for j in range(taps)))
    data.append(tuple(_polynomial(at)))
    weights.append(tuple(Fraction(int(j == taps - 1)) for j in range(taps)))
    result = [(*(p**i for p in at), Fraction(int(i == outputs - 1))) for i in range(outputs)]
    return Transforms(outputs, taps, tuple(data), tuple(weights), tuple(result))


def _polynomial(roots: Sequence[Fraction]) -> list[Fraction]:
    """Coefficients, lowest first, of the monic polynomial with these roots."""
    found = [Fraction(1)]
    for root in roots:
        shifted = [Fraction(0), *found]
        found = [s - root * f for s, f in zip(shifted, [*found, Fraction(0)], strict=True)]
    return found


def transposed(matrix: Matrix) -> Matrix:
    """Rows as columns."""
    return tuple(zip(*matrix, strict=True))


def apply(k: Any, matrix: Matrix, values: Sequence[Any]) -> list[Any]:
    """``matrix @ values`` for vectors ``values``.

    Two rows that agree in some columns and are opposite in the others (points p and -p make such) share both partial sums.
    """
    out: list[Any] = [None] * len(matrix)
    for i, row in enumerate(matrix):
        if out[i] is not None:
            continue
        for j in range(i + 1, len(matrix)):
            other = matrix[j]
            if out[j] is None and all(abs(a) == abs(b) for a, b in zip(row, other, strict=True)):
                same = [a if a == b else Fraction(0) for a, b in zip(row, other, strict=True)]
                opposite = [a if a != b else Fraction(0) for a, b in zip(row, other, strict=True)]
                if any(same) and any(opposite):
                    even, odd = _combined(k, same, values), _combined(k, opposite, values)
                    out[i], out[j] = k.x.fadd(even, odd), k.x.fsub(even, odd)
                    break
        else:
            out[i] = _combined(k, row, values)
    return out


def _combined(k: Any, row: Sequence[Fraction], values: Sequence[Any]) -> Any:
    """One weighted sum; the terms with a factor of 1 first, then fused multiply-adds."""
    terms = sorted(((c, v) for c, v in zip(row, values, strict=True) if c), key=lambda t: (abs(t[0]) != 1, t[0] < 0))
    if not terms:
        return k.x.fsub(values[0], values[0])
    (first, total), *rest = terms
    if first != 1:
        total = k.x.fneg(total) if first == -1 else k.x.fmul(total, k.x.f(float(first), total))
    for c, v in rest:
        if c == 1:
            total = k.x.fadd(total, v)
        elif c == -1:
            total = k.x.fsub(total, v)
        else:
            total = k.mul_add(v, k.x.f(float(c), v), total)
    return total


def columns_paired(matrix: Matrix) -> list[tuple[int, int]]:
    """Pairs of columns that are equal in some rows and opposite in all others."""
    columns = transposed(matrix)
    found: list[tuple[int, int]] = []
    used: set[int] = set()
    for i, a in enumerate(columns):
        for j in range(i + 1, len(columns)):
            b = columns[j]
            if not used & {i, j} and a != b and all(abs(x) == abs(y) for x, y in zip(a, b, strict=True)):
                found.append((i, j))
                used |= {i, j}
    return found


def apply_paired(k: Any, matrix: Matrix, values: Sequence[Any]) -> list[Any]:
    """As `apply`, for a matrix with paired columns: each row needs the sum or the difference of a pair's values."""
    pairs = columns_paired(matrix)
    taken = {i for pair in pairs for i in pair}
    sums = [(k.x.fadd(values[i], values[j]), k.x.fsub(values[i], values[j])) for i, j in pairs]
    out = []
    for row in matrix:
        terms, factors = [], []
        for (i, j), (plus, minus) in zip(pairs, sums, strict=True):
            terms.append(plus if row[i] == row[j] else minus)
            factors.append(row[i])
        for i, value in enumerate(values):
            if i not in taken:
                terms.append(value)
                factors.append(row[i])
        out.append(_combined(k, factors, terms))
    return out


def apply_2d(k: Any, matrix: Matrix, load: Callable[[int, int], Any]) -> Iterator[list[Any]]:
    """The columns of ``matrix @ D @ matrix^T``, one after the other, where ``load(i, j)`` is D's element.

    Written in the order of use, so that few values wait in registers: D is loaded row by row, results leave column by column.
    """
    one = apply_paired if columns_paired(matrix) else apply
    n = len(matrix[0])
    rows = [one(k, matrix, [load(i, j) for j in range(n)]) for i in range(n)]
    for j in range(len(matrix)):
        yield one(k, matrix, [row[j] for row in rows])
