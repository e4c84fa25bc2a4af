"""From a finished run to a published model: parameters alone, and a score on held-out tasks."""

from __future__ import annotations

import dataclasses
import shlex
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from metarl.agent import Agent
from metarl.cli.report import EVALUATION_SEED
from metarl.envs.metaworld.distributions import MetaWorldTasks
from metarl.errors import ConfigError, told_errors
from metarl.evaluation.evaluator import evaluate
from metarl.experiments import Experiment
from metarl.experiments.official import evaluate_experiment
from metarl.runs.checkpoint import CheckpointStore
from metarl.runs.claims import CONFIG
from metarl.runs.files import read_json, safe_name, typed, write_json
from metarl.runs.published import CARD, PublishedModel, Score, is_published, models_folder
from metarl.trainer import for_evaluation


@dataclass(frozen=True)
class PublishOptions:
    """Score the agent of RUN on held-out tasks, and write parameters, settings and score into benchmarks/models/NAME.

    Meta-World's agents are scored by its protocol, on every goal; others as metarl evaluate does.
    """

    run: tyro.conf.Positional[Path]
    """Folder of a run that is finished, of a tree without changes."""
    name: tyro.conf.Positional[str]
    """What it is called from then on: model:NAME."""
    num_tasks: int = 200
    """Held-out tasks; not for Meta-World."""
    into: Path | None = None
    """Folder of models; default: that of this checkout."""


@told_errors()
def main(arguments: list[str]) -> None:
    """Run with these words of the command line."""
    options = tyro.cli(PublishOptions, args=arguments, prog="python -m metarl.benchmarks.models")
    model = publish(options.run, options.name, options.into or models_folder(), options.num_tasks)
    print(f"{model.folder}: {model.num_bytes / 1000:.0f} kB, {model.score.what} {model.score.last}")


def publish(run: Path | str, name: str, into: Path, num_tasks: int = 200) -> PublishedModel:
    """Score a finished run's agent and write it, without what only training needs, into ``into/NAME``.

    Args:
        run: the run's folder.
        name: of the model.
        into: folder of models.
        num_tasks: see :func:`measure`.

    Raises:
        ConfigError: for a run that is not finished, was trained by a tree with changes or one that nobody knows, or
            whose agent or tasks are no part of metarl; for a name that is taken or no file's.
        CheckpointError: if the run is damaged, or nothing can be written.
    """
    this = Experiment.open(run)
    folder = into / name
    if not name or safe_name(name) != name:
        raise ConfigError(f"a model's name is part of a file's: letters, digits, '-', '_' and '.'; got {name!r}.")
    if folder.exists():
        raise ConfigError(f"{folder} exists already. Choose another name, or delete it first.")
    manifest = this.run.read_manifest()
    commit = _require_publishable(this, manifest)
    agent, iteration = this.load()
    score = measure(this, agent, iteration, num_tasks)
    _, content = this.run.checkpoints.load_latest()
    where = this.run.path / "manifest.json"
    card = {
        "agent": this.name,
        "tasks": this.task_name,
        "iteration": iteration,
        "env_steps": content["env_steps"],
        "training_seed": this.train_config.seed,
        "score": dataclasses.asdict(score),
        "command": _command(typed(manifest, "command", list, where), iteration),
        "commit": commit,
        "versions": typed(manifest, "versions", dict, where),
    }
    # Whole, or not there: a folder that lacks its card would be taken for a run.
    into.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{name}.", suffix=".tmp", dir=into))
    try:
        CheckpointStore(unfinished / "checkpoints").save(iteration, for_evaluation(agent, content))
        write_json(unfinished / CONFIG, read_json(this.run.path / CONFIG))
        write_json(unfinished / CARD, card)
        unfinished.chmod(0o755)
        unfinished.rename(folder)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    return PublishedModel.read(folder)


def measure(this: Experiment, agent: Agent[Any], iteration: int, num_tasks: int, goals: int | None = None) -> Score:
    """The score of an experiment's agent on held-out tasks, with a seed that no training draws its tasks from.

    Args:
        this: the agent's experiment.
        agent: the agent of a checkpoint.
        iteration: iterations behind it.
        num_tasks: held-out tasks, scored as ``metarl evaluate`` does; not for Meta-World.
        goals: for Meta-World, whose protocol is followed: only so many goals of each task; default: all, which alone
            is official.
    """
    distribution = this.distribution
    if isinstance(distribution, MetaWorldTasks):
        with tempfile.TemporaryDirectory() as scores_folder:
            official, _ = evaluate_experiment(
                this, agent, iteration, seed=EVALUATION_SEED, goals=goals, folder=Path(scores_folder)
            )
        count = sum(len(scores.success) for scores in official.by_task.values())
        return Score("success", count, EVALUATION_SEED, (official.interval,))
    found = evaluate(agent, distribution, num_tasks=num_tasks, seed=EVALUATION_SEED)
    by_shot = tuple(found.interval(shot) for shot in range(found.returns.shape[1]))
    return Score("return", num_tasks, EVALUATION_SEED, by_shot)


def _command(words: list[str], iteration: int) -> str:
    """The command of a run's manifest, which that of a resumed one may have trained for longer, or for less."""
    if words[1:2] != ["train"]:
        return shlex.join(words)
    given = [word.partition("=")[0].replace("_", "-") for word in words]
    option = "--num-iterations"
    if option not in given:
        return shlex.join([*words, option, str(iteration)])
    at = given.index(option)
    after = at + (1 if "=" in words[at] else 2)
    return shlex.join([*words[:at], option, str(iteration), *words[after:]])


def _require_publishable(this: Experiment, manifest: dict[str, Any]) -> str:
    """The commit that a run was trained with.

    Raises:
        ConfigError: saying why the run cannot be published.
    """
    path = this.run.path
    if is_published(path):
        raise ConfigError(f"{path} is a published model already.")
    if own := [name for name in (this.name, this.task_name) if ":" in name]:
        raise ConfigError(f"{path} is of {own[0]}, which is no part of metarl: nobody else could load it.")
    done, asked = max(this.run.checkpoints.iterations(), default=0), this.train_config.num_iterations
    if done < asked:
        raise ConfigError(
            f"{path} is not finished: it has done {done} of {asked} iterations. Go on with: metarl train --resume "
            f"{shlex.quote(str(path))}"
        )
    git = manifest.get("git")
    commit = git.get("commit") if isinstance(git, dict) else None
    if not isinstance(git, dict) or not isinstance(commit, str):
        raise ConfigError(
            f"{path} does not say which commit of metarl trained it: train it from a checkout, not an installed metarl."
        )
    if git.get("dirty") is not False:
        raise ConfigError(
            f"{path} was trained by a tree that differs from its commit, {commit[:12]}: nobody could train it "
            "again. Commit the changes, and train anew."
        )
    return commit
