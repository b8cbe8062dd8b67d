"""Index expressions: where an element of one value is found in another, as integer expressions of loop variables.

Almost all are affine (a constant plus multiples of variables); a reshape that cuts across a variable either asks for that variable to be
split (`NeedSplit`) or, where it does not divide, leaves a quotient or remainder atom. Knows integers only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["Atom", "Dim", "Idx", "NeedSplit", "delinearize", "linearize"]


class Dim:
    """A loop variable of a kernel's domain: values 0 .. extent-1."""

    __slots__ = ("extent", "rank")

    def __init__(self, extent: int, rank: int) -> None:
        self.extent = extent
        self.rank = rank  # order of creation: makes expressions canonical

    def __repr__(self) -> str:
        return f"i{self.rank}<{self.extent}"


class Atom:
    """``inner // n`` or ``inner % n`` where it could not be resolved."""

    __slots__ = ("extent", "inner", "n", "op", "rank")

    def __init__(self, op: str, inner: Idx, n: int) -> None:
        self.op = op
        self.inner = inner
        self.n = n
        self.extent = n if op == "mod" else inner.high // n + 1
        self.rank = (op, n, inner.key())

    def __repr__(self) -> str:
        return f"({self.inner} {'%' if self.op == 'mod' else '//'} {self.n})"


class NeedSplit(Exception):
    """A variable must be split into (quotient, remainder) by ``factor`` before an index can be affine."""

    def __init__(self, dim: Dim, factor: int) -> None:
        self.dim = dim
        self.factor = factor


def _rank(term: tuple[Any, int]) -> Any:
    r = term[0].rank
    return (0, r, ()) if isinstance(r, int) else (1, 0, r)


class Idx:
    """``const + sum(coef * variable)``; immutable. ``low`` and ``high`` bound its value."""

    __slots__ = ("_key", "const", "high", "low", "terms")

    def __init__(self, const: int, terms: tuple[tuple[Any, int], ...] = ()) -> None:
        self.const = const
        self.terms = terms
        low = high = const
        for v, c in terms:
            if c > 0:
                high += c * (v.extent - 1)
            else:
                low += c * (v.extent - 1)
        self.low = low
        self.high = high
        self._key: Any = None

    def key(self) -> Any:
        """Hashable identity of the expression."""
        if self._key is None:
            self._key = (self.const, tuple([(_rank(t), t[1]) for t in self.terms]))
        return self._key

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Idx) and self.key() == other.key()

    def __hash__(self) -> int:
        return hash(self.key())

    def plus(self, other: Idx) -> Idx:
        """Sum."""
        if not other.terms:
            return self if other.const == 0 else Idx(self.const + other.const, self.terms)
        if not self.terms and self.const == 0:
            return other
        return _make(self.const + other.const, [*self.terms, *other.terms])

    def times(self, n: int) -> Idx:
        """Product with an integer."""
        if n == 1:
            return self
        if n == 0:
            return ZERO
        return Idx(self.const * n, tuple([(v, c * n) for v, c in self.terms]))

    def shifted(self, n: int) -> Idx:
        """Sum with an integer."""
        return self if n == 0 else Idx(self.const + n, self.terms)

    def substitute(self, mapping: dict[Any, Idx]) -> Idx:
        """With variables replaced."""
        out = Idx(self.const)
        for v, c in self.terms:
            if isinstance(v, Atom):
                inner = v.inner.substitute(mapping)
                q, r = divmod_idx(inner, v.n, False)
                new = r if v.op == "mod" else q
            else:
                new = mapping.get(v) or Idx(0, ((v, 1),))
            out = out.plus(new.times(c))
        return out

    def __repr__(self) -> str:
        parts = [f"{c}*{v}" for v, c in self.terms]
        return " + ".join([*parts, str(self.const)] if self.const or not parts else parts)


ZERO = Idx(0)


def var(dim: Dim) -> Idx:
    """The variable itself; 0 where it has only one value."""
    return ZERO if dim.extent == 1 else Idx(0, ((dim, 1),))


def _make(const: int, terms: Sequence[tuple[Any, int]]) -> Idx:
    merged: dict[Any, tuple[Any, int]] = {}
    for v, c in terms:
        k = _rank((v, 1))
        found = merged.get(k)
        merged[k] = (v, c if found is None else found[1] + c)
    ordered = tuple([merged[k] for k in sorted(merged) if merged[k][1] != 0])
    return Idx(const, ordered)


def linearize(index: Sequence[Idx], shape: Sequence[int]) -> Idx:
    """Row-major position of an index."""
    out = ZERO
    stride = 1
    for i, size in zip(reversed(index), reversed(shape), strict=True):
        if size != 1:
            out = out.plus(i.times(stride))
        stride *= size
    return out


def delinearize(position: Idx, shape: Sequence[int], split: bool = True) -> tuple[Idx, ...]:
    """The index in ``shape`` of a row-major position that is within it.

    Raises:
        NeedSplit: where splitting a variable would make it affine (only with ``split``).
    """
    if 0 in shape:  # there is no element to find
        return (ZERO,) * len(shape)
    out: list[Idx] = []
    for k in range(len(shape) - 1, -1, -1):
        size = shape[k]
        if size == 1:
            out.append(ZERO)
            continue
        if k == 0 or all(s == 1 for s in shape[:k]):
            out.append(position)  # what is left is below size, the position being within the shape
            position = ZERO
            continue
        position, rest = divmod_idx(position, size, split)
        out.append(rest)
    return tuple(reversed(out))


def divmod_idx(x: Idx, n: int, split: bool = True) -> tuple[Idx, Idx]:
    """Quotient and remainder (floor) by a positive integer.

    Raises:
        NeedSplit: see `delinearize`.
    """
    if n == 1:
        return x, ZERO
    if x.low >= 0 and x.high < n:
        return ZERO, x
    high: list[tuple[Any, int]] = []
    low: list[tuple[Any, int]] = []
    for v, c in x.terms:
        (high if c % n == 0 else low).append((v, c))
    const_q, const_r = divmod(x.const, n)
    rest = Idx(const_r, tuple(low))
    if rest.low < 0 or rest.high >= n:
        whole, part = _widen(x, n)
        if whole is not None and part is not None:
            return whole, part
        if split:
            _ask_split(low, n)
        return _atoms(x, n)
    return Idx(const_q, tuple([(v, c // n) for v, c in high])), rest


def _widen(x: Idx, n: int) -> tuple[Idx | None, Idx | None]:
    """Move whole multiples of n out of the constant so that the remainder stays in range, where one shift does."""
    high = [(v, c) for v, c in x.terms if c % n == 0]
    low = [(v, c) for v, c in x.terms if c % n != 0]
    rest = Idx(x.const, tuple(low))
    q = rest.low // n
    if rest.high // n == q:
        return Idx(q, tuple([(v, c // n) for v, c in high])), rest.shifted(-q * n)
    return None, None


def _ask_split(low: list[tuple[Any, int]], n: int) -> None:
    for v, c in low:
        if type(v) is Dim and c > 0 and n % c == 0:  # a computed index can't be split
            factor = n // c
            if factor < v.extent and v.extent % factor == 0 and factor > 1:
                raise NeedSplit(v, factor)


def _atoms(x: Idx, n: int) -> tuple[Idx, Idx]:
    q, r = Atom("div", x, n), Atom("mod", x, n)
    return Idx(0, ((q, 1),)), Idx(0, ((r, 1),))
