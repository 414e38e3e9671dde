"""Define the world's CLIP_VISION: a small vision transformer in ComfyUI's own class that encodes identity and scene."""
