"""What the forms of a lowered loop group share: sizes of blocks, the launch they make, the start of each reduction."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from cermet import dtypes as dt
from cermet.compiler.loops.build import builder
from cermet.compiler.loops.ir import Expr, Kernel
from cermet.compiler.schedule.tree import Tree
from cermet.compiler.schedule.writer import Binding
from cermet.graph.node import Node

__all__ = [
    "REDUCE",
    "LoopCall",
    "fill_of",
    "identity_of",
    "strip_of",
    "subtrees",
]

BLOCK = 8192  # elements of a map or row block
WIDE, NARROW = 64, 16  # lanes' extents of a column block: narrow ones where wide ones would be too few to share out
FEW_BLOCKS = 8
NEAR, AHEAD = 1 << 18, 4096  # bytes that the nearer caches hold anyway; how far ahead rows are asked for
FAR, ROWS_AHEAD = 512, 8  # a stride in bytes that hardware does not see a stream in; how many rows ahead are asked for then
DEAR = 8  # instructions past which a value is rather kept than computed again
FULL_LANES = 16  # an extent that fills the vectors
FEW_LANES = 4  # an extent below which a loop of vectors does less than it costs
STRIP, SPAN = 8, 256  # lanes and steps of a tile
SMALL_EXTENT = 16  # reduced dims up to this are unrolled
SPLIT_FROM = 32768  # a reduction of this many elements on few rows is cut into chunks

REDUCE = {
    "reduce_sum": "add", "reduce_prod": "mul", "reduce_max": "max", "reduce_min": "min", "reduce_any": "or", "reduce_all": "and",
}  # fmt: skip


@dataclass
class LoopCall:
    """One launch of a kernel made of loop IR, its parameters bound to nodes and numbers.

    temps: bytes of temporaries it shares with the other calls of its group.
    inplace: (read, written) pairs of values that may be one memory: each element is written from the very element read, nothing else reads it.
    """

    kernel: Kernel
    bindings: list[Binding]
    blocks: int
    grain: int = 1
    scratch: int = 0
    temps: list[int] = field(default_factory=list)
    inplace: list[tuple[Node, Node]] = field(default_factory=list)


def identity_of(op: str, dtype: dt.DType) -> Expr:
    """The value that changes nothing."""
    d = dtype.compute
    if op in ("add", "or"):
        return builder.const(0, d)
    if op in ("mul", "and"):
        return builder.const(1, d)
    if d.kind == "f":
        return builder.const(-math.inf if op == "max" else math.inf, d)
    if d.kind == "b":
        return builder.const(op == "min", d)
    info = dt.iinfo(d)
    return builder.const(info.min if op == "max" else info.max, d)


def fill_of(extent: int) -> int:
    """How well a loop over so many fills vectors: lanes need something to run along, a short loop leaves most of them empty."""
    return FEW_LANES * min(extent, FULL_LANES) if extent >= FEW_LANES else extent


def subtrees(tree: Tree) -> list[Tree]:
    """All trees in a tree, each once."""
    found = {id(tree): tree}
    stack = [tree]
    while stack:
        for t in stack.pop().args:
            if id(t) not in found:
                found[id(t)] = t
                stack.append(t)
    return list(found.values())


def strip_of(rows: int, width: int) -> int:
    """Extent of a column block."""
    return WIDE if rows * -(-width // WIDE) >= FEW_BLOCKS else NARROW
