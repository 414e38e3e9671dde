"""A bank of subjects: many small adapters of one layout, with the pictures that each was learnt from."""

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
from .shards import Entry, Manifest, read_shard, shards_in, unusable

FACTS = ("steps", "seed")
"""Settings that are facts of each subject's adapter under their own names."""


@dataclass(frozen=True)
class Bank:
    """A bank as its folder holds it; numbers and pictures are read when they are asked for.

    Args:
        folder: where it is.
        manifest: what the subjects share.
        entries: the subjects, by name.
    """

    folder: Path
    manifest: Manifest
    entries: tuple[Entry, ...]

    @classmethod
    def open(cls, folder: Path) -> "Bank":
        """The bank in ``folder``, from its manifest and the headers of its shards.

        A subject that is in two shards, because two processes trained it, counts once: from the one first by name.

        Raises:
            ValueError: the manifest or a shard is damaged, or they do not belong together.
        """
        manifest = Manifest.load(folder)
        entries: dict[str, Entry] = {}
        for path in shards_in(folder):
            for entry in read_shard(path, manifest):
                entries.setdefault(entry.name, entry)
        return cls(folder, manifest, tuple(entries[name] for name in sorted(entries)))

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def layout(self) -> ParameterLayout:
        return self.manifest.layout

    @property
    def prompt(self) -> str:
        """What calls up every subject, and what each picture without a caption was trained under."""
        return self.manifest.settings["prompt"]

    @property
    def prompts(self) -> tuple[str, ...]:
        """That, and every caption, each once."""
        return tuple(dict.fromkeys([self.prompt, *(text for entry in self.entries for text in entry.prompts)]))

    def prompt_of(self, subject: int, picture: int) -> str:
        """What this picture was trained under."""
        prompts = self.entries[subject].prompts
        return prompts[picture] if prompts else self.prompt

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(entry.name for entry in self.entries)

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """How many pictures each subject has."""
        return tuple(end - start for start, end in (entry.pictures for entry in self.entries))

    def theta(self, subjects: Sequence[int] | None = None) -> Tensor:
        """The numbers ``[n, N]`` of the subjects of these places, in that order; of all without.

        Raises:
            ValueError: a shard holds numbers that are none.
        """
        chosen = range(len(self)) if subjects is None else subjects
        return self._read("theta", [(self.entries[i], self.entries[i].row) for i in chosen])

    def images(self, subject: int) -> Tensor:
        """Its pictures as they were trained on, ``[P, H, W, 3]`` in [0, 1]."""
        return self._pictures("images", subject).float() / 255

    def latents(self, subject: int) -> Tensor:
        """The same as the VAE gave them, ``[P, C, h, w]``."""
        return self._pictures("latents", subject)

    def latent(self, chosen: Sequence[tuple[int, int]]) -> Tensor:
        """``[n, C, h, w]`` of these (subject, picture) places."""
        return self._read("latents", [(self.entries[i], self.entries[i].pictures[0] + p) for i, p in chosen])

    def image(self, chosen: Sequence[tuple[int, int]]) -> Tensor:
        """``[n, H, W, 3]`` in [0, 1] of these (subject, picture) places."""
        return self._read("images", [(self.entries[i], self.entries[i].pictures[0] + p) for i, p in chosen]) / 255

    def adapter(self, subject: int) -> AdapterStack:
        """The subject's own adapter."""
        return AdapterStack((self.layout.unpack(self.theta([subject])[0]),), self.metadata(subject))

    def metadata(self, subject: int) -> dict[str, Any]:
        """What is known of how it was made, as files of adapters keep it."""
        settings = self.manifest.settings
        return {
            **{name: value for name, value in self.manifest.base.items() if name != "weights"},
            **{name: settings[name] for name in FACTS if name in settings},
            "prompts": [*dict.fromkeys(self.entries[subject].prompts)] or [self.prompt], "class_prompt": None,
            "batch_size": 1, "images": self.counts[subject], "class_images": 0, "bank": self.name,
            "subject": self.names[subject],
        }  # fmt: skip

    def _pictures(self, tensor: str, subject: int) -> Tensor:
        entry = self.entries[subject]
        return self._read(tensor, [(entry, row) for row in range(*entry.pictures)])

    def _read(self, tensor: str, rows: Iterable[tuple[Entry, int]]) -> Tensor:
        """Rows of shards as one tensor, float32; each shard is opened once.

        Raises:
            ValueError: a shard is gone or damaged, or holds numbers that are none.
        """
        rows = list(rows)
        of: dict[Path, list[int]] = {}
        for place, (entry, _) in enumerate(rows):
            of.setdefault(entry.shard, []).append(place)
        found: dict[int, Tensor] = {}
        for path, places in of.items():
            try:
                with _shard(path, tensor) as row_of:
                    found |= {place: row_of(rows[place][1]) for place in places}
            except (OSError, SafetensorError) as error:
                raise unusable(path, error) from error
        return torch.stack([found[place] for place in range(len(rows))])


@contextmanager
def _shard(path: Path, tensor: str) -> Iterator[Callable[[int], Tensor]]:
    """Gives the rows of a shard's tensor, in memory of their own."""
    with safe_open(path, framework="pt") as file:
        whole = file.get_slice(tensor)

        def row_of(row: int) -> Tensor:
            value = whole[row : row + 1][0]
            return (
                validation.checked_tensor(value, f"{tensor} of {path.name}")
                if value.is_floating_point()
                else value.float()
            )

        yield row_of
