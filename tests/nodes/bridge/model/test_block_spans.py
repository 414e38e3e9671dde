"""Every legal set of removed blocks of every family: without adapters the output is bit for bit the whole network's."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any

import comfy.model_management
import comfy.sd
import pytest
import torch
from comfy.ldm.flux.model import Flux
from comfy.ldm.modules.diffusionmodules.mmdit import MMDiT
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from helpers.training import lora, train, untouched
from hyperbooth.models.backbone.frozen_layers import frozen
from hyperbooth.nodes.bridge.model.block_spans import choose_removed_blocks, removable_blocks
from hyperbooth.nodes.bridge.model.denoiser import ComfyDenoiser
from hyperbooth.nodes.bridge.model.weight_access import access_weight
from hyperbooth.nodes.bridge.text.conditioning import ComfyTextConditioning
from hyperbooth.trainers.hollowed_net.config import HollowedNetConfig
from torch import Tensor

from tools.comfy_harness.tiny_checkpoints import FAMILIES, write
from tools.comfy_harness.tiny_checkpoints.diffusion_models import (  # fmt: skip
    FLUX2_SMALL,
    FLUX_SMALL,
    PIXART_SMALL,
    SD3_SMALL,
    flux2_dit,
    flux_dit,
    pixart_dit,
    sd3_mmdit,
)
from tools.comfy_harness.tiny_checkpoints.families import DIFFUSION, Family

TEXTS: dict[str, tuple[int, int]] = {
    "sd15": (768, 0), "sd2": (1024, 0), "sdxl": (2048, 1280), "sd3": (4096, 2048), "flux": (128, 768),
    "flux2": (128, 0),
    "pixart": (4096, 0),
}  # fmt: skip
"""Family -> widths of the text and of the pooled text."""
CONTEXT = {"target": "torch.nn.Linear", "params": {"in_features": 4096, "out_features": 256}}
DEEP = {
    "sd3": partial(sd3_mmdit, {**SD3_SMALL, "depth": 4, "context_embedder_config": CONTEXT}),
    "flux": partial(flux_dit, {**FLUX_SMALL, "depth": 2, "depth_single_blocks": 3}),
    "flux2": partial(flux2_dit, {**FLUX2_SMALL, "depth": 3, "depth_single_blocks": 2}),
    "pixart": partial(pixart_dit, {**PIXART_SMALL, "depth": 3}),
}
"""Deeper networks of families whose smallest ones have no removable blocks."""
LATENTS = {"sd3": (16, 8, 8), "flux": (16, 8, 8), "flux2": (128, 4, 4), "pixart": (4, 36, 36)}


@dataclass(frozen=True)
class Network:
    """A loaded diffusion model and an input for it."""

    model: Any
    x: Tensor
    sigma: Tensor
    cond: Any
    text: Any

    @property
    def network(self) -> Any:
        return self.model.model.diffusion_model

    def __call__(self) -> Tensor:
        return ComfyDenoiser(self.model)(self.x, self.sigma, self.cond)


@pytest.fixture(scope="module", params=TEXTS)
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    name = request.param
    parts = FAMILIES[name].parts
    make = DEEP.get(name) or parts.get(DIFFUSION)
    path = write(tmp_path_factory.mktemp("networks") / f"{name}.safetensors", Family(name, {"": make}))
    with torch.inference_mode():
        model = comfy.sd.load_diffusion_model(str(path), model_options={"dtype": torch.float32})
        comfy.model_management.load_models_gpu([model])
    draw = partial(torch.randn, generator=torch.Generator().manual_seed(0))
    width, pooled = TEXTS[name]
    size = LATENTS.get(name, (4, 16, 16))
    text = [[draw(1, 9, width), {"pooled_output": draw(1, pooled)} if pooled else {}]]
    sigmas = model.get_model_object("model_sampling").sigmas
    arguments = ComfyTextConditioning(model.model, model.load_device).arguments(text, size)
    yield Network(model, draw(2, *size), sigmas[[len(sigmas) // 4, len(sigmas) // 2]].clone(), arguments, text)
    comfy.model_management.unload_all_models()
    path.unlink()


@torch.no_grad()
def test_with_cached_activations_it_equals_the_whole_network(loaded: Network) -> None:
    whole, choices = loaded(), removable_blocks(loaded.network)
    assert whole.std() > 0 and choices
    for blocks in choices:
        with blocks.hollow.recording() as records:
            assert torch.equal(loaded(), whole), blocks.name
        with blocks.hollow.replaying(records):
            assert torch.equal(loaded(), whole), blocks.name
        with blocks.hollow.without_gradients():
            assert torch.equal(loaded(), whole), blocks.name
        assert torch.equal(loaded(), whole), blocks.name


@torch.no_grad()
def test_removed_blocks_do_not_run(loaded: Network) -> None:
    for blocks in removable_blocks(loaded.network):
        runs = 0

        def count(*_: Any) -> None:
            nonlocal runs
            runs += 1

        with blocks.hollow.recording() as records:
            loaded()
        leaves = [m for block in blocks.hollow.blocks for m in block.modules() if not list(m.children())]
        handles = [leaf.register_forward_hook(count) for leaf in leaves]
        with blocks.hollow.replaying(records):
            loaded()
        for handle in handles:
            handle.remove()
        assert runs == 0, blocks.name


def test_removed_blocks_grow_about_the_middle(loaded: Network) -> None:
    choices = removable_blocks(loaded.network)
    fractions = [blocks.fraction for blocks in choices]
    assert fractions == sorted(fractions) and fractions[0] > 0 and fractions[-1] < 1
    assert len({blocks.name for blocks in choices}) == len(choices)
    for fraction in (0.0, 0.4, 1.0):
        found = choose_removed_blocks(loaded.network, fraction)
        assert abs(found.fraction - fraction) == min(abs(each - fraction) for each in fractions)
    removed = [set(map(id, blocks.hollow.blocks)) for blocks in choices]
    assert all(smaller < larger for smaller, larger in pairwise(removed))


@pytest.mark.parametrize("way", ["recorded", "without_gradients"])
def test_gradients_reach_the_remaining_blocks(loaded: Network, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients pass a U-Net's removed blocks by the skips, a transformer's by the residual stream."""
    monkeypatch.setattr(comfy.model_management, "in_training", True)
    blocks = choose_removed_blocks(loaded.network, 0.5)
    inside = {id(p) for p in blocks.hollow.parameters()}
    with torch.inference_mode(False), torch.enable_grad():
        x = loaded.x.clone().requires_grad_()
        given = Network(loaded.model, x, loaded.sigma.clone(), _cloned(loaded.cond), loaded.text)
        with frozen(loaded.model.model, access_weight, adds_in_place=True):
            with torch.no_grad(), blocks.hollow.recording() as records:
                given()
            with blocks.hollow.replaying(records) if way == "recorded" else blocks.hollow.without_gradients():
                given().square().mean().backward()
    assert inside and torch.isfinite(x.grad).all() and x.grad.abs().sum() > 0


@pytest.mark.parametrize("storage", ["ram", "none"])
def test_the_remaining_blocks_train(loaded: Network, node: Any, storage: str) -> None:
    if storage == "none" and not isinstance(loaded.network, (UNetModel, Flux)):
        pytest.skip("one network of each kind is enough")
    (subject,) = node("SubjectFromLatents", latents=[{"samples": loaded.x}], positive=[loaded.text])
    inside = {id(m) for b in choose_removed_blocks(loaded.network, 0.5).hollow.blocks for m in b.modules()}
    removed = {name for name, module in loaded.model.model.named_modules() if id(module) in inside}
    method = lora(targets="all linear", learning_rate=3e-3)
    with untouched(loaded.model):
        adapter, losses, _ = train(
            node,
            (loaded.model,),
            subject,
            method,
            steps=5 if storage == "ram" else 2,
            batch_size=2,
            hollow=HollowedNetConfig(fraction=0.5, samples=2, storage=storage),
        )
    assert adapter.targets() and not removed & adapter.targets().keys()
    if storage == "ram":  # the same noise at every step
        assert losses["loss"][-1] < 0.98 * losses["loss"][0]
    idle = [name for name, a in adapter.adapters[0].layers.items() if not a.up.abs().max()]
    assert all("context_block.mlp" in name or "context_block.attn" in name for name in idle), idle


def test_texts_of_several_lengths_are_recorded_in_one_batch(loaded: Network, node: Any) -> None:
    """Their streams have several lengths too. With a learning rate near 0, losses equal the whole network's."""
    if not isinstance(loaded.network, (MMDiT, Flux)):
        pytest.skip("its blocks have no text stream")
    ((text, pooled),) = loaded.text
    texts = [loaded.text, [[torch.cat([text, text[:, :5]], 1), pooled]]]
    short, long = (
        node("SubjectFromLatents", latents=[{"samples": x[None]}], positive=[cond])[0]
        for x, cond in zip(loaded.x, texts, strict=True)
    )
    subject, still = replace(short, examples=short.examples + long.examples), lora(learning_rate=1e-12)
    hollow = HollowedNetConfig(fraction=0.5, samples=2, storage="ram")
    _, recorded, _ = train(node, (loaded.model,), subject, still, steps=2, batch_size=2, hollow=hollow)
    _, whole, _ = train(node, (loaded.model,), subject, still, steps=1, batch_size=2)
    assert recorded["loss"] == pytest.approx(whole["loss"] * 2, rel=1e-5)


@pytest.mark.parametrize("fraction", [0.0, 1.0])
def test_the_node_reports_the_smallest_and_the_largest_fraction(loaded: Network, node: Any, fraction: float) -> None:
    (subject,) = node("SubjectFromLatents", latents=[{"samples": loaded.x}], positive=[loaded.text])
    _, report = node(
        "HollowedNet", model=loaded.model, fraction=fraction, samples=1, storage="ram", subject=subject
    )  # fmt: skip
    assert "hollow LoRA" in report


def _cloned(cond: Any) -> Any:
    return {name: v.clone() if isinstance(v, Tensor) else v for name, v in cond.items()}
