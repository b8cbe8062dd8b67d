"""Values of nodes: giving them, reading them, and telling which nodes somebody still holds.

Knows nodes and buffers; must not know how values are computed.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from cermet.graph.node import Node
from cermet.ops.leaf import data_call, scalar_call
from cermet.runtime.buffer import Buffer

__all__ = ["buffer_from_array", "held_mask", "set_value", "settle_clones", "stored_array", "stored_number"]

_getrefcount = sys.getrefcount


def _baseline() -> int:
    """The reference count that ``map(getrefcount, list)`` reports for an object which only that list holds."""
    items = [object()]
    return next(iter(map(_getrefcount, items)))


_BASE = _baseline()


def held_mask(nodes: Sequence[Node], counts: Sequence[int]) -> list[bool]:
    """For each node of a recording, whether anything outside the recording holds it.

    ``counts`` are the nodes' reference counts, taken while only the tape's list and other nodes' inputs were counted in.
    """
    inner: dict[Node, int] = {}
    for n in nodes:
        for i in n.inputs:
            inner[i] = inner.get(i, 0) + 1
    return [c - _BASE - inner.get(n, 0) > 0 for n, c in zip(nodes, counts, strict=True)]


def set_value(node: Node, buffer: Any) -> None:
    """Give a node its value and let go of what it was computed from. The buffer is set first: see `Tape.adopt`."""
    node.buffer = buffer
    m = node.meta
    node.call = data_call(m) if type(buffer) is Buffer else scalar_call(m.dtype, m.device)
    node.inputs = ()
    node.epoch = None


def settle_clones(clones: dict[Node, Node]) -> None:
    """Give the values of adopted nodes to the nodes they were adopted from."""
    for original, clone in clones.items():
        if clone.buffer is not None and original.buffer is None:
            set_value(original, clone.buffer)


def buffer_from_array(array: Any) -> Buffer:
    """A buffer with a contiguous copy of a NumPy array."""
    a = np.ascontiguousarray(array)
    b = Buffer(a.nbytes)
    if a.nbytes:
        b.view(a.dtype, a.shape, writeable=True)[...] = a
    return b


def stored_array(node: Node) -> Any:
    """The value of a node that has one, as a NumPy array that shares its memory (read-only)."""
    value = node.buffer
    m = node.meta
    if isinstance(value, Buffer):
        return value.view(m.dtype.numpy, m.shape)
    return np.asarray(value).astype(m.dtype.numpy)


_READERS: dict[str, Any] = {
    "float32": ctypes.c_float, "float64": ctypes.c_double, "int64": ctypes.c_int64, "int32": ctypes.c_int32, "int16": ctypes.c_int16,
    "int8": ctypes.c_int8, "uint8": ctypes.c_uint8, "bool": ctypes.c_bool,
}  # fmt: skip


def stored_number(node: Node) -> Any:
    """The value of a node of one element that has one, as a Python number."""
    value = node.buffer
    dtype = node.meta.dtype
    if type(value) is Buffer:
        reader = _READERS.get(dtype.name)
        if reader is not None:
            return reader.from_address(value.ptr).value
    # A run-time scalar still is the number that the user gave; a 16-bit float is one that ctypes does not know.
    return stored_array(node).reshape(()).astype(np.float64 if dtype.kind == "f" else dtype.numpy).item()
