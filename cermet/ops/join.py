"""Parts of one value that are written where they belong: the compiler's word for a sum of disjoint slices' gradients."""

from __future__ import annotations

import numpy as np

from cermet.graph.node import Meta
from cermet.ops.define import OpDef, ShapeError
from cermet.ops.support import same_dtype

__all__ = ["join"]


def _infer(*parts: Meta, dim: int) -> Meta:
    same_dtype("join", *parts)
    first = parts[0].shape
    if any(p.shape[:dim] != first[:dim] or p.shape[dim + 1 :] != first[dim + 1 :] for p in parts):
        raise ShapeError(f"join: parts of shapes {[list(p.shape) for p in parts]} do not fit along dimension {dim}")
    return parts[0].with_shape((*first[:dim], sum(p.shape[dim] for p in parts), *first[dim + 1 :]))


join: OpDef = OpDef(
    "join",
    "join",
    _infer,
    attrs=("dim",),
    reference=lambda *parts, dim: np.concatenate(parts, dim),
    doc="Inside the compiler: the parts next to each other along `dim`, each written there by the kernel that makes it "
    "(see `cermet.compiler.schedule.joins`).",
)
