"""Datasets, samplers, collation and the DataLoader."""

from __future__ import annotations

from collections import namedtuple
from typing import Any

import numpy as np
import pytest

import cermet as ct
from cermet import data as d


class Squares(d.Dataset):
    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> Any:
        return ct.tensor([float(i), float(i * i)]), i


class Stream(d.IterableDataset):
    def __init__(self, n: int) -> None:
        self.n = n

    def __iter__(self) -> Any:
        return iter(range(self.n))


# ------------------------------------------------------------------------------------------------------------- datasets


def test_datasets_of_datasets() -> None:
    a, b = Squares(3), Squares(5)
    both = a + b
    assert len(both) == 8 and both[4][1] == 1 and both[-1][1] == 4
    with pytest.raises(ValueError, match="before the first of 8"):
        both[-9]
    assert d.Subset(b, [4, 0])[0][1] == 4 and len(d.Subset(b, [4, 0])) == 2
    assert d.StackDataset(a, a)[1][0][1] == 1 and d.StackDataset(x=a)[2]["x"][1] == 2
    assert list(Stream(2) + Stream(3)) == [0, 1, 0, 1, 2]
    for bad in (
        lambda: d.ConcatDataset([]),
        lambda: d.ConcatDataset([Stream(1)]),
        lambda: d.TensorDataset(ct.zeros(2), ct.zeros(3)),
    ):
        with pytest.raises(AssertionError):
            bad()
    for wrong in (lambda: d.StackDataset(), lambda: d.StackDataset(a, x=a), lambda: d.StackDataset(a, b)):
        with pytest.raises(ValueError):
            wrong()


def test_random_split_is_a_partition_and_repeats() -> None:
    dataset = d.TensorDataset(ct.arange(10))
    parts = d.random_split(dataset, [7, 3], ct.Generator().manual_seed(3))
    assert sorted([*parts[0].indices, *parts[1].indices]) == list(range(10))
    again = d.random_split(dataset, [0.7, 0.3], ct.Generator().manual_seed(3))
    assert [p.indices for p in again] == [p.indices for p in parts]
    assert [len(p) for p in d.random_split(dataset, [0.33, 0.33, 0.34])] == [4, 3, 3]
    with pytest.raises(ValueError, match="must add up"):
        d.random_split(dataset, [5, 4])
    with pytest.warns(UserWarning, match="fraction 1 of 2 samples leaves none"):
        d.random_split(d.TensorDataset(ct.arange(2)), [0.95, 0.05])


# ------------------------------------------------------------------------------------------------------------- samplers


def test_random_order_is_seeded_and_changes_from_pass_to_pass() -> None:
    ct.manual_seed(5)
    sampler = d.RandomSampler(range(100))
    first, second = list(sampler), list(sampler)
    assert sorted(first) == list(range(100)) and first != second
    ct.manual_seed(5)
    assert list(d.RandomSampler(range(100))) == first
    mine = ct.Generator().manual_seed(1)
    ordered = list(d.RandomSampler(range(100), generator=mine))
    assert ordered == list(d.RandomSampler(range(100), generator=ct.Generator().manual_seed(1)))


def test_random_sampler_options() -> None:
    assert len(list(d.RandomSampler(range(5), num_samples=12))) == 12
    assert len(set(d.RandomSampler(range(5), num_samples=3))) == 3
    drawn = list(d.RandomSampler(range(5), replacement=True, num_samples=200))
    assert len(drawn) == 200 and set(drawn) == set(range(5))
    assert list(d.RandomSampler([])) == []
    with pytest.raises(ValueError, match="num_samples=0"):
        d.RandomSampler(range(5), num_samples=0)
    with pytest.raises(TypeError, match="replacement=1"):
        d.RandomSampler(range(5), replacement=1)
    with pytest.raises(TypeError, match=r"cermet\.Generator"):
        list(d.RandomSampler(range(5), generator=np.random.default_rng()))


def test_other_samplers() -> None:
    assert sorted(d.SubsetRandomSampler([3, 5, 9])) == [3, 5, 9]
    drawn = list(d.WeightedRandomSampler([0.0, 3.0, 1.0], 4000))
    assert 0 not in drawn and abs(drawn.count(1) / 4000 - 0.75) < 0.03
    assert sorted(d.WeightedRandomSampler([1.0, 0.0, 2.0], 2, replacement=False)) == [0, 2]
    with pytest.raises(RuntimeError, match="only 1 weights are above 0"):
        list(d.WeightedRandomSampler([1.0, 0.0], 2, replacement=False))
    with pytest.raises(RuntimeError, match=r"a weight is -1\.0"):
        list(d.WeightedRandomSampler([1.0, -1.0], 2))
    with pytest.raises(ValueError, match="one number for each index"):
        d.WeightedRandomSampler([[1.0]], 2)
    assert list(d.BatchSampler(range(5), 2, False)) == [[0, 1], [2, 3], [4]]
    assert list(d.BatchSampler(range(5), 2, True)) == [[0, 1], [2, 3]] and len(d.BatchSampler(range(5), 2, True)) == 2
    with pytest.raises(ValueError, match="batch_size"):
        d.BatchSampler(range(5), 0, True)


@pytest.mark.parametrize("drop_last", [False, True])
def test_distributed_sampler_shares(drop_last: bool) -> None:
    shares = [d.DistributedSampler(range(10), 4, r, drop_last=drop_last) for r in range(4)]
    for s in shares:
        s.set_epoch(2)
    taken = [i for s in shares for i in s]
    assert len({len(list(s)) for s in shares}) == 1 and len(shares[0]) == (2 if drop_last else 3)
    assert len(set(taken)) == (8 if drop_last else 10)
    assert list(d.DistributedSampler(range(2), 5, 3, shuffle=False)) == [1]
    with pytest.raises(ValueError, match="rank=2"):
        d.DistributedSampler(range(2), 2, 2)
    with pytest.raises(RuntimeError, match="num_replicas"):
        d.DistributedSampler(range(2))


# -------------------------------------------------------------------------------------------------------------- collate


def test_default_collate() -> None:
    Point = namedtuple("Point", "x y")
    out = d.default_collate([{"a": ct.tensor([1.0]), "b": (1, "s")}, {"a": ct.tensor([2.0]), "b": (2, "t")}])
    assert out["a"].tolist() == [[1.0], [2.0]] and out["b"][0].tolist() == [1, 2] and out["b"][1] == ("s", "t")
    assert d.default_collate([1.5, 2.5]).dtype is ct.float64
    assert d.default_collate([1, 2]).dtype is ct.int64
    assert d.default_collate([np.float32(1), np.float32(2)]).dtype is ct.float32
    assert d.default_collate([np.zeros((2, 3), np.int32)] * 4).shape == (4, 2, 3)
    point = d.default_collate([Point(1, 2), Point(3, 4)])
    assert type(point) is Point and point.y.tolist() == [2, 4]
    assert [t.tolist() for t in d.default_collate([[1, 2], [3, 4]])] == [[1, 3], [2, 4]]
    with pytest.raises(RuntimeError, match=r"sample 0 has shape \[1\] and sample 1 \[2\]"):
        d.default_collate([ct.zeros(1), ct.zeros(2)])
    with pytest.raises(RuntimeError, match=r"different lengths \[1, 2\]"):
        d.default_collate([[1], [1, 2]])
    with pytest.raises(TypeError, match="cannot stack samples of <class 'object'>"):
        d.default_collate([object()])


def test_collated_gradients_flow() -> None:
    a, b = (ct.tensor([1.0, 2.0]).requires_grad_() for _ in range(2))
    (d.default_collate([a, b]) * ct.tensor([[1.0, 2.0], [3.0, 4.0]])).sum().backward()
    assert a.grad.tolist() == [1.0, 2.0] and b.grad.tolist() == [3.0, 4.0]


def test_default_convert() -> None:
    out = d.default_convert({"a": np.ones(2, np.float32), "b": ("x", [np.int64(3)])})
    assert isinstance(out["a"], ct.Tensor) and out["b"][0] == "x" and out["b"][1][0].item() == 3


# --------------------------------------------------------------------------------------------------------------- loader


def test_batches_of_a_map() -> None:
    loader = d.DataLoader(Squares(5), batch_size=2)
    batches = list(loader)
    assert len(loader) == len(batches) == 3
    assert batches[1][0].tolist() == [[2.0, 4.0], [3.0, 9.0]] and batches[2][1].tolist() == [4]
    assert len(list(d.DataLoader(Squares(5), 2, drop_last=True))) == 2
    single = list(d.DataLoader(Squares(3), batch_size=None))
    assert single[2][1] == 2 and single[2][0].tolist() == [2.0, 4.0]
    assert [b[1].tolist() for b in d.DataLoader(Squares(5), batch_sampler=[[4, 0], [1]])] == [[4, 0], [1]]
    assert list(d.DataLoader(Squares(3), 2, collate_fn=lambda samples: [s[1] for s in samples])) == [[0, 1], [2]]


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: d.Subset(x, list(range(19, -1, -1)))])
def test_rows_are_gathered_as_default_collate_would(wrap: Any) -> None:
    rng = np.random.default_rng(0)
    tensors = (
        ct.tensor(rng.normal(size=(20, 3, 2)).astype(np.float32)), ct.arange(20), ct.tensor(rng.normal(size=20)).bfloat16(),
        ct.arange(20) > 7, ct.zeros(20, 0),
    )  # fmt: skip
    dataset = wrap(d.TensorDataset(*tensors))
    for shuffle in (False, True):
        ct.manual_seed(1)
        fast = list(d.DataLoader(dataset, 8, shuffle=shuffle))
        ct.manual_seed(1)
        slow = list(d.DataLoader(dataset, 8, shuffle=shuffle, collate_fn=lambda samples: d.default_collate(samples)))
        for x, y in zip(fast, slow, strict=True):
            assert type(x) is type(y) is list
            for a, b in zip(x, y, strict=True):
                assert a.dtype is b.dtype and a.shape == b.shape and a.tolist() == b.tolist()


def test_gathering_records_and_compiles_nothing() -> None:
    dataset = d.TensorDataset(ct.tensor(np.ones((640, 8), np.float32)))
    before = ct.stats()
    for _ in d.DataLoader(dataset, 64, shuffle=True):
        pass
    assert {k: ct.stats()[k] for k in ("evaluations", "programs_compiled")} == {
        k: before[k] for k in ("evaluations", "programs_compiled")
    }


def test_a_subclass_that_changes_samples_is_asked() -> None:
    class Doubled(d.TensorDataset):
        def __getitem__(self, i: Any) -> Any:
            return (super().__getitem__(i)[0] * 2,)

    assert next(iter(d.DataLoader(Doubled(ct.arange(4)), 4)))[0].tolist() == [0, 2, 4, 6]


def test_a_batch_keeps_its_values_when_the_data_change() -> None:
    x = ct.zeros(4)
    (batch,) = next(iter(d.DataLoader(d.TensorDataset(x), 4)))
    x.add_(1.0)
    assert batch.tolist() == [0.0] * 4
    assert next(iter(d.DataLoader(d.TensorDataset(x), 4)))[0].tolist() == [1.0] * 4


def test_rows_that_are_not_there() -> None:
    with pytest.raises(IndexError, match="no row 9 in a dataset of 4"):
        list(d.DataLoader(d.TensorDataset(ct.arange(4)), batch_sampler=[[0, 9]]))


def test_several_items_at_once() -> None:
    class Many(Squares):
        def __getitems__(self, indices: list[int]) -> Any:
            return [(ct.tensor([0.0]), -i) for i in indices]

    assert next(iter(d.DataLoader(Many(4), 4)))[1].tolist() == [0, -1, -2, -3]
    assert next(iter(d.DataLoader(d.Subset(Many(4), [3, 1]), 2)))[1].tolist() == [-3, -1]


def test_streams() -> None:
    assert [b.tolist() for b in d.DataLoader(Stream(5), 2)] == [[0, 1], [2, 3], [4]]
    assert [b.tolist() for b in d.DataLoader(Stream(5), 2, drop_last=True)] == [[0, 1], [2, 3]]
    assert list(d.DataLoader(Stream(3), None)) == [0, 1, 2]
    with pytest.raises(TypeError):
        len(d.DataLoader(Stream(3)))

    class Short(Stream):
        def __len__(self) -> int:
            return 2

    loader = d.DataLoader(Short(3))
    assert len(loader) == 2
    with pytest.warns(UserWarning, match="of this DataLoader is 2"):
        list(loader)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"num_workers": 2}, NotImplementedError, "num_workers=0"),
        ({"num_workers": -1}, ValueError, "num_workers=-1"),
        ({"timeout": -1}, ValueError, "timeout"),
        ({"prefetch_factor": 2}, ValueError, "prefetch_factor"),
        ({"persistent_workers": True}, ValueError, "persistent_workers"),
        ({"multiprocessing_context": "fork"}, ValueError, "multiprocessing_context"),
        ({"shuffle": True, "sampler": [0]}, ValueError, "both give an order"),
        ({"batch_sampler": [[0]], "batch_size": 2}, ValueError, "leave out batch_size"),
        ({"batch_size": None, "drop_last": True}, ValueError, "drop_last"),
        ({"batch_size": 0}, ValueError, "batch_size=0"),
    ],
)
def test_refusals(options: dict[str, Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        d.DataLoader(Squares(3), **options)


def test_refusals_for_streams_and_late_changes() -> None:
    for options in ({"shuffle": True}, {"sampler": [0]}, {"batch_sampler": [[0]]}):
        with pytest.raises(ValueError, match="IterableDataset"):
            d.DataLoader(Stream(3), **options)
    loader = d.DataLoader(Squares(3))
    with pytest.raises(ValueError, match="batch_size cannot be changed"):
        loader.batch_size = 2
    assert d.get_worker_info() is None


def test_the_same_names_under_utils() -> None:
    import cermet.utils.data as other

    assert other.DataLoader is d.DataLoader and set(other.__all__) == set(d.__all__)
