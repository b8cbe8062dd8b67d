"""Batched matrix products over operands of any strides: ``C[b, m, n] = sum over k of A[b, m, k] * B[b, k, n]``.

`plan` answers with the launches to make. Kernels take sizes and strides at run time; their keys name dtypes, unit strides,
register tile and ways of reading, so a model needs a handful of them and a new batch size none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from typing import Any

from cermet.compiler.kernels import blocking, tuned
from cermet.compiler.kernels.blocking import Blocking
from cermet.compiler.kernels.finish import Epilogue, Output
from cermet.compiler.kernels.gemm import GEMM_PARAMS, Variant, gemm_module
from cermet.compiler.kernels.irtools import accumulator, batch_strides, rounded_up
from cermet.compiler.kernels.packing import PACK_PARAMS, pack_module
from cermet.compiler.kernels.plan import Arg, KernelLaunch, Operand, Plan, Temp
from cermet.compiler.kernels.skinny import COMBINE_PARAMS, SKINNY_PARAMS, SkinnyVariant, combine_module, skinny_module
from cermet.dtypes import DType

__all__ = ["ContractionSpec", "Epilogue", "plan"]


@dataclass(frozen=True)
class ContractionSpec:
    """One batched matrix product.

    Attributes:
        dtype_a, dtype_b, dtype_out: of the operands in memory. A and B agree. Sums are kept in float32 for 16-bit floats and
            rounded once; integer sums wrap around.
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
    """A spec in the form that the kernels like, and how it differs from what was asked.

    Attributes:
        spec: few batch dimensions; C's columns of unit stride where possible.
        swapped: it is the transposed product: our a is the caller's b, our rows are the caller's columns.
        fold: the rows of one batch where a batch dimension was joined to the rows, else 0.
        turned: after all that, the whole is computed transposed once more, because that costs less.
        epilogue: with the arguments that bind its parameters.
    """

    spec: ContractionSpec
    target: Any
    swapped: bool = False
    fold: int = 0
    turned: bool = False
    epilogue: Epilogue | None = None
    epilogue_args: tuple[Arg, ...] = ()

    @property
    def a(self) -> Operand:
        return Operand("b" if self.swapped != self.turned else "a")

    @property
    def b(self) -> Operand:
        return Operand("a" if self.swapped != self.turned else "b")

    @property
    def unit_a(self) -> str:
        sm, sk = self.spec.strides_a[-2:]
        return "k" if sk == 1 else "p" if sm == 1 else "any"

    @property
    def unit_b(self) -> str:
        sk, sn = self.spec.strides_b[-2:]
        return "p" if sn == 1 else "k" if sk == 1 else "any"

    @property
    def acc(self) -> DType:
        return accumulator(self.spec.dtype_a)

    @property
    def dims(self) -> int:
        """Batch extents that kernels are told: 1 or 3."""
        return 1 if len(self.spec.batch) <= 1 else 3

    @property
    def count(self) -> int:
        return prod(self.spec.batch)

    @property
    def direct(self) -> bool:
        """Whether sums can be kept in C itself."""
        return self.spec.dtype_out is self.acc and self.spec.strides_out[-1] == 1 and self.epilogue is None

    def output(self, adds: bool = False) -> Output:
        s = self.spec
        return Output(
            self.acc, s.dtype_out, s.strides_out[-1] == 1, adds, self.epilogue, self.swapped, self.fold > 0, self.turned
        )

    def output_args(self) -> dict[str, Arg]:
        """Arguments for the parameters that the output adds to a kernel."""
        return {"fold": self.fold, **{f"epilogue{i}": a for i, a in enumerate(self.epilogue_args)}}

    def batch_args(self, **strides: tuple[int, ...]) -> dict[str, Arg]:
        """Arguments for the batch sizes and the batch strides of some operands (given with the last two)."""
        sizes = [1] * (3 - len(self.spec.batch)) + list(self.spec.batch)
        values: dict[str, Arg] = {"batch1": sizes[1], "batch2": sizes[2]}
        for name, full in strides.items():
            values.update(zip(batch_strides(name), [0] * (5 - len(full)) + list(full[:-2]), strict=True))
        return values

    def launch(self, name: str, build: Any, key: str, params: Sequence[str], values: dict[str, Arg], **more: int) -> KernelLaunch:
        return KernelLaunch(f"{key}|{self.target.code_key}", build, name, [values[p] for p in params], **more)


def plan(spec: ContractionSpec, target: Any, epilogue: Epilogue | None = None, epilogue_args: Sequence[Arg] = ()) -> Plan:
    """The launches that compute ``spec`` from the operands ``"a"`` and ``"b"`` into ``"out"``.

    Args:
        spec: the product.
        target: the machine, a `cermet.compiler.llvm.target.Target`.
        epilogue: runs for each element of C instead of the store to ``"out"`` (which is then not written).
        epilogue_args: one for each of the epilogue's parameters.

    Raises:
        ValueError: when there are not as many arguments as parameters.
    """
    if epilogue is not None and len(epilogue.params) != len(epilogue_args):
        raise ValueError(f"contraction: the epilogue has {len(epilogue.params)} parameters but {len(epilogue_args)} arguments")
    if 0 in (spec.m, spec.n, *spec.batch):
        return Plan([])
    problem = _normal(spec, target, epilogue, tuple(epilogue_args))
    s = problem.spec
    if s.m == 1 and problem.unit_b != "any":
        return _skinny(problem)
    return _general(*_chosen(problem))


def _chosen(p: _Problem) -> tuple[_Problem, Blocking]:
    """The problem as it is best computed: what was measured for it, or else what the cost model says."""
    known = tuned.choice(_FAMILY, p.target, lambda: _name(p))
    ours = _cheaper(p)
    if tuned.is_collecting():
        _ask(p, *ours)
    if known is None:
        return ours
    turned, mc, nc, m_blocks = known
    return (ours[0], replace(ours[1], mc=mc, nc=nc, m_blocks=m_blocks)) if bool(turned) is ours[0].turned else ours


_FAMILY = "contraction"


def _name(p: _Problem) -> str:
    s = p.spec
    return (
        f"{s.dtype_a.name} {s.dtype_out.name} {s.m}x{s.n}x{s.k} {s.batch} {s.strides_a} {s.strides_b} {s.strides_out}"
        f" {'plain' if p.epilogue is None else 'epilogue'}"
    )


def _ask(p: _Problem, ours: _Problem, b: Blocking) -> None:
    """Other divisions into blocks of the same sums, to be measured. An epilogue is left out of that: its operands are not known here."""
    s = p.spec
    strides = {p.a.name: (s.strides_a, (s.m, s.k)), p.b.name: (s.strides_b, (s.k, s.n)), "out": (s.strides_out, (s.m, s.n))}
    buffers = {}
    for name, (steps, last) in strides.items():
        if min(steps) < 0:
            return
        size = s.dtype_out.itemsize if name == "out" else s.dtype_a.itemsize
        buffers[name] = (1 + sum((n - 1) * t for n, t in zip((*s.batch, *last), steps, strict=True))) * size
    plain = replace(ours, epilogue=None, epilogue_args=())
    made = [b, *blocking.alternatives(p.target, b, ours.spec.m, ours.spec.n)]
    candidates = [tuned.Candidate([int(ours.turned), c.mc, c.nc, c.m_blocks], partial(_general, plain, c)) for c in made]
    tuned.ask(tuned.Question(_FAMILY, _name(p), p.target, buffers, candidates))


def _cheaper(p: _Problem) -> tuple[_Problem, Blocking]:
    """The product or its transpose, and its schedule. B is always packed where it does not lie in rows; where it is the larger operand
    by far, it is better read in place, as the left one."""
    cost, b = _schedule(p)
    if p.unit_b != "k" or p.spec.n == 1:
        return p, b
    other = replace(p, spec=_transposed(p.spec), turned=True)
    cost2, b2 = _schedule(other)
    # Results then leave column by column.
    cost2 += p.count * p.spec.m * p.spec.n * (_TURNED_STORE if p.epilogue is None else _TURNED_EPILOGUE)
    return (other, b2) if cost2 < cost else (p, b)


_TURNED_STORE, _TURNED_EPILOGUE = 10, 30  # for each result, in operations as in `blocking`


def _schedule(p: _Problem) -> tuple[float, Blocking]:
    s = p.spec
    return blocking.choose(
        p.target, s.dtype_a, s.m, s.n, s.k, p.count, p.unit_a, p.unit_b, s.strides_a[-1], s.strides_b[-2], staged=not p.direct
    )


# -- the normal form -----------------------------------------------------------------------------------------------


def _normal(spec: ContractionSpec, target: Any, epilogue: Epilogue | None, args: tuple[Arg, ...]) -> _Problem:
    s = _canonical(spec)
    sm, sn = s.strides_out[-2:]
    swapped = s.n == 1 < s.m or (sm == 1 and sn != 1 and s.m > 1 and epilogue is None)
    if swapped:
        s = _canonical(_transposed(s))
    s, fold = _folded(s)
    return _Problem(s, target, swapped, fold, False, epilogue, args)


def _transposed(s: ContractionSpec) -> ContractionSpec:
    """The same numbers as ``C' = B' A'``."""
    return replace(
        s,
        m=s.n, n=s.m,
        strides_a=(*s.strides_b[:-2], s.strides_b[-1], s.strides_b[-2]),
        strides_b=(*s.strides_a[:-2], s.strides_a[-1], s.strides_a[-2]),
        strides_out=(*s.strides_out[:-2], s.strides_out[-1], s.strides_out[-2]),
    )  # fmt: skip


def _canonical(s: ContractionSpec) -> ContractionSpec:
    """Without batch extents of 1; neighbouring batch dimensions joined where every operand walks them in one stride; strides
    of extents of 1 chosen so that they hide no unit stride."""
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
    if s.k <= 1:
        # Whatever leaves the other stride its say.
        ak = 1 if am != 1 else 0
        bk = 1 if bn != 1 else 0
    if s.n == 1:
        bn, cn = (0 if bk == 1 else 1), 1
    if s.m == 1:
        am, cm = (0 if ak == 1 else 1), (0 if cn == 1 else 1)
    a, b, c = ([t[i] for t in strides] for i in range(3))
    return replace(s, batch=tuple(sizes), strides_a=(*a, am, ak), strides_b=(*b, bk, bn), strides_out=(*c, cm, cn))


def _folded(s: ContractionSpec) -> tuple[ContractionSpec, int]:
    """With the innermost batch dimension joined to the rows where B is the same throughout (a linear layer on
    sequences); and the rows of one batch, 0 where nothing was joined."""
    if len(s.batch) != 1 or s.strides_b[0] != 0:
        return s, 0
    size = s.batch[0]
    (ab, am, ak), (cb, cm, cn) = s.strides_a, s.strides_out
    if s.m > 1 and (ab != s.m * am or cb != s.m * cm):
        return s, 0
    if s.m == 1:
        am, cm = ab, cb
    joined = replace(s, m=size * s.m, batch=(), strides_a=(am, ak), strides_b=s.strides_b[1:], strides_out=(cm, cn))
    return joined, s.m


# -- schedules -----------------------------------------------------------------------------------------------------


def _general(p: _Problem, b: Blocking) -> Plan:
    """Blocks of register tiles; B packed first where several blocks use it; partial sums joined last."""
    s, tile, size = p.spec, b.tile, p.acc.itemsize
    m_panels, k_parts = -(-s.m // tile.mr), max(1, -(-s.k // b.k_part))
    m_blocks = b.m_blocks
    temps: list[int] = []
    launches: list[KernelLaunch] = []
    packs = b.read_b == "temp" and s.k > 0
    columns = s.n
    if packs:
        columns = _columns_at_once(p, b)
        temps.append(p.count * rounded_up(columns, tile.nr) * s.k * size)
    direct, out, out_args, strides_out, c_arg = p.direct, p.output(adds=p.direct), p.output_args(), s.strides_out, _OUT
    if k_parts > 1:
        direct, out, out_args = True, Output(p.acc, p.acc, True, adds=True), {}
        strides_out, c_arg = _contiguous(s), Temp(len(temps))
        temps.append(k_parts * p.count * s.m * s.n * size)
    # Of packed B the kernel sees nothing but panels.
    kind_b, unit_b = (p.acc, "any") if b.read_b == "temp" else (s.dtype_b, p.unit_b)
    variant = Variant(
        tile, s.dtype_a, kind_b, out, b.read_a, p.unit_a, b.read_b, unit_b, direct, p.dims,
        whole=m_blocks == k_parts == 1 and s.n <= min(b.nc, columns),
    )  # fmt: skip
    space_a, space_b, space_c, stage = _scratch(b, direct, s.k, size)
    values: dict[str, Arg] = {
        "a": p.a, "b": Temp(0) if packs else p.b, "c": c_arg, "m": s.m, "k": s.k,
        "kc": b.kc, "m_panels": m_panels, "m_blocks": m_blocks, "ahead": -(-tile.nr * m_blocks // m_panels), "k_part": b.k_part, "k_parts": k_parts,
        "c_part": p.count * s.m * s.n, "b_space": space_a, "c_space": space_a + space_b, "stage_step": stage,
        "a_m": s.strides_a[-2], "a_k": s.strides_a[-1], "b_k": s.strides_b[-2], "b_n": s.strides_b[-1],
        "c_m": strides_out[-2], "c_n": strides_out[-1],
        **p.batch_args(a=s.strides_a, b=s.strides_b, c=strides_out), **out_args,
    }  # fmt: skip
    work = 2 * min(b.mc, s.m) * min(b.nc, s.n) * min(b.k_part, max(s.k, 1))
    for j in range(0, s.n, columns):
        n = min(columns, s.n - j)
        n_blocks = -(-n // b.nc)
        if packs:
            launches.append(_pack(p, b, j, n))
        launches.append(
            p.launch(
                "gemm", lambda: gemm_module(p.target, variant), variant.key, (*GEMM_PARAMS, *out.params),
                {**values, "j_first": j, "n": j + n, "n_blocks": n_blocks, "n_panels": -(-n // tile.nr)},
                blocks=p.count * m_blocks * n_blocks * k_parts, scratch=space_a + space_b + space_c,
                grain=max(1, _GRAIN_FLOPS // max(work, 1)), flops=2 * p.count * s.m * n * s.k,
            )
        )  # fmt: skip
    if k_parts > 1:
        launches.append(_combine(p, k_parts, len(temps) - 1))
    return Plan(launches, temps)


_OUT: Arg = Operand("out")
# Packed B beyond this is made and used piece by piece: the logits of a language model would need a second copy of its largest
# matrix.
_PACKED_BYTES = 16 << 20


def _columns_at_once(p: _Problem, b: Blocking) -> int:
    """How many columns of B are packed at a time: all, or whole blocks' worth of about `_PACKED_BYTES`."""
    s = p.spec
    fitting = _PACKED_BYTES // (p.count * s.k * p.acc.itemsize)
    return s.n if fitting >= s.n or p.count > 1 else max(1, fitting // b.nc) * b.nc


_GRAIN_FLOPS = 1 << 20  # about ten microseconds: less is not worth waking a thread for


def _scratch(b: Blocking, direct: bool, k: int, size: int) -> tuple[int, int, int, int]:
    """Bytes of worker memory for panels of A, panels of B and tiles of C; elements from one such tile to the next."""
    tile = b.tile
    slack = tile.lanes * size  # see `packing.pack_function`
    space_a = rounded_up(rounded_up(b.mc, tile.mr) * b.kc * size + slack, 64) if b.read_a == "packed" else 0
    space_b = 0 if b.read_b == "temp" else rounded_up(b.kc * tile.nr * size + slack, 64)
    one = tile.mr * tile.nr
    if direct or b.kc >= min(k, b.k_part):
        return space_a, space_b, one * size, 0
    return space_a, space_b, -(-b.mc // tile.mr) * -(-b.nc // tile.nr) * one * size, one


def _contiguous(s: ContractionSpec) -> tuple[int, ...]:
    """Strides of C laid out row by row."""
    strides = [s.m * s.n] * len(s.batch)
    for i in reversed(range(len(s.batch) - 1)):
        strides[i] = strides[i + 1] * s.batch[i + 1]
    return (*strides, s.n, 1)


def _pack(p: _Problem, b: Blocking, first: int, count: int) -> KernelLaunch:
    """``count`` columns of B from ``first`` on become the panels of temporary 0."""
    s, width, unit = p.spec, b.tile.nr, p.unit_b
    sk, sn = s.strides_b[-2:]
    group, chunk = 32, 128
    panels = -(-count // width)
    groups, chunks = -(-panels // group), -(-s.k // chunk)
    values: dict[str, Arg] = {
        "src": Operand(p.b.name, first * sn * s.dtype_b.itemsize), "dst": Temp(0), "count": count, "k": s.k, "sp": sn, "sk": sk,
        "panels": panels, "groups": groups, "group": group, "chunks": chunks, "chunk": chunk, **p.batch_args(src=s.strides_b),
    }  # fmt: skip
    work = min(group, panels) * width * min(chunk, s.k)
    return p.launch(
        "pack", lambda: pack_module(p.target, s.dtype_b, width, unit, p.dims), f"pack {s.dtype_b.name} {width} {unit} {p.dims}",
        PACK_PARAMS, values, blocks=p.count * groups * chunks, grain=max(1, (1 << 15) // work),
    )  # fmt: skip


def _combine(p: _Problem, parts: int, temp: int) -> KernelLaunch:
    """Partial sums of temporary ``temp`` become C."""
    s, out = p.spec, p.output()
    m, n, c_m = s.m, s.n, s.strides_out[-2]
    if not s.batch and out.epilogue is None and (s.m == 1 or c_m == s.n) and out.unit:
        m, n = 1, s.m * s.n
    nc = min(n, 1024)
    n_blocks = -(-n // nc)
    values: dict[str, Arg] = {
        "src": Temp(temp), "c": Operand("out"), "n": n, "c_m": c_m, "c_n": s.strides_out[-1], "rows": m, "nc": nc, "n_blocks":
        n_blocks, "parts": parts, "part": p.count * s.m * s.n, **p.batch_args(c=s.strides_out), **p.output_args(),
    }  # fmt: skip
    return p.launch(
        "combine", lambda: combine_module(p.target, out, p.dims), f"combine {p.acc.name} {out.key} {p.dims}",
        (*COMBINE_PARAMS, *out.params), values, blocks=p.count * m * n_blocks, scratch=rounded_up(nc * p.acc.itemsize, 64),
        grain=max(1, (1 << 16) // (nc * parts)),
    )  # fmt: skip


def _skinny(p: _Problem) -> Plan:
    """One row of C: bound by reading B."""
    s, size = p.spec, p.acc.itemsize
    form = "dot" if p.unit_b == "k" else "axpy"
    b = blocking.choose_skinny(p.target, s.dtype_b, s.n, s.k, p.count, form)
    m_blocks, k_parts = -(-s.n // b.mc), max(1, -(-s.k // b.k_part))
    out, out_args, strides_out, c_arg = p.output(), p.output_args(), s.strides_out, _OUT
    temps: list[int] = []
    if k_parts > 1:
        out, out_args, strides_out, c_arg = Output(p.acc, p.acc, True), {}, _contiguous(s), Temp(0)
        temps = [k_parts * p.count * s.n * size]
    variant = SkinnyVariant(s.dtype_a, form, s.strides_a[-1] == 1, out, p.dims)
    strip = rounded_up((rounded_up(min(b.mc, s.n), 8) + 2 * p.target.lanes(size)) * size, 64)
    values: dict[str, Arg] = {
        "a": p.b, "b": p.a, "c": c_arg, "m": s.n, "k": s.k, "a_m": s.strides_b[-1], "a_k": s.strides_b[-2], "b_k":
        s.strides_a[-1], "c_m": strides_out[-1], "mc": b.mc, "m_blocks": m_blocks, "k_part": b.k_part, "k_parts": k_parts,
        "c_part": p.count * s.n, "x_space": strip, **p.batch_args(a=s.strides_b, b=s.strides_a, c=strides_out), **out_args,
    }  # fmt: skip
    launches = [
        p.launch(
            "skinny", lambda: skinny_module(p.target, variant), variant.key, (*SKINNY_PARAMS, *out.params), values,
            blocks=p.count * m_blocks * k_parts, scratch=strip + rounded_up(min(b.k_part, max(s.k, 1)) * size, 64),
            grain=max(1, (1 << 16) // (min(b.mc, s.n) * min(b.k_part, max(s.k, 1)))), flops=2 * p.count * s.n * s.k,
        )
    ]  # fmt: skip
    if k_parts > 1:
        launches.append(_combine(p, k_parts, 0))
    return Plan(launches, temps)
