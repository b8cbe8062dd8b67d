"""Kernels as text, for people, and as a fingerprint, for caches."""

from __future__ import annotations

import hashlib
import struct
from typing import Any

from cermet.compiler.loops.ir import Assign, Define, Expr, For, Guard, Kernel, Param, Prefetch, Stmt, Store

__all__ = ["expression_text", "fingerprint", "to_text"]


# -- the fingerprint -----------------------------------------------------------------------------------------------


class _Numbering:
    """Numbers things in order of first occurrence and collects what identifies the kernel."""

    __slots__ = ("expressions", "out", "things")

    def __init__(self) -> None:
        self.out: list[str] = []
        self.things: dict[Any, int] = {}  # params, variables, registers: compared by identity
        self.expressions: dict[int, int] = {}

    def thing(self, it: Any) -> int:
        return self.things.setdefault(it, len(self.things))

    def expression(self, root: Expr) -> int:
        """Describe an expression, arguments first, and give its number."""
        numbers = self.expressions
        found = numbers.get(id(root))
        if found is not None:
            return found
        out = self.out
        stack = [root]
        while stack:
            e = stack[-1]
            here = id(e)
            if here in numbers:
                stack.pop()
                continue
            waiting = [a for a in e.args if id(a) not in numbers]
            if waiting:
                waiting.reverse()
                stack.extend(waiting)
                continue
            stack.pop()
            numbers[here] = len(numbers)
            attr = e.attr
            op = e.op
            if attr is None:
                tag = ""
            elif op == "const":
                # By bits: 0.0 and -0.0, and NaNs, must not be confused, nor 1 with 1.0.
                tag = struct.pack("<d", attr).hex() if attr.__class__ is float else repr(attr)
            elif op in _REFERS:
                tag = str(self.thing(attr))
            else:
                tag = repr(attr)
            out.append(f"{op}:{e.dtype.code}:{tag}({','.join([str(numbers[id(a)]) for a in e.args])})")
        return numbers[id(root)]


_REFERS = frozenset(("param", "var", "reg", "load"))


def fingerprint(kernel: Kernel) -> str:
    """A hash of the kernel's structure: equal for kernels that differ only in names, different for any others.

    One linear pass; it is on the path of every new shape.
    """
    n = _Numbering()
    out = n.out
    for param in kernel.params:
        out.append(f"P{n.thing(param)}{param.kind[:2]}{param.dtype.code}{int(param.readonly)}")
    out.append(f"I{int(kernel.inplace)}")
    stack: list[Any] = list(reversed(kernel.body))
    while stack:
        stmt = stack.pop()
        kind = stmt.__class__
        if kind is str:
            out.append(stmt)
        elif kind is For:
            extent = n.expression(stmt.extent)
            out.append(f"F{n.thing(stmt.var)},{extent},{stmt.kind[0]}{int(stmt.unroll)}{stmt.wide or ''}{{")
            stack.append("}")
            stack.extend(reversed(stmt.body))
        elif kind is Store:
            mask = -1 if stmt.mask is None else n.expression(stmt.mask)
            out.append(
                f"S{n.thing(stmt.buffer)},{n.expression(stmt.offset)},{n.expression(stmt.value)},{mask}{'s' if stmt.stream else ''}"
            )
        elif kind is Prefetch:
            out.append(f"H{n.thing(stmt.buffer)},{n.expression(stmt.offset)}")
        elif kind is Guard:
            out.append(f"G{n.expression(stmt.condition)}{{")
            stack.append("}")
            stack.extend(reversed(stmt.body))
        elif kind is Define:
            out.append(f"D{n.expression(stmt.init)},{n.thing(stmt.reg)}:{stmt.reg.dtype.code}")
        elif kind is Assign:
            out.append(f"A{n.expression(stmt.value)},{n.thing(stmt.reg)}")
        else:
            out.append(f"R{n.expression(stmt.value)},{n.thing(stmt.reg)},{stmt.op}")
    return hashlib.blake2b("\n".join(out).encode(), digest_size=16).hexdigest()


# -- for people ----------------------------------------------------------------------------------------------------

_INFIX = {
    "add": "+", "sub": "-", "mul": "*", "div": "/", "idiv": "//", "imod": "%", "and": "&", "or": "|", "xor": "^",
    "eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">=", "shl": "<<", "shr": ">>",
}  # fmt: skip


class _Printer:
    """Prints statements; expressions used more than once get a line and a number of their own."""

    def __init__(self, kernel: Kernel) -> None:
        self.lines: list[str] = []
        self.names: dict[Any, str] = {}
        self.taken: set[str] = set()
        self.shared: dict[int, str] = {}
        self.uses: dict[int, int] = {}
        for param in kernel.params:
            self.name(param)
        for stmt in kernel.walk():
            for root in _expressions(stmt):
                self._count(root)

    def _count(self, root: Expr) -> None:
        stack = [root]
        while stack:
            e = stack.pop()
            self.uses[id(e)] = self.uses.get(id(e), 0) + 1
            if self.uses[id(e)] == 1:
                stack.extend(e.args)

    def name(self, thing: Any) -> str:
        """The thing's own name, with a number where two share it."""
        found = self.names.get(thing)
        if found is None:
            found, k = str(thing.name), 1
            while found in self.taken:
                k += 1
                found = f"{thing.name}_{k}"
            self.taken.add(found)
            self.names[thing] = found
        return found

    def expression(self, root: Expr, indent: str) -> str:
        """The text of an expression; lines for shared parts are added before."""
        if id(root) in self.shared:
            return self.shared[id(root)]
        done: dict[int, str] = {}
        stack = [root]
        while stack:
            e = stack[-1]
            if id(e) in done:
                stack.pop()
                continue
            if id(e) in self.shared:
                done[id(e)] = self.shared[id(e)]
                stack.pop()
                continue
            waiting = [a for a in e.args if id(a) not in done]
            if waiting:
                stack.extend(reversed(waiting))
                continue
            stack.pop()
            text = self._one(e, [done[id(a)] for a in e.args])
            # Long chains, too, are cut into lines: a fused kernel may be thousands of operations deep.
            if (
                e.args
                and (e is not root or e.op != "load")
                and (self.uses.get(id(e), 0) > 1 or (e is not root and len(text) > 100))
            ):
                label = f"t{len(self.shared)}"
                self.lines.append(f"{indent}{label}: {e.dtype.name} = {text}")
                self.shared[id(e)] = text = label
            done[id(e)] = text
        return done[id(root)]

    def _one(self, e: Expr, args: list[str]) -> str:
        op = e.op
        if op == "const":
            return repr(e.attr)
        if op in ("param", "var"):
            return self.name(e.attr)
        if op == "reg":
            return "%" + self.name(e.attr)
        if op == "load":
            mask = f" if {args[1]}" if len(args) > 1 else ""
            return f"{self.name(e.attr)}[{args[0]}]{mask}"
        if op in _INFIX:
            return f"({args[0]} {_INFIX[op]} {args[1]})"
        if op == "cast":
            return f"{getattr(e.attr, 'name', e.dtype.name)}({args[0]})"
        tag = "" if e.attr is None else f"[{e.attr}]"
        return f"{op}{tag}({', '.join(args)})"


def _expressions(stmt: Stmt) -> list[Expr]:
    if isinstance(stmt, For):
        return [stmt.extent]
    if isinstance(stmt, Store):
        return [stmt.offset, stmt.value] + ([] if stmt.mask is None else [stmt.mask])
    if isinstance(stmt, Prefetch):
        return [stmt.offset]
    if isinstance(stmt, Guard):
        return [stmt.condition]
    return [stmt.init if isinstance(stmt, Define) else stmt.value]


def expression_text(expr: Expr) -> str:
    """One expression on its own."""
    printer = _Printer(Kernel("", [], []))
    text = printer.expression(expr, "")
    return "\n".join([*printer.lines, text])


def to_text(kernel: Kernel) -> str:
    """The kernel as readable text."""
    p = _Printer(kernel)
    head = ", ".join(f"{p.name(q)}: {_param_text(q)}" for q in kernel.params)
    p.lines.append(f"kernel {kernel.name}({head}){'' if kernel.inplace else ' not in place'}:")
    stack: list[tuple[Any, int]] = [(s, 1) for s in reversed(kernel.body)]
    while stack:
        stmt, depth = stack.pop()
        pad = "    " * depth
        p.lines.append(pad + _statement(p, stmt, pad))
        if isinstance(stmt, For | Guard):
            stack.extend((s, depth + 1) for s in reversed(stmt.body))
    return "\n".join(p.lines)


def _param_text(param: Param) -> str:
    if param.kind in ("int", "scalar"):
        return param.kind if param.kind == "int" else f"scalar {param.dtype.name}"
    return f"{'' if param.readonly else 'out '}{param.kind} {param.dtype.name}"


def _statement(p: _Printer, stmt: Stmt, pad: str) -> str:
    if isinstance(stmt, For):
        return f"{stmt.kind}{' unroll' if stmt.unroll else ''} {p.name(stmt.var)} < {p.expression(stmt.extent, pad)}:"
    if isinstance(stmt, Prefetch):
        return f"prefetch {p.name(stmt.buffer)}[{p.expression(stmt.offset, pad)}]"
    if isinstance(stmt, Guard):
        return f"if {p.expression(stmt.condition, pad)}:"
    if isinstance(stmt, Store):
        mask = "" if stmt.mask is None else f" if {p.expression(stmt.mask, pad)}"
        past = "stream " if stmt.stream else ""
        return f"{past}{p.name(stmt.buffer)}[{p.expression(stmt.offset, pad)}] = {p.expression(stmt.value, pad)}{mask}"
    if isinstance(stmt, Define):
        return f"%{p.name(stmt.reg)}: {stmt.reg.dtype.name} = {p.expression(stmt.init, pad)}"
    if isinstance(stmt, Assign):
        return f"%{p.name(stmt.reg)} = {p.expression(stmt.value, pad)}"
    return f"%{p.name(stmt.reg)} {stmt.op}= {p.expression(stmt.value, pad)}"
