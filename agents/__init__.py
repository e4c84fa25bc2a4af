"""Agents, one file per algorithm, and the names by which the command line knows them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from metarl.agent import AgentConfig
from metarl.agents.anil import ANILConfig
from metarl.agents.common.gradient_agent import GradientAgent, GradientConfig
from metarl.agents.emaml import EMAMLConfig
from metarl.agents.fomaml import FOMAMLConfig
from metarl.agents.maml import MAMLTRPOConfig
from metarl.agents.maml_ppo import MAMLPPOConfig
from metarl.agents.meta_lstm import MetaLSTMConfig
from metarl.agents.meta_sgd import MetaSGDConfig
from metarl.agents.promp import ProMPConfig
from metarl.agents.references import OracleConfig, PretrainedConfig, RandomAgent, RandomConfig
from metarl.agents.reptile import ReptileConfig
from metarl.agents.rl2 import RL2, RL2Config, SNAILConfig
from metarl.agents.varibad import VariBAD, VariBADConfig


@dataclass(frozen=True)
class AgentEntry:
    """A named agent.

    Attributes:
        config: its settings.
        when: when to choose it.
        told_task: whether the task's numbers are appended to its observations.
        shot: what it adapts by.
    """

    config: type[AgentConfig]
    when: str
    told_task: bool = False
    shot: Literal["gradient step", "episode"] = "gradient step"


AGENTS = {
    "maml-trpo": AgentEntry(MAMLTRPOConfig, "few gradient steps must suffice, and adapting further must not hurt"),
    "maml-ppo": AgentEntry(MAMLPPOConfig, "as maml-trpo, with cheaper updates and several of them on each batch"),
    "promp": AgentEntry(ProMPConfig, "as maml-ppo, held near the policies that collected the pre-update data"),
    "e-maml": AgentEntry(EMAMLConfig, "the first rollout must explore for the sake of the next ones"),
    "reptile": AgentEntry(ReptileConfig, "the simplest baseline of meta-learning: no derivative of adaptation"),
    "fomaml": AgentEntry(FOMAMLConfig, "second-order products cost too much; first-order MAML"),
    "anil": AgentEntry(ANILConfig, "features can be shared by all tasks and only the last layer must adapt"),
    "meta-sgd": AgentEntry(MetaSGDConfig, "a good step size is not known, or differs between parameters"),
    "meta-lstm": AgentEntry(
        MetaLSTMConfig, "gradient descent adapts too little in the steps there are: learn the step"
    ),
    "rl2": AgentEntry(
        RL2Config, "tasks must be explored within an episode, and training data is plentiful", shot="episode"
    ),
    "snail": AgentEntry(
        SNAILConfig, "as rl2, where what matters was seen long ago; trials of up to some hundred steps", shot="episode"
    ),
    "varibad": AgentEntry(
        VariBADConfig, "as rl2, where rewards or dynamics tell the task: it learns to predict them", shot="episode"
    ),
    "pretrained": AgentEntry(PretrainedConfig, "reference: one policy over all tasks, fine-tuned at test time"),
    "oracle": AgentEntry(OracleConfig, "reference: one policy over all tasks that is told the task", told_task=True),
    "random": AgentEntry(RandomConfig, "reference: uniformly random actions"),
}

__all__ = [
    "AGENTS",
    "RL2",
    "ANILConfig",
    "AgentEntry",
    "EMAMLConfig",
    "FOMAMLConfig",
    "GradientAgent",
    "GradientConfig",
    "MAMLPPOConfig",
    "MAMLTRPOConfig",
    "MetaLSTMConfig",
    "MetaSGDConfig",
    "OracleConfig",
    "PretrainedConfig",
    "ProMPConfig",
    "RL2Config",
    "RandomAgent",
    "RandomConfig",
    "ReptileConfig",
    "SNAILConfig",
    "VariBAD",
    "VariBADConfig",
]
