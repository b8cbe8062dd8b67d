"""The reference evaluator: runs a graph node by node with each op's NumPy reference. It is the definition the compiler is held to.

Knows nodes and op records; must not know schedules or machine code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from cermet.graph.node import Call, Node
from cermet.ops.leaf import const_value

__all__ = ["apply_reference", "run_reference"]


def apply_reference(call: Call, arrays: Sequence[Any]) -> Any:
    """The results of one call on NumPy arrays, in the dtypes of the call's metas (16-bit floats computed in float32)."""
    op = call.op
    wide = [a.astype(np.float32) if m.dtype.compute is not m.dtype else a for a, m in zip(arrays, call.inputs, strict=True)]
    with np.errstate(all="ignore"):
        if op.reference is None:
            return _by_decomposition(call, arrays)
        out = op.reference(*wide, **op.named(call))
        if call.outs is not None:
            return tuple(np.asarray(o).astype(m.dtype.numpy).reshape(m.shape) for o, m in zip(out, call.outs, strict=True))
        return np.asarray(out).astype(call.meta.dtype.numpy).reshape(call.meta.shape)


def _by_decomposition(call: Call, arrays: Sequence[Any]) -> Any:
    from cermet.ops.leaf import data_call

    if call.op.decompose is None:
        raise NotImplementedError(f"op {call.op.name} has neither a reference nor a decomposition")
    leaves = [Node(data_call(m), (), a) for a, m in zip(arrays, call.inputs, strict=True)]
    out = call.op.decompose(*leaves, **call.op.named(call))
    outs = list(out) if isinstance(out, tuple) else [out]
    values = run_reference(_order(outs), lambda n: n.buffer)
    result = [values[n] for n in outs]
    return tuple(result) if call.outs is not None else result[0]


def _order(outs: list[Node]) -> list[Node]:
    from cermet.graph.node import toposort

    return toposort(outs)


def run_reference(order: Sequence[Node], value_of: Callable[[Node], Any]) -> dict[Node, Any]:
    """Values of all nodes of ``order`` (inputs before consumers). ``value_of`` gives the array of a node whose buffer is set.

    An op that raises (an index out of range) stops the run with that error; its node is its ``node`` attribute.
    """
    values: dict[Node, Any] = {}
    for node in order:
        if node.buffer is not None:
            values[node] = value_of(node)
            continue
        name = node.call.op.name
        if name == "const":
            values[node] = np.asarray(const_value(node), dtype=node.meta.dtype.numpy)
        elif name == "item":
            values[node] = values[node.inputs[0]][node.call.attrs[0]]
        else:
            try:
                values[node] = apply_reference(node.call, [values[i] if i in values else value_of(i) for i in node.inputs])
            except Exception as e:
                e.node = node  # type: ignore[attr-defined]
                raise
    return values
