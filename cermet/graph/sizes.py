"""Sizes as letters: integers that stand for all sizes which lead to the same decisions.

Planning a program is ordinary Python over ints. Run with some of its ints replaced by `Size`s, the same Python plans for every value of
them at once: arithmetic gives formulas, and a comparison answers for the value at hand and is noted as a guard. Where all guards hold
again, so does the plan, with its numbers put in anew (see `cermet.lazy.template`).

A Size is no int, so nothing can read its value unseen: whatever needs a plain int (a range, a text, a float, a C function) asks
``__index__`` or its like, and that is noted as the guard that the Size equals its present value. A trace whose unknowns themselves would
be fixed so ends with `Refused`.
"""

from __future__ import annotations

import itertools
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from math import gcd
from operator import itemgetter
from typing import Any

from cermet.graph.formulas import LEAST, OPERATIONS, Formulas, Terms, value_of

__all__ = [
    "Coincidence",
    "Refused",
    "Size",
    "Trace",
    "at_least",
    "concrete",
    "has_letters",
    "presently",
    "private",
    "recipe",
    "tracing",
]

MOST_GUARDS = 20_000


class Refused(Exception):
    """The program can't be planned with letters; the text says where that showed."""


class Coincidence(Refused):
    """What is decided is true for the sizes at hand alone; for others the program may well be planned with letters."""


class _Local(threading.local):
    trace: Trace | None = None


_local = _Local()
_salts = itertools.count(1)


def tracing() -> Trace | None:
    """The trace under way in this thread."""
    return _local.trace


def private(name: str, shared: Any) -> Any:
    """The trace's own dict of that name while one is under way, else ``shared``: what is remembered between programs must hold no letters."""
    t = _local.trace
    return shared if t is None else t.caches.setdefault(name, type(shared)())


def concrete(x: Any) -> Any:
    """The present value of a Size, unnoticed; anything else as it is. For numbers that are computed again for each use of a plan."""
    return x.value if type(x) is Size else x


def has_letters(x: Any) -> bool:
    """Whether a value, or what is in a tuple or dataclass, is a Size."""
    kind = type(x)
    if kind is Size:
        return True
    if kind is tuple:
        return any(map(has_letters, x))
    names = _fields_of(kind)
    return bool(names) and any(has_letters(getattr(x, name)) for name in names)


_field_names: dict[type, tuple[str, ...]] = {}


def _fields_of(kind: type) -> tuple[str, ...]:
    """Names of a dataclass's fields; none of anything else."""
    found = _field_names.get(kind)
    if found is None:
        found = _field_names[kind] = tuple([f.name for f in fields(kind)]) if is_dataclass(kind) else ()
    return found


def recipe(x: Any, place: Callable[[Any], int]) -> Callable[[Sequence[int]], Any]:
    """A function from numbers to ``x`` with numbers in place of its Sizes; ``place``: which number stands for a Size."""
    kind = type(x)
    if kind is Size:
        return itemgetter(place(x))
    if not has_letters(x):
        return lambda numbers: x
    if kind is tuple:
        parts = [recipe(e, place) for e in x]
        return lambda numbers: tuple([p(numbers) for p in parts])
    named = [recipe(getattr(x, name), place) for name in _fields_of(kind)]
    return lambda numbers: kind(*[p(numbers) for p in named])


def presently(x: Any) -> Any:
    """A value with the present values of the Sizes in it, unnoticed."""
    found: list[int] = []

    def place(size: Size) -> int:
        found.append(size.value)
        return len(found) - 1

    return recipe(x, place)(found)


def at_least(x: Any, low: int) -> Any:
    """``max(x, low)`` that decides nothing: for numbers that are handed on, not for those that shape code."""
    if type(x) is not Size:
        return max(x, low)
    if x.low is not None and x.low >= low:
        return x
    return x.trace.atom("max", x, low)


class Size:
    """A formula over the trace's unknowns, and its present value. Made by a `Trace`; equal formulas are one object."""

    __slots__ = ("code", "high", "low", "memo", "terms", "trace", "value")

    def __init__(self, trace: Trace, terms: Terms, value: int, low: int | None, high: int | None) -> None:
        self.trace = trace
        self.terms = terms
        self.value = value
        self.low = low  # bounds that hold whatever the unknowns are
        self.high = high
        self.code = hash((trace.salt, terms))
        self.memo: dict[Any, Any] = {}

    # Equal hashes need not mean equal values here: the meaning of == is that of the values, guarded.
    def __hash__(self) -> int:
        return self.code

    # -- arithmetic ------------------------------------------------------------------------------------------------

    def __add__(self, other: Any) -> Any:
        return _remembered("+", self, other, _add)

    def __radd__(self, other: Any) -> Any:
        return _remembered("+", self, other, _add)

    def __sub__(self, other: Any) -> Any:
        return _remembered("-", self, other, _subtract)

    def __rsub__(self, other: Any) -> Any:
        return _remembered("r-", self, other, _subtract_from)

    def __mul__(self, other: Any) -> Any:
        return _remembered("*", self, other, _multiply)

    def __rmul__(self, other: Any) -> Any:
        return _remembered("*", self, other, _multiply)

    def __floordiv__(self, other: Any) -> Any:
        return _remembered("//", self, other, _divide)

    def __rfloordiv__(self, other: Any) -> Any:
        return _remembered("r//", self, other, lambda a, b: _divide(b, a))

    def __mod__(self, other: Any) -> Any:
        return _remembered("%", self, other, _rest)

    def __rmod__(self, other: Any) -> Any:
        return _remembered("r%", self, other, lambda a, b: _rest(b, a))

    def __divmod__(self, other: Any) -> Any:
        return self // other, self % other

    def __rdivmod__(self, other: Any) -> Any:
        return other // self, other % self

    def __neg__(self) -> Any:
        return self * -1

    def __pos__(self) -> Any:
        return self

    def __abs__(self) -> Any:
        return self * -1 if self < 0 else self

    # -- comparison ------------------------------------------------------------------------------------------------

    def __eq__(self, other: object) -> Any:
        if self is other:
            return True
        return _remembered("==", self, other, _equal)

    def __ne__(self, other: object) -> Any:
        if self is other:
            return False
        found = _remembered("==", self, other, _equal)
        return found if found is NotImplemented else not found

    def __lt__(self, other: Any) -> Any:
        return _remembered("<", self, other, lambda a, b: _negative(a - b))

    def __le__(self, other: Any) -> Any:
        return _remembered("<=", self, other, lambda a, b: not _negative(b - a))

    def __gt__(self, other: Any) -> Any:
        return _remembered(">", self, other, lambda a, b: _negative(b - a))

    def __ge__(self, other: Any) -> Any:
        return _remembered(">=", self, other, lambda a, b: not _negative(a - b))

    def __bool__(self) -> bool:
        return bool(self != 0)

    # -- the ways out ----------------------------------------------------------------------------------------------

    def __index__(self) -> int:
        self.trace.fix(self)
        return self.value

    __int__ = __index__
    __trunc__ = __index__

    def __float__(self) -> float:
        return float(self.__index__())

    def __truediv__(self, other: Any) -> Any:
        return self.__index__() / other

    def __rtruediv__(self, other: Any) -> Any:
        return other / self.__index__()

    def __pow__(self, other: Any) -> Any:
        return self.__index__() ** other

    def __rpow__(self, other: Any) -> Any:
        return other ** self.__index__()

    def __lshift__(self, other: Any) -> Any:
        return self * (1 << other)

    def __rshift__(self, other: Any) -> Any:
        return self // (1 << other)

    def __and__(self, other: Any) -> Any:
        return self.__index__() & other

    def __or__(self, other: Any) -> Any:
        return self.__index__() | other

    def bit_length(self) -> int:
        """As of int."""
        return self.__index__().bit_length()

    def __repr__(self) -> str:
        return repr(self.__index__())

    def __format__(self, spec: str) -> str:
        return format(self.__index__(), spec)

    def __reduce__(self) -> Any:
        return (int, (self.__index__(),))


def _remembered(op: str, a: Size, b: Any, compute: Callable[[Any, Any], Any]) -> Any:
    kind = type(b)
    if kind is int:
        key: Any = (op, b)
    elif kind is Size:
        if b.trace is not a.trace:
            return NotImplemented
        key = (op, id(b), kind)
    elif isinstance(b, int) and not isinstance(b, bool):
        b = int(b)
        key = (op, b)
    elif kind is bool:
        return _remembered(op, a, int(b), compute)
    elif kind is float:
        return _with_float(op, a, b)
    else:
        return NotImplemented
    found = a.memo.get(key)
    if found is None:
        found = a.memo[key] = compute(a, b)
    return found


def _with_float(op: str, a: Size, b: float) -> Any:
    """Arithmetic with floats leaves the integers; comparisons with whole ones, and with infinities, need not."""
    if op in ("==", "<", "<=", ">", ">="):
        if b == int(b) if abs(b) != float("inf") and b == b else False:
            return _FLOAT[op](a, int(b))
        if b != b or abs(b) == float("inf"):
            return _FLOAT[op](0, b)
    n = a.__index__()
    return {"+": lambda: n + b, "-": lambda: n - b, "r-": lambda: b - n, "*": lambda: n * b, "//": lambda: n // b,
            "r//": lambda: b // n, "%": lambda: n % b, "r%": lambda: b % n}.get(op, lambda: _FLOAT[op](n, b))()  # fmt: skip


_FLOAT: dict[str, Callable[[Any, Any], bool]] = {
    "==": lambda x, y: bool(x == y), "<": lambda x, y: bool(x < y), "<=": lambda x, y: bool(x <= y),
    ">": lambda x, y: bool(x > y), ">=": lambda x, y: bool(x >= y),
}  # fmt: skip


def _terms(x: Any) -> Terms:
    return x.terms if type(x) is Size else (((), x),) if x else ()


def _add(a: Size, b: Any) -> Any:
    out = dict(a.terms)
    for m, c in _terms(b):
        out[m] = out.get(m, 0) + c
    return a.trace.make(out)


def _subtract(a: Size, b: Any) -> Any:
    out = dict(a.terms)
    for m, c in _terms(b):
        out[m] = out.get(m, 0) - c
    return a.trace.make(out)


def _subtract_from(a: Size, b: int) -> Any:
    return _add(a * -1, b)


def _multiply(a: Size, b: Any) -> Any:
    if type(b) is int:
        return a if b == 1 else a.trace.make({m: c * b for m, c in a.terms})
    out: dict[tuple[int, ...], int] = {}
    for m, c in a.terms:
        for n, d in b.terms:
            product = tuple(sorted(m + n)) if m and n else m or n
            out[product] = out.get(product, 0) + c * d
    return a.trace.make(out)


def _divide(a: Any, b: Any) -> Any:
    """Floor division, in the simplest form found: what divides without rest comes out, common factors go."""
    trace: Trace = a.trace if type(a) is Size else b.trace
    if type(b) is Size:
        return _divide_by_size(trace, a, b)
    if b == 0:
        raise ZeroDivisionError("integer division or modulo by zero")
    if b < 0:
        return _divide(a * -1, -b)
    if b == 1:
        return a
    whole: dict[tuple[int, ...], int] = {}
    rest: dict[tuple[int, ...], int] = {}
    constant = 0
    for m, c in a.terms:
        if m == ():
            constant = c
        elif c % b == 0:
            whole[m] = c // b
        else:
            rest[m] = c
    if not rest:
        whole[()] = constant // b
        return trace.make(whole)
    common = b
    for c in rest.values():
        common = gcd(common, c)
    if common > 1:  # floor((g x + c) / (g b)) is floor((x + floor(c / g)) / b)
        rest = {m: c // common for m, c in rest.items()}
        constant, b = constant // common, b // common
    q, constant = divmod(constant, b)
    whole[()] = q
    if all(c < 0 for c in rest.values()):  # -ceil(-x / b), for the sake of the bounds
        positive = {m: -c for m, c in rest.items()}
        positive[()] = b - 1 - constant
        part = trace.make(positive) // b * -1
    else:
        rest[()] = constant
        inner = trace.make(rest)
        part = 0 if inner.low is not None and inner.low >= 0 and inner.high is not None and inner.high < b else trace.atom(
            "//", inner, b)  # fmt: skip
    return trace.make(whole) + part


def _divide_by_size(trace: Trace, a: Any, b: Size) -> Any:
    if b == 0:
        raise ZeroDivisionError("integer division or modulo by zero")
    if a is b:
        return 1
    whole: dict[tuple[int, ...], int] = {}
    rest = a
    if len(b.terms) == 1 and type(a) is Size:
        (monomial, factor), left = b.terms[0], {}
        for m, c in a.terms:
            shorter = _without(m, monomial)
            if shorter is not None and c % factor == 0:
                whole[shorter] = c // factor
            else:
                left[m] = c
        rest = trace.make(left)
    out = trace.make(whole)
    if type(rest) is int and (rest == 0 or (rest > 0 and b.low is not None and rest < b.low)):
        return out
    return trace.atom("//", rest, b) + out


def _without(m: tuple[int, ...], part: tuple[int, ...]) -> tuple[int, ...] | None:
    left = list(m)
    for v in part:
        if v not in left:
            return None
        left.remove(v)
    return tuple(left)


def _rest(a: Any, b: Any) -> Any:
    q = a // b
    simple = a - q * b
    if type(simple) is int or type(b) is Size or b < 0:
        return simple
    if type(simple) is Size and simple.low is not None and simple.low >= 0:
        return simple
    return a.trace.atom("%", a, b)


def _equal(a: Size, b: Any) -> bool:
    d = a - b
    if type(d) is int:
        return d == 0
    if (d.low is not None and d.low > 0) or (d.high is not None and d.high < 0):
        return False
    d.trace.guard(d, "==" if d.value == 0 else "!=")
    return bool(d.value == 0)


def _negative(d: Any) -> bool:
    if type(d) is int:
        return d < 0
    if d.low is not None and d.low >= 0:
        return False
    if d.high is not None and d.high < 0:
        return True
    d.trace.guard(d, "<" if d.value < 0 else ">=")
    return bool(d.value < 0)


class Trace:
    """One planning with letters.

    Attributes:
        unknowns: Sizes to put in for the numbers that differ. caches: dicts that take the place of shared ones meanwhile (see `private`).
    """

    def __init__(self, values: Sequence[int]) -> None:
        self.salt = next(_salts)
        self.count = len(values)
        self.values = list(values)  # of unknowns and atoms
        self.bounds: list[tuple[int | None, int | None]] = [(LEAST if v >= LEAST else None, None) for v in values]
        self.atoms: list[tuple[str, Any, Any]] = []  # how the values after the unknowns are computed
        self.guards: dict[tuple[Terms, str], Size] = {}
        self.caches: dict[str, Any] = {}
        self._sizes: dict[Terms, Size] = {}
        self._atoms: dict[Any, Size] = {}
        self.unknowns: list[Any] = [self.make({(k,): 1}) for k in range(self.count)]

    @contextmanager
    def active(self) -> Any:
        """Make this the thread's trace."""
        _local.trace = self
        try:
            yield self
        finally:
            _local.trace = None

    def make(self, terms: dict[tuple[int, ...], int]) -> Any:
        """The Size of a polynomial, or an int where nothing unknown is left."""
        key = tuple(sorted([(m, c) for m, c in terms.items() if c]))
        if not key:
            return 0
        if len(key) == 1 and key[0][0] == ():
            return key[0][1]
        found = self._sizes.get(key)
        if found is None:
            value = value_of(key, self.values)
            found = self._sizes[key] = Size(self, key, value, self._bound(key, 0), self._bound(key, 1))
        return found

    def _bound(self, terms: Terms, side: int) -> int | None:
        """A bound of the polynomial's value, from those of its factors; side 0: from below, 1: from above."""
        total = 0
        for m, c in terms:
            product = c
            for v in m:
                low, high = self.bounds[v]
                if low is None or low < 0:
                    return None
                b = low if (c > 0) == (side == 0) else high
                if b is None:
                    return None
                product *= b
            total += product
        return total

    def atom(self, op: str, a: Any, b: Any) -> Any:
        """A quotient, remainder or maximum that is no polynomial: a letter of its own."""
        key = (op, _terms(a), _terms(b))
        found = self._atoms.get(key)
        if found is None:
            x, y = concrete(a), concrete(b)
            low: int | None = None
            high: int | None = None
            if op == "max":
                low, high = b, None
            elif op == "%":
                low, high = 0, b - 1
            elif type(b) is int:
                la, ha = (a.low, a.high) if type(a) is Size else (a, a)
                low, high = (None if la is None else la // b), (None if ha is None else ha // b)
            elif b.low is not None and b.low > 0 and (a >= 0 if type(a) is int else a.low is not None and a.low >= 0):
                low = 0
                high = a // b.low if type(a) is int else None
            self.atoms.append((op, _terms(a), _terms(b)))
            self.values.append(OPERATIONS[op](x, y))
            self.bounds.append((low, high))
            found = self._atoms[key] = self.make({(len(self.values) - 1,): 1})
        return found

    def guard(self, d: Size, relation: str) -> None:
        """Note that ``d relation 0`` decided something."""
        if relation == "==" and self._fixes(d):
            raise Coincidence(f"a size is compared with what it happens to equal, {_place()}")
        if len(self.guards) >= MOST_GUARDS:
            raise Refused("too many decisions depend on sizes")
        self.guards[d.terms, relation] = d

    def _fixes(self, d: Size) -> bool:
        """Whether ``d == 0`` leaves one value only to an unknown."""
        letters = {v for m, _ in d.terms for v in m}
        return len(letters) == 1 and letters.pop() < self.count

    def fix(self, x: Size) -> None:
        """Note that the plan depends on the value of ``x`` itself."""
        d = x - x.value
        if type(d) is int:
            return
        if self._fixes(d):
            raise Refused(f"the value of a size is needed, {_place()}")
        self.guard(d, "==")

    def formulas(self, wanted: Sequence[Any]) -> Formulas:
        """The guards, and the numbers wanted (Sizes or ints), as functions of the unknowns."""
        bounds = [v >= LEAST for v in self.values[: self.count]]
        return Formulas(bounds, self.atoms, list(self.guards), [_terms(w) for w in wanted])

    def close(self) -> None:
        """Let go of all that was remembered; the Sizes are of no more use."""
        for size in self._sizes.values():
            size.memo.clear()
        self._sizes.clear()
        self._atoms.clear()
        self.caches.clear()


def _place() -> str:
    """The nearest line outside this file."""
    f: Any = sys._getframe(1)
    while f is not None and f.f_code.co_filename == __file__:
        f = f.f_back
    return "" if f is None else f"at {f.f_code.co_filename}:{f.f_lineno} in {f.f_code.co_name}"
