"""The characters of a font: which are classes, in which split, and how they are drawn."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from metarl.fewshot.tasks import load_tasks
from metarl.fewshot.tasks.classes import ClassTasks
from metarl.fewshot.types import EpisodeConfig, Split

SPLITS: tuple[Split, ...] = ("train", "validation", "test")


@pytest.fixture(scope="module")
def glyphs() -> ClassTasks:
    tasks = load_tasks("glyphs")
    assert isinstance(tasks, ClassTasks)
    return tasks


def test_every_split_has_many_characters_and_scripts_of_its_own(glyphs: ClassTasks) -> None:
    assert [glyphs.num_classes(split) for split in SPLITS] == pytest.approx([2133, 187, 495], rel=0.03)
    scripts = [{name.split()[1] for name in glyphs.class_names(split)} for split in SPLITS]
    for script, expected in (("LATIN", 0), ("ARABIC", 0), ("HEBREW", 1), ("LAO", 1), ("GEORGIAN", 2), ("TIFINAGH", 2)):
        assert [script in of_split for of_split in scripts] == [split == expected for split in range(3)]


def test_blanks_marks_and_look_alikes_are_no_classes(glyphs: ClassTasks) -> None:
    characters = {chr(int(name.split()[0][2:], 16)) for split in SPLITS for name in glyphs.class_names(split)}
    # Each group looks alike up to its size: the first is a class, the others are not.
    for first, *others in ("Cc", "OoΟο", "AΑА", "Zz", "Vv", "XхХ", "SsЅ", "EЕΕ"):
        assert first in characters and not characters & set(others), first
    assert {"a", "g", "B", "Ж", "Ω", "8", "&", "♞", "א", "ლ", "ⵣ"} <= characters
    assert not characters & set(" \u00a0\u0301\u200b\u2800\ufeff")


def test_drawings_of_a_character_differ_but_are_nearer_to_each_other_than_to_others(glyphs: ClassTasks) -> None:
    episode = EpisodeConfig(ways=5, shots=5, queries=5)
    batch = glyphs.sample("test", 100, episode, np.random.default_rng(0))
    assert batch.support.x.shape == (100, 25, 1, 28, 28)
    assert batch.support.x.min() == 0 and batch.support.x.max() == 1
    assert 0.02 < batch.support.x.mean() < 0.3
    means = batch.support.x.reshape(100, 5, 5, -1).mean(2)
    distances = torch.cdist(batch.query.x.flatten(2), means)
    accuracy = (distances.argmin(2) == batch.query.y).float().mean()
    # Chance is 0.2. Pixels alone tell much, but leave something to learn.
    assert 0.5 < accuracy < 0.95
    pairs = torch.cdist(batch.support.x[:, :5].flatten(2), batch.support.x[:, :5].flatten(2))
    assert (pairs + torch.eye(5) * 9).min() > 0.5


def test_ink_stays_inside_the_image(glyphs: ClassTasks) -> None:
    x = glyphs.sample("train", 40, EpisodeConfig(20, 5, 15), np.random.default_rng(0)).query.x[:, :, 0]
    edge = torch.cat([x[:, :, 0], x[:, :, -1], x[:, :, :, 0], x[:, :, :, -1]], 2)
    assert (edge.amax(2) > 0.5).float().mean() < 0.06
