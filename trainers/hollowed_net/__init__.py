"""Training on a Hollowed Net (arXiv 2411.01179)."""
