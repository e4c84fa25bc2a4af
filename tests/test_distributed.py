"""One run on two ranks: the same tasks, the same sums, the same parameters as on one."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.ranks import Ranks
from torch import Tensor, nn

from metarl.agent import Agent
from metarl.agents import AGENTS, GradientAgent, MAMLTRPOConfig
from metarl.agents.common.gradient_agent import OuterUpdate
from metarl.agents.common.meta_gradient import Batch, MetaGradient
from metarl.config import TrainConfig
from metarl.distributed import Group, current, join, require_same, require_same_state, using
from metarl.errors import ConfigError
from metarl.evaluation.evaluator import evaluate
from metarl.rollouts.collector import Collector
from metarl.rollouts.trial import run_trial
from metarl.runs.folder import RunFolder
from metarl.seeding import numpy_stream
from metarl.tasks.registry import load_distribution
from metarl.trainer import train
from metarl.types import Action, Rollout, Timestep, Trial

CPU = torch.device("cpu")

GRADIENT: dict[str, Any] = {"hidden_sizes": (5,), "rollouts_per_task": 2, "init_std": 0.5}
RECURRENT: dict[str, Any] = {"num_epochs": 2, "num_minibatches": 3, "hidden_size": 6}
SETTINGS: dict[str, dict[str, Any]] = {
    "maml-trpo": {**GRADIENT, "cg_iterations": 4},
    "maml-ppo": {**GRADIENT, "num_epochs": 3},
    "promp": {**GRADIENT, "num_epochs": 3, "adaptive_kl": True},
    "e-maml": {**GRADIENT, "cg_iterations": 4},
    "reptile": GRADIENT,
    "fomaml": {**GRADIENT, "cg_iterations": 4},
    "anil": {**GRADIENT, "cg_iterations": 4},
    "meta-sgd": {**GRADIENT, "cg_iterations": 4},
    "meta-lstm": {**GRADIENT, "cg_iterations": 4},
    "pretrained": {**GRADIENT, "cg_iterations": 4},
    "oracle": {**GRADIENT, "cg_iterations": 4},
    "rl2": RECURRENT,
    "snail": RECURRENT,
    "varibad": {**RECURRENT, "num_elbo_terms": 5, "num_decoded_steps": 4, "vae_batch_size": 4, "decode_states": True},
    "random": {},
}


class Own(Agent[None]):
    """Of a user who never heard of ranks."""

    def components(self) -> Mapping[str, nn.Module]:
        return {}

    def begin(self, num_tasks: int) -> None:
        return None

    def act(self, state: None, timestep: Timestep, deterministic: bool = False) -> tuple[Action, None]:
        raise AssertionError("an agent that knows nothing of ranks is refused before it acts")

    def adapt(self, state: None, rollout: Rollout) -> None:
        return None

    def meta_update(self, trial: Trial) -> dict[str, float]:
        return {}


class Nothing:
    """An outer update of a user's own."""

    def components(self) -> Mapping[str, nn.Module]:
        return {}

    def __call__(self, batches: list[Batch]) -> dict[str, float]:
        return {}


class OwnUpdate(MAMLTRPOConfig):
    """MAML with it."""

    def make_update(self, meta: MetaGradient) -> OuterUpdate:
        return Nothing()


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    """Two of them."""
    pair = Ranks(2)
    yield pair
    pair.close()


def doubled(value: Any) -> Any:
    """A rollout, trial or timestep in float64."""
    if isinstance(value, Tensor):
        return value.double() if value.is_floating_point() else value
    if isinstance(value, tuple):
        return tuple(doubled(part) for part in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value) if field.name != "tasks"]
        return dataclasses.replace(value, **{name: doubled(getattr(value, name)) for name in names})
    return value


def in_float64(agent: Agent[Any]) -> Agent[Any]:
    """The agent, what it is shown being float64 too: environments give float32, each of whose numbers is one."""
    act, adapt, update = agent.act, agent.adapt, agent.meta_update
    agent.act = lambda state, step, mode=False: act(state, doubled(step), mode)  # type: ignore[method-assign]
    agent.adapt = lambda state, rollout: adapt(state, doubled(rollout))  # type: ignore[method-assign]
    agent.meta_update = lambda trial: update(doubled(trial))  # type: ignore[method-assign]
    return agent


def learn(name: str, tasks: str, settings: dict[str, Any], num_tasks: int = 5, num_updates: int = 2) -> dict[str, Any]:
    """All tensors of an agent after two updates in float64, and the metrics of the last."""
    torch.set_default_dtype(torch.float64)
    try:
        distribution = load_distribution(tasks)
        agent = in_float64(AGENTS[name](**settings).build(distribution.spec, CPU, 3))
        collector = Collector(distribution, agent.rollouts_per_task, CPU)
        share = current().share(num_tasks)
        for update in range(num_updates):
            drawn = distribution.sample_meta_batch(num_tasks, numpy_stream(update))[share]
            trial = run_trial(agent, collector, drawn, agent.num_adaptations, update, first_task=share.start)
            metrics = agent.meta_update(trial)
        collector.close()
        return {"tensors": {key: value.clone() for key, value in agent.named_tensors().items()}, "metrics": metrics}
    finally:
        torch.set_default_dtype(torch.float32)


def furthest(one: dict[str, Any], other: dict[str, Any]) -> float:
    """The largest difference of any number."""
    assert one["tensors"].keys() == other["tensors"].keys() and one["metrics"].keys() == other["metrics"].keys()
    tensors = [(value - other["tensors"][name]).abs().max() for name, value in one["tensors"].items()]
    metrics = [abs(value - other["metrics"][name]) for name, value in one["metrics"].items()]
    return max((float(difference) for difference in [*tensors, *metrics]), default=0.0)


@pytest.mark.parametrize("name", AGENTS)
def test_two_ranks_learn_what_one_does(name: str, ranks: Ranks) -> None:
    """Of five tasks one rank has three and the other two."""
    tasks = "tabular-mdp" if name in ("rl2", "snail", "varibad") else "navigation-2d"
    alone = learn(name, tasks, SETTINGS[name])
    first, second = ranks.run(learn, name, tasks, SETTINGS[name])
    assert not isinstance(first, str), first
    assert not isinstance(second, str), second
    assert furthest(alone, first) < 1e-10
    assert furthest(first, second) == 0.0
    again, _ = ranks.run(learn, name, tasks, SETTINGS[name])
    assert furthest(first, again) == 0.0


def test_an_agent_that_saw_one_share_alone_would_be_noticed(ranks: Ranks) -> None:
    """The comparison can fail."""
    alone = learn("maml-trpo", "navigation-2d", SETTINGS["maml-trpo"])
    part = learn("maml-trpo", "navigation-2d", SETTINGS["maml-trpo"], num_tasks=3)
    assert furthest(alone, part) > 1e-6


@pytest.mark.parametrize(
    ("name", "beside"),
    [
        ("rl2", {"bptt_steps": 7}),
        ("varibad", {}),
        ("maml-trpo", {}),
        ("maml-trpo", {"fisher_stride": 5}),
        ("maml-trpo", {"normalise_obs": True}),
    ],
)
def test_episodes_may_end_at_different_times_on_the_ranks(name: str, beside: dict[str, Any], ranks: Ranks) -> None:
    settings = {**SETTINGS[name], **beside}
    alone = learn(name, "cartpole-goal", settings)
    first, second = ranks.run(learn, name, "cartpole-goal", settings)
    assert furthest(alone, first) < 1e-10 and furthest(first, second) == 0.0


def score(num_tasks: int) -> Any:
    distribution = load_distribution("tabular-mdp")
    agent = AGENTS["rl2"](**RECURRENT).build(distribution.spec, CPU, 1)
    return evaluate(agent, distribution, num_tasks=num_tasks, seed=4)


@pytest.mark.parametrize("num_tasks", [1, 3])
def test_an_evaluation_is_shared_out_and_told_to_all(num_tasks: int, ranks: Ranks) -> None:
    """A rank may have no task at all."""
    alone = score(num_tasks)
    for found in ranks.run(score, num_tasks):
        assert (found.returns == alone.returns).all()
        assert found.num_env_steps == alone.num_env_steps
        assert (found.success is None) == (alone.success is None)


def test_a_share_is_contiguous_and_differs_by_one_at_most() -> None:
    shares = [Group(rank, 3).share(8) for rank in range(3)]
    assert [list(range(8)[share]) for share in shares] == [[0, 1, 2], [3, 4, 5], [6, 7]]
    assert list(range(1)[Group(2, 3).share(1)]) == []


def test_one_rank_alone_returns_what_it_is_given() -> None:
    x, group = torch.randn(3, requires_grad=True), Group()
    assert group.sum(x)[0] is x and group.average(x, torch.tensor(2)) is x and group.concatenate(x) is x
    assert group.gather("a") == ["a"] and group.mean({"a": 0.1}, 7) == {"a": 0.1} and group.total(3) == 3


def combine() -> list[Any]:
    group = current()
    rank = group.rank
    whole, counts = group.sum(torch.full((2, 2), 0.5 + rank, dtype=torch.float32), torch.tensor(2**40 + rank))
    parameter = torch.nn.Parameter(torch.zeros(2))
    if rank == 0:
        parameter.grad = torch.ones(2)
    group.average_gradients([parameter], torch.tensor(3 - 2 * rank))
    return [
        whole,
        counts,
        group.concatenate(torch.arange(float(rank + 1))),
        parameter.grad,
        group.mean({"a": 1.0 + rank}, 1 + rank),
        group.mean({"a": 2.0} if rank else {}, rank),
        group.broadcast(f"rank {rank}"),
    ]


def test_sums_keep_shapes_and_dtypes_and_weigh_ranks(ranks: Ranks) -> None:
    for whole, counts, joined, gradient, mean, partial, told in ranks.run(combine):
        assert torch.equal(whole, torch.full((2, 2), 2.0)) and whole.dtype == torch.float32
        assert int(counts) == 2**41 + 1
        assert torch.equal(joined, torch.tensor([0.0, 0.0, 1.0]))
        assert torch.equal(gradient, torch.full((2,), 0.75))
        assert mean == {"a": 5 / 3} and partial == {"a": 2.0} and told == "rank 0"


def disagree(what: str) -> None:
    group = current()
    if what == "settings":
        require_same(group, {"version": 1, "settings": {"inner_lr": 0.1 + group.rank}})
    else:
        tensors = {"policy.weight": torch.zeros(3), "policy.bias": torch.tensor([1.0, 1e-8 * group.rank])}
        require_same_state(group, tensors, "after 5 iterations")


def test_ranks_that_differ_are_told_where(ranks: Ranks) -> None:
    for text in ranks.run(disagree, "settings"):
        assert "the same settings.inner_lr, which is 0.1 on rank 0; 1.1 on rank 1" in text
    for text in ranks.run(disagree, "tensors"):
        assert "rank 1 has drifted from the other ranks: after 5 iterations policy.bias differs" in text


def test_a_rank_that_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"from 0 to world_size - 1 = 1, got 2"):
        Group(2, 2)


def test_the_current_group_is_that_of_the_block() -> None:
    group = Group(1, 2)
    with using(group):
        assert current() is group
    assert current().world_size == 1


def test_an_agent_that_knows_nothing_of_ranks_is_refused_by_two(tmp_path: Path) -> None:
    distribution = load_distribution("bandit")
    agent = Own(distribution.spec, CPU, num_adaptations=0, rollouts_per_task=1)
    with using(Group(1, 2)), pytest.raises(ConfigError, match="the agent Own learns in one process only"):
        train(agent, distribution, TrainConfig(meta_batch_size=4), RunFolder(tmp_path))


def test_an_outer_update_of_ones_own_has_to_say_that_it_knows_of_ranks() -> None:
    spec = load_distribution("navigation-2d").spec
    assert GradientAgent(MAMLTRPOConfig(), spec, CPU, 0).data_parallel
    assert not GradientAgent(OwnUpdate(), spec, CPU, 0).data_parallel


def test_a_process_that_was_started_as_one_of_many_does_not_train_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    distribution = load_distribution("bandit")
    agent = AGENTS["random"]().build(distribution.spec, CPU, 0)
    with pytest.raises(ConfigError, match=r"WORLD_SIZE is 2, but .*has not joined .*distributed\.join"):
        train(agent, distribution, TrainConfig(meta_batch_size=4), RunFolder(tmp_path))


def test_without_a_world_size_there_is_nobody_to_join(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with join() as group:
        assert group.world_size == 1 and group.is_first
