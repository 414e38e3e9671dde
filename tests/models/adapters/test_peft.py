"""PaRa equals PEFT's implementation of it, where PEFT is installed."""

from importlib.util import find_spec

import pytest
import torch
from hyperbooth.models.adapters import PaRa
from hyperbooth.models.adapters.stack import Adapter, AdapterStack
from hyperbooth.models.adapters.targets import Target
from torch import Tensor, nn

if find_spec("peft") is None or find_spec("peft.tuners.deft") is None:
    pytest.skip("needs a PEFT that has PaRa (DEFT)", allow_module_level=True)

SHAPES = [((24, 20), True), ((20, 24), False)]


def theirs(layer: nn.Linear, basis: Tensor) -> nn.Module:
    """Return PEFT's layer around ours, with the basis."""
    from peft import DeftConfig, inject_adapter_in_model

    config = DeftConfig(r=basis.shape[1], target_modules=["0"], para=True, decomposition_method="qr")
    made = inject_adapter_in_model(config, nn.Sequential(layer))[0]
    with torch.no_grad():
        made.deft_P["default"].copy_(basis)
    return made


@pytest.mark.parametrize(("shape", "bias"), SHAPES, ids=["tall, biased", "wide"])
def test_weights_outputs_and_gradients_agree(shape: tuple[int, int], bias: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer = nn.Linear(shape[1], shape[0], bias=bias).requires_grad_(False)
        basis = torch.randn(shape[0], 3, generator=generator)
        peft = theirs(layer, basis)
    link = Adapter("para", {"l": PaRa(basis.clone(), shape[1])}, {"l": Target("l", shape)})
    adapter = link.layers["l"]
    torch.testing.assert_close(adapter.delta(layer.weight), peft.get_delta_weight("default"), rtol=1e-5, atol=1e-6)

    x = torch.randn(2, 5, shape[1], generator=generator)
    seed = torch.randn(2, 5, shape[0], generator=generator)
    expected = peft(x)
    (expected * seed).sum().backward()
    with AdapterStack((link,)).injected({"l": layer}):
        y = layer(x)
    (y * seed).sum().backward()
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(adapter.basis.grad, peft.deft_P["default"].grad, rtol=1e-4, atol=1e-5)
