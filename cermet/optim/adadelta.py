"""Adadelta."""

from __future__ import annotations

from typing import Any

from cermet.optim.optimizer import (
    Params,
    Stepper,
    advance,
    check,
    check_lr,
    counter,
    filled,
    not_negative,
    scalars,
)  # fmt: skip

__all__ = ["Adadelta"]


class Adadelta(Stepper):
    """Zeiler, ADADELTA (arXiv:1212.5701): steps in the units of the parameter, ``rms(steps so far) / rms(gradients so far) * g``.

    Raises:
        ValueError: for options out of their range.
    """

    def __init__(
        self, params: Params, lr: Any = 1.0, rho: float = 0.9, eps: float = 1e-6, weight_decay: float = 0,
        foreach: bool | None = None, *, capturable: bool = False, maximize: bool = False, differentiable: bool = False,
    ) -> None:  # fmt: skip
        check_lr(lr)
        not_negative(eps=eps, weight_decay=weight_decay)
        check(0.0 <= rho <= 1.0, f"rho={rho}: must lie in [0, 1]")
        defaults = {
            "lr": lr, "rho": rho, "eps": eps, "weight_decay": weight_decay, "maximize": maximize, "capturable": capturable,
            "foreach": foreach, "differentiable": differentiable,
        }  # fmt: skip
        super().__init__(params, defaults)

    def _update(self, group: dict[str, Any], params: list[Any]) -> None:
        lr, rho = self._number(group["lr"]), group["rho"]
        made: dict[Any, tuple[Any, ...]] = {}
        for p in params:
            state = self.state[p]
            if not state:
                state.update(step=counter(), square_avg=filled(p, 0), acc_delta=filled(p, 0))
            advance(state)
            numbers = made.get(p.dtype)
            if numbers is None:
                numbers = made[p.dtype] = scalars(p, lr, rho, 1 - rho, group["eps"], group["weight_decay"])
            kept = (p, state["square_avg"], state["acc_delta"])
            self._apply_rule(_rule, kept, numbers, group["maximize"], decays=group["weight_decay"] != 0)


def _rule(
    p: Any, g: Any, squares: Any, steps: Any, lr: Any, rho: Any, keep: Any, eps: Any, decay: Any, *, decays: bool
) -> tuple[Any, ...]:
    if decays:
        g = g + p * decay
    squares = squares * rho + g * g * keep
    step = (steps + eps).sqrt() / (squares + eps).sqrt() * g
    return p - step * lr, squares, steps * rho + step * step * keep
