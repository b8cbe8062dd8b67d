"""Arguments of a compiled function: their leaves, the key by which a capture is found again, and trees of results."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from cermet import dtypes as dt
from cermet.capture.errors import CaptureError
from cermet.devices import Device
from cermet.frontend.core import TensorBase
from cermet.frontend.gradients import Accumulate
from cermet.frontend.tensor import Tensor

__all__ = ["Leaves", "Tree", "replace_floats", "signature"]

_BY_VALUE = (bool, int, str, bytes, type(None), complex, dt.DType, Device, type, range, np.generic)


class _Same:
    """An argument that is told apart by identity."""

    __slots__ = ("obj",)

    def __init__(self, obj: Any) -> None:
        self.obj = obj

    def __hash__(self) -> int:
        return id(self.obj)

    def __eq__(self, other: object) -> bool:
        return type(other) is _Same and other.obj is self.obj


class Leaves:
    """What the arguments of one call hold: tensors, floats, and objects that are told apart by identity."""

    __slots__ = ("floats", "objects", "tensors")

    def __init__(self) -> None:
        self.tensors: list[Any] = []
        self.floats: list[float] = []
        self.objects: list[Any] = []


def leaf_key(t: Any) -> int:
    """How gradients are recorded for a tensor: not at all, as for a leaf, as for a result."""
    fn = t._fn
    return 0 if fn is None else 1 if type(fn) is Accumulate else 2


def signature(args: tuple[Any, ...], kwargs: dict[str, Any], modes: tuple[Any, ...]) -> tuple[tuple[Any, ...], Leaves]:
    """(key, leaves). Two calls with equal keys differ at most in values of tensors and of floats.

    Raises:
        CaptureError: for a NumPy array.
    """
    leaves = Leaves()
    key = [*modes, len(args)]
    tensors = leaves.tensors
    for a in args:
        if type(a) is Tensor:
            tensors.append(a)
            fn = a._fn
            key.append(a._node.meta)
            key.append(0 if fn is None else 1 if type(fn) is Accumulate else 2)
        else:
            _add(a, key, leaves)
    if kwargs:
        key.append(tuple(kwargs))
        for a in kwargs.values():
            _add(a, key, leaves)
    if len(tensors) > 1:
        _add_sharing(tensors, key)
    return tuple(key), leaves


def _add_sharing(tensors: list[Any], key: list[Any]) -> None:
    """The same tensor given twice, and tensors that share memory, are another signature: a write to one is seen in the other."""
    firsts: dict[int, int] = {}
    for k, t in enumerate(tensors):
        alias = t._alias
        first = firsts.setdefault(id(t) if alias is None else id(alias.storage), k)
        if first != k:
            key.append(("shared", k, first))


def _add(a: Any, key: list[Any], leaves: Leaves) -> None:
    kind = type(a)
    if isinstance(a, TensorBase):
        leaves.tensors.append(a)
        key += (kind, a._node.meta, leaf_key(a))
    elif kind is float:
        leaves.floats.append(a)
        key.append(float)
    elif isinstance(a, _BY_VALUE):
        key += (kind, a)
    elif kind in (list, tuple) or (isinstance(a, tuple) and hasattr(a, "_fields")):
        key += (kind, len(a))
        for x in a:
            _add(x, key, leaves)
    elif kind is dict:
        key += (dict, tuple([x if isinstance(x, _BY_VALUE) else _Same(x) for x in a]))
        for x in a.values():
            _add(x, key, leaves)
    elif _is_record(a):
        names = tuple([f.name for f in dataclasses.fields(a)])
        key += (kind, names)
        for name in names:
            _add(getattr(a, name), key, leaves)
    elif isinstance(a, np.ndarray):
        raise CaptureError(
            f"a NumPy array of shape {a.shape} was passed to a compiled function, which takes its values as tensors: pass "
            "cermet.from_numpy(array)"
        )
    else:
        leaves.objects.append(a)
        key.append(_Same(a))


def _is_record(a: Any) -> bool:
    return dataclasses.is_dataclass(a) and not isinstance(a, type)


def replace_floats(a: Any, make: Callable[[float], Any]) -> Any:
    """The argument with each float replaced; what holds no float stays the same object."""
    kind = type(a)
    if kind is float:
        return make(a)
    if kind in (list, tuple) or (isinstance(a, tuple) and hasattr(a, "_fields")):
        items = [replace_floats(x, make) for x in a]
        if all(x is y for x, y in zip(items, a, strict=True)):
            return a
        return kind(*items) if hasattr(a, "_fields") else kind(items)
    if kind is dict:
        values = {k: replace_floats(x, make) for k, x in a.items()}
        return a if all(values[k] is a[k] for k in a) else values
    if _is_record(a):
        changed = {}
        for f in dataclasses.fields(a):
            x = getattr(a, f.name)
            y = replace_floats(x, make)
            if y is not x:
                changed[f.name] = y
        if not changed:
            return a
        out = copy.copy(a)
        for name, y in changed.items():
            object.__setattr__(out, name, y)
        return out
    return a


class Tree:
    """The structure of a result: containers, with a place for each leaf."""

    def __init__(self, value: Any) -> None:
        self.leaves: list[Any] = []
        self.build: Callable[[list[Any]], Any] = self._scan(value)

    def _scan(self, v: Any) -> Callable[[list[Any]], Any]:
        kind = type(v)
        if kind in (list, tuple):
            parts = [self._scan(x) for x in v]
            return lambda leaves: kind([p(leaves) for p in parts])
        if isinstance(v, tuple) and hasattr(v, "_fields"):
            parts = [self._scan(x) for x in v]
            return lambda leaves: kind(*[p(leaves) for p in parts])
        if kind is dict:
            named = {k: self._scan(x) for k, x in v.items()}
            return lambda leaves: {k: p(leaves) for k, p in named.items()}
        if _is_record(v):
            fields = {f.name: self._scan(getattr(v, f.name)) for f in dataclasses.fields(v)}

            def rebuilt(leaves: list[Any]) -> Any:
                out = copy.copy(v)
                for name, p in fields.items():
                    object.__setattr__(out, name, p(leaves))
                return out

            return rebuilt
        place = len(self.leaves)
        self.leaves.append(v)
        return lambda leaves: leaves[place]
