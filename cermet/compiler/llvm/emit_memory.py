"""Loads and stores of the loop IR: contiguous, reversed, broadcast, gathered and scattered, with and without masks.

Memory is never touched where a mask is false. A masked scalar load reads from a block of zeros in the module instead,
which costs a select of the address and no branch.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from cermet.compiler.llvm import emit_ops
from cermet.compiler.llvm.builder import BOOL, I8, I64, PTR, VOID, LaneBuilder, Line, llvm_type, memory_type, vector
from cermet.compiler.llvm.emit_expr import Expressions, Node, Val, scalar_line, varying
from cermet.compiler.loops.ir import Param, Prefetch, Store

__all__ = ["Memory"]

_ZEROS = "zeros"


class Memory(Expressions):
    """The part of the emitter that reads and writes buffers."""

    # -- addresses -------------------------------------------------------------------------------------------------

    def _address(self, b: LaneBuilder, buffer: Param, offset: Any, sure: bool = True) -> Line:
        """The address of element ``offset`` (an int64 Line or int), which is ``sure`` to exist unless a mask may rule it out."""
        base = self.params[buffer].base
        if offset.__class__ is int and offset == 0:
            return base
        inbounds = "inbounds " if sure else ""
        element, index = memory_type(buffer.dtype), scalar_line(offset).get_reference()
        return b.line(PTR, f"getelementptr {inbounds}{element}, ptr {base.get_reference()}, i64 {index}")

    def _zeros(self) -> Line:
        """Readable zeros, as long as the longest element."""
        module = self.scopes[0].ir.module
        if _ZEROS not in module.globals:
            made = ir.GlobalVariable(module, ir.ArrayType(I8, 16), _ZEROS)
            made.linkage, made.global_constant, made.align = "internal", True, 16
            made.initializer = ir.Constant(ir.ArrayType(I8, 16), None)
        return Line(PTR, f"@{_ZEROS}", "")

    def _read_scalar(self, b: LaneBuilder, buffer: Param, address: Line, mask: Any) -> Line:
        """One element in its memory type; zero without reading where ``mask`` (an i1 or None) is false."""
        if mask is not None:
            address = b.select(mask, address, self._zeros())
        element = memory_type(buffer.dtype)
        return b.line(element, f"load {element}, ptr {address.get_reference()}, align {buffer.dtype.itemsize}")

    # -- loads -----------------------------------------------------------------------------------------------------

    def load(self, node: Node, args: list[Val], least: int, deps: int) -> Val:
        buffer: Param = node.attr
        offset, mask = args[0], args[1] if len(args) > 1 else None
        if not buffer.readonly or buffer.kind == "scratch":
            least = max(least, self.scope_of_change(buffer))
        if offset.uniform and (mask is None or mask.uniform):
            scope = self.scope_of_access(least)
            b = self.at(scope)
            chosen = None if mask is None else self.scalar_of(mask, BOOL)
            raw = self._read_scalar(b, buffer, self._address(b, buffer, offset.base, mask is None), chosen)
            return Val(emit_ops.from_memory(b, raw, buffer.dtype), 0, scope, deps)
        mask = self._in_tail(mask)
        scope = self.scope_of_access(least if mask is None else max(least, mask.scope))
        b = self.at(scope, self.lanes)
        raw = self._read_lanes(b, scope, buffer, offset, mask)
        return varying(emit_ops.from_memory(b, raw, buffer.dtype), self.lanes, scope, deps)

    def _in_tail(self, mask: Val | None) -> Val | None:
        """``mask``, and only lanes whose iterations exist."""
        tail = self.tail
        if tail is None or mask is None:
            return mask if tail is None else tail
        key = ("tail", mask.name, tail.name)
        found = self.memo.get(key)
        if found is None:
            scope = max(mask.scope, tail.scope)
            bits = self.vector_of(mask, self.lanes, BOOL), self.vector_of(tail, self.lanes, BOOL)
            found = varying(self.at(scope, self.lanes).and_(*bits), self.lanes, scope, 0)
            self.remember(key, found, 0)
        return found

    def _read_lanes(self, b: LaneBuilder, scope: int, buffer: Param, offset: Val, mask: Val | None) -> Any:
        size = buffer.dtype.itemsize
        full = b.vec(memory_type(buffer.dtype))
        step = offset.step if offset.step.__class__ is int else None
        if step == 1:
            address = self._address(b, buffer, offset.base, mask is None)
            if mask is None:
                return b.line(full, f"load {full}, ptr {address.get_reference()}, align {size}")
            return self._read_masked(b, scope, buffer, address, mask)
        if step == -1 and mask is None:
            address = self._address(b, buffer, self._int("sub", offset.base, b.lanes - 1, scope))
            return b.reverse(b.line(full, f"load {full}, ptr {address.get_reference()}, align {size}"))
        return self._gather(b, scope, buffer, offset, mask)

    def _read_masked(self, b: LaneBuilder, scope: int, buffer: Param, address: Line, mask: Val) -> Any:
        element, size = memory_type(buffer.dtype), buffer.dtype.itemsize
        full = b.vec(element)
        if mask.uniform:
            # One test serves all lanes. The zeros would have to be as wide as the vector; a branch is predicted well.
            return self._branch_value(b, self.scalar_of(mask, BOOL), full, address, size)
        bits = self.vector_of(mask, b.lanes, BOOL)
        name = f"llvm.masked.load.{_mangled(full)}.p0"
        if self.target.has_masked and size in (4, 8):
            self._declare(name, f"declare {full} @{name}(ptr, {bits.type}, {full})")
            mask_text = f"{bits.type} {bits.get_reference()}"
            return b.line(
                full, f"call {full} @{name}(ptr align {size} {address.get_reference()}, {mask_text}, {full} zeroinitializer)"
            )
        parts = []
        for k in range(b.lanes):
            here = b.line(PTR, f"getelementptr {element}, ptr {address.get_reference()}, i64 {k}")
            parts.append(self._read_scalar(b, buffer, here, self._bit(b, scope, bits, k)))
        return self._assemble(b, full, parts)

    def _branch_value(self, b: LaneBuilder, condition: Any, full: ir.Type, address: Line, size: int) -> Line:
        """``load address`` where ``condition``, else zeros."""
        builder = b.ir
        before = builder.block
        inside, after = builder.append_basic_block("read"), builder.append_basic_block("unread")
        b.effect(f"br i1 {condition.get_reference()}, label {inside.get_reference()}, label {after.get_reference()}")
        builder.position_at_end(inside)
        loaded = b.line(full, f"load {full}, ptr {address.get_reference()}, align {size}")
        b.effect(f"br label {after.get_reference()}")
        builder.position_at_end(after)
        return b.line(
            full, f"phi {full} [ {loaded.ref}, {inside.get_reference()} ], [ zeroinitializer, {before.get_reference()} ]"
        )

    def _gather(self, b: LaneBuilder, scope: int, buffer: Param, offset: Val, mask: Val | None) -> Any:
        """Lane by lane: on the CPUs at hand no slower than the gather instructions, and it works for every element size."""
        element = memory_type(buffer.dtype)
        bits = None if mask is None else self.scalar_of(mask, BOOL) if mask.uniform else self.vector_of(mask, b.lanes, BOOL)
        parts = []
        for k, here in enumerate(self._lane_addresses(b, buffer, offset)):
            bit = bits if bits is None or bits.type == BOOL else self._bit(b, scope, bits, k)
            parts.append(self._read_scalar(b, buffer, here, bit))
        return self._assemble(b, b.vec(element), parts)

    def _lane_addresses(self, b: LaneBuilder, buffer: Param, offset: Val) -> list[Line]:
        """The address of each lane's element."""
        element = memory_type(buffer.dtype)
        if offset.base is None:
            base, offsets = self.params[buffer].base.get_reference(), self.vector_of(offset, b.lanes, I64)
            indices = [b.extract(offsets, k) for k in range(b.lanes)]
        else:
            base = self._address(b, buffer, offset.base, False).get_reference()
            # Multiples of the step belong to no iteration: they are made where the step is.
            indices = [scalar_line(self._multiple(offset, k)) for k in range(b.lanes)]
        return [b.line(PTR, f"getelementptr {element}, ptr {base}, i64 {index.get_reference()}") for index in indices]

    def _multiple(self, offset: Val, k: int) -> Any:
        step = offset.step
        if step.__class__ is int:
            return step * k
        key = ("multiple", step.get_reference(), k)
        found = self.memo.get(key)
        if found is None:
            found = Val(self._int("mul", step, k, offset.step_scope), 0, offset.step_scope)
            self.remember(key, found, 0)
        return found.base

    def _bit(self, b: LaneBuilder, scope: int, bits: Any, k: int) -> Any:
        """One lane of a mask, taken out once for all loads under it."""
        key = ("bit", bits.get_reference(), k)
        found = self.memo.get(key)
        if found is None:
            found = self.remember(key, Val(b.extract(bits, k), 0, scope), 0)
        return found.base

    def _assemble(self, b: LaneBuilder, full: ir.Type, parts: list[Line]) -> Any:
        made: Any = b.poison(full)
        for k, part in enumerate(parts):
            made = b.insert(made, part, k)
        return made

    def _declare(self, name: str, text: str) -> None:
        found = self.scopes[0].ir.module.globals
        if name not in found:
            found[name] = Line(VOID, "", text)

    def prefetch(self, stmt: Prefetch) -> None:
        """Ask for the line of an element."""
        b = self.at(self.top)
        offset = self.value(stmt.offset).base
        if offset is None:
            return  # each lane has an offset of its own, and nothing is gained by one of them
        address = self._address(b, stmt.buffer, offset, False)
        self._declare("llvm.prefetch.p0", "declare void @llvm.prefetch.p0(ptr, i32, i32, i32)")
        b.effect(f"call void @llvm.prefetch.p0(ptr {address.get_reference()}, i32 0, i32 3, i32 1)")

    # -- stores ----------------------------------------------------------------------------------------------------

    def store(self, stmt: Store) -> None:
        """Write one element, or one a lane."""
        buffer = stmt.buffer
        offset = self.value(stmt.offset)
        mask = None if stmt.mask is None else self.value(stmt.mask)
        value = self.value(stmt.value)
        self._write(buffer, offset, value, mask, stmt.stream and self.streaming)
        self.forget(buffer)

    streaming = False  # whether the code being written may stream

    def _write(self, buffer: Param, offset: Val, value: Val, mask: Val | None, stream: bool = False) -> None:
        if offset.uniform and value.uniform and (mask is None or mask.uniform):
            if mask is not None:
                self._if(mask, lambda: self._write(buffer, offset, value, None))
                return
            b = self.at(self.top)
            raw = emit_ops.to_memory(b, self.scalar_of(value, llvm_type(buffer.dtype)), buffer.dtype)
            self._write_scalar(b, buffer, self._address(b, buffer, offset.base), raw)
            return
        if mask is not None and mask.uniform:
            self._if(mask, lambda: self._write(buffer, offset, value, None))
            return
        mask = self._in_tail(mask)
        b = self.at(self.top, self.lanes)
        raw = emit_ops.to_memory(b, self.vector_of(value, self.lanes, llvm_type(buffer.dtype)), buffer.dtype)
        size = buffer.dtype.itemsize
        if offset.step.__class__ is int and offset.step == 1:
            address = self._address(b, buffer, offset.base, mask is None).get_reference()
            if mask is None:
                width = size * self.lanes
                if stream and width >= 16:
                    hint = f"align {min(width, 64)}, !nontemporal {self._nontemporal()}"
                else:
                    hint = f"align {size}"
                b.effect(f"store {raw.type} {raw.get_reference()}, ptr {address}, {hint}")
                return
            bits = self.vector_of(mask, self.lanes, BOOL)
            name = f"llvm.masked.store.{_mangled(raw.type)}.p0"
            self._declare(name, f"declare void @{name}({raw.type}, ptr, {bits.type})")
            data, mask_text = f"{raw.type} {raw.get_reference()}", f"{bits.type} {bits.get_reference()}"
            b.effect(f"call void @{name}({data}, ptr align {size} {address}, {mask_text})")
            return
        self._scatter(b, buffer, offset, raw, mask)

    def _nontemporal(self) -> str:
        """The module's name for LLVM's mark of stores past the caches."""
        return self.scopes[0].ir.module.add_metadata([ir.Constant(ir.IntType(32), 1)]).get_reference()

    def _if(self, mask: Val, body: Any) -> None:
        raise NotImplementedError

    def _write_scalar(self, b: LaneBuilder, buffer: Param, address: Line, raw: Any) -> None:
        b.effect(f"store {raw.type} {raw.get_reference()}, ptr {address.get_reference()}, align {buffer.dtype.itemsize}")

    def _scatter(self, b: LaneBuilder, buffer: Param, offset: Val, raw: Any, mask: Val | None) -> None:
        """Lane by lane in order, so that of several lanes that write one element the last wins, as in a serial loop."""
        element, size = memory_type(buffer.dtype), buffer.dtype.itemsize
        base = self.params[buffer].base.get_reference()
        if mask is None:
            for k, here in enumerate(self._lane_addresses(b, buffer, offset)):
                self._write_scalar(b, buffer, here, b.extract(raw, k))
            return
        offsets = self.vector_of(offset, b.lanes, I64)
        bits = self.vector_of(mask, b.lanes, BOOL)
        pointers = vector(PTR, b.lanes)
        where = b.line(pointers, f"getelementptr {element}, ptr {base}, {offsets.type} {offsets.get_reference()}")
        name = f"llvm.masked.scatter.{_mangled(raw.type)}.v{b.lanes}p0"
        self._declare(name, f"declare void @{name}({raw.type}, {pointers}, {bits.type})")
        data, mask_text = f"{raw.type} {raw.get_reference()}", f"{bits.type} {bits.get_reference()}"
        b.effect(f"call void @{name}({data}, {pointers} align {size} {where.ref}, {mask_text})")


def _mangled(type_: ir.Type) -> str:
    names = {"half": "f16", "float": "f32", "double": "f64"}
    element = str(type_.element)
    return f"v{type_.count}{names.get(element, element)}"
