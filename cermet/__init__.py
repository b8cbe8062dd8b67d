# ruff: noqa: F401
"""Cermet: a deep learning framework that records what you write, compiles it, and computes when you look."""

import importlib
from typing import Any

from cermet import config, dtypes
from cermet import ops as _ops
from cermet.devices import Device, device
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
from cermet.frontend.autocast import (
    autocast,
    get_autocast_dtype,
    is_autocast_available,
    is_autocast_enabled,
    set_autocast_dtype,
    set_autocast_enabled,
)
from cermet.frontend.autograd import enable_grad, inference_mode, is_grad_enabled, no_grad, set_grad_enabled
from cermet.frontend.control import eager, get_num_threads, realize, set_num_threads, stats, tune
from cermet.frontend.printing import get_printoptions, set_printoptions
from cermet.frontend.tensor import Size, Tensor
from cermet.ops.define import ShapeError
from cermet.random import Generator, default_generator, initial_seed, manual_seed, seed

__version__ = "0.1.0"

float = float32
double = float64
half = float16
int = int32
long = int64
short = int16
dtype = dtypes.DType

_attach()
globals().update(_functions(""))

# Rooms that model code uses, loaded at first use: importing cermet stays quick.
_ROOMS = frozenset(("amp", "autograd", "cuda", "data", "io", "linalg", "nn", "optim", "special", "utils"))
_FROM_ROOMS = {"compile": "capture", "load": "io", "save": "io"}


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f"cermet.{name}")
    room = _FROM_ROOMS.get(name)
    if room is not None:
        return getattr(importlib.import_module(f"cermet.{room}"), name)
    raise AttributeError(f"module 'cermet' has no attribute {name!r}")
