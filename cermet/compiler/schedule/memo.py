"""Lowered groups, remembered by content: the layers of a network, and its parameters' updates, lower to the same kernels over other values.

The signature of a group names all that lowering looks at: calls (with shapes and attributes), who feeds whom, what is in memory and with
which strides. A remembered group is bound to the values at hand by their positions in the signature.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from cermet.compiler.schedule.fuse import Group
from cermet.compiler.schedule.hand import Call, TempSpace
from cermet.graph.node import Node
from cermet.graph.sizes import private

__all__ = ["remembered", "signature"]

LIMIT = 1024
_memo: OrderedDict[Any, list[Call]] = OrderedDict()


def signature(
    g: Group, evaluated: set[Node], stored: set[Node], strides_of: Callable[[Node], tuple[int, ...] | None]
) -> tuple[Any, list[Node]]:
    """The group's signature, and its nodes in the order of their numbers there."""
    own = [n for n in g.nodes if n in evaluated]
    numbers: dict[Node, int] = {}
    nodes: list[Node] = []
    parts: list[Any] = [g.domain, g.reduced]

    def number(n: Node) -> int:
        found = numbers.get(n)
        if found is None:
            found = numbers[n] = len(nodes)
            nodes.append(n)
        return found

    stack = list(reversed(own))
    inside = set(own)
    done: set[Node] = set()
    while stack:
        n = stack.pop()
        if n in done:
            continue
        done.add(n)
        k = number(n)
        kind = n.call.op.kind
        if n not in inside and (n.call.op.name == "data" or kind not in ("movement", "leaf")):
            strides = strides_of(n)
            if strides is not None:
                parts.append((k, n.meta, strides))
                continue
        parts.append(
            (k, n.call.id, n in g.outer, strides_of(n) if n in inside and n in stored else n in inside, *map(number, n.inputs))
        )
        stack.extend(reversed(n.inputs))
    return tuple(parts), nodes


def remembered(key: Any, nodes: list[Node], make: Callable[[], list[Call]]) -> list[Call]:
    """The calls of a group with this signature over these nodes; ``make`` lowers it the first time."""
    memo = private("groups", _memo)
    found = memo.get(key)
    if found is None:
        place = {n: k for k, n in enumerate(nodes)}
        calls = make()
        memo[key] = [_moved(c, place.__getitem__) for c in calls]
        while len(memo) > LIMIT:
            memo.popitem(last=False)
        return calls
    spaces: dict[Any, TempSpace] = {}
    return [_renewed(_moved(c, nodes.__getitem__), spaces) for c in found]


def _moved(c: Call, to: Callable[[Any], Any]) -> Call:
    """The call with nodes replaced by numbers, or numbers by nodes."""
    args = [(a[0], to(a[1]), *a[2:]) if a[0] in ("node", "scalar", "status") else a for a in c.args]
    return replace(c, args=args, nodes=[to(n) for n in c.nodes], inplace=[(to(m), to(n)) for m, n in c.inplace])


def _renewed(c: Call, spaces: dict[Any, TempSpace]) -> Call:
    """Temporaries belong to one use: each gets its own, shared among the group's calls."""
    for k, a in enumerate(c.args):
        if a[0] == "temp":
            c.args[k] = ("temp", spaces.setdefault(a[1], TempSpace(a[1].nbytes)), *a[2:])
    return c
