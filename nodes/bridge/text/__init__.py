"""ComfyUI's CLIP: prompts, conditioning, learned embeddings."""
