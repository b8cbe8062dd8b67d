"""Adagrad."""

from __future__ import annotations

from typing import Any

from cermet.ops.optimizers import adagrad_step
from cermet.optim.optimizer import Params, Stepper, advance, check_lr, check_modes, counter, filled, not_negative, scalars

__all__ = ["Adagrad"]


class Adagrad(Stepper):
    """Duchi, Hazan, Singer, Adaptive Subgradient Methods (JMLR 12, 2011): ``s += g^2``, ``p -= lr / (1 + (t - 1) lr_decay) * g /
    (sqrt(s) + eps)``.

    Raises:
        ValueError: for negative options.
    """

    def __init__(
        self, params: Params, lr: Any = 1e-2, lr_decay: float = 0, weight_decay: float = 0, initial_accumulator_value: float = 0,
        eps: float = 1e-10, foreach: bool | None = None, *, maximize: bool = False, differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:  # fmt: skip
        check_lr(lr)
        not_negative(lr_decay=lr_decay, weight_decay=weight_decay, eps=eps, initial_accumulator_value=initial_accumulator_value)
        check_modes(differentiable, foreach, fused)
        defaults = {
            "lr": lr, "lr_decay": lr_decay, "eps": eps, "weight_decay": weight_decay,
            "initial_accumulator_value": initial_accumulator_value, "foreach": foreach, "maximize": maximize,
            "differentiable": differentiable, "fused": fused,
        }  # fmt: skip
        super().__init__(params, defaults)
        for group in self.param_groups:
            for p in group["params"]:
                self._born(group, p)

    def _born(self, group: dict[str, Any], p: Any) -> dict[str, Any]:
        state = self.state[p]
        if not state:
            state.update(step=counter(), sum=filled(p, group["initial_accumulator_value"]))
        return state

    def share_memory(self) -> None:
        """Do nothing: values are immutable and shared as they are."""

    def _update(self, group: dict[str, Any], params: list[Any]) -> None:
        lr = self._number(group["lr"])
        counts: dict[float, Any] = {}
        alike: dict[Any, list[tuple[Any, ...]]] = {}
        for p in params:
            state = self._born(group, p)
            alike.setdefault((advance(state, counts), p._node.meta.dtype), []).append((p, state["sum"]))
        for (t, _), entries in alike.items():
            rate = lr / (1 + (t - 1) * group["lr_decay"])
            numbers = scalars(entries[0][0], rate, group["eps"], group["weight_decay"])
            self._apply(adagrad_step, (bool(group["maximize"]),), entries, numbers)
