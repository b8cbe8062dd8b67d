"""Sequences of different lengths: padded to one length, or packed without padding."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from cermet.frontend.core import TensorBase
from cermet.frontend.interop import from_array
from cermet.ops.public import PUBLIC

__all__ = [
    "PackedSequence",
    "invert_permutation",
    "pack_padded_sequence",
    "pack_sequence",
    "pad_packed_sequence",
    "pad_sequence",
    "unpack_sequence",
    "unpad_sequence",
]


class _Packed(NamedTuple):
    data: Any
    batch_sizes: Any
    sorted_indices: Any
    unsorted_indices: Any


class PackedSequence(_Packed):
    """Sequences of different lengths without padding: the first elements of all, then the second elements of those that have one,
    and so on, longest sequence first.

    Attributes:
        data: (sum of the lengths, *). batch_sizes: how many sequences have an element at each place; int64.
        sorted_indices: which of the original sequences stands at each place; None where they were sorted already.
        unsorted_indices: where each of the original sequences stands.
    """

    __slots__ = ()

    def __new__(cls, data: Any, batch_sizes: Any = None, sorted_indices: Any = None, unsorted_indices: Any = None) -> Any:
        if unsorted_indices is None and sorted_indices is not None:
            unsorted_indices = invert_permutation(sorted_indices)
        if batch_sizes is None:
            raise ValueError("PackedSequence: batch_sizes are missing")
        return super().__new__(cls, data, batch_sizes, sorted_indices, unsorted_indices)

    def to(self, *args: Any, **kwargs: Any) -> PackedSequence:
        """The data converted as by ``Tensor.to``."""
        data = self.data.to(*args, **kwargs)
        return self if data is self.data else PackedSequence(data, *self[1:])

    def float(self) -> PackedSequence:
        """The data as float32."""
        return PackedSequence(self.data.float(), *self[1:])

    def double(self) -> PackedSequence:
        """The data as float64."""
        return PackedSequence(self.data.double(), *self[1:])

    def half(self) -> PackedSequence:
        """The data as float16."""
        return PackedSequence(self.data.half(), *self[1:])

    def cpu(self) -> PackedSequence:
        """The data on the CPU."""
        return self

    @property
    def is_cuda(self) -> bool:
        return False


def _integers(x: Any) -> Any:
    """A tensor, array or sequence of integers as an int64 array."""
    return np.asarray(x.tolist() if isinstance(x, TensorBase) else x, np.int64)  # type: ignore[attr-defined]


def invert_permutation(permutation: Any) -> Any:
    """Where each index stands in ``permutation``; None for None."""
    return None if permutation is None else from_array(np.argsort(_integers(permutation), kind="stable").astype(np.int64))


def lengths_of(batch_sizes: Any) -> Any:
    """The length of each sequence, longest first, as an int64 array."""
    sizes = _integers(batch_sizes)
    count = int(sizes[0]) if len(sizes) else 0
    return (sizes[:, None] > np.arange(count)).sum(0)


def places(lengths: Any) -> tuple[Any, Any, Any]:
    """For lengths in falling order: the batch sizes, and the time and sequence of each packed element (NumPy)."""
    steps = np.arange(int(lengths[0]) if len(lengths) else 0)
    present = steps[:, None] < lengths[None, :]
    time, sequence = np.nonzero(present)
    return present.sum(1), time, sequence


def packed_rows(padded: Any, lengths: Any) -> Any:
    """The packed elements of (T, B, *), by lengths in falling order."""
    _, time, sequence = places(lengths)
    flat = padded.reshape(-1, *padded.shape[2:])
    return flat.index_select(0, from_array(time * padded.shape[1] + sequence))


def padded_rows(data: Any, lengths: Any, total: int, value: float = 0.0) -> Any:
    """Packed elements as (total, B, *), with ``value`` past each end."""
    sizes, _, _ = places(lengths)
    starts = np.concatenate([[0], np.cumsum(sizes)])
    count = len(lengths)
    present = np.arange(total)[:, None] < lengths[None, :]
    index = np.where(present, np.pad(starts[: len(sizes)], (0, total - len(sizes)))[:, None] + np.arange(count), 0)
    out = data.index_select(0, from_array(index.reshape(-1))).reshape(total, count, *data.shape[1:])
    if present.all():
        return out
    hidden = from_array(~present.reshape(total, count, *[1] * (len(data.shape) - 1)))
    return out.masked_fill(hidden, value)


def pack_padded_sequence(input: Any, lengths: Any, batch_first: bool = False, enforce_sorted: bool = True) -> PackedSequence:
    """Padded sequences (T, B, *), or (B, T, *) with ``batch_first``, as a `PackedSequence`.

    Args:
        lengths: the length of each sequence, a list or tensor.
        enforce_sorted: the sequences must stand longest first; otherwise they are sorted here, and put back by
            `pad_packed_sequence`.

    Raises:
        RuntimeError: for lengths that are not positive, too great, too few, or (where that is enforced) not sorted.
    """
    sizes = _integers(lengths)
    order = None
    if not enforce_sorted:
        order = np.argsort(-sizes, kind="stable")
        sizes = sizes[order]
    steps, count = (input.shape[1], input.shape[0]) if batch_first else (input.shape[0], input.shape[1])
    if len(sizes) != count:
        raise RuntimeError(f"pack_padded_sequence: {len(sizes)} lengths for {count} sequences")
    if len(sizes) and (np.diff(sizes) > 0).any():
        raise RuntimeError(
            "the sequences do not come in the order of their lengths, longest first: pass enforce_sorted=False to have them sorted"
        )
    if len(sizes) and sizes[-1] <= 0:
        raise RuntimeError(f"pack_padded_sequence: a length of {sizes[-1]}; each sequence needs one step or more")
    if len(sizes) and sizes[0] > steps:
        raise RuntimeError(f"pack_padded_sequence: a length of {sizes[0]} for sequences padded to {steps}")
    padded = input.transpose(0, 1) if batch_first else input
    found = None
    if order is not None:
        found = from_array(order.astype(np.int64))
        padded = padded.index_select(1, found)
    batch_sizes, _, _ = places(sizes)
    return PackedSequence(packed_rows(padded, sizes), from_array(batch_sizes.astype(np.int64)), found, None)


def pad_packed_sequence(
    sequence: PackedSequence, batch_first: bool = False, padding_value: float = 0.0, total_length: int | None = None
) -> tuple[Any, Any]:
    """The inverse of `pack_padded_sequence`.

    Args:
        total_length: pad to this many steps instead of to the longest sequence.

    Returns:
        (T, B, *), or (B, T, *) with ``batch_first``; and the lengths, int64.

    Raises:
        ValueError: for a ``total_length`` below the longest sequence.
    """
    lengths = lengths_of(sequence.batch_sizes)
    longest = len(_integers(sequence.batch_sizes))
    total = longest if total_length is None else total_length
    if total < longest:
        raise ValueError(f"pad_packed_sequence: total_length={total} is too short for a sequence of {longest} steps")
    padded = padded_rows(sequence.data, lengths, total, padding_value)
    if sequence.unsorted_indices is not None:
        padded = padded.index_select(1, sequence.unsorted_indices)
        lengths = lengths[_integers(sequence.unsorted_indices)]
    return (padded.transpose(0, 1) if batch_first else padded), from_array(lengths.astype(np.int64))


def pad_sequence(sequences: Any, batch_first: bool = False, padding_value: float = 0.0, padding_side: str = "right") -> Any:
    """Tensors (L, *) of different lengths L as one (T, B, *), or (B, T, *) with ``batch_first``.

    Args:
        padding_side: "right" or "left": where the padding stands.

    Raises:
        ValueError: for any other side. RuntimeError: for no sequences, or trailing sizes that differ.
    """
    if padding_side not in ("left", "right"):
        raise ValueError(f"pad_sequence: padding_side={padding_side!r}; give 'left' or 'right'")
    found = list(sequences)
    if not found:
        raise RuntimeError("pad_sequence: expected at least one sequence")
    total = max(s.shape[0] for s in found)
    rows = []
    for s in found:
        if tuple(s.shape[1:]) != tuple(found[0].shape[1:]):
            raise RuntimeError(f"pad_sequence: trailing sizes differ: {list(found[0].shape)} and {list(s.shape)}")
        missing = total - s.shape[0]
        ends = (missing, 0) if padding_side == "left" else (0, missing)
        pad = PUBLIC[("nn.functional", "pad")].fn
        rows.append(pad(s, [0, 0] * (len(s.shape) - 1) + list(ends), value=padding_value) if missing else s)
    return PUBLIC[("", "stack")].fn(rows, 0 if batch_first else 1)


def unpad_sequence(padded_sequences: Any, lengths: Any, batch_first: bool = False) -> list[Any]:
    """The sequences of a padded tensor, each with its own length."""
    padded = padded_sequences if batch_first else padded_sequences.transpose(0, 1)
    return [padded[k, :n] for k, n in enumerate(_integers(lengths).tolist())]


def pack_sequence(sequences: Iterable[Any], enforce_sorted: bool = True) -> PackedSequence:
    """Tensors (L, *) of different lengths as a `PackedSequence`."""
    found = list(sequences)
    lengths = [s.shape[0] for s in found]
    return pack_padded_sequence(pad_sequence(found), lengths, enforce_sorted=enforce_sorted)


def unpack_sequence(packed_sequences: PackedSequence) -> list[Any]:
    """The inverse of `pack_sequence`."""
    padded, lengths = pad_packed_sequence(packed_sequences, batch_first=True)
    return unpad_sequence(padded, lengths, batch_first=True)
