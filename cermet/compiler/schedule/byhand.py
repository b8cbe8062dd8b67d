"""What kernels have in common that are written in the loop IR here, one for an op: parameters with their bindings, positions, the launch."""

from __future__ import annotations

from typing import Any

from cermet import dtypes as dt
from cermet.compiler.llvm.jit import kernel_request
from cermet.compiler.llvm.target import Target
from cermet.compiler.loops import ir
from cermet.compiler.loops.build import builder
from cermet.compiler.loops.ir import Expr, For, Kernel, Param, Var
from cermet.compiler.schedule.hand import Call, StridesOf, TempSpace
from cermet.compiler.schedule.hand import _operand as operand_of
from cermet.graph.node import Node
from cermet.graph.sizes import at_least

__all__ = ["COMBINE", "Call", "Params", "StridesOf", "TempSpace", "call_of", "combined", "decode", "offset_of", "operand_of"]


class Params:
    """Parameters of a kernel written here, with their bindings."""

    def __init__(self) -> None:
        self.params: list[Param] = []
        self.args: list[tuple[Any, ...]] = []

    def add(self, kind: Any, dtype: dt.DType, binding: tuple[Any, ...], readonly: bool = True) -> Param:
        p = Param(f"{kind[0]}{len(self.params)}", kind, dtype, readonly)
        self.params.append(p)
        self.args.append(binding)
        return p

    def integer(self, value: int) -> Expr:
        return ir.const(value) if value in (0, 1) else self.add("int", dt.int64, ("int", value)).expr


def call_of(name: str, p: Params, block: Var, blocks: int, body: list[Any], node: Node, target: Target, work: int) -> list[Call]:
    """The launch of ``blocks`` iterations of ``body`` over ``block``, each of about ``work`` instructions; none for none."""
    if blocks == 0:
        return []
    kernel = Kernel(name, p.params, [For(block, p.integer(blocks), body, "parallel")])
    grain = at_least(60_000 // max(1, work), 1)
    return [Call(kernel_request(kernel, target), p.args, blocks, grain, 0, node.call.op.name, 0, [node])]


def decode(p: Params, row: Expr, extents: list[int]) -> list[Expr]:
    """A row number as indices, outer first."""
    out: list[Expr] = []
    for e in reversed(extents[1:]):
        n = p.integer(e)
        out.append(Expr("trem", (row, n), dt.int64))
        row = Expr("tdiv", (row, n), dt.int64)
    if extents:
        out.append(row)
    return out[::-1]


def offset_of(p: Params, index: list[Expr], strides: list[int]) -> Expr:
    """The offset of an index, in elements."""
    total: Expr = ir.const(0)
    for i, s in zip(index, strides, strict=True):
        total = total + i * p.integer(s)
    return total


COMBINE = {"sum": "add", "prod": "mul", "max": "max", "min": "min"}


def combined(op: str, x: Expr, y: Expr) -> Expr:
    """``x op y`` with op one of `COMBINE`."""
    return builder.binary(op, x, y) if op in ("max", "min") else getattr(builder, op)(x, y)
