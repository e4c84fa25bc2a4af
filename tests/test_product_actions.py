"""Actions of several parts: their distribution, their way to the environment and back, and every agent in them."""

from __future__ import annotations

import dataclasses
import pickle
import re
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from helpers.arms import train
from helpers.panel import HORIZON, Panel, panels
from torch import Tensor
from torch.distributions import Categorical as TorchCategorical
from torch.distributions import Independent, Normal, kl_divergence

from metarl import OnlineLearner
from metarl.agent import Agent
from metarl.agents import AGENTS, MAMLTRPOConfig, RL2Config
from metarl.errors import ConfigError
from metarl.evaluation.evaluator import evaluate, require_same_spaces
from metarl.networks.actions import encoded_actions
from metarl.networks.distributions import DiagGaussian, Product
from metarl.networks.noise import TaskNoise
from metarl.rendering.replay import replay
from metarl.rollouts.actions import env_actions
from metarl.rollouts.collector import Collector, episode_seeds
from metarl.rollouts.trial import run_trial
from metarl.tasks.distribution import TaskDistribution
from metarl.testing import check_agent, check_tasks
from metarl.types import Spec
from metarl.vector.array_env import ArrayVectorEnv
from metarl.vector.contract import as_actions
from metarl.vector.products import FlatProduct, flat_actions, starts
from metarl.vector.spaces import flat_observation, own_action, spec_of

CPU = torch.device("cpu")
SMALL = {"hidden_sizes": (8,), "hidden_size": 8, "rollouts_per_task": 3, "num_epochs": 2}

LAYOUTS = [((3, 2), 2), ((2, 2, 2), 0), ((4,), 1), ((2, 5, 3), 0)]
"""Options of each choice, and coordinates."""


def build(name: str, spec: Spec, **settings: Any) -> Agent[Any]:
    fields = {field.name for field in dataclasses.fields(AGENTS[name])}
    config = AGENTS[name](**{key: value for key, value in (SMALL | settings).items() if key in fields})
    return config.build(spec, CPU, 0)


# The distribution ----------------------------------------------------------------------------------------------------


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def parameters(layout: tuple[tuple[int, ...], int], seed: int, num: int = 5) -> tuple[Tensor, ...]:
    sizes, coordinates = layout
    return tuple(randn(num, size, seed=seed + k) for k, size in enumerate((sum(sizes), coordinates, coordinates)))


def ours(layout: tuple[tuple[int, ...], int], parts: tuple[Tensor, ...]) -> Product:
    return Product(parts[0], layout[0], DiagGaussian(parts[1], parts[2]))


def theirs(layout: tuple[tuple[int, ...], int], parts: tuple[Tensor, ...]) -> list[Any]:
    logits = parts[0].split(layout[0], dim=-1)
    normals = [Independent(Normal(parts[1], parts[2].exp()), 1)] if layout[1] else []
    return [*(TorchCategorical(logits=part) for part in logits), *normals]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_log_prob_entropy_and_kl_are_sums_over_the_parts(layout: tuple[tuple[int, ...], int]) -> None:
    p, q = parameters(layout, 0), parameters(layout, 10)
    sizes, coordinates = layout
    index = [torch.arange(5) % size for size in sizes]
    normal = randn(5, coordinates, seed=7)
    value = torch.cat([torch.stack(index, -1).double(), normal], -1)
    found, expected = ours(layout, p), theirs(layout, p)
    given = [*index, *([normal] if coordinates else [])]
    log_prob = sum(part.log_prob(x) for part, x in zip(expected, given, strict=True))
    assert torch.allclose(found.log_prob(value), log_prob, atol=1e-12)
    assert torch.allclose(found.entropy(), sum(part.entropy() for part in expected), atol=1e-12)
    kl = sum(kl_divergence(one, other) for one, other in zip(expected, theirs(layout, q), strict=True))
    assert torch.allclose(found.kl(ours(layout, q)), kl, atol=1e-12) and kl.min() > 1e-3
    assert found.kl(found.detach()).abs().max() < 1e-12
    assert found.entropy().shape == found.log_prob(value).shape == (5,)


@pytest.mark.parametrize("argument", ["first", "second"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_fisher_product_is_the_hessian_of_the_kl_by_double_backward(
    layout: tuple[tuple[int, ...], int], argument: str
) -> None:
    parts = parameters(layout, 0, num=1)
    widths = [part.shape[1] for part in parts]
    fixed = ours(layout, parts)
    flat = torch.cat(parts, 1)[0].requires_grad_()
    moving = ours(layout, tuple(part[None] for part in flat.split(widths)))
    kl = (fixed.kl(moving) if argument == "second" else moving.kl(fixed)).sum()
    (slope,) = torch.autograd.grad(kl, flat, create_graph=True)
    tangent = randn(len(flat), seed=3)
    (expected,) = torch.autograd.grad(slope @ tangent, flat)
    product = torch.cat(fixed.fisher_product(tuple(part[None] for part in tangent.split(widths))), dim=1)[0]
    assert (product - expected).abs().max() < 1e-10
    assert product.abs().max() > 1e-3


def test_samples_have_the_probabilities_as_frequencies_and_normal_coordinates() -> None:
    """Within 5 standard errors over 200,000 samples; parts are independent."""
    num, sizes = 200_000, (3, 2)
    logits, mean, log_std = torch.tensor([1.0, 0.0, -5.0, 0.3, -0.3]), torch.tensor([1.5]), torch.tensor([-1.0])
    policy = Product(logits.expand(num, 5), sizes, DiagGaussian(mean.expand(num, 1), log_std.expand(num, 1)))
    samples = policy.sample(TaskNoise(CPU, 0))
    assert samples.dtype == torch.float32 and samples.shape == (num, 3)
    for column, part in enumerate(logits.split(sizes)):
        p = part.softmax(0)
        errors = (samples[:, column].long().bincount(minlength=len(p)) / num - p).abs()
        assert (errors < 5 * (p * (1 - p) / num).sqrt()).all()
    assert abs(float(samples[:, 2].mean()) - 1.5) < 5 * float(log_std.exp()) / num**0.5
    assert abs(float(samples[:, 2].std() / log_std.exp()) - 1.0) < 5 / (2 * num) ** 0.5
    correlations = samples.T.corrcoef() - torch.eye(3)
    assert correlations.abs().max() < 5 / num**0.5
    best = policy.log_prob(policy.mode())
    assert (best >= policy.log_prob(samples)).all()


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_a_task_draws_the_same_in_any_company(layout: tuple[tuple[int, ...], int]) -> None:
    parts = tuple(torch.stack([part, part.flip(0), 2.0 * part]).float() for part in parameters(layout, 0))
    together = ours(layout, parts).sample(TaskNoise(CPU, 4))
    for task in range(3):
        noise = TaskNoise(CPU)
        noise.seed(4, first_task=task)
        alone = ours(layout, tuple(part[task : task + 1] for part in parts)).sample(noise)
        assert torch.equal(alone[0], together[task])
    assert not torch.equal(together[0], together[1])


def test_an_action_is_shown_as_one_hot_vectors_and_clipped_coordinates() -> None:
    spec = Spec(1, 7, False, 3, choices=(3, 2))
    actions = torch.tensor([[2.0, 0.0, 0.5, -7.0], [0.0, 1.0, 3.0, 0.0]])
    assert encoded_actions(spec, actions).tolist() == [
        [0.0, 0.0, 1.0, 1.0, 0.0, 0.5, -1.0],
        [1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 0.0],
    ]
    assert spec.num_coordinates == 2 and spec.action_shape == (4,)
    assert Spec(1, 4, True, 3).action_shape == () and Spec(1, 4, False, 3).action_shape == (4,)


# Spaces --------------------------------------------------------------------------------------------------------------

BOX = gym.spaces.Box(np.array([-1.0, 0.1]), np.array([1.0, 0.7]), dtype=np.float64)
SPACES: list[tuple[gym.Space[Any], tuple[int, ...], int]] = [
    (gym.spaces.MultiDiscrete([3, 2], start=[5, -1]), (3, 2), 0),
    (gym.spaces.MultiDiscrete(np.array([[2, 3], [4, 5]])), (2, 3, 4, 5), 0),
    (gym.spaces.MultiBinary((2, 2)), (2, 2, 2, 2), 0),
    (gym.spaces.Tuple([BOX, gym.spaces.Discrete(4, start=-2)]), (4,), 2),
    (
        gym.spaces.Dict(
            b=gym.spaces.Discrete(3),
            a=gym.spaces.Tuple([gym.spaces.MultiBinary(2), gym.spaces.Dict(x=BOX, y=gym.spaces.MultiDiscrete([2]))]),
            c=gym.spaces.Box(-np.inf, np.inf, (1,)),
        ),
        (3, 2, 2, 2),
        3,
    ),
]


@pytest.mark.parametrize(("space", "choices", "coordinates"), SPACES, ids=lambda value: str(value)[:40])
def test_what_becomes_of_actions_lies_in_the_environment_s_own_space(
    space: gym.Space[Any], choices: tuple[int, ...], coordinates: int
) -> None:
    flat = flat_actions(space)
    assert isinstance(flat, FlatProduct) and flat.choices == choices and flat.dtype == np.float32
    spec = spec_of(gym.spaces.Box(-1.0, 1.0, (2,)), flat, 9)
    assert spec == Spec(2, sum(choices) + coordinates, False, 9, choices)
    rng = np.random.default_rng(0)
    seen: list[Any] = []
    for size in (1.0, 1e6):
        for _ in range(50):
            agent = torch.tensor([*rng.integers(choices), *(size * rng.standard_normal(coordinates))]).float()
            action = own_action(space, env_actions(flat, agent))
            assert space.contains(action), action
            seen.append(gym.spaces.flatten(space, action))
    assert len(np.unique(np.array(seen)[:, :2], axis=0)) > 1
    assert len(starts(space)) == len(choices)


def test_parts_keep_their_places_and_what_they_are_counted_from() -> None:
    space = Panel(0).action_space
    flat = flat_actions(space)
    # Choices: lever, then both switches; then the dial, whose 0.5 is three quarters of its box.
    action = own_action(space, env_actions(flat, torch.tensor([2.0, 1.0, 0.0, 0.5])))
    assert action["lever"] == 3 and action["dial"].tolist() == [[3.0]] and action["dial"].dtype == np.float64
    assert [part.tolist() for part in action["switches"]] == [[1], [0]]
    assert list(action) == ["dial", "lever", "switches"] and starts(space).tolist() == [1, 0, 0]


def test_boxes_and_a_single_choice_become_what_they_are_alone() -> None:
    """Agents for plain boxes and choices are the simplest ones, and need no products."""
    both = gym.spaces.Dict(a=gym.spaces.Box(-1.0, 1.0, (2,)), b=BOX)
    flat = flat_actions(both)
    assert flat == gym.spaces.Box(np.array([-1, -1, -1, 0.1], np.float32), np.array([1, 1, 1, 0.7], np.float32))
    assert not isinstance(flat, FlatProduct) and both.contains(own_action(both, np.full(4, 0.5, np.float32)))
    for single in (gym.spaces.MultiDiscrete([3], start=[2]), gym.spaces.Tuple([gym.spaces.Discrete(3, start=2)])):
        assert flat_actions(single) == gym.spaces.Discrete(3)
        assert all(single.contains(own_action(single, index)) for index in range(3))


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (
            gym.spaces.Text(3),
            r"action space Text\(.* is not accepted: use Discrete, MultiDiscrete, MultiBinary, Box of",
        ),
        (
            gym.spaces.Dict(a=gym.spaces.Discrete(2), b=gym.spaces.Sequence(gym.spaces.Discrete(2))),
            r"action space Dict\(.* is not accepted because of its part Sequence\(.*: use Discrete, MultiDiscrete",
        ),
        (
            gym.spaces.Graph(gym.spaces.Box(-1, 1, (1,)), None),
            r"action space Graph\(.* is not accepted: use .*Tuple or Dict",
        ),
        (
            gym.spaces.Tuple([gym.spaces.Box(0, 5, (2,), np.int64)]),
            r"its part Box\(0, 5, \(2,\), int64\): use Discrete",
        ),
        (gym.spaces.Tuple([FlatProduct((3, 2))]), r"because of its part FlatProduct\(\(3, 2\)"),
        (gym.spaces.Tuple([]), r"action space Tuple\(\) is empty.*Accepted are Discrete, MultiDiscrete"),
        (gym.spaces.Dict({}), r"action space Dict\(\) is empty"),
    ],
)
def test_what_has_no_flat_form_is_refused_by_name(space: gym.Space[Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        flat_actions(space)


def test_flat_products_are_told_apart_and_travel() -> None:
    low, high = np.zeros(1, np.float32), np.ones(1, np.float32)
    one = FlatProduct((3, 2), low, high)
    assert one == pickle.loads(pickle.dumps(one)) == FlatProduct((3, 2), low, high)
    assert one != FlatProduct((3, 3), low, high) and one != FlatProduct((3, 2), low, 2 * high)
    assert one != gym.spaces.Box(one.low, one.high) and one != FlatProduct((3,), np.zeros(2, np.float32), one.high[1:])
    one.seed(0)
    drawn = np.array([one.sample() for _ in range(200)])
    assert all(one.contains(sample) for sample in drawn)
    assert set(drawn[:, 0]) == {0.0, 1.0, 2.0} and set(drawn[:, 1]) == {0.0, 1.0}
    assert not one.contains(np.array([0.5, 1.0, 0.5], np.float32))


@pytest.mark.parametrize("wrong", [[3.0, 0.0, 0.5], [-1.0, 0.0, 0.5], [0.5, 0.0, 0.5]])
def test_a_choice_that_is_none_is_refused(wrong: list[float]) -> None:
    space = FlatProduct((3, 2), np.zeros(1, np.float32), np.ones(1, np.float32))
    right = np.array([[2.0, 1.0, 7.0], [0.0, 0.0, -3.0]], np.float32)
    assert np.array_equal(as_actions(right, space, 2), right)
    message = f"the action of instance 1 begins with {wrong[:2]}, expected whole numbers from 0 and below [3, 2]"
    with pytest.raises(ConfigError, match=re.escape(message)):
        as_actions(np.array([right[0], wrong], np.float32), space, 2)


# Environments and agents ---------------------------------------------------------------------------------------------


def test_the_tasks_pass_their_check() -> None:
    check_tasks(panels(ends=True))


def test_a_family_as_arrays_may_have_a_flat_product() -> None:
    class Dynamics:
        observation_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)
        action_space = FlatProduct((3, 2), -np.ones(1, np.float32), np.ones(1, np.float32))

        def reset(self, params: Any, rng: Any, num: int) -> Any:
            return np.zeros((num, 1))

        def step(self, state: Any, action: Any, params: Any, rng: Any) -> Any:
            return action[:, 2:], action[:, 0] == params["right"], np.zeros(len(state), bool), {}

        def observe(self, state: Any, params: Any) -> Any:
            return state

    distribution = TaskDistribution(
        id="test/arrays",
        sample=lambda rng: {"right": float(rng.integers(3))},
        make_vector=lambda num: ArrayVectorEnv(Dynamics(), num, 4),
        horizon=4,
        shared_split=True,
    )
    assert distribution.spec == Spec(1, 6, False, 4, (3, 2))
    assert flat_actions(Dynamics.action_space) is Dynamics.action_space
    assert starts(Dynamics.action_space).tolist() == [0, 0]
    check_tasks(distribution)


@pytest.mark.parametrize("name", AGENTS)
def test_every_agent_keeps_the_contract(name: str) -> None:
    settings = {key: value for key, value in SMALL.items() if key in {f.name for f in dataclasses.fields(AGENTS[name])}}
    check_agent(AGENTS[name](**settings), panels(ends=True))


def test_an_agent_whose_choices_are_none_is_told_so() -> None:
    def broken(spec: Spec, device: torch.device, seed: int) -> Agent[Any]:
        agent = build("random", spec)
        act = agent.act

        def half(state: Any, timestep: Any, deterministic: bool = False) -> Any:
            action, state = act(state, timestep, deterministic)
            return dataclasses.replace(action, value=action.value + 0.5), state

        agent.act = half  # type: ignore[method-assign]
        return agent

    with pytest.raises(ConfigError, match=r"as choice 0, expected whole numbers 0\.\.2"):
        check_agent(broken, panels())


def test_rl2_s_step_is_that_of_ppo_on_the_distributions_of_torch() -> None:
    """Adam's first step on the clipped surrogate, value loss and entropy of all steps; MAML's is in test_maml.py."""
    distribution = panels(ends=True)
    config = RL2Config(hidden_size=8, num_epochs=1, num_minibatches=1, max_grad_norm=1e6, meta_lr=1e-2)
    agent = config.build(distribution.spec, CPU, 0)
    collector = Collector(distribution, 1, CPU)
    trial = run_trial(agent, collector, [{"right": task % 2} for task in range(6)], 1, seed=0)
    collector.close()
    agent.update_return_moments(trial)
    batch = agent.sequences(trial)
    params = dict(agent.memory.named_parameters())
    out, values, _ = agent.memory(batch.inputs, batch.memory)
    valid = batch.valid
    *logits, mean = out[valid].split([3, 2, 2, 1], dim=-1)
    parts: list[Any] = [TorchCategorical(logits=part) for part in logits]
    normals = Independent(Normal(mean, params["log_std"].exp().expand_as(mean)), 1)
    actions = batch.actions[valid]
    log_prob = sum(part.log_prob(actions[:, index]) for index, part in enumerate(parts))
    log_prob = log_prob + normals.log_prob(actions[:, 3:])
    assert torch.allclose(log_prob, batch.log_probs[valid], atol=1e-5)
    behaviour = log_prob.detach() + 0.3 * torch.randn(len(actions), generator=torch.Generator().manual_seed(0))
    advantages = batch.advantages[valid]
    ratio = (log_prob - behaviour).exp()
    surrogate = torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages)
    entropy = torch.stack([part.entropy() for part in [*parts, normals]]).sum(0)
    squared = (values[valid] - batch.value_targets[valid]) ** 2
    loss = (-surrogate + config.value_coef * squared - config.entropy_coef * entropy).mean()
    slopes = dict(zip(params, torch.autograd.grad(loss, list(params.values())), strict=True))
    expected = {name: p.detach() - 1e-2 * slopes[name] / (slopes[name].abs() + 1e-5) for name, p in params.items()}
    given = torch.zeros_like(batch.log_probs)
    given[valid] = behaviour
    agent.ppo_step(dataclasses.replace(batch, log_probs=given))
    assert slopes["log_std"].abs().max() > 1e-4 and slopes["policy_head.weight"].abs().amax(1).min() > 1e-5
    for name, value in expected.items():
        steep = slopes[name].abs() > 1e-4  # Where a slope is rounding alone, so is the sign of Adam's step.
        assert torch.allclose(params[name][steep], value[steep], atol=2e-4), name


@pytest.mark.parametrize("name", ["maml-trpo", "rl2", "random"])
def test_worker_processes_change_no_bit_of_a_trial(name: str) -> None:
    found = []
    for num_workers in (0, 2):
        distribution = panels(ends=True, num_workers=num_workers)
        agent = build(name, distribution.spec)
        collector = Collector(distribution, 2, CPU)
        tasks = [{"right": 0}, {"right": 1}, {"right": 1}]
        trial = run_trial(agent, collector, tasks, max(1, agent.num_adaptations), seed=3)
        collector.close()
        found.append(trial.rollouts)
    for one, other in zip(*found, strict=True):
        assert torch.equal(one.actions, other.actions) and torch.equal(one.rewards, other.rewards)
        assert one.actions.shape[-1] == 4 and one.rewards.abs().max() > 0
    following = found[0][1]
    last = found[0][0].actions.gather(2, (found[0][0].lengths - 1)[..., None, None].expand(3, 2, 1, 4)).squeeze(2)
    spec = panels().spec
    assert torch.equal(following.timesteps.prev_action[:, :, 0], encoded_actions(spec, last))
    assert torch.equal(following.timesteps.prev_action[0, 0, 1], encoded_actions(spec, following.actions[0, 0, 0]))


@pytest.mark.parametrize("name", ["maml-trpo", "rl2", "varibad"])
def test_a_learner_gives_the_numbers_of_the_collector(name: str) -> None:
    distribution = panels(ends=True)
    agent, env = build(name, distribution.spec, rollouts_per_task=1), Panel(1, ends=True)
    collector = Collector(distribution, 1, CPU)
    agent.seed(5)
    collector.seed(5)
    state, previous, rollouts = agent.begin(1), None, []
    for number in range(2):
        previous, state = collector.collect(agent, state, [{"right": 1}], previous)
        rollouts.append(previous)
        state = agent.adapt(state, previous) if number == 0 else state
    collector.close()
    learner = OnlineLearner(agent, env, seed=5)
    flat = flat_actions(env.action_space)
    for number, rollout in enumerate(rollouts):
        (returned,) = learner.play(seed=int(episode_seeds(5, number, 1, 1)[0, 0]))
        assert returned == pytest.approx(float(rollout.returns), rel=1e-5)
        last = env_actions(flat, rollout.actions[0, 0, int(rollout.lengths) - 1])
        expected = gym.spaces.flatten(env.action_space, own_action(env.action_space, last))
        np.testing.assert_allclose(gym.spaces.flatten(env.action_space, env.taken), expected, rtol=1e-5)


def test_another_product_is_refused() -> None:
    agent = build("maml-trpo", panels().spec)

    class Other(Panel):
        def __init__(self) -> None:
            super().__init__(0)
            self.action_space = gym.spaces.Tuple([gym.spaces.MultiDiscrete([5, 2]), gym.spaces.Box(-1.0, 1.0, (1,))])

    message = (
        "built for 2 numbers of observation and 3 choices and 2 choices and 2 choices and 1 action coordinates, but "
        "Other has 2 and 5 choices and 2 choices and 1 action coordinates"
    )
    with pytest.raises(ConfigError, match=message):
        OnlineLearner(agent, Other())
    others = TaskDistribution("test/other", lambda rng: 0, lambda task: Other(), horizon=3, shared_split=True)
    with pytest.raises(ConfigError, match=r"choices = \(3, 2, 2\), but test/other has choices = \(5, 2\)"):
        require_same_spaces(agent, others)


@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
@pytest.mark.parametrize(("name", "sample"), [("maml-trpo", False), ("maml-trpo", True), ("rl2", False), ("rl2", True)])
def test_a_file_does_what_the_agent_does(name: str, sample: bool, suffix: str, tmp_path: Path) -> None:
    """It is compared with the agent before it is written; choices are counted from the space's starts."""
    if suffix == ".onnx":
        pytest.importorskip("onnxscript")
        pytest.importorskip("onnxruntime")
    agent, env = build(name, panels().spec), Panel(1)
    learner = OnlineLearner(agent, env)
    file = tmp_path / f"agent{suffix}"
    learner.export(file, sample=sample)
    if suffix == ".onnx" or sample or name != "maml-trpo":
        return
    extra = {"metarl.json": ""}
    module = torch.export.load(file, extra_files=extra).module()
    assert '"action": {"choices": [3, 2, 2], "coordinates": 1}' in extra["metarl.json"]
    obs, _ = env.reset(seed=1)
    learner.reset()
    expected = learner.act(obs, deterministic=True)
    found = module(obs=torch.as_tensor(obs))["action"].tolist()
    parts = [expected["lever"], *(part[0] for part in expected["switches"]), expected["dial"][0, 0]]
    assert found == pytest.approx([float(part) for part in parts], abs=1e-5) and found[0] >= 1.0


def test_a_recorded_episode_can_be_played_again() -> None:
    distribution = panels(ends=True)
    agent = build("maml-trpo", distribution.spec)
    collector = Collector(distribution, 2, CPU)
    task = {"right": 1}
    collector.seed(3)
    rollout, _ = collector.collect(agent, agent.begin(1), [task])
    collector.close()
    seeds = episode_seeds(3, 0, 1, 2)[0]
    for slot in range(2):
        moments = list(replay(distribution, task, rollout[0, slot], reset_seed=int(seeds[slot]), every=1))
        assert len(moments) == int(rollout.lengths[0, slot]) + 1 <= HORIZON + 1
        assert moments[-1].total == pytest.approx(float(rollout.returns[0, slot]), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["maml-trpo", "rl2"])
def test_the_right_position_of_every_part_is_learned_from_rewards(name: str) -> None:
    """3 a step is the most; without knowing the task 1.5, and at random about 1."""
    distribution = panels()
    if name == "maml-trpo":
        settings: Any = MAMLTRPOConfig(hidden_sizes=(16,), inner_lr=0.5, max_kl=0.05, rollouts_per_task=20)
        num_iterations, num_tasks = 40, 10
    else:
        settings = RL2Config(hidden_size=32, meta_lr=3e-3, entropy_coef=1e-3, rollouts_per_task=10)
        num_iterations, num_tasks = 80, 20
    agent = settings.build(distribution.spec, CPU, 0)
    before = evaluate(agent, distribution, num_tasks=20, num_adaptations=1, seed=1).returns.mean(0) / HORIZON
    train(agent, distribution, num_iterations, num_tasks)
    after = evaluate(agent, distribution, num_tasks=20, num_adaptations=1, seed=1).returns.mean(0) / HORIZON
    assert before[1] < 1.5, before
    assert after[1] > 2.4, (before, after)


@pytest.mark.parametrize(
    ("space", "expected"),
    [
        (gym.spaces.Box(-1, 1, (2,)), [-1.0, 1.0]),
        (gym.spaces.Box(-np.inf, np.inf, (2,)), [-3.0, 3.0]),
        (gym.spaces.Box(np.array([-2.0, -np.inf], np.float32), np.array([2.0, 0.0], np.float32)), [-1.0, 3.0]),
    ],
)
def test_what_is_sent_as_it_is_is_shown_as_it_is(space: gym.spaces.Box, expected: list[float]) -> None:
    spec = spec_of(gym.spaces.Box(-1, 1, (1,)), space, 5)
    assert encoded_actions(spec, torch.tensor([-3.0, 3.0])).tolist() == expected


@pytest.mark.parametrize(
    ("space", "bad"),
    [
        (gym.spaces.Discrete(5), -1),
        (gym.spaces.Discrete(5, start=2), 1),
        (gym.spaces.MultiDiscrete([3, 4]), np.array([3, 1])),
        (gym.spaces.MultiBinary(2), np.array([0, 2])),
        (gym.spaces.Dict(a=gym.spaces.Tuple([gym.spaces.Discrete(2)])), {"a": (2,)}),
    ],
)
def test_choices_that_an_observation_cannot_have_are_refused(space: gym.Space[Any], bad: Any) -> None:
    size = gym.spaces.flatdim(space)
    assert flat_observation(space, space.sample(), size).shape == (size,)
    with pytest.raises(ConfigError, match="is not in observation_space, whose part is"):
        flat_observation(space, bad, size)
