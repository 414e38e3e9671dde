"""A cache of image features: every image of a bank is encoded once, and the tokens stay in the bank's folder.

``<bank>/features/<encoder>/<shard>.safetensors`` holds ``tokens [P, tokens, width]`` in half precision (in float32 if a
value is beyond its range), of the shard's images in their order, a hash of its subjects, and a digest. Shards never
change: a bank that grows needs the features of its new shards only, and a run that was stopped continues with what is
missing. A file that does not fit is encoded again.
"""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ...models.files.digest import DIGEST, check_digest, file_digest
from ...models.files.leftovers import remove_leftovers
from ...models.files.safetensors_io import write_tensors
from ...models.subject_bank.bank import Bank
from ...models.validation import is_finite
from ..engine.distributed import SINGLE, ProcessGroup
from ..engine.run_hash import run_hash

logger = logging.getLogger("hyperbooth")

TOKENS, SUBJECTS = "tokens", "subjects"
IMAGES_AT_ONCE = 16
"""Images that go through the encoder at once."""
FEATURE_DTYPES = ("F16", "F32")
"""Of the tokens in a file."""

ImageIndex = tuple[int, int]
"""(index of a subject in the bank, index of one of its images)."""
Encode = Callable[[Tensor], Tensor]
"""Images ``[n, H, W, 3]`` in [0, 1] -> their tokens ``[n, tokens, width]`` in float32, on the CPU."""


class FeatureCache:
    """The tokens of a bank's images. Those that are missing are encoded when the cache is made, and always one image.

    Args:
        bank: whose images.
        encoder: hash of the encoder's weights, see :func:`..engine.run_hash.run_hash`; it names the folder.
        encode: the encoder.
        on_progress: called with (images done, of) while images are encoded.
        processes: processes that share the work: each encodes every n-th shard, and then what is still missing.
    """

    def __init__(
        self,
        bank: Bank,
        encoder: str,
        encode: Encode,
        *,
        on_progress: Callable[[int, int], None],
        processes: ProcessGroup = SINGLE,
    ):
        self._bank, self._encode, self._folder = bank, encode, bank.folder / "features" / encoder
        self._in_memory: dict[Path, Tensor] = {}
        self._sound: set[Path] = set()
        self._token_shape = tuple(encode(bank.images(0)[:1]).shape[1:])  # what every file must have
        by_shard: dict[Path, list[int]] = {}
        for subject, entry in enumerate(bank.entries):
            by_shard.setdefault(entry.shard, []).append(subject)
        self._ensure_all(dict([*by_shard.items()][processes.rank :: processes.world_size]), on_progress)
        processes.all_gather_object(None)
        self._ensure_all(by_shard, on_progress)

    def __call__(self, images: Sequence[ImageIndex]) -> Tensor:
        """Return the tokens ``[n, tokens, width]`` of ``images``, as they are kept."""
        rows: list[Tensor] = []
        for subject, image in images:
            entry = self._bank.entries[subject]
            rows.append(self._row(entry.shard, entry.image_rows[0] + image))
        return torch.stack(rows)

    def _ensure_all(
        self, by_shard: Mapping[Path, Sequence[int]], on_progress: Callable[[int, int], None]
    ) -> None:  # fmt: skip
        counts, done = self._bank.image_counts, 0
        total = sum(counts[subject] for subjects in by_shard.values() for subject in subjects)
        for shard, subjects in by_shard.items():
            self._ensure(shard, subjects, lambda more, done=done: on_progress(done + more, total))
            done += sum(counts[subject] for subject in subjects)

    def _ensure(self, shard: Path, subjects: Sequence[int], on_progress: Callable[[int], None]) -> None:
        """Encode the shard's images unless their tokens are on disk, or in memory where the folder is read-only."""
        if shard not in self._in_memory and not self._is_complete(shard, *self._count_and_key(subjects)):
            self._encode_shard(shard, on_progress)

    def _count_and_key(self, subjects: Sequence[int]) -> tuple[int, str]:
        """Return the number of a shard's images, and the hash of its subjects."""
        entries = [self._bank.entries[subject] for subject in subjects]
        count = max(entry.image_rows[1] for entry in entries)
        return count, run_hash([(entry.name, entry.fit, entry.image_rows) for entry in entries])

    def _encode_shard(self, shard: Path, on_progress: Callable[[int], None]) -> None:
        subjects = [index for index, entry in enumerate(self._bank.entries) if entry.shard == shard]
        count, key = self._count_and_key(subjects)
        tokens, done = torch.zeros(count, *self._token_shape, dtype=torch.float16), 0
        for subject in subjects:
            images = self._bank.images(subject)
            encoded = _compact(torch.cat([self._encode(part) for part in images.split(IMAGES_AT_ONCE)]))
            tokens = tokens.to(torch.promote_types(tokens.dtype, encoded.dtype))
            tokens[slice(*self._bank.entries[subject].image_rows)] = encoded
            done += len(images)
            on_progress(done)
        self._sound.add(shard)
        remove_leftovers(self._folder)
        try:
            digest = file_digest(key, {TOKENS: tokens})
            write_tensors({TOKENS: tokens}, self._file(shard), {SUBJECTS: key, DIGEST: digest})
        except OSError as error:
            logger.warning("features of the bank's images are kept in memory: %s", error)
            self._in_memory[shard] = tokens

    def _is_complete(self, shard: Path, count: int, key: str) -> bool:
        """Return by its header whether the shard's file is for ``count`` images of the same subjects.

        A file of an earlier bank in the same folder, or of tokens of other sizes, is replaced.

        Args:
            shard: path of the shard.
            count: of its images.
            key: hash of its subjects.
        """
        path = self._file(shard)
        try:
            if not path.is_file():
                return False
            with safe_open(path, framework="pt") as file:
                shape, dtype = file.get_slice(TOKENS).get_shape(), file.get_slice(TOKENS).get_dtype()
                subjects = (file.metadata() or {}).get(SUBJECTS)
        except (OSError, SafetensorError):
            return False
        return shape == [count, *self._token_shape] and dtype in FEATURE_DTYPES and subjects == key

    def _is_sound(self, shard: Path) -> bool:
        """Return whether the content of the shard's file is as it was written, which is read once."""
        try:
            with safe_open(self._file(shard), framework="pt") as file:
                metadata, tokens = file.metadata() or {}, file.get_tensor(TOKENS)
            if DIGEST in metadata:  # files of before have none
                check_digest(metadata, metadata.get(SUBJECTS, ""), {TOKENS: tokens})
        except (OSError, SafetensorError, ValueError):
            return False
        return is_finite(tokens, math.inf)

    def _row(self, shard: Path, row: int) -> Tensor:
        if shard not in self._sound and shard not in self._in_memory:
            if not self._is_sound(shard):
                logger.warning("features of %s are damaged; they are encoded again", shard.name)
                self._encode_shard(shard, lambda _: None)
            self._sound.add(shard)
        if shard in self._in_memory:
            return self._in_memory[shard][row]
        with safe_open(self._file(shard), framework="pt") as file:
            return file.get_slice(TOKENS)[row : row + 1][0].clone()

    def _file(self, shard: Path) -> Path:
        return self._folder / shard.name


def _compact(tokens: Tensor) -> Tensor:
    """Return tokens in half precision, or as they are if one of them is beyond its range.

    Raises:
        ValueError: the encoder gave NaN or infinite values.
    """
    if not is_finite(tokens, math.inf):
        raise ValueError("the image encoder gave NaN or infinite values; load another CLIP Vision model")
    return tokens.half() if is_finite(tokens, torch.finfo(torch.float16).max) else tokens
