"""Mixed precision: in which dtype a public function computes while autocast is on.

A public function declares its policy (``@public(autocast=...)``):

* ``"lower"``: its floating inputs are cast to the dtype of autocast (products, convolutions, attention: their sums are formed in
  float32 whatever they are given, so that little is lost and less memory is moved).
* ``"float32"``: its 16-bit inputs are cast to float32 (losses, and what loses too many digits otherwise).
* ``"widest"``: its floating inputs are cast to the widest dtype among them (concatenation).

Functions without a policy take what they get. float64 is left alone. This room knows the thread's state and how to cast; it must not
know which functions there are.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any

from cermet import dtypes as dt
from cermet.dtypes import DType, promote_types

__all__ = ["POLICIES", "State", "autocasting", "state"]

POLICIES = ("lower", "float32", "widest")


class State(threading.local):
    """What this thread computes in. ``dtype``: None while autocast is off."""

    dtype: DType | None = None


state = State()


def _floating(value: Any) -> DType | None:
    """The dtype of a floating tensor that autocast may change; None for anything else."""
    dtype = getattr(value, "dtype", None)
    return dtype if isinstance(dtype, DType) and dtype.kind == "f" and dtype is not dt.float64 else None


def _tensors(value: Any) -> list[Any]:
    """The tensors that may be cast in an argument: itself, or the members of a list or tuple."""
    found = value if isinstance(value, list | tuple) else (value,)
    return [v for v in found if _floating(v) is not None]


def _target(policy: str, lower: DType, arguments: list[Any]) -> DType | None:
    if policy == "lower":
        return lower
    if policy == "float32":
        return dt.float32
    found = {v.dtype for a in arguments for v in _tensors(a)}
    return functools.reduce(promote_types, found) if len(found) > 1 else None


def _cast(value: Any, target: DType) -> Any:
    if isinstance(value, list | tuple):
        if not any(_floating(v) not in (None, target) for v in value):
            return value
        members = [_cast(v, target) for v in value]
        return members if isinstance(value, list) else tuple(members)
    return value.to(target) if _floating(value) not in (None, target) else value


def autocasting(fn: Callable[..., Any], policy: str) -> Callable[..., Any]:
    """``fn`` with its tensor arguments cast while autocast is on; what it calls itself sees autocast off. Its attribute ``uncast`` is the
    same without the casts, for in-place forms.

    Raises:
        ValueError: for a policy that there is not.
    """
    if policy not in POLICIES:
        raise ValueError(f"autocast={policy!r}; give one of {', '.join(POLICIES)}")

    @functools.wraps(fn)
    def cast(*args: Any, **kwargs: Any) -> Any:
        lower = state.dtype
        if lower is None:
            return fn(*args, **kwargs)
        target = _target(policy, lower, [*args, *kwargs.values()])
        if target is not None:
            args = tuple([_cast(a, target) for a in args])
            kwargs = {k: _cast(v, target) for k, v in kwargs.items()}
        state.dtype = None
        try:
            return fn(*args, **kwargs)
        finally:
            state.dtype = lower

    @functools.wraps(fn)
    def uncast(*args: Any, **kwargs: Any) -> Any:
        lower, state.dtype = state.dtype, None
        try:
            return fn(*args, **kwargs)
        finally:
            state.dtype = lower

    cast.uncast = uncast  # type: ignore[attr-defined]
    return cast
