"""Few-shot experiments: from names to a run folder, exact resume, and the commands."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from metarl.cli import main
from metarl.config import TrainConfig
from metarl.errors import CheckpointError, ConfigError
from metarl.fewshot.evaluation import evaluate
from metarl.fewshot.experiment import Experiment
from metarl.fewshot.learners.maml import MAMLConfig
from metarl.fewshot.presets import PRESETS
from metarl.fewshot.setup import Given, Setup, resolve
from metarl.fewshot.tasks.registry import DESCRIPTIONS, FEWSHOT_FOLDERS, FEWSHOT_TASKS
from metarl.fewshot.types import EpisodeConfig

TRAIN: dict[str, Any] = {"num_iterations": 4, "meta_batch_size": 3, "eval_every": 2, "eval_tasks": 4, "device": "cpu"}
SMALL: dict[str, Any] = {"hidden_sizes": (8,), "num_eval_steps": 2}


def _setup(learner: str = "maml", **train: Any) -> Setup:
    settings = SMALL if learner in ("maml", "fomaml", "reptile") else {}
    return resolve(Given(learner, "sinusoid"), train={**TRAIN, **train}, settings=settings)


def _bits(experiment: Experiment) -> dict[str, Any]:
    learner, iteration = experiment.load()
    return {name: value.numpy().tobytes() for name, value in learner.named_tensors().items()} | {"at": iteration}


@pytest.mark.parametrize("learner", ["maml", "reptile", "snail", "pretrained"])
def test_a_run_that_was_stopped_and_resumed_ends_with_the_same_bits(learner: str, tmp_path: Path) -> None:
    whole = Experiment.start(_setup(learner), tmp_path, "whole")
    assert whole.train()
    parts = Experiment.start(_setup(learner, num_iterations=2), tmp_path, "parts")
    assert parts.train()
    again = Experiment.open(parts.run.path)
    longer = dataclasses.replace(again.setup.train_config, num_iterations=4)
    again = again.reconfigured(longer, again.setup.learner_config)
    assert again.train()
    assert _bits(again) == _bits(whole)
    logs = [
        [
            {name: value for name, value in json.loads(line).items() if not name.startswith(("seconds", "wall"))}
            for line in (run.run.path / "metrics.jsonl").read_text().splitlines()
        ]
        for run in (whole, again)
    ]
    assert len(logs[0]) == 4
    assert logs[0] == logs[1]
    assert "validation/error_0" in logs[0][1]


def test_the_best_checkpoint_is_chosen_by_the_same_tasks_all_along(tmp_path: Path) -> None:
    this = Experiment.start(_setup(), tmp_path)
    assert this.train()
    other = dataclasses.replace(this.setup.train_config, eval_tasks=2)
    with pytest.raises(ConfigError, match=r"keeps its seed, .*: eval_tasks is 4 in .*, got 2"):
        this.reconfigured(other, this.setup.learner_config)


def test_settings_that_a_later_version_has_added_are_told_and_have_defaults(tmp_path: Path) -> None:
    this = Experiment.start(_setup("pretrained"), tmp_path)
    assert this.train()
    content = this.run.read_config()
    del content["pretrained"]["train_queries"]
    this.run.write_config(content)
    with pytest.warns(UserWarning, match=r"lacks settings of pretrained; taken are the defaults, train_queries = 0"):
        again = Experiment.open(this.run.path)
    again.load()
    del content["train"]["eval_every"]
    this.run.write_config(content)
    with pytest.raises(ConfigError, match=r"train in .* lacks eval_every; put back"):
        Experiment.open(this.run.path)


def test_other_seeds_tasks_and_settings_are_other_runs(tmp_path: Path) -> None:
    this = Experiment.start(_setup(), tmp_path)
    this.train()
    newest = this.run.checkpoints.path(4)
    for changed in (
        _setup(seed=2),
        _setup("fomaml"),
        dataclasses.replace(this.setup, task_name="sinusoid-and-line"),
        dataclasses.replace(this.setup, episode=EpisodeConfig(1, 5, 10)),
        dataclasses.replace(this.setup, learner_config=dataclasses.replace(this.setup.learner_config, inner_lr=0.5)),
    ):
        other = Experiment(changed, this.run)
        with pytest.raises(CheckpointError, match=r"is of another run: .* there and .* here"):
            other.load(newest)
    with pytest.raises(ConfigError, match=r"meta_batch_size is 3 in .*, got 9"):
        this.reconfigured(dataclasses.replace(this.setup.train_config, meta_batch_size=9), this.setup.learner_config)


def test_an_evaluation_is_a_function_of_its_seed_and_changes_nothing(tmp_path: Path) -> None:
    setup = _setup()
    learner = setup.build()
    before = {name: value.clone() for name, value in learner.named_tensors().items()}
    first, second, third = (
        evaluate(learner, setup.tasks, setup.episode, num_tasks=30, seed=seed).scores for seed in (1, 1, 2)
    )
    assert first.shape == (30, 3)
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, third)
    # Tasks come in batches: the first 25 of more tasks are those of fewer.
    np.testing.assert_array_equal(
        first[:25], evaluate(learner, setup.tasks, setup.episode, num_tasks=25, seed=1).scores
    )
    assert all(torch.equal(before[name], value) for name, value in learner.named_tensors().items())
    for message, change in (
        ("must be 1, got 5", {"episode": EpisodeConfig(5, 1, 1)}),
        ("needs two of them at least, got num_tasks = 1", {"num_tasks": 1}),
    ):
        with pytest.raises(ConfigError, match=message):
            evaluate(learner, setup.tasks, **{"episode": setup.episode, "num_tasks": 4, "seed": 0, **change})


def test_what_comes_later_wins_in_settings(tmp_path: Path) -> None:
    assert resolve(Given("maml", "sinusoid")).train_config.num_iterations == 70_000
    assert resolve(Given("maml", "sinusoid")).episode == EpisodeConfig(1, 10, 10)
    file = tmp_path / "mine.yaml"
    file.write_text(
        "learner: maml\ntasks: sinusoid\nepisode: {shots: 5}\ntrain: {num_iterations: 7}\nmaml: {inner_lr: 1e-3}\n"
    )
    setup = resolve(Given(file=file, queries=3), train={"seed": 5}, settings={"num_inner_steps": 2})
    assert setup.episode == EpisodeConfig(1, 5, 3)
    assert (setup.train_config.num_iterations, setup.train_config.seed) == (7, 5)
    assert isinstance(setup.learner_config, MAMLConfig)
    assert (setup.learner_config.inner_lr, setup.learner_config.num_inner_steps) == (1e-3, 2)
    for text, message in (
        ("learner: maml\ntasks: sinusoid\nspeed: 3", "unknown key in .* 'speed'"),
        ("learner: maml\ntasks: sinusoid\nmaml: {inner_rate: 3}", "unknown field of MAMLConfig 'inner_rate'.*inner_lr"),
        ("learner: maml\ntasks: sinusoid\nepisode: {ways: none}", "EpisodeConfig.ways must be of the type int"),
        ("learner: maml", "tasks missing"),
        ("tasks: 3", "tasks in .* must be a name, got 3"),
    ):
        file.write_text(text)
        with pytest.raises(ConfigError, match=message):
            resolve(Given(file=file))


def test_names_that_are_none_are_told_with_the_nearest() -> None:
    for given, message in (
        (Given("mamll", "sinusoid"), "unknown learner 'mamll'. Did you mean 'maml'"),
        (Given("maml", "sinusoids"), "Did you mean 'sinusoid'"),
        (Given("maml", "sinusoid", preset="maml:sin"), "unknown preset 'maml:sin'"),
        (Given("maml", "sinusoid", data="here"), "read no data, got the folder here"),
        (Given("maml", "omniglot"), "images_background"),
    ):
        with pytest.raises(ConfigError, match=message):
            resolve(given)


def test_presets_fit_their_learners_and_every_family_has_a_description() -> None:
    assert set(DESCRIPTIONS) == {*FEWSHOT_TASKS, *FEWSHOT_FOLDERS}
    from metarl.config import from_dict
    from metarl.fewshot.learners import LEARNERS

    for name, preset in PRESETS.items():
        learner, tasks = name.split(":")[:2]
        assert tasks in DESCRIPTIONS
        from_dict(TrainConfig, preset.train)
        from_dict(LEARNERS[learner], preset.learner)


def test_a_run_cannot_bring_the_code_that_it_is_opened_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    this = Experiment.start(_setup(), tmp_path)
    this.train()
    monkeypatch.chdir(tmp_path)
    config = this.run.read_config()
    (tmp_path / "payload_of_a_run.py").write_text("raise SystemExit('executed')")
    for key in ("tasks", "learner", "backbone"):
        changed = json.loads(json.dumps(config))
        if key == "backbone":
            changed["maml"]["backbone"] = "payload_of_a_run:net"
        else:
            changed[key] = "payload_of_a_run:thing"
            changed["payload_of_a_run:thing"] = changed["maml"]
        this.run.write_config(changed)
        with pytest.raises(ConfigError, match="runs its code"):
            Experiment.open(this.run.path)
    for key in ("learner", "tasks", "train"):
        this.run.write_config({name: value for name, value in config.items() if name != key})
        with pytest.raises(ConfigError, match=key):
            Experiment.open(this.run.path)


# Commands ------------------------------------------------------------------------------------------------------------


def _train_words(*names: str) -> list[str]:
    flags = [
        "--num-iterations",
        "3",
        "--meta-batch-size",
        "2",
        "--eval-every",
        "3",
        "--eval-tasks",
        "4",
        "--test-tasks",
        "6",
        "--device",
        "cpu",
    ]
    return ["fewshot", "train", *names, *flags]


@pytest.fixture(scope="module")
def drawings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of nine classes of drawings: bars at nine angles, 12 of each."""
    folder = tmp_path_factory.mktemp("drawings")
    rng = np.random.default_rng(0)
    for angle in range(9):
        own = folder / f"angle{angle}"
        own.mkdir()
        for number in range(12):
            pixels = rng.integers(0, 40, (16, 16)).astype(np.uint8)
            for step in np.linspace(-7, 7, 60):
                direction = np.pi * angle / 9
                row, column = 7.5 + step * np.sin(direction), 7.5 + step * np.cos(direction)
                pixels[int(np.clip(round(row), 0, 15)), int(np.clip(round(column), 0, 15))] = 255
            Image.fromarray(pixels).save(own / f"{number:02}.png")
    return folder


def test_train_evaluate_resume_and_plot(
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))  # The runs of this folder are offered, too.
    words = [*_train_words("maml", "sinusoid"), "--runs", str(tmp_path), "--hidden-sizes", "8"]
    assert main(words) == 0
    printed = capsys.readouterr().out
    run = tmp_path / "maml-sinusoid-1way-10shot-seed1"
    assert "Mean squared error on 6 test tasks" in printed
    scores = json.loads((run / "adaptation.json").read_text())
    assert [row["label"] for row in scores["rows"]] == ["maml", "maml, untrained"]
    assert np.shape(scores["rows"][0]["scores"]) == (6, 6)
    assert scores["rows"][0]["steps"] == [0, 1, 2, 3, 5, 10]
    assert (run / "adaptation.png").is_file()
    assert main(["fewshot", "train", "--resume", str(run), "--num-iterations", "5", "--test-tasks", "4"]) == 0
    assert main(["fewshot", "evaluate", str(run), "--num-tasks", "4", "--shots", "5", "--num-adaptations", "1"]) == 0
    (found,) = run.glob("evaluation-test-1way-5shot-10query-4tasks-1steps-iteration5-seed*.json")
    assert np.shape(json.loads(found.read_text())["rows"][0]["scores"]) == (4, 2)
    kept = found.read_bytes()
    for other in (["--num-tasks", "5"], ["--queries", "3"], ["--num-adaptations", "2"]):
        words = ["--num-tasks", "4", "--shots", "5", "--num-adaptations", "1", *other]  # The last one counts.
        assert main(["fewshot", "evaluate", str(run), *words]) == 0
    assert len(list(run.glob("evaluation-*.json"))) == len(list(run.glob("evaluation-*.png"))) == 4
    assert found.read_bytes() == kept
    assert main(["plot", str(run)]) == 0
    assert (run / "learning.png").is_file()
    capsys.readouterr()
    for bad, message in (
        (["fewshot", "train", "maml", "--resume", str(run)], "leave out 'maml'"),
        (["fewshot", "train", "--resume", str(run), "--shots", "3"], "--shots 3 is for new runs"),
        (["fewshot", "train", "--resume", str(run), "--inner-lr", "3"], "inner_lr is 0.001"),
        (["fewshot", "train", "--resume", str(run), "--num-iterations", "2"], "has done 5 iterations already"),
        (["fewshot", "train", "maml"], "LEARNER and TASKS, got only 'maml'"),
        (["fewshot", "train", "maml", "sinusoid", "--seed", "2000003"], "2000003 is that of test tasks"),
        (["fewshot", "compare", "sinusoid", "--seeds", "1", "2000003"], "2000003 is that of test tasks"),
        (["fewshot", "train", "mamll"], "unknown learner 'mamll'. Did you mean 'maml'"),
        (["fewshot", "train", "protonet", "sinusoid"], "protonet classifies"),
        (["fewshot", "train", "maml", "sinusoid", "--ways", "5"], "ways must be 1, got 5"),
        (["fewshot", "trian"], "Did you mean 'train'"),
        (["fewshot", "evaluate", str(run), "--num-tasks", "1"], "--num-tasks must be 2 or more, got 1"),
        (["fewshot", "evaluate", str(tmp_path)], f"is not a run folder (it has no config.json). Runs nearby: {run}."),
        (["fewshot", "evaluate", str(run), "--learner", "anil"], "the run's learner is 'maml', got --learner 'anil'"),
        (
            ["fewshot", "train", "anil", "sinusoid", "--config", str(run / "config.json")],
            "holds the settings of maml, and the learner that is asked for is anil. Leave out",
        ),
        (["evaluate", str(run)], "metarl fewshot has the commands for it"),
    ):
        assert main(bad) == 2, bad
        error = " ".join(capsys.readouterr().err.split())
        assert message in error, (bad, error)


def test_print_config_gives_a_file_that_trains_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = _train_words("maml", "sinusoid")
    assert main([*words, "--inner-lr", "0.02", "--shots", "5", "--print-config"]) == 0
    file = tmp_path / "mine.json"
    file.write_text(capsys.readouterr().out)
    assert main(["fewshot", "train", "--config", str(file), "--print-config"]) == 0
    assert capsys.readouterr().out == file.read_text()


def test_a_users_images_are_told_apart(drawings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = tmp_path / "runs"
    flags = f"--data {drawings} --ways 2 --shots 1 --queries 4 --num-filters 8 --runs {runs}".split()
    assert main([*_train_words("protonet", "folder"), *flags, "--num-iterations", "40", "--train-ways", "0"]) == 0
    (run,) = runs.iterdir()
    support = tmp_path / "support"
    for name in ("angle0", "angle4", "angle7"):  # Three classes, though it was trained for two; unequal shots.
        shutil.copytree(drawings / name, support / name)
        for extra in sorted((support / name).iterdir())[2 if name == "angle0" else 3 :]:
            extra.unlink()
    images = [str(drawings / name / "11.png") for name in ("angle4", "angle0", "angle7")]
    capsys.readouterr()
    assert main(["fewshot", "predict", str(run), str(support), *images]) == 0
    printed = capsys.readouterr().out
    assert "8 labelled images of 3 classes" in " ".join(printed.split())
    assert re.findall(r"\b(angle\d) +│ +[01]\.", printed) == ["angle4", "angle0", "angle7"]
    assert main(["fewshot", "evaluate", str(run), "--ways", "3", "--split", "train", "--num-tasks", "4"]) == 0
    for bad, message in (
        ([str(support)], "at least one image"),
        ([str(tmp_path / "none"), images[0]], "there is no folder"),
        ([str(support / "angle0"), images[0]], "at least two, got 0"),
        ([str(support), str(tmp_path / "none.png")], "there is no image"),
        ([str(support), str(support)], f"there is no image {support}, which is a folder: name the images in it"),
    ):
        assert main(["fewshot", "predict", str(run), *bad]) == 2
        assert message in " ".join(capsys.readouterr().err.split())
    (support / "empty").mkdir()
    assert main(["fewshot", "predict", str(run), str(support), images[0]]) == 2
    assert "'empty' holds no image" in " ".join(capsys.readouterr().err.split())


def test_images_that_are_not_like_those_of_training_are_told_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Letters, dark on light as in training; then light on dark, blank and stretched."""
    flags = f"--runs {tmp_path / 'runs'} --num-filters 4 --train-ways 0"
    assert main([*_train_words("protonet", "glyphs"), *flags.split()]) == 0
    (run,) = (tmp_path / "runs").iterdir()
    for name in ("wide", "tall"):
        (tmp_path / "support" / name).mkdir(parents=True)
        picture = Image.new("L", (56, 56), 255)
        picture.paste(0, (20, 4, 36, 52) if name == "tall" else (4, 20, 52, 36))
        picture.save(tmp_path / "support" / name / "one.png")
    plain = tmp_path / "plain.png"
    picture.save(plain)
    light = tmp_path / "light.png"
    Image.eval(picture, lambda value: 255 - value).save(light)
    Image.new("L", (56, 56), 255).save(tmp_path / "blank.png")
    picture.resize((112, 56)).save(tmp_path / "stretched.png")
    words = ["fewshot", "predict", str(run), str(tmp_path / "support")]
    capsys.readouterr()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert main([*words, str(plain)]) == 0
    for name, told in (("light", r"light on dark.*--invert"), ("blank", "of one colour"), ("stretched", "proportions")):
        with pytest.warns(UserWarning, match=rf"1 of 2 images of what is to be predicted are .*{told}.*{name}\.png"):
            assert main([*words, str(plain), str(tmp_path / f"{name}.png")]) == 0
    capsys.readouterr()
    Image.eval(Image.open(tmp_path / "support" / "wide" / "one.png"), lambda value: 255 - value).save(
        tmp_path / "support" / "wide" / "one.png"
    )
    with pytest.warns(UserWarning, match="the support set"):
        assert main([*words, str(plain)]) == 0
    turned = tmp_path / "turned"
    shutil.copytree(tmp_path / "support", turned)
    Image.eval(Image.open(turned / "tall" / "one.png"), lambda value: 255 - value).save(turned / "tall" / "one.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert main(["fewshot", "predict", str(run), str(turned), str(light), "--invert"]) == 0


def test_a_network_that_normalises_by_the_batch_tells_single_images_apart(
    drawings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = f"--data {drawings} --ways 2 --shots 2 --queries 2 --num-filters 8 --downsample stride --runs {tmp_path}"
    steps = "--inner-lr 0.4 --num-inner-steps 1 --num-eval-steps 3 --meta-lr 0.003 --num-iterations 60"
    assert main([*_train_words("fomaml", "folder"), *flags.split(), *steps.split(), "--meta-batch-size", "4"]) == 0
    (run,) = (path for path in tmp_path.iterdir() if (path / "config.json").is_file())
    support = tmp_path / "support"
    asked = []
    for name in ("angle0", "angle4"):
        (support / name).mkdir(parents=True)
        for number in range(2):
            shutil.copy(drawings / name / f"{number:02}.png", support / name)
        asked += [drawings / name / f"{number:02}.png" for number in range(4, 10)]
    capsys.readouterr()
    assert main(["fewshot", "predict", str(run), str(support), *map(str, asked)]) == 0
    named = re.findall(r"\b(angle\d) +│ +[01]\.", capsys.readouterr().out)
    assert len(named) == 12
    assert sum(name == path.parent.name for name, path in zip(named, asked, strict=True)) >= 10


def test_a_learner_with_an_output_for_each_class_says_so(
    drawings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = f"--data {drawings} --ways 2 --queries 2 --num-filters 4 --downsample stride --runs {tmp_path}".split()
    assert main([*_train_words("maml", "folder"), *flags]) == 0
    (run,) = tmp_path.iterdir()
    assert main(["fewshot", "predict", str(run), str(drawings), str(drawings / "angle0" / "00.png")]) == 2
    assert "was trained for 2 classes and 2 labelled examples" in " ".join(capsys.readouterr().err.split())


def test_compare_shows_all_in_one_table_and_goes_on_where_it_stopped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["fewshot", "compare", "sinusoid", "--learners", "maml", "random", "--seeds", "1", "2"]
    flags = ["--num-iterations", "2", "--test-tasks", "5", "--runs", str(tmp_path)]
    assert main([*words, *flags]) == 0
    printed = capsys.readouterr().out
    assert "not adapted" in printed
    folder = tmp_path / "compare-sinusoid-1way-10shot"
    content = json.loads((folder / "comparison.json").read_text())
    assert set(content["learners"]) == {"maml", "random"}
    assert len(content["learners"]["maml"]["by_seed"]) == 2
    assert (folder / "comparison.png").is_file()
    before = (folder / "maml-seed1" / "metrics.jsonl").read_bytes()
    assert main([*words, *flags]) == 0
    assert (folder / "maml-seed1" / "metrics.jsonl").read_bytes() == before
    assert json.loads((folder / "comparison.json").read_text()) == content
    assert main(["fewshot", "compare", "sinusoid", "--learners", "protonet", *flags]) == 2
    assert main(["fewshot", "compare", "sinusoid", "--learners", "mamls", *flags]) == 2
    assert "unknown learner 'mamls'" in capsys.readouterr().err


def test_compare_does_not_show_the_scores_of_other_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two folders of classes of the same names and sizes."""
    for name in ("one", "other"):
        rng = np.random.default_rng(len(name))
        for number in range(12):
            folder = tmp_path / name / f"class{number}"
            folder.mkdir(parents=True)
            for example in range(4):
                Image.fromarray(rng.integers(0, 255, (16, 16)).astype(np.uint8)).save(folder / f"{example}.png")
    sizes = ["--ways", "2", "--queries", "2", "--num-iterations", "1", "--test-tasks", "5"]
    words = ["fewshot", "compare", "folder", "--learners", "random", *sizes, "--runs", str(tmp_path / "runs")]
    assert main([*words, "--data", str(tmp_path / "one")]) == 0
    assert "over tasks, of seed 1" in " ".join(capsys.readouterr().out.split())
    (run,) = (tmp_path / "runs").iterdir()
    config = (run / "random-seed1" / "config.json").read_bytes()
    assert main([*words, "--data", str(tmp_path / "other")]) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert "was trained on other data than what folder has now" in error and "take another folder" in error
    assert (run / "random-seed1" / "config.json").read_bytes() == config
    assert main([*words, "--data", str(tmp_path / "one")]) == 0


def test_list_names_all_learners_and_tasks(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fewshot", "list"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("maml", "learned-optimiser", "glyphs", "miniimagenet"))
    assert main(["fewshot"]) == 2
    assert main(["fewshot", "--help"]) == 0
