"""Packer et al. (2018, arXiv 1810.12282), Tables 3 to 6: generalization to other physics."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from metarl.benchmarks.generalization import ENVIRONMENTS, MEASURES, GeneralizationSource
from metarl.benchmarks.papers import rows_of
from metarl.benchmarks.reproduce.table import PaperTable, TableCell

_TABLES = {"Acrobot": "Table 3", "CartPole": "Table 4", "MountainCar": "Table 5", "Pendulum": "Table 6"}
_SETTINGS = dict(
    zip(MEASURES, ("Default (DD)", "Interpolation (RR)", "Extrapolation (geo-mean of DR DE RE)"), strict=True)
)
_BESIDE = {
    "pretrained": ("PPO FF", "trained by TRPO, where the paper has PPO"),
    "maml-trpo": ("PPO FF", "the paper has no MAML: its PPO without a memory stands beside"),
    "rl2": ("RL2-PPO RC (N=2)", ""),
    "varibad": ("RL2-PPO RC (N=2)", "the paper has no VariBAD: its RL² with PPO stands beside"),
}
"""By agent, the paper's method whose numbers stand beside ours, and why they are not to be compared."""

_MLP: Mapping[str, Any] = {"hidden_sizes": (64, 64), "rollouts_per_task": 10, "gae_lambda": 0.95}
_MEMORY: Mapping[str, Any] = {"hidden_size": 64, "meta_lr": 1e-3}
_AGENTS: Mapping[str, tuple[int, int, Mapping[str, Any]]] = {
    "pretrained": (5, 1000, _MLP),
    "maml-trpo": (5, 100, {**_MLP, "inner_lr": 0.1}),
    "rl2": (50, 1000, _MEMORY),
    "varibad": (50, 1000, _MEMORY),
}
"""By agent, the meta-batch, held-out tasks, and settings, all the same in the four environments."""


def _cells() -> Iterator[TableCell]:
    for environment in ENVIRONMENTS:
        paper = rows_of("Packer 2018", _TABLES[environment])
        for agent, (meta_batch_size, num_tasks, settings) in _AGENTS.items():
            method, reason = _BESIDE[agent]
            source = GeneralizationSource(agent, environment, meta_batch_size, settings, num_tasks=num_tasks)
            for measure, setting in _SETTINGS.items():
                published = paper[setting, method]
                yield TableCell(
                    f"{environment},{agent}",
                    measure,
                    source,
                    (1, 2, 3, 4, 5),
                    published,
                    not_comparable=reason,
                    measure=measure,
                )


TABLE = PaperTable(
    name="packer-generalization",
    title="Packer et al., Tables 3 to 6: generalization to other physics",
    about=(
        "Agents are trained for 15,000 episodes on an environment's default physics (D), and others on random ones "
        "(R); both are tested on D, R and extreme physics (E). Default is DD: trained on D and tested on D; "
        "interpolation is RR, extrapolation the geometric mean of DR, DE and RE. A success is, in CartPole, at least "
        "195 steps; in MountainCar, the flag after at most 110; in Acrobot, the height after at most 80; in Pendulum, "
        "an angle of at most pi/3 in the last 100 of 200 steps. Agents that adapt count adaptation among their "
        "training episodes, and are scored on what comes after it: RL² and VariBAD on the second episode of a trial, "
        "MAML after a gradient step on 10 episodes. Each is tested on 1,000 tasks and one episode of each, MAML on "
        "100 tasks and 10 episodes of each.\n\n"
        "The paper chose settings for each environment and algorithm from grids of 9 to 36; ours are the same in all "
        "four. The ± behind a published number is the standard deviation over 5 "
        "runs. `pretrained` stands beside its PPO without a memory, `rl2` beside its RL² with PPO, trials of two "
        "episodes. Physics are those of the authors' public code: what it calls MountainCar's mass is the pull of the "
        "slope, and Acrobot's centres of mass stay where they are if a link is longer. That code counts Acrobot "
        "as a success up to 90 steps, the paper up to 80."
    ),
    cells=tuple(_cells()),
    metric="successful episodes in %",
    version=1,
    small=0.1,
    small_seeds=1,
    published_runs=5,
    aggregate="percent",
)
