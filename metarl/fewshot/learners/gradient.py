"""What gradient-based learners share: parameters of their own for each task, moved by a rule."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from metarl.adaptation import AdaptedModel, UpdateRule, adapt
from metarl.adaptation.update_rules import require_parameters
from metarl.config.settings import Count, Natural, Positive
from metarl.distributed import current
from metarl.fewshot.backbone import require_outputs
from metarl.fewshot.learner import Learner, LearnerConfig
from metarl.fewshot.learners.outer_step import training_mode
from metarl.fewshot.objective import task_losses
from metarl.fewshot.types import Examples, FewShotSpec, TaskBatch
from metarl.networks.module_call import expect_buffers, mean_buffers
from metarl.networks.params import Params, trainable
from metarl.networks.task_norm import batch_statistics, frozen_norms, set_step
from metarl.seeding import GAMMA, UInt64, hashed, row_keys

_LARGE_INPUT = 400
"""Numbers in an input from which on a CPU is faster with a few tasks at a time: images, of 20 x 20 pixels and more."""

_LARGE_INPUTS = 64
"""How many of them are fastest at a time; measured with conv4."""


@dataclass(frozen=True)
class FastWeights:
    """A model for each task.

    Attributes:
        model: the network with the tasks' parameters, and how many steps they have behind them.
        seeds: numbers ``[task]`` that decide which minibatches of the support the next steps see.
    """

    model: AdaptedModel
    seeds: UInt64

    def __getitem__(self, tasks: slice) -> FastWeights:
        """Those of some of the tasks."""
        model = self.model
        params = {name: value[tasks] for name, value in model.params.items()}
        state = None if model.state is None else {name: value[tasks] for name, value in model.state.items()}
        return FastWeights(AdaptedModel(model.module, params, model.num_steps, state), self.seeds[tasks])

    @staticmethod
    def join(parts: Sequence[FastWeights]) -> FastWeights:
        """One state for the tasks of several, that have taken the same number of steps."""
        models = [part.model for part in parts]
        first = models[0]
        params = {name: torch.cat([model.params[name] for model in models]) for name in first.params}
        states = [model.state for model in models if model.state is not None]
        state = {name: torch.cat([own[name] for own in states]) for name in states[0]} if states else None
        joined = AdaptedModel(first.module, params, first.num_steps, state)
        return FastWeights(joined, np.concatenate([part.seeds for part in parts]))


@dataclass(frozen=True)
class GradientLearnerConfig(LearnerConfig):
    """Settings of the inner loop."""

    inner_lr: Positive = 0.01
    """Step size of adaptation."""
    num_inner_steps: Count = 5
    """Steps of adaptation in training."""
    num_eval_steps: Count = 10
    """Steps of adaptation in evaluation."""
    inner_batch_size: Natural = 0
    """Examples of the support in each step, drawn anew; 0 takes all of them."""
    task_chunk: Natural = 0
    """Tasks at a time, whose graphs are in memory together; but for dropout's draws, what is learned is the same. 0:
    all of them on a GPU or with small inputs, else those of 64 support examples, as a CPU's cache holds no more."""


class GradientLearner(Learner[FastWeights]):
    """``begin``, ``adapt`` and ``predict`` of MAML and its kin; subclasses say how the meta-parameters move.

    Args:
        spec: shapes of the tasks.
        device: where the network runs.
        config: settings of the inner loop.
        module: any network; its trainable parameters adapt. It is in evaluation mode but for the time of an update.
        rule: how they move.
        adapted: names of those that do, the others being shared by all tasks; default: all.
    """

    data_parallel = True

    def __init__(
        self,
        spec: FewShotSpec,
        device: torch.device,
        config: GradientLearnerConfig,
        module: nn.Module,
        rule: UpdateRule | float,
        adapted: Collection[str] | None = None,
    ) -> None:
        super().__init__(
            spec, device, num_adaptations=config.num_inner_steps, num_eval_adaptations=config.num_eval_steps
        )
        self.config: GradientLearnerConfig = config
        self.module = module.to(device).eval()
        require_outputs(self.module, spec, device)
        self.rule = rule.to(device) if isinstance(rule, UpdateRule) else rule
        params = trainable(self.module)
        require_parameters(adapted, params)
        self.adapted = [name for name in params if adapted is None or name in adapted]
        self.draws_by_index = config.inner_batch_size > 0
        self._inner_batch_size = config.inner_batch_size
        small = device.type != "cpu" or math.prod(spec.input_shape) < _LARGE_INPUT
        self._task_chunk = config.task_chunk or (2**30 if small else max(1, _LARGE_INPUTS // (spec.num_support or 16)))
        expect_buffers(module)

    def begin(self, num_tasks: int) -> FastWeights:
        """All tasks at the parameters that they start from."""
        return self._begin(num_tasks, 0)

    def begin_share(self, num_tasks: int) -> FastWeights:
        """The same for a batch whose tasks lie on all ranks: each draws by its place in the whole batch."""
        return self._begin(num_tasks, current().place(num_tasks)[0])

    def _begin(self, num_tasks: int, first_task: int) -> FastWeights:
        seed = int(torch.randint(2**62, (), generator=self.generator))
        seeds = row_keys(seed, np.arange(first_task, first_task + num_tasks, dtype=np.uint64))
        return FastWeights(AdaptedModel(self.module, self.start(seeds)), seeds)

    def start(self, seeds: UInt64) -> Params:
        """The meta-learned parameters, for each of the tasks whose seeds these are."""
        named = dict(self.module.named_parameters())
        return {name: named[name].expand(len(seeds), *named[name].shape) for name in self.adapted}

    def adapt(self, state: FastWeights, support: Examples) -> FastWeights:
        """One step of the rule, normalised by the support set itself as in training: it is given as a whole."""
        with torch.no_grad(), batch_statistics(self.module):
            parts = [self.step(state[tasks], support[tasks], second_order=False) for tasks in self._slices(state)]
        return FastWeights.join(parts)

    def predict(self, state: FastWeights, x: Tensor) -> Tensor:
        """See :meth:`Learner.predict`."""
        with torch.no_grad():
            return torch.cat([self.outputs(state[tasks].model, x[tasks]) for tasks in self._slices(state)])

    def step(self, state: FastWeights, support: Examples, *, second_order: bool) -> FastWeights:
        """One step of the rule, with its graph."""
        part = self.minibatch(support, state)
        model = adapt(
            state.model,
            lambda model: self.losses(model, part),
            steps=1,
            rule=self.rule,
            second_order=second_order,
        )
        return FastWeights(model, state.seeds)

    def minibatch(self, support: Examples, state: FastWeights) -> Examples:
        """The examples that the next step sees: all, or a sample without repetition, another one for each task."""
        num_tasks, size = support.y.shape[:2]
        if not 0 < self._inner_batch_size < size:
            return support
        numbers = np.arange(size, dtype=np.uint64) + np.uint64(state.model.num_steps * size)
        with np.errstate(over="ignore"):
            keys = hashed(hashed(state.seeds)[:, None] + numbers * np.uint64(GAMMA))
        chosen = torch.from_numpy(keys.argsort(1)[:, : self._inner_batch_size]).to(support.y.device)
        rows = torch.arange(num_tasks, device=chosen.device)[:, None]
        return Examples(support.x[rows, chosen], support.y[rows, chosen])

    def outputs(self, model: AdaptedModel, x: Tensor) -> Tensor:
        """Logits or predictions ``[task, example, output]``."""
        set_step(self.module, model.num_steps)
        out: Tensor = model(x)
        return out

    def losses(self, model: AdaptedModel, examples: Examples) -> Tensor:
        """Loss of each task, ``[task]``."""
        return task_losses(self.outputs(model, examples.x), examples.y, self.spec.kind)

    def chunks(self, batch: TaskBatch) -> Iterator[tuple[FastWeights, TaskBatch]]:
        """States to begin with and tasks, in pieces of ``task_chunk`` tasks."""
        start = self.begin_share(batch.num_tasks)
        for tasks in self._slices(start):
            yield start[tasks], batch[tasks]

    def _slices(self, state: FastWeights) -> Iterator[slice]:
        return self.slices(len(state.seeds))

    def slices(self, num_tasks: int) -> Iterator[slice]:
        """The tasks that are computed together."""
        for first in range(0, num_tasks, self._task_chunk):
            yield slice(first, first + self._task_chunk)

    def refresh_buffers(self, paths: Sequence[Sequence[AdaptedModel]], batch: TaskBatch) -> None:
        """Let running statistics, if there are any, follow those of the support and query sets, averaged over tasks.

        Args:
            paths: for each of the :meth:`chunks` its models before every step and after the last one, which sees the
                query.
            batch: the tasks.
        """
        frozen = {id(value) for part in frozen_norms(self.module) for value in part.buffers()}
        moving = {name: value for name, value in self.module.named_buffers() if id(value) not in frozen}
        if not moving:
            return
        for models in zip(*paths, strict=True):
            set_step(self.module, models[0].num_steps)
            params = {name: torch.cat([model.params[name].detach() for model in models]) for name in self.adapted}
            last = models[0].num_steps == paths[0][-1].num_steps
            with training_mode(self.module, self.generator):
                means = mean_buffers(self.module, params, (batch.query if last else batch.support).x)
            for name, buffer in moving.items():
                buffer.copy_(current().average(means[name], batch.num_tasks))


class Counter(nn.Module):
    """How much there was so far, for checkpoints."""

    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))


def steps_done(optimizer: torch.optim.Optimizer) -> int:
    """Steps that Adam has taken, which its state counts and checkpoints hold."""
    return max((int(state["step"]) for state in optimizer.state.values()), default=0)
