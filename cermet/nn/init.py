"""Initial values of parameters, written in place; nothing is recorded for gradients."""

from __future__ import annotations

import math
import warnings
from typing import Any

from cermet import dtypes as dt
from cermet.frontend.autograd import Mode
from cermet.frontend.interop import from_array
from cermet.ops.public import PUBLIC
from cermet.ops.random import normal_around, random_gaussian, random_uniform, uniform_between

__all__ = [
    "calculate_gain",
    "constant_",
    "dirac_",
    "eye_",
    "kaiming_normal_",
    "kaiming_uniform_",
    "normal_",
    "ones_",
    "orthogonal_",
    "sparse_",
    "trunc_normal_",
    "uniform_",
    "xavier_normal_",
    "xavier_uniform_",
    "zeros_",
]

_UNIT_GAIN = ("linear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "sigmoid")


def _fn(name: str) -> Any:
    return PUBLIC[("", name)].fn


def calculate_gain(nonlinearity: str, param: Any = None) -> float:
    """By how much a nonlinearity shrinks the standard deviation (He et al. 2015, arXiv:1502.01852).

    Raises:
        ValueError: for an unknown nonlinearity.
    """
    if nonlinearity in _UNIT_GAIN:
        return 1.0
    if nonlinearity == "tanh":
        return 5.0 / 3
    if nonlinearity == "relu":
        return math.sqrt(2.0)
    if nonlinearity == "leaky_relu":
        slope = 0.01 if param is None else param
        if isinstance(slope, bool) or not isinstance(slope, int | float):
            raise ValueError(f"calculate_gain: a negative slope is a number, got {param!r}")
        return math.sqrt(2.0 / (1 + slope**2))
    if nonlinearity == "selu":
        return 0.75
    raise ValueError(f"Unsupported nonlinearity {nonlinearity}")


def _fill(tensor: Any, value: Any) -> Any:
    with Mode(False):
        return tensor._write(value)


def uniform_(tensor: Any, a: float = 0.0, b: float = 1.0, generator: Any = None) -> Any:
    """Values drawn evenly from [a, b)."""
    with Mode(False):
        return tensor._write(uniform_between(tensor, a, b, generator=generator))


def normal_(tensor: Any, mean: float = 0.0, std: float = 1.0, generator: Any = None) -> Any:
    """Normal random values."""
    with Mode(False):
        return tensor._write(normal_around(tensor, mean, std, generator=generator))


def trunc_normal_(
    tensor: Any, mean: float = 0.0, std: float = 1.0, a: float = -2.0, b: float = 2.0, generator: Any = None
) -> Any:
    """Normal random values between a and b: the inverse distribution function of uniform ones."""
    if mean < a - 2 * std or mean > b + 2 * std:
        warnings.warn(
            f"trunc_normal_: [{a}, {b}] lies far out in a tail (mean {mean}, std {std}): the values will be inexact", stacklevel=2
        )
    low, high = [2 * (0.5 + 0.5 * math.erf((x - mean) / (std * math.sqrt(2)))) - 1 for x in (a, b)]
    with Mode(False):
        even = uniform_between(tensor, low, high, generator=generator)
        value = _fn("clamp")(_fn("erfinv")(even) * (std * math.sqrt(2.0)) + mean, a, b)
        return tensor._write(value)


def constant_(tensor: Any, val: float) -> Any:
    """One value everywhere."""
    import numpy as np

    # A value in memory rather than a recorded constant: then the first training step is the same program as all others.
    return _fill(tensor, from_array(np.full(tuple(tensor.shape), val, tensor.dtype.numpy), tensor.dtype))


def ones_(tensor: Any) -> Any:
    """One everywhere."""
    return constant_(tensor, 1.0)


def zeros_(tensor: Any) -> Any:
    """Zero everywhere."""
    return constant_(tensor, 0.0)


def eye_(tensor: Any) -> Any:
    """The identity matrix."""
    if tensor.ndim != 2:
        raise ValueError(f"eye_: a matrix is needed, got shape {list(tensor.shape)}")
    return _fill(tensor, _fn("eye")(*tensor.shape, dtype=tensor.dtype))


def dirac_(tensor: Any, groups: int = 1) -> Any:
    """A convolution weight that passes its input through, group by group."""
    import numpy as np

    shape = tuple(tensor.shape)
    if len(shape) not in (3, 4, 5):
        raise ValueError(f"dirac_: the weight of a convolution is needed (out, in, 1 to 3 sizes), got shape {list(shape)}")
    if shape[0] % groups:
        raise ValueError(f"dirac_: {shape[0]} output channels cannot be split into {groups} groups")
    value = np.zeros(shape)
    per_group = shape[0] // groups
    for g in range(groups):
        for d in range(min(per_group, shape[1])):
            value[(g * per_group + d, d, *[s // 2 for s in shape[2:]])] = 1
    return _fill(tensor, _fn("tensor")(value, dtype=tensor.dtype))


def _fans(tensor: Any) -> tuple[int, int]:
    shape = tuple(tensor.shape)
    if len(shape) < 2:
        raise ValueError(f"the fan of a tensor of shape {list(shape)} is not defined; give weights of two dimensions or more")
    field = math.prod(shape[2:])
    return shape[1] * field, shape[0] * field


_calculate_fan_in_and_fan_out = _fans


def xavier_uniform_(tensor: Any, gain: float = 1.0, generator: Any = None) -> Any:
    """Uniform with variance 2 gain^2 / (fan_in + fan_out) (Glorot, Bengio 2010)."""
    fan_in, fan_out = _fans(tensor)
    bound = math.sqrt(3.0) * gain * math.sqrt(2.0 / float(fan_in + fan_out))
    return uniform_(tensor, -bound, bound, generator)


def xavier_normal_(tensor: Any, gain: float = 1.0, generator: Any = None) -> Any:
    """Normal with variance 2 gain^2 / (fan_in + fan_out) (Glorot, Bengio 2010)."""
    fan_in, fan_out = _fans(tensor)
    return normal_(tensor, 0.0, gain * math.sqrt(2.0 / float(fan_in + fan_out)), generator)


def _fan(tensor: Any, mode: str) -> int:
    mode = mode.lower()
    if mode not in ("fan_in", "fan_out"):
        raise ValueError(f"mode={mode!r}; known are 'fan_in' and 'fan_out'")
    return _fans(tensor)[mode == "fan_out"]


def kaiming_uniform_(
    tensor: Any, a: float = 0, mode: str = "fan_in", nonlinearity: str = "leaky_relu", generator: Any = None
) -> Any:
    """Uniform with variance gain^2 / fan (He et al. 2015, arXiv:1502.01852)."""
    if 0 in tensor.shape:
        warnings.warn(f"nothing to initialise: the tensor has no elements (shape {list(tensor.shape)})", stacklevel=2)
        return tensor
    bound = math.sqrt(3.0) * calculate_gain(nonlinearity, a) / math.sqrt(_fan(tensor, mode))
    return uniform_(tensor, -bound, bound, generator)


def kaiming_normal_(
    tensor: Any, a: float = 0, mode: str = "fan_in", nonlinearity: str = "leaky_relu", generator: Any = None
) -> Any:
    """Normal with variance gain^2 / fan (He et al. 2015, arXiv:1502.01852)."""
    if 0 in tensor.shape:
        warnings.warn(f"nothing to initialise: the tensor has no elements (shape {list(tensor.shape)})", stacklevel=2)
        return tensor
    return normal_(tensor, 0.0, calculate_gain(nonlinearity, a) / math.sqrt(_fan(tensor, mode)), generator)


def orthogonal_(tensor: Any, gain: float = 1, generator: Any = None) -> Any:
    """A (semi-)orthogonal matrix, from the QR decomposition of a normal one (Saxe et al. 2013, arXiv:1312.6120)."""
    import numpy as np

    if tensor.ndim < 2:
        raise ValueError(f"orthogonal_: two dimensions or more are needed, got shape {list(tensor.shape)}")
    if tensor.numel() == 0:
        return tensor
    rows = tensor.shape[0]
    cols = tensor.numel() // rows
    with Mode(False):
        flat = random_gaussian((rows, cols), dt.float64, generator).numpy()
    q, r = np.linalg.qr(flat.T if rows < cols else flat)
    q = q * np.sign(np.diag(r))
    q = q.T if rows < cols else q
    return _fill(tensor, _fn("tensor")(np.ascontiguousarray(q.reshape(tensor.shape)) * gain, dtype=tensor.dtype))


def sparse_(tensor: Any, sparsity: float, std: float = 0.01, generator: Any = None) -> Any:
    """Normal, with a part ``sparsity`` of each column zero (Martens 2010)."""
    import numpy as np

    if tensor.ndim != 2:
        raise ValueError(f"sparse_: a matrix is needed, got shape {list(tensor.shape)}")
    rows, cols = tensor.shape
    zeros = math.ceil(sparsity * rows)
    with Mode(False):
        order = random_uniform((rows, cols), dt.float64, generator).numpy().argsort(0)
        normal_(tensor, 0, std, generator)
        keep = np.ones((rows, cols))
        np.put_along_axis(keep, order[:zeros], 0.0, axis=0)
        return tensor._write(tensor.detach() * _fn("tensor")(keep, dtype=tensor.dtype))
