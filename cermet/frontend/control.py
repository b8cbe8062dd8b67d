"""What users call to steer evaluation and to see what it did: realize, eager, stats, the number of threads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cermet import config
from cermet.frontend.core import TensorBase, node_of
from cermet.lazy import evaluate as ev
from cermet.lazy.record import local

__all__ = ["Tuning", "eager", "get_num_threads", "realize", "set_num_threads", "stats", "tune"]


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


class Tuning:
    """A stretch of program whose kernels are tuned: see `tune`.

    Attributes:
        results: after the ``with`` block, one record for each problem that had several schedules: family, problem, seconds before, after.
    """

    def __init__(self) -> None:
        self.results: list[Any] = []

    def __enter__(self) -> Tuning:
        from cermet.compiler.kernels import tuned
        from cermet.lazy import tune as measuring

        if local.tape.nodes:
            ev.evaluate(local.tape)
        measuring.prepared()
        self._collecting = tuned.collecting()
        self._questions = self._collecting.__enter__()
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        from cermet.lazy import tune as measuring

        try:
            if kind is None and local.tape.nodes:
                ev.evaluate(local.tape)
        finally:
            self._collecting.__exit__(None, None, None)
        if kind is None:
            self.results = measuring.measure(list(self._questions.values()))
        else:
            measuring.prepared()


def tune(fn: Callable[..., Any] | None = None, *args: Any, **kwargs: Any) -> Any:
    """Find the fastest schedules for what a function computes, by measuring, and remember them.

    Runs ``fn(*args, **kwargs)`` once, computes what it leaves pending, then times several divisions into blocks of each matrix product
    (and of other kernels that offer a choice) in it, on the number of threads that is set. The winners are kept in the cache directory, for
    this machine and these sizes, layouts and dtypes; all later programs use them, in other processes too. What was compiled before
    by ``ct.compile`` keeps its schedule until it is compiled again. Results have the same bits before and after: only divisions that split no
    sum differently are tried.

    Without a function, the form for a stretch of program::

        with ct.tune() as tuning:
            train_step(batch)
        print(tuning.results)

    Args:
        fn: the function; called once, with its side effects.
        args, kwargs: its arguments.

    Returns:
        A list of records (family, problem, seconds before, seconds after); without ``fn``, the context manager.

    Raises:
        TypeError: when ``fn`` is not callable, or there are arguments but no function.
    """
    if fn is None:
        if args or kwargs:
            raise TypeError(
                "tune: arguments were given but no function; call ct.tune(fn, *args), or `with ct.tune():` without arguments"
            )
        return Tuning()
    if not callable(fn):
        raise TypeError(
            f"tune: expected a function as first argument, got {type(fn).__name__}; pass the function itself, not its result"
        )
    with Tuning() as tuning:
        realize(fn(*args, **kwargs))
    return tuning.results


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
