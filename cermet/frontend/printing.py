"""Tensors as text, in PyTorch's format."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cermet import dtypes as dt
from cermet.frontend.core import fn_of
from cermet.frontend.gradients import GradFn, Pick
from cermet.ops.public import public

__all__ = ["set_printoptions", "tensor_repr"]


@dataclass(frozen=True)
class PrintOptions:
    """How tensors are printed; see `set_printoptions`."""

    precision: int = 4
    threshold: float = 1000
    edgeitems: int = 3
    linewidth: int = 80
    sci_mode: bool | None = None


_options = PrintOptions()
_PROFILES = {"default": PrintOptions(), "short": PrintOptions(2, 1000, 2), "full": PrintOptions(4, math.inf)}


@public(method=False)
def set_printoptions(
    precision: int | None = None, threshold: float | None = None, edgeitems: int | None = None, linewidth: int | None = None,
    profile: str | None = None, sci_mode: bool | None = None,
) -> None:  # fmt: skip
    """Set how tensors are printed.

    Args:
        precision: digits after the point (4). threshold: elements above which the middle is left out (1000).
        edgeitems: elements shown at each end of what is left out (3). linewidth: characters of a line (80).
        profile: ``"default"``, ``"short"`` or ``"full"``, before the others apply. sci_mode: force (True) or forbid (False)
        scientific
            notation; None decides by the values.
    """
    global _options
    base = _options if profile is None else _PROFILES[profile]
    given: dict[str, Any] = {"precision": precision, "threshold": threshold, "edgeitems": edgeitems, "linewidth": linewidth}
    _options = replace(base, **{k: v for k, v in given.items() if v is not None}, sci_mode=sci_mode)


@public(method=False)
def get_printoptions() -> dict[str, Any]:
    """How tensors are printed now."""
    return dict(vars(_options))


class _Formatter:
    """Formats elements of one tensor to one width."""

    def __init__(self, values: Any, options: PrintOptions) -> None:
        self.options = options
        self.floating = values.dtype.kind == "f"
        self.whole = True
        self.scientific = False
        self.width = 1
        flat = values.reshape(-1)
        if not self.floating:
            self.width = max([1, *[len(str(v)) for v in flat.tolist()]])
            return
        finite = flat[np.isfinite(flat) & (flat != 0)].astype(np.float64)
        if finite.size:
            self._decide(np.abs(finite), finite)
        if options.sci_mode is not None:
            self.scientific = options.sci_mode
            if finite.size:
                self._measure(finite)
        if not finite.size and (flat == 0).any():
            self.width = max(self.width, 2)

    def _decide(self, magnitudes: Any, values: Any) -> None:
        least, greatest = magnitudes.min(), magnitudes.max()
        self.whole = bool((values == np.ceil(values)).all())
        if self.whole:
            self.scientific = bool(greatest / least > 1000.0 or greatest > 1.0e8)
        else:
            self.scientific = bool(greatest / least > 1000.0 or greatest > 1.0e8 or least < 1.0e-4)
        self._measure(values)

    def _measure(self, values: Any) -> None:
        self.width = max([1, *[len(self._digits(v)) for v in values.tolist()]])

    def _digits(self, v: float) -> str:
        if self.scientific:
            return f"{v:.{self.options.precision}e}"
        if self.whole:
            return f"{v:.0f}."
        return f"{v:.{self.options.precision}f}"

    def __call__(self, value: Any) -> str:
        if not self.floating:
            return str(value).rjust(self.width)
        v = float(value)
        text = self._digits(v) if math.isfinite(v) else str(v)
        return text.rjust(self.width)


def _row(items: list[str], indent: int, options: PrintOptions, width: int) -> str:
    """A vector, broken into lines of as many elements as fit."""
    per_line = max(1, (options.linewidth - indent) // max(1, width + 2))
    lines = [", ".join(items[k : k + per_line]) for k in range(0, len(items), per_line)]
    return "[" + (",\n" + " " * (indent + 1)).join(lines) + "]"


def _nested(a: Any, indent: int, summarise: bool, fmt: _Formatter) -> str:
    options = fmt.options
    edge = options.edgeitems
    if a.ndim == 0:
        return fmt(a.item() if a.dtype.kind != "f" else a)
    shortened = summarise and a.shape[0] > 2 * edge
    if a.ndim == 1:
        values = a.tolist() if a.dtype.kind != "f" else list(a)
        if shortened:
            items = [*map(fmt, values[:edge]), " ...", *map(fmt, values[-edge:])]
        else:
            items = [fmt(v) for v in values]
        return _row(items, indent, options, fmt.width)
    if shortened:
        parts = [_nested(a[k], indent + 1, summarise, fmt) for k in (*range(edge), *range(a.shape[0] - edge, a.shape[0]))]
        parts.insert(edge, "...")
    else:
        parts = [_nested(a[k], indent + 1, summarise, fmt) for k in range(a.shape[0])]
    return "[" + ("," + "\n" * (a.ndim - 1) + " " * (indent + 1)).join(parts) + "]"


def _shown(a: Any, edge: int) -> Any:
    """The elements that a summary shows: they decide the format."""
    for d in range(a.ndim):
        if a.shape[d] > 2 * edge:
            index = [*range(edge), *range(a.shape[d] - edge, a.shape[d])]
            a = np.take(a, index, axis=d)
    return a


def _suffixes(t: Any) -> list[str]:
    out = []
    d = t.dtype
    default = (dt.get_default_dtype(), dt.int64, dt.bool)
    empty = t.numel() == 0
    if empty and tuple(t.shape) != (0,):
        out.append(f"size={tuple(t.shape)}")
    if d not in default or (empty and d is not dt.get_default_dtype()):
        out.append(f"dtype={d!r}")
    if t.device.type != "cpu":
        out.insert(0, f"device='{t.device}'")
    fn = fn_of(t)
    if isinstance(fn, GradFn | Pick):
        out.append(f"grad_fn=<{fn.name()}>")
    elif fn is not None:
        out.append("requires_grad=True")
    return out


def _body(t: Any, indent: int) -> str:
    a = t._array()
    if a.size == 0:
        return "[]"
    if t.dtype.kind == "f":
        a = a.astype(np.float64) if t.dtype.compute is t.dtype else a.astype(np.float32)
    options = _options
    summarise = a.size > options.threshold
    fmt = _Formatter(_shown(a, options.edgeitems) if summarise else a, options)
    return _nested(a, indent, summarise, fmt)


def tensor_repr(t: Any) -> str:
    """The text of a tensor; looks at its value."""
    prefix = "tensor("
    return _joined(prefix, _body(t, len(prefix)), _suffixes(t))


def _joined(prefix: str, body: str, suffixes: list[str]) -> str:
    """The parts, each suffix on the last line where it fits there."""
    text = prefix + body
    last = len(text) - text.rfind("\n") - 1
    for suffix in suffixes:
        if last + len(suffix) + 2 > _options.linewidth:
            text += ",\n" + " " * len(prefix) + suffix
            last = len(prefix) + len(suffix)
        else:
            text += ", " + suffix
            last += len(suffix) + 2
    return text + ")"
