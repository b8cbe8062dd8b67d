"""Schedules made of schedules: one after the other, or all at once."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

from cermet.optim.lr_scheduler.base import LRScheduler, check_members, set_value, values_of
from cermet.optim.lr_scheduler.plateau import ReduceLROnPlateau
from cermet.optim.optimizer import Optimizer, check

__all__ = ["ChainedScheduler", "SequentialLR"]


class _Composed(LRScheduler):
    """A schedule that steers through others, whose states are saved with its own."""

    _schedulers: Sequence[LRScheduler]

    def state_dict(self) -> dict[str, Any]:
        """All attributes but the optimizer, with the state dicts of the schedules."""
        out = {k: v for k, v in self.__dict__.items() if k not in ("optimizer", "_schedulers")}
        out["_schedulers"] = [s.state_dict() for s in self._schedulers]
        return out

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a `state_dict`."""
        self.__dict__.update({k: v for k, v in state_dict.items() if k != "_schedulers"})
        for s, state in zip(self._schedulers, state_dict["_schedulers"]):
            s.load_state_dict(state)


class SequentialLR(_Composed):
    """The first schedule until ``milestones[0]``, then the second until ``milestones[1]``, and so on; each starts at its own
    epoch 0.

    Raises:
        ValueError, TypeError: for no schedules, schedules of different optimizers, `ReduceLROnPlateau`, or unless there is one
            milestone less.
    """

    def __init__(self, optimizer: Optimizer, schedulers: list[LRScheduler], milestones: list[int], last_epoch: int = -1) -> None:
        check(len(schedulers) > 0, f"{type(self).__name__}: the list of schedulers is empty")
        check_members(self, optimizer, schedulers, ReduceLROnPlateau)
        check(
            len(milestones) == len(schedulers) - 1,
            f"{type(self).__name__}: between {len(schedulers)} schedulers lie {len(schedulers) - 1} milestones, got {milestones}",
        )
        self.optimizer = optimizer
        self.last_epoch = last_epoch + 1
        self._schedulers, self._milestones = schedulers, milestones
        # Each schedule took its first step when it was made; only the one that begins may have.
        for group in optimizer.param_groups:
            set_value(group, "lr", group["initial_lr"])
        self.recursive_undo()
        first = schedulers[bisect_right(milestones, 0)]
        first._initial_step()
        self._last_lr = first.get_last_lr()

    def recursive_undo(self, sched: Any = None) -> None:
        """Take back the steps that schedules took when they were made."""
        target = self if sched is None else sched
        if hasattr(target, "_schedulers"):
            for s in target._schedulers:
                self.recursive_undo(s)
        elif hasattr(target, "last_epoch"):
            target.last_epoch -= 1

    def step(self) -> None:  # type: ignore[override]
        """Go to the next epoch."""
        self.last_epoch += 1
        number = bisect_right(self._milestones, self.last_epoch)
        current = self._schedulers[number]
        if number > 0 and self._milestones[number - 1] == self.last_epoch:
            current._update_lr(0)
        else:
            current.step()
        self._last_lr = current.get_last_lr()


class ChainedScheduler(_Composed):
    """All schedules in every step; those that multiply the present rate combine.

    Raises:
        ValueError, TypeError: for no schedules, schedules of different optimizers, or `ReduceLROnPlateau`.
    """

    def __init__(self, schedulers: Sequence[LRScheduler], optimizer: Optimizer | None = None) -> None:
        check(len(schedulers) > 0, f"{type(self).__name__}: the list of schedulers is empty")
        optimizer = optimizer or schedulers[0].optimizer
        check_members(self, optimizer, schedulers, ReduceLROnPlateau)
        self._schedulers = schedulers
        self.optimizer = optimizer
        self._last_lr = values_of(optimizer, "lr")

    def step(self) -> None:  # type: ignore[override]
        """Go to the next epoch."""
        for s in self._schedulers:
            s.step()
        self._last_lr = values_of(self.optimizer, "lr")
