"""Spectral normalisation by a hook, as PyTorch did it before parametrizations."""

from __future__ import annotations

from typing import Any

from cermet.nn.module import Module
from cermet.nn.parameter import Parameter
from cermet.nn.utils.parametrizations import _SpectralNorm, row_dim

__all__ = ["remove_spectral_norm", "spectral_norm"]


class SpectralNorm:
    """Computes the weight from ``name_orig`` before each forward pass; ``name_u``, ``name_v`` estimate its singular vectors."""

    def __init__(self, name: str, rule: _SpectralNorm) -> None:
        self.name, self.rule = name, rule

    def compute_weight(self, module: Module) -> Any:
        """The present weight over its greatest singular value; in training mode after a step of power iteration."""
        rule = self.rule
        rule.training = module.training
        # The estimates are the module's, so that they are saved with it.
        rule._u, rule._v = getattr(module, self.name + "_u"), getattr(module, self.name + "_v")
        return rule(getattr(module, self.name + "_orig"))

    def __call__(self, module: Module, inputs: Any) -> None:
        setattr(module, self.name, self.compute_weight(module))


def _hook_of(module: Module, name: str) -> Any:
    for token, (hook, _) in module._forward_pre_hooks.items():
        if isinstance(hook, SpectralNorm) and hook.name == name:
            return token, hook
    return None


def spectral_norm(
    module: Module, name: str = "weight", n_power_iterations: int = 1, eps: float = 1e-12, dim: int | None = None
) -> Module:
    """Divide a weight by its greatest singular value before each forward pass (Miyato et al. 2018, arXiv:1802.05957).

    Raises:
        RuntimeError: where the weight is normalised already.
    """
    if _hook_of(module, name) is not None:
        raise RuntimeError(f"spectral_norm: {name!r} is normalised already; use remove_spectral_norm first")
    weight = module._parameters.pop(name)
    if weight is None:
        raise ValueError(f"spectral_norm: this {type(module).__name__} was made without {name!r}")
    rule = _SpectralNorm(weight, n_power_iterations, row_dim(module, dim), eps)
    module.register_parameter(name + "_orig", weight)
    setattr(module, name, weight.detach())
    module.register_buffer(name + "_u", rule._u)
    module.register_buffer(name + "_v", rule._v)
    module.register_forward_pre_hook(SpectralNorm(name, rule))
    return module


def remove_spectral_norm(module: Module, name: str = "weight") -> Module:
    """Undo `spectral_norm`; the weight keeps its present normalised value.

    Raises:
        ValueError: where there is nothing to undo.
    """
    found = _hook_of(module, name)
    if found is None:
        raise ValueError(f"remove_spectral_norm: {name!r} of this {type(module).__name__} is not normalised")
    token, hook = found
    training, module.training = module.training, False
    value = hook.compute_weight(module).detach()
    module.training = training
    del module._forward_pre_hooks[token]
    delattr(module, name)
    del module._parameters[name + "_orig"], module._buffers[name + "_u"], module._buffers[name + "_v"]
    module.register_parameter(name, Parameter(value))
    return module
