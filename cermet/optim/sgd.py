"""Stochastic gradient descent."""

from __future__ import annotations

from typing import Any

from cermet.ops.optimizers import sgd_momentum_step, sgd_step
from cermet.optim.optimizer import Params, Stepper, check, check_lr, check_modes, filled, not_negative, scalars

__all__ = ["SGD"]


class SGD(Stepper):
    """Stochastic gradient descent, with momentum as in Sutskever et al., On the importance of initialization and momentum in deep
    learning (2013).

    ``v = momentum * v + (1 - dampening) * g``, ``p = p - lr * v`` (``g + momentum * v`` instead of ``v`` with ``nesterov``),
    where ``g`` is the gradient plus ``weight_decay * p``. The first ``v`` is ``g``.

    Raises:
        ValueError: for negative options, and for ``nesterov`` without momentum or with dampening.
    """

    def __init__(
        self, params: Params, lr: Any = 1e-3, momentum: float = 0, dampening: float = 0, weight_decay: Any = 0,
        nesterov: bool = False, *, maximize: bool = False, foreach: bool | None = None, differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:  # fmt: skip
        check_lr(lr)
        not_negative(momentum=momentum, weight_decay=weight_decay)
        check(
            not nesterov or (momentum > 0 and dampening == 0),
            f"nesterov=True with momentum={momentum}, dampening={dampening}: give a positive momentum and leave dampening out",
        )
        check_modes(differentiable, foreach, fused)
        defaults = {
            "lr": lr, "momentum": momentum, "dampening": dampening, "weight_decay": weight_decay, "nesterov": nesterov,
            "maximize": maximize, "foreach": foreach, "differentiable": differentiable, "fused": fused,
        }  # fmt: skip
        super().__init__(params, defaults)

    def _update(self, group: dict[str, Any], params: list[Any]) -> None:
        lr, decay = self._number(group["lr"]), self._number(group["weight_decay"])
        mu, keep = group["momentum"], 1 - group["dampening"]
        attrs = (mu != 0, bool(group["nesterov"]), bool(group["maximize"]), False)
        made: dict[Any, tuple[Any, ...]] = {}
        for p in params:
            state = self.state[p] if mu else {}
            first = mu != 0 and state.get("momentum_buffer") is None
            key = (p.dtype, first)
            numbers = made.get(key)
            if numbers is None:
                # A first velocity of zero that takes in all of the gradient is the gradient, by the same program as later steps.
                numbers = made[key] = scalars(p, lr, decay, mu, 1.0 if first else keep)
            if first:
                state["momentum_buffer"] = filled(p, 0)
            if mu:
                self._apply(sgd_momentum_step, attrs, (p, state["momentum_buffer"]), numbers)
            else:
                self._apply(sgd_step, attrs, (p,), numbers)
