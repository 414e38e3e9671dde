"""Learned embeddings in training prompts: the real tokenizers find every placeholder token that a prompt names."""

from pathlib import Path
from typing import Any

import comfy.sd
import pytest
import torch
from helpers.training import lora, train
from hyperbooth.models.adapters.stack import AdapterStack
from hyperbooth.models.files.adapter_file import load_adapter
from hyperbooth.models.textual_inversion.embeddings import (
    FAMILY,
    LearnedEmbedding,
    TextualInversionConfig,
    expand_placeholders,
    mentions_token,
)
from hyperbooth.nodes.bridge.text.learned_embeddings import with_embeddings
from hyperbooth.trainers.config import Method
from torch import Tensor

from tools.comfy_harness.tiny_checkpoints import FAMILIES, write

TOKEN = "sks-dog"


def family(name: str, folder: Path) -> tuple[Any, Any, Any]:
    path = write(folder / f"{name}.safetensors", FAMILIES[name])
    with torch.inference_mode():
        model, clip, vae, _ = comfy.sd.load_checkpoint_guess_config(
            str(path), te_model_options=dict(FAMILIES[name].text_options)
        )
    return model, clip, vae


@pytest.fixture(scope="module")
def loaded(quick: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
    return quick


@pytest.fixture(scope="module")
def flux(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Any]:
    """Load a family with CLIP and T5."""
    return family("flux", tmp_path_factory.mktemp("flux"))


def subject_of(node: Any, clip: Any, vae: Any, prompt: str) -> Any:
    (subject,) = node(
        "Subject", images=[torch.rand(2, 64, 64, 3, generator=torch.Generator().manual_seed(0))], vae=[vae],
        clip=[clip], prompt=[prompt], resolution=[64], bucket=[True], flip=[False],
    )  # fmt: skip
    return subject


def inversion() -> Method:
    return Method(
        family=FAMILY, config=TextualInversionConfig(token=TOKEN, initializer_word="dog", vectors=2), learning_rate=0.05
    )


BEFORE = ("", "a ", "a,", "(", "((", "\\(", ":) (", "<", "[", '"', "'", ":", ".", "(a)", "a\n", "é,", "embedding:")
AFTER = (
    "", " b", ",", ",b", ", b", ",, b", ":", ": b", ":1.2", ".", ". b", ")", ",b:1.2)", ":1.2)", "))", "\\)", "!", "?",
    ";b", "'s fur", "<", "[b]", "\n", "\u00a0b", "\u200bb", '"', f",{TOKEN}", f" ({TOKEN}:0.5)", "|b", "+",
)  # fmt: skip


def test_every_prompt_that_names_the_token_gets_its_vectors(flux: Any) -> None:
    _, clip, _ = flux
    embedding = LearnedEmbedding(TOKEN, {"clip_l": torch.randn(2, 768), "t5xxl": torch.randn(2, 128)})
    extended = with_embeddings(clip, [embedding])
    for prompt in (f"{before}{TOKEN}{after}" for before in BEFORE for after in AFTER):
        assert mentions_token(prompt, TOKEN), prompt
        tokens = extended.tokenize(expand_placeholders(prompt, [TOKEN]))
        for encoder, key in (("l", "clip_l"), ("t5xxl", "t5xxl")):
            rows = [t for batch in tokens[encoder] for t, *_ in batch if isinstance(t, Tensor)]
            assert len(rows) == 2 * prompt.count(TOKEN), (prompt, encoder)
            assert torch.equal(torch.stack(rows[:2]), embedding.vectors[key]), (prompt, encoder)


def test_prompt_weights_and_other_tokens_are_unchanged(flux: Any) -> None:
    _, clip, _ = flux
    embedding = LearnedEmbedding("dog", {"clip_l": torch.randn(1, 768), "t5xxl": torch.randn(1, 128)})
    extended = with_embeddings(clip, [embedding])
    for prompt in ("a (dog:1.3) here", "(dog,beach:1.2)", "dog: a portrait", "dog,outdoors", "(dog) b"):
        plain, ours = clip.tokenize(prompt), extended.tokenize(expand_placeholders(prompt, ["dog"]))
        kept = [[None if isinstance(t, Tensor) else t, w] for t, w in ours["l"][0]]
        (dog,) = clip.tokenizer.clip_l.tokenizer("dog")["input_ids"][1:-1]
        assert kept == [[None if t == dog else t, w] for t, w in plain["l"][0]], prompt


def test_a_prompt_in_which_the_token_is_not_found_is_refused(
    node: Any, loaded: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some tokenizers look no embeddings up."""
    model, clip, vae = loaded
    subject = subject_of(node, clip, vae, f"a photo of {TOKEN}")
    monkeypatch.setattr(clip.tokenizer.clip_l, "embedding_identifier", "other:")
    with pytest.raises(ValueError, match=r"'a photo of sks-dog'.*'sks-dog'.*clip_l"):
        train(node, (model,), subject, inversion(), 1, clip=clip)


def test_a_model_that_lacks_an_encoder_needs_no_vectors_for_it(node: Any, tmp_path: Path) -> None:
    """SD3 has tokenizers for three encoders, however many are loaded."""
    model, clip, vae = family("sd3", tmp_path)
    subject = subject_of(node, clip, vae, f"a photo of {TOKEN}")
    adapter, _, _ = train(node, (model,), subject, inversion(), 1, clip=clip)
    held = set(adapter.embeddings[0].vectors)
    assert held and held < {"clip_l", "clip_g", "t5xxl"}
    _, extended = node("Apply", model=model, adapter=adapter, strength_model=1.0, clip=clip)
    rows = [t for t, _ in extended.tokenize(f"a embedding:{TOKEN}")["l"][0] if isinstance(t, Tensor)]
    assert torch.equal(torch.stack(rows), adapter.embeddings[0].vectors["clip_l"])


def test_training_over_text_encoder_layers_or_embeddings_encodes_prompts_again(node: Any, loaded: Any) -> None:
    """The method trains no text encoder, but start_from changes it, or holds an embedding that the prompt names."""
    _, clip, vae = loaded
    subject = subject_of(node, clip, vae, f"a photo of {TOKEN}")
    over, _, _ = train(node, loaded, subject, lora(text_encoder=True, learning_rate=3e-3), 2, clip=clip)
    plain, _, _ = train(node, loaded, subject, lora(), 1)
    embedding, _, _ = train(node, loaded, subject, inversion(), 1, clip=clip)
    from_plain, _, _ = train(node, loaded, subject, lora(), 1, start_from=plain, clip=clip)
    for first in (over, embedding):
        (combined,) = node("Combine", first=first, second=plain)
        with pytest.raises(ValueError, match=r"clip.*start_from"):
            train(node, loaded, subject, lora(), 1, start_from=combined)
        further, _, _ = train(node, loaded, subject, lora(), 1, start_from=combined, clip=clip)
        ends = zip(further.adapters[-1].parameters(), from_plain.adapters[-1].parameters(), strict=True)
        assert len(further.adapters) == len(combined.adapters) and any(not torch.equal(a, b) for a, b in ends)


def test_an_embedding_file_is_refused_with_its_use(node: Any, output_folder: Path) -> None:
    adapter = AdapterStack((), {}, (LearnedEmbedding(TOKEN, {"clip_l": torch.zeros(1, 768)}),))
    (path,) = node("Save", adapter=adapter, filename_prefix="loras/a", format="comfyui", precision="float32")
    with pytest.raises(ValueError, match=r"models/embeddings.*embedding:a_00001_"):
        load_adapter(output_folder / path)
