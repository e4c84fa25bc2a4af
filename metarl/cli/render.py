"""``metarl render``: an agent before and after adaptation to the same task, side by side, as a video."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal

import tyro
from rich.console import Console
from rich.markup import escape
from rich.progress import track

from metarl.cli.task_choice import choose_task, require_sound
from metarl.config import Device
from metarl.errors import ConfigError
from metarl.experiments import Experiment
from metarl.rendering.replay import frames_per_second, make_render_env, rendered_frame, replay
from metarl.rendering.video import check_video_path, side_by_side, write_video
from metarl.rollouts.collector import Collector, episode_seeds
from metarl.rollouts.trial import run_trial
from metarl.runs.files import require_writable, safe_name, shown
from metarl.statistics import number_text
from metarl.tasks.distribution import TaskDistribution
from metarl.tasks.registry import load_distribution, registered
from metarl.types import Rollout, Task

_MOST_FPS = 30
"""Frames in a second of the video; an environment that steps faster is looked at every second or third step."""

_SLOT = 0
"""The episode that is shown, of those that are played side by side."""


@dataclass(frozen=True)
class RenderOptions:
    """Show the agent of RUN before and after adaptation to one task, side by side."""

    run: tyro.conf.Positional[Path]
    """Run folder, or model:NAME for a published model (metarl models)."""
    task: str | None = None
    """Name of a Meta-World task, of those that the run's task set has; default: the only one."""
    video: Path | None = None
    """The video, an MP4 or a GIF by the path's end; default: an MP4 in the run's folder, or in model-NAME here."""
    tasks: str | None = None
    """Another distribution with the same spaces, by id or module:attribute."""
    agent: str | None = None
    """For a script's run whose config.json does not name its agent: a name, or module:attribute of its config."""
    trust_tasks: bool = False
    """Import the modules that the run's config.json names for its tasks and agent, which runs their code."""
    split: Literal["test", "train"] | None = None
    """Held-out or training goals; default: test, or train for a task that is trained on alone."""
    goal: int = 0
    """Number of the goal, from 0: in upstream's order, or elsewhere in that of the tasks drawn with --seed."""
    num_adaptations: int | None = None
    """Gradient steps, or episodes - 1 for memory agents; default: what the agent asks for."""
    sample: bool = False
    """Sample the actions that are shown, as in training; default: the distribution's mode, as in official scores."""
    seed: int = 0
    """Seed for environments and actions."""
    checkpoint: Path | None = None
    """A checkpoint file; default: the newest."""
    best: bool = False
    """Take the checkpoint with the best training return."""
    device: Device | None = None
    """Where networks run; default: as in training."""


def render(words: Sequence[str], console: Console) -> int:
    """Run the command; returns the exit status."""
    # What the user's own modules and environments do, to change the working directory for one, comes after this.
    here = Path.cwd()
    options = tyro.cli(RenderOptions, args=words, prog="metarl render")
    require_sound(
        goal=options.goal,
        seed=options.seed,
        num_adaptations=options.num_adaptations,
        checkpoint=options.checkpoint,
        best=options.best,
    )
    this = Experiment.open(options.run, agent=options.agent, tasks=options.tasks, trust=options.trust_tasks)
    if options.device is not None:
        this = this.on(options.device)
    distribution = this.seen(load_distribution(options.tasks)) if options.tasks else this.distribution
    if distribution.make_render_env is None:
        raise _not_renderable(distribution)
    task, name = choose_task(
        distribution, name=options.task, split=options.split, goal=options.goal, seed=options.seed, stream="render"
    )
    if options.video:
        video = here / options.video
    else:
        folder = this.run.output_folder(here)
        require_writable(folder, "Give another place with --video FILE.")
        video = folder / f"{safe_name(name)}.mp4"
    # What cannot work must fail before episodes are played.
    check_video_path(video)
    fps = _try_rendering(distribution, task)
    checkpoint = this.best_checkpoint if options.best else options.checkpoint and here / options.checkpoint
    agent, iteration = this.load(checkpoint)
    num_adaptations = agent.num_eval_adaptations if options.num_adaptations is None else options.num_adaptations
    collector = Collector(distribution, agent.rollouts_per_task, agent.device)
    try:
        before, after = (
            run_trial(agent, collector, [task], number, options.seed, deterministic_last=not options.sample)
            for number in (0, num_adaptations)
        )
    finally:
        collector.close()
    step = this.agent_config.adapts_by
    titles = ("before adaptation", f"after {num_adaptations} {step}{'' if num_adaptations == 1 else 's'}")
    episodes = [trial.rollouts[-1][0, _SLOT] for trial in (before, after)]
    every = max(1, -(-fps // _MOST_FPS))
    moments = [
        replay(
            distribution,
            task,
            episode,
            reset_seed=int(episode_seeds(options.seed, number, 1, _SLOT + 1)[0, _SLOT]),
            every=every,
        )
        for episode, number in zip(episodes, (0, num_adaptations), strict=True)
    ]
    num_frames = 1 + max(-(-int(episode.lengths) // every) for episode in episodes)
    frames = track(side_by_side(titles, moments), "rendering", num_frames, console=console, transient=True)
    write_video(video, frames, Fraction(fps, every))
    console.print(f"{escape(name)}, iteration {iteration}; every reward replayed as it was recorded", highlight=False)
    for title, episode in zip(titles, episodes, strict=True):
        console.print(f"  {title}: {_outcome(episode)}", highlight=False)
    cost = before.num_env_steps + after.num_env_steps
    console.print(f"Video: {escape(shown(video))}   (it cost {cost:,} environment steps)", soft_wrap=True)
    return 0


def _try_rendering(distribution: TaskDistribution, task: Task) -> int:
    """Render one frame; returns the environment's steps in a second."""
    env = make_render_env(distribution, task)
    try:
        env.reset(seed=0)
        rendered_frame(distribution, env)
        return frames_per_second(env)
    finally:
        env.close()


def _outcome(episode: Rollout) -> str:
    told = [f"return {number_text(float(episode.returns))} in {int(episode.lengths)} steps"]
    if episode.invalid:
        told.append("simulation diverged")
    elif episode.success_reported:
        told.append("success" if episode.success else "no success")
    return ", ".join(told)


def _not_renderable(distribution: TaskDistribution) -> ConfigError:
    known = [name for name, other in registered().items() if other.make_render_env is not None]
    groups = sorted({name.split("/")[0] + "/..." if "/" in name else name for name in known})
    return ConfigError(
        f"{distribution.id} cannot be rendered: it does not say how to build an environment that renders. Tasks that "
        f"can: {', '.join(groups)}, those of gymnasium_tasks, and your own with TaskDistribution(make_render_env=...)."
    )
