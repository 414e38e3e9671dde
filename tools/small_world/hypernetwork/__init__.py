"""Train the hypernetwork for the world's base, an image of a person -> a LiDB, with the pack's own nodes."""
