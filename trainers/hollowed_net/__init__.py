"""Hollowed Net training (arXiv 2411.01179): recording the activations of the removed blocks."""
