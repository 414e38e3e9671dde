"""The denoising objective: noise levels, loss weightings, preview sampling."""
