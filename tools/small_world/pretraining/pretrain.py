"""Train the world's networks, and save them in the repository.

`python -m tools.small_world.pretraining.pretrain FOLDER [PART ...]`

A second call resumes a stopped one. Needs COMFYUI_PATH.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tools.comfy_harness.import_pack import import_comfyui

PARTS = ("autoencoder", "base", "oracle", "vision", "hypernetwork")


def main() -> None:
    """Train the parts in order; each uses the parts before it."""
    parser = argparse.ArgumentParser(prog="python -m tools.small_world.pretraining.pretrain", description=__doc__)
    parser.add_argument("folder", type=Path, help="folder of the training states")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all if none is named")
    chosen = parser.parse_args()
    if unknown := set(chosen.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    import_comfyui()
    from comfy.cli_args import args

    args.use_pytorch_cross_attention = True
    train(chosen.folder, chosen.parts or PARTS)


def train(folder: Path, parts: list[str] | tuple[str, ...]) -> None:
    """Train `parts`; parts that are trained already are read from `folder`."""
    from ..base import checkpoint, train_autoencoder, train_base
    from ..hypernetwork import train as train_hypernetwork
    from ..hypernetwork import trained as hypernetwork
    from ..oracle import train as train_oracle
    from ..oracle import trained
    from ..vision import encoder
    from ..vision import train as train_vision

    if {"autoencoder", "base", "oracle"} & set(parts):
        autoencoder = train_autoencoder.train(folder)
    if "base" in parts:
        checkpoint.pack(autoencoder, train_base.train(folder, autoencoder))
    if "oracle" in parts:
        trained.keep(train_oracle.train(folder, autoencoder))
    if "vision" in parts:
        encoder.keep(train_vision.train(folder))
    if "hypernetwork" in parts:
        hypernetwork.keep(train_hypernetwork.train(folder / "hypernetwork"))


if __name__ == "__main__":
    main()
