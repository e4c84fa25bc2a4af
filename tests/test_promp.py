"""MAML-PPO and ProMP against a float64 loop over tasks with an Adam of its own."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.reference_maml import BOX, CPU, DISCRETE, Reference, flat, meta_vector, random_trial, randomise
from torch import Tensor
from torch.distributions import kl_divergence

from metarl.agents import MAMLPPOConfig, ProMPConfig
from metarl.agents.common.gradient_agent import GradientAgent
from metarl.agents.maml_ppo import ClippedConfig
from metarl.errors import ConfigError, NonFiniteError
from metarl.runs.checkpoint import load, save
from metarl.types import Spec, Trial

SETTINGS: dict[str, Any] = {
    "hidden_sizes": (5,),
    "inner_lr": 0.3,
    "discount": 0.9,
    "gae_lambda": 0.8,
    "meta_lr": 0.01,
    "num_epochs": 3,
    "clip_range": 0.5,
}
CONFIGS: dict[str, ClippedConfig] = {
    "maml-ppo": MAMLPPOConfig(**SETTINGS),
    "promp": ProMPConfig(**SETTINGS, kl_coef=1.0),
}


class ClippedReference(Reference):
    """All epochs of an update, and Adam's moments from one update to the next (Kingma, Ba, 2015, Algorithm 1)."""

    def __init__(self, agent: GradientAgent, trial: Trial, kl_coef: float = 0.0) -> None:
        self.kl_coef = kl_coef
        self.moments = (torch.zeros(()), torch.zeros(()))
        self.num_steps = 0
        super().__init__(agent, trial)

    @property
    def ppo(self) -> ClippedConfig:
        assert isinstance(self.config, ClippedConfig)
        return self.config

    def objective(self, task: int, stages: list[list[Tensor]]) -> Tensor:
        outer = self.tasks[task][-1]
        ratio, bound = self.ratio(stages[-1], outer), self.ppo.clip_range
        clipped = torch.where(ratio > 1 + bound, 1 + bound, torch.where(ratio < 1 - bound, 1 - bound, ratio))
        gains = torch.stack([ratio * outer.advantages, clipped * outer.advantages]).amin(0)
        return -gains.mean() + self.kl_coef * self.pre_update_kl(task, stages)

    def pre_update_kl(self, task: int, stages: list[list[Tensor]]) -> Tensor:
        kls = [
            kl_divergence(self.old[task][stage], self.policy(stages[stage], samples.obs)).mean()
            for stage, samples in enumerate(self.tasks[task][:-1])
        ]
        return sum(kls, torch.zeros(())) / len(kls)

    def mean_pre_update_kl(self) -> float:
        kls = [self.pre_update_kl(task, self.stages(self.start, part)) for task, part in enumerate(self.tasks)]
        return torch.stack(kls).mean().item()

    def clipped_share(self) -> float:
        """Share of the steps after adaptation whose ratio lies outside the clip range."""
        ratios = [self.ratio(self.adapt(self.start, samples), samples[-1]) for samples in self.tasks]
        return ((torch.cat(ratios) - 1).abs() > self.ppo.clip_range).double().mean().item()

    def update(self) -> list[float]:
        """Move ``start``; returns the loss before each step."""
        losses = []
        for _ in range(self.ppo.num_epochs):
            losses.append(self.surrogate(self.start).item())
            slope = self.gradient()
            self.num_steps += 1
            first, second = self.moments
            first, second = 0.9 * first + 0.1 * slope, 0.999 * second + 0.001 * slope**2
            self.moments = first, second
            unbiased = first / (1 - 0.9**self.num_steps), second / (1 - 0.999**self.num_steps)
            self.start = self.unflatten(flat(self.start) - self.ppo.meta_lr * unbiased[0] / (unbiased[1].sqrt() + 1e-8))
        return losses


def built(config: ClippedConfig, spec: Spec) -> GradientAgent:
    return randomise(config.build(spec, CPU, 0))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("task_chunk", [0, 1, 2])
@pytest.mark.parametrize("num_inner_steps", [1, 2])
@pytest.mark.parametrize("spec", [DISCRETE, BOX], ids=["categorical", "gaussian"])
@pytest.mark.parametrize("name", CONFIGS)
def test_two_updates_equal_the_reference(name: str, spec: Spec, num_inner_steps: int, task_chunk: int) -> None:
    """Parameters after all epochs, losses and KL; the second update starts with the moments of the first."""
    config = dataclasses.replace(CONFIGS[name], num_inner_steps=num_inner_steps, task_chunk=task_chunk)
    agent = built(config, spec)
    reference = ClippedReference(agent, random_trial(spec, num_inner_steps), kl_coef=1.0 if name == "promp" else 0.0)
    assert 0.1 < reference.clipped_share() < 0.97
    for seed in range(2):
        trial = random_trial(spec, num_inner_steps, seed)
        reference.load(trial)
        losses = reference.update()
        metrics = agent.meta_update(trial)
        assert (meta_vector(agent) - flat(reference.start)).abs().max() < 1e-8
        assert abs(metrics["loss"] - losses[0]) < 1e-8
        assert abs(metrics["improvement"] - (losses[0] - losses[-1])) < 1e-8
        assert abs(metrics["pre_update_kl"] - reference.mean_pre_update_kl()) < 1e-8
        assert metrics["pre_update_kl"] > 1e-5


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", CONFIGS)
def test_two_updates_with_the_log_likelihood_inside_equal_the_reference(name: str) -> None:
    """Clipped surrogate and penalty stay those of the ratio; the inner loss alone is another."""
    config = dataclasses.replace(CONFIGS[name], num_inner_steps=2, inner_objective="log_likelihood")
    agent = built(config, BOX)
    reference = ClippedReference(agent, random_trial(BOX, 2), kl_coef=1.0 if name == "promp" else 0.0)
    with_ratio = built(dataclasses.replace(config, inner_objective="ratio"), BOX)
    for seed in range(2):
        trial = random_trial(BOX, 2, seed)
        reference.load(trial)
        reference.update()
        for each in (agent, with_ratio):
            each.meta_update(trial)
        assert (meta_vector(agent) - flat(reference.start)).abs().max() < 1e-8
        assert (meta_vector(with_ratio) - flat(reference.start)).abs().max() > 1e-4


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("spec", [DISCRETE, BOX], ids=["categorical", "gaussian"])
def test_comparison_with_the_reference_would_see_a_missing_part(spec: Spec) -> None:
    """Each part of ProMP moves the parameters by more than 1e-4: penalty, its direction, clip, Hessian, epochs."""
    trial = random_trial(spec, 2)
    config = dataclasses.replace(CONFIGS["promp"], num_inner_steps=2)
    agent = built(config, spec)

    def end(kl_coef: float = 1.0, **changes: Any) -> Tensor:
        reference = ClippedReference(agent, trial, kl_coef)
        reference.config = dataclasses.replace(config, **changes)
        reference.update()
        return flat(reference.start)

    class Reversed(ClippedReference):
        def pre_update_kl(self, task: int, stages: list[list[Tensor]]) -> Tensor:
            kls = [
                kl_divergence(self.policy(stages[stage], samples.obs), self.old[task][stage]).mean()
                for stage, samples in enumerate(self.tasks[task][:-1])
            ]
            return sum(kls, torch.zeros(())) / len(kls)

    swapped = Reversed(agent, trial, 1.0)
    swapped.update()
    others = [end(kl_coef=0.0), end(clip_range=1e6), end(first_order=True), end(num_epochs=2), flat(swapped.start)]
    for number, other in enumerate(others):
        assert (end() - other).abs().max() > 1e-4, number


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("spec", [DISCRETE, BOX], ids=["categorical", "gaussian"])
def test_penalty_of_weight_zero_is_maml_ppo(spec: Spec) -> None:
    trial = random_trial(spec, 1)
    agents = [built(config, spec) for config in (CONFIGS["maml-ppo"], ProMPConfig(**SETTINGS, kl_coef=0.0))]
    for agent in agents:
        agent.meta_update(trial)
    assert torch.equal(meta_vector(agents[0]), meta_vector(agents[1]))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("times", "factor"), [(0.1, 2.0), (0.6, 2.0), (0.7, 1.0), (1.4, 1.0), (1.6, 0.5), (10.0, 0.5)])
def test_kl_coef_follows_the_kl_where_adaptive(times: float, factor: float) -> None:
    """Doubled above 1.5 times the target, halved below the target / 1.5, kept between; fixed unless asked for."""
    trial = random_trial(DISCRETE, 1)
    fixed = built(CONFIGS["promp"], DISCRETE)
    found = fixed.meta_update(trial)["pre_update_kl"]
    assert fixed.state_dict()["kl_coef"]["value"].item() == 1.0
    agent = built(ProMPConfig(**SETTINGS, kl_coef=1.0, adaptive_kl=True, target_kl=times * found), DISCRETE)
    metrics = agent.meta_update(trial)
    # The update itself still used the old weight.
    assert torch.equal(meta_vector(agent), meta_vector(fixed))
    assert metrics["kl_coef"] == factor == agent.state_dict()["kl_coef"]["value"].item()


@pytest.mark.usefixtures("float64")
def test_adapted_kl_coef_is_what_the_next_update_uses_also_after_a_checkpoint(tmp_path: Path) -> None:
    config = ProMPConfig(**SETTINGS, kl_coef=1.0, adaptive_kl=True, target_kl=1e-6)
    agent = built(config, DISCRETE)
    trials = [random_trial(DISCRETE, 1, seed) for seed in range(2)]
    reference = ClippedReference(agent, trials[0], kl_coef=1.0)
    reference.update()
    agent.meta_update(trials[0])
    save(tmp_path / "agent.safetensors", agent.state_dict())
    restored = config.build(DISCRETE, CPU, 1)
    restored.load_state_dict(load(tmp_path / "agent.safetensors"))
    reference.kl_coef = 2.0
    reference.load(trials[1])
    reference.update()
    for candidate in (agent, restored):
        assert candidate.meta_update(trials[1])["kl_coef"] == 4.0
        assert (meta_vector(candidate) - flat(reference.start)).abs().max() < 1e-8


@pytest.mark.parametrize("rollout", [0, 1])
def test_non_finite_meta_gradient_is_refused_before_a_parameter_changes(rollout: int) -> None:
    agent = built(CONFIGS["promp"], DISCRETE)
    trial = random_trial(DISCRETE, 1)
    trial.rollouts[rollout].rewards[0, 0, 0] = float("nan")
    before = meta_vector(agent)
    with pytest.raises(NonFiniteError, match="meta-gradient"):
        agent.meta_update(trial)
    assert torch.equal(meta_vector(agent), before)


@pytest.mark.parametrize(
    ("config", "field", "value"),
    [
        (MAMLPPOConfig, "meta_lr", 0.0),
        (MAMLPPOConfig, "num_epochs", 0),
        (MAMLPPOConfig, "clip_range", -0.1),
        (ProMPConfig, "kl_coef", -1.0),
        (ProMPConfig, "kl_coef", float("nan")),
        (ProMPConfig, "kl_coef", float("inf")),
        (ProMPConfig, "target_kl", 0.0),
    ],
)
def test_impossible_setting_is_refused_by_name(config: type[ClippedConfig], field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"{config.__name__}\.{field} must .*{value}"):
        config(**{field: value})


def test_an_adaptive_weight_can_move() -> None:
    with pytest.raises(ConfigError, match=r"adaptive_kl doubles or halves kl_coef, and 0 stays 0"):
        ProMPConfig(kl_coef=0.0, adaptive_kl=True)
    with pytest.raises(ConfigError, match=r"target_kl acts with adaptive_kl True alone, got 0\.5 with False"):
        ProMPConfig(target_kl=0.5)
    trial = random_trial(DISCRETE, 1)
    agent = built(ProMPConfig(**SETTINGS, kl_coef=1e-38, adaptive_kl=True, target_kl=1e3), DISCRETE)
    assert agent.meta_update(trial)["kl_coef"] == pytest.approx(1e-8)
