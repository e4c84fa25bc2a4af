"""A callback that copies metrics to Weights & Biases."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

from metarl.distributed import current
from metarl.errors import ConfigError, missing_extra
from metarl.runs.files import read_json, typed, write_json
from metarl.runs.folder import RunFolder
from metarl.runs.outer_loop import Progress

_FILE = "wandb.json"


class Wandb:
    """Sends the metrics of every iteration to a project of Weights & Biases, under the names that the log has.

    The run keeps its id there in ``wandb.json``: one that is resumed goes on in the same curves. What of the service is
    set by variables of the environment works as ever, such as ``WANDB_MODE=offline``.

    Args:
        project: name of the project.
        group: name under which several runs stand together, e.g. those of other seeds.

    Raises:
        ConfigError: if the package wandb is missing; for an empty name.
    """

    def __init__(self, project: str, group: str | None = None) -> None:
        if not project:
            raise ConfigError("Wandb needs the name of a project, got ''.")
        try:
            import wandb
        except ImportError as error:
            raise missing_extra("wandb", "wandb", "logging to Weights & Biases") from error
        self._wandb: Any = wandb
        self._project, self._group = project, group
        self._run: Any = None
        self._folder: Path | None = None

    def on_iteration(self, progress: Progress) -> None:
        """Send the metrics; the first of the ranks alone does."""
        if not current().is_first:
            return
        if self._folder != progress.run.path:
            self.close()
            self._run, self._folder = self._start(progress.run), progress.run.path
        # Not as wandb's own step, which must never go back, as a run may to an earlier checkpoint.
        self._run.log({"iteration": progress.iteration - 1, **progress.metrics})
        if progress.iteration == progress.num_iterations:
            self.close()

    def close(self) -> None:
        """Send what is left."""
        if self._run is not None:
            self._run.finish()
            self._run = self._folder = None

    def _start(self, folder: RunFolder) -> Any:
        path = folder.path / _FILE
        if not path.exists():
            write_json(path, {"id": uuid.uuid4().hex})
        kept = read_json(path)
        run = self._wandb.init(
            project=self._project,
            group=self._group,
            name=folder.path.name,
            id=typed(kept, "id", str, str(path)),
            resume="allow",
            dir=str(folder.path),
            config=read_json(folder.path / "config.json"),
        )
        run.define_metric("iteration")
        run.define_metric("*", step_metric="iteration")
        return run
