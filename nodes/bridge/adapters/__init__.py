"""Adapters as ComfyUI's patches and weight adapters."""
