"""Tensor methods that change a tensor in place beside the in-place forms of functions: filling, copying, random filling, new
shapes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from cermet.frontend.core import TensorBase, check_writable, node_of
from cermet.ops import random
from cermet.ops.define import hooks
from cermet.ops.public import PUBLIC
from cermet.ops.support import full_value, is_number, to_dtype

__all__ = ["METHODS"]


def fill_(self: Any, value: Any) -> Any:
    """Make every element ``value``, a number or a 0-dimensional tensor."""
    m = node_of(self).meta
    if not is_number(value):
        if len(value.shape):
            raise RuntimeError(f"fill_: the value must be a number or 0-dimensional, got shape {list(value.shape)}")
        return self._write(to_dtype(value, m.dtype))
    check_writable(self)
    return self._write(full_value(self, value, m.shape))


def zero_(self: Any) -> Any:
    """Make every element 0."""
    return fill_(self, 0)


def copy_(self: Any, src: Any, non_blocking: bool = False) -> Any:
    """Take the value of ``src``, broadcast and cast."""
    source = src if isinstance(src, TensorBase) else hooks.to_tensor(src, dtype=None, like=self)
    return self._write(to_dtype(source, node_of(self).meta.dtype))


def set_data(self: Any, new: Any) -> Any:
    """Take over another tensor's memory, shape and dtype."""
    self._node, self._fn, self._alias = node_of(new), new._fn, new._alias
    return self


def _random(fn: Any, name: str) -> Callable[..., Any]:
    def fill(self: Any, *args: Any, **kwargs: Any) -> Any:
        check_writable(self)
        return self._write(fn(self.detach(), *args, **kwargs))

    fill.__name__ = fill.__qualname__ = name
    fill.__doc__ = f"Fill with random numbers: {fn.__doc__}"
    return fill


def _bernoulli(x: Any, p: Any = 0.5, *, generator: Any = None) -> Any:
    """1 with probability ``p`` (a number or a tensor), else 0."""
    from cermet.ops.elementwise import lt

    u = random.random_uniform(tuple(x.shape), None, generator)
    return to_dtype(lt(u, float(p) if is_number(p) else to_dtype(p, u.dtype)), x.dtype)


def _reshaping(view: Callable[..., Any], name: str) -> Callable[..., Any]:
    """``name_``: the tensor itself becomes the view."""

    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return set_data(self, view(self, *args, **kwargs))

    method.__name__ = method.__qualname__ = name + "_"
    method.__doc__ = f"The tensor itself becomes the view that `{name}` makes."
    return method


def where(self: Any, condition: Any, other: Any) -> Any:
    """This tensor where the condition is true, else ``other``."""
    from cermet.ops.elementwise import where_function

    return where_function(condition, self, other)


def ndimension(self: Any) -> int:
    """Number of dimensions."""
    return node_of(self).meta.ndim


def is_nonzero(self: Any) -> bool:
    """Whether a tensor of one element is not 0."""
    return bool(self)


def get_device(self: Any) -> int:
    """The index of the tensor's device, -1 for the CPU."""
    d = node_of(self).meta.device
    return -1 if d.type == "cpu" else (d.index or 0)


def fill_diagonal_(self: Any, fill_value: Any, wrap: bool = False) -> Any:
    """Make the elements of the main diagonal ``fill_value``; with ``wrap`` a tall matrix's diagonal begins anew after each
    square.

    Raises:
        RuntimeError: for fewer than two dimensions, or more with different sizes.
    """
    sizes = node_of(self).meta.shape
    if len(sizes) < 2 or (len(sizes) > 2 and len(set(sizes)) > 1):
        raise RuntimeError(f"fill_diagonal_: expected a matrix, or equal sizes, got shape {list(sizes)}")
    steps = sum(math.prod(sizes[d + 1 :]) for d in range(len(sizes)))
    flat = math.prod(sizes)
    stop = flat if wrap or len(sizes) > 2 else min(flat, sizes[1] * sizes[1])
    import numpy as np

    hit = np.zeros(flat, np.bool_)
    hit[:stop:steps] = True
    return self.masked_fill_(hooks.to_tensor(hit.reshape(sizes), dtype=None, like=None), fill_value)


def is_floating_point(self: Any) -> bool:
    """Whether the dtype is floating."""
    return node_of(self).meta.dtype.kind == "f"


def is_complex(self: Any) -> bool:
    """Whether the dtype is complex."""
    return False


def is_signed(self: Any) -> bool:
    """Whether the dtype has negative values."""
    return node_of(self).meta.dtype.is_signed


def is_same_size(self: Any, other: Any) -> bool:
    """Whether both have one shape."""
    return node_of(self).meta.shape == node_of(other).meta.shape


METHODS: dict[str, Callable[..., Any]] = {
    "fill_": fill_,
    "zero_": zero_,
    "copy_": copy_,
    "set_": set_data,
    "where": where,
    "is_floating_point": is_floating_point,
    "ndimension": ndimension,
    "is_nonzero": is_nonzero,
    "get_device": get_device,
    "fill_diagonal_": fill_diagonal_,
    "is_complex": is_complex,
    "is_signed": is_signed,
    "is_same_size": is_same_size,
    **{
        name: _random(fn, name)
        for name, fn in {
            "uniform_": random.uniform_between,
            "normal_": random.normal_around,
            "exponential_": random.exponential,
            "geometric_": random.geometric,
            "cauchy_": random.cauchy,
            "log_normal_": random.log_normal,
            "random_": random.whole_between,
            "bernoulli_": _bernoulli,
        }.items()
    },
    **{p.name + "_": _reshaping(p.fn, p.name) for p in PUBLIC.values() if getattr(p.fn, "in_place_view", False)},
}
"""By name; `cermet.frontend.tensor` puts them on the class."""
