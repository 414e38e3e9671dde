"""`python -m tests.world.base FOLDER`: pretrain the world's model; a second call goes on where the first stopped."""

from __future__ import annotations

import argparse
from pathlib import Path

from devkit.pack import import_comfyui


def main() -> None:
    """Train the parts one after another; each goes on where an earlier run stopped."""
    parser = argparse.ArgumentParser(prog="python -m tests.world.base", description=__doc__)
    parser.add_argument("folder", type=Path, help="where the states of the training are kept")
    parser.add_argument("--until", choices=("autoencoder", "base"), default="base")
    chosen = parser.parse_args()
    import_comfyui()
    from comfy.cli_args import args

    args.use_pytorch_cross_attention = True
    from . import train_autoencoder, train_base

    autoencoder = train_autoencoder.train(chosen.folder)
    if chosen.until == "base":
        train_base.train(chosen.folder, autoencoder)


main()
