"""The models of the benchmark, written once: ``lib`` is `torch` or `cermet`, which share names.

Each maker returns a ``Training``: a model, an optimizer, and the data of one step.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["MAKERS", "Training", "classifier", "labels", "make_model", "random_numbers"]


@dataclass
class Training:
    """One model with its optimizer and data.

    Attributes:
        model: the network. optimizer: over its parameters.
        loss: a function of the inputs and targets that runs the network. data: what ``loss`` gets.
    """

    model: Any
    optimizer: Any
    loss: Callable[..., Any]
    data: tuple[Any, ...]

    def step(self, *data: Any) -> float:
        """One training step; the loss as a number."""
        self.optimizer.zero_grad()
        value = self.loss(*(data or self.data))
        value.backward()
        self.optimizer.step()
        return value.item()


def random_numbers(lib: Any, *shape: int, seed: int = 0) -> Any:
    """Normally distributed, the same for every library."""
    return lib.from_numpy(np.random.default_rng(seed).standard_normal(shape, np.float32))


def labels(lib: Any, high: int, *shape: int, seed: int = 1) -> Any:
    """Whole numbers below ``high``, the same for every library."""
    return lib.from_numpy(np.random.default_rng(seed).integers(0, high, shape))


def classifier(lib: Any, model: Any, x: Any, y: Any, optimizer: Any) -> Training:
    """Training with the cross-entropy of ``model(x)`` and ``y``."""
    cross_entropy = lib.nn.functional.cross_entropy
    return Training(model, optimizer, lambda x, y: cross_entropy(model(x), y), (x, y))


def mlp(lib: Any, sizes: tuple[int, ...] = (784, 512, 512, 10), batch: int = 128, dropout: float = 0.0) -> Training:
    """Linear layers with ReLU between them, AdamW."""
    nn, layers = lib.nn, []
    for k, (a, b) in enumerate(itertools.pairwise(sizes)):
        layers.append(nn.Linear(a, b))
        if k < len(sizes) - 2:
            layers.append(nn.ReLU())
            if dropout:
                layers.append(nn.Dropout(dropout))
    model = nn.Sequential(*layers)
    optimizer = lib.optim.AdamW(model.parameters(), lr=1e-3)
    return classifier(lib, model, random_numbers(lib, batch, sizes[0]), labels(lib, sizes[-1], batch), optimizer)


def small_mlp(lib: Any) -> Training:
    """So small that only overheads count: 64-32-10, batch 32."""
    return mlp(lib, (64, 32, 10), 32)


def digits_cnn(lib: Any, batch: int = 64, dropout: bool = True) -> Training:
    """The network of examples/digits.py."""
    nn = lib.nn
    model = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU(),
        nn.MaxPool2d(2), nn.Dropout(0.25 if dropout else 0.0), nn.Flatten(),
        nn.Linear(1024, 128), nn.ReLU(), nn.Dropout(0.5 if dropout else 0.0), nn.Linear(128, 10),
    )  # fmt: skip
    optimizer = lib.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.02)
    return classifier(lib, model, random_numbers(lib, batch, 1, 8, 8), labels(lib, 10, batch), optimizer)


def mnist_cnn(lib: Any, batch: int = 64) -> Training:
    """The network of PyTorch's MNIST example."""
    nn = lib.nn
    model = nn.Sequential(
        nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.25), nn.Flatten(),
        nn.Linear(9216, 128), nn.ReLU(), nn.Dropout(0.5), nn.Linear(128, 10),
    )  # fmt: skip
    optimizer = lib.optim.AdamW(model.parameters(), lr=1e-3)
    return classifier(lib, model, random_numbers(lib, batch, 1, 28, 28), labels(lib, 10, batch), optimizer)


def _resnet_block(lib: Any, inner: int, outer: int, stride: int) -> Any:
    nn, relu = lib.nn, lib.nn.functional.relu

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(inner, outer, 3, stride, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(outer)
            self.conv2 = nn.Conv2d(outer, outer, 3, 1, 1, bias=False)
            self.bn2 = nn.BatchNorm2d(outer)
            self.shortcut = nn.Sequential()
            if stride != 1 or inner != outer:
                self.shortcut = nn.Sequential(nn.Conv2d(inner, outer, 1, stride, bias=False), nn.BatchNorm2d(outer))

        def forward(self, x: Any) -> Any:
            y = self.bn2(self.conv2(relu(self.bn1(self.conv1(x)))))
            return relu(y + self.shortcut(x))

    return Block()


def resnet18_model(lib: Any) -> Any:
    """ResNet-18 for 32 x 32 pictures (3 x 3 stem, no first pooling), as is usual for CIFAR."""
    nn = lib.nn
    layers = [nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    inner = 64
    for outer, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        layers += [_resnet_block(lib, inner, outer, stride), _resnet_block(lib, outer, outer, 1)]
        inner = outer
    return nn.Sequential(*layers, nn.AvgPool2d(4), nn.Flatten(), nn.Linear(512, 10))


def resnet18(lib: Any, batch: int = 32) -> Training:
    """ResNet-18 on 32 x 32, SGD with momentum."""
    model = resnet18_model(lib)
    optimizer = lib.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    return classifier(lib, model, random_numbers(lib, batch, 3, 32, 32), labels(lib, 10, batch), optimizer)


def _gpt_model(lib: Any, vocabulary: int, context: int, layers: int, width: int, heads: int) -> Any:
    nn, F = lib.nn, lib.nn.functional

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
            self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
            self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

        def forward(self, x: Any) -> Any:
            b, t, c = x.shape
            q, k, v = (p.view(b, t, heads, c // heads).transpose(1, 2) for p in self.qkv(self.norm1(x)).chunk(3, dim=-1))
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.out(y.transpose(1, 2).reshape(b, t, c))
            return x + self.down(F.gelu(self.up(self.norm2(x))))

    class GPT(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token, self.position = nn.Embedding(vocabulary, width), nn.Embedding(context, width)
            self.blocks = nn.Sequential(*[Block() for _ in range(layers)])
            self.norm = nn.LayerNorm(width)
            self.head = nn.Linear(width, vocabulary, bias=False)

        def forward(self, tokens: Any) -> Any:
            x = self.token(tokens) + self.position(lib.arange(tokens.shape[1]))
            return self.head(self.norm(self.blocks(x)))

    return GPT()


def gpt(
    lib: Any, layers: int = 4, width: int = 256, heads: int = 4, length: int = 128, batch: int = 8, vocabulary: int = 256
) -> Training:
    """A decoder-only transformer, AdamW."""
    model = _gpt_model(lib, vocabulary, max(length, 256), layers, width, heads)
    optimizer = lib.optim.AdamW(model.parameters(), lr=3e-4)
    cross_entropy = lib.nn.functional.cross_entropy

    def loss(x: Any, y: Any) -> Any:
        return cross_entropy(model(x).flatten(0, 1), y.flatten())

    data = (labels(lib, vocabulary, batch, length), labels(lib, vocabulary, batch, length, seed=2))
    return Training(model, optimizer, loss, data)


def small_gpt(lib: Any, length: int = 64) -> Training:
    """For many sequence lengths: two layers of width 64."""
    return gpt(lib, 2, 64, 4, length, 8, 96)


def lstm(lib: Any, width: int = 256, length: int = 64, batch: int = 32) -> Training:
    """One LSTM layer over a sequence, its last state classified; Adam."""
    nn = lib.nn

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.LSTM(width, width, batch_first=True)
            self.head = nn.Linear(width, 10)

        def forward(self, x: Any) -> Any:
            return self.head(self.rnn(x)[0][:, -1])

    model = Net()
    optimizer = lib.optim.Adam(model.parameters(), lr=1e-3)
    return classifier(lib, model, random_numbers(lib, batch, length, width), labels(lib, 10, batch), optimizer)


def mobilenet(lib: Any, batch: int = 32) -> Training:
    """Inverted residuals with depthwise convolutions, in the manner of MobileNetV2, on 32 x 32."""
    nn = lib.nn

    class Inverted(nn.Module):
        def __init__(self, inner: int, outer: int, stride: int, expand: int) -> None:
            super().__init__()
            middle = inner * expand
            self.body = nn.Sequential(
                nn.Conv2d(inner, middle, 1, bias=False), nn.BatchNorm2d(middle), nn.ReLU6(),
                nn.Conv2d(middle, middle, 3, stride, 1, groups=middle, bias=False), nn.BatchNorm2d(middle), nn.ReLU6(),
                nn.Conv2d(middle, outer, 1, bias=False), nn.BatchNorm2d(outer),
            )  # fmt: skip
            self.residual = stride == 1 and inner == outer

        def forward(self, x: Any) -> Any:
            return x + self.body(x) if self.residual else self.body(x)

    layers = [nn.Conv2d(3, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU6()]
    inner = 32
    for outer, stride, count in ((24, 1, 2), (32, 2, 3), (64, 2, 4), (96, 1, 2), (160, 2, 2)):
        for k in range(count):
            layers.append(Inverted(inner, outer, stride if k == 0 else 1, 6))
            inner = outer
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inner, 10))
    optimizer = lib.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return classifier(lib, model, random_numbers(lib, batch, 3, 32, 32), labels(lib, 10, batch), optimizer)


def unet(lib: Any, batch: int = 4, size: int = 64, width: int = 32) -> Training:
    """Three levels down and up with transposed convolutions; a class for each pixel."""
    nn, F = lib.nn, lib.nn.functional

    def double(inner: int, outer: int) -> Any:
        return nn.Sequential(
            nn.Conv2d(inner, outer, 3, padding=1, bias=False), nn.BatchNorm2d(outer), nn.ReLU(),
            nn.Conv2d(outer, outer, 3, padding=1, bias=False), nn.BatchNorm2d(outer), nn.ReLU(),
        )  # fmt: skip

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            widths = [width, 2 * width, 4 * width]
            self.down = nn.ModuleList([double(a, b) for a, b in zip([3, *widths[:-1]], widths, strict=True)])
            self.up = nn.ModuleList([nn.ConvTranspose2d(b, a, 2, 2) for a, b in itertools.pairwise(widths)])
            self.join = nn.ModuleList([double(2 * a, a) for a in widths[:-1]])
            self.head = nn.Conv2d(width, 4, 1)

        def forward(self, x: Any) -> Any:
            kept = []
            for k, part in enumerate(self.down):
                x = part(F.max_pool2d(x, 2) if k else x)
                kept.append(x)
            for k in reversed(range(len(self.up))):
                x = self.join[k](lib.cat([kept[k], self.up[k](x)], 1))
            return self.head(x)

    model = Net()
    optimizer = lib.optim.Adam(model.parameters(), lr=1e-3)
    return classifier(lib, model, random_numbers(lib, batch, 3, size, size), labels(lib, 4, batch, size, size), optimizer)


MAKERS: dict[str, Callable[..., Training]] = {
    "mlp": mlp,
    "small_mlp": small_mlp,
    "digits_cnn": digits_cnn,
    "mnist_cnn": mnist_cnn,
    "resnet18": resnet18,
    "gpt": gpt,
    "small_gpt": small_gpt,
    "lstm": lstm,
    "mobilenet": mobilenet,
    "unet": unet,
}


def make_model(lib: Any, name: str, **options: Any) -> Training:
    """The named model with its optimizer and data, the same weights' distribution in both frameworks."""
    from bench.workloads.zoo import ZOO  # which stands on this room

    lib.manual_seed(0)
    return (MAKERS.get(name) or ZOO[name])(lib, **options)
