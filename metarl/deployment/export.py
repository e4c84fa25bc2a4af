"""An agent's step as a file that runs without metarl: a program of ``torch.export``, or ONNX.

The file holds a function of tensors without axes for task, episode or batch:

* ``obs`` ``[obs_dim]`` float32: the flat observation, as ``gymnasium.spaces.flatten`` makes it, not normalised;
* for a memory also ``prev_action`` ``[action_dim]``, ``prev_reward`` ``[]``, ``prev_done`` ``[]`` and ``memory``, all
  float32 and zero at a trial's start; the done flag is 1 at the first step of every later episode, and 0 elsewhere;
* with ``sample=True`` also ``noise``: independent numbers, standard normal or uniform in (0, 1), as the notes say.

It returns ``action``, flat and in the environment's bounds, counted from its start if it is discrete (int64). An action
of several parts (MultiDiscrete, MultiBinary, Dict, Tuple) is one vector of float32: all choices, each counted from its
start, and then all coordinates, in the order of the space's parts; the notes say how many there are. A memory returns
``shown_action`` and ``next_memory`` besides, which are ``prev_action`` and ``memory`` of the next step.

Notes in JSON lie in the file: ``metarl.json`` among the ``extra_files`` of ``torch.export.load``, or ``metarl`` in the
metadata of the ONNX model.

TorchScript is not offered: PyTorch has deprecated it, and what it would trace is what ``torch.export`` holds.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
from torch import Tensor, nn

from metarl.agent import Agent
from metarl.errors import ConfigError, MetarlError, missing_extra, raised
from metarl.networks.actions import encoded_actions
from metarl.rollouts.actions import ActionMap
from metarl.runs.files import shown, write_atomically
from metarl.types import Timestep
from metarl.vector.products import FlatProduct, flat_actions, starts
from metarl.version import __version__

Tensors = dict[str, Tensor]

_TOLERANCE = 1e-5
"""Absolute and relative, of what a file returns from what the agent does."""

_NUM_CHECKED_STEPS = 5


def export_step(
    agent: Agent[Any], state: Any, action_space: gym.Space[Any], path: Path, *, sample: bool = False
) -> None:
    """Write what ``agent`` does in one step, knowing ``state``, to ``path``; the file is compared with the agent first.

    Args:
        agent: on the CPU.
        state: of one task: fast weights, which become part of the file, or a memory, which it takes and returns.
        action_space: the environment's own.
        path: ``.pt2`` for ``torch.export``, ``.onnx`` for ONNX.
        sample: sample actions, from noise that is an input; default: the distribution's mode.

    Raises:
        ConfigError: for another suffix, an agent that is not on the CPU, a state that is neither left as it is
            by acting nor one tensor, an agent whose code PyTorch cannot export, a missing package, a path that cannot
            be written, or a file that would not do what the agent does.
    """
    check_format(path)
    if agent.device.type != "cpu":
        raise ConfigError(
            f"an agent is exported from the CPU, this one is on {agent.device}: load it with device='cpu'."
        )
    step, spec = _Step(agent, state, action_space, sample), agent.spec
    program = _program(step)
    notes = {
        "metarl": __version__,
        "agent": type(agent).__name__,
        "actions": "sampled" if sample else "mode",
        **({"noise": step.noise_kind} if step.noise_kind else {}),
        **({"action": {"choices": spec.choices, "coordinates": spec.num_coordinates}} if spec.choices else {}),
        "inputs": {name: list(value.shape) for name, value in step.first_inputs().items()},
    }
    make, load = _FORMATS[path.suffix]
    data = make(program, step, json.dumps(notes))
    _compare(step, load(data), path)
    try:
        write_atomically(path, data)
    except OSError as error:
        raise ConfigError(f"cannot write {shown(path)}: {error.strerror or error}.") from error


def check_format(path: Path) -> None:
    """Refuse a file that nothing could be exported to.

    Raises:
        ConfigError: for another suffix, a missing package or folder.
    """
    if path.suffix not in _FORMATS:
        raise ConfigError(f"{path.name}: a policy is exported to {' or '.join(_FORMATS)}, got {path.suffix!r}.")
    if not path.parent.is_dir():
        raise ConfigError(f"cannot write {shown(path)}: there is no folder {shown(path.parent)}.")
    for package in ("onnx", "onnxscript", "onnxruntime"):
        if path.suffix == ".onnx" and importlib.util.find_spec(package) is None:
            raise missing_extra(package, "onnx", "exporting to ONNX")


class _Step(nn.Module):
    """One step of an agent as a function of tensors by name; arguments as for :func:`export_step`.

    The agent's networks are no submodules: so the program holds the parameters that the step uses as constants, and
    what it returns asks for no gradients.

    Attributes:
        noise_kind: what the noise is, ``"normal"`` or ``"uniform"``; empty where none is drawn.
    """

    def __init__(self, agent: Agent[Any], state: Any, action_space: gym.Space[Any], sample: bool) -> None:
        super().__init__()
        self._agent, self._state, self._sample = agent, state, sample
        flat = flat_actions(action_space)
        self._to_env = ActionMap(flat)
        first = torch.as_tensor(starts(action_space))
        if isinstance(flat, FlatProduct):
            # Coordinates are counted from nowhere.
            first = nn.functional.pad(first.float(), (0, flat.shape[0] - len(first)))
        self._start = first if len(first) > 1 else first.sum()
        self.noise_kind = ""
        self._noise_shape: tuple[int, ...] = (0,)
        probe = _GivenNoise(None)
        spec = agent.spec
        zeros = torch.zeros(spec.obs_dim), torch.zeros(spec.action_dim), torch.zeros(()), torch.zeros(())
        _, following = self._act(*zeros, state, probe)
        if sample:
            self.noise_kind, self._noise_shape = probe.kind, probe.shape
        self._has_memory = following is not state
        same = isinstance(state, Tensor) and isinstance(following, Tensor) and state.shape == following.shape
        if self._has_memory and not same:
            raise ConfigError(
                f"{type(agent).__name__} cannot be exported: its state must be left as it is by acting, or be one "
                f"tensor that keeps its shape, got {type(state).__name__} and then {type(following).__name__}."
            )

    def first_inputs(self) -> Tensors:
        """What a trial begins with, zeros; their names are those of the file's inputs, in its order."""
        spec = self._agent.spec
        inputs = {"obs": torch.zeros(spec.obs_dim)}
        if self._has_memory:
            inputs |= {"prev_action": torch.zeros(spec.action_dim)}
            inputs |= {"prev_reward": torch.zeros(()), "prev_done": torch.zeros(())}
            inputs |= {"memory": self._agent.begin(1).reshape(-1)}
        if self.noise_kind:
            inputs |= {"noise": torch.full((math.prod(self._noise_shape),), 0.5)}
        return inputs

    @property
    def output_names(self) -> list[str]:
        """Names of what :meth:`forward` returns."""
        return ["action", *(["shown_action", "next_memory"] if self._has_memory else [])]

    def forward(self, **inputs: Tensor) -> Tensors:
        """The step; see the module's docstring."""
        spec = self._agent.spec
        nothing = torch.zeros(())
        value, state = self._act(
            inputs["obs"],
            inputs.get("prev_action", torch.zeros(spec.action_dim)),
            inputs.get("prev_reward", nothing),
            inputs.get("prev_done", nothing),
            inputs["memory"].reshape(self._state.shape) if self._has_memory else self._state,
            _GivenNoise(inputs["noise"].reshape(self._noise_shape) if self.noise_kind else None),
        )
        action = self._to_env.of_tensors(value)
        outputs = {"action": action + self._start if spec.discrete or spec.choices else action}
        if self._has_memory:
            outputs |= {"shown_action": encoded_actions(spec, value), "next_memory": state.reshape(-1)}
        return outputs

    @torch.no_grad()
    def _act(
        self, obs: Tensor, prev_action: Tensor, prev_reward: Tensor, prev_done: Tensor, state: Any, noise: _GivenNoise
    ) -> tuple[Tensor, Any]:
        """The agent's action, without axes of task and episode, and its next state."""
        flags = torch.ones((), dtype=torch.bool)
        timestep = Timestep(obs, prev_action, prev_reward, prev_done, flags)[None][None]
        own: Any = self._agent.noise
        self._agent.noise = noise  # type: ignore[assignment]
        try:
            action, state = self._agent.act(state, timestep, deterministic=not self._sample)
        finally:
            self._agent.noise = own
        return action.value[0, 0], state


class _GivenNoise:
    """Stands in for :class:`metarl.networks.noise.TaskNoise` in a step: one draw, which is an input.

    Args:
        noise: of the shape that is drawn; None notes in ``kind`` and ``shape`` what is, and gives one half.
    """

    def __init__(self, noise: Tensor | None) -> None:
        self._noise = noise
        self.kind = ""
        self.shape: tuple[int, ...] = (0,)

    def uniform(self, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        """See :meth:`metarl.networks.noise.TaskNoise.uniform`."""
        return self._take("uniform", shape, dtype)

    def normal(self, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        """See :meth:`metarl.networks.noise.TaskNoise.normal`."""
        return self._take("normal", shape, dtype)

    def integers(self, high: int, shape: tuple[int, ...]) -> Tensor:
        """See :meth:`metarl.networks.noise.TaskNoise.integers`."""
        return (self.uniform(shape, torch.float64) * high).long()

    def _take(self, kind: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        if self.kind:
            raise ConfigError("an agent can be exported with sampled actions if it draws once in a step, not twice.")
        self.kind, self.shape = kind, shape
        return torch.full(shape, 0.5, dtype=dtype) if self._noise is None else self._noise.to(dtype)


def _program(step: _Step) -> torch.export.ExportedProgram:
    try:
        with _quiet(), torch.no_grad():
            return torch.export.export(step, (), step.first_inputs())
    except MetarlError:
        raise
    except Exception as error:
        raise ConfigError(raised("torch.export cannot export this agent's step", error)) from error


def _pt2(program: torch.export.ExportedProgram, step: _Step, notes: str) -> bytes:
    file = io.BytesIO()
    with _quiet():
        torch.export.save(program, file, extra_files={"metarl.json": notes})
    return file.getvalue()


def _load_pt2(data: bytes) -> Callable[[Tensors], Mapping[str, Tensor]]:
    module = torch.export.load(io.BytesIO(data)).module()
    return lambda inputs: module(**inputs)


def _onnx(program: torch.export.ExportedProgram, step: _Step, notes: str) -> bytes:
    with _quiet():
        made = torch.onnx.export(
            program,
            dynamo=True,
            verbose=False,
            input_names=list(step.first_inputs()),
            output_names=step.output_names,
        )
    assert made is not None
    made.model.metadata_props["metarl"] = notes
    data: bytes = made.model_proto.SerializeToString()
    return data


def _load_onnx(data: bytes) -> Callable[[Tensors], Mapping[str, Tensor]]:
    import onnxruntime

    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(inputs: Tensors) -> Mapping[str, Tensor]:
        found = session.run(names, {name: value.numpy() for name, value in inputs.items()})
        return {name: torch.as_tensor(value) for name, value in zip(names, found, strict=True)}

    return run


_FORMATS: dict[str, tuple[Callable[..., bytes], Callable[[bytes], Callable[[Tensors], Mapping[str, Tensor]]]]] = {
    ".pt2": (_pt2, _load_pt2),
    ".onnx": (_onnx, _load_onnx),
}
"""How a file is made and how it is run, by its suffix."""


def _compare(step: _Step, run: Callable[[Tensors], Mapping[str, Tensor]], path: Path) -> None:
    """Refuse a file that does not do what the agent does, over some steps of made-up observations."""
    generator = torch.Generator().manual_seed(0)
    inputs = step.first_inputs()
    for number in range(_NUM_CHECKED_STEPS):
        inputs["obs"] = torch.randn(inputs["obs"].shape, generator=generator)
        if "noise" in inputs:
            # Inside (0, 1), which is a value of either kind.
            inputs["noise"] = torch.rand(inputs["noise"].shape, generator=generator).clamp(0.01, 0.99)
        expected, found = step(**inputs), run(dict(inputs))
        for name, value in expected.items():
            if not torch.allclose(found[name].double(), value.double(), _TOLERANCE, _TOLERANCE):
                raise ConfigError(
                    f"{path.name} would differ from the agent: at step {number} its {name} is off by up to "
                    f"{float((found[name].double() - value.double()).abs().max()):.2g}. Nothing was written; another "
                    f"format may do ({', '.join(_FORMATS)}), or precision = 'float32' where the agent has that setting."
                )
        if "memory" in inputs:
            inputs |= {"memory": expected["next_memory"], "prev_action": expected["shown_action"]}
            inputs |= {"prev_reward": torch.tensor(0.5), "prev_done": torch.tensor(float(number == 2))}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what PyTorch's exporters tell their own developers."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
