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
        alike: dict[Any, list[tuple[Any, ...]]] = {}
        for p in params:
            first = False
            kept: tuple[Any, ...] = (p,)
            if mu:
                state = self.state[p]
                first = state.get("momentum_buffer") is None
                if first:
                    state["momentum_buffer"] = filled(p, 0)
                kept = (p, state["momentum_buffer"])
            alike.setdefault((p._node.meta.dtype, first), []).append(kept)
        op = sgd_momentum_step if mu else sgd_step
        for (_, first), entries in alike.items():
            # A first velocity of zero that takes in all of the gradient is the gradient, by the same program as later steps.
            self._apply(op, attrs, entries, scalars(entries[0][0], lr, decay, mu, 1.0 if first else keep))
