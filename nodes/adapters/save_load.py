"""Nodes that save and load adapters."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ...models.adapters.stack import AdapterStack
from ...models.files.adapter_file import cast_for_file, load_adapter
from ...models.files.safetensors_io import with_hash, write_tensors
from ...models.validation import is_unicode
from ..bridge.adapters.lora_keys import import_names
from ..bridge.folders import (
    adapter_files,
    adapter_path,
    embedding_usage,
    output_file,
    output_name,
    prefix_error,
    require_embedding_name,
    widget_value,
)
from ..common import sockets
from ..common.node import Node
from .file_formats import FORMATS, SAVE_DTYPES, STRENGTH, BaseModel, FileFormat


class Save(Node):
    """Save an adapter stack to a file."""

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
                    tooltip="Folder and start of the name, below the output folder; a counter is appended.",
                ),
                io.Combo.Input(
                    "format",
                    options=list(FORMATS),
                    default="hyperbooth",
                    tooltip="hyperbooth: everything, to train further; the stock Load LoRA reads its LoRAs too. "
                    "The others are one plain LoRA. kohya: every program reads it. diffusers: for Python scripts. "
                    "comfyui makes an embedding file of a learned embedding.",
                ),
                io.Combo.Input(
                    "precision",
                    options=list(SAVE_DTYPES),
                    default="float32",
                    tooltip="Data type of the values in the file; half precision halves its size.",
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
                    tooltip="Trigger words of the subject, for other programs to show: sks dog. Commas separate them.",
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
                io.Float.Input(
                    "strength",
                    **STRENGTH,
                    optional=True,
                    tooltip="Strength of the adapter that the plain LoRA has when it is used at 1. Format hyperbooth "
                    "keeps the adapter as trained: leave 1.",
                ),
            ],
            outputs=[io.String.Output(display_name="path", tooltip="Where it was saved, below the output folder.")],
        )

    @classmethod
    def validate_inputs(cls, filename_prefix: str | None = None) -> bool | str:
        """Return True, or why the prefix cannot be used, before anything is trained; None is a link."""
        return prefix_error(filename_prefix)

    @classmethod
    def execute(
        cls, adapter: AdapterStack, filename_prefix: str, format: str, precision: str, model: Any = None,
        trigger: str = "", metadata: bool = True, clip: Any = None, strength: float = 1.0,
    ) -> io.NodeOutput:  # fmt: skip
        if not is_unicode(trigger):
            raise ValueError(f"trigger {trigger!r:.60} holds invalid Unicode (a lone surrogate); give plain text")
        if trigger.strip():
            adapter = replace(adapter, metadata={**adapter.metadata, "trigger": trigger.strip()})
        kind, base, dtype = FORMATS[format], BaseModel(model, clip, strength), SAVE_DTYPES[precision]
        embedding = bool(adapter.embeddings) and kind.embedding_files
        with output_file(filename_prefix, ".safetensors") as path:
            if embedding:
                require_embedding_name(path)
            exact = kind.tensors(adapter, base)
            tensors = cast_for_file(exact, dtype)
            entries = kind.header(adapter, tensors)
            if metadata:
                entries |= with_hash(kind.metadata(adapter, path.stem.rstrip("_"), base), tensors)
            write_tensors(tensors, path, entries)
        name, usage = output_name(path), embedding_usage(path) if embedding else ""
        notes = filter(None, (usage, base.strength_note()))
        return io.NodeOutput(name, ui={"text": (f"saved {name}{_rounding(kind, adapter, exact, dtype)}", *notes)})


def _rounding(kind: FileFormat, adapter: AdapterStack, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> str:
    """Describe what half precision does to the change, for the report."""
    if dtype == torch.float32 or not adapter.adapters:
        return ""
    name = str(dtype).removeprefix("torch.")
    return f", {name} costs {kind.rounding_error(adapter, tensors, dtype):.1e} of the change"


class Load(Node):
    """Load an adapter stack from a file."""

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
                    tooltip="Only needed for files in the key formats of kohya, diffusers and the like.",
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
        """Return the file's time and size: a file that was written again is loaded again."""
        stat = adapter_path(widget_value("adapter_name", adapter_name)).stat()
        return stat.st_mtime_ns, stat.st_size
