"""The pack's nodes in this process, called as ComfyUI calls them."""

import asyncio
from collections.abc import Callable
from typing import Any

from .import_pack import load_pack


def node_classes() -> dict[str, Any]:
    """Node id -> its class."""
    extension = asyncio.run(load_pack().comfy_entrypoint())
    asyncio.run(extension.on_load())
    return {cls.GET_SCHEMA().node_id: cls for cls in asyncio.run(extension.get_node_list())}


def caller() -> Callable[..., tuple[Any, ...]]:
    """``call("LoRA", rank=4)`` runs a node under inference mode, as the server does, and gives its outputs.

    Required inputs that are not given take the schema's defaults.
    """
    import torch

    classes = node_classes()

    def call(name: str, **inputs: Any) -> tuple[Any, ...]:
        node = classes["HyperBooth" + name]
        schema = node.GET_SCHEMA()
        given = {i.id: _default(i) for i in schema.inputs if not i.optional and hasattr(i, "default")} | inputs
        if schema.is_input_list:
            given = {key: value if isinstance(value, list) else [value] for key, value in given.items()}
        with torch.inference_mode():
            return node.execute(**given).result

    return call


def _default(spec: Any) -> Any:
    """What the input shows at first."""
    return spec.options[0] if spec.default is None and getattr(spec, "options", None) else spec.default
