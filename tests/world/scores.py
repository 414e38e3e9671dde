"""Quality of personalised pictures by the oracle: identity, prompt fidelity, how different people are.

All are 0 for pictures that have nothing of it, and 1 for the generator's own pictures.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from .captions import parse
from .chance import generator_of
from .identity import Identity
from .oracle.network import Oracle
from .oracle.questions import QUESTIONS
from .oracle.reading import Reading, agreement, person_of, read
from .render import render
from .scene import Scene, sample_scene
from .task import subjects

VALUES = {a.name: a.values for a in QUESTIONS}
PLAIN = Scene()
USUAL = {"style": "photo", "expression": "neutral"}
"""Of a scene whose caption does not say otherwise."""
COMPARED = 48
"""People from whom the scale of identity is taken."""


def drawn(people: list[Identity], scene: Scene) -> Tensor:
    """[people, 64, 64, 3] in [0, 1]: the generator's own pictures."""
    return torch.from_numpy(np.stack([render(one, scene) for one in people])).float() / 255


def scene_of(caption: str) -> Scene:
    """The scene that a caption names."""
    return Scene(**{name: value for name, value in parse(caption).items() if name != "thing"})


def mean(reading: Reading) -> Reading:
    """Of all its pictures together, as one."""
    return {name: part.mean(0, keepdim=True) for name, part in reading.items()}


@dataclass(frozen=True)
class Scale:
    """Agreement of readings of the same person in two scenes, and of two people's."""

    same: float
    random: float

    def __call__(self, value: float) -> float:
        return (value - self.random) / (self.same - self.random)


class Judge:
    """Scores of pictures [pictures, 64, 64, 3] in [0, 1].

    Args:
        references: the scenes in which the person's reference pictures show them.
    """

    def __init__(self, oracle: Oracle, references: tuple[Scene, ...]) -> None:
        self.oracle, self.references = oracle, references
        self.people = subjects(COMPARED, start=1 << 20)
        views = [read(oracle, drawn(self.people, scene)) for scene in references]
        self.known = {name: torch.stack([view[name] for view in views]).mean(0) for name in views[0]}
        self.scales: dict[Scene, Scale] = {}

    def identity(self, pictures: Tensor, references: Tensor, caption: str) -> float:
        """Whether the pictures show the person of `references`: 1 for one person in two scenes, 0 for two people."""
        scene = scene_of(caption)
        known = read(self.oracle, references)
        value = agreement(read(self.oracle, pictures), mean(known), scene, person_of(known)).mean().item()
        return self._scale(scene)(value)

    def prompt_fidelity(self, pictures: Tensor, caption: str) -> float:
        """The share of what the caption names that is there."""
        reading = read(self.oracle, pictures)
        named = parse(caption).items()
        right = [reading[name].argmax(1) == VALUES[name].index(value) for name, value in named]
        return torch.stack(right).float().mean().item()

    def people_spread(self, pictures: Tensor, scene: Scene = PLAIN) -> float:
        """How different the people in the pictures are from each other, as a share of the generator's people."""
        own, real = (_spread(read(self.oracle, p), scene) for p in (pictures, drawn(self.people, scene)))
        return own / real

    def diversity(self, pictures: Tensor, caption: str, shown: Identity) -> float:
        """How different pictures of one person under one caption are, as a share of the generator's."""
        return spread_of_pictures(pictures) / spread_of_pictures(self.own_pictures(shown, caption, COMPARED))

    @staticmethod
    def own_pictures(shown: Identity, caption: str, count: int) -> Tensor:
        """[count, 64, 64, 3]: the generator's of that person, in scenes of which the caption says all that it says."""
        named = {name: value for name, value in parse(caption).items() if name != "thing"}
        scenes = [replace(sample_scene(generator_of(number)), **USUAL | named) for number in range(count)]
        return torch.from_numpy(np.stack([render(shown, scene) for scene in scenes])).float() / 255

    def _scale(self, scene: Scene) -> Scale:
        """Measured on the generator's own pictures of held-out people."""
        if scene not in self.scales:
            shown = read(self.oracle, drawn(self.people, scene))
            tables = []
            for number, one in enumerate(self.people):
                known = {name: part[number : number + 1] for name, part in self.known.items()}
                tables.append(agreement(shown, known, scene, one))
            table = torch.stack(tables)  # [whose references, whose picture]
            self.scales[scene] = Scale(table.diagonal().mean().item(), _others(table))
        return self.scales[scene]


def _spread(reading: Reading, scene: Scene) -> float:
    """By how much a picture agrees more with itself than with another: what cannot be read at all counts as equal."""
    rows, columns = ({name: part.unsqueeze(at) for name, part in reading.items()} for at in (0, 1))
    table = agreement(rows, columns, scene)
    return table.diagonal().mean().item() - _others(table)


def _others(table: Tensor) -> float:
    """Mean of a square table without its diagonal."""
    count = len(table)
    return (table.sum() - table.diagonal().sum()).item() / (count * (count - 1))


def spread_of_pictures(pictures: Tensor) -> float:
    """Root of the mean squared distance of two pictures' colours."""
    flat = pictures.flatten(1)
    return _others(torch.cdist(flat, flat) ** 2 / flat.shape[1]) ** 0.5
