"""Train HyperNetwork on many processes (``torchrun ... train_hypernetwork.py --help``) or on one (``python ...``)."""

from launch import launch

if __name__ == "__main__":
    launch("train_hypernetwork")
