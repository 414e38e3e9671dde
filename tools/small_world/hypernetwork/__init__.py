"""The hypernetwork for the world's base: a picture of a person -> a LiDB. The pack's own nodes train and use it."""
