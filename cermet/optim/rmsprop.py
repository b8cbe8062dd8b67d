"""RMSprop."""

from __future__ import annotations

from typing import Any

from cermet.ops.optimizers import rmsprop_steps
from cermet.optim.adam import rounded
from cermet.optim.optimizer import (
    Params,
    Stepper,
    advance,
    check_lr,
    counter,
    filled,
    not_negative,
    scalars,
)  # fmt: skip

__all__ = ["RMSprop"]


class RMSprop(Stepper):
    """Hinton, Neural Networks for Machine Learning, lecture 6 (2012); ``centered`` as in Graves (arXiv:1308.0850).

    ``v = alpha v + (1 - alpha) g^2``, ``p -= lr * g / (sqrt(v) + eps)``; ``centered`` subtracts the squared mean gradient from
    ``v``, ``momentum`` accumulates the steps.

    Raises:
        ValueError: for negative options.
    """

    def __init__(
        self, params: Params, lr: Any = 1e-2, alpha: float = 0.99, eps: float = 1e-8, weight_decay: float = 0,
        momentum: float = 0, centered: bool = False, capturable: bool = False, foreach: bool | None = None,
        maximize: bool = False, differentiable: bool = False,
    ) -> None:  # fmt: skip
        check_lr(lr)
        not_negative(alpha=alpha, eps=eps, momentum=momentum, weight_decay=weight_decay)
        defaults = {
            "lr": lr, "momentum": momentum, "alpha": alpha, "eps": eps, "centered": centered, "weight_decay": weight_decay,
            "capturable": capturable, "foreach": foreach, "maximize": maximize, "differentiable": differentiable,
        }  # fmt: skip
        super().__init__(params, defaults)

    def _update(self, group: dict[str, Any], params: list[Any]) -> None:
        lr, centered, momentum = self._number(group["lr"]), bool(group["centered"]), group["momentum"] > 0
        options = (group["alpha"], group["eps"], group["weight_decay"], group["momentum"])
        op = rmsprop_steps.get((centered, momentum))
        counts: dict[float, Any] = {}
        made: dict[Any, tuple[Any, ...]] = {}
        alike: dict[Any, list[tuple[Any, ...]]] = {}
        for p in params:
            state = self._born(p, centered, momentum)
            advance(state, counts)
            numbers = made.get(p.dtype)
            if numbers is None:
                more = (1 - rounded(group["alpha"], p),) if op is None else ()
                numbers = made[p.dtype] = scalars(p, lr, *options, *more)
            kept = [p, state["square_avg"]]
            if centered:
                kept.append(state["grad_avg"])
            if momentum:
                kept.append(state["momentum_buffer"])
            if op is None:
                self._apply_rule(_centered, tuple(kept), numbers, group["maximize"], decays=group["weight_decay"] != 0)
            else:
                alike.setdefault(p._node.meta.dtype, []).append(tuple(kept))
        if op is not None:
            for dtype, entries in alike.items():
                self._apply(op, (centered, momentum, bool(group["maximize"])), entries, made[dtype])

    def _born(self, p: Any, centered: bool, momentum: bool) -> dict[str, Any]:
        state = self.state[p]
        if not state:
            state.update(step=counter(), square_avg=filled(p, 0))
            if momentum:
                state["momentum_buffer"] = filled(p, 0)
            if centered:
                state["grad_avg"] = filled(p, 0)
        return state


def _centered(p: Any, g: Any, v: Any, mean: Any, *rest: Any, decays: bool) -> tuple[Any, ...]:
    *moving, lr, alpha, eps, decay, mu, keep = rest
    if decays:
        g = g + p * decay
    v = v * alpha + g * g * keep
    mean = mean + (g - mean) * keep
    step = g / ((v - mean * mean).sqrt() + eps)
    if not moving:
        return p - step * lr, v, mean
    step = moving[0] * mu + step
    return p - step * lr, v, mean, step
