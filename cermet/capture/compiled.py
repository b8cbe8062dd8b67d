"""`cermet.compile`: a function that is captured once per signature and replayed ever after."""

from __future__ import annotations

import copy
import functools
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

from cermet import config
from cermet import dtypes as dt
from cermet.capture.build import capture
from cermet.capture.entry import MISS, Entry, Refused
from cermet.capture.signature import signature
from cermet.capture.verify import State, verified
from cermet.frontend.core import TensorBase
from cermet.lazy import evaluate as ev
from cermet.lazy.record import local
from cermet.nn.module import Module
from cermet.ops.autocast import state as autocast

__all__ = ["CacheInfo", "CompiledFunction", "compile"]

OFTEN = 16  # captures of one function from which on that is worth a warning
HOPELESS = 4  # runs of one signature that could not be replayed, one after the other, after which it is no longer tried
VARIANTS = 8  # entries of one signature, which differ in Python values


class CacheInfo(NamedTuple):
    """Counters of one compiled function: calls that were replayed, captures, calls run in Python, captures held, and the most to hold."""

    replays: int
    captures: int
    ordinary: int
    held: int
    size: int


class _Slot:
    """What is known of one signature."""

    __slots__ = ("entries", "failures", "reason")

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.failures = 0
        self.reason = ""


class CompiledFunction:
    """A function, a method or a module, captured per signature; see `compile`."""

    def __init__(self, fn: Callable[..., Any], size: int, verify: bool) -> None:
        self._fn = fn
        self._size = size
        self._verify = verify
        self._slots: OrderedDict[Any, _Slot] = OrderedDict()
        self._lock = threading.RLock()
        self._replays = self._captures = self._ordinary = 0
        self._warned = False
        functools.update_wrapper(self, fn, updated=()) if not isinstance(fn, Module) else None

    # -------------------------------------------------------------------------------------------------------- call

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        tape = local.tape
        if tape.capture is not None or tape.eager or config.reference:
            return self._fn(*args, **kwargs)
        key, leaves = signature(args, kwargs, (tape.grad, dt._default, autocast.dtype))
        slot = self._slots.get(key)
        if slot is not None:
            for entry in slot.entries:
                try:
                    found = (
                        entry.replay(leaves.tensors, leaves.floats)
                        if not self._verify
                        else verified(self, entry, args, kwargs, leaves)
                    )
                except Refused:
                    return self._in_python(args, kwargs, State(entry, leaves.tensors))
                if found is not MISS:
                    self._replays += 1
                    return found
            if slot.failures >= HOPELESS:
                return self._in_python(args, kwargs)
        return self._first(key, args, kwargs, leaves)

    def _in_python(self, args: Any, kwargs: Any, state: State | None = None) -> Any:
        """Run the function itself; where ``state`` is given and it fails, everything is left as it was."""
        self._ordinary += 1
        try:
            out = self._fn(*args, **kwargs)
            ev.evaluate(local.tape)
        except BaseException:
            if state is not None:
                state.restore()
            raise
        return out

    def _first(self, key: Any, args: Any, kwargs: Any, leaves: Any) -> Any:
        with self._lock:
            slot = self._slots.setdefault(key, _Slot())
            why = slot.entries[0].why() if slot.entries else ""
            entry, result, reason = capture(self._fn, args, kwargs, leaves, lambda: signature(args, kwargs, key[:3])[0] == key)
            self._captures += 1
            if entry is None:
                slot.failures += 1
                slot.reason = reason
                if slot.failures == 3:
                    self._warn(
                        f"cannot be replayed, since {reason}. It runs in Python, which is right but slower; do that outside"
                    )
                return result
            slot.failures = 0
            slot.entries.insert(0, entry)
            del slot.entries[VARIANTS:]
            self._slots.move_to_end(key)
            while len(self._slots) > self._size:
                self._slots.popitem(last=False)
            if self._captures >= OFTEN and self._captures > self._replays and not self._warned:
                self._warned = True
                self._warn(
                    f"has been captured {self._captures} times and replayed {self._replays} times; the last time because "
                    + (
                        why
                        or "of new shapes, dtypes or values of its arguments. Pad to a few sizes, and pass numbers that change as floats"
                    )
                )
        try:
            found = entry.replay(leaves.tensors, leaves.floats)
        except Refused:
            return self._in_python(args, kwargs, State(entry, leaves.tensors))
        return self._in_python(args, kwargs) if found is MISS else found

    def _warn(self, text: str) -> None:
        code = getattr(getattr(self._fn, "__func__", self._fn), "__code__", None)
        name = getattr(self._fn, "__qualname__", type(self._fn).__name__)
        where = (code.co_filename, code.co_firstlineno) if code is not None else ("unknown", 1)
        warnings.warn_explicit(f"the compiled function {name} {text}", RuntimeWarning, *where)

    # ------------------------------------------------------------------------------------------------------- cache

    def cache_info(self) -> CacheInfo:
        """Counters, see `CacheInfo`."""
        held = sum(len(s.entries) for s in list(self._slots.values()))
        return CacheInfo(self._replays, self._captures, self._ordinary, held, self._size)

    def clear(self) -> None:
        """Forget all captures."""
        with self._lock:
            self._slots.clear()

    # ------------------------------------------------------------------------------------------------------- looks

    def __get__(self, obj: Any, owner: Any = None) -> Any:
        if obj is None:
            return self
        # A method: each object has captures of its own, kept with it.
        name = f"_compiled_{id(self)}"
        found = obj.__dict__.get(name)
        if found is None:
            found = obj.__dict__[name] = CompiledFunction(self._fn.__get__(obj, owner), self._size, self._verify)
        return found

    def __getattr__(self, name: str) -> Any:
        # Reached for what is not the function's own: a compiled module has the module's parameters, modes and methods.
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        return getattr(self.__dict__["_fn"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        fn = self.__dict__.get("_fn")
        if isinstance(fn, Module) and not name.startswith("_"):
            setattr(fn, name, value)
        else:
            object.__setattr__(self, name, value)

    def __deepcopy__(self, memo: Any) -> CompiledFunction:
        # A copy of a module, or of an object with a compiled method, is captured anew.
        return CompiledFunction(copy.deepcopy(self._fn, memo), self._size, self._verify)

    def __reduce__(self) -> Any:
        return (CompiledFunction, (self._fn, self._size, self._verify))

    def __repr__(self) -> str:
        return f"<compiled {self._fn!r}>"


def compile(
    fn: Any = None,
    *,
    fullgraph: bool = False,
    dynamic: bool | None = None,
    backend: Any = None,
    mode: str | None = None,
    options: Any = None,
    disable: bool = False,
    cache_size: int = 64,
    verify: bool = False,
) -> Any:
    """Capture a function once per signature, and replay it without running its Python.

    The function may be a whole training step: forward pass, backward pass, ``optimizer.step()`` and ``zero_grad()``. Parameters, gradients,
    buffers, the states of optimizers and of random generators are found, read anew by each call, and updated. Results are tensors of
    their own in each call. ``fn`` may be a `Module`; what is returned then has the module's attributes and methods.

    A signature is the structure of the arguments, shape, dtype and ``requires_grad`` of tensors, values of other arguments but floats
    (which are read anew, as are learning rates and other options of optimizers), the gradient mode and the default dtype. Python values
    that the function reads elsewhere (``module.training``, globals) are looked at in each call; other values are captured anew.

    Args:
        fn: a function, method or module; without it ``compile`` is a decorator.
        fullgraph, dynamic, backend, mode, options: PyTorch's, accepted without effect: there is one compiler, every capture is a full graph, and
            kernels take sizes as arguments.
        disable: return ``fn`` itself.
        cache_size: signatures kept, least recently captured out first.
        verify: run the function in Python too in each call, and compare results and all that was written, bit by bit.

    Returns:
        A callable with ``cache_info()`` and ``clear()``.

    Raises:
        TypeError, ValueError: for what is not callable, and a cache size below 1.
        CaptureError: by a call, when the function looks at a value (``if loss > 1``, ``.item()``, ``print``), naming the line.
    """
    if isinstance(cache_size, bool) or not isinstance(cache_size, int) or cache_size < 1:
        raise ValueError(f"compile: cache_size is a positive integer, got {cache_size!r}")
    if fn is None:
        return lambda f: compile(f, disable=disable, cache_size=cache_size, verify=verify)
    if isinstance(fn, TensorBase) or not callable(fn):
        raise TypeError(f"compile: expected a function or a module, got {type(fn).__name__}")
    if disable:
        return fn
    if isinstance(fn, CompiledFunction):
        fn = fn._fn
    return CompiledFunction(fn, cache_size, bool(verify))
