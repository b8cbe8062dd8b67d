"""Random numbers for samplers: NumPy's, seeded from Cermet's generators, so that `cermet.manual_seed` repeats them."""

from __future__ import annotations

from typing import Any

import numpy as np

from cermet import random

__all__ = ["numbers"]

_MASK = (1 << 64) - 1


def numbers(generator: Any = None) -> np.random.Generator:
    """A stream of its own, derived from the next number of ``generator`` (default: Cermet's).

    Raises:
        TypeError: for what is no `cermet.Generator`.
    """
    source = random.default_generator if generator is None else generator
    if not isinstance(source, random.Generator):
        raise TypeError(f"generator must be a cermet.Generator, got {type(source).__name__}")
    seed, offset = source.take(1)
    return seeded(seed, offset)


def seeded(seed: int, stream: int = 0) -> np.random.Generator:
    """The stream of two numbers of 64 bits."""
    return np.random.Generator(np.random.Philox(key=(seed & _MASK) << 64 | stream & _MASK))
