"""How fast one MAML-TRPO meta-update is, against a plain loop over tasks at the same result; and what it consists of.

The part ``meta-update`` of :mod:`metarl.benchmarks.speed`. Every size and side runs in a fresh process, on the same
synthetic rollouts, so that its peak memory is its own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from metarl.agents.common.gradient_agent import GradientAgent
from metarl.agents.maml import MAMLTRPOConfig
from metarl.benchmarks.speed.measure import Clock, cuda_event, measure, now, peak_memory, product_rate, synthetic_trial
from metarl.benchmarks.speed.plain_maml import PlainMAML
from metarl.config.settings import Natural, SomeCounts, check_settings
from metarl.types import Spec, Trial

SIDES = ("batched", "plain")
TOLERANCE = 1e-4
"""Largest difference of the two sides' loss and KL after the step."""
PARTS = ("advantages", "inner steps", "gradient", "Fisher products", "line search", "rest")


@dataclass(frozen=True)
class Size:
    """One meta-update."""

    num_tasks: int
    num_rollouts: int
    num_steps: int
    obs_dim: int
    hidden_sizes: tuple[int, ...]
    num_inner_steps: int
    repeats: int
    action_dim: int = 4

    @property
    def name(self) -> str:
        """As the tables show it."""
        net = "x".join(map(str, (len(self.hidden_sizes), self.hidden_sizes[0])))
        sizes = f"{self.num_tasks} x {self.num_rollouts} x {self.num_steps}"
        return f"{sizes}, obs {self.obs_dim}, {net}, {self.num_inner_steps} inner"

    def config(self, **settings: Any) -> MAMLTRPOConfig:
        """The settings of the agent."""
        return MAMLTRPOConfig(
            hidden_sizes=self.hidden_sizes,
            num_inner_steps=self.num_inner_steps,
            rollouts_per_task=self.num_rollouts,
            **settings,
        )

    def build(self, config: MAMLTRPOConfig, device: torch.device) -> GradientAgent:
        """The agent."""
        return config.build(Spec(self.obs_dim, self.action_dim, False, self.num_steps), device, 0)

    def trial(self, agent: GradientAgent, seed: int) -> Trial:
        """What it collected."""
        return synthetic_trial(agent, self.num_tasks, self.num_rollouts, self.num_steps, self.num_inner_steps, seed)


MANY_SMALL = Size(40, 20, 10, 20, (32, 32), 1, repeats=10)
PAPER = Size(20, 20, 100, 39, (100, 100), 1, repeats=2)
QUICK = Size(3, 2, 5, 4, (8, 8), 1, repeats=1)


@dataclass(frozen=True)
class UpdateSpeed:
    """Settings of the comparison of meta-updates."""

    tasks: SomeCounts = (20, 40)
    """Meta-batch sizes, with 20 rollouts of 100 steps for each task."""
    widths: SomeCounts = (100, 256)
    """Widths of the two hidden layers."""
    inner_steps: SomeCounts = (1, 3)
    """Numbers of gradient steps."""
    seed: Natural = 0
    """Seed for the rollouts."""

    def __post_init__(self) -> None:
        check_settings(self)

    def sizes(self) -> list[Size]:
        """The rows of the table; those of many small tasks last."""
        large = [
            dataclasses.replace(
                PAPER,
                num_tasks=tasks,
                hidden_sizes=(width, width),
                num_inner_steps=steps,
                repeats=2 if tasks * width * steps <= 2000 else 1,
            )
            for tasks in self.tasks
            for width in self.widths
            for steps in self.inner_steps
        ]
        return [*large, *(dataclasses.replace(MANY_SMALL, num_inner_steps=steps) for steps in self.inner_steps)]


def report_side(side: str, size: dict[str, Any], clock: Clock, device_name: str, seed: int) -> None:
    """Print as JSON what one side's meta-update takes and results in; for a fresh process."""
    device = torch.device(device_name)
    chosen = Size(**{**size, "hidden_sizes": tuple(size["hidden_sizes"])})
    config = chosen.config()
    agent, trial = _prepared(chosen, config, device, seed)
    # Libraries load and allocate on first use.
    small = dataclasses.replace(chosen, num_tasks=2, num_rollouts=2, num_steps=5)
    _side(side, small, config, *_prepared(small, config, device, seed))()
    found: dict[str, float] = {}
    times = []
    with peak_memory(device) as peak:
        for _ in range(chosen.repeats):
            times.append(measure(partial(_keep, found, _side(side, chosen, config, agent, trial)), clock, device))
    best = min(times, key=lambda seconds: seconds.device)
    print(json.dumps({"host": best.host, "device": best.device, "memory": peak[0], **found}))


def _prepared(size: Size, config: MAMLTRPOConfig, device: torch.device, seed: int) -> tuple[GradientAgent, Trial]:
    agent = size.build(config, device)
    return agent, size.trial(agent, seed)


def _side(
    side: str, size: Size, config: MAMLTRPOConfig, agent: GradientAgent, trial: Trial
) -> Callable[[], dict[str, float]]:
    """One meta-update from the agent's first parameters, which stay as they are."""
    if side == "plain":
        return partial(PlainMAML(config, agent.policy.params()).meta_update, trial)
    fresh = size.build(config, agent.device)

    def run() -> dict[str, float]:
        metrics = fresh.meta_update(trial)
        return {**metrics, "loss_after": metrics["loss"] - metrics["improvement"]}

    return run


def _keep(found: dict[str, float], run: Callable[[], dict[str, float]]) -> None:
    found.update(run())


def compare(size: Size, clock: Clock, device: torch.device, seed: int) -> dict[str, dict[str, float]]:
    """Both sides of one size, each in a fresh process.

    Raises:
        RuntimeError: if they end with another loss or KL.
    """
    found = {}
    for side in SIDES:
        arguments = ", ".join(map(repr, (side, dataclasses.asdict(size), clock, str(device), seed)))
        code = f"from metarl.benchmarks.speed.meta_update import report_side; report_side({arguments})"
        answer = subprocess.run([sys.executable, "-W", "ignore", "-c", code], stdout=subprocess.PIPE, check=True)
        found[side] = json.loads(answer.stdout.splitlines()[-1])
    for name in ("loss_after", "kl"):
        ours, theirs = (found[side][name] for side in SIDES)
        if not abs(ours - theirs) <= TOLERANCE:
            raise RuntimeError(f"{size.name}: {name} is {ours} here and {theirs} in the plain implementation.")
    return found


@dataclass(frozen=True)
class Share:
    """What one part of a meta-update takes."""

    host: float
    device: float
    flops: float


def shares(agent: GradientAgent, trial: Trial, clock: Clock) -> dict[str, Share]:
    """Time and FLOPs of each part; the FLOPs are counted in a run of their own, from the same parameters."""
    meta = agent.meta_gradient
    start = meta.current()
    agent.meta_update(trial)
    found = []
    for counter in (None, FlopCounterMode(display=False)):
        meta.assign(start)
        parts = _Parts(clock, agent.device, counter)
        meta.watch = parts
        with counter or contextlib.nullcontext():
            parts.mark()
            agent.meta_update(trial)
            parts.mark()
        meta.watch = contextlib.nullcontext
        found.append(parts.totals())
    timed, counted = found
    return {part: Share(timed[part].host, timed[part].device, counted[part].flops) for part in PARTS}


class _Parts:
    """Notes when each part of a meta-update begins and ends; parts inside parts count for themselves alone."""

    def __init__(self, clock: Clock, device: torch.device, counter: FlopCounterMode | None) -> None:
        self.clock = clock
        self.device = device
        self.counter = counter
        self.open = ["rest"]
        self.marks: list[tuple[str, float, float, Any]] = []

    @contextlib.contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        self.open.append(part)
        self.mark()
        try:
            yield
        finally:
            self.open.pop()
            self.mark()

    def mark(self) -> None:
        event = cuda_event() if self.device.type == "cuda" else None
        if event is not None:
            event.record()
        flops = self.counter.get_total_flops() if self.counter is not None else 0
        self.marks.append((self.open[-1], now(self.clock), float(flops), event))

    def totals(self) -> dict[str, Share]:
        sums = {part: [0.0, 0.0, 0.0] for part in PARTS}
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        for (part, host, flops, event), (_, next_host, next_flops, next_event) in zip(
            self.marks[:-1], self.marks[1:], strict=True
        ):
            device = event.elapsed_time(next_event) / 1e3 if event is not None else next_host - host
            for index, value in enumerate((next_host - host, device, next_flops - flops)):
                sums[part][index] += value
        return {part: Share(*values) for part, values in sums.items()}


def run(settings: UpdateSpeed, console: Console, clock: Clock, device: torch.device, quick: bool) -> None:
    """Measure and print the tables."""
    plain = compare_sides(settings, console, clock, device, quick)
    rate = product_rate(clock, device, 256 if quick else 1024)
    for size in [QUICK] if quick else [PAPER, MANY_SMALL]:
        compare_parts(size, settings.seed, console, clock, device, rate)
    size = QUICK if quick else PAPER
    compare_metrics(size, settings.seed, console, clock, device, plain.get(size))


def compare_sides(
    settings: UpdateSpeed, console: Console, clock: Clock, device: torch.device, quick: bool
) -> dict[Size, float]:
    """The table of ratios; returns the plain loop's seconds."""
    plain = {}
    table = Table(
        "tasks x rollouts x steps",
        *("batched, s", "plain, s", "times as fast", "batched, MB", "plain, MB", "share", "loss after", "KL"),
        title=f"One MAML-TRPO meta-update against a plain loop over tasks ({device.type})",
    )
    for size in [QUICK] if quick else settings.sizes():
        found = compare(size, clock, device, settings.seed)
        ours, theirs = found["batched"], found["plain"]
        plain[size] = theirs["device"]
        seconds = [f"{side['device']:.3g}" + _host(side, device) for side in (ours, theirs)]
        table.add_row(
            size.name,
            *seconds,
            f"{theirs['device'] / ours['device']:.2f}",
            *(f"{side['memory']:.0f}" for side in (ours, theirs)),
            f"{ours['memory'] / max(theirs['memory'], 1e-9):.2f}",
            *(f"{ours[name]:.5f} / {theirs[name]:.5f}" for name in ("loss_after", "kl")),
        )
    console.print(table)
    return plain


def _host(side: dict[str, float], device: torch.device) -> str:
    return f" (host {side['host']:.3g})" if device.type == "cuda" else ""


def compare_parts(size: Size, seed: int, console: Console, clock: Clock, device: torch.device, rate: float) -> None:
    """The table of parts."""
    agent, trial = _prepared(size, size.config(), device, seed)
    found = shares(agent, trial, clock)
    whole = sum(share.device for share in found.values())
    table = Table(
        "part",
        *("s", "host, s", "share", "GFLOP", "bound, s", "x bound"),
        title=f"Parts of it: {size.name}; bound at {rate / 1e9:.0f} GFLOP/s, measured",
    )
    total = Share(*(sum(getattr(s, f.name) for s in found.values()) for f in dataclasses.fields(Share)))
    for part, share in [*found.items(), ("all", total)]:
        bound = share.flops / rate
        table.add_row(
            part,
            *(f"{share.device:.3f}", f"{share.host:.3f}", f"{share.device / whole:.0%}", f"{share.flops / 1e9:.2f}"),
            *(f"{bound:.3f}", f"{share.device / bound:.1f}" if bound else "-"),
        )
    console.print(table)


def compare_metrics(
    size: Size, seed: int, console: Console, clock: Clock, device: torch.device, plain: float | None
) -> None:
    """The table of cheaper metrics: what they do to the accepted step, and the time beside the plain loop's."""
    metrics: dict[str, dict[str, Any]] = {"all steps": {}}
    metrics |= {f"every {n}th step": {"fisher_stride": min(n, size.num_steps)} for n in (5, 20)}
    metrics["all steps, first order"] = {"fisher_metric": "first_order"}
    table = Table(
        "inner_lr",
        *("metric on", "s", "x all steps", "x plain loop", "loss before", "loss after", "KL", "step fraction"),
        title=f"The metric of the trust region: {size.name}",
    )
    for inner_lr in (0.1, 0.5):
        first = 0.0
        for name, settings in metrics.items():
            config = size.config(inner_lr=inner_lr, **settings)
            agent, trial = _prepared(size, config, device, seed)
            found: dict[str, float] = {}
            spent = measure(partial(_keep, found, partial(agent.meta_update, trial)), clock, device).device
            first = first or spent
            fraction = config.backtrack_ratio ** (found["line_search_trials"] - 1) if found["accepted"] else 0.0
            after = found["loss"] - found["improvement"]
            ratios = (f"{first / spent:.2f}", f"{plain / spent:.2f}" if plain else "")
            numbers = (f"{found['loss']:.5f}", f"{after:.5f}", f"{found['kl']:.5f}", f"{fraction:.2f}")
            table.add_row(str(inner_lr), name, f"{spent:.3g}", *ratios, *numbers)
    console.print(table)
