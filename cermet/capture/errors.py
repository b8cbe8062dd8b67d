"""What can go wrong while a function is captured."""

from __future__ import annotations

__all__ = ["CaptureError"]


class CaptureError(RuntimeError):
    """Something in a compiled function cannot be captured; the text names the line and says how to mend it."""
