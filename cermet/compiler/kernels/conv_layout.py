"""Copies that bring operands of a convolution into the order its kernels read: packed weights, channels-last activations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cermet.compiler.kernels.irtools import PTR, Index, KernelEmit, Value, acc_type, new_module
from cermet.compiler.llvm.builder import memory_type
from cermet.dtypes import DType

__all__ = ["PackWeights", "Relayout"]


@dataclass(frozen=True)
class PackWeights:
    """Weights in blocks of output channels: ``[group][block][taps...][reduced channel][channels of a block]``.

    The last block of a group overlaps the one before where there are more channels than a block has, and is filled up with
    zeros where there are fewer. One parallel block packs one block of channels. Behind the weights come ``zeros`` bytes of zeros (parallel
    block number ``groups * blocks``): what taps in the padding read. Strides are in elements.
    """

    source: DType
    compute: DType
    rank: int
    channels: int
    ENTRY = "conv_pack"

    @property
    def key(self) -> str:
        return f"conv_pack:{self.source.name}:{self.compute.name}:{self.rank}d:{self.channels}"

    def params(self) -> list[str]:
        own = ["src", "dst", "groups", "blocks", "outs", "reduced", "zeros", "s_g", "s_n", "s_k"]
        return own + [f"{p}{d}" for d in range(self.rank) for p in ("taps", "s")]

    def build(self, target: Any) -> Any:
        module = new_module("conv_pack", target)
        k = KernelEmit(module, self.ENTRY, self.params(), target)
        s = {p: k.slot(p) for p in self.params()[2:]}
        dst = k.slot("dst", PTR)
        per_block: Index = k.mul(s["reduced"], self.channels)
        for d in range(self.rank):
            per_block = k.mul(per_block, s[f"taps{d}"])
        last = k.mul(s["groups"], s["blocks"])
        with k.loop(k.begin, k.end) as block:
            to = k.at(dst, k.mul(block, per_block), acc_type(self.compute))

            def zeros(to: Value = to) -> None:
                with k.loop(0, s["zeros"]) as i:
                    k.store(k.zero(self.compute), k.at(to, i, acc_type(self.compute)), self.compute)

            k.choose(k.cmp("eq", block, last), zeros, lambda block=block, to=to: self._block(k, s, block, to))
        k.done()
        return module

    def _block(self, k: KernelEmit, s: dict[str, Value], block: Value, to: Value) -> None:
        group, n = k.divmod(block, s["blocks"])
        low = k.min(k.mul(n, self.channels), k.x.smax(k.sub(s["outs"], self.channels), k.index(0)))
        count = k.min(k.sub(s["outs"], low), self.channels)
        base = k.at(k.slot("src", PTR), k.add(k.mul(group, s["s_g"]), k.mul(low, s["s_n"])), memory_type(self.source))
        with k.loop(0, s["reduced"]) as c, k.loop(0, self.channels) as lane:
            from_ = k.add(k.mul(c, s["s_k"]), k.mul(lane, s["s_n"]))
            self._taps(k, s, 0, base, from_, k.add(k.mul(c, self.channels), lane), to, k.cmp("slt", lane, count))

    def _taps(self, k: KernelEmit, s: dict[str, Value], d: int, base: Value, from_: Index, at: Index, to: Value, exists: Value) -> None:
        """All taps of one (reduced channel, channel) pair: the innermost loops, because a weight's taps usually lie together."""
        if d == self.rank:
            zero = k.zero(self.compute)
            [value] = k.blend(exists, lambda: [k.load(k.at(base, from_, memory_type(self.source)), self.source)], [zero])
            k.store(value, k.at(to, at, acc_type(self.compute)), self.compute)
            return
        step: Index = k.mul(s["reduced"], self.channels)
        for inner in range(d + 1, self.rank):
            step = k.mul(step, s[f"taps{inner}"])
        with k.loop(0, s[f"taps{d}"]) as i:
            self._taps(k, s, d + 1, base, k.add(from_, k.mul(i, s[f"s{d}"])), k.add(at, k.mul(i, step)), to, exists)


@dataclass(frozen=True)
class Relayout:
    """A strided copy that converts, ``dst[n, rows..., x, c] = src[n, rows..., x - left, c]``, zero where x - left is not in the source.

    One parallel block copies one row (all x and c of one n and one position in the other dimensions). Strides in elements.
    """

    source: DType
    dest: DType
    rank: int
    ENTRY = "conv_relayout"

    @property
    def key(self) -> str:
        return f"conv_relayout:{self.source.name}:{self.dest.name}:{self.rank}d"

    def params(self) -> list[str]:
        own = ["src", "dst", "columns", "left", "width", "channels", "src_x", "dst_x", "src_c", "dst_c"]
        # The outer extents, fastest last; the batch is the first of them.
        return own + [f"{p}{d}" for d in range(self.rank) for p in ("extent", "src_s", "dst_s")]

    def build(self, target: Any) -> Any:
        module = new_module("conv_relayout", target)
        k = KernelEmit(module, self.ENTRY, self.params(), target)
        s = {p: k.slot(p) for p in self.params()[2:]}
        src_type, dst_type = memory_type(self.source), memory_type(self.dest)
        with k.loop(k.begin, k.end) as block:
            rest: Index = block
            from_: Index = 0
            to: Index = 0
            for d in reversed(range(self.rank)):
                rest, i = k.divmod(rest, s[f"extent{d}"])
                from_ = k.add(from_, k.mul(i, s[f"src_s{d}"]))
                to = k.add(to, k.mul(i, s[f"dst_s{d}"]))
            src = k.at(k.slot("src", PTR), from_, src_type)
            dst = k.at(k.slot("dst", PTR), to, dst_type)
            with k.loop(0, s["columns"]) as x:
                column = k.sub(x, s["left"])
                inside = k.x.and_(k.cmp("sge", column, 0), k.cmp("slt", column, s["width"]))
                with k.loop(0, s["channels"]) as c:
                    at = k.add(k.mul(column, s["src_x"]), k.mul(c, s["src_c"]))
                    [value] = k.blend(inside, lambda at=at: [k.load(k.at(src, at, src_type), self.source)], [k.zero(self.source)])
                    k.store(value, k.at(dst, k.add(k.mul(x, s["dst_x"]), k.mul(c, s["dst_c"])), dst_type), self.dest)
        k.done()
        return module
