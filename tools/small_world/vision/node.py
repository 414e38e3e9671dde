"""Provide the encoder as a node: the stock *Load CLIP Vision* recognizes no vision model this small."""

from __future__ import annotations

from comfy_api.latest import io

from .encoder import kept


class SmallWorldVision(io.ComfyNode):
    """Return the small world's CLIP_VISION."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SmallWorldVision",
            display_name="Small World's CLIP Vision",
            category="small world",
            description="The small world's image encoder, for its hypernetwork.",
            outputs=[io.ClipVision.Output()],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput(kept())
