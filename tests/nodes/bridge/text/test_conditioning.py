"""SDXL's size conditioning per sample against its formula, and the cache of conditionings."""

import math
from typing import Any

import comfy.model_base
import comfy.supported_models
import pytest
import torch
from hyperbooth.nodes.bridge.text import conditioning as module
from hyperbooth.nodes.bridge.text.conditioning import ComfyTextConditioning, encode_prompt
from hyperbooth.trainers.data.dataset import Example, Frame
from torch import Tensor

CPU = torch.device("cpu")
PROMPTS = ("a photo of sks dog", "a photo of a dog")
FRAMES = (Frame(640, 480, 13, 0, 64, 64), Frame(3000, 2000, 0, 7, 64, 64))


@pytest.fixture(scope="module")
def sdxl() -> Any:
    """Return ComfyUI's SDXL without its U-Net, which conditioning does not need."""
    config = comfy.supported_models.SDXL({"disable_unet_model_creation": True})
    return comfy.model_base.SDXL(config, comfy.model_base.ModelType.EPS)


def embedding(value: float) -> Tensor:
    """Return 256 values: cos, then sin, of value * 10000^(-i / 128) (2307.01952: the timestep's encoding)."""
    angles = [value * 10000 ** (-i / 128) for i in range(128)]
    return torch.tensor([math.cos(angle) for angle in angles] + [math.sin(angle) for angle in angles])


def vector(pooled: Tensor, frame: Frame) -> Tensor:
    """Return the text's pooled vector and the embedded height, width, top, left, target height and target width."""
    sizes = (frame.height, frame.width, frame.crop_h, frame.crop_w, frame.target_height, frame.target_width)
    return torch.cat([pooled.flatten(), *map(embedding, sizes)])


def example(cond: Any, prompt: str, frame: Frame | None) -> Example:
    return Example(torch.zeros(1, 4, 8, 8), cond, prompt, frames=(frame,) if frame else None)


def close(given: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(given.float(), expected, atol=2e-3, rtol=0)


@pytest.fixture(scope="module")
def conds(loaded: Any) -> list[Any]:
    with torch.inference_mode():
        return [encode_prompt(loaded[1], prompt) for prompt in PROMPTS]


@pytest.mark.parametrize("text_encoder_trains", [False, True])
def test_each_sample_has_the_vector_of_its_own_frame(
    sdxl: Any, loaded: Any, conds: Any, text_encoder_trains: bool
) -> None:
    conditions = ComfyTextConditioning(sdxl, CPU, loaded[1] if text_encoder_trains else None)
    batch = [example(*parts) for parts in zip(conds, PROMPTS, FRAMES, strict=True)]
    y = conditions.condition(batch)["y"]
    assert len(y) == 2
    for row, cond, frame in zip(y, conds, FRAMES, strict=True):
        close(row, vector(cond[0][1]["pooled_output"], frame))


def test_without_a_frame_the_size_is_the_latents(sdxl: Any, conds: Any) -> None:
    conditions = ComfyTextConditioning(sdxl, CPU)
    own = vector(conds[0][0][1]["pooled_output"], Frame(64, 64, 0, 0, 64, 64))
    close(conditions.condition([example(conds[0], "p", None)])["y"][0], own)
    close(conditions.arguments(conds[0], (4, 8, 8))["y"][0], own)
    framed = example(conds[0], "p", FRAMES[0])
    close(conditions.condition([framed.unframed()])["y"][0], own)


def test_sizes_that_a_conditioning_carries_itself_are_kept(sdxl: Any, conds: Any) -> None:
    text, extra = conds[0][0]
    sizes = {"width": 900, "height": 700, "crop_w": 5, "crop_h": 6, "target_width": 1024, "target_height": 1000}
    carrying = [[text, {**extra, **sizes}]]
    y = ComfyTextConditioning(sdxl, CPU).condition([example(carrying, "p", None)])["y"]
    close(y[0], vector(extra["pooled_output"], Frame(**sizes)))


def test_two_hundred_frames_of_one_text_share_its_tensors_in_the_cache(sdxl: Any, conds: Any) -> None:
    conditions = ComfyTextConditioning(sdxl, CPU)
    kept = [conditions.cached(conds[0], (4, 8, 8), Frame(500 + i, 600, i, 0, 64, 64)) for i in range(200)]
    assert len({entry["c_crossattn"].cond.data_ptr() for entry in kept}) == 1
    assert len({entry["y"].cond.data_ptr() for entry in kept}) == 200
    assert not kept[0]["c_crossattn"].cond.is_inference()


def test_texts_that_cannot_be_batched_are_refused_for_several_subjects(loaded: Any) -> None:
    """SD1.5 concatenates a text of one part of 77 tokens with one of two parts, but not with one of five."""
    texts = ["a face", "a very " + " ".join(["long"] * 80) + " face", "a " + " ".join(["longer"] * 340) + " face"]
    with torch.inference_mode():
        one, two, five = (example(encode_prompt(loaded[1], text), text, None) for text in texts)
    conditions = ComfyTextConditioning(loaded[0].model, CPU)
    assert conditions.condition_per_subject([one, two])["c_crossattn"].shape[:2] == (2, 154)
    assert conditions.condition_per_subject([five])["c_crossattn"].shape[:2] == (1, 385)
    with pytest.raises(ValueError, match=r"captions.*'a face' .*'a longer"):
        conditions.condition_per_subject([one, five])


def test_the_least_recently_used_texts_leave_the_cache(sdxl: Any, loaded: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Conditions that are made again are the same."""
    with torch.inference_mode():
        texts = [encode_prompt(loaded[1], f"face {number}") for number in range(5)]
    whole, few, size = ComfyTextConditioning(sdxl, CPU), ComfyTextConditioning(sdxl, CPU), (4, 8, 8)
    first = [whole.cached(text, size) for text in texts]
    one = sum(tensor.nbytes for tensor in (texts[0][0][0], texts[0][0][1]["pooled_output"]))
    monkeypatch.setattr(module, "CACHE_BYTES", 3 * one)
    made = [few.cached(text, size) for text in texts]
    assert few.cached(texts[2], size) is made[2] and whole.cached(texts[0], size) is first[0]
    assert few.cached(texts[0], size) is not made[0] and few.cached(texts[2], size) is made[2]
    for name, value in few.cached(texts[0], size).items():
        assert torch.equal(value.cond, first[0][name].cond)
    monkeypatch.setattr(module, "CACHE_BYTES", 0)
    assert few.cached(texts[3], size) is few.cached(texts[3], size)


def test_a_model_without_size_conditioning_ignores_frames(loaded: Any, conds: Any) -> None:
    conditions = ComfyTextConditioning(loaded[0].model, CPU)
    framed, plain = (conditions.condition([example(conds[0], "p", frame)]) for frame in (FRAMES[0], None))
    assert framed.keys() == plain.keys()
    assert framed["c_crossattn"] is plain["c_crossattn"]
