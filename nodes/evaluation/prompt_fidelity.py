"""Node that measures prompt fidelity: CLIP-T."""

from collections.abc import Sequence

from comfy_api.latest import io
from torch import Tensor

from ...models.metrics import scores
from ..bridge.images.metric_encoders import Embedder
from ..common.list_inputs import single_value
from .common import CATEGORY, Embeddings, Score, Scoring, clip_input, images_of, require_embedder, require_prompt


class PromptFidelity(Scoring):
    """Score samples against their prompt (CLIP-T)."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyperBoothPromptFidelity",
            display_name="Prompt Fidelity",
            category=CATEGORY,
            description="Measures how well samples follow the prompt: mean cosine similarity of prompt and sample by "
            "CLIP (DreamBooth's CLIP-T). Write the class in place of the rare word, which CLIP was not trained on.",
            is_input_list=True,
            is_output_node=True,
            inputs=[
                io.Image.Input("images", tooltip="Samples of one prompt: a batch, or a list of any sizes."),
                io.String.Input(
                    "prompt",
                    default="a photo of a dog on a beach",
                    multiline=True,
                    tooltip="What the samples are to show, without the rare word: 'a photo of a dog on a beach'.",
                ),
                clip_input("CLIP-T"),
            ],
            outputs=[
                io.Float.Output(display_name="clip_t", tooltip="CLIP-T; 0.3 is high for a photograph."),
                io.String.Output(display_name="report", tooltip="The score, and the encoder."),
            ],
        )

    @classmethod
    def execute(cls, images: list[Tensor], prompt: list[str], clip: list[str]) -> io.NodeOutput:
        samples, by = images_of("images", images), require_embedder("clip_score", single_value("clip", clip))
        score = prompt_score(by, Embeddings(len(samples)), samples, single_value("prompt", prompt))
        report = f"{score}{truncation_note(by, prompt)}"
        return io.NodeOutput(score.value, report, ui={"text": (report,)})


def prompt_score(by: Embedder, embed: Embeddings, samples: list[Tensor], prompt: str) -> Score:
    """Return CLIP-T of samples of one prompt.

    Args:
        by: the CLIP.
        embed: embeds images.
        samples: images ``[H, W, 3]``.
        prompt: what they are to show.

    Raises:
        ValueError: the prompt is empty.
    """
    require_prompt(prompt)
    return Score("CLIP-T", scores.prompt_fidelity(embed(by, samples), by.embed_text(prompt)), by.name)


def truncation_note(by: Embedder, prompts: Sequence[str]) -> str:
    """Return a note for the report if a prompt is longer than CLIP's context, else an empty text."""
    return (
        "\nthe prompt is longer than CLIP's context: its end was truncated"
        if any(map(by.is_truncated, prompts))
        else ""
    )
