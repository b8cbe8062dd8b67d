"""One captured signature: what it reads, the program, what it writes and gives; and its replay, which is all that a later call costs.

A replay goes through lists of operands, runs no code of the user's and makes objects for results only. State that nobody else holds is
updated in place: its node, and its memory where the program allows it, stay the same.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from itertools import islice
from sys import getrefcount
from typing import Any

from cermet.capture.arithmetic import compile_numbers
from cermet.capture.fast import SLOW, fast_replay
from cermet.capture.program import Bound
from cermet.capture.reach import Guard
from cermet.capture.recorder import Cell, Recorder
from cermet.frontend.core import History, Storage, new_tensor, node_of
from cermet.graph.node import Meta, Node
from cermet.lazy import evaluate as ev
from cermet.lazy.number import Number
from cermet.lazy.values import stored_number
from cermet.ops.leaf import data_call, scalar_call
from cermet.runtime.buffer import Buffer

__all__ = ["MISS", "Entry", "Output", "Refused"]

MISS = object()
"""What a replay gives when the entry does not fit the call after all."""


class Refused(Exception):
    """A kernel met bad data (an index out of range); nothing was changed."""


class Output:
    """Where a value comes from after a run: an output of the program, a cell, a number, or a constant node."""

    __slots__ = ("kind", "meta", "place")

    def __init__(self, kind: str, place: Any, meta: Meta) -> None:
        self.kind = kind
        self.place = place
        self.meta = meta


class _Busy:
    """Runs in progress that overwrite state: thread -> ids of what it overwrites. Whoever needs the same waits.

    A writer announces itself, then looks for others, then takes hold of the nodes; a reader takes hold of the nodes, then looks for
    writers. A writer overwrites only what nobody else has hold of. So of two that need the same, one always sees the other.
    """

    def __init__(self) -> None:
        self.runs: dict[int, frozenset[int]] = {}
        self.lock = threading.Lock()
        self.changed = threading.Condition(self.lock)
        self.waiting = 0

    def wake(self) -> None:
        """Tell those who wait that a run is over."""
        with self.lock:
            self.changed.notify_all()

    def meets(self, me: int, entry: Entry) -> bool:
        """Whether another thread's run overwrites what the entry needs."""
        return any(
            not (ids.isdisjoint(entry.watched) and ids.isdisjoint(entry.written)) for t, ids in list(self.runs.items()) if t != me
        )


_busy = _Busy()
_data_leaf = object.__new__


def _leaf(m: Meta, buffer: Any) -> Node:
    node: Node = _data_leaf(Node)
    node.call = m.leaf or data_call(m)
    node.inputs = ()
    node.meta = m
    node.buffer = buffer
    node.epoch = None
    node.pos = 0
    node.where = None
    return node


def _number_leaf(m: Meta, value: Any) -> Node:
    return Node(scalar_call(m.dtype, m.device), (), value)


class Entry:
    """What a replay needs. Built by `cermet.capture.build`.

    Attributes:
        reach: what Python values must be the same (with the optimizers' checks). ties: (tensor, alias, gradient function) outside, which
            must be the same. absent: accumulators that must hold no gradient, with those of arguments by number.
        cells: those that are bound, read as numbers or written, handles first, then storages, gradients, and arguments.
        writes: (cell's place, output) of tensors. gradients: (accumulator or number of the argument, output or None).
        counts: (tensor, output) of tensors whose value is a number. results: one maker per leaf of the result.
    """

    def __init__(self, recorder: Recorder, bound: Bound, cells: list[Cell]) -> None:
        order = {"handle": 0, "storage": 1, "grad": 2, "arggrad": 3, "arg": 4}
        self.cells = sorted(cells, key=lambda c: order[c.kind])
        self.place = {c: k for k, c in enumerate(self.cells)}
        self.handles = [(c.holder, c.meta) for c in self.cells if c.kind == "handle"]
        self.storages = [(c.holder, c.meta) for c in self.cells if c.kind == "storage"]
        self.held = [(c.holder, c.meta) for c in self.cells if c.kind == "grad"]
        self.arg_grads = [(c.holder, c.meta) for c in self.cells if c.kind == "arggrad"]
        self.arg_cells = [(c.holder, c.meta) for c in self.cells if c.kind == "arg"]
        self.bound = bound
        self.run = bound.program.run if bound.program is not None else None
        by_node = recorder.by_node
        self.constants = [n for n in bound.inputs if n not in by_node]
        self.bases = [(self.place[by_node[n]], 0) if n in by_node else (-1, n.buffer.ptr) for n in bound.inputs]
        self.plain = all(ptr == 0 for _, ptr in self.bases)
        self.base_places = [k for k, _ in self.bases]
        self.has_status = bound.has_status
        self.reach = Guard([])
        self.ties: list[tuple[Any, Any, Any]] = []
        self.hooked: list[tuple[Any, Any, Any]] = []
        self.absent: list[Any] = []
        self.same_args: list[tuple[int, Any]] = []
        self.absent_args: list[int] = []
        self.draws = [(generator, count) for generator, count, _ in recorder.draws]
        self.numbers: Callable[[Any, Any, Any], tuple[Any, ...]] | None = None
        self.scalar_count = len(bound.scalars)
        self.number_places: list[int] = []
        self.writes: list[tuple[int, Output]] = []
        self.gradients: list[tuple[Any, Output | None]] = []
        self.counts: list[tuple[Any, Output]] = []
        self.results: list[Any] = []
        self.tree: Any = None
        self.single = False
        self.outer: Any = None
        self.taken: list[tuple[int, int]] = []
        self.grad_places: list[tuple[Any, Output | None, int]] = []
        self.fixed: tuple[Any, ...] | None = None
        self.may_be_calm = False
        self.fast: Any = None
        self.version = -1
        self.arg_count = 0
        self.number_count = 0
        self.shapes: list[tuple[Output | None, Any]] = []
        self.calm: Any = None
        self.calm_outs: list[tuple[int, int]] = []
        self.calm_writes: list[tuple[int, int]] = []
        self.everyone: set[int] = set()
        self.state_count = sum(c.kind != "arg" and c.kind != "arggrad" for c in self.cells)
        self.grad_owners = [c.holder for c in self.cells if c.kind == "grad"]
        self.exclusive: list[int] = []
        self.bases_of: dict[int, list[Any]] = {}
        self.watched: frozenset[int] = frozenset()
        self.written: frozenset[int] = frozenset()
        self.written_tensors: frozenset[int] = frozenset()

    def finish(self, recorder: Recorder, extra: list[Any], kept: set[Node]) -> None:
        """Settle what follows from the lists: numbers, donations, who must not be disturbed.

        Args:
            extra: numbers wanted beside the program's scalars. kept: nodes whose memory must survive the run.
        """
        by_node = recorder.by_node
        wanted = [*self.bound.scalars, *extra]
        self.number_count = len(wanted)
        guards = list(recorder.guards.values())
        read = [n.args[0] for n in recorder.numbers.values() if n.op == "cell"]
        self.number_places = [self.place[c] for c in read]
        if guards or any(type(x) is Number for x in wanted):
            self.numbers = compile_numbers(wanted, guards, {c: k for k, c in enumerate(read)})
        else:
            self.fixed = tuple(wanted)
        targets = {k for k, _ in self.writes}
        grads = {
            (c.kind, id(c.holder) if c.kind == "grad" else c.holder): k for k, c in enumerate(self.cells) if "grad" in c.kind
        }
        for holder, _ in self.gradients:
            k = grads.get(("arggrad", holder) if isinstance(holder, int) else ("grad", id(holder)))
            if k is not None:
                targets.add(k)
        self.exclusive = sorted(k for k in targets if self.cells[k].kind in ("handle", "storage", "grad"))
        self.grad_places = [
            (holder, output, grads.get(("arggrad", holder) if isinstance(holder, int) else ("grad", id(holder)), -1))
            for holder, output in self.gradients
        ]
        self._choose_memory(by_node, kept)
        for t, alias, _ in self.ties:
            if alias is not None and not alias.chain:
                self.bases_of.setdefault(id(alias.storage), []).append(t)
        holders = [c.holder for c in self.cells if c.kind in ("handle", "storage", "grad")]
        self.watched = frozenset(map(id, holders))
        changed = [self.cells[k].holder for k in self.exclusive] + [t for t, _ in self.counts]
        changed += [h for h, _ in self.gradients if not isinstance(h, int)]
        self.written = frozenset(map(id, changed))
        self.written_tensors = frozenset(id(h) for h in changed if not isinstance(h, Storage | History))

    def _choose_memory(self, by_node: dict[Node, Cell], kept: set[Node]) -> None:
        """Which output takes over the memory of which cell: its own where it may, so that no object changes."""
        own = {(o.place, k) for k, o in self.writes if o.kind == "out"}
        own |= {(o.place, k) for _, o, k in self.grad_places if o is not None and o.kind == "out"}
        pairs = [
            (number, self.place[by_node[leaf]])
            for number, leaf in self.bound.donations
            if leaf in by_node and leaf not in kept and self.place[by_node[leaf]] in self.exclusive
        ]
        # What is overwritten and not read gives its memory in any case.
        read = set(self.base_places) | {self.place[by_node[n]] for n in kept if n in by_node} | set(self.number_places)
        pairs += [(number, k) for number, k in own if k in self.exclusive and k not in read]
        for number, k in sorted(pairs, key=lambda p: p not in own):
            if all(number != n and k != j for n, j in self.taken) and self.bound.outputs[number] == self.cells[k].meta.nbytes:
                self.taken.append((number, k))
        self._plan_calm(own)

    def _plan_calm(self, own: set[tuple[int, int]]) -> None:
        """The short way through a replay in which every value that is written is nobody else's."""
        kinds = {self.cells[k].kind for k in self.exclusive}
        outputs = [o for _, o in self.writes] + [o for _, o, _ in self.grad_places if o is not None]
        if (
            not kinds <= {"handle", "grad"}
            or any(o.kind != "out" for o in outputs)
            or any(o is None for _, o, _ in self.grad_places)
        ):
            return
        if any(self.cells[k].kind != "handle" for k, _ in self.writes) or any(k < 0 for _, _, k in self.grad_places):
            return
        taken = dict(self.taken)
        self.calm_outs = [(taken.get(number, -1), nbytes) for number, nbytes in enumerate(self.bound.outputs)]
        places = [(o.place, k) for k, o in self.writes] + [(o.place, k) for _, o, k in self.grad_places if o is not None]
        # Where the memory is the cell's own there is nothing left to do.
        self.calm_writes = [(place, k) for place, k in places if (place, k) not in own or taken.get(place) != k]
        self.everyone = set(self.exclusive)
        self.may_be_calm = True

    # ------------------------------------------------------------------------------------------------------ replay

    def replay(self, tensors: list[Any], floats: list[float]) -> Any:
        """The results, or `MISS` where something is not as it was.

        Raises:
            Refused: when a kernel met bad data.
        """
        if self.fast is not None:
            found = self.fast(tensors, floats)
            if found is not SLOW:
                return found
        reach = self.reach
        if not reach.holds():
            return MISS
        if reach.version != self.version:
            self.version = reach.version
            self.fast = fast_replay(self, Refused, _busy)
        if self.written and not self.written_tensors.isdisjoint(map(id, tensors)):
            return MISS
        me, busy = threading.get_ident(), _busy
        try:
            with busy.lock:
                while True:
                    if self.written:
                        busy.runs[me] = self.written
                    nodes = self._nodes(tensors)
                    if nodes is None or not busy.runs or not busy.meets(me, self):
                        break
                    del nodes
                    busy.runs.pop(me, None)
                    busy.waiting += 1
                    busy.changed.wait(0.01)
                    busy.waiting -= 1
            if nodes is None:
                return MISS
            buffers = [n.buffer for n in nodes]
            if None in buffers:
                buffers = [ev.buffer_of(n) for n in nodes]
            return self._run(tensors, floats, nodes, buffers)
        finally:
            if self.written:
                busy.runs.pop(me, None)
                if busy.waiting:
                    busy.wake()

    def why(self) -> str:
        """What is no longer as it was when this was captured, in words."""
        return self.reach.why()

    def _nodes(self, tensors: list[Any]) -> list[Node] | None:
        """The present node of each cell; None where something is not as it was."""
        for t, alias, fn in self.ties:
            if t._alias is not alias or t._fn is not fn:
                return None
        for k, t in self.same_args:
            if tensors[k] is not t:
                return None
        for owner, hooks, post_hooks in self.hooked:
            if owner.hooks != hooks or owner.post_hooks != post_hooks:
                return None
        for owner in self.absent:
            if owner.grad is not None:
                return None
        nodes: list[Node] = []
        for h, m in self.handles:
            n = h._node
            if n.meta is not m:
                return None
            nodes.append(n)
        for s, m in self.storages:
            n = s.node
            if n.meta is not m:
                return None
            nodes.append(n)
        for owner, m in self.held:
            g = owner.grad
            if g is None:
                return None
            n = g._node if g._alias is None else node_of(g)
            if n.meta is not m:
                return None
            nodes.append(n)
        for k, m in self.arg_grads:
            g = tensors[k]._fn.grad
            if g is None or node_of(g).meta is not m:
                return None
            nodes.append(node_of(g))
        for k in self.absent_args:
            if tensors[k]._fn.grad is not None:
                return None
        for k, _ in self.arg_cells:
            t = tensors[k]
            nodes.append(t._node if t._alias is None else node_of(t))
        return nodes

    def _alone(self, nodes: list[Node], buffers: list[Any]) -> set[int]:
        """Cells whose value nobody but its holder has. A node is held by its holder, by ``nodes``, by the name ``n`` and by getrefcount; a
        buffer by its node, by ``buffers`` and by getrefcount; a gradient's tensor by its accumulator, by the name ``g`` and by getrefcount."""
        alone = set()
        cells = self.cells
        for k in self.exclusive:
            n = nodes[k]
            cell = cells[k]
            extra = 0
            if cell.kind == "storage":
                extra = sum([t._node is n for t in self.bases_of.get(id(cell.holder), ())])
            elif cell.kind == "grad":
                g = cell.holder.grad
                if getrefcount(g) > 3 or g._alias is not None or g._fn is not None:
                    continue
            if getrefcount(n) > 4 + extra:
                continue
            if getrefcount(buffers[k]) == 3 and type(buffers[k]) is Buffer and buffers[k].owner is None:
                alone.add(k)
        return alone

    def _run(self, tensors: list[Any], floats: list[float], nodes: list[Node], buffers: list[Any]) -> Any:
        calm = False
        alone: Any = ()
        if self.exclusive:
            if self.may_be_calm:
                # References are counted in C; only counts never seen with everything alone are looked into.
                count = self.state_count
                counts = (
                    [*map(getrefcount, islice(nodes, count))],
                    [*map(getrefcount, islice(buffers, count))],
                    [getrefcount(owner.grad) for owner in self.grad_owners],
                )
                calm = counts == self.calm
            if calm:
                alone = self.everyone
            else:
                alone = self._alone(nodes, buffers)
                if self.may_be_calm and alone == self.everyone:
                    self.calm = counts
                    calm = True
        draws: list[tuple[int, int]] = []
        if self.numbers is None:
            numbers = self.fixed
        else:
            values = [stored_number(nodes[k]) for k in self.number_places]
            for generator, count in self.draws:
                draws.append(generator.take_numbers(count))
            try:
                numbers = self.numbers(floats, values, draws)
            except Exception:
                self._give_back(draws)
                return MISS
        assert numbers is not None
        outs = []
        if self.run is not None:
            if self.plain:
                bases = [buffers[k].ptr for k in self.base_places]
            else:
                bases = [buffers[k].ptr if k >= 0 else ptr for k, ptr in self.bases]
            if calm:
                plan = self.calm_outs
            else:
                taken = {number: k for number, k in self.taken if k in alone}
                plan = [(taken.get(number, -1), nbytes) for number, nbytes in enumerate(self.bound.outputs)]
            for k, nbytes in plan:
                b = Buffer(nbytes) if k < 0 else buffers[k]
                outs.append(b)
                bases.append(b.ptr)
            if self.has_status:
                word = ctypes.c_int64(0)
                bases.append(ctypes.addressof(word))
            self.run(bases, numbers[: self.scalar_count])
            if self.has_status and word.value:
                self._give_back(draws)
                raise Refused
        made = _Values(self, nodes, buffers, outs, numbers, alone)
        if calm:
            for place, k in self.calm_writes:
                nodes[k].buffer = outs[place]
            if self.counts:
                self._commit_counts(made)
        else:
            self._commit(made, tensors)
        if self.outer is not None:
            made.edge = self.outer.edge(made, tensors)
        if self.single:
            return self.results[0](made, tensors)
        return self.tree([r(made, tensors) for r in self.results])

    def made_of(self, numbers: Any, buffers: Any) -> _Values:
        """What makers of results other than new tensors need."""
        return _Values(self, [], buffers, [], numbers, ())

    def _give_back(self, draws: list[tuple[int, int]]) -> None:
        for (generator, count), (seed, offset) in zip(self.draws, draws, strict=False):
            generator.give_back(seed, offset, count)

    def _commit(self, made: _Values, tensors: list[Any]) -> None:
        cells, nodes, alone, outs = self.cells, made.nodes, made.alone, made.outs
        replaced = [k for _, _, k in self.grad_places]
        for k, output in self.writes:
            cell = cells[k]
            kind = cell.kind
            if k in alone and k in replaced:
                continue  # a gradient's tensor that another one replaces, and that nobody else has
            if k in alone and output.kind == "out":
                n = nodes[k]
                n.buffer = outs[output.place]
            else:
                n = made.node(output)
            if kind == "handle":
                cell.holder._node = n
            elif kind == "storage":
                self._put(cell.holder, n)
            else:
                self._write_tensor(cell, n, tensors)
        self._commit_counts(made)
        for holder, final, k in self.grad_places:
            owner = tensors[holder]._fn if type(holder) is int else holder
            if final is None:
                owner.grad = None
            elif k in alone and final.kind == "out":
                nodes[k].buffer = outs[final.place]
            else:
                owner.grad = new_tensor(made.node(final))

    def _commit_counts(self, made: _Values) -> None:
        """New values of tensors that hold a number, one node for all that hold the same."""
        shared: dict[int, Node] = {}
        for t, output in self.counts:
            if output.place not in shared:
                shared[output.place] = made.node(output)
            n = shared[output.place]
            if t._alias is None:
                t._node = n
            else:
                self._put(t._alias.storage, n)

    def _put(self, storage: Storage, n: Node) -> None:
        """A new version of a storage; its base tensors, where known and up to date, follow at once and let go of the old one."""
        bases = [t for t in self.bases_of.get(id(storage), ()) if t._alias.version == storage.version]
        storage.node = n
        storage.version += 1
        for t in bases:
            t._node = n
            t._alias.version = storage.version

    def _write_tensor(self, cell: Cell, n: Node, tensors: list[Any]) -> None:
        """Write to an argument, or to a gradient that stays the same tensor, as an in-place operation does."""
        from cermet.frontend.core import write

        t = (
            tensors[cell.holder]
            if cell.kind == "arg"
            else (tensors[cell.holder]._fn.grad if cell.kind == "arggrad" else cell.holder.grad)
        )
        if t._alias is None:
            t._node = n
        else:
            from cermet.frontend.autograd import Mode

            with Mode(False):
                write(t, new_tensor(n))


class _Values:
    """What one run read and computed, from which results are made."""

    __slots__ = ("alone", "buffers", "edge", "entry", "nodes", "numbers", "outs")

    def __init__(self, entry: Entry, nodes: list[Node], buffers: list[Any], outs: list[Buffer], numbers: Any, alone: Any) -> None:
        self.entry = entry
        self.nodes = nodes
        self.buffers = buffers
        self.outs = outs
        self.numbers = numbers
        self.alone = alone
        self.edge: Any = None

    def node(self, output: Output) -> Node:
        """A node with the value of an output."""
        kind = output.kind
        if kind == "out":
            return _leaf(output.meta, self.outs[output.place])
        if kind == "number":
            return _number_leaf(output.meta, self.numbers[output.place])
        if kind == "cell":
            value = self.buffers[output.place]
            return _leaf(output.meta, value) if type(value) is Buffer else _number_leaf(output.meta, value)
        return _leaf(output.meta, output.place.buffer)
