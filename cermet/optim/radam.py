"""RAdam."""

from __future__ import annotations

from typing import Any

from cermet.lazy.number import root
from cermet.ops.public import PUBLIC
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

__all__ = ["RAdam"]


class RAdam(Stepper):
    """Liu et al., On the Variance of the Adaptive Learning Rate and Beyond (arXiv:1908.03265): Adam whose adaptive factor is
    rectified while its variance is known, and left out in the first steps, while it is not.

    Raises:
        ValueError: for options out of their range.
    """

    def __init__(
        self, params: Params, lr: Any = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
        weight_decay: float = 0, decoupled_weight_decay: bool = False, *, foreach: bool | None = None, maximize: bool = False,
        capturable: bool = False, differentiable: bool = False,
    ) -> None:  # fmt: skip
        check_lr(lr)
        check_betas(betas)
        not_negative(eps=eps, weight_decay=weight_decay)
        defaults = {
            "lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "maximize": maximize, "foreach": foreach,
            "capturable": capturable, "decoupled_weight_decay": decoupled_weight_decay, "differentiable": differentiable,
        }  # fmt: skip
        super().__init__(params, defaults)

    def _update(self, group: dict[str, Any], params: list[Any]) -> None:
        decoupled = bool(group["decoupled_weight_decay"])
        made: dict[Any, tuple[Any, ...]] = {}
        for p in params:
            state = self.state[p]
            if not state:
                state.update(step=counter(), exp_avg=filled(p, 0), exp_avg_sq=filled(p, 0))
            t = advance(state)
            numbers = made.get((t, p.dtype))
            if numbers is None:
                numbers = made[t, p.dtype] = self._numbers(group, p, t)
            kept = (p, state["exp_avg"], state["exp_avg_sq"])
            self._apply_rule(_rule, kept, numbers, group["maximize"], decays=group["weight_decay"] != 0, decoupled=decoupled)

    def _numbers(self, group: dict[str, Any], p: Any, t: int) -> tuple[Any, ...]:
        lr, decay = self._number(group["lr"]), group["weight_decay"]
        beta1, beta2 = group["betas"]
        size = lr / (1 - beta1**t)
        left = 1 - beta2**t
        longest = 2 / (1 - beta2) - 1
        length = longest - 2 * t * beta2**t / left
        rectified, plain = 0.0 * size, size
        if length > 5.0:
            spread = (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)
            rectified, plain = size * root(spread * left), 0.0 * size
        shrink = lr * decay if group["decoupled_weight_decay"] else decay
        return scalars(p, rectified, plain, float(length > 5.0), 1 - beta1, beta2, 1 - beta2, group["eps"], shrink)


def _rule(
    p: Any, g: Any, m: Any, v: Any, rectified: Any, plain: Any, known: Any, keep1: Any, beta2: Any, keep2: Any, eps: Any,
    decay: Any, *, decays: bool, decoupled: bool,
) -> tuple[Any, ...]:  # fmt: skip
    if decays and decoupled:
        p = p - p * decay
    elif decays:
        g = g + p * decay
    m = m + (g - m) * keep1
    v = v * beta2 + g * g * keep2
    # Both cases in one program: which it is depends on the step's number, and a step's number compiles nothing.
    factor = PUBLIC[("", "where")].fn(known > 0, rectified / (v.sqrt() + eps), plain)
    return p - m * factor, m, v
