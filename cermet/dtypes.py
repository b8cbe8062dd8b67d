"""Data types: one immutable record per dtype, and PyTorch's promotion rules.

A leaf of the house: knows NumPy and ml_dtypes, nothing of tensors, graphs or compilers.
"""

from __future__ import annotations

import builtins
from functools import cache
from typing import Any

import ml_dtypes
import numpy as np

__all__ = [
    "DType",
    "ALL",
    "bfloat16",
    "bool",
    "can_cast",
    "default_dtype",
    "finfo",
    "float16",
    "float32",
    "float64",
    "from_numpy_dtype",
    "get_default_dtype",
    "iinfo",
    "int16",
    "int32",
    "int64",
    "int8",
    "of_scalar",
    "promote_types",
    "set_default_dtype",
    "uint8",
]


class DType:
    """A data type.

    Attributes:
        name: the PyTorch name, ``"float32"``.
        itemsize: bytes of one element.
        kind: ``"b"`` bool, ``"i"`` signed, ``"u"`` unsigned, ``"f"`` floating.
        numpy: the NumPy dtype that stores it (bfloat16 through ml_dtypes).
        code: a small integer, unique per dtype, used in keys.
    """

    __slots__ = ("code", "is_floating_point", "is_signed", "itemsize", "kind", "name", "numpy", "rank")

    def __init__(self, code: int, name: str, kind: str, numpy_dtype: Any, rank: int) -> None:
        self.code = code
        self.name = name
        self.kind = kind
        self.numpy = np.dtype(numpy_dtype)
        self.itemsize = self.numpy.itemsize
        self.rank = rank
        self.is_floating_point = kind == "f"
        self.is_signed = kind in "if"

    @property
    def is_complex(self) -> builtins.bool:
        return False

    @property
    def is_integral(self) -> builtins.bool:
        """True for the integers, False for bool and the floating types."""
        return self.kind in "iu"

    @property
    def compute(self) -> DType:
        """The type in which arithmetic on this dtype is carried out: float32 for the 16-bit floats."""
        return float32 if self.kind == "f" and self.itemsize == 2 else self

    @property
    def bits(self) -> int:
        return self.itemsize * 8

    def __repr__(self) -> str:
        return f"cermet.{self.name}"

    def __reduce__(self) -> Any:
        return (_by_name, (self.name,))


bool = DType(0, "bool", "b", np.bool_, 0)
uint8 = DType(1, "uint8", "u", np.uint8, 1)
int8 = DType(2, "int8", "i", np.int8, 1)
int16 = DType(3, "int16", "i", np.int16, 2)
int32 = DType(4, "int32", "i", np.int32, 3)
int64 = DType(5, "int64", "i", np.int64, 4)
float16 = DType(6, "float16", "f", np.float16, 5)
bfloat16 = DType(7, "bfloat16", "f", ml_dtypes.bfloat16, 5)
float32 = DType(8, "float32", "f", np.float32, 6)
float64 = DType(9, "float64", "f", np.float64, 7)

ALL: tuple[DType, ...] = (bool, uint8, int8, int16, int32, int64, float16, bfloat16, float32, float64)
FLOATING = tuple(d for d in ALL if d.kind == "f")
INTEGRAL = tuple(d for d in ALL if d.kind in "iu")
_NAMES = {d.name: d for d in ALL}
_BY_NUMPY = {d.numpy: d for d in ALL}
_default = float32


def _by_name(name: str) -> DType:
    return _NAMES[name]


def from_numpy_dtype(dtype: Any) -> DType:
    """The Cermet dtype of a NumPy dtype.

    Raises:
        TypeError: when there is none (complex, structured, strings, unsigned 16 to 64).
    """
    if isinstance(dtype, DType):
        return dtype
    found = _BY_NUMPY.get(np.dtype(dtype))
    if found is None:
        supported = ", ".join(d.name for d in ALL)
        raise TypeError(
            f"no Cermet dtype for NumPy dtype {np.dtype(dtype)}; supported: {supported}. Convert with .astype() first."
        )
    return found


def of_scalar(value: Any) -> DType:
    """The dtype a Python scalar brings into a result on its own: bool, int64 or the default floating dtype."""
    if isinstance(value, builtins.bool):
        return bool
    if isinstance(value, int):
        return int64
    return _default


def _promote(a: DType, b: DType) -> DType:
    if a is b:
        return a
    if a.kind == "f" or b.kind == "f":
        if a.kind == "f" and b.kind == "f":
            if a.itemsize == b.itemsize:  # float16 with bfloat16: neither holds the other
                return float32
            return a if a.itemsize > b.itemsize else b
        return a if a.kind == "f" else b
    if a.kind == "b":
        return b
    if b.kind == "b":
        return a
    if a.kind == b.kind:
        return a if a.itemsize > b.itemsize else b
    signed, unsigned = (a, b) if a.kind == "i" else (b, a)
    if signed.itemsize > unsigned.itemsize:
        return signed
    return {1: int16}[signed.itemsize]


@cache
def promote_types(a: DType, b: DType) -> DType:
    """The smallest dtype that both convert to, as in ``torch.promote_types``."""
    return _promote(a, b)


def category(d: DType) -> int:
    """0 bool, 1 integral, 2 floating: the ladder on which Python scalars promote."""
    return 0 if d.kind == "b" else 2 if d.kind == "f" else 1


@cache
def can_cast(from_: DType, to: DType) -> builtins.bool:
    """Whether a cast is allowed by ``torch.can_cast``: never from floating to integral, nor from anything to bool."""
    if category(from_) > category(to):
        return False
    # PyTorch also forbids signed to unsigned integers.
    return not (from_.kind == "i" and to.kind == "u")


def get_default_dtype() -> DType:
    """The dtype of floating tensors made without one; float32 unless set."""
    return _default


default_dtype = get_default_dtype


def set_default_dtype(d: DType) -> None:
    """Set the dtype of floating tensors made without one.

    Raises:
        TypeError: when ``d`` is not a floating dtype.
    """
    global _default
    if not isinstance(d, DType) or d.kind != "f":
        raise TypeError(f"set_default_dtype: expected a floating dtype such as cermet.float32, got {d!r}")
    _default = d


class finfo:
    """Numerical limits of a floating dtype (``bits eps max min tiny smallest_normal resolution dtype``)."""

    def __init__(self, dtype: DType | None = None) -> None:
        d = dtype or _default
        if d.kind != "f":
            raise TypeError(f"finfo() needs a floating dtype, got {d!r}; use iinfo() for integers")
        info: Any = ml_dtypes.finfo(d.numpy)
        self.bits = d.bits
        self.eps = float(info.eps)
        self.max = float(info.max)
        self.min = float(info.min)
        self.tiny = float(info.smallest_normal)
        self.smallest_normal = float(info.smallest_normal)
        self.resolution = float(info.resolution)
        self.dtype = d.name

    def __repr__(self) -> str:
        return f"finfo(resolution={self.resolution:g}, min={self.min:g}, max={self.max:g}, eps={self.eps:g}, dtype={self.dtype})"


class iinfo:
    """Numerical limits of an integer dtype (``bits max min dtype``)."""

    def __init__(self, dtype: DType) -> None:
        if dtype.kind not in "iu":
            raise TypeError(f"iinfo() needs an integer dtype, got {dtype!r}; use finfo() for floating types")
        info = np.iinfo(dtype.numpy)
        self.bits, self.max, self.min, self.dtype = dtype.bits, int(info.max), int(info.min), dtype.name

    def __repr__(self) -> str:
        return f"iinfo(min={self.min}, max={self.max}, dtype={self.dtype})"
