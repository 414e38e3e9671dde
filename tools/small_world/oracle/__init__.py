"""Define the oracle: a network trained on the generator's ground truth to predict identity and scene from an image."""
