"""The walker as a built-in function: what it is given, and that it is of use from several threads."""

from __future__ import annotations

import threading

import numpy as np
import pytest

import cermet as ct
from cermet.runtime import arena, entry, native


def test_wrong_arguments_are_refused():
    if entry.symbols() is None:
        pytest.skip("not CPython")
    run = native.native().run
    with pytest.raises(TypeError):
        run(0, b"")
    with pytest.raises(TypeError):
        run("0", b"", 0, 0, 0)
    with pytest.raises(TypeError):
        run(0, 1, 0, 0, 0)
    with pytest.raises(OverflowError):
        run(1 << 70, b"", 0, 0, 0)


def test_small_workspaces_are_kept_and_given_back():
    x = ct.ones(4)
    ct.realize(x)
    for _ in range(5):
        ct.realize(x + 1.0)
    assert 1 <= len(arena.small) <= 8 and all(w.nbytes == arena.SMALL for w in arena.small)
    from cermet.runtime.buffer import empty_cache

    empty_cache()
    assert not arena.small
    assert (x + 1.0).tolist() == [2.0] * 4


def test_small_programs_from_several_threads():
    x = ct.tensor(np.arange(16.0))
    ct.realize(x)
    wrong = []

    def work(k: int) -> None:
        for n in range(100):
            if not np.array_equal((x * float(k) + float(n)).numpy(), np.arange(16.0) * k + n):
                wrong.append((k, n))

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong
