"""Decorators for the halves of an `autograd.Function` that is used under autocast."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from cermet.dtypes import DType
from cermet.frontend.autocast import autocast, get_autocast_dtype, is_autocast_enabled
from cermet.frontend.core import TensorBase

__all__ = ["custom_bwd", "custom_fwd"]


def _cast(value: Any, dtype: DType) -> Any:
    if isinstance(value, TensorBase):
        tensor: Any = value
        return tensor.to(dtype) if tensor.dtype.kind == "f" and tensor.dtype.itemsize < 8 else value
    if isinstance(value, list | tuple):
        return type(value)(_cast(v, dtype) for v in value)
    if isinstance(value, dict):
        return {k: _cast(v, dtype) for k, v in value.items()}
    return value


def custom_fwd(
    fwd: Callable[..., Any] | None = None, *, device_type: str, cast_inputs: DType | None = None
) -> Callable[..., Any]:
    """For ``forward`` of an `autograd.Function`: runs it in the caller's autocast, or, given ``cast_inputs``, with its floating inputs cast
    to that dtype and autocast off."""
    if fwd is None:
        return functools.partial(custom_fwd, device_type=device_type, cast_inputs=cast_inputs)

    @functools.wraps(fwd)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        ctx = args[0]
        on = is_autocast_enabled(device_type)
        ctx._dtype = get_autocast_dtype(device_type)
        if cast_inputs is None or not on:
            ctx._fwd_used_autocast = on and cast_inputs is None
            return fwd(*args, **kwargs)
        ctx._fwd_used_autocast = False
        with autocast(device_type, enabled=False):
            return fwd(ctx, *_cast(args[1:], cast_inputs), **_cast(kwargs, cast_inputs))

    return wrapped


def custom_bwd(bwd: Callable[..., Any] | None = None, *, device_type: str) -> Callable[..., Any]:
    """For ``backward`` of an `autograd.Function`: runs it in the autocast that its ``forward`` (under `custom_fwd`) ran in."""
    if bwd is None:
        return functools.partial(custom_bwd, device_type=device_type)

    @functools.wraps(bwd)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        ctx = args[0]
        with autocast(device_type, ctx._dtype, ctx._fwd_used_autocast):
            return bwd(*args, **kwargs)

    return wrapped
