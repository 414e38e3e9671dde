"""Images, labels and encoders of every kind are scored, or refused by their names."""

import csv
import gc
import os
import re
import weakref
from pathlib import Path
from typing import Any

import comfy.model_management
import pytest
import torch
from comfy.clip_model import clip_preprocess
from comfy.clip_vision import ClipVisionModel
from helpers.reports import line_of, mentions
from helpers.training import small_vision
from hyperbooth.nodes.bridge.images import metric_encoders
from hyperbooth.nodes.bridge.images.clip_vision import BATCH_SIZE, image_tokens
from torch import Tensor

from tools.comfy_harness.call_node import node_classes
from tools.comfy_harness.tiny_encoders import write_clip, write_dino

PROMPT = "a photo of a dog on a beach"
pytestmark = pytest.mark.usefixtures("models")


def test_encoders_of_one_name_are_two(node: Any, models: Path, samples: list[Tensor], references: list[Tensor]) -> None:
    write_dino(models / "dino" / "base"), write_clip(models / "clip_score" / "base")
    subject = {"images": samples, "references": references}
    both = node("SubjectFidelity", **subject, dino=["base"], clip=["base"])[:2]
    alone = node("SubjectFidelity", **subject, dino=["none"], clip=["base"])[1]
    assert both[1] == alone != both[0]


def test_the_sheet_ranks_what_was_measured(
    node: Any, output_folder: Path, samples: list[Tensor], references: list[Tensor]
) -> None:
    inputs = {"references": references, "prompt": [PROMPT], "filename_prefix": ["x"], "clip": ["none"]}
    inputs |= {"dino": ["small-dino"], "labels": ["one\ntwo\nthree"]}
    three = [samples[1], samples[0], references[0]]
    for batches in (three, three[1:] + three[:1]):  # one sample makes no pair: no DIV, whichever it is
        _, report, path = node("CompareSheet", images=batches, **inputs)
        line, single = line_of(report, "DIV:"), "one" if batches is three else "three"
        named = {name: mentions(line, name) for name in ("one", "two", "three")}
        assert named[single] == 1 and sorted(named.values()) == [1, 1, 2], "the best one is named twice"
        assert len(re.findall(r"\b0\.\d{4}\b", line)) == 2 and "nan" not in line
        cells = {row["name"]: row["DIV"] for row in csv.DictReader((output_folder / path).open())}
        assert [name for name, cell in cells.items() if not cell] == [single]


def test_the_sheet_names_no_best_where_there_is_none(
    node: Any, samples: list[Tensor], references: list[Tensor]
) -> None:
    inputs = {"references": references, "prompt": [PROMPT], "filename_prefix": ["x"], "clip": ["none"]}
    inputs |= {"dino": ["small-dino"]}
    _, alone, _ = node("CompareSheet", images=samples[:1], labels=["alone"], **inputs)
    assert mentions(line_of(alone, "DINO:"), "alone") == 1
    _, equal, _ = node("CompareSheet", images=[samples[0], samples[0].clone()], labels=["left\nright"], **inputs)
    assert [mentions(line_of(equal, "DINO:"), name) for name in ("left", "right")] == [1, 1]


def test_labels_are_unique_and_printable(
    node: Any, output_folder: Path, samples: list[Tensor], references: list[Tensor]
) -> None:
    inputs = {"images": samples, "references": references, "prompt": [PROMPT], "filename_prefix": ["x"]}
    inputs |= {"dino": ["small-dino"], "clip": ["none"]}
    with pytest.raises(ValueError, match=r"^labels .*'a' twice"):
        node("CompareSheet", labels=["a\na"], **inputs)
    with pytest.raises(ValueError, match=r"^labels .*a\\ud800"):
        node("CompareSheet", labels=["a\ud800\nb"], **inputs)
    for given, kept in (("=1+1\n@b", ["'=1+1", "'@b"]), ("a;=1+1\n\uff1db", ["a;=1+1", "'\uff1db"])):
        _, _, path = node("CompareSheet", labels=[given], **inputs)
        text = (output_folder / path).read_text()
        assert [row["name"] for row in csv.DictReader(text.splitlines())] == kept  # else a table program computes them
        assert all(line.startswith('"') and line.endswith('"') for line in text.splitlines())


def test_samples_of_several_prompts_count_image_by_image(
    node: Any, output_folder: Path, samples: list[Tensor], references: list[Tensor]
) -> None:
    """Batches go adapter by adapter, in the order of the prompts; DIV is the mean over prompts with two samples."""
    inputs = {"references": references, "dino": ["small-dino"], "clip": ["small-clip"], "filename_prefix": ["x"]}
    two, one = samples
    prompts = [PROMPT, "a dog at night"]
    many = [two, one, references[0], one]
    sheet, report, path = node("CompareSheet", images=many, labels=["a\nb"], prompt=prompts, **inputs)
    rows = list(csv.DictReader((output_folder / path).open()))
    apart = [
        node("PromptFidelity", images=[i], prompt=[p], clip=["small-clip"])[0]
        for i, p in zip(samples, prompts, strict=True)
    ]
    together = node("SubjectFidelity", images=samples, references=references, dino=["small-dino"], clip=["small-clip"])
    alone = node("CompareSheet", images=[two], labels=["a"], prompt=[PROMPT], **inputs)[2]
    assert float(rows[0]["CLIP-T"]) == pytest.approx((2 * apart[0] + apart[1]) / 3, abs=1e-6)
    assert [float(rows[0][name]) for name in ("DINO", "CLIP-I")] == pytest.approx(together[:2], abs=1e-6)
    assert rows[0]["DIV"] == next(csv.DictReader((output_folder / alone).open()))["DIV"]
    assert sheet.shape[2] < 3 * 256 < 5 * 256 < sheet.shape[1] and "CLIP-T: " in report
    with pytest.raises(ValueError, match=r"^images .*3 batches.*2 prompts"):
        node("CompareSheet", images=many[:3], labels=["a\nb"], prompt=prompts, **inputs)
    with pytest.raises(ValueError, match=r"^labels .*1 \(a\).*images .*2 batches.*2 prompts"):
        node("CompareSheet", images=many, labels=["a"], prompt=prompts, **inputs)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.full((1, 40, 40, 3), torch.nan), r"^images\b.*\bimage 4\b.*\bNaN\b"),
        (torch.zeros(1, 40, 40, 2), r"^images\b.*\bimage 4\b.*\b2 channels\b"),
        (torch.zeros(1, 0, 40, 3), r"^images\b.*\bimage 4\b.*\b40 x 0\b"),
    ],
)
def test_images_that_cannot_be_scored_are_named(
    node: Any, samples: list[Tensor], references: list[Tensor], image: Tensor, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        node("SubjectFidelity", images=[*samples, image], references=references, dino=["small-dino"], clip=["none"])


def test_gray_images_score_like_rgb_and_alpha_is_ignored(node: Any, references: list[Tensor]) -> None:
    subject = {"references": references, "dino": ["small-dino"], "clip": ["none"]}
    gray = torch.rand(2, 40, 40, 1, generator=torch.Generator().manual_seed(3))
    plain = node("SubjectFidelity", images=[gray.expand(-1, -1, -1, 3)], **subject)[0]
    assert node("SubjectFidelity", images=[gray], **subject)[0] == plain
    with_alpha = torch.cat([gray.expand(-1, -1, -1, 3), gray], -1)
    assert node("SubjectFidelity", images=[with_alpha], **subject)[0] == plain


def test_a_folder_is_found_as_it_is_now(
    node: Any, models: Path, samples: list[Tensor], references: list[Tensor]
) -> None:
    subject = {"images": samples, "references": references, "clip": ["none"]}
    folder = write_dino(models / "dino" / "changing")
    before = node("SubjectFidelity", **subject, dino=["changing"])[0]
    (folder / "README.md").symlink_to(folder / "gone")  # as a copied cache of the Hub has them
    assert node("SubjectFidelity", **subject, dino=["changing"])[0] == before
    other, kept = write_dino(models / "other", seed=1) / "model.safetensors", folder / "model.safetensors"
    os.utime(other, (1, 1))  # older than what it replaces
    other.replace(kept)
    assert node("SubjectFidelity", **subject, dino=["changing"])[0] != before


@pytest.mark.parametrize("name", ["", ".", "..", "a\0b", "x" * 400, "small-dino/", "/etc"])
def test_a_name_is_of_a_folder_there(node: Any, samples: list[Tensor], name: str) -> None:
    with pytest.raises(ValueError, match=rf"^dino encoder {re.escape(f'{name!r:.80}')}.*\bmodels/dino\b"):
        node("SubjectFidelity", images=samples, references=samples, dino=[name], clip=["none"])


def test_several_prompts_are_refused_without_advice_for_another_node(node: Any, samples: list[Tensor]) -> None:
    with pytest.raises(ValueError, match=r"^prompt .*2 different values"):
        node("PromptFidelity", images=samples, prompt=["a", "b"], clip=["small-clip"])


def vision_model(kind: str) -> Any:
    """Return a small CLIP_VISION of that kind with random weights."""
    vision = ClipVisionModel({
        "model_type": kind, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2,
        "num_hidden_layers": 2, "hidden_act": "gelu", "num_channels": 3, "image_size": 32, "patch_size": 8,
        "projection_dim": 16, "layer_norm_eps": 1e-6, "use_swiglu_ffn": False, "num_register_tokens": 4,
        "rope_theta": 100.0, "image_mean": [0.5] * 3, "image_std": [0.25] * 3,
    })  # fmt: skip
    with torch.no_grad():
        for number, parameter in enumerate(vision.model.parameters()):
            parameter.normal_(0, 0.2, generator=torch.Generator().manual_seed(number))
    return vision


def test_a_vision_model_of_another_kind_is_refused(node: Any, samples: list[Tensor]) -> None:
    subject = {"images": samples, "references": samples, "dino": ["none"], "clip": ["none"]}
    with pytest.raises(ValueError, match=r"^dino_vision .*clip_vision_model.*DINO"):
        node("SubjectFidelity", **subject, dino_vision=[vision_model("clip_vision_model")])
    with pytest.raises(ValueError, match=r"^clip_vision .*dinov2.*CLIP"):
        node("SubjectFidelity", **subject, clip_vision=[vision_model("dinov2")])


@pytest.mark.parametrize("kind", ["dinov2", "dinov3"])
def test_a_dino_of_the_stock_loader_serves(node: Any, references: list[Tensor], kind: str) -> None:
    """The score takes the class token after the last norm, of more images than one batch holds."""
    vision, pictures = vision_model(kind), torch.rand(BATCH_SIZE + 2, 40, 48, 3)
    dino, _, report = node(
        "SubjectFidelity", images=[pictures], references=references, dino=["none"], clip=["none"],
        dino_vision=[vision],
    )  # fmt: skip
    with torch.inference_mode():
        own, real = (
            vision.model(pixel_values=clip_preprocess(p, 32, [0.5] * 3, [0.25] * 3))[0][:, 0].double()
            for p in (pictures, references[0])
        )
    own, real = (e / e.norm(dim=1, keepdim=True) for e in (own, real))
    assert dino == pytest.approx((own @ real.T).mean().item(), abs=1e-5)
    assert f"CLIP_VISION ({kind}, width 32, patches of 8)" in report
    assert image_tokens(vision, pictures).shape == (BATCH_SIZE + 2, 21 if kind == "dinov3" else 17, 32)


def test_an_encoder_is_unloaded_with_comfyuis_models(node: Any, samples: list[Tensor]) -> None:
    """An encoder stays ready as long as ComfyUI has it loaded; then nothing holds it."""
    subject = {"images": samples, "references": samples, "dino": ["small-dino"], "clip": ["none"]}
    before = node("SubjectFidelity", **subject)[0]
    assert comfy.model_management.current_loaded_models
    opened = [*metric_encoders._OPENED.values()]
    assert node("SubjectFidelity", **subject)[0] == before and [*metric_encoders._OPENED.values()] == opened
    networks = [weakref.ref(one.encoder.network) for one in opened]
    opened.clear()
    comfy.model_management.unload_all_models()
    gc.collect()
    assert not comfy.model_management.current_loaded_models and not [one for one in networks if one() is not None]
    assert node("SubjectFidelity", **subject)[0] == before


@pytest.fixture(scope="module")
def broken(models: Path) -> Path:
    """Return the folder of a CLIP without its tokenizer."""
    folder = write_clip(models / "clip_score" / "broken")
    for name in ("tokenizer.json", "vocab.json"):
        (folder / name).unlink(missing_ok=True)
    return folder


LINKED = (None,)
"""What ComfyUI gives for a linked input before anything has run."""


@pytest.mark.parametrize(
    ("score", "inputs", "said"),
    [
        ("SubjectFidelity", {"dino": ["none"], "clip": ["none"]}, "no encoder"),
        ("SubjectFidelity", {"dino": ["small-dino"], "clip": ["none"]}, True),
        ("SubjectFidelity", {"dino": ["gone"], "clip": ["none"]}, "dino encoder 'gone'"),
        ("SubjectFidelity", {"dino": ["gone"], "clip": ["none"], "dino_vision": LINKED}, True),
        ("SubjectFidelity", {"dino": ["none"], "clip": ["gone"], "dino_vision": LINKED}, "clip_score encoder 'gone'"),
        ("SubjectFidelity", {"dino": LINKED, "clip": LINKED}, True),
        ("SubjectFidelity", {"dino": [3], "clip": [{}]}, "dino encoder 3"),
        ("CompareSheet", {"dino": ["none"], "clip": ["none"]}, "no encoder"),
        ("CompareSheet", {"dino": ["none"], "clip": ["broken"]}, "tokenizer.json"),
        ("PromptFidelity", {"clip": ["none"]}, "no encoder"),
        ("PromptFidelity", {"clip": ["small-clip"]}, True),
        ("PriorScore", {"dino": ["none"]}, "no encoder"),
        ("PriorScore", {"dino": ["none"], "dino_vision": LINKED}, True),
        ("PromptFidelity", {"clip": ["small-clip"], "prompt": [" "]}, "prompt"),
        ("PromptFidelity", {"clip": ["small-clip"], "prompt": LINKED}, True),
        ("CompareSheet", {"dino": ["small-dino"], "clip": ["none"], "prompt": [""]}, True),
        ("CompareSheet", {"dino": ["small-dino"], "filename_prefix": ["../x"]}, "filename_prefix '../x'"),
    ],
)
def test_what_cannot_be_used_is_refused_before_anything_runs(
    score: str, inputs: dict[str, Any], said: Any, broken: Path
) -> None:
    found = node_classes()[f"HyperBooth{score}"].validate_inputs(**inputs)
    assert found is True if said is True else said in found


def test_another_file_in_the_folder_is_another_encoder_to_comfyui(models: Path) -> None:
    folder = write_dino(models / "dino" / "replaced")
    score = node_classes()["HyperBoothSubjectFidelity"]
    before, again = (score.fingerprint_inputs(dino=["replaced"], clip=["none"], images=LINKED) for _ in range(2))
    write_dino(folder, seed=1)
    os.utime(folder / "model.safetensors", (1, 1))
    assert before == again != score.fingerprint_inputs(dino=["replaced"], clip=["none"], images=LINKED)


def test_a_clip_vision_takes_a_batch_as_single_images(node: Any, references: list[Tensor]) -> None:
    inputs = {"references": references, "dino": ["none"], "clip": ["none"], "clip_vision": [small_vision()]}
    pictures = torch.rand(40, 24, 24, 3, generator=torch.Generator().manual_seed(4))
    together, alone = (
        node("SubjectFidelity", images=images, **inputs)[1] for images in ([pictures], [*pictures[:, None]])
    )
    one_by_one = [node("SubjectFidelity", images=[picture[None]], **inputs)[1] for picture in pictures]
    assert together == alone == pytest.approx(sum(one_by_one) / len(one_by_one), abs=1e-5)
