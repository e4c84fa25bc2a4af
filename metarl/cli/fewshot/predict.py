"""``metarl fewshot predict``: name the class of one's own images, from a folder with a few of each class."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from metarl.config import Device
from metarl.errors import ConfigError
from metarl.fewshot.experiment import Experiment
from metarl.fewshot.tasks.classes import ClassTasks
from metarl.fewshot.tasks.images import ImageFormat, list_folders, list_images, read_images
from metarl.fewshot.types import Examples


@dataclass(frozen=True)
class PredictOptions:
    """Name the class of each IMAGE, with the learner of RUN and the labelled images in SUPPORT."""

    run: tyro.conf.Positional[Path]
    """Run folder."""
    support: tyro.conf.Positional[Path]
    """Folder with one folder of images for each class, named as the class."""
    images: tyro.conf.Positional[tuple[Path, ...]]
    """Images whose class is asked for."""
    num_adaptations: int | None = None
    """Steps of adaptation; default: what the learner asks for."""
    data: str | None = None
    """Where the data that the run was trained on lies now, if not where the run found it."""
    checkpoint: Path | None = None
    """A checkpoint file; default: the newest."""
    best: bool = False
    """Take the checkpoint with the best validation score; of tasks without a validation split, training score."""
    device: Device | None = None
    """Where networks run; default: as in training."""
    trust_tasks: bool = False
    """Import the modules that the run's config.json names, which runs their code."""


def predict(words: list[str], console: Console) -> int:
    """Run the command with these words after its name; returns the exit status."""
    # What the user's own modules do, to change the working directory for one, comes after this.
    here = Path.cwd()
    options = tyro.cli(PredictOptions, args=words, prog="metarl fewshot predict")
    if not options.images:
        raise ConfigError("predict needs at least one image: metarl fewshot predict RUN SUPPORT IMAGE...")
    if options.num_adaptations is not None and options.num_adaptations < 0:
        raise ConfigError(f"--num-adaptations must be 0 or more, got {options.num_adaptations}.")
    if options.best and options.checkpoint is not None:
        raise ConfigError(f"--best and --checkpoint {options.checkpoint} name two checkpoints; give one of them.")
    this = Experiment.open(here / options.run, data=options.data, trust=options.trust_tasks)
    if options.device is not None:
        this = this.on(options.device)
    tasks = this.setup.tasks
    if not isinstance(tasks, ClassTasks) or tasks.image_format is None:
        raise ConfigError(
            f"{options.run} was trained on {this.setup.task_name}, which are no tasks of image files: no file can be "
            "predicted by it. In Python, learner.adapt and learner.predict take tensors."
        )
    classes, files, labels = _support(here / options.support)
    if missing := [path for path in options.images if not (here / path).is_file()]:
        what = "which is a folder: name the images in it" if (here / missing[0]).is_dir() else "or it is no file"
        raise ConfigError(f"there is no image {', '.join(map(str, missing))}, {what}.")
    usual = tasks.spec(this.setup.episode)
    spec = dataclasses.replace(usual, num_outputs=len(classes), num_support=len(files))
    checkpoint = this.best_checkpoint if options.best else options.checkpoint and here / options.checkpoint
    learner, _ = this.load(checkpoint, spec=spec)
    support = _inputs(files, tasks.image_format, f"the support set {options.support}").to(learner.device)
    query = _inputs([here / path for path in options.images], tasks.image_format, "what is to be predicted").to(
        learner.device
    )
    learner.seed(0)
    state = learner.begin(1)
    for _ in range(learner.num_eval_adaptations if options.num_adaptations is None else options.num_adaptations):
        state = learner.adapt(state, Examples(support, torch.tensor([labels], device=learner.device)))
    # One by one: images that are asked for together need not come from as many classes in equal parts. Each among the
    # labelled ones, as a network that normalises by the batch at hand has nothing to compare a single image with.
    batches = [torch.cat([support, query[:, [index]]], dim=1) for index in range(query.shape[1])]
    logits = torch.stack([learner.predict(state, batch)[0, -1] for batch in batches])
    shares = logits.softmax(-1).cpu()
    table = Table(caption=f"from {len(files)} labelled images of {len(classes)} classes")
    for header in ("image", "class", "probability", "next"):
        table.add_column(header, overflow="fold")
    for path, row in zip(options.images, shares, strict=True):
        first, second = row.topk(2).indices.tolist()
        others = f"{classes[second]} ({float(row[second]):.2f})"
        table.add_row(*map(escape, (str(path), classes[first], f"{float(row[first]):.2f}", others)))
    console.print(table)
    return 0


def _support(folder: Path) -> tuple[list[str], list[Path], list[int]]:
    """Class names, and files with the class index of each."""
    if not folder.is_dir():
        raise ConfigError(f"there is no folder {folder}; it must hold one folder of images for each class.")
    folders = list_folders(folder)
    if len(folders) < 2:
        raise ConfigError(f"{folder} must hold one folder of images for each class, at least two, got {len(folders)}.")
    files: list[Path] = []
    labels: list[int] = []
    for index, own in enumerate(folders):
        found = list_images(own)
        if not found:
            raise ConfigError(f"the folder {own} of the class {own.name!r} holds no image; give it at least one.")
        files += found
        labels += [index] * len(found)
    return [own.name for own in folders], files, labels


def _inputs(files: list[Path], image_format: ImageFormat, what: str) -> torch.Tensor:
    """Inputs ``[1, image, channel, height, width]`` as the family makes them."""
    images, _ = read_images(files, image_format, what=what)
    return torch.from_numpy(images).float().div(255)[None]
