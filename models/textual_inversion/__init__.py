"""Textual Inversion (arXiv 2208.01618): learned token embeddings."""
