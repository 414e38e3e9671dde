"""Prompt fidelity: CLIP-T."""

from collections.abc import Sequence

from comfy_api.latest import io
from torch import Tensor

from ...models.metrics import scores
from ..bridge.images.metric_encoders import Embedder
from ..common.list_inputs import single_value
from .common import CATEGORY, Embeddings, Score, Scoring, check_prompt, clip_input, needed, pictures_of


class PromptFidelity(Scoring):
    """Samples and prompt -> CLIP-T."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyperBoothPromptFidelity",
            display_name="Prompt Fidelity",
            category=CATEGORY,
            description="How well samples follow the prompt: mean cosine similarity of prompt and sample by CLIP "
            "(DreamBooth's CLIP-T). Write the prompt with the class in place of the rare word: CLIP does not know it.",
            is_input_list=True,
            is_output_node=True,
            inputs=[
                io.Image.Input("images", tooltip="Samples of one prompt: a batch, or a list of any sizes."),
                io.String.Input(
                    "prompt",
                    default="a photo of a dog on a beach",
                    multiline=True,
                    tooltip="What they are to show, without the rare word: 'a photo of a dog on a beach'.",
                ),
                clip_input("CLIP-T"),
            ],
            outputs=[
                io.Float.Output(display_name="clip_t", tooltip="CLIP-T; 0.3 is much for a photograph."),
                io.String.Output(display_name="report", tooltip="The score, and by which encoder."),
            ],
        )

    @classmethod
    def execute(cls, images: list[Tensor], prompt: list[str], clip: list[str]) -> io.NodeOutput:
        samples, by = pictures_of("images", images), needed("clip_score", single_value("clip", clip))
        score = prompt_score(by, Embeddings(len(samples)), samples, single_value("prompt", prompt))
        report = f"{score}{cut_off(by, prompt)}"
        return io.NodeOutput(score.value, report, ui={"text": (report,)})


def prompt_score(by: Embedder, embed: Embeddings, samples: list[Tensor], prompt: str) -> Score:
    """CLIP-T.

    Raises:
        ValueError: the prompt is empty.
    """
    check_prompt(prompt)
    return Score("CLIP-T", scores.prompt_fidelity(embed(by, samples), by.text(prompt)), by.name)


def cut_off(by: Embedder, prompts: Sequence[str]) -> str:
    """What to know of a prompt that is too long."""
    return "\nthe prompt is longer than CLIP reads: its end does not count" if any(map(by.is_cut, prompts)) else ""
