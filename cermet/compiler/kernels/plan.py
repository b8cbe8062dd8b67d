"""What a hand-designed kernel family answers when asked to run one operation: a few launches over operands and temporaries.

Knows the loop IR's dtypes and how code is requested; must not know nodes, the memory planner or the runtime's program.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Operand:
    """The address of element 0 of operand ``name`` ("a", "b", "out", "bias", …), moved by ``byte_offset``."""

    name: str
    byte_offset: int = 0


@dataclass(frozen=True)
class Temp:
    """The address of temporary ``index`` of the plan (see `Plan.temps`)."""

    index: int
    byte_offset: int = 0


Arg = Operand | Temp | int


@dataclass
class KernelLaunch:
    """One launch.

    Attributes:
        key: names the machine code's content; equal keys mean equal code.
        build: makes the LLVM module (an `llvmlite.ir.Module`) with the entry function ``entry``; called when no cache has the key.
        args: one per slot of the kernel.
        blocks: extent of the parallel index.
        scratch: bytes of worker-private memory.
        grain: smallest number of blocks worth giving to another thread.
        flops: floating-point operations of the whole launch, for cost models and reports; 0 where it is not meaningful.
    """

    key: str
    build: Callable[[], Any]
    entry: str
    args: list[Arg]
    blocks: int
    scratch: int = 0
    grain: int = 1
    flops: int = 0


@dataclass
class Plan:
    """Launches in order (each sees the memory effects of those before it) and the bytes of each temporary.

    origin: where sizes are letters: what to call, with what, for the plan of other sizes (see `cermet.compiler.schedule.hand`).
    """

    launches: list[KernelLaunch]
    temps: list[int] = field(default_factory=list)
    origin: Any = None
