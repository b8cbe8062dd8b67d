"""Functions captured once and replayed without Python: `compile`."""

from cermet.capture.compiled import CacheInfo, CompiledFunction, compile
from cermet.capture.errors import CaptureError

__all__ = ["CacheInfo", "CaptureError", "CompiledFunction", "compile"]
