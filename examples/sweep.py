"""A sweep over settings and seeds, with the statistics that make it worth reading.

Every setting is trained with the same seeds and scored on the same held-out tasks, so that both are sources of error.
"""

import numpy as np

from metarl import evaluate
from metarl.experiments import Experiment, resolve
from metarl.statistics import bootstrap_interval, crossed_interval, improvement_probability, interquartile_mean

SEEDS = (1, 2, 3)
INNER_LRS = (0.1, 0.5)


def score(inner_lr, seed, sizes):
    """Returns on held-out tasks after one gradient step, ``[task]``."""
    setup = resolve("maml-trpo", "navigation-2d", train={**sizes, "seed": seed}, settings={"inner_lr": inner_lr})
    experiment = Experiment.start(setup, name=f"lr{inner_lr}-seed{seed}")
    experiment.train()
    agent, _ = experiment.load()
    return evaluate(agent, experiment.distribution, num_tasks=20, seed=7, num_adaptations=1).returns[:, 1]


def main(sizes):
    """Print one line for each setting, and how sure it is that one beats the other."""
    scores = {rate: np.stack([score(rate, seed, sizes) for seed in SEEDS]) for rate in INNER_LRS}
    for rate, found in scores.items():
        mean, low, high = crossed_interval([found])
        print(f"inner_lr {rate}: mean {mean:.1f} ({low:.1f} .. {high:.1f}), IQM {interquartile_mean(found):.1f}")
    chance, low, high = bootstrap_interval(improvement_probability, scores[INNER_LRS[1]], scores[INNER_LRS[0]])
    print(f"chance that {INNER_LRS[1]} beats {INNER_LRS[0]} on a task: {chance:.2f} ({low:.2f} .. {high:.2f})")


if __name__ == "__main__":
    main({"num_iterations": 20, "meta_batch_size": 10, "eval_every": 20, "eval_tasks": 5})
