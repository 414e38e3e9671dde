"""What a file records about an adapter: base model, training, prompts."""
