"""Synthetic subject banks: parameters and images of each subject are functions of a low-dimensional code."""

from pathlib import Path
from typing import Any

import torch
from hyperbooth.models.adapters import LiDBConfig
from hyperbooth.models.adapters.parameter_layout import ParameterLayout
from hyperbooth.models.adapters.stack import Adapter
from hyperbooth.models.adapters.targets import select_targets
from hyperbooth.models.subject_bank.bank import Bank
from hyperbooth.models.subject_bank.manifest import Manifest
from hyperbooth.models.subject_bank.shards import SubjectFit, write_shard
from hyperbooth.nodes.bridge.model.layers import layer_shapes, trainable_layers
from hyperbooth.nodes.bridge.subject_banks import base_model_record
from hyperbooth.trainers.engine.rng import generator_for
from torch import Tensor

PROMPT = "a photo of sks face"
CONFIG = LiDBConfig(rank=1, a=16, b=8)
CODE = 3
"""Dimension of a subject's code: the color of its images."""


def code_of(subject: int) -> Tensor:
    return torch.rand(CODE, generator=generator_for(subject, 1))


def images_of(subject: int, count: int = 1, size: int = 32) -> Tensor:
    """Return images as bytes ``[count, size, size, 3]``: the subject's color, plus noise per image."""
    noise = torch.rand(count, size, size, 3, generator=generator_for(subject, 2))
    return ((0.9 * code_of(subject) + 0.1 * noise) * 255).to(torch.uint8)


def theta_of(subject: int, size: int, own: float = 0.1) -> Tensor:
    """Return parameters ``mean + M code + own noise``; no image shows the last term."""
    draw = generator_for(0, 3)
    mean, spread = torch.randn(size, generator=draw), torch.randn(size, CODE, generator=draw)
    rest = own * torch.randn(size, generator=generator_for(subject, 4))
    return 0.1 * (mean + spread @ (code_of(subject) - 0.5) + rest)


def layout_of(loaded: Any, text: bool = False) -> ParameterLayout:
    shapes = layer_shapes(trainable_layers(loaded[0], loaded[1] if text else None))
    return ParameterLayout.of(Adapter.create("lidb", select_targets(shapes, "attention"), CONFIG, torch.Generator()))


def shared_factor(like: Tensor) -> Tensor:
    """Return the down factor that all subjects share, of the shape of ``like``."""
    return torch.randn(like.shape, generator=generator_for(7, like.numel())) / 4


def write_bank(
    folder: Path,
    loaded: Any,
    subjects: range = range(40),
    *,
    images: int = 1,
    per_shard: int = 16,
    text: bool = False,
    shared_input: bool = False,
    captions: bool = False,
) -> Bank:
    """Write a synthetic bank for a MODEL and CLIP.

    Args:
        folder: of the bank.
        loaded: MODEL and CLIP.
        subjects: seeds of the subjects.
        images: number of images per subject.
        per_shard: number of subjects per shard.
        text: whether layers of the text encoder are adapted too.
        shared_input: whether all subjects share the down factor.
        captions: whether images after the first have captions with a place.
    """
    settings = {"prompt": PROMPT, "steps": 5, "seed": 0, "resolution": 64, "shared_input": shared_input}
    manifest = Manifest(layout_of(loaded, text), settings, base_model_record(loaded[0], loaded[1]), {})
    manifest.save(folder)
    for start in range(subjects.start, subjects.stop, per_shard):
        chosen = range(start, min(start + per_shard, subjects.stop))
        thetas = torch.stack([theta_of(subject, manifest.layout.parameter_count) for subject in chosen])
        for tensors in manifest.layout.unflatten(thetas).values() if shared_input else ():
            tensors["b_train"].copy_(shared_factor(tensors["b_train"][0]))
        all_images = torch.cat([images_of(subject, images) for subject in chosen])
        prompts = [PROMPT, *(f"{PROMPT} in place {index}" for index in range(1, images))]
        write_shard(
            folder,
            manifest,
            fits={f"person {subject:04}": SubjectFit(1.0, 0.9, 0.95) for subject in chosen},
            image_counts=[images] * len(chosen),
            theta=thetas,
            images=all_images,
            latents=torch.randn(len(all_images), 4, 8, 8, generator=generator_for(start, 5)),
            prompts=[prompts] * len(chosen) if captions else (),
        )
    return Bank.open(folder)
