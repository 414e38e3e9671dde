"""The exponential moving average (EMA) of the trained parameters."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class EMA:
    """``m_k = d_k m_(k-1) + (1 - d_k) p_k`` with ``d_k = min(decay, (1 + k) / (10 + k))``.

    The rising decay (the usual one, from TensorFlow's ExponentialMovingAverage) keeps the initial parameters, which are
    no result, from weighing on short runs.

    Args:
        parameters: what is averaged.
        decay: 0.99 averages over about 100 steps.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], decay: float):
        self.parameters, self.decay = parameters, decay
        self.values: list[Tensor] = [parameter.detach().clone() for parameter in parameters]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Average in the parameters after step number ``step`` (from 1)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.values, [p.detach() for p in self.parameters], 1 - decay)

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
