"""Captions of a bank's images: the text file next to each image, kept in the headers of the bank's shards."""

from collections.abc import Sequence

from ...models.validation import MAX_HEADER_LENGTH, MAX_PROMPT_LENGTH
from ..data.build_dataset import literal, prompts_for
from ..data.image_reader import ImageRecord

MOST = MAX_HEADER_LENGTH // 2
"""Characters of all captions in one shard; the other half of its header names the subjects."""


def prompts_of(images: Sequence[ImageRecord], prompt: str) -> list[str]:
    """Return each image's caption, or ``prompt`` where it has none.

    Raises:
        ValueError: a caption is longer than any text encoder reads.
    """
    for image in images:
        if (length := len(image.caption)) > MAX_PROMPT_LENGTH:
            raise ValueError(f"the caption of {image.name} has {length} characters; give at most {MAX_PROMPT_LENGTH}")
    return prompts_for(len(images), prompt, [literal(image.caption) for image in images])


def require_fit(prompts: Sequence[str]) -> None:
    """Require that the prompts of one batch fit into the header of a shard.

    Raises:
        ValueError: they have more than :data:`MOST` characters in total.
    """
    if (total := sum(map(len, prompts))) > MOST:
        raise ValueError(
            f"captions: those of one batch have {total} characters, and a file of the bank holds {MOST}; give fewer "
            "subjects_per_batch"
        )
