"""The loops' dims: a group's domain cut into dims as finely as its indices ask, ordered by the strides of what it touches, and merged again
where every access allows it. Integers only."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from cermet.compiler.schedule.index import ZERO, Atom, Dim, Idx, NeedSplit, var

__all__ = ["Axes", "Class", "merge"]


class Axes:
    """The dims of a domain: per axis a list of extents, outer first.

    ``first`` is where each axis begins, where they are a part of the domain only.
    """

    def __init__(self, domain: Sequence[int], first: Sequence[int] | None = None) -> None:
        self.extents: list[list[int]] = [[e] for e in domain]
        self.first = [0] * len(domain) if first is None else list(first)
        self.dims: list[list[Dim]] = []
        self._renew()

    def _renew(self) -> None:
        rank = 0
        self.dims = []
        for extents in self.extents:
            row = []
            for e in extents:
                row.append(Dim(e, rank))
                rank += 1
            self.dims.append(row)

    def split(self, need: NeedSplit) -> None:
        """Cut one dim into (extent / factor, factor); all dims are new afterwards."""
        for a, row in enumerate(self.dims):
            for k, d in enumerate(row):
                if d is need.dim:
                    self.extents[a][k : k + 1] = [d.extent // need.factor, need.factor]
                    self._renew()
                    return
        raise RuntimeError("a dim to split is not of this domain")

    def index(self) -> tuple[Idx, ...]:
        """The domain's index, an expression per axis."""
        out = []
        for row, first in zip(self.dims, self.first, strict=True):
            total = ZERO
            stride = 1
            for d in reversed(row):
                total = total.plus(var(d).times(stride))
                stride *= d.extent
            out.append(total.shifted(first))
        return tuple(out)


class Class:
    """Dims merged into one loop: outer to inner; the loop's variable counts through all of them."""

    __slots__ = ("dims", "extent")

    def __init__(self, dims: list[Dim]) -> None:
        self.dims = dims
        self.extent = 1
        for d in dims:
            self.extent *= d.extent

    @property
    def inner(self) -> Dim:
        return self.dims[-1]


def coefficient(x: Idx, dim: Dim) -> int:
    """The multiple of ``dim`` in an expression (0 where it is absent)."""
    for v, c in x.terms:
        if v is dim:
            return c
    return 0


def rigid_dims(expressions: Iterable[Idx]) -> set[Dim]:
    """Dims that occur in expressions that need them by themselves, and inside atoms."""
    out: set[Dim] = set()
    stack = list(expressions)
    while stack:
        for v, _ in stack.pop().terms:
            if isinstance(v, Atom):
                stack.append(v.inner)
            else:
                out.add(v)
    return out


def atoms_of(offsets: Iterable[Idx]) -> Iterable[Idx]:
    """The inner expressions of atoms in offsets."""
    for x in offsets:
        for v, _ in x.terms:
            if isinstance(v, Atom):
                yield v.inner


def ordered(dims: Sequence[Dim], offsets: Sequence[Idx], weights: Sequence[float]) -> list[Dim]:
    """The dims from outermost to innermost: by descending stride, accesses of greater weight first in the comparison."""
    ranked = [offsets[k] for k in sorted(range(len(offsets)), key=lambda k: -weights[k])]

    def stride(d: Dim) -> tuple[int, ...]:
        return tuple([-abs(coefficient(x, d)) for x in ranked if coefficient(x, d)][:3] or [0])

    return sorted([d for d in dims if d.extent != 1], key=lambda d: (stride(d), d.rank))


def merge(order: Sequence[Dim], offsets: Sequence[Idx], rigid: set[Dim]) -> list[Class]:
    """Merge neighbours in ``order`` (outer to inner) that every offset strides through as one."""
    out: list[Class] = []
    for d in order:
        if out:
            last = out[-1].inner
            free = d not in rigid and last not in rigid
            if free and all(coefficient(x, last) == coefficient(x, d) * d.extent for x in offsets):
                out[-1] = Class([*out[-1].dims, d])
                continue
        out.append(Class([d]))
    return out
