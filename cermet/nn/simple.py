"""Layers that are one function with fixed arguments: activations, dropout, pools, distances, rearrangements.

A layer declares its function and its arguments with their defaults; construction, forward and text follow from that.
"""

from __future__ import annotations

from typing import Any, ClassVar

from cermet.nn import functional, init
from cermet.nn.module import Module
from cermet.nn.parameter import Parameter, full

F: Any = functional

_REQUIRED = object()


class FunctionModule(Module):
    """``function(input, **fields)``.

    Attributes:
        _function: its name in `cermet.nn.functional`.
        _fields: arguments and their defaults, in order; `_REQUIRED` for those without one.
        _hidden: fields that the text leaves out while they have their default.
        _training: whether the function takes ``training``.
    """

    _function: ClassVar[str] = ""
    _fields: ClassVar[dict[str, Any]] = {}
    _hidden: ClassVar[tuple[str, ...]] = ("inplace",)
    _training: ClassVar[bool] = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        names = list(self._fields)
        kind = type(self).__name__
        if len(args) > len(names):
            raise TypeError(f"{kind}() takes at most {len(names)} arguments ({', '.join(names)}), got {len(args)}")
        given = dict(zip(names, args))
        for name, value in kwargs.items():
            if name not in self._fields:
                raise TypeError(f"{kind}() got an unexpected keyword argument {name!r}; it takes {', '.join(names) or 'none'}")
            if name in given:
                raise TypeError(f"{kind}() got multiple values for argument {name!r}")
            given[name] = value
        for name, default in self._fields.items():
            if name not in given and default is _REQUIRED:
                raise TypeError(f"{kind}() is missing the argument {name!r}")
            setattr(self, name, given.get(name, default))
        self._check()

    def _check(self) -> None:
        """Refuse fields that make no sense."""

    def _arguments(self) -> dict[str, Any]:
        found = {}
        for name in self._fields:  # a comprehension would be a call of its own in Python 3.11
            found[name] = getattr(self, name)
        if self._training:
            found["training"] = self.training
        return found

    def forward(self, *inputs: Any) -> Any:
        return getattr(F, self._function)(*inputs, **self._arguments())

    def extra_repr(self) -> str:
        shown = [n for n, d in self._fields.items() if n not in self._hidden or getattr(self, n) != d]
        return ", ".join(f"{n}={getattr(self, n)!r}" for n in shown)


# ----------------------------------------------------------------------------------------------------------- activations


class ReLU(FunctionModule):
    """max(x, 0)."""

    _function, _fields = "relu", {"inplace": False}


class ReLU6(FunctionModule):
    """The input limited to [0, 6]."""

    _function, _fields = "relu6", {"inplace": False}


class LeakyReLU(FunctionModule):
    """The input where positive, ``negative_slope`` times it elsewhere."""

    _function, _fields = "leaky_relu", {"negative_slope": 0.01, "inplace": False}


class RReLU(FunctionModule):
    """Leaky ReLU with a random slope in training."""

    _function, _fields, _training = "rrelu", {"lower": 1.0 / 8, "upper": 1.0 / 3, "inplace": False}, True


class ELU(FunctionModule):
    """The input where positive, alpha (exp(x) - 1) elsewhere."""

    _function, _fields = "elu", {"alpha": 1.0, "inplace": False}


class CELU(FunctionModule):
    """The input where positive, alpha (exp(x / alpha) - 1) elsewhere."""

    _function, _fields = "celu", {"alpha": 1.0, "inplace": False}


class SELU(FunctionModule):
    """Scaled elu of self-normalising networks."""

    _function, _fields = "selu", {"inplace": False}


class GELU(FunctionModule):
    """The input times the normal distribution function of it."""

    _function, _fields = "gelu", {"approximate": "none"}


class SiLU(FunctionModule):
    """The input times its sigmoid."""

    _function, _fields = "silu", {"inplace": False}


class Mish(FunctionModule):
    """The input times tanh of its softplus."""

    _function, _fields = "mish", {"inplace": False}


class Hardtanh(FunctionModule):
    """The input limited to [min_val, max_val]."""

    _function, _fields = "hardtanh", {"min_val": -1.0, "max_val": 1.0, "inplace": False}

    def _check(self) -> None:
        if not self.max_val > self.min_val:
            raise ValueError(f"max_val must be larger than min_val, got {self.max_val} and {self.min_val}")


class Hardsigmoid(FunctionModule):
    """Piecewise linear sigmoid."""

    _function, _fields = "hardsigmoid", {"inplace": False}


class Hardswish(FunctionModule):
    """The input times its hardsigmoid."""

    _function, _fields = "hardswish", {"inplace": False}


class Threshold(FunctionModule):
    """The input where above ``threshold``, ``value`` elsewhere."""

    _function, _fields = "threshold", {"threshold": _REQUIRED, "value": _REQUIRED, "inplace": False}


class Hardshrink(FunctionModule):
    """0 within [-lambd, lambd]."""

    _function, _fields = "hardshrink", {"lambd": 0.5}


class Softshrink(FunctionModule):
    """The input moved towards 0 by ``lambd``."""

    _function, _fields = "softshrink", {"lambd": 0.5}


class Softplus(FunctionModule):
    """log(1 + exp(beta x)) / beta."""

    _function, _fields = "softplus", {"beta": 1.0, "threshold": 20.0}


class Softsign(FunctionModule):
    """The input over one plus its magnitude."""

    _function = "softsign"


class Tanhshrink(FunctionModule):
    """The input minus its tanh."""

    _function = "tanhshrink"


class Sigmoid(FunctionModule):
    """1 / (1 + exp(-x))."""

    _function = "sigmoid"


class Tanh(FunctionModule):
    """The hyperbolic tangent."""

    _function = "tanh"


class LogSigmoid(FunctionModule):
    """The logarithm of sigmoid."""

    _function = "logsigmoid"


class Softmax(FunctionModule):
    """Softmax along ``dim``."""

    _function, _fields = "softmax", {"dim": None}


class Softmin(FunctionModule):
    """Softmax of the negated input along ``dim``."""

    _function, _fields = "softmin", {"dim": None}


class LogSoftmax(FunctionModule):
    """The logarithm of softmax along ``dim``."""

    _function, _fields = "log_softmax", {"dim": None}


class Softmax2d(Module):
    """Softmax over the channels of (N, C, H, W) or (C, H, W)."""

    def forward(self, input: Any) -> Any:
        if input.ndim not in (3, 4):
            raise ValueError(f"Softmax2d: give (N, C, H, W) or (C, H, W), got shape {list(input.shape)}")
        return F.softmax(input, -3)


class GLU(FunctionModule):
    """The first half along ``dim`` times the sigmoid of the second."""

    _function, _fields = "glu", {"dim": -1}


class PReLU(Module):
    """The input where positive, a learnt slope times it elsewhere."""

    def __init__(self, num_parameters: int = 1, init: float = 0.25, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        self.num_parameters, self.init = num_parameters, init
        self.weight = Parameter(full((num_parameters,), init, dtype=dtype, device=device))

    def reset_parameters(self) -> None:
        init.constant_(self.weight, self.init)

    def forward(self, input: Any) -> Any:
        return F.prelu(input, self.weight)

    def extra_repr(self) -> str:
        return f"num_parameters={self.num_parameters}"


# --------------------------------------------------------------------------------------------------------------- dropout


class _Dropout(FunctionModule):
    _fields: ClassVar[dict[str, Any]] = {"p": 0.5, "inplace": False}
    _training = True
    _hidden = ()

    def _check(self) -> None:
        if not 0 <= self.p <= 1:
            raise ValueError(f"{type(self).__name__}: p={self.p}; a probability lies in [0, 1]")


class Dropout(_Dropout):
    """Elements zeroed with probability ``p`` in training, the rest divided by ``1 - p``."""

    _function = "dropout"


class Dropout1d(_Dropout):
    """Whole channels of (N, C, L) zeroed with probability ``p`` in training."""

    _function = "dropout1d"


class Dropout2d(_Dropout):
    """Whole channels of (N, C, H, W) zeroed with probability ``p`` in training."""

    _function = "dropout2d"


class Dropout3d(_Dropout):
    """Whole channels of (N, C, D, H, W) zeroed with probability ``p`` in training."""

    _function = "dropout3d"


class AlphaDropout(_Dropout):
    """Dropout for selu networks."""

    _function = "alpha_dropout"


class FeatureAlphaDropout(_Dropout):
    """`AlphaDropout` of whole channels."""

    _function = "feature_alpha_dropout"


# ----------------------------------------------------------------------------------------------------------------- pools


class _Pool(FunctionModule):
    _hidden = ("return_indices", "count_include_pad", "divisor_override")
    stride: Any

    def _check(self) -> None:
        if "stride" in self._fields and self.stride is None:
            self.stride = self.kernel_size

    def extra_repr(self) -> str:
        return ", ".join(f"{n}={getattr(self, n)}" for n in self._fields if n not in self._hidden)


_MAX: dict[str, Any] = {
    "kernel_size": _REQUIRED,
    "stride": None,
    "padding": 0,
    "dilation": 1,
    "return_indices": False,
    "ceil_mode": False,
}
_AVG: dict[str, Any] = {"kernel_size": _REQUIRED, "stride": None, "padding": 0, "ceil_mode": False, "count_include_pad": True}
_LP: dict[str, Any] = {"norm_type": _REQUIRED, "kernel_size": _REQUIRED, "stride": None, "ceil_mode": False}


class MaxPool1d(_Pool):
    """Maxima of windows of (N, C, L)."""

    _function, _fields = "max_pool1d", _MAX


class MaxPool2d(_Pool):
    """Maxima of windows of (N, C, H, W)."""

    _function, _fields = "max_pool2d", _MAX


class MaxPool3d(_Pool):
    """Maxima of windows of (N, C, D, H, W)."""

    _function, _fields = "max_pool3d", _MAX


class AvgPool1d(_Pool):
    """Means of windows of (N, C, L)."""

    _function, _fields = "avg_pool1d", _AVG


class AvgPool2d(_Pool):
    """Means of windows of (N, C, H, W)."""

    _function, _fields = "avg_pool2d", {**_AVG, "divisor_override": None}


class AvgPool3d(_Pool):
    """Means of windows of (N, C, D, H, W)."""

    _function, _fields = "avg_pool3d", {**_AVG, "divisor_override": None}


class LPPool1d(_Pool):
    """p-norms of windows of (N, C, L)."""

    _function, _fields = "lp_pool1d", _LP


class LPPool2d(_Pool):
    """p-norms of windows of (N, C, H, W)."""

    _function, _fields = "lp_pool2d", _LP


class LPPool3d(_Pool):
    """p-norms of windows of (N, C, D, H, W)."""

    _function, _fields = "lp_pool3d", _LP


class AdaptiveAvgPool1d(_Pool):
    """Means over ``output_size`` windows of (N, C, L)."""

    _function, _fields = "adaptive_avg_pool1d", {"output_size": _REQUIRED}


class AdaptiveAvgPool2d(_Pool):
    """Means over ``output_size`` windows of (N, C, H, W)."""

    _function, _fields = "adaptive_avg_pool2d", {"output_size": _REQUIRED}


class AdaptiveAvgPool3d(_Pool):
    """Means over ``output_size`` windows of (N, C, D, H, W)."""

    _function, _fields = "adaptive_avg_pool3d", {"output_size": _REQUIRED}


class AdaptiveMaxPool1d(_Pool):
    """Maxima over ``output_size`` windows of (N, C, L)."""

    _function, _fields = "adaptive_max_pool1d", {"output_size": _REQUIRED, "return_indices": False}


class AdaptiveMaxPool2d(_Pool):
    """Maxima over ``output_size`` windows of (N, C, H, W)."""

    _function, _fields = "adaptive_max_pool2d", {"output_size": _REQUIRED, "return_indices": False}


class AdaptiveMaxPool3d(_Pool):
    """Maxima over ``output_size`` windows of (N, C, D, H, W)."""

    _function, _fields = "adaptive_max_pool3d", {"output_size": _REQUIRED, "return_indices": False}
