"""Schedules chosen by measurement: what `cermet.tune` found out about this machine, kept on disk.

A kernel family that has several schedules for a problem, all with the same bits, does two things: it asks `choice` before its cost
model, and answers with a `Question` when somebody is `collecting`. Which family that is, and what a choice means, is its own
affair; here choices are JSON values under the family's name and the problem's.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from cermet.compiler.kernels.plan import Plan
from cermet.runtime import object_cache

__all__ = ["Candidate", "Question", "ask", "choice", "collecting", "is_collecting", "learn", "reset", "save"]

_FORMAT = 1  # of choices; a number more where they change their meaning


@dataclass
class Candidate:
    """One schedule: what to remember should it win (a JSON value), and its plan."""

    choice: Any
    plan: Callable[[], Plan]


@dataclass
class Question:
    """A problem with several schedules.

    Attributes:
        family: who asks, ``"contraction"``.
        key: names the problem within the family; equal keys, equal problems.
        buffers: bytes of each operand that the plans name.
        candidates: the first is what the cost model says.
    """

    family: str
    key: str
    target: Any
    buffers: dict[str, int]
    candidates: list[Candidate] = field(default_factory=list)


_loaded: dict[str, dict[str, Any]] = {}  # by family and machine
_questions: dict[tuple[str, str], Question] | None = None


def _where(family: str, target: Any) -> str:
    return f"tuned {_FORMAT}|{family}|{target.code_key}|{target.l1d}|{target.l2}|{target.l3}"


def _table(family: str, target: Any) -> dict[str, Any]:
    where = _where(family, target)
    found = _loaded.get(where)
    if found is None:
        found = {}
        data = object_cache.load(where)
        if data is not None:
            try:
                read = json.loads(data)
            except ValueError:  # of another version
                read = None
            if isinstance(read, dict):
                found = read
        found = _loaded.setdefault(where, found)
    return found


def choice(family: str, target: Any, key: Callable[[], str]) -> Any:
    """What was measured to be best for a problem; None where nothing was, and while new measurements are prepared."""
    table = _table(family, target)
    return table.get(key()) if table and _questions is None else None


def is_collecting() -> bool:
    """Whether questions are welcome."""
    return _questions is not None


def ask(question: Question) -> None:
    """Have a problem measured, if somebody is collecting and it has more than one schedule."""
    if _questions is not None and len(question.candidates) > 1:
        _questions.setdefault((question.family, question.key), question)


@contextmanager
def collecting() -> Iterator[dict[tuple[str, str], Question]]:
    """Gather the questions of all plans made inside."""
    global _questions
    before, _questions = _questions, {}
    try:
        yield _questions
    finally:
        _questions = before


def learn(question: Question, best: Any) -> None:
    """Remember the best choice of a question in this process; None forgets what was remembered."""
    table = _table(question.family, question.target)
    if best is None:
        table.pop(question.key, None)
    else:
        table[question.key] = best


def save(questions: list[Question]) -> None:
    """Write what was learned about these questions' families to disk, with what other processes learned meanwhile."""
    for family, target in {(q.family, q.target) for q in questions}:
        where = _where(family, target)
        mine = _table(family, target)
        _loaded.pop(where)
        table = _table(family, target)
        asked = {q.key for q in questions if q.family == family and q.target == target}
        for key in asked:
            table.pop(key, None)
        table.update(mine)
        object_cache.store(where, json.dumps(table, sort_keys=True).encode())


def reset() -> None:
    """Forget what is in memory; it is read from disk again when it is asked for."""
    _loaded.clear()
