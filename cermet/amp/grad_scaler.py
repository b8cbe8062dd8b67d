"""Loss scaling, so that small gradients are not lost in float16 (Micikevicius et al. 2018, Mixed Precision Training, section 3.2)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from cermet.frontend.autograd import no_grad
from cermet.frontend.core import TensorBase
from cermet.ops.public import PUBLIC

__all__ = ["GradScaler"]

_READY, _UNSCALED, _STEPPED = "ready", "unscaled", "stepped"


class GradScaler:
    """Multiplies the loss by a factor, divides the gradients by it, and skips steps whose gradients are not finite.

    The factor falls by ``backoff_factor`` after such a step, and rises by ``growth_factor`` after ``growth_interval`` steps without one.
    bfloat16 has float32's range of exponents and needs no scaling.

    Args:
        device: the type of device, for PyTorch's sake. init_scale: the first factor. growth_factor: above 1. backoff_factor: below 1.
        growth_interval: in steps. enabled: False makes every method do what training without a scaler would.

    Raises:
        ValueError: for factors on the wrong side of 1.
    """

    def __init__(
        self,
        device: str = "cuda",
        init_scale: float = 2.0**16,
        growth_factor: float = 2.0,
        backoff_factor: float = 0.5,
        growth_interval: int = 2000,
        enabled: bool = True,
    ) -> None:
        if enabled and growth_factor <= 1.0:
            raise ValueError(f"GradScaler: growth_factor={growth_factor}; give a number above 1")
        if enabled and backoff_factor >= 1.0:
            raise ValueError(f"GradScaler: backoff_factor={backoff_factor}; give a number below 1")
        self._device, self._enabled = device, enabled
        self._scale, self._growth, self._backoff = float(init_scale), growth_factor, backoff_factor
        self._interval, self._good_steps = growth_interval, 0
        self._found: dict[int, bool] = {}
        self._stage: dict[int, str] = defaultdict(lambda: _READY)

    def scale(self, outputs: Any) -> Any:
        """``outputs`` (a tensor, or an iterable of such) times the factor."""
        if not self._enabled:
            return outputs
        if isinstance(outputs, TensorBase):
            return outputs * self._scale  # type: ignore[operator]
        if isinstance(outputs, Iterable):
            scaled = [self.scale(v) for v in outputs]
            return tuple(scaled) if isinstance(outputs, tuple) else scaled
        raise ValueError(f"GradScaler.scale: expected a tensor or an iterable of tensors, got {type(outputs).__name__}")

    def unscale_(self, optimizer: Any) -> None:
        """Divide the gradients of the optimizer's parameters by the factor, e.g. to clip them before `step`.

        Raises:
            RuntimeError: when they were divided already, or the step is over, since the last `update`.
        """
        if not self._enabled:
            return
        stage = self._stage[id(optimizer)]
        if stage == _UNSCALED:
            raise RuntimeError(
                "GradScaler.unscale_: the gradients of this optimizer were divided already since the last update()"
            )
        if stage == _STEPPED:
            raise RuntimeError("GradScaler.unscale_: the step is over; call it between backward() and step()")
        found: Any = None
        with no_grad():
            for group in optimizer.param_groups:
                for p in group["params"]:
                    if p.grad is None:
                        continue
                    p.grad.mul_(1.0 / self._scale)
                    bad = PUBLIC["", "logical_not"].fn(PUBLIC["", "isfinite"].fn(p.grad)).any()
                    found = bad if found is None else PUBLIC["", "logical_or"].fn(found, bad)
        if found is None:
            raise RuntimeError(
                "GradScaler: no parameter of this optimizer has a gradient; call backward() on the scaled loss first"
            )
        self._found[id(optimizer)] = bool(found)
        self._stage[id(optimizer)] = _UNSCALED

    def step(self, optimizer: Any, *args: Any, **kwargs: Any) -> Any:
        """``optimizer.step(*args, **kwargs)``, unless a gradient is infinite or NaN; then None.

        Raises:
            RuntimeError: for a closure, and when called twice without `update` between.
        """
        if not self._enabled:
            return optimizer.step(*args, **kwargs)
        if "closure" in kwargs or args:
            raise RuntimeError(
                "GradScaler.step: an optimizer that takes a closure evaluates the loss itself and cannot be scaled"
            )
        if self._stage[id(optimizer)] == _STEPPED:
            raise RuntimeError("GradScaler.step: called twice for this optimizer; call update() after each step")
        if self._stage[id(optimizer)] == _READY:
            self.unscale_(optimizer)
        self._stage[id(optimizer)] = _STEPPED
        return None if self._found[id(optimizer)] else optimizer.step(**kwargs)

    def update(self, new_scale: Any = None) -> None:
        """Adjust the factor after the steps of one iteration, or set it.

        Raises:
            RuntimeError: when nothing was stepped or unscaled since the last call.
        """
        if not self._enabled:
            return
        if new_scale is not None:
            self._scale = float(new_scale)
        elif not self._found:
            raise RuntimeError(
                "GradScaler.update: no gradients were looked at since the last update(); call step(optimizer) first"
            )
        elif any(self._found.values()):
            self._scale *= self._backoff
            self._good_steps = 0
        else:
            self._good_steps += 1
            if self._good_steps == self._interval:
                self._scale *= self._growth
                self._good_steps = 0
        self._found.clear()
        self._stage.clear()

    def get_scale(self) -> float:
        """The factor; 1 where the scaler is not enabled."""
        return self._scale if self._enabled else 1.0

    def get_growth_factor(self) -> float:
        return self._growth

    def set_growth_factor(self, new_factor: float) -> None:
        self._growth = new_factor

    def get_backoff_factor(self) -> float:
        return self._backoff

    def set_backoff_factor(self, new_factor: float) -> None:
        self._backoff = new_factor

    def get_growth_interval(self) -> int:
        return self._interval

    def set_growth_interval(self, new_interval: int) -> None:
        self._interval = new_interval

    def is_enabled(self) -> bool:
        return self._enabled

    def state_dict(self) -> dict[str, Any]:
        """The factor, its rules, and the count of good steps; empty where the scaler is not enabled."""
        if not self._enabled:
            return {}
        return {
            "scale": self._scale,
            "growth_factor": self._growth,
            "backoff_factor": self._backoff,
            "growth_interval": self._interval,
            "_growth_tracker": self._good_steps,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what `state_dict` returned.

        Raises:
            RuntimeError: for an empty one, which a scaler that was not enabled returns.
        """
        if not self._enabled:
            return
        if not state_dict:
            raise RuntimeError("GradScaler.load_state_dict: the dict is empty: it comes from a scaler that was not enabled")
        self._scale = float(state_dict["scale"])
        self._growth, self._backoff = state_dict["growth_factor"], state_dict["backoff_factor"]
        self._interval, self._good_steps = state_dict["growth_interval"], state_dict["_growth_tracker"]
