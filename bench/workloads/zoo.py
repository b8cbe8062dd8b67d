"""Further models, small ones of many kinds: what people train that is not in `models.py`. ``lib`` is `torch` or `cermet`.

They keep the engine honest: nothing is tuned for them. ``python -m bench zoo`` trains each beside PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bench.workloads.models import Training, classifier, labels, random_numbers

__all__ = ["ZOO"]


def vgg(lib: Any, batch: int = 16) -> Training:
    """Plain 3x3 convolutions and max-pooling (VGG-11's first stages), 32 x 32, SGD."""
    nn, layers, inner = lib.nn, [], 3
    for outer in (32, 0, 64, 0, 128, 128, 0, 256, 256, 0):
        if outer == 0:
            layers.append(nn.MaxPool2d(2))
            continue
        layers += [nn.Conv2d(inner, outer, 3, padding=1), nn.ReLU()]
        inner = outer
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(1024, 256), nn.ReLU(), nn.Linear(256, 10))
    optimizer = lib.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True)
    return classifier(lib, model, random_numbers(lib, batch, 3, 32, 32), labels(lib, 10, batch), optimizer)


def densenet(lib: Any, batch: int = 16) -> Training:
    """Every layer sees all before it, by concatenation; batch norm, average pooling between blocks."""
    nn = lib.nn

    class Layer(nn.Module):
        def __init__(self, inner: int, growth: int) -> None:
            super().__init__()
            self.body = nn.Sequential(
                nn.BatchNorm2d(inner), nn.ReLU(), nn.Conv2d(inner, 4 * growth, 1, bias=False),
                nn.BatchNorm2d(4 * growth), nn.ReLU(), nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False),
            )  # fmt: skip

        def forward(self, x: Any) -> Any:
            return lib.cat([x, self.body(x)], 1)

    layers, width = [nn.Conv2d(3, 24, 3, padding=1, bias=False)], 24
    for block in range(3):
        for _ in range(4):
            layers.append(Layer(width, 12))
            width += 12
        if block < 2:
            layers += [nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width // 2, 1, bias=False), nn.AvgPool2d(2)]
            width //= 2
    model = nn.Sequential(*layers, nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))
    optimizer = lib.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
    return classifier(lib, model, random_numbers(lib, batch, 3, 32, 32), labels(lib, 10, batch), optimizer)


def convnext(lib: Any, batch: int = 8) -> Training:
    """Depthwise 7x7, layer norm over channels, GELU, layer scale, in the manner of ConvNeXt."""
    nn, F = lib.nn, lib.nn.functional

    class Block(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.depthwise = nn.Conv2d(width, width, 7, padding=3, groups=width)
            self.norm = nn.LayerNorm(width)
            self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
            self.gamma = nn.Parameter(lib.full((width,), 0.1))

        def forward(self, x: Any) -> Any:
            y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
            y = self.gamma * self.down(F.gelu(self.up(y)))
            return x + y.permute(0, 3, 1, 2)

    layers = [nn.Conv2d(3, 48, 4, 4)]
    for inner, outer in ((48, 96), (96, 192)):
        layers += [Block(inner), Block(inner), nn.BatchNorm2d(inner), nn.Conv2d(inner, outer, 2, 2)]
    model = nn.Sequential(*layers, Block(192), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(192, 10))
    optimizer = lib.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    return classifier(lib, model, random_numbers(lib, batch, 3, 64, 64), labels(lib, 10, batch), optimizer)


def squeeze_excite(lib: Any, batch: int = 16) -> Training:
    """Depthwise separable blocks with squeeze and excitation, SiLU, in the manner of EfficientNet."""
    nn = lib.nn

    class Block(nn.Module):
        def __init__(self, inner: int, outer: int, kernel: int, stride: int) -> None:
            super().__init__()
            middle = 4 * inner
            self.expand = nn.Sequential(nn.Conv2d(inner, middle, 1, bias=False), nn.BatchNorm2d(middle), nn.SiLU())
            self.depth = nn.Sequential(
                nn.Conv2d(middle, middle, kernel, stride, kernel // 2, groups=middle, bias=False),
                nn.BatchNorm2d(middle),
                nn.SiLU(),
            )
            self.gate = nn.Sequential(
                nn.AdaptiveAvgPool2d(1),
                nn.Conv2d(middle, inner // 2, 1),
                nn.SiLU(),
                nn.Conv2d(inner // 2, middle, 1),
                nn.Sigmoid(),
            )
            self.project = nn.Sequential(nn.Conv2d(middle, outer, 1, bias=False), nn.BatchNorm2d(outer))
            self.residual = stride == 1 and inner == outer

        def forward(self, x: Any) -> Any:
            y = self.depth(self.expand(x))
            y = self.project(y * self.gate(y))
            return x + y if self.residual else y

    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.SiLU(),
        Block(16, 24, 3, 1), Block(24, 24, 3, 1), Block(24, 40, 5, 2), Block(40, 40, 5, 1), Block(40, 80, 3, 2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(80, 10),
    )  # fmt: skip
    optimizer = lib.optim.RMSprop(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-5)
    return classifier(lib, model, random_numbers(lib, batch, 3, 64, 64), labels(lib, 10, batch), optimizer)


def vit(lib: Any, batch: int = 16) -> Training:
    """A vision transformer of nn.TransformerEncoder, patches of 4 x 4, a class token."""
    nn = lib.nn

    class Net(nn.Module):
        def __init__(self, width: int = 128) -> None:
            super().__init__()
            self.patch = nn.Conv2d(3, width, 4, 4)
            self.token = nn.Parameter(lib.zeros(1, 1, width))
            self.position = nn.Parameter(0.02 * lib.ones(1, 65, width))
            layer = nn.TransformerEncoderLayer(width, 4, 4 * width, 0.1, "gelu", batch_first=True, norm_first=True)
            self.encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
            self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

        def forward(self, x: Any) -> Any:
            x = self.patch(x).flatten(2).transpose(1, 2)
            x = lib.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.position
            return self.head(self.norm(self.encoder(x))[:, 0])

    model = Net()
    optimizer = lib.optim.AdamW(model.parameters(), lr=1e-3)
    return classifier(lib, model, random_numbers(lib, batch, 3, 32, 32), labels(lib, 10, batch), optimizer)


def masked_encoder(lib: Any, batch: int = 8, length: int = 96) -> Training:
    """A BERT-like encoder with a padding mask, learned positions and a head over the vocabulary."""
    nn = lib.nn

    class Net(nn.Module):
        def __init__(self, width: int = 128, vocabulary: int = 1000) -> None:
            super().__init__()
            self.words = nn.Embedding(vocabulary, width, padding_idx=0)
            self.places = nn.Embedding(512, width)
            layer = nn.TransformerEncoderLayer(width, 4, 512, 0.1, "gelu", batch_first=True)
            self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
            self.head = nn.Linear(width, vocabulary)

        def forward(self, tokens: Any) -> Any:
            x = self.words(tokens) + self.places(lib.arange(tokens.shape[1]))
            return self.head(self.encoder(x, src_key_padding_mask=tokens == 0))

    model = Net()
    optimizer = lib.optim.AdamW(model.parameters(), lr=5e-4)
    schedule = lib.optim.lr_scheduler.OneCycleLR(optimizer, 5e-4, total_steps=100_000)

    def loss(x: Any, y: Any) -> Any:
        value = lib.nn.functional.cross_entropy(model(x).transpose(1, 2), y, ignore_index=0)
        lib.nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # of the step before: what counts here is that it runs
        return value

    training = Training(model, optimizer, loss, (labels(lib, 1000, batch, length), labels(lib, 1000, batch, length, seed=2)))
    optimizer.register_step_post_hook(lambda *_: schedule.step())
    return training


def translator(lib: Any, batch: int = 16, length: int = 24) -> Training:
    """A GRU encoder and decoder with additive attention over the encoder's states, one Python step for each word."""
    nn, F = lib.nn, lib.nn.functional

    class Net(nn.Module):
        def __init__(self, width: int = 96, vocabulary: int = 200) -> None:
            super().__init__()
            self.source, self.target = nn.Embedding(vocabulary, width), nn.Embedding(vocabulary, width)
            self.encoder = nn.GRU(width, width, 1, batch_first=True, bidirectional=True)
            self.cell = nn.GRUCell(3 * width, width)
            self.query, self.key, self.score = nn.Linear(width, width), nn.Linear(2 * width, width), nn.Linear(width, 1)
            self.head = nn.Linear(width, vocabulary)

        def forward(self, x: Any, y: Any) -> Any:
            states, last = self.encoder(self.source(x))
            keys, h, out = self.key(states), last[0] + last[1], []
            for k in range(y.shape[1]):
                weights = F.softmax(self.score(lib.tanh(keys + self.query(h)[:, None])), 1)
                h = self.cell(lib.cat([self.target(y[:, k]), (weights * states).sum(1)], -1), h)
                out.append(self.head(h))
            return lib.stack(out, 1)

    model = Net()
    optimizer = lib.optim.Adam(model.parameters(), lr=1e-3)

    def loss(x: Any, y: Any) -> Any:
        return F.cross_entropy(model(x, y).flatten(0, 1), y.flatten())

    return Training(model, optimizer, loss, (labels(lib, 200, batch, length), labels(lib, 200, batch, length, seed=2)))


def autoencoder(lib: Any, batch: int = 32) -> Training:
    """A variational autoencoder on 28 x 28 with strided and transposed convolutions."""
    nn, F = lib.nn, lib.nn.functional

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encode = nn.Sequential(
                nn.Conv2d(1, 32, 4, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(32, 64, 4, 2, 1), nn.LeakyReLU(0.2), nn.Flatten(),
            )  # fmt: skip
            self.mean, self.spread = nn.Linear(3136, 16), nn.Linear(3136, 16)
            self.decode = nn.Sequential(
                nn.Linear(16, 3136), nn.ReLU(), nn.Unflatten(1, (64, 7, 7)),
                nn.ConvTranspose2d(64, 32, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(32, 1, 4, 2, 1),
            )  # fmt: skip

        def forward(self, x: Any) -> Any:
            y = self.encode(x)
            mean, spread = self.mean(y), self.spread(y)
            z = mean + lib.randn_like(mean) * (0.5 * spread).exp()
            return self.decode(z), mean, spread

    model = Net()
    optimizer = lib.optim.Adam(model.parameters(), lr=1e-3)

    def loss(x: Any) -> Any:
        y, mean, spread = model(x)
        divergence = -0.5 * (1 + spread - mean**2 - spread.exp()).sum()
        return (F.binary_cross_entropy_with_logits(y, x, reduction="sum") + divergence) / x.shape[0]

    return Training(model, optimizer, loss, (random_numbers(lib, batch, 1, 28, 28).sigmoid(),))


def wavenet(lib: Any, batch: int = 8, length: int = 512) -> Training:
    """Gated dilated convolutions in one dimension with group norm and skip connections."""
    nn = lib.nn

    class Block(nn.Module):
        def __init__(self, width: int, dilation: int) -> None:
            super().__init__()
            self.gates = nn.Conv1d(width, 2 * width, 3, padding=dilation, dilation=dilation)
            self.norm, self.mix = nn.GroupNorm(4, width), nn.Conv1d(width, width, 1)

        def forward(self, x: Any) -> Any:
            a, b = self.gates(self.norm(x)).chunk(2, 1)
            return x + self.mix(lib.tanh(a) * lib.sigmoid(b))

    model = nn.Sequential(
        nn.Conv1d(4, 48, 1), *[Block(48, 2**k) for k in range(6)], nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(48, 10)
    )
    optimizer = lib.optim.NAdam(model.parameters(), lr=1e-3)
    return classifier(lib, model, random_numbers(lib, batch, 4, length), labels(lib, 10, batch), optimizer)


def graph(lib: Any, nodes: int = 2000, edges: int = 12000) -> Training:
    """Two rounds of messages along edges, gathered by source and summed by target."""
    nn = lib.nn
    sources, targets = labels(lib, nodes, edges), labels(lib, nodes, edges, seed=2)

    class Layer(nn.Module):
        def __init__(self, inner: int, outer: int) -> None:
            super().__init__()
            self.own, self.other = nn.Linear(inner, outer), nn.Linear(inner, outer, bias=False)

        def forward(self, x: Any) -> Any:
            sums = lib.zeros(nodes, x.shape[1]).index_add(0, targets, x[sources])
            return self.own(x) + self.other(sums)

    model = nn.Sequential(Layer(32, 64), nn.ELU(), nn.Dropout(0.3), Layer(64, 7))
    optimizer = lib.optim.Adam(model.parameters(), lr=0.01, weight_decay=5e-4)
    return classifier(lib, model, random_numbers(lib, nodes, 32), labels(lib, 7, nodes), optimizer)


def point_cloud(lib: Any, batch: int = 16, points: int = 256) -> Training:
    """A shared perceptron over points and a maximum over them, in the manner of PointNet."""
    nn = lib.nn

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shared = nn.Sequential(
                nn.Conv1d(3, 64, 1), nn.BatchNorm1d(64), nn.ReLU(), nn.Conv1d(64, 256, 1), nn.BatchNorm1d(256), nn.ReLU()
            )
            self.head = nn.Sequential(nn.Linear(256, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, 10))

        def forward(self, x: Any) -> Any:
            return self.head(self.shared(x).max(-1)[0])

    model = Net()
    optimizer = lib.optim.Adam(model.parameters(), lr=1e-3)
    return classifier(lib, model, random_numbers(lib, batch, 3, points), labels(lib, 10, batch), optimizer)


def factorisation(lib: Any, batch: int = 1024) -> Training:
    """Recommendations: embeddings of users and items, their product and a small network; Adagrad."""
    nn = lib.nn

    class Net(nn.Module):
        def __init__(self, width: int = 32) -> None:
            super().__init__()
            self.users, self.items = nn.Embedding(5000, width), nn.Embedding(2000, width)
            self.deep = nn.Sequential(nn.Linear(2 * width, 64), nn.ReLU(), nn.Linear(64, 1))

        def forward(self, users: Any, items: Any) -> Any:
            u, v = self.users(users), self.items(items)
            return (u * v).sum(-1) + self.deep(lib.cat([u, v], -1)).squeeze(-1)

    model = Net()
    optimizer = lib.optim.Adagrad(model.parameters(), lr=0.05)

    def loss(users: Any, items: Any, y: Any) -> Any:
        return lib.nn.functional.mse_loss(model(users, items), y)

    data = (labels(lib, 5000, batch), labels(lib, 2000, batch, seed=2), random_numbers(lib, batch))
    return Training(model, optimizer, loss, data)


ZOO: dict[str, Callable[..., Training]] = {
    "vgg": vgg,
    "densenet": densenet,
    "convnext": convnext,
    "squeeze_excite": squeeze_excite,
    "vit": vit,
    "masked_encoder": masked_encoder,
    "translator": translator,
    "autoencoder": autoencoder,
    "wavenet": wavenet,
    "graph": graph,
    "point_cloud": point_cloud,
    "factorisation": factorisation,
}
