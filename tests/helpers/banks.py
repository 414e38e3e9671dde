"""Banks of people who were never trained: their numbers follow from a code, and so do their pictures."""

from pathlib import Path
from typing import Any

import torch
from hyperbooth.models.adapters import LiDBConfig
from hyperbooth.models.adapters.parameter_layout import ParameterLayout
from hyperbooth.models.adapters.stack import Adapter
from hyperbooth.models.adapters.targets import select_targets
from hyperbooth.models.subject_bank.bank import Bank
from hyperbooth.models.subject_bank.shards import Manifest, SubjectFit, write_shard
from hyperbooth.nodes.bridge.model.layers import layer_shapes, trainable_layers
from hyperbooth.nodes.bridge.subject_banks import base_model_record
from hyperbooth.trainers.engine.rng import generator_for
from torch import Tensor

PROMPT = "a photo of sks face"
CONFIG = LiDBConfig(1, 16, 8)
CODE = 3
"""Numbers that a person is made of: the colour of the picture."""


def code_of(person: int) -> Tensor:
    return torch.rand(CODE, generator=generator_for(person, 1))


def pictures_of(person: int, count: int = 1, size: int = 32) -> Tensor:
    """``[count, size, size, 3]`` bytes: the person's colour, and noise of each picture's own."""
    noise = torch.rand(count, size, size, 3, generator=generator_for(person, 2))
    return ((0.9 * code_of(person) + 0.1 * noise) * 255).to(torch.uint8)


def theta_of(person: int, numbers: int, own: float = 0.1) -> Tensor:
    """``mean + M code + own noise``; what no picture shows is the last term."""
    draw = generator_for(0, 3)
    mean, spread = torch.randn(numbers, generator=draw), torch.randn(numbers, CODE, generator=draw)
    rest = own * torch.randn(numbers, generator=generator_for(person, 4))
    return 0.1 * (mean + spread @ (code_of(person) - 0.5) + rest)


def layout_of(loaded: Any, text: bool = False) -> ParameterLayout:
    shapes = layer_shapes(trainable_layers(loaded[0], loaded[1] if text else None))
    return ParameterLayout.of(Adapter.create("lidb", select_targets(shapes, "attention"), CONFIG, torch.Generator()))


def shared_by_all(like: Tensor) -> Tensor:
    """An input side."""
    return torch.randn(like.shape, generator=generator_for(7, like.numel())) / 4


def write_bank(
    folder: Path, loaded: Any, people: range = range(40), pictures: int = 1, per_shard: int = 16, text: bool = False,
    shared_input: bool = False, captions: bool = False,
) -> Bank:  # fmt: skip
    """A bank of ``people`` for that MODEL and CLIP; with captions, the pictures after the first are in places."""
    settings = {"prompt": PROMPT, "steps": 5, "seed": 0, "resolution": 64, "shared_input": shared_input}
    manifest = Manifest(layout_of(loaded, text), settings, base_model_record(loaded[0], loaded[1]), {})
    manifest.save(folder)
    for start in range(people.start, people.stop, per_shard):
        some = range(start, min(start + per_shard, people.stop))
        thetas = torch.stack([theta_of(person, manifest.layout.parameter_count) for person in some])
        for tensors in manifest.layout.unflatten(thetas).values() if shared_input else ():
            tensors["b_train"].copy_(shared_by_all(tensors["b_train"][0]))
        images = torch.cat([pictures_of(person, pictures) for person in some])
        latents = torch.randn(len(images), 4, 8, 8, generator=generator_for(start, 5))
        fits = {f"person {person:04}": SubjectFit(1.0, 0.9, 0.95) for person in some}
        told = [[PROMPT, *(f"{PROMPT} in place {place}" for place in range(1, pictures))]] * len(some)
        prompts = told if captions else ()
        write_shard(folder, manifest, fits, [pictures] * len(some), thetas, images, latents, prompts)
    return Bank.open(folder)
