"""How long an import takes. Nothing is imported here that a framework would import itself: NumPy counts."""

from __future__ import annotations

import importlib
import time

__all__ = ["import_seconds"]


def import_seconds(framework: str) -> dict[str, float]:
    """Seconds that the import takes in this process, NumPy's share included."""
    begin = time.perf_counter()
    importlib.import_module(framework)
    return {"seconds": time.perf_counter() - begin}
