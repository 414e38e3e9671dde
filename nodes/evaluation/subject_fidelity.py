"""Node that measures subject fidelity: DINO and CLIP-I."""

from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ...models.metrics import scores
from ..bridge.images.metric_encoders import Embedder, open_embedder
from ..common.list_inputs import single_value
from .common import (  # fmt: skip
    CATEGORY,
    NOT_MEASURED,
    Embeddings,
    Score,
    Scoring,
    ceiling_of,
    clip_input,
    dino_input,
    dino_vision_input,
    images_of,
    no_encoder_message,
)


class SubjectFidelity(Scoring):
    """Score samples against real images of the subject (DINO and CLIP-I)."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyperBoothSubjectFidelity",
            display_name="Subject Fidelity",
            category=CATEGORY,
            description="Measures how well samples show the subject: mean cosine similarity over all pairs of a sample "
            "and a real image, by DINO and by CLIP (DreamBooth's DINO and CLIP-I). Compare it with the ceiling, the "
            "similarity of the real images among themselves.",
            is_input_list=True,
            is_output_node=True,
            inputs=[
                io.Image.Input("images", tooltip="Samples of the subject: a batch, or a list of any sizes."),
                io.Image.Input("references", tooltip="Real images of it; two or more for the ceiling."),
                dino_input(),
                dino_vision_input(),
                io.ClipVision.Input(
                    "clip_vision",
                    optional=True,
                    tooltip="A CLIP or SigLIP from the stock Load CLIP Vision, for CLIP-I.",
                ),
                clip_input("CLIP-I in place of clip_vision"),
            ],
            outputs=[
                io.Float.Output(display_name="dino", tooltip="DINO, or nan if there is no encoder for it."),
                io.Float.Output(display_name="clip_i", tooltip="CLIP-I, or nan if there is no encoder for it."),
                io.String.Output(display_name="report", tooltip="Both scores with their ceilings, and the encoders."),
            ],
        )

    @classmethod
    def execute(
        cls, images: list[Tensor], references: list[Tensor], dino: list[str], clip: list[str],
        dino_vision: list[Any] | None = None, clip_vision: list[Any] | None = None,
    ) -> io.NodeOutput:  # fmt: skip
        samples, real = images_of("images", images), images_of("references", references)
        by_dino = open_embedder(
            "dino", single_value("dino", dino), dino_vision and single_value("dino_vision", dino_vision)
        )
        by_clip = open_embedder(
            "clip_score", single_value("clip", clip), clip_vision and single_value("clip_vision", clip_vision)
        )
        if by_dino is None and by_clip is None:
            raise ValueError(no_encoder_message(("dino", "clip_score")))
        count = len(samples) + len(real)
        embed = Embeddings(count * sum(by is not None for by in (by_dino, by_clip)))
        found = [subject_score(name, by, embed, samples, real) for name, by in (("DINO", by_dino), ("CLIP-I", by_clip))]
        report = "\n".join(map(str, found))
        return io.NodeOutput(*(score.value for score in found), report, ui={"text": (report,)})


def subject_score(
    name: str, by: Embedder | None, embed: Embeddings, samples: list[Tensor], real: list[Tensor]
) -> Score:  # fmt: skip
    """Return DINO or CLIP-I of samples, the mean over all pairs with the real images.

    Args:
        name: of the metric.
        by: the encoder; without one the score is not measured.
        embed: embeds images.
        samples: images ``[H, W, 3]``.
        real: images ``[H, W, 3]`` of the subject.
    """
    if by is None:
        return Score(name, NOT_MEASURED)
    own, theirs = embed(by, samples), embed(by, real)
    return Score(name, scores.subject_fidelity(own, theirs), by.name, ceiling_of(theirs))
