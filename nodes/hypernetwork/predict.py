"""Nodes that save, load and apply hypernetworks."""

from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ...models.hypernetwork.checkpoint import load_predictor, save_predictor
from ...models.hypernetwork.predictor import BaseModelRef, Predictor
from ...models.metadata.base_fingerprint import fingerprint
from ..adapters.file_formats import SAVE_DTYPES
from ..bridge.adapters.patching import base_weights
from ..bridge.folders import hypernetwork_files, hypernetwork_path, output_file, output_name, prefix_error, widget_value
from ..bridge.images.clip_vision import encoder_ref, image_tokens
from ..bridge.model.layers import adaptable_layers, architecture
from ..common import sockets
from ..common.node import Node

CATEGORY = f"{sockets.CATEGORY}/hypernetwork"


class SaveHyperNetwork(Node):
    """Save a hypernetwork to a file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyperBoothSaveHyperNetwork",
            display_name="Save HyperNetwork",
            category=CATEGORY,
            description="Saves a hypernetwork below ComfyUI's output folder, with its parameter layout, and the "
            "encoder, base model and prompt that it was trained with. Under 'hyperbooth/' Load HyperNetwork lists it.",
            is_output_node=True,
            inputs=[
                sockets.HyperNetwork.Input("hypernetwork", tooltip="From Train HyperNetwork."),
                io.String.Input(
                    "filename_prefix",
                    default="hyperbooth/hypernetwork",
                    tooltip="Folder and start of the name, below the output folder; a counter is appended.",
                ),
                io.Combo.Input(
                    "precision",
                    options=list(SAVE_DTYPES),
                    default="float32",
                    optional=True,
                    tooltip="Data type of the values in the file; half precision halves its size.",
                ),
            ],
            outputs=[io.String.Output(display_name="path", tooltip="Where it was saved, below the output folder.")],
        )

    @classmethod
    def validate_inputs(cls, filename_prefix: str | None = None) -> bool | str:
        """Return True, or why the prefix cannot be used, before anything is trained; None is a link."""
        return prefix_error(filename_prefix)

    @classmethod
    def execute(cls, hypernetwork: Predictor, filename_prefix: str, precision: str = "float32") -> io.NodeOutput:
        with output_file(filename_prefix, ".safetensors") as path:
            save_predictor(hypernetwork, path, SAVE_DTYPES[precision])
        name = output_name(path)
        return io.NodeOutput(name, ui={"text": (f"saved {name}",)})


class LoadHyperNetwork(Node):
    """Load a hypernetwork from a file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyperBoothLoadHyperNetwork",
            display_name="Load HyperNetwork",
            category=CATEGORY,
            description="Loads a hypernetwork that Save HyperNetwork wrote.",
            inputs=[
                io.Combo.Input(
                    "hypernetwork_name",
                    options=hypernetwork_files(),
                    tooltip="A file of models/hyperbooth or output/hyperbooth.",
                ),
            ],
            outputs=[sockets.HyperNetwork.Output(display_name="hypernetwork", tooltip="For Predict Adapter.")],
        )

    @classmethod
    def execute(cls, hypernetwork_name: str) -> io.NodeOutput:
        return io.NodeOutput(load_predictor(hypernetwork_path(hypernetwork_name)))

    @classmethod
    def fingerprint_inputs(cls, hypernetwork_name: str | None, **_: Any) -> Any:
        """Return the file's time and size: a file that was written again is loaded again."""
        stat = hypernetwork_path(widget_value("hypernetwork_name", hypernetwork_name)).stat()
        return stat.st_mtime_ns, stat.st_size


class Predict(Node):
    """Predict an adapter from an image."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyperBoothPredict",
            display_name="Predict Adapter",
            category=CATEGORY,
            description="Predicts an adapter from one image, without training: a forward pass of the encoder and a few "
            "milliseconds. Apply the adapter as it is, or refine it with Fast Fine-tune.",
            inputs=[
                sockets.HyperNetwork.Input("hypernetwork", tooltip="From Load HyperNetwork or Train HyperNetwork."),
                io.ClipVision.Input("clip_vision", tooltip="The encoder that the hypernetwork was trained with."),
                io.Image.Input("image", tooltip="An image of the person; of several, the predictions are averaged."),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="Optional: with it, a hypernetwork for another base model is refused here.",
                ),
            ],
            outputs=[
                sockets.Adapter.Output(display_name="adapter", tooltip="For Apply Adapter and Fast Fine-tune."),
            ],
        )

    @classmethod
    def execute(cls, hypernetwork: Predictor, clip_vision: Any, image: Tensor, model: Any = None) -> io.NodeOutput:
        hypernetwork.encoder.check(encoder_ref(clip_vision), "clip_vision", "hypernetwork")
        if model is not None:
            require_predictor_base(model, hypernetwork)
        return io.NodeOutput(hypernetwork.predict(list(image_tokens(clip_vision, image))))


def require_predictor_base(model: Any, predictor: Predictor) -> None:
    """Require that the hypernetwork predicts adapters for this MODEL.

    Raises:
        ValueError: it was trained for another base model; the message names both.
    """
    layers = adaptable_layers(model)
    recorded = [name for name in predictor.base.record if name in layers]
    given = BaseModelRef(architecture(model), fingerprint(recorded, base_weights(model)) if recorded else {})
    predictor.base.check(given, "model", "hypernetwork")
