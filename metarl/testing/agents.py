"""The contract of :class:`metarl.agent.Agent`, clause by clause: every violation found, in one sentence each."""

from __future__ import annotations

import copy
import math
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from metarl.agent import Agent, AgentConfig
from metarl.errors import AgentCheckError, ConfigError
from metarl.evaluation.evaluator import evaluate
from metarl.rollouts.collector import Collector
from metarl.rollouts.trial import run_trial
from metarl.runs.checkpoint import load, save
from metarl.seeding import numpy_stream
from metarl.tasks.distribution import TaskDistribution
from metarl.testing.clauses import Clauses
from metarl.testing.comparison import same_bits, snapshot
from metarl.types import Action, Rollout, Spec, Task, Timestep
from metarl.vector.array_env import Array, ArrayVectorEnv, TaskParams
from metarl.vector.streams import RowStreams

Build = Callable[[Spec, torch.device, int], Agent[Any]]

_NUM_TASKS = 3
_NUM_SAMPLES = 4000
"""Actions behind the comparison of log-probabilities with frequencies."""


def check_agent(agent: AgentConfig | Build, distribution: TaskDistribution | None = None, *, seed: int = 0) -> None:
    """Check that an agent keeps the contract that trainer, evaluation and checkpoints rely on.

    Checked: ``act`` returns the documented shapes and dtypes, and log-probabilities that fit its samples; ``adapt``
    depends on its arguments alone and changes none of them; permuting the tasks permutes its results, and a task's
    result does not depend on the tasks beside it; acting, adapting and evaluating leave the agent as it is, also an
    untrained one; ``meta_update`` changes a parameter and returns finite floats; the same seed gives the same bits,
    also after a checkpoint. States are never inspected: they are compared by how the agent acts with them.

    Args:
        agent: settings with a ``build`` method, or a function of spec, device and seed that returns the agent.
        distribution: tasks to play; default: small built-in ones, with discrete and with box actions. An agent may
            refuse one of the two with a ``ConfigError``.
        seed: seed for the agent, the tasks and the samples.

    Raises:
        AgentCheckError: listing every violation found.
    """
    if isinstance(agent, Agent) or (isinstance(agent, type) and not issubclass(agent, AgentConfig)):
        raise ConfigError(
            f"check_agent expects settings (an AgentConfig) or a function of (spec, device, seed) that builds the "
            f"agent, got {agent!r}."
        )
    build: Build = agent.build if isinstance(agent, AgentConfig) else agent
    name = type(agent).__name__ if isinstance(agent, AgentConfig) else getattr(agent, "__name__", repr(agent))
    distributions = [_seek(True), _seek(False)] if distribution is None else [distribution]
    problems: list[str] = []
    refusals: list[str] = []
    for tasks in distributions:
        try:
            build(tasks.spec, torch.device("cpu"), seed)
        except ConfigError as error:
            refusals.append(f"it cannot be built for {tasks.id}: {error}")
            continue
        except Exception as error:
            problems.append(f"building it for {tasks.id} raised {type(error).__name__}: {error}")
            continue
        check = _Check(build, tasks, seed)
        check.run()
        problems += [f"{problem} (on {tasks.id})" for problem in check.problems]
    if len(refusals) == len(distributions):
        problems += refusals
    if problems:
        raise AgentCheckError(name, problems)


class _Check(Clauses):
    """One run of :func:`check_agent` on one distribution; ``problems`` grows as it goes."""

    def __init__(self, build: Build, distribution: TaskDistribution, seed: int) -> None:
        super().__init__()
        self._build = build
        self._distribution = distribution
        self._seed = seed
        self._has_mode = True
        self._tasks: list[Task] = distribution.train.sample(_NUM_TASKS, numpy_stream(seed, "check"))

    def run(self) -> None:
        self.run_all(
            {
                "act": self._acting,
                "log_prob": self._log_prob,
                "adapt": self._adapting,
                "evaluation": self._evaluation,
                "a training iteration": self._training,
            }
        )

    def _agent(self, offset: int = 0) -> Agent[Any]:
        return self._build(self._distribution.spec, torch.device("cpu"), self._seed + offset)

    # Clauses --------------------------------------------------------------------------------------------------------

    def _acting(self) -> None:
        """Shapes, dtypes, determinism and no side effects of ``act``; parameters follow from the seed."""
        agent, spec = self._agent(), self._distribution.spec
        before = snapshot(agent)
        self.require(same_bits(before, snapshot(self._agent())), "two agents built with one seed differ")
        slots = agent.rollouts_per_task + 1
        timestep = self._timesteps(1, _NUM_TASKS, slots)[0]
        state = agent.begin(_NUM_TASKS)
        reference = self._behaviour(agent, state, slots)
        for deterministic in (False, True):
            agent.seed(self._seed)
            action, _ = agent.act(state, timestep, deterministic)
            self._documented(action, spec, (_NUM_TASKS, slots))
            torch.rand(1)
            agent.seed(self._seed)
            again, _ = agent.act(state, timestep, deterministic)
            self.require(
                torch.equal(action.value, again.value) and torch.equal(action.log_prob, again.log_prob),
                "act gave two answers to one state and timestep after seed(): draw from self.noise only",
            )
        modes = []
        for seed in (self._seed, self._seed + 1):
            fresh = self._agent()
            fresh.seed(seed)
            modes.append(fresh.act(fresh.begin(_NUM_TASKS), timestep, True)[0].value)
        self._has_mode = torch.equal(*(mode.nan_to_num() for mode in modes))
        agent.seed(self._seed)
        together, _ = agent.act(state, timestep)
        agent.seed(self._seed)
        alone, _ = agent.act(agent.begin(1), timestep[:1])
        self.require(
            torch.allclose(together.value[:1].double(), alone.value.double(), rtol=1e-3, atol=1e-3),
            "act samples other actions for a task where other tasks stand beside it: draw from self.noise, whose "
            "streams belong to the tasks",
        )
        self.require(same_bits(before, snapshot(agent)), "act changes state_dict(); only meta_update may")
        self.require(
            same_bits(reference, self._behaviour(agent, state, slots)),
            "act changes the state it is given; return a new one instead",
        )

    def _documented(self, action: Action, spec: Spec, shape: tuple[int, int]) -> None:
        expected = ((*shape, *spec.action_shape), torch.int64 if spec.discrete else torch.float32)
        found = (tuple(action.value.shape), action.value.dtype)
        self.require(
            found == expected,
            f"act's value has shape {found[0]} and dtype {found[1]}, expected {expected[0]} and {expected[1]}",
        )
        if spec.discrete:
            low, high = int(action.value.min()), int(action.value.max())
            self.require(
                low >= 0 and high < spec.action_dim,
                f"act's value lies in {low}..{high}, expected 0..{spec.action_dim - 1}",
            )
        for index, number in enumerate(spec.choices if found == expected else ()):
            values = action.value[..., index]
            self.require(
                bool(((values >= 0) & (values < number) & (values % 1 == 0)).all()),
                f"act's value has {torch.unique(values).tolist()} as choice {index}, expected whole numbers "
                f"0..{number - 1}",
            )
        self.require(
            tuple(action.log_prob.shape) == shape and action.log_prob.is_floating_point(),
            f"act's log_prob has shape {tuple(action.log_prob.shape)} and dtype {action.log_prob.dtype}, "
            f"expected {shape} and torch.float32",
        )
        self.require(bool(torch.isfinite(action.log_prob).all()), "act's log_prob is not finite")

    def _log_prob(self) -> None:
        """Log-probabilities fit the frequencies of the samples, within 5 standard errors."""
        agent, spec = self._agent(), self._distribution.spec
        agent.seed(self._seed)
        timestep = self._timesteps(1, 1, 1)[0]
        action, _ = agent.act(agent.begin(1), timestep[:, torch.zeros(_NUM_SAMPLES, dtype=torch.long)])
        p = action.log_prob[0].double().exp()
        if spec.discrete:
            chosen = action.value[0]
            frequency = chosen.bincount(minlength=spec.action_dim)[chosen] / _NUM_SAMPLES
            fits = bool(((frequency - p).abs() <= 5 * (frequency * (1 - frequency) / _NUM_SAMPLES).sqrt() + 5e-3).all())
        else:
            # The mean of 1 / p over the samples inside a box is its volume, whatever the density p; with choices it is
            # as many times that as there are ways to choose.
            value = action.value[0, :, len(spec.choices) :].double()
            low, high = value.quantile(0.2, 0), value.quantile(0.8, 0)
            ratio = ((value >= low) & (value <= high)).all(-1) / p / (high - low).prod() / math.prod(spec.choices)
            error = ratio.std() / _NUM_SAMPLES**0.5
            fits = bool(torch.isfinite(ratio).all() and (ratio.mean() - 1).abs() <= 5 * error + 0.05)
        self.require(fits, "act's log_prob does not fit how often its actions are sampled")

    def _adapting(self) -> None:
        """``adapt`` is a function of its arguments, task by task."""
        agent = self._agent()
        agent.seed(self._seed)
        slots = agent.rollouts_per_task
        before = snapshot(agent)
        collector = Collector(self._distribution, slots, torch.device("cpu"))
        try:
            rollout, _ = collector.collect(agent, agent.begin(_NUM_TASKS), self._tasks)
        finally:
            collector.close()
        state = self._replay(agent, rollout)
        given, kept = self._behaviour(agent, state, slots), copy.deepcopy(rollout)
        adapted = agent.adapt(state, rollout)
        result = self._behaviour(agent, adapted, slots)
        self.require(same_bits(before, snapshot(agent)), "acting and adapt change state_dict(); only meta_update may")
        self.require(
            same_bits(given, self._behaviour(agent, state, slots)),
            "adapt changes the state it is given; return a new one instead",
        )
        self.require(same_bits(kept, rollout), "adapt changes the rollout it is given")

        other = kept[torch.arange(_NUM_TASKS).flip(0)]
        agent.adapt(self._replay(agent, other), other)
        agent.seed(self._seed + 1)
        torch.rand(1)
        self.require(
            same_bits(result, self._behaviour(agent, agent.adapt(state, copy.deepcopy(kept)), slots)),
            "adapt depends on more than its arguments: a second call with the same ones gave another result",
        )
        for order, problem in (
            ([*range(1, _NUM_TASKS), 0], "permuting the tasks does not permute adapt's results"),
            ([0], "adapt's result for a task depends on the other tasks beside it"),
        ):
            part = kept[torch.tensor(order)]
            found = self._behaviour(agent, agent.adapt(self._replay(agent, part), part), slots, len(order))
            same = all(
                torch.allclose(a[order].double(), b.double(), rtol=1e-3, atol=1e-3)
                for a, b in zip(result, found, strict=True)
            )
            # Behaviours are told apart by modes; draws follow the rows of a batch, which are other ones here.
            self.require(
                same,
                problem
                if self._has_mode
                else "act with deterministic=True draws at random: take the "
                "distribution's mode there, without which adapt cannot be checked",
            )

    def _evaluation(self) -> None:
        """An untrained agent can be evaluated, repeatably and without a trace."""
        agent = self._agent()
        before = snapshot(agent)
        first = evaluate(agent, self._distribution, num_tasks=_NUM_TASKS, seed=self._seed).returns
        torch.rand(1)
        again = evaluate(agent, self._distribution, num_tasks=_NUM_TASKS, seed=self._seed).returns
        self.require(same_bits(before, snapshot(agent)), "an evaluation changes state_dict(); only meta_update may")
        self.require(np.array_equal(first, again), "two evaluations with one seed gave different scores")

    def _training(self) -> None:
        """Iterations are a function of parameters and seed, also when these come from a checkpoint."""
        agent = self._agent()
        before = snapshot(agent)
        metrics = self._iterate(agent, self._seed)
        after = snapshot(agent)
        for name, value in metrics.items():
            self.require(
                isinstance(value, float) and math.isfinite(value),
                f"meta_update's metric {name!r} is {value!r}, expected a finite float",
            )
        tensors = agent.named_tensors()
        if tensors:
            self.require(not same_bits(before, after), "meta_update changes nothing in state_dict()")
        for name, tensor in tensors.items():
            self.require(bool(torch.isfinite(tensor).all()), f"meta_update leaves a NaN or infinity in {name}")

        agent.load_state_dict(before)
        torch.rand(1)
        self.require(
            same_bits(self._iterate(agent, self._seed), metrics) and same_bits(snapshot(agent), after),
            "one training iteration, repeated from the same state_dict() with the same seed, gave another result: keep "
            "everything that lasts in components(), and draw from self.generator only",
        )
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "agent.safetensors"
            save(path, agent.state_dict())
            restored = self._agent(1)
            restored.load_state_dict(load(path))
        self._iterate(agent, self._seed + 1)
        self._iterate(restored, self._seed + 1)
        self.require(
            same_bits(snapshot(agent), snapshot(restored)),
            "an agent restored from a checkpoint learns otherwise than the one that was saved: state_dict() and "
            "load_state_dict() must carry everything that lasts",
        )

    # Pieces ---------------------------------------------------------------------------------------------------------

    def _iterate(self, agent: Agent[Any], seed: int) -> dict[str, float]:
        collector = Collector(self._distribution, agent.rollouts_per_task, torch.device("cpu"))
        try:
            return agent.meta_update(run_trial(agent, collector, self._tasks, agent.num_adaptations, seed))
        finally:
            collector.close()

    def _replay(self, agent: Agent[Any], rollout: Rollout) -> Any:
        """The state of an agent that saw ``rollout`` from the beginning; a function of the rollout."""
        state = agent.begin(len(rollout.rewards))
        for t in range(rollout.rewards.shape[2]):
            _, state = agent.act(state, rollout.timesteps[:, :, t], True)
        return state

    def _behaviour(self, agent: Agent[Any], state: Any, slots: int, num_tasks: int = _NUM_TASKS) -> list[Tensor]:
        """How the agent acts with ``state``: modes and their log-probabilities at fixed timesteps, by task."""
        agent.seed(self._seed)
        actions = [agent.act(state, timestep, True)[0] for timestep in self._timesteps(5, num_tasks, slots)]
        return [part.clone() for action in actions for part in (action.value, action.log_prob)]

    def _timesteps(self, num: int, num_tasks: int, slots: int) -> list[Timestep]:
        """Observations at random, the same for all tasks."""
        spec, rng = self._distribution.spec, numpy_stream(self._seed, "timesteps")
        shape = (num_tasks, slots)
        found = []
        for _ in range(num):
            obs = torch.from_numpy(rng.standard_normal((1, slots, spec.obs_dim)).astype(np.float32))
            zeros, nothing = torch.zeros(shape), torch.zeros(*shape, spec.action_dim)
            valid = torch.ones(shape, dtype=torch.bool)
            found.append(Timestep(obs.expand(*shape, -1).clone(), nothing, zeros, zeros, valid))
        return found


@dataclass(frozen=True)
class _Seek:
    """A point on a line seeks a hidden ``goal``, where its episode ends: uneven lengths, rewards at every step."""

    action_space: gym.spaces.Discrete | gym.spaces.Box
    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)

    def reset(self, params: TaskParams, rng: RowStreams, num: int) -> Array:
        return rng.uniform(-1.0, 1.0, (num, 1))

    def step(
        self, state: Array, action: Array, params: TaskParams, rng: RowStreams
    ) -> tuple[Array, Array, Array, Mapping[str, Array]]:
        discrete = isinstance(self.action_space, gym.spaces.Discrete)
        state = state + 0.2 * (action[:, None] - 1.0 if discrete else action)
        distance = np.abs(state[:, 0] - params["goal"])
        return state, -distance, distance < 0.15, {}

    def observe(self, state: Array, params: TaskParams) -> Array:
        return np.concatenate([state, np.sin(3.0 * state)], axis=1)


def _seek(discrete: bool) -> TaskDistribution:
    space = gym.spaces.Discrete(3) if discrete else gym.spaces.Box(-1.0, 1.0, (1,), np.float32)
    return TaskDistribution(
        id=f"check-agent/{'discrete' if discrete else 'box'}",
        sample=lambda rng: {"goal": float(rng.uniform(-1.0, 1.0))},
        make_vector=partial(ArrayVectorEnv, _Seek(space), horizon=8),
        horizon=8,
    )
