"""Weight normalisation by a hook, as PyTorch did it before parametrizations."""

from __future__ import annotations

from typing import Any

from cermet.nn.module import Module
from cermet.nn.parameter import Parameter
from cermet.nn.utils.parametrizations import slice_norms, weight_dim
from cermet.ops.norms import weight_norm_op

__all__ = ["remove_weight_norm", "weight_norm"]


class WeightNorm:
    """Computes the weight from ``name_g`` and ``name_v`` before each forward pass."""

    def __init__(self, name: str, dim: int) -> None:
        self.name, self.dim = name, dim

    def compute_weight(self, module: Module) -> Any:
        """The weight of the present magnitude and direction."""
        g, v = getattr(module, self.name + "_g"), getattr(module, self.name + "_v")
        return weight_norm_op(v, g, dim=self.dim)

    def __call__(self, module: Module, inputs: Any) -> None:
        setattr(module, self.name, self.compute_weight(module))


def _hook_of(module: Module, name: str) -> Any:
    for token, (hook, _) in module._forward_pre_hooks.items():
        if isinstance(hook, WeightNorm) and hook.name == name:
            return token, hook
    return None


def weight_norm(module: Module, name: str = "weight", dim: int | None = 0) -> Module:
    """Replace a weight by its magnitudes ``name_g`` and directions ``name_v`` (Salimans, Kingma 2016, arXiv:1602.07868).

    Raises:
        RuntimeError: where the weight is normalised already.
    """
    if _hook_of(module, name) is not None:
        raise RuntimeError(f"weight_norm: {name!r} is normalised already; use remove_weight_norm first")
    weight = getattr(module, name)
    hook = WeightNorm(name, weight_dim(weight, dim))
    del module._parameters[name]
    value = weight.detach()
    module.register_parameter(name + "_g", Parameter(slice_norms(value, hook.dim)))
    module.register_parameter(name + "_v", Parameter(value))
    setattr(module, name, hook.compute_weight(module))
    module.register_forward_pre_hook(hook)
    return module


def remove_weight_norm(module: Module, name: str = "weight") -> Module:
    """Undo `weight_norm`; the weight keeps its present value.

    Raises:
        ValueError: where there is nothing to undo.
    """
    found = _hook_of(module, name)
    if found is None:
        raise ValueError(f"remove_weight_norm: {name!r} of this {type(module).__name__} is not normalised")
    token, hook = found
    value = hook.compute_weight(module).detach()
    del module._forward_pre_hooks[token]
    delattr(module, name)
    del module._parameters[name + "_g"], module._parameters[name + "_v"]
    module.register_parameter(name, Parameter(value))
    return module
