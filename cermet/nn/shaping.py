"""Layers that pad, resample or rearrange, and layers of distances."""

from __future__ import annotations

from typing import Any, ClassVar

from cermet.nn import functional
from cermet.nn.module import Module
from cermet.nn.simple import _REQUIRED, FunctionModule

F: Any = functional

__all__ = [
    "ChannelShuffle",
    "CircularPad1d",
    "CircularPad2d",
    "CircularPad3d",
    "ConstantPad1d",
    "ConstantPad2d",
    "ConstantPad3d",
    "CosineSimilarity",
    "Fold",
    "MaxUnpool1d",
    "MaxUnpool2d",
    "MaxUnpool3d",
    "PairwiseDistance",
    "PixelShuffle",
    "PixelUnshuffle",
    "ReflectionPad1d",
    "ReflectionPad2d",
    "ReflectionPad3d",
    "ReplicationPad1d",
    "ReplicationPad2d",
    "ReplicationPad3d",
    "Unfold",
    "Upsample",
    "UpsamplingBilinear2d",
    "UpsamplingNearest2d",
    "ZeroPad1d",
    "ZeroPad2d",
    "ZeroPad3d",
]


# ------------------------------------------------------------------------------------------------------------------- pads


class _Pad(Module):
    """``pad(input, padding, mode)`` over the last ``_dims`` dimensions; one number pads all sides alike."""

    _dims: ClassVar[int] = 1
    _mode: ClassVar[str] = "constant"
    value: float | None = None

    def __init__(self, padding: Any) -> None:
        super().__init__()
        if not isinstance(padding, int) and len(padding) != 2 * self._dims:
            raise ValueError(f"{type(self).__name__}: expected one number or {2 * self._dims}, got {tuple(padding)}")
        self.padding = (padding,) * (2 * self._dims) if isinstance(padding, int) else tuple(padding)

    def forward(self, input: Any) -> Any:
        return F.pad(input, self.padding, self._mode, self.value)

    def extra_repr(self) -> str:
        return f"{self.padding}"


class _ConstantPad(_Pad):
    def __init__(self, padding: Any, value: float) -> None:
        super().__init__(padding)
        self.value = value

    def extra_repr(self) -> str:
        return f"padding={self.padding}, value={self.value}"


class ConstantPad1d(_ConstantPad):
    """(N, C, L) padded with ``value``: (left, right)."""


class ConstantPad2d(_ConstantPad):
    """(N, C, H, W) padded with ``value``: (left, right, top, bottom)."""

    _dims = 2


class ConstantPad3d(_ConstantPad):
    """(N, C, D, H, W) padded with ``value``: (left, right, top, bottom, front, back)."""

    _dims = 3


class ZeroPad1d(_Pad):
    """(N, C, L) padded with zeros."""

    value = 0.0


class ZeroPad2d(_Pad):
    """(N, C, H, W) padded with zeros."""

    _dims, value = 2, 0.0


class ZeroPad3d(_Pad):
    """(N, C, D, H, W) padded with zeros."""

    _dims, value = 3, 0.0


class ReflectionPad1d(_Pad):
    """(N, C, L) mirrored at its ends, the end itself not repeated."""

    _mode = "reflect"


class ReflectionPad2d(_Pad):
    """(N, C, H, W) mirrored at its borders."""

    _dims, _mode = 2, "reflect"


class ReflectionPad3d(_Pad):
    """(N, C, D, H, W) mirrored at its borders."""

    _dims, _mode = 3, "reflect"


class ReplicationPad1d(_Pad):
    """(N, C, L) with its ends repeated."""

    _mode = "replicate"


class ReplicationPad2d(_Pad):
    """(N, C, H, W) with its borders repeated."""

    _dims, _mode = 2, "replicate"


class ReplicationPad3d(_Pad):
    """(N, C, D, H, W) with its borders repeated."""

    _dims, _mode = 3, "replicate"


class CircularPad1d(_Pad):
    """(N, C, L) continued from its other end."""

    _mode = "circular"


class CircularPad2d(_Pad):
    """(N, C, H, W) continued from its other borders."""

    _dims, _mode = 2, "circular"


class CircularPad3d(_Pad):
    """(N, C, D, H, W) continued from its other borders."""

    _dims, _mode = 3, "circular"


# ----------------------------------------------------------------------------------------------------------- rearrangements


class PixelShuffle(FunctionModule):
    """(*, C r^2, H, W) as (*, C, H r, W r)."""

    _function, _fields = "pixel_shuffle", {"upscale_factor": _REQUIRED}


class PixelUnshuffle(FunctionModule):
    """(*, C, H r, W r) as (*, C r^2, H, W)."""

    _function, _fields = "pixel_unshuffle", {"downscale_factor": _REQUIRED}


class ChannelShuffle(FunctionModule):
    """The channels of (N, g c, *) as if dealt from g groups in turn."""

    _function, _fields = "channel_shuffle", {"groups": _REQUIRED}


class Unfold(FunctionModule):
    """Sliding blocks of (N, C, H, W) as columns."""

    _function, _fields = "unfold", {"kernel_size": _REQUIRED, "dilation": 1, "padding": 0, "stride": 1}


class Fold(FunctionModule):
    """Columns added up into (N, C, *output_size)."""

    _function = "fold"
    _fields: ClassVar[dict[str, Any]] = {
        "output_size": _REQUIRED,
        "kernel_size": _REQUIRED,
        "dilation": 1,
        "padding": 0,
        "stride": 1,
    }


# ------------------------------------------------------------------------------------------------------------ resampling


class Upsample(Module):
    """(N, C, *) resampled to ``size`` or by ``scale_factor``; see `cermet.nn.functional.interpolate`."""

    def __init__(
        self,
        size: Any = None,
        scale_factor: Any = None,
        mode: str = "nearest",
        align_corners: bool | None = None,
        recompute_scale_factor: bool | None = None,
    ) -> None:
        super().__init__()
        self.size, self.mode, self.align_corners = size, mode, align_corners
        self.scale_factor = tuple(float(f) for f in scale_factor) if isinstance(scale_factor, tuple | list) else scale_factor
        self.recompute_scale_factor = recompute_scale_factor

    def forward(self, input: Any) -> Any:
        return F.interpolate(input, self.size, self.scale_factor, self.mode, self.align_corners, self.recompute_scale_factor)

    def extra_repr(self) -> str:
        which = f"scale_factor={self.scale_factor!r}" if self.scale_factor is not None else f"size={self.size!r}"
        return f"{which}, mode={self.mode!r}"


class UpsamplingNearest2d(Upsample):
    """(N, C, H, W) resampled to the nearest places."""

    def __init__(self, size: Any = None, scale_factor: Any = None) -> None:
        super().__init__(size, scale_factor, "nearest")


class UpsamplingBilinear2d(Upsample):
    """(N, C, H, W) resampled bilinearly, corners aligned."""

    def __init__(self, size: Any = None, scale_factor: Any = None) -> None:
        super().__init__(size, scale_factor, "bilinear", True)


class _Unpool(Module):
    _dims: ClassVar[int] = 1

    def __init__(self, kernel_size: Any, stride: Any = None, padding: Any = 0) -> None:
        super().__init__()
        n = self._dims

        def each(v: Any) -> tuple[int, ...]:
            return tuple(v) if isinstance(v, tuple | list) else (v,) * n

        self.kernel_size, self.padding = each(kernel_size), each(padding)
        self.stride = each(kernel_size if stride is None else stride)

    def forward(self, input: Any, indices: Any, output_size: Any = None) -> Any:
        unpool = getattr(F, f"max_unpool{self._dims}d")
        return unpool(input, indices, self.kernel_size, self.stride, self.padding, output_size)

    def extra_repr(self) -> str:
        return f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"


class MaxUnpool1d(_Unpool):
    """The maxima of `MaxPool1d` back in their places, zeros elsewhere."""


class MaxUnpool2d(_Unpool):
    """The maxima of `MaxPool2d` back in their places, zeros elsewhere."""

    _dims = 2


class MaxUnpool3d(_Unpool):
    """The maxima of `MaxPool3d` back in their places, zeros elsewhere."""

    _dims = 3


# -------------------------------------------------------------------------------------------------------------- distances


class CosineSimilarity(FunctionModule):
    """The cosine of the angle between vectors along ``dim``."""

    _function, _fields = "cosine_similarity", {"dim": 1, "eps": 1e-8}


class PairwiseDistance(Module):
    """The p-norm of the difference of two vectors, over the last dimension."""

    def __init__(self, p: float = 2.0, eps: float = 1e-6, keepdim: bool = False) -> None:
        super().__init__()
        self.norm, self.eps, self.keepdim = p, eps, keepdim

    def forward(self, x1: Any, x2: Any) -> Any:
        return F.pairwise_distance(x1, x2, self.norm, self.eps, self.keepdim)
