"""``metarl fewshot predict``: name the class of one's own images, from a folder with a few of each class."""

from __future__ import annotations

import dataclasses
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from PIL import Image, ImageOps
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
    invert: bool = False
    """Turn light and dark around in all images, for those of light strokes where training saw dark ones."""
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
    support, query = (
        _inputs(paths, tasks.image_format, what, invert=options.invert).to(learner.device)
        for paths, what in (
            (files, f"the support set {options.support}"),
            ([here / path for path in options.images], "what is to be predicted"),
        )
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


def _inputs(files: list[Path], image_format: ImageFormat, what: str, *, invert: bool) -> torch.Tensor:
    """Inputs ``[1, image, channel, height, width]`` as the family makes them; those unlike its own are told of."""
    images, _ = read_images(files, image_format, what=what)
    images = 255 - images if invert else images
    _warn_of_odd(files, images, image_format, what)
    return torch.from_numpy(images).float().div(255)[None]


def _warn_of_odd(files: list[Path], images: NDArray[np.uint8], image_format: ImageFormat, what: str) -> None:
    """A learner names a class for whatever it is given, and is sure of it."""
    pixels = images.reshape(len(images), -1)
    height, width = images.shape[2:]
    blank = np.ptp(pixels, axis=1) < _LEAST_CONTRAST
    kinds = {"of one colour all over (a transparent ground becomes white)": blank}
    if image_format.ink:
        kinds["light on dark, where training saw dark strokes on a light ground (--invert)"] = ~blank & (
            pixels.mean(1) > 127
        )
    sizes = np.array([_size(file) for file in files])
    stretch = sizes[:, 0] * width / (sizes[:, 1] * height)
    kinds[f"of other proportions than {height} x {width} (height x width), to which they are stretched"] = (
        np.maximum(stretch, 1 / stretch) > _MOST_STRETCHED
    )
    for kind, found in kinds.items():
        if found.any():
            first = files[int(found.argmax())]
            warnings.warn(
                f"{int(found.sum())} of {len(files)} images of {what} are {kind}, the first of them {first}: what is "
                "predicted by them says little.",
                stacklevel=3,
            )


_LEAST_CONTRAST = 16
"""Of 255, between the lightest and the darkest pixel of an image."""

_MOST_STRETCHED = 1.5
"""Change of an image's proportions that is not told of."""


def _size(file: Path) -> tuple[int, int]:
    """Height and width, as it was held."""
    with Image.open(file) as image:
        upright = ImageOps.exif_transpose(image)
        return upright.height, upright.width
