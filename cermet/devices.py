"""Where a tensor lives: a small value that reads and compares like ``torch.device``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["Device", "available", "canonical", "cpu", "device", "register"]

# How many devices of each type can be used. A target with its own runtime registers itself here.
_COUNTS: dict[str, Callable[[], int]] = {"cpu": lambda: 1}
# Types that exist elsewhere: asking for one is not a misspelling, and deserves a different answer.
_KNOWN = frozenset(("cpu", "cuda", "gpu", "hip", "mps", "meta", "rocm", "tpu", "vulkan", "xla", "xpu"))


class Device:
    """A device type with an optional index, such as ``device("cpu")``.

    Args:
        type: ``"cpu"``, ``"cpu:0"`` or another Device.
        index: which one of its type; ``None`` for the current one.

    Raises:
        RuntimeError: when there is no such device here; the message says which there are.
        TypeError: when an argument is neither text nor an integer.
    """

    __slots__ = ("_hash", "index", "type")

    type: str
    index: int | None
    _hash: int

    def __init__(self, type: str | Device, index: int | None = None) -> None:
        if isinstance(type, Device):
            if index is not None:
                raise TypeError(f"device(): index {index} given together with {type!r}; pass the type as text")
            kind, index = type.type, type.index
        elif isinstance(type, str):
            kind, colon, tail = type.partition(":")
            if colon:
                if index is not None:
                    raise RuntimeError(f"device(): {type!r} has an index already; drop the second argument {index}")
                if not (tail.isascii() and tail.isdigit()):
                    raise RuntimeError(f"invalid device {type!r}: expected a type and an index, such as 'cpu' or 'cpu:0'")
                index = int(tail)
        else:
            raise TypeError(f"device() expects text such as 'cpu' or a Device, got {type!r}")
        if index is not None and (not isinstance(index, int) or isinstance(index, bool)):
            raise TypeError(f"device() expects an integer index, got {index!r}")
        _check(kind, index)
        set_ = object.__setattr__
        set_(self, "type", kind)
        set_(self, "index", index)
        set_(self, "_hash", hash((kind, index)))

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"a device cannot be changed; make another one, such as device('{self.type}', 0)")

    def __delattr__(self, name: str) -> None:
        self.__setattr__(name, None)

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        return isinstance(other, Device) and self.type == other.type and self.index == other.index

    def __hash__(self) -> int:
        return self._hash

    def __str__(self) -> str:
        return self.type if self.index is None else f"{self.type}:{self.index}"

    def __repr__(self) -> str:
        return f"device(type='{self.type}')" if self.index is None else f"device(type='{self.type}', index={self.index})"

    def __reduce__(self) -> Any:
        return (Device, (str(self),))


def available() -> list[str]:
    """The devices that can be used now: ``["cpu"]``, and ``"cuda:0"`` and so on where a target provides them."""
    found: list[str] = []
    for kind, count in _COUNTS.items():
        found += [kind] if kind == "cpu" else [f"{kind}:{i}" for i in range(count())]
    return found


def register(type: str, count: Callable[[], int]) -> None:
    """Announce a device type; ``count`` says how many there are and is asked anew each time."""
    _COUNTS[type] = count


def _check(kind: str, index: int | None) -> None:
    count = _COUNTS.get(kind)
    if count is None:
        what = "is not available" if kind in _KNOWN else "is not a device type"
        raise RuntimeError(f"device {kind!r} {what}; available here: {', '.join(available())}")
    n = count()
    if not 0 <= (index or 0) < n:
        name = kind if index is None else f"{kind}:{index}"
        raise RuntimeError(f"there is no device {name!r}: {n} of type {kind!r} here; available: {', '.join(available())}")


def canonical(d: Device) -> Device:
    """The one object that stands for a device: ``cpu`` for both ``cpu`` and ``cpu:0``, so that placement compares by identity."""
    if d.type == "cpu":
        return cpu
    return d if d.index is not None else Device(d.type, 0)


device = Device
#: The CPU.
cpu = Device("cpu")
