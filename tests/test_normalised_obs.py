"""Gradient-based agents on normalised observations: one normalisation within an iteration, kept wherever they go."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from helpers.arms import train
from helpers.reference_maml import BOX, CPU, DISCRETE, random_trial, randomise
from helpers.rooms import Room, rooms

from metarl import OnlineLearner
from metarl.agents import AGENTS, GradientAgent, MAMLTRPOConfig
from metarl.agents.common.gradient_agent import GradientConfig
from metarl.agents.common.meta_gradient import loss_after_adaptation
from metarl.config import TrainConfig
from metarl.errors import ConfigError
from metarl.evaluation.evaluator import evaluate
from metarl.experiments import Experiment, Setup
from metarl.experiments.presets import PRESETS
from metarl.runs.folder import RunFolder
from metarl.tasks.distribution import TaskDistribution
from metarl.testing import check_agent
from metarl.types import Spec, Trial
from metarl.vector.array_env import Array, ArrayVectorEnv, TaskParams
from metarl.vector.streams import RowStreams

GRADIENT = [name for name, kind in AGENTS.items() if issubclass(kind, GradientConfig)]
SMALL = {"hidden_sizes": (8,), "rollouts_per_task": 3}


def small(name: str, **settings: Any) -> GradientConfig:
    config = AGENTS[name](**SMALL | settings)
    assert isinstance(config, GradientConfig)
    return config


def build(name: str, spec: Spec, **settings: Any) -> GradientAgent:
    agent = small(name, **settings).build(spec, CPU, 0)
    assert isinstance(agent, GradientAgent)
    return agent


def set_moments(agent: GradientAgent, seed: int = 3) -> None:
    """Means and deviations far from 0 and 1, as of 10 observations."""
    moments = agent.obs_moments
    assert moments is not None
    generator = torch.Generator().manual_seed(seed)
    moments.count.fill_(10.0)
    moments.mean.copy_(torch.randn(moments.mean.shape, generator=generator))
    moments.squares.copy_(10.0 * (0.5 + torch.rand(moments.mean.shape, generator=generator)) ** 2)


def identity(agent: GradientAgent) -> None:
    """Moments that change nothing, where observations are below 10."""
    moments = agent.obs_moments
    assert moments is not None
    moments.count.fill_(4.0)
    moments.squares.fill_(4.0)


def within(trial: Trial) -> Trial:
    """The trial with padding that is clipped by nothing."""
    rollouts = tuple(
        dataclasses.replace(r, timesteps=dataclasses.replace(r.timesteps, obs=r.obs.clamp(-9.0, 9.0)))
        for r in trial.rollouts
    )
    return dataclasses.replace(trial, rollouts=rollouts)


def tensors(agent: GradientAgent) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in agent.named_tensors().items()}


@pytest.mark.parametrize("name", GRADIENT)
def test_it_is_off_unless_asked_for_and_then_nothing_is_kept(name: str) -> None:
    agent = build(name, BOX)
    assert agent.config.normalise_obs is False and agent.obs_moments is None
    assert "obs_moments" not in agent.components()
    assert not any("normalise_obs" in p.agent for key, p in PRESETS.items() if key.split(":")[0] in GRADIENT)


@pytest.mark.parametrize("name", GRADIENT)
def test_with_moments_that_change_nothing_an_update_has_the_bits_of_a_plain_agent(name: str) -> None:
    plain, normalising = build(name, BOX), build(name, BOX, normalise_obs=True)
    identity(normalising)
    trial = within(random_trial(BOX, plain.num_adaptations))
    assert plain.meta_update(trial) == normalising.meta_update(trial)
    found = tensors(normalising)
    for key, value in tensors(plain).items():
        assert torch.equal(found[key], value), key


@pytest.mark.parametrize("spec", [DISCRETE, BOX], ids=["discrete", "box"])
@pytest.mark.parametrize("name", ["maml-trpo", "anil", "meta-sgd"])
def test_derivatives_are_those_on_observations_that_were_normalised_by_hand(name: str, spec: Spec) -> None:
    """Inner steps, gradient, Fisher product and KL; the baseline has seen the observations as they are."""
    plain, normalising = (randomise(build(name, spec, normalise_obs=on)) for on in (False, True))
    set_moments(normalising)
    assert normalising.obs_moments is not None
    trial = random_trial(spec, 1)
    mean, std = normalising.obs_moments.mean.float(), normalising.obs_moments.std
    raw = [plain.meta_gradient.batch(rollout) for rollout in trial.rollouts]
    by_hand = [dataclasses.replace(b, obs=((b.obs - mean) / std).clamp(-10.0, 10.0)) for b in raw]
    batches = [normalising.meta_gradient.batch(rollout) for rollout in trial.rollouts]
    for one, other in zip(by_hand, batches, strict=True):
        assert torch.equal(one.obs, other.obs) and torch.equal(one.advantages, other.advantages)
    assert not torch.equal(by_hand[0].obs, raw[0].obs)
    expected, found = (
        agent.meta_gradient.linearise(parts, loss_after_adaptation, metric="full")
        for agent, parts in ((plain, by_hand), (normalising, batches))
    )
    assert expected.gradient.abs().max() > 0 and torch.equal(found.gradient, expected.gradient)
    assert expected.metric is not None and found.metric is not None
    vector = torch.randn(expected.gradient.shape, generator=torch.Generator().manual_seed(1))
    image = plain.meta_gradient.fisher_product(expected.metric, vector)
    assert image.abs().max() > 0 and torch.equal(normalising.meta_gradient.fisher_product(found.metric, vector), image)
    before = normalising.meta_gradient.evaluate_at(normalising.meta_gradient.current(), batches, loss_after_adaptation)
    assert before[1].kl(expected.policy).abs().max() < 1e-6

    step = trial.rollouts[0].timesteps[:, :, 0]
    known = dataclasses.replace(step, obs=((step.obs - mean) / std).clamp(-10.0, 10.0))
    for agent in (plain, normalising):
        agent.seed(2)
    a = plain.act(plain.begin(len(trial.tasks)), known)[0]
    b = normalising.act(normalising.begin(len(trial.tasks)), step)[0]
    assert torch.equal(a.value, b.value) and torch.equal(a.log_prob, b.log_prob)


@pytest.mark.parametrize("name", GRADIENT)
def test_moments_move_after_the_update_by_what_training_saw(name: str) -> None:
    agent = build(name, BOX, normalise_obs=True)
    moments = agent.obs_moments
    assert moments is not None
    trial = random_trial(BOX, agent.num_adaptations)
    seen = torch.cat([rollout.obs[rollout.valid] for rollout in trial.rollouts]).double()
    during: list[float] = []
    update = agent.update

    def spy(batches: Any) -> dict[str, float]:
        metrics = update(batches)
        during.append(float(moments.count))
        return metrics

    agent.update = spy  # type: ignore[assignment]
    agent.meta_update(trial)
    assert during == [0.0] and float(moments.count) == len(seen)
    assert torch.allclose(moments.mean, seen.mean(0)) and torch.allclose(
        moments.std.double(), seen.std(0, correction=0), rtol=1e-6
    )


@pytest.mark.parametrize("name", ["maml-trpo", "reptile", "meta-lstm", "pretrained"])
def test_agents_keep_the_contract_on_normalised_observations(name: str) -> None:
    """Neither acting nor adapting nor evaluating moves the moments, and a checkpoint holds them."""
    check_agent(small(name, normalise_obs=True))


def test_an_evaluation_moves_no_moment_and_sees_them() -> None:
    distribution = rooms(True)
    agent = build("maml-trpo", distribution.spec, normalise_obs=True)
    train(agent, distribution, 1, 4)
    before = tensors(agent)
    assert before["obs_moments.count"] > 0
    found = evaluate(agent, distribution, num_tasks=5, seed=1)
    after = tensors(agent)
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert agent.obs_moments is not None
    agent.obs_moments.mean.add_(5.0)
    assert not np.array_equal(evaluate(agent, distribution, num_tasks=5, seed=1).returns, found.returns)


@pytest.mark.parametrize("name", ["maml-trpo", "promp"])
def test_a_resumed_run_has_the_bits_of_one_that_was_not(name: str, tmp_path: Path) -> None:
    config = TrainConfig(num_iterations=3, meta_batch_size=2, eval_tasks=2, eval_every=1, checkpoint_every=1)

    def experiment(folder: str) -> Experiment:
        setup = Setup(name, "navigation-2d", config, small(name, normalise_obs=True))
        return Experiment.create(setup, RunFolder.create(tmp_path, folder))

    whole, parts = experiment("whole"), experiment("parts")
    whole.train()
    for num_iterations in (1, 3):
        parts.reconfigured(dataclasses.replace(config, num_iterations=num_iterations), parts.agent_config).train()
    one, other = whole.load()[0], parts.load()[0]
    assert float(one.named_tensors()["obs_moments.count"]) > 0
    assert one.named_tensors().keys() == other.named_tensors().keys()
    for key, value in one.named_tensors().items():
        assert torch.equal(other.named_tensors()[key], value), key


@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
def test_a_file_holds_the_normalisation(suffix: str, tmp_path: Path) -> None:
    if suffix == ".onnx":
        pytest.importorskip("onnxscript")
        pytest.importorskip("onnxruntime")
    agent = randomise(build("maml-trpo", rooms(False).spec, normalise_obs=True))
    set_moments(agent)
    env = Room(6.0, False)
    learner = OnlineLearner(agent, env)
    file = tmp_path / f"agent{suffix}"
    learner.export(file)
    obs, _ = env.reset(seed=1)
    learner.reset()
    flat = gym.spaces.flatten(env.observation_space, obs).astype(np.float32)
    if suffix == ".pt2":
        with torch.no_grad():
            found = torch.export.load(file).module()(obs=torch.as_tensor(flat))["action"].numpy()
    else:
        import onnxruntime

        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        found = session.run(["action"], {"obs": flat})[0]
    expected = np.asarray(learner.act(obs, deterministic=True), np.float32).reshape(-1)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    agent.obs_moments = agent.meta_gradient.obs_moments = None
    other = OnlineLearner(agent, env)
    other.reset()
    assert not np.allclose(np.asarray(other.act(obs, deterministic=True)).reshape(-1), expected, rtol=1e-3)


class Shows(gym.Env[Any, int]):
    """Shows a sample of any space."""

    action_space = gym.spaces.Discrete(2)

    def __init__(self, space: gym.Space[Any]) -> None:
        self.observation_space = space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self.observation_space.sample(), 0.0, False, False, {}


def showing(space: gym.Space[Any]) -> TaskDistribution:
    return TaskDistribution("test/shows", lambda rng: {"x": float(rng.random())}, lambda _: Shows(space), horizon=3)


PIXELS = gym.spaces.Box(0, 255, (2, 2, 1), np.uint8)


@pytest.mark.parametrize(
    "space",
    [
        gym.spaces.Discrete(5),
        gym.spaces.MultiBinary(3),
        gym.spaces.Tuple([gym.spaces.Discrete(2), gym.spaces.MultiDiscrete([2, 3])]),
        PIXELS,
        gym.spaces.Dict({"image": PIXELS}),
    ],
    ids=str,
)
def test_codes_and_pixels_are_refused(space: gym.Space[Any]) -> None:
    spec = showing(space).spec
    message = "normalise_obs=True needs observations that hold measured numbers; these are codes or pixels alone"
    with pytest.raises(ConfigError, match=re.escape(message)):
        small("maml-trpo", normalise_obs=True).build(spec, CPU, 0)
    assert build("maml-trpo", spec).obs_moments is None


def test_codes_beside_measured_numbers_are_accepted() -> None:
    space = gym.spaces.Dict({"mode": gym.spaces.Discrete(3), "speed": gym.spaces.Box(-1.0, 1.0, (2,))})
    assert build("maml-trpo", showing(space).spec, normalise_obs=True).obs_moments is not None


@dataclasses.dataclass(frozen=True)
class Scales:
    """Which of two buttons is right is the sign of a number of 1e-3, times the task's; beside it lies one of 1e3."""

    action_space = gym.spaces.Discrete(2)
    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)

    def reset(self, params: TaskParams, rng: RowStreams, num: int) -> Array:
        return rng.uniform(-1.0, 1.0, (num, 2))

    def step(
        self, state: Array, action: Array, params: TaskParams, rng: RowStreams
    ) -> tuple[Array, Array, Array, Mapping[str, Array]]:
        right = (state[:, 0] * params["sign"] > 0) == (action == 1)
        return rng.uniform(-1.0, 1.0, state.shape), right.astype(np.float64), np.zeros(len(state), bool), {}

    def observe(self, state: Array, params: TaskParams) -> Array:
        return state * np.array([1e-3, 1e3])


@pytest.mark.slow
def test_observations_of_very_different_scales_are_learned_from_only_if_normalised() -> None:
    """The share of right buttons after one gradient step; 0.5 is chance."""
    distribution = TaskDistribution(
        id="test/scales",
        sample=lambda rng: {"sign": float(rng.choice([-1.0, 1.0]))},
        make_vector=partial(ArrayVectorEnv, Scales(), horizon=10),
        horizon=10,
        shared_split=True,
    )
    shares = {}
    for normalise in (False, True):
        config = MAMLTRPOConfig(
            hidden_sizes=(16,), rollouts_per_task=20, inner_lr=0.5, max_kl=0.05, normalise_obs=normalise
        )
        agent = config.build(distribution.spec, CPU, 0)
        train(agent, distribution, 25, 20)
        shares[normalise] = evaluate(agent, distribution, num_tasks=40, num_adaptations=1, seed=1).returns.mean(0) / 10
    assert abs(shares[False][1] - 0.5) < 0.1, shares
    assert shares[True][1] > 0.85, shares
