"""Shared code for the speed benchmarks: synthetic trials, clocks, peak memory, the matrix-product rate."""

from __future__ import annotations

import ctypes
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from metarl.agents.common.gradient_agent import GradientAgent
from metarl.types import Rollout, Spec, Timestep, Trial

Clock = Literal["wall", "cpu"]

_RATE_SIZE = 1024
"""Side of the square matrices whose product sets the rate."""


@dataclass(frozen=True)
class Seconds:
    """Time of one run.

    Attributes:
        host: until the call returned.
        device: between CUDA events around it; on a CPU the same as ``host``.
    """

    host: float
    device: float


def now(clock: Clock) -> float:
    """Seconds on the wall, or those that this process has computed."""
    return time.perf_counter() if clock == "wall" else time.process_time()


def measure(run: Callable[[], object], clock: Clock, device: torch.device, repeats: int = 1) -> Seconds:
    """The fastest of some runs, since another process can only slow one down."""
    found: list[Seconds] = []
    for _ in range(repeats):
        if device.type != "cuda":
            start = now(clock)
            run()
            spent = now(clock) - start
            found.append(Seconds(spent, spent))
            continue
        begin, end = cuda_event(), cuda_event()
        torch.cuda.synchronize(device)
        start = now(clock)
        begin.record()
        run()
        end.record()
        host = now(clock) - start
        end.synchronize()
        found.append(Seconds(host, begin.elapsed_time(end) / 1e3))
    return min(found, key=lambda seconds: seconds.device)


def cuda_event() -> torch.cuda.Event:
    """An event that knows its time."""
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def product_rate(clock: Clock, device: torch.device, size: int = _RATE_SIZE) -> float:
    """FLOPs per second of large matrix products: what arithmetic costs at best on this machine, with these threads."""
    a, b = torch.randn(2, size, size, device=device)
    out = torch.empty_like(a)
    torch.mm(a, b, out=out)
    return 2 * size**3 / measure(lambda: torch.mm(a, b, out=out), clock, device, repeats=10).device


@contextmanager
def peak_memory(device: torch.device) -> Iterator[list[float]]:
    """Collects the peak of the body's memory above that at its start, MB: on the GPU if there is one."""
    found: list[float] = []
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        allocated = torch.cuda.memory_allocated(device)
        yield found
        found.append((torch.cuda.max_memory_allocated(device) - allocated) / 2**20)
        return
    # What was freed but kept by the allocator would serve the body unseen.
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)
    # Linux forgets the peak so far; elsewhere the peak of the whole process counts.
    peak_file = Path("/proc/self/clear_refs")
    if peak_file.exists():
        peak_file.write_text("5")
    before = _status("VmRSS")
    yield found
    found.append(_status("VmHWM") - before)


def _status(field: str) -> float:
    path = Path("/proc/self/status")
    if not path.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    line = next(line for line in path.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 2**10


def synthetic_trial(
    agent: GradientAgent, num_tasks: int, num_rollouts: int, num_steps: int, num_inner_steps: int, seed: int
) -> Trial:
    """What a gradient-based agent with continuous actions would have collected: every rollout after an inner step.

    Episodes have full length, observations are standard normal, and a reward is a linear function of the action that
    differs between tasks, so that adapting helps.
    """
    generator = torch.Generator().manual_seed(seed)
    wanted = torch.randn(num_tasks, 1, 1, agent.spec.action_dim, generator=generator).to(agent.device)
    state = agent.begin(num_tasks)
    rollouts: list[Rollout] = []
    for step in range(num_inner_steps + 1):
        shape = (num_tasks, num_rollouts, num_steps)
        timesteps = synthetic_timesteps(agent.spec, shape, generator, agent.device)
        noise = torch.randn(*shape, agent.spec.action_dim, generator=generator).to(agent.device)
        with torch.no_grad():
            policy = agent.policy.distribution(state.params, timesteps.obs.flatten(1, 2))
            mean, log_std = policy.parameters
            actions = mean + log_std.exp() * noise.flatten(1, 2)
            log_probs = policy.log_prob(actions).view(shape)
        actions = actions.view(*shape, -1)
        rollouts.append(complete(timesteps, actions, log_probs, (actions * wanted).sum(-1)))
        if step < num_inner_steps:
            state = agent.adapt(state, rollouts[-1])
    return Trial(list(range(num_tasks)), tuple(rollouts))


def synthetic_timesteps(
    spec: Spec, shape: tuple[int, ...], generator: torch.Generator, device: torch.device
) -> Timestep:
    """Standard normal observations, previous actions and rewards in any leading axes."""
    obs = torch.randn(*shape, spec.obs_dim, generator=generator)
    action = torch.randn(*shape, spec.action_dim, generator=generator)
    reward = torch.randn(shape, generator=generator)
    valid = torch.ones(shape, dtype=torch.bool)
    return Timestep(obs, action, reward, torch.zeros(shape), valid).to(device)


def complete(timesteps: Timestep, actions: Tensor, log_probs: Tensor, rewards: Tensor) -> Rollout:
    """A rollout whose episodes end by time."""
    nothing = torch.zeros_like(timesteps.valid)
    truncated = nothing.clone()
    truncated[..., -1] = True
    never = torch.zeros_like(nothing[..., 0])
    last_obs = timesteps.obs[:, :, -1]
    return Rollout(
        timesteps=timesteps,
        actions=actions,
        log_probs=log_probs,
        rewards=rewards,
        terminated=nothing,
        truncated=truncated,
        last_obs=last_obs,
        success=never,
        invalid=never,
    )
