"""The frozen backbone: its layers, gradient checkpointing, and the denoiser interface."""
