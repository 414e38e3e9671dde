"""A plain LoRA made at a strength is the stack at that strength."""

import re
from pathlib import Path
from typing import Any

import comfy.sd
import comfy.utils
import folder_paths
import pytest
import torch
from helpers.adapters import stack_of
from hyperbooth.nodes.bridge.adapters.patching import base_weights

from tools.comfy_harness.call_node import node_classes

STACKS = [("lora",), ("lidb",), ("para",), ("full",), ("lora", "para"), ("para", "para"), ("full", "para")]
by_stack = pytest.mark.parametrize("families", STACKS, ids=", ".join)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    return tmp_path


def saved(folder: Path, **inputs: Any) -> tuple[Path, str]:
    with torch.inference_mode():
        save = node_classes()["HyperBoothSave"]
        result = save.execute(filename_prefix="loras/a", precision="float32", **inputs)
    return folder / result.result[0], " ".join(result.ui["text"])


def changes(model: Any, base: Any, names: list[str]) -> torch.Tensor:
    after, before = base_weights(model), base_weights(base)
    return torch.cat([(after(name) - before(name)).flatten() for name in names])


@by_stack
@pytest.mark.parametrize("strength", [1.0, 0.6, -0.5])
def test_a_plain_file_at_one_is_the_stack_at_its_strength(
    node: Any, loaded: Any, folder: Path, families: tuple[str, ...], strength: float
) -> None:
    model, *_ = loaded
    adapter = stack_of(families, loaded)
    expected, _ = node("Apply", model=model, adapter=adapter, strength_model=strength)
    path, _ = saved(folder, adapter=adapter, format="comfyui", model=model, strength=strength)
    with torch.inference_mode():
        stock, _ = comfy.sd.load_lora_for_models(model, None, comfy.utils.load_torch_file(str(path)), 1.0, 0.0)
    names = list(adapter.targets())[::7]
    ours, theirs = changes(expected, model, names), changes(stock, model, names)
    assert (ours - theirs).norm() / ours.norm() < 1e-5
    if "full" not in families:
        (lora,) = node("ToLoRA", adapter=adapter, model=model, strength=strength)
        with torch.inference_mode():
            stock, _ = comfy.sd.load_lora_for_models(model, None, lora, 1.0, 0.0)
        assert (ours - changes(stock, model, names)).norm() / ours.norm() < 1e-5


@by_stack
def test_the_node_says_by_how_much_other_strengths_differ(
    node: Any, loaded: Any, folder: Path, families: tuple[str, ...]
) -> None:
    model, *_ = loaded
    adapter = stack_of(families, loaded)
    path, text = saved(folder, adapter=adapter, format="comfyui", model=model)
    figures = re.findall(r"([\d.]+)% at ([\d.]+)", text)
    assert len(figures) == (2 if families[1:] == ("para",) else 0)
    names = list(adapter.targets())
    for percent, use in figures:
        expected, _ = node("Apply", model=model, adapter=adapter, strength_model=float(use))
        with torch.inference_mode():
            file = comfy.utils.load_torch_file(str(path))
            stock, _ = comfy.sd.load_lora_for_models(model, None, file, float(use), 0.0)
        ours, theirs = changes(expected, model, names), changes(stock, model, names)
        assert float(percent) == pytest.approx(100 * ((ours - theirs).norm() / ours.norm()).item(), abs=0.06)


@pytest.mark.parametrize("strength", [0.5, float("nan"), 1e9, True, "1"])
def test_the_own_format_keeps_the_adapter_as_trained(loaded: Any, folder: Path, strength: Any) -> None:
    with pytest.raises(ValueError, match="strength"):
        saved(folder, adapter=stack_of(("lora",), loaded), format="hyperbooth", model=loaded[0], strength=strength)
    assert not list(folder.rglob("*.safetensors*"))
