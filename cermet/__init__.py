"""Cermet: a deep learning framework that records what you write, compiles it, and computes when you look."""

from typing import Any

from cermet import config, dtypes
from cermet import ops as _ops
from cermet.devices import device
from cermet.dtypes import (
    bfloat16,
    bool,
    can_cast,
    finfo,
    float16,
    float32,
    float64,
    get_default_dtype,
    iinfo,
    int8,
    int16,
    int32,
    int64,
    promote_types,
    set_default_dtype,
    uint8,
)
from cermet.frontend import interop as _interop
from cermet.frontend.attach import attach as _attach
from cermet.frontend.attach import functions as _functions
from cermet.frontend.autograd import enable_grad, inference_mode, is_grad_enabled, no_grad, set_grad_enabled
from cermet.frontend.control import eager, get_num_threads, realize, set_num_threads, stats
from cermet.frontend.tensor import Size, Tensor

_attach()
globals().update(_functions(""))


def __getattr__(name: str) -> Any:
    raise AttributeError(f"module 'cermet' has no attribute {name!r}")
