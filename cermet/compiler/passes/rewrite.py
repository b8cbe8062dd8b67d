"""The graph passes, in one linear walk: decompose composites, fold constants, apply algebra, merge movement, share common
subexpressions. What nothing needs is dropped by walking from the outputs afterwards.

Guarantees: the result holds leaves and primitives only (no composites, no ``item``); equal calls on equal inputs are one node; the
result's outputs equal the input's, in order. Needs: inputs before consumers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cermet.compiler.schedule.joins import as_join, settled
from cermet.compiler.schedule.operand import BY_HAND, is_strided, runs_along_last
from cermet.graph.node import Node, toposort
from cermet.ops.define import OpDef, constant
from cermet.ops.join import join
from cermet.ops.leaf import const_value, results_of
from cermet.ops.movement import copy, expand, permute, reshape, slice_
from cermet.ops.recurrence import takes_any_strides

__all__ = ["rewrite"]


def rewrite(outputs: Sequence[Node]) -> list[Node]:
    """The outputs' equivalents in a graph of primitives."""
    walk = _Rewriter()
    results = [walk.result(n) for n in outputs]
    joins = [n for n in live_order(results) if n.call.op is join]
    if joins and not settled(joins, results):
        walk = _Rewriter(joins=False)
        results = [walk.result(n) for n in outputs]
    return results


class _Rewriter:
    def __init__(self, joins: bool = True) -> None:
        self.joins = joins
        self.memo: dict[Node, Any] = {}
        self.shared: dict[Any, Node] = {}
        self.where: Any = None

    def result(self, node: Node) -> Any:
        """The rewritten form of a node; a tuple for a call with several results."""
        if node not in self.memo:
            for n in self._pending(node):
                self._one(n)
        return self.memo[node]

    def _pending(self, root: Node) -> list[Node]:
        order: list[Node] = []
        seen: set[Node] = set()
        stack: list[tuple[Node, bool]] = [(root, False)]
        memo = self.memo
        while stack:
            n, done = stack.pop()
            if done:
                order.append(n)
            elif n not in memo and n not in seen:
                seen.add(n)
                stack.append((n, True))
                stack.extend([(i, False) for i in reversed(n.inputs) if i not in memo])
        return order

    def _one(self, n: Node) -> None:
        memo = self.memo
        if n.buffer is not None:
            memo[n] = n
            return
        if n.where is None:
            n.where = self.where
        call = n.call
        op: OpDef = call.op
        inputs = tuple([memo[i] for i in n.inputs])
        if op.name == "item":
            memo[n] = inputs[0][call.attrs[0]]
        elif op.kind == "composite":
            memo[n] = self._decompose(n, inputs)
        else:
            if op.kind in BY_HAND:
                inputs = self._legal(n, inputs)
            final = self._share(n, inputs)
            if call.outs is not None:
                self._several(n, final)
                return
            memo[n] = final
            memo[final] = final

    def _several(self, n: Node, final: Node) -> None:
        """A primitive with several results stands for the tuple of them, each a node that its kernel writes."""
        if final not in self.memo:
            self.memo[final] = results_of(final)
            for r in self.memo[final]:
                r.where = final.where
                self.memo[r] = r
        self.memo[n] = self.memo[final]

    def _legal(self, n: Node, inputs: tuple[Node, ...]) -> tuple[Node, ...]:
        """Operands of a kernel designed by hand, copied where strides can't describe them."""
        out = []
        for k, x in enumerate(inputs):
            if not (is_strided(x) or _is_base(n, k, x)):
                x = self._copied(x, n.where)
            if n.call.op.kind == "recurrence" and not takes_any_strides(n.call, k) and not runs_along_last(x):
                x = self._again(copy(x))
            out.append(x)
        return tuple(out)

    def _copied(self, x: Node, where: Any) -> Node:
        """A copy of ``x`` in memory; what is strided anyway (a permutation, a repetition) stays outside, so that uses that differ only in
        that share the copy."""
        if x.call.op in (permute, expand) and x.buffer is None:
            inner = x.inputs[0]
            return self._again(Node(x.call, (inner if is_strided(inner) else self._copied(inner, where),)))
        out = self._again(copy(x))
        if out.where is None:
            out.where = where
        return out

    def _decompose(self, n: Node, inputs: tuple[Node, ...]) -> Any:
        op = n.call.op
        if op.decompose is None:
            raise NotImplementedError(f"composite op {op.name} has no decomposition")
        out = op.decompose(*inputs, **op.named(n.call))
        if isinstance(out, tuple):
            return tuple([self._located(o, n) for o in out])
        result = self._located(out, n)
        if result.meta is not n.meta:
            raise RuntimeError(f"the decomposition of {op.name} gives {result.meta}, its rule says {n.meta}")
        return result

    def _located(self, out: Node, origin: Node) -> Node:
        """The rewritten form of a decomposition's result, whose new nodes were recorded where the composite was."""
        before, self.where = self.where, origin.where
        try:
            return self.result(out)
        finally:
            self.where = before

    def _share(self, n: Node, inputs: tuple[Node, ...]) -> Node:
        simpler = _simplify(n, inputs)
        if simpler is None and self.joins:
            simpler = as_join(n, inputs)
        if simpler is not None:
            return simpler if simpler.buffer is not None else self._again(simpler)
        ids = [id(i) for i in inputs]
        if n.call.op.commutative:
            ids.sort()
        key = (n.call.id, *ids)
        found = self.shared.get(key)
        if found is None:
            if inputs == n.inputs:
                found = n
            else:
                found = Node(n.call, inputs)
                found.where = n.where
            self.shared[key] = found
        return found

    def _again(self, n: Node) -> Node:
        """A simplified node may share or simplify further; its inputs are final already."""
        known = self.memo.get(n)
        if known is not None:
            return known
        for i in n.inputs:
            if i not in self.memo:
                self.memo[i] = self._again(i) if i.inputs or i.buffer is None else i
        inputs = tuple([self.memo[i] for i in n.inputs])
        out = self._share(n, inputs)
        self.memo[n] = out
        self.memo[out] = out
        return out


# ------------------------------------------------------------------------------------------------------------- algebra


def _constant_of(n: Node) -> Any:
    """The Python number of a constant, also of one that was expanded; None otherwise."""
    while n.call.op is expand:
        n = n.inputs[0]
    return const_value(n) if n.call.op.name == "const" and n.buffer is None else None


def _simplify(n: Node, inputs: tuple[Node, ...]) -> Node | None:
    """A simpler node of the same value, or None."""
    op = n.call.op
    if op.kind == "movement":
        return _simplify_movement(n, inputs[0])
    if op.kind == "elementwise":
        return _simplify_elementwise(n, inputs)
    if op.kind == "reduce":
        return _simplify_reduce(n, inputs[0])
    return None


def _simplify_movement(n: Node, x: Node) -> Node | None:
    op, attrs = n.call.op, n.call.attrs
    if op is reshape:
        if x.meta is n.meta:
            return x
        if x.call.op is reshape and x.buffer is None:
            return reshape(x.inputs[0], shape=attrs[0])
    elif op is expand:
        if x.meta is n.meta:
            return x
        if x.call.op is expand and x.buffer is None:
            return expand(x.inputs[0], shape=attrs[0])
    elif op is permute:
        dims = attrs[0]
        if dims == tuple(range(len(dims))):
            return x
        if x.call.op is permute and x.buffer is None:
            inner = x.call.attrs[0]
            return permute(x.inputs[0], dims=tuple([inner[d] for d in dims]))
    elif op is slice_ and x.meta is n.meta and all(s == 1 for s in attrs[1]):
        return x
    if (
        x.call.op is expand
        and x.inputs
        and x.inputs[0].meta.numel == 1
        and x.inputs[0].meta.ndim == 0
        and op.name in _KEEPS_VALUES
    ):
        return expand(x.inputs[0], shape=n.meta.shape)
    return None


_KEEPS_VALUES = frozenset(("reshape", "permute", "expand", "slice", "diagonal", "windows"))  # reindexings without new elements


def _simplify_elementwise(n: Node, inputs: tuple[Node, ...]) -> Node | None:
    op = n.call.op
    if op.name == "cast" and inputs[0].meta is n.meta:
        return inputs[0]
    if op.lower is None or not inputs or op is copy:  # a copy is there to be made
        return None
    if n.meta.ndim == 0 and all(i.call.op.name == "const" and i.buffer is None for i in inputs):
        return _fold(n, inputs)
    if len(inputs) == 2 and op.identity is not None:
        # x + 0 keeps x except for -0.0 + 0, which PyTorch's compilers also accept; x * 1 is exact.
        for k in (0, 1):
            other = inputs[1 - k]
            if other.meta is n.meta and _is_identity(op, _constant_of(inputs[k])):
                return other
    if op.name in ("sub", "div") and inputs[0].meta is n.meta:
        c = _constant_of(inputs[1])
        if c is not None and c == (0 if op.name == "sub" else 1):
            return inputs[0]
    if op.name == "neg" and inputs[0].call.op is op and inputs[0].inputs:
        return inputs[0].inputs[0]
    return None


def _is_base(n: Node, k: int, x: Node) -> bool:
    """Whether x is what a scatter starts from, the same everywhere: it is written to the result straight away."""
    return n.call.op.kind == "scatter" and k == 0 and _constant_of(x) is not None


def _is_identity(op: OpDef, c: Any) -> bool:
    return c is not None and c == op.identity and op.commutative


def _fold(n: Node, inputs: tuple[Node, ...]) -> Node | None:
    import numpy as np

    from cermet.compiler.reference import apply_reference

    arrays = [np.asarray(const_value(i), dtype=i.meta.dtype.numpy) for i in inputs]
    value = apply_reference(n.call, arrays)
    return constant(value.astype(np.float64).item() if n.meta.dtype.kind == "f" else value.item(), n.meta.dtype, inputs[0])


def _simplify_reduce(n: Node, x: Node) -> Node | None:
    dims, _keepdim = n.call.attrs
    if all(x.meta.shape[d] == 1 for d in dims):
        return x if x.meta is n.meta else reshape(x, shape=n.meta.shape)
    return None


def live_order(outputs: Sequence[Node]) -> list[Node]:
    """All nodes that the outputs need, inputs first."""
    return toposort(list(outputs))
