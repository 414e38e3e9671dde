"""A bank of subjects on disk: a folder with ``manifest.json`` and shards.

The manifest says how every subject was trained, on which base, and what the numbers mean. A shard is a safetensors file
of some subjects: ``theta [S, N]``, see :mod:`.layout`; ``images [P, H, W, 3]``, bytes, and ``latents [P, C, h, w]`` of
all their pictures, one subject's after the other's; its header names the subjects, and their pictures' captions if
there are any. Shards are written once and never changed, and each belongs to the manifest whose digest it carries: so
processes and machines fill one folder together, and what a stopped one leaves is whole.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from .. import validation
from ..adapters.parameter_layout import ParameterLayout
from ..files.layout_json import layout_from_json, layout_to_json
from ..files.safetensors_io import write_atomically, write_tensors
from ..metadata.base_fingerprint import SAME_BASE, distance

MANIFEST = "manifest.json"
HEADER = "hyperbooth_bank"
VERSION = 1
SUFFIX = ".safetensors"
_DTYPES = {"theta": "F32", "images": "U8", "latents": "F32"}


@dataclass(frozen=True)
class SubjectFit:
    """How well a subject's numbers do: the denoising loss on its first picture, on noise that is the same for all.

    Args:
        base: of the model without them.
        own: with them.
        other: with the numbers of another subject instead, None if there was none beside it: the control.
    """

    base: float
    own: float
    other: float | None = None


@dataclass(frozen=True)
class Entry:
    """One subject in a shard.

    Args:
        name: of its sub-folder.
        fit: see :class:`SubjectFit`.
        shard: the file.
        row: of theta.
        pictures: first and end of its rows of images and latents.
        prompts: of each of them; empty where all have the bank's.
    """

    name: str
    fit: SubjectFit
    shard: Path
    row: int
    pictures: tuple[int, int]
    prompts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Manifest:
    """What all subjects of a bank share.

    Args:
        layout: of theta.
        settings: how each was trained, by dotted names; ``prompt`` among them.
        base: what the numbers are for: ``base``, ``prediction`` ... as adapters' facts have them, and ``weights``, a
            sample of the weights of model, text encoder and VAE, see :mod:`.provenance`.
        versions: of the programs that built it.
    """

    layout: ParameterLayout
    settings: Mapping[str, Any]
    base: Mapping[str, Any]
    versions: Mapping[str, str]

    @property
    def digest(self) -> str:
        """Names layout and settings; not the probes of the bases, whose last digit is a machine's own."""
        layout = layout_to_json(self.layout)
        facts = {name: value for name, value in self.layout.constants.items() if name != "probes"}
        said = json.dumps([{**layout, "facts": facts}, dict(self.settings)], sort_keys=True)
        return hashlib.sha256(said.encode()).hexdigest()[:32]

    def save(self, folder: Path) -> None:
        """Write it to ``folder``, atomically."""
        said = {
            "version": VERSION, "layout": layout_to_json(self.layout), "settings": dict(self.settings),
            "base": dict(self.base), "versions": dict(self.versions),
        }  # fmt: skip
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically([json.dumps(said, ensure_ascii=False, indent=1).encode()], folder / MANIFEST)

    @classmethod
    def load(cls, folder: Path) -> "Manifest":
        """The manifest in ``folder``.

        Raises:
            ValueError: there is none, or it is damaged, of another version, or means other bases than are made here.
        """
        path, whose = folder / MANIFEST, f"bank {folder.name!r}: {MANIFEST}"
        try:
            said = validation.parse_header(path.read_text("utf-8"))
            if said["version"] != VERSION:
                raise ValueError(f"has version {said['version']!r:.40}, this pack reads {VERSION}; update the pack")
            layout = layout_from_json(said["layout"])
            layout.check()
            _check_texts(said["settings"], said["base"])
            return cls(layout, said["settings"], said["base"], said["versions"])
        except OSError as error:
            raise ValueError(f"{whose} cannot be read ({error.strerror})") from error
        except ValueError as error:
            raise ValueError(f"{whose} {error}") from error
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{whose} is damaged ({error!r:.80})") from error

    def difference(self, other: "Manifest") -> tuple[str, str] | None:
        """The first thing in which ``other`` differs, as each side has it; None if subjects of both go together."""
        if found := self.layout.first_difference(other.layout):
            return found
        for name in sorted({*self.settings, *other.settings}):
            if self.settings.get(name) != other.settings.get(name):
                return _setting(self.settings, name), _setting(other.settings, name)
        for name in sorted({*self.base, *other.base} - {"weights"}):
            ours, theirs = self.base.get(name), other.base.get(name)
            if ours != theirs:
                a = "a" if name == "base" else f"{name} of the model"
                return f"{a} {ours}", f"{a} {theirs}"
        far = distance(self.base["weights"], other.base["weights"])
        return (
            (f"one model ({MANIFEST} has some of its weights)", f"another, {far:.1%} off") if far > SAME_BASE else None
        )


def _setting(settings: Mapping[str, Any], name: str) -> str:
    return f"{name} {settings[name]!r:.80}" if name in settings else f"no {name}"


def write_shard(
    folder: Path,
    manifest: Manifest,
    fits: Mapping[str, SubjectFit],
    pictures: Sequence[int],
    theta: Tensor,
    images: Tensor,
    latents: Tensor,
    prompts: Sequence[Sequence[str]] = (),
) -> Path:
    """A new shard of ``fits`` (name -> its fit) in ``folder``, named after the manifest and its subjects.

    Args:
        pictures: how many of ``images [P, H, W, 3]`` (bytes) and ``latents [P, C, h, w]`` each subject has, in order.
        theta: ``[S, N]``.
        prompts: of each subject's pictures; nothing where all have the bank's.

    Raises:
        ValueError: a number is NaN or infinite.
        OSError: it cannot be written; nothing is left behind.
    """
    subjects = [
        {"name": name, "pictures": count, **vars(fit)}
        for (name, fit), count in zip(fits.items(), pictures, strict=True)
    ]  # fmt: skip
    for subject, texts in zip(subjects, prompts, strict=True) if prompts else ():
        subject["prompts"] = list(texts)
    header = {"version": VERSION, "bank": manifest.digest, "subjects": subjects}
    name = hashlib.sha256("\0".join([manifest.digest, *fits]).encode()).hexdigest()[:16]
    path = folder / f"{name}{SUFFIX}"
    tensors = {"theta": theta, "images": images, "latents": latents}
    write_tensors(tensors, path, {HEADER: json.dumps(header, ensure_ascii=False)})
    return path


def shards_in(folder: Path) -> list[Path]:
    """The shards of a bank's folder, by name; parts of files that are being written are none."""
    return sorted(p for p in folder.glob(f"*{SUFFIX}") if re.fullmatch(f"[0-9a-f]{{16}}{re.escape(SUFFIX)}", p.name))


def state_of(folder: Path) -> list[tuple[str, int, int]]:
    """Name, size and time of the manifest and of every shard: another state means that the bank is another."""
    found = []
    for path in (folder / MANIFEST, *shards_in(folder)):
        try:
            state = path.stat()
        except OSError:  # not there, or just removed
            continue
        found.append((path.name, state.st_size, state.st_mtime_ns))
    return found


def read_shard(path: Path, manifest: Manifest) -> list[Entry]:
    """The subjects of a shard, from its header alone.

    Raises:
        ValueError: it is damaged, or of another bank; the message names it and says what to do.
    """
    try:
        with safe_open(path, framework="pt") as file:
            said = validation.parse_header((file.metadata() or {})[HEADER])
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in _DTYPES}
            dtypes = {name: file.get_slice(name).get_dtype() for name in _DTYPES}
        if said["version"] != VERSION or said["bank"] != manifest.digest:
            raise ValueError("it was built under other settings than the bank's")
        if dtypes != _DTYPES:
            raise ValueError(f"it holds numbers of the types {dtypes}")
        return _entries(path, said["subjects"], shapes, manifest.layout)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise unusable(path, error) from error


def unusable(path: Path, error: Exception) -> ValueError:
    """What to say of a shard that ``error`` came up with."""
    why = "".join(letter for letter in str(error)[:120] if letter.isprintable())
    return ValueError(
        f"bank {path.parent.name!r}: {path.name} cannot be used ({why}); move it away and build the bank again: "
        "only its subjects are trained anew"
    )


def _entries(path: Path, said: Any, shapes: Mapping[str, tuple[int, ...]], layout: ParameterLayout) -> list[Entry]:
    entries, place = [], 0
    for row, one in enumerate(said):
        if type(one["pictures"]) is not int or one["pictures"] < 1 or not isinstance(one["name"], str):
            raise ValueError(f"its header says {one!r:.60} of a subject")
        losses = {
            key: None if one[key] is None and key == "other" else float(one[key]) for key in vars(SubjectFit(0, 0))
        }
        pictures = place, place + one["pictures"]
        entries.append(Entry(one["name"], SubjectFit(**losses), path, row, pictures, _prompts(one)))
        place += one["pictures"]
    wanted = {"theta": (len(entries), layout.parameter_count), "images": (place,), "latents": (place,)}
    for name, shape in shapes.items():
        if shape[: len(wanted[name])] != wanted[name] or len(shape) != {"theta": 2}.get(name, 4):
            raise ValueError(f"its {name} have the shape {shape}, for {len(entries)} subjects of {place} pictures")
    return entries


def _prompts(one: Mapping[str, Any]) -> tuple[str, ...]:
    """What a header says of a subject's pictures, if anything."""
    texts = one.get("prompts", [])
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"its header has the prompts {texts!r:.60}")
    if texts and len(texts) != one["pictures"]:
        raise ValueError(f"its header has {len(texts)} prompts for {one['pictures']} pictures of {one['name']!r:.40}")
    return tuple(texts)


def _check_texts(settings: Any, base: Any) -> None:
    """What readers rely on is there, in the type they need."""
    if not isinstance(settings["prompt"], str) or not isinstance(settings["steps"], int):
        raise ValueError(f"gives the prompt {settings['prompt']!r:.40} and steps {settings['steps']!r:.40}")
    if not isinstance(base["base"], str):
        raise ValueError(f"gives the base {base['base']!r:.40}")
    validation.checked_metadata(base)
    validation.checked_metadata({"made_for": [base["weights"]]})
