"""Images through ComfyUI: VAE, CLIP vision, sampling, previews, metric encoders."""
