"""What the forward and the backward kernel of attention are made of: register tiles, packing, weights, transposing stores.

Both work on strips of scores with *queries in the lanes*: a strip is ``[key][query]``. So the tiles read K and V row by row through
broadcasts, the strip of weights is the packed operand of the next product as it lies, and maxima and sums over keys are
lane by lane: nothing is ever summed across a vector.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llvmlite import ir

from cermet.compiler.kernels.irtools import Emit, Index, KernelEmit, Value, acc_type, rounded_up
from cermet.compiler.kernels.microkernel import Tile, tile_function
from cermet.compiler.kernels.packing import pack_function, transposed
from cermet.compiler.llvm.builder import BOOL, I32, I64, PTR, LaneBuilder, constant, memory_type
from cermet.compiler.llvm.vmath.common import floor_at, format_of, horner, table
from cermet.dtypes import DType

__all__ = ["Mask", "Parts", "attention_tile", "power"]

LOG2E = 1.4426950408889634


def attention_tile(target: Any, acc: DType) -> Tile:
    """The register tile of all products: rows are keys or features, lanes are queries or features."""
    lanes = target.lanes(acc.itemsize)
    registers = target.vector_registers - (0 if target.has_fma else 1)
    if registers >= 31:
        return Tile(12, 2, lanes, acc) if lanes > 4 else Tile(6, 4, lanes, acc)
    return Tile((registers - 3) // 2, 2, lanes, acc)


@dataclass(frozen=True)
class Mask:
    """How a kernel reads its mask.

    Attributes:
        dtype: bool (True: may be seen), or that of the scores (added).
        form: ``"row"`` (the same for all queries) or ``"panel"``.
        unit: keys lie next to each other.
    """

    dtype: DType
    form: str
    unit: bool

    @property
    def key(self) -> str:
        return f"{self.form} {self.dtype.name}{' unit' if self.unit else ''}"


def power(x: LaneBuilder, t: Value) -> Value:
    """``2**t``, 0 below the normal numbers; NaN stays. For ``t`` up to the largest exponent."""
    fmt = format_of(t)
    low = floor_at(x, t, -float(fmt.bias))
    biased = x.fadd(low, x.f(fmt.magic + fmt.bias, t))
    r = x.fsub(low, x.fsub(biased, x.f(fmt.magic + fmt.bias, t)))
    raw = x.as_int(biased)
    scale = x.as_float(x.shl(raw, x.i(fmt.mantissa, raw)))
    return x.fmul(horner(x, r, (1.0, *table("exp2", t))), scale)


class Parts:
    """The inner functions of one module, and small pieces of code."""

    def __init__(self, module: ir.Module, target: Any, dtype: DType, tile: Tile) -> None:
        self.module, self.target, self.dtype, self.tile = module, target, dtype, tile
        self.acc, self.element, self.memory = tile.acc, acc_type(tile.acc), memory_type(dtype)
        self.lanes, self.width = tile.lanes, tile.nr
        # Rows of unit stride along the summed index (K and V as rows), and across it (K and V as columns).
        self.by_row = tile_function(module, target, tile, self.acc, self.acc, "k", "by_row")
        self.by_column = tile_function(module, target, tile, self.acc, self.acc, "any", "by_column")
        self._packs: dict[tuple[str, str], ir.Function] = {}

    # -- operands --------------------------------------------------------------------------------------------------

    def pack(self, dtype: DType, unit: bool) -> ir.Function:
        """``pack(src, row stride, column stride, rows, columns, dst)``: rows become lanes, ``dst[column][lane]``."""
        mode = "k" if unit else "any"
        found = self._packs.get((dtype.name, mode))
        if found is None:
            found = self._packs[dtype.name, mode] = pack_function(
                self.module, self.target, dtype, self.width, mode, f"pack_{dtype.name}_{mode}"
            )
        return found

    def copy(self, unit: bool, name: str) -> ir.Function:
        """``copy(src, row stride, column stride, rows, columns, dst, pitch, factor)``: rows side by side, times a factor."""
        em = Emit(self.module, name, [PTR, I64, I64, I64, I64, PTR, I64, self.element], self.target, internal=True)
        src, sr, sc, rows, columns, dst, pitch, factor = em.args
        lanes = self.lanes
        whole = em.x.and_(columns, em.index(-lanes)) if unit else em.index(0)

        def one(row: Value, to: Value, c: Value, width: int) -> None:
            place = em.at(row, c if unit else em.mul(c, sc), self.memory)
            value = em.x.fmul(em.load(place, self.dtype, width), em.broadcast(factor, width))
            em.store(value, em.at(to, c, self.element), self.acc)

        with em.loop(0, rows) as r:
            row, to = em.at(src, em.mul(r, sr), self.memory), em.at(dst, em.mul(r, pitch), self.element)
            if unit:
                with em.loop(0, whole, lanes) as c:
                    one(row, to, c, lanes)
            with em.loop(whole, columns) as c:
                one(row, to, c, 1)
        return em.done()

    def scale(self, em: Emit, place: Value, count: Index, factor: Value) -> None:
        """Multiply ``count`` vectors."""
        spread = em.broadcast(factor, self.lanes)
        with em.loop(0, count) as i:
            at = em.at(place, em.mul(i, self.lanes), self.element)
            em.store(em.x.fmul(em.load(at, self.acc, self.lanes), spread), at, self.acc)

    def fill(self, em: Emit, place: Value, count: Index, value: float = 0.0) -> None:
        """Set ``count`` values, a multiple of the lanes."""
        vector = em.broadcast(constant(self.element, value), self.lanes)
        with em.loop(0, count, self.lanes) as i:
            em.store(vector, em.at(place, i, self.element), self.acc)

    def vectors(self, em: Emit, place: Value) -> list[Value]:
        """One row of a strip."""
        return [em.load(em.at(place, j * self.lanes, self.element), self.acc, self.lanes) for j in range(self.tile.nv)]

    def put(self, em: Emit, values: list[Value], place: Value) -> None:
        for j, value in enumerate(values):
            em.store(value, em.at(place, j * self.lanes, self.element), self.acc)

    # -- masks -----------------------------------------------------------------------------------------------------

    def visible(self, em: Emit, relative: Index, row: Index) -> list[Value]:
        """Which queries of a row of a strip come at or after its key: lane + ``relative`` >= ``row``."""
        bits = 64 if self.acc.itemsize == 8 else 32
        kind = I64 if bits == 64 else I32
        x = em.x.with_lanes(self.lanes)
        number = em.index(em.sub(row, relative))
        least = x.splat(number if bits == 64 else em.x.trunc_int(number, 32))
        return [x.icmp("sge", x.ramp(kind, j * self.lanes), least) for j in range(self.tile.nv)]

    def masked(self, em: Emit, values: list[Value], mask: Mask, place: Value, row: Index) -> list[Value]:
        """Scores with the mask's row applied: added, or -inf where a bool one is 0. ``place`` is what `read_mask` wrote."""
        x = em.x
        if mask.form == "row":
            bias = em.broadcast(em.load(em.at(place, row, self.element), self.acc), self.lanes)
            return [x.fadd(v, bias) for v in values]
        at = em.at(place, em.mul(row, self.width), self.element if mask.dtype.kind == "f" else I32)
        out = []
        for j, v in enumerate(values):
            if mask.dtype.kind == "f":
                out.append(x.fadd(v, em.load(em.at(at, j * self.lanes, self.element), self.acc, self.lanes)))
                continue
            bits = em.load(em.at(at, j * self.lanes, I32), _int32(), self.lanes)
            seen = x.icmp("ne", bits, constant(bits.type, 0))
            out.append(x.select(seen, v, x.f(float("-inf"), v)))
        return out

    def read_mask(self, em: Emit, mask: Mask, src: Value, sl: Index, ss: Index, count: Index, keys: Index, dst: Value) -> None:
        """The mask of ``count`` queries and ``keys`` keys for `masked`: a row of what is added, or a panel ``[key][query]``."""
        if mask.form == "panel":
            em.call(self.pack(mask.dtype, mask.unit), [src, sl, ss, count, keys, dst])
            return
        with em.loop(0, keys) as key:
            place = em.at(src, key if mask.unit else em.mul(key, ss), memory_type(mask.dtype))
            value = em.load(place, mask.dtype)
            if mask.dtype.kind != "f":
                seen = em.x.icmp("ne", value, constant(value.type, 0))
                value = em.x.select(seen, constant(self.element, 0.0), constant(self.element, float("-inf")))
            em.store(value, em.at(dst, key, self.element), self.acc)

    # -- results ---------------------------------------------------------------------------------------------------

    def transposing_store(self, unit: bool, dtype: DType, name: str = "put_rows") -> ir.Function:
        """``put(src, rows, columns, dst, row stride, column stride, factors)``: ``src[column][lane]`` times a factor a lane becomes
        rows of ``dst``."""
        em = Emit(self.module, name, [PTR, I64, I64, PTR, I64, I64, PTR], self.target, internal=True)
        src, rows, columns, dst, sr, sc, factors = em.args
        lanes, to = self.lanes, memory_type(dtype)
        whole = em.x.and_(columns, em.index(-lanes)) if unit else em.index(0)

        def scalar(r: Value, c: Value) -> None:
            value = em.load(em.at(src, em.add(em.mul(c, self.width), r), self.element), self.acc)
            value = em.x.fmul(value, em.load(em.at(factors, r, self.element), self.acc))
            em.store(value, em.at(dst, em.add(em.mul(r, sr), em.mul(c, sc)), to), dtype)

        if unit:
            with em.loop(0, whole, lanes) as c, em.loop(0, rows, lanes) as r:
                here = em.min(lanes, em.sub(rows, r))
                factor = em.load(em.at(factors, r, self.element), self.acc, lanes)
                at = em.at(src, em.add(em.mul(c, self.width), r), self.element)
                block = [
                    em.x.fmul(em.load(em.at(at, i * self.width, self.element), self.acc, lanes), factor) for i in range(lanes)
                ]
                block = transposed(em.x, block)
                out = em.at(dst, em.add(em.mul(r, sr), c), to)

                def some(count: int, block: list[Value] = block, out: Value = out) -> None:
                    for i in range(count):
                        em.store(block[i], em.at(out, em.mul(sr, i), to), dtype)

                def edge(block: list[Value] = block, out: Value = out, here: Value = here) -> None:
                    for i in range(lanes - 1):
                        with em.when(em.cmp("slt", i, here)):
                            em.store(block[i], em.at(out, em.mul(sr, i), to), dtype)

                em.choose(em.cmp("eq", here, lanes), lambda: some(lanes), edge)
        with em.loop(0, rows) as r, em.loop(whole, columns) as c:
            scalar(r, c)
        return em.done()

    # -- products --------------------------------------------------------------------------------------------------

    def rows_product(
        self, em: Emit, a: Value, rows: Index, lda: Index, b: Value, ldb: Index, k: Index, c: Value, ldc: Index
    ) -> None:
        """``C[row][lane] = sum over k of A[row][k] B[k][lane]`` for ``rows`` rows, rounded up to whole tiles."""
        true = constant(BOOL, 1)
        with em.loop(0, rows, self.tile.mr) as r:
            source = em.at(a, em.mul(r, lda), self.element)
            place = em.at(c, em.mul(r, ldc), self.element)
            em.call(self.by_row, [source, em.sub(rows, r), lda, 1, b, ldb, k, place, ldc, true])

    def columns_product(
        self, em: Emit, a: Value, columns: Index, lda: Index, b: Value, ldb: Index, k: Index, c: Value, ldc: Index, first: Value
    ) -> None:
        """``C[column][lane] (+)= sum over k of A[k][column] B[k][lane]``, columns rounded up to whole tiles."""
        with em.loop(0, columns, self.tile.mr) as r:
            place = em.at(c, em.mul(r, ldc), self.element)
            em.call(self.by_column, [em.at(a, r, self.element), em.sub(columns, r), 1, lda, b, ldb, k, place, ldc, first])


def pointer_to(em: KernelEmit, offset: str, element: ir.Type) -> Value:
    """A piece of scratch: ``offset`` names the parameter that holds its place in elements."""
    return em.at(em.scratch, em.slot(offset), element)


def _int32() -> DType:
    from cermet import dtypes as dt

    return dt.int32


def space(*sizes: int) -> tuple[list[int], int]:
    """Places (in elements) of pieces of the given sizes, each on a cache line of its own, and their sum."""
    places, top = [], 0
    for size in sizes:
        places.append(top)
        top += rounded_up(size, 16)
    return places, top
