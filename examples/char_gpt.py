"""Train a small GPT to write, character by character, like the manual of Python; then let it write.

    python examples/char_gpt.py [--steps 600] [--prompt "The "] [--temperature 0.8] [--length 500]

The text is the one that help() shows for keywords and topics; it ships with Python (pydoc_data.topics, about half a million
characters). The last tenth is kept for validation. The loss is in nats per character: knowing nothing is the logarithm of the
number of distinct characters, about 4.6.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from pydoc_data.topics import topics

from tqdm import tqdm

import cermet as ct
import cermet.nn.functional as F
from cermet import nn, optim


class Attention(nn.Module):
    """Causal self-attention: each position looks at itself and at those before it."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.query_key_value = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: ct.Tensor) -> ct.Tensor:
        batch, length, width = x.shape
        query, key, value = (
            part.view(batch, length, self.heads, width // self.heads).transpose(1, 2)
            for part in self.query_key_value(x).chunk(3, dim=-1)
        )
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=True)
        return self.out(mixed.transpose(1, 2).reshape(batch, length, width))


class Block(nn.Module):
    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = Attention(width, heads, dropout)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: ct.Tensor) -> ct.Tensor:
        x = x + self.dropout(self.attention(self.attention_norm(x)))
        return x + self.dropout(self.mlp(self.mlp_norm(x)))


class CharGPT(nn.Module):
    """Characters (batch, length) to scores of the next character (batch, length, characters)."""

    def __init__(self, characters: int, context: int, layers: int, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.context = context
        self.token = nn.Embedding(characters, width)
        self.position = nn.Embedding(context, width)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList([Block(width, heads, dropout) for _ in range(layers)])
        self.norm = nn.LayerNorm(width)
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                # Both ways into the residual stream get smaller weights, as many as there are of them (GPT-2).
                residual = name.endswith(("attention.out.weight", "mlp.2.weight"))
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * layers) if residual else 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, tokens: ct.Tensor) -> ct.Tensor:
        x = self.token(tokens) + self.position(ct.arange(tokens.shape[1]))
        x = self.dropout(x)
        for block in self.blocks:
            x = block(x)
        # The scores are comparisons with the characters' embeddings: one matrix serves both ends.
        return F.linear(self.norm(x), self.token.weight)


def batch_of(text: ct.Tensor, size: int, context: int) -> tuple[ct.Tensor, ct.Tensor]:
    """Random windows of the text, and the same one character further on: both (size, context)."""
    starts = ct.randint(len(text) - context, (size, 1))
    windows = text[starts + ct.arange(context + 1)]
    return windows[:, :-1], windows[:, 1:]


def loss_of(model: nn.Module, inputs: ct.Tensor, targets: ct.Tensor) -> ct.Tensor:
    return F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())


def validation_loss(model: nn.Module, text: ct.Tensor, size: int, context: int, batches: int = 8) -> float:
    """Mean loss on windows that are spread evenly, the same each time."""
    model.eval()
    starts = ct.linspace(0, len(text) - context - 1, batches * size).long().unsqueeze(1)
    windows = text[starts + ct.arange(context + 1)]
    with ct.no_grad():
        losses = [loss_of(model, part[:, :-1], part[:, 1:]).item() for part in windows.split(size)]
    model.train()
    return sum(losses) / len(losses)


def learning_rate(step: int, arguments: argparse.Namespace) -> float:
    """Up along a line for a twentieth of the steps, then down along half a cosine to a tenth."""
    warmup = max(1, arguments.steps // 20)
    if step < warmup:
        return arguments.lr * (step + 1) / warmup
    progress = (step - warmup) / max(1, arguments.steps - warmup)
    return arguments.lr * (0.1 + 0.45 * (1 + math.cos(math.pi * progress)))


def train(model: CharGPT, training: ct.Tensor, validation: ct.Tensor, arguments: argparse.Namespace) -> None:
    optimizer = optim.AdamW(model.parameters(), lr=arguments.lr, betas=(0.9, 0.99), weight_decay=0.05)
    every = max(1, arguments.steps // 6)
    started, since, first_step, total = time.perf_counter(), time.perf_counter(), 0.0, 0.0
    model.train()
    with tqdm(total=arguments.steps, unit="step", mininterval=0.5) as bar:
        for step in range(arguments.steps):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, arguments)
            optimizer.zero_grad()
            loss = loss_of(model, *batch_of(training, arguments.batch_size, arguments.context))
            loss.backward()
            optimizer.step()
            total += loss.item()
            bar.update()
            if step == 0:
                first_step = time.perf_counter() - started
            if (step + 1) % every == 0:
                held_out = validation_loss(model, validation, arguments.batch_size, arguments.context)
                seconds = time.perf_counter() - since
                bar.write(f"step {step + 1:5d}  loss {total / every:.3f}  validation {held_out:.3f}  {seconds:.1f} s")
                since, total = time.perf_counter(), 0.0
    seconds = time.perf_counter() - started
    characters = arguments.steps * arguments.batch_size * arguments.context
    print(f"trained in {seconds:.1f} s: first step {first_step:.2f} s; {characters / seconds:,.0f} characters a second")


def write(model: CharGPT, prompt: list[int], length: int, temperature: float) -> list[int]:
    """Continue the prompt by ``length`` characters, drawn from the model; a temperature near 0 takes the likeliest ones."""
    model.eval()
    text = list(prompt)
    with ct.no_grad():
        for _ in range(length):
            window = text[-model.context :]
            # Always a whole context, filled up behind its last character, which by causality cannot see the filling: with one
            # shape, all characters are written by one compiled program.
            tokens = ct.tensor([window + [0] * (model.context - len(window))])
            last = ct.tensor([len(window) - 1])
            scores = model(tokens)[0, last]
            text.append(ct.multinomial(F.softmax(scores / temperature, dim=-1), 1).item())
    return text


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch-size", type=int, default=24)
    parser.add_argument("--context", type=int, default=96, help="characters that the model sees")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--dropout", type=float, default=0.05)
    parser.add_argument("--lr", type=float, default=3e-3, help="highest learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--prompt", default="The ")
    parser.add_argument("--length", type=int, default=500, help="characters to write")
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent.parent / "out", help="folder of the weights")
    arguments = parser.parse_args()
    if arguments.width % arguments.heads:
        parser.error(f"--width {arguments.width} is not a multiple of --heads {arguments.heads}")
    if arguments.temperature <= 0 or arguments.steps < 1:
        parser.error("--temperature must be above 0 and --steps at least 1")
    return arguments


def main() -> None:
    arguments = parse_arguments()
    arguments.out.mkdir(parents=True, exist_ok=True)
    ct.manual_seed(arguments.seed)

    text = "\n\n".join(topics[name] for name in sorted(topics))
    alphabet = sorted(set(text))
    code = {character: number for number, character in enumerate(alphabet)}
    unknown = sorted(set(arguments.prompt) - set(alphabet))
    if unknown or not arguments.prompt:
        raise SystemExit(f"--prompt must be made of characters of the text; these are not: {unknown}")
    tokens = ct.tensor([code[character] for character in text])
    cut = len(tokens) * 9 // 10

    model = CharGPT(len(alphabet), arguments.context, arguments.layers, arguments.width, arguments.heads, arguments.dropout)
    weights = sum(parameter.numel() for parameter in model.parameters())
    print(f"{len(text):,} characters, {len(alphabet)} distinct: knowing nothing is a loss of {math.log(len(alphabet)):.2f}")
    print(f"{weights:,} weights")
    train(model, tokens[:cut], tokens[cut:], arguments)
    ct.save(model.state_dict(), arguments.out / "char_gpt.safetensors")
    print(f"weights: {arguments.out / 'char_gpt.safetensors'}\n")

    started = time.perf_counter()
    written = write(model, [code[character] for character in arguments.prompt], arguments.length, arguments.temperature)
    print("".join(alphabet[number] for number in written))
    print(f"\n{arguments.length / (time.perf_counter() - started):.0f} characters a second")


if __name__ == "__main__":
    main()
