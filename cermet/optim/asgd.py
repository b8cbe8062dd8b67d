"""Averaged stochastic gradient descent."""

from __future__ import annotations

from typing import Any

from cermet.lazy.number import real
from cermet.ops.public import PUBLIC
from cermet.optim.optimizer import (
    Params,
    Stepper,
    advance,
    check_lr,
    counter,
    filled,
    not_negative,
    number_of,
    scalars,
    set_number,
)  # fmt: skip

__all__ = ["ASGD"]


class ASGD(Stepper):
    """Polyak, Juditsky, Acceleration of stochastic approximation by averaging (1992): gradient descent whose iterates after step
    ``t0`` are averaged in ``state[p]["ax"]``; the rate falls as ``lr / (1 + lambd lr t)^alpha``, and ``lambd`` shrinks the
    parameter.

    Raises:
        ValueError: for a negative learning rate or weight decay.
    """

    def __init__(
        self, params: Params, lr: Any = 1e-2, lambd: float = 1e-4, alpha: float = 0.75, t0: float = 1e6, weight_decay: float = 0,
        foreach: bool | None = None, maximize: bool = False, differentiable: bool = False, capturable: bool = False,
    ) -> None:  # fmt: skip
        check_lr(lr)
        not_negative(weight_decay=weight_decay)
        defaults = {
            "lr": lr, "lambd": lambd, "alpha": alpha, "t0": t0, "weight_decay": weight_decay, "foreach": foreach,
            "maximize": maximize, "differentiable": differentiable, "capturable": capturable,
        }  # fmt: skip
        super().__init__(params, defaults)

    def _update(self, group: dict[str, Any], params: list[Any]) -> None:
        lr, lambd = self._number(group["lr"]), group["lambd"]
        made: dict[Any, tuple[Any, ...]] = {}
        for p in params:
            state = self.state[p]
            if not state:
                state.update(step=counter(), eta=counter(real(lr)), mu=counter(1.0), ax=filled(p, 0))
            t = advance(state)
            eta, mu = number_of(state["eta"]), number_of(state["mu"])
            key = (eta, mu, p.dtype)
            numbers = made.get(key)
            if numbers is None:
                numbers = made[key] = scalars(p, eta, lambd * eta, mu, group["weight_decay"])
            kept = (p, state["ax"])
            self._apply_rule(_rule, kept, numbers, group["maximize"], decays=group["weight_decay"] != 0)
            set_number(state, "eta", real(lr) / (1 + lambd * real(lr) * t) ** group["alpha"])
            set_number(state, "mu", 1 / max(1, t - group["t0"]))


def _rule(p: Any, g: Any, mean: Any, eta: Any, shrink: Any, mu: Any, decay: Any, *, decays: bool) -> tuple[Any, ...]:
    if decays:
        g = g + p * decay
    p = p - p * shrink - g * eta
    return p, PUBLIC[("", "where")].fn(mu == 1.0, p, mean + (p - mean) * mu)
