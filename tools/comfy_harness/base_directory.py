"""Keep ComfyUI within a base directory. Standard library only."""

from __future__ import annotations

from pathlib import Path


def arguments(base: Path) -> list[str]:
    """Return arguments for ComfyUI's main.py that put models, input, output, custom nodes and database in ``base``.

    The database is in ComfyUI's folder by default, where another ComfyUI of the user may hold its lock.
    """
    return ["--base-directory", str(base), "--database-url", f"sqlite:///{base / 'user' / 'comfyui.db'}"]
