"""Read access to a subject bank: many small adapters of one layout, with the images that each was trained on."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .. import validation
from ..adapters.parameter_layout import ParameterLayout
from ..adapters.stack import AdapterStack
from ..files.digest import checksum
from .manifest import Manifest
from .shards import SubjectEntry, list_shards, read_shard, unusable_shard

METADATA_SETTINGS = ("steps", "seed")
"""Settings of the bank that are metadata of each subject's adapter under the same names."""


@dataclass(frozen=True)
class Bank:
    """A bank in a folder; parameters and images are read from the shards when they are needed.

    Args:
        folder: of the manifest and the shards.
        manifest: what the subjects have in common.
        entries: the subjects, sorted by name; a subject's index is its position here.
    """

    folder: Path
    manifest: Manifest
    entries: tuple[SubjectEntry, ...]

    @classmethod
    def open(cls, folder: Path) -> "Bank":
        """Open the bank in ``folder``: read its manifest and the headers of its shards.

        A subject that is in two shards, because two processes trained it, counts once: the first shard by name is used.

        Raises:
            ValueError: the manifest or a shard is damaged, or a shard belongs to another manifest.
        """
        manifest = Manifest.load(folder)
        entries: dict[str, SubjectEntry] = {}
        for path in list_shards(folder):
            for entry in read_shard(path, manifest):
                entries.setdefault(entry.name, entry)
        return cls(folder, manifest, tuple(entries[name] for name in sorted(entries)))

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self.folder.name

    @property
    def layout(self) -> ParameterLayout:
        """Layout of theta."""
        return self.manifest.layout

    @property
    def prompt(self) -> str:
        """The prompt that denotes every subject; images without a caption were trained with it."""
        return self.manifest.settings["prompt"]

    @property
    def prompts(self) -> tuple[str, ...]:
        """The bank's prompt and every caption, without duplicates."""
        return tuple(dict.fromkeys([self.prompt, *(text for entry in self.entries for text in entry.prompts)]))

    def caption(self, subject: int, image: int) -> str:
        """Return the prompt that an image of a subject was trained with."""
        prompts = self.entries[subject].prompts
        return prompts[image] if prompts else self.prompt

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the subjects."""
        return tuple(entry.name for entry in self.entries)

    @cached_property
    def image_counts(self) -> tuple[int, ...]:
        """Number of images of each subject."""
        return tuple(end - start for start, end in (entry.image_rows for entry in self.entries))

    def theta(self, subjects: Sequence[int] | None = None) -> Tensor:
        """Return the parameters ``[n, N]`` of the subjects with these indices, in that order; None: of all.

        Raises:
            ValueError: a shard holds NaN or infinite values.
        """
        chosen = range(len(self)) if subjects is None else subjects
        return self._read("theta", [(self.entries[i], self.entries[i].row) for i in chosen])

    def images(self, subject: int) -> Tensor:
        """Return a subject's training images ``[P, H, W, 3]`` in [0, 1]."""
        return self._all_of("images", subject).float() / 255

    def latents(self, subject: int) -> Tensor:
        """Return the VAE latents ``[P, C, h, w]`` of a subject's training images."""
        return self._all_of("latents", subject)

    def latent_batch(self, chosen: Sequence[tuple[int, int]]) -> Tensor:
        """Return the latents ``[n, C, h, w]`` of the n images given as (subject index, image index)."""
        return self._read("latents", [(self.entries[i], self.entries[i].image_rows[0] + p) for i, p in chosen])

    def adapter(self, subject: int) -> AdapterStack:
        """Return a subject's adapter."""
        return AdapterStack((self.layout.unpack(self.theta([subject])[0]),), self.metadata(subject))

    def metadata(self, subject: int) -> dict[str, Any]:
        """Return the metadata of a subject's adapter: how it was trained."""
        settings = self.manifest.settings
        return {
            **{name: value for name, value in self.manifest.base.items() if name != "weights"},
            **{name: settings[name] for name in METADATA_SETTINGS if name in settings},
            "prompts": [*dict.fromkeys(self.entries[subject].prompts)] or [self.prompt], "class_prompt": None,
            "batch_size": 1, "images": self.image_counts[subject], "class_images": 0, "bank": self.name,
            "subject": self.names[subject],
        }  # fmt: skip

    def _all_of(self, tensor: str, subject: int) -> Tensor:
        entry = self.entries[subject]
        return self._read(tensor, [(entry, row) for row in range(*entry.image_rows)])

    def _read(self, tensor: str, rows: Iterable[tuple[SubjectEntry, int]]) -> Tensor:
        """Return rows of shards as one float32 tensor; each shard is opened once.

        Raises:
            ValueError: a shard is missing or damaged, or holds NaN or infinite values.
        """
        rows = list(rows)
        by_shard: dict[Path, list[int]] = {}
        for index, (entry, _) in enumerate(rows):
            by_shard.setdefault(entry.shard, []).append(index)
        values: dict[int, Tensor] = {}
        for path, indices in by_shard.items():
            try:
                sums = rows[indices[0]][0].checksums
                with _row_reader(path, tensor, sums and sums[tensor]) as read_row:
                    values |= {index: read_row(rows[index][1]) for index in indices}
            except (OSError, SafetensorError) as error:
                raise unusable_shard(path, error) from error
        return torch.stack([values[index] for index in range(len(rows))])


@contextmanager
def _row_reader(path: Path, tensor: str, checksums: Sequence[int] | None) -> Iterator[Callable[[int], Tensor]]:
    """Open a shard; yield a function that returns a row of its tensor as a float32 copy.

    Args:
        path: of the shard.
        tensor: its name.
        checksums: of each row, or None if the shard has none.
    """
    with safe_open(path, framework="pt") as file:
        whole = file.get_slice(tensor)

        def read_row(row: int) -> Tensor:
            value = whole[row : row + 1][0]
            if checksums is not None and checksum(value) != checksums[row]:
                raise unusable_shard(path, ValueError(f"{tensor} {row} was damaged or changed after it was written"))
            return (
                validation.checked_tensor(value, f"{tensor} of {path.name}")
                if value.is_floating_point()
                else value.float()
            )

        yield read_row
