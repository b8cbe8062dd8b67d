"""Checks that a kernel of the loop IR means something, before anything is made of it.

Linear in the size of the kernel, and without recursion: expressions may be deep and shared.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cermet import dtypes as dt
from cermet.compiler.loops.ir import (
    COMPARE,
    FLOAT,
    INTEGER,
    MATH,
    OPS,
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
)
from cermet.compiler.loops.text import expression_text
from cermet.dtypes import DType

__all__ = ["VerifyError", "verify"]

_ARITY = {"neg": 1, "abs": 1, "sign": 1, "fma": 3, "not": 1, "select": 3, "cast": 1, "bitcast": 1, "philox": 2}
_ARITY |= dict.fromkeys(("const", "param", "var", "reg"), 0)
_ARITY |= dict.fromkeys(("floor", "ceil", "trunc", "rint", "sqrt", "rsqrt", "isnan", "signbit"), 1)
_ARITY |= dict.fromkeys(MATH, 1) | {"atan2": 2, "pow": 2}
_FLOATING = frozenset(FLOAT + MATH + ("div",))
_LOGIC = frozenset(("and", "or", "xor", "not"))
_REDUCTIONS = frozenset(("add", "mul", "min", "max", "and", "or"))


class VerifyError(Exception):
    """A malformed kernel; the message names the statement and what is wrong with it."""


class _Problem(Exception):
    pass


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise _Problem(message)


class _Verifier:
    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.params = set(kernel.params)
        self.vars: dict[Any, bool] = {}  # in scope; whether it differs from lane to lane
        self.regs: dict[Register, int] = {}  # in scope; the depth of vector loops it was defined at
        self.reduced: dict[Register, str] = {}  # from outside the vector loop we are in, with the operation
        self.vectors = 0
        self.varying_regs: set[Register] = set()
        # Which variables, registers and parameters an expression is made of, as bits; types are checked once.
        self.used: dict[int, int] = {}
        self.things: list[Any] = []
        self.bits: dict[Any, int] = {}
        self.keep: list[Expr] = []

    # -- expressions -----------------------------------------------------------------------------------------------

    def check(self, root: Expr) -> None:
        """Types of an expression and everything below it, and that what it names is in scope."""
        stack = [root]
        self.keep.append(root)
        while stack:
            e = stack[-1]
            if id(e) in self.used:
                stack.pop()
                continue
            waiting = [a for a in e.args if id(a) not in self.used]
            if waiting:
                stack.extend(waiting)
                continue
            stack.pop()
            _check_types(e)
            used = 0
            for a in e.args:
                used |= self.used[id(a)]
            self.used[id(e)] = used | self._bit(e.attr) if e.op in ("var", "reg", "param", "load") else used
        for thing in self._named(root):
            self._in_scope(thing)

    def _bit(self, thing: Any) -> int:
        if thing not in self.bits:
            self.bits[thing] = 1 << len(self.things)
            self.things.append(thing)
        return self.bits[thing]

    def _named(self, root: Expr) -> list[Any]:
        """What an expression that was checked is made of."""
        used, found = self.used[id(root)], []
        while used:
            bit = used & -used
            used ^= bit
            found.append(self.things[bit.bit_length() - 1])
        return found

    def _in_scope(self, thing: Any) -> None:
        if isinstance(thing, Param):
            _require(thing in self.params, f"{thing!r} is not a parameter of the kernel")
        elif isinstance(thing, Register):
            _require(thing in self.regs, f"register {thing!r} is read before it is defined, or out of its scope")
            _require(thing not in self.reduced, f"register {thing!r} is read inside the vector loop that reduces into it")
        else:
            _require(thing in self.vars, f"variable {thing!r} is used outside its loop")

    def varying(self, root: Expr) -> bool:
        """Whether an expression may differ from lane to lane."""
        if not self.vectors:
            return False
        return any(t in self.varying_regs if isinstance(t, Register) else self.vars.get(t, False) for t in self._named(root))

    def value(self, expr: Expr, dtype: DType, what: str) -> None:
        self.check(expr)
        _require(expr.dtype is dtype, f"{what} is {expr.dtype.name}, expected {dtype.name}")

    # -- statements ------------------------------------------------------------------------------------------------

    def run(self) -> None:
        for param in self.kernel.params:
            _require(param.kind in ("buffer", "int", "scalar", "scratch"), f"parameter {param!r} has kind {param.kind!r}")
            _require(
                param.kind != "int" or param.dtype is dt.int64, f"int parameter {param!r} is {param.dtype.name}, expected int64"
            )
        _require(len(self.params) == len(self.kernel.params), "a parameter is listed twice")
        # Work is a stack of statements and of functions that undo a scope when its body is done.
        work: list[Any] = list(reversed(self.kernel.body))
        depth = 0
        while work:
            item = work.pop()
            if isinstance(item, For | Guard):
                try:
                    leave = self._enter(item, depth)
                except _Problem as problem:
                    raise VerifyError(self._located(item, problem)) from None
                depth += 1

                def undo(leave: Callable[[], None] = leave) -> None:
                    nonlocal depth
                    depth -= 1
                    leave()

                work.append(undo)
                work.extend(reversed(item.body))
            elif callable(item):
                item()
            else:
                try:
                    self._simple(item)
                except _Problem as problem:
                    raise VerifyError(self._located(item, problem)) from None

    def _located(self, stmt: Stmt, problem: _Problem) -> str:
        return f"kernel {self.kernel.name}: {describe(stmt)}: {problem}"

    def _enter(self, stmt: For | Guard, depth: int) -> Callable[[], None]:
        regs, reduced, varying_regs = dict(self.regs), dict(self.reduced), set(self.varying_regs)
        if isinstance(stmt, Guard):
            self.value(stmt.condition, dt.bool, "the condition")
            _require(not self.varying(stmt.condition), "the condition differs from lane to lane")

            def leave_guard() -> None:
                self.regs, self.reduced = regs, reduced

            return leave_guard
        self.value(stmt.extent, dt.int64, "the extent")
        _require(not self.varying(stmt.extent), "the extent differs from lane to lane")
        _require(stmt.kind in ("parallel", "vector", "serial"), f"unknown kind {stmt.kind!r}")
        _require(stmt.var not in self.vars, f"variable {stmt.var!r} belongs to an enclosing loop already")
        if stmt.kind == "parallel":
            _require(
                depth == 0 and len(self.kernel.body) == 1, "a parallel loop may only be the kernel's one outermost statement"
            )
        outermost = stmt.kind == "vector" and not self.vectors
        self.vars[stmt.var] = stmt.kind == "vector"
        if stmt.kind == "vector":
            self.vectors += 1
        if outermost:
            self.reduced = _reduced_from_outside(stmt, self.regs)

        def leave() -> None:
            self.regs = regs
            del self.vars[stmt.var]
            if stmt.kind == "vector":
                self.vectors -= 1
            if outermost:
                self.reduced, self.varying_regs = reduced, varying_regs

        return leave

    def _simple(self, stmt: Stmt) -> None:
        if isinstance(stmt, Store):
            self._store(stmt)
        elif isinstance(stmt, Prefetch):
            _require(stmt.buffer in self.params, f"{stmt.buffer!r} is not a parameter of the kernel")
            _require(stmt.buffer.kind in ("buffer", "scratch"), f"{stmt.buffer!r} is no buffer")
            self.value(stmt.offset, dt.int64, "the offset")
        elif isinstance(stmt, Define):
            self.value(stmt.init, stmt.reg.dtype, "the value")
            _require(stmt.reg not in self.regs, "the register is defined already")
            _require(stmt.reg.dtype.compute is stmt.reg.dtype, f"registers hold compute dtypes, not {stmt.reg.dtype.name}")
            self.regs[stmt.reg] = self.vectors
            if self.vectors:
                self.varying_regs.add(stmt.reg)
        elif isinstance(stmt, Assign):
            self.value(stmt.value, stmt.reg.dtype, "the value")
            _require(stmt.reg in self.regs, "the register is not defined here")
            _require(
                not self.vectors or self.regs[stmt.reg] > 0,
                "the register was defined outside the vector loop; lanes may only Reduce into it",
            )
        elif isinstance(stmt, Reduce):
            self._reduce(stmt)
        else:
            raise _Problem(f"unknown statement {type(stmt).__name__}")

    def _store(self, stmt: Store) -> None:
        buffer = stmt.buffer
        _require(buffer in self.params, f"{buffer!r} is not a parameter of the kernel")
        _require(buffer.kind in ("buffer", "scratch"), f"{buffer!r} is no buffer")
        _require(buffer.kind == "scratch" or not buffer.readonly, f"{buffer!r} is readonly")
        self.value(stmt.offset, dt.int64, "the offset")
        self.value(stmt.value, buffer.dtype.compute, "the value")
        if stmt.mask is not None:
            self.value(stmt.mask, dt.bool, "the mask")
        if not self.varying(stmt.offset):
            racing = self.varying(stmt.value) or (stmt.mask is not None and self.varying(stmt.mask))
            _require(not racing, "lanes write different values to one element")

    def _reduce(self, stmt: Reduce) -> None:
        self.value(stmt.value, stmt.reg.dtype, "the value")
        _require(stmt.reg in self.regs, "the register is not defined here")
        _require(stmt.op in _REDUCTIONS, f"{stmt.op!r} is no reduction; expected {', '.join(sorted(_REDUCTIONS))}")
        if stmt.op in ("and", "or"):
            _require(stmt.reg.dtype.kind != "f", f"{stmt.op!r} of {stmt.reg.dtype.name}")
        if self.vectors and self.regs[stmt.reg] == 0:
            known = self.reduced.get(stmt.reg, stmt.op)
            _require(known == stmt.op, f"reduced by {known!r} and {stmt.op!r} in one vector loop")


def _reduced_from_outside(loop: For, regs: dict[Register, int]) -> dict[Register, str]:
    found: dict[Register, str] = {}
    stack: list[Stmt] = list(reversed(loop.body))
    while stack:
        stmt = stack.pop()
        if isinstance(stmt, For | Guard):
            stack.extend(reversed(stmt.body))
        elif isinstance(stmt, Reduce) and stmt.reg in regs:
            found.setdefault(stmt.reg, stmt.op)
    return found


def _check_types(e: Expr) -> None:
    op, args = e.op, e.args
    _require(op in OPS, f"unknown operation {op!r}")
    if op == "load":
        _require(isinstance(e.attr, Param) and e.attr.kind in ("buffer", "scratch"), f"load from {e.attr!r}, which is no buffer")
        _require(len(args) in (1, 2) and args[0].dtype is dt.int64, f"load from {e.attr!r}: the offset must be int64")
        _require(len(args) == 1 or args[1].dtype is dt.bool, f"load from {e.attr!r}: the mask must be bool")
        _require(e.dtype is e.attr.dtype.compute, f"load from {e.attr!r} gives {e.attr.dtype.compute.name}, not {e.dtype.name}")
        return
    arity = _ARITY.get(op, 2)
    _require(len(args) == arity, f"{op} takes {arity} operands, got {len(args)}")
    if op not in ("cast",):
        _require(e.dtype.compute is e.dtype, f"{op} of dtype {e.dtype.name}, which exists in memory only")
    if op == "const":
        kinds: dict[str, Any] = {"f": (int, float), "b": (bool, int), "i": int, "u": int}
        _require(isinstance(e.attr, kinds[e.dtype.kind]), f"constant {e.attr!r} of dtype {e.dtype.name}")
    elif op == "param":
        _require(isinstance(e.attr, Param) and e.attr.kind in ("int", "scalar"), f"{e.attr!r} has no value; load from it")
        _require(e.dtype is e.attr.dtype.compute, f"parameter {e.attr!r} is {e.attr.dtype.compute.name}, not {e.dtype.name}")
    elif op == "reg":
        _require(e.attr.dtype is e.dtype, f"register {e.attr!r} is {e.attr.dtype.name}, not {e.dtype.name}")
    elif op == "var":
        _require(e.dtype is dt.int64, "loop variables are int64")
    else:
        _check_operands(e)


def _check_operands(e: Expr) -> None:
    op, args = e.op, e.args
    of = args[-1].dtype
    if op == "select":
        _require(args[0].dtype is dt.bool, f"select by {args[0].dtype.name}, expected bool")
        _require(args[1].dtype is of and e.dtype is of, f"select of {args[1].dtype.name} and {of.name} as {e.dtype.name}")
        return
    if op == "cast":
        to = e.attr if isinstance(e.attr, DType) else e.dtype
        _require(e.dtype.compute is to.compute, f"cast to {to.name} as {e.dtype.name}")
        return
    if op == "bitcast":
        _require(of.bits == e.dtype.bits, f"bitcast of {of.name} to {e.dtype.name}: the widths differ")
        return
    for a in args:
        _require(a.dtype is of, f"{op} of {' and '.join(x.dtype.name for x in args)}")
    if op in ("isnan", "signbit") or op in COMPARE:
        _require(e.dtype is dt.bool, f"{op} gives bool, not {e.dtype.name}")
    else:
        _require(e.dtype is of, f"{op} of {of.name} gives {of.name}, not {e.dtype.name}")
    if op in _FLOATING:
        _require(of.kind == "f", f"{op} of {of.name}; it is for floating dtypes")
    elif op in INTEGER:
        allowed = "iub" if op in _LOGIC else "iu"
        _require(of.kind in allowed, f"{op} of {of.name}; it is for integers")
    elif op == "philox":
        _require(
            of is dt.int64 and e.attr in range(7), "philox takes int64 operands and a word 0 to 3, or 4 to 6 for running ones"
        )


def describe(stmt: Stmt) -> str:
    """A statement in a few words."""
    if isinstance(stmt, For):
        return f"{stmt.kind} loop over {stmt.var!r}"
    if isinstance(stmt, Guard):
        return "guard"
    if isinstance(stmt, Store):
        return f"store to {stmt.buffer!r}[{_short(stmt.offset)}]"
    if isinstance(stmt, Prefetch):
        return f"prefetch of {stmt.buffer!r}[{_short(stmt.offset)}]"
    return f"{type(stmt).__name__.lower()} of {stmt.reg!r}"


def _short(expr: Expr) -> str:
    text = expression_text(expr).rsplit("\n", 1)[-1]
    return text if len(text) <= 60 else text[:57] + "..."


def verify(kernel: Kernel) -> None:
    """Check a kernel.

    Raises:
        VerifyError: naming the first statement that is wrong, and why.
    """
    try:
        _Verifier(kernel).run()
    except _Problem as problem:
        raise VerifyError(f"kernel {kernel.name}: {problem}") from None
