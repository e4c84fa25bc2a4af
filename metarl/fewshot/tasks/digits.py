"""Handwritten digits of scikit-learn at 8 x 8, on which optimisers are learned."""

from __future__ import annotations

import numpy as np

from metarl.errors import missing_extra
from metarl.fewshot.tasks.classes import Classes, ClassTasks
from metarl.fewshot.types import EpisodeConfig, Split

_BOUNDS: dict[Split, tuple[float, float]] = {"train": (0.0, 0.4), "validation": (0.4, 0.7), "test": (0.7, 1.0)}


def digits() -> ClassTasks:
    """Ten-way tasks of scikit-learn's digits (1,797 images as vectors of 64 numbers in [0, 1]), for learned optimisers.

    They take the place of MNIST in section 3.2 of Andrychowicz et al. (2016). A task is a training set (the support
    set, of which a learner may draw minibatches), held-out images (the query set), and a numbering of the digits. All
    splits have the ten digits, since an optimiser is to be carried over to new data and new initial parameters of the
    same kind of problem; no image is in two of them. Of each digit, in the order of the data set, the first 40 % are
    to train on, the next 30 % to validate on, the last 30 % to test on: 69 to 74 and 52 to 55 images of a digit, so
    that neighbours, which are often by one writer, stay together.

    Raises:
        ConfigError: if scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise missing_extra("scikit-learn", "digits", "the task family digits") from error
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32)
    splits: dict[Split, Classes] = {}
    for split, (first, last) in _BOUNDS.items():
        of_digit = [np.flatnonzero(labels == digit) for digit in range(10)]
        rows = [row[int(first * len(row)) : int(last * len(row))] for row in of_digit]
        counts = np.asarray([len(row) for row in rows])
        splits[split] = Classes(images[np.concatenate(rows)], counts, tuple(map(str, range(10))))
    return ClassTasks("digits", splits, same_classes=True, default_episode=EpisodeConfig(ways=10, shots=40, queries=12))
