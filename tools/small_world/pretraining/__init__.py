"""Train the small world's networks and store them in the repository."""
