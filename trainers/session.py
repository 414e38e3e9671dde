"""What a model must offer to be trained."""

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor, nn

from ..models.backbone.denoiser import Denoiser
from ..models.backbone.frozen_layers import WeightAccess
from ..models.hollowed_net.network import HollowedNetwork
from ..models.textual_inversion.embeddings import LearnedEmbedding
from .data.dataset import Example, Subject


class TrainingSession(Protocol):
    """A model laid out for training; made by whoever owns the model.

    ``layers`` name every layer that an adapter could change, of the diffusion model
    (``diffusion_model.…``) and, if it is to be trained, of the text encoder (``text_encoders.…``); ``shapes`` those of
    them that can be trained, ``written_over`` those whose output the network may write over.
    """

    denoiser: Denoiser
    device: torch.device
    half: bool
    precision: str
    shapes: Mapping[str, tuple[int, ...]]
    layers: Mapping[str, nn.Module]
    blocks: Sequence[nn.Module]
    modified_in_place: Collection[str]
    access_weight: WeightAccess
    metadata: Mapping[str, Any]
    hollow: HollowedNetwork | None
    """What is taken out of the network; its blocks run without gradients wherever nothing is on record."""
    model_hash: str
    """Names the model as it is: the same weights, patches and sampling equations, the same name."""

    def condition(self, examples: Sequence[Example]) -> Any:
        """What the denoiser takes for the prompts of a batch."""

    def condition_per_subject(self, examples: Sequence[Example]) -> Any:
        """The same where the text encoder's adapters hold a subject for each example: all of one prompt, encoded once
        for every subject, with its own adapters."""

    def initial_vectors(self, word: str, count: int) -> Mapping[str, Tensor]:
        """Vectors ``[count, width]`` for each text encoder that start at ``word``, see :func:`models.words.start_at`.

        Raises:
            ValueError: the text encoders take none, or know nothing of such a word.
        """

    def with_embeddings(
        self, words: Sequence[LearnedEmbedding], prompts: Sequence[str] = ()
    ) -> AbstractContextManager[None]:
        """Inside the block, prompts that name ``words`` are encoded with their vectors as they stand.

        Raises:
            ValueError: one of ``prompts`` names a word where the text encoders would not find it.
        """

    def unconditional(self, subject: Subject) -> Any:
        """What it takes for the empty prompt, or None."""

    def to_model(self, latents: Tensor) -> Tensor:
        """Latents as the VAE gave them -> model space, on the device."""

    def picture(self, latents: Tensor) -> Image.Image | None:
        """A small picture of latents in model space, or None if the latent format has no preview."""

    def inference_bytes(self, size: tuple[int, ...]) -> int:
        """Bytes that inference on one latent of that size takes for a moment."""

    def free_memory(self) -> int:
        """Bytes free on the device."""

    def free_main_memory(self) -> int:
        """Bytes free in main memory."""

    def make_room(self, needed: int) -> None:
        """Move weights off the device until ``needed`` bytes are free, as far as that can be done."""

    def offloaded(self) -> AbstractContextManager[None]:
        """Inside the block, the weights of what is taken out are off the training device, if there is another place."""

    def is_out_of_memory(self, error: BaseException) -> bool:
        """Whether that is what the error says; frees what can be freed."""
