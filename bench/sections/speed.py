"""Speed: the machine's limits, products, convolutions, single operations, whole training steps."""

from __future__ import annotations

import math
import statistics
from typing import Any

from bench.limits import limit_seconds
from bench.measure import Result, ratio, scratch
from bench.report import Table, duration
from bench.run import NAMES, Bench
from bench.workloads.kernels import CONVOLUTIONS, ELEMENTWISE, cost

__all__ = ["convolution", "kernels", "limits", "machine_limits", "matmul", "steps", "zoo"]

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


def machine_limits(bench: Bench) -> dict[str, Any]:
    """The machine's limits, measured once a run."""
    if "limits" not in bench.report.data:
        bench.report.data["limits"] = bench.cermet.call(
            "bench.limits:measure", threads=bench.threads, rounds=3 if bench.quick else 7
        )
    return bench.report.data["limits"]


def limits(bench: Bench) -> None:
    """Multiply-adds and copies."""
    found = machine_limits(bench)
    table = bench.report.table("What the machine can do, all threads together", "what", "measured")
    for dtype, rate in found["fma"].items():
        table.rows.append((f"multiply-adds, {dtype}", f"{rate:.0f} GFLOP/s"))
    for size, rate in found["copy"]:
        table.rows.append((f"copy, working set {size / 2**20:g} MiB", f"{rate:.0f} GB/s"))


def _times(faster: float) -> str:
    return "-" if math.isnan(faster) else f"{faster:.2f}"


def _against(bench: Bench, results: dict[str, Result]) -> tuple[str | None, float, float]:
    """(the fastest other framework, how many times as fast the deferred run is, and the compiled one)."""
    best = bench.best_peer(results)
    if best is None:
        return None, math.nan, math.nan
    return best, ratio(results["cermet"], results[best]), ratio(results["cermet.compile"], results[best])


def _mean(values: list[float]) -> float:
    """The geometric mean of those that are known."""
    known = [math.log(v) for v in values if v == v]
    return math.exp(statistics.fmean(known)) if known else math.nan


def _row(bench: Bench, table: Table, label: str, name: str, **options: Any) -> tuple[float, float, bool]:
    """Measure a kernel and add its line. Its share of the limit (by the median of the rounds, and by the best run), and whether the
    rounds were quiet."""
    peaks: list[float] = []

    def beside() -> None:
        peaks.append(bench.cermet.call("bench.limits:fma_now", threads=bench.threads))

    flops, moved = cost(name, **options)
    results = bench.compare("kernel", name, beside=beside if flops else lambda: None, **options)
    ours = results["cermet"]
    best, faster, compiled = _against(bench, results)
    bench.report.ratios[label] = max(faster, compiled) if compiled == compiled else faster
    if flops:
        share = flops / ours.seconds / 1e9 / max(peaks, default=math.nan)
        rate = f"{flops / ours.seconds / 1e9:.0f} GFLOP/s"
    else:
        share = limit_seconds(machine_limits(bench), 0.0, moved) / ours.seconds
        rate = f"{moved / ours.seconds / 1e9:.1f} GB/s"
    shown = [duration(ours.seconds), duration(results["cermet.compile"].seconds)]
    shown += [duration(results[best].seconds), NAMES[best]] if best else ["-", "-"]
    shown += [_times(faster), _times(compiled)]
    table.rows.append((label, *shown, rate if share == share else "-", f"{share:.0%}" if share == share else "-"))
    return share, share * ours.seconds / ours.best, ours.quiet


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
    header = ("what", "Cermet", "ct.compile", "best peer", "which", "times as fast", "compiled", "rate", "share of the limit")
    return bench.report.table(title, *header)


def _judge(bench: Bench, table: Table, what: str, mean: float) -> None:
    """The mean over the rows of a table, and how many of them are not behind the best peer."""
    ratios = [bench.report.ratios[row[0]] for row in table.rows]
    known = [r for r in ratios if r == r]
    if known:
        text = f"{what}: geometric mean against the fastest other framework"
        bench.report.require(text, f"{_mean(known):.2f} times", f"{mean:g} times", _mean(known) >= mean)
        behind = [f"{row[0]} {r:.2f}" for row, r in zip(table.rows, ratios, strict=True) if r < 1.0]
        text = f"{what}: rows behind the fastest other framework"
        bench.report.require(
            text, f"{len(behind)} of {len(known)}" + (": " + ", ".join(behind) if behind else ""), "0", not behind
        )


def matmul(bench: Bench) -> None:
    """Products of matrices; the share of the peak from 512 on must be 88%."""
    table = _table(bench, "Products of matrices")
    for n in (64, 256, 512, 1024) if bench.quick else (64, 128, 256, 512, 1024, 2048):
        share = _row(bench, table, f"matmul {n}", "matmul", m=n, n=n, k=n)
        if n >= 512:
            _share(bench, f"matmul {n}, float32: share of the measured multiply-add peak", share, 0.88)
    cases: dict[str, dict[str, Any]] = {
        "matmul 1024, bfloat16": {"m": 1024, "n": 1024, "k": 1024, "dtype": "bfloat16"},
        "matmul 1000 x 333 x 517": {"m": 1000, "n": 333, "k": 517},
    }
    if not bench.quick:
        cases |= {
            "matmul 1023": {"m": 1023, "n": 1023, "k": 1023},
            "matmul 32 x 512 x 784": {"m": 32, "n": 512, "k": 784, "tb": True},
            "matmul 1024, float16": {"m": 1024, "n": 1024, "k": 1024, "dtype": "float16"},
            "matmul 32 of 128 x 128 x 64": {"m": 128, "n": 128, "k": 64, "batch": 32, "tb": True},
            "matmul 512 of 16 x 16 x 16": {"m": 16, "n": 16, "k": 16, "batch": 512},
            "matrix-vector 4096": {"m": 1, "n": 4096, "k": 4096, "tb": True},
        }
    for label, options in cases.items():
        _row(bench, table, label, "matmul", **options)
    cases = {"128 tokens": {"batch": 8, "heads": 4, "length": 128, "width": 64}}
    if not bench.quick:
        cases["1024 tokens"] = {"batch": 1, "heads": 8, "length": 1024, "width": 64}
    for label, options in cases.items():
        _row(bench, table, f"attention, causal, {label}", "attention", **options)
        _row(bench, table, f"attention, causal, {label}, and gradients", "attention", backward=True, **options)
    _judge(bench, table, "products and attention", 1.3)


def convolution(bench: Bench) -> None:
    """Convolutions, forward and with both gradients."""
    table = _table(bench, "Convolutions (sizes in bench/workloads/kernels.py)")
    for case in ("3x3 64", "1x1", "7x7 stride 2", "depthwise") if bench.quick else CONVOLUTIONS:
        _row(bench, table, f"conv {case}", "convolution", case=case)
        _row(bench, table, f"conv {case} and gradients", "convolution", case=case, backward=True)
    _judge(bench, table, "convolutions", 1.3)


def kernels(bench: Bench) -> None:
    """Operations that memory limits, large and small."""
    for size, label in ((1 << 22, "4M"), (1 << 12, "4k")):
        table = _table(bench, f"Operations on {label} elements (share: of the copy bandwidth at the working set's size)")
        for name in ELEMENTWISE:
            _row(bench, table, f"{name} {label}", name, size=size)
        _judge(bench, table, f"operations on {label} elements", 1.3)


def steps(bench: Bench) -> None:
    """Whole training steps, deferred and under ``ct.compile``; inference; first steps and memory."""
    models = ["small_mlp", "mlp", "digits_cnn", "mnist_cnn", "gpt", "resnet18", "lstm", "mobilenet", "unet"]
    machine_limits(bench)
    shown = [f for f in NAMES if f != "numpy" and (f.startswith("cermet") or f in bench.peers)]
    header = ["model", *(NAMES[f] for f in shown), "times as fast", "compiled"]
    table = bench.report.table("Training steps, ms (medians of quiet rounds, else the best)", *header)
    deferred: list[float] = []
    for model in models:
        results = bench.compare("step", model, seconds=0.15 if bench.quick else 0.5, without=("numpy",))
        best, faster, compiled = _against(bench, results)
        label = TITLES[model]
        bench.report.ratios[label] = max(faster, compiled) if compiled == compiled else faster
        deferred.append(faster)
        cells = [f"{results[f].seconds * 1e3:.3g}" if results[f].rounds else "-" for f in shown]
        table.rows.append((label, *cells, _times(faster), _times(compiled)))
        _requirements(bench, model, results, best)
    _judge(bench, table, "training steps", 1.6)
    table.rows.append(("geometric mean", *("" for _ in shown), _times(_mean(deferred)), ""))
    _firsts(bench, models[:6] if bench.quick else models)


def zoo(bench: Bench) -> None:
    """Training steps of many kinds of models, beside those frameworks that share PyTorch's names."""
    from bench.workloads.zoo import ZOO

    shown = [f for f in ("cermet", "cermet.compile", "torch", "torch.compile") if f.startswith("cermet") or f in bench.peers]
    header = ["model", *(NAMES[f] for f in shown), "times as fast", "compiled", "first call"]
    table = bench.report.table("Training steps of further models, ms", *header)
    for model in ZOO:
        results = bench.compare("step", model, seconds=0.15, without=("numpy", "jax", "tensorflow"))
        _, faster, compiled = _against(bench, results)
        bench.report.ratios[model] = faster
        cells = [f"{results[f].seconds * 1e3:.3g}" if results[f].rounds else "-" for f in shown]
        table.rows.append((model, *cells, _times(faster), _times(compiled), duration(results["cermet"].first)))
    _judge(bench, table, "further models", 1.3)


def _requirements(bench: Bench, model: str, results: dict[str, Result], best: str | None) -> None:
    """What the issue asks of single models."""
    torch, jax = results.get("torch"), results.get("jax")
    if model == "small_mlp" and torch is not None and torch.rounds:
        r = ratio(results["cermet"], torch)
        bench.report.require("MLP 64-32-10 step, deferred, against PyTorch", f"{r:.2f} times as fast", "1", r >= 1)
        if jax is not None and jax.rounds and results["cermet.compile"].rounds:
            r = ratio(results["cermet.compile"], jax)
            bench.report.require("MLP 64-32-10 step, compiled, against JAX", f"{r:.2f} times as fast", "1", r >= 1)
    if model == "gpt" and torch is not None and torch.rounds:
        r = ratio(results["cermet"], torch)
        bench.report.require("GPT step against PyTorch", f"{r:.2f} times as fast", "2", r >= 2)
    if model == "resnet18" and best:
        r = ratio(results["cermet"], results[best])
        bench.report.require("ResNet-18 step against the best peer", f"{r:.2f} times as fast", "1.25", r >= 1.25)


def _firsts(bench: Bench, models: list[str]) -> None:
    """The first training step with an empty cache and in a second process, and the peak memory."""
    peers = [f for f in ("torch", "jax", "tensorflow") if f in bench.peers]
    table = bench.report.table(
        "First steps, and peak memory of the process (in brackets: what the import does not explain)",
        "model",
        "cold",
        "second process",
        *(f"{NAMES[f]} first" for f in peers if f != "torch"),
        "MiB",
        *(f"{NAMES[f]} MiB" for f in peers),
    )
    late, slow, large = [], [], []
    for model in models:
        cache = {"CERMET_CACHE_DIR": str(scratch() / f"first {model}")}
        cold, warm = (bench.fresh("first_step", model=model, environment=cache) for _ in range(2))
        other = {f: bench.fresh("first_step", f, model=model) for f in peers if f != "torch"}
        memory = {f: bench.fresh("peak_memory", f, model=model) for f in ("cermet", *peers)}
        assert cold and warm
        bench.report.data.setdefault("first", {})[model] = {"cold": cold, "warm": warm, "peers": other, "memory": memory}
        firsts = [duration(found["first"]) if found else "-" for found in other.values()]
        mebibytes = [f"{m['peak'] / 2**20:.0f} ({m['added'] / 2**20:.0f})" if m else "-" for m in memory.values()]
        table.rows.append((TITLES[model], duration(cold["first"]), duration(warm["first"]), *firsts, *mebibytes))
        if warm["first"] > 0.7:
            slow.append(model)
        if (jax := other.get("jax")) and cold["first"] > jax["first"]:
            late.append(model)
        if (theirs := memory.get("torch")) and memory["cermet"] and memory["cermet"]["peak"] > theirs["peak"]:
            large.append(model)
    for text, found in (
        ("first step, cold: models slower than JAX's", late),
        ("first step in a second process: models above 0.7 s", slow),
        ("peak memory of the process: models above PyTorch's", large),
    ):
        bench.report.require(text, ", ".join(found) or "none", "none", not found)
