"""A program: a table of kernel launches, walked by one native call.

The table holds, for each launch, the kernel's address, its block count and grain, and its arguments: integers as they are,
pointers as an offset into one of the run's bases, scalars as a position among the values of the run. Base 0 is the arena of
temporaries, bases 1 and up are what the caller passes: inputs and outputs.

A program is immutable and may be run by several threads at once. Each run has a workspace of its own (relocated arguments,
the workers' scratch, the arena), checked out from a few that all programs share.
"""

from __future__ import annotations

import array
import math
import struct
from collections.abc import Iterator, Sequence
from typing import Any

from cermet import config
from cermet.runtime import arena, native, threads
from cermet.runtime.buffer import Buffer

__all__ = ["Counters", "Gate", "Int", "Launch", "Pointer", "Program", "ScalarArg", "counters", "pack_scalar"]

_TAG_INT = -2
_TAG_ARENA = -1

# One slot per scalar, as the kernel ABI wants it: little-endian, float32 in the low four bytes.
_SLOT = {"f": "f4x", "d": "d", "q": "q"}
_KIND_NAMES = {"f": "a float32", "d": "a float64", "q": "an integer or bool"}


class Pointer:
    """An argument: the address ``offset`` bytes into base ``base``."""

    __slots__ = ("base", "offset")

    def __init__(self, base: int, offset: int = 0) -> None:
        self.base = base
        self.offset = offset

    def __repr__(self) -> str:
        return f"Pointer(base={self.base}, offset={self.offset})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Pointer) and self.base == other.base and self.offset == other.offset

    def __hash__(self) -> int:
        return hash((self.base, self.offset))


class ScalarArg:
    """An argument: scalar number ``index`` of the run."""

    __slots__ = ("index",)

    def __init__(self, index: int) -> None:
        self.index = index

    def __repr__(self) -> str:
        return f"ScalarArg(index={self.index})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ScalarArg) and self.index == other.index

    def __hash__(self) -> int:
        return hash((ScalarArg, self.index))


#: An argument that is the same in every run is a plain ``int``.
Int = int

Arg = Pointer | ScalarArg | int


class Launch:
    """One kernel launch.

    Attributes:
        address: the kernel's machine code, ``void kernel(const i64 *args, i64 begin, i64 end, i8 *scratch)``.
        args: its arguments in order: Pointer, ScalarArg or int.
        blocks: how many independent blocks there are; none is fine, the kernel is then not called.
        grain: the fewest blocks worth handing to another thread.
        scratch: bytes of private memory the kernel needs on each thread.
        keep_alive: whatever owns the machine code.
        name: for timings and error messages.
    """

    __slots__ = ("address", "args", "blocks", "grain", "keep_alive", "name", "scratch")

    def __init__(
        self,
        address: int,
        args: Sequence[Arg],
        blocks: int = 1,
        grain: int = 1,
        scratch: int = 0,
        keep_alive: Any = None,
        name: str = "",
    ) -> None:
        self.address = address
        self.args = tuple(args)
        self.blocks = blocks
        self.grain = grain
        self.scratch = scratch
        self.keep_alive = keep_alive
        self.name = name

    def __repr__(self) -> str:
        name = self.name or hex(self.address)
        return f"Launch({name}, args={list(self.args)}, blocks={self.blocks}, grain={self.grain}, scratch={self.scratch})"


class Gate(Launch):
    """Not a launch: the run ends here if the int64 at ``word`` is not 0. What comes after a gate happens only to good data."""

    __slots__ = ()

    def __init__(self, word: Pointer) -> None:
        super().__init__(0, (word,), name="gate")


class Program:
    """An immutable table of launches.

    Args:
        launches: what to run, in order. Each launch sees everything the ones before it wrote.
        num_bases: how many addresses each run passes; arguments name them 1 to ``num_bases``.
        scalars: one letter per scalar that each run passes: ``"f"`` float32 and narrower, ``"d"`` float64, ``"q"`` integers
            and bool. A number stands for that many ``"q"``.
        arena_bytes: bytes of temporaries (base 0), contents undefined at the start of a run.

    Raises:
        ValueError: when a launch refers to something that is not there.
    """

    __slots__ = (
        "_launches",
        "_owners",
        "_pack",
        "_parallel",
        "_run_bytes",
        "_scratch",
        "_table",
        "_table_ptr",
        "arena_bytes",
        "num_bases",
        "scalars",
    )

    def __init__(self, launches: Sequence[Launch], num_bases: int, scalars: str | int = "", arena_bytes: int = 0) -> None:
        self._launches: tuple[Launch, ...] | None = tuple(launches)
        self._owners: Sequence[tuple[str, Any]] = ()
        self.num_bases = num_bases
        self.scalars = scalars if isinstance(scalars, str) else "q" * scalars
        self.arena_bytes = arena_bytes
        if num_bases < 0 or arena_bytes < 0:
            raise ValueError(f"Program: num_bases and arena_bytes must not be negative, got {num_bases} and {arena_bytes}")
        if not set(self.scalars) <= _SLOT.keys():
            raise ValueError(f"Program: scalars={scalars!r}: expected letters out of 'f' (float32), 'd' (float64), 'q' (integer)")
        called = [launch for launch in self.launches if launch.blocks != 0]
        slots = max((len(launch.args) for launch in called), default=0)
        args_bytes = _aligned(8 * slots)
        # At least a cache line apart, so that no two workers write to the same one.
        self._scratch = _aligned(max((launch.scratch for launch in called), default=0))
        # The fourth word is the walker's own: how long the last run took. The first run counts as long.
        table = array.array("q", (len(called), args_bytes, self._scratch, 1 << 62))
        for number, launch in enumerate(self.launches):
            self._check(number, launch)
            if launch.blocks:
                table.extend((launch.address, launch.blocks, launch.grain, len(launch.args)))
                for arg in launch.args:
                    table.extend(self._encode(number, launch, arg))
        self._table = table
        self._table_ptr = table.buffer_info()[0]
        self._parallel = any(launch.blocks > launch.grain for launch in called)
        self._run_bytes = args_bytes + arena_bytes
        self._pack = struct.Struct("<" + "q" * num_bases + "".join(_SLOT[kind] for kind in self.scalars)).pack

    @classmethod
    def of_rows(
        cls, rows: Sequence[int], owners: Sequence[tuple[str, Any]], num_bases: int, scalars: str, arena_bytes: int, scratch: int
    ) -> Program:
        """A program whose table is written already: for planners that write the same one again and again with other numbers.

        Args:
            rows: for each launch its address (0 for a gate), blocks (at least 1), grain, number of arguments, and for each of these a tag
                and a number: see `INT`. Nothing is checked.
            owners: for each launch its name and what keeps its code alive. scratch: the most private memory that a launch needs.
        """
        out = object.__new__(cls)
        out._launches, out._owners = None, owners
        out.num_bases, out.scalars, out.arena_bytes = num_bases, scalars, arena_bytes
        out._scratch = _aligned(scratch)
        table = out._table = array.array("q", (len(owners), 0, out._scratch, 1 << 62))
        table.extend(rows)
        out._table_ptr = table.buffer_info()[0]
        parallel, slots, at = False, 0, 4
        for _ in owners:
            parallel = parallel or table[at + 1] > table[at + 2]
            count = table[at + 3]
            slots = max(slots, count)
            at += 4 + 2 * count
        out._parallel = parallel
        table[1] = _aligned(8 * slots)
        out._run_bytes = table[1] + arena_bytes
        out._pack = struct.Struct("<" + "q" * num_bases + "".join(_SLOT[kind] for kind in scalars)).pack
        return out

    INT, ARENA = _TAG_INT, _TAG_ARENA
    """Tags of arguments in a row: an integer; an offset in the arena. An offset in base k has tag k - 1, scalar k tag num_bases + k."""

    @property
    def launches(self) -> tuple[Launch, ...]:
        """What is run, in order."""
        if self._launches is None:
            self._launches = tuple(self._read())
        return self._launches

    def _read(self) -> Iterator[Launch]:
        """The launches that a table written elsewhere holds."""
        at, table = 4, self._table
        for name, owner in self._owners:
            address, blocks, grain, count = table[at : at + 4]
            args: list[Arg] = []
            for k in range(at + 4, at + 4 + 2 * count, 2):
                tag, number = table[k], table[k + 1]
                if tag == _TAG_INT:
                    args.append(number)
                elif tag < self.num_bases:
                    args.append(Pointer(tag + 1, number))
                else:
                    args.append(ScalarArg(tag - self.num_bases))
            if address:
                yield Launch(address, args, blocks, grain, self._scratch, owner, name)
            else:
                yield Gate(args[0])  # type: ignore[arg-type]
            at += 4 + 2 * count

    @staticmethod
    def _check(number: int, launch: Launch) -> None:
        problem = ""
        if launch.address <= 0 and not isinstance(launch, Gate):
            problem = f"address {launch.address} is not that of a kernel"
        elif launch.blocks < 0:
            problem = f"blocks={launch.blocks} is negative"
        elif launch.grain < 1:
            problem = f"grain={launch.grain} is below 1"
        elif launch.scratch < 0:
            problem = f"scratch={launch.scratch} is negative"
        if problem:
            raise ValueError(f"Program: launch {number} ({launch.name or 'unnamed'}): {problem}")

    def _encode(self, number: int, launch: Launch, arg: Arg) -> tuple[int, int]:
        """An argument as the walker's tag and number."""
        problem = f"argument {arg!r} is none of Pointer, ScalarArg and int"
        if isinstance(arg, Pointer):
            if arg.base == 0:
                if 0 <= arg.offset <= self.arena_bytes:
                    return _TAG_ARENA, arg.offset
                problem = f"{arg} is outside the arena of {self.arena_bytes} bytes"
            elif 0 < arg.base <= self.num_bases:
                return arg.base - 1, arg.offset
            else:
                problem = f"{arg} names none of the bases 0 to {self.num_bases}"
        elif isinstance(arg, ScalarArg):
            if 0 <= arg.index < len(self.scalars):
                return self.num_bases + arg.index, 0
            problem = f"{arg} names none of the {len(self.scalars)} scalars"
        elif isinstance(arg, int):
            if -(1 << 63) <= arg < 1 << 63:
                return _TAG_INT, int(arg)
            problem = f"argument {arg} does not fit into 64 bits"
        raise ValueError(f"Program: launch {number} ({launch.name or 'unnamed'}): {problem}")

    def run(self, bases: Sequence[int], scalars: Sequence[float] = (), timings: Any = None) -> None:
        """Run all launches and return when they are done. The interpreter's lock is free meanwhile.

        The caller keeps the memory behind ``bases`` alive until this returns.

        Args:
            bases: addresses of bases 1 and up.
            scalars: Python numbers, one per letter of ``Program.scalars``. One too large for float32 becomes infinite.
            timings: a writable buffer of int64 (a NumPy array or ``array.array("q")``), one per launch: the nanoseconds it took.

        Raises:
            MemoryError: when there is no memory for the arena.
            TypeError, ValueError: when bases or scalars are too many, too few or of the wrong type.
        """
        try:
            values = self._pack(*bases, *scalars)
        except (struct.error, OverflowError, TypeError):
            values = self._pack_carefully(bases, scalars)
        walk = (native._native or native.native()).run
        pool = threads.current(config.num_threads) if self._parallel else None
        if pool is None:
            pool_ptr, size = 0, self._run_bytes + self._scratch
        else:
            pool_ptr, size = pool.ptr, self._run_bytes + self._scratch * pool.threads
        if size <= arena.SMALL and timings is None:
            try:
                workspace = arena.small.pop()
            except IndexError:
                workspace = Buffer(arena.SMALL)
            walk(self._table_ptr, values, workspace.ptr, pool_ptr, 0)
            arena.small.append(workspace)
            if arena.idle:
                arena.tick()  # larger ones that nobody has needed for long must go
            return
        workspace = arena.check_out(size)
        if timings is None:
            walk(self._table_ptr, values, workspace.ptr, pool_ptr, 0)
        else:
            self._run_timed(walk, values, workspace.ptr, pool_ptr, timings)
        arena.check_in(workspace)

    def _run_timed(self, run: Any, values: bytes, workspace: int, pool_ptr: int, timings: Any) -> None:
        count = self._table[0]
        view = memoryview(timings).cast("B")
        if view.readonly or view.nbytes < 8 * len(self.launches):
            raise ValueError(
                f"Program.run: timings must be a writable buffer of {len(self.launches)} int64, got {view.nbytes} bytes"
            )
        took = array.array("q", bytes(8 * count))
        run(self._table_ptr, values, workspace, pool_ptr, took.buffer_info()[0])
        # Launches without blocks are not in the table; they took no time.
        measured = iter(took)
        view.cast("q")[: len(self.launches)] = array.array(
            "q", [next(measured) if launch.blocks else 0 for launch in self.launches]
        )

    def _pack_carefully(self, bases: Sequence[int], scalars: Sequence[float]) -> bytes:
        """What ``_pack`` does, for values it does not take: either makes them fit or says what is wrong with them."""
        if len(bases) != self.num_bases or len(scalars) != len(self.scalars):
            expected = f"{self.num_bases} bases and {len(self.scalars)} scalars"
            raise ValueError(f"Program.run: expected {expected}, got {len(bases)} and {len(scalars)}")
        for position, base in enumerate(bases):
            if not isinstance(base, int) or not 0 <= base < 1 << 63:
                raise TypeError(f"Program.run: base {position + 1} is {base!r}, not an address")
        return struct.pack(f"<{len(bases)}q", *bases) + b"".join(map(pack_scalar, self.scalars, scalars))

    def __repr__(self) -> str:
        what = f"num_bases={self.num_bases}, scalars={self.scalars!r}, arena_bytes={self.arena_bytes}"
        return f"Program({len(self.launches)} launches, {what})"


def _aligned(nbytes: int) -> int:
    return (nbytes + 63) & -64


def pack_scalar(kind: str, value: float) -> bytes:
    """One scalar in its slot of eight bytes: ``"f"`` float32, ``"d"`` float64, ``"q"`` integer or bool.

    Raises:
        TypeError, ValueError: when the value is not of that kind.
    """
    try:
        return struct.pack("<" + _SLOT[kind], value)
    except OverflowError:
        if kind == "q":
            raise ValueError(f"scalar {value!r} does not fit into 64 bits") from None
        return struct.pack("<" + _SLOT[kind], math.copysign(math.inf, value))
    except struct.error:
        if kind == "q" and isinstance(value, int):
            raise ValueError(f"scalar {value!r} does not fit into 64 bits") from None
        raise TypeError(f"scalar {value!r} is not {_KIND_NAMES[kind]}") from None


class Counters:
    """Totals since the process started: ``programs`` run, ``launches`` made, those ``shared`` with workers, and runs that found
    the workers ``busy`` with another thread's run."""

    __slots__ = ("busy", "launches", "programs", "shared")

    def __init__(self, programs: int, launches: int, shared: int, busy: int) -> None:
        self.programs, self.launches, self.shared, self.busy = programs, launches, shared, busy

    def __repr__(self) -> str:
        return f"Counters(programs={self.programs}, launches={self.launches}, shared={self.shared}, busy={self.busy})"


def counters() -> Counters:
    """What has been run so far, by all threads."""
    compiled = native._native
    return Counters(0, 0, 0, 0) if compiled is None else Counters(*compiled.counters)
