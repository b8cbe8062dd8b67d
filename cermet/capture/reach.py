"""The Python values that a function can reach, and whether they are still what they were.

A replay runs no Python, so what the function read in Python (a flag of a module, an option, a global number) must be the same as when it
was captured. `Reach` walks from a function through its closure, the globals and attributes that its code names, modules, optimizers and
containers, and remembers what it found there. Values are compared by identity first, so a look costs some tens of nanoseconds an object.
"""

from __future__ import annotations

import dis
import functools
import sys
import types
from collections.abc import Callable, Iterator
from itertools import chain
from operator import is_
from typing import Any

from cermet.devices import Device
from cermet.dtypes import DType
from cermet.frontend.core import TensorBase
from cermet.nn.module import Module
from cermet.nn.state import HOOK_TABLES
from cermet.optim.optimizer import Optimizer
from cermet.random import Generator

__all__ = ["Check", "Guard", "Reach", "optimizer_checks"]

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


class Check:
    """Some values of one object that must stay the same.

    Args:
        kind: what is looked at: "items" (entries ``names`` of a dict), "there" (whether it has them), "values" (all of a dict), "list",
            "length", or "cell" (a closure's).
        label, names: for messages.
    """

    __slots__ = ("expected", "kind", "label", "names", "obj")

    def __init__(self, obj: Any, kind: str, label: str, names: tuple[Any, ...] = ()) -> None:
        self.obj = obj
        self.kind = kind
        self.label = label
        self.names = names
        self.expected = self.fetch()

    def fetch(self) -> tuple[Any, ...]:
        """The present values."""
        x = self.obj
        if self.kind == "items":
            return tuple([x[name] for name in self.names])
        if self.kind == "there":
            return tuple([name in x for name in self.names])
        if self.kind == "values":
            return tuple(x.values())
        if self.kind == "list":
            return tuple(x)
        return (len(x),) if self.kind == "length" else (x.cell_contents,)

    def difference(self) -> str:
        """What is no longer the same, in words; empty if nothing. Values that are equal to the old ones take their place."""
        try:
            got = self.fetch()
        except (KeyError, ValueError):
            return f"{self.label} lost an entry"
        for k, (a, b) in enumerate(zip(self.expected, got, strict=False)):
            if not same(a, b):
                name = self.names[k] if k < len(self.names) else ""
                path = f"{self.label}{'.' if self.label and name != '' else ''}{name}"
                return f"{path} changed from {_short(a)} to {_short(b)}"
        if len(got) != len(self.expected):
            return f"{self.label} has {len(got)} entries instead of {len(self.expected)}"
        self.expected = got
        return ""


class Guard:
    """Many checks as few loops in C: all values side by side, compared by identity."""

    def __init__(self, checks: list[Check]) -> None:
        self.checks = checks
        self.dicts = [c.obj for c in checks if c.kind == "values"]
        self.lists = [c.obj for c in checks if c.kind == "list"]
        space: dict[str, Any] = {}
        terms = []
        for c in checks:
            if c.kind in ("values", "list"):
                continue
            name = f"x{len(space)}"
            space[name] = c.obj
            if c.kind == "items":
                for key in c.names:
                    constant = f"x{len(space)}"
                    space[constant] = key
                    terms.append(f"{name}[{key!r}]" if type(key) is str else f"{name}[{constant}]")
            elif c.kind == "there":
                terms += [f"{key!r} in {name}" for key in c.names]
            else:
                terms.append(f"len({name})" if c.kind == "length" else f"{name}.cell_contents")
        exec(f"def look(): return ({', '.join(terms)}{',' if terms else ''})", space)
        self.version = 0
        self.look: Callable[[], tuple[Any, ...]] = space["look"]
        self._expect()

    def _expect(self) -> None:
        self.one = self.look()
        self.many = tuple(chain(chain.from_iterable(map(_dict_values, self.dicts)), chain.from_iterable(self.lists)))

    def holds(self) -> bool:
        """Whether everything is as it was."""
        try:
            if all(map(is_, self.look(), self.one)):
                many = self.many
                now = [*chain.from_iterable(map(_dict_values, self.dicts)), *chain.from_iterable(self.lists)]
                if len(now) == len(many) and all(map(is_, now, many)):
                    return True
        except (KeyError, ValueError):
            return False
        if self.why():
            return False
        self.version += 1  # equal values took the place of those that were there
        self._expect()
        return True

    def why(self) -> str:
        """What is no longer the same, in words; empty if nothing."""
        return next((d for c in self.checks if (d := c.difference())), "")


_dict_values = dict.values


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
        self.assigned: set[str] = set()
        self.tensors: dict[int, Any] = {}
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
            if isinstance(x, TensorBase):
                self.tensors[id(x)] = x
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
            self.tensors.update([(id(p), p) for g in x.param_groups for p in g["params"]])
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
        self.checks.append(Check(d, "items", label, names))
        for name in names:
            yield d[name], f"{label}.{name}" if label else str(name)

    def _named(self, d: dict[str, Any], label: str) -> Iterator[tuple[Any, str]]:
        self._miss(d, label)
        yield from self._see(d, tuple([k for k in d if self.dynamic or k in self.names]), label)

    def _miss(self, d: dict[str, Any], label: str) -> None:
        """Attributes that some code assigns and that are not there yet."""
        missing = tuple(sorted(self.assigned - d.keys()))
        if missing:
            self.checks.append(Check(d, "there", label, missing))

    def _function(self, f: types.FunctionType, label: str) -> Iterator[tuple[Any, str]]:
        if not _ours(f.__module__ or "", f.__code__.co_filename):
            if f.__closure__:  # a library's wrapper, such as no_grad's, around a function of the user's
                yield from [(c.cell_contents, label) for c in f.__closure__ if _filled(c) and callable(c.cell_contents)]
            return
        names = _names_of(f.__code__)
        self.names |= names
        self.assigned |= _assigned(f.__code__)
        self.dynamic = self.dynamic or bool(names & {"getattr", "vars", "__dict__", "eval"})
        for name, cell in zip(f.__code__.co_freevars, f.__closure__ or (), strict=True):
            if _filled(cell):
                self.checks.append(Check(cell, "cell", "", (name,)))
                yield cell.cell_contents, name
        self._miss(f.__globals__, "")
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
                    yield from self._see(_ClassDict(base), (name,), label)

    def _module(self, m: Module, label: str) -> Iterator[tuple[Any, str]]:
        fields = m.__dict__
        users = _ours(type(m).__module__)
        if users:
            yield from self._class(type(m), label)
            self._miss(fields, label)
        names = [
            k
            for k in fields
            if k not in _TABLES and k not in HOOK_TABLES and (not users or self.dynamic or k in self.names or k in _ALWAYS)
        ]
        yield from self._see(fields, tuple(names), label)
        for name in _TABLES:
            table = fields[name]
            if table:
                self.checks.append(Check(table, "values", label, tuple(table)))
                yield from [(child, f"{label}.{key}") for key, child in table.items()]
        if m._hooked:
            for name in HOOK_TABLES:
                hooks = fields[name]
                self.checks.append(Check(hooks, "values", f"{label}.{name}"))
                yield from [(hook, label) for hook in hooks.values()]

    def _sequence(self, x: Any, label: str) -> Iterator[tuple[Any, str]]:
        if isinstance(x, list):
            self.checks.append(Check(x, "list" if len(x) <= _LONG else "length", label, tuple(range(len(x)))))
        if len(x) <= _LONG:
            yield from [(v, f"{label}[{k}]") for k, v in enumerate(x)]

    def _dict(self, x: dict[Any, Any], label: str) -> Iterator[tuple[Any, str]]:
        if len(x) > _LONG:
            self.checks.append(Check(x, "length", label))
            return
        self.checks.append(Check(x, "values", label, tuple(x)))
        yield from [(v, f"{label}[{k!r}]") for k, v in list(x.items())]


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
    checks = [Check(vars(optimizer), "items", name, fields), Check(groups, "list", f"{name}.param_groups")]
    for k, group in enumerate(groups):
        kept = [key for key, value in group.items() if not (read_anew and _numeric(value))]
        label = f"{name}.param_groups[{k}]"
        checks.append(Check(group, "length", label))
        checks.append(Check(group, "items", label, tuple(kept)))
        checks.append(Check(group["params"], "list", f"{label}['params']"))
        for value in (group[key] for key in kept):
            if isinstance(value, list) and value is not group["params"]:
                checks.append(Check(value, "list", label))
    checks.append(Check(optimizer.state, "values", f"{name}.state"))
    for state in optimizer.state.values():
        if isinstance(state, dict):
            checks.append(Check(state, "values", f"{name}.state", tuple(state)))
    for hooks in (optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks):  # type: ignore[attr-defined]
        checks.append(Check(hooks, "values", f"the hooks of {name}"))
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


def _assigned(code: types.CodeType) -> set[str]:
    """Names of attributes and globals that code assigns."""
    names = {str(i.argval) for i in dis.get_instructions(code) if i.opname in ("STORE_ATTR", "STORE_GLOBAL")}
    for const in code.co_consts:
        if isinstance(const, types.CodeType):
            names |= _assigned(const)
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
