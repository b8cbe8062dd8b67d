"""The DataLoader: from a dataset, by way of a sampler, to batches. One process; worker processes come later."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from cermet.data.collate import default_collate, default_convert
from cermet.data.dataset import IterableDataset, batch_function
from cermet.data.sampler import BatchSampler, RandomSampler, SequentialSampler

__all__ = ["DataLoader", "WorkerInfo", "get_worker_info"]


@dataclass(frozen=True)
class WorkerInfo:
    """What a worker process knows of itself."""

    id: int
    num_workers: int
    seed: int
    dataset: Any


def get_worker_info() -> WorkerInfo | None:
    """The `WorkerInfo` of this process; None in the main process (the only one there is, so far)."""
    return None


class _Endless:
    """The sampler of a stream: nothing to choose, for ever."""

    def __iter__(self) -> Iterator[None]:
        while True:
            yield None


class DataLoader:
    """Batches of a dataset.

    Args:
        dataset: with ``__getitem__`` and ``__len__``, or an `IterableDataset`.
        batch_size: samples in a batch; None for samples as they are. shuffle: a new random order in each pass.
        sampler, batch_sampler: where the indices, or lists of them, come from instead.
        collate_fn: makes a batch of a list of samples (`default_collate`; without batches `default_convert` of a sample).
        drop_last: leave out a last batch that is not full. generator: where the random order comes from.
        num_workers: 0: more are not there yet. timeout, worker_init_fn, multiprocessing_context, prefetch_factor,
            persistent_workers, in_order: of worker processes. pin_memory, pin_memory_device: accepted, without effect: there is
            no other memory.

    Raises:
        ValueError: for arguments that exclude each other. NotImplementedError: for ``num_workers`` above 0.
    """

    dataset: Any
    batch_size: int | None
    num_workers: int
    sampler: Any
    _initialized = False

    def __init__(
        self, dataset: Any, batch_size: int | None = 1, shuffle: bool | None = None, sampler: Any = None,
        batch_sampler: Any = None, num_workers: int = 0, collate_fn: Callable[[Any], Any] | None = None, pin_memory: bool = False,
        drop_last: bool = False, timeout: float = 0, worker_init_fn: Callable[[int], None] | None = None,
        multiprocessing_context: Any = None, generator: Any = None, *, prefetch_factor: int | None = None,
        persistent_workers: bool = False, pin_memory_device: str = "", in_order: bool = True,
    ) -> None:  # fmt: skip
        _check_workers(num_workers, timeout, prefetch_factor, persistent_workers, multiprocessing_context)
        self.dataset = dataset
        self.num_workers = num_workers
        self.prefetch_factor = prefetch_factor
        self.pin_memory = pin_memory
        self.pin_memory_device = pin_memory_device
        self.timeout = timeout
        self.worker_init_fn = worker_init_fn
        self.multiprocessing_context = multiprocessing_context
        self.persistent_workers = persistent_workers
        self.in_order = in_order
        self.generator = generator
        self._stream = isinstance(dataset, IterableDataset)
        if self._stream:
            _check_stream(shuffle, sampler, batch_sampler)
        shuffle = bool(shuffle)
        if sampler is not None and shuffle:
            raise ValueError("sampler option is mutually exclusive with shuffle")
        if batch_sampler is not None:
            if batch_size != 1 or shuffle or sampler is not None or drop_last:
                raise ValueError("batch_sampler option is mutually exclusive with batch_size, shuffle, sampler, and drop_last")
            batch_size = None
            drop_last = False
        elif batch_size is None and drop_last:
            raise ValueError("batch_size=None option disables auto-batching and is mutually exclusive with drop_last")
        if sampler is None:
            if self._stream:
                sampler = _Endless()
            else:
                sampler = RandomSampler(dataset, generator=generator) if shuffle else SequentialSampler(dataset)
        if batch_size is not None and batch_sampler is None:
            batch_sampler = BatchSampler(sampler, batch_size, drop_last)
        self.batch_size = batch_size
        self.drop_last = drop_last
        self.sampler = sampler
        self.batch_sampler = batch_sampler
        self.collate_fn = collate_fn or (default_collate if self._auto_collation else default_convert)
        self._initialized = True

    def __setattr__(self, name: str, value: Any) -> None:
        fixed = ("batch_size", "batch_sampler", "sampler", "drop_last", "dataset", "persistent_workers")
        if self._initialized and name in fixed:
            raise ValueError(f"{name} attribute should not be set after {type(self).__name__} is initialized")
        super().__setattr__(name, value)

    @property
    def _auto_collation(self) -> bool:
        return self.batch_sampler is not None

    @property
    def _index_sampler(self) -> Iterable[Any]:
        return self.batch_sampler if self._auto_collation else self.sampler

    def __iter__(self) -> Iterator[Any]:
        return _Pass(self)

    def __len__(self) -> int:
        if not self._stream:
            return len(self._index_sampler)  # type: ignore[arg-type]
        n = len(self.dataset)
        if self.batch_size is None:
            return n
        return n // self.batch_size if self.drop_last else -(-n // self.batch_size)


class _Pass:
    """One pass over the data."""

    def __init__(self, loader: DataLoader) -> None:
        self._collate = loader.collate_fn
        self._auto = loader._auto_collation
        self._dataset = loader.dataset
        self._indices = iter(loader._index_sampler)
        self._loader = loader
        self._yielded = 0
        self._fetch: Callable[[Any], Any]
        if loader._stream:
            self._samples = iter(loader.dataset)
            self._ended = False
            self._fetch = self._fetch_stream
        else:
            # Made anew in each pass: the dataset's tensors may have been changed meanwhile.
            rows = batch_function(loader.dataset) if self._auto and loader.collate_fn is default_collate else None
            self._fetch = rows or self._fetch_samples

    def __iter__(self) -> Iterator[Any]:
        return self

    def __len__(self) -> int:
        return len(self._loader)

    def __next__(self) -> Any:
        batch = self._fetch(next(self._indices))
        self._yielded += 1
        if self._loader._stream and hasattr(self._dataset, "__len__"):
            self._warn_longer()
        return batch

    def _fetch_samples(self, indices: Any) -> Any:
        dataset = self._dataset
        if not self._auto:
            return self._collate(dataset[indices])
        if getattr(dataset, "__getitems__", None):
            return self._collate(dataset.__getitems__(indices))
        return self._collate([dataset[i] for i in indices])

    def _fetch_stream(self, indices: Any) -> Any:
        if self._ended:
            raise StopIteration
        if not self._auto:
            return self._collate(next(self._samples))
        batch = []
        for _ in indices:
            try:
                batch.append(next(self._samples))
            except StopIteration:
                self._ended = True
                break
        if not batch or (self._loader.drop_last and self._ended):
            raise StopIteration
        return self._collate(batch)

    def _warn_longer(self) -> None:
        if self._yielded == len(self._loader) + 1:
            warnings.warn(
                f"Length of IterableDataset {self._dataset} was reported to be {len(self._loader)} (when accessing "
                f"len(dataloader)), but {self._yielded} samples have been fetched.",
                stacklevel=3,
            )


def _check_workers(num_workers: int, timeout: float, prefetch_factor: Any, persistent_workers: bool, context: Any) -> None:
    if num_workers < 0:
        raise ValueError("num_workers option should be non-negative; use num_workers=0 to disable multiprocessing.")
    if timeout < 0:
        raise ValueError("timeout option should be non-negative")
    if num_workers > 0:
        raise NotImplementedError(
            f"DataLoader: num_workers={num_workers}: worker processes come in a later version; pass num_workers=0 to load in "
            "this process"
        )
    if prefetch_factor is not None:
        raise ValueError(
            "prefetch_factor option could only be specified in multiprocessing. let num_workers > 0 to enable multiprocessing, "
            "otherwise set prefetch_factor to None."
        )
    if persistent_workers:
        raise ValueError("persistent_workers option needs num_workers > 0")
    if context is not None:
        raise ValueError(
            "multiprocessing_context can only be used with multi-process loading (num_workers > 0), but got "
            f"num_workers={num_workers}"
        )


def _check_stream(shuffle: Any, sampler: Any, batch_sampler: Any) -> None:
    if shuffle not in (False, None):
        raise ValueError(f"DataLoader with IterableDataset: expected unspecified shuffle option, but got shuffle={shuffle}")
    if sampler is not None:
        raise ValueError(f"DataLoader with IterableDataset: expected unspecified sampler option, but got sampler={sampler}")
    if batch_sampler is not None:
        raise ValueError(
            f"DataLoader with IterableDataset: expected unspecified batch_sampler option, but got batch_sampler={batch_sampler}"
        )
