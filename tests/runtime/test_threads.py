"""The thread pool: the same bits, changes of size, many callers, fork, exit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from typing import Any

import numpy as np
import pytest

from cermet import config
from cermet.runtime import threads
from cermet.runtime.buffer import Buffer
from cermet.runtime.program import Launch, Pointer, Program, ScalarArg, counters


def _system_threads() -> int:
    return len(os.listdir("/proc/self/task"))


def _settle(expected: int) -> int:
    """The number of system threads once it is what is expected, or what it is after a second."""
    deadline = time.monotonic() + 1
    while _system_threads() != expected and time.monotonic() < deadline:
        time.sleep(0.005)
    return _system_threads()


class _Work:
    """A program with an element-wise launch and one that reads all of its result, on data of its own."""

    def __init__(self, kernels: Any, blocks: int = 64, grain: int = 1) -> None:
        n = 64 * 10
        self.buffers = [Buffer(4 * n), Buffer(8 * blocks)]
        self.buffers[0].view(np.float32, (n,), writeable=True)[:] = np.random.default_rng(0).standard_normal(n)
        self.result = self.buffers[1].view(np.float64, (blocks,), writeable=True)
        pair = [
            Launch(kernels.add, [Pointer(0), Pointer(1), 10, ScalarArg(0)], 64, grain),
            Launch(kernels.reduce, [Pointer(2), Pointer(0), n], blocks, grain, scratch=8),
        ]
        self.program = Program(pair * 3, 2, "f", arena_bytes=4 * n)

    def run(self, scalar: float = 0.25) -> bytes:
        self.result[:] = -1
        self.program.run([b.ptr for b in self.buffers], [scalar])
        return self.result.tobytes()


def test_the_same_bits_with_any_number_of_threads(kernels: Any) -> None:
    for blocks, grain in ((1, 1), (2, 1), (64, 1), (64, 5), (63, 7), (1000, 1)):
        work = _Work(kernels, blocks, grain)
        with config.scope(num_threads=1):
            expected = work.run()
        for n in (2, 3, 7):
            with config.scope(num_threads=n):
                for _ in range(20):
                    assert work.run() == expected


def test_every_block_runs_once(kernels: Any) -> None:
    for blocks in (2, 9, 1000, 100_003):
        out = Buffer(8 * blocks)
        counts = out.view(np.int64, (blocks,), writeable=True)
        counts[:] = 0
        program = Program([Launch(kernels.busy, [Pointer(1), 3], blocks, 1, scratch=8)] * 5, 1)
        for n in (1, 2, 4):
            with config.scope(num_threads=n):
                program.run([out.ptr])
        assert (counts == 15).all()


def test_work_is_shared(kernels: Any) -> None:
    # Which thread ran a block is told by where its scratch is: blocks keep their thread busy long enough for all to come.
    out = Buffer(8 * 64)
    program = Program([Launch(kernels.busy, [Pointer(1), 200_000], 64, 1, scratch=8)], 1)
    with config.scope(num_threads=2):
        program.run([out.ptr])
        pool = threads.current(2)
        assert pool is not None
        assert pool.threads == 2
        assert pool.alive() == 1
        if len(os.sched_getaffinity(0)) > 1:
            # The workers' CPU time is the process's less this thread's.
            process, thread = time.process_time_ns(), time.thread_time_ns()
            for _ in range(5):
                program.run([out.ptr])
            assert (time.process_time_ns() - process) > 1.15 * (time.thread_time_ns() - thread)


def test_number_of_threads_changes_at_run_time(kernels: Any) -> None:
    work = _Work(kernels)
    old = threads.get_num_threads()
    try:
        threads.shut_down()
        base = _settle(1)  # OpenBLAS has threads of its own
        expected = work.run()
        for n in (1, 2, 4, 1, 3, 2):
            threads.set_num_threads(n)
            assert threads.get_num_threads() == n
            assert work.run() == expected
            if n > 1:
                assert _settle(base + n - 1) == base + n - 1  # no more than asked for: the old ones leave
        with pytest.raises(ValueError, match=r"num_threads=0: expected an integer of at least 1"):
            threads.set_num_threads(0)
        threads.shut_down()
        assert _settle(base) == base
        assert work.run() == expected
    finally:
        threads.set_num_threads(old)


def test_resizing_under_load(kernels: Any) -> None:
    work = [_Work(kernels) for _ in range(3)]
    with config.scope(num_threads=1):
        expected = work[0].run()
    stop = threading.Event()
    problems: list[str] = []

    def loop(mine: _Work) -> None:
        while not stop.is_set():
            if mine.run() != expected:
                problems.append("different bits")
                return

    with config.scope(num_threads=2):
        callers = [threading.Thread(target=loop, args=(mine,)) for mine in work]
        for caller in callers:
            caller.start()
        for i in range(60):
            config.num_threads = 2 + i % 3
            time.sleep(0.01)
        stop.set()
        for caller in callers:
            caller.join()
    assert not problems


def test_many_callers(kernels: Any) -> None:
    with config.scope(num_threads=1):
        expected = _Work(kernels).run()
    problems: list[str] = []
    before = counters()

    def loop() -> None:
        mine = _Work(kernels)
        for _ in range(200):
            if mine.run() != expected:
                problems.append("different bits")
                return

    with config.scope(num_threads=2):
        callers = [threading.Thread(target=loop) for _ in range(8)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
    assert not problems
    after = counters()
    assert after.programs - before.programs == 1600
    assert after.launches - before.launches == 1600 * 6
    assert after.shared > before.shared


def test_idle_workers_use_no_cpu(kernels: Any) -> None:
    work = _Work(kernels)
    with config.scope(num_threads=3):
        work.run()
        time.sleep(0.02)
        before = time.process_time()
        time.sleep(0.3)
        assert time.process_time() - before < 0.02


def test_sleeping_workers_wake(kernels: Any) -> None:
    work = _Work(kernels)
    with config.scope(num_threads=2):
        expected = work.run()
        for pause in (0, 1e-5, 1e-4, 1e-3) * 50:
            time.sleep(pause)
            assert work.run() == expected


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="needs Linux")
def test_woken_workers_keep_off_the_callers_core(kernels: Any) -> None:
    cores = os.sched_getaffinity(0)
    if len(cores) < 2:
        pytest.skip("needs two cores")
    threads.shut_down()
    _settle(1)
    others = set(os.listdir("/proc/self/task"))
    work = _Work(kernels)
    try:
        for core in sorted(cores)[:2]:
            os.sched_setaffinity(0, {core})
            with config.scope(num_threads=2):
                threads.shut_down()
                os.sched_setaffinity(0, cores)
                threads.current(2)  # a pool that may use all cores
                os.sched_setaffinity(0, {core})
                (worker,) = set(os.listdir("/proc/self/task")) - others
                for _ in range(20):
                    time.sleep(0.002)  # asleep by now
                    work.program = Program(work.program.launches, 2, "f", work.program.arena_bytes)  # not yet run: it wakes
                    work.run()
                assert os.sched_getaffinity(int(worker)) == cores - {core}
                threads.shut_down()
                assert _settle(len(others)) == len(others)
    finally:
        os.sched_setaffinity(0, cores)


def test_no_spinning(kernels: Any) -> None:
    threads.shut_down()
    work = _Work(kernels)
    with config.scope(num_threads=1):
        expected = work.run()
    with config.scope(num_threads=3, spin_us=0):
        for _ in range(300):
            assert work.run() == expected
    threads.shut_down()


def test_fewer_threads_than_asked_for(kernels: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    threads.shut_down()
    work = _Work(kernels)
    real = threads.native_module.native()
    # The system refuses the second worker.
    monkeypatch.setattr(
        threads.native_module, "native", lambda: real._replace(pool_start=lambda pool, count: real.pool_start(pool, 1))
    )
    with config.scope(num_threads=1):
        expected = work.run()
    with config.scope(num_threads=3), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert work.run() == expected
        pool = threads.current(3)
        assert pool is not None
        assert pool.threads == 2
        assert work.run() == expected
    assert len(caught) == 1
    assert "1 of 2 worker threads (CERMET_NUM_THREADS=3)" in str(caught[0].message)
    threads.shut_down()


def test_workers_take_no_signals(kernels: Any) -> None:
    threads.shut_down()
    _settle(1)
    others = set(os.listdir("/proc/self/task"))  # OpenBLAS has threads of its own
    work = _Work(kernels)
    with config.scope(num_threads=2):
        work.run()
    (worker,) = set(os.listdir("/proc/self/task")) - others
    segv = 1 << (signal.SIGSEGV - 1)
    deadline = time.monotonic() + 5
    blocked = segv
    while blocked & segv and time.monotonic() < deadline:  # a thread starts with all of them blocked
        with open(f"/proc/self/task/{worker}/status") as file:
            blocked = next(int(line.split()[1], 16) for line in file if line.startswith("SigBlk"))
    assert blocked & 1 << (signal.SIGUSR1 - 1)
    assert blocked & 1 << (signal.SIGINT - 1)
    assert not blocked & segv
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ())  # and this thread's mask is what it was


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_fork(kernels: Any) -> None:
    work = _Work(kernels)
    with config.scope(num_threads=3):
        expected = work.run()
        for _ in range(5):
            pid = os.fork()
            if pid == 0:
                code = 1
                try:
                    same = all(work.run() == expected for _ in range(20))
                    code = 0 if same and _system_threads() == 3 else 2  # nothing but this thread survives a fork
                finally:
                    os._exit(code)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
            assert work.run() == expected


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_fork_while_others_run(kernels: Any) -> None:
    work = [_Work(kernels) for _ in range(3)]
    with config.scope(num_threads=2):
        expected = work[0].run()
        stop = threading.Event()

        def loop(mine: _Work) -> None:
            while not stop.is_set():
                mine.run()

        callers = [threading.Thread(target=loop, args=(mine,)) for mine in work[1:]]
        for caller in callers:
            caller.start()
        try:
            for _ in range(10):
                pid = os.fork()
                if pid == 0:
                    os._exit(0 if all(work[0].run() == expected for _ in range(10)) else 1)
                deadline = time.monotonic() + 30
                while True:
                    done, status = os.waitpid(pid, os.WNOHANG)
                    if done:
                        break
                    if time.monotonic() > deadline:
                        os.kill(pid, signal.SIGKILL)
                        os.waitpid(pid, 0)
                        pytest.fail("the child hangs")
                    time.sleep(0.005)
                assert os.waitstatus_to_exitcode(status) == 0
        finally:
            stop.set()
            for caller in callers:
                caller.join()


_SCRIPT = """
import importlib.util, os, sys, threading, types
package = sys.modules["cermet"] = types.ModuleType("cermet")  # the runtime alone, without what stands on it
package.__path__ = [{root!r} + "/cermet"]
spec = importlib.util.spec_from_file_location("kernels", {kernels!r})
module = importlib.util.module_from_spec(spec); spec.loader.exec_module(module)
import numpy, llvmlite.binding  # NumPy's OpenBLAS has threads of its own
before = len(os.listdir("/proc/self/task"))
from cermet import config
from cermet.runtime import buffer, program, threads
assert len(os.listdir("/proc/self/task")) == before, "threads at import"
k = module.Kernels()
config.num_threads = 4
out = buffer.Buffer(8 * 1000)
p = program.Program([program.Launch(k.busy, [program.Pointer(1), 100], 1000, scratch=8)] * 20, 1)
p.run([out.ptr])
{tail}
print("end")
"""


@pytest.mark.parametrize(
    "tail",
    [
        "",
        # Workers still spin when the interpreter goes.
        "threads.shut_down(); config.spin_us = 10_000_000; p.run([out.ptr])",
        # A Python thread is in the middle of runs.
        "def loop():\n    while True: p.run([out.ptr])\nthreading.Thread(target=loop, daemon=True).start()",
        "import atexit; atexit.register(lambda: p.run([out.ptr]))",
        "import gc; sys.keep = p; del p; gc.collect()",
        "threads.shut_down()",
    ],
    ids=["plain", "spinning", "running", "atexit", "late", "shut-down"],
)
def test_exit_without_hang_or_crash(tail: str) -> None:
    here = os.path.dirname(os.path.abspath(__file__))
    root = os.path.dirname(os.path.dirname(here))
    script = _SCRIPT.format(root=root, kernels=os.path.join(here, "conftest.py"), tail=tail)
    for _ in range(3):
        result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
        assert result.returncode == 0, result
        assert result.stdout.strip() == "end"
        assert not result.stderr
