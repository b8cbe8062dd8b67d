"""Gradients kept within bounds: by their common norm, or element by element."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from cermet.frontend.autograd import Mode
from cermet.frontend.core import TensorBase, apply, write
from cermet.ops.arithmetic import minimum
from cermet.ops.define import hooks
from cermet.ops.elementwise import div, mul
from cermet.ops.norms import total_norm
from cermet.ops.support import result_dtype, to_dtype

__all__ = ["clip_grad_norm", "clip_grad_norm_", "clip_grad_value_", "clip_grads_with_norm_", "get_total_norm"]

_SMALL = 1e-6  # PyTorch's: keeps the factor finite where all gradients are zero


def _listed(tensors: Any) -> list[Any]:
    return [tensors] if isinstance(tensors, TensorBase) else list(tensors)


def _gradients(parameters: Any) -> list[Any]:
    return [p.grad for p in _listed(parameters) if p.grad is not None]


def get_total_norm(
    tensors: Iterable[Any], norm_type: float = 2.0, error_if_nonfinite: bool = False, foreach: bool | None = None
) -> Any:
    """The norm of all elements of ``tensors`` as if they stood in one vector, as one recorded op.

    Args:
        norm_type: p of the p-norm; ``float("inf")`` for the greatest magnitude. foreach: accepted and of no effect.
        error_if_nonfinite: look at the norm, and raise where it is infinite or not a number.

    Raises:
        RuntimeError: see ``error_if_nonfinite``.
    """
    found = _listed(tensors)
    if not found:
        return hooks.to_tensor(0.0, dtype=None, like=None)
    with Mode(False):
        wanted = result_dtype(*found)
        norm = total_norm(*[to_dtype(t, wanted) for t in found], p=float(norm_type))
    if error_if_nonfinite and not bool(norm.isfinite()):
        raise RuntimeError(
            f"the {norm_type}-norm of the gradients is {norm.item()}: a gradient is infinite or NaN, and scaling cannot mend that. "
            "Leave this step out, or pass error_if_nonfinite=False to go on regardless"
        )
    return norm


def clip_grads_with_norm_(parameters: Any, max_norm: float, total_norm: Any, foreach: bool | None = None) -> None:
    """Scale the gradients of ``parameters`` in place by ``min(1, max_norm / (total_norm + 1e-6))``."""
    with Mode(False):
        factor = minimum(div(float(max_norm), total_norm + _SMALL), 1.0)
        factors: dict[Any, Any] = {}
        for g in _gradients(parameters):
            dtype = g.dtype
            own = factors.get(dtype)
            if own is None:
                own = factors[dtype] = to_dtype(factor, dtype)
            write(g, apply(mul, (g, own)))


def clip_grad_norm_(
    parameters: Any, max_norm: float, norm_type: float = 2.0, error_if_nonfinite: bool = False, foreach: bool | None = None
) -> Any:
    """Scale the gradients of ``parameters`` in place so that their common norm is at most ``max_norm``.

    Args:
        parameters: one tensor, or several; those without a gradient are passed over.
        norm_type, error_if_nonfinite, foreach: as for `get_total_norm`.

    Returns:
        The norm before clipping, a tensor of no dimensions.
    """
    found = _listed(parameters)
    norm = get_total_norm(_gradients(found), norm_type, error_if_nonfinite, foreach)
    clip_grads_with_norm_(found, max_norm, norm, foreach)
    return norm


clip_grad_norm = clip_grad_norm_


def clip_grad_value_(parameters: Any, clip_value: float, foreach: bool | None = None) -> None:
    """Clamp every element of the gradients of ``parameters`` to [-clip_value, clip_value], in place."""
    bound = float(clip_value)
    with Mode(False):
        for g in _gradients(parameters):
            g._write(g.clamp(-bound, bound))
