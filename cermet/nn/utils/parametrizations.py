"""Ready-made parametrizations: weight normalisation and spectral normalisation."""

from __future__ import annotations

from typing import Any

from cermet.frontend.autograd import Mode
from cermet.nn import functional
from cermet.nn.module import Module
from cermet.nn.utils.parametrize import register_parametrization
from cermet.ops.norms import weight_norm_op
from cermet.ops.public import PUBLIC
from cermet.ops.support import wrap_dim

F: Any = functional

__all__ = ["spectral_norm", "weight_norm"]


def weight_dim(weight: Any, dim: int | None) -> int:
    """The dim whose slices are normalised, -1 for the tensor as a whole (PyTorch's None and -1)."""
    return -1 if dim is None or dim == -1 else wrap_dim(dim, len(weight.shape), "weight_norm")


def slice_norms(weight: Any, dim: int) -> Any:
    """The norm of each slice, with kept dims; of no dims for -1."""
    if dim < 0:
        return weight.square().sum().sqrt()
    return weight.square().sum([k for k in range(len(weight.shape)) if k != dim], keepdim=True).sqrt()


class _WeightNorm(Module):
    def __init__(self, dim: int | None = 0) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, weight_g: Any, weight_v: Any) -> Any:
        return weight_norm_op(weight_v, weight_g, dim=weight_dim(weight_v, self.dim))

    def right_inverse(self, weight: Any) -> tuple[Any, Any]:
        return slice_norms(weight, weight_dim(weight, self.dim)), weight


def weight_norm(module: Module, name: str = "weight", dim: int | None = 0) -> Module:
    """Split a weight into magnitude (``original0``) and direction (``original1``) of its slices along ``dim``, which are trained
    instead (Salimans, Kingma 2016, arXiv:1602.07868). None: one magnitude for all."""
    register_parametrization(module, name, _WeightNorm(dim), unsafe=True)
    return module


class _SpectralNorm(Module):
    """The weight as a matrix over its greatest singular value, which power iteration follows.

    Attributes:
        _u, _v: estimates of the singular vectors.
    """

    def __init__(self, weight: Any, n_power_iterations: int = 1, dim: int = 0, eps: float = 1e-12) -> None:
        super().__init__()
        if n_power_iterations <= 0:
            raise ValueError(f"spectral_norm: n_power_iterations={n_power_iterations}; give 1 or more")
        self.dim, self.eps, self.n_power_iterations = wrap_dim(dim, len(weight.shape), "spectral_norm"), eps, n_power_iterations
        if len(weight.shape) > 1:
            with Mode(False):
                m = self._matrix(weight)
                randn = PUBLIC[("", "randn")].fn
                for name, size in (("_u", m.shape[0]), ("_v", m.shape[1])):
                    self.register_buffer(name, F.normalize(randn(size, dtype=m.dtype), dim=0, eps=eps))
                self._iterate(m, 15)

    def _matrix(self, weight: Any) -> Any:
        """(size along dim, the rest)."""
        dims = (self.dim, *[k for k in range(len(weight.shape)) if k != self.dim])
        return weight.permute(dims).reshape(weight.shape[self.dim], -1)

    def _iterate(self, m: Any, times: int) -> None:
        with Mode(False):
            u: Any = self._u
            v: Any = self._v
            a = m.detach()
            for _ in range(times):
                u = F.normalize(a.mv(v), dim=0, eps=self.eps)
                v = F.normalize(a.t().mv(u), dim=0, eps=self.eps)
            self._u._write(u)
            self._v._write(v)

    def forward(self, weight: Any) -> Any:
        if len(weight.shape) == 1:
            return F.normalize(weight, dim=0, eps=self.eps)
        m = self._matrix(weight)
        if self.training:
            self._iterate(m, self.n_power_iterations)
        # Copies: a later iteration must not change what this gradient reads.
        u, v = self._u.clone(), self._v.clone()
        return weight / u.dot(m.mv(v))

    def right_inverse(self, value: Any) -> Any:
        return value


def spectral_norm(
    module: Module, name: str = "weight", n_power_iterations: int = 1, eps: float = 1e-12, dim: int | None = None
) -> Module:
    """Divide a weight by its greatest singular value (Miyato et al. 2018, arXiv:1802.05957).

    Args:
        n_power_iterations: steps of power iteration at each reading in training mode.
        dim: the dim that the matrix's rows come from; by default 0, and 1 for transposed convolutions.
    """
    weight = getattr(module, name, None)
    if weight is None:
        raise ValueError(f"spectral_norm: a {type(module).__name__} has no tensor {name!r}")
    register_parametrization(module, name, _SpectralNorm(weight, n_power_iterations, row_dim(module, dim), eps))
    return module


def row_dim(module: Module, dim: int | None) -> int:
    """``dim``, or where a layer keeps its outputs: in dim 1 of a transposed convolution's weight, else in dim 0."""
    if dim is not None:
        return dim
    from cermet.nn.conv import ConvTranspose1d, ConvTranspose2d, ConvTranspose3d

    return 1 if isinstance(module, ConvTranspose1d | ConvTranspose2d | ConvTranspose3d) else 0
