"""Whole runs on several ranks: uneven shares, parameters that drift, resumed runs and references."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.ranks import Ranks
from torch import Tensor

from metarl.agents import GradientAgent, MAMLTRPOConfig
from metarl.cli.entry import main
from metarl.config import TrainConfig
from metarl.distributed import current
from metarl.runs.checkpoint import state_digest
from metarl.runs.folder import RunFolder
from metarl.runs.logger import read_metrics
from metarl.tasks.registry import load_distribution
from metarl.trainer import train
from metarl.types import Trial

SETTINGS: dict[str, Any] = {"hidden_sizes": (4,), "rollouts_per_task": 2, "cg_iterations": 2}

COMMAND = (
    "train maml-trpo tabular-mdp --meta-batch-size 4 --rollouts-per-task 2 --hidden-sizes 4 --cg-iterations 2 "
    "--eval-tasks 3 --eval-every 4 --checkpoint-every 3 --device cpu"
)


@pytest.fixture(scope="module")
def three() -> Iterator[Ranks]:
    """Three ranks."""
    group = Ranks(3)
    yield group
    group.close()


class Drifting(GradientAgent):
    """Whose parameters on one rank are changed in the third iteration, by less than any log shows."""

    drifts_on = 1
    updates = 0

    def meta_update(self, trial: Trial) -> dict[str, float]:
        metrics = super().meta_update(trial)
        self.updates += 1
        if self.updates == 3 and current().rank == self.drifts_on:
            with torch.no_grad():
                next(self.policy.parameters()).mul_(1 + 1e-6)
        return metrics


def learn(folder: Path, agent_class: type[Any] | None = None, num_iterations: int = 5) -> dict[str, Tensor]:
    """All tensors of an agent that five tasks an iteration have trained."""
    distribution = load_distribution("navigation-2d")
    config = MAMLTRPOConfig(**SETTINGS)
    spec, device = distribution.spec, torch.device("cpu")
    agent = config.build(spec, device, 3) if agent_class is None else agent_class(config, spec, device, 3)
    schedule = TrainConfig(
        num_iterations=num_iterations, meta_batch_size=5, eval_every=2, eval_tasks=2, checkpoint_every=4, device="cpu"
    )
    folder.mkdir(exist_ok=True)
    train(agent, distribution, schedule, RunFolder(folder))
    return {name: tensor.clone() for name, tensor in agent.named_tensors().items()}


def test_three_ranks_share_five_tasks_and_learn_what_one_process_does(tmp_path: Path, three: Ranks) -> None:
    """Two have two tasks and one has one; of the two tasks of an evaluation one rank has none."""
    alone = learn(tmp_path / "alone")
    together = three.run(learn, tmp_path / "together")
    again = three.run(learn, tmp_path / "again")
    for found in (*together, *again):
        assert not isinstance(found, str), found
        for name, tensor in alone.items():
            torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-5)
            assert torch.equal(found[name], together[0][name])
    logs = [read_metrics(RunFolder(tmp_path / name).metrics) for name in ("alone", "together")]
    assert [len(log) for log in logs] == [5, 5]
    for one, other in zip(*logs, strict=True):
        assert one.keys() == other.keys()
        assert one["env_steps"] == other["env_steps"]
        assert one["train/return_1"] == pytest.approx(other["train/return_1"], rel=1e-4)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_whose_parameters_drift_stops_the_run_with_its_name(tmp_path: Path, three: Ranks, rank: int) -> None:
    """It is told at the next checkpoint, and nothing of what drifted is saved."""

    def drift(folder: Path) -> object:
        class OnRank(Drifting):
            drifts_on = rank

        return learn(folder, OnRank)

    for text in three.run(drift, tmp_path / "run"):
        assert f"WorkerError: rank {rank} has drifted from the other ranks: after 4 iterations " in text
    run = RunFolder(tmp_path / "run")
    assert run.checkpoints.iterations() == [0]
    assert three.run(learn, tmp_path / "after")[0].keys()  # The ranks are still there for other runs.


def test_a_run_is_resumed_on_many_ranks_and_has_its_reference(tmp_path: Path, three: Ranks) -> None:
    for name, lengths in (("whole", (8,)), ("parts", (4, 8))):
        for number, length in enumerate(lengths):
            words = [*COMMAND.split(), "--runs", str(tmp_path / name), "--reference"]
            if number:
                words = ["train", "--resume", str(only_run(tmp_path / name).path)]
            assert three.run(main, [*words, "--num-iterations", str(length)]) == [0, 0, 0]
    for part in ("", "pretrained"):
        whole, parts = (RunFolder(only_run(tmp_path / name).path / part) for name in ("whole", "parts"))
        iteration, content = parts.checkpoints.load_latest()
        assert iteration == 8 or part
        expected = whole.checkpoints.load_latest()[1]
        assert state_digest(content["agent"]) == state_digest(expected["agent"])
    assert (only_run(tmp_path / "parts").path / "adaptation.png").is_file()
    # One process alone goes on with it, too.
    assert main(["train", "--resume", str(only_run(tmp_path / "parts").path), "--num-iterations", "9"]) == 0
    assert only_run(tmp_path / "parts").checkpoints.load_latest()[0] == 9


def only_run(folder: Path) -> RunFolder:
    (found,) = RunFolder.find(folder)
    return found


def different(folder: Path) -> tuple[int, str]:
    """What a rank's command returns and prints as an error, where each has another step size."""
    with contextlib.redirect_stderr(io.StringIO()) as errors:
        code = main([*COMMAND.split(), "--runs", str(folder), "--inner-lr", str(0.1 + current().rank)])
    return code, errors.getvalue().replace("\n", " ")


def test_ranks_with_different_settings_are_told_which(tmp_path: Path, three: Ranks) -> None:
    codes, texts = zip(*three.run(different, tmp_path), strict=True)
    assert codes == (2, 2, 2)
    for text in texts:
        same = "the ranks of one run must have the same origin.settings.inner_lr, which is"
        assert f"{same} 0.1 on rank 0; 1.1 on rank 1; 2.1 on rank 2" in text
