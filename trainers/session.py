"""Protocols of the training session: a loaded model's layers, text conditioning, device memory and denoiser."""

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
    """Hash of the model in its current state: equal for the same weights, patches and sampling equations."""
    metadata: Mapping[str, Any]
    """Metadata of the base model, for the adapter's file."""


class TextConditioning(Protocol):
    """The text encoders: from prompts to the denoiser's conditioning.

    If a text encoder or a learned embedding trains, prompts are encoded at every call, with gradients; otherwise the
    examples' stored encodings are used.
    """

    def condition(self, examples: Sequence[Example]) -> Any:
        """Return the denoiser's conditioning for a batch of examples."""

    def condition_per_subject(self, examples: Sequence[Example]) -> Any:
        """Return the denoiser's conditioning for a batch of one example per subject.

        If the text encoder trains, its adapters hold one subject per example, and all examples share one prompt, which
        is encoded for each subject with that subject's adapters.
        """

    def unconditional(self, subject: Subject) -> Any:
        """Return the denoiser's conditioning for the empty prompt, or None if the subject holds none."""

    def initial_vectors(self, word: str, count: int) -> Mapping[str, Tensor]:
        """Return initial vectors ``[count, width]`` for each text encoder, from its embeddings of ``word``.

        Raises:
            ValueError: the text encoders take no embeddings, or the word has no token.
        """

    def with_embeddings(
        self, embeddings: Sequence[LearnedEmbedding], prompts: Sequence[str] = ()
    ) -> AbstractContextManager[None]:
        """Resolve the placeholder tokens of ``embeddings`` to their current vectors inside the block.

        Raises:
            ValueError: a tokenizer does not find a placeholder token in one of ``prompts`` that names it.
        """


class DeviceMemory(FreeMemory, Protocol):
    """The training device and its memory, and main memory."""

    device: torch.device

    def inference_bytes(self, size: tuple[int, ...]) -> int:
        """Return the activation bytes of inference on one latent of ``size = (C, ..., h, w)``."""

    def free_main_memory(self) -> int:
        """Return the bytes free in main memory."""

    def offloaded(self) -> AbstractContextManager[None]:
        """Keep the removed blocks' weights off the training device inside the block, if there is another device."""


class LatentDenoiser(Denoiser, Protocol):
    """The denoiser, with conversion and preview of latents."""

    def to_model(self, latents: Tensor) -> Tensor:
        """Convert latents from the VAE's space to the model's, on the device."""

    def preview(self, latents: Tensor) -> Image.Image | None:
        """Return a small image of latents in model space, or None if the latent format has no preview."""


@dataclass(frozen=True, kw_only=True)
class TrainingSession:
    """A loaded model opened for training: its layers, text conditioning, device memory and denoiser."""

    model: TargetModel
    text: TextConditioning
    memory: DeviceMemory
    denoiser: LatentDenoiser

    def injected(self, adapter: AdapterStack) -> AbstractContextManager[DisableAdapters]:
        """Inject ``adapter`` into the network inside the block, see :meth:`AdapterStack.injected`."""
        return adapter.injected(self.model.layers, self.model.access_weight, self.model.modified_in_place)
