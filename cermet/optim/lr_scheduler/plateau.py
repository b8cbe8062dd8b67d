"""A schedule that waits for a metric to stop improving."""

from __future__ import annotations

import math
from typing import Any

from cermet.optim.lr_scheduler.base import LRScheduler, check_optimizer, set_value, values_of, warn_of_epoch
from cermet.optim.optimizer import Optimizer, check

__all__ = ["ReduceLROnPlateau"]


class ReduceLROnPlateau(LRScheduler):
    """Times ``factor`` when a metric has not improved for more than ``patience`` epochs. Step it with the metric.

    Args:
        mode: ``"min"`` (lower is better) or ``"max"``.
        threshold, threshold_mode: what counts as better: by that fraction of the best (``"rel"``) or by that amount (``"abs"``).
        cooldown: epochs to wait after a reduction. min_lr: lower bound, for all groups or one for each. eps: a smaller reduction
            is left out.

    Raises:
        ValueError: for a factor of 1 or more, an unknown mode, or a list of another length than the groups. TypeError: for no
            optimizer.
    """

    def __init__(
        self, optimizer: Optimizer, mode: str = "min", factor: float = 0.1, patience: int = 10, threshold: float = 1e-4,
        threshold_mode: str = "rel", cooldown: int = 0, min_lr: list[float] | float = 0, eps: float = 1e-8,
    ) -> None:  # fmt: skip
        check(factor < 1.0, f"ReduceLROnPlateau: factor={factor} would not reduce the rate; give less than 1")
        check_optimizer(optimizer)
        count = len(optimizer.param_groups)
        self.factor = factor
        self.optimizer = optimizer
        self.default_min_lr: float | None = None
        if isinstance(min_lr, list | tuple):
            check(len(min_lr) == count, f"min_lr: {len(min_lr)} values for {count} parameter groups")
            self.min_lrs = list(min_lr)
        else:
            self.default_min_lr = min_lr
            self.min_lrs = [min_lr] * count
        self.last_epoch = 0
        self.eps = eps
        self.patience, self.cooldown = patience, cooldown
        self._last_lr = values_of(optimizer, "lr")
        self._init_is_better(mode, threshold, threshold_mode)
        self._reset()

    def _init_is_better(self, mode: str, threshold: float, threshold_mode: str) -> None:
        check(mode in ("min", "max"), f"mode={mode!r}: known are 'min' and 'max'")
        check(threshold_mode in ("rel", "abs"), f"threshold_mode={threshold_mode!r}: known are 'rel' and 'abs'")
        self.mode_worse = math.inf if mode == "min" else -math.inf
        self.mode = mode
        self.threshold = threshold
        self.threshold_mode = threshold_mode

    def _reset(self) -> None:
        self.cooldown_counter = self.num_bad_epochs = 0
        self.best = self.mode_worse

    @property
    def in_cooldown(self) -> bool:
        return self.cooldown_counter > 0

    def _is_better(self, a: float, best: float) -> bool:
        sign = -1.0 if self.mode == "min" else 1.0
        bound = best * (1.0 + sign * self.threshold) if self.threshold_mode == "rel" else best + sign * self.threshold
        return a < bound if self.mode == "min" else a > bound

    def step(self, metrics: Any, epoch: int | None = None) -> None:  # type: ignore[override]
        """Take note of the metric of one more epoch.

        Args:
            metrics: a number, or a tensor of one element.
        """
        if epoch is not None:
            warn_of_epoch()
        self.last_epoch = self.last_epoch + 1 if epoch is None else epoch
        value = float(metrics)
        better, waiting = self._is_better(value, self.best), self.in_cooldown
        self.best = value if better else self.best
        self.cooldown_counter -= waiting
        self.num_bad_epochs = 0 if better or waiting else self.num_bad_epochs + 1
        if self.num_bad_epochs > self.patience:
            self._reduce_lr()
            self.num_bad_epochs, self.cooldown_counter = 0, self.cooldown
        self._last_lr = values_of(self.optimizer, "lr")

    def _reduce_lr(self) -> None:
        groups = self.optimizer.param_groups
        if len(groups) != len(self.min_lrs):
            if self.default_min_lr is None:
                raise RuntimeError(
                    f"ReduceLROnPlateau: the optimizer has {len(groups)} parameter groups now, and min_lr was given for "
                    f"{len(self.min_lrs)}; set the schedule's min_lrs to a list with one bound for each group"
                )
            self.min_lrs = [self.default_min_lr] * len(groups)
        for group, least in zip(groups, self.min_lrs):
            old = float(group["lr"])
            new = max(old * self.factor, least)
            if old - new > self.eps:
                set_value(group, "lr", new)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a `state_dict`."""
        self.__dict__.update(state_dict)
        self._init_is_better(self.mode, self.threshold, self.threshold_mode)
