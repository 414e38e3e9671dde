"""A pretrained model of the small world: its networks, and how they are trained (see `..pretraining.pretrain`)."""
