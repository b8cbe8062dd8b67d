"""Samplers: in which order, and in what batches, the indices of a dataset come."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence, Sized
from typing import Any, Generic, TypeVar

import numpy as np

from cermet.data.numbers import numbers, seeded
from cermet.dtypes import float64
from cermet.frontend.core import node_of
from cermet.frontend.interop import as_tensor
from cermet.lazy.evaluate import array_of

__all__ = [
    "BatchSampler", "DistributedSampler", "RandomSampler", "Sampler", "SequentialSampler", "SubsetRandomSampler",
    "WeightedRandomSampler",
]  # fmt: skip

T_co = TypeVar("T_co", covariant=True)


class Sampler(Generic[T_co]):
    """Base class: an iterable of indices (or of lists of them), mostly with a length."""

    def __iter__(self) -> Iterator[T_co]:
        raise NotImplementedError(f"{type(self).__name__} defines no __iter__")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


class SequentialSampler(Sampler[int]):
    """0, 1, 2, …"""

    def __init__(self, data_source: Sized) -> None:
        self.data_source = data_source

    def __len__(self) -> int:
        return len(self.data_source)

    def __iter__(self) -> Iterator[int]:
        yield from range(len(self))


class RandomSampler(Sampler[int]):
    """All indices in random order, or with ``replacement`` each drawn from all. ``num_samples`` may be more or fewer than there
    are.

    Raises:
        TypeError: unless ``replacement`` is a bool. ValueError: unless ``num_samples`` is a positive integer.
    """

    def __init__(
        self, data_source: Sized, replacement: bool = False, num_samples: int | None = None, generator: Any = None
    ) -> None:
        if not isinstance(replacement, bool):
            raise TypeError(f"RandomSampler: replacement={replacement!r}; give True or False")
        # An empty dataset is one of no samples; asking for none is a mistake.
        if num_samples is not None and not _is_count(num_samples):
            raise ValueError(f"RandomSampler: num_samples={num_samples!r}; give a whole number, 1 or more")
        self.data_source, self.generator = data_source, generator
        self.replacement, self._num_samples = replacement, num_samples

    @property
    def num_samples(self) -> int:
        """How many indices one pass gives; the dataset may grow meanwhile."""
        return len(self.data_source) if self._num_samples is None else self._num_samples

    def __iter__(self) -> Iterator[int]:
        n = len(self.data_source)
        rng = numbers(self.generator)
        if self.replacement:
            yield from rng.integers(0, n, self.num_samples).tolist()
            return
        left = self.num_samples
        while left > 0 and n > 0:
            yield from rng.permutation(n)[:left].tolist()
            left -= n

    def __len__(self) -> int:
        return self.num_samples


class SubsetRandomSampler(Sampler[int]):
    """Given indices in random order."""

    def __init__(self, indices: Sequence[int], generator: Any = None) -> None:
        self.indices = indices
        self.generator = generator

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[int]:
        for i in numbers(self.generator).permutation(len(self)).tolist():
            yield self.indices[i]


class WeightedRandomSampler(Sampler[int]):
    """Indices drawn with probabilities in proportion to ``weights``.

    Raises:
        ValueError: unless ``num_samples`` is a positive integer, ``replacement`` a bool and ``weights`` a sequence of numbers.
        RuntimeError: while drawing, for weights that are negative, not finite or all zero, and for too few that are positive.
    """

    def __init__(self, weights: Sequence[float], num_samples: int, replacement: bool = True, generator: Any = None) -> None:
        if not _is_count(num_samples):
            raise ValueError(f"WeightedRandomSampler: num_samples={num_samples!r}; give a whole number, 1 or more")
        if not isinstance(replacement, bool):
            raise ValueError(f"WeightedRandomSampler: replacement={replacement!r}; give True or False")
        self.weights = as_tensor(weights, dtype=float64)
        if self.weights.ndim != 1:
            raise ValueError(
                f"WeightedRandomSampler: weights of shape {list(self.weights.shape)}; give one number for each index"
            )
        self.generator = generator
        self.num_samples, self.replacement = num_samples, replacement

    def __iter__(self) -> Iterator[int]:
        weights = array_of(node_of(self.weights))
        total = weights.sum() if weights.size else 0.0
        if not (np.isfinite(weights).all() and (weights >= 0).all()):
            bad = weights[~(np.isfinite(weights) & (weights >= 0))][0]
            raise RuntimeError(f"WeightedRandomSampler: a weight is {bad}; weights are finite and not negative")
        if not total > 0:
            raise RuntimeError("WeightedRandomSampler: every weight is 0, so that nothing can be drawn")
        rng = numbers(self.generator)
        if self.replacement:
            edges = np.cumsum(weights)
            chosen = np.searchsorted(edges, rng.random(self.num_samples) * edges[-1], side="right")
        else:
            if np.count_nonzero(weights) < self.num_samples:
                raise RuntimeError(
                    f"WeightedRandomSampler: {self.num_samples} samples without replacement, but only "
                    f"{np.count_nonzero(weights)} weights are above 0"
                )
            # Efraimidis, Spirakis 2006: the first of exponential waiting times with these rates.
            with np.errstate(divide="ignore"):
                waits = rng.standard_exponential(weights.size) / weights
            chosen = np.argsort(waits, kind="stable")[: self.num_samples]
        yield from chosen.tolist()

    def __len__(self) -> int:
        return self.num_samples


class BatchSampler(Sampler[list[int]]):
    """Lists of ``batch_size`` indices of another sampler; the last may be shorter, or with ``drop_last`` is left out.

    Raises:
        ValueError: unless ``batch_size`` is a positive integer and ``drop_last`` a bool.
    """

    def __init__(self, sampler: Any, batch_size: int, drop_last: bool) -> None:
        if not _is_count(batch_size):
            raise ValueError(f"batch_size={batch_size!r}; give a whole number, 1 or more")
        if not isinstance(drop_last, bool):
            raise ValueError(f"drop_last={drop_last!r}; give True or False")
        self.sampler = sampler
        self.drop_last, self.batch_size = drop_last, batch_size

    def __iter__(self) -> Iterator[list[int]]:
        indices = iter(self.sampler)
        while batch := list(itertools.islice(indices, self.batch_size)):
            if len(batch) == self.batch_size or not self.drop_last:
                yield batch

    def __len__(self) -> int:
        n = len(self.sampler)
        return n // self.batch_size if self.drop_last else -(-n // self.batch_size)


class DistributedSampler(Sampler[Any]):
    """The share of one of several processes: every ``num_replicas``-th index from ``rank`` on. Call ``set_epoch`` before each
    epoch for another order.

    Args:
        drop_last: leave the last indices out so that shares are equal; otherwise the first ones come again.

    Raises:
        RuntimeError: when ``num_replicas`` or ``rank`` is not given. ValueError: for a rank that is none.
    """

    def __init__(
        self, dataset: Sized, num_replicas: int | None = None, rank: int | None = None, shuffle: bool = True, seed: int = 0,
        drop_last: bool = False,
    ) -> None:  # fmt: skip
        if num_replicas is None or rank is None:
            raise RuntimeError("DistributedSampler: give num_replicas and rank; there is no process group to ask for them")
        if not 0 <= rank < num_replicas:
            raise ValueError(
                f"DistributedSampler: rank={rank}; the ranks of {num_replicas} processes are 0 to {num_replicas - 1}"
            )
        self.dataset, self.drop_last = dataset, drop_last
        self.rank, self.num_replicas = rank, num_replicas
        self.seed, self.shuffle, self.epoch = seed, shuffle, 0
        n = len(dataset)
        self.num_samples = n // num_replicas if drop_last else math.ceil(n / num_replicas)
        self.total_size = self.num_samples * num_replicas

    def __iter__(self) -> Iterator[Any]:
        n = len(self.dataset)
        # Every process must find the same order, whatever its own generator has been used for.
        order = seeded(self.seed + self.epoch).permutation(n).tolist() if self.shuffle else list(range(n))
        if not self.drop_last and n:
            order = list(itertools.islice(itertools.cycle(order), self.total_size))
        return iter(order[self.rank : self.total_size : self.num_replicas])

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of an epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_samples
