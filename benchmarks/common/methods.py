"""Personalize the small world's base to one person by methods of this pack's nodes or the stock ones."""

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

Call = Callable[..., tuple[Any, ...]]


@dataclass(frozen=True)
class PersonalizedModel:
    """Hold a personalized model, its training cost and its size.

    Args:
        model: MODEL with the adapter.
        clip: CLIP with the adapter.
        prompt: prompt for the person.
        pictures: number of image presentations in training, steps x batch size.
        taken_out: share of the network's parameters in blocks that were removed while it trained.
    """

    model: Any
    clip: Any
    prompt: str
    seconds: float = 0.0
    steps: int = 0
    pictures: int = 0
    parameters: int = 0
    file_bytes: int = 0
    taken_out: float = 0.0


@dataclass(frozen=True)
class Task:
    """Hold the loaded base, the prompts and a caller of the pack's nodes.

    Args:
        base: MODEL, CLIP and VAE.
        call: runs a node of the pack, see :func:`tools.comfy_harness.call_node.caller`.
        prompt: prompt for the person.
        class_prompt: prompt for the class.
        class_images: images for prior preservation.
        class_seconds: seconds that sampling them took.
    """

    base: Any
    call: Call
    prompt: str
    class_prompt: str
    class_images: list[Tensor]
    class_seconds: float = 0.0


@dataclass(frozen=True)
class Ours:
    """Train by a method of the pack: a node, its inputs other than the defaults, and the training settings."""

    node: str
    inputs: dict[str, Any] = field(default_factory=dict)
    steps: int = 100
    batch_size: int = 4
    prior: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    hollow: dict[str, Any] | None = None

    def __call__(self, task: Task, references: Tensor) -> PersonalizedModel:
        base, call = task.base, task.call
        token = self.inputs.get("token")
        prompt = f"a {token}" if token else task.prompt
        others = {"class_prompt": task.class_prompt, "class_images": task.class_images} if self.prior else {}
        began = time.perf_counter()
        (subject,) = call(
            "Subject", images=references, vae=base.vae, clip=base.clip, prompt=prompt, resolution=64, **others
        )
        (method,) = call(self.node, **self.inputs)
        (options,) = call("TrainingOptions", preview_every=0, checkpoint_every=0, **self.options)
        hollow = call("HollowedNet", model=base.model, **self.hollow)[0] if self.hollow else None
        adapter, _, _ = call(
            "Train", model=base.model, subject=subject, method=method, steps=self.steps, batch_size=self.batch_size,
            clip=base.clip, options=options, resume="start over", hollow=hollow,
        )  # fmt: skip
        seconds = time.perf_counter() - began + (task.class_seconds if self.prior else 0.0)
        model, clip = call("Apply", model=base.model, adapter=adapter, strength_model=1.0, clip=base.clip)
        parameter_count = sum(parameter.numel() for parameter in adapter.parameters())
        called = f"a embedding:{token}" if token else prompt
        images = self.steps * self.batch_size
        removed = removed_share(base.model, self.hollow["fraction"]) if self.hollow else 0.0
        return PersonalizedModel(
            model, clip, called, seconds, self.steps, images, parameter_count, file_bytes(adapter), removed
        )


FALLING = {"lr_scheduler": "cosine"}
"""Training Options that were chosen on other people; all others keep their defaults."""


def lora(rank: int = 8, rate: float = 5e-3, **more: Any) -> Ours:
    """Return LoRA on every inner layer; the learning rate was chosen on other people."""
    inputs = {"rank": rank, "alpha": float(rank), "targets": "all linear and convolution", "learning_rate": rate}
    return Ours("MethodLoRA", inputs, options=FALLING, **more)


def removed_share(model: Any, fraction: float) -> float:
    """Return the share of parameters in the removed blocks, for the possible cut nearest to ``fraction``."""
    from hyperbooth.nodes.bridge.model.block_spans import choose_removed_blocks

    return choose_removed_blocks(model.model.diffusion_model, fraction).fraction


def file_bytes(adapter: Any) -> int:
    """Return the size of the adapter in Save Adapter's own format in half precision."""
    from hyperbooth.models.files.adapter_file import save_adapter

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "adapter.safetensors"
        save_adapter(adapter, path, torch.float16)
        return path.stat().st_size


@dataclass(frozen=True)
class Stock:
    """Train by the stock Train LoRA node, in float32 and without checkpointing, which would slow it down.

    All inputs except ``steps``, ``batch_size`` and ``learning_rate`` have the node's defaults.
    """

    steps: int = 500
    batch_size: int = 1
    rank: int = 8
    learning_rate: float = 5e-4

    def __call__(self, task: Task, references: Tensor) -> PersonalizedModel:
        from comfy_extras.nodes_train import LoraModelLoader, TrainLoraNode

        base = task.base
        settings = {
            "batch_size": self.batch_size, "steps": self.steps, "grad_accumulation_steps": 1,
            "learning_rate": self.learning_rate, "rank": self.rank, "optimizer": "AdamW", "loss_function": "MSE",
            "seed": 0, "training_dtype": "fp32", "lora_dtype": "fp32", "quantized_backward": False,
            "algorithm": "LoRA", "gradient_checkpointing": False, "checkpoint_depth": 1, "offloading": False,
            "existing_lora": "[None]", "bucket_mode": False, "bypass_mode": False,
        }  # fmt: skip
        torch.manual_seed(0)  # the node's own seed is not that of the noise levels it draws
        began = time.perf_counter()
        with torch.inference_mode():
            latents = {"samples": base.vae.encode(references)}
            positive = base.clip.encode_from_tokens_scheduled(base.clip.tokenize(task.prompt))
            inputs = {"model": base.model, "latents": latents, "positive": positive, **settings}
            lora = TrainLoraNode.execute(**{name: [value] for name, value in inputs.items()}).result[0]
            seconds = time.perf_counter() - began
            (model,) = LoraModelLoader.execute(base.model, lora, 1.0).result
        sizes = [tensor for name, tensor in lora.items() if not name.endswith(".alpha")]
        size = len(save({name: tensor.half().contiguous() for name, tensor in lora.items()}))
        images = self.steps * self.batch_size
        return PersonalizedModel(
            model, base.clip, task.prompt, seconds, self.steps, images, sum(t.numel() for t in sizes), size
        )


def untouched(task: Task, references: Tensor) -> PersonalizedModel:
    """Return the unmodified base with the class prompt."""
    return PersonalizedModel(task.base.model, task.base.clip, task.class_prompt)
