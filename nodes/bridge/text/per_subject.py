"""One prompt for each of several subjects, each through its own adapters on the text encoder.

An encoder runs once, on a batch of the prompt repeated, and gives each subject its row. What ComfyUI makes of an
encoder's rows (sections of long prompts, weights of words, several encoders) is ComfyUI's own code, run for each.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from comfy.sd1_clip import SDClipModel


def encode_per_subject(clip: Any, subjects: int, encode: Callable[[], Any]) -> list[Any]:
    """What ``encode`` gives for each of the subjects whose adapters the text encoder carries, see
    :mod:`models.subjects`.

    Args:
        encode: encodes one prompt, the same at each call.
    """
    parts = [part for part in clip.cond_stage_model.modules() if isinstance(part, SDClipModel)]
    with ExitStack() as stack:
        encoders = [stack.enter_context(_rows(part, subjects)) for part in parts]
        encoded = []
        for subject in range(subjects):
            for encoder in encoders:
                encoder.subject = subject
            encoded.append(encode())
    return encoded


@dataclass
class _Rows:
    """Stands in for an encoder's ``encode``: what it gives for one subject, from one run for all."""

    encode: Callable[[list[Any]], tuple[Any, ...]]
    subjects: int
    subject: int = 0
    outputs: list[tuple[Any, ...]] = field(default_factory=list)

    def __call__(self, sections: list[Any]) -> tuple[Any, ...]:
        """A section at a time: adapters of several subjects take one sample for each."""
        if not self.outputs:
            self.outputs = [self.encode([section] * self.subjects) for section in sections]
        return tuple(_row(values, self.subject) for values in zip(*self.outputs, strict=True))


def _row(values: Sequence[Any], subject: int) -> Any:
    """One subject's rows of each section's output: a tensor, tensors by name, or None."""
    if isinstance(values[0], dict):
        return {name: _row([value[name] for value in values], subject) for name in values[0]}
    return None if values[0] is None else torch.stack([value[subject] for value in values])


@contextmanager
def _rows(encoder: SDClipModel, subjects: int) -> Iterator[_Rows]:
    before = vars(encoder).get("encode")
    rows = encoder.encode = _Rows(encoder.encode, subjects)
    try:
        yield rows
    finally:
        del encoder.encode
        if before is not None:
            encoder.encode = before
