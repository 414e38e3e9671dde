"""PaRa, personalization by parameter rank reduction (Chen et al. 2024, arXiv 2406.05641)."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...backbone.forward_patch import Forward
from ...backbone.frozen_layers import BiasCache, is_convolution
from ..base import AdapterLayer
from ..layer_context import LayerContext
from ..weight_update import ProjectOut
from .autograd import Projection, ProjectOutput
from .singular_init import smallest_left_singular_vectors

INITS = ("random", "smallest singular")


@dataclass(frozen=True, kw_only=True)
class PaRaConfig:
    """Settings of PaRa.

    Args:
        rank: r, the number of directions removed per layer. 4 is the paper's middle choice.
        init: the initial directions. ``smallest singular``, the left singular vectors of W of smallest singular value,
            start close to the unchanged model; ``random`` ones remove ``sqrt(r / out)`` of every weight at once.
            Measured on SD1.5's smallest U-Net (26 M parameters, 500 steps of full training on 15 images), rank 4 on
            attention, six images of another subject: the validation loss starts at 0.120, the unchanged model's,
            against 0.123, and both learn alike, to 0.092 and 0.093 in 120 steps at 3e-4, 0.084 and 0.083 at 1e-3; with
            another seed, on a subject seen in that training, 0.088 at 3e-4 and 0.087 at 1e-3, both. But the mean
            ``||dW|| / ||W||`` is 0.01 at the start and 0.03 after the training at 3e-4, not 0.11 throughout: a third
            of the change achieves the same.
    """

    rank: int = 4
    init: str = "smallest singular"

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"rank is {self.rank}; give a whole number of at least 1")
        if self.init not in INITS:
            raise ValueError(f"init is {self.init!r}; give one of {', '.join(map(repr, INITS))}")


class PaRa(AdapterLayer):
    """``W' = W - Q Q^T W`` with ``B = Q R`` (eq. 3 of the paper): r learned directions of the output are removed.

    Only the span of B matters, and a new layer is never without effect: a random Q removes ``sqrt(r / out)`` of the
    weight's Frobenius norm.

    Args:
        basis: B ``[..., out, r]``.
        columns: in, the width of the matrix.
    """

    family = "para"
    tensor_names = ("basis",)

    def __init__(self, basis: Tensor, columns: int):
        super().__init__()
        self.basis, self.columns = nn.Parameter(basis), columns
        self.qr = BatchedQR([self.basis])

    @classmethod
    def create(cls, shape: tuple[int, int], config: PaRaConfig, generator: torch.Generator) -> "PaRa":
        """Draw B with orthonormal columns of random span.

        Raises:
            ValueError: the rank is so high that nothing of the layer would remain.
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
        """For the init ``smallest singular``, set B to W's left singular vectors of smallest singular value."""
        if config.init == "smallest singular":
            self.basis.copy_(smallest_left_singular_vectors(weight_of(), self.rank, generator).to(self.basis.device))

    @property
    def rank(self) -> int:
        """The number of removed directions r."""
        return self.basis.shape[-1]

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """``(out, in)``."""
        return self.basis.shape[-2], self.columns

    def weight_update(self) -> ProjectOut:
        """Return the projection out of the span of B."""
        return ProjectOut(torch.linalg.qr(self.basis).Q)

    def adapted_forward(self, context: LayerContext) -> Forward:
        """Return a forward that projects the layer's output, ``y - Q Q^T (y - b)``; it needs no weight."""
        spatial, bias = is_convolution(context.layer), BiasCache(context.layer, context.access_weight)

        def adapted(x: Tensor, *args: object, **kwargs: object) -> Tensor:
            y = context.forward(x, *args, **kwargs)
            q, r = self.qr(self.basis)
            projection = Projection(
                q=q, r=r, bias=bias(y), spatial=spatial, modified_in_place=context.modified_in_place
            )  # fmt: skip
            return ProjectOutput.apply(y, self.basis, projection)

        return adapted

    @classmethod
    def share_computation(cls, layers: Iterable["PaRa"]) -> None:
        """Let layers of one shape share one batched QR decomposition from now on."""
        groups: dict[tuple[object, ...], list[PaRa]] = {}
        for layer in layers:
            groups.setdefault((layer.basis.shape, layer.basis.device), []).append(layer)
        for group in groups.values():
            qr = BatchedQR([layer.basis for layer in group])
            for layer in group:
                layer.qr = qr

    def to_tensors(self) -> dict[str, Tensor]:
        """Return B as ``basis``."""
        return {"basis": self.basis.detach()}

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> "PaRa":
        """Return the layer with ``tensors["basis"]`` as B."""
        return PaRa(tensors["basis"], self.columns)

    def settings(self) -> dict[str, float]:
        """Return the rank."""
        return {"rank": self.rank}


class BatchedQR:
    """The decompositions ``B = Q R`` of bases of one shape, computed in one call whenever a basis has changed.

    A change is detected by PyTorch's version counter of the tensor. Fused optimizers do not increment it by themselves;
    ``trainers/engine/optimizers.py`` does.

    Args:
        bases: parameters ``[..., out, r]`` of one shape and device.
    """

    def __init__(self, bases: Sequence[nn.Parameter]):
        self._bases = bases
        self._indices = {id(basis): index for index, basis in enumerate(bases)}
        self._versions: list[object] = []
        self._q = self._r = torch.empty(0)

    def __call__(self, basis: nn.Parameter) -> tuple[Tensor, Tensor]:
        """Return ``q [..., out, r]`` with orthonormal columns and ``r [..., r, r]``, float32, outside of autograd."""
        index = self._indices[id(basis)]
        if not self._versions or self._versions[index] != _version(basis):
            with torch.inference_mode(False), torch.no_grad():
                self._q, self._r = _decompose(torch.stack([base.detach() for base in self._bases]).float())
            self._versions = [_version(base) for base in self._bases]
        return self._q[index], self._r[index]


def _decompose(bases: Tensor) -> tuple[Tensor, Tensor]:
    """Return Q and R; computed on the CPU for Apple's GPUs, which have no QR kernel."""
    q, r = torch.linalg.qr(bases.cpu() if bases.device.type == "mps" else bases)
    return q.to(bases.device), r.to(bases.device)


def _version(basis: nn.Parameter) -> object:
    return basis._version, basis.data_ptr()
