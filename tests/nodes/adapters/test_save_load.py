"""Adapter files between programs: what we write others read alike, what they write we read."""

import hashlib
import json
import os
import re
import resource
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import comfy.lora
import comfy.model_patcher
import comfy.sd
import comfy.supported_models
import comfy.utils
import folder_paths
import pytest
import torch
from helpers.reports import figures
from hyperbooth.models.adapters import FullConfig, LoRAConfig
from hyperbooth.models.adapters.stack import Adapter, AdapterStack
from hyperbooth.models.adapters.targets import Target, select_targets
from hyperbooth.models.files.safetensors_io import write_tensors
from hyperbooth.nodes.adapters.save_load import Save
from hyperbooth.nodes.bridge.folders import adapter_files, hypernetwork_files
from hyperbooth.nodes.bridge.model.layers import adaptable_layers, layer_shapes
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from tools.comfy_harness.tiny_checkpoints import FAMILIES, write

EVERYTHING = "all linear and convolution"
CPU = torch.device("cpu")

UNET_XL: dict[str, Any] = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 32, "num_res_blocks": [2, 2, 2],
    "channel_mult": (1, 2, 4), "transformer_depth": [0, 0, 1, 1, 2, 2], "transformer_depth_middle": 2,
    "transformer_depth_output": [0, 0, 0, 1, 1, 1, 2, 2, 2], "num_head_channels": 32, "use_spatial_transformer": True,
    "context_dim": 64, "use_linear_in_transformer": True, "adm_in_channels": 64, "num_classes": "sequential",
    "use_checkpoint": False, "legacy": False, "num_heads": -1,
}  # fmt: skip
MMDIT: dict[str, Any] = {
    "input_size": None, "in_channels": 16, "depth": 2, "patch_size": 2, "adm_in_channels": 64, "num_blocks": 2,
    "qkv_bias": True, "qk_norm": "rms", "pos_embed_scaling_factor": None, "pos_embed_max_size": 8,
    "context_embedder_config": {"target": "torch.nn.Linear", "params": {"in_features": 64, "out_features": 128}},
    "x_block_self_attn_layers": [0],
}  # fmt: skip
FLUX: dict[str, Any] = {
    "image_model": "flux", "in_channels": 16, "out_channels": 16, "patch_size": 2, "vec_in_dim": 64,
    "context_in_dim": 64, "hidden_size": 128, "mlp_ratio": 4.0, "num_heads": 1, "depth": 1, "depth_single_blocks": 2,
    "axes_dim": [16, 56, 56], "theta": 10000, "qkv_bias": True, "guidance_embed": True, "txt_ids_dims": [],
}  # fmt: skip


def encoders(kind: str) -> torch.nn.Module:
    """Return the family's text encoders in full size, on the meta device."""
    import comfy.text_encoders.flux
    import comfy.text_encoders.sd3_clip

    if kind == "SDXL":
        return comfy.sdxl_clip.SDXLClipModel(device="meta")
    if kind == "SD3":
        return comfy.text_encoders.sd3_clip.SD3ClipModel(True, True, True, dtype_t5=torch.float16, device="meta")
    return comfy.text_encoders.flux.FluxClipModel(dtype_t5=torch.float16, device="meta")


def made(kind: str) -> tuple[Any, Any]:
    """Return MODEL and CLIP of a small network of the family; files depend on names and shapes alone."""
    config = getattr(comfy.supported_models, kind)({"SDXL": UNET_XL, "SD3": MMDIT, "Flux": FLUX}[kind].copy())
    model = comfy.model_patcher.ModelPatcher(config.get_model({}, device="meta"), CPU, CPU)
    clip = comfy.sd.CLIP(no_init=True)
    clip.cond_stage_model = encoders(kind)
    clip.patcher = comfy.model_patcher.ModelPatcher(clip.cond_stage_model, CPU, CPU)
    clip.tokenizer = clip.layer_idx = clip.apply_hooks_to_conds = None
    clip.tokenizer_options, clip.use_clip_schedule = {}, False
    return model, clip


@pytest.fixture(scope="session")
def families(loaded: Any) -> Any:
    """Return ``families(kind) -> (MODEL, CLIP)``."""
    kept: dict[str, tuple[Any, Any]] = {"SD15": loaded[:2]}
    return lambda kind: kept.setdefault(kind, made(kind)) if kind not in kept else kept[kind]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return ComfyUI's output folder, whose ``loras`` Load lists."""
    before = folder_paths.get_output_directory()
    folder_paths.set_output_directory(str(tmp_path))
    _, suffixes = folder_paths.folder_names_and_paths["loras"]
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(tmp_path / "loras")], suffixes))
    yield tmp_path
    folder_paths.set_output_directory(before)


def factors(targets: list[Target], rank: int = 2, alpha: float = 3.0, seed: int = 0, **facts: Any) -> AdapterStack:
    """Return an adapter with random factors."""
    generator = torch.Generator().manual_seed(seed)
    link = Adapter.create("lora", targets, LoRAConfig(rank=rank, alpha=alpha), generator)
    for adapter in link.layers.values():
        adapter.up.data.normal_(generator=generator)
    return AdapterStack((link,), facts)


def targets_of(model: Any, clip: Any, rule: str = EVERYTHING) -> list[Target]:
    """Return the diffusion model's layers under the rule, and attention and MLP of the encoders' second layer."""
    shapes = layer_shapes(adaptable_layers(model, clip))
    unet = {name: shape for name, shape in shapes.items() if name.startswith("diffusion_model.")}
    text = {
        name: shape for name, shape in shapes.items()
        if name.startswith("text_encoders.") and ".layers.1." in name
    }  # fmt: skip
    return select_targets(unet, rule) + [Target(name, shape) for name, shape in text.items()]


def adapter_of(model: Any, clip: Any, rule: str = EVERYTHING, **facts: Any) -> AdapterStack:
    return factors(targets_of(model, clip, rule), base=type(model.model.model_config).__name__, **facts)


def changes(model: Any, clip: Any = None) -> dict[str, Tensor]:
    """Return the change of every weight, by the stock code that computes it when the model is used."""
    found = {}
    for patcher in (model, *([clip.patcher] if clip is not None else [])):
        shapes = {name: tensor.shape for name, tensor in patcher.model.state_dict().items()}
        for key, patches in patcher.patches.items():
            found[key] = comfy.lora.calculate_weight(patches, torch.zeros(shapes[key]), key)
    return found


def assert_same_changes(ours: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float = 1e-4) -> None:
    assert ours.keys() == theirs.keys() and len(ours) > 0
    for key, change in ours.items():
        assert change.norm() > 0
        assert ((change - theirs[key]).norm() / change.norm()).item() < tolerance, key


def save(
    node: Any, adapter: AdapterStack, format: str, model: Any = None, precision: str = "float32", **more: Any
) -> str:
    (path,) = node(
        "Save", adapter=adapter, filename_prefix="loras/a", format=format, precision=precision, model=model, **more
    )
    return path


def stock(model: Any, clip: Any, path: Path, strengths: tuple[float, float] = (1.0, 1.0)) -> tuple[Any, Any]:
    with torch.inference_mode():
        return comfy.sd.load_lora_for_models(model, clip, comfy.utils.load_torch_file(str(path)), *strengths)


def apply(node: Any, model: Any, clip: Any, adapter: AdapterStack, strengths: tuple[float, float] = (1.0, 1.0)) -> Any:
    return node(
        "Apply", model=model, adapter=adapter, strength_model=strengths[0], clip=clip, strength_clip=strengths[1]
    )


CASES = [(kind, format) for kind in ("SD15", "SDXL", "SD3", "Flux") for format in ("kohya", "diffusers", "comfyui")]


@pytest.mark.parametrize(("kind", "format"), CASES)
def test_every_export_through_the_stock_loader_equals_apply(
    node: Any, families: Any, folder: Path, kind: str, format: str
) -> None:
    model, clip = families(kind)
    adapter = adapter_of(model, clip)
    path = folder / save(node, adapter, format, model)
    ours = changes(*apply(node, model, clip, adapter, (0.8, 0.7)))
    assert len(ours) == len(adapter.targets())
    assert_same_changes(ours, changes(*stock(model, clip, path, (0.8, 0.7))))


@pytest.mark.parametrize(("kind", "format"), [*CASES, ("SD15", "hyperbooth")])
def test_save_and_load_give_the_same_factors(node: Any, families: Any, folder: Path, kind: str, format: str) -> None:
    model, clip = families(kind)
    adapter = adapter_of(model, clip)
    name = save(node, adapter, format, model).removeprefix("loras/")
    (again,) = node("Load", adapter_name=name, model=model, clip=clip)
    assert again.targets() == adapter.targets()
    for layer, (up, down) in again.as_lora().items():
        expected_up, expected_down = adapter.as_lora()[layer]
        torch.testing.assert_close(up, expected_up)
        assert torch.equal(down, expected_down), layer
    settings = "rank 2, alpha 2" if format == "diffusers" else "rank 2, alpha 3"
    assert settings in again.adapters[0].describe()
    assert again.metadata["base"] == kind


@pytest.mark.parametrize("format", ["hyperbooth", "comfyui"])
def test_files_in_comfyuis_names_need_no_model(node: Any, families: Any, folder: Path, format: str) -> None:
    model, clip = families("SD15")
    adapter = adapter_of(model, clip)
    name = save(node, adapter, format).removeprefix("loras/")
    (again,) = node("Load", adapter_name=name)
    assert again.targets() == adapter.targets()
    assert again.adapters[0].describe() == adapter.adapters[0].describe()
    for layer, ours in adapter.adapters[0].layers.items():
        theirs = again.adapters[0].layers[layer]
        assert torch.equal(ours.up, theirs.up) and torch.equal(ours.down, theirs.down)


@pytest.mark.parametrize("name", ["sd2", "sdxl", "sd3", "flux", "flux2", "pixart"])
def test_files_of_every_family_as_the_stock_loaders_give_it(node: Any, folder: Path, name: str) -> None:
    """On whole checkpoints, kohya's and diffusers' files equal Apply in the stock loader, and load again."""
    path, options = folder / f"{name}.safetensors", dict(FAMILIES[name].text_options)
    write(path, FAMILIES[name])
    with torch.inference_mode():
        if name in ("flux2", "pixart"):
            model, clip = comfy.sd.load_diffusion_model(str(path)), None
        else:
            model, clip, _, _ = comfy.sd.load_checkpoint_guess_config(str(path), te_model_options=options)
    # Flux.2's modulation, which all blocks share, is in nobody's map.
    adapter = adapter_of(model, clip, "attention and feed-forward" if name == "flux2" else "all linear")
    ours = changes(*apply(node, model, clip, adapter))
    for format in ("kohya", "diffusers"):
        file = folder / save(node, adapter, format, model)
        assert_same_changes(ours, changes(*stock(model, clip, file)))
        (again,) = node("Load", adapter_name=file.name, model=model, clip=clip)
        assert_same_changes(ours, changes(*apply(node, model, clip, again)))
    if name == "flux2":
        single = "transformer.single_transformer_blocks.0.attn"
        assert {f"{single}.to_qkv_mlp_proj.lora_A.weight", f"{single}.to_out.lora_B.weight"} <= load_file(file).keys()


NAMES = {
    ("SD15", "kohya"): [
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q.lora_down.weight",
        "lora_unet_mid_block_resnets_0_conv1.alpha",
        "lora_te_text_model_encoder_layers_1_self_attn_q_proj.lora_up.weight",
    ],
    ("SDXL", "kohya"): [
        "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q.lora_down.weight",
        "lora_unet_label_emb_0_0.alpha",
        "lora_te1_text_model_encoder_layers_1_self_attn_q_proj.lora_up.weight",
        "lora_te2_text_model_encoder_layers_1_mlp_fc1.lora_up.weight",
    ],
    ("SD3", "kohya"): [
        "lora_unet_joint_blocks_0_x_block_attn_qkv.lora_up.weight",
        "lora_te2_text_model_encoder_layers_1_mlp_fc1.lora_up.weight",
    ],
    ("Flux", "kohya"): [
        "lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight",
        "lora_unet_single_blocks_1_linear1.lora_down.weight",
        "lora_te1_text_model_encoder_layers_1_self_attn_q_proj.lora_up.weight",
    ],
    ("SD15", "diffusers"): [
        "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora.down.weight",
        "unet.mid_block.resnets.0.conv1.lora.up.weight",
        "text_encoder.text_model.encoder.layers.1.self_attn.q_proj.lora_A.weight",
    ],
    ("SDXL", "diffusers"): ["text_encoder_2.text_model.encoder.layers.1.mlp.fc1.lora_B.weight"],
    ("SD3", "diffusers"): ["transformer.transformer_blocks.0.attn.add_k_proj.lora_A.weight"],
    ("Flux", "diffusers"): [
        "transformer.transformer_blocks.0.attn.to_q.lora_A.weight",
        "transformer.single_transformer_blocks.1.proj_mlp.lora_B.weight",
        "transformer.single_transformer_blocks.1.proj_out.lora_B.weight",
    ],
}


@pytest.mark.parametrize(("kind", "format"), NAMES)
def test_names_are_those_of_the_key_format(node: Any, families: Any, folder: Path, kind: str, format: str) -> None:
    model, clip = families(kind)
    tensors = load_file(folder / save(node, adapter_of(model, clip), format, model))
    assert [name for name in NAMES[kind, format] if name not in tensors] == []
    assert any(name.endswith(".alpha") for name in tensors) == (format == "kohya")
    assert all(tensor.is_contiguous() for tensor in tensors.values())


def diffusers_twins(model: Any) -> tuple[Any, Any]:
    """Return diffusers' U-Net and transformers' text encoder of two layers, of the small SD1.5's shape."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(320,), layers_per_block=1, down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",), cross_attention_dim=768, attention_head_dim=8,
    )  # fmt: skip
    names = comfy.utils.unet_to_diffusers(model.model.model_config.unet_config)
    ours = model.model.diffusion_model.state_dict()
    unet.load_state_dict({theirs: ours[name].float() for theirs, name in names.items() if name in ours})
    text = CLIPTextModel(CLIPTextConfig(vocab_size=16, num_hidden_layers=2, hidden_size=768, intermediate_size=3072))
    return unet, text


@pytest.mark.parametrize("rule", ["attention", EVERYTHING])
def test_the_diffusers_export_loads_in_diffusers(node: Any, families: Any, folder: Path, rule: str) -> None:
    """The functions of diffusers' pipelines make the same change of every weight, and change nothing else."""
    from diffusers import StableDiffusionPipeline as Pipeline

    model, clip = families("SD15")
    adapter = adapter_of(model, clip, rule)
    path = folder / save(node, adapter, "diffusers", model)
    expected = changes(*apply(node, model, clip, adapter))
    unet, text = diffusers_twins(model)
    before = [{name: tensor.clone() for name, tensor in part.state_dict().items()} for part in (unet, text)]
    state, alphas = Pipeline.lora_state_dict(str(path))
    Pipeline.load_lora_into_unet(state, network_alphas=alphas, unet=unet, adapter_name="a")
    Pipeline.load_lora_into_text_encoder(state, network_alphas=alphas, text_encoder=text, adapter_name="a")
    after = [merged(unet), merged(text)]
    theirs = {name: after[0][name] - tensor for name, tensor in before[0].items()}
    keys = comfy.utils.unet_to_diffusers(model.model.model_config.unet_config)
    found = {f"diffusion_model.{keys[name]}": change for name, change in theirs.items() if change.any()}
    changed_text = {name: after[1][name] - tensor for name, tensor in before[1].items()}
    prefix = "" if any(name.startswith("text_model.") for name in changed_text) else "text_model."
    found |= {f"clip_l.transformer.{prefix}{name}": c for name, c in changed_text.items() if c.any()}
    assert_same_changes(expected, found)


def transformer_twin(kind: str) -> tuple[Any, Any]:
    """Return diffusers' pipeline class and transformer of the small SD3's or Flux's shape."""
    import diffusers

    if kind == "Flux":
        twin = diffusers.FluxTransformer2DModel(
            in_channels=64, num_layers=1, num_single_layers=2, attention_head_dim=128, num_attention_heads=1,
            joint_attention_dim=64, pooled_projection_dim=64, guidance_embeds=True,
        )  # fmt: skip
        return diffusers.FluxPipeline, twin
    twin = diffusers.SD3Transformer2DModel(
        sample_size=8, in_channels=16, num_layers=2, attention_head_dim=64, num_attention_heads=2, out_channels=16,
        joint_attention_dim=64, caption_projection_dim=128, pooled_projection_dim=64, pos_embed_max_size=8,
        qk_norm="rms_norm", dual_attention_layers=(0,),
    )  # fmt: skip
    return diffusers.StableDiffusion3Pipeline, twin


@pytest.mark.parametrize("kind", ["SD3", "Flux"])
def test_a_transformers_export_loads_in_diffusers(node: Any, families: Any, folder: Path, kind: str) -> None:
    """Every part of a fused layer lands in diffusers' layer of its own, with its rows of the change."""
    model, clip = families(kind)
    adapter = adapter_of(model, clip).select_prefix("diffusion_model.")
    path = folder / save(node, adapter, "diffusers", model)
    pipeline, twin = transformer_twin(kind)
    before = {name: tensor.clone() for name, tensor in twin.state_dict().items()}
    state = pipeline.lora_state_dict(str(path))
    alphas = {"network_alphas": None} if kind == "Flux" else {}
    pipeline.load_lora_into_transformer(state, transformer=twin, adapter_name="a", **alphas)
    after = {name: tensor - before[name] for name, tensor in merged(twin).items()}
    keys = comfy.lora.model_lora_keys_unet(model.model, {})
    ours = changes(*apply(node, model, clip, adapter))
    found: dict[str, Tensor] = {key: torch.zeros_like(change) for key, change in ours.items()}
    for name, change in after.items():
        if change.any():
            to = keys["transformer." + name.removesuffix(".weight")]
            key, rows, swap = (*to, None)[:3] if isinstance(to, tuple) else (to, None, None)
            change = swap(change) if swap is not None else change
            first, count = rows[1:] if rows is not None else (0, len(change))
            found[key].flatten(1)[first : first + count] += change.flatten(1)
    assert_same_changes(ours, found)


def merged(part: Any) -> dict[str, Tensor]:
    """Return the weights merged with their LoRAs, under the names they have without."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for module in part.modules():
        if isinstance(module, BaseTunerLayer):
            module.merge()
    state = {name.replace(".base_layer", ""): tensor for name, tensor in part.state_dict().items()}
    return {name: tensor for name, tensor in state.items() if ".lora_" not in name}


@pytest.mark.parametrize("format", ["kohya", "diffusers"])
def test_names_that_depend_on_the_architecture_need_the_model(
    node: Any, families: Any, folder: Path, format: str
) -> None:
    model, clip = families("SD15")
    adapter = adapter_of(model, clip, "attention")
    with pytest.raises(ValueError, match=rf"^model .*\b{format}\b"):
        save(node, adapter, format)
    with pytest.raises(ValueError, match=r"\bSD15\b.*\bSDXL\b"):
        save(node, adapter, format, families("SDXL")[0])
    assert not list(folder.rglob("*.*"))
    name = save(node, adapter, format, model).removeprefix("loras/")
    for inputs, message in (
        ({}, r"\bmodel and clip\b"),
        ({"model": model}, r"\btext-encoder\b.*\bclip\b"),
        ({"model": families("SD3")[0], "clip": clip}, r"\b\d+ layers\b.*\bSD3\b"),
    ):
        with pytest.raises(ValueError, match=message):
            node("Load", adapter_name=name, **inputs)


@pytest.mark.parametrize(("kind", "format", "layer"), [
    ("SDXL", "diffusers", "text_encoders.clip_g.transformer.text_projection"),
    ("SD3", "diffusers", "text_encoders.t5xxl.transformer.encoder.block.1.layer.0.SelfAttention.q"),
])  # fmt: skip
def test_layers_without_a_name_in_the_key_format_are_listed(
    node: Any, families: Any, folder: Path, kind: str, format: str, layer: str
) -> None:
    model, clip = families(kind)
    shape = layer_shapes(adaptable_layers(model, clip))[layer]
    adapter = factors([*targets_of(model, clip, "attention")[:3], Target(layer, shape)])
    with pytest.raises(ValueError, match=rf"'{format}'.*\b1\b.*\b4 layers\b.*\b{layer}\b.*'comfyui'"):
        save(node, adapter, format, model)
    path = folder / save(node, adapter, "kohya", model)
    assert_same_changes(changes(*apply(node, model, clip, adapter)), changes(*stock(model, clip, path)))


@pytest.mark.parametrize("kind", ["SD15", "SDXL", "SD3", "Flux"])
@pytest.mark.parametrize("own_downs", [True, False])
def test_what_other_programs_write_changes_the_model_as_the_stock_loader_does(
    node: Any, families: Any, folder: Path, kind: str, own_downs: bool
) -> None:
    """The file has every name in diffusers' style that the stock loader knows; q, k and v have factors of their own."""
    model, clip = families(kind)
    path = folder / save(node, adapter_of(model, clip, "attention"), "diffusers", model)
    generator = torch.Generator().manual_seed(3)
    tensors = load_file(path)
    if own_downs:
        tensors = {name: torch.randn(tensor.shape, generator=generator) for name, tensor in tensors.items()}
    save_file(tensors, folder / "loras" / "theirs.safetensors")
    (adapter,) = node("Load", adapter_name="theirs.safetensors", model=model, clip=clip)
    fused = own_downs and kind in ("SD3", "Flux")
    assert ("rank 2 to" in adapter.adapters[0].describe()) == fused
    theirs = stock(model, clip, folder / "loras" / "theirs.safetensors")
    assert_same_changes(changes(*apply(node, model, clip, adapter)), changes(*theirs))


def test_pefts_own_names_of_a_unet_are_read(node: Any, families: Any, folder: Path) -> None:
    """diffusers' training scripts write such names today; the stock loader does not know them."""
    model, clip = families("SD15")
    adapter = adapter_of(model, clip, "attention")
    tensors = load_file(folder / save(node, adapter, "diffusers", model))
    renamed = {
        name.replace(".processor.to_out_", ".to_out.0.").replace(".processor.", ".").replace("_lora.", ".lora.")
        .replace(".0.lora.", ".0.lora.").replace("lora.up", "lora_B").replace("lora.down", "lora_A"): tensor
        for name, tensor in tensors.items()
    }  # fmt: skip
    assert "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0.lora_A.weight" in renamed
    save_file(renamed, folder / "loras" / "peft.safetensors")
    (again,) = node("Load", adapter_name="peft.safetensors", model=model, clip=clip)
    assert_same_changes(changes(*apply(node, model, clip, adapter)), changes(*apply(node, model, clip, again)))


def test_a_foreign_file_is_trained_further(node: Any, loaded: Any, subject: Any, folder: Path) -> None:
    from hyperbooth.trainers.config import Method, TrainingOptions

    model, _, _ = loaded
    inputs = {
        "model": model, "subject": subject, "seed": 0,
        "method": Method(family="lora", config=LoRAConfig(rank=2, alpha=3.0), learning_rate=1e-2),
        "batch_size": 1, "options": TrainingOptions(preview_every=0),
    }  # fmt: skip
    first, _, _ = node("Train", **inputs, steps=2)
    name = save(node, first, "kohya", model).removeprefix("loras/")
    (again,) = node("Load", adapter_name=name, model=model)
    second, _, _ = node("Train", **inputs, steps=3, start_from=again)
    assert second.metadata["steps"] == 5 and second.targets() == first.targets()
    assert not all(torch.equal(second.as_lora()[layer][0], up) for layer, (up, _) in first.as_lora().items())
    with safe_open(folder / save(node, second, "kohya", model), "pt") as file:
        said = file.metadata()
    assert said["ss_steps"] == "5" and said["ss_base_model_version"] == "sd_1.5" and said["ss_resolution"] == "(32, 32)"
    assert float(said["ss_training_finished_at"]) >= float(said["ss_training_started_at"]) > 1.7e9


@pytest.mark.parametrize("format", ["hyperbooth", "kohya", "diffusers", "comfyui"])
def test_metadata_can_be_left_out(node: Any, families: Any, folder: Path, format: str) -> None:
    model, clip = families("SD15")
    adapter = adapter_of(model, clip, "attention", prompts=["a photo of sks dog"])
    with safe_open(folder / save(node, adapter, format, model, trigger=" sks dog "), "pt") as file:
        said = file.metadata()
        assert all(tensor.is_contiguous() for tensor in map(file.get_tensor, file.keys()))
    assert said["ss_output_name"] == said["modelspec.title"] == "a_00001"
    assert list(json.loads(said["ss_tag_frequency"])["subject"]) == ["sks dog", "a photo of sks dog"]
    assert not any(str(folder) in value for value in said.values())
    with safe_open(folder / save(node, adapter, format, model, metadata=False), "pt") as file:
        assert set(file.metadata() or {}) == ({"hyperbooth", "hyperbooth_digest"} if format == "hyperbooth" else set())


@pytest.mark.parametrize(("format", "kind"), [("hyperbooth", "hyperbooth-lora"), ("kohya", "lora")])
def test_a_stack_is_a_lora_for_others_only_as_an_export(
    node: Any, families: Any, folder: Path, format: str, kind: str
) -> None:
    model, clip = families("SD15")
    one = adapter_of(model, clip, "attention")
    chain = replace(one, adapters=one.adapters * 2)
    with safe_open(folder / save(node, chain, format, model), "pt") as file:
        said = file.metadata()
    assert said["modelspec.architecture"] == f"stable-diffusion-v1/{kind}"
    assert ("ss_network_module" in said) == (format == "kohya")


@pytest.mark.parametrize("format", ["hyperbooth", "kohya", "diffusers", "comfyui"])
@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_half_precision_files_hold_the_same_change(
    node: Any, families: Any, folder: Path, format: str, precision: str
) -> None:
    model, clip = families("SDXL")
    adapter = factors(targets_of(model, clip)[:12], 4, 0.7)
    path = folder / save(node, adapter, format, model, precision)
    factors_ = {name: t for name, t in load_file(path).items() if not name.endswith(".alpha")}
    assert {str(tensor.dtype) for tensor in factors_.values()} == {f"torch.{precision}"}
    with safe_open(path, "pt") as file:
        data = path.read_bytes()
        begin = 8 + int.from_bytes(data[:8], "little")
        assert file.metadata()["sshs_model_hash"] == hashlib.sha256(data[begin:]).hexdigest()
    ours, theirs = changes(*apply(node, model, clip, adapter)), changes(*stock(model, clip, path))
    assert_same_changes(ours, theirs, {"float16": 1e-3, "bfloat16": 1e-2}[precision])
    (again,) = node("Load", adapter_name=path.name, model=model, clip=clip)
    if format != "diffusers":
        assert all(layer.alpha == pytest.approx(0.7) for layer in again.adapters[0].layers.values())


def test_a_file_of_foreign_names_asks_for_the_model_that_translates_them(
    node: Any, families: Any, folder: Path
) -> None:
    """They begin as ComfyUI's own names do: Z-Image's, Krea 2's, and this one of Flux."""
    model, clip = families("Flux")
    name = "diffusion_model.single_blocks.0.linear1"
    _, columns = layer_shapes(adaptable_layers(model))[name]
    draw = torch.Generator().manual_seed(0)
    width = model.model.model_config.unet_config["hidden_size"]
    tensors = {
        f"{name}_qkv.lora_A.weight": torch.randn(2, columns, generator=draw),
        f"{name}_qkv.lora_B.weight": torch.randn(3 * width, 2, generator=draw),
    }
    (folder / "loras").mkdir()
    write_tensors(tensors, folder / "loras" / "foreign.safetensors")
    (without,) = node("Load", adapter_name="foreign.safetensors")
    with pytest.raises(ValueError, match=rf"{name}_qkv.* model .*Load Adapter"):
        apply(node, model, clip, without)
    (adapter,) = node("Load", adapter_name="foreign.safetensors", model=model)
    ours = changes(*apply(node, model, clip, adapter))
    theirs = changes(*stock(model, clip, folder / "loras" / "foreign.safetensors"))
    assert_same_changes(ours, theirs)


def test_strength_zero_changes_nothing(node: Any, families: Any, folder: Path) -> None:
    model, clip = families("SD3")
    adapter = adapter_of(model, clip, "attention")
    ours = changes(*apply(node, model, clip, adapter, (0.0, 0.0)))
    theirs = changes(*stock(model, clip, folder / save(node, adapter, "kohya", model), (0.0, 0.0)))
    assert not any(change.any() for found in (ours, theirs) for change in found.values())


@pytest.mark.parametrize("format", ["hyperbooth", "kohya", "diffusers", "comfyui"])
def test_a_stack_is_saved_applied_and_described(node: Any, families: Any, folder: Path, format: str) -> None:
    model, clip = families("Flux")
    first = adapter_of(model, clip, "attention", steps=10, prompts=["a cat"], trigger="sks")
    second = factors(targets_of(model, clip, "attention")[:5], 3, 1.0, 1, base="Flux", steps=20, prompts=["a dog"])
    (chain,) = node("Combine", first=first, second=second)
    expected = changes(*node("Apply", model=model, adapter=first, strength_model=1.0, clip=clip, strength_clip=1.0))
    for key, change in changes(*apply(node, model, clip, second)).items():
        expected[key] = expected[key] + change
    assert_same_changes(expected, changes(*apply(node, model, clip, chain)))
    name = save(node, chain, format, model).removeprefix("loras/")
    (again,) = node("Load", adapter_name=name, model=model, clip=clip)
    assert len(again.adapters) == (2 if format == "hyperbooth" else 1)
    assert_same_changes(expected, changes(*apply(node, model, clip, again)))
    (plain,) = node("ToLoRA", adapter=chain, model=model)
    with torch.inference_mode():
        assert_same_changes(expected, changes(*comfy.sd.load_lora_for_models(model, clip, plain, 1.0, 1.0)))
    report, chart = node("Info", adapter=chain)
    assert "1. lora (rank 2, alpha 3)" in report and "2. lora (rank 3, alpha 1) on 5 layers" in report
    assert "part 1:\n  base: Flux\n  steps: 10" in report and "part 2:\n" in report and chart.shape[-1] == 3


def test_only_adapters_of_one_architecture_are_combined(node: Any) -> None:
    where = Target("diffusion_model.a", (6, 4))
    one, other = factors([where], base="SD15"), factors([where], base="SDXL")
    with pytest.raises(ValueError, match=r"^first .*SD15.*second .*SDXL"):
        node("Combine", first=one, second=other)
    node("Combine", first=factors([where], base="Flux"), second=factors([where], base="FluxSchnell"))
    wide = factors([Target("diffusion_model.a", (8, 4))])
    with pytest.raises(ValueError, match=r"\bdiffusion_model\.a\b.*\(6, 4\).*\bfirst\b.*\(8, 4\).*\bsecond\b"):
        node("Combine", first=one, second=wide)
    (chain,) = node("Combine", first=one, second=factors([where], trigger="sks"))
    (longer,) = node("Combine", first=chain, second=factors([where], base="SD15", trigger="sks, dog", steps=3))
    assert len(longer.adapters) == 3
    assert longer.metadata == {
        "base": "SD15", "trigger": "sks, dog", "prompts": [],
        "parts": [{"base": "SD15"}, {"trigger": "sks"}, {"base": "SD15", "trigger": "sks, dog", "steps": 3}],
    }  # fmt: skip


@pytest.fixture
def unprivileged() -> Iterator[Path]:
    """Return a folder that this process may not write to, which takes another user where it runs as root."""
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "a_00001_.safetensors").write_bytes(b"former")
        Path(name).chmod(0o555)
        user = os.geteuid()
        os.seteuid(65534 if user == 0 else user)
        try:
            yield Path(name)
        finally:
            os.seteuid(user)
            Path(name).chmod(0o755)


@pytest.mark.parametrize(("kind", "listed"), [("loras", adapter_files), ("hyperbooth", hypernetwork_files)])
def test_a_folder_that_is_deleted_while_the_server_runs_is_an_empty_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, listed: Callable[[], list[str]]
) -> None:
    folder = tmp_path / kind
    monkeypatch.setitem(folder_paths.folder_names_and_paths, kind, ([str(folder)], {".safetensors"}))
    folder.mkdir()
    (folder / "a.safetensors").touch()
    assert listed() == ["a.safetensors"]
    shutil.rmtree(folder)
    assert listed() == []
    folder.mkdir()
    (folder / "b.safetensors").touch()
    assert listed() == ["b.safetensors"]


def test_a_read_only_folder_is_named_and_left_alone(node: Any, unprivileged: Path) -> None:
    before = folder_paths.get_output_directory()
    folder_paths.set_output_directory(str(unprivileged))
    try:
        with pytest.raises(ValueError, match=r"^filename_prefix 'a'.*Permission denied"):
            node(
                "Save", adapter=factors([Target("diffusion_model.a", (6, 4))]), filename_prefix="a",
                format="comfyui", precision="float32",
            )  # fmt: skip
    finally:
        folder_paths.set_output_directory(before)
    assert [(path.name, path.read_bytes()) for path in unprivileged.iterdir()] == [("a_00001_.safetensors", b"former")]


def test_a_disk_that_takes_no_more_leaves_no_part_of_a_file(node: Any, folder: Path) -> None:
    """The kernel cuts the write short in the middle of the file, as a full disk does."""
    save(node, factors([Target("diffusion_model.a", (6, 4))]), "comfyui")
    (kept,) = (folder / "loras").iterdir()
    before, limits = kept.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(OSError, match=r"\.safetensors\b.*File too large"):
            save(node, factors([Target("diffusion_model.a", (640, 640))]), "comfyui")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list((folder / "loras").iterdir()) == [kept] and kept.read_bytes() == before


@pytest.mark.parametrize("format", ["hyperbooth", "comfyui"])
def test_full_differences_alone_and_after_a_lora_open_in_the_stock_loader(
    node: Any, families: Any, folder: Path, format: str
) -> None:
    model, clip = families("SDXL")
    targets = targets_of(model, clip)[:8]
    generator = torch.Generator().manual_seed(5)
    link = Adapter.create("full", targets[3:], FullConfig(), generator)
    for adapter in link.layers.values():
        adapter.diff.data.normal_(generator=generator)
    full, lora = AdapterStack((link,), {"base": "SDXL"}), factors(targets[:5])
    (chain,) = node("Combine", first=lora, second=full)
    for adapter in (full, chain):
        ours = changes(*apply(node, model, clip, adapter))
        expected = {name: sum(link.layers[name].delta().detach() for link in adapter.adapters if name in link.layers)
                    for name in adapter.targets()}  # fmt: skip
        shapes = {name: target.shape for name, target in adapter.targets().items()}
        assert_same_changes({f"{name}.weight": d.reshape(shapes[name]) for name, d in expected.items()}, ours)
        path = folder / save(node, adapter, format, model)
        if format == "comfyui" or adapter is full:
            assert_same_changes(ours, changes(*stock(model, clip, path)))
        (again,) = node("Load", adapter_name=path.name)
        assert_same_changes(ours, changes(*apply(node, model, clip, again)))
        with safe_open(path, "pt") as file:
            assert "ss_network_dim" not in file.metadata() and file.metadata()["ss_base_model_version"]
    report, chart = node("Info", adapter=chain)
    assert re.search(r"2\. full \(.*\) on 5 layers", report) and chart.shape[-1] == 3
    with pytest.raises(ValueError, match=r"\bLoRA\b.*'hyperbooth'.*'comfyui'"):
        save(node, full, "kohya", model)


def rewritten(path: Path, change: Any) -> None:
    """Change the tensors and the ``hyperbooth`` entry of the file."""
    with safe_open(path, "pt") as file:
        said = json.loads(file.metadata()["hyperbooth"])
    tensors = load_file(path)
    text = change(said, tensors)
    save_file(tensors, path, {"hyperbooth": text if isinstance(text, str) else json.dumps(said)})


LAYER = "diffusion_model.a"
UP = f"{LAYER}.lora_up.weight"
BAD_FILES: dict[str, tuple[Any, str]] = {
    "empty": (lambda path: path.write_bytes(b""), "damaged .*safetensors"),
    "half of it": (lambda path: path.write_bytes(path.read_bytes()[:-9]), "damaged .*safetensors"),
    "a header of 8 EiB": (lambda path: path.write_bytes(b"\xff" * 8 + path.read_bytes()[8:]), "damaged .*safetensors"),
    "a picture": (lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(99)), "damaged .*safetensors"),
    "nested too deep": (lambda path: rewritten(path, lambda s, t: "[" * 99_999), "'hyperbooth' .*deep"),
    "too much to read": (lambda path: rewritten(path, lambda s, t: "[]," * 10**6), ".*3000000"),
    "a number without end": (lambda path: rewritten(path, lambda s, t: '{"version": NaN}'), "NaN"),
    "invalid Unicode": (
        lambda path: rewritten(path, lambda s, t: s["facts"].update(trigger="\ud800")), "Unicode.*ud800"),
    "steps in words": (
        lambda path: rewritten(path, lambda s, t: s["facts"].update(steps="seven")),
        r"'seven' .*steps.*integer"),
    "a newer pack's": (lambda path: rewritten(path, lambda s, t: s.update(version=2)), "version 2"),
    "an unknown family": (lambda path: rewritten(path, lambda s, t: s["chain"][0].update(family="x")), "family 'x'"),
    "an enormous layer": (
        lambda path: rewritten(path, lambda s, t: s["chain"][0]["targets"].update({LAYER: [2**40, 4]})),
        r"\(1099511627776, 4\).*\(out, in\)"),
    "no list of sizes": (
        lambda path: rewritten(path, lambda s, t: s["chain"][0]["targets"].update({LAYER: [True, 4]})),
        r"\[True, 4\].*\bintegers\b"),
    "a layer without a name": (
        lambda path: rewritten(path, lambda s, t: s["chain"][0]["targets"].update({"": [6, 4]})), "''"),
    "a tensor lost": (lambda path: rewritten(path, lambda s, t: t.pop(UP)), UP),
    "a tensor too many": (lambda path: rewritten(path, lambda s, t: t.update(x=torch.ones(1))), r"\bx$"),
    "rank 0": (lambda path: rewritten(path, lambda s, t: t.update({UP: torch.ones(6, 0)})), rf"{UP}.*\(6, 0\)"),
    "turned over": (
        lambda path: rewritten(path, lambda s, t: t.update({UP: torch.ones(2, 6)})), rf"{LAYER} .*\(2, 6\)"),
    "whole numbers": (
        lambda path: rewritten(path, lambda s, t: t.update({UP: torch.ones(6, 2, dtype=torch.int32)})),
        f"torch.int32.*{UP}"),
    "NaN": (lambda path: rewritten(path, lambda s, t: t[UP].__setitem__(0, torch.nan)), f"NaN .*{UP}"),
    "an infinite alpha": (
        lambda path: rewritten(path, lambda s, t: t.update({f"{LAYER}.alpha": torch.tensor(torch.inf)})),
        f"NaN .*{LAYER}.alpha"),
}  # fmt: skip


@pytest.mark.parametrize("sort", BAD_FILES)
def test_a_bad_file_of_every_sort_is_refused_in_one_sentence(node: Any, folder: Path, sort: str) -> None:
    """The files of tests/models/files/test_corruption.py are random; these cases check the messages."""
    path = folder / save(node, factors([Target(LAYER, (6, 4))]), "hyperbooth")
    damage, message = BAD_FILES[sort]
    damage(path)
    with pytest.raises(ValueError, match=rf"^a_00001_\.safetensors .*{message}") as caught:
        node("Load", adapter_name=path.name)
    assert len(str(caught.value)) < 500 and str(caught.value).isprintable()


@pytest.mark.parametrize("format", ["hyperbooth", "kohya", "comfyui"])
def test_a_trigger_that_cannot_be_written_is_refused_before_anything_is(
    node: Any, families: Any, folder: Path, format: str
) -> None:
    with pytest.raises(ValueError, match=r"^trigger .*sks \\ud800"):
        save(node, adapter_of(*families("SD15"), "attention"), format, families("SD15")[0], trigger="sks \ud800")
    assert not list(folder.rglob("*.*"))


@pytest.mark.parametrize("format", ["hyperbooth", "kohya", "comfyui"])
def test_the_report_gives_the_rounding_error_of_half_precision(families: Any, folder: Path, format: str) -> None:
    model, clip = families("SD15")
    adapter, text = adapter_of(model, clip, "attention"), {}
    for precision in ("float32", "float16", "bfloat16"):
        done = Save.execute(adapter, f"loras/{precision}", format, precision, model)
        (text[precision],) = done.ui["text"]
    assert text["float32"].endswith("loras/float32_00001_.safetensors")
    for precision, low, high in (("float16", 1e-4, 5e-4), ("bfloat16", 1e-3, 5e-3)):
        path, rest = text[precision].split(", ", 1)
        assert path.endswith(f"loras/{precision}_00001_.safetensors") and precision in rest
        assert [low < float(figure) < high for figure in figures(rest)] == [True]
