"""A loaded MODEL (and CLIP) laid out for training, and put back afterwards."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from PIL import Image
from torch import Tensor, nn

from ...models.adapters.targets import TEXT_PREFIX
from ...models.backbone.frozen_layers import WeightAccess, frozen
from ...models.hollowed_net.network import HollowedNetwork
from ...models.textual_inversion.embeddings import LearnedEmbedding
from ...trainers.config import TrainingOptions
from ...trainers.data.dataset import Example, Subject
from .images.latent_preview import latent_picture
from .model.denoiser import ComfyDenoiser
from .model.layers import adds_in_place, architecture, blocks_of, layer_shapes, trainable_layers
from .model.model_hash import model_hash
from .model.offload import moves, offloaded
from .model.weight_access import access_weight
from .text.conditioning import PromptEncoder
from .text.learned_embeddings import initial_vectors

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

NO_MEMORY = ("can't allocate memory", "not enough memory")
"""What PyTorch's CPU allocators say on Linux and on Windows."""
ACTIVATIONS = 3
"""Training's activations over inference's, for ComfyUI's decision how much of the model to keep on the device."""


@dataclass(frozen=True)
class ComfyTrainingSession:
    """The trainers' Workbench on ComfyUI's objects."""

    patchers: Sequence[Any]
    clip: Any
    denoiser: ComfyDenoiser
    conditions: PromptEncoder
    device: torch.device
    half: bool
    precision: str
    shapes: Mapping[str, tuple[int, ...]]
    layers: Mapping[str, nn.Module]
    blocks: Sequence[nn.Module]
    modified_in_place: Collection[str]
    metadata: Mapping[str, Any]
    model_hash: str
    access_weight: WeightAccess
    hollow: HollowedNetwork | None

    def condition(self, examples: Sequence[Example]) -> Any:
        return self.conditions(examples)

    def condition_per_subject(self, examples: Sequence[Example]) -> Any:
        return self.conditions.each(examples)

    def initial_vectors(self, word: str, count: int) -> Mapping[str, Tensor]:
        return initial_vectors(self.clip, word, count)

    def with_embeddings(
        self, words: Sequence[LearnedEmbedding], prompts: Sequence[str] = ()
    ) -> AbstractContextManager[None]:
        return self.conditions.with_embeddings(words, prompts)

    def unconditional(self, subject: Subject) -> Any:
        if subject.unconditional is None:
            return None
        return self.conditions.arguments(subject.unconditional, subject.examples[0].size)

    def to_model(self, latents: Tensor) -> Tensor:
        return self.denoiser.model.process_latent_in(latents.to(self.device, torch.float32, copy=True))

    def picture(self, latents: Tensor) -> Image.Image | None:
        return latent_picture(self.denoiser.model.latent_format, latents)

    def inference_bytes(self, size: tuple[int, ...]) -> int:
        return int(self.denoiser.model.memory_required([1, *size]))

    def free_memory(self) -> int:
        return int(comfy.model_management.get_free_memory(self.device))

    def free_main_memory(self) -> int:
        """Of which what is taken out still asks for its part, where it is to be moved there."""
        coming = sum(p.nbytes for p in self.hollow.parameters()) if self.hollow and moves(self.patchers[0]) else 0
        return int(comfy.model_management.get_free_memory(torch.device("cpu"))) - coming

    def make_room(self, needed: int) -> None:
        if needed > self.free_memory():
            with torch.inference_mode():
                comfy.model_management.load_models_gpu(list(self.patchers), memory_required=needed)

    def offloaded(self) -> AbstractContextManager[None]:
        return nullcontext() if self.hollow is None else offloaded(self.patchers[0], self.hollow)

    def is_out_of_memory(self, error: BaseException) -> bool:
        short = isinstance(error, MemoryError) or comfy.model_management.is_oom(error)
        short = short or any(words in str(error) for words in NO_MEMORY)
        if short:
            comfy.model_management.soft_empty_cache()
        return short


@contextmanager
def training_session(
    model: Any, options: TrainingOptions, subject: Subject, batch_size: int, clip: Any = None,
    hollow: HollowedNetwork | None = None,
) -> Iterator[ComfyTrainingSession]:  # fmt: skip
    """Inside the block the model (and ``clip``, if its text encoder or a word trains) is ready for gradients.

    Everything else leaves the device first. Autograd is on, ComfyUI's inference mode is off, and frozen
    weights are borrowed, never copied. After the block, whatever happened in it, the model is as it was.

    Args:
        hollow: blocks that run without gradients; none of their layers is offered for training.

    Raises:
        ValueError: the model carries bypass hooks, or is of a kind that cannot be trained.
    """
    _check_trainable(model)
    for example in (*subject.examples, *subject.class_examples):
        _check_made_for(model, example)
    patcher = _with_precision(model, options.precision)
    patchers = [patcher] + ([clip.patcher] if clip is not None else [])
    _load_alone(patchers, subject, batch_size)
    with torch.inference_mode(False), torch.enable_grad(), _training_flag(), ExitStack() as stack:
        in_place = adds_in_place(patcher.model.diffusion_model)
        stack.enter_context(frozen(patcher.model, access_weight, in_place))
        if clip is not None:
            stack.enter_context(frozen(clip.cond_stage_model, access_weight, adds_in_place=True))
        if hollow is not None:
            stack.enter_context(hollow.without_gradients())
        yield _session(patcher, clip, hollow)


def _check_trainable(model: Any) -> None:
    if model.injections:
        raise ValueError(
            f"the model carries bypass hooks ({', '.join(model.injections)}); "
            "apply that LoRA in the ordinary way, or train on the model before it"
        )


def _check_made_for(model: Any, example: Example) -> None:
    """The example was encoded by this model's VAE and text encoder, as far as shapes tell."""
    latent_format = model.model.latent_format
    channels, dimensions = latent_format.latent_channels, latent_format.latent_dimensions
    if example.size[0] != channels or len(example.size) != dimensions + 1:
        raise ValueError(
            f"subject: its latents have {example.size[0]} channels in {len(example.size) - 1} dimensions, the "
            f"{architecture(model)} model takes {channels} in {dimensions}; use the model's own VAE in Subject"
        )
    if not isinstance(model.model.diffusion_model, UNetModel):
        return
    given, width = example.cond[0][0].shape[-1], model.model.model_config.unet_config["context_dim"]
    if given != width:
        raise ValueError(
            f"subject: its texts are {given} numbers wide, the {architecture(model)} model takes {width}; "
            "use the model's own CLIP in Subject"
        )


def _with_precision(model: Any, precision: str) -> Any:
    patcher = model.clone()
    if precision != "auto":
        patcher.set_model_compute_dtype(PRECISIONS[precision])
    return patcher


def _load_alone(patchers: list[Any], subject: Subject, batch_size: int) -> None:
    """Load ``patchers`` on their devices, everything else (VAE, text encoder, other models) off them."""
    management = comfy.model_management
    keep = [
        loaded for loaded in management.current_loaded_models
        if loaded.model is not None and any(loaded.model.is_clone(patcher) for patcher in patchers)
    ]  # fmt: skip
    for device in {patcher.load_device for patcher in patchers}:
        management.free_memory(1e30, device, keep_loaded=keep)
    largest = max((example.size for example in subject.examples), key=lambda size: size[-1] * size[-2])
    activations = ACTIVATIONS * patchers[0].model.memory_required([batch_size, *largest])
    management.load_models_gpu(patchers, memory_required=activations)


@contextmanager
def _training_flag() -> Iterator[None]:
    """ComfyUI's models avoid in-place and fused inference kernels while this is set."""
    before = comfy.model_management.in_training
    comfy.model_management.in_training = True
    try:
        yield
    finally:
        comfy.model_management.in_training = before


def _session(patcher: Any, clip: Any, hollow: HollowedNetwork | None) -> ComfyTrainingSession:
    layers, denoiser = trainable_layers(patcher, clip), ComfyDenoiser(patcher)
    out = {id(module) for block in hollow.blocks for module in block.modules()} if hollow else set()
    left = {name: layer for name, layer in layers.items() if id(layer) not in out}
    in_place = adds_in_place(patcher.model.diffusion_model)
    return ComfyTrainingSession(
        patchers=[patcher] + ([clip.patcher] if clip is not None else []),
        clip=clip,
        denoiser=denoiser,
        conditions=PromptEncoder(patcher.model, patcher.load_device, clip),
        device=patcher.load_device,
        half=patcher.model.get_dtype_inference() == torch.float16,
        precision=str(patcher.model.get_dtype_inference()).removeprefix("torch."),
        shapes=layer_shapes(left),
        layers=layers,
        blocks=[block for block in blocks_of(patcher.model.diffusion_model) if id(block) not in out],
        hollow=hollow,
        modified_in_place={name for name in layers if name.startswith(TEXT_PREFIX) or in_place},
        model_hash=model_hash(patcher, clip),
        access_weight=access_weight,
        metadata={
            "base": architecture(patcher),
            "prediction": denoiser.prediction.value,
            "precision": str(patcher.model.get_dtype_inference()).removeprefix("torch."),
            "latent_cell": patcher.model.latent_format.spacial_downscale_ratio,
        },
    )
