"""Epilogues: a loop group that only maps the result of one product or convolution runs inside that kernel, on sums still in cache.

Decides where that is possible and writes the statements. Knows groups, trees and the kernel families' epilogue record.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from cermet import dtypes as dt
from cermet.compiler.kernels.contraction import Epilogue
from cermet.compiler.loops import ir
from cermet.compiler.loops.ir import Define, Expr, For, Kernel, Register, Store, Var
from cermet.compiler.loops.text import fingerprint
from cermet.compiler.schedule.cost import cost_of
from cermet.compiler.schedule.domain import Axes, Class, atoms_of, merge, rigid_dims
from cermet.compiler.schedule.fuse import Fusion, Group, is_leaf, source_of
from cermet.compiler.schedule.index import Dim, Idx, NeedSplit, delinearize, linearize
from cermet.compiler.schedule.tree import Tree, Trees
from cermet.compiler.schedule.writer import Binding, Env, Writer, rounded
from cermet.graph.node import Node

__all__ = ["Fused", "find_epilogues"]


@dataclass
class Fused:
    """A loop group that runs as the epilogue of ``producer``; ``bindings`` are those of the epilogue's parameters."""

    producer: Node
    epilogue: Epilogue
    bindings: list[Binding]


class _Unfit(Exception):
    pass


# Instructions for each element from which on a map is better made on its own: on strips as small as a tile there are too few vectors at
# once to hide a long chain (gelu's gradient: 2.9 ns an element as an epilogue, 1.6 with all its traffic as a map).
_LONG = 40


def find_epilogues(
    fusion: Fusion, outputs: Sequence[Node], strides_of: Callable[[Node], tuple[int, ...] | None]
) -> dict[Group, Fused]:
    """Loop groups that can be epilogues, with their statements. A producer needs no memory then."""
    readers: dict[Node, set[Group]] = {}
    reads: dict[Group, set[Node]] = {}
    for g in fusion.groups:
        for n in fusion.evaluated[g]:
            for x in (n, *n.inputs) if n.call.op.kind == "movement" else n.inputs:
                s = source_of(x)
                if not is_leaf(s):
                    readers.setdefault(s, set()).add(g)
                    reads.setdefault(g, set()).add(s)
    wanted = set(outputs)
    out: dict[Group, Fused] = {}
    for g in fusion.groups:
        if g.kind != "loop" or any(n.call.op.kind not in ("elementwise", "movement") for n in fusion.evaluated[g]):
            continue
        if sum(cost_of(n.call) for n in fusion.evaluated[g] if n.call.op.kind == "elementwise") >= _LONG:
            continue
        candidates = [
            n
            for n in reads.get(g, ())
            if readers[n] == {g}
            and n not in wanted
            and n.meta.numel == math.prod(g.domain)
            and _takes_epilogue(n)
            and all(_in_order(x, n) for m in fusion.evaluated[g] for x in ((m,) if m.call.op.kind == "movement" else m.inputs))
        ]
        for n in sorted(candidates, key=lambda n: (-_flops(n), fusion.positions[n])):
            try:
                out[g] = _write(g, fusion, n, strides_of)
                break
            except (_Unfit, NeedSplit):
                continue
    return out


def _in_order(x: Node, producer: Node) -> bool:
    """False where ``x`` has the producer's elements in another order, so that no index arithmetic need find out that it is unfit."""
    ordered = True
    while x is not producer and x.call.op.kind == "movement" and x.buffer is None:
        inner, op = x.inputs[0], x.call.op.name
        if op == "permute":
            kept = [d for d in x.call.attrs[0] if inner.meta.shape[d] != 1]
            ordered = ordered and kept == sorted(kept)
        elif op != "reshape":
            ordered = ordered and x.meta.numel == inner.meta.numel and op == "expand"
        x = inner
    return ordered or x is not producer


def _takes_epilogue(n: Node) -> bool:
    kind = n.call.op.kind
    if n.meta.dtype.kind != "f" or n.meta.numel == 0:
        return False
    if kind == "convolution":
        # The gradient of a strided one finishes pixels that are no neighbours: an epilogue would be called for each of them.
        direction = n.call.attr("direction")
        return direction == "forward" or (direction == "input_grad" and max(n.call.attr("stride")) == 1)
    return kind == "contraction" and n.inputs[0].meta.shape[-1] > 0


def _flops(n: Node) -> int:
    if n.call.op.kind == "contraction":
        return n.meta.numel * n.inputs[0].meta.shape[-1]
    return n.meta.numel * math.prod(n.inputs[1].meta.shape[1:])


class _AccTrees(Trees):
    """Trees in which the producer's value, read at its own index, is the accumulator."""

    def __init__(self, strides_of: Any, producer: Node, index: tuple[Idx, ...]) -> None:
        super().__init__(strides_of, set(), True)
        self.producer = producer
        self.own_index = index

    def _make(self, node: Node, index: tuple[Idx, ...], mask: Any, top: bool) -> Tree:
        if node is self.producer:
            if index != self.own_index or mask:
                raise _Unfit
            return Tree("acc", node)
        return super()._make(node, index, mask, top)


class _AccWriter(Writer):
    """A writer that knows the accumulator."""

    def __init__(self, class_of: dict[Dim, Class], acc: Expr) -> None:
        super().__init__(class_of)
        self.acc = acc

    def _write(self, tree: Tree, env: Env) -> Expr:
        return self.acc if tree.kind == "acc" else super()._write(tree, env)


def _write(g: Group, fusion: Fusion, n: Node, strides_of: Any) -> Fused:
    """The group as an epilogue of ``n``; dims are split where the group sees the result in another shape (a linear layer's rows are a
    batch of sequences to those who read it)."""
    axes = Axes(n.meta.shape)
    for _ in range(8):
        try:
            return _attempt(g, fusion, n, strides_of, axes)
        except NeedSplit as need:
            axes.split(need)
    raise _Unfit


def _attempt(g: Group, fusion: Fusion, n: Node, strides_of: Any, axes: Axes) -> Fused:
    index = axes.index()
    own = fusion.evaluated[g]
    trees = _AccTrees(lambda m: None if m in own or m is n else strides_of(m), n, index)
    roots = []
    for root in [m for m in g.nodes if m in own and m in fusion.stored]:
        shape = root.meta.shape
        at = index if shape == n.meta.shape else delinearize(linearize(index, n.meta.shape), shape)
        offset = Idx(0)
        for i, s in zip(at, strides_of(root), strict=True):
            offset = offset.plus(i.times(s))
        roots.append((root, trees.tree(root, at, top=True), offset))
    if trees.dynamics or not any(t.kind == "acc" for t in trees.memo.values()):
        raise _Unfit
    offsets = [t.offset for t in trees.loads()] + [r[2] for r in roots]
    rigid = rigid_dims([*trees.rigid(), *atoms_of(offsets)])
    acc = Register("acc", n.meta.dtype.compute)
    b, m, v = Var("b"), Var("m"), Var("n")
    body: list[Any] = []
    classes, values, decode = _classes(n, axes, offsets, rigid, b, m, v)
    writer = _AccWriter({d: c for c in classes for d in c.dims}, rounded(acc.expr, n.meta.dtype, False))
    env = Env(values, body)
    for cls, position, divisors, extent in decode:
        value = position
        for e in divisors:
            value = Expr("tdiv", (value, writer.integer(e)), dt.int64)
        env.values[cls] = value if extent is None else Expr("trem", (value, writer.integer(extent)), dt.int64)
    for root, tree, offset in roots:
        value = writer.write(tree, env)
        body.append(Store(writer.buffer(root, True), writer.position(offset, env), value))
    key = fingerprint(_as_kernel(writer, acc, b, m, v, body))
    return Fused(n, Epilogue(writer.params, acc, b, m, v, body, key), writer.bindings)


def _as_kernel(writer: Writer, acc: Register, b: Var, m: Var, v: Var, body: list[Any]) -> Kernel:
    one = ir.const(1)
    inner = For(v, one, [Define(acc, ir.const(0.0, acc.dtype)), *body], "vector")
    return Kernel("epilogue", writer.params, [For(b, one, [For(m, one, [inner])])])


def _classes(n: Node, axes: Axes, offsets: list[Idx], rigid: set[Dim], b: Var, m: Var, v: Var) -> Any:
    """Loop classes of the producer's dims, the values of those that are plain, and how to get the others from ``b`` and ``m``:
    (class, position, divisors, extent or None)."""
    if n.call.op.kind == "contraction":
        *batch, rows, columns = axes.dims
    else:
        image, columns, high, wide = axes.dims
        batch, rows = [image], [*high, *wide]
    if len(columns) != 1:
        raise _Unfit  # lanes would be taken apart one by one
    values: dict[Class, Expr] = {}
    classes: list[Class] = []
    decode: list[Any] = []
    _spread(merge([d for d in rows if d.extent != 1], offsets, rigid), m.expr, classes, decode)
    classes.append(Class(columns))
    values[classes[-1]] = v.expr
    _spread(merge([d for row in batch for d in row if d.extent != 1], offsets, rigid), b.expr, classes, decode)
    return classes, values, decode


def _spread(parts: list[Class], position: Expr, classes: list[Class], decode: list[Any]) -> None:
    """Take a flat position apart into the classes, outer first."""
    divisors: list[int] = []
    for k in range(len(parts) - 1, -1, -1):
        classes.append(parts[k])
        decode.append((parts[k], position, list(divisors), None if k == 0 else parts[k].extent))
        divisors.append(parts[k].extent)
