"""Encoding of one prompt for several subjects, with per-subject adapters on the text encoder.

Each encoder runs once, on a batch of the prompt repeated per subject, and each subject gets its row of the output. What
ComfyUI computes from an encoder's rows (sections of long prompts, prompt weights, several encoders) is done by
ComfyUI's own code, once per subject.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from comfy.sd1_clip import SDClipModel


def encode_per_subject(clip: Any, subjects: int, encode: Callable[[], Any]) -> list[Any]:
    """Encode one prompt for each of the subjects whose adapters are injected into the text encoder.

    Args:
        clip: the CLIP with batched adapters, see :mod:`models.adapters.per_sample`.
        subjects: their number, the adapters' batch dimension.
        encode: encodes the prompt by ``clip``, the same at each call.

    Returns:
        What ``encode`` returns, for each subject.
    """
    parts = [part for part in clip.cond_stage_model.modules() if isinstance(part, SDClipModel)]
    with ExitStack() as stack:
        encoders = [stack.enter_context(_batched(part, subjects)) for part in parts]
        encoded = []
        for subject in range(subjects):
            for encoder in encoders:
                encoder.subject = subject
            encoded.append(encode())
    return encoded


@dataclass
class _BatchedEncoder:
    """Replacement of an encoder's ``encode`` that runs all subjects in one batch and returns one subject's rows.

    Args:
        encode: the encoder's own method.
        subjects: the batch size.
        subject: index of the subject whose rows are returned.
        outputs: the encoder's outputs per section, after the first call.
    """

    encode: Callable[[list[Any]], tuple[Any, ...]]
    subjects: int
    subject: int = 0
    outputs: list[tuple[Any, ...]] = field(default_factory=list)

    def __call__(self, sections: list[Any]) -> tuple[Any, ...]:
        """Encode section by section, because batched adapters take exactly one sample per subject."""
        if not self.outputs:
            self.outputs = [self.encode([section] * self.subjects) for section in sections]
        return tuple(_row(values, self.subject) for values in zip(*self.outputs, strict=True))


def _row(values: Sequence[Any], subject: int) -> Any:
    """Return one subject's row of each section's output: a tensor, tensors by name, or None."""
    if isinstance(values[0], dict):
        return {name: _row([value[name] for value in values], subject) for name in values[0]}
    return None if values[0] is None else torch.stack([value[subject] for value in values])


@contextmanager
def _batched(encoder: SDClipModel, subjects: int) -> Iterator[_BatchedEncoder]:
    before = vars(encoder).get("encode")
    batched = encoder.encode = _BatchedEncoder(encoder.encode, subjects)
    try:
        yield batched
    finally:
        del encoder.encode
        if before is not None:
            encoder.encode = before
