"""Workloads for NumPy: single operations, without convolutions, attention and training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from bench.workloads.kernels import ELEMENTWISE, elementwise_inputs, numbers

__all__ = ["Side", "side"]


def _softmax(x: Any, **_: Any) -> Any:
    e = np.exp(x - x.max(-1, keepdims=True))
    e /= e.sum(-1, keepdims=True)
    return e


def _layer_norm(x: Any, gain: Any, bias: Any, **_: Any) -> Any:
    y = x - x.mean(-1, keepdims=True)
    return y / np.sqrt((y * y).mean(-1, keepdims=True) + 1e-5) * gain + bias


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "exp": lambda x, **_: np.exp(x),
    "add": lambda x, y, **_: x + y,
    "gelu expression": lambda x, **_: 0.5 * x * (1.0 + np.tanh(0.7978845608 * (x + 0.044715 * x * x * x))),
    "softmax": _softmax,
    "layer norm": _layer_norm,
    "sum": lambda x, **_: x.sum(),
    "column variance": lambda x, **_: x.var(0, ddof=1),
    "transpose copy": lambda x, **_: x.T.copy(),
    "cumsum": lambda x, **_: np.cumsum(x, -1),
    "sort": lambda x, **_: np.sort(x.reshape(-1)),
    "gather": lambda table, index: table[index],
}


class Side:
    """Makes workloads for NumPy; its thread count is set by the environment."""

    def __init__(self) -> None:
        self.lib, self.version = np, np.__version__

    def make(self, kind: str, name: str, **options: Any) -> Callable[[], Any]:
        if kind == "kernel" and name in ELEMENTWISE:
            given = elementwise_inputs(name, **options)
            return lambda: FUNCTIONS[name](**given)
        if kind == "kernel" and name == "matmul" and options.get("dtype", "float32") == "float32":
            b = (options["batch"],) if options.get("batch") else ()
            m, n, k, tb = options["m"], options["n"], options["k"], options.get("tb", False)
            x, y = numbers(*b, m, k), numbers(*b, *((n, k) if tb else (k, n)), seed=1)
            y = np.swapaxes(y, -1, -2) if tb else y
            return lambda: x @ y
        raise ValueError(f"NumPy has no {kind} {name}")


def side(framework: str, threads: int) -> Side:
    return Side()
