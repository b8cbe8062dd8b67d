"""Datasets: things with a length and items, or streams of items; and datasets made of others."""

from __future__ import annotations

import bisect
import itertools
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Generic, TypeVar

import numpy as np

from cermet.data.numbers import numbers
from cermet.frontend.core import TensorBase, data_tensor, fn_of, node_of
from cermet.frontend.interop import from_array
from cermet.lazy.evaluate import array_of
from cermet.runtime.buffer import Buffer

__all__ = [
    "ChainDataset", "ConcatDataset", "Dataset", "IterableDataset", "StackDataset", "Subset", "TensorDataset", "batch_function",
    "random_split",
]  # fmt: skip

T_co = TypeVar("T_co", covariant=True)


class Dataset(Generic[T_co]):
    """Maps keys to samples. Subclasses define ``__getitem__``, mostly ``__len__``, and perhaps ``__getitems__(indices)``, which
    gives the list of several samples at once."""

    def __getitem__(self, index: Any) -> T_co:
        raise NotImplementedError(f"{type(self).__name__} defines no __getitem__, which gives the sample at an index")

    def __add__(self, other: Dataset[T_co]) -> ConcatDataset[T_co]:
        return ConcatDataset([self, other])


class IterableDataset(Dataset[T_co], Iterable[T_co]):
    """A stream of samples. Subclasses define ``__iter__``."""

    def __iter__(self) -> Iterator[T_co]:
        raise NotImplementedError(f"{type(self).__name__} defines no __iter__, which gives one sample after the other")

    def __add__(self, other: Dataset[T_co]) -> Any:
        return ChainDataset([self, other])


class TensorDataset(Dataset[tuple[Any, ...]]):
    """Rows of tensors: sample k is the k-th row of each.

    Raises:
        AssertionError: unless all have the same first dimension.
    """

    tensors: tuple[Any, ...]

    def __init__(self, *tensors: Any) -> None:
        if any(len(t) != len(tensors[0]) for t in tensors):
            raise AssertionError(f"TensorDataset: the tensors have {[len(t) for t in tensors]} rows; all need the same number")
        self.tensors = tensors

    def __getitem__(self, index: Any) -> tuple[Any, ...]:
        return tuple([t[index] for t in self.tensors])

    def __len__(self) -> int:
        return len(self.tensors[0])

    def _rows(self, indices: Sequence[int]) -> list[Any]:
        """What ``default_collate`` makes of the samples at ``indices``: one gather for each tensor instead of a row for each
        sample."""
        where = np.asarray(indices, dtype=np.int64)
        return [gathered(t, where) for t in self.tensors]


def gathered(t: Any, where: np.ndarray) -> Any:
    """Rows of a tensor; computed at once (a batch is data for the step's program, no part of it), unless gradients flow through
    it.

    Raises:
        IndexError: for a row that is not there.
    """
    n = len(t)
    if where.size and not (-n <= where.min() and where.max() < n):
        bad = where[(where < -n) | (where >= n)][0]
        raise IndexError(f"there is no row {bad} in a dataset of {n}")
    if fn_of(t) is not None:
        return t[from_array(where)]
    node = node_of(t)
    m = node.meta.with_shape((where.size, *node.meta.shape[1:]))
    buffer = Buffer(m.nbytes)
    if m.numel:
        # mode="clip" lets NumPy write to `out` without a copy in between; the rows were checked above.
        np.take(array_of(node), where % n, axis=0, out=buffer.view(m.dtype.numpy, m.shape, writeable=True), mode="clip")
    return data_tensor(m, buffer)


class StackDataset(Dataset[Any]):
    """Samples of several datasets side by side: tuples of them, or dicts where the datasets are given by keyword.

    Raises:
        ValueError: for neither or both kinds of arguments, and for datasets of different lengths.
    """

    datasets: tuple[Any, ...] | dict[str, Any]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if args and kwargs:
            raise ValueError(
                "StackDataset: give all datasets in place (samples are tuples) or all by keyword (samples are dicts)"
            )
        if not args and not kwargs:
            raise ValueError("StackDataset: no dataset was given")
        self.datasets = args or kwargs
        each = list(args or kwargs.values())
        self._length = len(each[0])
        if any(len(d) != self._length for d in each):
            raise ValueError(f"StackDataset: the datasets have {[len(d) for d in each]} samples; all need the same number")

    def __getitem__(self, index: Any) -> Any:
        if isinstance(self.datasets, dict):
            return {k: d[index] for k, d in self.datasets.items()}
        return tuple([d[index] for d in self.datasets])

    def __getitems__(self, indices: list[int]) -> list[Any]:
        """The samples at ``indices``."""
        if isinstance(self.datasets, dict):
            columns = [_several(d, indices) for d in self.datasets.values()]
            return [dict(zip(self.datasets, row)) for row in zip(*columns)]
        return list(zip(*[_several(d, indices) for d in self.datasets]))

    def __len__(self) -> int:
        return self._length


def _several(dataset: Any, indices: Sequence[int]) -> list[Any]:
    if callable(getattr(dataset, "__getitems__", None)):
        items = dataset.__getitems__(indices)
        if len(items) != len(indices):
            raise ValueError(f"{type(dataset).__name__}.__getitems__ gave {len(items)} samples for {len(indices)} indices")
        return items
    return [dataset[i] for i in indices]


class ConcatDataset(Dataset[T_co]):
    """Datasets one after the other.

    Raises:
        AssertionError: for no datasets, and for a stream among them.
    """

    datasets: list[Any]
    cumulative_sizes: list[int]

    @staticmethod
    def cumsum(sequence: Iterable[Any]) -> list[int]:
        """Where each dataset ends."""
        return list(itertools.accumulate(len(d) for d in sequence))

    def __init__(self, datasets: Iterable[Any]) -> None:
        self.datasets = list(datasets)
        if not self.datasets:
            raise AssertionError("ConcatDataset: no dataset was given")
        for position, d in enumerate(self.datasets):
            if isinstance(d, IterableDataset):
                raise AssertionError(
                    f"ConcatDataset: dataset {position} is a stream without indices; join streams by ChainDataset"
                )
        self.cumulative_sizes = self.cumsum(self.datasets)

    def __getitem__(self, index: int) -> Any:
        total = len(self)
        if index < -total:
            raise ValueError(f"ConcatDataset: index {index} lies before the first of {total} samples")
        place = index if index >= 0 else index + total
        which = bisect.bisect_right(self.cumulative_sizes, place)
        return self.datasets[which][place - (self.cumulative_sizes[which - 1] if which else 0)]

    def __len__(self) -> int:
        return self.cumulative_sizes[-1]

    @property
    def cummulative_sizes(self) -> list[int]:
        """An old misspelling of `cumulative_sizes`."""
        warnings.warn("cummulative_sizes is misspelt; write cumulative_sizes", DeprecationWarning, stacklevel=2)
        return self.cumulative_sizes


class ChainDataset(IterableDataset[Any]):
    """Streams one after the other."""

    def __init__(self, datasets: Iterable[Any]) -> None:
        self.datasets = datasets

    def __iter__(self) -> Iterator[Any]:
        return itertools.chain.from_iterable(self._streams())

    def __len__(self) -> int:
        return sum(len(stream) for stream in self._streams())

    def _streams(self) -> Iterator[Any]:
        """The streams, each checked when its turn comes: they may be given by a generator."""
        for position, d in enumerate(self.datasets):
            if not isinstance(d, IterableDataset):
                raise AssertionError(
                    f"ChainDataset: dataset {position} is a {type(d).__name__}, not an IterableDataset; join those by ConcatDataset"
                )
            yield d


class Subset(Dataset[T_co]):
    """The samples of a dataset at chosen indices."""

    def __init__(self, dataset: Dataset[T_co], indices: Sequence[int]) -> None:
        self.dataset = dataset
        self.indices = indices

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, list):
            return self.dataset[[self.indices[i] for i in index]]
        return self.dataset[self.indices[index]]

    def __getitems__(self, indices: list[int]) -> list[Any]:
        """The samples at ``indices`` of the subset."""
        return _several(self.dataset, [self.indices[i] for i in indices])

    def __len__(self) -> int:
        return len(self.indices)


def batch_function(dataset: Any) -> Callable[[Sequence[int]], Any] | None:
    """A function that makes a collated batch of ``indices`` without making the samples, where the dataset is known to mean that:
    a `TensorDataset`, or a `Subset` of one, whose ways to samples no subclass has changed."""
    kind = type(dataset)
    if isinstance(dataset, TensorDataset):
        known = kind.__getitem__ is TensorDataset.__getitem__ and not hasattr(kind, "__getitems__")
        return dataset._rows if known and all(isinstance(t, TensorBase) for t in dataset.tensors) else None
    if isinstance(dataset, Subset) and kind.__getitem__ is Subset.__getitem__ and kind.__getitems__ is Subset.__getitems__:
        inner = batch_function(dataset.dataset)
        if inner is not None:
            chosen = dataset.indices
            return lambda indices: inner([chosen[i] for i in indices])
    return None


def random_split(dataset: Any, lengths: Sequence[int | float], generator: Any = None) -> list[Subset[Any]]:
    """Disjoint random subsets of given lengths, or of given fractions of the whole (what rounding leaves goes to the first ones).

    Raises:
        ValueError: for a fraction outside [0, 1], and when the lengths do not sum up to that of the dataset.
    """
    total = len(dataset)
    if math.isclose(sum(lengths), 1) and sum(lengths) <= 1:
        for i, fraction in enumerate(lengths):
            if not 0 <= fraction <= 1:
                raise ValueError(f"random_split: lengths[{i}] = {fraction}; a fraction must lie in [0, 1]")
        counts = [math.floor(total * fraction) for fraction in lengths]
        for i in range(total - sum(counts)):
            counts[i % len(counts)] += 1
        for i, n in enumerate(counts):
            if n == 0:
                warnings.warn(f"random_split: fraction {i} of {total} samples leaves none for it: it is empty", stacklevel=2)
    else:
        counts = [int(n) for n in lengths]
    if sum(counts) != total:
        raise ValueError(
            f"random_split: lengths {list(lengths)} for a dataset of {total}; they must add up to it, or to 1 as fractions"
        )
    order = numbers(generator).permutation(total).tolist()
    return [Subset(dataset, order[end - n : end]) for end, n in zip(itertools.accumulate(counts), counts)]
