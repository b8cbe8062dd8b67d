"""The models of the benchmark for frameworks without PyTorch's names: pure functions of lists of parameters.

They are the models of `bench/workloads/models.py`, layer by layer, with images channels last as is usual there. A *backend* (see
`jax_side`, `tensorflow_side`) brings the operations; a `Scope` makes the parameters on the first pass and hands them out, in the same
order, on later ones.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["MODELS", "Model", "Scope", "adam", "sgd"]


class Scope:
    """Hands out parameters and running statistics, in the order in which a model asks for them.

    Attributes:
        values, stats: what the model uses; made where None was given. updated: the new running statistics, in order. key: the state
            of the random generator, whatever the backend makes of it.
    """

    def __init__(self, backend: Any, values: list[Any] | None = None, stats: list[Any] | None = None, key: Any = None) -> None:
        self.backend, self.key, self._rng = backend, key, np.random.default_rng(0)
        self.making = values is None
        self.values: list[Any] = [] if values is None else list(values)
        self.stats: list[Any] = [] if stats is None else list(stats)
        self.updated: list[Any] = []
        self._next, self._next_stat = itertools.count(), itertools.count()

    def weight(self, *shape: int, fan_in: int) -> Any:
        """Uniform within 1 / sqrt(fan_in)."""
        return self._take(lambda: self._rng.uniform(-1, 1, shape) / math.sqrt(fan_in))

    def constant(self, value: float, *shape: int) -> Any:
        return self._take(lambda: np.full(shape, value))

    def normal(self, *shape: int) -> Any:
        return self._take(lambda: self._rng.standard_normal(shape))

    def _take(self, make: Callable[[], np.ndarray]) -> Any:
        if self.making:
            self.values.append(self.backend.array(make().astype(np.float32)))
        return self.values[next(self._next)]

    def linear(self, x: Any, inner: int, outer: int, bias: bool = True) -> Any:
        y = self.backend.matmul(x, self.weight(inner, outer, fan_in=inner))
        return y + self.weight(outer, fan_in=inner) if bias else y

    def conv(
        self, x: Any, inner: int, outer: int, kernel: int, stride: int = 1, padding: int = 0, groups: int = 1, bias: bool = False
    ) -> Any:
        fan_in = inner // groups * kernel**2
        y = self.backend.conv(x, self.weight(kernel, kernel, inner // groups, outer, fan_in=fan_in), stride, padding, groups)
        return y + self.weight(outer, fan_in=fan_in) if bias else y

    def batch_norm(self, x: Any, channels: int) -> Any:
        """With the batch's statistics; the running ones are updated with momentum 0.1."""
        if self.making:
            self.stats += [self.backend.array(np.full(channels, v, np.float32)) for v in (0, 1)]
        y, mean, var = self.backend.batch_norm(x, self.constant(1, channels), self.constant(0, channels))
        for new in (mean, var):
            self.updated.append(0.9 * self.stats[next(self._next_stat)] + 0.1 * new)
        return y

    def layer_norm(self, x: Any, width: int) -> Any:
        return self.backend.layer_norm(x, self.constant(1, width), self.constant(0, width))

    def dropout(self, x: Any, rate: float) -> Any:
        y, self.key = self.backend.dropout(x, rate, self.key)
        return y


@dataclass(frozen=True)
class Model:
    """``apply(scope, *data)`` gives the loss; ``data()`` what a step gets; ``update`` is the optimizer."""

    apply: Callable[..., Any]
    data: Callable[[], tuple[np.ndarray, ...]]
    update: Callable[..., Any]


def sgd(lr: float, momentum: float, decay: float = 0.0) -> Callable[..., Any]:
    """Stochastic gradient descent with momentum. The update: (backend, parameter, gradient, state, step) to (parameter, state)."""

    def update(b: Any, p: Any, g: Any, state: tuple[Any, Any], step: Any) -> tuple[Any, tuple[Any, Any]]:
        g = g + decay * p if decay else g
        v = momentum * state[0] + g
        return p - lr * v, (v, state[1])

    return update


def adam(lr: float, decay: float = 0.01) -> Callable[..., Any]:
    """Adam with decoupled weight decay (AdamW where there is any)."""

    def update(b: Any, p: Any, g: Any, state: tuple[Any, Any], step: Any) -> tuple[Any, tuple[Any, Any]]:
        m, v = 0.9 * state[0] + 0.1 * g, 0.999 * state[1] + 0.001 * g * g
        scale = b.sqrt(v / (1 - 0.999**step)) + 1e-8
        return p * (1 - lr * decay) - lr / (1 - 0.9**step) * m / scale, (m, v)

    return update


def _numbers(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def _labels(high: int, *shape: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, high, shape).astype(np.int32)


def _mlp(sizes: tuple[int, ...], batch: int) -> Model:
    def apply(s: Scope, x: Any, y: Any) -> Any:
        for k, (a, b) in enumerate(itertools.pairwise(sizes)):
            x = s.linear(x, a, b)
            if k < len(sizes) - 2:
                x = s.backend.relu(x)
        return s.backend.cross_entropy(x, y)

    return Model(apply, lambda: (_numbers(batch, sizes[0]), _labels(sizes[-1], batch)), adam(1e-3))


def _digits_cnn(batch: int = 64) -> Model:
    def apply(s: Scope, x: Any, y: Any) -> Any:
        relu = s.backend.relu
        x = relu(s.batch_norm(s.conv(x, 1, 32, 3, padding=1), 32))
        x = relu(s.batch_norm(s.conv(x, 32, 64, 3, padding=1), 64))
        x = s.dropout(s.backend.max_pool(x, 2), 0.25)
        x = s.dropout(relu(s.linear(s.backend.reshape(x, (-1, 1024)), 1024, 128)), 0.5)
        return s.backend.cross_entropy(s.linear(x, 128, 10), y)

    return Model(apply, lambda: (_numbers(batch, 8, 8, 1), _labels(10, batch)), adam(3e-3, 0.02))


def _mnist_cnn(batch: int = 64) -> Model:
    def apply(s: Scope, x: Any, y: Any) -> Any:
        relu = s.backend.relu
        x = relu(s.conv(x, 1, 32, 3, bias=True))
        x = relu(s.conv(x, 32, 64, 3, bias=True))
        x = s.dropout(s.backend.max_pool(x, 2), 0.25)
        x = s.dropout(relu(s.linear(s.backend.reshape(x, (-1, 9216)), 9216, 128)), 0.5)
        return s.backend.cross_entropy(s.linear(x, 128, 10), y)

    return Model(apply, lambda: (_numbers(batch, 28, 28, 1), _labels(10, batch)), adam(1e-3))


def _resnet18(batch: int = 32) -> Model:
    def block(s: Scope, x: Any, inner: int, outer: int, stride: int) -> Any:
        y = s.backend.relu(s.batch_norm(s.conv(x, inner, outer, 3, stride, 1), outer))
        y = s.batch_norm(s.conv(y, outer, outer, 3, 1, 1), outer)
        if stride != 1 or inner != outer:
            x = s.batch_norm(s.conv(x, inner, outer, 1, stride), outer)
        return s.backend.relu(y + x)

    def apply(s: Scope, x: Any, y: Any) -> Any:
        x = s.backend.relu(s.batch_norm(s.conv(x, 3, 64, 3, 1, 1), 64))
        inner = 64
        for outer, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
            x = block(s, x, inner, outer, stride)
            x = block(s, x, outer, outer, 1)
            inner = outer
        return s.backend.cross_entropy(s.linear(s.backend.mean(x, (1, 2)), 512, 10), y)

    return Model(apply, lambda: (_numbers(batch, 32, 32, 3), _labels(10, batch)), sgd(0.05, 0.9, 5e-4))


def _gpt(layers: int = 4, width: int = 256, heads: int = 4, length: int = 128, batch: int = 8, vocabulary: int = 256) -> Model:
    context = max(length, 256)

    def block(s: Scope, x: Any, t: int) -> Any:
        b = s.backend
        qkv = b.reshape(s.linear(s.layer_norm(x, width), width, 3 * width), (-1, t, 3, heads, width // heads))
        y = b.attention(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2])
        x = x + s.linear(b.reshape(y, (-1, t, width)), width, width)
        return x + s.linear(b.gelu(s.linear(s.layer_norm(x, width), width, 4 * width)), 4 * width, width)

    def apply(s: Scope, tokens: Any, y: Any) -> Any:
        b, t = s.backend, tokens.shape[1]
        x = b.take(s.normal(vocabulary, width), tokens) + s.normal(context, width)[:t]
        for _ in range(layers):
            x = block(s, x, t)
        logits = s.linear(s.layer_norm(x, width), width, vocabulary, bias=False)
        return b.cross_entropy(b.reshape(logits, (-1, vocabulary)), b.reshape(y, (-1,)))

    return Model(apply, lambda: (_labels(vocabulary, batch, length), _labels(vocabulary, batch, length, seed=2)), adam(3e-4))


def _lstm(width: int = 256, length: int = 64, batch: int = 32) -> Model:
    def apply(s: Scope, x: Any, y: Any) -> Any:
        b = s.backend
        gates = s.linear(x, width, 4 * width)
        w, bias = s.weight(width, 4 * width, fan_in=width), s.weight(4 * width, fan_in=width)

        def cell(state: tuple[Any, Any], g: Any) -> tuple[Any, Any]:
            h, c = state
            g = g + b.matmul(h, w) + bias
            i, f, u, o = (g[:, k * width : (k + 1) * width] for k in range(4))
            c = b.sigmoid(f) * c + b.sigmoid(i) * b.tanh(u)
            return b.sigmoid(o) * b.tanh(c), c

        zero = b.array(np.zeros((batch, width), np.float32))
        h, _ = b.fold(cell, (zero, zero), gates, length)
        return b.cross_entropy(s.linear(h, width, 10), y)

    return Model(apply, lambda: (_numbers(batch, length, width), _labels(10, batch)), adam(1e-3, 0.0))


def _mobilenet(batch: int = 32) -> Model:
    def inverted(s: Scope, x: Any, inner: int, outer: int, stride: int) -> Any:
        middle, relu6 = inner * 6, s.backend.relu6
        y = relu6(s.batch_norm(s.conv(x, inner, middle, 1), middle))
        y = relu6(s.batch_norm(s.conv(y, middle, middle, 3, stride, 1, groups=middle), middle))
        y = s.batch_norm(s.conv(y, middle, outer, 1), outer)
        return x + y if stride == 1 and inner == outer else y

    def apply(s: Scope, x: Any, y: Any) -> Any:
        x = s.backend.relu6(s.batch_norm(s.conv(x, 3, 32, 3, 1, 1), 32))
        inner = 32
        for outer, stride, count in ((24, 1, 2), (32, 2, 3), (64, 2, 4), (96, 1, 2), (160, 2, 2)):
            for k in range(count):
                x = inverted(s, x, inner, outer, stride if k == 0 else 1)
                inner = outer
        return s.backend.cross_entropy(s.linear(s.backend.mean(x, (1, 2)), inner, 10), y)

    return Model(apply, lambda: (_numbers(batch, 32, 32, 3), _labels(10, batch)), sgd(0.05, 0.9))


def _unet(batch: int = 4, size: int = 64, width: int = 32) -> Model:
    def double(s: Scope, x: Any, inner: int, outer: int) -> Any:
        for a in (inner, outer):
            x = s.backend.relu(s.batch_norm(s.conv(x, a, outer, 3, 1, 1), outer))
        return x

    def apply(s: Scope, x: Any, y: Any) -> Any:
        b, widths, kept = s.backend, [width, 2 * width, 4 * width], []
        for k, (inner, outer) in enumerate(zip([3, *widths[:-1]], widths, strict=True)):
            x = double(s, b.max_pool(x, 2) if k else x, inner, outer)
            kept.append(x)
        for k in (1, 0):
            up = b.conv_transpose(x, s.weight(2, 2, widths[k], widths[k + 1], fan_in=4 * widths[k]), 2)
            up = up + s.weight(widths[k], fan_in=4 * widths[k])
            x = double(s, b.concat([kept[k], up]), 2 * widths[k], widths[k])
        logits = s.conv(x, width, 4, 1, bias=True)
        return b.cross_entropy(b.reshape(logits, (-1, 4)), b.reshape(y, (-1,)))

    return Model(apply, lambda: (_numbers(batch, size, size, 3), _labels(4, batch, size, size)), adam(1e-3, 0.0))


MODELS: dict[str, Callable[..., Model]] = {
    "small_mlp": lambda: _mlp((64, 32, 10), 32),
    "mlp": lambda: _mlp((784, 512, 512, 10), 128),
    "digits_cnn": _digits_cnn,
    "mnist_cnn": _mnist_cnn,
    "small_gpt": lambda length=64: _gpt(2, 64, 4, length, 8, 96),
    "gpt": _gpt,
    "resnet18": _resnet18,
    "mobilenet": _mobilenet,
    "unet": _unet,
    "lstm": _lstm,
}
