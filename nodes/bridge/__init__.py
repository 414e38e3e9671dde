"""The interface to ComfyUI: the only package that imports ``comfy``, ``folder_paths`` and ``latent_preview``."""
