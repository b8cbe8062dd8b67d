"""Scaling in size: time per element, or per multiply-add, over four decades, as a table and a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.measure import ROOT
from bench.run import Bench
from bench.workloads.kernels import cost

__all__ = ["scaling"]

NAMES = ("add", "exp", "sum", "softmax", "layer norm", "transpose copy", "cumsum", "sort", "gather")
SIZES = [1 << k for k in range(10, 25, 2)]
SIDES = [8, 16, 32, 64, 128, 256, 512, 1024, 2048]


def scaling(bench: Bench) -> None:
    """Nanoseconds an element for operations; picoseconds a multiply-add for products."""
    others = tuple(p for p in bench.peers if p != "torch")
    sizes, sides = (SIZES[::2], SIDES[::2]) if bench.quick else (SIZES, SIDES)
    table = bench.report.table("Nanoseconds an element by size (in brackets: PyTorch)", "what", *(f"{n:,}" for n in sizes))
    curves: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for name in NAMES:
        cells = []
        for size in sizes:
            results = bench.compare("kernel", name, rounds=3, seconds=0.05, without=others, size=size)
            for framework, result in results.items():
                if result.rounds:
                    curves.setdefault(name, {}).setdefault(framework, []).append((size, result.seconds / size * 1e9))
            found = [f"{results[f].seconds / size * 1e9:.3g}" if f in results else "-" for f in ("cermet", "torch")]
            cells.append(f"{found[0]} ({found[1]})")
        table.rows.append((name, *cells))
    table = bench.report.table(
        "Square products, picoseconds a multiply-add by side (in brackets: PyTorch)", "what", *(f"{n}" for n in sides)
    )
    cells = []
    for n in sides:
        results = bench.compare("kernel", "matmul", rounds=3, seconds=0.05, without=others, m=n, n=n, k=n)
        pairs = cost("matmul", m=n, n=n, k=n)[0] / 2
        for framework, result in results.items():
            if result.rounds:
                curves.setdefault("matmul", {}).setdefault(framework, []).append((n, result.seconds / pairs * 1e12))
        found = [f"{results[f].seconds / pairs * 1e12:.3g}" if f in results else "-" for f in ("cermet", "torch")]
        cells.append(f"{found[0]} ({found[1]})")
    table.rows.append(("matmul", *cells))
    bench.report.data["scaling"] = curves
    _picture(curves, ROOT / "out" / "scaling.png")


def _picture(curves: dict[str, Any], path: Path) -> None:
    """A small plot for each operation: both axes logarithmic, a line for each framework."""
    try:
        import matplotlib
    except ImportError:
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    labels = {"cermet": "Cermet", "cermet.compile": "ct.compile", "torch": "PyTorch"}
    figure, grid = pyplot.subplots(2, 5, figsize=(15, 6), layout="constrained")
    for axes, (name, lines) in zip(grid.flat, curves.items(), strict=False):
        for framework, points in lines.items():
            axes.loglog(*zip(*points, strict=True), marker="o", markersize=3, label=labels[framework])
        product = name == "matmul"
        axes.set(title=name, xlabel="side" if product else "elements", ylabel="ps a multiply-add" if product else "ns an element")
    grid.flat[0].legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
