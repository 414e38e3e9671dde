"""Hollowed Net (arXiv 2411.01179): the network without its deep blocks."""
