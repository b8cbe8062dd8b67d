"""Convolution layers in one to three dimensions, and their transposes."""

from __future__ import annotations

import math
from typing import Any

from cermet.nn import functional, init
from cermet.nn.module import Module
from cermet.nn.parameter import Parameter, UninitializedParameter, empty
from cermet.ops.convolution import per_dim
from cermet.ops.public import PUBLIC

F: Any = functional

__all__ = [
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "ConvTranspose3d",
    "LazyConv1d",
    "LazyConv2d",
    "LazyConv3d",
    "LazyConvTranspose1d",
    "LazyConvTranspose2d",
    "LazyConvTranspose3d",
]

_PADDINGS = ("zeros", "reflect", "replicate", "circular")


class _ConvNd(Module):
    """What all share: arguments, parameters (out, in / groups, *kernel), text. ``_n`` counts the spatial ones."""

    _n = 0
    _transposed = False
    weight: Parameter
    bias: Parameter | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Any,
        stride: Any,
        padding: Any,
        dilation: Any,
        groups: int,
        bias: bool,
        padding_mode: str,
        output_padding: Any = 0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        n, name = self._n, type(self).__name__
        if groups <= 0:
            raise ValueError(f"{name}: groups={groups}; give 1 or more")
        if in_channels % groups != 0:
            raise ValueError(f"{name}: in_channels={in_channels} cannot be split into groups={groups} equal parts")
        if out_channels % groups != 0:
            raise ValueError(f"{name}: out_channels={out_channels} cannot be split into groups={groups} equal parts")
        if padding_mode not in _PADDINGS:
            raise ValueError(f"{name}: padding_mode={padding_mode!r}; known are {', '.join(_PADDINGS)}")
        self.in_channels, self.out_channels, self.groups, self.padding_mode = in_channels, out_channels, groups, padding_mode
        self.kernel_size = per_dim(kernel_size, n, name, "kernel_size")
        self.stride = per_dim(stride, n, name, "stride")
        self.dilation = per_dim(dilation, n, name, "dilation")
        self.output_padding = per_dim(output_padding, n, name, "output_padding")
        if isinstance(padding, str):
            if padding not in ("same", "valid"):
                raise ValueError(f"{name}: padding={padding!r}; give numbers, 'same' or 'valid'")
            if padding == "same" and any(s != 1 for s in self.stride):
                raise ValueError(f"{name}: padding='same' needs stride 1, got {self.stride}; give the padding as numbers")
            self.padding: Any = padding
        else:
            self.padding = per_dim(padding, n, name, "padding")
        self._make(bias, device, dtype)

    def _make(self, bias: bool, device: Any, dtype: Any) -> None:
        first, second = (self.in_channels, self.out_channels) if self._transposed else (self.out_channels, self.in_channels)
        self.weight = Parameter(empty(first, second // self.groups, *self.kernel_size, dtype=dtype, device=device))
        if bias:
            self.bias = Parameter(empty(self.out_channels, dtype=dtype, device=device))
        else:
            self.register_parameter("bias", None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Uniform within 1 / sqrt(fan_in), as PyTorch."""
        bound = 1 / math.sqrt(max(math.prod(self.weight.shape[1:]), 1))
        for p in (self.weight, self.bias):
            if p is not None:
                init.uniform_(p, -bound, bound)

    def _sides(self) -> list[int]:
        """Padding of both ends of each dimension, the last one first, as `pad` takes it."""
        if self.padding == "valid":
            return [0] * (2 * self._n)
        if self.padding == "same":
            total = [d * (k - 1) for d, k in zip(self.dilation, self.kernel_size)]
            return [side for t in reversed(total) for side in (t // 2, t - t // 2)]
        return [p for p in reversed(self.padding) for _ in range(2)]

    def forward(self, input: Any) -> Any:
        fn = getattr(F, f"conv{self._n}d")
        padding = self.padding
        if self.padding_mode != "zeros":
            input = PUBLIC[("", "pad")].fn(input, self._sides(), mode=self.padding_mode)
            padding = 0
        return fn(input, self.weight, self.bias, self.stride, padding, self.dilation, self.groups)

    def extra_repr(self) -> str:
        text = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        zero, one = (0,) * self._n, (1,) * self._n
        if self.padding != zero:
            text += f", padding={self.padding}"
        if self.dilation != one:
            text += f", dilation={self.dilation}"
        if self.output_padding != zero:
            text += f", output_padding={self.output_padding}"
        if self.groups != 1:
            text += f", groups={self.groups}"
        if self.bias is None:
            text += ", bias=False"
        if self.padding_mode != "zeros":
            text += f", padding_mode={self.padding_mode}"
        return text


class _Conv(_ConvNd):
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Any,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, 0, device, dtype
        )


class Conv1d(_Conv):
    """1-d convolution of (N, C, L); arguments as PyTorch's."""

    _n = 1


class Conv2d(_Conv):
    """2-d convolution of (N, C, H, W); arguments as PyTorch's."""

    _n = 2


class Conv3d(_Conv):
    """3-d convolution of (N, C, D, H, W); arguments as PyTorch's."""

    _n = 3


class _ConvTranspose(_ConvNd):
    _transposed = True

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Any,
        stride: Any = 1,
        padding: Any = 0,
        output_padding: Any = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: Any = 1,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        if padding_mode != "zeros":
            raise ValueError(f"{type(self).__name__}: padding_mode={padding_mode!r}; only 'zeros' has a meaning here")
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            padding_mode,
            output_padding,
            device,
            dtype,
        )

    def forward(self, input: Any, output_size: Any = None) -> Any:
        extra = self.output_padding if output_size is None else self._output_padding(input, output_size)
        fn = getattr(F, f"conv_transpose{self._n}d")
        return fn(input, self.weight, self.bias, self.stride, self.padding, extra, self.groups, self.dilation)

    def _output_padding(self, input: Any, output_size: Any) -> tuple[int, ...]:
        n = self._n
        wanted = list(output_size)[-n:]
        out = []
        for k in range(n):
            least = (
                (input.shape[len(input.shape) - n + k] - 1) * self.stride[k]
                - 2 * self.padding[k]
                + self.dilation[k] * (self.kernel_size[k] - 1)
                + 1
            )
            if not least <= wanted[k] <= least + self.stride[k] - 1:
                raise ValueError(
                    f"output_size {wanted[k]} cannot come of this input; possible are {least} to {least + self.stride[k] - 1}"
                )
            out.append(wanted[k] - least)
        return tuple(out)


class ConvTranspose1d(_ConvTranspose):
    """Transposed 1-d convolution; arguments as PyTorch's."""

    _n = 1


class ConvTranspose2d(_ConvTranspose):
    """Transposed 2-d convolution; arguments as PyTorch's."""

    _n = 2


class ConvTranspose3d(_ConvTranspose):
    """Transposed 3-d convolution; arguments as PyTorch's."""

    _n = 3


def _lazy(base: Any) -> Any:
    """The lazy form of a convolution: ``in_channels`` comes from the first input."""

    class Lazy(base):
        def __init__(self, out_channels: int, kernel_size: Any, *args: Any, **kwargs: Any) -> None:
            # One output channel per group satisfies the checks until the input's channels are known.
            super().__init__(0, out_channels, kernel_size, *args, **kwargs)

        def _make(self, bias: bool, device: Any, dtype: Any) -> None:
            self.weight = UninitializedParameter(device=device, dtype=dtype)
            if bias:
                self.bias = UninitializedParameter(device=device, dtype=dtype)
            else:
                self.register_parameter("bias", None)

        def __call__(self, input: Any, *args: Any, **kwargs: Any) -> Any:
            self.initialize_parameters(input)
            self.__class__ = base
            return self(input, *args, **kwargs)

        def initialize_parameters(self, input: Any, *args: Any, **kwargs: Any) -> None:
            """Give the parameters their shapes and values."""
            self.in_channels = int(input.shape[len(input.shape) - self._n - 1])
            if self.in_channels % self.groups:
                raise ValueError(f"{type(self).__name__}: {self.in_channels} channels cannot be split into {self.groups} groups")
            first, second = (self.in_channels, self.out_channels) if self._transposed else (self.out_channels, self.in_channels)
            self.weight.materialize((first, second // self.groups, *self.kernel_size))
            if self.bias is not None:
                self.bias.materialize((self.out_channels,))
            self.reset_parameters()

    Lazy.__name__ = Lazy.__qualname__ = f"Lazy{base.__name__}"
    Lazy.__doc__ = f"A `{base.__name__}` that learns ``in_channels`` from its first input."
    return Lazy


LazyConv1d = _lazy(Conv1d)
LazyConv2d = _lazy(Conv2d)
LazyConv3d = _lazy(Conv3d)
LazyConvTranspose1d = _lazy(ConvTranspose1d)
LazyConvTranspose2d = _lazy(ConvTranspose2d)
LazyConvTranspose3d = _lazy(ConvTranspose3d)
