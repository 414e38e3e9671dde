"""Cache the figures of a long benchmark on disk as they are measured."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common.harness import Row
from torch import Tensor

FAILED = "failed"
"""Key in place of figures: the reason for the failure."""
Run = Callable[[Any, int], tuple[Row, Tensor]]
"""(row, person) -> figures and images."""


class ResultCache:
    """Cache figures in a folder, so that a stopped run resumes.

    An entry belongs to the weights (``world``) and the settings of the row; a change of the pack itself is not noticed.
    """

    def __init__(self, folder: Path, world: str, run: Run) -> None:
        self.folder, self.world, self.run = folder, world, run

    def rows(self, name: str, row: Any, people: list[int]) -> list[Row]:
        """Return the figures of each person."""
        folder = self._of(name, row)
        folder.mkdir(parents=True, exist_ok=True)
        return [self._one(folder, name, row, number) for number in people]

    def image(self, name: str, row: Any, number: int) -> Tensor | None:
        """Return the images of that person, [scenes, 64, 64, 3], or None."""
        path = self._of(name, row) / f"{number}.pt"
        return torch.load(path, weights_only=True) if path.exists() else None

    def _one(self, folder: Path, name: str, row: Any, number: int) -> Row:
        path = folder / f"{number}.json"
        if not path.exists():
            figures = self._measure(folder, row, number)
            path.with_suffix(".part").write_text(json.dumps(figures))
            path.with_suffix(".part").replace(path)
            shown = (f"{key} {value:.3g}" if key != FAILED else f"failed: {value}" for key, value in figures.items())
            print(f"{name}, person {number}:", *shown, flush=True)
        return json.loads(path.read_text())

    def _measure(self, folder: Path, row: Any, number: int) -> Row:
        """Measure one row; a diverged run is a result too."""
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
    """Return a digest of all parts, in order."""
    return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()[:12]
