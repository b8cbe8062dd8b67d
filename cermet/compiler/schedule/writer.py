"""Turns trees into loop IR expressions: parameters for everything that varies between calls, constants for what shapes the code.

Sizes, strides and offsets become int parameters, except 0, 1 and -1, which decide how memory is read. Knows trees, dims and the loop IR;
must not know how loops are nested.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cermet import dtypes as dt
from cermet.compiler.loops import ir
from cermet.compiler.loops.build import builder
from cermet.compiler.loops.ir import Expr, Param, Register
from cermet.compiler.schedule.domain import Class
from cermet.compiler.schedule.index import ZERO, Atom, Dim, Idx
from cermet.compiler.schedule.movement import Condition
from cermet.compiler.schedule.tree import Dynamic, Tree
from cermet.graph.node import Node
from cermet.ops.leaf import const_value

__all__ = ["Binding", "Env", "Writer", "dims_of"]

Binding = tuple[str, Any]
"""What a parameter is bound to: ("node", node), ("int", value), ("scalar", leaf), ("temp", number), ("status", node)."""


class Env:
    """Where expressions are written: the value of each loop class, the statements so far, what has been written already.

    ``parent`` is that of the enclosing loop; what is written to its body later still comes before this loop.
    """

    def __init__(self, values: dict[Class, Expr], body: list[Any], parent: Env | None = None) -> None:
        self.values: dict[Class, Expr] = values if parent is None else {**parent.values, **values}
        self.body = body
        self.memo: dict[int, Expr] = {}
        self.parent = parent


class Writer:
    """Collects the parameters of one kernel and writes expressions."""

    def __init__(self, class_of: dict[Dim, Class]) -> None:
        self.class_of = class_of
        self.params: list[Param] = []
        self.bindings: list[Binding] = []
        self.buffers: dict[Node, Param] = {}
        self.scalars: dict[Node, Param] = {}
        self.registers: dict[Node, Register] = {}
        self.strides: dict[Any, Expr] = {}
        self.bad: Register | None = None
        self.bad_node: Node | None = None
        self._status: Param | None = None

    # -- parameters ------------------------------------------------------------------------------------------------

    def _param(self, kind: Any, dtype: dt.DType, binding: Binding, readonly: bool = True) -> Param:
        p = Param(f"{kind[0]}{len(self.params)}", kind, dtype, readonly)
        self.params.append(p)
        self.bindings.append(binding)
        return p

    def buffer(self, node: Node, writable: bool = False) -> Param:
        """The parameter for a value in memory."""
        p = self.buffers.get(node)
        if p is None:
            p = self.buffers[node] = self._param("buffer", node.meta.dtype, ("node", node), not writable)
        elif writable:
            p.readonly = False
        return p

    def temp(self, number: int, dtype: dt.DType, writable: bool) -> Param:
        """The parameter for a temporary of the kernel's caller."""
        return self._param("buffer", dtype, ("temp", number), not writable)

    def integer(self, value: int) -> Expr:
        """An int that may differ between calls."""
        if value in (0, 1, -1):
            return ir.const(value)
        return self._param("int", dt.int64, ("int", value)).expr

    def status(self) -> Param:
        """The int64 that a kernel sets where it met bad data."""
        if self._status is None:
            self._status = self._param("buffer", dt.int64, ("status", self.bad_node), False)
        return self._status

    # -- expressions -----------------------------------------------------------------------------------------------

    def position(self, x: Idx, env: Env, of: Node | None = None, dynamic: Callable[[Dynamic, Env], Expr] | None = None) -> Expr:
        """An index expression. ``of``: the value that it is an offset into; its accesses share their strides. ``dynamic``: what to write for
        computed indices instead of their checked value."""
        out = self.integer(x.const)
        for v, c in x.terms:
            if isinstance(v, Atom):
                inner = self.position(v.inner, env)
                value = Expr("imod" if v.op == "mod" else "idiv", (inner, self.integer(v.n)), dt.int64)
            elif isinstance(v, Dynamic):
                value = (dynamic or self._dynamic)(v, env)
            else:
                cls = self.class_of[v]
                if cls.inner is not v:
                    continue  # counted through the class's innermost dim
                value = env.values[cls]
            out = out + (self.integer(c) if of is None else self._stride(of, v, c)) * value
        return out

    def _stride(self, of: Node, v: Any, c: int) -> Expr:
        """A stride of a value along a dim."""
        found = self.strides.get((of, v, c))
        if found is None:
            found = self.strides[of, v, c] = self.integer(c)
        return found

    def _dynamic(self, v: Dynamic, env: Env) -> Expr:
        """A computed index: negative ones count from the end; a bad one is noted and replaced by 0."""
        env = self._home(v, env)
        known = env.memo.get(id(v))
        if known is None:
            raw = self.write(v.tree, env)
            size = self.integer(v.extent)
            wrapped = builder.select(builder.lt(raw, ir.const(0)), builder.add(raw, size), raw)
            outside = builder.or_(builder.lt(wrapped, ir.const(0)), builder.ge(wrapped, size))
            if self.bad is None:
                self.bad = Register("bad", dt.bool)
            env.body.append(ir.Reduce(self.bad, "or", outside))
            known = env.memo[id(v)] = builder.select(outside, ir.const(0), wrapped)
        return known

    def _home(self, v: Dynamic, env: Env) -> Env:
        """The outermost loop in which a computed index is known: it is read and checked there, once for all that lies inside."""
        needed = {self.class_of[d] for d in dims_of(v.tree)}
        while env.parent is not None and needed <= env.parent.values.keys():
            env = env.parent
        return env

    def holds(self, conditions: tuple[Condition, ...], env: Env) -> Expr | None:
        """The conjunction of conditions; None where nothing needs to be tested."""
        out: Expr | None = None
        for c in conditions:
            tests = []
            value = self.position(c.value, env)
            if c.value.low < c.low:
                tests.append(builder.ge(value, self.integer(c.low)))
            if c.value.high >= c.high:
                tests.append(builder.lt(value, self.integer(c.high)))
            if c.modulus != 1:
                tests.append(builder.eq(Expr("imod", (value, self.integer(c.modulus)), dt.int64), ir.const(0)))
            for t in tests:
                out = t if out is None else builder.and_(out, t)
        return out

    def write(self, tree: Tree, env: Env) -> Expr:
        """The expression of a tree (statements it needs go to ``env.body``)."""
        known = env.memo.get(id(tree))
        if known is None:
            known = env.memo[id(tree)] = self._write(tree, env)
        return known

    def _write(self, tree: Tree, env: Env) -> Expr:
        node = tree.node
        kind = tree.kind
        if kind == "load":
            mask = self.holds(tree.conditions, env)
            if any(isinstance(v, Dynamic) for v, _ in tree.offset.terms):
                self.bad_node = self.bad_node or node
            return self.buffer(node).load(self.position(tree.offset, env, node), mask)
        if kind == "op":
            return self._op(tree, env)
        if kind == "reduce":
            return self.registers[node].expr
        if kind == "guard":
            value = self.write(tree.args[0], env)
            condition = self.holds(tree.conditions, env)
            return value if condition is None else builder.select(condition, value, builder.like(value, 0))
        if kind == "zero":
            return builder.const(0, node.meta.dtype)
        if kind == "const":
            return builder.const(const_value(node), node.meta.dtype)
        if kind == "count":
            return builder.cast(self.integer(node.call.attr("number")), node.meta.dtype.compute)
        if kind == "index":
            return builder.cast(self.position(tree.offset, env), node.meta.dtype)
        p = self.scalars.get(node)
        if p is None:
            p = self.scalars[node] = self._param("scalar", node.meta.dtype, ("scalar", node))
        return p.expr

    def _op(self, tree: Tree, env: Env) -> Expr:
        node = tree.node
        op = node.call.op
        args = [self.write(a, env) for a in tree.args]
        if op.kind == "gather":
            self.bad_node = node
            for v, _ in tree.offset.terms:
                self._dynamic(v, env)
            return args[0]
        value = op.lower(builder, *args, **op.named(node.call))
        return rounded(value, node.meta.dtype, op.ulp == 0)


def dims_of(tree: Tree) -> set[Dim]:
    """The loop dims that a tree's value depends on."""
    out: set[Dim] = set()
    trees, indices = [tree], [ZERO]
    while trees or indices:
        if trees:
            t = trees.pop()
            trees.extend(t.args)
            indices.append(t.offset)
            indices.extend([c.value for c in t.conditions])
            continue
        for v, _ in indices.pop().terms:
            if isinstance(v, Atom):
                indices.append(v.inner)
            elif isinstance(v, Dynamic):
                trees.append(v.tree)
            else:
                out.add(v)
    return out


def rounded(value: Expr, dtype: dt.DType, exact: bool) -> Expr:
    """A value of a 16-bit float is rounded after each op, so that its bits don't depend on what is fused (exact ops need no rounding)."""
    if dtype.compute is dtype or exact:
        return value
    if value.op == "cast" and value.attr is dtype:
        return value
    return Expr("cast", (value,), dt.float32, dtype)
