"""Presets: the settings in which an agent differs from its defaults on a family of tasks.

``agent:tasks`` is what is taken without a word; a variant of it, ``agent:tasks:variant``, is asked for by its name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from metarl.agent import AgentConfig
from metarl.agents import AGENTS
from metarl.config import TrainConfig, from_dict
from metarl.envs.locomotion import DISTRIBUTIONS as LOCOMOTION
from metarl.envs.metaworld import HORIZON, TASK_NAMES


@dataclass(frozen=True)
class Preset:
    """Fields that differ from the defaults.

    Attributes:
        train: fields of :class:`TrainConfig`.
        agent: fields of the agent's config.
        source: where the settings come from.
    """

    source: str
    train: Mapping[str, Any] = field(default_factory=dict)
    agent: Mapping[str, Any] = field(default_factory=dict)


def steps_per_iteration(agent: AgentConfig, meta_batch_size: int, horizon: int) -> int:
    """Environment steps of one meta-update, adaptation included, if no episode ends early.

    Args:
        agent: its settings.
        meta_batch_size: tasks in one meta-update.
        horizon: steps in an episode.
    """
    return meta_batch_size * agent.rollouts_per_task * (agent.num_adaptations + 1) * horizon


_CARTPOLE_MAML = Preset(
    "chosen on training tasks for 2 CPU cores",
    {"num_iterations": 60, "meta_batch_size": 10, "eval_every": 15},
    {"hidden_sizes": (32, 32), "inner_lr": 0.5, "extra_step_factor": 0.25},
)
_CARTPOLE_RL2 = Preset(
    "chosen on training tasks for 2 CPU cores; on cartpole-goal the second episode rises from the 42nd to the 64th "
    "iteration and stays (seed 101)",
    {"meta_batch_size": 100, "eval_every": 10},
    {"hidden_size": 64, "meta_lr": 2e-3},
)
_NAVIGATION_RL2 = Preset(
    "as rl2 on locomotion", {"meta_batch_size": 100}, {"hidden_size": 64, "meta_lr": 1e-3, "num_epochs": 5}
)
_CARTPOLES = ("cartpole", "cartpole-random", "cartpole-extreme", "cartpole-goal", "cartpole-mirrored")

_LOCOMOTION = tuple(task.id for task in LOCOMOTION)
_ANT_DIRECTION = tuple(name for name in _LOCOMOTION if name.startswith("locomotion/ant-direction"))

_MAML_FAMILY = ("maml-trpo", "fomaml", "anil", "meta-sgd", "meta-lstm", "reptile", "pretrained", "oracle")
"""Agents whose policy and inner loop on these tasks are those of MAML's experiments, their papers having none there."""
_PROMP_FAMILY = ("promp", "maml-ppo", "e-maml")
"""Agents of ProMP's comparison (arXiv 1810.06784, appendix)."""
_NAVIGATION_MAML = Preset(
    "MAML (arXiv 1703.03400) A.2: meta-batch 20, 20 rollouts, H 100, inner step 0.1, KL 0.01; the code's script "
    "has a meta-batch of 40 and an inner step of 0.5",
    agent={"activation": "relu"},
)
_NAVIGATION_PROMP = Preset(
    "ProMP (arXiv 1810.06784): 64-64 tanh, inner step 0.1; MAML's meta-batch of 20 as the tasks are MAML's",
    agent={"hidden_sizes": (64, 64)},
)
_LOCOMOTION_MAML = Preset(
    "MAML (arXiv 1703.03400) A.2: meta-batch 40, 20 rollouts, at most 500 iterations",
    {"num_iterations": 500, "meta_batch_size": 40},
    {"activation": "relu"},
)
_ANT_DIRECTION_MAML = Preset(
    "MAML (arXiv 1703.03400) A.2: as elsewhere, with 40 rollouts for the ant's direction",
    _LOCOMOTION_MAML.train,
    {**_LOCOMOTION_MAML.agent, "rollouts_per_task": 40},
)
_LOCOMOTION_PROMP = Preset(
    "ProMP (arXiv 1810.06784): 64-64 tanh, meta-batch 40, 20 rollouts, inner step 0.1, 1001 iterations",
    {"num_iterations": 1001, "meta_batch_size": 40},
    {"hidden_sizes": (64, 64)},
)
_LOCOMOTION_RL2 = Preset(
    "RL2 in ProMP's comparison (arXiv 1810.06784): LSTM 64, 100 tasks x 2 episodes, 5 epochs, 501 iterations",
    {"num_iterations": 501, "meta_batch_size": 100},
    {"memory": "lstm", "hidden_size": 64, "meta_lr": 1e-3, "num_epochs": 5},
)

_VARIBAD_PPO = {
    "meta_lr": 7e-4,
    "num_epochs": 2,
    "clip_range": 0.1,
    "gae_lambda": 0.9,
    "max_grad_norm": 0.5,
    "bootstrap_trials": True,
}
"""What the configs of VariBAD's code share, for tasks whose time limit is no part of them."""
_LOCOMOTION_VARIBAD = Preset(
    "VariBAD (arXiv 1910.08348) and its code: 1e8 steps, 3200 an update; 3 ELBO steps on them, not 1 on its buffer; "
    "entropy 0.001, not 0.01, as actions beyond the box cost nothing here",
    {"num_iterations": 31_250, "meta_batch_size": 8, "eval_every": 250, "checkpoint_every": 25},
    {**_VARIBAD_PPO, "discount": 0.97, "entropy_coef": 1e-3, "vae_batch_size": 8, "num_decoded_steps": 50},
)
_NAVIGATION_VARIBAD = Preset(
    "VariBAD's code on its sparse point robot (3 episodes, 3 layers of 128); batch and iterations for CPU minutes",
    {"num_iterations": 500, "eval_every": 50},
    {
        **_VARIBAD_PPO,
        "hidden_sizes": (128, 128, 128),
        "episodes_per_trial": 3,
        "num_minibatches": 8,
        "entropy_coef": 1e-3,
        "kl_coef": 1.0,
        "vae_batch_size": 15,
        "num_decoded_steps": 50,
    },
)

_BANDIT = Preset(
    "RL2 (arXiv 1611.02779): GAE lambda 0.3; batch and epochs scaled down to CPU minutes",
    {"num_iterations": 300, "meta_batch_size": 1000, "eval_tasks": 1000, "eval_every": 50},
    {
        "episodes_per_trial": 1,
        "gae_lambda": 0.3,
        "meta_lr": 1e-3,
        "normalise_obs": False,
        "normalise_rewards": False,
    },
)
_TABULAR_MDP = Preset(
    "RL2 (arXiv 1611.02779): GAE lambda 0.3, 10 episodes; batch scaled down to the CPU",
    {"num_iterations": 300, "meta_batch_size": 200, "eval_tasks": 200, "eval_every": 50},
    {"episodes_per_trial": 10, "gae_lambda": 0.3, "meta_lr": 1e-3},
)

_META_WORLD = "Meta-World+ (arXiv 2505.11289) and its code: budget of 2 M steps per training task"

_META_WORLD_RL2 = {"hidden_size": 256, "encoder_sizes": (256, 256), "bptt_steps": 250, "episodes_per_trial": 10}

_BECK = "Beck et al. (arXiv 2210.11348, 2309.14970) and their code"
_NARROWER = "head of 64-64, theirs 256-128"
_BATCH = "80 minibatches for the trials of 10 x 500 steps, so that one holds as many steps as theirs"
_META_WORLD_HEAD = {"head_sizes": (64, 64)}
"""Widths of a head's MLP; those of the papers' code, 256 and 128, take six times as many products on every step."""
_META_WORLD_VARIBAD = {
    **_VARIBAD_PPO,
    "episodes_per_trial": 10,
    "num_minibatches": 80,
    "discount": 0.97,
    "entropy_coef": 1e-3,
    "kl_coef": 1.0,
    "decoder_sizes": (128, 64, 32),
    "vae_batch_size": 10,
    "num_decoded_steps": 50,
}

_META_WORLD_KIN = (
    "policy, episodes and budget of maml-trpo, so that the algorithms alone differ; no paper has settings of its own"
)
_EVERY_FIFTH = "the metric of its trust region takes every fifth step: as good, and an iteration in 0.42 of the time"
_META_WORLD_PROMP = (
    "policy, episodes and budget of maml-trpo, so that the algorithms alone differ; the outer loop is ProMP's "
    "(arXiv 1810.06784) on locomotion, as no paper has settings for Meta-World"
)


def _meta_world(num_tasks: int, meta_batch_size: int) -> dict[str, Preset]:
    """By agent and variant, the official budget on ``num_tasks`` training tasks: 10 episodes of 500 steps a rollout."""
    budget = 2_000_000 * num_tasks
    maml = {"hidden_sizes": (512, 512), "rollouts_per_task": 10}
    strided = {**maml, "fisher_stride": 5}
    family = [agent for agent in (*_MAML_FAMILY, "e-maml") if not AGENTS[agent].told_task]
    trust_region = {agent for agent in family if "fisher_stride" in AGENTS[agent].__dataclass_fields__}
    # Tasks of several kinds differ in what moves, not only in what is paid for; so in the code of the paper.
    varibad = _META_WORLD_VARIBAD | ({"decode_states": True} if num_tasks > 1 else {})
    smaller = {**_META_WORLD_RL2, "hidden_size": 64, "encoder_sizes": (64, 64)}
    if num_tasks > 1:
        del smaller["hidden_size"]  # The default, twice as many.
    chosen: dict[str, tuple[str, dict[str, Any]]] = {
        # A task of Meta-World is made of more than numbers, so that no oracle can be told it.
        **dict.fromkeys(family, (_META_WORLD_KIN, maml)),
        **dict.fromkeys(trust_region, (f"{_META_WORLD_KIN}; {_EVERY_FIFTH}", strided)),
        **dict.fromkeys(("promp", "maml-ppo"), (_META_WORLD_PROMP, maml)),
        "maml-trpo": (
            f"{_META_WORLD}; its inner step of 0.1 is divided by the meta-batch, ours is not; {_EVERY_FIFTH}",
            strided,
        ),
        "maml-trpo:narrow": (
            "as maml-trpo with layers of 128, with which reach is learned as well; a meta-update takes about a sixth "
            "of the time",
            {**strided, "hidden_sizes": (128, 128)},
        ),
        "rl2": (
            f"{_META_WORLD}; its pieces of 250 steps do not overlap here",
            _META_WORLD_RL2,
        ),
        "rl2:recall": (
            "Adam's step 2e-3 on observations as they are, which learns several times as fast as rl2's own: "
            "coordinates that hardly change are blown up by normalisation; the way to the trial's best moment is "
            "shown, so that the mode, which does not search by its own noise, finds goals again; what is written down "
            "need not be remembered: smaller networks learn as fast, in 0.4 of the time",
            {**smaller, "meta_lr": 2e-3, "normalise_obs": False, "recall_best": True}
            | {"head": "state", **_META_WORLD_HEAD},
        ),
        "rl2:transformer": (
            "as rl2; attention sees the last 500 steps, so that each has its like in the episode before, and two "
            "blocks reach back twice as far; 64 channels, as every step of a trial moves the whole cache",
            {**_META_WORLD_RL2, "memory": "transformer", "hidden_size": 64, "context_steps": 500},
        ),
        "rl2:hypernetwork": (
            f"rl2's preset with RNN+HN's head ({_BECK}: a code of 25 for the hypernetwork); " + _NARROWER,
            {**_META_WORLD_RL2, "head": "hypernetwork", **_META_WORLD_HEAD},
        ),
        "rl2:state": (
            f"rl2's preset with RNN+S's head, the control of rl2:hypernetwork ({_BECK}); " + _NARROWER,
            {**_META_WORLD_RL2, "head": "state", **_META_WORLD_HEAD},
        ),
        "varibad": (f"{_BECK} on Meta-World, without a hypernetwork; {_BATCH}", varibad),
        "varibad:hypernetwork": (
            f"{_BECK} on Meta-World, GRU of 256, a code of 25; {_NARROWER}; {_BATCH}",
            {**varibad, "head": "hypernetwork", "hidden_size": 256, "hidden_sizes": (64, 64)},
        ),
    }
    presets = {}
    for name, (source, settings) in chosen.items():
        each = steps_per_iteration(from_dict(AGENTS[name.split(":")[0]], settings), meta_batch_size, HORIZON)
        train = {"num_iterations": budget // each, "meta_batch_size": meta_batch_size, "eval_tasks": 20}
        presets[name] = Preset(source, _differing(train), settings)
    return presets


def _name(agent: str, tasks: str) -> str:
    """``agent:tasks``, or ``agent:tasks:variant`` if ``agent`` is ``agent:variant``."""
    name, *variant = agent.split(":")
    return ":".join([name, tasks, *variant])


def _differing(train: dict[str, Any]) -> dict[str, Any]:
    default = TrainConfig()
    return {name: value for name, value in train.items() if getattr(default, name) != value}


PRESETS: dict[str, Preset] = {
    **{f"maml-trpo:{task}": _CARTPOLE_MAML for task in _CARTPOLES},
    **{f"{agent}:{task}": _CARTPOLE_MAML for agent in ("pretrained", "oracle") for task in _CARTPOLES},
    **{f"rl2:{task}": _CARTPOLE_RL2 for task in _CARTPOLES},
    **{f"{agent}:navigation-2d": _NAVIGATION_MAML for agent in _MAML_FAMILY},
    **{f"{agent}:navigation-2d": _NAVIGATION_PROMP for agent in _PROMP_FAMILY},
    "reptile:navigation-2d": Preset(
        "as maml-trpo; its own steps: at 0.1 adaptation hardly moves, as nothing trains for large gradients",
        agent={"activation": "relu", "inner_lr": 0.5, "meta_lr": 1.0},
    ),
    **{f"{agent}:{tasks}": _LOCOMOTION_MAML for agent in _MAML_FAMILY for tasks in _LOCOMOTION},
    **{f"{agent}:{tasks}": _ANT_DIRECTION_MAML for agent in _MAML_FAMILY for tasks in _ANT_DIRECTION},
    **{f"{agent}:{tasks}": _LOCOMOTION_PROMP for agent in _PROMP_FAMILY for tasks in _LOCOMOTION},
    **{f"rl2:{tasks}": _LOCOMOTION_RL2 for tasks in _LOCOMOTION},
    **{f"varibad:{tasks}": _LOCOMOTION_VARIBAD for tasks in _LOCOMOTION},
    "varibad:navigation-2d": _NAVIGATION_VARIBAD,
    "varibad:bandit": Preset(
        "as rl2:bandit, with a belief that decodes all 10 pulls after every one of them",
        {"num_iterations": 300, "meta_batch_size": 1000, "eval_tasks": 1000, "eval_every": 50},
        {
            "hidden_size": 64,
            "episodes_per_trial": 1,
            "gae_lambda": 0.3,
            "meta_lr": 1e-3,
            "num_vae_updates": 4,
            "vae_batch_size": 250,
            "normalise_obs": False,
            "normalise_rewards": False,
        },
    ),
    "rl2:bandit": Preset(_BANDIT.source, _BANDIT.train, {"hidden_size": 64, **_BANDIT.agent}),
    "rl2:bandit:transformer": Preset(
        "as rl2:bandit; in 16 updates 5.9 of 10 pulls' reward, with a step size of 3e-4 5.1, and the GRU 5.1",
        _BANDIT.train,
        {"memory": "transformer", "hidden_size": 64, **_BANDIT.agent},
    ),
    "snail:bandit": Preset(_BANDIT.source, _BANDIT.train, _BANDIT.agent),
    **{f"{agent}:tabular-mdp": _TABULAR_MDP for agent in ("rl2", "snail")},
    "rl2:navigation-2d": _NAVIGATION_RL2,
    "rl2:navigation-2d:recall": Preset(
        "rl2's, with the best moment of the trial kept and shown: after 6 iterations it is where rl2's own is after 90",
        _NAVIGATION_RL2.train,
        {**_NAVIGATION_RL2.agent, "recall_best": True, "head": "state", "head_sizes": (64, 64)},
    ),
    **{
        _name(agent, tasks): preset
        for names, num_tasks, meta_batch_size in (
            ([f"ml1/{name}" for name in TASK_NAMES], 1, 10),
            (["ml10"], 10, 20),
            (["ml25"], 25, 50),
            (["ml45"], 45, 45),
        )
        for agent, preset in _meta_world(num_tasks, meta_batch_size).items()
        for tasks in names
    },
}
