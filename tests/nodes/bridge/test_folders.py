"""Names below ComfyUI's folders: contained, portable, taken by one server at a time."""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import folder_paths
import pytest
import torch
from hyperbooth.models.adapters import LoRAConfig
from hyperbooth.models.adapters.stack import Adapter, AdapterStack
from hyperbooth.models.adapters.targets import Target
from hyperbooth.models.files.leftovers import LEFTOVER
from hyperbooth.nodes.bridge.folders import adapter_path, input_folder, output_file, output_name
from hyperbooth.nodes.training.train_adapter import save_rescued

from tools.comfy_harness.call_node import node_classes

NO_NAMES = [
    "", " ", "/", "..", "../x", "loras/../../x", "/tmp/x", "x" * 300, "\n", "a\x00b", "loras/" * 2000 + "x",
    "CON", "loras/nul", "aux.txt/dog", "COM1", "lpt9.safetensors", "con .x", "dog.", "loras /dog", "a:b", "a?b", "a|b",
    '"', "<dog>", "*", "x" * 256 + "/dog", "犬" * 86 + "/dog",
]  # fmt: skip


@pytest.mark.parametrize("prefix", NO_NAMES)
def test_what_some_system_cannot_write_is_refused(output_folder: Path, prefix: str) -> None:
    with pytest.raises(ValueError, match=r"^filename_prefix") as caught, output_file(prefix, ".safetensors"):
        pass
    assert len(str(caught.value)) < 500 and list(output_folder.rglob("*")) == []


@pytest.mark.parametrize("prefix", ["dog", "loras/dog", "loras\\dog", "a.b/c.d", "console", "Möwe/犬"])
def test_names_of_every_system_are_taken(output_folder: Path, prefix: str) -> None:
    with output_file(prefix, ".x") as path:
        assert path.is_relative_to(output_folder) and path.parent.is_dir() and not path.exists()
        path.touch()
    assert output_name(path) == f"{prefix.replace(chr(92), '/')}_00001_.x"


def test_one_name_is_never_given_twice(output_folder: Path) -> None:
    def save(number: int) -> str:
        with output_file("loras/dog", ".x") as path:
            assert not path.exists()
            time.sleep(0.001)
            path.write_text(str(number))
        return path.name

    with ThreadPoolExecutor(8) as threads:
        names = list(threads.map(save, range(60)))
    assert len(set(names)) == 60
    written = {path.name: path.read_text() for path in (output_folder / "loras").iterdir()}
    assert written == {name: str(number) for number, name in enumerate(names)}


def test_a_name_is_free_again_after_a_failure(output_folder: Path) -> None:
    for _ in range(2):
        with pytest.raises(OSError, match="full"), output_file("dog", ".x") as path:
            raise OSError("full")
        assert path.name == "dog_00001_.x" and list(output_folder.iterdir()) == []


def test_partial_files_of_killed_processes_are_removed(output_folder: Path) -> None:
    folder = output_folder / "loras"
    folder.mkdir()
    now = time.time()
    for name, written in (("old", now - LEFTOVER - 1), ("new", now), ("future", now + 10**6)):
        (folder / f".{name}.part").touch()
        os.utime(folder / f".{name}.part", (written, written))
    with output_file("loras/dog", ".x"):
        pass
    assert [path.name for path in folder.iterdir()] == [".new.part"]


def test_a_link_out_of_the_output_folder_is_refused_before_anything_is_trained(
    output_folder: Path, tmp_path: Path
) -> None:
    """ComfyUI refuses it too; the advice names no folder that is refused, and a rescued adapter goes elsewhere."""
    (output_folder / "loras").symlink_to(tmp_path)
    for node in ("HyperBoothSave", "HyperBoothSaveHyperNetwork"):
        said = node_classes()[node].validate_inputs(filename_prefix="loras/dog")
        assert said.startswith("filename_prefix 'loras/dog' ") and said.count("loras") == 1
        assert node_classes()[node].validate_inputs(filename_prefix="dog") is True
        assert node_classes()[node].validate_inputs(filename_prefix=None) is True, "a link is not known yet"
    adapter = Adapter.create("lora", [Target("diffusion_model.a", (8, 8))], LoRAConfig(rank=1), torch.Generator())
    assert save_rescued(AdapterStack((adapter,), {})) == "hyperbooth_rescued_00001_.safetensors"
    assert list(tmp_path.iterdir()) == []


def test_an_input_folder_is_inside(tmp_path: Path, monkeypatch: Any) -> None:
    inputs, disk = tmp_path / "input", tmp_path / "disk"
    for folder in (inputs, disk, inputs / "cat"):
        folder.mkdir()
    (inputs / "dog").symlink_to(disk)
    monkeypatch.setattr(folder_paths, "input_directory", str(inputs))
    assert input_folder("cat") == inputs / "cat"
    for name in ("dog", "../disk", str(disk), "cat/../../disk", "", ".", "x" * 10_000, "x" * 300, "cat/" + "犬" * 86):
        with pytest.raises(ValueError, match=r"^folder") as caught:
            input_folder(name)
        said = str(caught.value).replace(repr(name), "")
        assert str(tmp_path) not in said and "'dog'" not in said and "'cat'" in said and len(said) < 500


def test_messages_list_ten_folders_at_most(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(folder_paths, "input_directory", str(tmp_path))
    for number in range(100):
        (tmp_path / f"person {number:03}").mkdir()
    with pytest.raises(ValueError, match=r"'person 009'.*\b90 more\b") as caught:
        input_folder("nobody")
    assert "person 010" not in str(caught.value) and str(tmp_path) not in str(caught.value)


def test_messages_name_no_folder_of_the_machine() -> None:
    with pytest.raises(ValueError, match=r"^adapter_name 'none\.safetensors'") as caught:
        adapter_path("none.safetensors")
    assert folder_paths.models_dir not in str(caught.value)


def test_a_folder_that_is_a_file_is_refused_by_the_prefix(output_folder: Path) -> None:
    (output_folder / "loras").write_text("in the way")
    with pytest.raises(ValueError, match="filename_prefix 'loras/dog'"), output_file("loras/dog", ".x"):
        pass
