"""What the kernels designed by hand share for writing LLVM IR: functions, loops with carried values, typed memory access.

Arithmetic on values is the `LaneBuilder`'s (``Emit.x``); here is what it leaves out: control flow, address arithmetic that
folds constants, and loads and stores that convert between the dtype in memory and the one computed in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from llvmlite import ir

from cermet import dtypes as dt
from cermet.compiler.llvm.builder import BOOL, F32, F64, I8, I16, I32, I64, PTR, VOID, LaneBuilder, constant, memory_type, vector
from cermet.compiler.llvm.emit_ops import from_memory, to_memory
from cermet.dtypes import DType

__all__ = [
    "BATCH_SIZES",
    "Emit",
    "KernelEmit",
    "acc_type",
    "accumulator",
    "batch_offset",
    "batch_strides",
    "new_module",
    "rounded_up",
]

Value = Any
Index = Any  # an i64 value or a Python int


def accumulator(dtype: DType) -> DType:
    """The dtype in which products of ``dtype`` are summed: float32 for 16-bit floats, int32 for the narrower integers.

    Integer sums wrap around, and the low bits of a wrapped sum do not depend on how many higher bits were kept.
    """
    if dtype.kind == "f":
        return dtype.compute
    return dt.int64 if dtype.bits == 64 else dt.int32


_ACC_TYPES = {"float32": F32, "float64": F64, "int32": I32, "int64": I64}


def acc_type(dtype: DType) -> ir.Type:
    """The LLVM type of an accumulator dtype."""
    return _ACC_TYPES[dtype.name]


def new_module(name: str, target: Any) -> ir.Module:
    """An empty module for ``target``."""
    module = ir.Module(name=name)
    module.triple = target.triple
    return module


class Emit:
    """Writes one function of a module.

    Attributes:
        x: lane arithmetic at the current position.
        ir: the `ir.IRBuilder`.
        fn: the function; ``args`` its arguments.
    """

    def __init__(
        self, module: ir.Module, name: str, arg_types: Sequence[ir.Type], target: Any, *, internal: bool = False
    ) -> None:
        self.module, self.target = module, target
        self.fn = ir.Function(module, ir.FunctionType(VOID, arg_types), name)
        if internal:
            self.fn.linkage = "internal"
            # Each is large and called from one or two places: inlining would only make the callers' live ranges longer.
            self.fn.attributes.add("noinline")
        self.fn.attributes.add("nounwind")
        self.args = list(self.fn.args)
        self.ir = ir.IRBuilder(self.fn.append_basic_block("entry"))
        self.x = LaneBuilder(self.ir, 1, target)

    def done(self) -> ir.Function:
        """End the function."""
        self.ir.ret_void()
        return self.fn

    def call(self, fn: ir.Function, args: Sequence[Index]) -> None:
        """Call a function made by another `Emit` of the module."""
        self.ir.call(fn, [self.index(a) if isinstance(a, int) else a for a in args])

    # -- indices ---------------------------------------------------------------------------------------------------

    def index(self, value: Index) -> Value:
        """An i64 value of a Python int; other values as they are."""
        return constant(I64, value) if isinstance(value, int) else value

    def add(self, a: Index, b: Index) -> Index:
        if isinstance(a, int) and isinstance(b, int):
            return a + b
        if isinstance(b, int) and b == 0:
            return a
        if isinstance(a, int) and a == 0:
            return b
        return self.x.add(self.index(a), self.index(b))

    def sub(self, a: Index, b: Index) -> Index:
        if isinstance(a, int) and isinstance(b, int):
            return a - b
        if isinstance(b, int) and b == 0:
            return a
        return self.x.sub(self.index(a), self.index(b))

    def mul(self, a: Index, b: Index) -> Index:
        for p, q in ((a, b), (b, a)):
            if isinstance(p, int):
                if isinstance(q, int):
                    return p * q
                if p == 0:
                    return 0
                if p == 1:
                    return q
        return self.x.mul(self.index(a), self.index(b))

    def div(self, a: Index, b: Index) -> Index:
        """``a // b`` for non-negative ``a`` and positive ``b``."""
        if isinstance(b, int) and b == 1:
            return a
        return self.x._binary("udiv", self.index(a), self.index(b))

    def divmod(self, a: Index, b: Index) -> tuple[Index, Index]:
        """Quotient and remainder of non-negative ``a`` by positive ``b``."""
        if isinstance(b, int) and b == 1:
            return a, 0
        q = self.div(a, b)
        return q, self.sub(a, self.mul(q, b))

    def min(self, a: Index, b: Index) -> Index:
        if isinstance(a, int) and isinstance(b, int):
            return min(a, b)
        return self.x.smin(self.index(a), self.index(b))

    def ceil_div(self, a: Index, b: int) -> Index:
        return self.div(self.add(a, b - 1), b)

    def cmp(self, pred: str, a: Index, b: Index) -> Value:
        """A signed comparison: ``slt sle sgt sge eq ne``."""
        return self.x.icmp(pred, self.index(a), self.index(b))

    def select(self, cond: Value, a: Index, b: Index) -> Value:
        return self.x.select(cond, self.index(a), self.index(b))

    # -- memory ----------------------------------------------------------------------------------------------------

    def at(self, ptr: Value, index: Index, element: ir.Type) -> Value:
        """The address of ``ptr[index]`` for elements of an LLVM scalar type."""
        if isinstance(index, int) and index == 0:
            return ptr
        i = self.index(index)
        return self.x.line(PTR, f"getelementptr {element}, ptr {ptr.get_reference()}, i64 {i.get_reference()}")

    def load_raw(self, type_: ir.Type, ptr: Value, align: int) -> Value:
        return self.x.line(type_, f"load {type_}, ptr {ptr.get_reference()}, align {align}")

    def store_raw(self, value: Value, ptr: Value, align: int) -> None:
        self.x.effect(f"store {value.type} {value.get_reference()}, ptr {ptr.get_reference()}, align {align}")

    def load(self, ptr: Value, dtype: DType, lanes: int = 1) -> Value:
        """``lanes`` consecutive elements of ``dtype``, in the accumulator dtype."""
        raw = self.load_raw(vector(memory_type(dtype), lanes), ptr, dtype.itemsize)
        return widen(self.x, raw, dtype)

    def load_masked(self, ptr: Value, dtype: DType, lanes: int, mask: Value) -> Value:
        """As `load`; lanes outside ``mask`` read nothing and are 0."""
        type_ = vector(memory_type(dtype), lanes)
        raw = self.x.call(f"llvm.masked.load.{_mangle(type_)}.p0", type_, (ptr, mask, constant(type_, 0)))
        return widen(self.x, raw, dtype)

    def store(self, value: Value, ptr: Value, dtype: DType) -> None:
        """Store a value of the accumulator dtype as ``dtype``."""
        self.store_raw(narrow(self.x, value, dtype), ptr, dtype.itemsize)

    def store_masked(self, value: Value, ptr: Value, dtype: DType, mask: Value) -> None:
        """As `store`, only the lanes in ``mask``."""
        raw = narrow(self.x, value, dtype)
        self.x.call(f"llvm.masked.store.{_mangle(raw.type)}.p0", VOID, (raw, ptr, mask))

    def prefetch(self, ptr: Value, write: bool = True, near: int = 3) -> None:
        """Ask for the cache line of an address that will be written (or read), into L1 (``near`` 3) or L2 (2)."""
        self.x.call("llvm.prefetch.p0", VOID, (ptr, constant(I32, int(write)), constant(I32, near), constant(I32, 1)))

    def lane_mask(self, lanes: int, count: Index) -> Value:
        """``<lanes x i1>``: lane number < count."""
        wide = self.x.with_lanes(lanes)
        return wide.icmp("slt", wide.ramp(I64), wide.splat(self.index(count)))

    def broadcast(self, scalar: Value, lanes: int) -> Value:
        return self.x.splat(scalar, lanes)

    def zero(self, dtype: DType, lanes: int = 1) -> Value:
        return constant(vector(acc_type(dtype), lanes), 0)

    def mul_add(self, a: Value, b: Value, c: Value) -> Value:
        """``a * b + c``: fused where the machine can, for integers modulo their width."""
        if a.type in (F32, F64) or getattr(a.type, "element", None) in (F32, F64):
            return self.x.fma(a, b, c) if self.target.has_fma else self.x.fadd(self.x.fmul(a, b), c)
        return self.x.add(self.x.mul(a, b), c)

    def plus(self, a: Value, b: Value) -> Value:
        """``a + b`` of accumulators, floating or integer."""
        floating = a.type in (F32, F64) or getattr(a.type, "element", None) in (F32, F64)
        return self.x.fadd(a, b) if floating else self.x.add(a, b)

    def alloca(self, element: ir.Type, count: int, align: int = 64) -> Value:
        """Stack memory, reserved in the entry block."""
        with self.ir.goto_entry_block():
            return self.x.line(PTR, f"alloca [{count} x {element}], align {align}")

    # -- control flow ----------------------------------------------------------------------------------------------

    @contextmanager
    def loop(self, start: Index, stop: Index, step: Index = 1) -> Iterator[Value]:
        """``for i in range(start, stop, step)`` with a positive step."""
        with self._loop(start, stop, step, []) as (i, _, _):
            yield i

    def fold(
        self,
        start: Index,
        stop: Index,
        step: Index,
        state: Sequence[Value],
        body: Callable[[Value, list[Value]], Sequence[Value]],
    ) -> list[Value]:
        """A loop that carries values in registers: ``state = body(i, state)``; returns the last state."""
        with self._loop(start, stop, step, state) as (i, current, following):
            following.extend(body(i, current))
        return self._last

    @contextmanager
    def _loop(
        self, start: Index, stop: Index, step: Index, state: Sequence[Value]
    ) -> Iterator[tuple[Value, list[Value], list[Value]]]:
        start, stop, step = self.index(start), self.index(stop), self.index(step)
        before = self.ir.block
        head = self.ir.append_basic_block("loop")
        after = self.ir.append_basic_block("after")
        # Tested at the bottom, with a guard on top: the form that LLVM's loop passes like and that costs one branch a turn.
        self.ir.cbranch(self.cmp("slt", start, stop), head, after)
        self.ir.position_at_end(head)
        i = self.ir.phi(I64)
        current = [self.ir.phi(v.type) for v in state]
        i.add_incoming(start, before)
        for phi, value in zip(current, state, strict=True):
            phi.add_incoming(value, before)
        following: list[Value] = []
        yield i, list(current), following
        after_i = self.x.add(i, step)
        end = self.ir.block
        self.ir.cbranch(self.cmp("slt", after_i, stop), head, after)
        i.add_incoming(after_i, end)
        self.ir.position_at_end(after)
        self._last = []
        for phi, first, value in zip(current, state, following, strict=True):
            phi.add_incoming(value, end)
            out = self.ir.phi(phi.type)
            out.add_incoming(first, before)
            out.add_incoming(value, end)
            self._last.append(out)

    @contextmanager
    def when(self, cond: Value) -> Iterator[None]:
        """Run the body where ``cond`` holds."""
        then, after = self.ir.append_basic_block("then"), self.ir.append_basic_block("after")
        self.ir.cbranch(cond, then, after)
        self.ir.position_at_end(then)
        yield
        self.ir.branch(after)
        self.ir.position_at_end(after)

    def choose(self, cond: Value, then: Callable[[], None], otherwise: Callable[[], None]) -> None:
        """Run one of two bodies."""
        yes, no, after = (self.ir.append_basic_block(n) for n in ("then", "else", "after"))
        self.ir.cbranch(cond, yes, no)
        for block, body in ((yes, then), (no, otherwise)):
            self.ir.position_at_end(block)
            body()
            self.ir.branch(after)
        self.ir.position_at_end(after)

    def blend(self, cond: Value, then: Callable[[], Sequence[Value]], otherwise: Sequence[Value]) -> list[Value]:
        """The values that ``then`` makes where ``cond`` holds, else ``otherwise``."""
        yes, after, before = self.ir.append_basic_block("then"), self.ir.append_basic_block("after"), self.ir.block
        self.ir.cbranch(cond, yes, after)
        self.ir.position_at_end(yes)
        made = then()
        end = self.ir.block
        self.ir.branch(after)
        self.ir.position_at_end(after)
        out = []
        for a, b in zip(made, otherwise, strict=True):
            phi = self.ir.phi(a.type)
            phi.add_incoming(a, end)
            phi.add_incoming(b, before)
            out.append(phi)
        return out


class KernelEmit(Emit):
    """The entry function of a kernel: `params` by name, from the slots of the argument array."""

    def __init__(self, module: ir.Module, name: str, params: Sequence[str], target: Any) -> None:
        super().__init__(module, name, [PTR, I64, I64, PTR], target)
        self.begin, self.end, self.scratch = self.args[1:]
        self._slots = {p: i for i, p in enumerate(params)}

    def slot(self, name: str, type_: ir.Type = I64) -> Value:
        """The value of a parameter: an i64, or a pointer (``PTR``)."""
        return self.load_raw(type_, self.at(self.args[0], self._slots[name], I64), 8)


def _mangle(type_: ir.Type) -> str:
    names = {F32: "f32", F64: "f64", I8: "i8", I16: "i16", I32: "i32", I64: "i64", BOOL: "i1", ir.HalfType(): "f16"}
    return f"v{type_.count}{names[type_.element]}" if isinstance(type_, ir.VectorType) else names[type_]


def widen(x: LaneBuilder, raw: Value, dtype: DType) -> Value:
    """A value as it lies in memory, in the accumulator dtype."""
    if dtype.kind == "f":
        return from_memory(x, raw, dtype)
    bits = accumulator(dtype).bits
    return raw if bits == dtype.bits else x.sext(raw, bits) if dtype.kind == "i" else x.zext(raw, bits)


def narrow(x: LaneBuilder, value: Value, dtype: DType) -> Value:
    """An accumulator as it lies in memory: rounded to nearest even, or cut to its low bits."""
    if dtype.kind == "f":
        return to_memory(x, value, dtype)
    return value if accumulator(dtype).bits == dtype.bits else x.trunc_int(value, dtype.bits)


BATCH_SIZES = ("batch1", "batch2")  # the outermost extent of a batch need not be known


def batch_strides(operand: str) -> tuple[str, str, str]:
    """The names of an operand's batch stride parameters, outermost first."""
    return (f"{operand}_b0", f"{operand}_b1", f"{operand}_b2")


def batch_offset(em: KernelEmit, operand: str, flat: Index, dims: int) -> Index:
    """The element offset of flattened batch index ``flat``, whose space has ``dims`` (1 or 3) extents."""
    outer, middle, inner = (em.slot(name) for name in batch_strides(operand))
    if dims == 1:
        return em.mul(flat, inner)
    rest, i2 = em.divmod(flat, em.slot("batch2"))
    i0, i1 = em.divmod(rest, em.slot("batch1"))
    return em.add(em.mul(i0, outer), em.add(em.mul(i1, middle), em.mul(i2, inner)))


def rounded_up(value: int, step: int) -> int:
    """The next multiple of ``step``."""
    return -(-value // step) * step
