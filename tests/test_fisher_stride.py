"""The trust region's metric on every n-th step against a float64 loop over tasks; everything else sees all steps."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from helpers.reference_maml import BOX, CPU, DISCRETE, PRODUCT, Reference, capture, flat, random_trial, randomise
from torch import Tensor

from metarl import make
from metarl.agents import AGENTS
from metarl.agents.common.gradient_agent import GradientAgent
from metarl.agents.common.meta_gradient import Batch
from metarl.agents.maml import MAMLTRPOConfig
from metarl.errors import ConfigError
from metarl.rollouts.collector import Collector
from metarl.rollouts.trial import run_trial
from metarl.types import Spec, Trial

SETTINGS: dict[str, Any] = {"hidden_sizes": (5,), "inner_lr": 0.3, "discount": 0.9, "gae_lambda": 0.8, "max_kl": 0.02}


class Thinned(Reference):
    """The reference, its products being those of the KL on every ``stride``-th step from ``offset`` on."""

    def __init__(self, agent: GradientAgent, trial: Trial, stride: int, offset: int) -> None:
        super().__init__(agent, trial)
        self.stride, self.offset = stride, offset

    def product(self, vector: Tensor) -> Tensor:
        """Adaptation sees these steps alone as well: the metric is that of a meta-update with fewer samples."""
        whole = self.tasks, self.old, self.config
        self.tasks = [[self._thin(samples) for samples in task] for task in self.tasks]
        if self.trpo.fisher_metric == "first_order":
            self.config = dataclasses.replace(self.config, first_order=True)
        self.old = [self.policies(self.start, samples) for samples in self.tasks]
        image = super().product(vector)
        self.tasks, self.old, self.config = whole
        return image

    def _thin(self, samples: Any) -> Any:
        steps = range(self.offset % min(self.stride, len(samples.obs)), len(samples.obs), self.stride)
        names = ("obs", "actions", "log_probs", "advantages")
        return dataclasses.replace(samples, **{name: getattr(samples, name)[list(steps)] for name in names})


def build(spec: Spec, num_inner_steps: int = 1, **settings: Any) -> GradientAgent:
    name = "maml-trpo" if num_inner_steps else "pretrained"
    inner = {"num_inner_steps": num_inner_steps} if num_inner_steps else {}
    agent = AGENTS[name](**SETTINGS | inner | settings).build(spec, CPU, 0)
    assert isinstance(agent, GradientAgent)
    return randomise(agent)


def nearest_offset(agent: GradientAgent, trial: Trial, vector: Tensor, image: Tensor) -> tuple[int, float]:
    """The offset at which the reference's product is nearest to ``image``, and how far it is."""
    stride = agent.config.fisher_stride  # type: ignore[attr-defined]
    gaps = [float((Thinned(agent, trial, stride, k).product(vector) - image).abs().max()) for k in range(stride)]
    assert sum(gap < 1e-4 for gap in gaps) <= 1  # Offsets can be told apart.
    return gaps.index(min(gaps)), min(gaps)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("stride", [2, 3, 7])
@pytest.mark.parametrize("num_inner_steps", [0, 1, 2])
@pytest.mark.parametrize("spec", [DISCRETE, BOX, PRODUCT], ids=["categorical", "gaussian", "product"])
def test_products_are_those_of_the_steps_taken_and_the_gradient_is_that_of_all(
    spec: Spec, num_inner_steps: int, stride: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = random_trial(spec, num_inner_steps)
    agent = build(spec, num_inner_steps, fisher_stride=stride)
    reference = Reference(agent, trial)
    before = build(spec, num_inner_steps, fisher_stride=stride)
    gradient, vector, image = capture(agent, trial, monkeypatch)
    assert (gradient - reference.gradient()).abs().max() < 1e-8
    assert nearest_offset(before, trial, vector, image)[1] < 1e-8
    assert (reference.product(vector) - image).abs().max() > 1e-4


@pytest.mark.usefixtures("float64")
def test_first_order_products_can_be_thinned_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    trial = random_trial(BOX, 2)
    settings: dict[str, Any] = {"fisher_stride": 3, "fisher_metric": "first_order"}
    _, vector, image = capture(build(BOX, 2, **settings), trial, monkeypatch)
    assert nearest_offset(build(BOX, 2, **settings), trial, vector, image)[1] < 1e-8


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("task_chunk", [0, 1, 2])
@pytest.mark.parametrize("spec", [DISCRETE, BOX, PRODUCT], ids=["categorical", "gaussian", "product"])
def test_a_step_equals_the_reference_with_loss_and_kl_over_all_steps(
    spec: Spec, task_chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = random_trial(spec, 1)
    settings: dict[str, Any] = {"fisher_stride": 3, "task_chunk": task_chunk}
    probe = build(spec, **settings)
    _, vector, image = capture(probe, trial, monkeypatch)
    offset, _ = nearest_offset(build(spec, **settings), trial, vector, image)
    monkeypatch.undo()
    agent = build(spec, **settings)
    parameters, loss, kl, trials = Thinned(agent, trial, 3, offset).step()
    metrics = agent.meta_update(trial)
    assert (flat(agent.policy.parameters()) - parameters).abs().max() < 1e-8
    assert abs(metrics["loss"] - metrics["improvement"] - loss) < 1e-8
    assert abs(metrics["kl"] - kl) < 1e-8 and 0 < kl <= 0.02
    assert metrics["line_search_trials"] == trials


@pytest.mark.usefixtures("float64")
def test_the_offset_is_drawn_from_the_trial_s_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other updates look at other steps; the same one again, as after a resume, at the same."""
    trial = random_trial(DISCRETE, 1)
    offsets = []
    for seed in range(8):
        found = set()
        for earlier in (0, 3):  # Whatever was drawn before a trial leaves no trace.
            agent = build(DISCRETE, fisher_stride=4)
            agent.generator.manual_seed(earlier)
            agent.seed(seed)
            with monkeypatch.context() as patch:
                _, vector, image = capture(agent, trial, patch)
            found.add(nearest_offset(build(DISCRETE, fisher_stride=4), trial, vector, image)[0])
        (offset,) = found
        offsets.append(offset)
    assert len(set(offsets)) == 4, offsets


# The steps that are taken ---------------------------------------------------------------------------------------------


def batch(lengths: list[list[int]], horizon: int) -> Batch:
    """Observations are the numbers of the valid steps of a task; NaN on padding."""
    valid = torch.arange(horizon) < torch.tensor(lengths)[..., None]
    valid = valid.flatten(1)
    number = torch.where(valid, valid.cumsum(1) - 1.0, torch.nan)
    return Batch(number[..., None], number.clone(), number + 0.25, number + 0.5, valid, torch.zeros(len(lengths)))


def test_offsets_divide_the_valid_steps_among_them() -> None:
    lengths, stride = [[5, 1, 3], [2, 5, 5], [1, 1, 2]], 4
    whole = batch(lengths, 5)
    seen: list[list[float]] = [[], [], []]
    for offset in range(stride):
        part = whole.thinned(stride, offset)
        assert part.valid.shape == (3, 4) and part.valid.any(1).all()
        for task, found in enumerate(seen):
            steps = part.actions[task][part.valid[task]]
            assert steps.tolist() == list(range(offset, sum(lengths[task]), stride))
            assert torch.equal(part.obs[task, :, 0][part.valid[task]], steps)
            assert torch.equal(part.log_probs[task][part.valid[task]], steps + 0.25)
            assert torch.equal(part.advantages[task][part.valid[task]], steps + 0.5)
            found += steps.tolist()
    assert [sorted(found) for found in seen] == [list(map(float, range(sum(row)))) for row in lengths]


def test_a_task_with_fewer_steps_than_the_stride_gives_one() -> None:
    whole = batch([[1, 2], [6, 6]], 6)
    for offset in range(6):
        part = whole.thinned(6, offset)
        assert part.valid.sum(1).tolist() == [1, 2]
        assert part.actions[0][part.valid[0]].tolist() == [offset % 3]


def test_stride_one_takes_all_in_their_order() -> None:
    whole = batch([[6, 6]], 6)
    part = whole.thinned(1, 0)
    assert torch.equal(part.actions, whole.actions) and torch.equal(part.valid, whole.valid)


def test_episodes_that_end_at_once_are_learned_from() -> None:
    """CartPole's first episodes are short: of some tasks few steps are left."""
    cartpole = make("cartpole-goal")
    agent = MAMLTRPOConfig(hidden_sizes=(5,), rollouts_per_task=2, fisher_stride=200).build(cartpole.spec, CPU, 0)
    tasks = cartpole.train.sample(3, np.random.default_rng(0))
    trial = run_trial(agent, Collector(cartpole, 2, CPU), tasks, 1, seed=0)
    assert all(int(rollout.valid.sum((1, 2)).min()) < 200 for rollout in trial.rollouts)
    metrics = agent.meta_update(trial)
    assert all(torch.isfinite(torch.tensor(value)) for value in metrics.values())


# Bad input ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0, -3, 2.0, True])
def test_a_stride_below_one_is_refused(value: Any) -> None:
    with pytest.raises(
        ConfigError, match=rf"MAMLTRPOConfig\.fisher_stride must be a whole number above 0, got {value}"
    ):
        MAMLTRPOConfig(fisher_stride=value)


@pytest.mark.parametrize("name", ["maml-trpo", "fomaml", "e-maml", "meta-sgd", "pretrained"])
def test_a_stride_longer_than_an_episode_is_refused_before_anything_runs(name: str) -> None:
    with pytest.raises(ConfigError, match=r"fisher_stride must be at most 7, the steps in an episode .*, got 8"):
        AGENTS[name](fisher_stride=8).build(BOX, CPU, 0)
    AGENTS[name](fisher_stride=7).build(BOX, CPU, 0)
