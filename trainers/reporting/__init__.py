"""Charts, image grids, and the live view of a training."""
