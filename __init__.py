"""ComfyUI-HyperBooth: personalize text-to-image models inside the graph."""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    """Return the extension with the nodes; ComfyUI calls it. Importing the package alone needs no ComfyUI."""
    from .nodes.extension import HyperBooth

    return HyperBooth()
