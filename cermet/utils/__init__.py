"""Helpers that PyTorch keeps under torch.utils."""

import importlib
from typing import Any

__all__ = ["data"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return importlib.import_module(f"cermet.utils.{name}")
    raise AttributeError(f"module 'cermet.utils' has no attribute {name!r}")
