"""Speed: the machine's limits, products, convolutions, single operations, whole training steps."""

from __future__ import annotations

import math
from typing import Any

from bench.limits import limit_seconds
from bench.measure import ratio
from bench.report import Table, duration
from bench.run import Bench
from bench.workloads.kernels import CONVOLUTIONS, cost

__all__ = ["convolution", "kernels", "limits", "matmul", "steps"]

ELEMENTWISE = (
    "exp", "add", "gelu expression", "softmax", "layer norm", "sum", "column variance", "transpose copy", "cumsum", "sort", "gather",
)  # fmt: skip

TITLES = {
    "small_mlp": "MLP 64-32-10, batch 32",
    "mlp": "MLP 784-512-512-10, batch 128",
    "digits_cnn": "digits CNN, batch 64",
    "mnist_cnn": "MNIST CNN, batch 64",
    "small_gpt": "GPT 2 layers, width 64, 64 tokens, batch 8",
    "gpt": "GPT 4 layers, width 256, 128 tokens, batch 8",
    "resnet18": "ResNet-18, 32 x 32, batch 32",
    "mobilenet": "MobileNet-like, 32 x 32, batch 32",
    "unet": "UNet, 64 x 64, batch 4",
    "lstm": "LSTM 256, 64 steps, batch 32",
}


def _limits(bench: Bench) -> dict[str, Any]:
    """The machine's limits, measured once a run."""
    if "limits" not in bench.report.data:
        bench.report.data["limits"] = bench.cermet.call(
            "bench.limits:measure", threads=bench.threads, rounds=3 if bench.quick else 7
        )
    return bench.report.data["limits"]


def limits(bench: Bench) -> None:
    """Multiply-adds and copies."""
    found = _limits(bench)
    table = bench.report.table("What the machine can do, all threads together", "what", "measured")
    for dtype, rate in found["fma"].items():
        table.rows.append((f"multiply-adds, {dtype}", f"{rate:.0f} GFLOP/s"))
    for size, rate in found["copy"]:
        table.rows.append((f"copy, working set {size / 2**20:g} MiB", f"{rate:.0f} GB/s"))


def _row(bench: Bench, table: Table, label: str, name: str, **options: Any) -> tuple[float, float, bool]:
    """Measure a kernel and add its line. Its share of the limit (by the median of the rounds, and by the best run), and whether the
    rounds were quiet."""
    peaks: list[float] = []

    def beside() -> None:
        peaks.append(bench.cermet.call("bench.limits:fma_now", threads=bench.threads))

    flops, moved = cost(name, **options)
    ours, theirs = bench.compare("kernel", name, beside=beside if flops else lambda: None, **options)
    seconds, faster = ours.seconds, ratio(ours, theirs)
    bench.report.ratios[label] = faster
    if flops:
        share = flops / seconds / 1e9 / max(peaks, default=math.nan)
        rate = f"{flops / seconds / 1e9:.0f} GFLOP/s"
    else:
        share = limit_seconds(_limits(bench), 0.0, moved) / seconds
        rate = f"{moved / seconds / 1e9:.1f} GB/s"
    shown = (duration(seconds), duration(theirs.seconds), "-" if math.isnan(faster) else f"{faster:.2f}")
    table.rows.append((label, *shown, rate if seconds == seconds else "-", f"{share:.0%}" if share == share else "-"))
    return share, share * seconds / ours.best, ours.quiet


def _share(bench: Bench, text: str, found: tuple[float, float, bool], bound: float) -> None:
    """A requirement on a share of the peak: by the median, or by the best run where no round was quiet."""
    median, best, quiet = found
    shown = (
        f"{median:.0%} (best run {best:.0%})"
        if quiet
        else f"{best:.0%} in the best run ({median:.0%} by the median; no quiet rounds)"
    )
    bench.report.require(text, shown, f"{bound:.0%}", (median if quiet else best) >= bound)


def _table(bench: Bench, title: str) -> Table:
    return bench.report.table(title, "what", "Cermet", "PyTorch", "times as fast", "rate", "share of the limit")


def matmul(bench: Bench) -> None:
    """Products of matrices; the share of the peak at 1024 must be 75%."""
    table = _table(bench, "Products of matrices")
    for n in (256, 1024) if bench.quick else (64, 128, 256, 512, 1024, 2048):
        share = _row(bench, table, f"matmul {n}", "matmul", m=n, n=n, k=n)
        if n == 1024:
            _share(bench, "matmul 1024, float32: share of the measured multiply-add peak", share, 0.75)
    cases: dict[str, dict[str, Any]] = {"matmul 1024, bfloat16": {"m": 1024, "n": 1024, "k": 1024, "dtype": "bfloat16"}}
    if not bench.quick:
        cases |= {
            "matmul 1000 x 333 x 517": {"m": 1000, "n": 333, "k": 517},
            "matmul 32 of 128 x 128 x 64": {"m": 128, "n": 128, "k": 64, "batch": 32, "tb": True},
            "matrix-vector 4096": {"m": 1, "n": 4096, "k": 4096, "tb": True},
        }
    for label, options in cases.items():
        _row(bench, table, label, "matmul", **options)
    attention = {"batch": 8, "heads": 4, "length": 128, "width": 64}
    _row(bench, table, "attention, causal, 128 tokens", "attention", **attention)
    _row(bench, table, "attention and gradients", "attention", backward=True, **attention)


def convolution(bench: Bench) -> None:
    """Convolutions; the share of the peak of 3x3, 64 to 64 channels, 56 x 56, batch 8 must be 60%."""
    table = _table(bench, "Convolutions (sizes in bench/workloads/kernels.py)")
    for case in ("3x3 64", "1x1", "depthwise") if bench.quick else CONVOLUTIONS:
        share = _row(bench, table, f"conv {case}", "convolution", case=case)
        if case == "3x3 64":
            _share(bench, "convolution 3x3, 64 to 64 channels, 56 x 56, batch 8: share of the peak", share, 0.6)
        _row(bench, table, f"conv {case} and gradients", "convolution", case=case, backward=True)


def kernels(bench: Bench) -> None:
    """Operations that memory limits, large and small."""
    table = _table(bench, "Operations limited by memory (share: of the copy bandwidth at the working set's size)")
    for size, label in ((1 << 22, "4M"), (1 << 12, "4k")):
        for name in ELEMENTWISE:
            _row(bench, table, f"{name} {label}", name, size=size)


def steps(bench: Bench) -> None:
    """Whole training steps, deferred."""
    found = _limits(bench)
    assert found
    table = bench.report.table(
        "Training steps, ms (medians of quiet rounds, else the best)",
        "model",
        "Cermet",
        "PyTorch",
        "times as fast",
        "first call",
        "PyTorch first",
    )
    ratios = []
    models = ["small_mlp", "mlp", "digits_cnn", "mnist_cnn", "small_gpt", "gpt", "resnet18"]
    for model in models if bench.quick else [*models, "mobilenet", "unet", "lstm"]:
        ours, theirs = bench.compare("step", model, seconds=0.15 if bench.quick else 0.5)
        if ours.error:
            continue
        faster = bench.report.ratios[TITLES[model]] = ratio(ours, theirs)
        ratios.append(faster)
        other = ("-", "-", "-") if theirs.error else (f"{theirs.seconds * 1e3:.3g}", f"{faster:.2f}", duration(theirs.first))
        table.rows.append((TITLES[model], f"{ours.seconds * 1e3:.3g}", *other[:2], duration(ours.first), other[2]))
    known = [r for r in ratios if r == r]
    if known:
        table.rows.append(("geometric mean", "", "", f"{math.exp(sum(map(math.log, known)) / len(known)):.2f}", "", ""))
