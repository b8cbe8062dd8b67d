"""Mixed precision as users switch it: `autocast`, and what asks for its state.

The policies stand beside the functions they are about (`cermet.ops.autocast`). Gradients are computed in the dtypes that the forward pass
recorded; `cermet.frontend.gradients` switches autocast off for a backward pass.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

from cermet import devices, dtypes
from cermet.dtypes import DType
from cermet.ops.autocast import state

__all__ = [
    "autocast", "get_autocast_dtype", "is_autocast_available", "is_autocast_enabled", "set_autocast_dtype", "set_autocast_enabled",
]  # fmt: skip

_LOWER = (dtypes.bfloat16, dtypes.float16)
_chosen: dict[str, DType] = {"cpu": dtypes.bfloat16, "cuda": dtypes.float16}
"""What autocast computes in where it is not told; process-wide, as in PyTorch."""


def _device_type(device_type: Any, who: str) -> str:
    kind = getattr(device_type, "type", device_type)
    if not isinstance(kind, str):
        raise ValueError(f"{who}: expected a device's type such as 'cpu', got {type(device_type).__name__}")
    kind = kind.partition(":")[0]
    if kind not in _chosen:
        raise RuntimeError(f"{who}: no device of type {kind!r}; there are {', '.join(map(repr, _chosen))}")
    return kind


class autocast:
    """Inside, products, convolutions and attention compute in a 16-bit dtype, losses in float32; parameters stay what they are.

    A context manager and a decorator. Only the forward pass and the loss belong inside: gradients use the dtypes recorded there.

    Args:
        device_type: ``"cpu"`` or ``"cuda"``. Where there is no such device, a warning says that nothing is switched on.
        dtype: `bfloat16` or `float16`; by default bfloat16 on the CPU and float16 on CUDA. Another one warns and switches nothing on.
        enabled: False switches autocast off inside, also within an outer one.
        cache_enabled: accepted for PyTorch's sake: a cast of a weight is part of the kernel that reads it, and nothing is kept.

    Raises:
        RuntimeError: for a type of device that is not known.
    """

    def __init__(
        self, device_type: Any, dtype: DType | None = None, enabled: bool = True, cache_enabled: bool | None = None
    ) -> None:
        self.device = _device_type(device_type, "autocast")
        self.fast_dtype = _chosen[self.device] if dtype is None else dtype
        self.cache_enabled = cache_enabled
        if enabled and self.fast_dtype not in _LOWER:
            warnings.warn(f"autocast: nothing is cast, for {self.fast_dtype} is neither bfloat16 nor float16", stacklevel=2)
            enabled = False
        if enabled and not is_autocast_available(self.device):
            warnings.warn(f"autocast: nothing is cast, for there is no {self.device} device here", stacklevel=2)
            enabled = False
        self._enabled = enabled
        self._before: list[DType | None] = []

    def __enter__(self) -> autocast:
        self._before.append(state.dtype)
        state.dtype = self.fast_dtype if self._enabled else None
        return self

    def __exit__(self, *_: Any) -> None:
        state.dtype = self._before.pop()

    def __call__(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(fn)
        def inside(*args: Any, **kwargs: Any) -> Any:
            with autocast(self.device, self.fast_dtype, self._enabled):
                return fn(*args, **kwargs)

        return inside


def is_autocast_available(device_type: Any) -> bool:
    """Whether there is a device of that type for `autocast` to work on."""
    kind = _device_type(device_type, "is_autocast_available")
    return any(name.startswith(kind) for name in devices.available())


def is_autocast_enabled(device_type: Any = "cpu") -> bool:
    """Whether this thread is inside an `autocast` that casts, on a device of that type."""
    return state.dtype is not None and is_autocast_available(device_type)


def set_autocast_enabled(device_type: Any, enabled: bool | None = None) -> None:
    """Switch autocast on or off for this thread. ``set_autocast_enabled(True)`` means the CPU."""
    if enabled is None:
        device_type, enabled = "cpu", device_type
    kind = _device_type(device_type, "set_autocast_enabled")
    state.dtype = _chosen[kind] if enabled else None


def get_autocast_dtype(device_type: Any = "cpu") -> DType:
    """What `autocast` computes in on a device of that type where it is not told."""
    kind = _device_type(device_type, "get_autocast_dtype")
    return _chosen[kind] if state.dtype is None else state.dtype


def set_autocast_dtype(device_type: Any, dtype: DType) -> None:
    """Set what `autocast` computes in on a device of that type where it is not told.

    Raises:
        ValueError: unless it is bfloat16 or float16.
    """
    kind = _device_type(device_type, "set_autocast_dtype")
    if dtype not in _LOWER:
        raise ValueError(f"set_autocast_dtype: expected bfloat16 or float16, got {dtype}")
    _chosen[kind] = dtype
