"""Joins: a value whose parts kernels designed by hand write straight into its memory.

The gradient of a tensor that was cut into slices (query, key and value of one projection; gates) is a sum of padded gradients. Where
the slices tile the tensor along one dim and each gradient has to be in memory anyway, the sum is a `join`: no padding, no adding, no
copy. Decides when a sum is one, and where the parts' memory is. Knows nodes and movement.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cermet.compiler.schedule.tree import row_major
from cermet.graph.node import Node
from cermet.ops.attention import writes_any_strides
from cermet.ops.elementwise import add
from cermet.ops.join import join
from cermet.ops.movement import permute, reshape, unslice

__all__ = ["Homes", "as_join", "homes_of", "redirect", "settled"]

WRITERS = frozenset(("contraction", "result"))  # kinds of groups that write their results through any strides
MOST = 64  # terms of a sum that are looked at

Home = tuple[Node, int, tuple[int, ...]]
"""Where a value's memory is: the join, bytes from its beginning, strides."""
Homes = dict[Node, Home]


def as_join(n: Node, inputs: Sequence[Node]) -> Node | None:
    """The join that equals the sum of two final nodes, or None."""
    if n.call.op is not add or all(i.call.op is not unslice for i in inputs):
        return None
    pieces: list[Node] = []
    stack = list(inputs)
    while stack:
        x = stack.pop()
        if x.meta is not n.meta or x.buffer is not None or len(pieces) == MOST:
            return None
        if x.call.op is add:
            stack.extend(x.inputs)
        elif x.call.op is unslice:
            pieces.append(x)
        else:
            return None
    dim = _tiled(pieces, n.meta.shape)
    if dim is None:
        return None
    pieces.sort(key=lambda p: int(p.call.attr("starts")[dim]))
    parts = [p.inputs[0] for p in pieces]
    sources = [_written(p) for p in parts]
    if None in sources or len(set(sources)) != len(sources):
        return None
    return join(*parts, dim=dim)


def _tiled(pieces: list[Node], shape: tuple[int, ...]) -> int | None:
    """The dim along which slices lie one after the other and fill everything."""
    if sum([p.inputs[0].meta.numel for p in pieces]) != pieces[0].meta.numel or pieces[0].meta.numel == 0:
        return None
    apart = [k for k, size in enumerate(shape) if pieces[0].inputs[0].meta.shape[k] != size]
    if len(apart) != 1:
        return None
    dim = apart[0]
    spans = []
    for p in pieces:
        starts, steps, part = p.call.attr("starts"), p.call.attr("steps"), p.inputs[0].meta.shape
        if any(s != 1 for s in steps) or any(k != dim and (starts[k] != 0 or part[k] != size) for k, size in enumerate(shape)):
            return None
        spans.append((starts[dim], part[dim]))
    at = 0
    for start, size in sorted(spans):
        if start != at:
            return None
        at = at + size
    return dim


def _written(part: Node) -> Node | None:
    """The value behind a part whose kernel can write it there; None where there is no such."""
    x = part
    while x.call.op in (permute, reshape) and x.buffer is None:
        x = x.inputs[0]
    if x.call.op.kind not in WRITERS or x.buffer is not None:
        return None
    if x.call.op.kind == "result" and not writes_any_strides(x.inputs[0].call, x.call.attrs[0]):
        return None
    return x if _strides_behind(part, row_major(part.meta.shape)) is not None else None


def _strides_behind(x: Node, strides: tuple[int, ...]) -> tuple[int, ...] | None:
    """The strides of the value behind permutations and reshapes whose view ``x`` is to have ``strides``."""
    while x.call.op in (permute, reshape) and x.buffer is None:
        inner = x.inputs[0]
        if x.call.op is permute:
            back = [0] * len(strides)
            for d, s in zip(x.call.attrs[0], strides, strict=True):
                back[d] = s
            strides = tuple(back)
        else:
            found = _before_reshape(inner.meta.shape, x.meta.shape, strides)
            if found is None:
                return None
            strides = found
        x = inner
    return strides


def _before_reshape(old: tuple[int, ...], new: tuple[int, ...], strides: tuple[int, ...]) -> tuple[int, ...] | None:
    """Strides of shape ``old`` for the same elements in the same order as ``new`` with ``strides``."""
    runs: list[tuple[int, int]] = []  # (elements, stride) of new, neighbours that are walked in one stride joined; inner last
    for size, s in zip(new, strides, strict=True):
        if size == 1:
            continue
        if runs and runs[-1][1] == s * size:
            runs[-1] = (runs[-1][0] * size, s)
        else:
            runs.append((size, s))
    out = []
    for size in reversed(old):
        if size == 1:
            out.append(1)
            continue
        if not runs or runs[-1][0] % size:
            return None
        elements, s = runs.pop()
        out.append(s)
        if elements != size:
            runs.append((elements // size, s * size))
    return tuple(reversed(out))


def settled(joins: Sequence[Node], results: Sequence[Node]) -> bool:
    """Whether each part's memory can be in its join alone: no part is a result of the program, or belongs to two joins."""
    bases = set()
    for n in results:
        while n.call.op is reshape and n.buffer is None:
            n = n.inputs[0]
        bases.add(n)
    sources = [_written(p) for j in joins for p in j.inputs]
    return len(set(sources)) == len(sources) and not bases.intersection(sources)


def homes_of(order: Sequence[Node], stored: set[Node]) -> Homes:
    """Where the parts of all joins are in memory."""
    homes: Homes = {}
    for n in order:
        if n.call.op is not join or n not in stored:
            continue
        dim, at = n.call.attrs[0], 0
        strides = row_major(n.meta.shape)
        for part in n.inputs:
            source = _written(part)
            behind = _strides_behind(part, strides)
            assert source is not None
            assert behind is not None
            homes[source] = (n, at * strides[dim] * n.meta.dtype.itemsize, behind)
            at = at + part.meta.shape[dim]
    return homes


def redirect(calls: Sequence[Any], homes: Homes) -> None:
    """Bind the arguments that are parts to the memory of their joins."""
    if not homes:
        return

    def moved(arg: tuple[Any, ...]) -> tuple[Any, ...]:
        home = homes.get(arg[1]) if arg[0] == "node" else None
        return arg if home is None else ("node", home[0], arg[2] + home[1])

    done = set()
    for call in calls:
        call.args = [moved(a) for a in call.args]
        call.inplace = [(m, n) for m, n in call.inplace if m not in homes and n not in homes]
        if call.origin is not None and id(call.origin) not in done:
            done.add(id(call.origin))
            call.origin.operands = {k: moved(a) for k, a in call.origin.operands.items()}
