"""Reads and writes of tensors' state, seen while a function is captured.

While any thread captures, the slots that hold state (a tensor's node and gradient function, a storage's version, a leaf's gradient) are
properties that ask the thread's capture; at all other times they are plain slots and cost nothing. Other threads get what is in the slots.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cermet import random
from cermet.frontend.core import History, Storage, TensorBase
from cermet.frontend.gradients import Accumulate, GradFn
from cermet.lazy.record import Tape, local

__all__ = ["SLOTS", "raw", "watching"]

#: Class -> {name: its plain slot}.
SLOTS: dict[type, dict[str, Any]] = {
    cls: {name: cls.__dict__[name] for name in names}
    for cls, names in (
        (TensorBase, ("_node", "_fn", "_alias", "_grad")),
        (Storage, ("node", "version")),
        (History, ("fn",)),
        (Accumulate, ("grad",)),
        (GradFn, ("saved",)),
    )
}

_lock = threading.Lock()
_captures = 0


def raw(obj: Any, name: str) -> Any:
    """What is in a slot, whoever watches."""
    return SLOTS[_class_of(obj)][name].__get__(obj)


def _class_of(obj: Any) -> type:
    return next(cls for cls in type(obj).__mro__ if cls in SLOTS)


def _watched(cls: type, name: str, slot: Any) -> property:
    get_raw, set_raw = slot.__get__, slot.__set__

    def read(self: Any) -> Any:
        capture = local.tape.capture
        return get_raw(self) if capture is None else capture.read(self, cls, name)

    def write(self: Any, value: Any) -> None:
        capture = local.tape.capture
        if capture is None:
            set_raw(self, value)
        else:
            capture.write(self, cls, name, value)

    return property(read, write)


def _drawn(generator: Any, count: int | None) -> Any:
    capture = local.tape.capture
    return None if capture is None else capture.draw(generator, count)


@contextmanager
def watching(tape: Tape) -> Iterator[None]:
    """Record on ``tape``, which has a capture, with this thread's state watched."""
    global _captures
    with _lock:
        _captures += 1
        if _captures == 1:
            random.watcher = _drawn
            for cls, slots in SLOTS.items():
                for name, slot in slots.items():
                    setattr(cls, name, _watched(cls, name, slot))
    before, local.tape = local.tape, tape
    try:
        yield
    finally:
        local.tape = before
        with _lock:
            _captures -= 1
            if _captures == 0:
                random.watcher = None
                for cls, slots in SLOTS.items():
                    for name, slot in slots.items():
                        setattr(cls, name, slot)
