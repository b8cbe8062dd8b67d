"""The replay of a small entry as one generated Python function, without loops or look-ups.

It covers the common case: all is as it was, nobody else has what is overwritten, and no other run is in progress. At the first sign of
anything else it gives `SLOW`, before it has changed anything, and the general replay of `cermet.capture.entry` takes over.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from sys import getrefcount
from threading import get_ident
from typing import TYPE_CHECKING, Any

from cermet.frontend import core
from cermet.graph.node import Node
from cermet.lazy.values import stored_number
from cermet.ops.leaf import data_call, scalar_call
from cermet.runtime.buffer import Buffer

if TYPE_CHECKING:
    from cermet.capture.entry import Entry

__all__ = ["SLOW", "fast_replay"]

SLOW = object()
MOST_CELLS, MOST_TERMS = 256, 2000  # beyond, a step takes so long that loops do not matter


class _Source:
    """Lines of the function and what they name."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.space: dict[str, Any] = {}

    def name(self, value: Any) -> str:
        found = f"k{len(self.space)}"
        self.space[found] = value
        return found

    def __call__(self, line: str) -> None:
        self.lines.append(line)

    def slow_if(self, conditions: list[str]) -> None:
        for start in range(0, len(conditions), 16):
            self(f"if {' or '.join(conditions[start : start + 16])}: return SLOW")


def fast_replay(entry: Entry, refused: type[Exception], busy: Any) -> Callable[[Any, Any], Any] | None:
    """The function, or None where the entry does more than it covers.

    Args:
        busy: the runs in progress, see `cermet.capture.entry`.
    """
    if (entry.exclusive and not entry.may_be_calm) or len(entry.cells) > MOST_CELLS or len(entry.reach.one) > MOST_TERMS:
        return None
    if not entry.exclusive and (entry.writes or entry.gradients):
        return None
    if entry.outer is not None or entry.absent_args or entry.arg_grads or entry.storages:
        return None
    if any(h or p for _, h, p in entry.hooked) or entry.bound.program is None:
        return None
    if any(t._alias is not None for t, _ in entry.counts):
        return None
    s = _Source()
    s.space.update(
        SLOW=SLOW, Buffer=Buffer, Refused=refused, busy=busy.runs, hub=busy, get_ident=get_ident, count=getrefcount, new=object.__new__,
        Node=Node, node_of=core.node_of, stored_number=stored_number, run=entry.run, word_of=ctypes.c_int64, address=ctypes.addressof,
        results=entry.results, tree=entry.tree, Tensor=core.tensor_type,
    )  # fmt: skip
    _guards(s, entry)
    writes = bool(entry.written)
    body = _Source()
    body.space = s.space
    _bind(body, entry)
    if not writes:
        body("if busy: return SLOW")
    _compute(body, entry)
    _commit(body, entry)
    _give(body, entry)
    lines = list(s.lines)
    if writes:
        lines += [f"me = get_ident(); busy[me] = {s.name(entry.written)}", "try:", "    if len(busy) > 1: return SLOW"]
        lines += ["    " + line for line in body.lines]
        lines += ["finally:", "    del busy[me]", "    if hub.waiting: hub.wake()"]
    else:
        lines += body.lines
    text = "def fast(tensors, floats):\n" + "\n".join("    " + line for line in lines)
    exec(text, s.space)
    made: Callable[[Any, Any], Any] = s.space["fast"]
    return made


def _guards(s: _Source, entry: Entry) -> None:
    reach = entry.reach
    terms: list[str] = []
    for check in reach.checks:
        x = s.name(check.obj)
        expected = check.expected
        if check.kind == "items":
            terms += [f"{x}[{k!r}] is not {s.name(v)}" for k, v in zip(check.names, expected, strict=True) if type(k) is str]
            terms += [
                f"{x}[{s.name(k)}] is not {s.name(v)}" for k, v in zip(check.names, expected, strict=True) if type(k) is not str
            ]
        elif check.kind == "there":
            terms += [f"{'' if not v else 'not '}({k!r} in {x})" for k, v in zip(check.names, expected, strict=True)]
        elif check.kind == "length":
            terms.append(f"len({x}) != {expected[0]}")
        elif check.kind == "cell":
            terms.append(f"{x}.cell_contents is not {s.name(expected[0])}")
        else:
            values = f"{x}.values()" if check.kind == "values" else x
            terms.append(f"len({x}) != {len(expected)}")
            if expected:
                names = [f"u{k}" for k in range(len(expected))]
                s.slow_if(terms)
                terms = []
                s(f"{', '.join(names)}, = {values}")
                terms = [f"{n} is not {s.name(v)}" for n, v in zip(names, expected, strict=True)]
    s.slow_if(terms)


def _bind(s: _Source, entry: Entry) -> None:
    places = {k for k in entry.base_places if k >= 0}
    exclusive = set(entry.exclusive)
    arguments = {c.holder for c in entry.cells if c.kind == "arg"}
    if arguments:
        s("(" + ", ".join(f"t{k}" if k in arguments else f"_{k}" for k in range(entry.arg_count)) + ",) = tensors")
    if entry.written_tensors and entry.arg_count:
        s(f"if not {s.name(entry.written_tensors)}.isdisjoint(map(id, tensors)): return SLOW")
    slow = [f"tensors[{k}] is not {s.name(t)}" for k, t in entry.same_args]
    for t, alias, fn in entry.ties:
        x = s.name(t)
        slow += [f"{x}._alias is not {s.name(alias)}", f"{x}._fn is not {s.name(fn)}"]
    for owner, _, _ in entry.hooked:
        x = s.name(owner)
        slow.append(f"{x}.hooks or {x}.post_hooks")
    slow += [f"{s.name(owner)}.grad is not None" for owner in entry.absent]
    s.slow_if(slow)
    for k, cell in enumerate(entry.cells):
        slow = []
        if cell.kind == "grad":
            s(f"g{k} = {s.name(cell.holder)}.grad")
            s(f"if g{k} is None or g{k}._alias is not None or g{k}._fn is not None: return SLOW")
            s(f"n{k} = g{k}._node")
            if k in exclusive:
                slow.append(f"count(g{k}) != 3")
        elif cell.kind == "arg":
            i = cell.holder
            s(f"n{k} = t{i}._node if t{i}._alias is None else node_of(t{i})")
        else:
            s(f"n{k} = {s.name(cell.holder)}._node")
        s(f"b{k} = n{k}.buffer")
        if cell.kind != "arg":
            slow.append(f"n{k}.meta is not {s.name(cell.meta)}")
        if k in places or k in exclusive:
            slow.append(f"type(b{k}) is not Buffer")
        if k in exclusive:
            # Each is held by its holder, by the name here, and by the call that counts.
            slow += [f"count(n{k}) != 3", f"count(b{k}) != 3", f"not b{k}.capacity"]
        s.slow_if(slow)


def _compute(s: _Source, entry: Entry) -> None:
    if entry.numbers is None:
        s(f"numbers = {s.name(entry.fixed)}")
    else:
        values = [f"b{k} if type(b{k}) is float else stored_number(n{k})" for k in entry.number_places]
        draws = []
        for k, (generator, count) in enumerate(entry.draws):
            s(f"d{k} = {s.name(generator.take_numbers)}({count})")
            draws.append(f"d{k}")
        s("try:")
        s(
            f"    numbers = {s.name(entry.numbers)}(floats, ({''.join(v + ', ' for v in values)}), ({''.join(d + ', ' for d in draws)}))"
        )
        s("except Exception:")
        _give_back(s, entry)
        s("    return SLOW")
    bases = [f"b{k}.ptr" if k >= 0 else str(ptr) for k, ptr in entry.bases]
    taken = dict(entry.taken)
    for number, nbytes in enumerate(entry.bound.outputs):
        own = taken.get(number)
        s(f"o{number} = Buffer({nbytes})" if own is None else f"o{number} = b{own}")
        bases.append(f"o{number}.ptr")
    if entry.has_status:
        s("word = word_of(0)")
        bases.append("address(word)")
    scalars = "numbers" if entry.number_count == entry.scalar_count else f"numbers[:{entry.scalar_count}]"
    s(f"run(({', '.join(bases)},), {scalars})" if bases else f"run((), {scalars})")
    if entry.has_status:
        s("if word.value:")
        _give_back(s, entry)
        s("    raise Refused")


def _give_back(s: _Source, entry: Entry) -> None:
    for k, (generator, count) in enumerate(entry.draws):
        s(f"    {s.name(generator.give_back)}(*d{k}, {count})")


def _commit(s: _Source, entry: Entry) -> None:
    for place, k in entry.calm_writes:
        s(f"n{k}.buffer = o{place}")
    shared: dict[Any, str] = {}
    for t, output in entry.counts:
        if output.kind == "number":
            leaf = shared.get(output.place)
            if leaf is None:
                leaf = shared[output.place] = f"c{len(shared)}"
                s(f"{leaf} = Node({s.name(scalar_call(output.meta.dtype, output.meta.device))}, (), numbers[{output.place}])")
            s(f"{s.name(t)}._node = {leaf}")


def _give(s: _Source, entry: Entry) -> None:
    names = []
    for k, maker in enumerate(entry.results):
        output, spent = entry.shapes[k]
        if output is None or output.kind != "out":
            s(f"r{k} = {s.name(maker)}(made_of(numbers, ({_all_buffers(entry)})), tensors)")
            s.space["made_of"] = entry.made_of
        else:
            m = output.meta
            s(f"n = new(Node); n.call = {s.name(data_call(m))}; n.inputs = (); n.meta = {s.name(m)}; n.buffer = o{output.place}")
            s("n.epoch = n.where = None; n.pos = 0")
            s(f"r{k} = new(Tensor); r{k}._node = n; r{k}._fn = {s.name(spent)}; r{k}._alias = r{k}._grad = None")
        names.append(f"r{k}")
    s(f"return {names[0]}" if entry.single else f"return tree([{', '.join(names)}])")


def _all_buffers(entry: Entry) -> str:
    return "".join(f"b{k}, " for k in range(len(entry.cells)))
