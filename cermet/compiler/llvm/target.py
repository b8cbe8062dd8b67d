"""The machines we generate code for: what the emitter and the kernels' schedules need to know of each.

A `Target` is a plain record. `host()` describes the machine we run on (or the one that ``CERMET_CPU`` names), the table
`NAMED` those that an export may ask for.
"""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm

from cermet import config

__all__ = ["NAMED", "Target", "host", "named"]

_CACHE_DEFAULTS = {1: 32 << 10, 2: 512 << 10, 3: 8 << 20}


@dataclass(frozen=True)
class Target:
    """One kind of machine.

    Attributes:
        name: how a user names it.
        triple: the LLVM triple.
        cpu: the LLVM processor name; ``""`` for the triple's own.
        features: LLVM features, ``"+avx2,-avx512f"``.
        vector_bytes: width of a vector register.
        vector_registers: how many there are.
        has_fma: fused multiply-add is an instruction.
        has_round: rounding to an integral float is an instruction.
        has_f16c: float16 converts by instruction.
        has_masked: vectors of 32 and 64-bit elements load and store under a mask.
        has_gather: 32 and 64-bit elements load from a vector of addresses by instruction.
        has_avx512: 512-bit vectors with mask registers.
        has_avx512bf16: bfloat16 dot products by instruction.
        has_vnni: 8-bit integer dot products by instruction.
        l1d, l2, l3: bytes of data cache (l1d and l2 of one core).
    """

    name: str
    triple: str
    cpu: str = ""
    features: str = ""
    vector_bytes: int = 16
    vector_registers: int = 16
    has_fma: bool = False
    has_round: bool = False
    has_f16c: bool = False
    has_masked: bool = False
    has_gather: bool = False
    has_avx512: bool = False
    has_avx512bf16: bool = False
    has_vnni: bool = False
    l1d: int = _CACHE_DEFAULTS[1]
    l2: int = _CACHE_DEFAULTS[2]
    l3: int = _CACHE_DEFAULTS[3]

    @property
    def arch(self) -> str:
        """The first part of the triple, ``"x86_64"``."""
        return self.triple.split("-", 1)[0]

    @property
    def is_x86(self) -> bool:
        return self.arch in ("x86_64", "amd64")

    @property
    def code_key(self) -> str:
        """All that machine code depends on. Cache sizes are not in it: schedules that use them put them in their own keys."""
        return f"{self.triple}|{self.cpu}|{self.features}|{self.vector_bytes}"

    def lanes(self, itemsize: int) -> int:
        """How many elements of ``itemsize`` bytes one vector register holds."""
        return max(1, self.vector_bytes // itemsize)

    def machine(self, opt: int = 2, pic: bool = True) -> Any:
        """A new LLVM target machine. Not to be shared between threads."""
        initialize(self.arch)
        made = llvm.Target.from_triple(self.triple)
        return made.create_target_machine(
            cpu=self.cpu, features=self.features, opt=opt, reloc="pic" if pic else "static", codemodel="small"
        )


@cache
def initialize(arch: str) -> None:
    """Make LLVM's code generator for ``arch`` available; the host's alone costs nothing noticeable."""
    native = {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine().lower(), platform.machine().lower())
    if arch == native:
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
    else:
        llvm.initialize_all_targets()
        llvm.initialize_all_asmprinters()


def _parse(features: str) -> dict[str, bool]:
    return {f[1:]: f[0] == "+" for f in features.split(",") if f}


def _x86(name: str, triple: str, cpu: str, features: str, sizes: tuple[int, int, int]) -> Target:
    """An x86-64 target; what it can do follows from its features."""
    has = _parse(features).get
    wide = bool(has("avx512f") and has("avx512vl") and has("avx512bw") and has("avx512dq"))
    if wide:
        # Some tunings avoid 512-bit vectors to keep the clock up; code that asks for them has weighed that.
        features += ",-prefer-256-bit"
    return Target(
        name,
        triple,
        cpu,
        features,
        vector_bytes=64 if wide else 32 if has("avx2") else 16,
        vector_registers=32 if wide else 16,
        has_fma=bool(has("fma")),
        has_round=bool(has("sse4.1")),
        has_f16c=bool(has("f16c")),
        has_masked=bool(has("avx2")),
        has_gather=bool(has("avx2")),
        has_avx512=wide,
        has_avx512bf16=bool(wide and has("avx512bf16")),
        has_vnni=bool((wide and has("avx512vnni")) or has("avxvnni")),
        l1d=sizes[0],
        l2=sizes[1],
        l3=sizes[2],
    )


def _neon(name: str, triple: str, cpu: str, features: str, sizes: tuple[int, int, int]) -> Target:
    return Target(
        name, triple, cpu, features, 16, 32, has_fma=True, has_round=True, has_f16c=True, l1d=sizes[0], l2=sizes[1], l3=sizes[2]
    )  # fmt: skip


_ELF64 = "x86_64-unknown-linux-gnu"
_V3 = "+avx,+avx2,+bmi,+bmi2,+f16c,+fma,+lzcnt,+movbe,+popcnt,+sse3,+ssse3,+sse4.1,+sse4.2"
_V4 = _V3 + ",+avx512f,+avx512bw,+avx512cd,+avx512dq,+avx512vl"
_SIZES = (_CACHE_DEFAULTS[1], _CACHE_DEFAULTS[2], _CACHE_DEFAULTS[3])

NAMED: dict[str, Target] = {
    "x86-64": _x86("x86-64", _ELF64, "x86-64", "", _SIZES),
    "x86-64-v3": _x86("x86-64-v3", _ELF64, "x86-64-v3", _V3, _SIZES),
    "x86-64-v4": _x86("x86-64-v4", _ELF64, "x86-64-v4", _V4, _SIZES),
    "aarch64": _neon("aarch64", "aarch64-unknown-linux-gnu", "generic", "+neon,+fp-armv8", (64 << 10, *_SIZES[1:])),
}


def named(name: str) -> Target:
    """The target called ``name``; ``""`` and ``"host"`` are this machine as it is.

    LLVM features may follow, as in ``"x86-64-v3,+avxvnni"`` or ``"host,-avx512f"``.

    Raises:
        ValueError: when there is none of that name.
    """
    base, _, features = name.partition(",")
    here = _detect()
    if base in ("", "host", "native"):
        found = here
    elif base in NAMED:
        found = NAMED[base]
        if found.arch == here.arch:
            found = replace(found, triple=here.triple, l1d=here.l1d, l2=here.l2, l3=here.l3)
    else:
        raise ValueError(f"unknown target {base!r}; expected host, {', '.join(NAMED)}")
    if not features:
        return found
    make = _x86 if found.is_x86 else _neon
    joined = ",".join(("+" if on else "-") + f for f, on in (_parse(found.features) | _parse(features)).items())
    return make(name, found.triple, found.cpu, joined, (found.l1d, found.l2, found.l3))


def host() -> Target:
    """This machine, or the target that ``config.cpu`` names instead.

    Raises:
        ValueError: when ``config.cpu`` names no target, or one whose code this machine cannot run.
    """
    return _host(str(config.cpu))


@cache
def _host(override: str) -> Target:
    found, here = named(override), _detect()
    if found.arch != here.arch:
        raise ValueError(f"CERMET_CPU={override}: this machine is {here.arch} and cannot run {found.arch} code")
    able = _parse(here.features)
    missing = [f for f, on in _parse(found.features).items() if on and not able.get(f)]
    if missing:
        raise ValueError(f"CERMET_CPU={override}: this machine lacks {', '.join(missing)}")
    return found


@cache
def _detect() -> Target:
    triple = llvm.get_process_triple()
    features = ",".join(("+" if on else "-") + name for name, on in sorted(llvm.get_host_cpu_features().items()))
    found = _cache_sizes()
    make = _x86 if triple.split("-", 1)[0] in ("x86_64", "amd64") else _neon
    return make("host", triple, llvm.get_host_cpu_name(), features, (found[1], found[2], found[3]))


def _cache_sizes() -> dict[int, int]:
    """Data caches of one core as the kernel reports them, defaults where it does not."""
    sizes = dict(_CACHE_DEFAULTS)
    if sys.platform.startswith("linux"):
        for index in range(6):
            folder = Path(f"/sys/devices/system/cpu/cpu0/cache/index{index}")
            try:
                level = int((folder / "level").read_text())
                if (folder / "type").read_text().strip() in ("Data", "Unified") and level in sizes:
                    sizes[level] = _bytes((folder / "size").read_text()) or sizes[level]
            except (OSError, ValueError):
                continue
    return sizes


def _bytes(text: str) -> int:
    text = text.strip()
    unit = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}.get(text[-1:], 1)
    return int(text.rstrip("KMG") or 0) * unit


def cores() -> int:
    """Processors this process may run on."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1
