"""Learning to learn by gradient descent by gradient descent: an LSTM on every coordinate takes the steps.

Andrychowicz et al., 2016 (arXiv 1606.04474): the optimiser ``m`` is trained by the sum of the losses along its path
(eq. 3 with all weights 1), unrolled over 20 of 100 steps at a time, gradients of the optimisee's gradients being left
out (section 2.1), inputs rescaled as in appendix A. What it optimises begins anew in every task, from small random
numbers as in the authors' code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from metarl.adaptation import AdaptedModel, AndrychowiczLSTM, LossFn, UpdateRule, inner_loop, meta_gradient
from metarl.config.settings import Count, NonNegative, Positive
from metarl.distributed import current
from metarl.errors import ConfigError
from metarl.fewshot.backbone import build_backbone
from metarl.fewshot.learners.gradient import FastWeights, GradientLearner, GradientLearnerConfig
from metarl.fewshot.learners.outer_step import training_mode
from metarl.fewshot.objective import score_name, task_losses, task_scores
from metarl.fewshot.types import FewShotSpec, TaskBatch
from metarl.networks.params import Params
from metarl.seeding import GAMMA, UInt64, hashed, torch_stream


@dataclass(frozen=True)
class LearnedOptimiserConfig(GradientLearnerConfig):
    """A learned optimiser: nothing is learned of the tasks but how to descend on them."""

    when: ClassVar[str] = "to learn how to optimise, from any start"

    inner_lr: NonNegative = 0.0
    """Step size of a gradient term beside the LSTM's output; the paper has none."""
    output_scale: Positive = 0.1
    """Factor on the LSTM's output."""
    num_inner_steps: Count = 100
    """Steps of the optimiser on a task in training."""
    num_eval_steps: Count = 100
    """Steps in evaluation."""
    unroll: Count = 20
    """Steps that gradients are carried back through; every so many steps the optimiser is updated."""
    initial_std: Positive = 0.01
    """Standard deviation of the normal numbers that all parameters of a task begin with."""
    task_chunk: Literal[0] = 0
    """All tasks of an update are in memory together: the optimiser is trained by all of them every unroll steps."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_inner_steps % self.unroll:
            raise ConfigError(
                f"num_inner_steps must be a multiple of unroll, got {self.num_inner_steps} and {self.unroll}."
            )

    def build(self, spec: FewShotSpec, device: torch.device, seed: int) -> LearnedOptimiser:
        """See :meth:`LearnerConfig.build`."""
        module = build_backbone(self, spec, device, seed)
        with torch_stream(seed, "rule"):
            rule = AndrychowiczLSTM(self.inner_lr, output_scale=self.output_scale)
        return LearnedOptimiser(spec, device, self, module, rule)


class LearnedOptimiser(GradientLearner):
    """A rule that is trained along the paths that it takes.

    Args:
        spec: shapes of the tasks.
        device: where the network runs.
        config: settings; those that name a network or a rule are of no account here.
        module: any network; its parameters' values do not matter.
        rule: the optimiser.
    """

    config: LearnedOptimiserConfig
    rule: UpdateRule

    def __init__(
        self,
        spec: FewShotSpec,
        device: torch.device,
        config: LearnedOptimiserConfig,
        module: nn.Module,
        rule: UpdateRule,
    ) -> None:
        super().__init__(spec, device, config, module, rule)
        self.draws_by_index = True
        self.optimizer = torch.optim.Adam(rule.parameters(), lr=config.meta_lr)

    def components(self) -> Mapping[str, nn.Module | Optimizer]:
        """The rule and its optimiser; and the network, for its buffers."""
        return {"module": self.module, "rule": self.rule, "optimizer": self.optimizer}

    def start(self, seeds: UInt64) -> Params:
        """Small random parameters for each task."""
        named = dict(self.module.named_parameters())
        sizes = [named[name].numel() for name in self.adapted]
        numbers = torch.split(_normal(seeds, sum(sizes)), sizes, dim=1)
        return {
            name: (self.config.initial_std * drawn).view(-1, *named[name].shape).to(named[name])
            for name, drawn in zip(self.adapted, numbers, strict=True)
        }

    def meta_update(self, batch: TaskBatch) -> dict[str, float]:
        """One pass over the tasks: a step of Adam for every ``unroll`` steps on them.

        All tasks are in memory together: a step of Adam in between needs the gradients of all.
        """
        state = self.begin_share(batch.num_tasks)
        paths = [state.model]
        rule_state: Params | None = None
        for _ in range(self.config.num_inner_steps // self.config.unroll):
            with training_mode(self.module, self.generator):
                state, rule_state = self._unrolled(state, rule_state, batch)
            current().average_gradients(self.rule.parameters(), batch.num_tasks)
            self.optimizer.step()
            paths.append(state.model)
        with torch.no_grad():
            outputs, y = self.outputs(state.model, batch.query.x), batch.query.y
        self.refresh_buffers([paths], batch)
        losses, scores = (score(outputs, y, self.spec.kind) for score in (task_losses, task_scores))
        loss, score = current().average(torch.stack([losses.mean(), scores.mean()]), batch.num_tasks).tolist()
        return {"loss": loss, score_name(self.spec.kind): score}

    def _unrolled(
        self, state: FastWeights, rule_state: Params | None, batch: TaskBatch
    ) -> tuple[FastWeights, Params | None]:
        """Take ``unroll`` steps, and leave the gradient of the losses along them in the rule's parameters."""
        model, seeds = state.model, state.seeds

        def at(number: int) -> AdaptedModel:
            return AdaptedModel(model.module, model.params, model.num_steps + number)

        def inner_loss(number: int) -> LossFn:
            part = self.minibatch(batch.support, FastWeights(at(number), seeds))
            return lambda params: self.losses(AdaptedModel(model.module, params, model.num_steps + number), part)

        loop = inner_loop(
            model.params,
            [inner_loss(number) for number in range(self.config.unroll)],
            self.rule,
            second_order=False,
            state=rule_state,
        )
        after = model.num_steps + self.config.unroll

        def outer_loss(params: Params) -> Tensor:
            return self.losses(AdaptedModel(model.module, params, after), batch.query)

        self.optimizer.zero_grad()
        meta_gradient(None, loop, outer_loss, rule=self.rule, along_path=True)
        return FastWeights(AdaptedModel(model.module, loop.adapted, after), seeds), loop.state


def _normal(seeds: UInt64, size: int) -> Tensor:
    """Standard normal numbers ``[task, size]``, a function of each task's seed."""
    with np.errstate(over="ignore"):
        bits = hashed(hashed(seeds + np.uint64(1))[:, None] + np.arange(size, dtype=np.uint64) * np.uint64(GAMMA))
    # The middles of 2**52 intervals: neither 0 nor 1.
    drawn: Tensor = torch.special.ndtri(torch.from_numpy(((bits >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52))
    return drawn
