"""Policies that run with parameters from outside, one set for each task."""

from __future__ import annotations

import abc
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from metarl.errors import ConfigError
from metarl.networks.distributions import Categorical, DiagGaussian, Distribution
from metarl.networks.params import Params
from metarl.types import Spec

MIN_STD = 1e-3
"""Smallest standard deviation; enforced smoothly, since a clamp would leave a dead parameter."""


class Policy(nn.Module, abc.ABC):
    """Owns meta-parameters and architecture; :meth:`distribution` takes stacked parameters ``[task, ...]``.

    Args:
        spec: sizes of observation and action.
    """

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.spec = spec

    @property
    @abc.abstractmethod
    def head_names(self) -> frozenset[str]:
        """Names of the last layer's parameters."""

    @abc.abstractmethod
    def outputs(self, params: Params, obs: Tensor) -> Tensor:
        """Logits or means ``[task, sample, action_dim]`` for observations ``[task, sample, obs_dim]``."""

    @abc.abstractmethod
    def linear_outputs(self, params: Params, obs: Tensor) -> tuple[Tensor, Callable[[Params], Tensor]]:
        """:meth:`outputs`, and how they move with ``params``: a function of a stacked tangent."""

    def params(self) -> Params:
        """The meta-parameters by name, without task axis."""
        return dict(self.named_parameters())

    def distribution(self, params: Params, obs: Tensor) -> Distribution:
        """The policy of each task: a distribution over ``[task, sample]`` actions."""
        return self._distribution(params, self.outputs(params, obs))

    def linearise(self, params: Params, obs: Tensor) -> tuple[Distribution, Callable[[Params], tuple[Tensor, ...]]]:
        """:meth:`distribution`, and how its ``parameters`` move with ``params``: a function of a stacked tangent."""
        out, outputs_jvp = self.linear_outputs(params, obs)

        def jvp(tangent: Params) -> tuple[Tensor, ...]:
            moved = outputs_jvp(tangent)
            if self.spec.discrete:
                return (moved,)
            raw = params["raw_std"].detach()
            log_std = raw.sigmoid() / (nn.functional.softplus(raw) + MIN_STD) * tangent["raw_std"]
            return moved, log_std.unsqueeze(1).expand_as(moved)

        return self._distribution(params, out), jvp

    def _distribution(self, params: Params, out: Tensor) -> Distribution:
        if self.spec.discrete:
            return Categorical(out)
        log_std = (nn.functional.softplus(params["raw_std"]) + MIN_STD).log()
        return DiagGaussian(out, log_std.unsqueeze(1).expand_as(out))

    def add_std(self, init_std: float) -> None:
        """Add the standard deviations of a continuous policy, which do not depend on the observation."""
        if not self.spec.discrete:
            raw = math.log(math.expm1(init_std - MIN_STD))
            self.raw_std = nn.Parameter(torch.full((self.spec.action_dim,), raw))


class ModulePolicy(Policy):
    """Any module as a policy, run for all tasks through ``vmap(functional_call)``.

    Args:
        spec: sizes of observation and action.
        module: ``[sample, obs_dim] -> [sample, action_dim]`` logits or means; without buffers, which tasks would share.
        init_std: initial standard deviation of a continuous policy.

    Raises:
        ConfigError: for a module with buffers or without parameters.
    """

    def __init__(self, spec: Spec, module: nn.Module, init_std: float = 1.0) -> None:
        super().__init__(spec)
        buffers = [name for name, _ in module.named_buffers()]
        if buffers or not list(module.parameters()):
            raise ConfigError(
                f"a policy module needs parameters and no buffers, got buffers {buffers} in {type(module).__name__}: "
                "tasks would share and overwrite them."
            )
        self.module = module
        self.add_std(init_std)

    @property
    def head_names(self) -> frozenset[str]:
        """Parameters of the submodule that holds the last parameter."""
        names = [name for name, _ in self.module.named_parameters()]
        owner = names[-1].rpartition(".")[0]
        return frozenset(f"module.{name}" for name in names if name.rpartition(".")[0] == owner)

    def outputs(self, params: Params, obs: Tensor) -> Tensor:
        """See :meth:`Policy.outputs`."""
        inner = {name.removeprefix("module."): params[name] for name in params if name.startswith("module.")}
        out: Tensor = torch.func.vmap(lambda own, x: torch.func.functional_call(self.module, own, (x,)))(inner, obs)
        return out

    def linear_outputs(self, params: Params, obs: Tensor) -> tuple[Tensor, Callable[[Params], Tensor]]:
        """See :meth:`Policy.linear_outputs`; by forward-mode differentiation, which runs the network again."""
        names = [name for name in params if name != "raw_std"]
        # Without inner steps tensors are views that all tasks share, which forward-mode differentiation refuses.
        here = {name: params[name].detach().contiguous() for name in names}

        def jvp(tangent: Params) -> Tensor:
            direction = {name: tangent[name].contiguous() for name in names}
            moved: Tensor = torch.func.jvp(lambda own: self.outputs(own, obs), (here,), (direction,))[1]
            return moved

        return self.outputs(params, obs), jvp
