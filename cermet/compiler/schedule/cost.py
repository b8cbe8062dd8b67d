"""What an elementwise call costs, in rough instructions: counted over what its record lowers to."""

from __future__ import annotations

from functools import lru_cache

from cermet.compiler.loops.build import builder
from cermet.compiler.loops.ir import COST, Expr, Param
from cermet.graph.node import Call

__all__ = ["cost_of"]


@lru_cache(maxsize=4096)
def cost_of(call: Call) -> int:
    """Instructions per element of an elementwise call (1 for other kinds)."""
    op = call.op
    if op.lower is None:
        return 1
    args = [Param(f"x{k}", "scalar", m.dtype).expr for k, m in enumerate(call.inputs)]
    total = 0
    seen: set[int] = set()
    stack: list[Expr] = [op.lower(builder, *args, **op.named(call))]
    while stack:
        e = stack.pop()
        if id(e) in seen:
            continue
        seen.add(id(e))
        if e.op not in ("param", "const"):
            total += COST.get(e.op, 1)
        stack.extend(e.args)
    return max(total, 1)
