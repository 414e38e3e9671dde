"""Offloading of removed blocks' weights and their return, as far as a machine without a GPU can show it."""

import logging
from typing import Any

import comfy.model_management
import pytest
import torch
from comfy.quant_ops import QuantizedTensor
from helpers.training import output, untouched
from hyperbooth.nodes.bridge.model.block_spans import choose_removed_blocks
from hyperbooth.nodes.bridge.model.offload import has_offload_device, offloaded
from torch import nn


def away_from(load_device: str, model: Any, offload_device: str = "cpu") -> Any:
    """Return the MODEL as if its training device were ``load_device``."""
    patcher = model.clone()
    patcher.load_device, patcher.offload_device = torch.device(load_device), torch.device(offload_device)
    return patcher


def linears(hollow: Any) -> list[nn.Linear]:
    return [module for block in hollow.blocks for module in block.modules() if isinstance(module, nn.Linear)]


def test_without_memory_to_move_back_a_layer_works_from_the_offload_device(
    loaded: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Activations that an error's frames still hold can fill the device; the model must sample as before."""
    caplog.set_level(logging.INFO)
    model, clip, _ = loaded
    with untouched(model):
        before = output(model, clip)
        hollow = choose_removed_blocks(model.model.diffusion_model, 0.7).hollow
        layer = linears(hollow)[0]

        def full(*_: Any) -> None:
            raise torch.OutOfMemoryError

        with pytest.raises(KeyError), offloaded(away_from("meta", model), hollow):
            monkeypatch.setattr(layer, "to", full, raising=False)
            raise KeyError
        monkeypatch.undo()
        assert ("hyperbooth", logging.INFO) in [record[:2] for record in caplog.record_tuples]
        assert layer.comfy_cast_weights
        assert torch.equal(output(model, clip), before)
        comfy.model_management.unload_all_models()
        assert not layer.comfy_cast_weights


def test_quantized_weights_are_offloaded_whole(loaded: Any) -> None:
    hollow = choose_removed_blocks(loaded[0].model.diffusion_model, 0.7).hollow
    layer = linears(hollow)[0]
    with torch.inference_mode():
        quantized = QuantizedTensor.from_float(torch.randn(32, 32), "TensorCoreFP8E4M3Layout")
    kept = {module: dict(module._parameters) for block in hollow.blocks for module in block.modules()}
    copies = {m: {name: nn.Parameter(p.data.clone(), False) if p is not None else None for name, p in ps.items()}
              for m, ps in kept.items()}  # fmt: skip
    copies[layer]["weight"] = nn.Parameter(quantized, requires_grad=False)
    try:
        for module, parameters in copies.items():
            module._parameters.update(parameters)
        with pytest.raises(NotImplementedError), offloaded(away_from("cpu", loaded[0], "meta"), hollow):
            device = layer.weight._qdata.device
        assert device.type == "meta"  # from which no data returns
    finally:
        for module, parameters in kept.items():
            module._parameters.update(parameters)


def test_a_gpu_that_shares_main_memory_has_no_offload_device(loaded: Any) -> None:
    assert has_offload_device(away_from("cuda", loaded[0])) and not has_offload_device(away_from("mps", loaded[0]))
    assert not has_offload_device(away_from("cpu", loaded[0])) and not has_offload_device(
        away_from("cuda", loaded[0], "cuda")
    )
