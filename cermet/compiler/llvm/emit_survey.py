"""What a loop's body is like, and how to write it: in which widths, masked or with a scalar rest, unrolled or not.

Only the body and the target decide, so that the same kernel always does its arithmetic in the same order.
"""

from __future__ import annotations

from cermet import dtypes as dt
from cermet.compiler.llvm.emit_expr import Expressions, Node
from cermet.compiler.loops.ir import MATH, RUNNING, Define, For, Guard, Param, Prefetch, Reduce, Stmt, Store, Var

__all__ = ["strips", "unrolls"]

# Weights of bodies in operations; a mathematical function counts as many.
_MATH_WEIGHT = 20
_LIGHT = 12
_HEAVY = 60
_CHAINS = 8  # additions under way at once
_WIDEST = 64  # lanes
_UNROLL_TRIPS = 64
_UNROLL_WEIGHT = 256


class Work:
    """A body in figures: the element size that decides the lanes, its length in operations, what it does to memory."""

    __slots__ = ("maskable", "reduces", "running", "seen", "size", "stores", "sums", "weight")

    def __init__(self) -> None:
        self.size = 1
        self.weight = 0
        self.reduces = False
        self.stores = False
        self.sums = 0  # registers of a lane's own that a loop adds up in
        self.maskable = True
        self.running = False  # whether it takes running random words, of which few lanes need as much work as more
        self.seen: set[int] = set()

    def touch(self, buffer: Param, step: int | None) -> None:
        """Account for an access to a buffer: masked vector accesses need contiguous elements of 4 or 8 bytes."""
        self.maskable &= step == 0 or (step == 1 and buffer.dtype.itemsize in (4, 8))


def strips(e: Expressions, stmt: For) -> list[tuple[int, bool]]:
    """How to run a vector loop: numbers of lanes, each a multiple of the next, and whether that strip is masked at its end.

    Light bodies get wide strips (several chains of arithmetic at once) and a scalar rest. Heavy ones are written
    fewer times, as the time to compile them is what they are long in: the rest is one masked vector, or everything
    is.
    """
    work = survey(e, stmt.body, stmt.var)
    native = e.target.lanes(work.size)
    if native == 1:
        return [(1, False)]
    maskable = e.target.has_masked and work.maskable
    if work.weight > _HEAVY:
        native *= 1 + work.running
        return [(native, True)] if maskable else [(native, False), (1, False)]
    many = stmt.wide or (4 if work.reduces and work.weight <= _LIGHT else 2)
    if work.sums and work.weight <= _LIGHT and maskable:
        # Lanes that each sum up along a loop of their own: wide ones read whole lines, and have chains enough to hide additions behind.
        wide = max(2, min(_CHAINS // work.sums, _WIDEST // native))
        return [*[(native * k, False) for k in sorted({wide, 2}, reverse=True)], (native, True)]
    rest = [(native, True)] if maskable and (work.weight > _LIGHT or not work.stores) else [(native, False), (1, False)]
    return [(native * many, False), *rest]


def unrolls(e: Expressions, stmt: For, extent: int, rest: bool) -> bool:
    """Whether to unroll a serial loop that asks for it: not where the copies would be long (in the scalar ``rest`` of
    a vector loop, which runs a few times, even less)."""
    if not stmt.unroll or extent > _UNROLL_TRIPS:
        return False
    return extent * survey(e, stmt.body, stmt.var).weight <= (_HEAVY if rest else _UNROLL_WEIGHT)


def survey(e: Expressions, body: list[Stmt], var: Var) -> Work:
    """What the body of a loop over ``var`` does."""
    work = Work()
    stack: list[tuple[Stmt, int, bool]] = [(s, 1, False) for s in body]
    while stack:
        inner, copies, looped = stack.pop()
        if isinstance(inner, For | Guard):
            times = 1
            if isinstance(inner, For) and inner.unroll and inner.extent.op == "const":
                times = int(inner.extent.attr)
                times = times if unrolls(e, inner, times, False) else 1
            again = looped or (isinstance(inner, For) and times == 1)
            stack.extend((s, copies * times, again) for s in inner.body)
            continue
        if isinstance(inner, Prefetch):
            continue
        value = inner.init if isinstance(inner, Define) else inner.value
        if isinstance(inner, Reduce):
            work.reduces |= inner.reg in e.regs
            work.sums += looped and inner.reg not in e.regs
        work.size = max(work.size, value.dtype.itemsize)
        roots = [e.number(value)]
        if isinstance(inner, Store):
            work.stores = True
            work.touch(inner.buffer, _step(e, e.number(inner.offset), var))
            roots += [e.number(x) for x in (inner.offset, inner.mask) if x is not None]
        _weigh(e, roots, copies, work, var)
    return work


def _weigh(e: Expressions, roots: list[int], copies: int, work: Work, var: Var) -> None:
    """Add the operations below ``roots`` that were not seen yet."""
    value_root = roots[0]
    while roots:
        number = roots.pop()
        if number in work.seen:
            continue
        work.seen.add(number)
        node = e.nodes[number]
        op = node.op
        if op == "load":
            work.touch(node.attr, _step(e, node.args[0], var))
            work.size = max(work.size, node.attr.dtype.compute.itemsize)
        elif node.dtype is not dt.int64 and op != "const" and (op != "param" or number == value_root):
            work.size = max(work.size, node.dtype.itemsize)
        work.running |= op == "philox" and node.attr >= RUNNING
        if op in MATH or op == "philox":
            work.weight += copies * _MATH_WEIGHT
        elif node.args and node.dtype is not dt.int64:
            work.weight += copies
        roots.extend(node.args)


def _step(e: Expressions, root: int, var: Var) -> int | None:
    """By how much an offset grows from one iteration of ``var`` to the next; None where that is not known here."""
    steps: dict[int, int | None] = {}
    stack = [root]
    while stack:
        node = e.nodes[stack[-1]]
        waiting = [] if node.op == "load" else [a for a in node.args if a not in steps]
        if waiting:
            stack.extend(waiting)
            continue
        number = stack.pop()
        steps[number] = _step_of(node, [] if node.op == "load" else [steps[a] for a in node.args], e.nodes, var)
    return steps[root]


def _step_of(node: Node, steps: list[int | None], nodes: list[Node], var: Var) -> int | None:
    if node.op == "var":
        return 1 if node.attr is var else 0
    if node.op in ("load", "reg"):
        return None
    if all(s == 0 for s in steps):
        return 0
    if node.op in ("add", "sub") and None not in steps:
        return steps[0] + steps[1] if node.op == "add" else steps[0] - steps[1]  # type: ignore[operator]
    if node.op == "mul":
        for k in (0, 1):
            factor = nodes[node.args[1 - k]]
            if factor.op == "const" and steps[k] is not None:
                return steps[k] * int(factor.attr)  # type: ignore[operator]
    return None
