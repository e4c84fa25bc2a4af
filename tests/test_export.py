"""Exported agents do what they do in metarl, in a process that has none."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from subprocess import PIPE
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from helpers.command_line import metarl as command
from helpers.rooms import Room, rooms
from torch import Tensor, nn

import metarl
from metarl.agent import Agent, AgentConfig
from metarl.agents import AGENTS, MAMLTRPOConfig, RL2Config
from metarl.config import TrainConfig
from metarl.deployment.export import export_step
from metarl.deployment.learner import OnlineLearner
from metarl.errors import CheckpointError, ConfigError
from metarl.experiments import Experiment, Setup
from metarl.rollouts.collector import exploration_seed
from metarl.runs.folder import RunFolder
from metarl.types import Action, Rollout, Spec, Timestep, Trial

CPU = torch.device("cpu")
SMALL = {"hidden_sizes": (8,), "rollouts_per_task": 3, "hidden_size": 8}

_PLAYER = """
import json, sys
kind = sys.argv[1]
sys.modules["metarl"] = None  # It cannot be imported.
if kind == ".onnx":
    sys.modules["torch"] = None
    import onnxruntime
else:
    import torch
import numpy as np
for line in sys.stdin:
    file, steps = json.loads(line)
    if kind == ".onnx":
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        shapes = {value.name: value.shape for value in session.get_inputs()}
        notes = json.loads(session.get_modelmeta().custom_metadata_map["metarl"])
        names = [value.name for value in session.get_outputs()]
        def run(inputs):
            return dict(zip(names, session.run(names, inputs)))
    else:
        extra = {"metarl.json": ""}
        module = torch.export.load(file, extra_files=extra).module()
        notes = json.loads(extra["metarl.json"])
        shapes = notes["inputs"]
        def run(inputs):
            found = module(**{name: torch.as_tensor(value) for name, value in inputs.items()})
            return {name: value.numpy() for name, value in found.items()}
    inputs = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    actions = []
    for step in steps:
        inputs |= {name: np.asarray(value, np.float32) for name, value in step.items() if name in inputs}
        outputs = run(inputs)
        actions.append(outputs["action"].tolist())
        if "memory" in inputs:
            inputs |= {"memory": outputs["next_memory"], "prev_action": outputs["shown_action"]}
    print(json.dumps({"actions": actions, "notes": notes}), flush=True)
"""
_PLAYERS: dict[str, subprocess.Popen[str]] = {}


@pytest.fixture(autouse=True, scope="module")
def end_the_players() -> Iterator[None]:
    """A process for each kind of file plays them all: to load torch takes it longer than to play."""
    yield
    while _PLAYERS:
        _PLAYERS.popitem()[1].communicate()


def _config(name: str, **settings: Any) -> AgentConfig:
    fields = {field.name for field in dataclasses.fields(AGENTS[name])}
    return AGENTS[name](**{key: value for key, value in (SMALL | settings).items() if key in fields})


def _elsewhere(file: Path, steps: list[dict[str, Any]]) -> dict[str, Any]:
    """Actions in a process without metarl, and without torch for ONNX."""
    kind = file.suffix
    if kind not in _PLAYERS:
        command_line = [sys.executable, "-c", _PLAYER, kind]
        # Not from the checkout, whose folders could stand in for packages.
        _PLAYERS[kind] = subprocess.Popen(command_line, stdin=PIPE, stdout=PIPE, text=True, cwd=file.parent)
    player = _PLAYERS[kind]
    assert player.stdin is not None and player.stdout is not None
    print(json.dumps([str(file), steps]), file=player.stdin, flush=True)
    answer = player.stdout.readline()
    assert answer, f"the player ended with status {_PLAYERS.pop(kind).wait()}; its error is in what was captured"
    found: dict[str, Any] = json.loads(answer)
    return found


def _play(learner: OnlineLearner[Any], env: Room, num: int, sample: bool) -> tuple[list[dict[str, Any]], list[Any]]:
    """What a deployed agent is told in some episodes, and the learner's actions in them."""
    steps, actions = [], []
    reward = 0.0
    for episode in range(num):
        obs, _ = env.reset(seed=episode)
        learner.reset()
        over, first = False, True
        while not over:
            flat = gym.spaces.flatten(env.observation_space, obs)
            done = float(first and episode > 0)
            steps.append({"obs": flat.tolist(), "prev_reward": reward, "prev_done": done})
            action = learner.act(obs, deterministic=not sample)
            actions.append(np.asarray(action, np.float64).reshape(-1).tolist())
            obs, reward, terminated, truncated, _ = env.step(action)
            over = learner.observe(reward, terminated, truncated, obs)
            first = False
    return steps, actions


@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
@pytest.mark.parametrize("discrete", [True, False])
@pytest.mark.parametrize(
    ("name", "settings"),
    [("maml-trpo", {}), ("rl2", {}), ("rl2", {"recall_best": True}), ("snail", {}), ("varibad", {})],
)
def test_a_file_acts_as_the_agent_does(
    name: str, settings: dict[str, Any], discrete: bool, suffix: str, tmp_path: Path
) -> None:
    agent, env = _config(name, **settings).build(rooms(discrete).spec, CPU, 3), Room(6.0, discrete)
    learner = OnlineLearner(agent, env, seed=1)
    memory = _config(name).adapts_by == "episode"
    file = tmp_path / f"agent{suffix}"
    if not memory:
        learner.play(agent.rollouts_per_task, seed=5)
        before = [value.clone() for value in learner.state.params.values()]
    learner.export(file)
    if not memory:
        assert learner.num_adaptations == 1
        assert any(not torch.equal(a, b) for a, b in zip(before, learner.state.params.values(), strict=True))
    steps, expected = _play(learner, env, 2, sample=False)
    found = _elsewhere(file, steps)
    actions = [np.asarray(action, np.float64).reshape(-1) for action in found["actions"]]
    np.testing.assert_allclose(actions, expected, rtol=1e-5, atol=1e-5)
    assert found["notes"]["actions"] == "mode" and found["notes"]["metarl"]
    assert set(found["notes"]["inputs"]) == (
        {"obs", "prev_action", "prev_reward", "prev_done", "memory"} if memory else {"obs"}
    )


@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
@pytest.mark.parametrize(("discrete", "kind"), [(True, "uniform"), (False, "normal")])
@pytest.mark.parametrize("name", ["maml-trpo", "rl2"])
def test_a_sampling_file_samples_as_the_agent_does(
    name: str, discrete: bool, kind: str, suffix: str, tmp_path: Path
) -> None:
    agent, env = _config(name, rollouts_per_task=1).build(rooms(discrete).spec, CPU, 3), Room(6.0, discrete)
    file = tmp_path / f"agent{suffix}"
    learner = OnlineLearner(agent, env, seed=4, num_adaptations=0 if name == "maml-trpo" else None)
    learner.export(file, sample=True)
    steps, expected = _play(learner, env, 1, sample=True)
    agent.noise.seed(exploration_seed(4, 0))
    for step in steps:
        step["noise"] = getattr(agent.noise, kind)((1, 1, agent.spec.action_dim)).flatten().tolist()
    found = _elsewhere(file, steps)
    assert found["notes"]["noise"] == kind and found["notes"]["actions"] == "sampled"
    actions = [np.asarray(action, np.float64).reshape(-1) for action in found["actions"]]
    np.testing.assert_allclose(actions, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", sorted(AGENTS))
def test_every_agent_can_be_exported(name: str, tmp_path: Path) -> None:
    distribution = rooms(False)
    agent = _config(name).build(distribution.spec, CPU, 3)
    export_step(agent, agent.begin(1), distribution.spaces[1], tmp_path / "agent.pt2", sample=True)
    assert (tmp_path / "agent.pt2").stat().st_size > 1000


def test_exporting_leaves_the_agent_as_it_is(tmp_path: Path) -> None:
    agent, env = _config("rl2").build(rooms(False).spec, CPU, 3), Room(6.0, False)
    noise, before = agent.noise, {name: value.clone() for name, value in agent.named_tensors().items()}
    expected = OnlineLearner(agent, env, seed=2).play(2, seed=0)
    OnlineLearner(agent, env).export(tmp_path / "agent.pt2")
    assert agent.noise is noise and all(value.requires_grad for value in agent.components()["memory"].parameters())
    assert all(torch.equal(before[name], value) for name, value in agent.named_tensors().items())
    assert OnlineLearner(agent, env, seed=2).play(2, seed=0) == expected


# Refusals ------------------------------------------------------------------------------------------------------------


class _Odd(Agent[Any]):
    """Its state is what it is given."""

    def __init__(self, states: list[Any]) -> None:
        super().__init__(Spec(5, 3, True, 6), CPU, num_adaptations=0, rollouts_per_task=1)
        self.states = states

    def components(self) -> Mapping[str, nn.Module]:
        return {}

    def begin(self, num_tasks: int) -> Any:
        return self.states[0]

    def act(self, state: Any, timestep: Timestep, deterministic: bool = False) -> tuple[Action, Any]:
        value = timestep.obs.sum(-1)
        if not deterministic:
            value = value + self.noise.uniform((1, 1)) + self.noise.normal((1, 1))
        if isinstance(state, Tensor) and float(value.sum()) > 1e9:
            value = value - 1.0
        return Action(value.long() % 3, value), self.states[1]

    def adapt(self, state: Any, rollout: Rollout) -> Any:
        return state

    def meta_update(self, trial: Trial) -> dict[str, float]:
        return {}


class _Guessing(_Odd):
    """Draws whole numbers, as the agent of docs/agents.md does."""

    def act(self, state: Any, timestep: Timestep, deterministic: bool = False) -> tuple[Action, Any]:
        guess = self.noise.integers(3, (1, 1))
        return Action(guess, torch.zeros(1, 1)), state


def test_an_agent_that_draws_whole_numbers_is_exported(tmp_path: Path) -> None:
    file = tmp_path / "guess.pt2"
    export_step(_Guessing([None]), None, gym.spaces.Discrete(3), file, sample=True)
    found = _elsewhere(file, [{"obs": [0.0] * 5, "noise": [number]} for number in (0.1, 0.5, 0.9)])
    assert found["actions"] == [0, 1, 2] and found["notes"]["noise"] == "uniform"


def test_what_cannot_be_exported_is_refused_with_a_sentence(tmp_path: Path) -> None:
    space, path = gym.spaces.Discrete(3), tmp_path / "agent.pt2"
    state = torch.zeros(1, 1, 2)
    with pytest.raises(ConfigError, match=r"_Odd cannot be exported: its state .* got dict and then dict"):
        export_step(_Odd([{}, {}]), {}, space, path)
    with pytest.raises(ConfigError, match=r"draws once in a step, not twice"):
        export_step(_Odd([None, None]), None, space, path, sample=True)
    with pytest.raises(ConfigError, match=r"(?s)torch.export cannot export this agent's step.*Traceback"):
        export_step(_Odd([state, state + 1]), state, space, path)
    agent = _config("rl2").build(rooms(True).spec, CPU, 0)
    for name, message in (
        ("agent.ts", r"agent.ts: a policy is exported to .pt2 or .onnx, got '.ts'"),
        ("nowhere/agent.pt2", "there is no folder .*nowhere"),
    ):
        with pytest.raises(ConfigError, match=message):
            export_step(agent, agent.begin(1), space, tmp_path / name)
    agent.device = torch.device("cuda")
    with pytest.raises(ConfigError, match=r"exported from the CPU, this one is on cuda: load it with device='cpu'"):
        export_step(agent, None, space, path)
    assert not list(tmp_path.iterdir())


def test_a_file_that_would_differ_from_the_agent_is_never_written(tmp_path: Path) -> None:
    """ONNX has no bfloat16 products on the CPU that round as PyTorch's do."""
    agent = RL2Config(memory="lstm", hidden_size=32, precision="bfloat16").build(rooms(False).spec, CPU, 0)
    with pytest.raises(
        ConfigError, match=r"agent.onnx would differ from the agent: at step \d its \w+ is off by up to"
    ):
        export_step(agent, agent.begin(1), rooms(False).spaces[1], tmp_path / "agent.onnx")
    assert not list(tmp_path.iterdir())


# From a run's folder --------------------------------------------------------------------------------------------------

_TRAIN = TrainConfig(seed=3, device="cpu", num_iterations=2, meta_batch_size=2, eval_tasks=2, checkpoint_every=1)
_CONFIGS = {
    "maml-trpo": MAMLTRPOConfig(hidden_sizes=(4,), rollouts_per_task=2, cg_iterations=2),
    "rl2": RL2Config(hidden_size=4, num_epochs=1, num_minibatches=1),
}


def _run(folder: Path, name: str, tasks: str = "helpers.rooms:discrete_rooms") -> Path:
    experiment = Experiment.create(Setup(name, tasks, _TRAIN, _CONFIGS[name]), RunFolder.create(folder, name))
    assert experiment.train()
    return experiment.run.path


def test_load_gives_the_agent_of_a_run_with_its_tasks_spaces(tmp_path: Path) -> None:
    run = _run(tmp_path, "rl2")
    trained = metarl.load(run, trust_tasks=True)
    assert trained.iteration == 2
    env = Room(6.0, True)
    assert (trained.observation_space, trained.action_space) == (env.observation_space, env.action_space)
    expected, _ = Experiment.open(run, trust=True).load()
    ours = trained.agent.named_tensors()
    assert all(torch.equal(ours[name], value) for name, value in expected.named_tensors().items())
    first = metarl.load(run, trust_tasks=True, checkpoint=run / "checkpoints" / "iteration-00000000.safetensors")
    assert first.iteration == 0
    assert metarl.load(str(run), trust_tasks=True, best=True, device="cpu").iteration in (0, 1, 2)
    assert len(trained.learner(env).play(2, seed=0)) == 2
    with pytest.raises(ConfigError, match=r"best=True and checkpoint='x' name two checkpoints"):
        metarl.load(run, trust_tasks=True, best=True, checkpoint="x")
    with pytest.raises(ConfigError, match="but CartPole-v1 has 4 and 2 choices"):
        trained.learner(gym.make("CartPole-v1"))
    with pytest.raises(ConfigError, match="was built for"):
        metarl.load(run, trust_tasks=True, tasks="bandit")
    with pytest.raises(ConfigError, match="does not exist"):
        metarl.load(tmp_path / "nothing")


def test_a_run_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    setup = Setup("rl2", "bandit", _TRAIN, _CONFIGS["rl2"])
    run = Experiment.create(setup, RunFolder.create(tmp_path, "rl2")).run.path
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        metarl.load(run)


def test_actions_are_shares_of_the_bounds_so_others_are_refused(tmp_path: Path) -> None:
    trained = metarl.load(_run(tmp_path, "maml-trpo", "helpers.rooms:box_rooms"), trust_tasks=True)
    env = Room(6.0, False)
    trained.learner(env)
    env.action_space = gym.spaces.Box(-1.0, 1.0, (1, 2), np.float64)
    with pytest.raises(ConfigError, match=r"trained with actions in Box\(.*but Room has Box\(-1.0, 1.0.*RescaleAction"):
        trained.learner(env)


def test_an_oracle_has_no_learner(tmp_path: Path) -> None:
    config = AGENTS["oracle"](hidden_sizes=(4,), rollouts_per_task=2)  # type: ignore[call-arg]
    setup = Setup("oracle", "navigation-2d", dataclasses.replace(_TRAIN, num_iterations=1), config)
    experiment = Experiment.create(setup, RunFolder.create(tmp_path, "oracle"))
    assert experiment.train()
    with pytest.raises(ConfigError, match="OracleConfig's agent is told its task"):
        metarl.load(experiment.run.path).learner(gym.make("CartPole-v1"))


@pytest.mark.parametrize("name", ["maml-trpo", "rl2"])
def test_the_command_exports_what_the_library_does(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run = _run(tmp_path, name)
    steps = [{"obs": [1.0, 0.0, 0.0, 0.3 * number, -0.5]} for number in range(4)]
    trained = metarl.load(run, trust_tasks=True)
    trained.export(tmp_path / "library.pt2")
    flags = ["--num-adaptations", "0"] if name == "maml-trpo" else []
    assert command(["export", str(run), "command.pt2", "--trust-tasks", *flags]) == 0
    printed = capsys.readouterr().out
    known = "before adaptation" if name == "maml-trpo" else "with a memory that knows nothing yet"
    assert f"{name}, iteration 2, {known}: command.pt2" in printed
    ours, theirs = (_elsewhere(tmp_path / f"{file}.pt2", steps) for file in ("library", "command"))
    assert ours == theirs


def test_the_command_adapts_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run = _run(tmp_path, "maml-trpo", "navigation-2d")
    steps = [{"obs": [0.1 * number, -0.2]} for number in range(4)]
    found = []
    for number in (0, 1):
        assert command(f"export {run} {number}.onnx --num-adaptations {number} --goal 3") == 0
        found.append(_elsewhere(tmp_path / f"{number}.onnx", steps)["actions"])
    printed = " ".join(capsys.readouterr().out.split())
    assert "after 1 gradient step on navigation-2d test task 3, which cost 200 environment steps: 1.onnx" in printed
    assert not np.allclose(*found)


_NAVIGATION, _ROOMS = "navigation-2d", "helpers.rooms:box_rooms"
_ELSEWHERE = "agent.pt2 --trust-tasks --tasks helpers.rooms"


@pytest.mark.parametrize(
    ("name", "tasks", "words", "message"),
    [
        ("rl2", _NAVIGATION, "agent.pt2 --num-adaptations 1", "rl2 adapts by its memory.*leave out --num-adaptations"),
        ("rl2", _NAVIGATION, "agent.pt2 --goal -1", "--goal must be 0 or more, got -1"),
        ("rl2", _NAVIGATION, "agent.txt", "agent.txt: a policy is exported to .pt2 or .onnx"),
        ("maml-trpo", _NAVIGATION, "agent.pt2 --task door", "the tasks of navigation-2d have no names"),
        ("maml-trpo", _NAVIGATION, "agent.pt2 --best --checkpoint x", "name two checkpoints"),
        (
            "maml-trpo",
            _ROOMS,
            f"{_ELSEWHERE}:far_rooms",
            r"trained on actions in .*0\.69.*, but those of test/rooms lie in .*70\.0.*Leave out",
        ),
        ("rl2", _ROOMS, f"{_ELSEWHERE}:far_rooms", "trained on actions in"),
        ("rl2", _ROOMS, f"{_ELSEWHERE}:discrete_rooms", "the agent was built for tasks with"),
        ("maml-trpo", _ROOMS, f"{_ELSEWHERE}:discrete_rooms", "the agent was built for tasks with"),
    ],
)
def test_the_command_refuses_what_cannot_be_and_writes_nothing(
    name: str,
    tasks: str,
    words: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    run = _run(tmp_path, name, tasks)
    assert command(f"export {run} {words}") == 2
    printed = " ".join(capsys.readouterr().err.split())
    assert re.search(message, printed), printed
    assert not (tmp_path / words.split()[0]).exists()
