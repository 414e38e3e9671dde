"""A hypernetwork in use: whose pictures it takes, for which model it predicts, and what a prediction says of itself."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..adapters.stack import AdapterStack
from ..metadata.base_fingerprint import MADE_FOR, SAME_BASE, Fingerprint, distance
from .network import HyperNetwork

PREDICTED = "hypernetwork"
"""The fact of a predicted adapter that describes who predicted it."""
MOST_LAYERS = 16
"""Of the base's record in a prediction, whose file is small."""


@dataclass(frozen=True)
class BaseModelRef:
    """What a thing was made with: a kind, and some numbers of its weights, by which another of the kind is told apart.

    Args:
        kind: for people: ``clip_vision_model, width 1280``, ``SD15``.
        record: see :func:`.provenance.sample_of`.
    """

    kind: str
    record: Fingerprint

    def check(self, given: "BaseModelRef", name: str, whose: str) -> None:
        """``given`` is the same thing, as far as both know the same weights.

        Args:
            name: the input it came through.
            whose: what this one belongs to.

        Raises:
            ValueError: it is another; both sides are named.
        """
        if given.kind != self.kind:
            raise ValueError(f"{name} is {given.kind}; the {whose} was made with {self.kind}, connect that")
        if not self.record.keys() & given.record.keys():
            raise ValueError(
                f"{name} has none of the layers of the {self.kind} that the {whose} was made with; connect that one"
            )
        if (far := distance(self.record, given.record)) > SAME_BASE:
            raise ValueError(
                f"{name} is another {given.kind} than the {whose} was made with: its weights differ from those "
                f"recorded by {100 * far:.1f} %; connect that one"
            )


@dataclass(frozen=True)
class Predictor:
    """A hypernetwork and what it belongs to.

    Args:
        network: on the CPU.
        encoder: of the pictures.
        base: the diffusion model (and text encoder) that it predicts changes of.
        prompt: what the bank's people were called in training; write it, or a like one, to sample them.
        facts: how it was trained, for reports and files.
    """

    network: HyperNetwork
    encoder: BaseModelRef
    base: BaseModelRef
    prompt: str
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @torch.no_grad()
    def predict(self, pictures: Sequence[Tensor]) -> AdapterStack:
        """The adapter of the person in ``pictures``, each one's tokens ``[tokens, width_of_encoder]``.

        Of several pictures, the mean of what each one gives: the network has only ever seen one at a time.

        Raises:
            ValueError: there is no picture, or its tokens are of another width.
        """
        if not pictures:
            raise ValueError("image holds no picture; connect at least one")
        thetas = []
        for tokens in pictures:
            if tokens.ndim != 2 or tokens.shape[1] != self.network.encoder_width:
                raise ValueError(
                    f"clip_vision gives tokens of shape {tuple(tokens.shape)}; the hypernetwork takes some of width "
                    f"{self.network.encoder_width}, connect the encoder that it was trained with"
                )
            thetas.append(self.network(tokens[None].float())[0])
        theta = torch.stack(thetas).mean(0)
        if not theta.isfinite().all():
            raise ValueError("hypernetwork predicts numbers that are none; train it again, with a lower learning rate")
        return AdapterStack((self.network.layout.unpack(theta),), self._facts(len(pictures)))

    def _facts(self, images: int) -> dict[str, Any]:
        known = [name for name in self.base.record if name in self.network.layout.targets]
        some = {name: self.base.record[name] for name in known[:: -(-len(known) // MOST_LAYERS) or 1]}
        return {
            "base": self.base.kind,
            "prompts": [self.prompt],
            "images": images,
            PREDICTED: f"{self.metadata.get('steps', 0)} steps on {self.metadata.get('people', 0)} people",
            MADE_FOR: [some],
        }

    def describe(self) -> str:
        """Lines for reports."""
        made = f"for {self.base.kind}, from pictures by {self.encoder.kind}, prompt {self.prompt!r}"
        return f"{self.network.describe()}\n{made}"


def is_predicted(facts: Mapping[str, Any]) -> bool:
    """Whether an adapter, or a part of it, was predicted."""
    return PREDICTED in facts or any(map(is_predicted, facts.get("parts", ())))
