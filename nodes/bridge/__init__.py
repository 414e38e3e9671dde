"""The seam: the only folder that imports ``comfy``, ``folder_paths`` and ``latent_preview``."""
