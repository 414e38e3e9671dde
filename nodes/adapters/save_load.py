"""Adapters on disk."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ...models.adapters.stack import AdapterStack
from ...models.files.adapter_file import HEADER, adapter_tensors, header_of, in_file, load_adapter
from ...models.files.lora_key_formats import as_plain_lora, format_keys, stock_tensors
from ...models.files.precision_loss import half_precision_cost, plain_cost
from ...models.files.safetensors_io import with_hash, write_tensors
from ...models.metadata.base_fingerprint import with_base
from ...models.metadata.lora_metadata import lora_metadata
from ...models.textual_inversion.embedding_files import embedding_tensors
from ...models.validation import is_text
from ..bridge.adapters.lora_keys import export_names, import_names
from ..bridge.adapters.patching import base_weights, require_convertible_to_lora
from ..bridge.folders import (
    adapter_files,
    adapter_path,
    embedding_usage,
    output_file,
    output_name,
    require_embedding_name,
    widget_value,
)
from ..common import sockets

FORMATS = ("hyperbooth", "kohya", "diffusers", "comfyui")
PRECISIONS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class Save(io.ComfyNode):
    """Adapter -> file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyperBoothSave",
            display_name="Save Adapter",
            category=f"{sockets.CATEGORY}/adapter",
            description="Saves an adapter below ComfyUI's output folder. "
            "Under 'loras/' the stock Load LoRA lists it at once.",
            is_output_node=True,
            inputs=[
                sockets.Adapter.Input("adapter", tooltip="The adapter to save."),
                io.String.Input(
                    "filename_prefix",
                    default="loras/hyperbooth",
                    tooltip="Folder and start of the name, below the output folder; a number is added.",
                ),
                io.Combo.Input(
                    "format",
                    options=list(FORMATS),
                    default="hyperbooth",
                    tooltip="hyperbooth: everything, to train further; the stock Load LoRA reads its LoRAs too. "
                    "The others are one plain LoRA. kohya: every program reads it. diffusers: for Python scripts. "
                    "Of a learnt word, comfyui makes an embedding file.",
                ),
                io.Combo.Input(
                    "precision",
                    options=list(PRECISIONS),
                    default="float32",
                    tooltip="Of the numbers in the file; half precision halves it.",
                ),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="The model it was trained on; formats kohya and diffusers take their names from it.",
                ),
                io.String.Input(
                    "trigger",
                    default="",
                    optional=True,
                    tooltip="Words that call the subject up, for other programs to show: sks dog. Commas separate.",
                ),
                io.Boolean.Input(
                    "metadata",
                    default=True,
                    optional=True,
                    tooltip="Write settings, prompts and trigger words into the file. Off: none of it, except what "
                    "format hyperbooth needs to be read.",
                ),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="Only needed to write a PaRa that changes the text encoder as a plain LoRA.",
                ),
            ],
            outputs=[io.String.Output(display_name="path", tooltip="Where it was saved, below the output folder.")],
        )

    @classmethod
    def execute(
        cls, adapter: AdapterStack, filename_prefix: str, format: str, precision: str, model: Any = None,
        trigger: str = "", metadata: bool = True, clip: Any = None,
    ) -> io.NodeOutput:  # fmt: skip
        path = output_file(filename_prefix, ".safetensors")
        if not is_text(trigger):
            raise ValueError(f"trigger {trigger!r:.60} holds half a character (a lone surrogate); give plain text")
        if trigger.strip():
            adapter = replace(adapter, metadata={**adapter.metadata, "trigger": trigger.strip()})
        embedding = bool(adapter.embeddings) and format != "hyperbooth"
        if embedding:
            require_embedding_name(path)
        exact = contents(adapter, format, model, clip)
        tensors = in_file(exact, PRECISIONS[precision])
        entries = {HEADER: header_of(adapter)} if format == "hyperbooth" else {}
        if metadata:
            title = path.stem.rstrip("_")
            known = (
                adapter if format == "hyperbooth" or model is None else with_base(adapter, base_weights(model, clip))
            )
            entries |= with_hash(lora_metadata(known, title, native=format == "hyperbooth"), tensors)
        write_tensors(tensors, path, entries)
        name = output_name(path)
        notes = (embedding_usage(path),) if embedding else ()
        return io.NodeOutput(name, ui={"text": (f"saved {name}{cost(adapter, exact, format, precision)}", *notes)})


def cost(adapter: AdapterStack, tensors: Mapping[str, Tensor], format: str, precision: str) -> str:
    """What half precision does to the change, for the report."""
    dtype = PRECISIONS[precision]
    if dtype == torch.float32 or not adapter.adapters:
        return ""
    error = half_precision_cost(adapter, dtype) if format == "hyperbooth" else plain_cost(tensors, dtype)
    return f", {precision} costs {error:.1e} of the change"


def contents(adapter: AdapterStack, format: str, model: Any, clip: Any = None) -> dict[str, Tensor]:
    """The tensors of the file, by the names of ``format``."""
    if format == "hyperbooth":
        return adapter_tensors(adapter)
    if adapter.embeddings:
        check_only_words(adapter, format)
        return embedding_tensors(adapter.embeddings)
    if model is not None:
        require_convertible_to_lora(model, clip, adapter)
    weight_of = None if model is None else base_weights(model, clip)
    if format == "comfyui":
        return stock_tensors(adapter, weight_of)
    if model is None:
        raise ValueError(
            f"model is not connected, but the names in a {format} file depend on the architecture; connect the model "
            "the adapter was trained on, or save in format 'comfyui' or 'hyperbooth'"
        )
    return format_keys(as_plain_lora(adapter, weight_of), export_names(model, format, adapter.targets()), format)


def check_only_words(adapter: AdapterStack, format: str) -> None:
    """An embedding file can hold the adapter; nothing of it would be lost.

    Raises:
        ValueError: it holds layers too, or the format knows no words.
    """
    words = ", ".join(word.token for word in adapter.embeddings)
    if adapter.adapters:
        raise ValueError(
            f"the adapter holds layers and words ({words}), format {format!r} one of both; save it in format "
            "'hyperbooth', or save the adapters that were combined each by itself, the word's in format 'comfyui'"
        )
    if format != "comfyui":
        raise ValueError(
            f"the adapter holds words only ({words}), for which there is no format {format!r}; save it in format "
            "'comfyui', an embedding file that every program reads, or 'hyperbooth'"
        )


class Load(io.ComfyNode):
    """File -> adapter."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyperBoothLoad",
            display_name="Load Adapter",
            category=f"{sockets.CATEGORY}/adapter",
            description="Loads an adapter that Save Adapter wrote, or a plain LoRA of another program: to apply it, "
            "to train it further, to combine it.",
            inputs=[
                io.Combo.Input(
                    "adapter_name", options=adapter_files(), tooltip="A file of models/loras or output/loras."
                ),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="Only needed for files of kohya, diffusers and the like: it translates their names.",
                ),
                io.Clip.Input(
                    "clip", optional=True, tooltip="The same, if such a file holds text-encoder layers as well."
                ),
            ],
            outputs=[sockets.Adapter.Output(display_name="adapter", tooltip="The adapter.")],
        )

    @classmethod
    def execute(cls, adapter_name: str, model: Any = None, clip: Any = None) -> io.NodeOutput:
        names = import_names(model, clip) if model is not None else None
        return io.NodeOutput(load_adapter(adapter_path(adapter_name), names))

    @classmethod
    def fingerprint_inputs(cls, adapter_name: str | None, **_: Any) -> Any:
        """A file written again under its name is loaded again."""
        stat = adapter_path(widget_value("adapter_name", adapter_name)).stat()
        return stat.st_mtime_ns, stat.st_size
