"""Features of a bank's pictures: each encoded once, and kept beside the bank for every later run.

``<bank>/features/<encoder>/<shard>.safetensors`` holds ``tokens [P, tokens, width]`` in half precision, of that shard's
pictures in their order, and says whose. Shards never change, so that a bank that grows needs the new ones' only, and a
run that was stopped goes on with what is missing.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ...models.files.safetensors_io import write_tensors
from ...models.subject_bank.bank import Bank
from ..engine.distributed import SINGLE, ProcessGroup
from ..engine.run_hash import run_hash

TOKENS, SUBJECTS = "tokens", "subjects"
BATCH = 16
"""Pictures that go through the encoder at once."""

Picture = tuple[int, int]
"""(subject, picture of it)."""
Encode = Callable[[Tensor], Tensor]
"""Pictures ``[n, H, W, 3]`` in [0, 1] -> their tokens ``[n, tokens, width]`` in float32, on the CPU."""


class FeatureCache:
    """Tokens of a bank's pictures.

    Args:
        bank: whose.
        encoder: a name for the encoder's weights, see :func:`.run_hash.fingerprint`.
        encode: what makes them.
        on_done: called with the pictures done, and of how many, while some are encoded.
        processes: processes that share the work: each encodes every n-th shard, and then what it does not find.
    """

    def __init__(
        self,
        bank: Bank,
        encoder: str,
        encode: Encode,
        on_done: Callable[[int, int], None],
        processes: ProcessGroup = SINGLE,
    ):
        self._bank, self._encode, self._folder = bank, encode, bank.folder / "features" / encoder
        self._memory: dict[Path, Tensor] = {}
        of: dict[Path, list[int]] = {}
        for subject, entry in enumerate(bank.entries):
            of.setdefault(entry.shard, []).append(subject)
        self._ensure_all(dict([*of.items()][processes.rank :: processes.world_size]), on_done)
        processes.all_gather_object(None)
        self._ensure_all(of, on_done)

    def _ensure_all(self, of: Mapping[Path, Sequence[int]], on_done: Callable[[int, int], None]) -> None:
        counts, done = self._bank.image_counts, 0
        total = sum(counts[subject] for subjects in of.values() for subject in subjects)
        for shard, subjects in of.items():
            self._ensure(shard, subjects, lambda more, done=done: on_done(done + more, total))
            done += sum(counts[subject] for subject in subjects)

    def __call__(self, pictures: Sequence[Picture]) -> Tensor:
        """``[n, tokens, width]`` in half precision."""
        rows: list[Tensor] = []
        for subject, picture in pictures:
            entry = self._bank.entries[subject]
            rows.append(self._row(entry.shard, entry.image_rows[0] + picture))
        return torch.stack(rows)

    def _row(self, shard: Path, row: int) -> Tensor:
        if shard in self._memory:
            return self._memory[shard][row]
        with safe_open(self._file(shard), framework="pt") as file:
            return file.get_slice(TOKENS)[row : row + 1][0].clone()

    def _file(self, shard: Path) -> Path:
        return self._folder / shard.name

    def _ensure(self, shard: Path, subjects: Sequence[int], on_done: Callable[[int], None]) -> None:
        """The shard's tokens are on the disk, or in memory where the bank's folder takes no file."""
        entries = [self._bank.entries[subject] for subject in subjects]
        count = max(entry.image_rows[1] for entry in entries)
        key = run_hash([(entry.name, entry.fit, entry.image_rows) for entry in entries])
        if shard in self._memory or self._is_there(shard, count, key):
            return
        tokens, done = None, 0
        for subject, entry in zip(subjects, entries, strict=True):
            images = self._bank.images(subject)
            made = torch.cat([self._encode(part) for part in images.split(BATCH)]).half()
            if tokens is None:
                tokens = made.new_zeros(count, *made.shape[1:])
            tokens[slice(*entry.image_rows)] = made
            done += len(images)
            on_done(done)
        try:
            write_tensors({TOKENS: tokens}, self._file(shard), {SUBJECTS: key})
        except OSError as error:
            logging.warning("HyperBooth: features of the bank's pictures are kept in memory: %s", error)
            self._memory[shard] = tokens

    def _is_there(self, shard: Path, count: int, key: str) -> bool:
        """A whole file, for all its pictures; a damaged one is made again, and one of a bank that was there before."""
        try:
            with safe_open(self._file(shard), framework="pt") as file:
                shape, of = file.get_slice(TOKENS).get_shape(), (file.metadata() or {}).get(SUBJECTS)
        except (OSError, SafetensorError):
            return False
        return len(shape) == 3 and shape[0] >= count and of == key
