"""The manifest of a subject bank, ``manifest.json``: how every subject was trained, on which base model."""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import validation
from ..adapters.parameter_layout import ParameterLayout
from ..files.layout_json import layout_from_json, layout_to_json
from ..files.safetensors_io import write_atomically
from ..metadata.base_fingerprint import SAME_BASE, distance

MANIFEST = "manifest.json"
VERSION = 1


class _SettingsHeader(validation.Header):
    """The settings that code reads."""

    prompt: str
    steps: int


class _BaseHeader(validation.Metadata):
    base: validation.Text
    weights: validation.NumberLists


class _ManifestHeader(validation.Header):
    layout: dict[str, Any]
    settings: _SettingsHeader
    base: _BaseHeader
    versions: dict[str, Any]


@dataclass(frozen=True)
class Manifest:
    """What all subjects of a bank have in common.

    Args:
        layout: of theta.
        settings: how each subject was trained, by dotted names; ``prompt`` and ``steps`` among them.
        base: the base model: ``base``, ``prediction`` ... as in the metadata of adapters, and ``weights``, the
            fingerprint of model, text encoder and VAE, see :mod:`..metadata.base_fingerprint`.
        versions: of the programs that built the bank.
    """

    layout: ParameterLayout
    settings: Mapping[str, Any]
    base: Mapping[str, Any]
    versions: Mapping[str, str]

    @property
    def digest(self) -> str:
        """Hash of layout and settings, without the checksums of random bases, whose last digit depends on the machine.

        The hash is part of every shard's header and name.
        """
        layout = layout_to_json(self.layout)
        constants = {name: value for name, value in self.layout.constants.items() if name != "probes"}
        content = json.dumps([{**layout, "facts": constants}, dict(self.settings)], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:32]

    def save(self, folder: Path) -> None:
        """Write the manifest to ``folder``, atomically."""
        content = {
            "version": VERSION, "layout": layout_to_json(self.layout), "settings": dict(self.settings),
            "base": dict(self.base), "versions": dict(self.versions),
        }  # fmt: skip
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically([json.dumps(content, ensure_ascii=False, indent=1).encode()], folder / MANIFEST)

    @classmethod
    def load(cls, folder: Path) -> "Manifest":
        """Return the manifest in ``folder``, validated.

        Raises:
            ValueError: there is none, it is damaged or of another version, or its random bases cannot be made here.
        """
        path, prefix = folder / MANIFEST, f"bank {folder.name!r}: {MANIFEST}"
        try:
            with path.open("rb") as file:  # no more of it than a header may have
                size = os.fstat(file.fileno()).st_size  # read() allocates what it is asked for
                text = file.read(min(size, 4 * validation.MAX_HEADER_LENGTH) + 1).decode()
        except OSError as error:
            raise ValueError(f"{prefix} cannot be read ({error.strerror})") from error
        except UnicodeDecodeError as error:
            raise ValueError(f"{prefix} {error}") from error
        with validation.error_context(f"{prefix} "):
            content = validation.parse_header(text)
            validation.check_version(content, VERSION)
            header = validation.validated(_ManifestHeader, content)
            layout = layout_from_json(header.layout)
            layout.check()
            return cls(layout, content["settings"], content["base"], header.versions)

    def difference(self, other: "Manifest") -> tuple[str, str] | None:
        """Return the first difference to ``other``, as described for each side; None if their subjects are compatible.

        Base models are compared by their fingerprints, which may differ by rounding.
        """
        if found := self.layout.first_difference(other.layout):
            return found
        for name in sorted({*self.settings, *other.settings}):
            if self.settings.get(name) != other.settings.get(name):
                return _describe_setting(self.settings, name), _describe_setting(other.settings, name)
        for name in sorted({*self.base, *other.base} - {"weights"}):
            ours, theirs = self.base.get(name), other.base.get(name)
            if ours != theirs:
                prefix = "a" if name == "base" else f"{name} of the model"
                return f"{prefix} {ours}", f"{prefix} {theirs}"
        far = distance(self.base["weights"], other.base["weights"])
        if far > SAME_BASE:
            return f"one model ({MANIFEST} has its fingerprint)", f"another, {far:.1%} off"
        return None


def _describe_setting(settings: Mapping[str, Any], name: str) -> str:
    return f"{name} {settings[name]!r:.80}" if name in settings else f"no {name}"
