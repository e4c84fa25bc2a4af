"""The outer step of learners that are trained by plain descent: Adam on the mean loss of the tasks."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from metarl.distributed import current
from metarl.errors import NonFiniteError
from metarl.fewshot.objective import score_name, task_losses, task_scores
from metarl.fewshot.types import Kind
from metarl.networks.params import trainable
from metarl.networks.task_norm import frozen_norms


class OuterStep:
    """Adam, whose step size may be halved every so many steps.

    The number of steps so far is that of the optimiser's own state, so that a checkpoint of it holds all there is.

    Args:
        module: everything that is trained; in evaluation mode but for the time of a step.
        meta_lr: step size.
        halve_every: steps after which the step size is halved, again and again; 0: never.

    Raises:
        ConfigError: for a module without parameters that can be trained.
    """

    def __init__(self, module: nn.Module, meta_lr: float, halve_every: int = 0) -> None:
        self.module = module.eval()
        self.optimizer = torch.optim.Adam(trainable(module).values(), lr=meta_lr)
        self._meta_lr = meta_lr
        self._halve_every = halve_every

    def step(
        self, predict: Callable[[], tuple[Tensor, Tensor]], kind: Kind, generator: torch.Generator
    ) -> dict[str, float]:
        """Take one step.

        Args:
            predict: outputs ``[task, example, output]`` and targets; runs with the module in training mode.
            kind: of the targets; decides the loss.
            generator: source of what is random in the module (dropout).

        Returns:
            Loss and score, means over the tasks of all ranks, before the step.

        Raises:
            NonFiniteError: for a loss that is not finite.
        """
        with training_mode(self.module, generator):
            outputs, y = predict()
        loss = task_losses(outputs, y, kind).mean()
        if not torch.isfinite(loss):
            raise NonFiniteError(f"the loss of the training tasks is not finite ({float(loss.detach())}).")
        for group in self.optimizer.param_groups:
            group["lr"] = self._lr()
        self.optimizer.zero_grad()
        ranks, num_tasks = current(), len(y)
        # Weighed before it goes back: where ranks share statistics, a rank's tensors serve the losses of all.
        (loss * (num_tasks / ranks.total(num_tasks))).backward()  # type: ignore[no-untyped-call]
        ranks.sum_gradients(trainable(self.module).values())
        self.optimizer.step()
        score = task_scores(outputs.detach(), y, kind).mean()
        means = ranks.average(torch.stack([loss.detach(), score]), num_tasks)
        return {"loss": float(means[0]), score_name(kind): float(means[1])}

    def _lr(self) -> float:
        """Step size of the next step."""
        if not self._halve_every:
            return self._meta_lr
        num_steps = max((int(state["step"]) for state in self.optimizer.state.values()), default=0)
        return float(self._meta_lr * 0.5 ** (num_steps // self._halve_every))


@contextlib.contextmanager
def training_mode(module: nn.Module, generator: torch.Generator) -> Iterator[None]:
    """Training mode, in which torch's global generators are a function of ``generator`` and put back afterwards.

    Frozen batch normalisation stays in evaluation mode: what a network knows by its averages is frozen with it.
    """
    devices = {value.device for value in module.parameters() if value.device.type == "cuda"}
    with torch.random.fork_rng(devices=list(devices)):
        seed = int(torch.randint(2**62, (), generator=generator))
        # torch.manual_seed would note down the stack for every kind of accelerator: a tenth of a small update.
        torch.default_generator.manual_seed(seed)
        for device in devices:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        module.train()
        for part in frozen_norms(module):
            part.eval()
        try:
            yield
        finally:
            module.eval()
