"""Full DreamBooth: every value of the weights, as an adapter and as a checkpoint."""

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.sd
import comfy.utils
import pytest
import torch
import torch.nn.functional as F
from helpers.training import QUIET, lora, relative, train, untouched
from hyperbooth.models.adapters import Full, FullConfig
from hyperbooth.models.adapters.layer_context import LayerContext
from hyperbooth.models.files.adapter_file import load_adapter, save_adapter
from hyperbooth.nodes.bridge.text.conditioning import encode_prompt
from hyperbooth.nodes.bridge.training_session import training_session
from hyperbooth.trainers.config import Method
from hyperbooth.trainers.dreambooth.config import targets_of


def full(targets: str = "all weights", **settings: Any) -> Method:
    return Method(
        family="full",
        config=FullConfig(),
        targets=targets,
        **{"learning_rate": 1e-4, "text_encoder_lr": 1e-4, **settings},
    )


def output(model: Any, cond: torch.Tensor) -> torch.Tensor:
    """Return the U-Net's estimate for fixed noise, with the patches of the model."""
    with torch.inference_mode():
        comfy.model_management.load_models_gpu([model])
        x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1)) * 5
        return model.model.apply_model(x, torch.tensor([5.0]), c_crossattn=cond).clone()


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
def test_trains_and_leaves_the_model_unchanged(node: Any, loaded: Any, subject: Any, optimizer: str) -> None:
    options = replace(QUIET, optimizer=optimizer)
    with untouched(*loaded[:2]):
        adapter, loss_map, report = train(node, loaded, subject, full(), 9, options=options)
    losses = loss_map["loss"]
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])
    assert report.startswith("full (")
    assert all(p.detach().any() for p in adapter.parameters())


def test_every_matrix_and_kernel_trains_and_a_rule_selects(loaded: Any, subject: Any) -> None:
    with training_session(loaded[0], QUIET, subject, batch_size=1, clip=loaded[1]) as session:
        everything = targets_of(full(text_encoder=True), session.model.shapes)
        assert {target.name for target in everything} == set(session.model.shapes)
        attention = targets_of(full("attention"), session.model.shapes)
        assert {target.name for target in attention} < {target.name for target in everything}


def test_gradients_are_those_of_the_weights_themselves(loaded: Any, subject: Any) -> None:
    """Compare with autograd on a float64 copy of two layers with W + D for a weight."""
    with training_session(loaded[0], QUIET, subject, batch_size=1) as session:
        names = [name for name, shape in session.model.shapes.items() if len(shape) == 4 and shape[-1] == 3][:1]
        names += [name for name, shape in session.model.shapes.items() if len(shape) == 2][:1]
        for name in names:
            layer, shape = session.model.layers[name], session.model.shapes[name]
            generator = torch.Generator().manual_seed(0)
            diff = torch.randn(shape[0], math.prod(shape[1:]), generator=generator) * 0.1
            adapter = Full(diff)
            size = (2, shape[1], 6, 6) if len(shape) == 4 else (2, 5, shape[1])
            x = torch.randn(size, generator=generator).requires_grad_()
            y = adapter.adapted_forward(
                LayerContext(layer=layer, forward=layer.forward, access_weight=session.model.access_weight)
            )(x)
            seed = torch.randn(y.shape, generator=generator)
            (y * seed).sum().backward()
            weight = (layer.weight.double() + diff.double().view(shape)).requires_grad_()
            x64 = x.detach().double().requires_grad_()
            bias = None if layer.bias is None else layer.bias.double()
            if len(shape) == 4:
                exact = F.conv2d(x64, weight, bias, layer.stride, layer.padding)
            else:
                exact = F.linear(x64, weight, bias)
            (exact * seed).sum().backward()
            assert relative(y.double(), exact) < 1e-5
            assert relative(x.grad.double(), x64.grad) < 1e-5
            assert relative(adapter.diff.grad.double().view(shape), weight.grad) < 1e-5


def test_the_file_applies_as_the_adapter_does_and_by_the_stock_loader(
    node: Any, loaded: Any, subject: Any, tmp_path: Path
) -> None:
    model, clip, _ = loaded
    adapter, _, _ = train(node, loaded, subject, full(text_encoder=True), 3, clip=clip)
    save_adapter(adapter, tmp_path / "full.safetensors")
    cond = encode_prompt(clip, "a photo of sks dog")[0][0]
    ours, ours_clip = node("Apply", model=model, adapter=adapter, strength_model=0.7, clip=clip, strength_clip=0.6)
    again, _ = node("Apply", model=model, adapter=load_adapter(tmp_path / "full.safetensors"), strength_model=0.7)
    with torch.inference_mode():
        file = comfy.utils.load_torch_file(str(tmp_path / "full.safetensors"), safe_load=True)
        stock, stock_clip = comfy.sd.load_lora_for_models(model, clip, file, 0.7, 0.6)
        conds = [encode_prompt(c, "a photo of sks dog")[0][0] for c in (ours_clip, stock_clip)]
    assert torch.equal(*conds) and not torch.equal(conds[0], cond)
    assert torch.equal(output(ours, cond), output(again, cond))
    assert relative(output(ours, cond), output(stock, cond)) < 1e-5
    assert relative(output(ours, cond), output(model, cond)) > 1e-4


@pytest.mark.parametrize("order", [("lora", "full"), ("full", "lora"), ("full", "full")], ids=" then ".join)
def test_in_a_stack_training_matches_apply(node: Any, loaded: Any, subject: Any, order: tuple[str, str]) -> None:
    model = loaded[0]
    kinds = {"lora": lora(learning_rate=1e-2), "full": full("attention", learning_rate=1e-3)}
    links = [train(node, loaded, subject, kinds[kind], 3, seed=place)[0] for place, kind in enumerate(order)]
    (chain,) = node("Combine", first=links[0], second=links[1])
    example = subject.examples[0]
    patched = output(node("Apply", model=model, adapter=chain, strength_model=1.0)[0], example.cond[0][0])
    with training_session(model, QUIET, subject, batch_size=1) as session, torch.no_grad():
        x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1)) * 5
        with chain.injected(session.model.layers, session.model.access_weight):
            attached = session.denoiser(x, torch.tensor([5.0]), session.text.condition([example]))
        alone = session.denoiser(x, torch.tensor([5.0]), session.text.condition([example]))
    assert relative(attached, patched) < 0.02 * relative(attached, alone)


def test_the_stock_save_checkpoint_keeps_the_result(
    node: Any, loaded: Any, subject: Any, tmp_path: Path, output_folder: Path
) -> None:
    model, clip, vae = loaded
    adapter, _, _ = train(node, loaded, subject, full(), 3)
    ours, _ = node("Apply", model=model, adapter=adapter, strength_model=1.0)
    with torch.inference_mode():
        path = str(tmp_path / "personalized.safetensors")
        comfy.sd.save_checkpoint(path, ours, clip, vae, None, {}, {})
        saved, *_ = comfy.sd.load_checkpoint_guess_config(path)
    cond = encode_prompt(clip, "a photo of sks dog")[0][0]
    # Both weights are the checkpoint's own float16, rounded from W + D.
    assert relative(output(saved, cond), output(ours, cond)) < 1e-3
    assert relative(output(ours, cond), output(model, cond)) > 1e-3


def test_conversion_to_a_lora_is_refused(node: Any, loaded: Any, subject: Any) -> None:
    adapter, _, _ = train(node, loaded, subject, full("attention"), 1)
    with pytest.raises(ValueError, match=r"\bLoRA\b.*'hyperbooth'.*'comfyui'"):
        node("ToLoRA", adapter=adapter, model=loaded[0])


def test_info_shows_where_it_changes(node: Any, loaded: Any, subject: Any) -> None:
    adapter, _, _ = train(node, loaded, subject, full("attention"), 2)
    report, chart = node("Info", adapter=adapter, model=loaded[0])
    assert re.search(r"full \(.*\) on 32 layers", report) and chart.shape[-1] == 3
