"""Build Subject Bank on many processes (``torchrun ... build_bank.py --help``) or on one (``python ...``)."""

from launch import launch

if __name__ == "__main__":
    launch("build_bank")
