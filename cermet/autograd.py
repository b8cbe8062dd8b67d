"""`cermet.autograd`: gradients by hand, functions with gradients of their own, and checks of gradients."""

from cermet.frontend.autograd import (
    Function,
    FunctionContext,
    backward,
    enable_grad,
    grad,
    inference_mode,
    is_grad_enabled,
    no_grad,
    once_differentiable,
    set_grad_enabled,
)
from cermet.frontend.gradcheck import gradcheck, gradgradcheck

__all__ = [
    "Function",
    "FunctionContext",
    "backward",
    "enable_grad",
    "grad",
    "gradcheck",
    "gradgradcheck",
    "inference_mode",
    "is_grad_enabled",
    "no_grad",
    "once_differentiable",
    "set_grad_enabled",
]
