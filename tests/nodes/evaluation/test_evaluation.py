"""The scoring nodes give the scores of transformers called directly on the same pixels."""

import csv
import math
import re
from pathlib import Path
from typing import Any

import comfy.model_management
import numpy as np
import pytest
import torch
from helpers.reports import figures, line_of, mentions
from helpers.training import small_vision
from PIL import Image
from torch import Tensor

from tools.comfy_harness.tiny_encoders import write_dino

PROMPT = "a photo of a dog on a beach"


pytestmark = pytest.mark.usefixtures("models")


def files(batches: list[Tensor]) -> list[Image.Image]:
    """Return the images as they would be read from files."""
    return [Image.fromarray((p.numpy() * 255).round().astype(np.uint8)) for batch in batches for p in batch]


@torch.no_grad()
def by_hand(folder: Path, pictures: list[Image.Image]) -> Tensor:
    """Return normalized embeddings in float64, each image embedded by itself."""
    from transformers import AutoImageProcessor, AutoModel

    model, processor = AutoModel.from_pretrained(folder).eval(), AutoImageProcessor.from_pretrained(folder)
    rows = []
    for picture in pictures:
        if model.config.model_type == "vit":  # whose processor would squash it
            side = round(min(picture.size) * 224 / 256)
            left, top = (picture.width - side) // 2, (picture.height - side) // 2
            picture = picture.crop((left, top, left + side, top + side))
        pixels = processor(images=picture, return_tensors="pt")["pixel_values"]
        if hasattr(model, "visual_projection"):
            rows.append(model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)[0])
        else:
            rows.append(model(pixel_values=pixels).last_hidden_state[0, 0])
    made = torch.stack(rows).double()
    return made / made.norm(dim=1, keepdim=True)


def only_pairs(a: Tensor) -> float:
    return float(np.mean([float(a[i] @ a[j]) for i in range(len(a)) for j in range(len(a)) if i != j]))


@pytest.mark.parametrize("dino", ["small-dino", "small-dinov2"])
def test_subject_fidelity_is_the_papers(
    node: Any, models: Path, samples: list[Tensor], references: list[Tensor], dino: str
) -> None:
    found, clip_i, report = node(
        "SubjectFidelity", images=samples, references=references, dino=[dino], clip=["small-clip"]
    )
    for value, folder in ((found, models / "dino" / dino), (clip_i, models / "clip_score" / "small-clip")):
        own, real = by_hand(folder, files(samples)), by_hand(folder, files(references))
        assert value == pytest.approx((own @ real.T).mean().item(), abs=1e-5)
        assert f"{only_pairs(real):.4f}" in figures(report) and folder.name in report


@torch.no_grad()
def test_prompt_fidelity_is_the_papers(node: Any, models: Path, samples: list[Tensor]) -> None:
    from transformers import AutoTokenizer, CLIPModel

    clip_t, report = node("PromptFidelity", images=samples, prompt=[PROMPT], clip=["small-clip"])
    folder = models / "clip_score" / "small-clip"
    model = CLIPModel.from_pretrained(folder).eval()
    tokens = AutoTokenizer.from_pretrained(folder)([PROMPT], return_tensors="pt")
    text = model.text_projection(model.text_model(**tokens).pooler_output).double()
    expected = (by_hand(folder, files(samples)) @ (text / text.norm()).T).mean().item()
    assert clip_t == pytest.approx(expected, abs=1e-5) and "small-clip" in report
    _, long = node("PromptFidelity", images=samples, prompt=["very " * 90 + PROMPT], clip=["small-clip"])
    assert ["truncated" in text for text in (report, long)] == [False, True]


def test_prior_and_diversity_are_the_papers(
    node: Any, models: Path, samples: list[Tensor], references: list[Tensor]
) -> None:
    inputs = {"class_samples": samples, "references": references, "dino": ["small-dino"]}
    pres, div, report = node("PriorScore", **inputs, images=samples)
    own, real = (by_hand(models / "dino" / "small-dino", files(b)) for b in (samples, references))
    assert pres == pytest.approx((own @ real.T).mean().item(), abs=1e-5)
    assert div == pytest.approx(1 - only_pairs(own), abs=1e-5)
    assert re.search(rf"\blower\b.*\b{only_pairs(real):.4f}\b", line_of(report, "PRES"))
    _, none, report = node("PriorScore", **inputs)
    assert math.isnan(none) and figures(line_of(report, "DIV")) == []


def test_half_precision_changes_scores_by_its_rounding_alone(
    node: Any, models: Path, samples: list[Tensor], references: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The encoders run in half precision, as on a GPU."""

    def scores() -> list[float]:
        pictures = {"images": samples, "references": references}
        return [
            *node("SubjectFidelity", **pictures, dino=["small-dino"], clip=["small-clip"])[:2],
            node("PromptFidelity", images=samples, prompt=[PROMPT], clip=["small-clip"])[0],
        ]

    exact = scores()
    comfy.model_management.unload_all_models()
    monkeypatch.setattr("comfy.model_management.should_use_fp16", lambda *_: True)
    halved = scores()
    comfy.model_management.unload_all_models()
    assert halved != exact and halved == pytest.approx(exact, abs=2e-3)


def test_a_clip_vision_serves_instead(node: Any, samples: list[Tensor], references: list[Tensor]) -> None:
    vision = small_vision()
    dino, clip_i, report = node(
        "SubjectFidelity", images=samples, references=references, dino=["none"], clip=["none"], clip_vision=[vision]
    )
    with torch.inference_mode():
        own, real = (
            torch.cat([vision.encode_image(p[None]).image_embeds for batch in b for p in batch]).double()
            for b in (samples, references)
        )
    own, real = (e / e.norm(dim=1, keepdim=True) for e in (own, real))
    assert math.isnan(dino) and clip_i == pytest.approx((own @ real.T).mean().item(), abs=1e-5)
    assert figures(line_of(report, "DINO")) == []
    assert "CLIP_VISION (clip_vision_model, width 32, patches of 8)" in report


def test_the_report_ranks_the_adapters_by_each_score(
    node: Any, output_folder: Path, samples: list[Tensor], references: list[Tensor]
) -> None:
    sheet, report, path = node(
        "CompareSheet", images=[references[0], samples[0]], labels=["copies\nnoise"], references=references,
        prompt=[PROMPT], dino=["small-dino"], clip=["small-clip"], filename_prefix=["scores/test"],
    )  # fmt: skip
    for score in ("DINO", "CLIP-I", "DIV"):  # the best one is named before all are listed
        line = line_of(report, f"{score}:")
        assert score == "DIV" or (mentions(line, "copies"), mentions(line, "noise")) == (2, 1), line
    assert sheet.ndim == 4 and sheet.shape[2] > 2 * 256
    rows = list(csv.DictReader((output_folder / path).open()))
    assert [row["name"] for row in rows] == ["copies", "noise"]
    dino, _, _ = node("SubjectFidelity", images=[samples[0]], references=references, dino=["small-dino"], clip=["none"])
    assert float(rows[1]["DINO"]) == pytest.approx(dino, abs=1e-6)
    assert rows[0]["DINO encoder"].startswith("small-dino (vit, width ") and path in report


def test_one_reference_has_no_ceiling(node: Any, samples: list[Tensor]) -> None:
    subject = {"images": samples, "references": [samples[1]], "dino": ["small-dino"], "clip": ["none"]}
    one = node("SubjectFidelity", **subject)[2]
    three = node("SubjectFidelity", **{**subject, "references": samples})[2]
    assert [len(figures(line_of(report, "DINO "))) for report in (three, one)] == [4, 3], (
        "score, ceiling, width, patches"
    )


def test_wrong_input_is_named(node: Any, models: Path, samples: list[Tensor], references: list[Tensor]) -> None:
    subject = {"images": samples, "references": references}
    with pytest.raises(ValueError, match=r"encoder.*config\.json.*facebook/dinov2-base"):
        node("SubjectFidelity", **subject, dino=["none"], clip=["none"])
    with pytest.raises(ValueError, match=r"encoder 'gone'"):
        node("SubjectFidelity", **subject, dino=["gone"], clip=["none"])
    with pytest.raises(ValueError, match=r"encoder '\.\./dino'"):
        node("SubjectFidelity", **subject, dino=["../dino"], clip=["none"])
    with pytest.raises(ValueError, match=r"^prompt .*empty"):
        node("PromptFidelity", images=samples, prompt=["  "], clip=["small-clip"])
    with pytest.raises(ValueError, match=r"^images .*\b1\b.*\b2\b"):
        node("PriorScore", class_samples=samples, references=references, images=[samples[1]], dino=["small-dino"])
    with pytest.raises(ValueError, match=r"^labels .*\b1\b.*\bone\b.*\bimages\b.*\b2 batches\b.*Create List"):
        node(
            "CompareSheet", images=samples, labels=["one"], references=references, prompt=[PROMPT],
            dino=["small-dino"], clip=["none"], filename_prefix=["x"],
        )  # fmt: skip


def test_files_that_are_missing_or_pickled_are_named(node: Any, models: Path, samples: list[Tensor]) -> None:
    broken = write_dino(models / "dino" / "broken")
    subject = {"images": samples, "references": samples, "dino": ["broken"], "clip": ["none"]}
    (broken / "preprocessor_config.json").unlink()
    with pytest.raises(ValueError, match=r"broken .*preprocessor_config\.json"):
        node("SubjectFidelity", **subject)
    write_dino(broken)
    (broken / "model.safetensors").rename(broken / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin.*pickled"):
        node("SubjectFidelity", **subject)
    write_dino(broken)
    (broken / "model.safetensors").write_bytes(b"not a file")
    with pytest.raises(ValueError, match=r"\bbroken\b.*\bheader\b"):
        node("SubjectFidelity", **subject)
    (broken / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"\bbroken/config\.json\b.*'model_type'"):
        node("SubjectFidelity", **subject)
    with pytest.raises(ValueError, match=r"'vit'.*\bclip"):
        from hyperbooth.models.metrics.encoders import CLIP, load_encoder

        load_encoder(models / "dino" / "small-dino", CLIP, with_texts=False)
