"""Attention and its gradients as kernels: blocks chosen by shape, what is copied, the launches to make.

`plan_forward` and `plan_backward` answer for the two ops. Score matrices exist a few rows at a time, in scratch. Sizes and strides are
parameters of the kernels; keys name dtypes, unit strides, kinds of mask.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from cermet.compiler.kernels.attention_backward import BACKWARD_PARAMS, Backward, backward_module
from cermet.compiler.kernels.attention_forward import FORWARD_PARAMS, Forward, forward_module
from cermet.compiler.kernels.attention_parts import Mask, attention_tile, space
from cermet.compiler.kernels.attention_rows import ROWS_PARAMS, Rows, rows_module
from cermet.compiler.kernels.finish import Output
from cermet.compiler.kernels.irtools import accumulator, batch_strides, rounded_up
from cermet.compiler.kernels.plan import Arg, KernelLaunch, Operand, Plan, Temp
from cermet.compiler.kernels.skinny import COMBINE_PARAMS, combine_module
from cermet.dtypes import DType

__all__ = ["AttentionSpec", "plan", "plan_backward", "plan_forward"]

Strides = tuple[int, ...]


@dataclass(frozen=True)
class AttentionSpec:
    """One attention.

    Attributes:
        dtype: of query, key, value, result and gradients. Computed in float32 for 16-bit floats.
        causal, scale: as in the op.
        batch: up to three extents.
        l, s, e, ev: queries, keys, features of query and key, features of value.
        strides: in elements, by operand: batch strides, then those of the two last dims. ``"mask"`` is there where there is one.
        mask: the mask's dtype.
    """

    dtype: DType
    causal: bool
    scale: float
    batch: tuple[int, ...]
    l: int
    s: int
    e: int
    ev: int
    strides: tuple[tuple[str, Strides], ...]
    mask: DType | None = None

    def __post_init__(self) -> None:
        if len(self.batch) > 3:
            raise ValueError(f"attention: at most three batch dimensions, got {self.batch}")
        for name, strides in self.strides:
            if len(strides) != len(self.batch) + 2:
                raise ValueError(f"attention: {name} needs {len(self.batch) + 2} strides, got {strides}")

    def of(self, name: str) -> Strides:
        """The strides of an operand."""
        return dict(self.strides)[name]

    def unit(self, name: str, columns: int) -> bool:
        """Whether an operand's last dim lies in one run."""
        return columns == 1 or self.of(name)[-1] == 1

    @property
    def count(self) -> int:
        return prod(self.batch)

    @property
    def dims(self) -> int:
        return 1 if len(self.batch) <= 1 else 3

    def flops(self, products: int) -> int:
        """Of ``products`` products over the pairs that see each other."""
        pairs = self.l * self.s
        if self.causal:
            short = min(self.l, self.s)
            pairs = short * (short + 1) // 2 + (self.l - short) * self.s
        return products * self.count * pairs * (self.e + self.ev)

    def batch_args(self, *names: str) -> dict[str, Arg]:
        sizes = [1] * (3 - len(self.batch)) + list(self.batch)
        values: dict[str, Arg] = {"batch1": sizes[1], "batch2": sizes[2]}
        for name in names:
            full = self.of(name)
            values.update(zip(batch_strides(name), [0] * (5 - len(full)) + list(full[:-2]), strict=True))
        return values


def _even(size: int, limit: int, step: int) -> int:
    """Blocks of about equal size, at most about ``limit`` and a multiple of ``step``."""
    return rounded_up(-(-size // max(1, -(-size // limit))), step)


def _bits(value: float) -> int:
    return int(struct.unpack("q", struct.pack("d", value))[0])


def _mask(spec: AttentionSpec) -> Mask | None:
    if spec.mask is None:
        return None
    rows, keys = spec.of("mask")[-2:]
    return Mask(spec.mask, "row" if rows == 0 or spec.l == 1 else "panel", keys == 1)


def _conflicts(stride: int, rows: int, size: int) -> bool:
    """Whether rows that far apart compete for few sets of the nearest cache: at multiples of several lines that are even."""
    return rows > 8 and stride * size % 512 == 0


_GRAIN_FLOPS = 1 << 20
FEW = 4  # queries up to which features are in the lanes, not queries
ROW_KEYS = 1024
QUERIES = 64
KEYS = 192


def plan(
    direction: str, spec: AttentionSpec, target: Any, wants: frozenset[str], epilogue: None = None, args: Sequence[Operand] = ()
) -> Plan:
    """The launches of one direction, "forward" or "backward"; see `plan_forward` and `plan_backward`. No epilogues."""
    return plan_forward(spec, target) if direction == "forward" else plan_backward(spec, target, wants)


def plan_forward(spec: AttentionSpec, target: Any) -> Plan:
    """The launches that compute ``"out"`` and, where that operand is bound, ``"lse"``, from ``"q"``, ``"k"``, ``"v"`` and ``"mask"``.

    ``lse`` holds the logarithm of each row's sum of exponentials, row-major, in the accumulator dtype; infinity for rows that see nothing.
    """
    if 0 in (spec.l, *spec.batch):
        return Plan([])
    acc = accumulator(spec.dtype)
    tile = attention_tile(target, acc)
    rows, keys = _even(spec.l, QUERIES, tile.nr), _even(max(spec.s, 1), KEYS, tile.mr)
    mask = _mask(spec)
    if spec.l <= FEW and spec.unit("k", spec.e) and spec.unit("v", spec.ev):
        return _plan_rows(spec, target, mask)
    narrow = spec.dtype is not acc
    unit = {n: spec.unit(n, c) for n, c in (("q", spec.e), ("k", spec.e), ("v", spec.ev), ("out", spec.ev))}
    copy_v = narrow or not unit["v"] or _conflicts(spec.of("v")[-2], keys, acc.itemsize)
    variant = Forward(
        tile, spec.dtype, spec.causal, mask, unit["q"], unit["k"], unit["v"], unit["out"],
        narrow or not unit["k"], copy_v, spec.dims,
    )  # fmt: skip
    slack = tile.lanes
    o_size = rounded_up(spec.ev, tile.mr) * tile.nr
    k_pitch, v_pitch = rounded_up(spec.e, tile.lanes), rounded_up(spec.ev, tile.lanes)
    panel = keys * tile.nr + slack if mask and mask.form == "panel" else keys if mask else 0
    places, total = space(
        rows * spec.e + slack, rows // tile.nr * o_size, rounded_up(keys, tile.mr) * tile.nr, rows, rows, tile.nr, panel,
        keys * k_pitch if variant.copy_k else 0, keys * v_pitch if variant.copy_v else 0,
    )  # fmt: skip
    names = ["q", "k", "v", "out"] + (["mask"] if mask else [])
    values: dict[str, Arg] = dict.fromkeys(FORWARD_PARAMS, 0)
    values.update(_operands(spec, names))
    values.update(
        lse=Operand("lse"), scale=_bits(spec.scale), rows=rows, keys=keys, row_blocks=-(-spec.l // rows),
        k_pitch=k_pitch, v_pitch=v_pitch, o_size=o_size,
    )  # fmt: skip
    values.update(zip([p for p in FORWARD_PARAMS if p.startswith("at_")], places, strict=True))
    flops = spec.flops(2)
    blocks = spec.count * -(-spec.l // rows)
    return Plan([
        _launch(
            target, "attention", lambda: forward_module(target, variant), variant.key, FORWARD_PARAMS, values,
            blocks=blocks, scratch=total * acc.itemsize, grain=max(1, _GRAIN_FLOPS * blocks // max(flops, 1)), flops=flops,
        )
    ])  # fmt: skip


def _plan_rows(spec: AttentionSpec, target: Any, mask: Mask | None) -> Plan:
    """The forward pass of few queries, each on its own."""
    acc = accumulator(spec.dtype)
    lanes = target.lanes(acc.itemsize)
    variant = Rows(spec.dtype, lanes, spec.causal, mask, spec.dims)
    keys = min(ROW_KEYS, rounded_up(max(spec.s, 1), lanes))
    places, total = space(spec.e, keys + lanes, spec.ev)
    values: dict[str, Arg] = dict.fromkeys(ROWS_PARAMS, 0)
    values.update(_operands(spec, ["q", "k", "v", "out"] + (["mask"] if mask else [])))
    values.update(zip(("at_q", "at_s", "at_o"), places, strict=True))
    values.update(lse=Operand("lse"), scale=_bits(spec.scale), keys=keys)
    flops, blocks = spec.flops(2), spec.count * spec.l
    return Plan([
        _launch(
            target, "attention_rows", lambda: rows_module(target, variant), variant.key, ROWS_PARAMS, values,
            blocks=blocks, scratch=total * acc.itemsize, grain=max(1, _GRAIN_FLOPS // 4 * blocks // max(flops, 1)), flops=flops,
        )
    ])  # fmt: skip


def _operands(spec: AttentionSpec, names: Sequence[str]) -> dict[str, Arg]:
    """Addresses, sizes and strides."""
    values: dict[str, Arg] = {"l": spec.l, "s": spec.s, "e": spec.e, "ev": spec.ev, **spec.batch_args(*names)}
    letters = {"k": "se", "v": "se", "dk": "se", "dv": "se", "mask": "ls"}
    for name in names:
        values[name] = Operand(name)
        for letter, stride in zip(letters.get(name, "le"), spec.of(name)[-2:], strict=True):
            values[f"{name}_{letter}"] = stride
    return values


def _launch(
    target: Any, name: str, build: Any, key: str, params: Sequence[str], values: dict[str, Arg], **more: int
) -> KernelLaunch:
    return KernelLaunch(f"{key}|{target.code_key}", build, name, [values[p] for p in params], **more)


# -- gradients ---------------------------------------------------------------------------------------------------------

BACK_QUERIES = 128
BACK_KEYS = 96
_UNITS = 16  # as many parts as a dozen cores can share
_UNIT_FLOPS = 8 << 20


def plan_backward(spec: AttentionSpec, target: Any, wants: frozenset[str]) -> Plan:
    """The launches that compute the gradients ``wants`` (of ``"q"``, ``"k"``, ``"v"``, ``"mask"``) into ``"dq"``, ``"dk"``, ``"dv"`` and
    ``"dmask"`` (dS, stored ``[batch][key][query]`` in the accumulator dtype), from the operands of the forward pass, its results
    ``"out"`` and ``"lse"``, and the gradient ``"g"`` of ``"out"``."""
    if 0 in spec.batch or not wants:
        return Plan([])
    acc = accumulator(spec.dtype)
    tile = attention_tile(target, acc)
    rows, keys = _even(max(spec.l, 1), BACK_QUERIES, tile.nr), _even(max(spec.s, 1), BACK_KEYS, tile.mr)
    mask, narrow, size = _mask(spec), spec.dtype is not acc, acc.itemsize
    columns = {"q": spec.e, "k": spec.e, "v": spec.ev, "g": spec.ev, "out": spec.ev, "dq": spec.e}
    units = frozenset(n for n, c in columns.items() if (n != "dq" or "q" in wants) and spec.unit(n, c))
    copy_k = narrow or "k" not in units or ("q" in wants and _conflicts(spec.of("k")[-2], keys, size))
    variant = Backward(
        tile, spec.dtype, spec.causal, mask, units, copy_k, narrow or "v" not in units, wants, spec.dims
    )  # fmt: skip
    chunks, span = _chunks(spec, rows)
    values: dict[str, Arg] = dict.fromkeys(BACKWARD_PARAMS, 0)
    names = ["q", "k", "v", "g", "out"] + (["mask"] if mask else []) + (["dq"] if "q" in wants else [])
    values.update(_operands(spec, names))
    temps, combines = _key_gradients(spec, target, wants, chunks, values)
    e_pitch, v_pitch = rounded_up(spec.e, tile.nr), rounded_up(spec.ev, tile.nr)
    o_size, slack = rounded_up(spec.e, tile.mr) * tile.nr, tile.lanes
    panel = keys * tile.nr + slack if mask and mask.form == "panel" else keys if mask else 0
    strip = rounded_up(keys, tile.mr) * rows
    places, total = space(
        rows * spec.e + slack, rows * e_pitch, rows * spec.ev + slack, rows * v_pitch, rows // tile.nr * o_size, strip, strip,
        rows, rows, tile.nr, panel, tile.mr * tile.nr, keys * e_pitch if variant.copy_k else 0, keys * v_pitch if variant.copy_v else 0,
    )  # fmt: skip
    values.update(zip([p for p in BACKWARD_PARAMS if p.startswith("at_")], places, strict=True))
    values.update(
        lse=Operand("lse"), scale=_bits(spec.scale), rows=rows, keys=keys, chunks=chunks, span=span, e_pitch=e_pitch,
        v_pitch=v_pitch, o_size=o_size, dmask=Operand("dmask") if "mask" in wants else 0,
    )  # fmt: skip
    flops, blocks = spec.flops(5), spec.count * chunks
    launch = _launch(
        target, "attention_grad", lambda: backward_module(target, variant), variant.key, BACKWARD_PARAMS, values,
        blocks=blocks, scratch=total * size, grain=max(1, _GRAIN_FLOPS * blocks // max(flops, 1)), flops=flops,
    )  # fmt: skip
    return Plan([launch, *combines], temps)


def _chunks(spec: AttentionSpec, rows: int) -> tuple[int, int]:
    """How many parts a head's queries are cut into, and the queries of a part: each part has keys' gradients of its own to be added
    up later, so few where there are enough heads."""
    blocks = max(1, -(-spec.l // rows))
    wanted = min(-(-_UNITS // spec.count), blocks, max(1, spec.flops(5) // spec.count // _UNIT_FLOPS))
    span = -(-blocks // wanted) * rows
    return max(1, -(-spec.l // span)), span


def _key_gradients(
    spec: AttentionSpec, target: Any, wants: frozenset[str], chunks: int, values: dict[str, Arg]
) -> tuple[list[int], list[KernelLaunch]]:
    """Where dK and dV are added up: in the results where they allow it, else in temporaries; temporaries, and the launches that empty
    them."""
    acc = accumulator(spec.dtype)
    temps: list[int] = []
    launches: list[KernelLaunch] = []
    for name, columns in (("k", spec.e), ("v", spec.ev)):
        if name not in wants or 0 in (columns, spec.s):
            continue
        result = f"d{name}"
        part = spec.count * spec.s * columns
        strides = spec.of(result)
        if chunks == 1 and spec.dtype is acc and spec.unit(result, columns):
            values.update({result: Operand(result), f"{result}_s": strides[-2], **spec.batch_args(result)})
            continue
        flat = [spec.s * columns] * len(spec.batch)
        for i in reversed(range(len(flat) - 1)):
            flat[i] = flat[i + 1] * spec.batch[i + 1]
        padded = [0] * (3 - len(flat)) + flat
        values.update({result: Temp(len(temps)), f"{result}_s": columns, f"{result}_part": part if chunks > 1 else 0})
        values.update(zip(batch_strides(result), padded, strict=True))
        out = Output(acc, spec.dtype, strides[-1] == 1)
        nc = min(columns, 1024)
        bound: dict[str, Arg] = {
            "src": Temp(len(temps)), "c": Operand(result), "n": columns, "c_m": strides[-2], "c_n": strides[-1], "rows": spec.s,
            "nc": nc, "n_blocks": -(-columns // nc), "parts": chunks, "part": part,
        }  # fmt: skip
        bound.update({k.replace(f"{result}_", "c_"): a for k, a in spec.batch_args(result).items()})
        temps.append(chunks * part * acc.itemsize)
        launches.append(_launch(
            target, "combine", lambda out=out: combine_module(target, out, spec.dims), f"combine {acc.name} {out.key} {spec.dims}",
            COMBINE_PARAMS, bound, blocks=spec.count * spec.s * -(-columns // nc), scratch=rounded_up(nc * acc.itemsize, 64),
            grain=max(1, (1 << 16) // (nc * chunks)),
        ))  # fmt: skip
    return temps, launches
