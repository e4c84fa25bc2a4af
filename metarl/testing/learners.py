"""The contract of :class:`metarl.fewshot.learner.Learner`, clause by clause: every violation, in one sentence each."""

from __future__ import annotations

import copy
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from metarl.errors import ConfigError, LearnerCheckError
from metarl.fewshot.learner import Learner, LearnerConfig
from metarl.fewshot.tasks.base import FewShotTasks
from metarl.fewshot.types import EpisodeConfig, Examples, FewShotSpec
from metarl.networks.task_norm import is_transductive
from metarl.runs.checkpoint import load, save
from metarl.seeding import numpy_stream
from metarl.testing.clauses import Clauses
from metarl.testing.comparison import same_bits, snapshot

Build = Callable[[FewShotSpec, torch.device, int], Learner[Any]]

_NUM_TASKS = 3
_CPU = torch.device("cpu")


def check_learner(
    learner: LearnerConfig | Build, tasks: FewShotTasks, episode: EpisodeConfig | None = None, *, seed: int = 0
) -> None:
    """Check that a learner keeps the contract that training, evaluation and checkpoints rely on.

    Checked: ``predict`` returns the documented shape, finite and without gradient, also untrained and before the first
    ``adapt``; ``adapt`` and ``predict`` depend on their arguments alone and change neither these nor the learner;
    permuting the tasks permutes the results (unless ``draws_by_index`` says otherwise), and a task's result does not
    depend on the tasks beside it; a query's prediction does not depend on the other queries, unless the network
    normalises by them (transductively), or ``mixes_queries`` says so; ``meta_update`` changes a parameter, if
    any can be trained, and returns finite floats, ``loss`` among them; the same seed gives the same bits, also after a
    checkpoint. States are never inspected: they are compared by what is predicted with them.

    Args:
        learner: settings with a ``build`` method, or a function of spec, device and seed that returns the learner.
        tasks: tasks to learn.
        episode: their size; default: the family's own.
        seed: seed for the learner and the tasks.

    Raises:
        LearnerCheckError: listing every violation found.
    """
    if isinstance(learner, Learner) or (isinstance(learner, type) and not issubclass(learner, Learner)):
        raise ConfigError(
            f"check_learner expects settings (a LearnerConfig) or a function of (spec, device, seed) that builds the "
            f"learner, got {learner!r}."
        )
    build: Build = learner.build if isinstance(learner, LearnerConfig) else learner
    name = type(learner).__name__ if isinstance(learner, LearnerConfig) else getattr(learner, "__name__", repr(learner))
    episode = episode or tasks.default_episode
    try:
        build(tasks.spec(episode), _CPU, seed)
    except Exception as error:
        problem = f"building it for {tasks.id} raised {type(error).__name__}: {error}"
        raise LearnerCheckError(name, [problem]) from error
    check = _Check(build, tasks, episode, seed)
    check.run()
    if check.problems:
        raise LearnerCheckError(name, check.problems)


class _Check(Clauses):
    """One run of :func:`check_learner`; ``problems`` grows as it goes."""

    def __init__(self, build: Build, tasks: FewShotTasks, episode: EpisodeConfig, seed: int) -> None:
        super().__init__()
        self._build = build
        self._tasks = tasks
        self._episode = episode
        self._seed = seed
        self._batch = tasks.sample("validation", _NUM_TASKS, episode, numpy_stream(seed, "check"))

    def run(self) -> None:
        self.run_all(
            {
                "predict": self._predicting,
                "adapt": self._adapting,
                "meta_update": self._training,
            }
        )

    def _learner(self, offset: int = 0) -> Learner[Any]:
        return self._build(self._tasks.spec(self._episode), _CPU, self._seed + offset)

    # Clauses --------------------------------------------------------------------------------------------------------

    def _predicting(self) -> None:
        """Shapes and no side effects of ``predict``; parameters follow from the seed."""
        learner, x = self._learner(), self._batch.query.x
        before = snapshot(learner)
        torch.rand(1)
        self.require(same_bits(before, snapshot(self._learner())), "two learners built with one seed differ")
        for state, when in (
            (learner.begin(_NUM_TASKS), "before the first adapt"),
            (_adapted(learner, self._batch.support), "after adapt"),
        ):
            outputs = learner.predict(state, x)
            expected = (*x.shape[:2], learner.spec.num_outputs)
            self.require(
                tuple(outputs.shape) == expected and outputs.dtype == x.dtype,
                f"predict returns the shape {tuple(outputs.shape)} and {outputs.dtype} {when}, expected "
                f"[task, example, output] = {expected} and {x.dtype}",
            )
            self.require(bool(torch.isfinite(outputs).all()), f"predict returns a NaN or infinity {when}")
            self.require(not outputs.requires_grad, "predict keeps gradients")
            torch.rand(1)
            self.require(
                same_bits(outputs, learner.predict(state, x)),
                "predict depends on more than its arguments, or changes the state: a second call gave another result",
            )
            modules = [part for part in learner.components().values() if isinstance(part, nn.Module)]
            if not learner.mixes_queries and not any(map(is_transductive, modules)):
                self.require(
                    _close(outputs[:, :1], learner.predict(state, x[:, :1])),
                    "what is predicted of one query depends on the other queries",
                )
        self.require(same_bits(before, snapshot(learner)), "predict changes state_dict(); only meta_update may")

    def _adapting(self) -> None:
        """``adapt`` is a function of its arguments, task by task."""
        learner, support, x = self._learner(), self._batch.support, self._batch.query.x
        before, kept = snapshot(learner), copy.deepcopy(support)
        state = learner.begin(_NUM_TASKS)
        given = learner.predict(state, x)
        result = learner.predict(learner.adapt(state, support), x)
        self.require(same_bits(before, snapshot(learner)), "adapt changes state_dict(); only meta_update may")
        self.require(same_bits(kept, support), "adapt changes the support set it is given")
        self.require(
            same_bits(given, learner.predict(state, x)), "adapt changes the state it is given; return a new one instead"
        )
        learner.adapt(learner.begin(_NUM_TASKS), Examples(kept.x.flip(0), kept.y.flip(0)))
        learner.seed(self._seed + 1)
        torch.rand(1)
        self.require(
            same_bits(result, learner.predict(learner.adapt(state, kept), x)),
            "adapt depends on more than its arguments: a second call with the same ones gave another result",
        )
        whole = learner.predict(_adapted(learner, support), x)
        for order, problem in (
            ([*range(1, _NUM_TASKS), 0], "permuting the tasks does not permute the results"),
            ([0], "a task's result depends on the other tasks beside it"),
        ):
            if learner.draws_by_index and order != [0]:
                continue  # A task in another place draws other numbers.
            part = Examples(support.x[order], support.y[order])
            self.require(_close(whole[order], learner.predict(_adapted(learner, part), x[order])), problem)

    def _training(self) -> None:
        """Updates are a function of parameters, batch and seed, also when parameters come from a checkpoint."""
        learner = self._learner()
        before = snapshot(learner)
        metrics = self._update(learner, 0)
        after = snapshot(learner)
        self.require("loss" in metrics, f"meta_update returns no 'loss', only {', '.join(metrics) or 'nothing'}")
        for name, value in metrics.items():
            self.require(
                isinstance(value, float) and math.isfinite(value),
                f"meta_update's metric {name!r} is {value!r}, expected a finite float",
            )
        modules = [part for part in learner.components().values() if isinstance(part, nn.Module)]
        if any(value.requires_grad for module in modules for value in module.parameters()):
            self.require(not same_bits(before, after), "meta_update changes nothing in state_dict()")
        for name, tensor in learner.named_tensors().items():
            self.require(bool(torch.isfinite(tensor).all()), f"meta_update leaves a NaN or infinity in {name}")

        learner.load_state_dict(before)
        torch.rand(1)
        self.require(
            same_bits(self._update(learner, 0), metrics) and same_bits(snapshot(learner), after),
            "one meta_update, repeated from the same state_dict() with the same seed, gave another result: keep "
            "everything that lasts in components(), and draw from self.generator only",
        )
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "learner.safetensors"
            save(path, learner.state_dict())
            restored = self._learner(1)
            restored.load_state_dict(load(path))
        self._update(learner, 1)
        self._update(restored, 1)
        x = self._batch.query.x
        self.require(
            same_bits(snapshot(learner), snapshot(restored))
            and same_bits(
                learner.predict(_adapted(learner, self._batch.support), x),
                restored.predict(_adapted(restored, self._batch.support), x),
            ),
            "a learner restored from a checkpoint learns otherwise than the one that was saved: state_dict() and "
            "load_state_dict() must carry everything that lasts",
        )

    def _update(self, learner: Learner[Any], iteration: int) -> dict[str, float]:
        """One update on tasks of its own."""
        episode = learner.training_episode(self._episode)
        batch = self._tasks.sample("train", _NUM_TASKS, episode, numpy_stream(self._seed, "check", iteration))
        learner.seed(self._seed + iteration)
        return learner.meta_update(batch)


def _adapted(learner: Learner[Any], support: Examples) -> Any:
    """The state after as many calls of ``adapt`` as an evaluation makes."""
    learner.seed(0)
    state = learner.begin(len(support.y))
    for _ in range(learner.num_eval_adaptations):
        state = learner.adapt(state, support)
    return state


def _close(left: Tensor, right: Tensor) -> bool:
    return torch.allclose(left.double(), right.double(), rtol=1e-3, atol=1e-3)
