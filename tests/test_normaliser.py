"""Running moments, against all numbers at once."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import Tensor

from metarl.networks.normaliser import RunningMoments


def batches() -> list[tuple[Tensor, Tensor]]:
    """Of different shapes and sizes, far from zero; padding is NaN-free rubbish."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for shape in ((3, 2, 5), (1, 1, 1), (4, 3, 7)):
        x = 1000.0 + torch.randn(*shape, 2, generator=generator) * torch.tensor([1.0, 30.0])
        valid = torch.rand(shape, generator=generator) < 0.7
        valid[0, 0, 0] = True
        found.append((torch.where(valid[..., None], x, torch.tensor(-1e6)), valid))
    return found


def test_moments_in_pieces_equal_those_of_all_valid_entries_at_once() -> None:
    moments = RunningMoments(2)
    for x, valid in batches():
        moments.update(x, valid)
    everything = torch.cat([x[valid] for x, valid in batches()]).double()
    assert moments.count.item() == len(everything)
    assert torch.allclose(moments.mean, everything.mean(0), rtol=1e-12)
    assert torch.allclose(moments.std.double(), everything.std(0, correction=0), rtol=1e-6)


def test_normalised_numbers_are_shifted_scaled_and_clipped() -> None:
    moments = RunningMoments(2)
    x, valid = batches()[2]
    moments.update(x, valid)
    normal = moments.normalise(x[valid])
    assert normal.dtype == torch.float32
    assert normal.mean(0).abs().max() < 1e-3 and (normal.std(0, correction=0) - 1).abs().max() < 1e-3
    assert moments.normalise(torch.tensor([1e9, -1e9])).tolist() == [10.0, -10.0]


@pytest.mark.parametrize("constant", [0.0, 5.0])
def test_before_the_first_update_and_for_constant_features_nothing_is_scaled(constant: float) -> None:
    moments = RunningMoments(1)
    assert moments.normalise(torch.tensor([3.0])).tolist() == [3.0]
    moments.update(torch.full((4, 1), constant), torch.ones(4, dtype=torch.bool))
    assert moments.normalise(torch.tensor([constant + 3.0])).tolist() == [3.0]


def test_moments_are_part_of_the_state_dict() -> None:
    moments, other = RunningMoments(2), RunningMoments(2)
    moments.update(*batches()[0])
    other.load_state_dict(moments.state_dict())
    assert torch.equal(other.mean, moments.mean) and torch.equal(other.std, moments.std) and other.count > 0


def test_what_is_kept_follows_every_change_of_the_moments() -> None:
    """By an update, a state dict, a number written in place, and another type or copy of the module."""
    moments, other = RunningMoments(2), RunningMoments(2)
    other.update(*batches()[2])

    def fresh(moments: RunningMoments) -> Tensor:
        found = RunningMoments(2)
        found.load_state_dict(moments.state_dict())
        return found.normalise(x)

    x = torch.tensor([1000.5, 1010.0])
    seen = [moments.normalise(x)]
    for change in (
        lambda: moments.update(*batches()[0]),
        lambda: moments.load_state_dict(other.state_dict()),
        lambda: moments.mean.add_(1.0),
        lambda: moments.squares.copy_(moments.squares * 2.0),
    ):
        change()  # type: ignore[no-untyped-call]
        seen.append(moments.normalise(x))
        assert torch.equal(seen[-1], fresh(moments))
    assert all(not torch.equal(one, following) for one, following in itertools.pairwise(seen))
    twin = copy.deepcopy(moments)
    twin.mean += 5.0
    assert torch.equal(twin.normalise(x), fresh(twin)) and torch.equal(moments.normalise(x), seen[-1])
    assert moments.to(torch.float32).normalise(x).allclose(seen[-1])


@pytest.mark.parametrize("padding", [torch.inf, torch.nan])
def test_what_stands_on_padding_moves_no_moment(padding: float) -> None:
    clean, filled = RunningMoments(2), RunningMoments(2)
    for x, valid in batches():
        clean.update(x, valid)
        filled.update(torch.where(valid[..., None], x, padding), valid)
    assert torch.equal(filled.mean, clean.mean) and torch.equal(filled.squares, clean.squares)
