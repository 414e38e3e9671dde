"""Train HyperNetwork on many processes: ``torchrun ... train_hypernetwork.py --help``; alone: ``python ...``."""

from launch import launch

if __name__ == "__main__":
    launch("train_hypernetwork")
