"""Overheads, compilation, memory, bits and the second process: what the engine promises beside speed."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from bench.measure import LOUD, Noise, scratch
from bench.report import duration
from bench.run import Bench

__all__ = ["bits", "compiling", "memory", "overhead", "second"]

CHECKS = "bench.workloads.checks"
COSTS = "bench.workloads.overheads"


def _quiet(bench: Bench, calls: dict[str, Any], rounds: int) -> dict[str, list[Any]]:
    """The values of calls made by turns, of as many quiet rounds as there are, at least one."""
    noise, measured = Noise([w.pid for w in bench.workers]), []
    for _ in range(2 * rounds):
        noise.begin()
        values = {name: call() for name, call in calls.items()}
        measured.append((noise.share(), values))
        if sum(share <= LOUD for share, _ in measured) >= rounds:
            break
    kept = [values for _, values in sorted(measured, key=lambda m: m[0])[:rounds]]
    return {name: [values[name] for values in kept] for name in calls}


def _median(values: list[dict[str, float]], key: str) -> float:
    return statistics.median(v[key] for v in values)


def overhead(bench: Bench) -> None:
    """Recording an operation, evaluating what was seen before, small statements, the import."""
    report, rounds = bench.report, 3 if bench.quick else 7
    chains = 30 if bench.quick else 60
    calls = {w.framework: lambda w=w: w.call(f"{COSTS}:operation", chains=chains) for w in bench.workers}
    operation = _quiet(bench, calls, rounds)
    ours = _median(operation["cermet"], "call")
    theirs = f" (PyTorch computes it in {_median(operation['torch'], 'call'):.2f} us)" if bench.torch else ""
    report.require("recording an operation, gradients on", f"{ours:.2f} us{theirs}", "3 us", ours <= 3.0)
    parts = _quiet(bench, {"it": lambda: bench.cermet.call(f"{COSTS}:step_parts", steps=100 if bench.quick else 300)}, rounds)[
        "it"
    ]
    operations, outside = parts[0]["operations"], _median(parts, "evaluation") + _median(parts, "walk")
    report.require(
        f"a step that was seen before, outside kernels ({operations:.0f} operations)",
        f"{outside:.0f} us",
        f"{60 + operations:.0f} us: 60 us and 1 us an operation",
        outside <= 60 + operations,
    )
    table = report.table("A step of the 64-32-10 network", "part", "us (median)")
    for name, key in (
        ("the whole step", "step"),
        ("recording, in Python", "recording"),
        ("evaluation: look-up, buffers, results", "evaluation"),
        ("walking the table of launches", "walk"),
        ("kernels", "kernels"),
    ):
        table.rows.append((name, f"{_median(parts, key):.0f}"))
    small = _quiet(bench, {w.framework: lambda w=w: w.call(f"{COSTS}:small_operations") for w in bench.workers}, rounds)
    table = report.table("Small statements, each looked at, on 4 x 4 values", "statement", "Cermet us", "PyTorch us")
    for name in small["cermet"][0]:
        other = f"{_median(small['torch'], name):.1f}" if bench.torch else "-"
        table.rows.append((name, f"{_median(small['cermet'], name):.1f}", other))
    frameworks = [w.framework for w in bench.workers]
    for framework in frameworks:
        bench.fresh("bench.workloads.imports:import_seconds", framework)  # writes the bytecode
    took = _quiet(
        bench,
        {f: lambda f=f: bench.fresh("bench.workloads.imports:import_seconds", f) for f in frameworks},
        5 if bench.quick else 11,
    )
    seconds = _median(took["cermet"], "seconds")
    theirs = f" (PyTorch {_median(took['torch'], 'seconds'):.2f} s)" if bench.torch else ""
    report.require("import, in a fresh process", f"{seconds:.3f} s{theirs}", "0.25 s", seconds <= 0.25)
    report.data["overhead"] = {"operation": operation, "step": parts, "small": small, "import": took}


def compiling(bench: Bench) -> None:
    """What is compiled after warm-up, what new lengths cost, and long chains."""
    report, data = bench.report, bench.report.data.setdefault("compile", {})
    steps = 300 if bench.quick else 1000
    seen = data["steps"] = bench.cermet.call(f"{CHECKS}:compiles", steps=steps)
    programs, kernels = (b - a for a, b in zip(seen["trace"][4], seen["trace"][-1], strict=True))
    report.require(
        f"compiled by {steps} steps with changing learning rate, dropout, two batch sizes, after the second of each",
        f"{programs} programs, {kernels} kernels",
        "0",
        programs == kernels == 0,
    )
    count = 32
    one = bench.cermet.call(f"{CHECKS}:lengths", lengths=[64] * count)
    many = bench.cermet.call(f"{CHECKS}:lengths", lengths=[48 + k for k in range(count)])
    again = bench.cermet.call(f"{CHECKS}:lengths", lengths=[48 + k for k in range(count)])
    data["lengths"] = {"one": one, "many": many, "again": again}
    factor = sum(many["times"]) / sum(one["times"])
    report.require(
        f"{count} sequence lengths of a small GPT, once each, against as many steps at one length",
        f"{factor:.1f} times ({sum(many['times']):.2f} s; seen before {sum(again['times']):.2f} s; {many['kernels']} kernels compiled)",
        "3 times",
        factor <= 3.0,
    )
    if bench.torch:
        theirs = data["lengths"]["torch"] = bench.torch.call(f"{CHECKS}:lengths", lengths=[48 + k for k in range(count)])
        faster = sum(theirs["times"]) / sum(many["times"])
        report.require(
            f"{count} sequence lengths of a small GPT, once each, against PyTorch eager",
            f"{faster:.2f} times as fast ({sum(many['times']):.2f} s, PyTorch {sum(theirs['times']):.2f} s)",
            "1",
            faster >= 1.0,
        )
    lengths = (20_000, 40_000) if bench.quick else (50_000, 100_000)
    chains = data["chain"] = {n: bench.cermet.call(f"{CHECKS}:chain", length=n) for n in lengths}
    growth = chains[lengths[1]]["total"] / chains[lengths[0]]["total"]
    report.require(
        f"a chain of {lengths[1]:,} operations recorded, evaluated, differentiated, copied, deleted, against one of half",
        f"{growth:.2f} times ({chains[lengths[1]]['total']:.1f} s)",
        "2.5 times (linear: 2)",
        growth <= 2.5,
    )
    looked = data["printed loss"] = bench.cermet.call(f"{CHECKS}:printed_loss")
    report.require(
        "kernel work of a step when the loss is printed before backward(), against not looking",
        f"{looked['looked'] / looked['plain']:.4f} times",
        "1",
        abs(looked["looked"] / looked["plain"] - 1) < 0.005,
    )


def memory(bench: Bench) -> None:
    """Resident size over many steps; the peak of a ResNet-18 step beside PyTorch's."""
    report, last = bench.report, 600 if bench.quick else 2000
    flat = bench.fresh("resident", model="digits_cnn", at=[100, last])
    assert flat is not None
    early, late = flat["resident"]
    report.require(
        f"resident size, digits CNN, step {last} against step 100",
        f"{late / early - 1:+.1%} ({early / 2**20:.0f} to {late / 2**20:.0f} MiB)",
        "5%",
        abs(late / early - 1) <= 0.05,
    )
    models = ["resnet18"] if bench.quick else ["resnet18", "gpt", "mnist_cnn"]
    table = report.table(
        "Peak memory of training steps, MiB", "model", "Cermet", "PyTorch", "Cermet, import aside", "PyTorch, import aside"
    )
    for model in models:
        ours, theirs = bench.fresh("peak_memory", model=model), bench.fresh("peak_memory", "torch", model=model)
        assert ours is not None
        other = [f"{theirs[k] / 2**20:.0f}" for k in ("peak", "added")] if theirs else ["-", "-"]
        table.rows.append((model, f"{ours['peak'] / 2**20:.0f}", other[0], f"{ours['added'] / 2**20:.0f}", other[1]))
        report.data.setdefault("memory", {})[model] = {"cermet": ours, "torch": theirs}
        if model == "resnet18":
            report.require(
                "peak memory of a ResNet-18 step, batch 32, 32 x 32",
                f"{ours['peak'] / 2**20:.0f} MiB, {ours['added'] / 2**20:.0f} of them after the import",
                f"PyTorch's: {other[0]} MiB, {other[1]} of them",
                ours["peak"] <= theirs["peak"] and ours["added"] <= theirs["added"] if theirs else None,
            )
    report.data["memory"]["resident"] = flat


def bits(bench: Bench) -> None:
    """The weights after an epoch of the digits CNN: one thread, two threads, another process."""
    steps = 19
    seen = {f"{n} threads": bench.cermet.call(f"{CHECKS}:weights_digest", threads=n, steps=steps) for n in (1, 2, 3)}
    again = bench.fresh("digest", steps=steps)
    assert again is not None
    seen["another process"] = again["digest"]
    different = len(set(seen.values()))
    bench.report.data["bits"] = seen
    bench.report.require(
        "different weights after an epoch of the digits CNN on 1, 2 and 3 threads and in another process",
        f"{different} set{'s' * (different > 1)} of bits",
        "1",
        different == 1,
    )


def _spoil(folder: Path) -> int:
    """Damage every file of a cache in one of three ways; how many there were."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    for k, path in enumerate(files):
        data = bytearray(path.read_bytes())
        if k % 3 == 0:
            data[len(data) // 2] ^= 255
        elif k % 3 == 1:
            del data[len(data) // 2 :]
        else:
            data[:] = b"not ours " * 100
        path.chmod(0o600)
        path.write_bytes(bytes(data))
    return len(files)


def second(bench: Bench) -> None:
    """First steps with an empty cache and in a second process; caches that were damaged."""
    report, models = (
        bench.report,
        ["digits_cnn", "small_gpt"] if bench.quick else ["digits_cnn", "mlp", "mnist_cnn", "small_gpt", "gpt", "resnet18"],
    )
    table = report.table(
        "The first training step, beginning after the model is made",
        "model",
        "cold",
        "second process",
        "a later step",
        "PyTorch first",
    )
    for model in models:
        cache = {"CERMET_CACHE_DIR": str(scratch() / f"second {model}")}
        cold = bench.fresh("first_step", model=model, environment=cache)
        warm = _quiet(bench, {"it": lambda m=model, c=cache: bench.fresh("first_step", model=m, environment=c)}, 3)["it"]
        theirs = bench.fresh("first_step", "torch", model=model)
        assert cold is not None
        seconds = _median(warm, "first")
        table.rows.append((model, duration(cold["first"]), duration(seconds), duration(_median(warm, "second")), duration(theirs["first"] if theirs else float("nan"))))  # fmt: skip
        report.data.setdefault("second", {})[model] = {"cold": cold, "warm": warm, "torch": theirs}
        if model == "digits_cnn":
            report.require("the digits CNN's first step in a second process", duration(seconds), "1 s", seconds < 1.0)
    cache = {"CERMET_CACHE_DIR": str(scratch() / "spoilt")}
    good = bench.fresh("digest", steps=2, environment=cache)
    warmed = bench.fresh("digest", steps=2, environment=cache)
    files = _spoil(scratch() / "spoilt")
    mended = bench.fresh("digest", steps=2, environment=cache)
    assert good and warmed and mended
    report.require(
        "kernels that a second process compiles, digits CNN",
        f"{warmed['kernels']} of {good['kernels']}",
        "0",
        not warmed["kernels"],
    )
    same = good["digest"] == mended["digest"]
    report.require(
        f"result when all {files} files of the cache are corrupt, cut short or foreign",
        f"{'the same bits' if same else 'other bits'}, {mended['kernels']} kernels compiled anew",
        "the same bits",
        same,
    )
