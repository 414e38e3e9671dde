"""The oracle: a network trained on the generator's truth, which reads from any picture who is in it, and the scene."""
