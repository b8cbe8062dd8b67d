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

from cermet.ops.autocast import autocasting

__all__ = ["PUBLIC", "Entry", "Public", "dispatch", "public"]


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


class Entry:
    """A public function and the calls of it that are remembered (see `cermet.frontend.memo`).

    Attributes:
        fn: the function itself. seen: signature -> what such a call comes to. tries: calls since the last that could be remembered.
        plain: whether calls are made without looking for a remembered one.
    """

    __slots__ = ("fn", "plain", "seen", "tries")

    def __init__(self, fn: Callable[..., Any]) -> None:
        self.fn = fn
        self.seen: dict[Any, Any] = {}
        self.tries = 0
        self.plain = False


def _call(entry: Entry, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return entry.fn(*args, **kwargs)


dispatch: list[Callable[[Entry, tuple[Any, ...], dict[str, Any]], Any]] = [_call]
"""How the functions are called; the frontend puts its memory of calls here."""


def _wrapped(fn: Callable[..., Any]) -> Callable[..., Any]:
    """The function as users call it: by way of `dispatch`, with ``axis`` and ``keepdims`` standing for ``dim`` and ``keepdim`` where it has
    those."""
    code = getattr(inspect.unwrap(fn), "__code__", None)  # inspect.signature would take a tenth of the package's import
    if code is None:  # a class
        return fn
    names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    accepted = {n: t for n, t in _SPELLINGS.items() if t in names and n not in names}
    entry = Entry(fn)

    @functools.wraps(fn)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if kwargs and accepted:
            for name in accepted.keys() & kwargs.keys():
                kwargs[accepted[name]] = kwargs.pop(name)
        if entry.plain:
            return fn(*args, **kwargs)
        return dispatch[0](entry, args, kwargs)

    return wrapped


def public(
    *,
    name: str | None = None,
    namespaces: tuple[str, ...] = ("",),
    method: bool = True,
    inplace: bool = False,
    aliases: tuple[str, ...] = (),
    prop: bool = False,
    autocast: str = "",
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Declare a public function (decorator). ``aliases`` are further names for the same thing; ``autocast`` is its policy under mixed
    precision (see `cermet.ops.autocast`), which its in-place form does not follow."""

    def declare(fn: Callable[..., Any]) -> Callable[..., Any]:
        wrapped = _wrapped(fn)
        if autocast:
            wrapped = autocasting(wrapped, autocast)
        for n in (name or fn.__name__.rstrip("_"), *aliases):
            key = (namespaces[0], n)
            if key in PUBLIC:
                raise ValueError(f"public function {n!r} is declared twice in namespace {namespaces[0]!r}")
            PUBLIC[key] = Public(n, wrapped, namespaces, method, inplace, prop)
        return wrapped

    return declare
