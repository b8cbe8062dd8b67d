"""What users call to steer evaluation and to see what it did: realize, eager, stats, the number of threads."""

from __future__ import annotations

from typing import Any

from cermet import config
from cermet.frontend.core import TensorBase, node_of
from cermet.lazy import evaluate as ev
from cermet.lazy.record import local

__all__ = ["eager", "get_num_threads", "realize", "set_num_threads", "stats"]


def realize(*tensors: Any) -> Any:
    """Compute the values of tensors now (with everything else that is pending and held); returns them.

    Accepts tensors and nested lists, tuples and dicts of them.
    """
    if len(tensors) == 1 and isinstance(tensors[0], TensorBase):
        ev.realize((node_of(tensors[0]),))
        return tensors[0]
    found: list[Any] = []
    stack = list(tensors)
    while stack:
        x = stack.pop()
        if isinstance(x, TensorBase):
            found.append(node_of(x))
        elif isinstance(x, dict):
            stack.extend(x.values())
        elif isinstance(x, list | tuple):
            stack.extend(x)
    ev.realize(found)
    return tensors[0] if len(tensors) == 1 else tensors


class eager:
    """Inside (``with ct.eager():``) every op of this thread is computed as it is called, for stepping through a program."""

    def __init__(self, mode: bool = True) -> None:
        self._mode = mode
        self._before: list[bool] = []

    def __enter__(self) -> eager:
        tape = local.tape
        self._before.append(tape.eager)
        if self._mode and tape.nodes:
            ev.evaluate(tape)
        tape.eager = self._mode
        return self

    def __exit__(self, *_: Any) -> None:
        local.tape.eager = self._before.pop()


def set_num_threads(count: int) -> None:
    """How many threads kernels run on. Results have the same bits for any number.

    Raises:
        ValueError: unless ``count`` is a positive integer.
    """
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise ValueError(f"set_num_threads: expected a positive integer, got {count!r}")
    config.num_threads = count


def get_num_threads() -> int:
    """How many threads kernels run on."""
    return config.num_threads


def stats() -> dict[str, Any]:
    """Counters since the start: evaluations, programs compiled and found, kernels compiled and found in memory and on disk, launches,
    memory in use (bytes)."""
    from cermet.compiler.llvm import jit
    from cermet.lazy import run
    from cermet.runtime import buffer, program

    code = jit.counters()
    launched = program.counters()
    memory = buffer.memory_stats()
    return {
        **run.counters(),
        **{f"kernels_{k}": v for k, v in code.items() if not k.endswith("seconds")},
        **{k: v for k, v in code.items() if k.endswith("seconds")},
        "programs_run": launched.programs,
        "launches": launched.launches,
        "memory_live": memory.live,
        "memory_peak": memory.peak,
        "memory_cached": memory.cached,
    }
