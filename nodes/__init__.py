"""ComfyUI nodes: sockets and a few lines each. Everything of ComfyUI that they need comes through ``bridge``."""
