"""Define the small world's pretrained model: its networks and their training (see `..pretraining.pretrain`)."""
