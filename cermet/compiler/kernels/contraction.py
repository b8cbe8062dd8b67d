"""Batched matrix products over operands of any strides: ``C[b, m, n] = sum over k of A[b, m, k] * B[b, k, n]``.

`plan` answers with the launches to make. Kernels take sizes and strides at run time; their keys name dtypes, unit strides, register tile and ways
of reading, so a model needs a handful of them and a new batch size none.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import Any

from cermet.compiler.kernels import blocking
from cermet.compiler.kernels.blocking import Blocking
from cermet.compiler.kernels.gemm import GEMM_PARAMS, Variant, gemm_module
from cermet.compiler.kernels.irtools import accumulator, rounded_up
from cermet.compiler.kernels.packing import PACK_PARAMS, pack_module
from cermet.compiler.kernels.plan import Arg, KernelLaunch, Operand, Plan, Temp
from cermet.dtypes import DType

__all__ = ["ContractionSpec", "plan"]


@dataclass(frozen=True)
class ContractionSpec:
    """One batched matrix product.

    Attributes:
        dtype_a, dtype_b, dtype_out: of the operands in memory. A and B agree. Sums are kept in float32 for 16-bit floats and rounded
            once; integer sums wrap around.
        m, n, k: sizes; any may be 0 (an empty sum is 0).
        batch: up to three extents.
        strides_a: in elements: batch strides, then those of m and k. A batch stride of 0 repeats the operand.
        strides_b: batch strides, then those of k and n.
        strides_out: batch strides, then those of m and n.
    """

    dtype_a: DType
    dtype_b: DType
    dtype_out: DType
    m: int
    n: int
    k: int
    batch: tuple[int, ...]
    strides_a: tuple[int, ...]
    strides_b: tuple[int, ...]
    strides_out: tuple[int, ...]

    def __post_init__(self) -> None:
        rank = len(self.batch) + 2
        if len(self.batch) > 3:
            raise ValueError(f"contraction: at most three batch dimensions, got {self.batch}")
        for name in ("strides_a", "strides_b", "strides_out"):
            if len(getattr(self, name)) != rank:
                raise ValueError(f"contraction: {name} needs {rank} strides, got {getattr(self, name)}")
        if self.dtype_a is not self.dtype_b:
            raise ValueError(f"contraction: dtypes of a and b differ: {self.dtype_a} and {self.dtype_b}")


@dataclass(frozen=True)
class _Problem:
    """A spec in the form that the kernels like: few batch dimensions, C's columns of unit stride where possible."""

    spec: ContractionSpec
    name_a: str = "a"
    name_b: str = "b"

    @property
    def unit_a(self) -> str:
        sm, sk = self.spec.strides_a[-2:]
        return "k" if sk == 1 else "p" if sm == 1 else "any"

    @property
    def unit_b(self) -> str:
        sk, sn = self.spec.strides_b[-2:]
        return "p" if sn == 1 else "k" if sk == 1 else "any"


def plan(spec: ContractionSpec, target: Any) -> Plan:
    """The launches that compute ``spec`` from the operands ``"a"`` and ``"b"`` into ``"out"``."""
    if 0 in (spec.m, spec.n, *spec.batch):
        return Plan([])
    problem = _normal(spec)
    s = problem.spec
    b = blocking.choose(target, s.dtype_a, s.dtype_b, s.m, s.n, s.k, prod(s.batch), problem.unit_a, problem.unit_b)
    return _general(problem, b, target)


def _normal(spec: ContractionSpec) -> _Problem:
    s = _merged(spec)
    problem = _Problem(s)
    sm, sn = s.strides_out[-2:]
    if (sm == 1 and sn != 1 and s.m > 1) or (s.n == 1 and s.m > 1 and sm == 1):
        problem = _Problem(_transposed(s), "b", "a")
    return problem


def _transposed(s: ContractionSpec) -> ContractionSpec:
    """The same numbers as ``C' = B' A'``."""
    return replace(
        s,
        dtype_a=s.dtype_b, dtype_b=s.dtype_a, m=s.n, n=s.m,
        strides_a=(*s.strides_b[:-2], s.strides_b[-1], s.strides_b[-2]),
        strides_b=(*s.strides_a[:-2], s.strides_a[-1], s.strides_a[-2]),
        strides_out=(*s.strides_out[:-2], s.strides_out[-1], s.strides_out[-2]),
    )  # fmt: skip


def _merged(s: ContractionSpec) -> ContractionSpec:
    """Without extents of 1; neighbouring batch dimensions joined where every operand walks them in one stride; strides of extents of 1
    made those of contiguous operands, so that they do not hide a unit stride."""
    sizes: list[int] = []
    strides: list[tuple[int, int, int]] = []
    for i, size in enumerate(s.batch):
        here = (s.strides_a[i], s.strides_b[i], s.strides_out[i])
        if size == 1:
            continue
        if sizes and all(outer == size * inner for outer, inner in zip(strides[-1], here, strict=True)):
            sizes[-1], strides[-1] = sizes[-1] * size, here
        else:
            sizes.append(size)
            strides.append(here)
    (am, ak), (bk, bn), (cm, cn) = s.strides_a[-2:], s.strides_b[-2:], s.strides_out[-2:]
    if s.n == 1:
        bn, cn = 1, 1
    if s.k <= 1:
        ak, bk = (1, bk) if am != 1 else (s.m, bk)
    if s.m == 1:
        am, cm = (max(s.k, 1) if ak == 1 else 1), s.n
    a, b, c = ([t[i] for t in strides] for i in range(3))
    return replace(s, batch=tuple(sizes), strides_a=(*a, am, ak), strides_b=(*b, bk, bn), strides_out=(*c, cm, cn))


def _batch_args(s: ContractionSpec, which: tuple[int, ...]) -> list[int]:
    """Three batch strides, zeros in front."""
    strides = which[:-2]
    return [0] * (3 - len(strides)) + list(strides)


def _general(p: _Problem, b: Blocking, target: Any) -> Plan:
    s, tile = p.spec, b.tile
    acc = accumulator(s.dtype_a)
    sizes = [1] * (3 - len(s.batch)) + list(s.batch)
    count = prod(s.batch)
    dims = 1 if len(s.batch) <= 1 else 3
    m_blocks, n_blocks, k_parts = -(-s.m // b.mc), -(-s.n // b.nc), max(1, -(-s.k // b.k_part))
    direct_c = s.dtype_out is acc and s.strides_out[-1] == 1
    temps: list[int] = []
    launches: list[KernelLaunch] = []
    b_arg: Arg = Operand(p.name_b)
    panels = -(-s.n // tile.nr)
    if b.read_b == "temp":
        launches.append(_pack_launch(p, b, target, dims, sizes, panels))
        temps.append(count * panels * tile.nr * s.k * acc.itemsize)
        b_arg = Temp(0)
    variant = Variant(
        tile, s.dtype_a, s.dtype_b, s.dtype_out, b.read_a, p.unit_a, b.read_b, p.unit_b, direct_c, s.strides_out[-1] == 1, dims,
        whole=m_blocks == n_blocks == k_parts == 1,
    )  # fmt: skip
    slack = 2 * tile.lanes * acc.itemsize
    space_a = rounded_up(rounded_up(b.mc, tile.mr) * b.kc * acc.itemsize + slack, 64) if b.read_a == "packed" else 0
    space_b = 0 if b.read_b == "temp" else rounded_up(b.kc * tile.nr * acc.itemsize + slack, 64)
    staged_tiles = 1 if direct_c or b.kc >= min(s.k, b.k_part) else -(-b.mc // tile.mr) * -(-b.nc // tile.nr)
    values: dict[str, Arg] = {
        "a": Operand(p.name_a), "b": b_arg, "c": Operand("out"), "m": s.m, "n": s.n, "k": s.k,
        "mc": b.mc, "nc": b.nc, "kc": b.kc, "m_blocks": m_blocks, "n_blocks": n_blocks, "k_part": b.k_part, "k_parts": k_parts,
        "c_part": 0, "b_space": space_a, "c_space": space_a + space_b, "stage_step": tile.mr * tile.nr if staged_tiles > 1 else 0,
        "b_panels": panels, "batch1": sizes[1], "batch2": sizes[2],
        "a_m": s.strides_a[-2], "a_k": s.strides_a[-1], "b_k": s.strides_b[-2], "b_n": s.strides_b[-1],
        "c_m": s.strides_out[-2], "c_n": s.strides_out[-1],
    }  # fmt: skip
    for letter, strides in (("a", s.strides_a), ("b", s.strides_b), ("c", s.strides_out)):
        values.update(zip((f"{letter}_b{i}" for i in range(3)), _batch_args(s, strides), strict=True))
    launches.append(
        KernelLaunch(
            key=f"{variant.key}|{target.code_key}",
            build=lambda: gemm_module(target, variant),
            entry="gemm",
            args=[values[name] for name in GEMM_PARAMS],
            blocks=count * m_blocks * n_blocks * k_parts,
            scratch=space_a + space_b + staged_tiles * tile.mr * tile.nr * acc.itemsize,
            grain=max(1, int(2e6 / (2 * b.mc * b.nc * min(b.k_part, max(s.k, 1))))),
            flops=2 * count * s.m * s.n * s.k,
        )
    )
    return Plan(launches, temps)


def _pack_launch(p: _Problem, b: Blocking, target: Any, dims: int, sizes: list[int], panels: int) -> KernelLaunch:
    s = p.spec
    group, chunk = 32, 128
    groups, chunks = -(-panels // group), -(-s.k // chunk)
    values: dict[str, Arg] = {
        "src": Operand(p.name_b), "dst": Temp(0), "count": s.n, "k": s.k, "sp": s.strides_b[-1], "sk": s.strides_b[-2],
        "batch1": sizes[1], "batch2": sizes[2], "panels": panels, "groups": groups, "group": group, "chunks": chunks, "chunk": chunk,
    }  # fmt: skip
    values.update(zip((f"src_b{i}" for i in range(3)), _batch_args(s, s.strides_b), strict=True))
    width, unit = b.tile.nr, p.unit_b
    return KernelLaunch(
        key=f"pack {s.dtype_b.name} {width} {unit} {dims}|{target.code_key}",
        build=lambda: pack_module(target, s.dtype_b, width, unit, dims),
        entry="pack",
        args=[values[name] for name in PACK_PARAMS],
        blocks=prod(s.batch) * groups * chunks,
    )
