"""CartPole in five variants, MAML-TRPO and RL² beside each other, of no paper and in minutes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from metarl.benchmarks.reproduce.agents import AgentSource
from metarl.benchmarks.reproduce.table import PaperTable, TableCell

_VARIANTS = ("cartpole", "cartpole-random", "cartpole-extreme", "cartpole-goal", "cartpole-mirrored")

_BUDGETS: Mapping[str, Mapping[str, Any]] = {
    "maml-trpo": {"num_iterations": 20, "meta_batch_size": 10, "eval_every": 20},
    "rl2": {"num_iterations": 100, "meta_batch_size": 100, "eval_every": 100},
}
"""Episodes: 10 tasks x 20 x 2 rollouts x 20 iterations, 8,000; 100 tasks x 2 x 100, 20,000.

RL² learns to balance first, and on cartpole-goal to search from its 42nd iteration on (seed 101)."""


def _cells() -> Iterator[TableCell]:
    for tasks in _VARIANTS:
        for agent, train in _BUDGETS.items():
            source = AgentSource(agent, tasks, train=train, num_tasks=100)
            for shot in range(2):
                yield TableCell(f"{tasks}, {agent}", f"shot {shot}", source, (1, 2, 3), measure=str(shot))


TABLE = PaperTable(
    name="cartpole",
    title="CartPole variants",
    about=(
        "Mean return within 200 steps on 100 held-out tasks, before and after one adaptation: a gradient step on 20 "
        "episodes, or for RL² one episode seen before. `cartpole` is the single task of Gymnasium, `-random` and "
        "`-extreme` are the physics of Packer et al. (arXiv 1810.12282), in `-goal` the cart must go to a hidden "
        "position, in `-mirrored` the actions may be swapped. MAML-TRPO is trained for 8,000 episodes, RL² for 20,000; "
        "what more training gives is on the page of [cartpole-goal](../cartpole-goal/README.md)."
    ),
    cells=tuple(_cells()),
    metric="return",
    version=2,
    small=0.1,
    small_seeds=1,
)
