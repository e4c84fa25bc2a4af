"""Classification tasks drawn from classes of images, or of anything else of one shape."""

from __future__ import annotations

import hashlib
import itertools
import warnings
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from metarl.errors import ConfigError
from metarl.fewshot.tasks.base import FewShotTasks
from metarl.fewshot.tasks.images import ImageFormat
from metarl.fewshot.types import EpisodeConfig, Examples, FewShotSpec, Split, TaskBatch


@dataclass(frozen=True)
class Classes:
    """The classes of one split, with all their examples.

    Attributes:
        examples: ``[example, *input_shape]``, those of a class next to each other; uint8, of which 255 becomes 1, or
            floating point, which stays as it is.
        counts: examples of each class, ``[class]``.
        names: of the classes, for messages.
    """

    examples: NDArray[Any]
    counts: NDArray[np.int64]
    names: tuple[str, ...]

    def name_of(self, row: int) -> str:
        """The class of an example."""
        return self.names[np.searchsorted(np.cumsum(self.counts), row, side="right")]

    def __post_init__(self) -> None:
        if self.examples.dtype != np.uint8 and self.examples.dtype.kind != "f":
            raise ConfigError(
                f"images must be uint8 (0 to 255) or floating point, got {self.examples.dtype}. Convert them, e.g. by "
                "images.astype(np.float32)."
            )
        assert len(self.counts) == len(self.names) and self.counts.sum() == len(self.examples)

    @classmethod
    def group(cls, examples: NDArray[Any], labels: NDArray[np.int64], names: tuple[str, ...]) -> Classes:
        """From examples in any order.

        Args:
            examples: ``[example, *input_shape]``.
            labels: index of each example's class in ``names``, ``[example]``.
            names: of the classes, none of them without an example.
        """
        if not (np.diff(labels) >= 0).all():
            order = np.argsort(labels, kind="stable")
            examples, labels = examples[order], labels[order]
        return cls(examples, np.bincount(labels, minlength=len(names)), names)


class ClassTasks(FewShotTasks):
    """Tasks of ``ways`` classes each, drawn anew for every task and numbered in random order.

    Classes of a task differ, and so do the examples of a class within a task; all are equally likely.

    Args:
        id: the family's name.
        splits: the classes of each split; a split may be missing.
        rotations: whether every class turned by 90, 180 and 270 degrees makes three more classes, in every split, as
            in the published benchmarks of Omniglot (Vinyals et al., 2016, section 4.1.1; Snell et al., 2017, section
            3.1: "1200 characters plus rotations for training (4,800 classes in total) and the remaining classes,
            including rotations, for test"). A task may hold a class at two rotations.
        same_classes: whether splits have the same classes and differ in their examples, as for learned optimisers.
        default_episode: the usual size of tasks.
        image_format: how a file becomes an input of these tasks; None where there are no files.

    Raises:
        ConfigError: for classes that two splits share, a single class in all, shapes that differ, NaN, or rotations of
            what is no square image.
    """

    def __init__(
        self,
        id: str,
        splits: Mapping[Split, Classes],
        *,
        rotations: bool = False,
        same_classes: bool = False,
        default_episode: EpisodeConfig | None = None,
        image_format: ImageFormat | None = None,
    ) -> None:
        self.id = id
        self.default_episode = default_episode or EpisodeConfig(5, 1, 15)
        self.rotations = rotations
        self.image_format = image_format
        self._splits = {split: classes for split, classes in splits.items() if classes.names}
        self._starts = {split: np.cumsum(held.counts) - held.counts for split, held in self._splits.items()}
        _check_splits(id, self._splits, same_classes)
        self.splits = tuple(self._splits)
        self._digests = _digests(self._splits, rotations)
        self.input_shape: tuple[int, ...] = next(iter(self._splits.values())).examples.shape[1:]
        if rotations and (len(self.input_shape) != 3 or self.input_shape[1] != self.input_shape[2]):
            raise ConfigError(
                f"{id}: rotations by 90 degrees need square images (channels, height, width), got inputs of the shape "
                f"{self.input_shape}. Resize them, or leave out rotations."
            )

    @property
    def digests(self) -> Mapping[str, str]:
        """Of classes and of examples."""
        return self._digests

    def num_classes(self, split: Split) -> int:
        """How many classes a split has, rotated ones among them.

        Raises:
            ConfigError: if there is no such split.
        """
        return len(self._held(split).names) * (4 if self.rotations else 1)

    def class_names(self, split: Split) -> tuple[str, ...]:
        """Names of a split's classes, without rotated ones.

        Raises:
            ConfigError: if there is no such split.
        """
        return self._held(split).names

    def warn_of_copies(self) -> None:
        """Tell of equal examples: what is labelled, or seen in training, is no test when it is asked for."""
        first: dict[int, tuple[Split, int]] = {}
        within: dict[Split, list[tuple[int, int]]] = {}
        across: dict[tuple[Split, Split], list[tuple[int, int]]] = {}
        for split, held in self._splits.items():
            for row, example in enumerate(held.examples):
                other, like = first.setdefault(zlib.crc32(example.tobytes()), (split, row))
                if (other, like) == (split, row) or not np.array_equal(self._splits[other].examples[like], example):
                    continue
                if other == split:
                    within.setdefault(split, []).append((like, row))
                else:
                    across.setdefault((other, split), []).append((like, row))
        for split, copies in within.items():
            names = [self._splits[split].name_of(row) for row in copies[0]]
            where = f"the class {names[0]!r}" if names[0] == names[1] else f"the classes {names[0]!r} and {names[1]!r}"
            warnings.warn(
                f"{self.id}: {len(copies)} examples of the {split} split are copies of others in it, the first of them "
                f"in {where}. Remove them: a query that is among the labelled examples too is no test.",
                stacklevel=3,
            )
        for (other, split), copies in across.items():
            like, row = copies[0]
            warnings.warn(
                f"{self.id}: {len(copies)} examples of the {split} split are the same as some of the {other} split, "
                f"the first of them in the classes {self._splits[split].name_of(row)!r} and "
                f"{self._splits[other].name_of(like)!r}. Remove them: scores on what was seen before are too high.",
                stacklevel=3,
            )

    def spec(self, episode: EpisodeConfig) -> FewShotSpec:
        """Inputs of one shape, an output for each class of a task."""
        return FewShotSpec(
            self.input_shape,
            episode.ways,
            "classification",
            num_support=episode.ways * episode.shots,
            num_classes=self.num_classes("train") if "train" in self._splits else None,
        )

    def check(self, split: Split, episode: EpisodeConfig) -> None:
        """See :meth:`FewShotTasks.check`."""
        held, num_classes = self._held(split), self.num_classes(split)
        if episode.ways < 2:
            raise ConfigError(f"a task of {self.id} needs ways of 2 or more to tell apart, got {episode.ways}.")
        if episode.ways > num_classes:
            raise ConfigError(
                f"{episode.ways} ways are more than the {num_classes} classes in the {split} split of {self.id}. "
                + (
                    f"Take {num_classes} ways or fewer, or more classes."
                    if num_classes > 1
                    else "Give it more classes."
                )
            )
        smallest = int(held.counts.argmin())
        if episode.shots + episode.queries > held.counts[smallest]:
            raise ConfigError(
                f"{episode.shots} shots and {episode.queries} queries need {episode.shots + episode.queries} examples "
                f"of each class, but the class {held.names[smallest]!r} in the {split} split of {self.id} has "
                f"{held.counts[smallest]}. Lower shots or queries, or leave that class out."
            )

    def sample(self, split: Split, num_tasks: int, episode: EpisodeConfig, rng: np.random.Generator) -> TaskBatch:
        """See :meth:`FewShotTasks.sample`; inputs that were uint8 lie in [0, 1]."""
        self.check(split, episode)
        held = self._splits[split]
        drawn = _draw(np.full(num_tasks, self.num_classes(split)), episode.ways, rng)
        classes, turns = np.divmod(drawn, 4) if self.rotations else (drawn, np.zeros_like(drawn))
        chosen = _draw(held.counts[classes], episode.shots + episode.queries, rng)
        x = held.examples[self._starts[split][classes][..., None] + chosen]
        for quarters in range(1, 4) if self.rotations else ():
            turned = turns == quarters
            x[turned] = np.rot90(x[turned], quarters, (-2, -1))
        inputs = torch.from_numpy(x).float()
        if x.dtype == np.uint8:
            inputs /= 255
        return TaskBatch(
            _examples(inputs[:, :, : episode.shots], episode.ways),
            _examples(inputs[:, :, episode.shots :], episode.ways),
            torch.from_numpy(drawn),
        )

    def _held(self, split: Split) -> Classes:
        if split not in self._splits:
            raise ConfigError(
                f"{self.id} has no classes in a {split} split; there are some in {', '.join(self._splits)}."
            )
        return self._splits[split]


def _examples(x: torch.Tensor, ways: int) -> Examples:
    """Inputs ``[task, way, example, ...]`` with their labels, in the order of classes."""
    y = torch.arange(ways).repeat_interleave(x.shape[2]).repeat(len(x), 1)
    return Examples(x.flatten(1, 2), y)


def _draw(sizes: NDArray[np.int64], count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """``count`` different numbers below each of ``sizes`` in random order, ``[*sizes.shape, count]``.

    By Floyd's algorithm, whose cost does not grow with the sizes.
    """
    drawn = np.empty((*sizes.shape, count), np.int64)
    for position in range(count):
        last = sizes - count + position
        number = rng.integers(0, last + 1)
        is_taken = (drawn[..., :position] == number[..., None]).any(-1)
        drawn[..., position] = np.where(is_taken, last, number)
    return rng.permuted(drawn, axis=-1)


def _digests(splits: Mapping[Split, Classes], rotations: bool) -> dict[str, str]:
    """Digests of which classes there are, with how many examples of what shape, and of the examples."""
    classes, examples = hashlib.sha256(str(rotations).encode()), hashlib.sha256()
    for split in sorted(splits):
        held = splits[split]
        described = (split, held.names, held.counts.tolist(), held.examples.shape[1:], held.examples.dtype.str)
        classes.update(repr(described).encode("utf-8", "backslashreplace"))
        examples.update(np.ascontiguousarray(held.examples).data)
    return {"classes": classes.hexdigest(), "examples": examples.hexdigest()}


def _check_splits(id: str, splits: Mapping[Split, Classes], same_classes: bool) -> None:
    num_classes = len({name for held in splits.values() for name in held.names})
    if num_classes < 2:
        raise ConfigError(
            f"{id} has {num_classes} class{'' if num_classes else 'es'}, and telling classes apart needs at least 2. "
            "Add some."
        )
    for (one, first), (other, second) in itertools.combinations(splits.items(), 2):
        shared = sorted(set(first.names) & set(second.names))
        if shared and not same_classes:
            raise ConfigError(
                f"{id}: the splits {one} and {other} share {len(shared)} of their classes: {', '.join(shared[:3])}"
                f"{' ...' if len(shared) > 3 else ''}. Expected test classes that training never sees: move each class "
                "to one split, or rename it if only the names agree."
            )
        if first.examples.shape[1:] != second.examples.shape[1:]:
            raise ConfigError(
                f"{id}: examples have the shape {first.examples.shape[1:]} in {one} and {second.examples.shape[1:]} in "
                f"{other}; expected one shape. Resize them."
            )
    for split, held in splits.items():
        if held.examples.dtype == np.uint8:
            continue
        with np.errstate(over="ignore"):
            numbers = held.examples.astype(np.float32)  # As tasks give them.
        (bad,) = np.nonzero(~np.isfinite(numbers).reshape(len(numbers), -1).all(1))
        if len(bad):
            named = held.name_of(bad[0])
            raise ConfigError(
                f"{id}: {len(bad)} examples of the {split} split hold NaN or an infinity, as float32, the first "
                f"in the class {named!r}; expected finite numbers. Remove or repair them."
            )
