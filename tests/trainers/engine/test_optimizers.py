"""What all optimizers have in common."""

import pytest
import torch
from hyperbooth.trainers.engine.optimizers import OPTIMIZERS


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_raises_the_version_of_the_parameters(name: str) -> None:
    """PyTorch's fused AdamW does not; what is computed once for each value of a parameter (PaRa's Q) would stay."""
    parameter = torch.nn.Parameter(torch.ones(4, 3))
    optimizer = OPTIMIZERS[name]([{"params": [parameter], "lr": 0.1}])
    parameter.grad = torch.ones(4, 3)
    before, version = parameter.detach().clone(), parameter._version
    optimizer.step()
    assert not torch.equal(parameter, before)
    assert parameter._version > version
