"""Adapter files between programs: what we write others read alike, what they write we read."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import comfy.lora
import comfy.model_patcher
import comfy.sd
import comfy.supported_models
import comfy.utils
import folder_paths
import pytest
import torch
from hyperbooth.models.adapter_set import AdapterSet, Link
from hyperbooth.models.adapters import LoRAConfig
from hyperbooth.models.targets import Target, select_targets
from hyperbooth.nodes.bridge.session import adaptable_layers, layer_shapes
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

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
    """The family's text encoders in full size, without numbers."""
    import comfy.text_encoders.flux
    import comfy.text_encoders.sd3_clip

    if kind == "SDXL":
        return comfy.sdxl_clip.SDXLClipModel(device="meta")
    if kind == "SD3":
        return comfy.text_encoders.sd3_clip.SD3ClipModel(True, True, True, dtype_t5=torch.float16, device="meta")
    return comfy.text_encoders.flux.FluxClipModel(dtype_t5=torch.float16, device="meta")


def made(kind: str) -> tuple[Any, Any]:
    """MODEL and CLIP of a small network of the family; names and shapes are all that files depend on."""
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
    """``families(kind) -> (MODEL, CLIP)``."""
    kept: dict[str, tuple[Any, Any]] = {"SD15": loaded[:2]}
    return lambda kind: kept.setdefault(kind, made(kind)) if kind not in kept else kept[kind]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """ComfyUI's output folder, whose ``loras`` Load lists."""
    before = folder_paths.get_output_directory()
    folder_paths.set_output_directory(str(tmp_path))
    _, suffixes = folder_paths.folder_names_and_paths["loras"]
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(tmp_path / "loras")], suffixes))
    yield tmp_path
    folder_paths.set_output_directory(before)


def factors(targets: list[Target], rank: int = 2, alpha: float = 3.0, seed: int = 0, **facts: Any) -> AdapterSet:
    """An adapter with random factors."""
    generator = torch.Generator().manual_seed(seed)
    link = Link.create("lora", targets, LoRAConfig(rank, alpha), generator)
    for adapter in link.adapters.values():
        adapter.up.data.normal_(generator=generator)
    return AdapterSet((link,), facts)


def targets_of(model: Any, clip: Any, rule: str = EVERYTHING) -> list[Target]:
    """Every layer of the diffusion model that the rule names, and attention and MLP of the encoders' second layer."""
    shapes = layer_shapes(adaptable_layers(model, clip))
    unet = {name: shape for name, shape in shapes.items() if name.startswith("diffusion_model.")}
    text = {
        name: shape for name, shape in shapes.items()
        if name.startswith("text_encoders.") and ".layers.1." in name
    }  # fmt: skip
    return select_targets(unet, rule) + [Target(name, shape) for name, shape in text.items()]


def adapter_of(model: Any, clip: Any, rule: str = EVERYTHING, **facts: Any) -> AdapterSet:
    return factors(targets_of(model, clip, rule), base=type(model.model.model_config).__name__, **facts)


def changes(model: Any, clip: Any = None) -> dict[str, Tensor]:
    """The change of every weight, by the stock code that computes it when the model is used."""
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


def save(node: Any, adapter: AdapterSet, format: str, model: Any = None, precision: str = "float32", **more: Any) -> str:
    (path,) = node(
        "Save", adapter=adapter, filename_prefix="loras/a", format=format, precision=precision, model=model, **more
    )
    return path


def stock(model: Any, clip: Any, path: Path, strengths: tuple[float, float] = (1.0, 1.0)) -> tuple[Any, Any]:
    with torch.inference_mode():
        return comfy.sd.load_lora_for_models(model, clip, comfy.utils.load_torch_file(str(path)), *strengths)


def apply(node: Any, model: Any, clip: Any, adapter: AdapterSet, strengths: tuple[float, float] = (1.0, 1.0)) -> Any:
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
    assert settings in again.chain[0].describe()
    assert again.facts["base"] == kind


@pytest.mark.parametrize("format", ["hyperbooth", "comfyui"])
def test_files_in_comfyuis_names_need_no_model(node: Any, families: Any, folder: Path, format: str) -> None:
    model, clip = families("SD15")
    adapter = adapter_of(model, clip)
    name = save(node, adapter, format).removeprefix("loras/")
    (again,) = node("Load", adapter_name=name)
    assert again.targets() == adapter.targets()
    assert again.chain[0].describe() == adapter.chain[0].describe()
    for layer, ours in adapter.chain[0].adapters.items():
        theirs = again.chain[0].adapters[layer]
        assert torch.equal(ours.up, theirs.up) and torch.equal(ours.down, theirs.down)


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
def test_names_are_the_dialects_own(node: Any, families: Any, folder: Path, kind: str, format: str) -> None:
    model, clip = families(kind)
    tensors = load_file(folder / save(node, adapter_of(model, clip), format, model))
    assert [name for name in NAMES[kind, format] if name not in tensors] == []
    assert any(name.endswith(".alpha") for name in tensors) == (format == "kohya")
    assert all(tensor.is_contiguous() for tensor in tensors.values())


def diffusers_twins(model: Any) -> tuple[Any, Any]:
    """diffusers' own U-Net, and transformers' text encoder of two layers, of the small SD1.5's shape."""
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
def test_the_diffusers_export_loads_in_diffusers(
    node: Any, families: Any, folder: Path, rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the functions of diffusers' pipelines: the same change of every weight, and nothing else changed."""
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


def merged(part: Any) -> dict[str, Tensor]:
    """The weights with their LoRAs in them, under the names they have without."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for module in part.modules():
        if isinstance(module, BaseTunerLayer):
            module.merge()
    state = {name.replace(".base_layer", ""): tensor for name, tensor in part.state_dict().items()}
    return {name: tensor for name, tensor in state.items() if ".lora_" not in name}
