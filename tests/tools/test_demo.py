"""Test the demo's arguments and files: errors are one sentence, before anything is computed."""

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

from tools.comfy_harness.import_pack import ROOT


@pytest.fixture(scope="module")
def demo() -> ModuleType:
    before = list(sys.path)
    from tools.demo import main

    sys.path[:] = before
    return main


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--person -1", "'-1' is no whole number from 0 to 999"),
        ("--person 1000", "'1000' is no whole number"),
        ("--steps 1", "'1' is no whole number from 2"),
        ("--pictures 5", "invalid choice: 5"),
        ("--checkpoint a.safetensors", "--checkpoint needs --photos"),
        ("--photos pictures --class-noun dog", "--class-noun is for a --checkpoint"),
    ],
)
def test_bad_arguments(demo: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys, line: str, message: str) -> None:
    monkeypatch.setattr(sys, "argv", ["demo", *line.split()])
    with pytest.raises(SystemExit):
        demo.parse()
    assert message in capsys.readouterr().err


def arguments(**given: object) -> argparse.Namespace:
    return argparse.Namespace(**{"photos": None, "checkpoint": None, "person": 40, "pictures": 4} | given)


@pytest.mark.parametrize("sort", ["missing", "empty", "many", "broken", "cut", "huge", "folder.jpg"])
def test_photographs_that_are_none(
    demo: ModuleType, tmp_path: Path, sort: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos, target = tmp_path / "photos", tmp_path / "input"
    target.mkdir()
    if sort != "missing":
        photos.mkdir()
    if sort == "folder.jpg":
        (photos / "folder.jpg").mkdir()
    if sort == "broken":
        (photos / "a.jpg").write_bytes(b"no image")
    if sort == "cut":
        Image.effect_noise((64, 64), 50).save(photos / "whole.jpg")
        (photos / "a.jpg").write_bytes((photos / "whole.jpg").read_bytes()[:1000])
        (photos / "whole.jpg").unlink()
    if sort == "huge":
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 30)
    for number in range({"many": 11, "huge": 1}.get(sort, 0)):
        Image.new("RGB", (8, 8)).save(photos / f"{number}.png")
    with pytest.raises(SystemExit, match="--photos: "):
        demo.place_images(arguments(photos=photos), target)
    assert not list(target.iterdir())


def test_an_output_that_is_a_file(demo: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    with pytest.raises(SystemExit, match="--output: nothing can be written to"):
        demo.writable(tmp_path / "out")


@pytest.mark.parametrize("prior", [True, False])
def test_the_graph_is_the_shipped_workflow_with_every_scene_twice(
    demo: ModuleType, tmp_path: Path, prior: bool
) -> None:
    names = demo.place_images(arguments(pictures=3), tmp_path)
    assert [Image.open(tmp_path / name).size for name in names] == [(64, 64)] * 3
    scenes = ["{} in the snow", "{} at night, beside a facet"]
    graph = demo.graph_of(demo.DemoConfig(names, "small.safetensors", "a sks face", "a face", scenes, prior=prior))
    assert ("HyperBoothClassImages" in {node["class_type"] for node in graph.values()}) == prior
    prompts = {n: node["inputs"]["text"] for n, node in graph.items() if "text" in node["inputs"] and "_" in n}
    who = ("a face", "a sks face")
    assert sorted(prompts.values()) == sorted(scene.format(name) for scene in scenes for name in who)
    saved = [node["inputs"]["filename_prefix"] for node in graph.values() if node["class_type"] == "SaveImage"]
    assert sorted(saved) == ["base_0", "base_1", "personalized_0", "personalized_1"]
    sources = [value[0] for node in graph.values() for value in node["inputs"].values() if isinstance(value, list)]
    assert set(sources) <= graph.keys() and json.dumps(graph)


def test_of_one_picture_the_prediction_is_shown_too(demo: ModuleType) -> None:
    scenes = ["{} in the snow", "{} at night"]
    config = demo.DemoConfig(
        ["a.png"], "small.safetensors", "a sks face", "a face", scenes, prior=False, network="net.safetensors"
    )
    graph = demo.graph_of(config)
    saved = [node["inputs"]["filename_prefix"] for node in graph.values() if node["class_type"] == "SaveImage"]
    assert sorted(saved) == [f"{kind}_{number}" for kind in ("base", "personalized", "predicted") for number in (0, 1)]
    by_class = {node["class_type"]: name for name, node in graph.items()}
    assert graph[by_class["HyperBoothLoadHyperNetwork"]]["inputs"]["hypernetwork_name"] == "net.safetensors"
    assert graph["predicted"]["inputs"]["adapter"] == [by_class["HyperBoothPredict"], 0]
    sampled = {name: graph[name]["inputs"]["model"][0] for name in graph if graph[name]["class_type"] == "KSampler"}
    assert {source for name, source in sampled.items() if name.startswith("predicted_")} == {"predicted"}
    assert {source for name, source in sampled.items() if name.startswith("base_")} == {
        by_class["CheckpointLoaderSimple"]
    }
    sources = [value[0] for node in graph.values() for value in node["inputs"].values() if isinstance(value, list)]
    assert set(sources) <= graph.keys() and json.dumps(graph)


def test_the_demo_runs_and_leaves_what_it_names(tmp_path: Path) -> None:
    """Run the command with few steps on a real ComfyUI."""
    command = [
        sys.executable,
        str(ROOT / "tools" / "demo" / "main.py"),
        "--steps",
        "2",
        "--person",
        "41",
        "--output",
        str(tmp_path),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for kind in ("base: a face", "predicted: a sks face", "personalized: a sks face"):
        assert re.search(rf"^{kind} ..., identity -?\d\.\d\d, prompt fidelity \d\.\d\d$", done.stdout, re.MULTILINE)
    named = done.stdout.split("The results are in")[1].split()[1:]
    assert {"sheet.png", "subject_00001_.safetensors", "report.txt", "comfyui.log"} <= set(named)
    assert all((tmp_path / name).stat().st_size for name in named)
