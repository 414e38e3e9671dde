"""A pretrained model of the small world: its networks, and how they are trained.

`python -m tests.world.base PART` trains a part, from where an earlier run stopped: `vae`, then `unet`.
"""
