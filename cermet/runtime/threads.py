"""The thread pool that runs the blocks of a launch.

There is one pool of ``config.num_threads - 1`` workers per process, started by the first program that has something to share and
replaced when the number changes. Workers are bare system threads: the interpreter does not know them, and they need nothing
of it. What they do is described in walker.py; here they are started, stopped and forgotten.

* Nothing is started at import, nor ever with ``num_threads`` of 1.
* After ``os.fork`` the child has no workers; it starts its own when it first needs them.
* At exit the workers are told to leave, and nobody waits for them; their code and their pool stay until the process is gone.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import signal
import threading
import warnings

from cermet import config
from cermet.runtime import native as native_module
from cermet.runtime import walker
from cermet.runtime.buffer import Buffer

__all__ = ["Pool", "current", "get_num_threads", "set_num_threads", "shut_down"]


class Pool:
    """A set of workers.

    Attributes:
        ptr: the address of its native state, for ``cermet_run``.
        wanted: the number of threads asked for, the calling thread included.
        threads: the number there are; fewer when the system refuses to start as many.
    """

    __slots__ = ("_memory", "ptr", "threads", "wanted")

    def __init__(self, threads: int) -> None:
        functions = native_module.native()
        nbytes = walker.POOL_BYTES + walker.WORKER_BYTES * (threads - 1)
        self._memory = Buffer(nbytes)
        # Workers look at it until they have left, which may be never: the interpreter must not free it at exit either.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._memory))
        self.ptr = self._memory.ptr
        self.wanted = threads
        self._memory.view("u1", (nbytes,), writeable=True)[:] = 0
        if hasattr(os, "sched_getaffinity"):
            cores = self._memory.view("u1", (128,), writeable=True, offset=walker.PoolField.CORES)
            for core in os.sched_getaffinity(0):
                if core < 1024:
                    cores[core // 8] |= 1 << core % 8
        self._set(walker.PoolField.SPIN_NS, config.spin_us * 1000)
        with _signals_blocked():
            started = functions.pool_start(self.ptr, threads - 1)
        self.threads = started + 1
        # Read by runs only, and no run knows of this pool yet.
        self._set(walker.PoolField.THREADS, self.threads)
        if self.threads < threads:
            warnings.warn(
                f"could start only {started} of {threads - 1} worker threads (CERMET_NUM_THREADS={threads}); "
                "the system's limit on threads or memory is reached. Results are the same, only slower.",
                RuntimeWarning,
                stacklevel=2,
            )

    def _set(self, offset: int, value: int) -> None:
        self._memory.view("i8", (1,), writeable=True, offset=offset)[0] = value

    def _get(self, offset: int) -> int:
        return int(self._memory.view("i8", (1,), offset=offset)[0])

    def gone(self) -> bool:
        """Whether no worker is left, in which case the memory may be freed. To be asked until it is so, and no more."""
        if self.alive():
            return False
        ctypes.pythonapi.Py_DecRef(ctypes.py_object(self._memory))
        return True

    def alive(self) -> int:
        """Workers that have not left yet."""
        return self._get(walker.PoolField.ALIVE)

    def stop(self) -> None:
        """Tell the workers to leave once they have nothing to do. Runs that hold the pool go on, in the end by themselves."""
        native_module.native().pool_stop(self.ptr)


class _signals_blocked:
    """Threads inherit the signal mask: workers must not take signals meant for Python's main thread, whose system calls would
    then not be interrupted (a Ctrl-C that waits). Faults stay unblocked, so that faulthandler can report them."""

    __slots__ = ("_old",)

    def __enter__(self) -> None:
        faults = {
            getattr(signal, name)
            for name in ("SIGSEGV", "SIGBUS", "SIGFPE", "SIGILL", "SIGABRT", "SIGTRAP")
            if hasattr(signal, name)
        }
        self._old = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals() - faults)

    def __exit__(self, *_: object) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, self._old)


_lock = threading.Lock()
_pool: Pool | None = None
# Pools whose workers were told to leave. They are kept until the last one has: its final access is to the pool.
_retired: list[Pool] = []


def current(threads: int) -> Pool | None:
    """The pool for runs with ``threads`` threads; ``None`` for one thread, or where there are no native threads (Windows)."""
    pool = _pool
    if pool is not None and pool.wanted == threads:
        return pool
    if threads == 1:  # a scope with one thread leaves the workers asleep
        return None
    return _replace(threads)


def _replace(threads: int) -> Pool | None:
    global _pool
    if not hasattr(signal, "pthread_sigmask"):
        return None
    with _lock:
        pool = _pool
        if pool is not None:
            if pool.wanted == threads:
                return pool
            # Other threads may be in a run with it at this moment; they hold a reference, and need no worker to finish.
            pool.stop()
            _retired.append(pool)
        _retired[:] = [old for old in _retired if not old.gone()]
        _pool = Pool(threads)
        return _pool


def get_num_threads() -> int:
    """How many threads run a kernel's blocks, the calling thread among them."""
    return config.num_threads


def set_num_threads(n: int) -> None:
    """Set how many threads run a kernel's blocks. Takes effect at the next evaluation; results do not depend on it.

    Raises:
        ValueError: when ``n`` is not an integer of at least 1.
    """
    config.num_threads = n


def shut_down() -> None:
    """Tell the workers to leave. The next program that has something to share starts new ones."""
    global _pool
    with _lock:
        if _pool is not None:
            _pool.stop()
            _retired.append(_pool)
            _pool = None


def _after_fork() -> None:
    global _pool, _lock
    _lock = threading.Lock()  # its holder may not exist in the child
    if _pool is not None:
        # The parent's workers are not here, and its mutex may be held by one of them. The memory is left alone: a thread of
        # the parent may have been in the middle of a run, and this is a copy of what it saw.
        _pool = None
    _retired.clear()


atexit.register(shut_down)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
