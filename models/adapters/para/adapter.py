"""PaRa, personalisation by parameter rank reduction (Chen et al. 2024, arXiv 2406.05641)."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...backbone.forward_patch import Forward
from ...backbone.frozen_layers import BiasCache, is_convolution
from ..base import AdapterLayer
from ..layer_context import LayerContext
from ..weight_update import ProjectOut
from .autograd import ProjectOutput
from .singular_init import smallest_left_singular_vectors

INITS = ("random", "smallest singular")


@dataclass(frozen=True)
class PaRaConfig:
    """Settings of PaRa.

    Args:
        rank: r, the number of directions removed per layer. 4 is the paper's middle choice.
        init: where the directions start. ``smallest singular``, the left singular vectors of W of smallest singular
            value, start next to the unchanged model; ``random`` ones have removed ``sqrt(r / out)`` of every weight.
            Measured on SD1.5's smallest U-Net (26 M numbers, 500 steps of full training on 15 photographs), rank 4 on
            attention, six photographs of another subject: the validation loss starts at 0.120, the unchanged model's,
            against 0.123, and both learn alike, to 0.092 and 0.093 in 120 steps at 3e-4, 0.084 and 0.083 at 1e-3; with
            another seed, on a subject seen in that training, 0.088 at 3e-4 and 0.087 at 1e-3, both. But the mean
            ``||dW|| / ||W||`` is 0.01 at the start and 0.03 after it at 3e-4, not 0.11 throughout: as much is learnt
            by a third of the change.
    """

    rank: int = 4
    init: str = "smallest singular"

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"rank is {self.rank}; give a whole number of at least 1")
        if self.init not in INITS:
            raise ValueError(f"init is {self.init!r}; give one of {', '.join(map(repr, INITS))}")


class PaRa(AdapterLayer):
    """``W' = W - Q Q^T W`` with ``B = Q R`` (eq. 3 of the paper): r directions of the output are removed, and which
    ones is learnt.

    Only the span of B counts, so that a new adapter is never without effect: a random Q removes ``sqrt(r / out)`` of
    the weight's Frobenius norm.

    Args:
        basis: B ``[..., out, r]``.
        columns: in, the width of the matrix.
    """

    family = "para"
    starts_as_identity = False
    tensor_names = ("basis",)

    def __init__(self, basis: Tensor, columns: int):
        super().__init__()
        self.basis, self.columns = nn.Parameter(basis), columns
        self.qr = BatchedQR([self.basis])

    @classmethod
    def create(cls, shape: tuple[int, int], config: PaRaConfig, generator: torch.Generator) -> "PaRa":
        """B orthonormal, of random span.

        Raises:
            ValueError: the rank leaves nothing of the layer.
        """
        rows, columns = shape
        if config.rank >= rows:
            raise ValueError(
                f"rank {config.rank} would remove all of a layer of {rows} x {columns}; give a rank of at most "
                f"{max(1, rows // 40)}, a fortieth of it, or other targets"
            )
        drawn = torch.randn(rows, config.rank, generator=generator)
        return cls(torch.linalg.qr(drawn).Q.contiguous(), columns)

    @torch.no_grad()
    def initialize_from_weight(
        self, weight_of: Callable[[], Tensor], config: PaRaConfig, generator: torch.Generator
    ) -> None:
        """For ``smallest singular``: B spans the directions that W uses least."""
        if config.init == "smallest singular":
            self.basis.copy_(smallest_left_singular_vectors(weight_of(), self.rank, generator).to(self.basis.device))

    @property
    def rank(self) -> int:
        return self.basis.shape[-1]

    @property
    def matrix_shape(self) -> tuple[int, int]:
        return self.basis.shape[-2], self.columns

    def weight_update(self) -> ProjectOut:
        return ProjectOut(torch.linalg.qr(self.basis).Q)

    def adapted_forward(self, site: LayerContext) -> Forward:
        """``y - Q Q^T (y - b)`` on the layer's output, whatever made it: the weights are not needed."""
        places, bias = is_convolution(site.layer), BiasCache(site.layer, site.access_weight)

        def adapted(x: Tensor, *args: object, **kwargs: object) -> Tensor:
            y = site.forward(x, *args, **kwargs)
            q, r = self.qr(self.basis)
            return ProjectOutput.apply(y, self.basis, q, r, bias(y), places, site.modified_in_place)

        return adapted

    @classmethod
    def share_computation(cls, adapters: Iterable["PaRa"]) -> None:
        """Layers of one shape are decomposed together from now on."""
        alike: dict[tuple[object, ...], list[PaRa]] = {}
        for adapter in adapters:
            alike.setdefault((adapter.basis.shape, adapter.basis.device), []).append(adapter)
        for group in alike.values():
            together = BatchedQR([adapter.basis for adapter in group])
            for adapter in group:
                adapter.qr = together

    def to_tensors(self) -> dict[str, Tensor]:
        return {"basis": self.basis.detach()}

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> "PaRa":
        return PaRa(tensors["basis"], self.columns)

    def settings(self) -> dict[str, float]:
        return {"rank": self.rank}


class BatchedQR:
    """``B = Q R`` of bases of one shape, in one call, once for each value of the bases.

    That a basis has another value is told by PyTorch's count of changes, which fused optimizers do not raise by
    themselves: ``trainers/optimizers.py`` does.

    Args:
        bases: parameters ``[..., out, r]``.
    """

    def __init__(self, bases: Sequence[nn.Parameter]):
        self._bases = bases
        self._places = {id(basis): place for place, basis in enumerate(bases)}
        self._values: list[object] = []
        self._q = self._r = torch.empty(0)

    def __call__(self, basis: nn.Parameter) -> tuple[Tensor, Tensor]:
        """``q [..., out, r]`` with orthonormal columns and ``r [..., r, r]``, float32, outside of autograd."""
        place = self._places[id(basis)]
        if not self._values or self._values[place] != _value(basis):
            with torch.inference_mode(False), torch.no_grad():
                self._q, self._r = _decomposed(torch.stack([base.detach() for base in self._bases]).float())
            self._values = [_value(base) for base in self._bases]
        return self._q[place], self._r[place]


def _decomposed(bases: Tensor) -> tuple[Tensor, Tensor]:
    """Q and R; on the CPU for Apple's GPUs, which have no such kernel."""
    q, r = torch.linalg.qr(bases.cpu() if bases.device.type == "mps" else bases)
    return q.to(bases.device), r.to(bases.device)


def _value(basis: nn.Parameter) -> object:
    return basis._version, basis.data_ptr()
