"""What a loaded model offers to trainers, in four parts; made by whoever owns the model."""

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor, nn

from ..models.adapters.inject import DisableAdapters
from ..models.adapters.stack import AdapterStack
from ..models.backbone.denoiser import Denoiser
from ..models.backbone.frozen_layers import WeightAccess
from ..models.hollowed_net.network import HollowedNetwork
from ..models.textual_inversion.embeddings import LearnedEmbedding
from .data.dataset import Example, Subject
from .engine.memory_planner import FreeMemory


class TargetModel(Protocol):
    """The network that adapters are trained on.

    Layers of the diffusion model are named ``diffusion_model.…``, those of the text encoder, if it is trained,
    ``text_encoders.…``.
    """

    layers: Mapping[str, nn.Module]
    """Every layer that an adapter could change, by name."""
    shapes: Mapping[str, tuple[int, ...]]
    """Weight shapes of the layers that can be trained."""
    blocks: Sequence[nn.Module]
    """The blocks that gradient checkpointing recomputes."""
    modified_in_place: Collection[str]
    """Names of layers whose output the network may modify in place."""
    access_weight: WeightAccess
    hollow: HollowedNetwork | None
    """The removed blocks; they run without gradients wherever no activation is cached."""
    half: bool
    """Whether the network computes in float16, so that losses are scaled."""
    precision: str
    """Name of the computation's dtype."""
    model_hash: str
    """Identifies the model as it is: equal for the same weights, patches and sampling equations."""
    metadata: Mapping[str, Any]
    """What a file records about the base model."""


class TextConditioning(Protocol):
    """The text encoders: prompts to what the denoiser takes."""

    def condition(self, examples: Sequence[Example]) -> Any:
        """Return what the denoiser takes for the prompts of a batch."""

    def condition_per_subject(self, examples: Sequence[Example]) -> Any:
        """Return the same where the text encoder's adapters hold one subject per example.

        All examples share one prompt, encoded once for every subject with its own adapters.
        """

    def unconditional(self, subject: Subject) -> Any:
        """Return what the denoiser takes for the empty prompt, or None."""

    def initial_vectors(self, word: str, count: int) -> Mapping[str, Tensor]:
        """Return vectors ``[count, width]`` for each text encoder that start at ``word``.

        Raises:
            ValueError: the text encoders take none, or do not know the word.
        """

    def with_embeddings(
        self, embeddings: Sequence[LearnedEmbedding], prompts: Sequence[str] = ()
    ) -> AbstractContextManager[None]:
        """Encode prompts that name ``embeddings`` with their current vectors inside the block.

        Raises:
            ValueError: one of ``prompts`` names a token where the text encoders would not find it.
        """


class DeviceMemory(FreeMemory, Protocol):
    """The training device and its memory, and main memory."""

    device: torch.device

    def inference_bytes(self, size: tuple[int, ...]) -> int:
        """Return the bytes that inference on one latent of that size takes for a moment."""

    def free_main_memory(self) -> int:
        """Return the bytes free in main memory."""

    def offloaded(self) -> AbstractContextManager[None]:
        """Keep the weights of the removed blocks off the training device inside the block, if there is another."""


class LatentDenoiser(Denoiser, Protocol):
    """The denoiser, with the latents around it."""

    def to_model(self, latents: Tensor) -> Tensor:
        """Return latents as the VAE gave them in model space, on the device."""

    def preview(self, latents: Tensor) -> Image.Image | None:
        """Return a small image of latents in model space, or None if the latent format has no preview."""


@dataclass(frozen=True, kw_only=True)
class TrainingSession:
    """A model opened for training."""

    model: TargetModel
    text: TextConditioning
    memory: DeviceMemory
    denoiser: LatentDenoiser

    def injected(self, adapter: AdapterStack) -> AbstractContextManager[DisableAdapters]:
        """Attach ``adapter`` to the network inside the block, see :meth:`AdapterStack.injected`."""
        return adapter.injected(self.model.layers, self.model.access_weight, self.model.modified_in_place)
