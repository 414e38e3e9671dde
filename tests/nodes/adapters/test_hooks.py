"""ComfyUI's hooks and their schedules on our files: an adapter for one prompt, or for a part of the sampling."""

from pathlib import Path
from typing import Any

import comfy.hooks
import comfy.model_management
import comfy.sample
import folder_paths
import pytest
import torch
from comfy_extras import nodes_hooks
from helpers.adapters import literal, stack_of
from helpers.training import PROMPT, relative, untouched
from hyperbooth.models.files.adapter_file import save_adapter
from hyperbooth.nodes.bridge.adapters.patching import base_weights
from hyperbooth.nodes.bridge.text.conditioning import encode_prompt
from torch import Tensor

FAMILIES = [("lidb",), ("para", "lora")]
NAME = "hooked.safetensors"
EMPTY = torch.zeros(1, 4, 8, 8)
by_family = pytest.mark.parametrize("families", FAMILIES, ids=", ".join)


@pytest.fixture
def loras(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the empty folder that the stock nodes look in."""
    kinds = folder_paths.supported_pt_extensions
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(tmp_path)], kinds))
    return tmp_path


def hooked(strength_model: float, strength_clip: float | None = None) -> Any:
    """Return the file's HOOKS of *Create Hook LoRA* or, without ``strength_clip``, of its model-only kind."""
    if strength_clip is None:
        return nodes_hooks.CreateHookLoraModelOnly().create_hook_model_only(NAME, strength_model)[0]
    return nodes_hooks.CreateHookLora().create_hook(NAME, strength_model, strength_clip)[0]


def scheduled(hooks: Any, *keyframes: tuple[float, float]) -> Any:
    """Return the same hooks at the strength of each ``(strength, start_percent)``."""
    group = None
    for strength, start in keyframes:
        (group,) = nodes_hooks.CreateHookKeyframe().create_hook_keyframe(strength, start, group)
    return nodes_hooks.SetHookKeyframes().set_hook_keyframes(hooks, group)[0]


def on_clip(clip: Any, hooks: Any) -> Any:
    """Return a CLIP whose prompts carry the hooks to the sampler too."""
    (clip,) = nodes_hooks.SetClipHooks().apply_hooks(clip, schedule_clip=False, apply_to_conds=True, hooks=hooks)
    return clip


def prompts(clip: Any) -> list[Any]:
    return [encode_prompt(clip, PROMPT), encode_prompt(clip, "")]


def on_conds(conds: list[Any], hooks: Any) -> list[Any]:
    properties = nodes_hooks.ConditioningSetProperties()
    return [properties.set_properties(cond, 1.0, "default", hooks=hooks)[0] for cond in conds]


def picture(model: Any, conds: list[Any]) -> Tensor:
    """Return the latents that the stock sampler makes of fixed noise."""
    return sampled(model, conds, EMPTY, comfy.sample.prepare_noise(EMPTY, 5))


def sampled(model: Any, conds: list[Any], latent: Tensor, noise: Tensor, **stage: Any) -> Tensor:
    """Sample as the stock KSampler does or, for a part of the steps, KSampler (Advanced)."""
    return comfy.sample.sample(
        model, noise, 4, 3.0, "euler", "normal", *conds, latent, disable_pbar=True, **stage
    )  # fmt: skip


def in_turn(first: Any, then: Any, conds: list[Any]) -> Tensor:
    """Sample the first of the steps by one model, the others by another."""
    noise = comfy.sample.prepare_noise(EMPTY, 5)
    begun = sampled(first, conds, EMPTY, noise, start_step=0, last_step=1, force_full_denoise=False)
    return sampled(then, conds, begun, torch.zeros_like(noise), start_step=1, disable_noise=True)


@by_family
@torch.inference_mode()
def test_hooks_of_the_model_alone(node: Any, loaded: Any, loras: Path, families: tuple[str, ...]) -> None:
    """At 0 nothing changes, at 1 it is Apply, and switched off after a step it is both models in turn."""
    model, clip, _ = loaded
    adapter = stack_of(families, loaded)
    save_adapter(adapter, loras / NAME)
    applied, _ = node("Apply", model=model, adapter=adapter, strength_model=1.0)
    conds = prompts(clip)
    expected = in_turn(applied, model, conds)
    full, base = picture(applied, conds), picture(model, conds)
    hooks = hooked(1.0)
    with untouched(model, clip):
        off, on, half = (
            picture(model, on_conds(conds, scheduled(hooks, *keyframes)))
            for keyframes in ([(0.0, 0.0)], [(1.0, 0.0)], [(1.0, 0.0), (0.0, 0.2)])
        )
        without_keyframes = picture(model, on_conds(conds, hooks))
    assert torch.equal(off, base)
    assert relative(on, full) < 1e-6 and torch.equal(without_keyframes, on)
    assert relative(full, base) > 1e-3
    assert relative(half, expected) < 1e-6
    way = ((half - base) * (full - base)).sum() / (full - base).square().sum()
    assert 0 < way < 1 and relative(half, base) > 1e-3 and relative(half, full) > 1e-3
    assert torch.equal(picture(model, conds), base)


@by_family
@torch.inference_mode()
def test_hooks_of_both_by_set_clip_hooks(node: Any, loaded: Any, loras: Path, families: tuple[str, ...]) -> None:
    model, clip, _ = loaded
    adapter = stack_of(families, loaded, text=True)
    save_adapter(adapter, loras / NAME)
    strengths = {"strength_model": 0.8, "strength_clip": 0.6}
    applied, text = node("Apply", model=model, adapter=adapter, clip=clip, **strengths)
    full, base = picture(applied, prompts(text)), picture(model, prompts(clip))
    with untouched(model, clip):
        on = picture(model, prompts(on_clip(clip, hooked(**strengths))))
        off = picture(model, prompts(on_clip(clip, hooked(0.0, 0.0))))
        again = picture(model, prompts(clip))
    assert relative(on, full) < 1e-6 and relative(full, base) > 1e-3
    assert torch.equal(off, base) and torch.equal(again, base)


@torch.inference_mode()
def test_a_schedule_at_half_the_strength_is_apply_at_half(node: Any, loaded: Any, loras: Path) -> None:
    """Every adapter of the stack has the strength times that of the keyframe, as in Apply."""
    model, clip, _ = loaded
    adapter = stack_of(("para", "lora"), loaded)
    save_adapter(adapter, loras / NAME)
    applied, _ = node("Apply", model=model, adapter=adapter, strength_model=0.4)
    conds = prompts(clip)
    expected = picture(applied, conds)
    assert relative(picture(model, on_conds(conds, scheduled(hooked(0.8), (0.5, 0.0)))), expected) < 1e-6


@torch.inference_mode()
def test_a_hook_on_a_model_with_patches(node: Any, loaded: Any, loras: Path) -> None:
    """ComfyUI applies hooks to the patched weights, after every patch of the MODEL."""
    model, clip, _ = loaded
    para, lora = stack_of(("para",), loaded), stack_of(("lora",), loaded)
    save_adapter(para, loras / NAME)
    first, _ = node("Apply", model=model, adapter=lora, strength_model=1.0)
    both, _ = node("Apply", model=first, adapter=para, strength_model=1.0)
    conds = prompts(clip)
    expected = picture(both, conds)
    assert relative(picture(first, on_conds(conds, hooked(1.0))), expected) < 1e-3


@torch.inference_mode()
def test_an_export_leaves_hooks_out(node: Any, loaded: Any, loras: Path) -> None:
    """Exports take the MODEL's own weights, also while a hook is in place."""
    model, *_ = loaded
    adapter = stack_of(("para",), loaded)
    save_adapter(adapter, loras / NAME)
    name = next(iter(adapter.targets()))
    picture(model, prompts(loaded[1]))
    plain = base_weights(model)(name).clone()
    carrier, hooks = model.clone(), hooked(1.0)
    carrier.register_all_hook_patches(hooks, comfy.hooks.create_target_dict(comfy.hooks.EnumWeightTarget.Model))
    comfy.model_management.load_models_gpu([carrier])
    carrier.patch_hooks(hooks)
    try:
        now = carrier.model.state_dict()[name + ".weight"]
        assert relative(now.double(), literal(adapter, name, plain, 1.0).view_as(plain)) < 1e-3
        assert torch.equal(base_weights(carrier)(name), plain)
    finally:
        carrier.unpatch_hooks()
