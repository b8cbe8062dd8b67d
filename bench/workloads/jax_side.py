"""Workloads for JAX: functions under `jax.jit`, results waited for."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bench.workloads.functional import MODELS, Scope
from bench.workloads.kernels import CONVOLUTIONS, ELEMENTWISE, elementwise_inputs, numbers

__all__ = ["Side", "side"]

LAYOUT = ("NHWC", "HWIO", "NHWC")


class Backend:
    """The operations of `functional.py`."""

    array, matmul, sqrt, tanh = (
        staticmethod(jnp.asarray),
        staticmethod(jnp.matmul),
        staticmethod(jnp.sqrt),
        staticmethod(jnp.tanh),
    )
    relu, relu6, sigmoid = staticmethod(jax.nn.relu), staticmethod(jax.nn.relu6), staticmethod(jax.nn.sigmoid)
    reshape, mean = staticmethod(jnp.reshape), staticmethod(jnp.mean)

    @staticmethod
    def gelu(x: Any) -> Any:
        return jax.nn.gelu(x, approximate=False)

    @staticmethod
    def take(table: Any, index: Any) -> Any:
        return table[index]

    @staticmethod
    def concat(parts: list[Any]) -> Any:
        return jnp.concatenate(parts, -1)

    @staticmethod
    def conv(x: Any, w: Any, stride: int, padding: int, groups: int) -> Any:
        return jax.lax.conv_general_dilated(
            x, w, (stride, stride), [(padding, padding)] * 2, dimension_numbers=LAYOUT, feature_group_count=groups
        )

    @staticmethod
    def conv_transpose(x: Any, w: Any, stride: int) -> Any:
        return jax.lax.conv_transpose(x, w, (stride, stride), "VALID", dimension_numbers=LAYOUT, transpose_kernel=True)

    @staticmethod
    def max_pool(x: Any, k: int) -> Any:
        return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, k, k, 1), (1, k, k, 1), "VALID")

    @staticmethod
    def batch_norm(x: Any, gain: Any, bias: Any) -> Any:
        mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
        return (x - mean) * (jax.lax.rsqrt(var + 1e-5) * gain) + bias, mean, var

    @staticmethod
    def layer_norm(x: Any, gain: Any, bias: Any) -> Any:
        mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
        return (x - mean) * jax.lax.rsqrt(var + 1e-5) * gain + bias

    @staticmethod
    def dropout(x: Any, rate: float, key: Any) -> Any:
        key, mine = jax.random.split(key)
        return jnp.where(jax.random.bernoulli(mine, 1 - rate, x.shape), x / (1 - rate), 0), key

    @staticmethod
    def attention(q: Any, k: Any, v: Any) -> Any:
        return jax.nn.dot_product_attention(q, k, v, is_causal=True)

    @staticmethod
    def cross_entropy(logits: Any, y: Any) -> Any:
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], 1).mean()

    @staticmethod
    def fold(cell: Callable[..., Any], state: Any, x: Any, length: int) -> Any:
        return jax.lax.scan(lambda s, g: (cell(s, g), None), state, jnp.swapaxes(x, 0, 1))[0]


def training(name: str, **options: Any) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """A function that makes one step on the given data and returns the loss as a number, and the data."""
    model = MODELS[name](**options)
    data = tuple(jnp.asarray(d) for d in model.data())
    made = Scope(Backend, key=jax.random.key(0))
    model.apply(made, *data)
    state: dict[str, Any] = {
        "params": made.values,
        "stats": made.stats,
        "moments": [(jnp.zeros_like(p), jnp.zeros_like(p)) for p in made.values],
        "step": jnp.float32(0),
        "key": jax.random.key(1),
    }

    def step(state: dict[str, Any], *data: Any) -> Any:
        def loss(params: Any) -> Any:
            scope = Scope(Backend, params, state["stats"], state["key"])
            value = model.apply(scope, *data)
            return value, (scope.updated, scope.key)

        (value, (stats, key)), gradients = jax.value_and_grad(loss, has_aux=True)(state["params"])
        count = state["step"] + 1
        triples = zip(state["params"], gradients, state["moments"], strict=True)
        new = [model.update(jnp, p, g, m, count) for p, g, m in triples]
        return value, {
            "params": [p for p, _ in new], "stats": stats, "moments": [m for _, m in new], "step": count, "key": key,
        }  # fmt: skip

    jitted = jax.jit(step, donate_argnums=0)

    def run(*given: Any) -> float:
        nonlocal state
        value, state = jitted(state, *(given or data))
        return float(value)

    return run, data


def _convolution(case: str, backward: bool = False) -> Callable[[], Any]:
    n, c, size, o, kernel, stride, padding, groups, transposed = CONVOLUTIONS[case]
    x = jnp.asarray(numbers(n, size, size, c))
    scale = 1 / math.sqrt(c // groups * kernel**2)
    w = jnp.asarray(numbers(kernel, kernel, *((o, c) if transposed else (c // groups, o)), seed=1) * scale)

    def forward(x: Any, w: Any) -> Any:
        return Backend.conv_transpose(x, w, stride) if transposed else Backend.conv(x, w, stride, padding, groups)

    if not backward:
        jitted = jax.jit(forward)
        return lambda: jitted(x, w).block_until_ready()
    g = jnp.asarray(numbers(*jax.eval_shape(forward, x, w).shape, seed=2))
    both = jax.jit(lambda x, w, g: jax.vjp(forward, x, w)[1](g))
    return lambda: jax.block_until_ready(both(x, w, g))


def _matmul(m: int, n: int, k: int, batch: int = 0, dtype: str = "float32", tb: bool = False) -> Callable[[], Any]:
    b = (batch,) if batch else ()
    x = jnp.asarray(numbers(*b, m, k)).astype(dtype)
    y = jnp.asarray(numbers(*b, *((n, k) if tb else (k, n)), seed=1)).astype(dtype)
    jitted = jax.jit(lambda x, y: x @ (jnp.swapaxes(y, -1, -2) if tb else y))
    return lambda: jitted(x, y).block_until_ready()


def _attention(batch: int, heads: int, length: int, width: int, causal: bool = True, backward: bool = False) -> Callable[[], Any]:
    q, k, v, g = (jnp.asarray(numbers(batch, length, heads, width, seed=s)) for s in range(4))

    def forward(q: Any, k: Any, v: Any) -> Any:
        return jax.nn.dot_product_attention(q, k, v, is_causal=causal)

    if not backward:
        jitted = jax.jit(forward)
        return lambda: jitted(q, k, v).block_until_ready()
    both = jax.jit(lambda q, k, v, g: jax.vjp(forward, q, k, v)[1](g))
    return lambda: jax.block_until_ready(both(q, k, v, g))


def _elementwise(name: str, size: int) -> Callable[[], Any]:
    given = {k: jnp.asarray(v) for k, v in elementwise_inputs(name, size).items()}
    functions: dict[str, Callable[..., Any]] = {
        "exp": lambda x, **_: jnp.exp(x),
        "add": lambda x, y, **_: x + y,
        "gelu expression": lambda x, **_: 0.5 * x * (1.0 + jnp.tanh(0.7978845608 * (x + 0.044715 * x * x * x))),
        "softmax": lambda x, **_: jax.nn.softmax(x),
        "layer norm": lambda x, gain, bias, **_: Backend.layer_norm(x, gain, bias),
        "sum": lambda x, **_: x.sum(),
        "column variance": lambda x, **_: x.var(0, ddof=1),
        "transpose copy": lambda x, **_: x.T,
        "cumsum": lambda x, **_: jnp.cumsum(x, -1),
        "sort": lambda x, **_: jnp.sort(x.reshape(-1)),
        "gather": lambda table, index: table[index],
    }
    jitted = jax.jit(functions[name])
    return lambda: jitted(**given).block_until_ready()


class Side:
    """Makes workloads for JAX."""

    def __init__(self, threads: int) -> None:
        self.lib, self.version = jax, jax.__version__

    def make(self, kind: str, name: str, **options: Any) -> Callable[[], Any]:
        if kind == "step":
            run, _ = training(name, **options)
            return run
        if kind != "kernel":
            raise ValueError(f"no {kind} for JAX")
        if name in ELEMENTWISE:
            return _elementwise(name, **options)
        return {"matmul": _matmul, "convolution": _convolution, "attention": _attention}[name](**options)


def side(framework: str, threads: int) -> Side:
    jax.config.update("jax_platforms", "cpu")
    assert np.asarray(jnp.ones(1)).size
    return Side(threads)
