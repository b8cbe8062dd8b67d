"""From one captured run to an entry, or, where the run did something that a replay could not repeat, to that run's own results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from sys import getrefcount
from typing import Any

from cermet import config
from cermet.capture.entry import Entry, Output
from cermet.capture.errors import CaptureError
from cermet.capture.outer import OuterGrad, released, spent_edge
from cermet.capture.program import become_leaf, bind, is_number
from cermet.capture.reach import Check, Guard, Reach, optimizer_checks
from cermet.capture.recorder import Cell, Recorder
from cermet.capture.signature import Tree, replace_floats
from cermet.capture.watch import SLOTS, watching
from cermet.frontend import core
from cermet.frontend.autograd import Mode
from cermet.frontend.core import Alias, History, Storage, TensorBase, new_tensor
from cermet.frontend.gradients import Accumulate, GradFn
from cermet.graph.node import Node
from cermet.lazy import evaluate as ev
from cermet.lazy.number import Number
from cermet.lazy.record import local
from cermet.lazy.values import set_value
from cermet.runtime.buffer import Buffer

__all__ = ["Run", "capture"]


class Run:
    """What one captured run did, while its stand-ins are still in place.

    Attributes:
        tree, results: the result's structure, and per leaf its (node, gradient function) where it is a tensor made inside, else None.
        writes: (cell, node) of tensors outside. gradients: (accumulator, node or None). reason: why it cannot be replayed, or "".
    """

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self.tree: Any = None
        self.results: list[tuple[Node, Any] | None] = []
        self.writes: list[tuple[Cell, Node]] = []
        self.gradients: list[tuple[Accumulate, Node | None]] = []
        self.absent: list[Accumulate] = []
        self.reason = ""
        self.arg_count = 0

    def look(self, tree: Tree) -> None:
        """Read off what the function left, still watched."""
        self.tree = tree
        r = self.recorder
        for leaf in tree.leaves:
            inside = isinstance(leaf, TensorBase) and id(leaf) not in r.outside and id(leaf) not in r.args
            self.results.append((core.node_of(leaf), core.fn_of(leaf)) if inside else None)
        for found in list(r.outside.values()):
            if isinstance(found.obj, Accumulate):
                self._look_at_gradient(found)
        for found in list(r.outside.values()):
            if isinstance(found.obj, TensorBase):
                self._look_at_tensor(found)
            elif isinstance(found.obj, Storage):
                if found.now["node"] is not found.cell.node:
                    self._wrote(found.cell, found.now["node"])
            elif isinstance(found.obj, History) and found.now["fn"] is not found.before["fn"]:
                self._complain("it writes a value with a gradient to a tensor that was there before; .detach() it")

    def _complain(self, reason: str) -> None:
        self.reason = self.reason or reason

    def _wrote(self, cell: Cell, node: Node) -> None:
        if node.meta is not cell.meta:
            self._complain("it gives a tensor that was there before another shape or dtype")
        self.writes.append((cell, node))

    def _look_at_gradient(self, found: Any) -> None:
        before, now = found.before["grad"], found.now["grad"]
        if before is None:
            self.absent.append(found.obj)
        else:
            self.recorder.read(
                before, TensorBase, "_node"
            )  # an input in any case: that there is one decides, and its memory is reused
        if now is before:
            return
        if now is None:
            self.gradients.append((found.obj, None))
        elif id(now) not in self.recorder.inside:
            self._complain("it makes a tensor that was there before the gradient of another")
        else:
            if core.fn_of(now) is not None:
                self._complain("it leaves gradients that have gradients themselves (create_graph=True) in .grad")
            self.gradients.append((found.obj, core.node_of(now)))

    def _look_at_tensor(self, found: Any) -> None:
        t, before, now = found.obj, found.before, found.now
        arg = id(t) in self.recorder.args
        if before["_alias"] is not None and not arg:
            if now["_alias"] is None or now["_alias"].storage is not before["_alias"].storage:
                self._complain("it gives a tensor that was there before other memory (.data = ..., set_)")
            return
        node = core.node_of(t)
        if node is not found.cell.node:
            if arg and before["_alias"] is not None and self._shared(t, before["_alias"]):
                self._complain("it writes to an argument that shares memory with another tensor in use")
            self._wrote(found.cell, node)
        if now["_fn"] is not before["_fn"]:
            self._complain("it changes whether or how gradients are recorded for a tensor that was there before")
        if now.get("_grad") is not before.get("_grad"):
            self._complain("it leaves a gradient at a tensor that was there before and is no leaf")

    def _shared(self, t: Any, alias: Alias) -> bool:
        others = [
            f.before.get("_alias") for f in self.recorder.outside.values() if isinstance(f.obj, TensorBase) and f.obj is not t
        ]
        return any(a is not None and a.storage is alias.storage for a in others)

    def leaks(self) -> bool:
        """Whether a tensor made inside is held by something other than results, gradients and gradient functions."""
        r = self.recorder
        known: Counter[int] = Counter(map(id, self.tree.leaves))
        for found in r.outside.values():
            known.update(map(id, found.now.values()))
        for ctx in [f.ctx for f in r.inside.values() if getattr(f, "ctx", None) is not None]:
            known.update(map(id, ctx._saved))
            known.update([id(v) for v in vars(ctx).values()])
        items = [t for t in r.inside.values() if isinstance(t, TensorBase)]
        held = list(map(getrefcount, items))  # by `inside`, by `items` and by getrefcount
        return any(n > 3 + known[id(t)] for n, t in zip(held, items, strict=True))


def capture(
    fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], leaves: Any, unchanged: Callable[[], bool]
) -> tuple[Entry | None, Any, str]:
    """Run ``fn`` under capture.

    Returns:
        (entry, None, "") where it can be replayed: nothing outside has changed yet. Else (None, result, reason): the run counts as an
        ordinary one.
    """
    ev.realize([core.node_of(t) for t in leaves.tensors])
    outer = local.tape
    recorder = Recorder(outer, leaves.tensors)
    places = iter(range(len(leaves.floats)))

    def number(x: float) -> Number:
        return recorder.source("arg", (next(places),), x, internal=False)

    roots = [(fn, ""), *[(x, "argument") for x in leaves.objects]]
    reach = Reach(roots)
    before = [c for o in reach.optimizers for c in optimizer_checks(o, False)]
    run = Run(recorder)
    run.arg_count = len(leaves.tensors)
    with watching(recorder.tape):
        given = [replace_floats(a, number) for a in args]
        named = {k: replace_floats(a, number) for k, a in kwargs.items()}
        result = fn(*given, **named)
        tree = Tree(result)
        del result, given, named
        run.look(tree)
    reason = run.reason
    if not reason:
        reason = next((d for c in [*reach.checks, *before] if (d := c.difference())), "")
    if not reason and run.leaks():
        reason = "a tensor made inside is kept by something outside that is not its result"
    if not reason and not unchanged():
        reason = "it changes its arguments"
    if reason:
        return None, _complete(run), reason
    return _entry(run, reach), None, ""


# --------------------------------------------------------------------------------------------- as an ordinary run


def _complete(run: Run) -> Any:
    """Make the run an ordinary one: all that it did, in Python and to tensors, counts."""
    r = run.recorder
    for cell in r.cells:
        set_value(cell.node, cell.value.buffer)
    for obj in r.inside.values():
        if isinstance(obj, GradFn):
            _plain_numbers(obj.saved or ())
        elif isinstance(obj, TensorBase):
            _plain_numbers((obj._node,))
    for n in r.tape.nodes:
        _plain_numbers(n.inputs)
    for found in r.outside.values():
        _plain_numbers([x for x in found.now.values() if type(x) is Node])
    wanted = [n for _, n in run.writes] + [n for _, n in run.gradients if n is not None]
    for entry in run.results:
        if entry is not None:
            wanted.append(entry[0])
            wanted += _saved(entry[1])
    _compute([n for n in dict.fromkeys(wanted) if n.buffer is None])
    # Bad data has raised by now, with nothing changed.
    for found in r.outside.values():
        _apply(found)
    for generator, count, _ in r.draws:
        generator.take_numbers(count)
    leaves = [x.value if type(x) is Number else x for x in run.tree.leaves]
    return run.tree.build(leaves)


def _plain_numbers(nodes: Any) -> None:
    for n in nodes:
        if type(n.buffer) is Number:
            n.buffer = n.buffer.value


def _saved(fn: Any) -> list[Node]:
    """Values that the gradient functions below ``fn`` keep."""
    out: list[Node] = []
    seen: set[int] = set()
    stack = [fn]
    while stack:
        f = stack.pop()
        f = getattr(f, "parent", f)
        if f is None or id(f) in seen or isinstance(f, Accumulate):
            continue
        seen.add(id(f))
        out += f.saved or ()
        stack += f.edges
    return out


def _apply(found: Any) -> None:
    """What the function did to one object outside, done to the object."""
    obj, before, now = found.obj, found.before, found.now
    if isinstance(obj, TensorBase) and before["_alias"] is not None:
        if now["_alias"] is None and now["_node"] is not found.cell.node if found.cell is not None else False:
            with Mode(False):
                core.write(obj, new_tensor(now["_node"]))
            return
        if found.cell is None and now["_alias"] is not None and now["_alias"].storage is before["_alias"].storage:
            now = {**now, "_alias": before["_alias"]}
            before["_alias"].version = found.now["_alias"].version
        elif found.cell is not None:
            return
    for cls, slots in SLOTS.items():
        if isinstance(obj, cls):
            for name, value in now.items():
                if value is not before.get(name, obj):
                    slots[name].__set__(obj, value)


def _compute(wanted: list[Node]) -> None:
    """Give values to pending nodes of a capture that is over."""
    if config.reference or not wanted:
        ev.realize(wanted)
        return
    bound = bind(wanted)
    outs = [Buffer(n) for n in bound.outputs]
    bases = [n.buffer.ptr for n in bound.inputs] + [b.ptr for b in outs]
    word = Buffer(8)
    if bound.has_status:
        word.view("int64", (1,), writeable=True)[0] = 0
        bases.append(word.ptr)
    bound.program.run(bases, bound.scalars)
    if bound.has_status and word.view("int64", (1,))[0]:
        ev.realize(wanted)  # which finds the op that met bad data, and raises
        return
    for n in wanted:
        place = bound.places[n]
        set_value(n, outs[place] if isinstance(place, int) else place.buffer)


# -------------------------------------------------------------------------------------------------- as an entry


def _entry(run: Run, reach: Reach) -> Entry:
    r = run.recorder
    sources = {c: r.source("cell", (c,), c.value.buffer) for c in r.cells if c.scalar and _used(r, c)}
    for cell in r.cells:
        become_leaf(cell.node, sources.get(cell))
    finals = [n for _, n in run.writes] + [n for _, n in run.gradients if n is not None]
    outer = OuterGrad.of(run)
    finals += [found[0] for found in run.results if found is not None]
    kept = [] if outer is None else outer.needed()
    bound = bind([n for n in dict.fromkeys([*finals, *kept]) if n.buffer is None])
    leaves = {n for n in [*finals, *kept] if n.buffer is not None} | {p for p in bound.places.values() if isinstance(p, Node)}
    used = {c for c in r.cells if c.node in leaves or c.node in set(bound.inputs)}
    used |= {n.args[0] for n in r.numbers.values() if n.op == "cell"}
    counts = {c for c, n in run.writes if n.buffer is not None and is_number(n.buffer) and c.kind in ("handle", "storage")}
    used |= {c for c, _ in run.writes if c not in counts}
    touched = [x.before["grad"] for x in r.outside.values() if isinstance(x.obj, Accumulate) and x.before["grad"] is not None]
    owned = {id(g) for g in touched}
    used |= {f.cell for f in r.outside.values() if id(f.obj) in owned and f.cell is not None and not f.cell.scalar}
    entry = Entry(r, bound, list(used))
    maker = _Outputs(r, bound, entry)
    for cell, node in run.writes:
        output = maker.of(node)
        if cell in counts:
            holder = cell.holder if cell.kind == "handle" else _base_of(r, cell.holder)
            entry.counts.append((holder, output))
        else:
            entry.writes.append((entry.place[cell], output))
    for owner, final in run.gradients:
        entry.gradients.append((r.accumulator(owner)[1], None if final is None else maker.of(final)))
    for owner in run.absent:
        kind, holder = r.accumulator(owner)
        (entry.absent_args if kind == "arggrad" else entry.absent).append(holder)
    _results(run, entry, maker, outer)
    _ties(run, entry, reach)
    if outer is not None:
        outer.settle(entry, maker)
        entry.outer = outer
    entry.finish(r, maker.numbers, leaves)
    r.let_go()
    return entry


def _used(r: Recorder, cell: Cell) -> bool:
    """Whether a tensor whose value is a number is an operand of something recorded."""
    return any(cell.node in n.inputs for n in r.tape.nodes) or any(
        f.now.get("_node", f.now.get("node")) is cell.node for f in r.outside.values() if f.cell is not cell
    )


def _base_of(r: Recorder, storage: Storage) -> Any:
    for f in r.outside.values():
        alias = f.before.get("_alias")
        if alias is not None and alias.storage is storage and not alias.chain:
            return f.obj
    raise CaptureError("a view of a number is written to in a compiled function; write to the tensor itself")


class _Outputs:
    """Where the values of nodes come from after a run."""

    def __init__(self, recorder: Recorder, bound: Any, entry: Entry) -> None:
        self.recorder = recorder
        self.bound = bound
        self.entry = entry
        self.numbers: list[Any] = []

    def of(self, node: Node) -> Output:
        m = node.meta
        if node.buffer is None:
            place = self.bound.places[node]
            if isinstance(place, int):
                return Output("out", place, m)
            node = place
        cell = self.recorder.by_node.get(node)
        if cell is not None:
            return Output("cell", self.entry.place[cell], m)
        if is_number(node.buffer):
            return Output("number", self.number(node.buffer), m)
        return Output("constant", node, m)

    def number(self, value: Any) -> int:
        for k, known in enumerate(self.numbers):
            if known is value:
                return k + self.entry.scalar_count
        self.numbers.append(value)
        return len(self.numbers) - 1 + self.entry.scalar_count


def _results(run: Run, entry: Entry, maker: _Outputs, outer: OuterGrad | None) -> None:
    r = run.recorder
    makers: list[Any] = []
    entry.shapes = [(None, None)] * len(run.tree.leaves)
    entry.arg_count = run.arg_count
    for k, leaf in enumerate(run.tree.leaves):
        found = run.results[k]
        if found is not None:
            node, fn = found
            spent = fn is not None and released(fn)
            root = outer.root(k) if outer is not None and fn is not None and not spent else None
            output, edge = maker.of(node), spent_edge(fn) if spent else None
            makers.append(_tensor_maker(output, edge, root))
            entry.shapes[k] = (output, edge)
        elif isinstance(leaf, TensorBase):
            number = r.args.get(id(leaf))
            makers.append(_constant_maker(leaf) if number is None else _argument_maker(number))
        elif type(leaf) is Number:
            makers.append(_number_maker(maker.number(leaf)))
        else:
            makers.append(_constant_maker(leaf))
    entry.results = makers
    entry.tree = run.tree.build
    entry.single = run.tree.build([entry]) is entry if len(makers) == 1 else False


def _tensor_maker(output: Output, spent: Any, root: Any) -> Any:
    if root is not None:
        return lambda made, tensors: new_tensor(made.node(output), root(made))
    return lambda made, tensors: new_tensor(made.node(output), spent)


def _number_maker(place: int) -> Any:
    return lambda made, tensors: made.numbers[place]


def _argument_maker(place: int) -> Any:
    return lambda made, tensors: tensors[place]


def _constant_maker(value: Any) -> Any:
    return lambda made, tensors: value


def _ties(run: Run, entry: Entry, reach: Reach) -> None:
    r = run.recorder
    checks: list[Check] = list(reach.checks)
    stepped = [o for o, _ in r.optimizers.values()]
    for o in stepped:
        checks += optimizer_checks(o, True)
    for o in reach.optimizers:
        if not any(o is s for s in stepped):
            checks += optimizer_checks(o, False)
    entry.reach = Guard(checks)
    # An argument that the function also reaches otherwise must be that very tensor.
    for f in r.outside.values():
        if id(f.obj) in r.args and id(f.obj) in reach.tensors:
            entry.same_args.append((r.args[id(f.obj)], f.obj))
    gradients = {id(x.before["grad"]) for x in r.outside.values() if isinstance(x.obj, Accumulate)}
    for f in r.outside.values():
        if isinstance(f.obj, TensorBase) and id(f.obj) not in r.args and id(f.obj) not in gradients:
            entry.ties.append((f.obj, f.before["_alias"], f.before.get("_fn")))
            fn = f.before.get("_fn")
            if type(fn) is Accumulate:
                entry.hooked.append(
                    (fn, dict(fn.hooks) if fn.hooks else fn.hooks, dict(fn.post_hooks) if fn.post_hooks else fn.post_hooks)
                )
