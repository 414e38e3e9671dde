"""Tiers of the tests and the fixtures they share.

Three tiers, by folder: ``unit`` (models, trainers, the architecture) imports no ComfyUI; ``comfy`` has ComfyUI in its
own process; ``server`` starts real servers and commands. `python dev.py test --fast` runs the first.
"""

import functools
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # only while tools is found: the root's nodes/ would hide ComfyUI's
from tools.comfy_harness.call_node import node_classes  # noqa: E402
from tools.comfy_harness.import_pack import import_comfyui, load_pack  # noqa: E402
from tools.comfy_harness.server import Server, prepare_job, running_server  # noqa: E402
from tools.comfy_harness.tiny_checkpoints import write_sd15  # noqa: E402

sys.path.remove(str(ROOT))
sys.path.append(str(ROOT / "tests"))  # last: for helpers
load_pack()
torch.set_num_threads(1)  # matrices this small make a second thread wait, on a shared machine for long

TIERS = {
    "models": "unit", "trainers": "unit", "test_architecture.py": "unit", "nodes": "comfy", "small_world": "comfy",
    "benchmarks": "comfy", "server": "server", "commands": "server", "tools": "server",
}  # fmt: skip
"""What lies in tests/ -> its tier."""
FIRST, LAST = ("server", "commands", "nodes", "small_world"), ("models", "trainers")


def place_of(path: Path) -> str:
    """The folder of tests/ that a file lies in, or the file."""
    return path.relative_to(ROOT / "tests").parts[0]


@functools.cache
def comfyui() -> None:
    """ComfyUI in this process, once."""
    import_comfyui()


def pytest_pycollect_makemodule(module_path: Path) -> None:
    """Modules of the unit tier are imported without ComfyUI."""
    if TIERS[place_of(module_path)] != "unit":
        comfyui()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Folders whose files take longest first: a long one at the end leaves the other process idle."""

    def order(item: pytest.Item) -> int:
        place = place_of(item.path)
        return FIRST.index(place) if place in FIRST else len(FIRST) + (place in LAST)

    for item in items:
        item.add_marker(TIERS[place_of(item.path)])
    items.sort(key=order)


@pytest.fixture(scope="session", autouse=True)
def no_waiting_for_the_disk() -> Iterator[None]:
    """States of whole models, ten gigabytes of them, are gone before a disk has them; a killed process loses nothing
    of what it wrote. That files are synced is for tests/models/files/test_safetensors_io.py to see."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _fd: None)
        yield


@pytest.fixture(autouse=True)
def output_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path | None]:
    """An output folder of the test's own: training states of one test are none of another's business."""
    if request.node.get_closest_marker("unit"):
        yield None
        return
    import folder_paths

    before, folder = folder_paths.get_output_directory(), tmp_path_factory.mktemp("output")
    folder_paths.set_output_directory(str(folder))
    yield folder
    folder_paths.set_output_directory(before)
    shutil.rmtree(folder, ignore_errors=True)  # training states of a whole suite take ten gigabytes


@pytest.fixture(autouse=True)
def few_noise_levels(request: pytest.FixtureRequest) -> Iterator[None]:
    """One noise level of four for divergence checks, two of five for evaluations of hypernetworks.

    They are a third of the time of the few steps that tests train. The mark ``all_noise_levels`` keeps them.
    """
    with pytest.MonkeyPatch.context() as patch:
        if request.node.get_closest_marker("comfy") and not request.node.get_closest_marker("all_noise_levels"):
            patch.setattr("hyperbooth.trainers.dreambooth.validation.DIVERGENCE_LEVELS", 1)
            patch.setattr("hyperbooth.trainers.hypernetwork.evaluation.EVALUATED_LEVELS", 2)
        yield


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smallest SD1.5 checkpoint: U-Net, CLIP-L and a tiny VAE, random weights in half precision."""
    return write_sd15(tmp_path_factory.mktemp("checkpoints") / "small_sd15.safetensors")


@pytest.fixture(scope="session")
def loaded(checkpoint: Path) -> tuple[Any, Any, Any]:
    """MODEL, CLIP, VAE as the stock Load Checkpoint gives them: under inference mode."""
    import comfy.sd
    from hyperbooth.nodes.bridge.model.unused_text_layers import unused_text_layers

    with torch.inference_mode():
        model, clip, vae, _ = comfy.sd.load_checkpoint_guess_config(str(checkpoint))
        for layer in unused_text_layers(clip):
            clip.cond_stage_model.get_submodule(layer).weight.fill_(torch.nan)  # as any memory may be
    return model, clip, vae


@pytest.fixture(scope="session")
def quick(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Any]:
    """The same with three of the text encoder's twelve layers, where it is trained or run often."""
    from helpers.training import quick_sd15

    return quick_sd15(tmp_path_factory.mktemp("quick"))


@pytest.fixture(scope="session")
def node() -> Any:
    """``node(id, **inputs)`` runs a node of the pack as ComfyUI does and gives its outputs."""
    nodes = node_classes()

    def run(node_id: str, **inputs: Any) -> tuple[Any, ...]:
        with torch.inference_mode():
            return nodes["HyperBooth" + node_id].execute(**inputs).result

    return run


@pytest.fixture
def shown_images(node: Any, monkeypatch: pytest.MonkeyPatch) -> dict[int, Any]:
    """Step -> the image that ComfyUI shows at it, by the hook that its server sets; without it none is drawn."""
    shown: dict[int, Any] = {}

    def show(done: int, _total: int, preview: Any, node_id: Any = None) -> None:
        if preview is not None:
            shown[done] = preview[1]

    monkeypatch.setattr("comfy.utils.PROGRESS_BAR_HOOK", show)
    return shown


@pytest.fixture(scope="session")
def server(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A real server with the pack under another folder name, the checkpoint, and four small photographs."""
    base = prepare_job(tmp_path_factory.mktemp("server"), checkpoint, "any-folder_name-v2")
    with running_server(base) as running:
        yield running


@pytest.fixture
def pictures() -> torch.Tensor:
    """Three small photographs ``[3, 64, 64, 3]``."""
    return torch.rand(3, 64, 64, 3, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="session")
def subjects() -> WeakKeyDictionary[Any, Any]:
    """CLIP -> the subject made with it."""
    return WeakKeyDictionary()


@pytest.fixture
def subject(
    node: Any, loaded: Any, pictures: torch.Tensor, subjects: WeakKeyDictionary[Any, Any]
) -> Iterator[Any]:  # fmt: skip
    """Those photographs as a subject: made once for each CLIP, and nobody changes it."""
    _, clip, vae = loaded
    if clip not in subjects:
        (subjects[clip],) = node(
            "Subject", images=[pictures], vae=[vae], clip=[clip], prompt=["a photo of sks dog"], resolution=[32],
            bucket=[True], flip=[False],
        )  # fmt: skip
    made = subjects[clip]
    before = [(e.latents.clone(), e.cond[0][0].clone()) for e in made.examples]
    yield made
    for example, (latents, cond) in zip(made.examples, before, strict=True):
        assert torch.equal(example.latents, latents) and torch.equal(example.cond[0][0], cond), "it was written over"
