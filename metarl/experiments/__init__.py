"""Experiments: from an agent and tasks to a run.

A script's way to what ``metarl train`` does, with a run that every command takes::

    from metarl.experiments import Experiment, resolve

    setup = resolve("maml-trpo", "bandit", train={"num_iterations": 50}, settings={"inner_lr": 0.2})
    experiment = Experiment.start(setup)  # runs/maml-trpo-bandit-seed1
    experiment.train()
    agent, iteration = experiment.load()

Agent and tasks may also be a config and a distribution: ``resolve(MyConfig(inner_lr=0.2), pendulums)``.
"""

from metarl.experiments.experiment import Experiment
from metarl.experiments.setup import Setup, resolve

__all__ = ["Experiment", "Setup", "resolve"]
