"""Global settings that another extension has left behind do not reach a training, and are as before after it."""

import pytest
import torch
from hyperbooth.trainers.torch_globals import pinned_globals


def state() -> tuple[object, ...]:
    return (
        torch.get_default_dtype(),
        torch.get_default_device(),
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.is_autocast_enabled("cpu"),
        getattr(torch.backends.cuda.matmul, "allow_fp16_accumulation", None),
    )


def test_the_settings_are_the_usual_ones_inside_and_as_before_outside() -> None:
    usual = state()
    try:
        torch.set_default_dtype(torch.bfloat16)
        torch.set_default_device("meta")
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.set_autocast_enabled("cpu", True)
        leaked = state()
        with pinned_globals():
            assert state() == (torch.float32, torch.device("cpu"), False, False, False, usual[-1])
            assert torch.randn(2).dtype == torch.float32 and torch.zeros(1).device.type == "cpu"
        assert state() == leaked
        with pytest.raises(RuntimeError, match="stop"), pinned_globals():
            raise RuntimeError("stop")
        assert state() == leaked
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
        torch.use_deterministic_algorithms(False)
        torch.set_autocast_enabled("cpu", False)
    assert state() == usual
