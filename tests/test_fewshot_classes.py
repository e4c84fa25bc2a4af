"""Tasks drawn from classes: what a task holds, how it is drawn, and which classes cannot be."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from metarl.errors import ConfigError
from metarl.fewshot.tasks.classes import Classes, ClassTasks
from metarl.fewshot.types import EpisodeConfig, Split, TaskBatch

COUNTS = {"train": (6, 9, 5, 7, 8, 6), "test": (6, 5, 7)}


def _classes(names: str, counts: tuple[int, ...], *, dtype: type = np.float32) -> Classes:
    """Examples ``[1, 2, 2]`` that say their class (a pixel) and which example of it they are (another)."""
    labels = np.repeat(np.arange(len(counts)), counts)
    examples = np.zeros((len(labels), 1, 2, 2), dtype)
    examples[:, 0, 0, 0] = labels
    examples[:, 0, 0, 1] = np.concatenate([np.arange(count) for count in counts])
    return Classes.group(examples, labels, tuple(names[: len(counts)]))


def _tasks() -> ClassTasks:
    return ClassTasks("mine", {"train": _classes("abcdef", COUNTS["train"]), "test": _classes("xyz", COUNTS["test"])})


def _sample(tasks: ClassTasks, split: Split, num_tasks: int, episode: EpisodeConfig, seed: int = 0) -> TaskBatch:
    return tasks.sample(split, num_tasks, episode, np.random.default_rng(seed))


def test_a_task_holds_different_classes_and_different_examples_of_each_in_the_order_of_labels() -> None:
    episode = EpisodeConfig(ways=4, shots=2, queries=3)
    batch = _sample(_tasks(), "train", 200, episode)
    assert batch.support.x.shape == (200, 8, 1, 2, 2) and batch.query.x.shape == (200, 12, 1, 2, 2)
    assert batch.support.x.dtype == torch.float32 and batch.support.y.dtype == torch.int64
    assert batch.support.y.tolist() == [[0, 0, 1, 1, 2, 2, 3, 3]] * 200
    assert batch.query.y.tolist() == [[0] * 3 + [1] * 3 + [2] * 3 + [3] * 3] * 200
    support, query = batch.support.x.reshape(200, 4, 2, 4), batch.query.x.reshape(200, 4, 3, 4)
    for of_task in torch.cat([support, query], 2):
        true_classes = of_task[:, :, 0]
        assert (true_classes == true_classes[:, :1]).all() and len(true_classes[:, 0].unique()) == 4
        for of_class in of_task:
            assert len(of_class[:, 1].unique()) == 5
            assert of_class[:, 1].max() < COUNTS["train"][int(of_class[0, 0])]


def test_every_class_every_label_and_every_example_is_equally_likely() -> None:
    batch = _sample(_tasks(), "train", 6000, EpisodeConfig(ways=2, shots=1, queries=2))
    drawn = batch.support.x[:, :, 0, 0]
    for label in range(2):
        shares = torch.bincount(drawn[:, label, 0].long(), minlength=6) / 6000
        assert (shares - 1 / 6).abs().max() < 0.02
    for x in (batch.support.x[:, 0, 0, 0], batch.query.x[:, 1, 0, 0]):
        of_first = x[x[:, 0] == 0, 1].long()
        assert (torch.bincount(of_first, minlength=6) / len(of_first) - 1 / 6).abs().max() < 0.05


def test_all_classes_and_all_examples_can_be_in_one_task() -> None:
    tasks = _tasks()
    batch = _sample(tasks, "test", 1, EpisodeConfig(ways=3, shots=1, queries=4))
    assert sorted(batch.support.x[0, :, 0, 0, 0].tolist()) == [0, 1, 2]
    with_all = [sorted([*s, *q]) for s, q in _numbers(batch) if len({*s, *q}) == 5]
    assert len(with_all) == 3


def _numbers(batch: TaskBatch) -> list[tuple[list[float], list[float]]]:
    s, q = batch.support.x[0, :, 0, 0, 1].reshape(3, 1), batch.query.x[0, :, 0, 0, 1].reshape(3, 4)
    return list(zip(s.tolist(), q.tolist(), strict=True))


def test_the_same_state_of_the_generator_draws_the_same_tasks_and_another_draws_others() -> None:
    tasks, episode = _tasks(), EpisodeConfig(ways=3, shots=1, queries=2)
    one, again, other = (_sample(tasks, "train", 20, episode, seed) for seed in (3, 3, 4))
    assert torch.equal(one.support.x, again.support.x) and torch.equal(one.query.x, again.query.x)
    assert not torch.equal(one.support.x, other.support.x)


def test_drawing_changes_no_example_of_the_classes() -> None:
    held = _classes("abcdef", COUNTS["train"], dtype=np.uint8)
    before = held.examples.copy()
    tasks = ClassTasks("mine", {"train": held}, rotations=True)
    batch = _sample(tasks, "train", 50, EpisodeConfig(ways=5, shots=1, queries=1))
    batch.support.x.fill_(-1)
    assert np.array_equal(held.examples, before)


def test_bytes_become_numbers_from_0_to_1_and_floats_of_any_range_stay() -> None:
    x = np.asarray([[0, 255], [51, 102]], np.uint8)
    tasks = ClassTasks("bytes", {"train": Classes(x, np.asarray([1, 1]), ("a", "b"))})
    with pytest.raises(
        ConfigError, match=r"1 shots and 1 queries need 2 examples of each class, but the class 'a' .* has 1"
    ):
        tasks.check("train", EpisodeConfig(2, 1, 1))
    x = x.repeat(2, 0)
    for examples, expected in ((x, [0.0, 0.2, 0.4, 1.0]), (x.astype(np.float64) - 300, [-300, -249, -198, -45])):
        tasks = ClassTasks("numbers", {"train": Classes(examples, np.asarray([2, 2]), ("a", "b"))})
        drawn = _sample(tasks, "train", 1, EpisodeConfig(2, 1, 1)).support.x
        assert drawn.dtype == torch.float32
        assert sorted(drawn.flatten().tolist()) == pytest.approx(expected)


def test_rotations_make_three_more_classes_of_each() -> None:
    images = np.arange(2 * 2 * 9, dtype=np.float32).reshape(2, 2, 1, 3, 3)
    images[:, 1] = images[:, 0]  # Both examples of a class look the same.
    held = Classes(images.reshape(4, 1, 3, 3), np.asarray([2, 2]), ("a", "b"))
    tasks = ClassTasks("turned", {"train": held}, rotations=True)
    assert tasks.num_classes("train") == 8
    batch = _sample(tasks, "train", 3, EpisodeConfig(ways=8, shots=1, queries=1))
    assert torch.equal(batch.support.x, batch.query.x)
    expected = {np.rot90(images[kind, 0, 0], turns).tobytes() for kind in range(2) for turns in range(4)}
    for task in batch.support.x:
        assert {image[0].numpy().tobytes() for image in task} == expected
    with pytest.raises(ConfigError, match=r"9 ways are more than the 8 classes in the train split of turned\. Take 8"):
        tasks.check("train", EpisodeConfig(9, 1, 1))


def test_classes_in_any_order_are_grouped() -> None:
    labels = np.asarray([1, 0, 1, 2, 0])
    held = Classes.group(np.arange(5.0)[:, None], labels, ("a", "b", "c"))
    assert held.examples[:, 0].tolist() == [1, 4, 0, 2, 3] and held.counts.tolist() == [2, 2, 1]


@pytest.mark.parametrize(
    ("split", "episode", "message"),
    [
        ("train", EpisodeConfig(7, 1, 1), "7 ways are more than the 6 classes in the train split of mine. Take 6"),
        ("train", EpisodeConfig(1, 1, 1), "needs ways of 2 or more to tell apart, got 1"),
        (
            "train",
            EpisodeConfig(2, 3, 3),
            "3 shots and 3 queries need 6 examples of each class, but the class 'c' in the train split of mine has 5. "
            "Lower shots or queries",
        ),
        (
            "validation",
            EpisodeConfig(2, 1, 1),
            "mine has no classes in a validation split; there are some in train, te",
        ),
    ],
)
def test_sizes_of_which_there_are_no_tasks_are_refused(split: Split, episode: EpisodeConfig, message: str) -> None:
    for refuse in (_tasks().check, lambda split, episode: _sample(_tasks(), split, 1, episode)):
        with pytest.raises(ConfigError) as caught:
            refuse(split, episode)
        assert message in str(caught.value)


def test_classes_that_cannot_be_are_refused() -> None:
    train = _classes("abcdef", COUNTS["train"])
    with pytest.raises(
        ConfigError, match=r"the splits train and test share 2 of their classes: a, b. Expected test classes"
    ):
        ClassTasks("mine", {"train": train, "test": _classes("abx", (5, 5, 5))})
    ClassTasks("mine", {"train": train, "test": _classes("abx", (5, 5, 5))}, same_classes=True)
    with pytest.raises(ConfigError, match="mine has 1 class, and telling classes apart needs at least 2"):
        ClassTasks("mine", {"train": _classes("a", (5,))})
    with pytest.raises(ConfigError, match="mine has 0 classes"):
        ClassTasks("mine", {})
    wide = Classes(np.zeros((4, 1, 2, 3)), np.asarray([2, 2]), ("x", "y"))
    with pytest.raises(ConfigError, match=r"shape \(1, 2, 2\) in train and \(1, 2, 3\) in test; expected one shape"):
        ClassTasks("mine", {"train": train, "test": wide})
    with pytest.raises(ConfigError, match=r"need square images .* got inputs of the shape \(1, 2, 3\)"):
        ClassTasks("mine", {"test": wide}, rotations=True)
    with pytest.raises(ConfigError, match=r"must be uint8 \(0 to 255\) or floating point, got int64"):
        Classes(np.zeros((4, 1, 2, 3), np.int64), np.asarray([2, 2]), ("x", "y"))
    train.examples[[7, 9], 0, 1, 1] = (np.nan, np.inf)
    with pytest.raises(ConfigError, match=r"2 examples of the train split hold NaN or an infinity, .* class 'b'"):
        ClassTasks("mine", {"train": train})
