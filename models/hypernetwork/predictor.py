"""A trained hypernetwork with its image encoder and its base model, and the adapters that it predicts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..adapters.stack import AdapterStack
from ..metadata.base_fingerprint import MADE_FOR, SAME_BASE, Fingerprint, distance
from .network import HyperNetwork

PREDICTED = "hypernetwork"
"""Metadata key of a predicted adapter: the training of the hypernetwork that predicted it."""
LAYERS_COMPARED = 16
"""Largest number of layers of the base model's fingerprint in a prediction, whose file is small."""


@dataclass(frozen=True)
class BaseModelRef:
    """Reference to a model that something was made with: its kind, and a sample of its weights as a fingerprint.

    Args:
        kind: description for messages: ``clip_vision_model, width 1280``, ``SD15``.
        record: sampled weights by layer, see :func:`..metadata.base_fingerprint.fingerprint`.
    """

    kind: str
    record: Fingerprint

    def check(self, given: "BaseModelRef", name: str, owner: str) -> None:
        """Check that ``given`` is the same model, by the layers that both fingerprints hold.

        Args:
            given: the model at hand.
            name: of the input that it came through.
            owner: what was made with this model, for the message.

        Raises:
            ValueError: it is another model; the message names both.
        """
        if given.kind != self.kind:
            raise ValueError(f"{name} is {given.kind}; the {owner} was made with {self.kind}; connect that one")
        if not self.record.keys() & given.record.keys():
            raise ValueError(
                f"{name} has none of the layers of the {self.kind} that the {owner} was made with; connect that one"
            )
        if (far := distance(self.record, given.record)) > SAME_BASE:
            raise ValueError(
                f"{name} is another {given.kind} than the {owner} was made with: its weights differ by "
                f"{100 * far:.1f} % from the fingerprint; connect that one"
            )


@dataclass(frozen=True)
class Predictor:
    """A hypernetwork, its image encoder and its base model.

    Args:
        network: on the CPU.
        encoder: of the images.
        base: the diffusion model (and text encoder) that the predicted adapters are for.
        prompt: of the bank's training images; use it, or a similar one, to sample.
        metadata: of the training, for reports and files.
    """

    network: HyperNetwork
    encoder: BaseModelRef
    base: BaseModelRef
    prompt: str
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @torch.no_grad()
    def predict(self, image_tokens: Sequence[Tensor]) -> AdapterStack:
        """Predict the adapter of a subject; with several images it is the mean of their predictions.

        The network was trained on one image at a time.

        Args:
            image_tokens: for each image of the subject, its tokens ``[tokens, encoder_width]``.

        Raises:
            ValueError: there is no image, its tokens are of another width, or the prediction is NaN or infinite.
        """
        if not image_tokens:
            raise ValueError("image holds no image; connect at least one")
        thetas = []
        for tokens in image_tokens:
            if tokens.ndim != 2 or tokens.shape[1] != self.network.encoder_width:
                raise ValueError(
                    f"clip_vision gives tokens of shape {tuple(tokens.shape)}; the hypernetwork expects width "
                    f"{self.network.encoder_width}; connect the encoder that it was trained with"
                )
            thetas.append(self.network(tokens[None].float())[0])
        theta = torch.stack(thetas).mean(0)
        if not theta.isfinite().all():
            raise ValueError("hypernetwork predicts NaN or infinite values; train it again with a lower learning rate")
        return AdapterStack((self.network.layout.unpack(theta),), self._metadata_of(len(image_tokens)))

    def _metadata_of(self, images: int) -> dict[str, Any]:
        adapted = [name for name in self.base.record if name in self.network.layout.targets]
        fingerprint = {name: self.base.record[name] for name in adapted[:: -(-len(adapted) // LAYERS_COMPARED) or 1]}
        return {
            "base": self.base.kind,
            "prompts": [self.prompt],
            "images": images,
            PREDICTED: f"{self.metadata.get('steps', 0)} steps on {self.metadata.get('people', 0)} people",
            MADE_FOR: [fingerprint],
        }

    def describe(self) -> str:
        """Return the size of the network, and the base model, image encoder and prompt it predicts adapters for."""
        made = f"for {self.base.kind}, from images encoded by {self.encoder.kind}, prompt {self.prompt!r}"
        return f"{self.network.describe()}\n{made}"


def is_predicted(metadata: Mapping[str, Any]) -> bool:
    """Return whether an adapter, or a part of it, was predicted by a hypernetwork."""
    return PREDICTED in metadata or any(map(is_predicted, metadata.get("parts", ())))
