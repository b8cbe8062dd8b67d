"""The Python values that a function can reach, and whether they are still what they were.

A replay runs no Python, so what the function read in Python (a flag of a module, an option, a global number) must be the same as when it
was captured. `Reach` walks from a function through its closure, the globals and attributes that its code names, modules, optimizers and
containers, and remembers what it found there. Values are compared by identity first, so a look costs some tens of nanoseconds an object.
"""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Callable, Iterator
from operator import is_, itemgetter
from typing import Any

from cermet.devices import Device
from cermet.dtypes import DType
from cermet.frontend.core import TensorBase
from cermet.nn.module import Module
from cermet.nn.state import HOOK_TABLES
from cermet.optim.optimizer import Optimizer
from cermet.random import Generator

__all__ = ["Check", "Reach", "same", "simple"]

_SIMPLE = (bool, int, float, complex, str, bytes, type(None), DType, Device)
_TABLES = ("_parameters", "_buffers", "_modules")
_ALWAYS = ("training", "_hooked")
_LONG = 256  # items of a container from which on only its identity and length are watched


def simple(x: Any) -> bool:
    """Whether a value is compared by equality."""
    return isinstance(x, _SIMPLE) or (type(x) is tuple and all(map(simple, x)))


def same(a: Any, b: Any) -> bool:
    """Whether two values are one, or equal plain values of one type (NaN equals itself)."""
    return a is b or (type(a) is type(b) and simple(a) and (a == b or (a != a and b != b)))


def _length(x: Any) -> tuple[int]:
    return (len(x),)


def _values(x: Any) -> tuple[Any, ...]:
    return tuple(x.values())


def _contents(x: Any) -> tuple[Any, ...]:
    return (x.cell_contents,)


class Check:
    """Some values of one object: ``fetch(obj)`` gave ``expected``, named by ``names`` for messages."""

    __slots__ = ("expected", "fetch", "label", "names", "obj")

    def __init__(self, obj: Any, fetch: Callable[[Any], tuple[Any, ...]], label: str, names: tuple[Any, ...] = ()) -> None:
        self.obj = obj
        self.fetch = fetch
        self.label = label
        self.names = names
        self.expected = fetch(obj)

    def holds(self) -> bool:
        """Whether the values are still the same."""
        try:
            got = self.fetch(self.obj)
        except (KeyError, ValueError):
            return False
        expected = self.expected
        if len(got) != len(expected):
            return False
        if all(map(is_, got, expected)):
            return True
        if all(map(same, got, expected)):
            self.expected = got
            return True
        return False

    def difference(self) -> str:
        """What is no longer the same, in words; empty if nothing."""
        if self.holds():
            return ""
        try:
            got = self.fetch(self.obj)
        except (KeyError, ValueError):
            return f"{self.label} lost an entry"
        for k, (a, b) in enumerate(zip(self.expected, got, strict=False)):
            if not same(a, b):
                name = self.names[k] if k < len(self.names) else ""
                path = f"{self.label}{'.' if self.label and name else ''}{name}"
                return f"{path} changed from {_short(a)} to {_short(b)}"
        return f"{self.label} has {len(got)} entries instead of {len(self.expected)}"


def _short(x: Any) -> str:
    if simple(x):
        text = repr(x)
        return text if len(text) < 60 else text[:57] + "..."
    return f"a {type(x).__name__}" if not isinstance(x, TensorBase) else f"a tensor of shape {list(x._node.meta.shape)}"


class Reach:
    """What was found from ``roots``.

    Attributes:
        checks: what must stay the same. optimizers: those met; their checks are made by `groups_of`, once it is known which options replays
            read anew.
    """

    def __init__(self, roots: list[tuple[Any, str]]) -> None:
        self.names: set[str] = set()
        self.dynamic = False
        before = -1
        while before != len(self.names):  # attributes count where some code that was met names them; a walk may meet more code
            before = len(self.names)
            self.checks: list[Check] = []
            self.optimizers: list[Optimizer] = []
            self._seen: dict[int, Any] = {}
            self._walk(roots)

    def _walk(self, roots: list[tuple[Any, str]]) -> None:
        stack = list(reversed(roots))
        while stack:
            x, label = stack.pop()
            if id(x) in self._seen or simple(x) or isinstance(x, TensorBase):
                continue
            self._seen[id(x)] = x
            stack.extend(self._inside(x, label))

    def _inside(self, x: Any, label: str) -> Iterator[tuple[Any, str]]:
        if isinstance(x, types.FunctionType):
            yield from self._function(x, label)
        elif isinstance(x, types.MethodType):
            yield x.__func__, label
            yield x.__self__, "self"
        elif isinstance(x, functools.partial):
            yield from ((x.func, label), (x.args, f"{label}.args"), (x.keywords, f"{label}.keywords"))
        elif isinstance(x, Module):
            yield from self._module(x, label)
        elif isinstance(x, Optimizer):
            self.optimizers.append(x)
        elif isinstance(x, list | tuple):
            yield from self._sequence(x, label)
        elif isinstance(x, dict):
            yield from self._dict(x, label)
        elif isinstance(x, types.ModuleType):
            if _ours(getattr(x, "__name__", ""), getattr(x, "__file__", "")):
                yield from self._named(vars(x), label)
        elif isinstance(x, type):
            if _ours(x.__module__):
                yield from self._class(x, label)
        elif isinstance(x, Generator) or not _ours(type(x).__module__):
            return
        else:
            yield from self._class(type(x), label)
            if hasattr(x, "__dict__"):
                yield from self._named(vars(x), label)

    def _see(self, d: dict[Any, Any], names: tuple[Any, ...], label: str) -> Iterator[tuple[Any, str]]:
        if not names:
            return
        padded = names if len(names) > 1 else (names[0], names[0])
        self.checks.append(Check(d, itemgetter(*padded), label, names))
        for name in names:
            yield d[name], f"{label}.{name}" if label else str(name)

    def _named(self, d: dict[str, Any], label: str) -> Iterator[tuple[Any, str]]:
        yield from self._see(d, tuple([k for k in d if self.dynamic or k in self.names]), label)

    def _function(self, f: types.FunctionType, label: str) -> Iterator[tuple[Any, str]]:
        if not _ours(f.__module__ or "", f.__code__.co_filename):
            if f.__closure__:  # a library's wrapper, such as no_grad's, around a function of the user's
                yield from [(c.cell_contents, label) for c in f.__closure__ if _filled(c) and callable(c.cell_contents)]
            return
        names = _names_of(f.__code__)
        self.names |= names
        self.dynamic = self.dynamic or bool(names & {"getattr", "vars", "__dict__", "eval"})
        for name, cell in zip(f.__code__.co_freevars, f.__closure__ or (), strict=True):
            if _filled(cell):
                self.checks.append(Check(cell, _contents, "", (name,)))
                yield cell.cell_contents, name
        yield from self._see(f.__globals__, tuple([n for n in sorted(names) if n in f.__globals__]), "")
        for defaults in (f.__defaults__, f.__kwdefaults__):
            if defaults:
                yield defaults, f"the defaults of {f.__name__}"

    def _class(self, cls: type, label: str) -> Iterator[tuple[Any, str]]:
        for base in cls.__mro__:
            if not _ours(base.__module__):
                continue
            for name, value in list(vars(base).items()):
                if isinstance(value, staticmethod | classmethod):
                    value = value.__func__
                elif isinstance(value, property):
                    value = value.fget
                if isinstance(value, types.FunctionType):
                    if name in self.names or name in ("__call__", "forward", "__enter__", "__exit__", "__getitem__"):
                        yield value, f"{label}.{name}"
                elif simple(value) and name in self.names:
                    yield from self._see(_ClassDict(base), (name,), label)  # type: ignore[arg-type]

    def _module(self, m: Module, label: str) -> Iterator[tuple[Any, str]]:
        fields = m.__dict__
        users = _ours(type(m).__module__)
        if users:
            yield from self._class(type(m), label)
        names = [
            k
            for k in fields
            if k not in _TABLES and k not in HOOK_TABLES and (not users or self.dynamic or k in self.names or k in _ALWAYS)
        ]
        yield from self._see(fields, tuple(names), label)
        for name in _TABLES:
            table = fields[name]
            if table:
                self.checks.append(Check(table, _values, label, tuple(table)))
                yield from [(child, f"{label}.{key}") for key, child in table.items()]
        if m._hooked:
            for name in HOOK_TABLES:
                hooks = fields[name]
                self.checks.append(Check(hooks, _values, f"{label}.{name}"))
                yield from [(hook, label) for hook in hooks.values()]

    def _sequence(self, x: Any, label: str) -> Iterator[tuple[Any, str]]:
        if isinstance(x, list):
            self.checks.append(Check(x, tuple if len(x) <= _LONG else _length, label, tuple(range(len(x)))))
        if len(x) <= _LONG:
            yield from [(v, f"{label}[{k}]") for k, v in enumerate(x)]

    def _dict(self, x: dict[Any, Any], label: str) -> Iterator[tuple[Any, str]]:
        if len(x) > _LONG:
            self.checks.append(Check(x, _length, label))
            return
        self.checks.append(Check(x, _values, label, tuple(x)))
        yield from [(v, f"{label}[{k!r}]") for k, v in list(x.items())]

    def failed(self) -> str:
        """The first difference to what was found, in words; empty if there is none."""
        for check in self.checks:
            if not check.holds():
                return check.difference()
        return ""


class _ClassDict(dict[str, Any]):
    """Attributes of a class, read as they are now."""

    def __init__(self, cls: type) -> None:
        super().__init__()
        self.cls = cls

    def __getitem__(self, name: str) -> Any:
        return vars(self.cls)[name]


def optimizer_checks(optimizer: Optimizer, read_anew: bool) -> list[Check]:
    """What must stay the same in an optimizer; with ``read_anew`` its options that are numbers may change."""
    name = type(optimizer).__name__
    groups = optimizer.param_groups
    fields = ("param_groups", "state", "_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")
    checks = [Check(vars(optimizer), itemgetter(*fields), name, fields), Check(groups, tuple, f"{name}.param_groups")]
    for k, group in enumerate(groups):
        kept = [key for key, value in group.items() if not (read_anew and _numeric(value))]
        label = f"{name}.param_groups[{k}]"
        checks.append(Check(group, _length, label))
        checks.append(Check(group, itemgetter(*kept, "params"), label, tuple(kept)))
        checks.append(Check(group["params"], tuple, f"{label}['params']"))
        for value in (group[key] for key in kept):
            if isinstance(value, list) and value is not group["params"]:
                checks.append(Check(value, tuple, label))
    checks.append(Check(optimizer.state, _values, f"{name}.state"))
    for state in optimizer.state.values():
        if isinstance(state, dict):
            checks.append(Check(state, _values, f"{name}.state", tuple(state)))
    for hooks in (optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks):  # type: ignore[attr-defined]
        checks.append(Check(hooks, _values, f"the hooks of {name}"))
    return checks


def _numeric(value: Any) -> bool:
    if type(value) in (tuple, list):
        return bool(value) and all(type(v) in (int, float) for v in value)
    return type(value) in (int, float)


def _filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def _names_of(code: types.CodeType) -> set[str]:
    names = set(code.co_names)
    for const in code.co_consts:
        if isinstance(const, types.CodeType):
            names |= _names_of(const)
        elif isinstance(const, str) and const.isidentifier():
            names.add(const)  # getattr(x, "name")
    return names


@functools.lru_cache(maxsize=4096)
def _ours(module: str, file: str = "") -> bool:
    """Whether code of a module is the user's: neither this library's, Python's, nor an installed package's."""
    top = module.partition(".")[0]
    if top in ("cermet", "numpy", "ml_dtypes", "builtins") or (top in sys.stdlib_module_names and top != "__main__"):
        return False
    if not file:
        file = str(getattr(sys.modules.get(module), "__file__", "") or "")
    return "site-packages" not in file and "dist-packages" not in file
