"""Templates: programs planned once for all sizes that lead to the same plan.

A program's *structure* is its recording with every integer (sizes, positions of slices, …) left out; the integers are its *numbers*. When a
structure comes with other numbers a second time, it is planned with letters in the places that differ (see `cermet.graph.sizes`). What
comes out is a template: a table of launches, formulas for the numbers in it, and guards. A third set of numbers for which the guards hold
needs no planning: the table is copied and its numbers are put in.

Sound by construction: whatever planning asks about a size is a guard, and what can't be asked in letters makes the structure refused
(counted in ``ct.stats()``, told with ``CERMET_LOG=compile``), so that its programs are planned one by one as ever. Only where two shapes
that differ in letters happen to be equal may a program from a template differ from one planned for its sizes: calls that are
equal by accident are not merged. The values are the same.
"""

from __future__ import annotations

import itertools
import sys
import threading
from collections import OrderedDict
from typing import Any

from cermet import config
from cermet.compiler.build import Schedule, place
from cermet.compiler.kernels.plan import Temp
from cermet.compiler.llvm.jit import Request, compile_many
from cermet.compiler.schedule.hand import Call as Planning
from cermet.compiler.schedule.hand import Origin, TempSpace
from cermet.graph import node as graph
from cermet.graph.formulas import Formulas
from cermet.graph.node import Call, Meta, Node
from cermet.graph.sizes import Coincidence, Refused, Size, Trace, recipe
from cermet.lazy.outline import Mirror, Pattern, structure_of
from cermet.ops.define import REGISTRY
from cermet.runtime.program import Program

__all__ = ["Planned", "Template", "clear_templates", "counters", "find", "structure_of"]

MOST_TEMPLATES = 8  # of one structure: each is valid for the sizes that take the same turns
MOST_ATTEMPTS = 12  # plannings with letters for one structure, failed ones included
MOST_REFUSALS = 2
MOST_NUMBERS = 50_000

_lock = threading.Lock()
_structures: OrderedDict[Any, _Structure] = OrderedDict()
_counts = {"templates": 0, "templates_refused": 0, "programs_from_templates": 0}


def counters() -> dict[str, int]:
    """Templates made, plannings with letters given up, programs made from templates."""
    with _lock:
        return dict(_counts)


def clear_templates() -> None:
    """Forget all templates."""
    with _lock:
        _structures.clear()


class _Structure:
    """What is known of one structure: numbers it came with, templates, how often letters were tried and refused."""

    __slots__ = ("attempts", "refusals", "seen", "templates")

    def __init__(self, numbers: list[int]) -> None:
        self.seen = [numbers]
        self.templates: list[Template] = []
        self.attempts = 0
        self.refusals = 0


# ------------------------------------------------------------------------------------------------------- finding


def find(tape: Any, nodes: list[Node], held: list[bool], plan: Any, log: bool) -> Any:
    """A compiled program for the recording from a template, old or new, or None where it is to be planned as it stands.

    Args:
        plan: makes the launches of a mirrored recording: ``plan(mirror, nodes, held)``, see `cermet.lazy.run`.
        log: whether to tell of refusals.
    """
    leaves = list(tape.leaves)
    key, numbers = structure_of(nodes, leaves, tape.key, held)
    if len(numbers) > MOST_NUMBERS:
        return None
    with _lock:
        known = _structures.get(key)
        if known is None:
            _structures[key] = _Structure(numbers)
            while len(_structures) > config.program_cache_size:
                _structures.popitem(last=False)
            return None
        _structures.move_to_end(key)
        templates = list(known.templates)
    for t in templates:
        compiled = t.compiled(numbers)
        if compiled is not None:
            with _lock:
                _counts["programs_from_templates"] += 1
            return compiled
    with _lock:
        if numbers in known.seen or known.attempts >= MOST_ATTEMPTS or known.refusals >= MOST_REFUSALS:
            return None
        known.attempts += 1
        seen = [*known.seen, numbers]
        known.seen = [known.seen[0], *known.seen[1:][-2:], numbers]
    return _traced(known, tape, nodes, leaves, held, seen, plan, log)


def _traced(
    known: _Structure,
    tape: Any,
    nodes: list[Node],
    leaves: list[Node],
    held: list[bool],
    seen: list[list[int]],
    plan: Any,
    log: bool,
) -> Any:
    """Plan with letters; keeps the template. None where that was refused."""
    numbers = seen[-1]
    pattern = Pattern(seen)
    trace = Trace(pattern.first)
    before = [(op.calls, len(op.calls)) for op in REGISTRY.values()], len(graph._METAS)
    try:
        with trace.active():
            mirror = Mirror(tape, nodes, leaves, pattern.filled(numbers, trace.unknowns))
            template = Template(trace, pattern, plan(mirror, mirror.nodes, held), mirror)
            compiled = template.compiled(numbers)
        if compiled is None:
            raise Refused("the template does not give back what it was made from")
    except Exception as problem:
        # Whatever rule or kernel can't do with letters: the plan is made as ever, and errors of the user's are raised there.
        with _lock:
            known.refusals += not isinstance(problem, Coincidence)
            _counts["templates_refused"] += 1
        if log:
            print(
                f"cermet: no template for a program of {len(nodes)} nodes: {type(problem).__name__}: {problem}", file=sys.stderr
            )
        return None
    finally:
        _forget_letters(*before)
        trace.close()
    with _lock:
        known.templates.insert(0, template)
        del known.templates[MOST_TEMPLATES:]
        _counts["templates"] += 1
    return compiled


def _forget_letters(calls: list[tuple[dict[Any, Call], int]], metas: int) -> None:
    """Take what was interned with letters in it out of the shared tables."""
    for table, before in calls:
        for key in _latest(table, before):
            found = table.get(key)
            if found is not None and _has_letters(found):
                table.pop(key, None)
    for key in _latest(graph._METAS, metas):
        if any(type(s) is Size for s in key[0]):
            graph._METAS.pop(key, None)


def _latest(table: dict[Any, Any], before: int) -> list[Any]:
    """The keys that came after the table had so many; all where it was cleared meanwhile."""
    count = len(table) - before
    return list(itertools.islice(reversed(table), count if count >= 0 else len(table)))


def _has_letters(call: Call) -> bool:
    stack: list[Any] = [call.attrs, call.inputs, call.outs or call.meta]
    while stack:
        x = stack.pop()
        kind = type(x)
        if kind is Size:
            return True
        if kind is tuple:
            stack.extend(x)
        elif kind is Meta:
            stack.append(x.shape)
        elif kind is Call:
            stack.extend((x.attrs, x.inputs))
    return False


# ------------------------------------------------------------------------------------------------------ templates


class Planned:
    """A schedule with letters in it, and its ties to the recording."""

    __slots__ = ("base_of", "codes", "compiled", "kinds", "scalar_of", "schedule", "uses")

    def __init__(
        self, schedule: Schedule, codes: list[Any], compiled: Any, base_of: dict[Node, int], scalar_of: dict[Node, int], kinds: str,
        uses: dict[Node, int],
    ) -> None:  # fmt: skip
        self.schedule = schedule
        self.codes = codes
        self.compiled = compiled
        self.base_of = base_of
        self.scalar_of = scalar_of
        self.kinds = kinds
        self.uses = uses


class _Value:
    """What stands for a node or temporary in the plan of memory.

    buffer: None where the program computes it. number: of its bytes among the template's numbers. base: where it is no part of the arena.
    """

    __slots__ = ("base", "buffer", "number")

    def __init__(self, buffer: Any, number: int, base: int | None) -> None:
        self.buffer = buffer
        self.number = number
        self.base = base


class _Launch:
    """A launch as the plan of memory sees it: ``args``, without integers and scalars, and ``inplace`` (see `build.place`).

    row: tags and numbers of the table, from the address on. moved: (place in the row, value, number of a further offset), for values in
    the arena. put: (place in the row, number). scratch: number, or bytes for a launch that was planned anew.
    """

    __slots__ = ("args", "inplace", "moved", "owner", "put", "row", "scratch")

    def __init__(self, args: list[Any], inplace: Any, row: list[int], owner: tuple[str, Any], scratch: int) -> None:
        self.args = args
        self.inplace = inplace
        self.row = row
        self.owner = owner
        self.scratch = scratch
        self.moved: list[tuple[int, Any, int]] = []
        self.put: list[tuple[int, int]] = []


class _Family:
    """Launches that a kernel family plans anew for other sizes.

    what: makes its arguments from the template's numbers. operands: name -> (tag, number of the offset or integer, value).
    """

    __slots__ = ("operands", "origin", "what")

    def __init__(self, origin: Origin, what: Any, operands: dict[str, tuple[int, int, Any]]) -> None:
        self.origin = Origin(origin.plan, (), origin.epilogue, origin.args, {}, origin.name)
        self.what = what
        self.operands = operands


class Template:
    """A planned program whose numbers are formulas.

    Made while the trace is under way; what is kept holds no letters and no nodes.
    """

    __slots__ = ("_bases", "_compiled", "_formulas", "_kinds", "_numbers", "_outputs", "_pattern", "_places", "_results", "_units", "_uses",
                 "_values")  # fmt: skip

    def __init__(self, trace: Trace, pattern: Pattern, planned: Planned, mirror: Mirror) -> None:
        self._pattern = pattern
        self._compiled = planned.compiled.again()
        self._kinds = planned.kinds
        self._bases = len(planned.compiled.leaves) + len(planned.compiled.outputs) + int(planned.compiled.has_status)
        self._numbers: list[Any] = []
        self._places: dict[Any, int] = {}
        self._values: dict[Any, _Value] = {}
        self._outputs = [self._number(n) for n in planned.compiled.outputs]
        self._units: list[_Launch | _Family] = []
        before: Any = None
        for call, code in zip(planned.schedule.calls, planned.codes, strict=True):
            if call.origin is None:
                self._units.append(self._launch(call, code, planned))
            elif call.origin is not before:
                self._units.append(self._family(call.origin, planned))
            before = call.origin
        # Who may take over whose memory: outputs by number, and leaves by number with the references that the recording makes.
        leaves = len(planned.compiled.leaves)
        self._results = {
            self._value(n, planned): planned.base_of[n] - leaves - 1 for n in planned.schedule.outputs if n.buffer is None
        }
        self._uses = {
            v: (-1 - mirror.leaves[n], planned.uses.get(n, 0)) for n, v in self._values.items() if n in mirror.leaves
        }  # fmt: skip
        for n in planned.schedule.outputs:
            if n.buffer is not None and n in self._values:
                del self._uses[self._values[n]]  # a result itself
        self._formulas: Formulas = trace.formulas(self._numbers)
        self._numbers, self._places, self._values = [], {}, {}

    # -- taking the plan in ------------------------------------------------------------------------------------------

    def _number(self, x: Any) -> int:
        """The place among the template's numbers of a Size or int, each once."""
        key = id(x) if type(x) is Size else (x,)
        found = self._places.get(key)
        if found is None:
            found = self._places[key] = len(self._numbers)
            self._numbers.append(x)
        return found

    def _value(self, x: Any, planned: Planned) -> _Value:
        found = self._values.get(x)
        if found is None:
            leaf = type(x) is Node and x.buffer is not None
            nbytes = x.meta.nbytes if type(x) is Node else x.nbytes
            base = planned.base_of.get(x) if type(x) is Node else None
            found = self._values[x] = _Value(True if leaf else None, self._number(nbytes), base)
        return found

    def _launch(self, call: Planning, code: Any, planned: Planned) -> _Launch:
        inplace = [(self._value(m, planned), self._value(n, planned)) for m, n in call.inplace]
        if call.blocks == 0:
            raise Refused("a launch has no blocks")
        row = [code.address, 0, 0, len(call.args)]
        out = _Launch([], inplace, row, (call.name, code), self._number(call.scratch))
        self._write(out, 1, call.blocks)
        self._write(out, 2, call.grain)
        for arg in call.args:
            kind = arg[0]
            tag, number, value = self._argument(arg, planned)
            row.extend((tag, 0))
            if tag == Program.ARENA:
                out.moved.append((len(row) - 1, value, number))
            else:
                self._write(out, len(row) - 1, self._numbers[number])
            if kind in ("node", "temp", "status"):
                out.args.append((kind, value))
        return out

    def _write(self, out: _Launch, place: int, x: Any) -> None:
        if type(x) is Size:
            out.put.append((place, self._number(x)))
        else:
            out.row[place] = x

    def _argument(self, arg: tuple[Any, ...], planned: Planned) -> tuple[int, int, Any]:
        """(tag, number of the integer or offset, value where there is one)."""
        kind, x = arg[0], arg[1]
        if kind == "int":
            return Program.INT, self._number(x), None
        if kind == "scalar":
            return self._bases + planned.scalar_of[x], self._number(0), None
        if kind == "status":
            return self._bases - 1, self._number(0), None
        value = self._value(x, planned)
        return (Program.ARENA if value.base is None else value.base - 1), self._number(arg[2]), value

    def _family(self, origin: Origin, planned: Planned) -> _Family:
        operands = {name: self._argument(a, planned) for name, a in origin.operands.items()}
        return _Family(origin, recipe(origin.what, self._number), operands)

    # -- giving it out again -----------------------------------------------------------------------------------------

    def compiled(self, numbers: list[int]) -> Any:
        """The program for a recording with these numbers, or None where the template does not hold for them."""
        unknowns = self._pattern.match(numbers)
        found = None if unknowns is None else self._formulas(unknowns)
        if found is None:
            return None
        launches: list[_Launch] = []
        for unit in self._units:
            if type(unit) is _Launch:
                launches.append(unit)
            else:
                launches.extend(_planned_again(unit, found))  # type: ignore[arg-type]
        requests = [launch.owner[1] for launch in launches if type(launch.owner[1]) is Request]
        codes = iter(compile_many(requests))
        results = set(self._results)

        def nbytes(kind: str, value: Any) -> int:
            return found[value.number] if type(value) is _Value else int(value.nbytes)

        offsets, size, donations = place(launches, results, results, nbytes)
        donations = [(n, m) for n, m in donations if m in self._uses]
        last_check = max([k for k, c in enumerate(launches) if any(a[0] == "status" for a in c.args)], default=-1)
        rows: list[int] = []
        owners: list[tuple[str, Any]] = []
        scratch = 0
        for k, launch in enumerate(launches):
            start = len(rows)
            rows.extend(launch.row)
            for at, number in launch.put:
                rows[start + at] = found[number]
            own = type(launch.owner[1]) is not Request  # planned with the template, not anew
            for at, value, number in launch.moved:
                rows[start + at] = offsets[value] + (found[number] if own else number)
            if own:
                owners.append(launch.owner)
            else:
                code = next(codes)
                rows[start] = code.address
                owners.append((launch.owner[0], code))
            scratch = max(scratch, found[launch.scratch] if own else launch.scratch)
            if k == last_check and donations:
                rows.extend((0, 1, 1, 1, self._bases - 1, 0))
                owners.append(("gate", None))
        out = self._compiled.again()
        out.outputs = [found[n] for n in self._outputs]
        out.donations = [(self._results[n], *self._uses[m]) for n, m in donations]
        out.names = [name for (name, code) in owners if code is not None]
        out.program = Program.of_rows(rows, owners, self._bases, self._kinds, size, scratch)
        return out

    def __repr__(self) -> str:
        return f"<template of {len(self._units)} steps: {self._formulas}>"


def _planned_again(family: _Family, found: list[int]) -> list[_Launch]:
    """A family's launches for other sizes. Their code is still to be had: the owner is its request."""
    plan = family.origin.again(family.what(found))
    spaces = [TempSpace(n) for n in plan.temps]
    bound = {name: (tag, found[number], value) for name, (tag, number, value) in family.operands.items()}
    out = []
    for launch in plan.launches:
        if not launch.blocks:
            continue
        row = [0, launch.blocks, launch.grain, len(launch.args)]
        made = _Launch([], (), row, (family.origin.name, Request(launch.key, launch.build, launch.entry)), launch.scratch)
        for a in launch.args:
            if isinstance(a, int):
                row.extend((Program.INT, a))
                continue
            if isinstance(a, Temp):
                made.args.append(("temp", spaces[a.index]))
                made.moved.append((len(row) + 1, spaces[a.index], a.byte_offset))
                row.extend((Program.ARENA, 0))
                continue
            tag, number, value = bound.get(a.name, (Program.INT, 0, None))
            if value is not None:
                number += a.byte_offset
                made.args.append(("node", value))
                if tag == Program.ARENA:
                    made.moved.append((len(row) + 1, value, number))
            row.extend((tag, number))
        out.append(made)
    return out
