"""Score personalized images by the oracle: identity, prompt fidelity, diversity and spread of people.

All are 1 for the generator's own images. Identity is 0 for an image of another person, prompt fidelity if the image
shows nothing of the prompt, diversity and spread if all images are equal.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ..drawing.render import render_batch
from ..random_draws import generator_of
from ..scene.captions import parse
from ..scene.identity import Identity
from ..scene.scene import Scene, sample_scene
from ..scene.task import subjects
from .network import Oracle
from .questions import QUESTIONS
from .reading import Reading, agreement, person_of, read

VALUES = {a.name: a.values for a in QUESTIONS}
PLAIN = Scene()
USUAL = {"style": "photo", "expression": "neutral", "framing": "portrait", "place": "center"}
"""Values of a scene that its caption does not name."""
COMPARED = 48
"""Number of people that define the scale of identity."""


def drawn(people: list[Identity], scene: Scene) -> Tensor:
    """Return the generator's own images, [people, 64, 64, 3] in [0, 1]."""
    return _images(people, [scene] * len(people))


def _images(people: list[Identity], scenes: list[Scene]) -> Tensor:
    return torch.from_numpy(render_batch(people, scenes)).float() / 255


def views(caption: str, count: int) -> list[Scene]:
    """Return scenes of one caption that differ in all values that neither the caption nor USUAL determines."""
    named = USUAL | {name: value for name, value in parse(caption).items() if name != "thing"}
    return [replace(sample_scene(generator_of(number)), **named) for number in range(count)]


def scene_of(caption: str) -> Scene:
    """Return the scene that a caption names."""
    return Scene(**{name: value for name, value in parse(caption).items() if name != "thing"})


def mean(reading: Reading) -> Reading:
    """Return the mean reading of all images, as the reading of one."""
    return {name: part.mean(0, keepdim=True) for name, part in reading.items()}


class Judge:
    """Score images [images, 64, 64, 3] in [0, 1].

    Args:
        oracle: network that reads the images.
        references: scenes of the person's reference images.
    """

    def __init__(self, oracle: Oracle, references: tuple[Scene, ...]) -> None:
        self.oracle = oracle
        self.people = subjects(COMPARED, start=1 << 20)
        seen = [read(oracle, drawn(self.people, scene)) for scene in references]
        self.known = {name: torch.stack([view[name] for view in seen]).mean(0) for name in seen[0]}
        self.shown: dict[str, Reading] = {}
        self.same: dict[str, float] = {}

    def identity(self, images: Tensor, references: Tensor, caption: str) -> float:
        """Return the identity with the person of `references`: 1 for one person in two scenes, 0 for two people."""
        scene, seen = scene_of(caption), read(self.oracle, references)
        known, person = mean(seen), person_of(seen)
        value, others = (
            agreement(reading, known, scene, person).mean().item()
            for reading in (read(self.oracle, images), self._shown(caption))
        )
        return (value - others) / (self._same(caption) - others)

    def prompt_fidelity(self, images: Tensor, caption: str) -> float:
        """Return the share of the named scene attributes that the images show; 0 if the thing itself is missing."""
        reading = read(self.oracle, images)
        right = {name: reading[name].argmax(1) == VALUES[name].index(value) for name, value in parse(caption).items()}
        thing = right.pop("thing")
        share = torch.stack(list(right.values()) or [thing]).float().mean(0)
        return (share * thing).mean().item()

    def people_spread(self, images: Tensor, scene: Scene = PLAIN) -> float:
        """Return how different the people in the images are, relative to the generator's people."""
        sampled, real = (_spread(read(self.oracle, p), scene) for p in (images, drawn(self.people, scene)))
        return sampled / real

    def diversity(self, images: Tensor, caption: str, shown: Identity) -> float:
        """Return how different images of one person under one caption are, relative to the generator's."""
        return spread_of_images(images) / spread_of_images(self.generator_images(shown, caption, COMPARED))

    @staticmethod
    def generator_images(shown: Identity, caption: str, count: int) -> Tensor:
        """Return the generator's images of a person in scenes of one caption, [count, 64, 64, 3]."""
        return _images([shown] * count, views(caption, count))

    def _shown(self, caption: str) -> Reading:
        """Return the reading of the generator's images of all compared people, each in a scene of that caption."""
        if caption not in self.shown:
            self.shown[caption] = read(self.oracle, _images(self.people, views(caption, COMPARED)))
        return self.shown[caption]

    def _same(self, caption: str) -> float:
        """Return the mean agreement of an image in a scene of that caption with the references of the same person."""
        if caption not in self.same:
            shown, scene = self._shown(caption), scene_of(caption)
            self.same[caption] = float(np.mean([
                agreement(_one(shown, number), _one(self.known, number), scene, person)
                for number, person in enumerate(self.people)
            ]))  # fmt: skip
        return self.same[caption]


def _one(reading: Reading, number: int) -> Reading:
    return {name: part[number : number + 1] for name, part in reading.items()}


def _spread(reading: Reading, scene: Scene) -> float:
    """Return 1 less the mean overlap ``2 p q / (p p + q q)`` of two images (Horn 1966), by the read probabilities.

    An unreadable image overlaps with all others, and blur reduces ``p p`` as well as ``p q``.
    """
    rows, columns = ({name: part.unsqueeze(at) for name, part in reading.items()} for at in (0, 1))
    table = agreement(rows, columns, scene)
    diagonal = table.diagonal()
    return 1 - _others(2 * table / (diagonal[:, None] + diagonal))


def _others(table: Tensor) -> float:
    """Return the mean of a square table without its diagonal."""
    count = len(table)
    return (table.sum() - table.diagonal().sum()).item() / (count * (count - 1))


def spread_of_images(images: Tensor) -> float:
    """Return the root mean squared color distance of two images."""
    flat = images.flatten(1)
    return _others(torch.cdist(flat, flat) ** 2 / flat.shape[1]) ** 0.5
