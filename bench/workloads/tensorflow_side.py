"""Workloads for TensorFlow: functions under `tf.function`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from bench.workloads.functional import MODELS, Scope
from bench.workloads.kernels import CONVOLUTIONS, ELEMENTWISE, elementwise_inputs, numbers

__all__ = ["Side", "side"]


class Backend:
    """The operations of `functional.py`."""

    array, matmul, sqrt, tanh = tf.constant, staticmethod(tf.matmul), staticmethod(tf.sqrt), staticmethod(tf.tanh)
    relu, relu6, sigmoid = staticmethod(tf.nn.relu), staticmethod(tf.nn.relu6), staticmethod(tf.sigmoid)
    reshape, mean, take = staticmethod(tf.reshape), staticmethod(tf.reduce_mean), staticmethod(tf.gather)

    @staticmethod
    def gelu(x: Any) -> Any:
        return tf.nn.gelu(x, approximate=False)

    @staticmethod
    def concat(parts: list[Any]) -> Any:
        return tf.concat(parts, -1)

    @staticmethod
    def conv(x: Any, w: Any, stride: int, padding: int, groups: int) -> Any:
        sides = [[0, 0], [padding, padding], [padding, padding], [0, 0]]
        if groups > 1 and groups == x.shape[-1]:
            w = tf.reshape(w, (w.shape[0], w.shape[1], groups, -1))
            return tf.nn.depthwise_conv2d(x, w, [1, stride, stride, 1], sides)
        return tf.nn.conv2d(x, w, stride, sides)

    @staticmethod
    def conv_transpose(x: Any, w: Any, stride: int) -> Any:
        n, h, width, _ = x.shape
        shape = (n, (h - 1) * stride + w.shape[0], (width - 1) * stride + w.shape[1], w.shape[2])
        return tf.nn.conv2d_transpose(x, w, shape, stride, "VALID")

    @staticmethod
    def max_pool(x: Any, k: int) -> Any:
        return tf.nn.max_pool2d(x, k, k, "VALID")

    @staticmethod
    def batch_norm(x: Any, gain: Any, bias: Any) -> Any:
        return tf.compat.v1.nn.fused_batch_norm(x, gain, bias, epsilon=1e-5, is_training=True)

    @staticmethod
    def layer_norm(x: Any, gain: Any, bias: Any) -> Any:
        mean, var = tf.nn.moments(x, -1, keepdims=True)
        return (x - mean) * tf.math.rsqrt(var + 1e-5) * gain + bias

    @staticmethod
    def dropout(x: Any, rate: float, key: Any) -> Any:
        return tf.nn.dropout(x, rate), key

    @staticmethod
    def attention(q: Any, k: Any, v: Any, causal: bool = True) -> Any:
        q, k, v = (tf.transpose(a, (0, 2, 1, 3)) for a in (q, k, v))
        scores = tf.matmul(q, k, transpose_b=True) / math.sqrt(q.shape[-1])
        if causal:
            t = q.shape[2]
            scores = tf.where(np.tri(t, dtype=bool), scores, -np.float32(np.inf))
        return tf.transpose(tf.matmul(tf.nn.softmax(scores), v), (0, 2, 1, 3))

    @staticmethod
    def cross_entropy(logits: Any, y: Any) -> Any:
        return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(y, logits))

    @staticmethod
    def fold(cell: Callable[..., Any], state: Any, x: Any, length: int) -> Any:
        for g in tf.unstack(x, length, 1):
            state = cell(state, g)
        return state


def training(name: str, **options: Any) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """A function that makes one step on the given data and returns the loss as a number, and the data."""
    model = MODELS[name](**options)
    data = tuple(tf.constant(d) for d in model.data())
    made = Scope(Backend)
    model.apply(made, *data)
    params, stats = [tf.Variable(v) for v in made.values], [tf.Variable(v) for v in made.stats]
    moments = [(tf.Variable(tf.zeros_like(p)), tf.Variable(tf.zeros_like(p))) for p in params]
    count = tf.Variable(0.0)

    @tf.function
    def step(*data: Any) -> Any:
        scope = Scope(Backend, params, stats)
        with tf.GradientTape() as tape:
            value = model.apply(scope, *data)
        gradients = tape.gradient(value, params)
        count.assign_add(1.0)
        for p, g, m in zip(params, gradients, moments, strict=True):
            new, state = model.update(tf, p, tf.convert_to_tensor(g), m, count)
            p.assign(new)
            for old, now in zip(m, state, strict=True):
                if old is not now:
                    old.assign(now)
        for old, now in zip(stats, scope.updated, strict=True):
            old.assign(now)
        return value

    return lambda *given: float(step(*(given or data))), data


def _convolution(case: str, backward: bool = False) -> Callable[[], Any]:
    n, c, size, o, kernel, stride, padding, groups, transposed = CONVOLUTIONS[case]
    x = tf.constant(numbers(n, size, size, c))
    scale = 1 / math.sqrt(c // groups * kernel**2)
    w = tf.constant((numbers(kernel, kernel, *((o, c) if transposed else (c // groups, o)), seed=1) * scale).astype(np.float32))

    def forward(x: Any, w: Any) -> Any:
        return Backend.conv_transpose(x, w, stride) if transposed else Backend.conv(x, w, stride, padding, groups)

    if not backward:
        compiled = tf.function(forward)
        return lambda: compiled(x, w)
    g = tf.constant(numbers(*forward(x, w).shape, seed=2))

    @tf.function
    def both(x: Any, w: Any, g: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch((x, w))
            y = forward(x, w)
        return tape.gradient(y, (x, w), g)

    return lambda: both(x, w, g)


def _matmul(m: int, n: int, k: int, batch: int = 0, dtype: str = "float32", tb: bool = False) -> Callable[[], Any]:
    b = (batch,) if batch else ()
    x = tf.cast(numbers(*b, m, k), dtype)
    y = tf.cast(numbers(*b, *((n, k) if tb else (k, n)), seed=1), dtype)
    compiled = tf.function(lambda x, y: tf.matmul(x, y, transpose_b=tb))
    return lambda: compiled(x, y)


def _attention(batch: int, heads: int, length: int, width: int, causal: bool = True, backward: bool = False) -> Callable[[], Any]:
    q, k, v, g = (tf.constant(numbers(batch, length, heads, width, seed=s)) for s in range(4))
    if not backward:
        compiled = tf.function(lambda q, k, v: Backend.attention(q, k, v, causal))
        return lambda: compiled(q, k, v)

    @tf.function
    def both(q: Any, k: Any, v: Any, g: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch((q, k, v))
            y = Backend.attention(q, k, v, causal)
        return tape.gradient(y, (q, k, v), g)

    return lambda: both(q, k, v, g)


def _elementwise(name: str, size: int) -> Callable[[], Any]:
    given = {k: tf.constant(v) for k, v in elementwise_inputs(name, size).items()}

    def variance(x: Any, **_: Any) -> Any:
        return tf.math.reduce_variance(x, 0)

    functions: dict[str, Callable[..., Any]] = {
        "exp": lambda x, **_: tf.exp(x),
        "add": lambda x, y, **_: x + y,
        "gelu expression": lambda x, **_: 0.5 * x * (1.0 + tf.tanh(0.7978845608 * (x + 0.044715 * x * x * x))),
        "softmax": lambda x, **_: tf.nn.softmax(x),
        "layer norm": lambda x, gain, bias, **_: Backend.layer_norm(x, gain, bias),
        "sum": lambda x, **_: tf.reduce_sum(x),
        "column variance": variance,
        "transpose copy": lambda x, **_: tf.transpose(x),
        "cumsum": lambda x, **_: tf.cumsum(x, -1),
        "sort": lambda x, **_: tf.sort(tf.reshape(x, (-1,))),
        "gather": lambda table, index: tf.gather(table, index),
    }
    compiled = tf.function(functions[name])
    return lambda: compiled(**given)


class Side:
    """Makes workloads for TensorFlow."""

    def __init__(self, threads: int) -> None:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(1)
        self.lib, self.version = tf, tf.__version__

    def make(self, kind: str, name: str, **options: Any) -> Callable[[], Any]:
        if kind == "step":
            run, _ = training(name, **options)
            return run
        if kind != "kernel":
            raise ValueError(f"no {kind} for TensorFlow")
        if name in ELEMENTWISE:
            return _elementwise(name, **options)
        return {"matmul": _matmul, "convolution": _convolution, "attention": _attention}[name](**options)


def side(framework: str, threads: int) -> Side:
    return Side(threads)
