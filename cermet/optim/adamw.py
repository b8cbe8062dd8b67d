"""AdamW: Adam with decoupled weight decay."""

from __future__ import annotations

from typing import Any

from cermet.optim.adam import Adam
from cermet.optim.optimizer import Params

__all__ = ["AdamW"]


class AdamW(Adam):
    """Loshchilov, Hutter, Decoupled Weight Decay Regularization (arXiv:1711.05101): the decay shrinks the parameter by ``lr *
    weight_decay`` and takes no part in the moments.

    Raises:
        ValueError: for options out of their range.
    """

    def __init__(
        self, params: Params, lr: Any = 1e-3, betas: tuple[Any, Any] = (0.9, 0.999), eps: float = 1e-8,
        weight_decay: float = 1e-2, amsgrad: bool = False, *, maximize: bool = False, foreach: bool | None = None,
        capturable: bool = False, differentiable: bool = False, fused: bool | None = None,
    ) -> None:  # fmt: skip
        super().__init__(
            params, lr, betas, eps, weight_decay, amsgrad, foreach=foreach, maximize=maximize, capturable=capturable,
            differentiable=differentiable, fused=fused, decoupled_weight_decay=True,
        )  # fmt: skip
