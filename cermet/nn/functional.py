"""`cermet.nn.functional`: the functions of the op records' namespace, and what PyTorch keeps here under names of the top
namespace."""

from __future__ import annotations

from typing import Any

from cermet.frontend.attach import functions
from cermet.ops.public import PUBLIC

globals().update(functions("nn.functional"))

_ALSO = ("sigmoid", "tanh", "one_hot")
globals().update({name: PUBLIC[("", name)].fn for name in _ALSO if name not in globals()})


def __getattr__(name: str) -> Any:
    raise AttributeError(f"module 'cermet.nn.functional' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(n for n in globals() if not n.startswith("_"))
