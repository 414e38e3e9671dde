"""Figures of a long benchmark, kept as they come."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common.harness import Row
from torch import Tensor

FAILED = "failed"
"""In place of figures: why there are none."""
Run = Callable[[Any, int], tuple[Row, Tensor]]
"""Figures of a row for one person, and images."""


class Kept:
    """Figures that were measured already, in a folder; a run that was stopped goes on.

    They are of these weights (`world`), and of a row with these settings; a change of the pack itself is not seen.
    """

    def __init__(self, folder: Path, world: str, run: Run) -> None:
        self.folder, self.world, self.run = folder, world, run

    def rows(self, name: str, row: Any, people: list[int]) -> list[Row]:
        """Figures of each person."""
        folder = self._of(name, row)
        folder.mkdir(parents=True, exist_ok=True)
        return [self._one(folder, name, row, number) for number in people]

    def image(self, name: str, row: Any, number: int) -> Tensor | None:
        """[scenes, 64, 64, 3] of that person; None where there is none."""
        path = self._of(name, row) / f"{number}.pt"
        return torch.load(path, weights_only=True) if path.exists() else None

    def _one(self, folder: Path, name: str, row: Any, number: int) -> Row:
        path = folder / f"{number}.json"
        if not path.exists():
            figures = self._measured(folder, row, number)
            path.with_suffix(".part").write_text(json.dumps(figures))
            path.with_suffix(".part").replace(path)
            said = (f"{key} {value:.3g}" if key != FAILED else f"failed: {value}" for key, value in figures.items())
            print(f"{name}, person {number}:", *said, flush=True)
        return json.loads(path.read_text())

    def _measured(self, folder: Path, row: Any, number: int) -> Row:
        """Also of a run that went astray, or showed no numbers: that is a result."""
        try:
            figures, images = self.run(row, number)
        except (FloatingPointError, ValueError) as error:
            return {FAILED: str(error)}
        torch.save(images, folder / f"{number}.pt")
        return figures

    def _of(self, name: str, row: Any) -> Path:
        settings = getattr(row, "__name__", None) or repr(row)
        return self.folder / f"{name}-{digest(self.world.encode(), settings.encode())}"


def digest(*parts: bytes) -> str:
    """Of all of them, in order."""
    return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()[:12]
