"""A loaded MODEL (and CLIP) as the network that adapters are trained on."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ....models.adapters.targets import TEXT_PREFIX
from ....models.backbone.denoiser import Prediction
from ....models.backbone.frozen_layers import WeightAccess
from ....models.hollowed_net.network import HollowedNetwork
from .layers import adds_in_place, architecture, blocks_of, layer_shapes, trainable_layers
from .model_hash import model_hash
from .unused_text_layers import skipped_text_layers
from .weight_access import access_weight


@dataclass(frozen=True, kw_only=True)
class ComfyTargetModel:
    """The layers of ComfyUI's MODEL and CLIP; see :class:`trainers.session.TargetModel`, which it implements."""

    layers: Mapping[str, nn.Module]
    shapes: Mapping[str, tuple[int, ...]]
    blocks: Sequence[nn.Module]
    modified_in_place: Collection[str]
    access_weight: WeightAccess
    hollow: HollowedNetwork | None
    half: bool
    precision: str
    model_hash: str
    metadata: Mapping[str, Any]


def target_model(patcher: Any, clip: Any, hollow: HollowedNetwork | None, prediction: Prediction) -> ComfyTargetModel:
    """Collect the layers of a loaded MODEL, and of ``clip`` if its text encoder trains.

    Args:
        patcher: the MODEL, loaded on its device.
        clip: the CLIP, or None.
        hollow: the removed blocks; none of their layers is offered for training.
        prediction: what the network predicts.
    """
    layers = trainable_layers(patcher, clip)
    removed = {id(module) for block in hollow.blocks for module in block.modules()} if hollow else set()
    skipped = tuple(TEXT_PREFIX + prefix for prefix in skipped_text_layers(clip)) if clip is not None else ()
    left = {
        name: layer for name, layer in layers.items() if id(layer) not in removed and not name.startswith(skipped)
    }  # fmt: skip
    in_place = adds_in_place(patcher.model.diffusion_model)
    dtype = patcher.model.get_dtype_inference()
    precision = str(dtype).removeprefix("torch.")
    return ComfyTargetModel(
        layers=layers,
        shapes=layer_shapes(left),
        blocks=[block for block in blocks_of(patcher.model.diffusion_model) if id(block) not in removed],
        modified_in_place={name for name in layers if name.startswith(TEXT_PREFIX) or in_place},
        access_weight=access_weight,
        hollow=hollow,
        half=dtype == torch.float16,
        precision=precision,
        model_hash=model_hash(patcher, clip),
        metadata={
            "base": architecture(patcher),
            "prediction": prediction.value,
            "precision": precision,
            "latent_cell": patcher.model.latent_format.spacial_downscale_ratio,
        },
    )
