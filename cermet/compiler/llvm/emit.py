"""The loop IR to LLVM: `emit_module` makes of a `Kernel` one function of the kernel ABI (docs/notes/contracts.md).

Registers become SSA values at once (which of them a loop changes is known before it is written, so its phis are). A
vector loop is written two or three times: several registers wide, one register wide where the first is wider, and
scalar for the rest. How an extent is divided among them depends on the extent alone. `Reduce` into a register from
outside keeps one partial result a lane, combined at the end by a fixed tree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from llvmlite import ir

from cermet.compiler.llvm import emit_ops
from cermet.compiler.llvm.builder import BOOL, I32, I64, PTR, VOID, Line, constant, llvm_type
from cermet.compiler.llvm.emit_expr import Scope, Val, scalar_line, varying
from cermet.compiler.llvm.emit_memory import Memory
from cermet.compiler.llvm.emit_survey import strips, unrolls
from cermet.compiler.llvm.target import Target
from cermet.compiler.loops.ir import (
    Assign,
    Define,
    Expr,
    For,
    Guard,
    Kernel,
    Param,
    Prefetch,
    Reduce,
    Register,
    Stmt,
    Store,
    Var,
    const,
)

__all__ = ["ENTRY", "emit_module"]

ENTRY = "kernel"


def emit_module(kernel: Kernel, target: Target, entry: str = ENTRY) -> ir.Module:
    """An LLVM module with the function ``entry`` that runs ``kernel``.

    The kernel must be well-formed (`cermet.compiler.loops.verify.verify`); malformed ones give malformed modules.
    """
    module = ir.Module(name=entry)
    module.triple = target.triple
    function = ir.Function(module, ir.FunctionType(VOID, [PTR, I64, I64, PTR]), entry)
    function.attributes.add("nounwind")
    emitter = Emitter(target, function)
    emitter.run(kernel)
    return module


class Emitter(Memory):
    """Writes one kernel."""

    def __init__(self, target: Target, function: ir.Function) -> None:
        super().__init__(target)
        self.function = function
        self.push(Scope("function", function.append_basic_block("entry")))
        self._changes: dict[int, tuple[Any, ...]] = {}
        self.in_vector = False
        self.streaming = False
        self.partial: dict[Register, str] = {}  # registers that keep a partial result a lane

    # -- the kernel ------------------------------------------------------------------------------------------------

    def run(self, kernel: Kernel) -> None:
        """Write the whole function."""
        self._find_changes(kernel)
        self._bind(kernel.params)
        begin, end = self.function.args[1], self.function.args[2]
        loop = kernel.body[0] if len(kernel.body) == 1 else None
        if not (isinstance(loop, For) and loop.kind == "parallel"):
            loop = For(Var("once"), const(1), kernel.body, "parallel")
            self._changes[id(loop)] = self._all_written(kernel.body)

        def body(index: Any) -> None:
            self.vars[loop.var] = Val(index, 0, self.top)
            self.statements(loop.body)

        def blocks() -> None:
            self._loop(begin, end, 1, body, self._changes[id(loop)], sure=False)

        fresh = self._fresh(kernel)
        if fresh is None:
            blocks()
        else:
            # Memory that was just read is in the caches: writing past them would be slower.
            self.streaming = True
            self._if(Val(fresh), blocks)
            self.streaming = False
            self._if(Val(self.at(0).xor(fresh, constant(BOOL, 1))), blocks)
        self.at(0).effect("ret void")

    def _fresh(self, kernel: Kernel) -> Any:
        """Whether what is streamed lies in no memory that is read; None where nothing is streamed."""
        streamed = {s.buffer for s in kernel.walk() if isinstance(s, Store) and s.stream}
        b, fresh = self.at(0), None
        for out in [p for p in kernel.params if p in streamed]:
            if fresh is None:
                fresh = constant(BOOL, 1)
            for p in kernel.params:
                if p.kind == "buffer" and p.readonly:
                    fresh = b.and_(fresh, b.icmp("ne", self.params[p].base, self.params[out].base))
        return fresh

    def _bind(self, params: list[Param]) -> None:
        """Read every slot of the argument array."""
        b = self.at(0)
        args, scratch = self.function.args[0].get_reference(), self.function.args[3].get_reference()
        for k, param in enumerate(params):
            slot = Line(PTR, args, "") if k == 0 else b.line(PTR, f"getelementptr inbounds i64, ptr {args}, i64 {k}")
            if param.kind == "buffer":
                value = b.line(PTR, f"load ptr, ptr {slot.ref}, align 8")
            elif param.kind == "scratch":
                start = b.line(I64, f"load i64, ptr {slot.ref}, align 8")
                value = b.line(PTR, f"getelementptr inbounds i8, ptr {scratch}, i64 {start.ref}")
            elif param.kind == "int":
                value = b.line(I64, f"load i64, ptr {slot.ref}, align 8")
            else:
                value = self._scalar_param(slot, param)
            self.params[param] = Val(value)

    def _scalar_param(self, slot: Line, param: Param) -> Any:
        b, type_ = self.at(0), llvm_type(param.dtype)
        if param.dtype.kind == "f":
            return b.line(type_, f"load {type_}, ptr {slot.ref}, align 8")
        bits = b.line(I64, f"load i64, ptr {slot.ref}, align 8")
        return b.icmp("ne", bits, b.i(0, bits)) if param.dtype.kind == "b" else b.trunc_int(bits, param.dtype.bits)

    def _written(self, stmt: Stmt) -> tuple[Any, ...]:
        """The registers and buffers that a statement writes."""
        if isinstance(stmt, For | Guard):
            return self._changes[id(stmt)]
        if isinstance(stmt, Prefetch):
            return ()
        return (stmt.buffer if isinstance(stmt, Store) else stmt.reg,)

    def _all_written(self, body: Iterable[Stmt]) -> tuple[Any, ...]:
        return tuple(dict.fromkeys([thing for stmt in body for thing in self._written(stmt)]))

    def _find_changes(self, kernel: Kernel) -> None:
        nested = [s for s in kernel.walk() if isinstance(s, For | Guard)]
        for stmt in reversed(nested):  # inside out
            self._changes[id(stmt)] = self._all_written(stmt.body)

    # -- statements ------------------------------------------------------------------------------------------------

    def statements(self, body: Iterable[Stmt]) -> None:
        """Write statements in order."""
        for stmt in body:
            if isinstance(stmt, For):
                self._for(stmt)
            elif isinstance(stmt, Store):
                self.store(stmt)
            elif isinstance(stmt, Define):
                self._set(stmt.reg, self._in_lanes(stmt.init, stmt.reg))
            elif isinstance(stmt, Assign):
                self._set(stmt.reg, self._in_lanes(stmt.value, stmt.reg))
            elif isinstance(stmt, Reduce):
                self._reduce(stmt)
            elif isinstance(stmt, Prefetch):
                self.prefetch(stmt)
            else:
                condition = self.value(stmt.condition)
                self._if(condition, lambda inner=stmt: self.statements(inner.body), self._changes[id(stmt)])  # type: ignore[misc]

    def _in_lanes(self, expr: Expr, reg: Register) -> Any:
        """A register's new value: a vector wherever there are lanes, so that its type never changes."""
        return self.vector_of(self.value(expr), self.lanes, llvm_type(reg.dtype))

    def _set(self, reg: Register, value: Any) -> None:
        self.regs[reg] = value
        self.forget(reg)

    def _reduce(self, stmt: Reduce) -> None:
        reg = stmt.reg
        value = self._in_lanes(stmt.value, reg)
        if self.tail is not None and reg in self.partial:
            b = self.at(self.top, self.lanes)
            neutral = constant(value.type, emit_ops.identity(stmt.op, reg.dtype))
            value = b.select(self.vector_of(self.tail, self.lanes, BOOL), value, neutral)
        self._set(reg, emit_ops.combine(self.at(self.top, self.lanes), stmt.op, reg.dtype, self.regs[reg], value))

    def _if(self, mask: Val, body: Callable[[], None], changed: tuple[Any, ...] = ()) -> None:
        """Write ``body`` under a uniform condition."""
        parent = self.at(self.top)
        condition = self.scalar_of(mask, BOOL)
        inside, after = self._block("then"), self._block("after")
        regs = [r for r in changed if r in self.regs]
        before = {r: self.regs[r] for r in regs}
        self.push(Scope("guard", inside, changed))
        body()
        end = self.at(self.top)
        last = end.ir.block
        end.effect(f"br label {after.get_reference()}")
        self.pop()
        self._drop_inner(changed, before)
        first = parent.ir.block
        parent.effect(f"br i1 {condition.get_reference()}, label {inside.get_reference()}, label {after.get_reference()}")
        parent.ir.position_at_end(after)
        for r in regs:
            new = self.regs[r]
            if new is not before[r]:
                old = before[r]
                self._set(r, parent.line(new.type, _phi(new.type, (old, first), (new, last))))
        self._forget_all(changed)

    def _block(self, name: str) -> ir.Block:
        return self.function.append_basic_block(name)

    def _forget_all(self, changed: Iterable[Any]) -> None:
        for thing in changed:
            self.forget(thing)

    # -- loops -----------------------------------------------------------------------------------------------------

    def _for(self, stmt: For) -> None:
        extent = self.value(stmt.extent)
        if stmt.kind == "vector" and not self.in_vector:
            self.in_vector = True
            self._vector(stmt, extent.base)
            self.in_vector = False
        elif extent.base.__class__ is int and unrolls(self, stmt, extent.base, self.in_vector and self.lanes == 1):
            for k in range(extent.base):
                self.vars[stmt.var] = Val(k, deps=self.bit_of(stmt.var))
                self.forget(stmt.var)  # a constant, but another one in each copy
                self.statements(stmt.body)
            self.forget(stmt.var)
        else:
            self._serial(stmt, extent.base)

    def _serial(self, stmt: For, extent: Any) -> None:
        if extent.__class__ is int and extent <= 0:
            return

        def body(index: Any) -> None:
            self.vars[stmt.var] = Val(index, 0, self.top)
            self.statements(stmt.body)

        self._loop(0, extent, 1, body, self._changes[id(stmt)], sure=extent.__class__ is int)

    def _loop(self, start: Any, stop: Any, step: int, body: Callable[[Any], None], changed: tuple[Any, ...], sure: bool) -> None:
        """Write ``for index in range(start, stop, step)``; ``sure``: it runs at least once."""
        parent = self.at(self.top)
        start_line, stop_line = scalar_line(start), scalar_line(stop)
        ahead, head, after = self._block("ahead"), self._block("loop"), self._block("done")
        entry = None if sure else parent.icmp("slt", start_line, stop_line)
        regs = [r for r in changed if r in self.regs]
        before = {r: self.regs[r] for r in regs}
        self._forget_all(changed)
        self.push(Scope("ahead", ahead, sure=sure))
        self.push(Scope("body", head, changed))
        b = self.at(self.top)
        index = b.line(I64, "")
        phis = {}
        for r in regs:
            phis[r] = self.regs[r] = b.line(before[r].type, "")
        body(index)
        b = self.at(self.top)
        following = b.line(I64, f"add nuw nsw i64 {index.ref}, {step}")
        again = b.icmp("slt", following, stop_line)
        latch = b.ir.block
        b.effect(f"br i1 {again.ref}, label {head.get_reference()}, label {after.get_reference()}")
        self.pop()
        self._drop_inner(changed, before)
        inner = self.scopes[-1].ir
        inner._insert(Line(VOID, "", f"br label {head.get_reference()}"))
        before_head = inner.block  # not `ahead` where masked loads that moved there have split it
        index.text = f"{index.ref} = {_phi(I64, (start_line, before_head), (following, latch))}"
        for r, phi in phis.items():
            phi.text = f"{phi.ref} = {_phi(phi.type, (before[r], before_head), (self.regs[r], latch))}"
        self.pop()
        self._close(parent, entry, ahead, after, latch, regs, before)
        self._forget_all(changed)

    def _drop_inner(self, changed: Iterable[Any], outer: dict[Register, Any]) -> None:
        """Registers of a scope that has ended."""
        for r in changed:
            if r not in outer:
                self.regs.pop(r, None)

    def _close(
        self,
        parent: Any,
        entry: Any,
        ahead: ir.Block,
        after: ir.Block,
        latch: ir.Block,
        regs: list[Register],
        before: dict[Any, Any],
    ) -> None:
        """Enter the loop from its parent and merge the registers behind it."""
        first = parent.ir.block
        if entry is None:
            parent.effect(f"br label {ahead.get_reference()}")
        else:
            parent.effect(f"br i1 {entry.get_reference()}, label {ahead.get_reference()}, label {after.get_reference()}")
        parent.ir.position_at_end(after)
        if entry is not None:
            for r in regs:
                new, old = self.regs[r], before[r]
                self.regs[r] = parent.line(new.type, _phi(new.type, (old, first), (new, latch)))

    # -- vector loops ----------------------------------------------------------------------------------------------

    def _vector(self, stmt: For, extent: Any) -> None:
        self.partial = self._partial_sums(stmt)
        original = {r: self.regs[r] for r in self.partial}
        start: Any = 0
        for width, masked in strips(self, stmt):
            stop = extent if width == 1 or masked else self._round_down(extent, width)
            if start.__class__ is int and stop.__class__ is int and stop <= start:
                continue
            whole = masked and start.__class__ is int and stop.__class__ is int and (stop - start) % width == 0
            self._narrow(self.partial, original, width)
            self.lanes = width
            self._strip(stmt, start, stop, width, masked and not whole)
            self.lanes = 1
            start = stop
        self._narrow(self.partial, original, 1)
        self.partial = {}

    def _narrow(self, partial: dict[Register, str], original: dict[Register, Any], width: int) -> None:
        """Make ready the partial results of a strip of ``width`` lanes; 1 joins them to the registers."""
        for reg, op in partial.items():
            now = self.regs[reg]
            b = self.at(self.top, width)
            if now is original[reg]:
                if width > 1:
                    now = b.splat(constant(llvm_type(reg.dtype), emit_ops.identity(op, reg.dtype)))
            elif isinstance(now.type, ir.VectorType):
                now = emit_ops.fold(b, op, reg.dtype, now, width)
                if width == 1:
                    now = emit_ops.combine(b, op, reg.dtype, original[reg], now)
            self._set(reg, now)

    def _round_down(self, extent: Any, width: int) -> Any:
        if extent.__class__ is int:
            return extent // width * width
        b = self.at(self.top)
        return b.and_(extent, b.i(-width, extent))

    def _strip(self, stmt: For, start: Any, stop: Any, width: int, masked: bool) -> None:
        """The iterations from ``start`` to ``stop``, ``width`` at a time; ``masked``: the last time perhaps fewer."""

        def body(index: Any) -> None:
            self.vars[stmt.var] = Val(index, 1 if width > 1 else 0, self.top)
            if masked:
                b = self.at(self.top)
                left = b.trunc_int(b.smin(b.sub(scalar_line(stop), index), b.i(width, index)), 32)
                b = self.at(self.top, width)
                self.tail = varying(b.icmp("slt", b.ramp(I32), b.splat(left)), width, self.top, 0)
            self.statements(stmt.body)
            self.tail = None

        self._loop(start, stop, width, body, self._changes[id(stmt)], sure=start.__class__ is int and stop.__class__ is int)

    def _partial_sums(self, stmt: For) -> dict[Register, str]:
        """The registers from outside that a vector loop reduces into, with their operations."""
        found: dict[Register, str] = {}
        stack: list[Stmt] = [stmt]
        while stack:
            inner = stack.pop()
            if isinstance(inner, For | Guard):
                stack.extend(inner.body)
            elif isinstance(inner, Reduce) and inner.reg in self.regs:
                found[inner.reg] = inner.op
        return found


def _phi(type_: ir.Type, *incoming: tuple[Any, ir.Block]) -> str:
    pairs = ", ".join(f"[ {value.get_reference()}, {block.get_reference()} ]" for value, block in incoming)
    return f"phi {type_} {pairs}"
