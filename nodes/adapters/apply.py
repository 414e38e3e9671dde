"""Nodes that apply, combine, convert and describe adapters."""

import logging
from typing import Any

from comfy_api.latest import io
from PIL import Image

from ...models.adapters.stack import AdapterStack
from ...models.adapters.targets import DIFFUSION_PREFIX
from ...models.adapters.weight_update import depends_on_weight
from ...models.files.lora_key_formats import as_plain_lora, layer_tensors
from ...models.metadata.base_fingerprint import disagree
from ...models.metadata.combine import combine_adapters
from ...models.metadata.summary import change_per_block, removal_warning, summary
from ...trainers.checks import check_number
from ...trainers.reporting.charts import block_chart
from ..bridge.adapters.patching import (
    apply_adapter,
    base_weights,
    has_text_layers,
    require_layers_present,
    warn_if_other_base,
)
from ..bridge.images.vae import to_image
from ..common import sockets
from ..common.node import Node
from .file_formats import STRENGTH, BaseModel

logger = logging.getLogger("hyperbooth")


class Apply(Node):
    """Apply an adapter stack to a model and its text encoder."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyperBoothApply",
            display_name="Apply Adapter",
            category=f"{sockets.CATEGORY}/adapter",
            description="Puts an adapter on a model (and its text encoder), exactly as the stock Load LoRA would put "
            "the saved file.",
            inputs=[
                io.Model.Input("model", tooltip="The model it was trained on, or another of the same architecture."),
                sockets.Adapter.Input("adapter", tooltip="From Train Adapter or Load Adapter."),
                io.Float.Input("strength_model", **STRENGTH, tooltip="1 is what was trained, 0 is nothing."),
                io.Clip.Input("clip", optional=True, tooltip="Connect it if the text encoder was trained too."),
                io.Float.Input("strength_clip", **STRENGTH, tooltip="The same for the text encoder.", optional=True),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The personalized model."),
                io.Clip.Output(display_name="clip", tooltip="The personalized text encoder."),
            ],
        )

    @classmethod
    def execute(
        cls, model: Any, adapter: AdapterStack, strength_model: float, clip: Any = None, strength_clip: float = 1.0
    ) -> io.NodeOutput:
        for name, strength in (("strength_model", strength_model), ("strength_clip", strength_clip)):
            check_number(name, strength, -100, 100)
        if clip is None and (adapter.embeddings or has_text_layers(adapter)):
            what = "text-encoder layers" if has_text_layers(adapter) else "learned embeddings"
            logger.warning("Apply Adapter: the adapter also holds %s; connect clip to use them", what)
        if strength_model or strength_clip:
            warn_if_other_base(model, clip, adapter)
        return io.NodeOutput(
            *apply_adapter(model, clip, adapter, strength_model=strength_model, strength_clip=strength_clip)
        )


class Combine(Node):
    """Combine two adapter stacks into one."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyperBoothCombine",
            display_name="Combine Adapters",
            category=f"{sockets.CATEGORY}/adapter",
            description="Combines two adapters into one adapter stack; the second is applied after the first.",
            inputs=[
                sockets.Adapter.Input("first", tooltip="Applied first."),
                sockets.Adapter.Input("second", tooltip="Applied after it; training further trains this one."),
            ],
            outputs=[sockets.Adapter.Output(display_name="adapter", tooltip="The stack of both, in this order.")],
        )

    @classmethod
    def execute(cls, first: AdapterStack, second: AdapterStack) -> io.NodeOutput:
        adapter = combine_adapters(first, second)
        if warning := removal_warning(adapter):
            logger.warning("Combine Adapters: %s", warning)
        if disagree(adapter.metadata):
            logger.warning(
                "Combine Adapters: first and second are PaRas exported as LoRAs for different bases; no model fits "
                "both. Use the files in format 'hyperbooth', which fit every base"
            )
        return io.NodeOutput(adapter)


class ToLoRA(Node):
    """Convert an adapter stack to a stock LORA_MODEL."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyperBoothToLoRA",
            display_name="Adapter to LoRA",
            category=f"{sockets.CATEGORY}/adapter",
            description="Converts an adapter to a plain LoRA for the stock nodes (Load LoRA Model, Save LoRA Weights).",
            inputs=[
                sockets.Adapter.Input("adapter", tooltip="The adapter."),
                io.Model.Input("model", tooltip="The model it was trained on; PaRa needs its weights."),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="Its text encoder; only needed for a PaRa that changes the text encoder.",
                ),
                io.Float.Input(
                    "strength",
                    **STRENGTH,
                    optional=True,
                    tooltip="Strength of the adapter that the LoRA has when it is used at 1.",
                ),
            ],
            outputs=[io.LoraModel.Output(display_name="lora", tooltip="A plain LoRA.")],
        )

    @classmethod
    def execute(cls, adapter: AdapterStack, model: Any, clip: Any = None, strength: float = 1.0) -> io.NodeOutput:
        base = BaseModel(model, clip, strength)
        base.require_convertible(adapter)
        if not adapter.adapters:
            raise ValueError("the adapter holds learned embeddings only, which no LoRA can hold; use Apply Adapter, or "
                             "Save Adapter in format 'comfyui' for an embedding file")  # fmt: skip
        if adapter.embeddings:
            logger.warning("Adapter to LoRA: the adapter also holds learned embeddings, which a LoRA leaves out")
        tensors = layer_tensors(as_plain_lora(adapter, base.weights_for(adapter), strength))
        base.warn_if_other(adapter)
        if note := base.strength_note():
            logger.warning("Adapter to LoRA: %s", note)
        return io.NodeOutput(tensors)


class Info(Node):
    """Describe an adapter stack, and chart its change of each block of the model."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyperBoothInfo",
            display_name="Adapter Info",
            category=f"{sockets.CATEGORY}/adapter",
            description="Reports family, size and settings of an adapter, and charts how much it changes each block.",
            inputs=[
                sockets.Adapter.Input("adapter", tooltip="The adapter."),
                io.Model.Input("model", optional=True, tooltip="With it, changes are relative to its weights."),
            ],
            outputs=[
                io.String.Output(display_name="report", tooltip="Family, size and settings."),
                io.Image.Output(display_name="chart", tooltip="Mean change of the weights per block."),
            ],
        )

    @classmethod
    def execute(cls, adapter: AdapterStack, model: Any = None) -> io.NodeOutput:
        report = summary(adapter)
        if model is None:
            layers = adapter.targets()
            known = {name for name in layers if not depends_on_weight(adapter.weight_updates_of(name))}
            changes = change_per_block(adapter.select_layers(known))
            if len(known) < len(layers):
                report += (
                    f"\nchart: without {len(layers) - len(known)} layers, whose change depends on the model's weights; "
                    "connect model to see them"
                )
        else:
            require_layers_present(model, None, adapter)
            changes = change_per_block(adapter.select_prefix(DIFFUSION_PREFIX), base_weights(model))
        chart = block_chart(changes, relative=model is not None) or Image.new("RGB", (768, 384), "white")
        return io.NodeOutput(report, to_image(chart))
