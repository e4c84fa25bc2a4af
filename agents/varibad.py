"""VariBAD: a policy that acts on a learned belief over the task.

Zintgraf et al., 2020 (arXiv 1910.08348). A recurrent encoder turns the trial so far into an approximate posterior
``q(m | tau_:t)`` over a latent task ``m``, trained as a variational auto-encoder: a sample of ``m`` at every ``t`` must
let a decoder predict the rewards (and next states, if asked) of *all* steps of the trial, past and future, while the
posterior stays near the one before it and the first near N(0, I) (section 3.1)::

    ELBO_t = E_{m ~ q(m | tau_:t)} [log p(tau_:H+ | m)] - KL(q(m | tau_:t) || q(m | tau_:t-1))

The policy sees the observation with mean and log-variance of the belief, and is trained by PPO on the return of the
trial; no gradient of PPO reaches the encoder (section 3.2).

Where this differs from the authors' code (``lmzintgraf/varibad``):

* The encoder learns from the trials of the iteration, not from a buffer of 10,000 trials: a checkpoint stays small, but
  what the policy no longer meets need not be predicted any more (an arm that is never pulled, for one).
* The first belief has seen the first observation, as ``tau_:0`` has in the paper; the code's has seen nothing.
  Between two episodes the encoder sees the new episode's first observation with a done flag, not the old one's last.
* Encoder and decoder see the normalised observations and rewards that the policy sees, not raw ones.
* Subsampled terms of the ELBO are weighted such that the sum over all of them is estimated without bias; the code adds
  up what it drew, so there its weight depends on how much that is. Lengths of trials may differ.
* One ReLU layer embeds the encoder's whole input, and the value loss is the plain squared error, as in RL².
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Annotated, ClassVar, Literal

import torch
import tyro
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from metarl.agents.common.recurrent_ppo import (
    OwnRows,
    RecurrentPPO,
    RecurrentPPOConfig,
    Sequences,
    Trials,
    end_to_end,
    take,
)
from metarl.config.settings import Count, Natural, Positive, SomeCounts, refuse_idle
from metarl.distributed import current
from metarl.networks.actions import encoded_actions, policy_distribution
from metarl.networks.belief import BeliefEncoder, BeliefHyperPolicy, BeliefPolicy, Decoder
from metarl.networks.distributions import DiagGaussian, Distribution
from metarl.seeding import torch_stream
from metarl.types import Rollout, Spec, Timestep, Trial


@dataclass(frozen=True)
class VariBADConfig(RecurrentPPOConfig):
    """VariBAD with PPO."""

    when: ClassVar[str] = "as rl2, where rewards or dynamics tell the task: it predicts them"
    renamed: ClassVar[Mapping[str, str]] = {
        **RecurrentPPOConfig.renamed,
        "vae_learning_rate": "vae_lr",
        "kl_weight": "kl_coef",
    }

    latent_size: Count = 5
    """Coordinates of the latent task."""
    embedding_size: Count = 64
    """Units between the encoder's input and its GRU."""
    hidden_size: Count = 128
    """Units of the encoder's GRU."""
    hidden_sizes: SomeCounts = (128, 128)
    """Widths of the hidden layers of policy and value."""
    head: Literal["state", "hypernetwork"] = "state"
    """What policy and value are: MLPs on observation and belief; or MLPs on the observation alone whose weights
    hypernetworks make of the belief (Beck et al., 2022)."""
    code_size: Count = 25
    """Numbers that a hypernetwork sees of the belief; it costs as many times the MLP."""
    decoder_sizes: SomeCounts = (64, 32)
    """Widths of the hidden layers of the decoder."""
    decode_states: bool = False
    """Decode next states too; for tasks that differ in their dynamics."""
    kl_coef: Annotated[Positive, tyro.conf.arg(aliases=["--kl-weight"])] = 0.1
    """Weight of the KL between successive beliefs in the ELBO."""
    vae_lr: Annotated[Positive, tyro.conf.arg(aliases=["--vae-learning-rate"])] = 1e-3
    """Adam's step size for encoder and decoder."""
    num_vae_updates: Count = 3
    """Steps on the ELBO in one iteration."""
    vae_batch_size: Count = 25
    """Trials in one of these steps, or all of the iteration if these are fewer."""
    num_elbo_terms: Natural = 50
    """Beliefs of a trial, drawn at random, that are decoded; 0: all."""
    num_decoded_steps: Natural = 0
    """Steps of a trial, drawn at random, that each belief has to decode; 0: all."""
    bootstrap_trials: bool = False
    """Value the state in which time ran out on a trial, instead of nothing: where the limit is no part of the task."""

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_idle(self, "head", ["hypernetwork"], ["code_size"])

    def make_policy(self, spec: Spec) -> BeliefPolicy | BeliefHyperPolicy:
        """Policy and value."""
        sizes = (spec, self.latent_size, self.hidden_sizes, self.init_std)
        return BeliefPolicy(*sizes) if self.head == "state" else BeliefHyperPolicy(*sizes, self.code_size)

    def build(self, spec: Spec, device: torch.device, seed: int) -> VariBAD:
        """A fresh agent."""
        return VariBAD(self, spec, device, seed)


@dataclass(frozen=True)
class Experience:
    """Whole trials, and what the decoder has to know of them.

    Attributes:
        trials: the steps of each trial and one more, which holds what was seen after the last action.
        seen: ``[sequence, time]`` bool, where the encoder has an input: all steps, and the one after them.
        steps: ``[sequence, time, 2 obs_dim + action_dim]`` observation, action and next observation.
    """

    trials: Trials
    seen: Tensor
    steps: Tensor

    def __getitem__(self, rows: Tensor) -> Experience:
        trials = Trials(*(getattr(self.trials, field.name)[rows] for field in fields(Trials)))
        return Experience(trials, self.seen[rows], self.steps[rows])


class VariBAD(RecurrentPPO):
    """Its state is that of the encoder's GRU.

    Args:
        config: settings.
        spec: sizes of observation and action.
        device: where everything lives.
        seed: seed for the initial parameters.
    """

    config: VariBADConfig

    def __init__(self, config: VariBADConfig, spec: Spec, device: torch.device, seed: int) -> None:
        with torch_stream(seed, "init"):
            policy = config.make_policy(spec)
            encoder = BeliefEncoder(spec, config.embedding_size, config.hidden_size, config.latent_size)
            # Rewards of (observation, action, next observation), next observations of (observation, action).
            known = spec.obs_dim + spec.action_dim
            outputs = {"rewards": (known + spec.obs_dim, 1)}
            if config.decode_states:
                outputs["states"] = (known, spec.obs_dim)
            decoders = {
                name: Decoder(config.latent_size, step_size, config.decoder_sizes, output_size)
                for name, (step_size, output_size) in outputs.items()
            }
        super().__init__(config, spec, device, policy.to(device), config.hidden_size)
        self.policy = policy
        self.encoder = encoder.to(device)
        self.decoders = nn.ModuleDict(decoders).to(device)
        self._vae_parameters = [*self.encoder.parameters(), *self.decoders.parameters()]
        self.vae_optimizer = Adam(self._vae_parameters, lr=config.vae_lr)

    def components(self) -> Mapping[str, nn.Module | Optimizer]:
        """Networks, normalisers and both optimisers."""
        return {
            "policy": self.policy,
            "encoder": self.encoder,
            "decoders": self.decoders,
            "vae_optimizer": self.vae_optimizer,
            **self._shared_components(),
        }

    def adapt(self, state: Tensor, rollout: Rollout) -> Tensor:
        """Nothing to do: the belief has followed the episode, and the collector shows it the last reward."""
        return state

    def meta_update(self, trial: Trial) -> dict[str, float]:
        """PPO on the beliefs that the policy acted on, then several steps on the ELBO."""
        self.update_return_moments(trial)
        experience = self.experience(trial)
        metrics = self.improve(self.acted_steps(experience, trial.rollouts[-1]))
        metrics |= self.improve_belief(experience)
        self.update_input_moments(trial)
        return metrics

    # The policy -----------------------------------------------------------------------------------------------------

    def forward(self, inputs: Tensor, memory: Tensor) -> tuple[Distribution, Tensor, Tensor]:
        """See :meth:`RecurrentPPO.forward`."""
        belief, memory = self.encoder(inputs, memory)
        out, values = self.policy(self._on_belief(inputs, belief))
        return self._distribution(out), values, memory

    def evaluate(self, batch: Sequences) -> tuple[Distribution, Tensor]:
        """See :meth:`RecurrentPPO.evaluate`."""
        out, values = self.policy(batch.inputs)
        return self._distribution(out), values

    def _on_belief(self, inputs: Tensor, belief: DiagGaussian) -> Tensor:
        """What the policy sees: the observation, which ``inputs`` begin with, means and log-variances."""
        return torch.cat([inputs[..., : self.spec.obs_dim], belief.mean, 2.0 * belief.log_std], dim=-1)

    def _distribution(self, out: Tensor) -> Distribution:
        return policy_distribution(self.spec, out, self.policy.log_std if self.spec.num_coordinates else None)

    @torch.no_grad()
    def acted_steps(self, experience: Experience, last: Rollout) -> Sequences:
        """Every step by itself, since the beliefs are given: minibatches are drawn over steps, not over trials."""
        trials = experience.trials
        belief, _ = self.encoder(trials.inputs, self.no_memory(len(trials.inputs)))
        inputs = self._on_belief(trials.inputs, belief)
        _, values = self.policy(inputs)
        last_value = torch.zeros_like(values[:, 0])
        if self.config.bootstrap_trials:
            after = values.gather(1, trials.valid.sum(1, keepdim=True)).squeeze(1)
            last_value = torch.where(last.truncated.any(2).flatten(), after, last_value)
        nothing = values.new_zeros(*values.shape, 0)
        return self.with_advantages(replace(trials, inputs=inputs), values, last_value, nothing, 1)

    # The belief -----------------------------------------------------------------------------------------------------

    def improve_belief(self, experience: Experience) -> dict[str, float]:
        """Several steps on the ELBO of trials drawn at random, from those of all ranks."""
        config, group, own = self.config, current(), OwnRows.of(len(experience.seen))
        names = ("vae_loss", "reward_error", *(("state_error",) if config.decode_states else ()), "belief_kl")
        metrics: list[Tensor] = []
        for _ in range(config.num_vae_updates):
            rows = torch.randperm(own.total, generator=self.generator, device=self.device)[: config.vae_batch_size]
            batch, mine = experience[own.among(rows)], own.mask(rows)
            # Drawn for the rows of all ranks, so that what a trial gets does not depend on who has it.
            terms = self.choose(batch.seen, config.num_elbo_terms, mine)
            steps = self.choose(batch.trials.valid, config.num_decoded_steps, mine)
            shape = (len(rows), terms[0].shape[1], config.latent_size)
            noise = torch.randn(shape, generator=self.generator, device=self.device, dtype=batch.steps.dtype)[mine]
            self.vae_optimizer.zero_grad()
            found = torch.zeros(len(names), device=self.device)
            if len(batch.seen):
                loss, errors = self.vae_loss(batch, terms, steps, noise)
                loss.backward()  # type: ignore[no-untyped-call]
                found = torch.stack([loss, *(errors[name] for name in names[1:])]).detach()
            num_beliefs = batch.seen.sum()
            group.average_gradients(self._vae_parameters, num_beliefs)
            nn.utils.clip_grad_norm_(self._vae_parameters, config.max_grad_norm)
            self.vae_optimizer.step()
            num_decoded = (batch.seen.sum(1) * batch.trials.valid.sum(1)).sum()
            ends = group.average(found[[0, -1]], num_beliefs)
            metrics.append(torch.cat([ends[:1], group.average(found[1:-1], num_decoded), ends[1:]]))
        return dict(zip(names, torch.stack(metrics).mean(0).tolist(), strict=True))

    def vae_loss(
        self, batch: Experience, terms: tuple[Tensor, Tensor], steps: tuple[Tensor, Tensor], noise: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Minus the ELBO, averaged over the beliefs of all trials, with squared errors as log-likelihoods.

        Args:
            batch: trials.
            terms: which beliefs are decoded, ``[sequence, belief]``, and how much each counts.
            steps: which steps they decode, ``[sequence, step]``, and how much each counts.
            noise: ``[sequence, belief, latent]`` standard normal.

        Returns:
            The loss, and by name the mean error of a decoded step and the mean KL of a belief.
        """
        trials, obs_dim = batch.trials, self.spec.obs_dim
        belief, _ = self.encoder(trials.inputs, self.no_memory(len(trials.inputs)))
        num_beliefs = batch.seen.sum()
        before = DiagGaussian(*(_shifted(parameter) for parameter in belief.parameters))
        kl = (belief.kl(before) * batch.seen).sum() / num_beliefs

        terms_index, terms_weight = terms
        steps_index, steps_weight = steps
        latents = take(belief.mean, terms_index) + take(belief.log_std, terms_index).exp() * noise
        known = take(batch.steps, steps_index)
        rewards = self.normalised_rewards(take(trials.rewards, steps_index))
        weight = terms_weight[:, :, None] * steps_weight[:, None, :]

        def error(decoder: str, given: Tensor, target: Tensor) -> Tensor:
            """Summed over decoded steps, averaged over beliefs; of a vector the mean over its coordinates."""
            squared: Tensor = (self.decoders[decoder](latents, given) - target.unsqueeze(1)).square().mean(-1)
            return (squared * weight).sum() / num_beliefs

        errors = {"reward_error": error("rewards", known, rewards[..., None])}
        if self.config.decode_states:
            errors["state_error"] = error("states", known[..., :-obs_dim], known[..., -obs_dim:])
        loss = torch.stack([*errors.values()]).sum() + self.config.kl_coef * kl
        per_step = num_beliefs / weight.sum()
        return loss, {name: value * per_step for name, value in errors.items()} | {"belief_kl": kl}

    def choose(self, valid: Tensor, num: int, mine: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Draw up to ``num`` valid steps of every row, all if it is 0, without replacement.

        Args:
            valid: ``[row, step]`` bool.
            num: steps of a row.
            mine: ``[row of all ranks]`` bool, which rows of a batch on several ranks ``valid`` has; default: all.

        Returns:
            Indices ``[row, step]``, and weights with which a sum over them estimates the sum over all valid steps.
        """
        num = min(num or valid.shape[1], valid.shape[1])
        # Padding sorts behind everything.
        num_rows = len(valid) if mine is None else len(mine)
        drawn = torch.rand((num_rows, valid.shape[1]), generator=self.generator, device=self.device)
        keys = (drawn if mine is None else drawn[mine]) + (~valid).float()
        index = keys.argsort(dim=1)[:, :num]
        chosen = valid.gather(1, index)
        weight: Tensor = chosen * (valid.sum(1, keepdim=True) / chosen.sum(1, keepdim=True))
        return index, weight

    @torch.no_grad()
    def experience(self, trial: Trial) -> Experience:
        """Lay the episodes of each trial end to end, and behind them what was seen after the last action."""
        episodes = [self._episode(rollout) for rollout in trial.rollouts]
        last = trial.rollouts[-1]
        final = (last.lengths - 1)[..., None]
        action, reward = (take(x.flatten(0, 1), final.flatten(0, 1)) for x in (last.actions, last.rewards))
        one = (*last.lengths.shape, 1)
        after = Timestep(
            obs=last.last_obs.unsqueeze(2),
            prev_action=self._action_vectors(action).view(*one, self.spec.action_dim),
            prev_reward=reward.view(one),
            prev_done=torch.zeros_like(reward).view(one),
            valid=torch.ones(one, dtype=torch.bool, device=self.device),
        )
        nothing = [torch.zeros_like(part[:, :, :1]) for part in episodes[-1][1:-1]]
        episodes.append((self._inputs(after), *nothing, after.valid))
        inputs, actions, log_probs, rewards, steps, acted, seen = end_to_end(episodes)
        return Experience(Trials(inputs, actions, log_probs, rewards, acted), seen, steps)

    def _episode(self, rollout: Rollout) -> tuple[Tensor, ...]:
        inputs = self._inputs(rollout.timesteps)
        obs = inputs[..., : self.spec.obs_dim]
        last_obs = self._normalised_obs(rollout.last_obs).unsqueeze(2)
        following = torch.cat([obs[:, :, 1:], last_obs], dim=2)
        is_last = torch.arange(obs.shape[2], device=self.device) == (rollout.lengths - 1)[..., None]
        following = torch.where(is_last[..., None], last_obs, following)
        steps = torch.cat([obs, self._action_vectors(rollout.actions), following], dim=-1)
        return inputs, rollout.actions, rollout.log_probs, rollout.rewards, steps, rollout.valid, rollout.valid

    def _action_vectors(self, actions: Tensor) -> Tensor:
        """Actions as the encoder sees them: one-hot, or clipped to the normalised box."""
        return encoded_actions(self.spec, actions).to(torch.get_default_dtype())


def _shifted(x: Tensor) -> Tensor:
    """One step later in time, zeros first: the parameters of the belief before, and of N(0, I) before the first."""
    return torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], dim=1)
