"""Learning without meta-learning: one network for all training tasks, fine-tuned to a new one by gradient descent.

Classification: a classifier of all training classes, whose head is replaced by one of zeros for each task
(Ravi and Larochelle, 2017, "Optimization as a model for few-shot learning", section 5.1, "Baseline-finetune").
Regression: one network for the examples of all tasks, which can but predict their mean (Finn et al., 2017, arXiv
1703.03400, section 5.1, "pretraining on all of the tasks").

Difference from the papers: step size and number of steps of fine-tuning are settings, not searched for each task.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from metarl.adaptation import StepSizes, call, inner_loop, stack_module
from metarl.config.settings import Count, Positive
from metarl.errors import ConfigError
from metarl.fewshot.learner import Learner, LearnerConfig
from metarl.fewshot.learners.embedding import FeatureConfig, build_features, embed
from metarl.fewshot.learners.outer_step import OuterStep
from metarl.fewshot.objective import task_losses
from metarl.fewshot.types import Examples, FewShotSpec, TaskBatch
from metarl.networks.params import Params, trainable
from metarl.seeding import torch_stream


@dataclass(frozen=True)
class PretrainedConfig(FeatureConfig):
    """One network for all training tasks, then fine-tuned."""

    when: ClassVar[str] = "reference: one network for all training tasks, fine-tuned to each new one"

    inner_lr: Positive = 0.01
    """Step size of fine-tuning."""
    num_inner_steps: Count = 10
    """Steps of fine-tuning."""
    fine_tune: Literal["all", "head"] = "all"
    """What fine-tuning moves: all parameters, or those of the last layer."""

    def build(self, spec: FewShotSpec, device: torch.device, seed: int) -> Pretrained:
        """A fresh learner."""
        return Pretrained(self, spec, device, seed)


class Pretraining:
    """Features and a linear head, trained on the support and query examples of all tasks at once.

    Args:
        config: of the network and its optimiser.
        spec: shapes of the tasks.
        device: where it runs.
        seed: seed for the parameters.

    Raises:
        ConfigError: in classification, if the number of training classes is not known.

    Attributes:
        body: the features.
        num_features: their size.
        head: from features to all training classes, or to the targets of regression.
    """

    def __init__(self, config: LearnerConfig, spec: FewShotSpec, device: torch.device, seed: int) -> None:
        num_outputs = spec.num_outputs if spec.kind == "regression" else spec.num_classes
        if num_outputs is None:
            raise ConfigError(
                "pretraining tells all training classes apart, and these tasks do not say how many there are "
                "(FewShotSpec.num_classes): take tasks made of classes with examples, or another learner."
            )
        self.body, self.num_features = build_features(config, spec, device, seed)
        with torch_stream(seed, "head"):
            self.head = nn.Linear(self.num_features, num_outputs).to(device)
        self._kind = spec.kind
        self.network = Headed(self.body, self.head)
        self._outer = OuterStep(self.network, config.meta_lr)

    def components(self) -> dict[str, nn.Module | Optimizer]:
        """The network and its optimiser."""
        return {"network": self.network, "optimizer": self._outer.optimizer}

    def update(self, batch: TaskBatch, generator: torch.Generator) -> dict[str, float]:
        """One step on the mean loss of all examples.

        Raises:
            ConfigError: for tasks of classification that do not say which classes theirs are.
        """
        x = torch.cat([batch.support.x, batch.query.x], dim=1)
        y = torch.cat([batch.support.y, batch.query.y], dim=1)
        if self._kind == "classification":
            if batch.classes is None:
                raise ConfigError(
                    "pretraining tells all training classes apart, and these tasks do not say which theirs are "
                    "(TaskBatch.classes)."
                )
            y = batch.classes.gather(1, y)

        def predict() -> tuple[Tensor, Tensor]:
            return embed(self.network, x), y

        return self._outer.step(predict, self._kind, generator)


class Headed(nn.Module):
    """The features of ``body``, flattened, and then ``head``."""

    def __init__(self, body: nn.Module, head: nn.Linear) -> None:
        super().__init__()
        self.body, self.head = body, head

    def forward(self, x: Tensor) -> Tensor:
        """Outputs ``[example, output]``."""
        out: Tensor = self.head(self.body(x).flatten(1))
        return out

    def run_tasks(self, params: Params, x: Tensor) -> Tensor:
        """:class:`metarl.networks.module_call.RunsTasks`, as the body does it best."""
        own = {name.removeprefix("body."): value for name, value in params.items() if name.startswith("body.")}
        features = call(self.body, own, x).flatten(2) if own else embed(self.body, x)
        return torch.baddbmm(params["head.bias"][:, None], features, params["head.weight"].mT)


@dataclass(frozen=True)
class FineTuned:
    """Parameters of each task.

    Attributes:
        params: those that move, ``[task, ...]``: of the network, or of its head alone.
        seen: the last support set.
        features: what the parameters were given of it, which stays the same from step to step.
    """

    params: Params
    seen: Examples | None = None
    features: Tensor | None = None


class Pretrained(Learner[FineTuned]):
    """Fine-tunes a pretrained network; each ``adapt`` is one step of gradient descent on all support examples.

    Args:
        config: settings.
        spec: shapes of the tasks.
        device: where it runs.
        seed: seed for the parameters.

    Raises:
        ConfigError: in classification, if the number of training classes is not known.
    """

    data_parallel = True

    def __init__(self, config: PretrainedConfig, spec: FewShotSpec, device: torch.device, seed: int) -> None:
        super().__init__(spec, device, num_adaptations=0, num_eval_adaptations=config.num_inner_steps)
        self.config = config
        self._pretraining = Pretraining(config, spec, device, seed)
        head = self._pretraining.head
        if spec.kind == "classification":
            head = nn.Linear(self._pretraining.num_features, spec.num_outputs, device=device)
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)
        self._adapted = Headed(self._pretraining.body, head).eval()
        self._moved = head if config.fine_tune == "head" else self._adapted
        self._rule = StepSizes(trainable(self._moved), config.inner_lr, learned=False)

    def components(self) -> Mapping[str, nn.Module | Optimizer]:
        """The pretrained network and its optimiser."""
        return self._pretraining.components()

    def begin(self, num_tasks: int) -> FineTuned:
        """The pretrained parameters; in classification with a head of zeros, which favours no class."""
        return FineTuned(stack_module(self._moved, num_tasks))

    def adapt(self, state: FineTuned, support: Examples) -> FineTuned:
        """One step of gradient descent."""
        features = state.features if state.seen is support else self._features(support.x)

        def losses(params: Params) -> Tensor:
            return task_losses(call(self._moved, params, features), support.y, self.spec.kind)

        adapted = inner_loop(state.params, [losses], self._rule, second_order=False).adapted
        return FineTuned(adapted, support, features)

    @torch.no_grad()
    def predict(self, state: FineTuned, x: Tensor) -> Tensor:
        """See :meth:`Learner.predict`."""
        outputs: Tensor = call(self._moved, state.params, self._features(x))
        return outputs

    @torch.no_grad()
    def _features(self, x: Tensor) -> Tensor:
        """What the parameters that move are given: ``x`` itself, if those of the body are among them."""
        return x if self._moved is self._adapted else embed(self._adapted.body, x)

    def meta_update(self, batch: TaskBatch) -> dict[str, float]:
        """One step of training on the examples of all tasks; in classification its accuracy is over all classes."""
        return self._pretraining.update(batch, self.generator)
