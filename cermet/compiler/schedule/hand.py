"""Lowering of the groups that are not loop nests over expressions: products, convolutions, sorts, scans, scatters.

Each op's operands are already strided views of values in memory (see `operand`). Knows the kernel families' specs.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from cermet import config
from cermet import dtypes as dt
from cermet.compiler.kernels import contraction, convolution, recurrence
from cermet.compiler.kernels.plan import Operand, Plan, Temp
from cermet.compiler.llvm.jit import Request, kernel_request
from cermet.compiler.llvm.target import Target
from cermet.compiler.loops import ir
from cermet.compiler.loops.build import builder
from cermet.compiler.loops.ir import Assign, Define, Expr, For, Guard, Kernel, Param, Reduce, Register, Store, Var
from cermet.compiler.schedule.epilogue import Fused
from cermet.compiler.schedule.fuse import source_of
from cermet.compiler.schedule.lower import LoopCall, identity_of
from cermet.compiler.schedule.operand import strided
from cermet.compiler.schedule.tree import row_major
from cermet.graph.node import Node
from cermet.ops.recurrence import backward_parts, forward_parts
from cermet.graph.sizes import Refused, at_least, has_letters, presently, tracing

__all__ = ["Call", "TempSpace", "hand_calls", "loop_calls"]


class TempSpace:
    """A piece of the arena that the calls of one group share."""

    __slots__ = ("nbytes",)

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes


@dataclass
class Call:
    """One kernel launch, arguments bound: ("node", node, byte offset), ("int", value), ("scalar", leaf), ("temp", space, byte offset),
    ("status", node). ``origin``: for launches that are planned anew for other sizes."""

    request: Request
    args: list[tuple[Any, ...]]
    blocks: int
    grain: int
    scratch: int
    name: str
    flops: int = 0
    nodes: list[Node] = field(default_factory=list)
    inplace: list[tuple[Node, Node]] = field(default_factory=list)
    origin: Any = None


@dataclass(eq=False)
class Origin:
    """What launches of one family's plan were made from, where sizes are letters.

    plan, what, epilogue, args: see `_planned`. operands: what their operands are bound to. name: for the launches.
    """

    plan: Callable[..., Plan]
    what: tuple[Any, ...]
    epilogue: Any
    args: list[Operand]
    operands: dict[str, tuple[Any, ...]]
    name: str

    def again(self, what: tuple[Any, ...]) -> Plan:
        """The plan for other sizes."""
        return _planned(self.plan, what, self.epilogue, self.args)


StridesOf = Callable[[Node], tuple[int, ...]]


def loop_calls(calls: list[LoopCall], nodes: list[Node], target: Target) -> list[Call]:
    """Launches of loop IR kernels."""
    out = []
    spaces = [TempSpace(n) for n in (calls[0].temps if calls else [])]
    for c in calls:
        if c.blocks == 0:
            continue
        args: list[tuple[Any, ...]] = []
        for kind, value in c.bindings:
            if kind == "temp":
                args.append(("temp", spaces[value], 0))
            elif kind == "node":
                args.append(("node", value, 0))
            else:
                args.append((kind, value))
        name = c.kernel.name + ":" + "+".join(n.call.op.name for n in nodes)
        out.append(Call(kernel_request(c.kernel, target), args, c.blocks, c.grain, c.scratch, name, 0, nodes, c.inplace))
    return out


def hand_calls(node: Node, strides_of: StridesOf, target: Target, fused: Fused | None = None) -> list[Call]:
    """The launches of a group that consists of one node, with the epilogue that replaces its store."""
    kind = node.call.op.kind
    if kind == "contraction":
        return _contraction(node, strides_of, target, fused)
    if kind == "convolution":
        return _convolution(node, strides_of, target, fused)
    if kind == "scan":
        return _scan(node, strides_of, target)
    if kind == "scatter":
        return _scatter(node, strides_of, target)
    if kind == "sort":
        return _sort(node, strides_of, target)
    if kind == "recurrence":
        return _recurrence(node, strides_of, target)
    raise NotImplementedError(f"no kernel for op {node.call.op.name} of kind {kind}")


def _operand(x: Node, strides_of: StridesOf) -> tuple[Node, int, tuple[int, ...]]:
    """Source, byte offset, strides in elements."""
    source = source_of(x)
    offset, strides = strided(x, strides_of(source))
    return source, offset * source.meta.dtype.itemsize, strides


def _from_plan(plan: Plan, operands: dict[str, tuple[Any, ...]], node: Node, name: str = "") -> list[Call]:
    """Launches with operands bound by name; a result that an epilogue replaces is bound to nothing."""
    spaces = [TempSpace(n) for n in plan.temps]
    out = []
    origin = Origin(*plan.origin, operands, name or node.call.op.name) if plan.origin is not None else None
    for launch in plan.launches:
        args: list[tuple[Any, ...]] = []
        for a in launch.args:
            if isinstance(a, Operand):
                bound = operands.get(a.name, ("int", 0))
                args.append(("node", bound[1], bound[2] + a.byte_offset) if bound[0] == "node" else bound)
            elif isinstance(a, Temp):
                args.append(("temp", spaces[a.index], a.byte_offset))
            else:
                args.append(("int", a))
        if launch.blocks:
            request = Request(launch.key, launch.build, launch.entry)
            label = name or node.call.op.name
            out.append(Call(request, args, launch.blocks, launch.grain, launch.scratch, label, launch.flops, [node], [], origin))
    if origin is not None and not out:
        raise Refused("a kernel family has nothing to do for these sizes")
    return out


_plans: OrderedDict[Any, Plan] = OrderedDict()


def _planned(plan: Callable[..., Plan], what: tuple[Any, ...], epilogue: Any, args: list[Operand]) -> Plan:
    """A family's plan; equal layers share theirs. An epilogue's key and the number of its arguments say all that a plan depends on.

    Families weigh sizes in ways that no formula follows. Where sizes are letters, a plan is made for those at hand, and says how to make
    that of others: the whole family is one step of the template.
    """
    if tracing() is not None and has_letters(what):
        found = _planned(plan, presently(what), epilogue, args)
        return Plan(found.launches, found.temps, (plan, what, epilogue, args))
    key = (plan, what, None if epilogue is None else epilogue.key, len(args), config.winograd)
    found = _plans.get(key)
    if found is None:
        found = _plans[key] = plan(*what, epilogue, args)
        while len(_plans) > 1024:
            _plans.popitem(last=False)
    return found


def _with_epilogue(fused: Fused | None, operands: dict[str, tuple[Any, ...]], node: Node) -> tuple[Any, list[Operand], str]:
    """(epilogue, its arguments, a name for the launches); binds what the epilogue reads and writes, or the plain result."""
    if fused is None:
        operands["result"] = ("node", node, 0)
        return None, [], ""
    args = []
    for k, (kind, value) in enumerate(fused.bindings):
        operands[f"e{k}"] = ("node", value, 0) if kind == "node" else (kind, value)
        args.append(Operand(f"e{k}"))
    return fused.epilogue, args, node.call.op.name + "+epilogue"


def _contraction(node: Node, strides_of: StridesOf, target: Target, fused: Fused | None) -> list[Call]:
    a, b = node.inputs
    sa, oa, ta = _operand(a, strides_of)
    sb, ob, tb = _operand(b, strides_of)
    shape = node.meta.shape
    operands: dict[str, tuple[Any, ...]] = {"a": ("node", sa, oa), "b": ("node", sb, ob)}
    epilogue, args, name = _with_epilogue(fused, operands, node)
    to = row_major(shape) if fused is not None else strides_of(node)
    batch, ta, tb, to = _merge_batch(shape[:-2], ta, tb, to)
    spec = contraction.ContractionSpec(
        a.meta.dtype, b.meta.dtype, node.meta.dtype, shape[-2], shape[-1], a.meta.shape[-1], batch, ta, tb, to
    )
    if fused is None:
        operands["out"] = operands["result"]
    return _from_plan(_planned(contraction.plan, (spec, target), epilogue, args), operands, node, name)


def _merge_batch(batch: tuple[int, ...], *strides: tuple[int, ...]) -> tuple[Any, ...]:
    """Batch dims of size 1 dropped and neighbours merged where all operands stride through them as one."""
    dims: list[int] = []
    kept: list[list[int]] = [[] for _ in strides]
    for k, size in enumerate(batch):
        if size == 1:
            continue
        if dims and all(s[-1] == t[k] * size for s, t in zip(kept, strides, strict=True)):
            dims[-1] *= size
            for s, t in zip(kept, strides, strict=True):
                s[-1] = t[k]
            continue
        dims.append(size)
        for s, t in zip(kept, strides, strict=True):
            s.append(t[k])
    return (tuple(dims), *[(*s, *t[-2:]) for s, t in zip(kept, strides, strict=True)])


def _convolution(node: Node, strides_of: StridesOf, target: Target, fused: Fused | None) -> list[Call]:
    direction, stride, padding, dilation, groups, _ = node.call.attrs
    operands: dict[str, tuple[Any, ...]] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    strides: dict[str, tuple[int, ...]] = {}
    roles = {"forward": "xwy", "input_grad": "ywx", "weight_grad": "yxw"}[direction]
    for role, operand in zip(roles, node.inputs, strict=False):
        source, offset, strides[role] = _operand(operand, strides_of)
        operands[role] = ("node", source, offset)
        shapes[role] = operand.meta.shape
    out = roles[2]
    epilogue, args, name = _with_epilogue(fused, operands, node)
    shapes[out] = node.meta.shape
    if fused is None:
        operands[out], strides[out] = operands["result"], strides_of(node)
    else:
        strides[out] = convolution.channels_last(shapes[out][0], shapes[out][1], shapes[out][2:])
    x, w, y = shapes["x"], shapes["w"], shapes["y"]
    spec = convolution.ConvSpec(
        node.meta.dtype, x[0], x[1], w[0], x[2:], w[2:], y[2:], tuple(stride), tuple(padding), tuple(dilation), groups,
        strides["x"], strides["w"], strides["y"],
    )  # fmt: skip
    return _from_plan(
        _planned(convolution.plan, (direction, spec, target), epilogue, args), operands, node, name or f"conv {direction}"
    )


# ----------------------------------------------------------------------------------------------------- loop IR by hand


class _Params:
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


def _call(name: str, p: _Params, block: Var, blocks: int, body: list[Any], node: Node, target: Target, work: int) -> list[Call]:
    if blocks == 0:
        return []
    kernel = Kernel(name, p.params, [For(block, p.integer(blocks), body, "parallel")])
    grain = at_least(60_000 // max(1, work), 1)
    return [Call(kernel_request(kernel, target), p.args, blocks, grain, 0, node.call.op.name, 0, [node])]


def _decode(p: _Params, row: Expr, extents: list[int]) -> list[Expr]:
    """A row number as indices, outer first."""
    out: list[Expr] = []
    for e in reversed(extents[1:]):
        n = p.integer(e)
        out.append(Expr("trem", (row, n), dt.int64))
        row = Expr("tdiv", (row, n), dt.int64)
    if extents:
        out.append(row)
    return out[::-1]


def _offset(p: _Params, index: list[Expr], strides: list[int]) -> Expr:
    total: Expr = ir.const(0)
    for i, s in zip(index, strides, strict=True):
        total = total + i * p.integer(s)
    return total


_COMBINE = {"sum": "add", "prod": "mul", "max": "max", "min": "min"}


def _scan(node: Node, strides_of: StridesOf, target: Target) -> list[Call]:
    """Serial along the scanned dim; rows side by side in blocks, in lanes where memory runs along another dim."""
    (x,) = node.inputs
    source, offset, sx = _operand(x, strides_of)
    so = strides_of(node)
    dim, mode = node.call.attr("dim"), node.call.attr("mode")
    shape = node.meta.shape
    if node.meta.numel == 0:
        return []
    others = [k for k in range(len(shape)) if k != dim and shape[k] != 1]
    lane = max(others, default=None) if dim != len(shape) - 1 else None
    rows_dims = [k for k in others if k != lane]
    rows = math.prod([shape[k] for k in rows_dims])
    p = _Params()
    xin = p.add("buffer", x.meta.dtype, ("node", source, offset))
    out = p.add("buffer", node.meta.dtype, ("node", node, 0), False)
    block, step, v = Var("p"), Var("t"), Var("v")
    width = shape[lane] if lane is not None else 1
    pieces = -(-width // 64)
    row: Expr = block.expr
    piece: Expr = ir.const(0)
    if pieces > 1:
        n = p.integer(pieces)
        piece, row = Expr("trem", (row, n), dt.int64), Expr("tdiv", (row, n), dt.int64)
    index = _decode(p, row, [shape[k] for k in rows_dims])
    lane_at = piece * ir.const(64) + v.expr
    ix = _offset(p, index, [sx[k] for k in rows_dims])
    io = _offset(p, index, [so[k] for k in rows_dims])
    if lane is not None:
        ix, io = ix + lane_at * p.integer(sx[lane]), io + lane_at * p.integer(so[lane])
    acc = Register("acc", node.meta.dtype.compute)
    op = _COMBINE[mode]
    value = xin.load(ix + step.expr * p.integer(sx[dim]))
    loop = For(step, p.integer(shape[dim]), [
        Assign(acc, builder.binary(op, acc.expr, value) if op in ("max", "min") else getattr(builder, op)(acc.expr, value)),
        Store(out, io + step.expr * p.integer(so[dim]), acc.expr),
    ])  # fmt: skip
    inner: list[Any] = [Define(acc, identity_of(op, node.meta.dtype)), loop]
    if lane is not None:
        extent = builder.min(ir.const(64), p.integer(width) - piece * ir.const(64)) if pieces > 1 else p.integer(width)
        inner = [For(v, extent, inner, "vector")]
    return _call("scan", p, block, rows * pieces, inner, node, target, shape[dim] * min(width, 64) * 4)


def _scatter(node: Node, strides_of: StridesOf, target: Target) -> list[Call]:
    """Copy the base, then position by position. Dims of the update that are dims of the base too are independent of each other: they
    run side by side; the others run in order, so that what meets in one place is combined in a fixed order."""
    base = node.inputs[0]
    calls = _copy(base, node, strides_of, target)
    if node.inputs[1].meta.numel == 0:
        return calls
    return calls + _scatter_updates(node, strides_of, target)


def _copy(x: Node, node: Node, strides_of: StridesOf, target: Target) -> list[Call]:
    source, offset, sx = _operand(x, strides_of)
    so = strides_of(node)
    shape = node.meta.shape
    if node.meta.numel == 0:
        return []
    p = _Params()
    xin = p.add("buffer", x.meta.dtype, ("node", source, offset))
    out = p.add("buffer", node.meta.dtype, ("node", node, 0), False)
    block, v = Var("p"), Var("v")
    _, (flat,), (flat_out,) = _flatten(shape, sx, so)
    if flat == flat_out == (1,):
        count = -(-node.meta.numel // 8192)
        start = block.expr * ir.const(8192)
        extent = builder.min(ir.const(8192), p.integer(node.meta.numel) - start)
        at = start + v.expr
        body = [For(v, extent, [Store(out, at, xin.load(at))], "vector")]
        return _call("copy", p, block, count, body, node, target, 8192)
    index = [*_decode(p, block.expr, list(shape[:-1])), v.expr] if shape else []
    load = xin.load(_offset(p, index, list(sx)))
    body = [For(v, p.integer(shape[-1] if shape else 1), [Store(out, _offset(p, index, list(so)), load)], "vector")]
    return _call("copy", p, block, math.prod(shape[:-1]), body, node, target, shape[-1] if shape else 1)


def _flatten(shape: tuple[int, ...], *strides: tuple[int, ...]) -> tuple[Any, ...]:
    """((extents), (strides…),) with everything merged into one dim where possible, else the strides as they are."""
    expected = 1
    for k in range(len(shape) - 1, -1, -1):
        if shape[k] != 1 and any(s[k] != expected for s in strides):
            return (shape, *[(s,) for s in strides])
        expected *= shape[k]
    return ((expected,), *[((1,),) for _ in strides])


def _scatter_updates(node: Node, strides_of: StridesOf, target: Target) -> list[Call]:
    base, update, *indices = node.inputs
    dims, rest, mode = node.call.attrs
    so = strides_of(node)
    shape = update.meta.shape
    side = [k for k in rest if shape[k] != 1]
    serial = [k for k in range(len(shape)) if k not in rest and shape[k] != 1]
    others = [d for d in range(base.meta.ndim) if d not in dims]
    stride_of_side = {u: so[d] for d, u in zip(others, rest, strict=True)}
    lane = max(side, key=lambda k: (stride_of_side[k] == 1, k), default=None)
    rows_dims = [k for k in side if k != lane]
    rows = math.prod([shape[k] for k in rows_dims])
    p = _Params()
    out = p.add("buffer", node.meta.dtype, ("node", node, 0), False)
    block, v = Var("p"), Var("v")
    width = shape[lane] if lane is not None else 1
    pieces = -(-width // 64)
    row: Expr = block.expr
    piece: Expr = ir.const(0)
    if pieces > 1:
        n = p.integer(pieces)
        piece, row = Expr("trem", (row, n), dt.int64), Expr("tdiv", (row, n), dt.int64)
    at: list[Expr] = [ir.const(0)] * len(shape)
    for k, e in zip(rows_dims, _decode(p, row, [shape[k] for k in rows_dims]), strict=True):
        at[k] = e
    if lane is not None:
        at[lane] = piece * ir.const(64) + v.expr
    bad = Register("bad", dt.bool)
    loops = [For(Var(f"s{k}"), p.integer(shape[k]), []) for k in serial]
    for loop, k in zip(loops, serial, strict=True):
        at[k] = loop.var.expr
    body = loops[-1].body if loops else []
    place = _offset(p, [at[u] for u in rest], [stride_of_side[u] for u in rest])
    for i, d in zip(indices, dims, strict=True):
        place = place + _checked_index(p, i, at, base.meta.shape[d], strides_of, bad, body) * p.integer(so[d])
    us, uo, ust = _operand(update, strides_of)
    value = p.add("buffer", update.meta.dtype, ("node", us, uo)).load(_offset(p, at, list(ust)))
    if mode != "set":
        op = _COMBINE["sum" if mode == "add" else "prod" if mode == "mul" else mode]
        old = out.load(place)
        value = builder.binary(op, old, value) if op in ("max", "min") else getattr(builder, op)(old, value)
    body.append(Store(out, place, value))
    for outer, inner in pairwise(loops):
        outer.body.append(inner)
    nest: list[Any] = [loops[0]] if loops else body
    if lane is not None:
        extent = builder.min(ir.const(64), p.integer(width) - piece * ir.const(64)) if pieces > 1 else p.integer(width)
        nest = [For(v, extent, nest, "vector")]
    status = p.add("buffer", dt.int64, ("status", node), False)
    nest = [Define(bad, builder.const(False, dt.bool)), *nest, Guard(bad.expr, [Store(status, ir.const(0), ir.const(1))])]
    work = math.prod([shape[k] for k in serial]) * min(width, 64) * 4
    return _call("scatter", p, block, rows * pieces, nest, node, target, work)


def _checked_index(p: _Params, i: Node, at: list[Expr], size: int, strides_of: StridesOf, bad: Register, body: list[Any]) -> Expr:
    source, offset, strides = _operand(i, strides_of)
    raw = p.add("buffer", i.meta.dtype, ("node", source, offset)).load(_offset(p, at, list(strides)))
    n = p.integer(size)
    wrapped = builder.select(builder.lt(raw, ir.const(0)), builder.add(raw, n), raw)
    outside = builder.or_(builder.lt(wrapped, ir.const(0)), builder.ge(wrapped, n))
    body.append(Reduce(bad, "or", outside))
    return builder.select(outside, ir.const(0), wrapped)


def _sort(node: Node, strides_of: StridesOf, target: Target) -> list[Call]:
    from cermet.compiler.kernels import sort

    (x,) = node.inputs
    source, offset, strides = _operand(x, strides_of)
    spec = sort.SortSpec(
        x.meta.dtype, x.meta.shape, strides, strides_of(node), node.call.attr("dim"), node.call.attr("descending")
    )
    return _from_plan(sort.plan(spec, target), {"x": ("node", source, offset), "out": ("node", node, 0)}, node)


def _recurrence(node: Node, strides_of: StridesOf, target: Target) -> list[Call]:
    """Operands by the names that the kernels' parameters have; the parts of a vector are operands of their own."""
    call = node.call
    forward = call.op.name == "recurrence"
    kind, reverse, masked, batch_first = [call.attr(n) for n in ("kind", "reverse", "masked", "batch_first")]
    bias, saves = (call.attr("bias"), call.attr("saves")) if forward else (False, False)
    given = (False, False, False) if forward else call.attr("given")
    cell_state = ["c0"] if kind == "lstm" else []
    mask = ["keep"] if masked else []
    if forward:
        names = ["x", "weights", "h0", *cell_state, *(["bias"] if bias else []), *mask]
    else:
        gradients = [n for n, g in zip(("dy", "dhn", "dcn"), given, strict=True) if g]
        names = [*gradients, "vector", "weights", *cell_state, *mask]
    operands: dict[str, tuple[Any, ...]] = {}
    strides: dict[str, tuple[int, ...]] = {}
    shapes = {}
    for name, x in zip(names, node.inputs, strict=True):
        source, offset, strides[name] = _operand(x, strides_of)
        operands[name], shapes[name] = ("node", source, offset), x.meta.shape
    units = shapes["weights"][1]
    if forward:
        rows, steps = shapes["h0"][0], shapes["x"][1 if batch_first else 0]
        results = forward_parts(kind, steps, rows, units, reverse, saves, batch_first)[0]
        before = "" if not saves else "all" if batch_first else "first"
    else:
        steps, rows = call.attr("shape")
        results, before = backward_parts(kind, steps, rows, units, batch_first)[0], ""
        inner = forward_parts(kind, steps, rows, units, reverse, True, batch_first)[0]
        inner["h"] = inner["before" if kind == "gru" else "y"]
        _, vector, at = operands.pop("vector")
        for name in ("h", "c", "saved"):
            if name in inner:
                operands[name] = ("node", vector, at + inner[name][0] * node.meta.dtype.itemsize)
                shapes[name], strides[name] = inner[name][1], row_major(inner[name][1])
    for name, (offset, shape) in results.items():
        operands[name] = ("node", node, offset * node.meta.dtype.itemsize)
        shapes[name], strides[name] = shape, row_major(shape)
    walked = []
    for name, t in strides.items():
        if name in operands and name not in ("weights", "bias"):
            sequence = len(shapes[name]) == 3
            turned = batch_first and sequence
            walked.append((name, (t[1], t[0]) if turned else (t[0], t[1]) if sequence or name == "keep" else (0, t[0])))
    spec = recurrence.RecurrenceSpec(
        node.meta.dtype, kind, steps, rows, units, reverse, bias, masked, saves, before, given,
        (strides["weights"][0], strides["weights"][1]), tuple(walked),
    )  # fmt: skip
    direction = "forward" if forward else "backward"
    return _from_plan(_planned(recurrence.plan, (direction, spec, target), None, []), operands, node, f"recurrence {direction}")
