"""Runs of Textual Inversion that stop, resume or fail; and models with several text encoders."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import comfy.sd
import pytest
import torch
from helpers.reports import resumed_at
from helpers.training import QUIET, embeddings_in_output_folder_only, interrupted_at, train, untouched
from hyperbooth.models.files.adapter_file import load_adapter
from hyperbooth.models.textual_inversion.embeddings import FAMILY, TextualInversionConfig
from hyperbooth.trainers.config import Method
from hyperbooth.trainers.engine.divergence import Diverged
from torch import Tensor

from tools.comfy_harness.tiny_checkpoints import FAMILIES, write

TOKEN = "sks-dog"


def inversion(vectors: int = 1, learning_rate: float = 0.05) -> Method:
    return Method(
        family=FAMILY,
        config=TextualInversionConfig(token=TOKEN, initializer_word="dog", vectors=vectors),
        learning_rate=learning_rate,
    )


def made(node: Any, clip: Any, vae: Any, prompt: str = f"a photo of {TOKEN}") -> Any:
    (subject,) = node(
        "Subject", images=[torch.rand(2, 64, 64, 3, generator=torch.Generator().manual_seed(0))], vae=[vae],
        clip=[clip], prompt=[prompt], resolution=[64], bucket=[True], flip=[False],
    )  # fmt: skip
    return subject


@pytest.fixture(scope="module")
def loaded(quick: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
    return quick


def test_a_cancelled_and_resumed_run_gives_the_same_embedding(node: Any, loaded: Any, output_folder: Path) -> None:
    subject = made(node, *loaded[1:])
    options = replace(QUIET, checkpoint_every=2, caption_dropout=0.3, ema_decay=0.9)
    inputs = {"clip": loaded[1], "options": options}
    whole, losses, _ = train(node, loaded, subject, inversion(2), 8, **inputs, resume="start over")
    (state,) = (output_folder / "hyperbooth_states").iterdir()
    state.unlink()
    with untouched(*loaded[:2]), interrupted_at(3):
        train(node, loaded, subject, inversion(2), 8, **inputs)
    again, losses_again, report = train(node, loaded, subject, inversion(2), 8, **inputs)
    assert whole.embeddings[0].equals(again.embeddings[0]) and losses == losses_again
    assert resumed_at(report) > 0 == resumed_at(train(node, loaded, subject, inversion(1), 1, **inputs)[2])


def test_an_error_in_the_middle_leaves_everything_alone(node: Any, loaded: Any) -> None:
    from hyperbooth.nodes.bridge.progress import Progress

    before = Progress.__call__

    def failing(self: Any, done: int, total: int, picture: Any = None) -> None:
        if done == 2:
            raise RuntimeError("a failure in the middle")
        before(self, done, total, picture)

    subject, tokenizer = made(node, *loaded[1:]), loaded[1].tokenizer
    with untouched(*loaded[:2]), pytest.MonkeyPatch.context() as patch:
        patch.setattr(Progress, "__call__", failing)
        with pytest.raises(RuntimeError, match="in the middle"):
            train(node, loaded, subject, inversion(), 4, clip=loaded[1])
    assert loaded[1].tokenizer is tokenizer


@pytest.mark.all_noise_levels
def test_a_run_that_meets_its_limit_goes_on_with_less(node: Any, loaded: Any) -> None:
    """Memory runs out in the second step of a batch of two; in micro-batches, the embedding is the same."""
    from hyperbooth.nodes.bridge.text import conditioning

    subject, encode, calls = made(node, *loaded[1:]), conditioning.encode_prompt_with_gradient, 0
    plain, _, _ = train(node, loaded, subject, inversion(), 2, clip=loaded[1], batch_size=2, resume="start over")

    def short(clip: Any, prompt: str) -> Any:
        nonlocal calls
        calls += 1
        if calls == 8:
            raise torch.OutOfMemoryError("a full device")
        return encode(clip, prompt)

    with untouched(*loaded[:2]), pytest.MonkeyPatch.context() as patch:
        patch.setattr(conditioning, "encode_prompt_with_gradient", short)
        split, _, report = train(
            node, loaded, subject, inversion(), 2, clip=loaded[1], batch_size=2, resume="start over"
        )
    assert "micro-batches of 1" in report
    assert torch.allclose(split.embeddings[0].vectors["clip_l"], plain.embeddings[0].vectors["clip_l"], atol=1e-4)


@pytest.mark.all_noise_levels
def test_a_diverged_run_saves_the_last_good_embedding(node: Any, loaded: Any, output_folder: Path) -> None:
    """The loss is NaN in the second step; the embedding after the first is saved where Load finds it."""
    from hyperbooth.nodes.bridge.text import conditioning
    from hyperbooth.trainers.engine import loop

    subject, encode, calls = made(node, *loaded[1:]), conditioning.encode_prompt_with_gradient, 0
    first, _, _ = train(node, loaded, subject, inversion(), 1, clip=loaded[1])

    def ruined(clip: Any, prompt: str) -> Any:
        nonlocal calls
        calls += 1
        cond = encode(clip, prompt)
        if calls == 11:  # one measures, four check, one is the first step, four check again
            cond[0][0] = cond[0][0] * torch.nan
        return cond

    with untouched(*loaded[:2]), pytest.MonkeyPatch.context() as patch:
        patch.setattr(conditioning, "encode_prompt_with_gradient", ruined)
        patch.setattr(loop, "is_due", lambda step, steps: True)
        with pytest.raises(Diverged, match=r"\bloss\b.*\bnan\b.*\bstep 2\b.*\bstep 1\b.*\.safetensors"):
            train(node, loaded, subject, inversion(), 4, clip=loaded[1], resume="start over")
    (path,) = (output_folder / "loras").glob("*.safetensors")
    assert load_adapter(path).embeddings[0].equals(first.embeddings[0])


ENCODERS = {
    "sdxl": {"clip_l": 768, "clip_g": 1280},
    "sd2": {"clip_h": 1024},
    "flux": {"clip_l": 768, "t5xxl": 128},
}


@pytest.mark.parametrize("name", ENCODERS)
def test_every_text_encoder_gets_its_own_vectors(
    node: Any, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = embeddings_in_output_folder_only(monkeypatch)
    path = write(tmp_path / f"{name}.safetensors", FAMILIES[name])
    with torch.inference_mode():
        model, clip, vae, _ = comfy.sd.load_checkpoint_guess_config(
            str(path), te_model_options=dict(FAMILIES[name].text_options), embedding_directory=folders
        )
    subject = made(node, clip, vae)
    if "t5xxl" in ENCODERS[name]:
        nothing = Method(
            family=FAMILY, config=TextualInversionConfig(token=TOKEN, initializer_word="\u200b"), learning_rate=0.1
        )
        with pytest.raises(ValueError, match=r"^initializer_word '\\u200b' .*t5xxl"):
            train(node, (model,), subject, nothing, 1, clip=clip)
    with untouched(model, clip):
        start, _, _ = train(node, (model,), subject, inversion(2, 0.0), 1, clip=clip)
        adapter, _, _ = train(node, (model,), subject, inversion(2), 3, clip=clip)
    (first,), (word,) = start.embeddings, adapter.embeddings
    assert {key: v.shape[1] for key, v in word.vectors.items()} == ENCODERS[name]
    for key, vectors in word.vectors.items():
        assert not torch.equal(vectors, first.vectors[key]), key
    (saved,) = node("Save", adapter=adapter, filename_prefix="embeddings/a", format="comfyui", precision="float32")
    _, ours = node("Apply", model=model, adapter=adapter, strength_model=1.0, clip=clip)
    mine, theirs = encoded(ours, f"a embedding:{TOKEN} dog"), encoded(clip, f"a embedding:{Path(saved).stem} dog")
    assert all((a - b).norm() <= 1e-6 * b.norm() for a, b in zip(mine, theirs, strict=True))
    assert not torch.equal(mine[0], encoded(clip, "a dog")[0])


def encoded(clip: Any, prompt: str) -> list[Tensor]:
    with torch.inference_mode():
        ((cond, extra),) = clip.encode_from_tokens_scheduled(clip.tokenize(prompt))
    return [cond.clone(), extra["pooled_output"].clone()]
