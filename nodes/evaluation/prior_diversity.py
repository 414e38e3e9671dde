"""Node that measures prior preservation and diversity: PRES and DIV."""

from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ...models.metrics import scores
from ..common.list_inputs import single_value
from .common import (  # fmt: skip
    CATEGORY,
    NOT_MEASURED,
    Embeddings,
    Score,
    Scoring,
    ceiling_of,
    dino_input,
    dino_vision_input,
    images_of,
    require_embedder,
)


class PriorScore(Scoring):
    """Score class samples against the subject (PRES), and samples of one prompt against each other (DIV)."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyperBoothPriorScore",
            display_name="Prior and Diversity",
            category=CATEGORY,
            description="Measures what training did to the class: PRES is the similarity of class samples to the "
            "subject (low is good), DIV the difference between samples of one prompt (high is good), both by DINO.",
            is_input_list=True,
            is_output_node=True,
            inputs=[
                io.Image.Input(
                    "class_samples",
                    tooltip="Samples of the personalized model from the class prompt, without the rare word.",
                ),
                io.Image.Input("references", tooltip="Real images of the subject."),
                io.Image.Input("images", optional=True, tooltip="Two or more samples of one prompt, for DIV."),
                dino_input(),
                dino_vision_input(),
            ],
            outputs=[
                io.Float.Output(display_name="pres", tooltip="PRES; low is good."),
                io.Float.Output(display_name="div", tooltip="DIV; high is good. nan without images."),
                io.String.Output(display_name="report", tooltip="Both scores, and the encoder."),
            ],
        )

    @classmethod
    def execute(
        cls, class_samples: list[Tensor], references: list[Tensor], dino: list[str],
        images: list[Tensor] | None = None, dino_vision: list[Any] | None = None,
    ) -> io.NodeOutput:  # fmt: skip
        others, real = images_of("class_samples", class_samples), images_of("references", references)
        samples = images_of("images", images, at_least=2) if images else []
        by = require_embedder(
            "dino", single_value("dino", dino), dino_vision and single_value("dino_vision", dino_vision)
        )
        embed = Embeddings(len(others) + len(real) + len(samples))
        references_embedded = embed(by, real)
        similarity = scores.prior_preservation(embed(by, others), references_embedded)
        pres = Score("PRES", similarity, by.name, ceiling_of(references_embedded), low=True)
        div = Score("DIV", scores.diversity(embed(by, samples)) if samples else NOT_MEASURED, by.name)
        report = f"{pres}\n{div}"
        return io.NodeOutput(pres.value, div.value, report, ui={"text": (report,)})
