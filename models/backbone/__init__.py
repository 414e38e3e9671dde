"""The frozen network: its layers, its gradient checkpointing, and its denoiser."""
