"""Modules made without initial values."""

from __future__ import annotations

from typing import Any

__all__ = ["skip_init"]


def skip_init(module_cls: Any, *args: Any, **kwargs: Any) -> Any:
    """``module_cls(*args, **kwargs)``. Values are computed when somebody looks, so what a checkpoint replaces costs nothing."""
    return module_cls(*args, **kwargs)
