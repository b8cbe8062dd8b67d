"""`cermet.cuda.amp`: mixed precision under the names of older scripts; `cermet.amp` has the newer ones."""

from __future__ import annotations

from typing import Any

from cermet import amp, dtypes
from cermet.dtypes import DType

__all__ = ["GradScaler", "autocast", "custom_bwd", "custom_fwd"]


class autocast(amp.autocast):
    """`cermet.amp.autocast` for CUDA devices."""

    def __init__(self, enabled: bool = True, dtype: DType = dtypes.float16, cache_enabled: bool = True) -> None:
        super().__init__("cuda", dtype, enabled, cache_enabled)


class GradScaler(amp.GradScaler):
    """`cermet.amp.GradScaler` for CUDA devices."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__("cuda", *args, **kwargs)


def custom_fwd(fwd: Any = None, *, cast_inputs: DType | None = None) -> Any:
    """`cermet.amp.custom_fwd` for CUDA devices."""
    return amp.custom_fwd(fwd, device_type="cuda", cast_inputs=cast_inputs)


def custom_bwd(bwd: Any) -> Any:
    """`cermet.amp.custom_bwd` for CUDA devices."""
    return amp.custom_bwd(bwd, device_type="cuda")
