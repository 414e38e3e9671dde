"""LoRA, low-rank adaptation (Hu et al. 2021, arXiv 2106.09685)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .base import AdapterLayer
from .weight_update import AddLowRank


@dataclass(frozen=True, kw_only=True)
class LoRAConfig:
    """Settings of LoRA.

    Args:
        rank: r, the number of directions per layer. 8 is enough for a subject, at 2.5 MB on SD1.5.
        alpha: the change is scaled by alpha / r; alpha = r leaves it unscaled.
    """

    rank: int = 8
    alpha: float = 8.0

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"rank is {self.rank}; give a whole number of at least 1")
        if not math.isfinite(self.alpha) or self.alpha <= 0:
            raise ValueError(f"alpha is {self.alpha}; give a positive number, usually the rank")


class LoRA(AdapterLayer):
    """``W' = W + (alpha / r) up @ down`` (eq. 3 of the paper, whose B is ``up`` and A is ``down``).

    Args:
        up: ``[..., out, r]``; initially zero, which makes training start from the unchanged model.
        down: ``[..., r, in]``; initially random.
        alpha: scale of the change, see :class:`LoRAConfig`.

    Raises:
        ValueError: ``up`` and ``down`` have different ranks.
    """

    family = "lora"
    is_additive = True
    tensor_names = ("lora_up.weight", "lora_down.weight", "alpha")

    def __init__(self, up: Tensor, down: Tensor, alpha: float):
        super().__init__()
        if up.shape[-1] != down.shape[-2]:
            raise ValueError(f"holds LoRA factors of two ranks, up {tuple(up.shape)}, down {tuple(down.shape)}")
        self.up, self.down, self.alpha = nn.Parameter(up), nn.Parameter(down), float(alpha)

    @classmethod
    def create(cls, shape: tuple[int, int], config: LoRAConfig, generator: torch.Generator) -> "LoRA":
        """Draw ``down`` uniformly from +-1/sqrt(in), as nn.Linear's own initialization does, and set ``up`` to zero.

        Raises:
            ValueError: the rank is larger than the matrix can hold.
        """
        rows, columns = shape
        if config.rank > min(rows, columns):
            raise ValueError(
                f"rank {config.rank} is larger than a layer of {rows} x {columns}; "
                f"give a rank of at most {min(rows, columns)}, or other targets"
            )
        bound = 1 / math.sqrt(columns)
        down = (torch.rand(config.rank, columns, generator=generator) * 2 - 1) * bound
        return cls(torch.zeros(rows, config.rank), down, config.alpha)

    @property
    def rank(self) -> int:
        """The number of directions r."""
        return self.down.shape[-2]

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """``(out, in)``."""
        return self.up.shape[-2], self.down.shape[-1]

    def weight_update(self) -> AddLowRank:
        """Return ``W + s (alpha / r) up @ down``, the scale multiplied into ``up``."""
        return AddLowRank(self.up * (self.alpha / self.rank), self.down)

    def to_tensors(self) -> dict[str, Tensor]:
        """Return up, down and alpha."""
        values = (self.up.detach(), self.down.detach(), torch.tensor(self.alpha))
        return dict(zip(self.tensor_names, values, strict=True))

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> "LoRA":
        """Return the LoRA of ``tensors``."""
        return LoRA.of(tensors)

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> "LoRA":
        """Return the LoRA of up, down and alpha."""
        up, down, alpha = (tensors[name] for name in cls.tensor_names)
        return cls(up, down, alpha.item())

    def settings(self) -> dict[str, float]:
        """Return rank and alpha."""
        return {"rank": self.rank, "alpha": self.alpha}
