"""Averages of a model's weights over the steps of training, and the schedule that goes with them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from itertools import chain
from typing import Any

from cermet.frontend.autograd import no_grad
from cermet.frontend.control import realize
from cermet.frontend.core import TensorBase
from cermet.frontend.interop import from_array
from cermet.nn.module import Module
from cermet.nn.normalization import _BatchNorm
from cermet.optim.lr_scheduler.base import LRScheduler, per_group
from cermet.optim.optimizer import Optimizer, check

__all__ = [
    "SWALR",
    "AveragedModel",
    "get_ema_avg_fn",
    "get_ema_multi_avg_fn",
    "get_swa_avg_fn",
    "get_swa_multi_avg_fn",
    "update_bn",
]


def _number(x: Any) -> float:
    return float(x) if isinstance(x, TensorBase) else x  # type: ignore[arg-type]


def _check_decay(decay: float) -> None:
    check(0.0 <= decay <= 1.0, f"decay={decay}: must lie in [0, 1]")


def get_ema_multi_avg_fn(decay: float = 0.999) -> Callable[..., None]:
    """A function that moves averages by ``average = decay * average + (1 - decay) * current``, all parameters at once.

    Raises:
        ValueError: unless ``decay`` lies in [0, 1].
    """
    _check_decay(decay)

    @no_grad()
    def ema_update(ema_param_list: Sequence[Any], current_param_list: Sequence[Any], _: Any) -> None:
        for average, current in zip(ema_param_list, current_param_list, strict=True):
            average.copy_(average + (current - average) * (1 - decay))

    return ema_update


def get_swa_multi_avg_fn() -> Callable[..., None]:
    """A function that takes one more model into equal-weight averages, all parameters at once."""

    @no_grad()
    def swa_update(averaged_param_list: Sequence[Any], current_param_list: Sequence[Any], num_averaged: Any) -> None:
        share = 1.0 / (_number(num_averaged) + 1)
        for average, current in zip(averaged_param_list, current_param_list, strict=True):
            average.copy_(average + (current - average) * share)

    return swa_update


def get_ema_avg_fn(decay: float = 0.999) -> Callable[..., Any]:
    """`get_ema_multi_avg_fn` for one parameter: returns the new average.

    Raises:
        ValueError: unless ``decay`` lies in [0, 1].
    """
    _check_decay(decay)

    @no_grad()
    def ema_update(ema_param: Any, current_param: Any, num_averaged: Any) -> Any:
        return ema_param * decay + current_param * (1 - decay)

    return ema_update


def get_swa_avg_fn() -> Callable[..., Any]:
    """`get_swa_multi_avg_fn` for one parameter: returns the new average."""

    @no_grad()
    def swa_update(averaged_param: Any, current_param: Any, num_averaged: Any) -> Any:
        return averaged_param + (current_param - averaged_param) / (_number(num_averaged) + 1)

    return swa_update


class AveragedModel(Module):
    """A copy of a model whose parameters are averages: Izmailov et al., Averaging Weights Leads to Wider Optima
    (arXiv:1803.05407), or an exponential moving average.

    Args:
        model: what to average. device: where to keep the averages.
        avg_fn: gives the new average of one parameter, called with (average, current, count). multi_avg_fn: changes all in
            place, called with (averages, currents, count). Neither: equal weights.
        use_buffers: whether buffers are averaged too; otherwise they are copied.

    Raises:
        AssertionError: when both functions are given.
    """

    n_averaged: Any

    def __init__(
        self, model: Module, device: Any = None, avg_fn: Callable[..., Any] | None = None,
        multi_avg_fn: Callable[..., None] | None = None, use_buffers: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        if avg_fn is not None and multi_avg_fn is not None:
            raise AssertionError("AveragedModel: avg_fn and multi_avg_fn were both given; leave one of them out")
        self.module = deepcopy(model)
        if device is not None:
            self.module = self.module.to(device)
        self.register_buffer("n_averaged", _count(0))
        self.avg_fn = avg_fn
        self.multi_avg_fn = multi_avg_fn
        self.use_buffers = use_buffers

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The averaged model's."""
        return self.module(*args, **kwargs)

    @no_grad()
    def update_parameters(self, model: Module) -> None:
        """Take the present parameters of ``model`` into the averages; ends with one evaluation."""
        averages, currents = self._pairs(self.module), self._pairs(model)
        if int(self.n_averaged) == 0:
            for average, current in zip(averages, currents):
                average.copy_(current)
        elif self.avg_fn is not None:
            for average, current in zip(averages, currents):
                average.copy_(self.avg_fn(average, current, self.n_averaged))
        else:
            # A multi_avg_fn may ask the first tensor for the dtype of all, as PyTorch's do.
            for dtype in dict.fromkeys(a.dtype for a in averages):
                chosen = [k for k, a in enumerate(averages) if a.dtype is dtype]
                update = self.multi_avg_fn or get_swa_multi_avg_fn()
                update([averages[k] for k in chosen], [currents[k] for k in chosen], self.n_averaged)
        if not self.use_buffers:
            for average, current in zip(self.module.buffers(), model.buffers()):
                average.detach().copy_(current.detach())
        self.n_averaged.copy_(_count(int(self.n_averaged) + 1))
        realize(averages, list(self.buffers()))

    def _pairs(self, model: Module) -> list[Any]:
        tensors: Iterable[Any] = chain(model.parameters(), model.buffers()) if self.use_buffers else model.parameters()
        return [t.detach() for t in tensors]


def _count(n: int) -> Any:
    import numpy as np

    return from_array(np.asarray(n, np.int64))


@no_grad()
def update_bn(loader: Iterable[Any], model: Module, device: Any = None) -> None:
    """Compute the running statistics of all batch norms afresh, in one pass over ``loader``: those of averaged weights are
    nobody's average.

    Args:
        loader: batches; of a list or tuple the first element goes into the model.
    """
    norms = {m: m.momentum for m in model.modules() if isinstance(m, _BatchNorm)}
    if not norms:
        return
    training = model.training
    model.train()
    for m in norms:
        m.reset_running_stats()
        m.momentum = None
    try:
        for batch in loader:
            first = batch[0] if isinstance(batch, list | tuple) else batch
            model(first if device is None else first.to(device))
            realize(*[t for m in norms for t in m.buffers()])
    finally:
        for m, momentum in norms.items():
            m.momentum = momentum
        model.train(training)


class SWALR(LRScheduler):
    """From the present rate to ``swa_lr`` in ``anneal_epochs`` epochs, and constant from then on.

    Args:
        swa_lr: for all groups, or a list with one for each. anneal_strategy: ``"cos"`` or ``"linear"``.

    Raises:
        ValueError: for an unknown strategy or a negative number of epochs.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        swa_lr: float | list[float],
        anneal_epochs: int = 10,
        anneal_strategy: str = "cos",
        last_epoch: int = -1,
    ) -> None:
        for value, group in zip(per_group("swa_lr", optimizer, swa_lr), optimizer.param_groups, strict=True):
            group["swa_lr"] = value
        check(
            anneal_strategy in ("cos", "linear"),
            f"anneal_strategy={anneal_strategy!r}: known are 'cos' and 'linear'",
        )
        check(
            isinstance(anneal_epochs, int) and anneal_epochs >= 0,
            f"anneal_epochs={anneal_epochs}: give a whole number, 0 or more",
        )
        self._anneal_strategy = anneal_strategy
        self.anneal_epochs = anneal_epochs
        super().__init__(optimizer, last_epoch)

    def anneal_func(self, t: float) -> float:
        """How much of the way is done after a fraction ``t`` of the epochs."""
        return (1 - math.cos(math.pi * t)) / 2 if self._anneal_strategy == "cos" else t

    def _rates(self) -> list[Any]:
        step = self._step_count - 1
        if self.anneal_epochs == 0:
            step = max(1, step)
        before, now = (self.anneal_func(max(0, min(1, n / max(1, self.anneal_epochs)))) for n in (step - 1, step))
        rates = []
        for group in self.optimizer.param_groups:
            goal = group["swa_lr"]
            origin = goal if before == 1 else (group["lr"] - before * goal) / (1 - before)
            rates.append(goal * now + origin * (1 - now))
        return rates
