"""Call the pack's nodes in this process as ComfyUI calls them."""

import asyncio
from collections.abc import Callable
from typing import Any

from .import_pack import load_pack


def node_classes() -> dict[str, Any]:
    """Return node id -> node class."""
    extension = asyncio.run(load_pack().comfy_entrypoint())
    asyncio.run(extension.on_load())
    return {cls.GET_SCHEMA().node_id: cls for cls in asyncio.run(extension.get_node_list())}


def caller() -> Callable[..., tuple[Any, ...]]:
    """Return a function that runs a node, as in ``call("MethodLoRA", rank=4)``, and returns its outputs.

    The node runs under inference mode, as in the server. Required inputs that are not given take the schema's defaults.
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
    """Return the input's default value."""
    return spec.options[0] if spec.default is None and getattr(spec, "options", None) else spec.default
