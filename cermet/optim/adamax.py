"""Adamax."""

from __future__ import annotations

from typing import Any

from cermet.optim.optimizer import (
    Params,
    Stepper,
    advance,
    check_betas,
    check_lr,
    counter,
    filled,
    not_negative,
    scalars,
)  # fmt: skip

__all__ = ["Adamax"]


class Adamax(Stepper):
    """Kingma, Ba (arXiv:1412.6980, section 7.1): Adam with the infinity norm of past gradients in place of the second moment.

    Raises:
        ValueError: for options out of their range.
    """

    def __init__(
        self, params: Params, lr: Any = 2e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
        weight_decay: float = 0, foreach: bool | None = None, *, maximize: bool = False, differentiable: bool = False,
        capturable: bool = False,
    ) -> None:  # fmt: skip
        check_lr(lr)
        check_betas(betas)
        not_negative(eps=eps, weight_decay=weight_decay)
        defaults = {
            "lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "foreach": foreach, "maximize": maximize,
            "differentiable": differentiable, "capturable": capturable,
        }  # fmt: skip
        super().__init__(params, defaults)

    def _update(self, group: dict[str, Any], params: list[Any]) -> None:
        lr = self._number(group["lr"])
        beta1, beta2 = group["betas"]
        made: dict[Any, tuple[Any, ...]] = {}
        for p in params:
            state = self.state[p]
            if not state:
                state.update(step=counter(), exp_avg=filled(p, 0), exp_inf=filled(p, 0))
            t = advance(state)
            numbers = made.get((t, p.dtype))
            if numbers is None:
                size = lr / (1 - beta1**t)
                numbers = made[t, p.dtype] = scalars(p, size, 1 - beta1, beta2, group["eps"], group["weight_decay"])
            kept = (p, state["exp_avg"], state["exp_inf"])
            self._apply_rule(_rule, kept, numbers, group["maximize"], decays=group["weight_decay"] != 0)


def _rule(
    p: Any, g: Any, m: Any, top: Any, size: Any, keep: Any, beta2: Any, eps: Any, decay: Any, *, decays: bool
) -> tuple[Any, ...]:
    if decays:
        g = g + p * decay
    m = m + (g - m) * keep
    top = (top * beta2).maximum(g.abs() + eps)
    return p - m / top * size, m, top
