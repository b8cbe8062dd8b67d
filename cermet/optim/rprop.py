"""Rprop."""

from __future__ import annotations

from typing import Any

from cermet.ops.public import PUBLIC
from cermet.optim.optimizer import (
    Params,
    Stepper,
    advance,
    check,
    check_lr,
    counter,
    filled,
    scalars,
)

__all__ = ["Rprop"]


class Rprop(Stepper):
    """Riedmiller, Braun, A direct adaptive method for faster backpropagation learning (ICNN 1993): each element has a step size
    of its own, which grows by ``etas[1]`` while the gradient keeps its sign and shrinks by ``etas[0]`` when it changes; then that
    element rests for a step.

    Raises:
        ValueError: unless ``0 < etas[0] < 1 < etas[1]``.
    """

    def __init__(
        self, params: Params, lr: Any = 1e-2, etas: tuple[float, float] = (0.5, 1.2),
        step_sizes: tuple[float, float] = (1e-6, 50), *, capturable: bool = False, foreach: bool | None = None,
        maximize: bool = False, differentiable: bool = False,
    ) -> None:  # fmt: skip
        check_lr(lr)
        check(0.0 < etas[0] < 1.0 < etas[1], f"etas={etas}: the first must lie in (0, 1), the second above 1")
        defaults = {
            "lr": lr, "etas": etas, "step_sizes": step_sizes, "foreach": foreach, "maximize": maximize,
            "differentiable": differentiable, "capturable": capturable,
        }  # fmt: skip
        super().__init__(params, defaults)

    def _update(self, group: dict[str, Any], params: list[Any]) -> None:
        made: dict[Any, tuple[Any, ...]] = {}
        for p in params:
            state = self.state[p]
            if not state:
                lr = group["lr"]
                state.update(step=counter(), prev=filled(p, 0), step_size=filled(p, float(lr)))
            advance(state)
            numbers = made.get(p.dtype)
            if numbers is None:
                numbers = made[p.dtype] = scalars(p, *group["etas"], *group["step_sizes"], 1.0, 0.0)
            kept = (p, state["prev"], state["step_size"])
            self._apply_rule(_rule, kept, numbers, group["maximize"])


def _rule(
    p: Any, g: Any, before: Any, size: Any, down: Any, up: Any, least: Any, most: Any, one: Any, zero: Any
) -> tuple[Any, ...]:
    where = PUBLIC[("", "where")].fn
    turn = g * before
    factor = where(turn > zero, up, where(turn < zero, down, one))
    size = (size * factor).maximum(least).minimum(most)
    g = where(turn < zero, zero, g)
    return p - g.sign() * size, g, size
