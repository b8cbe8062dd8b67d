"""Which input each output pixel reads through each kernel tap: tables of addresses that a convolution's tiles follow.

A convolution is a contraction whose left operand is read through a table: for a tile of output pixels and a tap (ky, kx), the
addresses of the input pixels, or of a row of zeros where the tap falls into the padding. Borders, strides, dilation, tiles that
run over the end of a row or an image: all of it is settled here, once for a chunk of pixels, and the inner loops know none of it.
A tap that every pixel of a tile misses has no entry, so no time is spent on it.

Geometry, for each spatial dimension: the pixel ``r + phases * j`` of the tensor being computed reads the positions
``step * j + first(r) + ostep * i`` of the source through the taps ``k0(r) + kstep * i``, ``i < count(r)``. A forward convolution
has one phase; the gradient of the input of a strided one has ``stride`` of them, each a dense convolution of its own. The
triples (k0, count, first) follow the named parameters in the kernel's argument array, so that they cost no recompilation.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd, prod
from typing import Any

from llvmlite import ir

from cermet.compiler.kernels.irtools import Index, KernelEmit, Value
from cermet.compiler.llvm.builder import I64, vector

__all__ = ["Axis", "PixelTable", "backward_axis", "forward_axis", "run_axis"]

FAR = -(1 << 40)
"""A coordinate so far out that no tap brings it back in."""


@dataclass(frozen=True)
class Axis:
    """One spatial dimension of a tap convolution (see the module's text).

    Attributes:
        out, src: extents of the tensor computed and of the one read.
        taps: extent of the kernel.
        step: source positions between the pixels of one phase.
        kstep, ostep: taps, and source positions, between successive taps of a phase.
        phases: (k0, count, first) of each phase.
    """

    out: int
    src: int
    taps: int
    step: int
    kstep: int
    ostep: int
    phases: tuple[tuple[int, int, int], ...]

    @property
    def pixels(self) -> int:
        """Pixels of the largest phase."""
        return -(-self.out // len(self.phases))


def forward_axis(out: int, src: int, taps: int, stride: int, padding: int, dilation: int) -> Axis:
    """A forward convolution: pixel j reads ``stride * j - padding + dilation * k``."""
    return Axis(out, src, taps, stride, 1, dilation, ((0, taps, -padding),))


def backward_axis(out: int, src: int, taps: int, stride: int, padding: int, dilation: int) -> Axis:
    """The gradient of the input: pixel r + stride * j reads ``(r + padding - dilation * k) / stride + j`` where that is whole."""
    common = gcd(stride, dilation)
    kstep = stride // common
    phases = []
    for r in range(min(stride, max(out, 1))):
        k0 = next((k for k in range(min(kstep, taps)) if (r + padding - k * dilation) % stride == 0), taps)
        count = -(-(taps - k0) // kstep)
        phases.append((k0, count, (r + padding - k0 * dilation) // stride))
    # With fewer pixels than the stride every pixel is its own phase; j is then 0 and the number of phases may be cut.
    return Axis(out, src, taps, 1, kstep, -(dilation // common), tuple(phases))


def run_axis(out: int, stride: int) -> Axis:
    """A dimension whose whole window is one run of consecutive elements, known to lie inside the source."""
    return Axis(out, 1 << 40, 1, stride, 1, 1, ((0, 1, 0),))


class PixelTable:
    """Emits the making of the tables. One instance for a kernel; its methods write code at the current position.

    Args:
        k: the kernel being written; its parameters include `params`.
        rank: number of spatial dimensions.
        tile: pixels of a tile.
        zeros: the address of a row of zeros (an integer), which taps in the padding read.
    """

    def __init__(self, k: KernelEmit, rank: int, tile: int, zeros: Value) -> None:
        self.k, self.rank, self.tile = k, rank, tile
        self.lanes = -(-tile // 4) * 4
        self.words = -(-(tile + 1) // 4) * 4
        self.slots = {name: k.slot(name) for name in self.params(rank)}
        self.source, self.zeros, self.dest = k.slot("src"), zeros, k.slot("dst")

    @staticmethod
    def params(rank: int) -> list[str]:
        """Integers that the tables need, besides the addresses ``src`` and ``dst``. Strides are in bytes."""
        names = ["batch", "batch_inner", "src_n", "dst_n", "phase_table"]
        for d in range(rank):
            names += [f"{p}{d}" for p in ("out", "in", "phases", "step", "kstep", "ostep", "src_s", "dst_s", "w_s", "table")]
        return names

    @staticmethod
    def arguments(batch: int, axes: list[Axis], src: list[int], dst: list[int], weights: list[int], named: int) -> list[int]:
        """Values of `params`.

        Args:
            batch, axes: the geometry.
            src, dst: byte strides (batch, *spatial).
            weights: bytes between taps, a dimension each.
            named: number of the kernel's named parameters, behind which the phases go.
        """
        inner = batch > 1 and _prefers_batch_inner(batch, axes)
        values = [batch, int(inner), src[0], dst[0], named]
        at = 0
        for d, a in enumerate(axes):
            values += [a.out, a.src, len(a.phases), a.step, a.kstep, a.ostep, src[1 + d], dst[1 + d], weights[d], named + at]
            at += 3 * len(a.phases)
        return values

    @staticmethod
    def tail(axes: list[Axis]) -> list[int]:
        """The phases, which go behind the named parameters."""
        return [v for a in axes for phase in a.phases for v in phase]

    @staticmethod
    def scratch_words(rank: int, tile: int, tiles: int) -> int:
        """64-bit words of scratch for the coordinates of a chunk of pixels."""
        return (rank + 2) * (tiles * tile + 8)

    # -- phases and pixels -----------------------------------------------------------------------------------------

    def phase(self, index: Index) -> list[dict[str, Value]]:
        """For each dimension: ``r``, ``pixels``, ``k0``, ``count``, ``first`` of the phase numbered ``index``."""
        k, s = self.k, self.slots
        found: list[dict[str, Value]] = []
        for d in reversed(range(self.rank)):
            index, r = k.divmod(index, s[f"phases{d}"])
            pixels = k.div(k.sub(k.add(s[f"out{d}"], k.sub(s[f"phases{d}"], 1)), r), s[f"phases{d}"])
            at = k.add(s[f"table{d}"], k.mul(r, 3))
            row = [k.load_raw(I64, k.at(k.args[0], k.add(at, i), I64), 8) for i in range(3)]
            found.append({"r": r, "pixels": pixels, "k0": row[0], "count": row[1], "first": row[2]})
        return found[::-1]

    def pixel_count(self, phase: list[dict[str, Value]]) -> Value:
        """Pixels of a phase over the whole batch."""
        total = self.slots["batch"]
        for d in phase:
            total = self.k.mul(total, d["pixels"])
        return total

    def array(self, scratch: Value, which: int, capacity: Index) -> Value:
        """Coordinates array number ``which`` (0: source address, 1: destination address, 2...: coordinates)."""
        return self.k.at(scratch, self.k.mul(which, capacity), I64)

    def coordinates(
        self, scratch: Value, capacity: Index, phase: list[dict[str, Value]], first: Value, valid: Value, total: Value
    ) -> None:
        """Write the arrays for pixels ``first .. first + total``; those beyond the first ``valid`` lie far outside."""
        k, s = self.k, self.slots
        n_inner = k.cmp("ne", s["batch_inner"], 0)
        extents = [d["pixels"] for d in reversed(phase)]  # the last dimension counts fastest
        order = [k.select(n_inner, s["batch"], extents[0])]
        for i in range(1, self.rank):
            order.append(k.select(n_inner, extents[i - 1], extents[i]))
        order.append(k.select(n_inner, extents[-1], s["batch"]))
        counters: list[Value] = []
        rest: Index = first
        for extent in order[:-1]:
            rest, c = k.divmod(rest, extent)
            counters.append(c)
        counters.append(rest)
        source, dest = self.source, self.dest
        for d in range(self.rank):
            dest = k.add(dest, k.mul(phase[d]["r"], s[f"dst_s{d}"]))
        arrays = [self.array(scratch, i, capacity) for i in range(self.rank + 2)]

        def body(i: Value, c: list[Value]) -> list[Value]:
            n = k.select(n_inner, c[0], c[-1])
            x, y = k.add(source, k.mul(n, s["src_n"])), k.add(dest, k.mul(n, s["dst_n"]))
            exists = k.cmp("slt", i, valid)
            for d in range(self.rank):
                p = self.rank - 1 - d
                j = k.select(n_inner, c[p + 1], c[p])
                at = k.mul(j, s[f"step{d}"])
                x = k.add(x, k.mul(at, s[f"src_s{d}"]))
                y = k.add(y, k.mul(k.mul(j, s[f"phases{d}"]), s[f"dst_s{d}"]))
                k.store_raw(k.select(exists, at, FAR), k.at(arrays[2 + d], i, I64), 8)
            k.store_raw(x, k.at(arrays[0], i, I64), 8)
            k.store_raw(y, k.at(arrays[1], i, I64), 8)
            return self._advance(c, order)

        k.fold(0, total, 1, counters, body)

    def _advance(self, counters: list[Value], extents: list[Value]) -> list[Value]:
        """The counters of the next pixel."""
        k = self.k
        following, carry = [], None
        for c, extent in zip(counters[:-1], extents[:-1], strict=True):
            up = k.add(c, 1) if carry is None else k.select(carry, k.add(c, 1), c)
            carry = k.cmp("eq", up, extent)
            following.append(k.select(carry, 0, up))
        last = counters[-1]
        following.append(k.select(carry, k.add(last, 1), last))
        return following

    # -- entries ---------------------------------------------------------------------------------------------------

    def entries(self, scratch: Value, capacity: Index, phase: list[dict[str, Value]], at: Value, out: Value) -> Value:
        """Write the entries, for all taps, of the tile whose first pixel has number ``at`` in the arrays.

        An entry is `words` long: one source address a pixel of the tile, then (at index ``tile``) the byte offset of the
        tap's weights. Returns the number of entries.
        """
        k = self.k
        addresses = self.vector(self.array(scratch, 0, capacity), at)
        coordinates = [self.vector(self.array(scratch, 2 + d, capacity), at) for d in range(self.rank)]
        return self._level(coordinates, phase, list(range(self.rank)), _Tap(None, addresses, 0), out, k.index(0))

    def vector(self, array: Value, at: Value) -> Value:
        return self.k.load_raw(vector(I64, self.lanes), self.k.at(array, at, I64), 8)

    def any(self, mask: Value) -> Value:
        """1 where some lane of ``mask`` holds, else 0."""
        x = self.k.x
        bits = x.line(ir.IntType(self.lanes), f"bitcast {mask.type} {mask.get_reference()} to i{self.lanes}")
        return x.zext(x.icmp("ne", bits, x.i(0, bits)), 64)

    def inside(self, coordinate: Value, d: int) -> Value:
        """Which lanes of ``coordinate`` lie inside the source."""
        x = self.k.x
        low = x.icmp("sge", coordinate, x.i(0, coordinate))
        return x.and_(low, x.icmp("slt", coordinate, x.splat(self.slots[f"in{d}"], self.lanes)))

    def _step_to(self, coordinates: list[Value], phase: list[dict[str, Value]], d: int, i: Value, tap: _Tap) -> _Tap:
        """The tap number ``i`` of dimension ``d`` within ``tap`` of the dimensions before it."""
        k, s = self.k, self.slots
        offset = k.add(phase[d]["first"], k.mul(i, s[f"ostep{d}"]))
        mask = self.inside(k.x.add(coordinates[d], k.x.splat(offset, self.lanes)), d)
        if tap.mask is not None:
            mask = k.x.and_(mask, tap.mask)
        address = k.x.add(tap.address, k.x.splat(k.mul(offset, s[f"src_s{d}"]), self.lanes))
        number = k.add(phase[d]["k0"], k.mul(i, s[f"kstep{d}"]))
        return _Tap(mask, address, k.add(tap.weights, k.mul(number, s[f"w_s{d}"])))

    def _level(
        self, coordinates: list[Value], phase: list[dict[str, Value]], dims: list[int], tap: _Tap, out: Value, count: Value
    ) -> Value:
        """The taps of dimensions ``dims`` within ``tap`` of those before; returns the number of entries so far."""
        k = self.k
        if not dims:
            pointers = k.x.select(tap.mask, tap.address, k.x.splat(self.zeros, self.lanes))
            entry = k.at(out, k.mul(count, self.words), I64)
            k.store_raw(pointers, entry, 8)
            k.store_raw(k.index(tap.weights), k.at(entry, self.tile, I64), 8)
            return k.add(count, self.any(tap.mask))
        d, *inner = dims

        def body(i: Value, carried: list[Value]) -> list[Value]:
            deeper = self._step_to(coordinates, phase, d, i, tap)
            return [self._level(coordinates, phase, inner, deeper, out, carried[0])]

        return k.fold(0, phase[d]["count"], 1, [count], body)[0]


@dataclass
class _Tap:
    """A partly fixed tap: which pixels it reaches, the addresses they read, the offset of its weights."""

    mask: Any
    address: Any
    weights: Any


def _prefers_batch_inner(batch: int, axes: list[Axis]) -> bool:
    """Whether tiles should run over the batch rather than along a row.

    On small images most tiles would hold border pixels of some side. Tiles of one position in several images have a tap
    either inside for all or outside for all, and the latter cost nothing.
    """
    if batch < 4:
        return False
    pixels = prod(a.pixels for a in axes)
    reached = prod(sum(_reach(a, j) for j in range(a.pixels)) for a in axes)
    taps = prod(max((c for _, c, _ in a.phases), default=0) for a in axes)
    return pixels <= 256 and reached < 0.9 * pixels * taps


def _reach(a: Axis, j: int) -> int:
    """Taps inside the source for pixel j of the phase with the most taps."""
    _, count, first = max(a.phases, key=lambda p: p[1])
    return sum(0 <= a.step * j + first + a.ostep * i < a.src for i in range(count))
