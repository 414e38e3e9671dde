"""Stacks of families on ComfyUI's models: their order, in every way of using them, and the stock nodes on our files."""

import itertools
import logging
import re
from collections import Counter
from pathlib import Path
from typing import Any

import comfy.lora
import comfy.sd
import comfy.utils
import pytest
import torch
from helpers.adapters import link, literal, stack_of
from helpers.reports import mentions, pack_warnings
from helpers.training import PROMPT, output, relative, same_bits, weights
from hyperbooth.models.adapters.stack import Adapter, AdapterStack
from hyperbooth.models.adapters.targets import Target
from hyperbooth.models.adapters.weight_update import ProjectOut, total_delta
from hyperbooth.models.files.adapter_file import load_adapter, save_adapter
from hyperbooth.models.metadata.base_fingerprint import with_fingerprint
from hyperbooth.models.metadata.combine import combine_adapters
from hyperbooth.nodes.bridge.adapters import patching
from hyperbooth.nodes.bridge.adapters.lora_keys import import_names
from hyperbooth.nodes.bridge.adapters.patching import base_weights
from hyperbooth.nodes.bridge.adapters.weight_adapter import StackWeightAdapter, register
from hyperbooth.nodes.bridge.text.conditioning import encode_prompt
from torch import Tensor

pytestmark = pytest.mark.usefixtures("node")  # loads the pack, which registers ChainAdapter
ORDERS = [
    *itertools.permutations(("para", "lora"), 2), *itertools.permutations(("lidb", "para"), 2), ("para", "para"),
    ("para", "lora", "para"), ("lidb", "para", "lora"), ("para", "full"), ("full", "para"),
]  # fmt: skip
WITHOUT = {"output_vae": False, "output_clip": False}
"""What the stock loader leaves out."""
by_order = pytest.mark.parametrize("families", ORDERS, ids=", ".join)


@by_order
@pytest.mark.parametrize("strength", [1.0, 0.5, -0.5, 0.0])
def test_applied_each_weight_is_the_papers_in_order(
    node: Any, loaded: Any, families: tuple[str, ...], strength: float
) -> None:
    adapter = stack_of(families, loaded)
    model, _ = node("Apply", model=loaded[0], adapter=adapter, strength_model=strength)
    assert bool(model.patches) == (strength != 0)
    before, after = base_weights(loaded[0]), base_weights(model)
    for name in list(adapter.targets())[::9]:
        expected = literal(adapter, name, before(name), strength)
        assert relative(after(name).flatten(1).double(), expected) < 1e-6, name


@pytest.mark.parametrize("families", [("para",), ("lidb",), *ORDERS], ids=", ".join)
def test_the_stock_loader_on_the_file_is_apply(
    node: Any, loaded: Any, families: tuple[str, ...], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:

    model, clip, _ = loaded
    adapter = stack_of(families, loaded, text=True)
    save_adapter(adapter, tmp_path / "a.safetensors")
    ours = node("Apply", model=model, adapter=adapter, strength_model=0.8, clip=clip, strength_clip=0.6)
    with torch.inference_mode(), caplog.at_level(logging.WARNING):
        file = comfy.utils.load_torch_file(str(tmp_path / "a.safetensors"), safe_load=True)
        stock = comfy.sd.load_lora_for_models(model, clip, file, 0.8, 0.6)
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []
    applied = output(*ours)
    assert relative(applied, output(*stock)) < 1e-6
    assert relative(applied, output(model, clip)) > 1e-3


@pytest.mark.parametrize("families", [("para",), ("lidb",), *ORDERS], ids=", ".join)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float8_e4m3fn], ids=["float32", "float8"])
def test_bypassed_is_applied(
    node: Any, loaded: Any, checkpoint: Path, families: tuple[str, ...], dtype: torch.dtype, tmp_path: Path
) -> None:
    """The stock bypass loader never touches a weight, and an fp8 weight is not rounded to fp8 again."""
    if dtype == torch.float8_e4m3fn and families not in (("para",), ("lidb",), ("para", "lora")):
        pytest.skip("the order is that of float32")
    with torch.inference_mode():
        model, *_ = comfy.sd.load_checkpoint_guess_config(str(checkpoint), **WITHOUT, model_options={"dtype": dtype})
    model.set_model_compute_dtype(torch.float32)
    assert model.model.diffusion_model.middle_block[0].in_layers[2].weight.dtype == dtype
    adapter = stack_of(families, (model, loaded[1]))
    save_adapter(adapter, tmp_path / "a.safetensors")
    with torch.inference_mode():
        file = comfy.utils.load_torch_file(str(tmp_path / "a.safetensors"), safe_load=True)
        bypassed, _ = comfy.sd.load_bypass_lora_for_models(model, None, file, 0.7, 0.0)
        in_float32 = {"dtype": torch.float32}
        exact, *_ = comfy.sd.load_checkpoint_guess_config(str(checkpoint), **WITHOUT, model_options=in_float32)
        if dtype != torch.float32:
            source = {name: weight.float() for name, weight in model.model.diffusion_model.state_dict().items()}
            exact.model.diffusion_model.load_state_dict(source)
    expected, _ = node("Apply", model=exact, adapter=adapter, strength_model=0.7)
    before = weights(model.model)
    applied = output(expected, loaded[1])
    assert relative(output(bypassed, loaded[1]), applied) < 1e-5
    assert all(same_bits(weight, before[name]) for name, weight in model.model.state_dict().items())
    assert relative(applied, output(exact, loaded[1])) > 1e-3


@torch.inference_mode()
@pytest.mark.parametrize("families", [("para",), ("lidb",), ("para", "lora")], ids=", ".join)
def test_bypassed_in_a_half_precision_text_encoder_it_is_nearer(
    loaded: Any, checkpoint: Path, families: tuple[str, ...], tmp_path: Path
) -> None:
    """The ordinary loader rounds each changed weight; stock bypass rounds the adapter's values, and no weight."""
    _, exact, *_ = comfy.sd.load_checkpoint_guess_config(str(checkpoint))
    exact.cond_stage_model.float()
    save_adapter(stack_of(families, loaded, text=True), tmp_path / "a.safetensors")
    file = comfy.utils.load_torch_file(str(tmp_path / "a.safetensors"), safe_load=True)
    _, bypassed = comfy.sd.load_bypass_lora_for_models(*loaded[:2], file, 1.0, 0.7)
    _, rounded = comfy.sd.load_lora_for_models(*loaded[:2], file, 1.0, 0.7)
    _, patched = comfy.sd.load_lora_for_models(loaded[0], exact, file, 1.0, 0.7)
    ours, ordinary, expected, plain = (
        encode_prompt(clip, PROMPT)[0][0].clone() for clip in (bypassed, rounded, patched, loaded[1])
    )
    assert relative(ours, expected) < 3e-4
    assert relative(ours, expected) < relative(ordinary, expected) < 3e-3
    assert relative(plain, expected) > 1e-2


@by_order
@pytest.mark.parametrize("format", ["comfyui", "kohya", "diffusers"])
def test_exported_the_change_is_the_same_on_its_base(
    node: Any, loaded: Any, families: tuple[str, ...], format: str, output_folder: Path
) -> None:
    if format != "comfyui" and families not in (("lidb", "para"), ("para", "lora", "para")):
        pytest.skip("the key formats differ in names only, and full differences have no low rank")
    model, clip, _ = loaded
    adapter = stack_of(families, loaded, text=format != "diffusers")
    path = output_folder / node(
        "Save", adapter=adapter, filename_prefix="loras/a", format=format, precision="float32", model=model, clip=clip
    )[0]  # fmt: skip
    ours = node("Apply", model=model, adapter=adapter, strength_model=1.0, clip=clip, strength_clip=1.0)
    with torch.inference_mode():
        file = comfy.utils.load_torch_file(str(path), safe_load=True)
        stock = comfy.sd.load_lora_for_models(model, clip, file, 1.0, 1.0)
    assert relative(output(*stock), output(*ours)) < 1e-4


@by_order
def test_to_lora_is_the_stack_in_its_order(node: Any, loaded: Any, families: tuple[str, ...]) -> None:
    model, clip, _ = loaded
    adapter = stack_of(families, loaded)
    if "full" in families:
        with pytest.raises(ValueError, match=r"\bLoRA\b.*'hyperbooth'.*'comfyui'"):
            node("ToLoRA", adapter=adapter, model=model)
        return
    (lora,) = node("ToLoRA", adapter=adapter, model=model)
    with torch.inference_mode():
        stock, _ = comfy.sd.load_lora_for_models(model, None, lora, 1.0, 0.0)
    ours, _ = node("Apply", model=model, adapter=adapter, strength_model=1.0)
    assert relative(output(stock, clip), output(ours, clip)) < 1e-4


def test_a_lora_survives_a_para_before_it_and_not_one_after_it(loaded: Any) -> None:
    """PaRa over PaRa is the product of projectors; what a PaRa removes of a LoRA before it is gone."""
    para, lora = link("para", loaded, 0), link("lora", loaded, 1)
    name = next(iter(lora.layers))
    q = torch.linalg.qr(para.layers[name].basis.detach().double()).Q
    weight = base_weights(loaded[0])(name)
    change = lora.layers[name].delta().detach().double()
    kept = literal(combine_adapters(AdapterStack((para,)), AdapterStack((lora,))), name, weight, 1.0)
    lost = literal(combine_adapters(AdapterStack((lora,)), AdapterStack((para,))), name, weight, 1.0)
    without = literal(AdapterStack((para,)), name, weight, 1.0)
    torch.testing.assert_close(kept - without, change, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(lost - without, change - q @ q.T @ change, rtol=1e-6, atol=1e-9)


def test_patches_of_others_keep_their_place(node: Any, loaded: Any, tmp_path: Path) -> None:
    """Two Apply nodes are one Combine."""
    first, second = stack_of(("lora",), loaded), stack_of(("para",), loaded)
    one, _ = node("Apply", model=loaded[0], adapter=first, strength_model=1.0)
    two, _ = node("Apply", model=one, adapter=second, strength_model=1.0)
    (both,) = node("Combine", first=first, second=second)
    together, _ = node("Apply", model=loaded[0], adapter=both, strength_model=1.0)
    assert relative(output(two, loaded[1]), output(together, loaded[1])) < 1e-6
    (other,) = node("Combine", first=second, second=first)
    turned, _ = node("Apply", model=loaded[0], adapter=other, strength_model=1.0)
    assert relative(output(turned, loaded[1]), output(together, loaded[1])) > 1e-5


def test_an_export_is_for_the_weights_the_model_carries(node: Any, loaded: Any) -> None:
    """Patches of the MODEL count, whichever are in place at the moment."""
    lora, para = stack_of(("lora",), loaded), stack_of(("para",), loaded)
    patched, _ = node("Apply", model=loaded[0], adapter=lora, strength_model=1.0)
    name = next(iter(lora.targets()))
    plain = base_weights(loaded[0])(name)
    output(patched, loaded[1])
    assert torch.equal(base_weights(loaded[0])(name), plain)
    expected = literal(lora, name, plain, 1.0)
    assert relative(base_weights(patched)(name).double(), expected) < 1e-6
    (on_patched,) = node("ToLoRA", adapter=para, model=patched)
    (on_plain,) = node("ToLoRA", adapter=para, model=loaded[0])
    assert not torch.equal(on_patched[f"{name}.lora_down.weight"], on_plain[f"{name}.lora_down.weight"])


def test_an_export_records_its_base_and_warns_on_another(
    node: Any, loaded: Any, output_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = loaded[0]
    adapter = stack_of(("para", "lora"), loaded)
    (name,) = node(
        "Save", adapter=adapter, filename_prefix="loras/a", format="kohya", precision="float16", model=model
    )  # fmt: skip
    again = load_adapter(output_folder / name, import_names(model))
    other, _ = node("Apply", model=model, adapter=stack_of(("lora",), loaded), strength_model=1.0)
    caplog.clear()
    node("Apply", model=model, adapter=again, strength_model=1.0)
    assert pack_warnings(caplog) == []
    node("Apply", model=other, adapter=again, strength_model=1.0)
    (message,) = pack_warnings(caplog)
    assert re.search(r"\bLoRA\b.*\b\d+\.\d %", message)
    caplog.clear()
    (joined,) = node("Combine", first=stack_of(("lora",), loaded), second=again)
    (name,) = node(
        "Save", adapter=joined, filename_prefix="loras/b", format="kohya", precision="float16", model=model
    )  # fmt: skip
    once_more = load_adapter(output_folder / name, import_names(model))
    for one in (joined, once_more):
        caplog.clear()
        node("Apply", model=other, adapter=one, strength_model=1.0)
        (message,) = pack_warnings(caplog)
        assert re.search(r"\bLoRA\b.*\b\d+\.\d %", message)
    (for_other,) = node(
        "Save", adapter=adapter, filename_prefix="loras/c", format="kohya", precision="float16", model=other
    )  # fmt: skip
    caplog.clear()
    node("Combine", first=again, second=load_adapter(output_folder / for_other, import_names(model)))
    (message,) = pack_warnings(caplog)
    assert mentions(message, "first") and mentions(message, "second")
    caplog.clear()
    node("Combine", first=again, second=once_more)
    assert pack_warnings(caplog) == []
    (plain,) = node(
        "Save", adapter=stack_of(("lora", "lidb"), loaded), filename_prefix="loras/b", format="kohya",
        precision="float16", model=model,
    )  # fmt: skip
    independent = load_adapter(output_folder / plain, import_names(model))
    assert "made_for" in again.metadata and "made_for" not in independent.metadata


@pytest.mark.parametrize("format", ["kohya", "diffusers", "comfyui"])
def test_a_save_reads_each_weight_of_the_base_once(
    node: Any, loaded: Any, output_folder: Path, monkeypatch: pytest.MonkeyPatch, format: str
) -> None:
    """The conversion, the warning about another base and the record of this base take their values from one read."""
    reads: Counter[str] = Counter()
    read = patching._weight

    def counted(patcher: Any, key: str) -> Tensor:
        reads[key] += 1
        return read(patcher, key)

    adapter = with_fingerprint(stack_of(("para", "lora"), loaded), base_weights(loaded[0]))
    monkeypatch.setattr(patching, "_weight", counted)
    (name,) = node(
        "Save", adapter=adapter, filename_prefix="loras/a", format=format, precision="float16", model=loaded[0]
    )  # fmt: skip
    assert reads == {f"{layer}.weight": 1 for layer in adapter.targets()}
    reads.clear()
    node("ToLoRA", adapter=adapter, model=loaded[0])
    assert reads == {f"{layer}.weight": 1 for layer in adapter.targets()}
    saved = load_adapter(output_folder / name, import_names(loaded[0]))
    assert saved.metadata["made_for"] == [*adapter.metadata["made_for"]] * 2


def test_an_export_from_the_model_that_carries_it_is_refused(
    node: Any, loaded: Any, output_folder: Path, tmp_path: Path
) -> None:
    """There ``Q^T W`` is nothing, and so would be the LoRA."""
    model, clip, _ = loaded
    adapter = stack_of(("para", "lora"), loaded)
    applied, _ = node("Apply", model=model, adapter=adapter, strength_model=1.0)
    save_adapter(adapter, tmp_path / "a.safetensors")
    with torch.inference_mode():
        file = comfy.utils.load_torch_file(str(tmp_path / "a.safetensors"), safe_load=True)
        stock, _ = comfy.sd.load_lora_for_models(model, clip, file, 1.0, 1.0)
    for carrying in (applied, stock):
        with pytest.raises(ValueError, match=r"^the model .*\bPaRa\b"):
            node("ToLoRA", adapter=adapter, model=carrying)
        with pytest.raises(ValueError, match=r"^the model .*\bPaRa\b"):
            node(
                "Save", adapter=adapter, filename_prefix="loras/a", format="kohya", precision="float32", model=carrying
            )  # fmt: skip
    other, _ = node("Apply", model=model, adapter=AdapterStack((link("para", loaded, 7),)), strength_model=1.0)
    node("ToLoRA", adapter=adapter, model=other)


def test_an_export_for_another_architecture_is_refused(node: Any, loaded: Any) -> None:
    """It is refused before its weights are compared with those of its base."""
    adapter = with_fingerprint(stack_of(("para",), loaded), base_weights(loaded[0]))
    name, other = next(iter(adapter.targets())), "diffusion_model.input_blocks.9.1.proj_in"
    made = adapter.adapters[0]
    moved = Adapter("para", {other: made.layers[name]}, {other: Target(other, made.targets[name].shape)})
    with pytest.raises(ValueError, match=rf"\bSD15\b.*\b{other}\b"):
        node("Apply", model=loaded[0], adapter=AdapterStack((moved,), adapter.metadata), strength_model=1.0)


def test_an_export_without_the_base_names_what_it_needs(node: Any, loaded: Any, output_folder: Path) -> None:
    adapter = stack_of(("para",), loaded)
    with pytest.raises(ValueError, match=r"\bPaRa\b.*\bmodel\b"):
        node("Save", adapter=adapter, filename_prefix="loras/a", format="comfyui", precision="float32")
    with_text = stack_of(("para",), loaded, text=True)
    with pytest.raises(ValueError, match=r"^clip .*\btext_encoders\."):
        node(
            "Save", adapter=with_text, filename_prefix="loras/a", format="comfyui", precision="float32",
            model=loaded[0],
        )  # fmt: skip
    assert not list(output_folder.rglob("*.safetensors"))


def test_info_without_the_model_counts_the_layers_left_out(node: Any, loaded: Any) -> None:
    report, chart = node("Info", adapter=stack_of(("para",), loaded))
    assert "para (rank 3)" in report
    assert chart.shape[-1] == 3
    complete, _ = node("Info", adapter=stack_of(("para", "lora"), loaded), model=loaded[0])
    left_out = re.compile(r"^chart\b.*\b\d+ layers\b.*\bmodel\b", re.M)
    assert [bool(left_out.search(text)) for text in (report, complete)] == [True, False]


def test_a_file_in_other_bases_is_refused_by_the_stock_loader(
    loaded: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hyperbooth.models.adapters.lidb import adapter as lidb
    from hyperbooth.models.adapters.lidb import random_bases

    save_adapter(stack_of(("lidb",), loaded), tmp_path / "a.safetensors")
    real = random_bases.basis_checksum
    monkeypatch.setattr(lidb, "basis_checksum", lambda *key: [number + 0.01 for number in real(*key)])
    with torch.inference_mode(), pytest.raises(ValueError, match=r"\bseed 3\b.*\b(out|in) \d+ \d+\b"):
        file = comfy.utils.load_torch_file(str(tmp_path / "a.safetensors"), safe_load=True)
        comfy.sd.load_lora_for_models(loaded[0], loaded[1], file, 1.0, 1.0)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda t: t.fill_(float("nan")), r"\bNaN\b.*\bdiffusion_model\."),
        (lambda t: t.to(torch.int32), r"\bint32\b.*\bdiffusion_model\."),
        (lambda t: t[:, 0], r"\bbasis\b.*\(\d+,\)"),
        (lambda t: t[None], r"\bbasis\b.*\(1, \d+, 3\)"),
    ],
    ids=["NaN", "whole numbers", "a row", "three dimensions"],
)
def test_invalid_tensors_are_refused_by_the_stock_loader(
    loaded: Any, damage: Any, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.safetensors"
    save_adapter(stack_of(("para",), loaded), path)
    with torch.inference_mode():
        file = comfy.utils.load_torch_file(str(path), safe_load=True)
        name = next(iter(file))
        file[name] = damage(file[name].clone())
        with pytest.raises(ValueError, match=message):
            comfy.sd.load_lora_for_models(loaded[0], loaded[1], file, 1.0, 1.0)


def test_a_stack_with_a_missing_adapter_is_refused(loaded: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_adapter(stack_of(("para", "lidb", "para"), loaded), path)
    with torch.inference_mode():
        file = comfy.utils.load_torch_file(str(path), safe_load=True)
        del file["2/packed"]
        with pytest.raises(ValueError, match=r"\b2/packed\b"):
            comfy.sd.load_lora_for_models(loaded[0], loaded[1], file, 1.0, 1.0)


def test_a_layer_of_another_shape_is_unchanged_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    adapter = StackWeightAdapter.of([ProjectOut(torch.linalg.qr(torch.randn(8, 2)).Q)])
    weight = torch.randn(6, 4)
    before = weight.clone()
    patch = (1.0, adapter, 1.0, None, None)
    assert torch.equal(comfy.lora.calculate_weight([patch], weight, "layer.weight"), before)
    assert re.search(r"layer\.weight.*\(6, 4\)", caplog.text)


def test_half_precision_weights_are_rounded_once() -> None:
    """ComfyUI may ask for a computation in half precision (low VRAM); the updates of a stack are in float32."""
    weight, steps = torch.randn(32, 24), [ProjectOut(torch.linalg.qr(torch.randn(32, 2)).Q) for _ in range(3)]
    patch = (1.0, StackWeightAdapter.of(steps), 1.0, None, None)
    got = comfy.lora.calculate_weight([patch], weight.bfloat16(), "w", intermediate_dtype=torch.bfloat16)
    original = weight.bfloat16().double()
    exact = original + total_delta([ProjectOut(step.q.double()) for step in steps], original)
    assert relative(got.double(), exact) < 4e-3


def test_a_missing_tensor_of_a_stack_is_named(loaded: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_adapter(stack_of(("para", "lora"), loaded), path)
    with torch.inference_mode():
        file = comfy.utils.load_torch_file(str(path), safe_load=True)
        lost = next(name for name in file if name.endswith("lora_down.weight"))
        del file[lost]
        with pytest.raises(ValueError, match=rf"\b{re.escape(lost)}\b"):
            comfy.sd.load_lora_for_models(loaded[0], loaded[1], file, 1.0, 1.0)


def test_dynamic_vram_moves_it_as_it_moves_its_own(loaded: Any) -> None:
    """ComfyUI rebuilds an adapter from its tensors, laid out in one buffer."""
    steps = stack_of(("para", "lora"), loaded).weight_updates()
    adapter = StackWeightAdapter.of(next(steps for steps in steps.values() if len(steps) == 2), {"a"})
    size = [0]
    comfy.lora.prefetch_prepared_value(adapter, size, None, None, False)
    buffer = torch.empty(size[0], dtype=torch.uint8)
    moved = comfy.lora.prefetch_prepared_value(adapter, [0], buffer, None, True)
    for ours, theirs in zip(adapter.weights, moved.weights, strict=True):
        assert torch.equal(ours, theirs) if isinstance(ours, Tensor) else ours == theirs


def test_registered_once_however_often_the_pack_is_loaded() -> None:
    import comfy.weight_adapter

    before = len(comfy.weight_adapter.adapters)
    register()
    register()
    assert len(comfy.weight_adapter.adapters) == before
    assert comfy.weight_adapter.adapters[-1] is StackWeightAdapter


def test_what_is_loaded_again_is_what_was_saved(loaded: Any, tmp_path: Path) -> None:
    adapter = stack_of(("para", "lidb", "lora"), loaded, text=True)
    save_adapter(adapter, tmp_path / "a.safetensors")
    again = load_adapter(tmp_path / "a.safetensors")
    assert [one.describe() for one in again.adapters] == [one.describe() for one in adapter.adapters]
    assert all(torch.equal(a, b) for a, b in zip(adapter.parameters(), again.parameters(), strict=True))
