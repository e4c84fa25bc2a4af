"""The command line: what it prints works as printed, and bad input gets a sentence, not a traceback."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import re
import shlex
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest
from helpers.command_line import metarl as _metarl
from helpers.command_line import refused as _refused

from metarl.agents import AGENTS
from metarl.cli import entry as cli
from metarl.cli.train import Source, TrainOptions
from metarl.config import TrainConfig
from metarl.experiments.presets import PRESETS
from metarl.runs.folder import RunFolder
from metarl.runs.logger import read_metrics
from metarl.tasks.registry import registered

_SMALL_TRAIN = [
    *("--num-iterations", "2", "--meta-batch-size", "3", "--eval-tasks", "3"),
    *("--eval-every", "1", "--checkpoint-every", "1"),
]
_SMALL_MAML = [*_SMALL_TRAIN, "--rollouts-per-task", "2", "--hidden-sizes", "4", "--cg-iterations", "2"]
_SMALL_RL2 = [*_SMALL_TRAIN, "--hidden-size", "4", "--num-epochs", "1"]


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "path", [*sys.path])


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Path:
    """A small finished run of MAML-TRPO on bandits."""
    assert _metarl(["train", "maml-trpo", "bandit", *_SMALL_MAML]) == 0
    capsys.readouterr()
    return Path("runs/maml-trpo-bandit-seed1")


# From end to end ----------------------------------------------------------------------------------------------------


def _assert_is_png(path: Path) -> None:
    assert path.read_bytes().startswith(b"\x89PNG\r\n")
    assert matplotlib.image.imread(path).std() > 0.01


@pytest.mark.parametrize(
    ("agent", "tasks", "options", "shots"),
    [
        ("maml-trpo", "cartpole-goal", _SMALL_MAML, ["0", "1", "2", "3"]),
        ("rl2", "bandit", _SMALL_RL2, ["1"]),
        ("rl2", "navigation-2d", _SMALL_RL2, ["1", "2"]),
        ("random", "bandit", _SMALL_TRAIN, ["0"]),
    ],
)
def test_train_evaluate_and_plot_leave_what_they_promise(
    agent: str, tasks: str, options: list[str], shots: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert _metarl(["train", agent, tasks, "--seed", "4", "--device", "cpu", *options]) == 0
    printed = capsys.readouterr().out
    path = Path("runs") / f"{agent}-{tasks}-seed4"
    header = next(line for line in printed.splitlines() if line.startswith("┃"))
    assert [cell.strip() for cell in header.strip("┃").split("┃")][1:] == shots
    assert f"Return on 3 held-out tasks of {tasks}" in " ".join(printed.split())
    assert ("random policy" in printed) == (agent != "random")
    config = json.loads((path / "config.json").read_text())
    assert (config["agent"], config["tasks"], config["train"]["seed"]) == (agent, tasks, 4)
    assert config["train"].keys() == {field.name for field in dataclasses.fields(TrainConfig)}
    assert config[agent].keys() == {field.name for field in dataclasses.fields(AGENTS[agent])}
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["seed"] == 4 and {"versions", "git", "machine", "command"} <= manifest.keys()
    assert [row["iteration"] for row in read_metrics(path / "metrics.jsonl")] == [0, 1]
    assert list((path / "tensorboard").glob("events.out.tfevents.*"))
    checkpoints = {file.name for file in (path / "checkpoints").iterdir()}
    assert checkpoints == {*(f"iteration-0000000{k}.safetensors" for k in (0, 1, 2)), "best.safetensors"}
    _assert_is_png(path / "adaptation.png")
    assert len(json.loads((path / "adaptation.json").read_text())["rows"][0]["intervals"]) == len(shots)

    commands = re.findall(r"^  metarl (evaluate|plot|train --resume) (.*?)(?:   .*)?$", printed, re.MULTILINE)
    assert [name for name, _ in commands] == ["evaluate", "plot", "train --resume"]
    for name, rest in commands:
        assert _metarl(f"{name} {rest.replace('100', '5')}") == 0
    _assert_is_png(path / "learning.png")
    _assert_is_png(next(path.glob("evaluation-*-iteration2-*.png")))
    assert len(read_metrics(path / "metrics.jsonl")) == 4


def test_the_hint_for_more_held_out_tasks_offers_more_than_there_were(capsys: pytest.CaptureFixture[str]) -> None:
    for asked, offered in (("3", "100"), ("150", "300")):
        assert _metarl(["train", "random", "bandit", *_SMALL_TRAIN, "--eval-tasks", asked, "--seed", asked]) == 0
        assert re.search(rf"--num-tasks {offered} +more held-out tasks", capsys.readouterr().out)


def test_an_evaluation_is_the_same_each_time_and_takes_what_it_is_told(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tables = []
    for _ in range(2):
        assert _metarl(f"evaluate {run} --num-tasks 4 --num-adaptations 2 --device cpu --best --seed 3") == 0
        tables.append(capsys.readouterr().out)
    assert tables[0] == tables[1]
    assert "4 held-out tasks" in tables[0]
    assert _metarl(f"evaluate {run} --tasks bandit-gaussian --num-tasks 2") == 0
    assert "of bandit-gaussian" in " ".join(capsys.readouterr().out.split())
    assert _metarl(f"evaluate {run} --num-tasks 2 --rollouts-per-task 3 --seed 4") == 0
    rows = json.loads(next(run.glob("evaluation-bandit-*-seed4.json")).read_text())["rows"]
    assert len(rows) > 1 and all(row["episodes_per_shot"] == 3 for row in rows)


def test_the_main_job_s_reference_is_trained_beside_it_and_resumed_with_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert _metarl(["train", "maml-trpo", "bandit", "--reference", *_SMALL_MAML]) == 0
    printed = capsys.readouterr().out
    assert "single policy, not adapted" in printed and "single policy, fine-tuned" in printed
    path = Path("runs/maml-trpo-bandit-seed1")
    assert len(read_metrics(path / "pretrained" / "metrics.jsonl")) == 4
    assert _metarl(f"train --resume {path} --num-iterations 3") == 0
    assert len(read_metrics(path / "metrics.jsonl")) == 3
    assert len(read_metrics(path / "pretrained" / "metrics.jsonl")) == 6


def test_a_run_stopped_before_its_reference_began_can_be_evaluated(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "pretrained").mkdir()
    config = json.loads((run / "config.json").read_text())
    config = {**config, "agent": "pretrained", "pretrained": config["maml-trpo"]}
    (run / "pretrained" / "config.json").write_text(json.dumps(config))
    assert _metarl(f"evaluate {run} --num-tasks 2") == 0
    assert "single policy" not in capsys.readouterr().out


def test_one_figure_can_show_several_runs(run: Path) -> None:
    assert _metarl(["train", "random", "bandit", *_SMALL_TRAIN]) == 0
    assert _metarl(f"plot {run} runs/random-bandit-seed1 --output both.png") == 0
    _assert_is_png(Path("both.png"))


def test_list_fits_on_one_screen(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 24 lines with 80 characters, one of which the next prompt takes."""
    monkeypatch.setenv("COLUMNS", "80")
    assert _metarl("list") == 0
    printed = capsys.readouterr().out
    lines = printed.splitlines()
    assert len(lines) <= 23 and max(map(len, lines)) <= 80
    shown = " ".join(printed.split())
    for name, kind in AGENTS.items():
        assert f"{name} {kind.when}" in shown
    for family in ("bandit* (11)", "cartpole* (5)", "locomotion/* (9)", "ml1/* (50)", "ml10,", "tabular-mdp"):
        assert family in shown
    assert "presets, or metarl list AGENT" in shown


def test_list_tasks_tells_all_or_those_of_a_family(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "5000")
    for family in ("", "ml1", "ml10", "bandit", "locomotion", "navigation-2d"):
        assert _metarl(f"list tasks {family}") == 0
        rows = [line.split("│") for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
        names = {name.strip() for row in rows for name in row[1].split(",")}
        expected = {name for name in registered() if re.match(rf"{family}($|[-/])", name) or not family}
        assert names == expected, family
    assert "unknown family of tasks 'ml2'" in _refused("list tasks ml2", capsys)
    assert "a family belongs to tasks: metarl list tasks ml1; got list rl2" in _refused("list rl2 ml1", capsys)


def test_list_names_every_agent_task_and_preset(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "5000")
    assert _metarl("list tasks") == 0
    printed = capsys.readouterr().out
    for name in registered():
        assert name in printed
    assert _metarl("list presets") == 0
    printed = capsys.readouterr().out
    found = re.findall(r"│ ([^│]*?) +│ ([^│]*?) +│", printed)
    rows = {name: tasks.split(", ") for names, tasks in found for name in names.split(", ")}
    for name in PRESETS:
        agent, tasks, *variant = name.split(":")
        shown = "ml1/... (50 of them)" if tasks.startswith("ml1/") else tasks
        assert shown in rows[":".join([agent, "TASKS", *variant])], name
    assert len(rows) == len({tuple(part for at, part in enumerate(name.split(":")) if at != 1) for name in PRESETS})
    assert _metarl("list agents") == 0
    printed = capsys.readouterr().out
    assert "navigation-2d" not in printed and all(name in printed for name in AGENTS)
    assert _metarl("list rl2") == 0
    printed = capsys.readouterr().out
    assert "│ navigation-2d " in printed and "snail" not in printed
    # One row for all of Meta-World, with budgets by tasks.
    assert "│ ml10, ml25, ml45, ml1/... (50 of them)  (--preset rl2:TASKS:transformer) " in printed
    budgets = {name: preset.train for name, preset in PRESETS.items() if name.startswith("rl2:")}
    for tasks in ("ml10", "ml25", "ml45"):
        assert f"{tasks}: {json.dumps(budgets[f'rl2:{tasks}'])}" in printed


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert _metarl("--version") == 0
    assert capsys.readouterr().out == f"metarl {version('metarl-torch')}\n"


def test_a_folder_of_runs_is_plotted_as_its_runs(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _metarl(["train", "random", "bandit", *_SMALL_TRAIN]) == 0
    assert _metarl("plot runs") == 0
    _assert_is_png(Path("runs/learning.png"))
    Path("empty").mkdir()
    assert "empty is not a run folder" in _refused("plot empty", capsys)


def test_ctrl_c_while_metarl_loads_prints_no_traceback() -> None:
    code = (
        "import sys, signal, os\n"
        "class Interrupted:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'torch': os.kill(os.getpid(), signal.SIGINT)\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "sys.meta_path.insert(0, Interrupted())\n"
        "from metarl.cli import main\n"
        "sys.exit(main(['list']))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "interrupted before anything began.\n")


@pytest.mark.parametrize("agent", AGENTS)
def test_help_describes_every_setting(agent: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["train", agent, "bandit", "--help"])
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    for kind in (TrainConfig, AGENTS[agent], Source, TrainOptions):
        flags = [field.name.replace("_", "-") for field in dataclasses.fields(kind)]
        for flag in set(flags) - {"train", "settings", "source"}:
            assert re.search(rf"--{flag}[ ,]", printed), flag
    assert "Meta-updates." in printed


@pytest.mark.parametrize("words", ["", "--help", "-h"])
def test_without_a_command_the_usage_is_shown(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert _metarl(words) == (0 if words else 2)
    assert "metarl COMMAND --help" in capsys.readouterr().out


# Stopping and going on ----------------------------------------------------------------------------------------------


def _start(words: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "metarl", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"},
    )


def _stop(process: subprocess.Popen[str], run: RunFolder, iterations: int, number: signal.Signals) -> str:
    """Signal a training once it has done some iterations; returns what it printed."""
    deadline = time.monotonic() + 120.0
    while not run.metrics.exists() or len(read_metrics(run.metrics)) < iterations:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.01)
    process.send_signal(number)
    printed, errors = process.communicate(timeout=120.0)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    return printed


_FEW_SHOT = "--device cpu --hidden-sizes 4 --meta-batch-size 2 --eval-tasks 2 --num-eval-steps 1 --eval-every 99999"


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["train", "maml-trpo", "bandit", *_SMALL_MAML], "maml-trpo-bandit-seed1"),
        (["fewshot", "train", "maml", "sinusoid", *_FEW_SHOT.split()], "maml-sinusoid-1way-10shot-seed1"),
    ],
    ids=["agent", "few-shot"],
)
def test_what_ctrl_c_prints_goes_on_as_printed(words: list[str], name: str) -> None:
    endless = ["--num-iterations", "100000", "--checkpoint-every", "99999", "--runs", "my [old] runs"]
    run = RunFolder(Path("my [old] runs") / name)
    printed = _stop(_start([*words, *endless]), run, 2, signal.SIGINT)
    assert "everything is saved" in printed
    done = len(read_metrics(run.metrics))
    assert run.checkpoints.iterations() == [0, done]
    verbs = " ".join(words[: words.index("train") + 1])
    (command,) = re.findall(rf"^  metarl ({verbs} --resume .*)$", printed, re.MULTILINE)
    resume = shlex.split(command)
    assert Path(resume[-1]).absolute() == run.path
    # SIGTERM, as job schedulers send it, stops in the same way.
    _stop(_start(resume), run, done + 2, signal.SIGTERM)
    rows = read_metrics(run.metrics)
    assert [row["iteration"] for row in rows] == list(range(len(rows)))
    assert run.checkpoints.iterations() == [0, done, len(rows)]


def test_a_damaged_newest_checkpoint_comes_with_a_command_that_works(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    newest = RunFolder(run).checkpoints.latest()
    content = bytearray(newest.read_bytes())
    content[-5] ^= 1
    newest.write_bytes(content)
    for words in (f"evaluate {run}", f"train --resume {run}"):
        text = _refused(words, capsys)
        assert f"{newest} is damaged" in text
    command = re.search(r"resume from it with: metarl (train .*\.safetensors)", text)
    assert command is not None
    assert "iteration-00000001" in command[1]
    assert _metarl(command[1]) == 0
    assert [row["iteration"] for row in read_metrics(run / "metrics.jsonl")] == [0, 1]
    assert _metarl(f"evaluate {run} --num-tasks 2") == 0


class _Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("exploded"),))


def test_a_crafted_pickle_is_refused_and_not_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for protocol in (0, 2, pickle.HIGHEST_PROTOCOL):
        Path("evil.safetensors").write_bytes(pickle.dumps(_Bomb(), protocol))
        for words in (f"evaluate {run}", f"train --resume {run}"):
            assert "could run code" in _refused(f"{words} --checkpoint evil.safetensors", capsys)
    assert not Path("exploded").exists()


def test_a_run_in_use_keeps_its_config(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    holder = (
        "import sys; from pathlib import Path; from metarl.runs.folder import RunFolder\n"
        "with RunFolder(Path(sys.argv[1])).lock(): print('held', flush=True); sys.stdin.read()"
    )
    config = (run / "config.json").read_bytes()
    with subprocess.Popen(
        [sys.executable, "-c", holder, str(run)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert f"in use by process {process.pid}" in _refused(f"train --resume {run} --num-iterations 9", capsys)
        process.communicate("")
    assert (run / "config.json").read_bytes() == config


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ("--hidden-sizes 8 8", r"hidden_sizes is \(4,\) .*got \(8, 8\)"),
        ("--inner-lr 9", r"inner_lr is 0\.1 .*got 9\.0"),
        ("--seed 2", "seed is 1 .*got 2"),
        ("--preset maml-trpo:navigation-2d", "--preset maml-trpo:navigation-2d is for new runs"),
        ("--num-iterations 0", r"TrainConfig\.num_iterations"),
        ("--checkpoint absent.safetensors", r"could not read the checkpoint .*absent\.safetensors"),
    ],
)
def test_a_resume_that_cannot_work_leaves_the_run_as_it_was(
    run: Path, options: str, named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and not path.name.startswith(".")}
    assert re.search(named, _refused(f"train --resume {run} {options}", capsys))
    assert before == {path: path.read_bytes() for path in before}
    assert _metarl(f"evaluate {run} --num-tasks 2") == 0


# Bad input ----------------------------------------------------------------------------------------------------------

_TRAIN = "train maml-trpo bandit"


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (
            "trian",
            r"unknown command 'trian'\. Did you mean 'train'\? "
            r"Valid choices: check, evaluate, export, fewshot, list, models, plot, render, reproduce, train",
        ),
        ("train maml-trop bandit", r"unknown agent 'maml-trop'\. Did you mean 'maml-trpo'\? Valid choices: .*rl2"),
        (
            "train rl2 bandits",
            r"unknown task distribution 'bandits'\. Did you mean 'bandit'\? Valid choices: .*cartpole",
        ),
        ("train rl2", r"train takes AGENT and TASKS, got only 'rl2'"),
        (f"{_TRAIN} --preset maml-trpo:navigation", r"Did you mean 'maml-trpo:navigation-2d'\?"),
        (f"{_TRAIN} --num-iteration 3", r"--num-iteration.*Perhaps you meant: --num-iterations"),
        (f"{_TRAIN} --inner-rl 3", r"--inner-rl.*Perhaps you meant: .*--inner-lr"),
        (f"{_TRAIN} --num-iterations many", r"--num-iterations.*'many'"),
        (f"{_TRAIN} --num-iterations 2.5", r"--num-iterations.*'2\.5'"),
        (f"{_TRAIN} --num-iterations", r"--num-iterations"),
        (f"{_TRAIN} --device tpu", r"'tpu'.*--device.*'auto', 'cpu', 'cuda'"),
        (f"{_TRAIN} --num-iterations -3", r"TrainConfig\.num_iterations must be a whole number above 0, got -3"),
        (f"{_TRAIN} --meta-batch-size 0", r"TrainConfig\.meta_batch_size must be a whole number above 0, got 0"),
        (f"{_TRAIN} --inner-lr -0.1", r"MAMLTRPOConfig\.inner_lr must be a finite number above 0, got -0\.1"),
        (f"{_TRAIN} --inner-lr nan", r"MAMLTRPOConfig\.inner_lr must be a finite number above 0, got nan"),
        (f"{_TRAIN} --discount 1.5", r"MAMLTRPOConfig\.discount must lie in \[0, 1\], got 1\.5"),
        (f"{_TRAIN} --hidden-sizes 8 0", r"MAMLTRPOConfig\.hidden_sizes must be a tuple of whole numbers above 0"),
        (f"{_TRAIN} --seed -1", r"TrainConfig\.seed must be a whole number of 0 or more and below 2\^63, got -1"),
        (f"{_TRAIN} --resume absent", r"--resume absent brings its own agent and tasks"),
        (f"{_TRAIN} --checkpoint x", r"--checkpoint x needs --resume RUN"),
        ("train --resume absent", r"absent does not exist"),
        ("train --resume .", r"is not a run folder \(it has no config\.json\)"),
        ("train rl2 bandit --reference", r"needs a MAML agent beside it, got 'rl2'"),
        ("train rl2 absent:x", r"cannot import the module 'absent' of 'absent:x'; expected module:attribute"),
        ("train rl2 absent.py:x", r"cannot import the module 'absent\.py' .* Leave out the '\.py': absent:x\."),
        ("train rl2 --resume absent", r"--resume absent brings its own agent and tasks; leave out 'rl2'"),
        ("check os.absent:x", r"cannot import the module 'os\.absent'"),
        ("check :x", r"'' of ':x' is not a module's name"),
        ("check ../mine:x", r"'\.\./mine' of .* is not a module's name"),
        ("check os:", r"expected a TaskDistribution, found nothing\. What os has of that kind: nothing"),
        ("check os:path", r"expected a TaskDistribution, found module"),
        ("check pendulm", r"Did you mean 'pendulum'\?"),
        ("evaluate absent", r"absent does not exist"),
        ("evaluate", r"Missing from metarl evaluate: .*PATH Run folder"),
        ("plot", r"plot needs at least one run folder"),
        ("plot absent", r"absent does not exist"),
        ("list agent", r"unknown kind of list 'agent'\. Did you mean 'agents'\? Valid choices: agents, .*tasks"),
        ("train maml", r"unknown agent 'maml'\. Did you mean 'maml-trpo'\?"),
    ],
)
def test_bad_input_is_named_and_leaves_no_run(words: str, named: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = _refused(words, capsys)
    assert re.search(named, text), text
    assert not Path("runs").exists()


def test_cuda_where_there_is_none_leaves_no_run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert "torch sees no CUDA device here" in _refused(f"{_TRAIN} --device cuda", capsys)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ("--num-tasks 0", "--num-tasks must be above 0"),
        ("--num-adaptations -1", "--num-adaptations 0 or more"),
        ("--rollouts-per-task 0", "--rollouts-per-task must be above 0, got 0"),
        ("--seed -1", r"--seed must be 0 or more and below 2\^63, got -1"),
        ("--tasks cartpole", r"the agent was built for tasks with obs_dim = 1, .*but cartpole has obs_dim = 4"),
        ("--tasks absent", "unknown task distribution 'absent'"),
        ("--checkpoint absent", r"could not read the checkpoint .*absent"),
        ("--best --checkpoint x", "--best and --checkpoint x name two checkpoints"),
    ],
)
def test_an_evaluation_that_cannot_work_says_why(
    run: Path, options: str, named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = _refused(f"evaluate {run} {options}", capsys)
    assert re.search(named, text), text


def test_an_empty_run_cannot_be_plotted_or_evaluated(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "metrics.jsonl").write_text("")
    assert "holds no iteration yet: nothing to plot" in _refused(f"plot {run}", capsys)
    for path in (run / "checkpoints").iterdir():
        path.unlink()
    assert "holds no checkpoint" in _refused(f"evaluate {run}", capsys)


@pytest.mark.parametrize("content", ["{}", "[]", '{"agent": "rl2"', '{"agent": "rl2", "tasks": "bandit", "train": {}}'])
def test_a_damaged_config_is_named(run: Path, content: str, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "config.json").write_text(content)
    for command in ("evaluate", "train --resume"):
        assert "config.json" in _refused(f"{command} {run}", capsys)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("[" * 5000, "nested too deeply"),
        ('{"agent": "rl2", "tasks": "bandit", "rl2": {}, "train": {"seed": NaN}}', "train.seed is nan"),
        ('{"agent": "rl2", "tasks": "bandit", "rl2": {}, "train": {"seed": 1e999}}', "train.seed is inf"),
        (f'{{"agent": "rl2", "tasks": "bandit", "rl2": {{}}, "train": {{"seed": {2**63}}}}}', "beyond 64 bits"),
        ('{"agent": ["rl2"], "tasks": "bandit", "train": {}}', "agent in .*config.json must be a name"),
        ('{"agent": "rl2", "tasks": "bandit", "rl2": [], "train": {}}', "rl2 in .* must be an object"),
    ],
)
def test_a_config_of_other_kinds_is_named(
    run: Path, content: str, named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "config.json").write_text(content)
    for command in (f"evaluate {run}", f"train --resume {run}", f"train --config {run}/config.json"):
        assert re.search(named, _refused(command, capsys)), command


def test_metrics_of_something_else_are_not_plotted(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for line, named in (
        ('{"iteration": 0}', "lacks 'train/return_0'"),
        ('{"iteration": 0, "train/return_0": 1}', "lacks 'env_steps'"),
        ('{"iteration": 0, "train/return_x": 1}', "lacks 'train/return_0'"),
    ):
        (run / "metrics.jsonl").write_text(line + "\n")
        assert named in _refused(f"plot {run}", capsys)


@pytest.mark.parametrize(
    "blocked", ["evaluation-bandit-2tasks-iteration2-seed5.json", "evaluation-bandit-2tasks-iteration2-seed5.png"]
)
def test_a_report_that_cannot_be_written_is_named(run: Path, blocked: str, capsys: pytest.CaptureFixture[str]) -> None:
    (run / blocked).mkdir()
    assert f"cannot write the {'scores' if blocked.endswith('json') else 'figure'}" in _refused(
        f"evaluate {run} --num-tasks 2 --seed 5", capsys
    )


def test_evaluations_of_other_sizes_stand_beside_each_other(run: Path) -> None:
    for words in (
        "--num-tasks 2",
        "--num-tasks 3",
        "--num-tasks 2 --rollouts-per-task 2",
        "--num-tasks 2 --num-adaptations 0",
    ):
        assert _metarl(f"evaluate {run} --seed 7 {words}") == 0
    assert len(list(run.glob("evaluation-*-seed7.json"))) == 4


def test_runs_where_a_file_is_in_the_way_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    Path("taken").write_text("")
    assert "cannot write runs into taken" in _refused(f"{_TRAIN} --runs taken", capsys)


# A user's own module ------------------------------------------------------------------------------------------------

_MODULE = """
import gymnasium as gym
from metarl.tasks import TaskDistribution

def make_env(task):
    return gym.make("Pendulum-v1", g=task["g"])

good = TaskDistribution(id="mine/good", sample=lambda rng: {"g": rng.uniform(5, 15)}, make_env=make_env)
leaky = TaskDistribution(
    id="mine/leaky", sample=lambda rng: {"g": 9.0}, sample_test=lambda rng: {"g": 9.0}, make_env=make_env
)
endless = TaskDistribution(
    id="mine/endless", sample=lambda rng: {"g": rng.uniform(5, 15)},
    make_env=lambda task: gym.make("Pendulum-v1", g=task["g"]).unwrapped,
)
"""


@pytest.fixture
def mine(request: pytest.FixtureRequest) -> str:
    """The name of a module in the current folder, new for every test, since modules stay imported."""
    name = re.sub(r"\W", "_", request.node.name)
    Path(f"{name}.py").write_text(_MODULE)
    return name


def test_a_good_distribution_passes_and_trains_under_a_harmless_name(
    mine: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _metarl(f"check {mine}:good") == 0
    printed = capsys.readouterr().out
    assert "mine/good: no fault found" in printed and "300 to train on, 300 to test on" in printed
    assert _metarl(["train", "rl2", f"{mine}:good", *_SMALL_RL2, "--episodes-per-trial", "1"]) == 0
    assert _metarl(f"evaluate runs/rl2-{mine}-good-seed1 --num-tasks 2") == 0


def test_a_broken_distribution_is_refused(mine: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "mine/leaky has 1 problem" in _refused(f"check {mine}:leaky", capsys)
    assert "mine/endless" in _refused(f"check {mine}:endless", capsys)
    assert "mine/endless" in _refused(f"train rl2 {mine}:endless", capsys)
    text = _refused(f"check {mine}:god", capsys)
    assert f"What {mine} has of that kind: good, leaky, endless" in text


@pytest.mark.parametrize(("line", "named"), [("1 / 0", "ZeroDivisionError"), ("import absent_module", "absent_module")])
def test_a_module_that_fails_is_quoted_with_its_line(
    mine: str, line: str, named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(f"{mine}.py").write_text(f"\n\n{line}\n")
    text = _refused(f"train rl2 {mine}:good", capsys)
    assert named in text and re.search(rf"{mine}\.py, line 3", text)


def test_a_module_with_a_syntax_error_is_quoted(mine: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path(f"{mine}.py").write_text("def :\n")
    assert re.search(rf"SyntaxError: .*{mine}\.py, line 1", _refused(f"check {mine}:good", capsys))


def test_the_installed_command_prints_no_traceback() -> None:
    process = _start(["train", "rl2", "bandits"])
    _, errors = process.communicate(timeout=120.0)
    assert process.returncode == 2
    assert errors.startswith("error: unknown task distribution 'bandits'. Did you mean 'bandit'?")


def test_fewer_iterations_than_done_are_refused_before_the_config_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    small = "--meta-batch-size 2 --eval-tasks 2 --hidden-size 4 --num-epochs 1"
    assert cli.main(f"train rl2 bandit --num-iterations 2 {small}".split()) == 0
    config = Path("runs/rl2-bandit-seed1/config.json").read_text()
    for wrong, said in (("1", "has done 2 iterations already"), ("3 --checkpoint nowhere", "nowhere")):
        assert cli.main(f"train --resume runs/rl2-bandit-seed1 --num-iterations {wrong}".split()) == 2
        assert said in "".join(capsys.readouterr())
        assert Path("runs/rl2-bandit-seed1/config.json").read_text() == config


def test_diverged_simulations_are_told_in_training_and_in_evaluation(capsys: pytest.CaptureFixture[str]) -> None:
    Path("countdowns.py").write_text(
        "import dataclasses\n"
        "from helpers.countdown import countdown, sample\n"
        "diverging = dataclasses.replace(\n"
        "    countdown(), sample=lambda rng: sample(rng) | {'length': 8.0, 'diverges_at': 2.0})\n"
    )
    assert _metarl(["train", "rl2", "countdowns:diverging", *_SMALL_RL2, "--seed", "1"]) == 0
    printed = capsys.readouterr().out
    assert "in 12 episode(s) of meta-training the simulation diverged" in printed
    assert "in 15 episode(s) of this table the simulation diverged" in printed
    (path,) = Path("runs").glob("*/adaptation.json")
    scores = json.loads(path.read_text())
    assert [row["invalid_episodes"] for row in scores["rows"]] == [6, 6, 3]
