"""Leaves of a graph: data, run-time scalars, compile-time constants, placeholders, index ramps; and the picker of one result of several."""

from __future__ import annotations

import ast
from functools import lru_cache
from typing import Any

import numpy as np

from cermet.devices import Device
from cermet.dtypes import DType
from cermet.graph.node import Call, Meta, Node, meta
from cermet.ops.define import OpDef


def _leaf_infer(*, meta: Meta) -> Meta:
    return meta


data = OpDef("data", "leaf", _leaf_infer, attrs=("meta",), doc="A value in memory, given to a program at run time.")
scalar = OpDef("scalar", "leaf", _leaf_infer, attrs=("meta",), doc="A Python number given at run time; never part of a key.")
placeholder = OpDef(
    "placeholder", "leaf", lambda *, meta, name: meta, attrs=("meta", "name"), doc="An input of a captured graph."
)
const = OpDef(
    "const",
    "leaf",
    lambda *, value, dtype, device: meta((), dtype, device),
    attrs=("value", "dtype", "device"),
    doc="A compile-time constant; `value` is the repr of a Python number.",
)


count = OpDef(
    "count",
    "leaf",
    lambda *, number, dtype, device: meta((), dtype, device),
    attrs=("number", "dtype", "device"),
    reference=lambda *, number, dtype, device: np.asarray(number, dtype.numpy),
    doc="A number that follows from sizes (see `cermet.ops.define.count_of`).",
)


def const_value(node: Node) -> Any:
    """The Python number of a `const` or `count` node."""
    if node.call.op is count:
        return node.call.attrs[0]
    return _parsed(node.call.attrs[0])


@lru_cache(maxsize=4096)
def _parsed(text: str) -> Any:
    return float(text) if text in ("nan", "inf", "-inf") else ast.literal_eval(text)


iota = OpDef(
    "iota",
    "leaf",
    lambda *, shape, dim, dtype, device: meta(shape, dtype, device),
    attrs=("shape", "dim", "dtype", "device"),
    reference=lambda *, shape, dim, dtype, device: np.broadcast_to(
        np.arange(shape[dim], dtype=dtype.numpy).reshape([-1 if k == dim else 1 for k in range(len(shape))]), shape
    ).copy(),
    doc="The index along dimension `dim`.",
)

item = OpDef("item", "leaf", lambda m, *, index: m, attrs=("index",), doc="One result of an op with several.")


result = OpDef(
    "result",
    "result",
    lambda m, *, index: m,
    attrs=("index",),
    doc="Inside the compiler: one result, in memory of its own, of a primitive with several.",
)


def results_of(node: Node) -> tuple[Node, ...]:
    """The results of a primitive with several, as nodes for the compiler."""
    out = []
    for index, m in enumerate(node.call.outs or ()):
        key = (node.call, index)
        call = result.calls.get(key) or result.calls.setdefault(key, Call(result, (index,), (node.meta,), m))
        out.append(Node(call, (node,)))
    return tuple(out)


def data_call(m: Meta) -> Call:
    """The call of a data leaf of meta ``m``, kept on it: every value that an evaluation gives asks for it."""
    call = m.leaf
    if call is None:
        call = m.leaf = data.call_for((m,), ())
    return call


def scalar_call(dtype: DType, device: Device) -> Call:
    """The call of a run-time scalar leaf."""
    m = meta((), dtype, device)
    return scalar.calls.get(((m,), ())) or scalar.call_for((m,), ())
