"""Agents, one file per algorithm, and the names by which the command line knows them."""

from __future__ import annotations

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

AGENTS: dict[str, type[AgentConfig]] = {
    "maml-trpo": MAMLTRPOConfig,
    "maml-ppo": MAMLPPOConfig,
    "promp": ProMPConfig,
    "e-maml": EMAMLConfig,
    "reptile": ReptileConfig,
    "fomaml": FOMAMLConfig,
    "anil": ANILConfig,
    "meta-sgd": MetaSGDConfig,
    "meta-lstm": MetaLSTMConfig,
    "rl2": RL2Config,
    "snail": SNAILConfig,
    "varibad": VariBADConfig,
    "pretrained": PretrainedConfig,
    "oracle": OracleConfig,
    "random": RandomConfig,
}
"""Config classes by the names that the command line knows."""

__all__ = [
    "AGENTS",
    "RL2",
    "ANILConfig",
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
