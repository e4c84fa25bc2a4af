"""Streams of a batch: what a row draws is a function of its own seed, whoever stands beside it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from metarl.networks.noise import TaskNoise
from metarl.seeding import GAMMA, hashed, row_keys
from metarl.vector.streams import RowStreams

CPU = torch.device("cpu")


def _splitmix64(seed: int, number: int) -> list[int]:
    """Vigna's public-domain C code, in Python's integers."""
    found, mask = [], 2**64 - 1
    for _ in range(number):
        seed = (seed + GAMMA) & mask
        z = seed
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        found.append(z ^ (z >> 31))
    return found


def test_hashes_are_those_of_splitmix64() -> None:
    expected = _splitmix64(1234567, 5)
    # The first numbers of the reference implementation for this seed.
    assert expected[:2] == [6457827717110365317, 3203168211198807973]
    with np.errstate(over="ignore"):
        counters = np.uint64(1234567) + np.arange(1, 6, dtype=np.uint64) * np.uint64(GAMMA)
    assert hashed(counters).tolist() == expected


def test_numbers_on_a_device_are_those_of_the_hash() -> None:
    noise = TaskNoise(CPU)
    noise.seed(5)
    first = noise.uniform((3, 2), torch.float64)
    keys = row_keys(5, np.arange(3, dtype=np.uint64)).tolist()
    expected = [[(number >> 12) + 0.5 for number in _splitmix64(key, 2)] for key in keys]
    assert torch.equal(first, torch.tensor(expected, dtype=torch.float64) * 2.0**-52)


def _draws(noise: TaskNoise, num_tasks: int, num_draws: int = 80) -> torch.Tensor:
    return torch.stack([noise.normal((num_tasks, 2, 3)) for _ in range(num_draws)], 1)


def test_a_task_draws_the_same_in_any_company() -> None:
    whole, part = TaskNoise(CPU), TaskNoise(CPU)
    whole.seed(3)
    together = _draws(whole, 5)
    for first in range(5):
        part.seed(3, first_task=first)
        assert torch.equal(_draws(part, 1)[0], together[first])
    assert len(together.unique()) == together.numel()


def test_other_seeds_and_draws_give_other_numbers() -> None:
    noise = TaskNoise(CPU)
    seen = []
    for seed in (1, 2):
        noise.seed(seed)
        seen += [noise.uniform((4, 7)), noise.uniform((4, 7)), noise.uniform((4, 3))]
    assert len(torch.cat([draw.flatten() for draw in seen]).unique()) > 130


def test_draws_of_one_kind_leave_those_of_another_as_they_are_and_may_be_changed() -> None:
    mixed, plain = TaskNoise(CPU, 4), TaskNoise(CPU, 4)
    for draw in range(70):
        kinds = (mixed.uniform, mixed.normal)
        chosen = kinds[draw % 2]((2, 3), torch.float64)
        uniform = plain.uniform((2, 3), torch.float64)
        assert torch.equal(chosen, torch.special.ndtri(uniform) if draw % 2 else uniform)
        chosen.zero_()
    again = TaskNoise(CPU, 4)
    assert all((again.normal((2, 3)) != 0).all() for _ in range(70))


def test_streams_may_be_drawn_from_in_turn() -> None:
    noise, expected = TaskNoise(CPU), []
    for first in (0, 3):
        noise.seed(1, first)
        expected.append([noise.normal((3, 2)) for _ in range(40)])
    streams = []
    for first in (0, 3):
        noise.seed(1, first)
        streams.append(noise.stream)
    for draw in range(40):
        for stream, draws in zip(streams, expected, strict=True):
            noise.stream = stream
            assert torch.equal(noise.normal((3, 2)), draws[draw])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_noise_has_its_distribution(dtype: torch.dtype) -> None:
    noise = TaskNoise(CPU)
    noise.seed(11)
    uniform = noise.uniform((50, 400), dtype).flatten().numpy()
    normal = noise.normal((50, 400), dtype).flatten().numpy()
    assert uniform.dtype == normal.dtype and uniform.min() > 0 and uniform.max() < 1
    assert stats.kstest(uniform, "uniform").pvalue > 0.01
    assert stats.kstest(normal, "norm").pvalue > 0.01
    correlation = np.corrcoef(normal.reshape(50, 400))[np.triu_indices(50, 1)]
    assert abs(correlation).max() < 5 / 400**0.5


def test_a_row_draws_the_same_in_any_company() -> None:
    together = RowStreams(np.array([7, 8, 9]))
    alone = RowStreams(np.array([8]))
    for draw in (
        lambda rng, n: rng.random(n),
        lambda rng, n: rng.uniform(-1.0, 2.0, (n, 4)),
        lambda rng, n: rng.standard_normal((n, 2)),
        lambda rng, n: rng.normal(1.0, 3.0, n),
        lambda rng, n: rng.integers(0, 5, (n, 3)),
    ):
        assert np.array_equal(draw(together, 3)[1:2], draw(alone, 1))


def test_some_rows_may_draw_and_begin_anew_without_the_others() -> None:
    streams, expected = RowStreams(np.array([1, 2, 3])), RowStreams(np.array([1, 2, 3]))
    rows = np.array([True, False, True])
    part = streams.of(rows)
    drawn = part.random((2, 2))
    streams.update(rows, part)
    reference = expected.random((3, 2))
    assert np.array_equal(drawn, reference[rows])
    assert np.array_equal(streams.random(3)[rows], expected.random(3)[rows])
    streams.reseed(rows, np.array([1, 3]))
    assert np.array_equal(streams.random((3, 2))[rows], reference[rows])


def test_rows_have_their_distributions() -> None:
    streams = RowStreams(np.arange(200))
    samples: dict[str, tuple[Any, Any]] = {
        "uniform": (streams.uniform(-2.0, 3.0, (200, 100)), stats.uniform(-2.0, 5.0)),
        "normal": (streams.normal(1.0, 2.0, (200, 100)), stats.norm(1.0, 2.0)),
    }
    for values, distribution in samples.values():
        assert stats.kstest(values.flatten(), distribution.cdf).pvalue > 0.01
    counts = np.bincount(streams.integers(0, 5, (200, 100)).flatten(), minlength=5)
    assert stats.chisquare(counts).pvalue > 0.01


@pytest.mark.parametrize("size", [2, (4, 3), ()])
def test_another_number_of_rows_is_refused(size: Any) -> None:
    with pytest.raises(ValueError, match="size must begin with 3"):
        RowStreams(np.arange(3)).random(size)
