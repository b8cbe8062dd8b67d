"""Schedules that raise and lower the rate, and the momentum against it."""

from __future__ import annotations

import math
import types
from collections.abc import Callable
from typing import Any

from cermet.optim.lr_scheduler.base import LRScheduler, check_optimizer, per_group, positive, set_value
from cermet.optim.optimizer import Optimizer, check

__all__ = ["CyclicLR", "OneCycleLR"]


class _WithMomentum(LRScheduler):
    """A schedule that may steer the momentum (beta1 of optimizers that have betas) too."""

    use_beta1: bool
    cycle_momentum: bool

    def _begin_momentum(self, base: Any, most: Any, last_epoch: int) -> tuple[list[float], list[float]]:
        defaults = self.optimizer.defaults
        check(
            "momentum" in defaults or "betas" in defaults,
            f"cycle_momentum=True, but {type(self.optimizer).__name__} has neither momentum nor betas; pass cycle_momentum=False",
        )
        self.use_beta1 = "betas" in defaults
        lows = per_group("base_momentum", self.optimizer, base)
        highs = per_group("max_momentum", self.optimizer, most)
        if last_epoch == -1:
            for high, low, group in zip(highs, lows, self.optimizer.param_groups, strict=True):
                self._set_momentum(group, high)
                group["max_momentum"] = high
                group["base_momentum"] = low
        return lows, highs

    def _set_momentum(self, group: dict[str, Any], value: float) -> None:
        if self.use_beta1:
            group["betas"] = (value, *group["betas"][1:])
        else:
            group["momentum"] = value


class CyclicLR(_WithMomentum):
    """Smith, Cyclical Learning Rates for Training Neural Networks (arXiv:1506.01186): up from ``base_lr`` to ``max_lr`` in
    ``step_size_up`` steps and down in ``step_size_down``, again and again. Step it after every batch.

    Args:
        mode: ``"triangular"``, ``"triangular2"`` (each cycle half as high) or ``"exp_range"`` (``gamma^step`` as high);
            ``scale_fn`` (of the cycle or the step, by ``scale_mode``) takes its place.
        cycle_momentum: whether the momentum goes from ``max_momentum`` down to ``base_momentum`` and back meanwhile.

    Raises:
        ValueError: for an unknown mode, lists of another length than the groups, and an optimizer without momentum.
    """

    def __init__(
        self, optimizer: Optimizer, base_lr: float | list[float], max_lr: float | list[float], step_size_up: int = 2000,
        step_size_down: int | None = None, mode: str = "triangular", gamma: float = 1.0,
        scale_fn: Callable[[float], float] | None = None, scale_mode: str = "cycle", cycle_momentum: bool = True,
        base_momentum: float = 0.8, max_momentum: float = 0.9, last_epoch: int = -1,
    ) -> None:  # fmt: skip
        check_optimizer(optimizer)
        self.optimizer = optimizer
        base_lrs = per_group("base_lr", optimizer, base_lr)
        if last_epoch == -1:
            for lr, group in zip(base_lrs, optimizer.param_groups, strict=True):
                set_value(group, "lr", lr)
        self.max_lrs = per_group("max_lr", optimizer, max_lr)
        down = step_size_up if step_size_down is None else step_size_down
        self.total_size = float(step_size_up) + float(down)
        self.step_ratio = float(step_size_up) / self.total_size
        check(
            scale_fn is not None or mode in ("triangular", "triangular2", "exp_range"),
            f"CyclicLR: mode={mode!r}; known are 'triangular', 'triangular2' and 'exp_range', or give a scale_fn",
        )
        self.mode = mode
        self.gamma = gamma
        self._scale_fn_custom: Any = scale_fn
        self.scale_mode = scale_mode if scale_fn is not None else "iterations" if mode == "exp_range" else "cycle"
        self.cycle_momentum = cycle_momentum
        if cycle_momentum:
            self.base_momentums, self.max_momentums = self._begin_momentum(base_momentum, max_momentum, last_epoch)
        super().__init__(optimizer, last_epoch)
        self.base_lrs = base_lrs

    def scale_fn(self, x: float) -> float:
        """How high cycle (or step) ``x`` goes, as a fraction."""
        if self._scale_fn_custom is not None:
            return self._scale_fn_custom(x)
        if self.mode == "triangular2":
            return 1 / 2.0 ** (x - 1)
        return self.gamma**x if self.mode == "exp_range" else 1.0

    def _rates(self) -> list[Any]:
        cycle = math.floor(1 + self.last_epoch / self.total_size)
        x = 1.0 + self.last_epoch / self.total_size - cycle
        up = x <= self.step_ratio
        height = x / self.step_ratio if up else (x - 1) / (self.step_ratio - 1)
        height *= self.scale_fn(cycle if self.scale_mode == "cycle" else self.last_epoch)
        if self.cycle_momentum:
            for low, high, group in zip(self.base_momentums, self.max_momentums, self.optimizer.param_groups, strict=True):
                self._set_momentum(group, high - (high - low) * height)
        return [low + (high - low) * height for low, high in zip(self.base_lrs, self.max_lrs, strict=True)]

    def state_dict(self) -> dict[str, Any]:
        """All attributes but the optimizer; of ``scale_fn`` only the attributes of a callable object."""
        out = super().state_dict()
        fn = out["_scale_fn_custom"]
        out["_scale_fn_custom"] = None if fn is None or isinstance(fn, types.FunctionType) else fn.__dict__.copy()
        return out

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a `state_dict`; ``scale_fn`` stays this schedule's own."""
        super().load_state_dict({k: v for k, v in state_dict.items() if k != "_scale_fn_custom"})
        fields = state_dict["_scale_fn_custom"]
        if fields is not None:
            self._scale_fn_custom.__dict__.update(fields)


class OneCycleLR(_WithMomentum):
    """Smith, Topin, Super-Convergence (arXiv:1708.07120): up from ``max_lr / div_factor`` to ``max_lr`` in the first
    ``pct_start`` of the steps, then down to ``max_lr / div_factor / final_div_factor``. Step it after every batch.

    Args:
        total_steps: steps of the cycle; or give ``epochs`` and ``steps_per_epoch``. anneal_strategy: ``"cos"`` or ``"linear"``.
        three_phase: go down to the initial rate as fast as it went up, and only then to the lowest.

    Raises:
        ValueError: for options out of their range, and when it is stepped more than ``total_steps`` times.
    """

    def __init__(
        self, optimizer: Optimizer, max_lr: float | list[float], total_steps: int | None = None, epochs: int | None = None,
        steps_per_epoch: int | None = None, pct_start: float = 0.3, anneal_strategy: str = "cos", cycle_momentum: bool = True,
        base_momentum: float | list[float] = 0.85, max_momentum: float | list[float] = 0.95, div_factor: float = 25.0,
        final_div_factor: float = 1e4, three_phase: bool = False, last_epoch: int = -1,
    ) -> None:  # fmt: skip
        check_optimizer(optimizer)
        self.optimizer = optimizer
        self.total_steps = _total(total_steps, epochs, steps_per_epoch)
        check(
            isinstance(pct_start, float) and 0 <= pct_start <= 1,
            f"pct_start={pct_start!r}: give the part of the steps that goes up, a float in [0, 1]",
        )
        check(anneal_strategy in ("cos", "linear"), f"anneal_strategy={anneal_strategy!r}: known are 'cos' and 'linear'")
        self._schedule_phases = _phases(pct_start, self.total_steps, three_phase)
        self._anneal_func_type = anneal_strategy
        max_lrs = per_group("max_lr", optimizer, max_lr)
        if last_epoch == -1:
            for group, most in zip(optimizer.param_groups, max_lrs, strict=True):
                group["initial_lr"] = most / div_factor
                group["max_lr"] = most
                group["min_lr"] = group["initial_lr"] / final_div_factor
        self.cycle_momentum = cycle_momentum
        if cycle_momentum:
            self._begin_momentum(base_momentum, max_momentum, last_epoch)
        super().__init__(optimizer, last_epoch)

    def _anneal_func(self, start: Any, end: Any, pct: float) -> Any:
        if self._anneal_func_type == "cos":
            return end + (start - end) / 2.0 * (math.cos(math.pi * pct) + 1)
        return (end - start) * pct + start

    def _rates(self) -> list[Any]:
        now = self.last_epoch
        check(now <= self.total_steps, f"OneCycleLR: step {now} of a cycle made for {self.total_steps}; give it more total_steps")
        begin = 0.0
        for phase in self._schedule_phases[:-1]:
            if now <= phase["end_step"]:
                break
            begin = phase["end_step"]
        else:
            phase = self._schedule_phases[-1]
        pct = (now - begin) / (phase["end_step"] - begin)
        rates = []
        for group in self.optimizer.param_groups:
            rates.append(self._anneal_func(group[phase["start_lr"]], group[phase["end_lr"]], pct))
            if self.cycle_momentum:
                self._set_momentum(group, self._anneal_func(group[phase["start_momentum"]], group[phase["end_momentum"]], pct))
        return rates


def _total(total_steps: int | None, epochs: int | None, steps_per_epoch: int | None) -> int:
    if total_steps is not None:
        return positive("total_steps", total_steps)
    if epochs is None or steps_per_epoch is None:
        raise ValueError("OneCycleLR: how long is the cycle? Give total_steps, or both epochs and steps_per_epoch")
    return positive("epochs", epochs) * positive("steps_per_epoch", steps_per_epoch)


def _phases(pct_start: float, total: int, three: bool) -> list[dict[str, Any]]:
    """The phases by the names of the group's options that they go from and to."""

    def phase(end: float, lrs: tuple[str, str], momenta: tuple[str, str]) -> dict[str, Any]:
        return {
            "end_step": end, "start_lr": lrs[0], "end_lr": lrs[1], "start_momentum": momenta[0] + "_momentum",
            "end_momentum": momenta[1] + "_momentum",
        }  # fmt: skip

    up = phase(float(pct_start * total) - 1, ("initial_lr", "max_lr"), ("max", "base"))
    if not three:
        return [up, phase(total - 1, ("max_lr", "min_lr"), ("base", "max"))]
    down = phase(float(2 * pct_start * total) - 2, ("max_lr", "initial_lr"), ("base", "max"))
    return [up, down, phase(total - 1, ("initial_lr", "min_lr"), ("max", "max"))]
