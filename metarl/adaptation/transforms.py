"""Update rules that transform gradients: learned rates, Meta-Curvature, Kronecker factors, functions of one's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from metarl.adaptation.update_rules import UpdateRule, require_not_negative
from metarl.errors import ConfigError
from metarl.networks.params import Params


class MapGradients(UpdateRule):
    """Another rule on gradients that a function has changed, e.g. clipped or masked.

    Args:
        rule: takes the step.
        function: gradients ``[task, ...]`` by name -> gradients of the same names and shapes; differentiable where the
            inner loop is, and without mixing tasks.
    """

    def __init__(self, rule: UpdateRule, function: Callable[[Params], Params]) -> None:
        super().__init__()
        self.rule, self.function = rule, function

    def init(self, params: Params) -> Params:
        """The rule's own state."""
        return self.rule.init(params)

    def step(self, state: Params, params: Params, grads: Params, losses: Tensor) -> tuple[Params, Params]:
        """The rule's step on changed gradients.

        Raises:
            ConfigError: if the function returns gradients of other names or shapes.
        """
        changed = self.function(grads)
        shapes = [{name: tuple(value.shape) for name, value in of.items()} for of in (grads, changed)]
        if shapes[0] != shapes[1]:
            raise ConfigError(f"the function must return gradients of the shapes {shapes[0]}, got {shapes[1]}.")
        return self.rule.step(state, params, changed, losses)


class LearnedRates(UpdateRule):
    """Gradient descent with learned step sizes: one for the model, for each layer, or for each parameter tensor.

    MAML++ learns one for each layer (Antoniou et al., 2019, arXiv 1810.09502, section 4); one for each number is
    Meta-SGD, :class:`metarl.adaptation.StepSizes`.

    Args:
        params: the parameters that will be adapted, without task axis.
        inner_lr: initial step size.
        per: what has a step size of its own.
        num_steps: steps that have step sizes of their own, later ones taking those of the last; None for the same in
            all.

    Raises:
        ConfigError: for another ``per``, a negative or non-finite step size, or a number of steps below 1.
    """

    def __init__(
        self,
        params: Mapping[str, Tensor],
        inner_lr: float,
        per: Literal["model", "layer", "parameter"],
        num_steps: int | None = None,
    ) -> None:
        super().__init__()
        if per not in ("model", "layer", "parameter"):
            raise ConfigError(f"per must be model, layer or parameter, got {per!r}.")
        require_not_negative(inner_lr=inner_lr)
        if num_steps is not None and num_steps < 1:
            raise ConfigError(f"num_steps must be above 0, or None, got {num_steps!r}.")
        alone = [name for name in params if "." not in name]
        if per == "layer" and len(alone) > 1:
            raise ConfigError(
                f"a layer is what stands before the dot in a parameter's name, got the names {alone}, which belong to "
                "none. Take per='parameter' or per='model', or name them as layer.weight and layer.bias."
            )
        some = next(iter(params.values()))
        self.per, self.num_steps = per, num_steps
        shape = () if num_steps is None else (num_steps,)
        self.rates = nn.ParameterDict(
            {
                self._owner(name): nn.Parameter(torch.full(shape, inner_lr, dtype=some.dtype, device=some.device))
                for name in params
            }
        )

    def _owner(self, name: str) -> str:
        """What shares a step size with the parameter ``name``."""
        if self.per == "parameter":
            return _key(name)
        return _key(name.rpartition(".")[0] or name) if self.per == "layer" else "model"

    def init(self, params: Params) -> Params:
        """The number of the next step, ``[task]``, if it matters."""
        if self.num_steps is None:
            return {}
        some = next(iter(params.values()))
        return {"step": torch.zeros(len(some), dtype=torch.long, device=some.device)}

    def step(self, state: Params, params: Params, grads: Params, losses: Tensor) -> tuple[Params, Params]:
        """``theta - rate * gradient``."""
        if self.num_steps is None:
            return {name: value - self.rates[self._owner(name)] * grads[name] for name, value in params.items()}, {}
        now = state["step"].clamp(max=self.num_steps - 1)
        moved = {}
        for name, value in params.items():
            rate = self.rates[self._owner(name)][now]
            moved[name] = value - rate.view(-1, *(1,) * (value.dim() - 1)) * grads[name]
        return moved, {"step": state["step"] + 1}


class MetaCurvature(UpdateRule):
    """Gradient descent on gradients that learned matrices transform along each axis, identities at first.

    ``theta - inner_lr MC(G)`` with ``MC(G) = G x_1 M_1 x_2 M_2 ...`` (Park, Oliva, 2019, arXiv 1902.03356, section
    3.1). The axes are outputs, inputs and, in a convolution, the positions of the filter together.

    Args:
        params: the parameters that will be adapted, without task axis.
        inner_lr: step size.
    """

    def __init__(self, params: Mapping[str, Tensor], inner_lr: float) -> None:
        super().__init__()
        require_not_negative(inner_lr=inner_lr)
        self.inner_lr = inner_lr
        self.matrices = nn.ParameterDict(
            {
                f"{_key(name)}/{axis}": nn.Parameter(torch.eye(size, dtype=value.dtype, device=value.device))
                for name, value in params.items()
                for axis, size in enumerate(_folded(value).shape)
            }
        )

    def init(self, params: Params) -> Params:
        """Nothing is remembered."""
        return {}

    def step(self, state: Params, params: Params, grads: Params, losses: Tensor) -> tuple[Params, Params]:
        """See the class; the losses are not used."""
        moved = {}
        for name, value in params.items():
            grad = _folded(grads[name], leading=1)
            for axis in range(1, grad.dim()):
                matrix = self.matrices[f"{_key(name)}/{axis - 1}"]
                grad = torch.tensordot(grad, matrix, dims=([axis], [1])).movedim(-1, axis)
            moved[name] = value - self.inner_lr * grad.reshape(value.shape)
        return moved, {}


class KroneckerFactored(UpdateRule):
    """Gradient descent on gradients that a learned Kronecker-factored linear map transforms, the identity at first.

    ``theta - inner_lr (L L' G R R' + B)`` with ``G`` as a matrix of outputs by the rest (Arnold, Iqbal, Sha, 2021,
    arXiv 1910.13603, "When MAML can adapt fast and how to assist when it cannot", section 4.2, with positive definite
    factors and a bias, as in their code).

    Args:
        params: the parameters that will be adapted, without task axis.
        inner_lr: step size.
    """

    def __init__(self, params: Mapping[str, Tensor], inner_lr: float) -> None:
        super().__init__()
        require_not_negative(inner_lr=inner_lr)
        self.inner_lr = inner_lr
        factors: dict[str, nn.Parameter] = {}
        for name, value in params.items():
            matrix = value.reshape(len(value), -1) if value.dim() else value.reshape(1, 1)
            for side, size in zip(("left", "right"), matrix.shape, strict=True):
                factors[f"{_key(name)}/{side}"] = nn.Parameter(torch.eye(size, dtype=value.dtype, device=value.device))
            factors[f"{_key(name)}/bias"] = nn.Parameter(torch.zeros_like(matrix))
        self.factors = nn.ParameterDict(factors)

    def init(self, params: Params) -> Params:
        """Nothing is remembered."""
        return {}

    def step(self, state: Params, params: Params, grads: Params, losses: Tensor) -> tuple[Params, Params]:
        """See the class; the losses are not used."""
        moved = {}
        for name, value in params.items():
            left, right, bias = (self.factors[f"{_key(name)}/{part}"] for part in ("left", "right", "bias"))
            grad = grads[name].reshape(len(value), *bias.shape)
            changed = left @ (left.T @ grad @ right) @ right.T + bias
            moved[name] = value - self.inner_lr * changed.reshape(value.shape)
        return moved, {}


def _key(name: str) -> str:
    """A parameter's name as a key of ParameterDict, which holds no dots."""
    return name.replace(".", "|")


def _folded(value: Tensor, leading: int = 0) -> Tensor:
    """A tensor with at most three axes behind the ``leading`` ones: outputs, inputs, and all the rest together."""
    shape = value.shape[leading:]
    return value if len(shape) <= 3 else value.flatten(leading + 2)
