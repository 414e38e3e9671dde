"""Learnt words in the prompts of training: the real tokenizers find every word that counts as named."""

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
    """CLIP and T5."""
    return family("flux", tmp_path_factory.mktemp("flux"))


def made(node: Any, clip: Any, vae: Any, prompt: str) -> Any:
    (subject,) = node(
        "Subject", images=[torch.rand(2, 64, 64, 3, generator=torch.Generator().manual_seed(0))], vae=[vae],
        clip=[clip], prompt=[prompt], resolution=[64], bucket=[True], flip=[False],
    )  # fmt: skip
    return subject


def inversion() -> Method:
    return Method(FAMILY, TextualInversionConfig(TOKEN, "dog", 2), learning_rate=0.05)


BEFORE = ("", "a ", "a,", "(", "((", "\\(", ":) (", "<", "[", '"', "'", ":", ".", "(a)", "a\n", "é,", "embedding:")
AFTER = (
    "", " b", ",", ",b", ", b", ",, b", ":", ": b", ":1.2", ".", ". b", ")", ",b:1.2)", ":1.2)", "))", "\\)", "!", "?",
    ";b", "'s fur", "<", "[b]", "\n", "\u00a0b", "\u200bb", '"', f",{TOKEN}", f" ({TOKEN}:0.5)", "|b", "+",
)  # fmt: skip


def test_every_prompt_that_names_the_word_gets_its_vectors(flux: Any) -> None:
    _, clip, _ = flux
    word = LearnedEmbedding(TOKEN, {"clip_l": torch.randn(2, 768), "t5xxl": torch.randn(2, 128)})
    knowing = with_embeddings(clip, [word])
    for prompt in (f"{before}{TOKEN}{after}" for before in BEFORE for after in AFTER):
        assert mentions_token(prompt, TOKEN), prompt
        tokens = knowing.tokenize(expand_placeholders(prompt, [TOKEN]))
        for encoder, key in (("l", "clip_l"), ("t5xxl", "t5xxl")):
            rows = [t for batch in tokens[encoder] for t, *_ in batch if isinstance(t, Tensor)]
            assert len(rows) == 2 * prompt.count(TOKEN), (prompt, encoder)
            assert torch.equal(torch.stack(rows[:2]), word.vectors[key]), (prompt, encoder)


def test_a_weight_stays_one_and_the_rest_of_the_prompt_stays(flux: Any) -> None:
    _, clip, _ = flux
    word = LearnedEmbedding("dog", {"clip_l": torch.randn(1, 768), "t5xxl": torch.randn(1, 128)})
    knowing = with_embeddings(clip, [word])
    for prompt in ("a (dog:1.3) here", "(dog,beach:1.2)", "dog: a portrait", "dog,outdoors", "(dog) b"):
        plain, ours = clip.tokenize(prompt), knowing.tokenize(expand_placeholders(prompt, ["dog"]))
        kept = [[None if isinstance(t, Tensor) else t, w] for t, w in ours["l"][0]]
        (dog,) = clip.tokenizer.clip_l.tokenizer("dog")["input_ids"][1:-1]
        assert kept == [[None if t == dog else t, w] for t, w in plain["l"][0]], prompt


def test_a_prompt_in_which_the_word_is_not_found_is_refused(
    node: Any, loaded: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under a tokenizer that looks no words up, as some of other makes do not."""
    model, clip, vae = loaded
    subject = made(node, clip, vae, f"a photo of {TOKEN}")
    monkeypatch.setattr(clip.tokenizer.clip_l, "embedding_identifier", "other:")
    with pytest.raises(ValueError, match=r"'a photo of sks-dog' names 'sks-dog', but the tokenizer of clip_l does not"):
        train(node, (model,), subject, inversion(), 1, clip=clip)


def test_a_model_that_lacks_an_encoder_needs_no_vectors_for_it(node: Any, tmp_path: Path) -> None:
    """SD3 has tokenizers for three encoders, however many are loaded."""
    model, clip, vae = family("sd3", tmp_path)
    subject = made(node, clip, vae, f"a photo of {TOKEN}")
    adapter, _, _ = train(node, (model,), subject, inversion(), 1, clip=clip)
    held = set(adapter.embeddings[0].vectors)
    assert held and held < {"clip_l", "clip_g", "t5xxl"}
    _, knowing = node("Apply", model=model, adapter=adapter, strength_model=1.0, clip=clip)
    rows = [t for t, _ in knowing.tokenize(f"a embedding:{TOKEN}")["l"][0] if isinstance(t, Tensor)]
    assert torch.equal(torch.stack(rows), adapter.embeddings[0].vectors["clip_l"])


def test_going_on_over_text_encoder_layers_or_words_encodes_anew(node: Any, loaded: Any) -> None:
    """The method trains no text encoder, but an earlier link changes it; and a word of start_from is heard."""
    _, clip, vae = loaded
    subject = made(node, clip, vae, f"a photo of {TOKEN}")
    over, _, _ = train(node, loaded, subject, lora(text_encoder=True, learning_rate=3e-3), 2, clip=clip)
    plain, _, _ = train(node, loaded, subject, lora(), 1)
    word, _, _ = train(node, loaded, subject, inversion(), 1, clip=clip)
    from_plain, _, _ = train(node, loaded, subject, lora(), 1, start_from=plain, clip=clip)
    for first in (over, word):
        (both,) = node("Combine", first=first, second=plain)
        with pytest.raises(ValueError, match="clip is not connected, but start_from holds text-encoder layers or a"):
            train(node, loaded, subject, lora(), 1, start_from=both)
        further, _, _ = train(node, loaded, subject, lora(), 1, start_from=both, clip=clip)
        ends = zip(further.adapters[-1].parameters(), from_plain.adapters[-1].parameters(), strict=True)
        assert len(further.adapters) == len(both.adapters) and any(not torch.equal(a, b) for a, b in ends)


def test_load_says_what_an_embedding_file_is(node: Any, output_folder: Path) -> None:
    word = AdapterStack((), {}, (LearnedEmbedding(TOKEN, {"clip_l": torch.zeros(1, 768)}),))
    (path,) = node("Save", adapter=word, filename_prefix="loras/a", format="comfyui", precision="float32")
    with pytest.raises(ValueError, match=r"is an embedding file.*models/embeddings and write embedding:a_00001_ in"):
        load_adapter(output_folder / path)
