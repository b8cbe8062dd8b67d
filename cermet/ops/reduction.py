"""Reductions: sums, products, extrema and truth over dimensions; and what is composed of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from cermet import dtypes as dt
from cermet.graph.node import Meta
from cermet.ops.define import Arg, OpDef, Sample
from cermet.ops.support import zeros_like_value

NUMERIC = (*dt.INTEGRAL, *dt.FLOATING)


def reduced_shape(m: Meta, dims: tuple[int, ...], keepdim: bool) -> tuple[int, ...]:
    """The shape without ``dims`` (kept with size 1 with ``keepdim``)."""
    if keepdim:
        return tuple([1 if k in dims else s for k, s in enumerate(m.shape)])
    return tuple([s for k, s in enumerate(m.shape) if k not in dims])


def spread(x: Any, m: Meta, dims: tuple[int, ...], keepdim: bool) -> Any:
    """A reduced value broadcast back over the dims it was reduced over."""
    from cermet.ops.movement import expand, reshape

    if not keepdim:
        x = reshape(x, shape=reduced_shape(m, dims, True))
    return expand(x, shape=m.shape)


def _infer(name: str, empty_ok: bool) -> Callable[..., Meta]:
    def infer(m: Meta, *, dims: tuple[int, ...], keepdim: bool) -> Meta:
        if not empty_ok and any(m.shape[d] == 0 for d in dims):
            raise IndexError(f"{name}: cannot reduce over a dimension of size 0 in shape {list(m.shape)}: there is no identity")
        return m.with_shape(reduced_shape(m, dims, keepdim))

    return infer


_SAMPLES = (
    Sample((Arg((3, 4), "distinct"),), {"dims": (1,), "keepdim": False}),
    Sample((Arg((3, 4), "distinct"),), {"dims": (0,), "keepdim": True}),
    Sample((Arg((2, 3, 4), "distinct"),), {"dims": (0, 2), "keepdim": False}),
    Sample((Arg((2, 3, 4), "distinct"),), {"dims": (0, 1, 2), "keepdim": False}),
    Sample((Arg((), "distinct"),), {"dims": (), "keepdim": False}),
    Sample((Arg((5, 1), "distinct"),), {"dims": (1,), "keepdim": True}),
    Sample((Arg((0, 3), "distinct"),), {"dims": (1,), "keepdim": False}),
)
_EMPTY = Sample((Arg((3, 0)),), {"dims": (1,), "keepdim": False})


def _reduce(name: str, ufunc: Any, *, identity: Any, empty_ok: bool = True, ulp: float = 4.0, **record: Any) -> OpDef:
    def reference(x: Any, *, dims: tuple[int, ...], keepdim: bool) -> Any:
        return ufunc(x, axis=dims, keepdims=keepdim) if dims or x.ndim == 0 else np.array(x)

    samples = (*_SAMPLES, _EMPTY) if empty_ok else _SAMPLES
    return OpDef(
        name, "reduce", _infer(name, empty_ok), attrs=("dims", "keepdim"), reference=reference, identity=identity, ulp=ulp,
        samples=samples, **{"dtypes": NUMERIC, **record},
    )  # fmt: skip


reduce_sum = _reduce(
    "reduce_sum",
    lambda x, axis, keepdims: np.sum(x, axis=axis, keepdims=keepdims, dtype=x.dtype),
    identity=0,
    vjp=lambda c, g: spread(g, c.metas[0], c.dims, c.keepdim),
    onnx="ReduceSum",
    doc="Sum over dims, in the input's dtype (float32 inside for the 16-bit floats).",
)


def _prod_vjp(c: Any, g: Any) -> Any:
    """Gradient of a product that stays right where elements are zero: the product of all the others, from both sides."""
    from cermet.ops.scan import exclusive_products

    return spread(g, c.metas[0], c.dims, c.keepdim) * exclusive_products(c[0], c.dims)


reduce_prod = _reduce(
    "reduce_prod",
    lambda x, axis, keepdims: np.prod(x, axis=axis, keepdims=keepdims, dtype=x.dtype),
    identity=1,
    vjp=_prod_vjp,
    saves=(0,),
    onnx="ReduceProd",
    doc="Product over dims, in the input's dtype.",
)


def _extremum_vjp(c: Any, g: Any) -> Any:
    """Evenly among the elements that attain it, as PyTorch's amax does."""
    from cermet.ops.elementwise import eq, where
    from cermet.ops.support import cast

    m = c.metas[0]
    hit = eq(c[0], spread(c.out, m, c.dims, c.keepdim))
    count = reduce_sum(cast(hit, dtype=m.dtype), dims=c.dims, keepdim=c.keepdim)
    return where(hit, spread(g / count, m, c.dims, c.keepdim), zeros_like_value(g, ()))


reduce_max = _reduce(
    "reduce_max", np.max, identity="min", empty_ok=False, ulp=0, vjp=_extremum_vjp, saves=(0, -1), onnx="ReduceMax",
    dtypes=dt.ALL, doc="Maximum over dims; NaN where there is one.",
)  # fmt: skip
reduce_min = _reduce(
    "reduce_min", np.min, identity="max", empty_ok=False, ulp=0, vjp=_extremum_vjp, saves=(0, -1), onnx="ReduceMin",
    dtypes=dt.ALL, doc="Minimum over dims; NaN where there is one.",
)  # fmt: skip
reduce_any = _reduce("reduce_any", np.any, identity=False, ulp=0, dtypes=(dt.bool,), doc="Whether any element is true.")
reduce_all = _reduce("reduce_all", np.all, identity=True, ulp=0, dtypes=(dt.bool,), doc="Whether all elements are true.")
