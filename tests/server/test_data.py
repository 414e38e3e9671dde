"""Data as users have it, on a real server: the stock dataset nodes, and a folder of images good and bad."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tools.comfy_harness.api_graphs import Graph
from tools.comfy_harness.server import Outcome, Server

TEXTS = ("a photo of sks dog", "sks dog in the snow", "sks dog asleep", "sks dog running")

STEPS = re.compile(r"\b6 steps of 1\b.*\b4 images\b")


def photo(seed: int, height: int, width: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def training(checkpoint: Path, subject: dict[str, Any], steps: int = 6) -> Graph:
    """Return a graph of checkpoint, subject and a short run whose report is shown."""
    graph: Graph = {
        "model": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": checkpoint.name}},
        "subject": subject,
        "method": {
            "class_type": "HyperBoothMethodLoRA",
            "inputs": {
                "rank": 2, "alpha": 2.0, "targets": "attention", "learning_rate": 1e-3, "text_encoder": False,
                "text_encoder_lr": 0.0,
            },
        },
        "train": {
            "class_type": "HyperBoothTrain",
            "inputs": {
                "model": ["model", 0], "subject": ["subject", 0], "method": ["method", 0], "steps": steps,
                "batch_size": 1, "seed": 0,
            },
        },
        "shown": {"class_type": "PreviewAny", "inputs": {"source": ["train", 2]}},
    }  # fmt: skip
    return graph


def from_latents(node: str) -> dict[str, Any]:
    inputs = {"latents": [node, 0], "positive": [node, 1]}
    return {"class_type": "HyperBoothSubjectFromLatents", "inputs": inputs}


def shown(outcome: Outcome, node: str = "shown") -> str:
    assert outcome.status == "success", outcome.message
    return outcome.outputs[node]["text"][0]


@pytest.fixture(scope="module")
def dataset(server: Server) -> str:
    """Write four images of two sizes, each with its text, as the stock folder node takes them."""
    folder = server.base / "input" / "stock set"
    folder.mkdir()
    for index, text in enumerate(TEXTS):
        photo(index, *((64, 64) if index % 2 else (72, 56))).save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text(text)
    return folder.name


def encoded(folder: str) -> Graph:
    return {
        "files": {"class_type": "LoadImageTextDataSetFromFolder", "inputs": {"folder": folder}},
        "made": {
            "class_type": "MakeTrainingDataset",
            "inputs": {"images": ["files", 0], "texts": ["files", 1], "vae": ["model", 2], "clip": ["model", 1]},
        },
    }


def test_the_stock_dataset_nodes_train(server: Server, checkpoint: Path, dataset: str) -> None:
    report = shown(server.run({**training(checkpoint, from_latents("made")), **encoded(dataset)}))
    assert STEPS.search(report)


def test_stock_buckets_train_with_a_text_for_each_picture(server: Server, checkpoint: Path, dataset: str) -> None:
    bucket = {
        "class_type": "ResolutionBucket",
        "inputs": {"latents": ["made", 0], "conditioning": ["made", 1]},
    }
    graph = {**training(checkpoint, from_latents("bucket")), **encoded(dataset), "bucket": bucket}
    report = shown(server.run(graph))
    assert STEPS.search(report)
    assert "latent 1: (4, " in report and "latent 4: (4, " in report


def test_a_saved_stock_dataset_trains(server: Server, checkpoint: Path, dataset: str) -> None:
    save = {
        "class_type": "SaveTrainingDataset",
        "inputs": {"latents": ["made", 0], "conditioning": ["made", 1], "folder_name": "dogs", "shard_size": 2},
    }
    loader = {"model": training(checkpoint, {})["model"]}
    outcome = server.run({**loader, **encoded(dataset), "save": save})
    assert outcome.status == "success", outcome.message
    load = {"class_type": "LoadTrainingDataset", "inputs": {"folder_name": "dogs"}}
    report = shown(server.run({**training(checkpoint, from_latents("load")), "load": load}))
    assert STEPS.search(report)


@pytest.fixture
def album(server: Server) -> Path:
    """Write a folder with a rotated image, a truncated one, a text named .png, transparency, and 16 bits."""
    folder = server.base / "input" / "album"
    folder.mkdir(exist_ok=True)
    exif = Image.Exif()
    exif[0x0112] = 6
    photo(1, 64, 96).save(folder / "turned.jpg", exif=exif)
    (folder / "turned.txt").write_text("sks dog, turned")
    photo(2, 80, 80).save(folder / "whole.jpg")
    data = (folder / "whole.jpg").read_bytes()
    (folder / "truncated.jpg").write_bytes(data[: len(data) // 2])
    (folder / "text.png").write_text("no picture")
    cut_out = photo(3, 80, 80).convert("RGBA")
    cut_out.putalpha(Image.fromarray(np.repeat(np.uint8([[0] * 30 + [255] * 50]), 80, 0)))
    cut_out.save(folder / "cut out.png")
    deep = np.random.default_rng(4).integers(0, 65536, (80, 80), dtype=np.uint16)
    Image.fromarray(deep).save(folder / "deep.png")
    return folder


def from_folder(checkpoint: Path, folder: str, **subject: Any) -> Graph:
    inputs = {
        "images": ["folder", 0], "captions": ["folder", 1], "masks": ["folder", 2], "vae": ["model", 2],
        "clip": ["model", 1], "prompt": TEXTS[0], "resolution": 64, "bucket": True, "flip": True, **subject,
    }  # fmt: skip
    return {
        **training(checkpoint, {"class_type": "HyperBoothSubject", "inputs": inputs}),
        "folder": {"class_type": "HyperBoothImagesFromFolder", "inputs": {"folder": folder}},
        "read": {"class_type": "PreviewAny", "inputs": {"source": ["folder", 3]}},
    }


def test_a_folder_of_all_kinds_trains_and_both_reports_say_what_became_of_it(
    server: Server, checkpoint: Path, album: Path
) -> None:
    graph = from_folder(checkpoint, album.name, variants=4, crop=0.2, colour=0.1)
    outcome = server.run(graph)
    read, report = shown(outcome, "read"), shown(outcome)
    for pattern in (
        r"\b4 images\b.*\balbum\b", r"\bturned\.jpg\b.*\b64 x 96\b.*\brotated\b",
        r"\bcut out\.png\b.*\b80 x 80\b.*\bmask\b", r"\bno text\b.*\bcut out\.png, deep\.png, whole\.jpg\b",
        r"\bleft out: text\.png\b.*\bnot an image\b", r"\bleft out: truncated\.jpg\b.*\btruncated\b",
    ):  # fmt: skip
        assert re.search(pattern, read), pattern
    for pattern in (STEPS, r"\bmasks\b.*\b1 of 4\b", r"\b4 variants\b.*\b20%.*\b10%.*\bsecond\b"):
        assert re.search(pattern, report), pattern
    again = server.run(graph)
    assert again.status == "success" and "folder" not in again.executed
    (album / "deep.txt").write_text("sks dog, deep")
    third = server.run(graph)
    assert third.status == "success" and {"folder", "subject", "train"} <= set(third.executed)
    assert re.search(r"\bno text\b.*\bcut out\.png, whole\.jpg\b", shown(third, "read"))


def test_a_linked_folder_is_read_each_time_and_the_log_says_why(server: Server, album: Path) -> None:
    graph: Graph = {
        "name": {"class_type": "PrimitiveString", "inputs": {"value": album.name}},
        "folder": {"class_type": "HyperBoothImagesFromFolder", "inputs": {"folder": ["name", 0]}},
        "read": {"class_type": "PreviewAny", "inputs": {"source": ["folder", 3]}},
    }
    assert re.search(r"\bimages\b.*\balbum\b", shown(server.run(graph), "read"))
    assert "folder" in server.run(graph).executed
    assert "folder is linked" in (server.base / "server.log").read_text()


@pytest.mark.parametrize(
    ("folder", "message"),
    [
        ("nowhere", "folder 'nowhere'"),
        ("../output", "folder '../output'"),
        ("/tmp", "folder '/tmp'"),
        (" ", "folder '"),
        ("a\0b", "folder 'a"),
    ],
)
def test_a_folder_that_is_not_there_is_named(server: Server, checkpoint: Path, folder: str, message: str) -> None:
    outcome = server.run(from_folder(checkpoint, folder))
    assert outcome.status == "error" and message in outcome.message


def test_augmentation_without_variants_is_refused(server: Server, checkpoint: Path, album: Path) -> None:
    outcome = server.run(from_folder(checkpoint, album.name, crop=0.2))
    assert outcome.status == "error" and re.search(r"\bvariants\b.*\b0\.2\b", outcome.message)
