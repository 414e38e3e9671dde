"""Drawn people in folders, as *Build Subject Bank* takes them: images, and beside each the words for its scene."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from PIL import Image

from ..drawing.render import render_batch
from ..scene.captions import caption, parse
from ..scene.identity import Identity
from ..scene.people import person, seeds
from ..scene.scene import Scene, sample_scene
from ..scene.task import CAPTIONS, personal

ASKED_FOR = frozenset(parse(text)["background"] for text in CAPTIONS)
"""Places that the task asks for; nobody trains on them."""


def learned(count: int, start: int = 0) -> list[Identity]:
    """People to learn from: none that is held out."""
    return [person(seed) for _, seed in zip(range(count), seeds(held_out=False, start=start), strict=False)]


def scenes(number: int, count: int) -> list[Scene]:
    """So many for the person of this number, at random, in other places than :data:`ASKED_FOR`."""
    generator, found = torch.Generator().manual_seed(number), []
    while len(found) < count:
        scene = sample_scene(generator)
        found += [scene] if scene.background not in ASKED_FOR else []
    return found


def draw(people: Sequence[Identity], views: Callable[[int], Sequence[Scene]], folder: Path) -> None:
    """A sub-folder for each of them, with an image of each view of that number's; those that are there whole stay."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, shown in enumerate(people):
        place = folder / f"{number:05}"
        if place.exists():
            continue
        unfinished = folder.parent / f".{folder.name}_{place.name}"
        unfinished.mkdir(exist_ok=True)
        seen = list(views(number))
        for view, (scene, image) in enumerate(zip(seen, render_batch([shown] * len(seen), seen), strict=True), 1):
            Image.fromarray(image).save(unfinished / f"{view}.png")
            (unfinished / f"{view}.txt").write_text(personal(caption(shown, scene)), "utf-8")
        unfinished.rename(place)
