"""The exponential moving average (EMA) of the trained parameters."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class EMA:
    """``m_k = m_(k-1) + (1 - d) / (1 - d^k) (p_k - m_(k-1))`` for decay ``d``.

    That is ``sum_j d^(k-j) p_j / sum_j d^(k-j)``, the exponential average without bias (as in Adam, 1412.6980, section
    3): the initial parameters, which are no result, have no weight. The usual ``min(d, (1 + k) / (10 + k))`` makes all
    decays above 0.98 one and the same in a run of 500 steps.

    Args:
        parameters: what is averaged.
        decay: 0.99 averages over about the last 100 steps.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], decay: float):
        self.parameters, self.decay = parameters, decay
        self.values: list[Tensor] = [parameter.detach().clone() for parameter in parameters]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Average in the parameters after step number ``step`` (from 1)."""
        weight = (1 - self.decay) / (1 - self.decay**step)
        torch._foreach_lerp_(self.values, [p.detach() for p in self.parameters], weight)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Set the parameters to the average inside the block."""
        before = [parameter.detach().clone() for parameter in self.parameters]
        self._copy_to_parameters(self.values)
        try:
            yield
        finally:
            self._copy_to_parameters(before)

    @torch.no_grad()
    def _copy_to_parameters(self, values: Sequence[Tensor]) -> None:
        for parameter, value in zip(self.parameters, values, strict=True):
            parameter.copy_(value)
