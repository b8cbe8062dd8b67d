"""Batch normalisation folded into the layer before it, for evaluation."""

from __future__ import annotations

import copy
from typing import Any

from cermet.frontend.autograd import Mode
from cermet.nn.module import Module
from cermet.nn.parameter import Parameter

__all__ = ["fuse_conv_bn_eval", "fuse_conv_bn_weights", "fuse_linear_bn_eval", "fuse_linear_bn_weights"]


def _fused(w: Any, b: Any, mean: Any, var: Any, eps: float, weight: Any, bias: Any, shape: list[int]) -> tuple[Any, Any]:
    with Mode(False):
        scale = (var + eps).rsqrt()
        if weight is not None:
            scale = scale * weight
        shift = -mean * scale if b is None else (b - mean) * scale
        if bias is not None:
            shift = shift + bias
        return Parameter((w * scale.reshape(shape)).to(w.dtype), w.requires_grad), Parameter(shift.to(w.dtype))


def fuse_conv_bn_weights(
    conv_w: Any, conv_b: Any, bn_rm: Any, bn_rv: Any, bn_eps: float, bn_w: Any, bn_b: Any, transpose: bool = False
) -> tuple[Any, Any]:
    """Weight and bias of one convolution that does what the convolution and the batch norm after it do."""
    shape = [1] * conv_w.ndim
    shape[1 if transpose else 0] = -1
    return _fused(conv_w, conv_b, bn_rm, bn_rv, bn_eps, bn_w, bn_b, shape)


def fuse_linear_bn_weights(
    linear_w: Any, linear_b: Any, bn_rm: Any, bn_rv: Any, bn_eps: float, bn_w: Any, bn_b: Any
) -> tuple[Any, Any]:
    """Weight and bias of one linear layer that does what the layer and the batch norm after it do."""
    return _fused(linear_w, linear_b, bn_rm, bn_rv, bn_eps, bn_w, bn_b, [-1, 1])


def _folded(layer: Any, bn: Any, fuse: Any, *more: Any) -> Any:
    if layer.training or bn.training:
        raise RuntimeError("a batch norm can be folded in only in evaluation mode; call .eval() on both layers first")
    out = copy.deepcopy(layer)
    out.weight, out.bias = fuse(out.weight, out.bias, bn.running_mean, bn.running_var, bn.eps, bn.weight, bn.bias, *more)
    return out


def fuse_conv_bn_eval(conv: Module, bn: Module, transpose: bool = False) -> Module:
    """A copy of the convolution with the batch norm after it folded in; both must be in evaluation mode."""
    return _folded(conv, bn, fuse_conv_bn_weights, transpose)


def fuse_linear_bn_eval(linear: Module, bn: Module) -> Module:
    """A copy of the linear layer with the batch norm after it folded in; both must be in evaluation mode."""
    return _folded(linear, bn, fuse_linear_bn_weights)
