"""E-MAML: pre-update actions are credited with what adaptation makes of them.

Stadie et al., 2018 (arXiv 1803.01118, eq. 7): the gradient of the return after adaptation has a second term, which
weighs the log-probabilities of the pre-update actions by the return after the update. The paper leaves open how that
return is scaled, and over what the log-probabilities are averaged. Three implementations, three answers:

* Here a task's mean return after adaptation is standardised over the tasks of the batch, and credits the actions of
  every pre-update rollout by their likelihood ratios, ``-credit mean_t[pi(a_t) / pi_b(a_t)]``. Of a return, an episode
  that ends early has its share, and the ratio makes the term a surrogate that TRPO's line search can follow; where the
  policy acted its gradient is that of the log-likelihood.
* In the comparison of Rothfuss et al., 2019 (``jonasrothfuss/ProMP``), the rewards of single steps are standardised
  over all steps of all tasks, their mean in a task is its credit, and it weighs the mean log-likelihood of the actions
  of the first rollout alone. Credits are smaller there, as the means of tasks spread less than single rewards do.
* In the authors' code (``geyang/e-maml``) the mean of a task's advantages weighs the mean negative log-likelihood of
  all pre-update actions, times a coefficient ``e_maml_lambda``; the outer loop is PPO.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from metarl.adaptation import UpdateRule
from metarl.agents.common.gradient_agent import OuterUpdate, named_rule
from metarl.agents.common.meta_gradient import Batch, MetaGradient, PolicyAt, loss_after_adaptation
from metarl.agents.maml import TRPOUpdate, TrustRegionConfig
from metarl.distributed import current
from metarl.functional.policy_losses import likelihood_ratio_loss
from metarl.networks.policy import Policy


@dataclass(frozen=True)
class EMAMLConfig(TrustRegionConfig):
    """E-MAML with a TRPO outer loop."""

    when: ClassVar[str] = "the first rollout must explore for the sake of the next ones"

    def make_rule(self, policy: Policy) -> UpdateRule:
        """The one that ``inner_rule`` names."""
        return named_rule(self, policy)

    def make_update(self, meta: MetaGradient) -> OuterUpdate:
        """TRPO on MAML's loss and the credit of pre-update actions."""
        return ExplorationUpdate(self, meta)


def loss_with_exploration(policy_at: PolicyAt, batches: Sequence[Batch]) -> Tensor:
    """MAML's loss, and for each pre-update rollout the likelihood ratio times the return after adaptation, ``[task]``.

    ``batches[-1].returns`` must be standardised over tasks.
    """
    credit = batches[-1].returns
    loss = loss_after_adaptation(policy_at, batches)
    for stage, batch in enumerate(batches[:-1]):
        log_prob = policy_at(stage).log_prob(batch.actions)
        weight = credit[:, None].expand_as(log_prob)
        loss = loss + likelihood_ratio_loss(log_prob, batch.log_probs, weight, batch.valid)
    return loss


class ExplorationUpdate:
    """TRPO on :func:`loss_with_exploration`.

    Args:
        config: settings.
        meta: policy, rule and derivatives; its meta-parameters move.
    """

    data_parallel = True

    def __init__(self, config: EMAMLConfig, meta: MetaGradient) -> None:
        self._trpo = TRPOUpdate(config, meta, loss_with_exploration)

    def components(self) -> Mapping[str, nn.Module | Optimizer]:
        """Those of TRPO."""
        return self._trpo.components()

    def __call__(self, batches: list[Batch]) -> dict[str, float]:
        """Standardise the returns after adaptation, then one TRPO step."""
        returns, every = batches[-1].returns, current().concatenate(batches[-1].returns)
        # A single task has no others to compare with: its credit is zero.
        spread = every.std(correction=0)
        credit = torch.where(spread > 0, (returns - every.mean()) / spread.clamp(min=1e-8), torch.zeros_like(returns))
        return self._trpo([*batches[:-1], dataclasses.replace(batches[-1], returns=credit)])
