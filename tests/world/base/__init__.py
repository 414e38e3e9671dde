"""A pretrained model of the small world: its networks, and how they are trained (`python -m tests.world.pretrain`)."""
