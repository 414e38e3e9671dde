"""What keeps a ComfyUI within a base directory. Standard library only."""

from __future__ import annotations

from pathlib import Path


def arguments(base: Path) -> list[str]:
    """For ComfyUI's main.py: models, input, output and custom nodes are in `base`, and so is the database.

    Its default place is ComfyUI's own folder, where the user's own ComfyUI may be holding it.
    """
    return ["--base-directory", str(base), "--database-url", f"sqlite:///{base / 'user' / 'comfyui.db'}"]
