"""Compiled evaluation: finds the program of a tape by its key, or compiles it, and runs it.

A compiled program holds numbers only (which leaf goes to which base, sizes of outputs); it keeps no node, buffer or tensor alive.
"""

from __future__ import annotations

import ctypes
import gc
import sys
import threading
import time
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from sys import getrefcount
from typing import Any

from cermet import config
from cermet.compiler.build import Schedule, build_schedule
from cermet.compiler.llvm.jit import compile_many
from cermet.compiler.llvm.target import host
from cermet.graph.node import Node
from cermet.lazy import template
from cermet.lazy.by_reference import evaluate_reference
from cermet.lazy.record import Tape, describe_location, user_location
from cermet.lazy.values import held_mask, set_value, settle_clones
from cermet.ops.leaf import data_call
from cermet.runtime.buffer import Buffer
from cermet.runtime.program import Gate, Launch, Pointer, Program, ScalarArg

__all__ = ["Compiled", "clear_programs", "counters", "program_for", "run_tape"]

_lock = threading.Lock()
_programs: OrderedDict[Any, Compiled] = OrderedDict()
_aliases: OrderedDict[Any, Compiled] = OrderedDict()
_counts = {"evaluations": 0, "programs_compiled": 0, "program_hits": 0}
_seconds = {"schedule": 0.0, "compile": 0.0}


class Compiled:
    """A program and how a tape's leaves and results map to its arguments.

    Attributes:
        program: the launch table. leaves: numbers of the tape's leaves whose buffers are bases, in order.
        scalars: numbers of the leaves that are run-time scalars. outputs: bytes of each output buffer.
        results: (position on the tape, output number, or -1 - leaf number where the result is a leaf itself).
        donations: (output number, leaf number, references to the leaf that the tape itself makes): an output may take over the memory of a
            leaf that nobody else holds.
        has_status: whether the last base is a word that kernels set when they met bad data.
    """

    __slots__ = ("donations", "has_status", "leaves", "names", "outputs", "program", "results", "scalars")

    def __init__(self) -> None:
        self.program: Any = None
        self.leaves: list[int] = []
        self.scalars: list[int] = []
        self.outputs: list[int] = []
        self.results: list[tuple[int, int]] = []
        self.donations: list[tuple[int, int, int]] = []
        self.has_status = False
        self.names: list[str] = []

    def again(self) -> Compiled:
        """The same ties to a recording, without what depends on sizes: outputs, donations, names, program."""
        out = Compiled()
        out.leaves, out.scalars, out.results, out.has_status = self.leaves, self.scalars, self.results, self.has_status
        return out


def counters() -> dict[str, float]:
    """Evaluations, programs compiled and found, seconds spent scheduling and compiling, programs held."""
    with _lock:
        return {
            **_counts, "programs_held": len(_programs), "schedule_seconds": _seconds["schedule"], "compile_seconds": _seconds["compile"],
            **template.counters(),
        }  # fmt: skip


def clear_programs() -> None:
    """Forget all compiled programs."""
    with _lock:
        _programs.clear()
        _aliases.clear()
    template.clear_templates()


def run_tape(tape: Tape, nodes: list[Node], counts: tuple[int, ...]) -> None:
    """Compute the held nodes of a tape."""
    key = (tuple(tape.key), tuple(tape.leaf_ids), counts)
    compiled = _aliases.get(key)
    if compiled is None:
        compiled = _find(tape, nodes, counts, key)
    else:
        _counts["program_hits"] += 1
    _counts["evaluations"] += 1
    leaves = list(tape.leaves)
    clones = tape.clones
    if not _run(compiled, nodes, leaves):
        # A kernel met bad data (an index out of range): the reference finds the op, computes what does not depend on it, and raises.
        evaluate_reference(tape, nodes, counts)
        return
    tape.reset()
    if clones:
        settle_clones(clones)


def _find(tape: Tape, nodes: list[Node], counts: tuple[int, ...], alias: Any) -> Compiled:
    held = held_mask(nodes, counts)
    compiled = program_for(tape, nodes, held, (alias[0], alias[1], tuple(held)))
    with _lock:
        _aliases[alias] = compiled
        while len(_aliases) > 4 * config.program_cache_size:
            _aliases.popitem(last=False)
    return compiled


def program_for(tape: Tape, nodes: list[Node], held: list[bool], key: Any) -> Compiled:
    """The program that computes the held nodes of a tape; ``key``: the tape's key, its leaves' and ``held``, as tuples."""
    with _lock:
        compiled = _programs.get(key)
        if compiled is not None:
            _programs.move_to_end(key)
    if compiled is None:
        compiled = _from_template(tape, nodes, held) or _compile(tape, nodes, held, _notice(nodes, key))
        _counts["programs_compiled"] += 1
    else:
        _counts["program_hits"] += 1
    with _lock:
        _programs[key] = compiled
        while len(_programs) > config.program_cache_size:
            _programs.popitem(last=False)
    return compiled


OFTEN = 64  # programs compiled for one line of the user's from which on that is worth a warning


class _Site:
    """What was compiled for evaluations that one line of the user's asked for."""

    __slots__ = ("count", "last", "shapes")

    def __init__(self) -> None:
        self.count = 0
        self.shapes = 0
        self.last: Any = None


_sites: OrderedDict[Any, _Site] = OrderedDict()


def _notice(nodes: list[Node], key: Any) -> str:
    """Why a program is compiled, compared with the last one for the same line; warns when a line keeps causing it."""
    where = user_location(3)
    with _lock:
        site = _sites.setdefault(where, _Site())
        _sites.move_to_end(where)
        while len(_sites) > 1024:
            _sites.popitem(last=False)
        last, site.last = site.last, (len(key[0]), tuple([n.call.op.name for n in nodes]), key[1], key[2])
        site.count += 1
        if last is None:
            reason = "first evaluation here"
        elif last[1] != site.last[1]:
            reason = "other operations than last time"
        elif last[2] == site.last[2] and last[3] != site.last[3]:
            reason = "other results are held than last time"
        else:
            reason = "other shapes, dtypes or attributes than last time"
            site.shapes += 1
        count, mostly_shapes = site.count, site.shapes * 2 > site.count
    if count == OFTEN:
        cure = "pad to a few sizes" if mostly_shapes else "keep the operations between two evaluations the same"
        file, _, line = describe_location(where).rpartition(":")
        warnings.warn_explicit(
            f"{count} programs have been compiled for evaluations at {file}:{line} (the last one: {reason}). Each costs "
            f"planning time; {cure}, or set CERMET_LOG=compile to see them all.",
            RuntimeWarning,
            file or "unknown",
            int(line or 1),
        )
    return reason


def _from_template(tape: Tape, nodes: list[Node], held: list[bool]) -> Compiled | None:
    """A program of a structure that was planned before with other sizes."""
    begin = time.perf_counter()
    with _no_collection():
        compiled: Compiled | None = template.find(tape, nodes, held, _planned_with_letters, "compile" in config.log)
    _seconds["schedule"] += time.perf_counter() - begin
    if compiled is not None and "compile" in config.log:
        print(f"cermet: other sizes: a program of {len(nodes)} nodes from its template", file=sys.stderr)
    return compiled


def _planned_with_letters(mirror: Any, nodes: list[Node], held: list[bool]) -> template.Planned:
    """What a template is made of."""
    wanted = [n for n, h in zip(nodes, held, strict=True) if h and n.call.outs is None]
    schedule = build_schedule(wanted, host())
    codes = compile_many([c.request for c in schedule.calls])
    return template.Planned(schedule, codes, *_ties(mirror, wanted, schedule), _uses(nodes))


@contextmanager
def _no_collection() -> Iterator[None]:
    """Planning makes many small objects and no garbage cycles; letting the collector look at each batch of them costs a tenth of the time."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def _compile(tape: Tape, nodes: list[Node], held: list[bool], reason: str) -> Compiled:
    begin = time.perf_counter()
    wanted = [n for n, h in zip(nodes, held, strict=True) if h and n.call.outs is None]
    with _no_collection():
        schedule = build_schedule(wanted, host())
    middle = time.perf_counter()
    codes = compile_many([c.request for c in schedule.calls])
    end = time.perf_counter()
    _seconds["schedule"] += middle - begin
    _seconds["compile"] += end - middle
    if "compile" in config.log:
        _report(nodes, wanted, schedule, middle - begin, end - middle, reason)
    return _assemble(tape, nodes, wanted, schedule, codes)


def _report(nodes: list[Node], wanted: list[Node], schedule: Schedule, planning: float, compiling: float, reason: str) -> None:
    where = describe_location(nodes[-1].where) if nodes else ""
    print(
        f"cermet: {reason}: compiled a program of {len(nodes)} nodes, {len(wanted)} results, {len(schedule.calls)} launches "
        f"(planned in {planning * 1e3:.1f} ms, code in {compiling * 1e3:.1f} ms); last op recorded at {where}",
        file=sys.stderr,
    )


def _assemble(tape: Tape, nodes: list[Node], wanted: list[Node], schedule: Schedule, codes: list[Any]) -> Compiled:
    out, base_of, scalar_of, kinds = _ties(tape, wanted, schedule)
    if schedule.donations:
        uses = _uses(nodes)
        for final, leaf in schedule.donations:
            out.donations.append((base_of[final] - len(out.leaves) - 1, -1 - tape.leaves[leaf], uses.get(leaf, 0)))
    status = len(out.leaves) + len(out.outputs) + 1
    launches: list[Launch] = []
    last_check = max([k for k, c in enumerate(schedule.calls) if any(a[0] == "status" for a in c.args)], default=-1)
    for k, (call, code) in enumerate(zip(schedule.calls, codes, strict=True)):
        args = [_argument(a, base_of, scalar_of, schedule.offsets, status) for a in call.args]
        launches.append(Launch(code.address, args, call.blocks, call.grain, call.scratch, code, call.name))
        if k == last_check and schedule.donations:
            launches.append(Gate(Pointer(status, 0)))  # bad data must be noticed before leaves are overwritten
    out.program = Program(launches, status if out.has_status else status - 1, kinds, schedule.arena_bytes)
    out.names = [c.name for c in schedule.calls]
    return out


def _uses(nodes: list[Node]) -> dict[Node, int]:
    """How often each node is an input of the recording's."""
    uses: dict[Node, int] = {}
    for n in nodes:
        for i in n.inputs:
            uses[i] = uses.get(i, 0) + 1
    return uses


def _ties(tape: Any, wanted: list[Node], schedule: Schedule) -> tuple[Compiled, dict[Node, int], dict[Node, int], str]:
    """(leaves, scalars, outputs and results of a program that has no launches yet, bases of leaves and outputs, numbers of scalars, their
    kinds)."""
    out = Compiled()
    numbers = tape.leaves
    base_of: dict[Node, int] = {}
    scalar_of: dict[Node, int] = {}
    kinds = ""
    for call in schedule.calls:
        for arg in call.args if call.origin is None else (*call.args, *call.origin.operands.values()):
            value = arg[1]
            if arg[0] == "node" and value.buffer is not None and value not in base_of:
                out.leaves.append(-1 - numbers[value])
                base_of[value] = len(out.leaves)
            elif arg[0] == "scalar" and value not in scalar_of:
                scalar_of[value] = len(out.scalars)
                out.scalars.append(-1 - numbers[value])
                d = value.meta.dtype
                kinds += "d" if d.name == "float64" else "f" if d.kind == "f" else "q"
            elif arg[0] == "status":
                out.has_status = True
    count = len(out.leaves)
    output_of: dict[Node, int] = {}
    for node, final in zip(wanted, schedule.outputs, strict=True):
        if final.buffer is not None:
            out.results.append((node.pos, numbers[final]))
            continue
        if final not in output_of:
            output_of[final] = len(out.outputs)
            out.outputs.append(final.meta.nbytes)
            base_of[final] = count + len(out.outputs)
        out.results.append((node.pos, output_of[final]))
    return out, base_of, scalar_of, kinds


def _argument(
    arg: tuple[Any, ...], bases: dict[Node, int], scalars: dict[Node, int], offsets: dict[Any, int], status: int
) -> Any:
    kind, value = arg[0], arg[1]
    if kind == "int":
        return value
    if kind == "scalar":
        return ScalarArg(scalars[value])
    if kind == "status":
        return Pointer(status, 0)
    base = bases.get(value)
    if base is not None:
        return Pointer(base, arg[2])
    return Pointer(0, offsets[value] + arg[2])


def _run(compiled: Compiled, nodes: list[Node], leaves: list[Node]) -> bool:
    """Run, and give the results to their nodes. False where a kernel met bad data; then nothing was given.

    A small program costs little more than this: hence loops where comprehensions would be shorter, each a call of its own in Python 3.11.
    """
    bases = []
    for k in compiled.leaves:
        bases.append(leaves[k].buffer.ptr)
    buffers = []
    taken = _donated(compiled, leaves) if compiled.donations else None
    for k, n in enumerate(compiled.outputs):
        buffer = taken.get(k) if taken else None
        if buffer is None:
            buffer = Buffer(n)
        buffers.append(buffer)
        bases.append(buffer.ptr)
    if compiled.has_status:
        status = Buffer(8)
        word = ctypes.c_int64.from_address(status.ptr)
        word.value = 0
        bases.append(status.ptr)
    scalars: Any = ()
    if compiled.scalars:
        scalars = []
        for k in compiled.scalars:
            scalars.append(leaves[k].buffer)
    compiled.program.run(bases, scalars)
    if compiled.has_status and word.value:
        return False
    for position, number in compiled.results:
        node = nodes[position]
        if number >= 0:  # `set_value`, for the buffer of an output
            node.buffer = buffers[number]
            m = node.meta
            node.call = m.leaf or data_call(m)
            node.inputs = ()
            node.epoch = None
        else:
            set_value(node, leaves[-1 - number].buffer)
    return True


def _donated(compiled: Compiled, leaves: list[Node]) -> dict[int, Buffer]:
    """Output number -> the buffer of a leaf that dies with this recording.

    The references that count for a leaf: the list of leaves, the tape's dict, the inputs of the tape's nodes, and the call's own; for its
    buffer: the leaf's and the call's own.
    """
    out: dict[int, Buffer] = {}
    for output, leaf, uses in compiled.donations:
        node = leaves[leaf]
        if getrefcount(node) == uses + _LEAF_REFERENCES and output not in out:
            buffer = node.buffer
            if getrefcount(buffer) == 3 and buffer.capacity:  # not memory of others
                out[output] = buffer
    return out


# The list, the dict, the local name and getrefcount's argument.
_LEAF_REFERENCES = 4
