"""The world's CLIP_VISION: a small vision transformer in ComfyUI's own class, whose tokens tell who is in an image."""
