"""Constructors for kinds of ops: they supply shape rules, samples and public functions, so that most ops are one statement."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from cermet import dtypes as dt
from cermet.dtypes import DType
from cermet.graph.node import Meta, broadcast_shapes, meta
from cermet.ops.define import Arg, Failing, OpDef, Sample, ShapeError
from cermet.ops.public import public
from cermet.ops.support import check_floating, floating, pair, same_dtype, unbroadcast

__all__ = ["binary", "comparison", "elementwise", "unary"]

FLOATS = dt.FLOATING
INTS = dt.INTEGRAL
ALL = dt.ALL
NUMERIC = (*dt.INTEGRAL, *dt.FLOATING)


def _shapes_unary(domain: Any) -> tuple[Sample, ...]:
    return tuple(Sample((Arg(shape, domain),)) for shape in ((), (1,), (7,), (3, 4), (2, 0), (2, 3, 5)))


def broadcast_meta(name: str, *metas: Meta) -> Meta:
    """Meta of a broadcast result of the first input's dtype."""
    try:
        shape = broadcast_shapes(*[m.shape for m in metas])
    except ValueError as e:
        raise ShapeError(f"{name}: {e}. Reshape or expand one of them.") from None
    return meta(shape, metas[0].dtype, metas[0].device)


def unary(
    name: str,
    *,
    lower: Callable[..., Any],
    reference: Callable[..., Any],
    vjp: Callable[..., Any] | None = None,
    saves: Sequence[int] = (),
    result: str = "same",
    domain: Any = (-3.0, 3.0),
    dtypes: Sequence[DType] | None = None,
    onnx: str | None = None,
    ulp: float = 2.0,
    doc: str = "",
    namespaces: tuple[str, ...] = ("",),
    aliases: tuple[str, ...] = (),
    inplace: bool = True,
    method: bool = True,
    gradient: bool = True,
    expose: bool = True,
) -> OpDef:
    """An elementwise function of one input, with its public function unless ``expose`` is False.

    Args:
        result: ``"floating"`` (integers are first cast to the default dtype), ``"same"`` (keeps the dtype), ``"bool"``.
        vjp: ``vjp(c, g)``, the gradient of the input.
        domain: where sample values lie.
        gradient: whether samples are points of differentiability.
    """

    def infer(m: Meta) -> Meta:
        if result == "floating":
            check_floating(m, name)
        elif dtypes is not None and m.dtype not in dtypes:
            raise TypeError(f"{name}: {m.dtype} is not supported; expected one of {', '.join(d.name for d in dtypes)}")
        return m.with_dtype(dt.bool) if result == "bool" else m

    allowed = tuple(dtypes) if dtypes is not None else (FLOATS if result == "floating" else ALL)
    samples = tuple(Sample(s.args, s.attrs, gradient) for s in _shapes_unary(domain))
    op = OpDef(
        name, "elementwise", infer, vjp=vjp, saves=saves, lower=lower, reference=reference, dtypes=allowed, samples=samples,
        onnx=onnx, ulp=ulp, doc=doc,
    )  # fmt: skip

    if not expose:
        return op
    if result == "floating":

        def function(input: Any) -> Any:
            return op(floating(input))
    else:

        def function(input: Any) -> Any:
            return op(input)

    function.__name__ = function.__qualname__ = name
    function.__doc__ = doc
    public(namespaces=namespaces, method=method, inplace=inplace and result != "bool", aliases=aliases)(function)
    return op


def elementwise(
    name: str,
    arity: int,
    *,
    lower: Callable[..., Any],
    reference: Callable[..., Any],
    infer: Callable[..., Meta] | None = None,
    vjp: Callable[..., Any] | None = None,
    saves: Sequence[int] = (),
    dtypes: Sequence[DType] = ALL,
    domains: Sequence[Any] | None = None,
    commutative: bool = False,
    identity: Any = None,
    onnx: str | None = None,
    ulp: float = 2.0,
    doc: str = "",
    gradient: bool = True,
    attrs: Sequence[str] = (),
    attr_values: dict[str, Any] | None = None,
) -> OpDef:
    """An elementwise op of several broadcast inputs, without a public function. ``vjp`` returns gradients in the broadcast
    shape; they are summed down to the inputs' shapes here."""

    def default_infer(*metas: Meta, **_: Any) -> Meta:
        same_dtype(name, *metas)
        if metas[0].dtype not in dtypes:
            raise TypeError(f"{name}: {metas[0].dtype} is not supported; expected one of {', '.join(d.name for d in dtypes)}")
        return broadcast_meta(name, *metas)

    def summed_vjp(c: Any, g: Any) -> Any:
        assert vjp is not None
        grads = vjp(c, g)
        return tuple([None if x is None or not c.needs[i] else unbroadcast(x, c.metas[i]) for i, x in enumerate(grads)])

    where = domains or [(-3.0, 3.0)] * arity
    shapes = [((3, 4),) * arity, ((),) * arity, ((2, 0),) * arity]
    if arity == 2:
        shapes += [((3, 4), (4,)), ((3, 1), (1, 4)), ((), (2, 3)), ((2, 1, 3), (5, 1))]
    elif arity == 3:
        shapes += [((3, 4), (4,), ()), ((3, 1), (1, 4), (3, 4))]
    samples = tuple(
        Sample(tuple(Arg(s, d) for s, d in zip(each, where, strict=True)), dict(attr_values or {}), gradient) for each in shapes
    )
    failing = (Failing(tuple(Arg((k + 2, 3), where[k]) for k in range(arity)), dict(attr_values or {}), ValueError, "broadcast"),)
    return OpDef(
        name, "elementwise", infer or default_infer, vjp=summed_vjp if vjp is not None else None, saves=saves, lower=lower,
        reference=reference, dtypes=dtypes, samples=samples, failing=failing, commutative=commutative, identity=identity,
        onnx=onnx, ulp=ulp, doc=doc, attrs=attrs,
    )  # fmt: skip


def binary(
    name: str,
    *,
    float_result: bool = False,
    expose: bool = True,
    namespaces: tuple[str, ...] = ("",),
    aliases: tuple[str, ...] = (),
    inplace: bool = True,
    **record: Any,
) -> OpDef:
    """An elementwise op of two inputs that promote to a common dtype (to a floating one with ``float_result``), with its public
    function ``name(input, other)`` unless ``expose`` is False. Other arguments as for `elementwise`."""
    op = elementwise(name, 2, **record)
    if expose:

        def function(input: Any, other: Any) -> Any:
            a, b = pair(input, other, float_result)
            return op(a, b)

        function.__name__ = function.__qualname__ = name
        function.__doc__ = record.get("doc", "")
        public(namespaces=namespaces, inplace=inplace, aliases=aliases)(function)
    return op


def comparison(name: str, *, lower: Callable[..., Any], reference: Callable[..., Any], onnx: str | None = None, doc: str = "",
               aliases: tuple[str, ...] = ()) -> OpDef:  # fmt: skip
    """An elementwise comparison: two promoted inputs, bool result, public function with in-place form."""

    def infer(a: Meta, b: Meta) -> Meta:
        same_dtype(name, a, b)
        return broadcast_meta(name, a, b).with_dtype(dt.bool)

    op = elementwise(name, 2, lower=lower, reference=reference, infer=infer, gradient=False, onnx=onnx, doc=doc, ulp=0)

    def function(input: Any, other: Any) -> Any:
        a, b = pair(input, other)
        return op(a, b)

    function.__name__ = function.__qualname__ = name
    function.__doc__ = doc
    public(inplace=True, aliases=aliases)(function)
    return op
