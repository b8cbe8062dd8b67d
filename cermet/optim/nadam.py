"""NAdam."""

from __future__ import annotations

from typing import Any

from cermet.lazy.number import root
from cermet.optim.optimizer import (
    Params,
    Stepper,
    advance,
    check_betas,
    check_lr,
    counter,
    filled,
    not_negative,
    number_of,
    scalars,
    set_number,
)  # fmt: skip

__all__ = ["NAdam"]


class NAdam(Stepper):
    """Dozat, Incorporating Nesterov Momentum into Adam (ICLR workshop 2016), with its schedule ``mu_t = beta1 (1 - 0.96^(t
    momentum_decay) / 2)``.

    Raises:
        ValueError: for options out of their range.
    """

    def __init__(
        self, params: Params, lr: Any = 2e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
        weight_decay: float = 0, momentum_decay: float = 4e-3, decoupled_weight_decay: bool = False, *,
        foreach: bool | None = None, maximize: bool = False, capturable: bool = False, differentiable: bool = False,
    ) -> None:  # fmt: skip
        check_lr(lr)
        check_betas(betas)
        not_negative(eps=eps, weight_decay=weight_decay, momentum_decay=momentum_decay)
        defaults = {
            "lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "momentum_decay": momentum_decay,
            "decoupled_weight_decay": decoupled_weight_decay, "maximize": maximize, "foreach": foreach, "capturable": capturable,
            "differentiable": differentiable,
        }  # fmt: skip
        super().__init__(params, defaults)

    def _update(self, group: dict[str, Any], params: list[Any]) -> None:
        decoupled = bool(group["decoupled_weight_decay"])
        made: dict[Any, tuple[Any, ...]] = {}
        for p in params:
            state = self.state[p]
            if not state:
                state.update(step=counter(), mu_product=counter(1.0), exp_avg=filled(p, 0), exp_avg_sq=filled(p, 0))
            t = advance(state)
            product = number_of(state["mu_product"]) * _momentum(group, t)
            set_number(state, "mu_product", product)
            key = (t, product, p.dtype)
            numbers = made.get(key)
            if numbers is None:
                numbers = made[key] = self._numbers(group, p, t, product)
            kept = (p, state["exp_avg"], state["exp_avg_sq"])
            self._apply_rule(_rule, kept, numbers, group["maximize"], decays=group["weight_decay"] != 0, decoupled=decoupled)

    def _numbers(self, group: dict[str, Any], p: Any, t: int, product: float) -> tuple[Any, ...]:
        lr, decay = self._number(group["lr"]), group["weight_decay"]
        beta1, beta2 = group["betas"]
        after = _momentum(group, t + 1)
        now = lr * (1 - _momentum(group, t)) / (1 - product)
        ahead = lr * after / (1 - product * after)
        shrink = lr * decay if group["decoupled_weight_decay"] else decay
        return scalars(p, now, ahead, root(1 - beta2**t), 1 - beta1, beta2, 1 - beta2, group["eps"], shrink)


def _momentum(group: dict[str, Any], t: int) -> float:
    return group["betas"][0] * (1 - 0.5 * 0.96 ** (t * group["momentum_decay"]))


def _rule(
    p: Any, g: Any, m: Any, v: Any, now: Any, ahead: Any, root: Any, keep1: Any, beta2: Any, keep2: Any, eps: Any, decay: Any, *,
    decays: bool, decoupled: bool,
) -> tuple[Any, ...]:  # fmt: skip
    if decays and decoupled:
        p = p - p * decay
    elif decays:
        g = g + p * decay
    m = m + (g - m) * keep1
    v = v * beta2 + g * g * keep2
    return p - (g * now + m * ahead) / (v.sqrt() / root + eps), m, v
