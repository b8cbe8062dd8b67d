"""What the sections hand over, and its four forms: text on the standard output, JSON, a picture, and the table in README.md."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.measure import LOUD

__all__ = ["Report", "Requirement", "Table", "duration"]

BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"


def duration(seconds: float) -> str:
    """Seconds in the unit that suits them."""
    if math.isnan(seconds):
        return "-"
    for unit, factor in (("s", 1.0), ("ms", 1e3)):
        if seconds * factor >= 1.0:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"


@dataclass
class Requirement:
    """A line of what the engine must show. ``verdict``: "met", "missed", or why there is none."""

    text: str
    measured: str
    bound: str
    verdict: str


@dataclass
class Table:
    """A title, the names of the columns, and rows of text."""

    title: str
    header: Sequence[str]
    rows: list[Sequence[str]] = field(default_factory=list)

    def text(self) -> str:
        """Columns aligned for a terminal."""
        lines = [list(self.header), *[list(r) for r in self.rows]]
        widths = [max(len(line[k]) for line in lines) for k in range(len(self.header))]
        shown = ["  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines]
        return "\n".join([self.title, "-" * len(self.title), *shown])

    def markdown(self) -> str:
        """The table in Markdown, without its title."""
        lines = [list(self.header), ["---"] * len(self.header), *[list(r) for r in self.rows]]
        return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


@dataclass
class Report:
    """Everything measured in one run.

    Attributes:
        about: versions, threads, whether the run was quick. requirements, tables: what is shown. data: raw figures, for JSON.
        ratios: how many times faster than the fastest other framework each workload is, for the picture.
    """

    about: dict[str, Any] = field(default_factory=dict)
    requirements: list[Requirement] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)
    ratios: dict[str, float] = field(default_factory=dict)

    def require(self, text: str, measured: str, bound: str, met: bool | None) -> None:
        """Add a requirement; ``met`` is None where it could not be judged."""
        self.requirements.append(Requirement(text, measured, bound, "-" if met is None else "met" if met else "missed"))

    def table(self, title: str, *header: str) -> Table:
        """Begin a table."""
        self.tables.append(Table(title, header))
        return self.tables[-1]

    def required(self) -> Table:
        """The requirements as a table."""
        rows: list[Sequence[str]] = [(r.text, r.measured, r.bound, r.verdict) for r in self.requirements]
        return Table("What the engine must show", ("requirement", "measured", "bound", "verdict"), rows)

    def heading(self) -> str:
        """One line on the circumstances."""
        a = self.about
        beside = ", ".join(f"{name} {version}" for name, version in a.get("peers", {}).items()) or "no other framework"
        noise = f"; in the loudest round that counts other processes took {a['noise']:.0%} of the machine" if "noise" in a else ""
        return (
            f"Cermet {a['cermet']} beside {beside}, {a['threads']} threads each, {a['cpu']}, "
            f"{'quick' if a['quick'] else 'full'} run of {a['date']}{noise}."
            f"{' The machine was busy: times are indications.' if a.get('noise', 0.0) > LOUD else ''}"
        )

    def write(self, folder: Path) -> list[Path]:
        """Write bench.json and, where matplotlib is installed, bench.png; the files written."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "bench.json"
        path.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")
        return [path, *([picture] if (picture := self._picture(folder / "bench.png")) else [])]

    def _picture(self, path: Path) -> Path | None:
        try:
            import matplotlib
        except ImportError:
            return None
        matplotlib.use("Agg")
        from matplotlib import pyplot

        ratios = {k: v for k, v in self.ratios.items() if v == v}
        if not ratios:
            return None
        names = list(ratios)[::-1]
        figure, axes = pyplot.subplots(figsize=(8, 1.2 + 0.24 * len(names)), layout="constrained")
        bars = axes.barh(
            names, [ratios[n] - 1 for n in names], left=1, color=["#2b7a3d" if ratios[n] >= 1 else "#b5482f" for n in names]
        )
        axes.bar_label(bars, [f"{ratios[n]:.2f}" for n in names], padding=3, fontsize=8)
        axes.axvline(1, color="black", linewidth=0.8)
        axes.set_xscale("log")
        low, high = min(0.5, *ratios.values()), max(2.0, *ratios.values())
        axes.set_xlim(low / 1.4, high * 1.4)
        ticks = [t for t in (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20) if low / 1.4 <= t <= high * 1.4]
        axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
        axes.minorticks_off()
        axes.tick_params(axis="y", labelsize=8)
        axes.set_xlabel("times as fast as the fastest other framework (right of the line: Cermet is faster)")
        figure.savefig(path, dpi=130)
        pyplot.close(figure)
        return path

    def readme(self, path: Path) -> None:
        """Rewrite what stands between the markers.

        Raises:
            ValueError: when the markers are not there.
        """
        text = path.read_text(encoding="utf-8")
        if BEGIN not in text or END not in text:
            raise ValueError(f"{path.name} has no {BEGIN} and {END}")
        parts = [self.heading(), self.required().markdown()]
        for table in self.tables:
            if table.title.startswith(("Training steps", "First steps")):
                parts += [f"{table.title}:", table.markdown()]
        head, tail = text[: text.index(BEGIN)], text[text.index(END) :]
        path.write_text(head + BEGIN + "\n" + "\n\n".join(parts) + "\n" + tail, encoding="utf-8")
