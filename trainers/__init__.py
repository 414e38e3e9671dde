"""Training: the engine, data, the denoising objective, and one package per method. Imports no ComfyUI."""
