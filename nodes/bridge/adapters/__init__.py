"""Adapters on ComfyUI's models: patches, LoRA key names, and the pack's weight adapter."""
