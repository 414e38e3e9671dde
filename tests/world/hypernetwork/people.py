"""Drawn people in folders, as *Build Subject Bank* takes them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from ..identity import Identity
from ..people import person, seeds
from ..render import render_batch
from ..scene import Scene


def learnt(count: int, start: int = 0) -> list[Identity]:
    """People to learn from: none that is held out."""
    return [person(seed) for _, seed in zip(range(count), seeds(held_out=False, start=start), strict=False)]


def draw(people: Sequence[Identity], views: Sequence[Scene], folder: Path) -> None:
    """A sub-folder for each of them, with a picture of each view; those that are there whole stay."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, shown in enumerate(people):
        place = folder / f"{number:05}"
        if place.exists():
            continue
        unfinished = folder.parent / f".{place.name}"
        unfinished.mkdir(exist_ok=True)
        for view, picture in enumerate(render_batch([shown] * len(views), list(views)), 1):
            Image.fromarray(picture).save(unfinished / f"{view}.png")
        unfinished.rename(place)
