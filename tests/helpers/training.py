"""Helpers for tests of training: methods, runs of the Train node, and checks that a model is unchanged."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.sd
import comfy.utils
import folder_paths
import pytest
import torch
from hyperbooth.models.adapters import LoRAConfig
from hyperbooth.nodes.bridge.folders import register_embedding_folder
from hyperbooth.nodes.bridge.text.conditioning import encode_prompt
from hyperbooth.trainers.config import Method, TrainingOptions
from torch import Tensor

from tools.comfy_harness.tiny_checkpoints import FAMILIES, Family, write
from tools.comfy_harness.tiny_checkpoints.families import few_clip_l
from tools.comfy_harness.tiny_checkpoints.text_encoders import FEW_LAYERS
from tools.comfy_harness.tiny_encoders import SMALL_CLIP_VISION

QUIET = TrainingOptions(preview_every=0)
PROMPT = "a photo of sks dog"


def lora(**settings: Any) -> Method:
    return Method(
        family="lora",
        config=LoRAConfig(rank=4, alpha=4.0),
        **{"learning_rate": 1e-3, "text_encoder_lr": 1e-3, **settings},
    )


def weights(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Return whether two tensors are equal bit for bit, NaN included (weights that no checkpoint fills may hold it)."""
    return torch.equal(a.contiguous().view(-1).view(torch.uint8), b.contiguous().view(-1).view(torch.uint8))


def forwards(module: Any) -> dict[str, Any]:
    """Return the replaced forwards by layer; ComfyUI's bypass leaves its replacement there, calling the layer's own."""
    return {name: vars(layer)["forward"] for name, layer in module.named_modules() if "forward" in vars(layer)}


@contextmanager
def untouched(model: Any, clip: Any = None) -> Iterator[None]:
    """Check that weights and forwards are bit for bit unchanged after the block; earlier patches are unloaded first."""
    comfy.model_management.unload_all_models()
    parts = [model.model] + ([clip.cond_stage_model] if clip is not None else [])
    with torch.inference_mode():
        before = [(weights(part), forwards(part)) for part in parts]
    yield
    for part, (old, forward) in zip(parts, before, strict=True):
        new = part.state_dict()
        assert old.keys() == new.keys()
        assert [name for name in old if not same_bits(old[name], new[name])] == []
        assert forwards(part) == forward
    assert comfy.model_management.in_training is False


def noise() -> Tensor:
    """Return a fixed noisy latent for a small SD1.5 U-Net."""
    return torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1)) * 5


def output(model: Any, clip: Any, prompt: str = PROMPT) -> Tensor:
    """Return the U-Net's estimate for fixed noise, with the patches of model and clip."""
    with torch.inference_mode():
        cond = encode_prompt(clip, prompt)[0][0]
        comfy.model_management.load_models_gpu([model])
        return model.model.apply_model(noise(), torch.tensor([5.0]), c_crossattn=cond).clone()


def relative(a: Tensor, b: Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


def train(node: Any, loaded: Any, subject: Any, method: Method, steps: int = 6, **inputs: Any) -> tuple[Any, Any, str]:
    inputs = {"options": QUIET, "batch_size": 1, "seed": 0, **inputs}
    return node("Train", model=loaded[0], subject=subject, method=method, steps=steps, **inputs)


def quick_sd15(folder: Path, **options: Any) -> tuple[Any, Any, Any]:
    """Load the smallest SD1.5 with 3 of 12 text-encoder layers, which takes a quarter of the time."""
    parts = {**FAMILIES["sd15"].parts, "cond_stage_model.transformer.": few_clip_l}
    path = write(folder / "quick_sd15.safetensors", Family("SD15", parts))
    with torch.inference_mode():
        return comfy.sd.load_checkpoint_guess_config(str(path), te_model_options=dict(FEW_LAYERS), **options)[:3]


def small_vision(seed: int = 0) -> Any:
    """Return a CLIP_VISION of ComfyUI's own class with random weights: tokens ``[batch, 17, 32]``."""
    from comfy.clip_vision import ClipVisionModel

    vision = ClipVisionModel(SMALL_CLIP_VISION)
    with torch.no_grad():
        for index, parameter in enumerate(vision.model.parameters()):
            parameter.normal_(0, 0.2, generator=torch.Generator().manual_seed(1000 * seed + index))
    return vision


def embeddings_in_output_folder_only(patch: pytest.MonkeyPatch) -> list[str]:
    """Make the test's output folder the only one of embeddings, as registered by the pack; return the folders."""
    patch.setitem(folder_paths.folder_names_and_paths, "embeddings", ([], folder_paths.supported_pt_extensions))
    register_embedding_folder()
    return folder_paths.get_folder_paths("embeddings")


@contextmanager
def interrupted_at(step: int) -> Iterator[None]:
    """Press ComfyUI's cancel button when the progress bar shows ``step``; the bar skips no step inside the block."""

    def press(value: int, *_: Any, **__: Any) -> None:
        if value >= step:
            comfy.model_management.interrupt_current_processing()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comfy.utils, "PROGRESS_THROTTLE_MIN_INTERVAL", 0.0)
        patch.setattr(comfy.utils, "PROGRESS_THROTTLE_MIN_PERCENT", 0.0)
        patch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", press)
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            yield


def same(first: Any, second: Any) -> bool:
    """Return whether two adapters are equal bit for bit."""
    return all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
