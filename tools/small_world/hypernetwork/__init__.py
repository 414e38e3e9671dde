"""The hypernetwork for the world's base: an image of a person -> a LiDB. The pack's own nodes train and use it."""
