"""Callbacks that end training early."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Mapping

from metarl.errors import ConfigError
from metarl.runs.logger import read_metrics
from metarl.runs.outer_loop import SCORE_WINDOW, Progress

_RETURN = "train/return_"


class EarlyStopping:
    """Ends training when the training return after adaptation has not improved for a while.

    It looks at the mean over the last iterations, as the choice of the best checkpoint does: test tasks stay out of it.
    A run that is resumed goes on with what its log says.

    Args:
        patience: iterations without a better mean after which training ends.
        window: iterations in a mean.

    Raises:
        ConfigError: for a number below 1.
    """

    def __init__(self, patience: int, window: int = SCORE_WINDOW) -> None:
        if patience < 1 or window < 1:
            raise ConfigError(f"EarlyStopping needs patience and window above 0, got {patience!r} and {window!r}.")
        self.patience = patience
        self._window = window
        self._expected = -1
        self._begin()

    def on_iteration(self, progress: Progress) -> bool:
        """Whether the last improvement is ``patience`` iterations ago."""
        if progress.iteration != self._expected:
            # Begun, resumed, or gone back to an earlier checkpoint.
            self._begin()
            if progress.iteration > 1 and progress.run.metrics.exists():
                for entry in read_metrics(progress.run.metrics):
                    if entry["iteration"] < progress.iteration - 1:
                        self._take_in(int(entry["iteration"]) + 1, entry)
        self._expected = progress.iteration + 1
        self._take_in(progress.iteration, progress.metrics)
        return progress.iteration - self._improved >= self.patience

    def _begin(self) -> None:
        self._recent: deque[float] = deque(maxlen=self._window)
        self._best, self._improved = -math.inf, 0

    def _take_in(self, iteration: int, metrics: Mapping[str, float]) -> None:
        returns = {
            int(name.removeprefix(_RETURN)): value for name, value in metrics.items() if name.startswith(_RETURN)
        }
        if not returns:
            raise ConfigError("EarlyStopping needs the metric train/return_..., which few-shot learners do not have.")
        self._recent.append(returns[max(returns)])
        if len(self._recent) < self._window:
            self._improved = iteration  # The first mean is none yet.
            return
        mean = sum(self._recent) / self._window
        if mean > self._best:
            self._best, self._improved = mean, iteration


class TimeLimit:
    """Ends training once a time has passed since the callback was made, so that a job ends before it is killed.

    Args:
        hours: wall-clock hours.

    Raises:
        ConfigError: for a number that is not finite and above 0.
    """

    def __init__(self, hours: float) -> None:
        if not 0.0 < hours < math.inf:
            raise ConfigError(f"TimeLimit needs a finite number of hours above 0, got {hours!r}.")
        self._end = time.monotonic() + 3600.0 * hours

    def on_iteration(self, progress: Progress) -> bool:
        """Whether time is up."""
        return time.monotonic() >= self._end
