"""Metadata of adapters: base model, training run, prompts."""
