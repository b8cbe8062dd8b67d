"""Lowering of the groups that are not loop nests over expressions: products, convolutions, sorts, scans, scatters.

Each op's operands are already strided views of values in memory (see `operand`). Knows the kernel families' specs.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from cermet import config
from cermet.compiler.kernels import contraction, convolution, recurrence
from cermet.compiler.kernels.plan import Operand, Plan, Temp
from cermet.compiler.llvm.jit import Request, kernel_request
from cermet.compiler.llvm.target import Target
from cermet.compiler.schedule.epilogue import Fused
from cermet.compiler.schedule.fuse import source_of
from cermet.compiler.schedule.lower import LoopCall
from cermet.compiler.schedule.operand import strided
from cermet.compiler.schedule.tree import row_major
from cermet.graph.node import Node
from cermet.graph.sizes import Refused, has_letters, presently, tracing
from cermet.ops.recurrence import backward_parts, forward_parts

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
        from cermet.compiler.schedule.scans import scan_calls

        return scan_calls(node, strides_of, target)
    if kind == "scatter":
        from cermet.compiler.schedule.scatters import scatter_calls

        return scatter_calls(node, strides_of, target)
    if kind == "sort" and node.call.op.name == "argtop":
        from cermet.compiler.schedule.selects import select_calls

        return select_calls(node, strides_of, target)
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
    origin = None
    if plan.origin is not None:
        family, what, epilogue, values = plan.origin
        origin = Origin(family, what, epilogue, values, operands, name or node.call.op.name)
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
        concrete = _planned(plan, presently(what), epilogue, args)
        return Plan(concrete.launches, concrete.temps, (plan, what, epilogue, args))
    key = (plan, what, None if epilogue is None else epilogue.key, len(args), config.winograd)
    found = _plans.get(key)
    if found is None:
        found = _plans[key] = plan(*what, epilogue, args)
        while len(_plans) > 1024:
            _plans.popitem(last=False)
    return found


def forget_plans() -> None:
    """Plan anew from now on: what plans are made from has changed."""
    _plans.clear()


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
