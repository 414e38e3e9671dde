"""Quality of personalized images by the oracle: identity, prompt fidelity, how different people are.

All are 1 for the generator's own images. Identity is 0 for an image of somebody else, prompt fidelity where nothing
of the prompt is there, diversity and spread where all images show the same.
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
"""Of a scene whose caption does not say otherwise."""
COMPARED = 48
"""People from whom the scale of identity is taken."""


def drawn(people: list[Identity], scene: Scene) -> Tensor:
    """[people, 64, 64, 3] in [0, 1]: the generator's own images."""
    return _images(people, [scene] * len(people))


def _images(people: list[Identity], scenes: list[Scene]) -> Tensor:
    return torch.from_numpy(render_batch(people, scenes)).float() / 255


def views(caption: str, count: int) -> list[Scene]:
    """Scenes that differ in what the caption does not say, and what is not as usual either."""
    named = USUAL | {name: value for name, value in parse(caption).items() if name != "thing"}
    return [replace(sample_scene(generator_of(number)), **named) for number in range(count)]


def scene_of(caption: str) -> Scene:
    """The scene that a caption names."""
    return Scene(**{name: value for name, value in parse(caption).items() if name != "thing"})


def mean(reading: Reading) -> Reading:
    """Of all its images together, as one."""
    return {name: part.mean(0, keepdim=True) for name, part in reading.items()}


class Judge:
    """Scores of images [images, 64, 64, 3] in [0, 1].

    Args:
        references: the scenes in which the person's reference images show them.
    """

    def __init__(self, oracle: Oracle, references: tuple[Scene, ...]) -> None:
        self.oracle = oracle
        self.people = subjects(COMPARED, start=1 << 20)
        seen = [read(oracle, drawn(self.people, scene)) for scene in references]
        self.known = {name: torch.stack([view[name] for view in seen]).mean(0) for name in seen[0]}
        self.shown: dict[str, Reading] = {}
        self.same: dict[str, float] = {}

    def identity(self, images: Tensor, references: Tensor, caption: str) -> float:
        """Whether the images show the person of `references`: 1 for one person in two scenes, 0 for two people."""
        scene, seen = scene_of(caption), read(self.oracle, references)
        known, person = mean(seen), person_of(seen)
        value, others = (
            agreement(reading, known, scene, person).mean().item()
            for reading in (read(self.oracle, images), self._shown(caption))
        )
        return (value - others) / (self._same(caption) - others)

    def prompt_fidelity(self, images: Tensor, caption: str) -> float:
        """The share of what the caption names of the scene that is there; nothing is where the thing itself is not."""
        reading = read(self.oracle, images)
        right = {name: reading[name].argmax(1) == VALUES[name].index(value) for name, value in parse(caption).items()}
        thing = right.pop("thing")
        share = torch.stack(list(right.values()) or [thing]).float().mean(0)
        return (share * thing).mean().item()

    def people_spread(self, images: Tensor, scene: Scene = PLAIN) -> float:
        """How different the people in the images are from each other, as a share of the generator's people."""
        own, real = (_spread(read(self.oracle, p), scene) for p in (images, drawn(self.people, scene)))
        return own / real

    def diversity(self, images: Tensor, caption: str, shown: Identity) -> float:
        """How different images of one person under one caption are, as a share of the generator's."""
        return spread_of_images(images) / spread_of_images(self.own_images(shown, caption, COMPARED))

    @staticmethod
    def own_images(shown: Identity, caption: str, count: int) -> Tensor:
        """[count, 64, 64, 3]: the generator's of that person, in scenes of which the caption says all that it says."""
        return _images([shown] * count, views(caption, count))

    def _shown(self, caption: str) -> Reading:
        """The generator's own images of all that are compared, each in a scene of that caption."""
        if caption not in self.shown:
            self.shown[caption] = read(self.oracle, _images(self.people, views(caption, COMPARED)))
        return self.shown[caption]

    def _same(self, caption: str) -> float:
        """Mean agreement of an image in a scene of that caption with the references of the same person."""
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
    """1 less the mean overlap ``2 p q / (p p + q q)`` of two images (Horn 1966, by the chances that are read).

    What cannot be read at all overlaps with everything, and a blur that takes from ``p q`` takes from ``p p`` too.
    """
    rows, columns = ({name: part.unsqueeze(at) for name, part in reading.items()} for at in (0, 1))
    table = agreement(rows, columns, scene)
    own = table.diagonal()
    return 1 - _others(2 * table / (own[:, None] + own))


def _others(table: Tensor) -> float:
    """Mean of a square table without its diagonal."""
    count = len(table)
    return (table.sum() - table.diagonal().sum()).item() / (count * (count - 1))


def spread_of_images(images: Tensor) -> float:
    """Root of the mean squared distance of two images' colors."""
    flat = images.flatten(1)
    return _others(torch.cdist(flat, flat) ** 2 / flat.shape[1]) ** 0.5
