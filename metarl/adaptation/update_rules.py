"""Step sizes of the inner loop: one for all, none for the body (ANIL), or learned ones (Meta-SGD)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class StepSizes(nn.Module):
    """A step size for each parameter; where learned, a tensor of its shape and part of the meta-parameters.

    Meta-SGD learns them (Li et al., 2017, arXiv 1707.09835, eq. 2); ANIL fixes those of the body at zero
    (Raghu et al., 2020, arXiv 1909.09157, section 4.1).

    Args:
        params: the parameters that will be adapted, without task axis.
        inner_lr: initial step size.
        learned: whether meta-training moves them.
        adapted: names of the parameters that adapt; default: all.
    """

    def __init__(
        self, params: Mapping[str, Tensor], inner_lr: float, *, learned: bool, adapted: frozenset[str] | None = None
    ) -> None:
        super().__init__()
        self.learned = learned
        self._fixed = {name: inner_lr if adapted is None or name in adapted else 0.0 for name in params}
        if learned:
            for name, value in params.items():
                self.register_parameter(name, nn.Parameter(torch.full_like(value, self._fixed[name])))

    def values(self, factor: float = 1.0) -> dict[str, Tensor | float]:
        """Step sizes by parameter name, times ``factor``, detached."""
        learned = {name: factor * value.detach() for name, value in self.named_parameters()}
        return {name: learned.get(name, factor * size) for name, size in self._fixed.items()}
