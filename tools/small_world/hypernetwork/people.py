"""Draw people into folders as *Build Subject Bank* takes them: images, each with a caption file."""

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

TASK_BACKGROUNDS = frozenset(parse(text)["background"] for text in CAPTIONS)
"""Backgrounds of the task's captions, which are excluded from training."""


def training_people(count: int, start: int = 0) -> list[Identity]:
    """Return people for training, none of whom is held out."""
    return [person(seed) for _, seed in zip(range(count), seeds(held_out=False, start=start), strict=False)]


def scenes(number: int, count: int) -> list[Scene]:
    """Return random scenes for person ``number`` with backgrounds other than :data:`TASK_BACKGROUNDS`."""
    generator, found = torch.Generator().manual_seed(number), []
    while len(found) < count:
        scene = sample_scene(generator)
        found += [scene] if scene.background not in TASK_BACKGROUNDS else []
    return found


def draw(people: Sequence[Identity], views: Callable[[int], Sequence[Scene]], folder: Path) -> None:
    """Write a subfolder for each person with an image of each of their views; complete subfolders are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, shown in enumerate(people):
        path = folder / f"{number:05}"
        if path.exists():
            continue
        unfinished = folder.parent / f".{folder.name}_{path.name}"
        unfinished.mkdir(exist_ok=True)
        seen = list(views(number))
        for view, (scene, image) in enumerate(zip(seen, render_batch([shown] * len(seen), seen), strict=True), 1):
            Image.fromarray(image).save(unfinished / f"{view}.png")
            (unfinished / f"{view}.txt").write_text(personal(caption(shown, scene)), "utf-8")
        unfinished.rename(path)
