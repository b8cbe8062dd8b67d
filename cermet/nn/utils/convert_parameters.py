"""Parameters as one vector, and back."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from cermet.frontend.core import TensorBase
from cermet.ops.public import PUBLIC

__all__ = ["parameters_to_vector", "vector_to_parameters"]


def parameters_to_vector(parameters: Iterable[Any]) -> Any:
    """All elements of ``parameters``, one after another, as a vector."""
    return PUBLIC[("", "cat")].fn([p.reshape(-1) for p in parameters])


def vector_to_parameters(vec: Any, parameters: Iterable[Any]) -> None:
    """Give ``parameters`` the values that stand in the vector, one after another.

    Raises:
        TypeError: where ``vec`` is no tensor. RuntimeError: where it has fewer elements than the parameters.
    """
    if not isinstance(vec, TensorBase):
        raise TypeError(f"vector_to_parameters: the vector is a {type(vec).__name__}; give a tensor")
    at = 0
    v: Any = vec
    for p in parameters:
        n = math.prod(p.shape)
        part = v[at : at + n]
        if part.shape[0] != n:
            raise RuntimeError(f"vector_to_parameters: the vector has {v.shape[0]} elements, the parameters more")
        p.data = part.reshape(p.shape)
        at += n
