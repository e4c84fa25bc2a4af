"""What may happen in every iteration of training besides: end it, copy its metrics, score chosen tasks.

::

    from metarl.callbacks import EarlyStopping, TimeLimit

    train(agent, distribution, config, run, callbacks=[EarlyStopping(patience=50), TimeLimit(hours=8)])

One of your own has a method ``on_iteration``, see :class:`metarl.runs.outer_loop.Callback`.
"""

from metarl.callbacks.chosen_tasks import EvaluateTasks
from metarl.callbacks.stopping import EarlyStopping, TimeLimit
from metarl.callbacks.wandb_log import Wandb
from metarl.runs.outer_loop import Callback, Progress

__all__ = ["Callback", "EarlyStopping", "EvaluateTasks", "Progress", "TimeLimit", "Wandb"]
