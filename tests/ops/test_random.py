"""Random numbers: the published stream, reproducibility, what moves the state, and the distributions' moments."""

from __future__ import annotations

import numpy as np
import pytest

import cermet as ct
from cermet.ops.define import REGISTRY


def test_philox_known_answers() -> None:
    """The vectors published with the generator (Random123, kat_vectors): zeros, and ones in key and the counter's two words."""
    philox = REGISTRY["philox"].reference
    assert [int(philox(0, 0, word=w)) for w in range(4)] == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]  # type: ignore[misc]


def test_running_words_are_those_of_blocks() -> None:
    """Uniform float32 numbers take the words of one block after another, wherever a draw begins."""
    philox = REGISTRY["philox"].reference
    ct.manual_seed(9)
    parts = [ct.rand(n).numpy() for n in (3, 64, 1, 37)]
    words = np.array([philox(9, k, word=4) for k in range(105)])  # type: ignore[misc]
    assert (np.concatenate(parts) == (words >> 8) * np.float32(2.0**-24)).all()
    assert (ct.manual_seed(9) and ct.rand(105).numpy() == np.concatenate(parts)).all()


def test_normal_numbers_are_cosine_and_sine_of_pairs() -> None:
    """Numbers 2k and 2k + 1 share two words, wherever a draw begins, in lanes of any width and in rows of any length."""
    philox = REGISTRY["philox"].reference
    ct.manual_seed(7)
    parts = [ct.randn(*shape).numpy().ravel() for shape in ((3,), (64,), (1,), (5, 7), (3, 27))]
    got = np.concatenate(parts)
    n = np.arange(len(got))
    first, second = ([int(philox(7, k, word=w)) for k in n] for w in (5, 6))  # type: ignore[misc]
    assert first[0::2] == first[1::2]
    assert [(x - (1 << 30)) % 2**32 for x in second[0::2]] == second[1::2]
    radius = np.sqrt(-2 * np.log((np.array(first) + 1) * 2.0**-32))
    np.testing.assert_allclose(got, radius * np.cos(2 * np.pi * (np.array(second) >> 8) * 2.0**-24), rtol=1e-5, atol=2e-6)
    assert (ct.manual_seed(7) and ct.randn(len(got)).numpy() == got).all()


def test_a_seed_repeats_its_stream() -> None:
    ct.manual_seed(5)
    first = [ct.rand(3).tolist(), ct.randn(4).tolist(), ct.randint(0, 10, (5,)).tolist(), ct.randperm(6).tolist()]
    ct.manual_seed(5)
    assert first == [ct.rand(3).tolist(), ct.randn(4).tolist(), ct.randint(0, 10, (5,)).tolist(), ct.randperm(6).tolist()]
    assert ct.rand(3).tolist() != first[0]


def test_the_order_of_looking_does_not_matter() -> None:
    ct.manual_seed(1)
    a, b = ct.rand(3), ct.rand(3)
    late = b.tolist(), a.tolist()
    ct.manual_seed(1)
    a = ct.rand(3)
    soon = a.tolist()
    assert late == (ct.rand(3).tolist(), soon)


def test_states_and_generators() -> None:
    g = ct.Generator().manual_seed(3)
    a = ct.rand(4, generator=g).tolist()
    state = g.get_state()
    b = ct.rand(4, generator=g).tolist()
    g.set_state(state)
    assert ct.rand(4, generator=g).tolist() == b != a
    assert ct.rand(4, generator=ct.Generator().manual_seed(3)).tolist() == a
    before = ct.get_rng_state()
    c = ct.randn(3).tolist()
    ct.set_rng_state(before)
    assert ct.randn(3).tolist() == c
    assert ct.manual_seed(11).initial_seed() == ct.initial_seed() == 11
    with pytest.raises(RuntimeError, match="16 bytes"):
        g.set_state(ct.zeros(3, dtype=ct.uint8))


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_uniform_stays_below_one(dtype: str) -> None:
    x = ct.rand(20000, dtype=getattr(ct, dtype)).double().numpy()
    assert x.min() >= 0 and x.max() < 1
    assert abs(x.mean() - 0.5) < 0.01 and abs(x.var() - 1 / 12) < 0.005


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_normal_moments(dtype: str) -> None:
    x = ct.randn(50000, dtype=getattr(ct, dtype)).double().numpy()
    assert abs(x.mean()) < 0.02 and abs(x.std() - 1) < 0.02
    assert abs((x**3).mean()) < 0.06 and abs((x**4).mean() - 3) < 0.12
    assert np.isfinite(x).all()


def test_integers_and_orders() -> None:
    x = ct.randint(-2, 3, (5000,)).numpy()
    assert set(x.tolist()) == {-2, -1, 0, 1, 2}
    assert sorted(ct.randperm(100).tolist()) == list(range(100))
    with pytest.raises(RuntimeError, match="empty"):
        ct.randint(3, 3, (2,))


def test_choices() -> None:
    weights = ct.tensor([0.0, 1.0, 3.0])
    x = ct.multinomial(weights, 8000, replacement=True).numpy()
    assert (x == 0).sum() == 0 and abs((x == 2).mean() - 0.75) < 0.03
    rows = ct.multinomial(ct.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 1.0]]), 2).numpy()
    assert sorted(rows[0]) == [0, 1] and sorted(rows[1]) == [1, 2]
    with pytest.raises(RuntimeError, match="without replacement"):
        ct.multinomial(weights, 4)
    assert abs(ct.bernoulli(ct.full((8000,), 0.3)).mean().item() - 0.3) < 0.03
    assert abs(ct.poisson(ct.full((8000,), 3.0)).mean().item() - 3) < 0.1
    assert abs(ct.empty(8000).exponential_(2.0).mean().item() - 0.5) < 0.03


def test_nothing_of_the_state_is_in_the_program() -> None:
    """Seed and offset are run-time scalars: two draws have one structure."""
    from cermet.lazy.record import local

    keys = []
    for seed in (1, 2):
        ct.manual_seed(seed)
        local.tape.reset()
        held = ct.randn(3, 4)
        keys.append(list(local.tape.key))
        assert tuple(held.shape) == (3, 4)
        local.tape.reset()
    assert keys[0] == keys[1]
