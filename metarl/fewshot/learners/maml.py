"""MAML; what differs from it by its rule alone (FOMAML, ANIL, Meta-SGD, Meta-LSTM) is a config beside it.

Finn, Abbeel, Levine, 2017 (arXiv 1703.03400), Algorithm 2: parameters are trained such that a few steps on a task's
support set lower the loss on its query set. The options that make it MAML++ are those of Antoniou, Edwards, Storkey,
2019 (arXiv 1810.09502, section 4).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import nn
from torch.optim import Optimizer

from metarl.adaptation import LearnedRates, UpdateRule
from metarl.config.settings import Natural, Positive
from metarl.distributed import current
from metarl.fewshot.backbone import build_backbone
from metarl.fewshot.learners.gradient import GradientLearner, GradientLearnerConfig, steps_done
from metarl.fewshot.learners.outer_step import training_mode
from metarl.fewshot.objective import score_name, task_losses, task_scores
from metarl.fewshot.types import FewShotSpec, TaskBatch
from metarl.networks.params import Params, trainable
from metarl.seeding import torch_stream


@dataclass(frozen=True)
class MAMLConfig(GradientLearnerConfig):
    """MAML, with the options of MAML++."""

    when: ClassVar[str] = "the reference for gradient-based adaptation, of any network"
    acts_with: ClassVar[Mapping[str, tuple[str, int]]] = {"multi_step_iterations": ("num_inner_steps", 2)}

    first_order: bool = False
    """Take inner gradients for constants (FOMAML)."""
    learned_rates: Literal["none", "layer", "layer-and-step"] = "none"
    """Learn step sizes: one for each layer, or for each layer and step (MAML++'s LSLR)."""
    multi_step_iterations: Natural = 0
    """Iterations in which the query loss counts after every step, with weights that go over to the last one (MAML++'s
    MSL); 0 trains by the last step alone."""
    max_grad_norm: Positive = 10.0
    """Meta-gradients are clipped to this norm."""

    def make_rule(self, params: Params) -> UpdateRule | float:
        """Gradient descent, with learned step sizes if asked for."""
        if self.learned_rates == "none":
            return self.inner_lr
        num_steps = self.num_inner_steps if self.learned_rates == "layer-and-step" else None
        return LearnedRates(params, self.inner_lr, "layer", num_steps)

    def adapted_names(self, params: Params) -> frozenset[str]:
        """Names of the parameters that adapt."""
        return frozenset(params)

    def build(self, spec: FewShotSpec, device: torch.device, seed: int) -> MAML:
        """See :meth:`LearnerConfig.build`."""
        module = build_backbone(self, spec, device, seed, num_steps=self.num_inner_steps)
        params = trainable(module)
        adapted = self.adapted_names(params)
        with torch_stream(seed, "rule"):
            rule = self.make_rule({name: value for name, value in params.items() if name in adapted})
        return MAML(spec, device, self, module, rule, adapted)


class MAML(GradientLearner):
    """Any rule whose start, and whose own parameters, are trained by the loss after adaptation.

    Args:
        spec: shapes of the tasks.
        device: where the network runs.
        config: settings; those that name a network or a rule are of no account here.
        module: any network.
        rule: how it adapts; what it has to learn is learned.
        adapted: names of the parameters that adapt, the others being shared by all tasks; default: all.
    """

    config: MAMLConfig

    def __init__(
        self,
        spec: FewShotSpec,
        device: torch.device,
        config: MAMLConfig,
        module: nn.Module,
        rule: UpdateRule | float,
        adapted: Collection[str] | None = None,
    ) -> None:
        super().__init__(spec, device, config, module, rule, adapted)
        self.optimizer = torch.optim.Adam(self._learned(), lr=config.meta_lr)

    def components(self) -> dict[str, nn.Module | Optimizer]:
        """The network, a rule that learns, and Adam."""
        return {**self._modules(), "optimizer": self.optimizer}

    def meta_update(self, batch: TaskBatch) -> dict[str, float]:
        """One step of Adam on the mean loss of the query sets after adaptation."""
        weights = self.step_weights()
        self.optimizer.zero_grad()
        totals = torch.zeros(2, device=self.device)
        paths = []
        for state, tasks in self.chunks(batch):
            outer = torch.zeros(tasks.num_tasks, device=self.device)
            path = [state.model]
            with training_mode(self.module, self.generator):
                for weight in weights:
                    state = self.step(state, tasks.support, second_order=not self.config.first_order)
                    path.append(state.model)
                    if weight:
                        outputs = self.outputs(state.model, tasks.query.x)
                        losses = task_losses(outputs, tasks.query.y, self.spec.kind)
                        outer = outer + weight * losses
            (outer.sum() / batch.num_tasks).backward()  # type: ignore[no-untyped-call]
            scores = task_scores(outputs.detach(), tasks.query.y, self.spec.kind)
            totals += torch.stack([losses.detach().sum(), scores.sum()])
            paths.append(path)
        current().average_gradients(self._learned(), batch.num_tasks)
        norm = nn.utils.clip_grad_norm_(self._learned(), self.config.max_grad_norm)
        self.refresh_buffers(paths, batch)
        self.optimizer.step()
        means = current().average(totals / batch.num_tasks, batch.num_tasks)
        loss, score, gradient_norm = (float(value) for value in (*means, norm))
        return {"loss": loss, score_name(self.spec.kind): score, "gradient_norm": gradient_norm}

    def step_weights(self) -> list[float]:
        """Weights of the query losses after each step: even at first, in the end all on the last."""
        num_steps, span = self.config.num_inner_steps, self.config.multi_step_iterations
        even = max(0.0, 1.0 - steps_done(self.optimizer) / span) / num_steps if span else 0.0
        return [even] * (num_steps - 1) + [1.0 - even * (num_steps - 1)]

    def _modules(self) -> dict[str, nn.Module]:
        rule = self.rule
        return {"module": self.module} | ({"rule": rule} if isinstance(rule, UpdateRule) else {})

    def _learned(self) -> list[nn.Parameter]:
        return [p for part in self._modules().values() for p in part.parameters() if p.requires_grad]
