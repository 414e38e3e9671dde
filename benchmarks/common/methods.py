"""Ways to personalize the small world's base to one person, each with this pack's nodes or the stock ones."""

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
class Made:
    """A personalized model, what it cost, and how large it is.

    Args:
        pictures: how often one was trained on.
        taken_out: share of the network's numbers that was out of it while it trained.
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
    """The loaded base, and the nodes.

    Args:
        base: with MODEL, CLIP and VAE.
        call: runs a node of the pack, see ``devkit.call``.
        prompt, class_prompt: of the person, and of anybody.
        class_images: for prior preservation.
        class_seconds: what sampling them took.
    """

    base: Any
    call: Call
    prompt: str
    class_prompt: str
    class_images: list[Tensor]
    class_seconds: float = 0.0


@dataclass(frozen=True)
class Ours:
    """A method of the pack: a node, what differs from its defaults, and how it is trained."""

    node: str
    inputs: dict[str, Any] = field(default_factory=dict)
    steps: int = 100
    batch_size: int = 4
    prior: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    hollow: dict[str, Any] | None = None

    def __call__(self, task: Task, references: Tensor) -> Made:
        base, call = task.base, task.call
        word = self.inputs.get("token")
        prompt = f"a {word}" if word else task.prompt
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
        numbers = sum(parameter.numel() for parameter in adapter.parameters())
        called = f"a embedding:{word}" if word else prompt
        images = self.steps * self.batch_size
        out = share_taken_out(base.model, self.hollow["fraction"]) if self.hollow else 0.0
        return Made(model, clip, called, seconds, self.steps, images, numbers, file_bytes(adapter), out)


FALLING = {"lr_scheduler": "cosine"}
"""Training Options that were chosen on other people; else their defaults."""


def lora(rank: int = 8, rate: float = 5e-3, **more: Any) -> Ours:
    """LoRA in every inner layer; the rate was chosen on other people."""
    inputs = {"rank": rank, "alpha": float(rank), "targets": "all linear and convolution", "learning_rate": rate}
    return Ours("MethodLoRA", inputs, options=FALLING, **more)


def share_taken_out(model: Any, fraction: float) -> float:
    """Of the numbers: the cut that comes nearest to the fraction asked for."""
    from hyperbooth.nodes.bridge.model.block_spans import choose_removed_blocks

    return choose_removed_blocks(model.model.diffusion_model, fraction).fraction


def file_bytes(adapter: Any) -> int:
    """What Save Adapter's own format takes in half precision."""
    from hyperbooth.models.files.adapter_file import save_adapter

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "adapter.safetensors"
        save_adapter(adapter, path, torch.float16)
        return path.stat().st_size


@dataclass(frozen=True)
class Stock:
    """The stock Train LoRA node, in float32 and without checkpointing (which would slow it down); else as it is set
    when it is added to a graph, but for `steps`, `batch_size` and `learning_rate`."""

    steps: int = 500
    batch_size: int = 1
    rank: int = 8
    learning_rate: float = 5e-4

    def __call__(self, task: Task, references: Tensor) -> Made:
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
        return Made(model, base.clip, task.prompt, seconds, self.steps, images, sum(t.numel() for t in sizes), size)


def untouched(task: Task, references: Tensor) -> Made:
    """The base as it is, asked for anybody."""
    return Made(task.base.model, task.base.clip, task.class_prompt)
