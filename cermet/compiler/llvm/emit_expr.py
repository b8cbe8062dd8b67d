"""Expressions of the loop IR to LLVM values, each once, in the outermost scope where it is defined and safe.

A value is *uniform* (one scalar, the same in every lane), *linear* (an int64 that grows by a fixed step from lane to
lane, kept as the scalar of lane 0 and the step) or *varying* (a vector). Index arithmetic thus stays scalar, and the
step of an offset says at once how memory is to be read: 0 broadcast, 1 contiguous, -1 reversed, anything else lane by
lane.

Scopes are nested as the code is. The block of an outer scope is left open while inner ones are written, so that code
of no concern to the inner loop is simply put there. Loads move out only as far as they are certain to be
executed.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from cermet import dtypes as dt
from cermet.compiler.llvm import emit_ops, emit_random
from cermet.compiler.llvm.builder import I64, LaneBuilder, Line, constant, llvm_type
from cermet.compiler.llvm.target import Target
from cermet.compiler.loops.ir import PAIR_FIRST, PAIR_TURNED, RUNNING, Expr, Param, Register, Var
from cermet.dtypes import DType

__all__ = ["Expressions", "Node", "Scope", "Val"]


class Node:
    """An expression by number: structurally equal expressions share one."""

    __slots__ = ("args", "attr", "dtype", "number", "of", "op")

    def __init__(self, number: int, expr: Expr, args: tuple[int, ...], of: DType) -> None:
        self.number = number
        self.op = expr.op
        self.attr = expr.attr
        self.dtype = expr.dtype
        self.args = args
        self.of = of  # the dtype of the operands (the last one's: a select's first is its condition)


class Val:
    """A value in the code: see the module's text for uniform, linear and varying."""

    __slots__ = ("base", "deps", "name", "scope", "step", "step_scope", "uniform", "vectors")

    def __init__(self, base: Any, step: Any = 0, scope: int = 0, deps: int = 0, step_scope: int = 0) -> None:
        self.base = base  # a Line, or an int where an int64 is known; None where varying
        self.step = step  # 0 where uniform; an int or Line where linear; None where varying
        self.scope = scope
        self.step_scope = step_scope  # where the step is available, which may be further out
        self.deps = deps  # bits of the registers and written buffers that it was computed from
        self.vectors: dict[int, Any] = {}  # by number of lanes
        self.uniform = step.__class__ is int and step == 0
        # What tells values apart: SSA names do, and constants are their own.
        name = base if base.__class__ is int or base is None else base.get_reference()
        self.name: Any = name if self.uniform else (name, step if step.__class__ is int or step is None else step.get_reference())

    def with_deps(self, deps: int) -> Val:
        """The same value, come by from other registers and buffers."""
        if deps == self.deps:
            return self
        made = Val(self.base, self.step, self.scope, deps, self.step_scope)
        made.vectors, made.name = self.vectors, self.name
        return made


def varying(value: Any, lanes: int, scope: int, deps: int) -> Val:
    made = Val(None, None, scope, deps)
    made.vectors[lanes] = value
    made.name = value.get_reference()
    return made


class Scope:
    """A region of code: where to append, and what must stay inside."""

    __slots__ = ("builders", "changed", "ir", "keys", "kind", "sure")

    def __init__(self, kind: str, block: ir.Block, changed: tuple[Any, ...] = (), sure: bool = True) -> None:
        self.kind = kind  # "function", "ahead" (of a loop, if it runs at all), "body", "guard"
        self.ir = ir.IRBuilder(block)
        self.builders: dict[int, LaneBuilder] = {}
        self.keys: list[Any] = []  # memo entries that end with it
        self.changed = set(changed)  # registers and buffers written anywhere inside
        self.sure = sure  # entered whenever the enclosing scope is


class Expressions:
    """The part of the emitter that evaluates expressions. Subclassed by `cermet.compiler.llvm.emit.Emitter`."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.scopes: list[Scope] = []
        self.lanes = 1  # of the vector loop being written
        self.tail: Val | None = None  # which lanes have an iteration, where not all have
        self.nodes: list[Node] = []
        self._ids: dict[int, int] = {}
        self._structure: dict[tuple[Any, ...], int] = {}
        self._keep: list[Expr] = []
        self.memo: dict[Any, Val] = {}
        self.params: dict[Param, Val] = {}
        self.vars: dict[Var, Val] = {}
        self.regs: dict[Register, Any] = {}
        self.bits: dict[Any, int] = {}  # of registers and written buffers
        self._dependents: dict[int, list[Any]] = {}

    # -- numbering -------------------------------------------------------------------------------------------------

    def number(self, root: Expr) -> int:
        """The number of an expression."""
        ids = self._ids
        found = ids.get(id(root))
        if found is not None:
            return found
        self._keep.append(root)
        stack = [root]
        while stack:
            expr = stack[-1]
            if id(expr) in ids:
                stack.pop()
                continue
            waiting = [a for a in expr.args if id(a) not in ids]
            if waiting:
                stack.extend(reversed(waiting))
                continue
            stack.pop()
            args = tuple([ids[id(a)] for a in expr.args])
            # repr tells -0.0 from 0.0 and 1 from True, which compare equal.
            attr = repr(expr.attr) if expr.op == "const" else expr.attr
            key = (expr.op, attr, expr.dtype.code, args)
            number = self._structure.get(key)
            if number is None:
                number = self._structure[key] = len(self.nodes)
                self.nodes.append(Node(number, expr, args, expr.args[-1].dtype if expr.args else expr.dtype))
            ids[id(expr)] = number
        return ids[id(root)]

    # -- scopes ----------------------------------------------------------------------------------------------------

    @property
    def top(self) -> int:
        return len(self.scopes) - 1

    def at(self, scope: int, lanes: int = 1) -> LaneBuilder:
        """A builder of ``lanes`` lanes at the end of a scope's code."""
        where = self.scopes[scope]
        found = where.builders.get(lanes)
        if found is None:
            found = where.builders[lanes] = LaneBuilder(where.ir, lanes, self.target)
        return found

    def push(self, scope: Scope) -> None:
        self.scopes.append(scope)

    def pop(self) -> None:
        for key in self.scopes.pop().keys:
            self.memo.pop(key, None)

    def remember(self, key: Any, value: Val, deps: int) -> Val:
        """Keep a value under ``key`` until its scope ends or one of ``deps`` changes."""
        self.memo[key] = value
        self.scopes[value.scope].keys.append(key)
        while deps:
            bit = deps & -deps
            deps ^= bit
            self._dependents.setdefault(bit, []).append(key)
        return value

    def bit_of(self, thing: Register | Param | Var) -> int:
        """The bit that stands for a register or written buffer in `Val.deps`."""
        found = self.bits.get(thing)
        if found is None:
            found = self.bits[thing] = 1 << len(self.bits)
        return found

    def forget(self, thing: Register | Param | Var) -> None:
        """Drop what was computed from ``thing``: it is about to change, or just did."""
        for key in self._dependents.pop(self.bit_of(thing), ()):
            self.memo.pop(key, None)

    def scope_of_change(self, thing: Register | Param | Var) -> int:
        """The innermost scope that changes ``thing``: a read of it is invariant inside any deeper one."""
        for k in range(self.top, 0, -1):
            if thing in self.scopes[k].changed:
                return k
        return 0

    def scope_of_access(self, least: int) -> int:
        """The outermost scope, not outside ``least``, in which memory read here is sure to be read anyway."""
        k = self.top
        while k > least:
            scope = self.scopes[k]
            if scope.kind == "guard" or (scope.kind == "ahead" and not scope.sure):
                break
            k -= 1
        return k

    # -- evaluation ------------------------------------------------------------------------------------------------

    def value(self, expr: Expr) -> Val:
        """The value of an expression here."""
        root = self.number(expr)
        memo = self.memo
        found = memo.get(root)
        if found is not None:
            return found
        stack = [root]
        while stack:
            number = stack[-1]
            if number in memo:
                stack.pop()
                continue
            node = self.nodes[number]
            waiting = [a for a in node.args if a not in memo]
            if waiting:
                waiting.reverse()
                stack.extend(waiting)
                continue
            stack.pop()
            made = self._emit(node, [memo[a] for a in node.args])
            self.remember(number, made, made.deps)
        return memo[root]

    def vector_of(self, value: Val, lanes: int, element: ir.Type) -> Any:
        """``value`` in ``lanes`` lanes; the scalar itself for one."""
        if lanes == 1 and value.base is not None:
            base = value.base
            return constant(element, base) if base.__class__ is int else base
        found = value.vectors.get(lanes)
        if found is None:
            b = self.at(value.scope, lanes)
            base = value.base
            found = constant(b.vec(element), base) if base.__class__ is int else b.splat(base)
            if not value.uniform:
                step = value.step
                ramp = b.ramp(I64, 0, step) if step.__class__ is int else b.mul(b.splat(step), b.ramp(I64))
                found = b.add(found, ramp)
            value.vectors[lanes] = found
        return found

    def scalar_of(self, value: Val, element: ir.Type) -> Any:
        """The scalar of a uniform value (lane 0's of a linear one)."""
        base = value.base
        return constant(element, base) if base.__class__ is int else base

    def _emit(self, node: Node, args: list[Val]) -> Val:
        op = node.op
        if op == "const":
            if node.dtype is dt.int64:
                return Val(int(node.attr))
            return Val(constant(llvm_type(node.dtype), node.attr))
        if op == "param":
            return self.params[node.attr]
        if op == "var":
            return self.vars[node.attr]
        if op == "reg":
            return self._read(node)
        scope = 0
        deps = 0
        for a in args:
            scope = max(scope, a.scope)
            deps |= a.deps
        # Different expressions of equal values (an unrolled loop's copies are full of them) are computed once.
        key = (op, node.attr, node.dtype.code, node.of.code, *[a.name for a in args])
        found = self.memo.get(key)
        if op == "load":
            written = 0 if node.attr.readonly and node.attr.kind == "buffer" else self.bit_of(node.attr)
            deps |= written
        else:
            written = 0
        if found is not None:
            return found.with_deps(deps)
        compute = self.load if op == "load" else self._compute
        return self.remember(key, compute(node, args, scope, deps), written)

    def _compute(self, node: Node, args: list[Val], scope: int, deps: int) -> Val:
        op = node.op
        if node.dtype is dt.int64 and op in ("add", "sub", "mul", "neg"):
            made = self._linear(op, args, scope, deps)
            if made is not None:
                return made
        if op == "philox":
            return self._philox(node, args, scope, deps)
        return self._operate(node, args, scope, deps)

    def load(self, node: Node, args: list[Val], least: int, deps: int) -> Val:
        """The element at an offset, read no further out than the scope ``least``."""
        raise NotImplementedError

    def _operate(self, node: Node, args: list[Val], scope: int, deps: int) -> Val:
        lanes = 1 if all(a.uniform for a in args) else self.lanes
        b = self.at(scope, lanes)
        nodes = self.nodes
        if lanes == 1 and node.of is dt.int64 and all(a.base.__class__ is int for a in args):
            folded = _fold(node.op, [a.base for a in args])
            if folded is not None:
                return Val(folded, 0, scope, deps)
        operands = [self.vector_of(a, lanes, llvm_type(nodes[n].dtype)) for a, n in zip(args, node.args, strict=True)]
        if node.op == "cast":
            target = node.attr if isinstance(node.attr, DType) else node.dtype
            result = emit_ops.cast(b, operands[0], node.of, target)
        elif node.op == "bitcast":
            result = emit_ops.bitcast(b, operands[0], node.of, node.dtype)
        else:
            result = emit_ops.operation(b, node.op, node.of, operands)
        return Val(result, 0, scope, deps) if lanes == 1 else varying(result, lanes, scope, deps)

    def _read(self, node: Node) -> Val:
        reg: Register = node.attr
        value = self.regs[reg]
        scope, deps = self.scope_of_change(reg), self.bit_of(reg)
        if isinstance(value.type, ir.VectorType):
            return varying(value, value.type.count, scope, deps)
        return Val(value, 0, scope, deps)

    def _philox(self, node: Node, args: list[Val], scope: int, deps: int) -> Val:
        """Random words; those of one block, or of one pair, are made together."""
        attrs = (0, 1, 2, 3) if node.attr < RUNNING else (RUNNING,) if node.attr == RUNNING else (PAIR_FIRST, PAIR_TURNED)
        key = ("philox", *[a.name for a in args])
        if (*key, node.attr) not in self.memo:
            lanes = 1 if all(a.uniform for a in args) else self.lanes
            for k, word in zip(attrs, self._random_words(attrs, args, scope, lanes), strict=True):
                made = Val(word, 0, scope, deps) if lanes == 1 else varying(word, lanes, scope, deps)
                self.remember((*key, k), made, 0)
        return self.memo[(*key, node.attr)].with_deps(deps)

    def _random_words(self, attrs: tuple[int, ...], args: list[Val], scope: int, lanes: int) -> list[Any]:
        key, number = args
        b = self.at(scope, lanes)
        if attrs[0] >= RUNNING and lanes > 1 and key.uniform and number.step.__class__ is int and number.step == 1:
            first = self.scalar_of(number, I64)
            return emit_random.running_words(b, lambda n: self._round_keys(key, n), first, attrs)
        keys, at = self._round_keys(key, lanes), self.vector_of(number, lanes, I64)
        if attrs[0] < RUNNING:
            return emit_random.philox(b, keys, at)
        return [emit_random.running_word(b, keys, at, attr) for attr in attrs]

    def _round_keys(self, key: Val, lanes: int) -> list[tuple[Any, Any]]:
        """The rounds' keys in so many lanes, made where the key is."""
        if not key.uniform:
            return emit_random.round_keys(self.at(key.scope, lanes), self.vector_of(key, lanes, I64))
        name = ("round keys", key.name, lanes)
        found = self.memo.get(name)
        if found is None:
            b = self.at(key.scope, lanes)
            pairs = emit_random.round_keys(b.with_lanes(1), self.scalar_of(key, I64))
            found = self.remember(name, Val(0, 0, key.scope), 0)
            found.vectors[lanes] = [(b.splat(x), b.splat(y)) for x, y in pairs]
        return found.vectors[lanes]

    # -- linear integers -------------------------------------------------------------------------------------------

    def _linear(self, op: str, args: list[Val], scope: int, deps: int) -> Val | None:
        """int64 sums and multiples of linear values are linear; None where an operand is not."""
        x = args[0]
        if x.base is None or args[-1].base is None:
            return None
        if op == "neg":
            return Val(self._int("sub", 0, x.base, scope), self._int("sub", 0, x.step, x.step_scope), scope, deps, x.step_scope)
        y = args[1]
        if op == "mul":
            if not y.uniform:
                x, y = y, x
            if not y.uniform:
                return None
            outer = 0 if x.uniform else max(x.step_scope, y.scope)
            return Val(self._int("mul", x.base, y.base, scope), self._int("mul", x.step, y.base, outer), scope, deps, outer)
        outer = max(x.step_scope, y.step_scope)
        return Val(self._int(op, x.base, y.base, scope), self._int(op, x.step, y.step, outer), scope, deps, outer)

    def _int(self, op: str, x: Any, y: Any, scope: int) -> Any:
        """Scalar int64 arithmetic that folds what is known."""
        x_known, y_known = x.__class__ is int, y.__class__ is int
        if x_known and y_known:
            return _wrap(x + y if op == "add" else x - y if op == "sub" else x * y)
        if y_known and y == (1 if op == "mul" else 0):
            return x
        if x_known and op != "sub" and x == (1 if op == "mul" else 0):
            return y
        if op == "mul" and ((x_known and x == 0) or (y_known and y == 0)):
            return 0
        b = self.at(scope)
        return b._binary(op, constant(I64, x) if x_known else x, constant(I64, y) if y_known else y)


def _wrap(value: int) -> int:
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value


def _fold(op: str, args: list[int]) -> int | None:
    """An int64 operation on known values; None where it is left to LLVM."""
    if op in ("idiv", "imod") and args[1] != 0:
        return _wrap(args[0] // args[1] if op == "idiv" else args[0] % args[1])
    if op == "min":
        return min(args)
    if op == "max":
        return max(args)
    return None


def scalar_line(value: Any) -> Line:
    """An int64 known or not as an LLVM value."""
    return constant(I64, value) if value.__class__ is int else value
