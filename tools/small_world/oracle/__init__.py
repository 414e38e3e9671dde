"""The oracle: a network trained on the generator's truth, which reads from any image who is in it, and the scene."""
