"""Adapters on disk."""

from typing import Any

import torch
from comfy_api.latest import io

from ..models.adapter_set import AdapterSet
from ..models.storage import load_adapter, lora_tensors, save_adapter, write_tensors
from . import sockets
from .bridge.files import adapter_files, adapter_path, output_file, output_name

FORMATS = ("hyperbooth", "comfyui")
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
                    "comfyui: one plain LoRA.",
                ),
                io.Combo.Input(
                    "precision",
                    options=list(PRECISIONS),
                    default="float32",
                    tooltip="Of the numbers in the file; half precision halves it.",
                ),
            ],
            outputs=[io.String.Output(display_name="path", tooltip="Where it was saved, below the output folder.")],
        )

    @classmethod
    def execute(cls, adapter: AdapterSet, filename_prefix: str, format: str, precision: str) -> io.NodeOutput:
        path = output_file(filename_prefix, ".safetensors")
        dtype = PRECISIONS[precision]
        if format == "hyperbooth":
            save_adapter(adapter, path, dtype)
        else:
            write_tensors({name: tensor.to(dtype) for name, tensor in lora_tensors(adapter).items()}, path)
        name = output_name(path)
        return io.NodeOutput(name, ui={"text": (f"saved {name}",)})


class Load(io.ComfyNode):
    """File -> adapter."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyperBoothLoad",
            display_name="Load Adapter",
            category=f"{sockets.CATEGORY}/adapter",
            description="Loads an adapter that Save Adapter wrote (format hyperbooth).",
            inputs=[
                io.Combo.Input(
                    "adapter_name", options=adapter_files(), tooltip="A file of models/loras or output/loras."
                )
            ],
            outputs=[sockets.Adapter.Output(display_name="adapter", tooltip="The adapter.")],
        )

    @classmethod
    def execute(cls, adapter_name: str) -> io.NodeOutput:
        return io.NodeOutput(load_adapter(adapter_path(adapter_name)))

    @classmethod
    def fingerprint_inputs(cls, adapter_name: str, **_: Any) -> Any:
        """A file written again under its name is loaded again."""
        stat = adapter_path(adapter_name).stat()
        return stat.st_mtime_ns, stat.st_size
