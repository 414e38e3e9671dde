"""Shards of a subject bank: safetensors files of some subjects each, in a folder with ``manifest.json``.

A shard holds ``theta [S, N]`` (see :mod:`..adapters.parameter_layout`), ``images [P, H, W, 3]`` as bytes, and ``latents
[P, C, h, w]`` of all its subjects' images, subject by subject. Its header names the subjects, with their images'
captions if there are any, and has a checksum of each row, as single rows are read. Shards are written once and never
changed, and each holds the digest of its manifest. So several processes and machines can fill one folder, and an
interrupted build leaves only complete shards. Shards of before have no checksums and are read all the same.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .. import validation
from ..adapters.parameter_layout import ParameterLayout
from ..files.digest import DIGEST, check_digest, file_digest, row_checksums
from ..files.safetensors_io import write_tensors
from .manifest import MANIFEST, VERSION, Manifest

HEADER = "hyperbooth_bank"
SUFFIX = ".safetensors"
_DTYPES = {"theta": "F32", "images": "U8", "latents": "F32"}


class _SubjectHeader(validation.Header):
    name: str
    pictures: Annotated[int, Field(ge=1)]
    base: float
    own: float
    other: float | None
    prompts: validation.Items[str] = []

    def fit(self) -> "SubjectFit":
        return SubjectFit(self.base, self.own, self.other)


class _ShardHeader(validation.Header):
    bank: str
    subjects: validation.Items[_SubjectHeader]
    checksums: dict[str, validation.Items[int]] | None = None


@dataclass(frozen=True)
class SubjectFit:
    """Quality of a subject's adapter: denoising losses on its first image, with the same noise for all three.

    The field names are keys of a shard's header.

    Args:
        base: loss of the base model.
        own: loss with the subject's adapter.
        other: loss with another subject's adapter, as a control; None if no other subject was trained in the batch.
    """

    base: float
    own: float
    other: float | None = None


@dataclass(frozen=True, kw_only=True)
class SubjectEntry:
    """One subject in a shard.

    Args:
        name: of its sub-folder of images.
        fit: quality of its adapter.
        shard: path of the shard.
        row: index in the shard's theta.
        image_rows: first and end index in the shard's images and latents.
        prompts: one per image; empty where all images have the bank's prompt.
        checksums: of each row of the shard's tensors, None in a shard of before.
    """

    name: str
    fit: SubjectFit
    shard: Path
    row: int
    image_rows: tuple[int, int]
    prompts: tuple[str, ...] = ()
    checksums: Mapping[str, Sequence[int]] | None = field(default=None, repr=False, compare=False)


def write_shard(
    folder: Path,
    manifest: Manifest,
    *,
    fits: Mapping[str, SubjectFit],
    image_counts: Sequence[int],
    theta: Tensor,
    images: Tensor,
    latents: Tensor,
    prompts: Sequence[Sequence[str]] = (),
) -> Path:
    """Write a new shard, whose name is a hash of the manifest's digest and its subjects.

    Args:
        folder: of the bank.
        manifest: of the bank.
        fits: subject name -> quality of its adapter, for the S subjects in order.
        image_counts: number of images of each subject, P in all.
        theta: ``[S, N]``.
        images: bytes ``[P, H, W, 3]``.
        latents: ``[P, C, h, w]``.
        prompts: for each subject, one per image; empty where all images have the bank's prompt.

    Returns:
        The path of the shard.

    Raises:
        ValueError: a tensor holds NaN or infinite values.
        OSError: the file cannot be written; no partial file is left.
    """
    tensors = {"theta": theta, "images": images, "latents": latents}
    text = _header_text(manifest, _subject_headers(fits, image_counts, prompts), tensors)
    name = hashlib.sha256("\0".join([manifest.digest, *fits]).encode()).hexdigest()[:16]
    path = folder / f"{name}{SUFFIX}"
    write_tensors(tensors, path, {HEADER: text, DIGEST: file_digest(text, {})})
    return path


def _header_text(manifest: Manifest, subjects: Sequence[Mapping[str, Any]], tensors: Mapping[str, Tensor]) -> str:
    """Return the header of a shard.

    Args:
        manifest: of the bank.
        subjects: an entry for each.
        tensors: of the shard, for the checksums of their rows.
    """
    checksums = {key: row_checksums(tensor) for key, tensor in tensors.items()}
    header = {"version": VERSION, "bank": manifest.digest, "subjects": subjects, "checksums": checksums}
    return json.dumps(header, ensure_ascii=False)


def _subject_headers(
    fits: Mapping[str, SubjectFit], image_counts: Sequence[int], prompts: Sequence[Sequence[str]]
) -> list[dict[str, Any]]:
    subjects = [
        {"name": name, "pictures": count, **vars(fit)}
        for (name, fit), count in zip(fits.items(), image_counts, strict=True)
    ]
    for subject, texts in zip(subjects, prompts, strict=True) if prompts else ():
        subject["prompts"] = list(texts)
    return subjects


def list_shards(folder: Path) -> list[Path]:
    """Return the shards in a bank's folder, sorted by name, without partial files that are being written."""
    return sorted(p for p in folder.glob(f"*{SUFFIX}") if re.fullmatch(f"[0-9a-f]{{16}}{re.escape(SUFFIX)}", p.name))


def shard_state(folder: Path) -> list[tuple[str, int, int]]:
    """Return name, size and modification time of the manifest and of every shard, to see whether the bank changed."""
    state = []
    for path in (folder / MANIFEST, *list_shards(folder)):
        try:
            stat = path.stat()
        except OSError:  # not there, or just removed
            continue
        state.append((path.name, stat.st_size, stat.st_mtime_ns))
    return state


def read_shard(path: Path, manifest: Manifest) -> list[SubjectEntry]:
    """Return the subjects of a shard, from its validated header; no tensor is read.

    Raises:
        ValueError: the shard is damaged or of another bank; the message names it and the remedy.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            text = metadata.get(HEADER, "{}")
            content = validation.parse_header(text)
            if DIGEST in metadata:
                check_digest(metadata, text, {})
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in _DTYPES}
            dtypes = {name: file.get_slice(name).get_dtype() for name in _DTYPES}
        validation.check_version(content, VERSION)
        header = validation.validated(_ShardHeader, content)
        if header.checksums is not None and DIGEST not in metadata:
            raise ValueError("lacks the digest that belongs to it")
        if header.bank != manifest.digest:
            raise ValueError("it was built under other settings than the bank's")
        if dtypes != _DTYPES:
            raise ValueError(f"its tensors have the dtypes {dtypes}")
        entries = _entries(path, header.subjects, shapes, manifest.layout)
        if header.checksums is None:
            return entries
        if {name: len(sums) for name, sums in header.checksums.items()} != {name: shapes[name][0] for name in _DTYPES}:
            raise ValueError("its checksums are not one for each row")
        return [replace(entry, checksums=header.checksums) for entry in entries]
    except (OSError, SafetensorError, ValueError) as error:
        raise unusable_shard(path, error) from error


def unusable_shard(path: Path, error: Exception) -> ValueError:
    """Return the error to raise for a shard that ``error`` occurred with."""
    why = "".join(letter for letter in str(error)[:120] if letter.isprintable())
    return ValueError(
        f"bank {path.parent.name!r}: {path.name} cannot be used ({why}); move it away and build the bank again: "
        "only its subjects are trained again"
    )


def _entries(
    path: Path, subjects: Sequence[_SubjectHeader], shapes: Mapping[str, tuple[int, ...]], layout: ParameterLayout
) -> list[SubjectEntry]:
    entries, end = [], 0
    for row, subject in enumerate(subjects):
        start, end = end, end + subject.pictures
        if subject.prompts and len(subject.prompts) != subject.pictures:
            raise ValueError(
                f"its header has {len(subject.prompts)} prompts for {subject.pictures} images of {subject.name!r:.40}"
            )
        entries.append(
            SubjectEntry(
                name=subject.name,
                fit=subject.fit(),
                shard=path,
                row=row,
                image_rows=(start, end),
                prompts=tuple(subject.prompts),
            )
        )
    expected = {"theta": (len(entries), layout.parameter_count), "images": (end,), "latents": (end,)}
    for name, shape in shapes.items():
        if shape[: len(expected[name])] != expected[name] or len(shape) != {"theta": 2}.get(name, 4):
            raise ValueError(f"its {name} have the shape {shape}, for {len(entries)} subjects with {end} images")
    return entries
