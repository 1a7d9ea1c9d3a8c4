"""Seeds: the same key gives the same numbers, any other key independent ones."""

from __future__ import annotations

import itertools
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from deeplense import rng
from deeplense.errors import UserError

seeds = st.integers(0, 2**63)
streams = st.sampled_from(["train/macro", "val/macro", "train/noise", "order", ""])
keys = st.lists(st.integers(0, 2**31), max_size=2).map(tuple)


@settings(max_examples=50, deadline=None)
@given(seed=seeds, stream=streams, key=keys)
def test_the_same_key_gives_the_same_numbers(seed: int, stream: str, key: tuple[int, ...]) -> None:
    first, again = (rng.generator(seed, stream, *key).random(8) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    one, two = (torch.rand(8, generator=rng.torch_generator(seed, stream, *key)) for _ in range(2))
    assert torch.equal(one, two)
    assert rng.integer(seed, stream, *key) == rng.integer(seed, stream, *key)
    assert 0 <= rng.integer(seed, stream, *key) < 2**63


@settings(max_examples=100, deadline=None)
@given(a=st.tuples(seeds, streams, keys), b=st.tuples(seeds, streams, keys))
def test_another_key_gives_other_numbers(
    a: tuple[int, str, tuple[int, ...]], b: tuple[int, str, tuple[int, ...]]
) -> None:
    # SeedSequence pads its entropy with zeros: a trailing block 0 is the same as none
    trimmed = [(seed, stream, tuple(np.trim_zeros(key, "b"))) for seed, stream, key in (a, b)]
    same = trimmed[0] == trimmed[1]
    draws = [rng.generator(seed, stream, *key).random(4) for seed, stream, key in (a, b)]
    if a == b:
        np.testing.assert_array_equal(*draws)
    elif not same:
        assert not np.array_equal(*draws)
        assert rng.integer(a[0], a[1], *a[2]) != rng.integer(b[0], b[1], *b[2])


def test_streams_and_neighbouring_blocks_are_uncorrelated() -> None:
    n = 20000
    key = [(0, "train", 0), (0, "train", 1), (0, "val", 0), (1, "train", 0), (1, "val", 1)]
    draws = [rng.generator(*k).standard_normal(n) for k in key]
    for a, b in itertools.combinations(draws, 2):
        assert abs(np.corrcoef(a, b)[0, 1]) < 5 / n**0.5


def test_the_first_number_of_many_blocks_is_uniform() -> None:
    """What a poor hash of the seed would show first."""
    first = np.array([rng.generator(0, "train", block).random() for block in range(4000)])
    assert stats.kstest(first, stats.uniform.cdf).pvalue > 1e-3
    assert abs(stats.spearmanr(first[:-1], first[1:]).statistic) < 5 / 4000**0.5
    seeds = np.array([rng.integer(seed, "train") for seed in range(4000)]) / 2**63
    assert stats.kstest(seeds, stats.uniform.cdf).pvalue > 1e-3


def test_torch_generator_has_the_seed_of_integer() -> None:
    generator = rng.torch_generator(3, "weights", 5)
    assert generator.device.type == "cpu"
    assert generator.initial_seed() == rng.integer(3, "weights", 5)
    expected = torch.rand(5, generator=torch.Generator().manual_seed(rng.integer(3, "weights", 5)))
    assert torch.equal(torch.rand(5, generator=generator), expected)


def test_numbers_are_the_same_in_another_process() -> None:
    """Python's own `hash` of a stream's name would differ between processes."""
    code = "from deeplense import rng; print(rng.integer(7, 'train/macro', 3))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert int(found) == rng.integer(7, "train/macro", 3)


def test_numbers_are_those_of_the_first_release() -> None:
    """Another value here means that no stored dataset can be made again."""
    assert rng.integer(0, "train/macro", 0) == 1546937034958089951
    np.testing.assert_allclose(rng.generator(0, "train/macro", 0).random(2), [0.25675798, 0.68014563], atol=1e-8)


def test_a_negative_seed_is_refused() -> None:
    with pytest.raises(UserError, match="seed -1: it must not be negative"):
        rng.generator(-1, "train")
