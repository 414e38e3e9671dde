"""ComfyUI's MODEL: layers, weights, denoiser, offloading."""
