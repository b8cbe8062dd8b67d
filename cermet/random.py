"""The state of random numbers: a seed and an offset, in Python.

Numbers come from Philox-4x32-10 (Salmon, Moraes, Dror, Shaw: Parallel random numbers: as easy as 1, 2, 3; SC 2011) with the
seed as key and a counter. A call that draws n elements takes the counters offset … offset + n - 1 and moves the offset on
(where one word makes an element, or two elements share two, these number words, of further families of blocks with four words each). Seed
and offset reach programs as run-time scalars, so nothing is ever compiled for them; and the numbers do not depend on threads or
devices.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

__all__ = ["Generator", "default_generator", "initial_seed", "manual_seed", "seed"]

_MASK = (1 << 64) - 1

# Called by a generator that is used while a function is captured anywhere (see `cermet.capture`): with the count of a draw, or None for
# any other use of the state. Gives what the draw shall return, or None for what it returns by itself.
watcher: Callable[[Any, int | None], Any] | None = None


def _signed(n: int) -> int:
    """The 64 bits of ``n`` as a signed integer."""
    n &= _MASK
    return n - (1 << 64) if n >> 63 else n


class Generator:
    """A stream of random numbers: a seed and how much of its stream is used up.

    Args:
        device: accepted as in PyTorch; the stream is the same on all devices.
    """

    # How the state becomes a tensor, and back; `cermet.ops.random` knows tensors.
    pack: Callable[[bytes], Any]
    unpack: Callable[[Any], bytes]

    def __init__(self, device: Any = "cpu") -> None:
        self.device = device
        self._lock = threading.Lock()
        self._seed = 67280421310721
        self._offset = 0

    def manual_seed(self, seed: int) -> Generator:
        """Start the stream of ``seed``, any integer of 64 bits."""
        n = int(seed)
        if watcher is not None:
            watcher(self, None)
        if not -(1 << 63) <= n <= _MASK:
            raise RuntimeError(f"manual_seed: a seed has 64 bits, got {seed}")
        with self._lock:
            self._seed, self._offset = n & _MASK, 0
        return self

    def seed(self) -> int:
        """Start the stream of a seed that nobody knows, and return it."""
        n = int.from_bytes(os.urandom(8), "little") >> 1
        self.manual_seed(n)
        return n

    def initial_seed(self) -> int:
        """The seed of the stream."""
        return self._seed

    def take(self, count: int) -> tuple[int, int]:
        """(key, first counter) of ``count`` counters of the stream, as signed 64-bit integers; they are used up by this."""
        if watcher is not None:
            found = watcher(self, count)
            if found is not None:
                return found
        with self._lock:
            offset = self._offset
            self._offset = (offset + count) & _MASK
            return _signed(self._seed), _signed(offset)

    def state_numbers(self) -> tuple[int, int]:
        """Seed and offset."""
        with self._lock:
            return self._seed, self._offset

    def take_numbers(self, count: int) -> tuple[int, int]:
        """(key as a signed integer, offset before) of ``count`` counters, which are used up by this."""
        with self._lock:
            offset = self._offset
            self._offset = (offset + count) & _MASK
            return _signed(self._seed), offset

    def give_back(self, key: int, offset: int, count: int) -> None:
        """Undo a `take_numbers`, unless somebody has drawn since."""
        with self._lock:
            if _signed(self._seed) == key and self._offset == (offset + count) & _MASK:
                self._offset = offset

    def state(self) -> bytes:
        """Seed and offset as 16 bytes."""
        if watcher is not None:
            watcher(self, None)
        with self._lock:
            return self._seed.to_bytes(8, "little") + self._offset.to_bytes(8, "little")

    def restore(self, state: bytes) -> None:
        """Continue from a `state`.

        Raises:
            RuntimeError: when it does not have 16 bytes.
        """
        if len(state) != 16:
            raise RuntimeError(f"a random state has 16 bytes, got {len(state)}")
        if watcher is not None:
            watcher(self, None)
        with self._lock:
            self._seed, self._offset = int.from_bytes(state[:8], "little"), int.from_bytes(state[8:], "little")

    def get_state(self) -> Any:
        """The state as a uint8 tensor."""
        return Generator.pack(self.state())

    def set_state(self, new_state: Any) -> Generator:
        """Continue from the state that `get_state` gave."""
        self.restore(Generator.unpack(new_state))
        return self

    def clone_state(self) -> Generator:
        """Another generator in the same state."""
        other = Generator(self.device)
        other.restore(self.state())
        return other

    def __getstate__(self) -> Any:
        return (self.device, self.state())

    def __setstate__(self, state: Any) -> None:
        self.__init__(state[0])  # type: ignore[misc]
        self.restore(state[1])


default_generator = Generator()


def manual_seed(seed: int) -> Generator:
    """Start the default stream of ``seed``; returns the default generator."""
    return default_generator.manual_seed(seed)


def seed() -> int:
    """Start the default stream of a seed that nobody knows, and return it."""
    return default_generator.seed()


def initial_seed() -> int:
    """The seed of the default stream."""
    return default_generator.initial_seed()
