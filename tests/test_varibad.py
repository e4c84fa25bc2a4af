"""VariBAD: ELBO and PPO step equal float64 loops, neither touches the other's networks, and beliefs are right."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

import numpy as np
import pytest
import torch
from helpers.arms import arms, train
from helpers.countdown import HORIZON, countdown
from helpers.reference_recurrent_ppo import (
    CPU,
    SLOTS,
    TASKS,
    TrialReference,
    copies,
    gru_cell,
    linear,
    off_policy,
    play,
    randomise,
)
from torch import Tensor

from metarl.agents.varibad import Experience, VariBAD, VariBADConfig
from metarl.errors import ConfigError
from metarl.evaluation.evaluator import evaluate
from metarl.rollouts.collector import Collector
from metarl.rollouts.trial import run_trial
from metarl.types import Trial

CONFIG = VariBADConfig(
    latent_size=2,
    embedding_size=5,
    hidden_size=6,
    hidden_sizes=(7, 4),
    decoder_sizes=(5, 3),
    decode_states=True,
    kl_coef=0.3,
    episodes_per_trial=3,
    rollouts_per_task=SLOTS,
    num_epochs=1,
    num_minibatches=1,
    value_coef=0.7,
    num_vae_updates=2,
    vae_batch_size=5,
    num_elbo_terms=4,
)
ROWS = [(task, slot) for task in range(len(TASKS)) for slot in range(SLOTS)]


def build(discrete: bool, config: VariBADConfig = CONFIG) -> VariBAD:
    """An agent whose networks are far from their small initial values."""
    agent = config.build(countdown(discrete).spec, CPU, 0)
    randomise(agent.policy, agent.encoder, agent.decoders)
    return agent


def in_float64(discrete: bool, config: VariBADConfig) -> tuple[VariBAD, Trial, Trial]:
    """An agent whose input moments have seen a first trial, that trial, and one that followed."""
    torch.set_default_dtype(torch.float32)
    actor = build(discrete, config)
    first, second = off_policy(play(actor, 0), 0), off_policy(play(actor, 1), 1)
    torch.set_default_dtype(torch.float64)
    agent = build(discrete, config)
    agent.update_return_moments(first)
    agent.update_input_moments(first)
    return agent, first, second


class Reference(TrialReference):
    """Beliefs, predictions and policy of one trial after another."""

    def __init__(self, agent: VariBAD, earlier: list[Trial]) -> None:
        super().__init__(agent, agent.policy, earlier)
        self.own, self.action_dim = agent.config, agent.spec.action_dim
        self.encoder = copies(agent.encoder)
        self.decoders = {name: copies(decoder) for name, decoder in agent.decoders.items()}

    def vector(self, action: Tensor) -> Tensor:
        """The first coordinate has bounds, the second has none."""
        if self.discrete:
            return torch.eye(self.action_dim)[action]
        return torch.stack([action[..., 0].clamp(-1, 1), action[..., 1]], -1)

    def seen(self, trial: Trial, row: tuple[int, int]) -> list[Tensor]:
        """The encoder's inputs: all steps of all episodes, and what came after the last one."""
        found, last = [], trial.rollouts[-1][row]
        for rollout in trial.rollouts:
            found += [self.inputs(rollout[row].timesteps[t]) for t in range(int(rollout[row].valid.sum()))]
        t = int(last.valid.sum()) - 1
        reward = last.rewards[t] / self.reward_std
        after = (self.normalised(last.last_obs), self.vector(last.actions[t]), reward.reshape(1), torch.zeros(1))
        return [*found, torch.cat(after)]

    def beliefs(self, inputs: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Mean and log-variance after each input."""
        hidden, found = torch.zeros(self.own.hidden_size), []
        for x in inputs:
            hidden = gru_cell(self.encoder, torch.relu(linear(self.encoder, "embedding", x)), hidden)
            found.append((linear(self.encoder, "mean", hidden), linear(self.encoder, "log_variance", hidden)))
        return found

    def act(self, x: Tensor, belief: tuple[Tensor, Tensor], network: str) -> Tensor:
        x = torch.cat([x[: len(self.obs_mean)], *(part.detach() for part in belief)])
        for layer in (0, 2):
            x = torch.tanh(linear(self.params, f"{network}.{layer}", x))
        return linear(self.params, f"{network}.4", x)

    def run(self, trial: Trial, row: tuple[int, int]) -> tuple[list[dict[str, Any]], float]:
        """A trial's end is worth nothing, or what its last state is, if time ran out and the settings say so."""
        inputs, steps = self.seen(trial, row), []
        beliefs = self.beliefs(inputs)
        for rollout in trial.rollouts:
            episode = rollout[row]
            for t in range(int(episode.valid.sum())):
                now = (inputs[len(steps)], beliefs[len(steps)])
                step: dict[str, Any] = {"policy": self.policy(self.act(*now, "actor"))}
                step |= {"value": self.act(*now, "critic")[0], "reward": episode.rewards[t]}
                steps.append({**step, "action": episode.actions[t], "behaviour": episode.log_probs[t]})
        ran_out = bool(trial.rollouts[-1][row].truncated.any()) and self.own.bootstrap_trials
        return steps, self.act(inputs[-1], beliefs[-1], "critic")[0].item() if ran_out else 0.0

    def predict(self, name: str, latent: Tensor, step: Tensor) -> Tensor:
        params = self.decoders[name]
        known = linear(params, "from_step.2", torch.relu(linear(params, "from_step.0", step)))
        first = torch.relu(params["from_latent.weight"] @ latent + known)
        return linear(params, "rest.3", torch.relu(linear(params, "rest.1", first)))

    def decoded(self, trial: Trial, row: tuple[int, int]) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Observation, action, next observation and reward of every step."""
        found = []
        for rollout in trial.rollouts:
            episode = rollout[row]
            num = int(episode.valid.sum())
            obs = [self.normalised(x) for x in [*episode.obs[:num], episode.last_obs]]
            for t in range(num):
                reward = episode.rewards[t] / self.reward_std
                found.append((obs[t], self.vector(episode.actions[t]), obs[t + 1], reward))
        return found

    def vae_loss(self, trial: Trial, terms: list[list[int]], steps: list[list[int]], noise: Tensor) -> Tensor:
        """Minus the ELBO of chosen beliefs (given by row) and decoded steps, averaged over all beliefs."""
        total, num_beliefs = torch.zeros(()), 0
        for number, row in enumerate(ROWS):
            beliefs, decoded = self.beliefs(self.seen(trial, row)), self.decoded(trial, row)
            num_beliefs += len(beliefs)
            mean_before, log_variance_before = torch.zeros(2), torch.zeros(2)
            for mean, log_variance in beliefs:
                ratio = (log_variance - log_variance_before).exp()
                gap = (mean - mean_before) ** 2 / log_variance_before.exp()
                kl = 0.5 * (ratio + gap - 1 - (log_variance - log_variance_before)).sum()
                total = total + self.own.kl_coef * kl
                mean_before, log_variance_before = mean, log_variance
            share = len(beliefs) / len(terms[number]) * len(decoded) / len(steps[number])
            for place, t in enumerate(terms[number]):
                latent = beliefs[t][0] + (0.5 * beliefs[t][1]).exp() * noise[number, place]
                for i in steps[number]:
                    obs, action, following, reward = decoded[i]
                    known = torch.cat([obs, action, following])
                    error = (self.predict("rewards", latent, known)[0] - reward) ** 2
                    states = (self.predict("states", latent, known[: -len(obs)]) - following) ** 2
                    total = total + share * (error + states.mean())
        return total / num_beliefs


# Equal to plain loops -------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("discrete", "num_terms", "num_steps"), [(True, 0, 0), (False, 0, 0), (True, 4, 3)])
def test_elbo_and_its_gradient_equal_the_reference(discrete: bool, num_terms: int, num_steps: int) -> None:
    """Every belief of every trial, the one after the last action included, decodes every step, past and future."""
    config = dataclasses.replace(CONFIG, num_elbo_terms=num_terms, num_decoded_steps=num_steps)
    agent, first, trial = in_float64(discrete, config)
    agent.seed(0)
    batch = agent.experience(trial)
    terms = agent.choose(batch.seen, num_terms)
    steps = agent.choose(batch.trials.valid, num_steps)
    noise = torch.randn(*terms[0].shape, 2, generator=agent.generator)
    loss, _ = agent.vae_loss(batch, terms, steps, noise)

    reference = Reference(agent, [first])
    chosen = [
        [[int(i) for i, valid in zip(index, mask.gather(0, index), strict=True) if valid] for index, mask in rows]
        for rows in (zip(terms[0], batch.seen, strict=True), zip(steps[0], batch.trials.valid, strict=True))
    ]
    lengths = [sum(int(r.lengths[row]) for r in trial.rollouts) for row in ROWS]
    assert [len(row) for row in chosen[0]] == [min(num_terms or 99, length + 1) for length in lengths]
    assert [len(row) for row in chosen[1]] == [min(num_steps or 99, length) for length in lengths]
    # Invalid places come last, so that those of the valid ones are the places in the lists.
    expected = reference.vae_loss(trial, chosen[0], chosen[1], noise)
    assert abs(float(loss - expected)) < 1e-8 * float(expected)

    networks = {"encoder": reference.encoder, **{f"decoders.{k}": v for k, v in reference.decoders.items()}}
    wanted = {f"{name}.{key}": value for name, params in networks.items() for key, value in params.items()}
    gradients = dict(zip(wanted, torch.autograd.grad(expected, list(wanted.values())), strict=True))
    loss.backward()  # type: ignore[no-untyped-call]
    for name, part in (("encoder", agent.encoder), ("decoders", agent.decoders)):
        for key, parameter in part.named_parameters():
            gradient = gradients.pop(f"{name}.{key}")
            assert parameter.grad is not None and gradient.abs().max() > 1e-6, key
            assert (parameter.grad - gradient).abs().max() < 1e-8 * (1 + gradient.abs().max()), key
    assert not gradients


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("discrete", "bootstrap"), [(True, False), (False, True)])
def test_ppo_step_equals_the_reference(discrete: bool, bootstrap: bool) -> None:
    """On the beliefs as they were, with advantages that run on across the ends of episodes."""
    config = dataclasses.replace(CONFIG, bootstrap_trials=bootstrap, max_grad_norm=0.05)
    agent, first, trial = in_float64(discrete, config)
    ran_out = trial.rollouts[-1].truncated.any(-1)
    assert ran_out.any() and not ran_out.all()
    reference = Reference(agent, [first])
    expected = reference.step(trial, reference.return_std([first, trial]))
    metrics = agent.meta_update(trial)
    for name, parameter in agent.policy.named_parameters():
        assert (parameter - expected[name]).abs().max() < 1e-8, name
        assert (parameter - reference.params[name]).abs().max() > 1e-6, name
    assert all(math.isfinite(value) for value in metrics.values())
    assert metrics.keys() >= {"vae_loss", "reward_error", "state_error", "belief_kl"}


@pytest.mark.parametrize("discrete", [True, False])
def test_recomputed_log_probs_equal_those_of_acting(discrete: bool) -> None:
    agent = build(discrete)
    agent.meta_update(play(agent, 0))
    trial = play(agent, 1)
    batch = agent.acted_steps(agent.experience(trial), trial.rollouts[-1])
    policy, _ = agent.evaluate(batch)
    num_steps = sum(int(r.valid.sum()) for r in trial.rollouts)
    assert batch.valid.shape == (num_steps, 1) and batch.valid.all()
    assert (policy.log_prob(batch.actions) - batch.log_probs).abs().max() < 1e-5
    blind = dataclasses.replace(batch, inputs=batch.inputs.index_fill(2, torch.arange(2, 6), 0.0))
    assert (agent.evaluate(blind)[0].log_prob(batch.actions) - batch.log_probs).abs().max() > 1e-3


def test_ppo_moves_the_policy_alone_and_the_elbo_encoder_and_decoders_alone() -> None:
    agent = build(True)
    trial = play(agent, 0)
    experience = agent.experience(trial)

    def moved(update: Any) -> dict[str, bool]:
        before = {name: tensor.clone() for name, tensor in agent.named_tensors().items()}
        update()
        after = agent.named_tensors()
        parts = ("policy", "encoder", "decoders")
        return {p: any(not torch.equal(before[n], after[n]) for n in before if n.startswith(p)) for p in parts}

    steps = agent.acted_steps(experience, trial.rollouts[-1])
    assert moved(lambda: agent.improve(steps)) == {"policy": True, "encoder": False, "decoders": False}
    changes = moved(lambda: agent.improve_belief(experience))
    assert changes == {"policy": False, "encoder": True, "decoders": True}


def test_drawn_terms_are_valid_distinct_and_estimate_the_whole_sum_without_bias() -> None:
    agent = build(True)
    valid = torch.arange(6) < torch.tensor([[1], [4], [6]])
    values = torch.tensor([[3.0, 0, 0, 0, 0, 0], [1.0, 2, 3, 4, 0, 0], [5.0, 1, 4, 1, 5, 9]])
    estimates = []
    for _ in range(4000):
        index, weight = agent.choose(valid, 3)
        assert index.shape == (3, 3) and all(len(set(row.tolist())) == 3 for row in index)
        assert torch.equal(weight > 0, valid.gather(1, index))
        estimates.append((values.gather(1, index) * weight).sum(1))
    found = torch.stack(estimates)
    # 5 standard errors; the first row has one value, which is always drawn.
    error = 5 * found.std(0) / len(estimates) ** 0.5
    assert ((found.mean(0) - values.sum(1)).abs() <= error + 1e-5).all() and error[0] < 1e-6
    assert (error[1:] > 0).all()
    assert torch.equal(agent.choose(valid, 0)[1].sum(1), torch.tensor([1.0, 4.0, 6.0]))


def test_experience_ends_with_what_was_seen_after_the_last_action() -> None:
    agent = build(True)
    trial = play(agent, 0)
    batch = agent.experience(trial)
    last = trial.rollouts[-1]
    for number, row in enumerate(ROWS):
        length = int(batch.trials.valid[number].sum())
        assert batch.seen[number].sum() == length + 1 == 1 + sum(int(r.lengths[row]) for r in trial.rollouts)
        final, t = batch.trials.inputs[number, length], int(last.lengths[row]) - 1
        expected = torch.cat([last.last_obs[row], torch.eye(3)[last.actions[row][t]], last.rewards[row][t].reshape(1)])
        assert torch.equal(final, torch.cat([expected, torch.zeros(1)]))
        assert not batch.seen[number, length + 1 :].any()
    assert batch.seen.shape[1] == int(batch.seen.sum(1).max()) <= 3 * HORIZON + 1


# Probes ---------------------------------------------------------------------------------------------------------------


PROBE = VariBADConfig(
    latent_size=2,
    embedding_size=16,
    hidden_size=16,
    hidden_sizes=(16,),
    decoder_sizes=(16,),
    meta_lr=1e-2,
    vae_lr=1e-2,
    num_epochs=4,
    entropy_coef=0.0,
    num_vae_updates=10,
    vae_batch_size=64,
    num_elbo_terms=0,
)


def test_best_arm_is_pulled_from_the_second_pull_on() -> None:
    """Within one episode, and from the first pull on in the second episode: the belief outlives an episode's end."""
    distribution = arms(num_pulls=3)
    agent = PROBE.build(distribution.spec, CPU, 0)
    train(agent, distribution, 40, 64)
    found = evaluate(agent, distribution, num_tasks=300, num_adaptations=1, seed=1)
    first, second = found.returns.mean(0)
    assert 2.35 < first < 2.65 and second / 3 >= 0.95, (first, second)


def test_belief_predicts_both_arms_after_one_pull_of_either() -> None:
    """Two arms, one of which pays. Before the first pull both are worth 1/2; after it nothing is uncertain.

    The policy stays as it was, nearly uniform: what it does not do, a belief trained on its trials need not know.
    """
    distribution = arms(num_pulls=3)
    agent = dataclasses.replace(PROBE, meta_lr=1e-9, num_epochs=1).build(distribution.spec, CPU, 0)
    train(agent, distribution, 30, 64)
    tasks = [{"means": np.eye(2)[best]} for best in (0, 1) for _ in range(20)]
    trial = run_trial(agent, Collector(distribution, 1, CPU), tasks, 1, 0)
    assert 0.4 < trial.rollouts[0].returns.mean() / 3 < 0.6
    batch = agent.experience(trial)
    errors = reward_errors(agent, batch)
    assert abs(errors[0] - 0.25) < 0.05 and (errors[1:] < 0.02).all(), errors
    belief, _ = agent.encoder(batch.trials.inputs, agent.no_memory(len(tasks)))
    # Near the prior at first, then narrower, and apart for every pair of different tasks.
    spread = belief.log_std.exp().amin(2).mean(0)
    apart = (belief.mean[:20, None, 1] - belief.mean[None, 20:, 1]).abs().amax(-1)
    assert spread[0] > 0.5 and spread[-1] < 0.5 * spread[0] and apart.min() > 0.5, (spread, apart.min())


@torch.no_grad()
def reward_errors(agent: VariBAD, batch: Experience) -> Tensor:
    """Squared error of predicted rewards of both arms, in units of the reward, by the step of the belief."""
    belief, _ = agent.encoder(batch.trials.inputs, agent.no_memory(len(batch.seen)))
    known = torch.zeros(len(batch.seen), 2, batch.steps.shape[-1])
    known[:, :, 1:3] = torch.eye(2)
    predicted = agent.decoders["rewards"](belief.mean, known)[..., 0] * agent.reward_moments.std
    paid = torch.eye(2).repeat_interleave(len(batch.seen) // 2, 0)
    return (predicted - paid[:, None]).square().mean((0, 2))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("latent_size", 0),
        ("kl_coef", -0.1),
        ("num_elbo_terms", -1),
        ("decoder_sizes", ()),
        ("hidden_sizes", (4, 0)),
        ("episodes_per_trial", 0),
    ],
)
def test_impossible_setting_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"VariBADConfig\.{field} must .*{re.escape(str(value))}"):
        VariBADConfig(**{field: value})
