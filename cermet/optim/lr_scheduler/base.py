"""What all schedules share: counting steps, writing rates into the groups, saving."""

from __future__ import annotations

import types
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from cermet.frontend.autograd import Mode
from cermet.frontend.core import TensorBase
from cermet.optim.optimizer import Optimizer

__all__ = ["LRScheduler"]

_EPOCH_WARNING = (
    "scheduler.step(epoch): giving the epoch is deprecated, in PyTorch too. The rate is now a function of that epoch alone (where the "
    "schedule has such a formula), whatever other schedules did to it; call scheduler.step() once for each epoch instead"
)
_ORDER_WARNING = (
    "the schedule was stepped before the optimizer, so that nothing was trained with its first rate: call optimizer.step(), then "
    "scheduler.step()"
)


def warn_of_epoch() -> None:
    """For the caller of a step: that it should not name the epoch."""
    warnings.warn(_EPOCH_WARNING, stacklevel=3)


def check_optimizer(optimizer: Any) -> None:
    """Raise TypeError unless it is one."""
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"{type(optimizer).__name__} is not an Optimizer")


def values_of(optimizer: Optimizer, key: str) -> list[Any]:
    """One option of every group; tensors as copies, so that nobody changes a group through the list."""
    return [_copied(group[key]) for group in optimizer.param_groups]


def set_value(group: dict[str, Any], key: str, value: Any) -> None:
    """Set an option of a group; one that is a tensor stays the same tensor."""
    if isinstance(group[key], TensorBase):
        with Mode(False):
            group[key]._write(value)
    else:
        group[key] = value


def per_group(name: str, optimizer: Optimizer, value: Any) -> list[Any]:
    """A value for every group, from one value or a list of them.

    Raises:
        ValueError: for a list of another length.
    """
    count = len(optimizer.param_groups)
    if not isinstance(value, list | tuple):
        value = [value] * count
    elif len(value) != count:
        raise ValueError(f"{name}: {len(value)} values for {count} parameter groups; give one for each, or one for all")
    return [_copied(v) for v in value]


def positive(name: str, value: int) -> int:
    """A number of steps.

    Raises:
        ValueError: unless it is a whole number above 0.
    """
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"{name}={value!r}: give a whole number, 1 or more")
    return value


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, TensorBase) else value  # type: ignore[attr-defined]


class LRScheduler:
    """Base class of schedules. Subclasses define ``get_lr()``, the rates of all groups at ``last_epoch``.

    Args:
        last_epoch: index of the last epoch done; -1 to start afresh.

    Raises:
        TypeError: for what is no optimizer.
        KeyError: when resuming with groups that lack ``initial_lr``.
    """

    last_epoch: int
    base_lrs: list[Any]
    _step_count: int
    _last_lr: list[Any]
    _is_initial = False
    _get_lr_called_within_step = False

    def __init__(self, optimizer: Optimizer, last_epoch: int = -1) -> None:
        check_optimizer(optimizer)
        self.optimizer = optimizer
        for i, group in enumerate(optimizer.param_groups):
            if last_epoch == -1:
                group.setdefault("initial_lr", _copied(group["lr"]))
            elif "initial_lr" not in group:
                raise KeyError(
                    f"group {i} of the optimizer has no 'initial_lr', from which a schedule that goes on at last_epoch={last_epoch} "
                    "computes its rates: load the optimizer's state dict first, or start with last_epoch=-1"
                )
        self.base_lrs = values_of(optimizer, "initial_lr")
        self.last_epoch = last_epoch
        optimizer.__dict__.setdefault("_opt_called", False)
        self._initial_step()

    def _initial_step(self) -> None:
        """Set the rates of epoch ``last_epoch + 1``, without advancing those that a checkpoint brought."""
        self._step_count = 0
        self._is_initial = True
        try:
            self.step()
        finally:
            self._is_initial = False

    def state_dict(self) -> dict[str, Any]:
        """All attributes but the optimizer; save the optimizer's state dict with it."""
        return {k: v for k, v in self.__dict__.items() if k != "optimizer"}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a `state_dict`."""
        self.__dict__.update(state_dict)

    def get_last_lr(self) -> list[Any]:
        """The rates that the last step set, one for each group."""
        return self._last_lr

    def get_lr(self) -> list[Any]:
        """The rates that a step to ``last_epoch`` sets; for the current ones use `get_last_lr`."""
        if not self._get_lr_called_within_step:
            warnings.warn("get_lr() is for the inside of a step; get_last_lr() tells the present rates", stacklevel=2)
        return self._rates()

    def _rates(self) -> list[Any]:
        raise NotImplementedError

    def _scaled(self, factor: float) -> list[Any]:
        """The groups' present rates times ``factor``."""
        return [group["lr"] * factor for group in self.optimizer.param_groups]

    def _unchanged(self) -> list[Any]:
        return values_of(self.optimizer, "lr")

    def step(self, epoch: int | None = None) -> None:
        """Go to the next epoch; call it after ``optimizer.step()``.

        Args:
            epoch: the epoch to go to instead (deprecated in PyTorch); uses the closed form where there is one.
        """
        if epoch is not None:
            warn_of_epoch()
        if self._step_count == 1 and not self.optimizer.__dict__.get("_opt_called"):
            warnings.warn(_ORDER_WARNING, stacklevel=2)
        self._step_count += 1
        self._update_lr(epoch)

    def _update_lr(self, epoch: int | None = None) -> None:
        self._get_lr_called_within_step = True
        try:
            self.last_epoch = self.last_epoch + 1 if epoch is None else epoch
            closed = getattr(self, "_get_closed_form_lr", None)
            rates = self.get_lr() if epoch is None or closed is None else closed()
        finally:
            self._get_lr_called_within_step = False
        self._put(rates)

    def _put(self, rates: Sequence[Any]) -> None:
        for group, lr in zip(self.optimizer.param_groups, rates, strict=True):
            set_value(group, "lr", lr)
        self._last_lr = values_of(self.optimizer, "lr")


def saved_functions(functions: Sequence[Callable[..., Any]]) -> list[Any]:
    """What can be saved of functions: the attributes of callable objects, None for plain functions."""
    return [None if isinstance(fn, types.FunctionType) else fn.__dict__.copy() for fn in functions]


def check_members(self: Any, optimizer: Optimizer, schedulers: Sequence[Any], refused: type) -> None:
    """Raise unless all schedulers steer ``optimizer`` and step without arguments."""
    name = type(self).__name__
    for i, s in enumerate(schedulers):
        if not hasattr(s, "optimizer"):
            raise TypeError(f"{name}: scheduler {i} is a {type(s).__name__}, which has no attribute `optimizer`; give schedules")
        if isinstance(s, refused):
            raise ValueError(f"{name}: scheduler {i} is a {refused.__name__}, whose step needs a metric; step it by itself")
        if optimizer is not s.optimizer:
            raise ValueError(
                f"{name}: scheduler {i}, a {type(s).__name__}, steers another optimizer ({type(s.optimizer).__name__}) than "
                f"{name} does ({type(optimizer).__name__}); make all of them for one"
            )
