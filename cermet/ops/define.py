"""The record of an operator, and the constructors for its kinds.

One `OpDef` holds all there is to know of one operator; everything else (Tensor method, function, in-place form, verifier's rule, fusion
class, documentation, tests) is derived from it. Rules are written against *values*: the same gradient or decomposition runs on tensors
(recording) and on nodes (inside the compiler), because calling an `OpDef` dispatches on what it is given.

This room knows nodes and dtypes. It must not know tensors, schedules or machine code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from cermet.dtypes import DType
from cermet.graph.node import Call, Meta, Node
from cermet.graph.sizes import Size, presently

__all__ = [
    "OUT",
    "REGISTRY",
    "Arg",
    "Failing",
    "OpDef",
    "Sample",
    "ShapeError",
    "VjpContext",
    "call_op",
    "count_of",
    "hooks",
    "whole_of",
]

OUT = -1
"""In ``saves``: the op's own (first) result; ``OUT - 1`` the second, and so on."""


class ShapeError(RuntimeError, ValueError):
    """Shapes that do not fit each other: a RuntimeError as in PyTorch, and a ValueError as in NumPy."""


class VjpContext:
    """What a gradient rule sees: the saved values, attributes and metas of the forward call.

    ``c[i]`` is input i, ``c.out`` the result (each only if the op declared it in ``saves``); ``c.metas[i]`` shape and dtype of
    input i and ``c.meta`` of the result (always there); ``c.name`` the attribute of that name; ``c.needs[i]`` whether
    input i wants a gradient.
    """

    __slots__ = ("_call", "_saved", "needs")

    def __init__(self, call: Call, saved: dict[int, Any], needs: tuple[bool, ...]) -> None:
        self._call = call
        self._saved = saved
        self.needs = needs

    def __getitem__(self, i: int) -> Any:
        try:
            return self._saved[i]
        except KeyError:
            raise RuntimeError(f"the gradient of {self._call.op.name} reads value {i}, which its record does not save") from None

    @property
    def out(self) -> Any:
        return self[OUT]

    @property
    def meta(self) -> Meta:
        return self._call.meta

    @property
    def metas(self) -> tuple[Meta, ...]:
        return self._call.inputs

    @property
    def call(self) -> Call:
        return self._call

    def __getattr__(self, name: str) -> Any:
        try:
            return self._call.attr(name)
        except ValueError:
            raise AttributeError(f"op {self._call.op.name} has no attribute {name!r}") from None


@dataclass(frozen=True)
class Arg:
    """A sample input: shape and where its values lie.

    domain: ``(lo, hi)`` for reals or integers drawn from it, without hi; ``"bool"``; ``"distinct"`` (all values different, well apart);
    ``("index", n)`` integers in [-n, n).
    dtype: fixed dtype, or None for the dtype under test.
    constant: whether the op, by design, gives this input no gradient.
    """

    shape: tuple[int, ...]
    domain: Any = (-3.0, 3.0)
    dtype: DType | None = None
    constant: bool = False


@dataclass(frozen=True)
class Sample:
    """Inputs and attributes with which an op must work and agree with its reference.

    gradient: False where the point is not differentiable (ties, kinks) or the op is too discontinuous to difference.
    """

    args: tuple[Arg, ...]
    attrs: dict[str, Any] = field(default_factory=dict)
    gradient: bool = True


@dataclass(frozen=True)
class Failing:
    """Inputs that must be refused, with the error's type and a pattern that its text must match."""

    args: tuple[Arg, ...]
    attrs: dict[str, Any] = field(default_factory=dict)
    error: type[Exception] = ValueError
    match: str = ""


REGISTRY: dict[str, OpDef] = {}


class OpDef:
    """The record of one operator.

    Args:
        name: unique name; also that of the node in dumps.
        kind: fusion class, one of ``leaf elementwise movement reduce scan gather scatter contraction convolution attention sort random composite``.
        attrs: names of the attributes, in order. Values must be hashable.
        infer: ``infer(*metas, **attrs) -> Meta | tuple[Meta, ...]``: shape and dtype rule; raises TypeError/ValueError/IndexError
            with a text that starts with the op's name and says what was passed, what was expected and how to mend it.
        vjp: ``vjp(c, *gs) -> gradient per input`` (a value, or None; a single value for one input) with ``c`` a `VjpContext`, ``gs``
            the gradients of the results (None for a result without one, only where the op has several). ``None``: not
            differentiable. ``"auto"`` (composites): derived from the decomposition.
        saves: which values the vjp reads: indices of inputs, and `OUT`; or ``saves(number of inputs, attrs)`` where that depends on the call.
        lower: elementwise only: ``lower(b, *exprs, **attrs) -> Expr``; b is the neutral builder (`cermet.compiler.loops.build`).
        decompose: composites only: ``decompose(*values, **attrs) -> value | tuple`` written with ops.
        reference: ``reference(*arrays, **attrs) -> array | tuple`` in NumPy; given float64 arrays it is the definition.
        write: movement only: ``write(base, update, **attrs)``: base with the viewed part replaced; None where a view may not be written.
        dtypes: dtypes the op takes (of its first input), for checks, tests and documentation.
        samples, failing: test inputs.
        scalar: elementwise with ``lower`` on one Python level… True where all inputs broadcast together.
        onnx: name of the ONNX operator it maps to, where there is one.
        ulp: how far the result may be from the float64 reference, in units in the last place of the result's dtype.
        doc: one paragraph for the documentation.
    """

    __slots__ = (
        "attrs", "calls", "commutative", "decompose", "doc", "dtypes", "failing", "identity", "infer", "kind", "lower", "name",
        "onnx", "reference", "samples", "saves", "ulp", "vjp", "write",
    )  # fmt: skip

    def __init__(
        self,
        name: str,
        kind: str,
        infer: Callable[..., Any],
        *,
        attrs: Sequence[str] = (),
        vjp: Any = None,
        saves: Sequence[int] | Callable[[int, tuple[Any, ...]], tuple[int, ...]] = (),
        lower: Callable[..., Any] | None = None,
        decompose: Callable[..., Any] | None = None,
        reference: Callable[..., Any] | None = None,
        write: Callable[..., Any] | None = None,
        dtypes: Sequence[DType] = (),
        samples: Sequence[Sample] = (),
        failing: Sequence[Failing] = (),
        commutative: bool = False,
        identity: Any = None,
        onnx: str | None = None,
        ulp: float = 2.0,
        doc: str = "",
    ) -> None:
        if name in REGISTRY:
            raise ValueError(f"op {name!r} is defined twice")
        self.name = name
        self.kind = kind
        self.infer = infer
        self.attrs = tuple(attrs)
        self.vjp = vjp
        self.saves: Any = saves if callable(saves) else tuple(saves)
        self.lower = lower
        self.decompose = decompose
        self.reference = reference
        self.write = write
        self.dtypes = tuple(dtypes)
        self.samples = tuple(samples)
        self.failing = tuple(failing)
        self.commutative = commutative
        self.identity = identity
        self.onnx = onnx
        self.ulp = ulp
        self.doc = doc
        self.calls: dict[Any, Call] = {}
        REGISTRY[name] = self

    def __call__(self, *inputs: Any, **attrs: Any) -> Any:
        """Apply to tensors (records) or nodes (builds the graph); Python numbers join as scalars of the other inputs' dtype."""
        if attrs or self.attrs:
            try:
                values = tuple([attrs.pop(a) for a in self.attrs])
            except KeyError as missing:
                raise TypeError(f"{self.name}: attribute {missing} is missing; it takes {self.attrs}") from None
            if attrs:
                raise TypeError(f"{self.name}: unknown attributes {sorted(attrs)}; it takes {self.attrs}")
        else:
            values = ()
        return call_op(self, inputs, values)

    def call_for(self, attrs: tuple[Any, ...], metas: tuple[Meta, ...]) -> Call:
        """The interned `Call`; runs shape inference the first time."""
        key = (attrs, metas)
        found = self.calls.get(key)
        if found is None:
            if any(hasattr(a, "pinned") for a in attrs):  # numbers of a capture: what a graph is made of are plain ones
                return self.call_for(tuple([a.pinned() if hasattr(a, "pinned") else a for a in attrs]), metas)
            result = self.infer(*metas, **dict(zip(self.attrs, attrs, strict=True)))
            if len(self.calls) > 20_000:  # bounded; a dropped call only costs a fresh id, so a compiled program more
                self.calls.clear()
            found = self.calls.setdefault(key, Call(self, attrs, metas, result))
        return found

    def named(self, call: Call) -> dict[str, Any]:
        """The attributes of a call as a dict."""
        return dict(zip(self.attrs, call.attrs, strict=True))

    def __repr__(self) -> str:
        return f"<op {self.name}>"

    def __reduce__(self) -> Any:
        return (REGISTRY.__getitem__, (self.name,))


class _Hooks:
    """Where upper rooms plug in: how to apply an op to tensors, how to make a tensor of a scalar or array, how to make a view; ``looked``
    says that what comes next depends on more than the metas of the tensors given."""

    view: Callable[[OpDef, Any, tuple[Any, ...]], Any]
    reshape: Callable[[Any, tuple[int, ...], bool], Any]
    apply_tensor: Callable[[OpDef, tuple[Any, ...], tuple[Any, ...]], Any]
    to_tensor: Callable[..., Any]
    finish: Callable[..., Any]
    looked: Callable[[], None]


hooks = _Hooks()


def call_op(op: OpDef, inputs: tuple[Any, ...], attrs: tuple[Any, ...]) -> Any:
    """Apply an op: to nodes inside the compiler, else to tensors."""
    for x in inputs:
        if type(x) is Node:
            return _apply_nodes(op, inputs, attrs)
    return hooks.apply_tensor(op, inputs, attrs)


def _apply_nodes(op: OpDef, inputs: tuple[Any, ...], attrs: tuple[Any, ...]) -> Any:
    """Build a node (a tuple of nodes for an op with several results). Python numbers become compile-time constants."""
    like = next(x for x in inputs if type(x) is Node)
    nodes = tuple([x if type(x) is Node else constant(x, like.meta.dtype, like) for x in inputs])
    call = op.call_for(attrs, tuple([n.meta for n in nodes]))
    node = Node(call, nodes)
    if call.outs is None:
        return node
    return tuple([getitem(node, i) for i in range(len(call.outs))])


class Count(float):
    """A number that follows from sizes, such as how many values a mean is of; made by `count_of`.

    In a program it is an argument of kernels, not a constant in their code: those of one batch size serve any other.
    """

    __slots__ = ("size",)
    size: Any


class Whole(int):
    """A `Count` that is an integer; made by `whole_of`."""

    size: Any


def count_of(size: Any) -> Count:
    """A size as a floating number."""
    out = Count(presently(size))
    out.size = size
    return out


def whole_of(size: Any) -> Whole:
    """A size as an integer that values are compared with, or made of."""
    out = Whole(presently(size))
    out.size = size
    return out


def constant(value: Any, dtype: DType, like: Node) -> Node:
    """A 0-dimensional compile-time constant on the device of ``like``; its value is part of a program's key."""
    from cermet.ops.leaf import const, count

    kind = type(value)
    if kind in (Count, Whole, Size) and dtype.kind != "b":
        size = value if kind is Size else value.size
        return Node(count.call_for((size, dtype, like.meta.device), ()), ())
    value = bool(value) if dtype.kind == "b" else int(value) if dtype.kind in "iu" else float(value)
    # repr keeps -0.0 apart from 0.0 and lets NaN equal itself in keys.
    return Node(const.call_for((repr(value), dtype, like.meta.device), ()), ())


def getitem(node: Node, index: int) -> Node:
    """Result ``index`` of a node with several results."""
    from cermet.ops.leaf import item

    assert node.call.outs is not None
    call = item.calls.get((node.call, index))
    if call is None:
        call = item.calls.setdefault((node.call, index), Call(item, (index,), (node.meta,), node.call.outs[index]))
    return Node(call, (node,))
