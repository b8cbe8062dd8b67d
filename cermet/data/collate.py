"""From a list of samples to a batch, and from a sample of arrays to one of tensors."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, MutableMapping, MutableSequence, Sequence
from typing import Any

import numpy as np

from cermet import dtypes as dt
from cermet.frontend.core import TensorBase, data_tensor, fn_of, node_of
from cermet.frontend.interop import as_tensor
from cermet.lazy.evaluate import array_of, realize
from cermet.ops.public import PUBLIC
from cermet.runtime.buffer import Buffer

__all__ = ["default_collate", "default_convert"]


def default_convert(data: Any) -> Any:
    """Arrays (also in dicts, tuples and lists) as tensors; everything else as it is. What a `DataLoader` without batches does."""
    if isinstance(data, TensorBase):
        return data
    if isinstance(data, np.ndarray | np.generic):
        return data if data.dtype.kind in "SUO" else as_tensor(data)
    if isinstance(data, Mapping):
        return _like_mapping(data, {k: default_convert(v) for k, v in data.items()})
    if isinstance(data, tuple) and hasattr(data, "_fields"):
        return type(data)(*map(default_convert, data))
    if isinstance(data, tuple):
        return [default_convert(d) for d in data]
    if isinstance(data, Sequence) and not isinstance(data, str | bytes):
        return _like_sequence(data, [default_convert(d) for d in data])
    return data


def default_collate(batch: Any) -> Any:
    """Samples stacked: tensors, arrays and numbers into tensors with a first dimension for the batch; dicts, tuples and lists
    element by element (tuples become lists); strings stay a list.

    Raises:
        RuntimeError: when tensors differ in shape, or lists in length. TypeError: for elements of other types.
    """
    first = batch[0]
    if isinstance(first, TensorBase):
        return _stack(batch)
    if isinstance(first, np.ndarray | np.generic):
        if first.dtype.kind in "SUO":
            raise TypeError(_refusal(first.dtype))
        return _stack([as_tensor(b) for b in batch])
    if isinstance(first, float):
        return as_tensor(np.asarray(batch, dtype=np.float64))
    if isinstance(first, int):
        return as_tensor(list(batch))
    if isinstance(first, str | bytes):
        return batch
    if isinstance(first, Mapping):
        return _like_mapping(first, {k: default_collate([d[k] for d in batch]) for k in first})
    if isinstance(first, tuple) and hasattr(first, "_fields"):
        return type(first)(*[default_collate(column) for column in zip(*batch)])
    if isinstance(first, Sequence):
        if any(len(sample) != len(first) for sample in batch):
            lengths = sorted({len(sample) for sample in batch})
            raise RuntimeError(
                f"default_collate: samples of different lengths {lengths} make no batch; pad them in the dataset, or give the "
                "DataLoader a collate_fn of your own"
            )
        columns = [default_collate(column) for column in zip(*batch)]
        return columns if isinstance(first, tuple) else _like_sequence(first, columns)
    raise TypeError(_refusal(type(first)))


def _refusal(what: Any) -> str:
    return f"default_collate: cannot stack samples of {what}; make them tensors or arrays, or give the DataLoader a collate_fn"


def _stack(tensors: Sequence[Any]) -> Any:
    """Stacked tensors: computed at once where no gradient flows through them, since a recorded stack of a thousand leaves is slow
    to record."""
    if any(fn_of(t) is not None for t in tensors):
        return PUBLIC[("", "stack")].fn(tensors, 0)
    nodes = [node_of(t) for t in tensors]
    shape, dtype = nodes[0].meta.shape, nodes[0].meta.dtype
    for i, n in enumerate(nodes):
        if n.meta.shape != shape:
            raise RuntimeError(
                f"default_collate: sample 0 has shape {list(shape)} and sample {i} {list(n.meta.shape)}; tensors of one batch need "
                "one shape: pad or crop them in the dataset"
            )
        dtype = dtype if n.meta.dtype is dtype else dt.promote_types(dtype, n.meta.dtype)
    realize(nodes)
    m = nodes[0].meta.with_shape((len(nodes), *shape)).with_dtype(dtype)
    buffer = Buffer(m.nbytes)
    if m.numel:
        out = buffer.view(dtype.numpy, m.shape, writeable=True)
        for i, n in enumerate(nodes):
            out[i] = array_of(n)
    return data_tensor(m, buffer)


def _like_mapping(original: Any, items: dict[Any, Any]) -> Any:
    """A mapping of the same class as ``original`` (with its extra attributes) where that can be made, else a dict."""
    try:
        if isinstance(original, MutableMapping):
            clone = copy.copy(original)
            clone.update(items)
            return clone
        return type(original)(items)
    except TypeError:
        return items


def _like_sequence(original: Any, items: list[Any]) -> Any:
    """A sequence of the same class as ``original`` where that can be made, else a list."""
    try:
        if isinstance(original, MutableSequence):
            clone = copy.copy(original)
            for i, item in enumerate(items):
                clone[i] = item
            return clone
        return type(original)(items)
    except TypeError:
        return items


Collate = Callable[[Any], Any]
