"""Captions of a bank's pictures: the text beside each, kept in the headers of the bank's files."""

from collections.abc import Sequence

from ...models.validation import MAX_HEADER_LENGTH, MAX_TEXT_LENGTH
from ..data.build_dataset import prompts_for
from ..data.image_reader import ImageRecord

MOST = MAX_HEADER_LENGTH // 2
"""Characters of a file's captions; the other half of its header names the subjects."""


def prompts_of(photographs: Sequence[ImageRecord], prompt: str) -> list[str]:
    """Each one's caption, or ``prompt``.

    Raises:
        ValueError: a caption is longer than any encoder reads.
    """
    for photograph in photographs:
        if (length := len(photograph.caption)) > MAX_TEXT_LENGTH:
            raise ValueError(
                f"the text beside {photograph.name} has {length} characters; give at most {MAX_TEXT_LENGTH}"
            )
    return prompts_for(len(photographs), prompt, [photograph.caption for photograph in photographs])


def check_fit(prompts: Sequence[str]) -> None:
    """A file holds those of a batch.

    Raises:
        ValueError: they are too long together.
    """
    if (total := sum(map(len, prompts))) > MOST:
        raise ValueError(
            f"captions: those of one batch have {total} characters, and a file of the bank holds {MOST}; give fewer "
            "subjects_per_batch"
        )
