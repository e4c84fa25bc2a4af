"""Few-shot learning: MAML batched over tasks against a plain loop over tasks, and what drawing tasks costs."""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from metarl.benchmarks.speed.measure import Clock, measure
from metarl.errors import ConfigError
from metarl.fewshot.learners.maml import MAML, MAMLConfig
from metarl.fewshot.learners.protonet import ProtoNetConfig
from metarl.fewshot.tasks import image_folder, load_tasks
from metarl.fewshot.tasks.classes import ClassTasks
from metarl.fewshot.types import EpisodeConfig, Examples, Split, TaskBatch

TOLERANCE = 1e-9
"""Largest difference of the gradients, relative to their norm, in float64; in float32 the two ways may fall on
different sides of a ReLU's kink, as an image's background has the same value everywhere."""


def run(console: Console, clock: Clock, device: torch.device, quick: bool) -> None:
    """Print both tables.

    Raises:
        ConfigError: if the two ways disagree on the gradient.
    """
    table = Table(title="MAML's meta-update (second order), against a Python loop over tasks")
    for header in ("tasks", "meta-batch", "support + query", "loop, ms", "metarl, ms", "times as fast"):
        table.add_column(header, justify="right" if header != "tasks" else "left")
    cases = (
        ("sinusoid", MAMLConfig(inner_lr=0.01, num_inner_steps=1), EpisodeConfig(1, 10, 10), 25),
        ("sinusoid, 5 steps", MAMLConfig(inner_lr=0.01, num_inner_steps=5), EpisodeConfig(1, 10, 10), 25),
        ("Omniglot's net, 5-way 1-shot", _omniglot(0.4, 1), EpisodeConfig(5, 1, 1), 32),
        ("Omniglot's net, 20-way 1-shot, 5 steps", _omniglot(0.1, 5), EpisodeConfig(20, 1, 1), 16),
        ("Omniglot's net, 5-way 5-shot", _omniglot(0.4, 1), EpisodeConfig(5, 5, 5), 32),
    )
    for name, config, episode, num_tasks in cases[:3:2] if quick else cases:
        tasks = load_tasks("sinusoid" if "sinusoid" in name else "glyphs")
        size = 2 if quick else num_tasks
        batch = tasks.sample("train", size, episode, np.random.default_rng(0)).to(device)
        spec = tasks.spec(episode)
        _require_same_gradients(config.build(spec, torch.device("cpu"), 0), batch[:3].to(torch.device("cpu")))
        learner = config.build(spec, device, 0)
        loop, batched = _compare(learner, batch, clock, device, 2 if quick else 6)
        examples = f"{batch.support.y.shape[1]} + {batch.query.y.shape[1]}"
        row = (name, str(size), examples, f"{1e3 * loop:.1f}", f"{1e3 * batched:.1f}", f"{loop / batched:.2f}")
        table.add_row(*row)
    console.print(table)
    _print_loading(console, device, quick)


def _omniglot(inner_lr: float, num_inner_steps: int) -> MAMLConfig:
    return MAMLConfig(inner_lr=inner_lr, num_inner_steps=num_inner_steps, downsample="stride")


class _PlainMAML:
    """MAML as public PyTorch code writes it: one task after the other, inner gradients with ``create_graph``.

    Args:
        learner: whose network is trained, with gradient descent as its rule.
    """

    def __init__(self, learner: MAML) -> None:
        self.module, self.config = learner.module, learner.config
        self.optimizer = torch.optim.Adam(self.module.parameters(), lr=self.config.meta_lr)

    def meta_update(self, batch: TaskBatch) -> float:
        """One step of Adam; returns the mean loss before it."""
        self.optimizer.zero_grad()
        total = 0.0
        for task in range(batch.num_tasks):
            params: dict[str, Tensor] = dict(self.module.named_parameters())
            for _ in range(self.config.num_inner_steps):
                inner = self._loss(params, batch.support.x[task], batch.support.y[task])
                grads = torch.autograd.grad(inner, list(params.values()), create_graph=True)
                moved = zip(params.items(), grads, strict=True)
                params = {name: value - self.config.inner_lr * grad for (name, value), grad in moved}
            outer = self._loss(params, batch.query.x[task], batch.query.y[task]) / batch.num_tasks
            outer.backward()  # type: ignore[no-untyped-call]
            total += float(outer.detach())
        nn.utils.clip_grad_norm_(self.module.parameters(), self.config.max_grad_norm)
        self.optimizer.step()
        return total

    def _loss(self, params: Mapping[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        out = torch.func.functional_call(self.module, dict(params), (x,))
        return F.cross_entropy(out, y) if y.dtype == torch.int64 else F.mse_loss(out, y)


def _compare(learner: MAML, batch: TaskBatch, clock: Clock, device: torch.device, rounds: int) -> tuple[float, float]:
    """Seconds of an update by a loop and by the learner, the fastest of several rounds that take turns."""
    plain = _PlainMAML(learner)
    spent: list[tuple[float, float]] = []
    for _ in range(rounds):
        by_loop = measure(lambda: plain.meta_update(batch), clock, device).device
        spent.append((by_loop, measure(lambda: learner.meta_update(batch), clock, device).device))
    return min(loop for loop, _ in spent), min(ours for _, ours in spent)


def _require_same_gradients(learner: MAML, batch: TaskBatch) -> None:
    learner.module.double()
    support, query = (
        Examples(part.x.double(), part.y.double() if part.y.is_floating_point() else part.y)
        for part in (batch.support, batch.query)
    )
    exact = TaskBatch(support, query)
    before = copy.deepcopy(learner.module.state_dict())
    gradients = []
    for way in (_PlainMAML(learner), learner):
        learner.module.load_state_dict(before)
        way.meta_update(exact)
        gradients.append(torch.cat([p.grad.flatten() for p in learner.module.parameters() if p.grad is not None]))
    difference = float((gradients[0] - gradients[1]).norm() / gradients[0].norm())
    if not difference < TOLERANCE:
        raise ConfigError(f"the two gradients differ by {difference:.1e} of their norm: their times mean nothing.")


def _print_loading(console: Console, device: torch.device, quick: bool) -> None:
    """How much of an epoch of Prototypical Networks' training goes into drawing its tasks from a folder of images."""
    episode, updates = EpisodeConfig(20 if quick else 60, 1, 5), 2 if quick else 20
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        tasks = _written_glyphs(Path(folder), 3 * episode.ways)
        first = time.perf_counter() - started
        learner = ProtoNetConfig().build(tasks.spec(EpisodeConfig(5, 1, 5)), device, 0)
        drawing = learning = 0.0
        for number in range(updates + 1):
            started = time.perf_counter()
            batch = tasks.sample("train", 1, episode, np.random.default_rng(number)).to(device)
            drawn = time.perf_counter()
            learner.meta_update(batch)
            if number > 0:  # The first warms up.
                drawing, learning = drawing + drawn - started, learning + time.perf_counter() - drawn
    table = Table(title=f"ProtoNet, {episode.ways}-way 1-shot with 5 queries, {updates} episodes from a folder of PNGs")
    for header in ("decoding, once, s", "drawing, ms an episode", "learning, ms an episode", "share of drawing"):
        table.add_column(header, justify="right")
    each = 1e3 / updates
    share = drawing / (drawing + learning)
    table.add_row(f"{first:.1f}", f"{each * drawing:.1f}", f"{each * learning:.1f}", f"{share:.1%}")
    console.print(table)


def _written_glyphs(folder: Path, num_classes: int) -> ClassTasks:
    """Glyphs as a folder of PNGs, read again."""
    glyphs = load_tasks("glyphs")
    sizes: dict[Split, int] = {"train": num_classes, "validation": 20, "test": 20}
    for split, size in sizes.items():
        for first in range(0, size, 20):
            batch = glyphs.sample(split, 1, EpisodeConfig(20, 10, 10), np.random.default_rng(first))
            images = torch.cat([batch.support.x, batch.query.x], 1)[0, :, 0].mul(255).byte().numpy()
            labels = torch.cat([batch.support.y, batch.query.y], 1)[0].numpy()
            for number, (image, label) in enumerate(zip(images, labels, strict=True)):
                own = folder / split / f"{split}{first + label:04}"
                own.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image).save(own / f"{number:03}.png")
    return image_folder(folder)
