"""Every knob of Cermet, declared once: name, environment variable, type, default and meaning.

Knobs are read as plain attributes (``config.num_threads``), which is as quick as any module global. They are set from the
environment at import, by assignment (``config.num_threads = 2``), or for the length of a block::

    with config.scope(num_threads=1, eager=True):
        ...

A value that makes no sense is refused wherever it comes from, with an error that names the variable, the value and what was
expected. Knobs belong to the process: a scope entered in one thread is seen by the others.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, NamedTuple

__all__ = ["KNOBS", "LOG_TOPICS", "Knob", "describe", "reset", "scope"]

#: What ``CERMET_LOG`` understands; ``all`` stands for every one of them.
LOG_TOPICS = ("compile", "cache", "evaluate", "graph", "schedule", "loops", "llvm", "asm", "memory", "threads")

# Declared for readers and type checkers; the values are bound at the end of this file.
num_threads: int
eager: bool
log: frozenset[str]
verify: bool
reference: bool
cpu: str
cache_dir: str
disk_cache: bool
disk_cache_bytes: int
program_cache_size: int
kernel_cache_size: int
pending_nodes: int
pending_bytes: int
buffer_cache_bytes: int
spin_us: int
winograd: bool


class Knob(NamedTuple):
    """One knob.

    Attributes:
        name: the attribute of this module.
        variable: the environment variable it is read from.
        parse: turns the text of the variable, or a Python value, into the knob's value; raises ValueError or TypeError.
        expected: what ``parse`` accepts, in words, for error messages.
        default: the default value, or a function that finds it.
        doc: what it does.
    """

    name: str
    variable: str
    parse: Callable[[Any], Any]
    expected: str
    default: Any
    doc: str


_TRUE = frozenset(("1", "true", "yes", "on"))
_FALSE = frozenset(("0", "false", "no", "off", ""))
_SUFFIX = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def _flag(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, int) and value in (0, 1):
        return bool(value)
    if isinstance(value, str):
        text = value.strip().lower()
        if text in _TRUE:
            return True
        if text in _FALSE:
            return False
    raise ValueError


def _integer(low: int) -> Callable[[Any], int]:
    def parse(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, (int, str)):
            raise TypeError
        number = int(value)
        if number < low:
            raise ValueError
        return number

    return parse


def _bytes(value: Any) -> int:
    if isinstance(value, str):
        match = re.fullmatch(r"\s*(\d+)\s*([kmgt]?)(?:i?b)?\s*", value.lower())
        if match is None:
            raise ValueError
        return int(match[1]) * _SUFFIX[match[2]]
    return _integer(0)(value)


def _topics(value: Any) -> frozenset[str]:
    names: Iterable[Any] = value.split(",") if isinstance(value, str) else value
    topics = {str(name).strip().lower() for name in names} - {""}
    if "all" in topics:
        return frozenset(LOG_TOPICS)
    if not topics.issubset(LOG_TOPICS):
        raise ValueError
    return frozenset(topics)


def _cpu(value: Any) -> str:
    if not isinstance(value, str) or re.fullmatch(r"[A-Za-z0-9_.+,=-]*", value) is None:
        raise ValueError
    return value


def _folder(value: Any) -> str:
    path = os.fspath(value)
    if not isinstance(path, str) or not path or "\0" in path:
        raise ValueError
    return os.path.abspath(os.path.expanduser(path))


def _usable_cores() -> int:
    # The affinity mask, not the machine: containers and batch systems lend a process fewer cores than there are.
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return os.cpu_count() or 1


def _default_cache_dir() -> str:
    root = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(root):  # the XDG specification says to ignore a relative path
        root = os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(root, "cermet")


_BYTES = "a number of bytes such as 1048576, '512M' or '2G'"
_FLAG = "a switch: 1/0, on/off, true/false or yes/no"


def _declare(*knobs: Knob) -> dict[str, Knob]:
    return {knob.name: knob for knob in knobs}


#: Every knob by name, in the order in which :func:`describe` prints them.
KNOBS: dict[str, Knob] = _declare(
    Knob("num_threads", "CERMET_NUM_THREADS", _integer(1), "an integer of at least 1", _usable_cores,
         "threads that run a kernel's blocks and compile kernels, the calling thread among them; results never depend on it"),
    Knob("eager", "CERMET_EAGER", _flag, _FLAG, False,
         "evaluate each operation at once instead of recording it, for stepping through with a debugger"),
    Knob("log", "CERMET_LOG", _topics, "a comma list of " + ", ".join(LOG_TOPICS) + " or all", frozenset(),
         "what to report on stderr"),
    Knob("verify", "CERMET_VERIFY", _flag, _FLAG, False,
         "check the graph and the loop IR after every compiler pass"),
    Knob("reference", "CERMET_REFERENCE", _flag, _FLAG, False,
         "evaluate with the NumPy reference of each operator instead of compiled code"),
    Knob("cpu", "CERMET_CPU", _cpu, "an LLVM CPU such as 'x86-64-v3', perhaps with ',+feature,-feature', or '' for the host", "",
         "the CPU that kernels are compiled for; empty means the host, with all its features"),
    Knob("cache_dir", "CERMET_CACHE_DIR", _folder, "a path", _default_cache_dir,
         "folder of compiled kernels"),
    Knob("disk_cache", "CERMET_DISK_CACHE", _flag, _FLAG, True,
         "keep compiled kernels on disk"),
    Knob("disk_cache_bytes", "CERMET_DISK_CACHE_BYTES", _bytes, _BYTES, 512 << 20,
         "bound on the kernels kept on disk; the least recently used go first"),
    Knob("program_cache_size", "CERMET_PROGRAM_CACHE_SIZE", _integer(1), "an integer of at least 1", 256,
         "programs kept in memory, least recently used out first"),
    Knob("kernel_cache_size", "CERMET_KERNEL_CACHE_SIZE", _integer(1), "an integer of at least 1", 4096,
         "kernels kept in memory, least recently used out first"),
    Knob("pending_nodes", "CERMET_PENDING_NODES", _integer(1), "an integer of at least 1", 10_000,
         "recorded operations after which they are evaluated without being looked at"),
    Knob("pending_bytes", "CERMET_PENDING_BYTES", _bytes, _BYTES, 1 << 34,
         "bytes of recorded results after which they are evaluated without being looked at"),
    Knob("buffer_cache_bytes", "CERMET_BUFFER_CACHE_BYTES", _bytes, _BYTES, 256 << 20,
         "released tensor memory that is kept for reuse at any time; more is kept only while recent steps have needed it"),
    Knob("spin_us", "CERMET_SPIN_US", _integer(0), "an integer of at least 0", 50,
         "microseconds an idle worker thread waits awake for the next kernel before it sleeps"),
    Knob("winograd", "CERMET_WINOGRAD", _flag, _FLAG, True,
         "compute 3x3 convolutions by Winograd's algorithm where it is faster; read when a program is compiled"),
)  # fmt: skip


def _checked(knob: Knob, value: Any, label: str) -> Any:
    try:
        return knob.parse(value)
    except (ValueError, TypeError):
        raise ValueError(f"{label}={value!r}: expected {knob.expected}") from None


def _knob(name: str) -> Knob:
    knob = KNOBS.get(name)
    if knob is None:
        raise AttributeError(f"config has no knob {name!r}; it has: {', '.join(KNOBS)}")
    return knob


def _initial(knob: Knob) -> Any:
    text = os.environ.get(knob.variable)
    if text is not None and (text.strip() or knob.parse in (_flag, _topics, _cpu)):
        return _checked(knob, text, knob.variable)
    # An empty variable of any other type counts as unset, as shells make it hard to tell the two apart.
    return knob.default() if callable(knob.default) else knob.default


@contextmanager
def scope(**values: Any) -> Iterator[None]:
    """Set knobs for the length of a ``with`` block and put the old values back after it, whatever happens.

    Raises:
        AttributeError: for a name that is no knob.
        ValueError: for a value that the knob does not take.
    """
    checked = {name: _checked(_knob(name), value, f"config.{name}") for name, value in values.items()}
    space = globals()
    old = {name: space[name] for name in checked}
    space.update(checked)
    try:
        yield
    finally:
        space.update(old)


def reset(*names: str) -> None:
    """Read the named knobs (all of them without names) from the environment again, or take their defaults."""
    for knob in [_knob(name) for name in names] or KNOBS.values():
        globals()[knob.name] = _initial(knob)


def describe() -> str:
    """All knobs with their present values, variables and meanings, as text."""
    lines = []
    for knob in KNOBS.values():
        value = globals()[knob.name]
        shown = ",".join(sorted(value)) if isinstance(value, frozenset) else str(value)
        lines.append(f"{knob.name} = {shown or repr(shown)}\n    {knob.variable}: {knob.expected}\n    {knob.doc}")
    return "\n".join(lines)


class _Config(ModuleType):
    """This module's class: assignments are checked; reads stay those of an ordinary module."""

    def __setattr__(self, name: str, value: Any) -> None:
        knob = KNOBS.get(name)
        if knob is not None:
            value = _checked(knob, value, f"config.{name}")
        elif not (name.startswith("_") or name in self.__dict__):
            _knob(name)  # a misspelt knob would otherwise be set in silence and change nothing
        super().__setattr__(name, value)


reset()
sys.modules[__name__].__class__ = _Config
