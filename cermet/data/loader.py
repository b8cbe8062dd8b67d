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
    batch_sampler: Any
    _initialized = False

    def __init__(
        self, dataset: Any, batch_size: int | None = 1, shuffle: bool | None = None, sampler: Any = None,
        batch_sampler: Any = None, num_workers: int = 0, collate_fn: Callable[[Any], Any] | None = None, pin_memory: bool = False,
        drop_last: bool = False, timeout: float = 0, worker_init_fn: Callable[[int], None] | None = None,
        multiprocessing_context: Any = None, generator: Any = None, *, prefetch_factor: int | None = None,
        persistent_workers: bool = False, pin_memory_device: str = "", in_order: bool = True,
    ) -> None:  # fmt: skip
        _check_workers(num_workers, timeout, prefetch_factor, persistent_workers, multiprocessing_context)
        self.dataset, self.generator = dataset, generator
        self._stream = isinstance(dataset, IterableDataset)
        # Of workers and of memory that is not there: kept for code that reads them.
        self.num_workers, self.persistent_workers, self.in_order = num_workers, persistent_workers, in_order
        self.timeout, self.prefetch_factor, self.multiprocessing_context = timeout, prefetch_factor, multiprocessing_context
        self.worker_init_fn, self.pin_memory, self.pin_memory_device = worker_init_fn, pin_memory, pin_memory_device
        if self._stream:
            _check_stream(shuffle, sampler, batch_sampler)
        _check_batches(batch_size, shuffle, sampler, batch_sampler, drop_last)
        self.sampler = self._order(bool(shuffle)) if sampler is None else sampler
        if batch_sampler is None:
            self.batch_size, self.drop_last = batch_size, drop_last
            self.batch_sampler = None if batch_size is None else BatchSampler(self.sampler, batch_size, drop_last)
        else:
            self.batch_size, self.drop_last = None, False
            self.batch_sampler = batch_sampler
        self.collate_fn = collate_fn or (default_collate if self._auto_collation else default_convert)
        self._initialized = True

    def _order(self, shuffle: bool) -> Any:
        if self._stream:
            return _Endless()
        return RandomSampler(self.dataset, generator=self.generator) if shuffle else SequentialSampler(self.dataset)

    def __setattr__(self, name: str, value: Any) -> None:
        fixed = ("batch_size", "batch_sampler", "sampler", "drop_last", "dataset", "persistent_workers")
        if self._initialized and name in fixed:
            raise ValueError(f"{type(self).__name__}.{name} cannot be changed any more; make a new {type(self).__name__} with it")
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
                f"len() of this DataLoader is {len(self._loader)}, by that of its {type(self._dataset).__name__}, but batch "
                f"{self._yielded} has come; mend __len__ of the dataset, or leave it out",
                stacklevel=3,
            )


def _check_workers(num_workers: int, timeout: float, prefetch_factor: Any, persistent_workers: bool, context: Any) -> None:
    if num_workers < 0:
        raise ValueError(f"DataLoader: num_workers={num_workers}; give 0 to load in this process")
    if timeout < 0:
        raise ValueError(f"DataLoader: timeout={timeout}; give the seconds to wait, or 0 to wait for ever")
    if num_workers > 0:
        raise NotImplementedError(
            f"DataLoader: num_workers={num_workers}: worker processes come in a later version; pass num_workers=0 to load in "
            "this process"
        )
    if prefetch_factor is not None:
        raise ValueError(
            f"DataLoader: prefetch_factor={prefetch_factor} is for worker processes, and num_workers is 0; leave it out"
        )
    if persistent_workers:
        raise ValueError("DataLoader: persistent_workers=True is for worker processes, and num_workers is 0; leave it out")
    if context is not None:
        raise ValueError(
            f"DataLoader: multiprocessing_context={context!r} is for worker processes, and num_workers is 0; leave it out"
        )


def _check_stream(shuffle: Any, sampler: Any, batch_sampler: Any) -> None:
    choices = {"shuffle": shuffle or None, "sampler": sampler, "batch_sampler": batch_sampler}
    for name, value in choices.items():
        if value is not None:
            raise ValueError(
                f"DataLoader: {name}={value}, but an IterableDataset itself decides what comes when; leave {name} out"
            )


def _check_batches(batch_size: int | None, shuffle: Any, sampler: Any, batch_sampler: Any, drop_last: bool) -> None:
    if shuffle and sampler is not None:
        raise ValueError("DataLoader: shuffle=True and a sampler both give an order; leave one of them out")
    if batch_sampler is None:
        if drop_last and batch_size is None:
            raise ValueError("DataLoader: drop_last=True has no batch to drop with batch_size=None; leave one of them out")
        return
    choices = {"batch_size": batch_size != 1, "shuffle": shuffle, "sampler": sampler is not None, "drop_last": drop_last}
    given = [name for name, chosen in choices.items() if chosen]
    if given:
        raise ValueError(f"DataLoader: a batch_sampler decides alone what is in a batch; leave out {', '.join(given)}")
