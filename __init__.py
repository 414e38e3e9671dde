"""ComfyUI-HyperBooth: personalise text-to-image models inside the graph."""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    """What ComfyUI calls to get the nodes; imported here, so that importing the package needs no ComfyUI."""
    from .nodes.extension import HyperBooth

    return HyperBooth()
