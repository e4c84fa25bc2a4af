"""The log has no gaps, repeats or silent NaNs, whatever interrupts the run."""

from __future__ import annotations

import errno
import json
import math
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from metarl.errors import CheckpointError, ConfigError, NonFiniteError
from metarl.runs.folder import RunFolder
from metarl.runs.logger import Logger, read_metrics


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path, "run")


def _log(run: RunFolder, iterations: range, resume_from: int | None = None, offset: float = 0.0) -> None:
    with Logger(run, resume_from) as logger:
        for iteration in iterations:
            logger.log(iteration, {"train/return": iteration + offset})


def _curve(run: RunFolder) -> list[tuple[int, float]]:
    return [(entry["iteration"], entry["train/return"]) for entry in read_metrics(run.metrics)]


def _tensorboard_curve(run: RunFolder) -> list[tuple[int, float]]:
    events = EventAccumulator(str(run.tensorboard)).Reload()
    return [(event.step, event.value) for event in events.Scalars("train/return")]


def test_every_line_is_strict_json_with_iteration_and_wall_time(run: RunFolder) -> None:
    metrics: dict[str, Any] = {"a": 1, "b/c": np.float32(0.5), "d": torch.tensor(2.0), "e": True, "f": 2**64}
    with Logger(run) as logger:
        logger.log(0, metrics)
    (line,) = run.metrics.read_text().splitlines()
    entry = json.loads(line)
    assert entry.pop("wall_time") > 1e9
    assert entry == {"iteration": 0, "a": 1, "b/c": 0.5, "d": 2.0, "e": 1.0, "f": 2.0**64}
    assert "true" not in line
    (read,) = read_metrics(run.metrics)
    assert {name: read[name] for name in entry} == entry


def test_both_logs_are_readable_before_the_logger_is_closed(run: RunFolder) -> None:
    with Logger(run) as logger:
        logger.log(0, {"train/return": 3.0})
        assert _curve(run) == _tensorboard_curve(run) == [(0, 3.0)]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_nonfinite_metric_is_named_and_nothing_of_its_iteration_is_written(run: RunFolder, value: float) -> None:
    with Logger(run) as logger:
        logger.log(0, {"train/return": 0.0})
        with pytest.raises(NonFiniteError, match=f"iteration 1: the metric 'loss' is {value}"):
            logger.log(1, {"train/return": 1.0, "loss": value})
    assert _curve(run) == _tensorboard_curve(run) == [(0, 0.0)]


def test_a_metric_cannot_hide_the_iteration(run: RunFolder) -> None:
    with Logger(run) as logger, pytest.raises(ConfigError, match="cannot be called 'wall_time'"):
        logger.log(0, {"wall_time": 1.0})


def test_resuming_drops_what_is_about_to_be_repeated(run: RunFolder) -> None:
    _log(run, range(6))
    _log(run, range(3, 5), resume_from=3, offset=0.5)
    expected = [(0, 0.0), (1, 1.0), (2, 2.0), (3, 3.5), (4, 4.5)]
    assert _curve(run) == _tensorboard_curve(run) == expected


def test_resuming_from_the_start_drops_everything(run: RunFolder) -> None:
    _log(run, range(3))
    _log(run, range(1), resume_from=0, offset=0.5)
    assert _curve(run) == _tensorboard_curve(run) == [(0, 0.5)]


def test_tensorboard_forgets_what_was_given_up_also_where_the_clock_was_set_back(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    _log(run, range(4))
    now = time.time()
    for number, back in enumerate((3600.0, 86400.0), 1):
        monkeypatch.setattr(time, "time", lambda back=back: now - back)
        _log(run, range(2, 4), resume_from=2, offset=0.25 * number)
    assert _tensorboard_curve(run) == _curve(run) == [(0, 0.0), (1, 1.0), (2, 2.5), (3, 3.5)]


@pytest.mark.parametrize("length", [1, 20, 43])
def test_a_torn_first_line_leaves_nothing_behind(run: RunFolder, length: int) -> None:
    _log(run, range(1))
    run.metrics.write_bytes(run.metrics.read_bytes()[:length])
    _log(run, range(1), resume_from=0, offset=0.5)
    _log(run, range(1, 3), resume_from=1)
    assert _curve(run) == [(0, 0.5), (1, 1.0), (2, 2.0)]


@pytest.mark.parametrize("length", [1, 10, 40])
def test_a_line_torn_by_a_kill_is_tolerated_and_then_removed(run: RunFolder, length: int) -> None:
    _log(run, range(3))
    torn = run.metrics.read_bytes().splitlines()[0][:length]
    run.metrics.write_bytes(run.metrics.read_bytes() + torn)
    assert len(_curve(run)) == 3
    _log(run, range(3, 4), resume_from=3)
    assert _curve(run) == [(0, 0.0), (1, 1.0), (2, 2.0), (3, 3.0)]


def test_a_damaged_line_in_the_middle_is_named(run: RunFolder) -> None:
    _log(run, range(3))
    lines = run.metrics.read_text().splitlines()
    run.metrics.write_text("\n".join([lines[0], lines[1][:8], lines[2]]))
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl, line 2 is damaged"):
        read_metrics(run.metrics)


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        ([*range(40), *range(119, 120)], "lacks the iterations 40-118, but .* after iteration 119"),
        ([*range(1, 60), *range(61, 119)], "lacks the iterations 0, 60, 119, but"),
        ([], "lacks the iterations 0-119"),
        ([*range(120), 7], "holds iterations twice or in disorder"),
    ],
)
def test_a_resume_demands_every_iteration_and_leaves_the_log_as_it_was(
    run: RunFolder, kept: list[int], message: str
) -> None:
    run.metrics.write_text("".join(json.dumps({"iteration": number}) + "\n" for number in kept))
    before = run.metrics.read_bytes()
    with pytest.raises(CheckpointError, match=rf"metrics\.jsonl {message}"):
        Logger(run, resume_from=120)
    assert run.metrics.read_bytes() == before
    run.metrics.unlink()
    with pytest.raises(CheckpointError, match="lacks the iterations 0-2"):
        Logger(run, resume_from=3)


def test_lines_are_on_the_disk_after_a_sync(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = []
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(os.fstat(handle).st_ino))
    with Logger(run) as logger:
        logger.log(0, {"train/return": 1.0})
        logger.sync()
    assert synced == [run.metrics.stat().st_ino]


def test_a_sync_that_fails_is_named(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with Logger(run) as logger:
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(
            CheckpointError, match=r"could not bring the metrics .*onto the disk: the disk is full \(No space left"
        ):
            logger.sync()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("3", "line 2 is damaged: expected a JSON object, got int"),
        ('{"env_steps": 3}', "line 2 is damaged: it lacks 'iteration'"),
        ('{"iteration": "1"}', "line 2 is damaged: 'iteration' must be a whole number, got '1'"),
        ('{"iteration": 1, "train/return_0": NaN}', "line 2 is damaged: train/return_0 is nan"),
        ('{"iteration": 1, "train/return_0": null}', "line 2 is damaged: 'train/return_0' must be a number, got None"),
        ('{"iteration": 18446744073709551616}', "line 2 is damaged: iteration is beyond 64 bits"),
    ],
)
def test_a_line_of_another_kind_is_named(run: RunFolder, line: str, message: str) -> None:
    run.metrics.write_text(f'{{"iteration": 0}}\n{line}\n')
    with pytest.raises(CheckpointError, match=message):
        read_metrics(run.metrics)


def test_a_pipe_in_place_of_the_log_is_an_error(run: RunFolder) -> None:
    os.mkfifo(run.metrics)
    with pytest.raises(CheckpointError, match="it is not a regular file"):
        read_metrics(run.metrics)
    with pytest.raises(CheckpointError, match="could not open the logs"):
        Logger(run)


def test_a_new_logger_refuses_to_mix_two_runs(run: RunFolder) -> None:
    _log(run, range(3))
    with pytest.raises(ConfigError, match="holds the metrics of an earlier start"):
        Logger(run)


def test_resuming_a_run_that_logged_nothing_yet_works(run: RunFolder) -> None:
    _log(run, range(2), resume_from=0)
    assert _curve(run) == [(0, 0.0), (1, 1.0)]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_named(run: RunFolder) -> None:
    run.metrics.symlink_to("/dev/full")
    message = r"metrics of iteration 0 to .*No space left.*checkpoints so far are intact"
    with pytest.raises(CheckpointError, match=message), Logger(run) as logger:
        logger.log(0, {"train/return": 1.0})


def test_missing_metrics_are_named(run: RunFolder) -> None:
    with pytest.raises(CheckpointError, match=r"could not read the metrics .*metrics\.jsonl: No such file"):
        read_metrics(run.metrics)
