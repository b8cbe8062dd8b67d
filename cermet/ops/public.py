"""The public face of ops: which Python functions users see, under which names, as which methods.

A public function normalises PyTorch's arguments and calls ops. The frontend derives from this table the functions of `cermet`,
`cermet.nn.functional` and so on, the Tensor methods and their in-place forms; nothing is listed anywhere else.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["PUBLIC", "Public", "public"]


@dataclass(frozen=True)
class Public:
    """One public function.

    Attributes:
        name: as users write it. fn: the function; the first argument is the tensor where it is a method.
        namespaces: where it appears: "" for ``cermet``, "nn.functional", "linalg", "special".
        method: whether it is a Tensor method too. inplace: whether ``name_`` exists as a method (and as a function of the namespace).
        property: whether it is a Tensor property instead of a method (T, mT).
    """

    name: str
    fn: Callable[..., Any]
    namespaces: tuple[str, ...]
    method: bool
    inplace: bool
    property: bool = False


PUBLIC: dict[tuple[str, str], Public] = {}

_SPELLINGS = {"axis": "dim", "axes": "dim", "keepdims": "keepdim"}


def _numpy_spellings(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Let ``axis`` and ``keepdims`` stand for ``dim`` and ``keepdim`` where the function has those."""
    code = getattr(inspect.unwrap(fn), "__code__", None)  # inspect.signature would take a tenth of the package's import
    if code is None:  # a class
        return fn
    names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    accepted = {n: t for n, t in _SPELLINGS.items() if t in names and n not in names}
    if not accepted:
        return fn

    @functools.wraps(fn)
    def spelled(*args: Any, **kwargs: Any) -> Any:
        if kwargs:
            for name in accepted.keys() & kwargs.keys():
                kwargs[accepted[name]] = kwargs.pop(name)
        return fn(*args, **kwargs)

    return spelled


def public(
    *,
    name: str | None = None,
    namespaces: tuple[str, ...] = ("",),
    method: bool = True,
    inplace: bool = False,
    aliases: tuple[str, ...] = (),
    prop: bool = False,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Declare a public function (decorator). ``aliases`` are further names for the same thing."""

    def declare(fn: Callable[..., Any]) -> Callable[..., Any]:
        spelled = _numpy_spellings(fn)
        for n in (name or fn.__name__.rstrip("_"), *aliases):
            key = (namespaces[0], n)
            if key in PUBLIC:
                raise ValueError(f"public function {n!r} is declared twice in namespace {namespaces[0]!r}")
            PUBLIC[key] = Public(n, spelled, namespaces, method, inplace, prop)
        return spelled

    return declare
