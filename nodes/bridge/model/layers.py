"""Layers and blocks of a loaded model: what an adapter can change, and what gradient checkpointing recomputes."""

from collections.abc import Mapping
from typing import Any

from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from torch import nn

from ....models.adapters.targets import DIFFUSION_PREFIX, TEXT_PREFIX
from ....models.backbone.frozen_layers import is_convolution, is_linear
from .unused_text_layers import unused_text_layers


def architecture(model: Any) -> str:
    """Return ComfyUI's name of the model's architecture: ``SD15``, ``SDXL``, ``Flux`` ..."""
    return type(model.model.model_config).__name__


def adaptable_layers(model: Any, clip: Any = None) -> dict[str, nn.Module]:
    """Return every layer that an adapter can change, by its target name: linear layers and ungrouped 2-D convolutions.

    Layers of the text encoder, with their prefix, are included if ``clip`` is given.
    """
    layers = {
        name: module
        for name, module in model.model.named_modules()
        if name.startswith(DIFFUSION_PREFIX) and _is_adaptable(module)
    }
    if clip is not None:
        encoder = clip.cond_stage_model.named_modules()
        layers |= {TEXT_PREFIX + name: module for name, module in encoder if _is_adaptable(module)}
    return layers


def trainable_layers(model: Any, clip: Any = None) -> dict[str, nn.Module]:
    """Return those of :func:`adaptable_layers` that affect the generated image."""
    unused = set() if clip is None else {TEXT_PREFIX + name for name in unused_text_layers(clip)}
    return {name: layer for name, layer in adaptable_layers(model, clip).items() if name not in unused}


def layer_shapes(layers: Mapping[str, nn.Module]) -> dict[str, tuple[int, ...]]:
    """Return the weight shapes from the layers' attributes: a staged or quantized weight tensor may have another."""
    return {name: _shape(layer) for name, layer in layers.items()}


def blocks_of(network: nn.Module) -> list[nn.Module]:
    """Return the units of gradient checkpointing: residual and transformer blocks of a U-Net, blocks of a DiT."""
    lists = [module for module in network.children() if isinstance(module, nn.ModuleList)]
    blocks = [block for blocks in lists for block in blocks]
    if isinstance(network, UNetModel):
        parts = [*network.input_blocks, network.middle_block, *network.output_blocks]
        blocks = [layer for part in parts if part is not None for layer in part]
    return [block for block in blocks if any(True for _ in block.parameters())]


def adds_in_place(network: nn.Module) -> bool:
    """Return whether the network's blocks may compute ``x += f(x)``.

    Flux and its descendants do, U-Nets do not; for every other network it is assumed.
    """
    return not isinstance(network, UNetModel)


def _is_adaptable(module: nn.Module) -> bool:
    return is_linear(module) or (isinstance(module, nn.Conv2d) and is_convolution(module) and module.groups == 1)


def _shape(layer: nn.Module) -> tuple[int, ...]:
    if isinstance(layer, nn.Conv2d):
        return layer.out_channels, layer.in_channels, *layer.kernel_size
    return layer.out_features, layer.in_features
