"""RL² (Duan et al. 2016, arXiv 1611.02779), Table 2: random MDPs."""

from __future__ import annotations

from collections.abc import Iterator

from metarl.benchmarks.mdps.source import MDPSource
from metarl.benchmarks.mdps.strategies import candidates
from metarl.benchmarks.papers import rows_of
from metarl.benchmarks.reproduce.agents import AgentSource
from metarl.benchmarks.reproduce.table import PaperTable, TableCell

_LENGTHS = (10, 25, 50, 75, 100)
_TASKS = "tabular-mdp"
_SEEDS = (1, 2, 3)


def _cells() -> Iterator[TableCell]:
    paper, snail = rows_of("RL2", "Table 2"), rows_of("SNAIL", "Table 4")
    for name in candidates():
        # Twenty settings of up to 20 samples each.
        source = MDPSource(name, _TASKS, _LENGTHS, num_tuning=200 if name == "OPSRL" else 500)
        for length in _LENGTHS:
            yield TableCell(name, f"n={length}", source, (1,), paper[f"n={length}", name], measure=str(length))
    for length in (10, 25):
        agent = AgentSource("rl2", _TASKS, settings={"episodes_per_trial": length}, whole_trial=True)
        yield TableCell("RL2", f"n={length}", agent, _SEEDS, paper[f"n={length}", "RL2"], on_request=True)
    yield TableCell(
        "SNAIL",
        "n=10",
        AgentSource("snail", _TASKS, whole_trial=True),
        _SEEDS,
        snail["N=10", "SNAIL"],
        not_comparable="the paper has the share of what value iteration earns",
        on_request=True,
    )


TABLE = PaperTable(
    name="rl2-mdps",
    title="RL², Table 2: random MDPs",
    about=(
        "Ten states and five actions, whose rewards have means from N(1, 1) and noise from N(0, 1), and whose next "
        "states are drawn from flat Dirichlet distributions; n episodes of ten steps. The strategies plan before each "
        "episode; their settings (epsilon, the samples of OPSRL, the scales of BEB's bonus and of UCRL2's confidence) "
        "are chosen on training tasks from the grids of the authors' script, where the paper chose them on the 1,000 "
        "instances that it reports. They are those of `iosband/TabulaRL`, which that script runs, with its priors: "
        "means of rewards around 0, where they are drawn around 1. On the script's own instances, seeds 0 to 999 of "
        "NumPy's old generator, the same strategies come to the paper's numbers but for the noise of rewards, as a "
        "test shows for n=10.\n\n"
        "`RL2` and `SNAIL` are trained if `--cells` asks for them; SNAIL's number is that of its own paper (arXiv "
        "1707.03141, Table 4)."
    ),
    cells=tuple(_cells()),
    metric="total reward of a trial",
    version=1,
    small=0.05,
    published_tasks=1000,
)
