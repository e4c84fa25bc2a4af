"""Policies that run with parameters from outside, one set for each task."""

from __future__ import annotations

import abc
import math
from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor, nn

from metarl.errors import ConfigError, unknown_name
from metarl.networks.actions import policy_distribution, split_outputs
from metarl.networks.distributions import Distribution
from metarl.networks.module_call import call
from metarl.networks.params import Params, stack, trainable
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
        """Logits, means, or both, ``[task, sample, action_dim]``, for observations ``[task, sample, obs_dim]``."""

    @abc.abstractmethod
    def linear_outputs(self, params: Params, obs: Tensor) -> tuple[Tensor, Callable[[Params], Tensor]]:
        """:meth:`outputs`, and how they move with ``params``: a function of a stacked tangent."""

    def params(self) -> Params:
        """The meta-parameters by name, without task axis; frozen ones are none of them."""
        return trainable(self)

    def distribution(self, params: Params, obs: Tensor) -> Distribution:
        """The policy of each task: a distribution over ``[task, sample]`` actions.

        Args:
            params: stacked meta-parameters, ``[task, ...]``.
            obs: ``[task, sample, obs_dim]``.
        """
        params = {**params, **self._frozen(params)}
        return self._distribution(params, self.outputs(params, obs))

    def linearise(self, params: Params, obs: Tensor) -> tuple[Distribution, Callable[[Params], tuple[Tensor, ...]]]:
        """:meth:`distribution`, and how its ``parameters`` move with ``params``: a function of a stacked tangent."""
        frozen = self._frozen(params)
        still = {name: torch.zeros_like(value) for name, value in frozen.items()}
        params = {**params, **frozen}
        out, outputs_jvp = self.linear_outputs(params, obs)

        def jvp(tangent: Params) -> tuple[Tensor, ...]:
            tangent = {**tangent, **still}
            moved = outputs_jvp(tangent)
            if self.spec.discrete:
                return (moved,)
            logits, mean = split_outputs(self.spec, moved)
            log_std = torch.zeros_like(mean)
            if self.spec.num_coordinates:
                raw = params["raw_std"].detach()
                slope = raw.sigmoid() / (nn.functional.softplus(raw) + MIN_STD) * tangent["raw_std"]
                log_std = slope.unsqueeze(1).expand_as(mean)
            return (mean, log_std) if logits is None else (logits, mean, log_std)

        return self._distribution(params, out), jvp

    @cached_property
    def _names(self) -> frozenset[str]:
        return frozenset(name for name, _ in self.named_parameters())

    def _frozen(self, params: Params) -> Params:
        """The parameters that ``params`` lacks, for every task."""
        lacking = self._names - params.keys()
        if not lacking:
            return {}
        return stack({name: self.get_parameter(name) for name in lacking}, len(next(iter(params.values()))))

    def _distribution(self, params: Params, out: Tensor) -> Distribution:
        log_std = None
        if self.spec.num_coordinates:
            log_std = (nn.functional.softplus(params["raw_std"]) + MIN_STD).log().unsqueeze(1)
        return policy_distribution(self.spec, out, log_std)

    def add_std(self, init_std: float) -> None:
        """Add the standard deviations of a policy's coordinates, which do not depend on the observation."""
        if self.spec.num_coordinates:
            raw = math.log(math.expm1(init_std - MIN_STD))
            self.raw_std = nn.Parameter(torch.full((self.spec.num_coordinates,), raw))


class ModulePolicy(Policy):
    """Any module as a policy, run for all tasks by :func:`metarl.networks.module_call.call`.

    Args:
        spec: sizes of observation and action.
        module: ``[sample, obs_dim] -> [sample, action_dim]`` logits, means, or first one and then the other; without
            buffers, which tasks would share.
        init_std: initial standard deviation of a continuous policy.
        head: name of the submodule that is adapted where the head alone is (ANIL); default: the layer that acts last.

    Raises:
        ConfigError: for a module with buffers or without parameters to train, or a head that it does not have.
    """

    def __init__(self, spec: Spec, module: nn.Module, init_std: float = 1.0, head: str | None = None) -> None:
        super().__init__(spec)
        trainable(module)
        buffers = [name for name, _ in module.named_buffers()]
        if buffers:
            raise ConfigError(
                f"a policy module needs parameters and no buffers, got buffers {buffers} in {type(module).__name__}: "
                "tasks would share and overwrite them."
            )
        drops = [name for name, part in module.named_modules() if part.training and _drops(part)]
        if drops:
            raise ConfigError(
                f"a policy module must give the same numbers for the same input, got dropout in {drops} of "
                f"{type(module).__name__}: likelihood ratios would compare two networks. Leave it out, or call eval() "
                "on these parts."
            )
        layers = [name for name, part in module.named_modules() if name and list(part.parameters())]
        if head is not None and head not in layers:
            raise unknown_name(f"head of {type(module).__name__}", head, layers)
        self.module = module
        self.head = head
        self.add_std(init_std)

    @property
    def head_names(self) -> frozenset[str]:
        """The head's parameters that can be trained.

        Raises:
            ConfigError: if it is not known which layer acts last, or the head is frozen.
        """
        some = next(self.module.parameters())
        head = self.head or last_to_act(
            self.module, torch.zeros(2, self.spec.obs_dim, dtype=some.dtype, device=some.device)
        )
        names = frozenset(name for name in self.params() if name.startswith(f"module.{head}."))
        if not names:
            raise ConfigError(f"the head {head!r} of {type(self.module).__name__} is frozen, nothing of it can adapt.")
        return names

    def outputs(self, params: Params, obs: Tensor) -> Tensor:
        """See :meth:`Policy.outputs`."""
        inner = {name.removeprefix("module."): params[name] for name in params if name.startswith("module.")}
        out: Tensor = call(self.module, inner, obs)
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


def _drops(part: nn.Module) -> bool:
    """Whether a module leaves out some of its values at random: dropout layers, and what has a setting of that name."""
    if isinstance(part, nn.modules.dropout._DropoutNd):
        return part.p > 0
    share = getattr(part, "dropout", 0)
    return isinstance(share, float) and share > 0


def last_to_act(module: nn.Module, x: Tensor) -> str:
    """The name of the submodule with parameters that acts last, found by running the module once.

    Raises:
        ConfigError: if that does not show it: parameters that are used without calling their submodule, or that the
            last submodule holds beside others.
    """
    owners = {name for name, part in module.named_modules() if list(part.parameters(recurse=False))}
    ended: list[str] = []
    handles = [
        module.get_submodule(name).register_forward_hook(lambda *_, name=name: ended.append(name)) for name in owners
    ]
    try:
        with torch.random.fork_rng(devices=[]):
            module(x)
    finally:
        for handle in handles:
            handle.remove()
    silent = sorted(owners - set(ended))
    last = ended[-1] if ended else ""
    beside = [name for name in owners if name.startswith(f"{last}.") and ".parametrizations." not in name]
    if silent or not last or beside:
        where = ", ".join(silent) if silent else last or "the module itself"
        raise ConfigError(
            f"which layer of {type(module).__name__} acts last is not known, because of the parameters of {where}: "
            "name it, ModulePolicy(..., head=...)."
        )
    return last
