"""Recurrences over a sequence: which launches compute one, forwards or back.

Two launches: the recurrent weights are packed into panels, then one kernel runs all steps (see `recurrence_loops`). How rows are
divided follows from their number and the size of the weights, never from the number of threads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from cermet.compiler.kernels.irtools import BATCH_SIZES, batch_strides, rounded_up
from cermet.compiler.kernels.packing import PACK_PARAMS, pack_module
from cermet.compiler.kernels.plan import Arg, KernelLaunch, Operand, Plan, Temp
from cermet.compiler.kernels.recurrence_cells import GATES, Cell
from cermet.compiler.kernels.recurrence_loops import (
    BACKWARD_PARAMS,
    FORWARD_PARAMS,
    Variant,
    backward_module,
    forward_module,
    group_of,
)
from cermet.dtypes import DType

__all__ = ["RecurrenceSpec", "plan"]

_GRAIN_FLOPS = 1 << 20  # about ten microseconds: less is not worth waking a thread for
_BLOCK_ROWS = 16
"""Rows of a block whose weights come from far: each weight that is read is used so often."""


@dataclass(frozen=True)
class RecurrenceSpec:
    """One direction of a recurrent layer. Strides are in elements; along the units all operands but the weights have unit stride.

    Attributes:
        dtype: of all operands, float32 or float64.
        kind: see `cermet.ops.recurrence`.
        steps, rows, units: extents.
        reverse: from the last step to the first.
        bias: forward: a bias is added to the product. masked: there is a mask "keep" (bytes).
        saves: forward: what the way back reads is written.
        before: forward: ``"all"`` states before a step are written to "before", or the ``"first"`` alone, because it runs on in
            "y"; or ``""``.
        given: backward: which gradients there are: of all hidden states, of the last one, of the last cell state.
        weights: strides (gate row, unit) of the recurrent weights.
        strides: operand -> (step, row) strides; (0, row) for one without steps.
    """

    dtype: DType
    kind: str
    steps: int
    rows: int
    units: int
    reverse: bool
    bias: bool
    masked: bool
    saves: bool
    before: str
    given: tuple[bool, bool, bool]
    weights: tuple[int, int]
    strides: tuple[tuple[str, tuple[int, int]], ...]

    def __post_init__(self) -> None:
        if self.kind not in GATES or self.dtype.name not in ("float32", "float64"):
            raise ValueError(f"RecurrenceSpec: no kernel for kind {self.kind!r} in {self.dtype!r}")

    @property
    def products(self) -> int:
        """Multiplications of all steps."""
        return self.steps * self.rows * GATES[self.kind] * self.units**2


def plan(
    direction: Literal["forward", "backward"], spec: RecurrenceSpec, target: Any, epilogue: Any = None, args: Sequence[Arg] = ()
) -> Plan:
    """The launches over operands named as the parameters of `recurrence_loops`, but "weights" for the recurrent weights.

    Args:
        epilogue, args: as other families have them; a recurrence takes none.

    Raises:
        ValueError: for an unknown direction, or an epilogue.
    """
    if epilogue is not None or args:
        raise ValueError("recurrence: there is no epilogue to a recurrence")
    if direction not in ("forward", "backward"):
        raise ValueError(f"recurrence: unknown direction {direction!r}; expected forward or backward")
    if 0 in (spec.steps, spec.rows, spec.units):
        return Plan([])
    return _Maker(direction, spec, target).plan()


class _Maker:
    def __init__(self, direction: str, spec: RecurrenceSpec, target: Any) -> None:
        self.forward, self.s, self.target = direction == "forward", spec, target
        self.lanes = target.lanes(spec.dtype.itemsize)
        self.tiles, self.nv = self._tile()
        self.high = -(-spec.rows // self.tiles)
        self.low, self.more = divmod(spec.rows, self.tiles)
        self.nr = self.nv * self.lanes
        self.panels = -(-spec.units // self.nr)

    def _tile(self) -> tuple[int, int]:
        """How many row tiles, as even as may be, and vectors of a panel: the accumulators, a row of weights and one broadcast fill
        the registers; among the widths that do, the one that wastes least beyond the last unit."""
        s, registers = self.s, self.target.vector_registers - (0 if self.target.has_fma else 1)
        most = (registers - 3) // 2
        tiles = -(-s.rows // most)
        high = -(-s.rows // tiles)
        wide = 8 if high == 1 else max(1, (registers - 1) // (high + 1))
        enough = 10 if registers < 31 else 12  # sums in flight that keep the multipliers busy

        def cost(nv: int) -> tuple[float, int]:
            return rounded_up(s.units, nv * self.lanes) * max(1.0, enough / (high * nv)), -nv

        return tiles, min(range(1, min(wide, -(-s.units // self.lanes)) + 1), key=cost)

    def _blocks(self) -> int:
        """Parallel blocks. Weights that stay in a core's own cache can be passed over by few rows at a time; others cannot."""
        s = self.s
        near = GATES[s.kind] * s.units**2 * s.dtype.itemsize <= self.target.l2 // 2
        wanted = self.tiles if near else max(-(-s.rows // _BLOCK_ROWS), min(2, s.rows // 12))
        return max(1, min(wanted, self.tiles))

    def plan(self) -> Plan:
        s = self.s
        size, gates = s.dtype.itemsize, GATES[s.kind]
        k = s.units if self.forward else gates * s.units
        temps = [(gates if self.forward else 1) * self.panels * k * self.nr * size]
        launches = [self._pack(k)]
        cell = Cell(s.kind, s.dtype, self.lanes, s.units % self.lanes != 0, s.bias, s.saves, s.before)
        low = self.low if self.more else 0
        high = self.high
        variant = Variant(cell, high, low, self.nv, s.masked, s.given)
        kc = max(32, self.target.l1d // 2 // (self.nr * size) // 8 * 8)
        k_parts = -(-k // kc) if k > kc * 5 // 4 else 1
        blocks = self._blocks()
        values: dict[str, Arg] = {
            "w": Temp(0), "steps": s.steps, "units": s.units, "panels": self.panels, "tiles": self.tiles, "low": self.low,
            "more": self.more, "blocks": blocks, "kc": rounded_up(-(-k // k_parts), 8),
        }  # fmt: skip
        scratch = 0
        if self.forward:
            rows, ld = min(s.rows, group_of(high) * high), s.units + self.lanes * 2
            values |= {"sums": gates * rows * self.nr, "ld": ld}
            scratch = (gates * rows * self.nr + 2 * rows * ld) * size
        else:
            values |= {"state": Temp(1), "state_b": self.panels * self.nr}
            temps.append(s.rows * self.panels * self.nr * size)
        params = FORWARD_PARAMS if self.forward else BACKWARD_PARAMS
        values = self._operands(params) | values
        build = forward_module if self.forward else backward_module
        name = "forward" if self.forward else "backward"
        target = self.target
        launches.append(
            KernelLaunch(
                f"recurrence {name} {variant.key}|{target.code_key}", lambda: build(target, variant), name,
                [values[p] for p in params], blocks, rounded_up(scratch, 64),
                min(blocks, max(1, _GRAIN_FLOPS * blocks // (2 * s.products))), 2 * s.products,
            )
        )  # fmt: skip
        return Plan(launches, temps)

    def _operands(self, params: tuple[str, ...]) -> dict[str, Arg]:
        """Addresses of each operand at the step that comes first, and strides from step to step in the order of the walk."""
        s = self.s
        strides: Mapping[str, tuple[int, int]] = dict(s.strides)
        turned = s.reverse == self.forward
        values: dict[str, Arg] = {}
        for p in params:
            if p.endswith(("_t", "_b")):
                values.setdefault(p, 0)
                continue
            step, row = strides.get(p, (0, 0))
            itemsize = 1 if p == "keep" else s.dtype.itemsize
            values[p] = Operand(p, (s.steps - 1) * step * itemsize if turned else 0)
            values[p + "_t"], values[p + "_b"] = -step if turned else step, row
        return values

    def _pack(self, k: int) -> KernelLaunch:
        """The recurrent weights as panels: forward gate by gate, for the way back all products of a unit behind each other."""
        s, dtype = self.s, self.s.dtype
        row, unit = s.weights
        sp, sk = (row, unit) if self.forward else (unit, row)
        mode = "p" if sp == 1 else "k" if sk == 1 else "any"
        count = GATES[s.kind] if self.forward else 1
        group, chunk = 32, 128
        groups, chunks = -(-self.panels // group), -(-k // chunk)
        values: dict[str, Arg] = {
            "src": Operand("weights"), "dst": Temp(0), "count": s.units, "k": k, "sp": sp, "sk": sk, "panels": self.panels,
            "groups": groups, "group": group, "chunks": chunks, "chunk": chunk, **dict.fromkeys(BATCH_SIZES, 1),
            **dict.fromkeys(batch_strides("src"), 0), batch_strides("src")[2]: s.units * row,
        }  # fmt: skip
        work = min(group, self.panels) * self.nr * min(chunk, k)
        target, width = self.target, self.nr
        return KernelLaunch(
            f"pack {dtype.name} {width} {mode} 1|{target.code_key}", lambda: pack_module(target, dtype, width, mode, 1), "pack",
            [values[p] for p in PACK_PARAMS], count * groups * chunks, 0, max(1, (1 << 15) // work),
        )  # fmt: skip
