"""Attention's launches, and the memory order of its results.

Its two ops have several results; each is a node of its own (`cermet.ops.leaf.result`) that the launches of the op write.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from cermet.compiler.kernels import attention
from cermet.compiler.llvm.target import Target
from cermet.compiler.schedule.hand import Call, StridesOf, _from_plan, _merge_batch, _operand, _planned
from cermet.compiler.schedule.tree import row_major
from cermet.graph.node import Node
from cermet.ops.attention import writes_any_strides
from cermet.ops.movement import permute, reshape

__all__ = ["attention_calls", "result_layouts", "results_of"]


def results_of(stored: set[Node]) -> dict[Node, dict[int, Node]]:
    """For each call of several results: those that are written to memory, by number."""
    out: dict[Node, dict[int, Node]] = {}
    for n in stored:
        if n.call.op.kind == "result":
            out.setdefault(n.inputs[0], {})[n.call.attrs[0]] = n
    return out


def attention_calls(node: Node, results: dict[int, Node], strides_of: StridesOf, target: Target) -> list[Call]:
    """The launches of ``attention`` or ``attention_grad``."""
    if node.call.op.name == "attention":
        direction, wants = "forward", frozenset[str]()
        inputs, outputs = ["q", "k", "v"], {0: "out", 1: "lse"}
        masked = len(node.inputs) > 3
    else:
        direction, wants = "backward", frozenset(node.call.attr("wants")[k] for k in results)
        inputs, outputs = ["q", "k", "v"], {k: f"d{name}" for k, name in enumerate(node.call.attr("wants"))}
        masked = len(node.inputs) > 6
    inputs += (["mask"] if masked else []) + (["g", "out", "lse"] if direction == "backward" else [])
    operands: dict[str, tuple[Any, ...]] = {}
    strides: dict[str, tuple[int, ...]] = {}
    for name, x in zip(inputs, node.inputs, strict=True):
        source, offset, found = _operand(x, strides_of)
        operands[name] = ("node", source, offset)
        if name == "mask":
            found = (0,) * (node.inputs[0].meta.ndim - x.meta.ndim) + tuple(
                [0 if size == 1 else s for size, s in zip(x.meta.shape, found, strict=True)]
            )
        strides[name] = found
    for number, result in results.items():
        operands[outputs[number]] = ("node", result, 0)
        strides[outputs[number]] = strides_of(result)
    for name in ("lse", "dmask"):  # always row-major
        strides.pop(name, None)
    q, k, v = (x.meta.shape for x in node.inputs[:3])
    # A result that nobody wants has no memory; the forward kernel writes its first one regardless.
    if direction == "forward" and "out" not in operands:
        operands["out"], strides["out"] = ("node", node, 0), row_major(node.meta.shape)
    batch, *merged = _merge_batch(q[:-2], *strides.values())
    mask = node.inputs[3].meta.dtype if masked else None
    spec = attention.AttentionSpec(
        node.inputs[0].meta.dtype, node.call.attr("causal"), node.call.attr("scale"), batch, q[-2], k[-2], q[-1], v[-1],
        tuple(zip(strides, merged, strict=True)), mask,
    )  # fmt: skip
    plan = _planned(attention.plan, (direction, spec, target, wants), None, [])
    return _from_plan(plan, operands, node, node.call.op.name)


def result_layouts(order: Sequence[Node], stored: set[Node], outputs: set[Node]) -> dict[Node, tuple[int, ...]]:
    """Strides of results that are first of all permuted by who reads them, such as heads that are merged: they are written in the
    order in which they are read. Results of the program itself are row-major."""
    heads = [
        n
        for n in stored
        if n.call.op.kind == "result"
        and n not in outputs
        and n.meta.ndim > 2
        and writes_any_strides(n.inputs[0].call, n.call.attrs[0])
    ]
    if not heads:
        return {}
    users: dict[Node, list[Node]] = {}
    for n in order:
        if n.call.op in (permute, reshape) and n.buffer is None:
            users.setdefault(n.inputs[0], []).append(n)
    out = {}
    for n in heads:
        dims = _read_order(n, [(k,) for k in range(n.meta.ndim)], users.get)
        if dims is not None and dims[-1] == n.meta.ndim - 1:
            strides, step = [0] * n.meta.ndim, 1
            for d in reversed(dims):
                strides[d] = step
                step = step * n.meta.shape[d]
            out[n] = tuple(strides)
    return out


def _read_order(n: Node, parts: list[tuple[int, ...]], users_of: Callable[[Node], Any]) -> list[int] | None:
    """The dims of a result in the order of the first permutation of it; ``parts``: which of them each dim of the view ``n`` is."""
    for u in users_of(n) or ():
        if u.call.op is permute:
            return [d for p in u.call.attrs[0] for d in parts[p]]
        joined = _joined(n.meta.shape, u.meta.shape, parts)
        if joined is not None:
            return _read_order(u, joined, users_of)
    return None


def _joined(old: tuple[int, ...], new: tuple[int, ...], parts: list[tuple[int, ...]]) -> list[tuple[int, ...]] | None:
    """The parts after a reshape that only joins neighbouring dims; None for any other."""
    out: list[tuple[int, ...]] = []
    k = 0
    for size in new:
        if k == len(old):
            return None
        here, total = parts[k], old[k]
        k += 1
        while total != size and k < len(old):
            here, total, k = (*here, *parts[k]), total * old[k], k + 1
        if total != size:
            return None
        out.append(here)
    return out if k == len(old) else None
