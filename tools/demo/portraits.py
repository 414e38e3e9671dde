"""Provide the demo's model and person: the small world of drawn portraits, in which the result can be measured."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tools.comfy_harness.import_pack import import_comfyui
from tools.comfy_harness.symlinks import link
from tools.small_world.scene import task
from tools.small_world.weight_files import existing

SETTINGS: dict[str, dict[str, Any]] = {
    "HyperBoothSubject": {"resolution": 64, "crop": 0.0, "colour": 0.0},
    "HyperBoothMethodLoRA": {
        "rank": 8,
        "alpha": 8.0,
        "targets": "all linear and convolution",
        "learning_rate": 5e-3,
    },
    "HyperBoothTrain": {"steps": 400, "batch_size": 4},
    "HyperBoothFastFinetune": {"rank": 8, "learning_rate": 3e-3},
    "EmptyLatentImage": {"width": 64, "height": 64, "batch_size": 2},
    "KSampler": {"steps": 20, "cfg": 2.5},
}
"""Node inputs that suit the small world better than those for Stable Diffusion."""


def write_checkpoint(folder: Path) -> str:
    """Write the world's model as a checkpoint into ``folder``; return its name."""
    import_comfyui()
    from tools.small_world.base.checkpoint import checkpoint

    return checkpoint(folder / "small_world.safetensors").name


def write_network(folder: Path) -> str:
    """Link the world's hypernetwork into ``folder``; return its name."""
    from tools.small_world.hypernetwork.trained import WEIGHTS

    weights = existing(WEIGHTS)
    folder.mkdir(parents=True, exist_ok=True)
    link(weights, folder / "small_world.safetensors")
    return "small_world.safetensors"


def scenes() -> list[str]:
    """Return the five captions of the task, with {} in place of the subject."""
    return [caption.replace(task.CLASS_PROMPT, "{}", 1) for caption in task.CAPTIONS]


def draw_person(number: int, count: int, folder: Path) -> list[str]:
    """Write ``count`` images of held-out person ``number``; return their names."""
    images = task.references(task.subjects(number + 1)[number], count)
    names = [f"person_{index + 1}.png" for index in range(count)]
    for name, image in zip(names, (images.numpy() * 255).round().astype(np.uint8), strict=True):
        Image.fromarray(image).save(folder / name)
    return names


@dataclass(frozen=True)
class Scores:
    """Hold identity (1: the person, 0: other people) and prompt fidelity (share of the named attributes)."""

    identity: float
    prompt_fidelity: float

    def __str__(self) -> str:
        return f"identity {self.identity:.2f}, prompt fidelity {self.prompt_fidelity:.2f}"


Judge = Callable[[list[Image.Image], list[list[Image.Image]], list[str]], Scores]
"""(references, images of each caption, captions) -> mean scores."""


def judge(references: int) -> Judge:
    """Return a judge that scores by the oracle, given the number of reference images.

    Raises:
        FileNotFoundError: the oracle is not trained.
    """
    from tools.small_world.oracle import scores
    from tools.small_world.oracle.trained import kept

    oracle = scores.Judge(kept(), task.REFERENCES[:references])

    def judged(known: list[Image.Image], made: list[list[Image.Image]], captions: list[str]) -> Scores:
        views = tensor_of(known)
        pairs = [(tensor_of(images), caption) for images, caption in zip(made, captions, strict=True)]
        return Scores(
            float(np.mean([oracle.identity(images, views, caption) for images, caption in pairs])),
            float(np.mean([oracle.prompt_fidelity(images, caption) for images, caption in pairs])),
        )

    return judged


def tensor_of(images: list[Image.Image]) -> Any:
    """Return the images as [images, 64, 64, 3] in [0, 1]."""
    import torch

    small = [image.convert("RGB").resize((64, 64), Image.Resampling.LANCZOS) for image in images]
    return torch.from_numpy(np.stack([np.asarray(image) for image in small])).float() / 255
