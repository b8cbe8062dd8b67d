"""The one IR: immutable nodes of a dataflow graph.

A `Node` is one value: the result of an operator on other nodes, or a leaf (data in a buffer, a run-time scalar, a compile-time
constant, a placeholder). It is what deferred recording, capture, import and the compiler's passes all speak. This room knows
dtypes and devices; it must not know what any operator does, nor tensors, nor who evaluates it.

Interning. Shape, dtype and device of a value are one shared `Meta`; an operator with its attributes and the metas of its inputs
is one shared `Call`, which carries the result of shape inference. So recording looks one tuple up and compares by identity.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from cermet.devices import Device, cpu

if TYPE_CHECKING:
    from cermet.dtypes import DType

__all__ = ["Call", "Meta", "Node", "OPERATORS", "meta"]


class Meta:
    """Shape, dtype and device of one value; interned, so equal metas are the same object."""

    __slots__ = ("device", "dtype", "leaf", "nbytes", "ndim", "numel", "shape")

    def __init__(self, shape: tuple[int, ...], dtype: DType, device: Device) -> None:
        self.shape = shape
        self.dtype = dtype
        self.device = device
        self.ndim = len(shape)
        self.leaf: Any = None  # the call of data leaves of this meta (see `cermet.ops.leaf.data_call`)
        n = 1
        for size in shape:
            n *= size
        self.numel = n
        self.nbytes: int = n * dtype.itemsize

    def with_shape(self, shape: tuple[int, ...]) -> Meta:
        return meta(shape, self.dtype, self.device)

    def with_dtype(self, dtype: DType) -> Meta:
        return meta(self.shape, dtype, self.device)

    def __repr__(self) -> str:
        return f"{self.dtype.name}[{', '.join(map(str, self.shape))}]"

    def __reduce__(self) -> Any:
        return (meta, (self.shape, self.dtype, self.device))


_METAS: dict[tuple[tuple[int, ...], DType, Device], Meta] = {}
_METAS_LIMIT = 100_000


def meta(shape: tuple[int, ...], dtype: DType, device: Device = cpu) -> Meta:
    """The interned `Meta`. ``shape``: plain ints, none negative, in a tuple."""
    key = (shape, dtype, device)
    found = _METAS.get(key)
    if found is None:
        # Bounded: dropping the table only costs sharing (keys compare metas by identity, so programs are looked up afresh).
        if len(_METAS) >= _METAS_LIMIT:
            _METAS.clear()
        found = _METAS.setdefault(key, Meta(shape, dtype, device))
    return found


_ids = itertools.count(1)


class Call:
    """An operator applied to inputs of given metas with given attributes: what two nodes of one kind share.

    Attributes:
        op: the `OpDef`.
        attrs: values of the op's attributes, in the order of ``op.attrs``; hashable.
        inputs: metas of the inputs.
        meta: meta of the result; of the first result for an op with several.
        outs: metas of all results where the op has several, else None.
        id: unique number, used in the keys of programs.
        saves: which values its gradient reads: indices of inputs, -1 for the result.
        differentiable: whether any floating input can receive a gradient through this call.
    """

    __slots__ = ("attrs", "differentiable", "id", "inputs", "meta", "op", "outline", "outs", "saves")

    def __init__(self, op: Any, attrs: tuple[Any, ...], inputs: tuple[Meta, ...], result: Meta | tuple[Meta, ...]) -> None:
        self.op = op
        self.attrs = attrs
        self.inputs = inputs
        self.outs = result if type(result) is tuple else None
        self.meta: Meta = result[0] if isinstance(result, tuple) else result
        self.id = next(_ids)
        self.outline: Any = None  # what it is without its integers, and these (see `cermet.lazy.template`)
        # A derived gradient runs the decomposition again, so it reads every input.
        if op.vjp == "auto":
            self.saves: tuple[int, ...] = tuple(range(len(inputs)))
        else:
            self.saves = op.saves(len(inputs), attrs) if callable(op.saves) else op.saves
        outs = self.outs or (self.meta,)
        self.differentiable = bool(op.vjp is not None and any(o.dtype.kind == "f" for o in outs))

    def attr(self, name: str) -> Any:
        return self.attrs[self.op.attrs.index(name)]

    def __repr__(self) -> str:
        named = ", ".join(f"{k}={v!r}" for k, v in zip(self.op.attrs, self.attrs, strict=True))
        return f"{self.op.name}({', '.join(map(repr, self.inputs))}{'; ' + named if named else ''}) -> {self.outs or self.meta}"


class Node:
    """One value of a graph.

    Attributes:
        call: what made it. Leaves have calls of the leaf ops (see `cermet.ops.leaf`).
        inputs: the nodes it was made of; emptied once the value is there, so that a value never keeps its history alive.
        meta: shape, dtype, device.
        buffer: the value where it is known: a `Buffer` (contiguous, row-major), a Python number for a run-time scalar; else None.
        epoch, pos: which recording it belongs to and where in it it stands (see `cermet.lazy.record`).
        where: ``(code, instruction)`` of the user's line that recorded it, or None.
    """

    __slots__ = ("buffer", "call", "epoch", "inputs", "meta", "pos", "where")

    def __init__(self, call: Call, inputs: tuple[Node, ...], buffer: Any = None) -> None:
        self.call = call
        self.inputs = inputs
        self.meta = call.meta
        self.buffer = buffer
        self.epoch: Any = None
        self.pos = 0
        self.where: Any = None

    @property
    def op(self) -> Any:
        return self.call.op

    @property
    def attrs(self) -> tuple[Any, ...]:
        return self.call.attrs

    @property
    def shape(self) -> tuple[int, ...]:
        return self.meta.shape

    @property
    def dtype(self) -> DType:
        return self.meta.dtype

    @property
    def ndim(self) -> int:
        return self.meta.ndim

    def __repr__(self) -> str:
        return f"<{self.call.op.name} {self.meta}>"

    # Compiler passes and gradient rules write node arithmetic with operators; ops/ fills the table (graph/ knows no op).
    def __add__(self, other: Any) -> Node:
        return OPERATORS["add"](self, other)

    def __radd__(self, other: Any) -> Node:
        return OPERATORS["add"](other, self)

    def __sub__(self, other: Any) -> Node:
        return OPERATORS["sub"](self, other)

    def __rsub__(self, other: Any) -> Node:
        return OPERATORS["sub"](other, self)

    def __mul__(self, other: Any) -> Node:
        return OPERATORS["mul"](self, other)

    def __rmul__(self, other: Any) -> Node:
        return OPERATORS["mul"](other, self)

    def __truediv__(self, other: Any) -> Node:
        return OPERATORS["div"](self, other)

    def __rtruediv__(self, other: Any) -> Node:
        return OPERATORS["div"](other, self)

    def __neg__(self) -> Node:
        return OPERATORS["neg"](self)


OPERATORS: dict[str, Callable[..., Any]] = {}


def normalize_shape(shape: Any) -> tuple[int, ...]:
    """A tuple of plain ints from any sequence of integers.

    Raises:
        TypeError: for entries that are not integers.
        ValueError: for negative sizes.
    """
    out = []
    for size in shape:
        try:
            n = size.__index__()
        except AttributeError:
            raise TypeError(f"a shape holds integers, got {size!r} of type {type(size).__name__} in {tuple(shape)!r}") from None
        if n < 0:
            raise ValueError(f"a shape holds sizes of 0 or more, got {n} in {tuple(shape)!r}")
        out.append(n)
    return tuple(out)


def toposort(outputs: list[Node] | tuple[Node, ...]) -> list[Node]:
    """All nodes that ``outputs`` are computed from (themselves included), inputs before consumers; iterative.

    Nodes whose value is known are leaves: their inputs are not entered.
    """
    order: list[Node] = []
    done: set[int] = set()
    stack: list[Any] = [(n, False) for n in reversed(outputs)]
    while stack:
        node, expanded = stack.pop()
        if id(node) in done:
            continue
        if expanded or not node.inputs or node.buffer is not None:
            done.add(id(node))
            order.append(node)
            continue
        stack.append((node, True))
        for i in reversed(node.inputs):
            if id(i) not in done:
                stack.append((i, False))
    return order


def broadcast_shapes(*shapes: tuple[int, ...]) -> tuple[int, ...]:
    """The common shape by NumPy's rule.

    Raises:
        ValueError: when two sizes differ and neither is 1; the caller adds the op's name.
    """
    if len(shapes) == 2 and shapes[0] == shapes[1]:
        return shapes[0]
    ndim = max(map(len, shapes), default=0)
    out = [1] * ndim
    for shape in shapes:
        for k, size in enumerate(shape, start=ndim - len(shape)):
            if size != 1:
                if out[k] not in (1, size):
                    named = " and ".join(str(list(s)) for s in shapes)
                    raise ValueError(f"shapes {named} do not broadcast: size {out[k]} against {size} at dimension {k}")
                out[k] = size
    return tuple(out)
