"""Recognise handwritten digits: train a small convolutional network, keep the best weights, and check them in a second process.

    python examples/digits.py [--epochs 20] [--batch-size 64] [--seed 0] [--out out]

The 1,797 pictures of 8 x 8 grey values ship with scikit-learn (load_digits). They are split into training, validation and test
sets; the weights of the epoch that does best on the validation set are saved, and the test set is looked at once, at the end.
Then this program starts itself again with --predict: the new process loads the weights and computes the same outputs, which must
agree bit for bit.

In the folder --out it leaves: digits.safetensors (weights), digits_predictions.npz (outputs of the second process) and digits.png
(a picture of some predictions, the mistakes first).
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from tqdm import tqdm

import cermet as ct
from cermet import nn, optim
from cermet.data import DataLoader, Dataset, TensorDataset, random_split

CLASSES = 10


class DigitNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 32, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.Conv2d(32, 64, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Dropout(0.25),
        )
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(64 * 4 * 4, 128),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Linear(128, CLASSES),
        )

    def forward(self, images: ct.Tensor) -> ct.Tensor:
        return self.classifier(self.features(images))


def load_splits(seed: int) -> tuple[Dataset, Dataset, Dataset]:
    """Training, validation and test set; the same split for the same seed, in any process."""
    digits = load_digits()
    images = ct.from_numpy((digits.images / 16.0).astype(np.float32)).unsqueeze(1)  # (1797, 1, 8, 8) in [0, 1]
    labels = ct.from_numpy(digits.target.astype(np.int64))
    everything = TensorDataset(images, labels)
    held_out = [250, 350]
    lengths = [len(everything) - sum(held_out), *held_out]
    training, validation, test = random_split(everything, lengths, generator=ct.Generator().manual_seed(seed))
    return training, validation, test


def predict(model: nn.Module, dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """The network's outputs (n, 10) for a data set, and its labels (n,)."""
    model.eval()
    outputs, labels = [], []
    with ct.no_grad():
        for images, target in DataLoader(dataset, batch_size=256):
            outputs.append(model(images).numpy())
            labels.append(target.numpy())
    return np.concatenate(outputs), np.concatenate(labels)


def train(arguments: argparse.Namespace, training: Dataset, validation: Dataset, weights: Path) -> nn.Module:
    """Train, save the weights of the best epoch, and return the network with those weights."""
    model = DigitNet()
    loss_function = nn.CrossEntropyLoss(label_smoothing=0.05)
    optimizer = optim.AdamW(model.parameters(), lr=arguments.lr, weight_decay=0.02)
    loader = DataLoader(training, batch_size=arguments.batch_size, shuffle=True)
    steps = arguments.epochs * len(loader)
    print(
        f"{len(training)} training, {len(validation)} validation pictures; {sum(p.numel() for p in model.parameters())} weights"
    )

    best_accuracy, best_loss, best_epoch, best_weights = -1.0, math.inf, 0, {}
    started, first_step, step = time.perf_counter(), 0.0, 0
    with tqdm(total=steps, unit="step", mininterval=0.5) as bar:
        for epoch in range(1, arguments.epochs + 1):
            epoch_started, total_loss, correct = time.perf_counter(), 0.0, 0
            model.train()
            for images, labels in loader:
                # Half a cosine, from the full rate to none. A new rate each step, and yet always the same compiled program.
                for group in optimizer.param_groups:
                    group["lr"] = arguments.lr * 0.5 * (1 + math.cos(math.pi * step / steps))
                optimizer.zero_grad()
                outputs = model(images)
                loss = loss_function(outputs, labels)
                loss.backward()
                optimizer.step()
                total_loss += loss.item() * len(labels)
                correct += (outputs.argmax(dim=1) == labels).sum().item()
                step += 1
                bar.update()
                if step == 1:
                    first_step = time.perf_counter() - started
            outputs, labels = predict(model, validation)
            accuracy = float((outputs.argmax(axis=1) == labels).mean())
            validation_loss = nn.functional.cross_entropy(ct.from_numpy(outputs), ct.from_numpy(labels)).item()
            mark = ""
            if (accuracy, -validation_loss) > (best_accuracy, -best_loss):
                best_accuracy, best_loss, best_epoch = accuracy, validation_loss, epoch
                best_weights = {name: value.clone() for name, value in model.state_dict().items()}
                ct.save(best_weights, weights)
                mark = "  best so far, saved"
            bar.write(
                f"epoch {epoch:3d}  loss {total_loss / len(training):.4f}  training {correct / len(training):7.2%}"
                f"  validation {accuracy:7.2%}  {time.perf_counter() - epoch_started:.2f} s{mark}"
            )
    seconds = time.perf_counter() - started
    per_step = (seconds - first_step) / max(1, step - 1)
    print(f"trained in {seconds:.1f} s: first step {first_step:.2f} s, then {1000 * per_step:.1f} ms a step")
    print(f"best epoch: {best_epoch}")
    model.load_state_dict(best_weights)
    return model


def print_confusion(predicted: np.ndarray, labels: np.ndarray) -> None:
    matrix = np.zeros((CLASSES, CLASSES), dtype=int)
    np.add.at(matrix, (labels, predicted), 1)
    print("\nconfusion matrix (row: the digit, column: what the network says)")
    print("     " + "".join(f"{digit:5d}" for digit in range(CLASSES)))
    for digit, row in enumerate(matrix):
        print(f"{digit:5d}" + "".join(f"{count:5d}" if count else "    ." for count in row) + f"   {row[digit] / row.sum():7.2%}")
    print()


def draw(test: Dataset, predicted: np.ndarray, labels: np.ndarray, path: Path) -> None:
    """A grid of pictures with what the network says: its mistakes first, then others."""
    import matplotlib

    matplotlib.use("Agg")  # draws into files, needs no screen
    from matplotlib import pyplot

    rows, columns = 5, 10
    wrong, right = np.flatnonzero(predicted != labels), np.flatnonzero(predicted == labels)
    chosen = np.concatenate([wrong, right])[: rows * columns]
    figure, axes = pyplot.subplots(rows, columns, figsize=(columns, 1.3 * rows))
    for axis, index in zip(axes.flat, chosen, strict=False):
        image, _ = test[int(index)]
        axis.imshow(image[0].numpy(), cmap="gray_r", vmin=0, vmax=1)
        if predicted[index] == labels[index]:
            axis.set_title(str(predicted[index]), fontsize=11)
        else:
            axis.set_title(f"{predicted[index]}, not {labels[index]}", fontsize=9, color="crimson")
    for axis in axes.flat:
        axis.axis("off")
    figure.suptitle(f"Cermet on held-out digits: {(predicted == labels).mean():.2%} of {len(labels)} right", fontsize=13)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def predict_in_this_process(arguments: argparse.Namespace, weights: Path, predictions: Path) -> None:
    """What the second process does: load the weights and write the outputs on the test set."""
    started = time.perf_counter()
    _, _, test = load_splits(arguments.seed)
    model = DigitNet()
    model.load_state_dict(ct.load(weights))
    outputs, labels = predict(model, test)
    np.savez(predictions, outputs=outputs, labels=labels)
    accuracy = (outputs.argmax(axis=1) == labels).mean()
    print(
        f"second process: {len(labels)} pictures, {accuracy:.2%} right, {time.perf_counter() - started:.2f} s after its imports"
    )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=3e-3, help="learning rate at the start")
    parser.add_argument("--seed", type=int, default=0, help="of the split, the weights, the order of batches and dropout")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent.parent / "out", help="folder of the results")
    parser.add_argument("--predict", action="store_true", help="only load the weights and write the outputs on the test set")
    arguments = parser.parse_args()
    if arguments.epochs < 1 or arguments.batch_size < 1:
        parser.error("--epochs and --batch-size must be at least 1")
    return arguments


def main() -> int:
    started = time.perf_counter()
    arguments = parse_arguments()
    arguments.out.mkdir(parents=True, exist_ok=True)
    weights, predictions = arguments.out / "digits.safetensors", arguments.out / "digits_predictions.npz"
    if arguments.predict:
        predict_in_this_process(arguments, weights, predictions)
        return 0

    ct.manual_seed(arguments.seed)
    training, validation, test = load_splits(arguments.seed)
    model = train(arguments, training, validation, weights)
    outputs, labels = predict(model, test)
    predicted = outputs.argmax(axis=1)
    print_confusion(predicted, labels)
    print(f"test accuracy {(predicted == labels).mean():.2%} ({(predicted != labels).sum()} of {len(labels)} wrong)")

    command = [sys.executable, __file__, "--predict", "--seed", str(arguments.seed), "--out", str(arguments.out)]
    launched = time.perf_counter()
    subprocess.run(command, check=True)
    again = np.load(predictions)["outputs"]
    same = outputs.dtype == again.dtype and outputs.shape == again.shape and outputs.tobytes() == again.tobytes()
    print(
        f"second process agrees bit for bit: {'yes' if same else 'NO'} ({time.perf_counter() - launched:.1f} s with its imports)"
    )

    draw(test, predicted, labels, arguments.out / "digits.png")
    print(f"all of it took {time.perf_counter() - started:.1f} s")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
