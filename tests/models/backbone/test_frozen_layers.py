"""Frozen layers: the same gradients, no weight stored for backward, the network restored."""

import pytest
import torch
from hyperbooth.models.backbone.frozen_layers import frozen
from hyperbooth.models.backbone.gradient_checkpointing import gradient_checkpointing
from torch import Tensor, nn


class Scale(nn.Module):
    """A module with a bare parameter, as in DiTs."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((16, 1, 1), 1.5))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(4, 16, 3, padding=1, stride=2), nn.GroupNorm(4, 16), nn.SiLU(), Scale(),
        nn.Conv2d(16, 16, 3, dilation=2),
        nn.Flatten(2), nn.Linear(25, 12), nn.LayerNorm(12), nn.GELU(), nn.Linear(12, 3, bias=False), nn.RMSNorm(3),
    ).requires_grad_(False)  # fmt: skip


def gradient(net: nn.Module, x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    net(x).square().sum().backward()
    return x.grad


X = torch.randn(2, 4, 17, 17, generator=torch.Generator().manual_seed(0))


def test_gradients_equal_those_of_plain_autograd() -> None:
    net = network()
    plain = gradient(net, X)
    with frozen(net):
        torch.testing.assert_close(gradient(net, X), plain)


def test_gradients_flow_through_inference_tensors() -> None:
    plain = gradient(network(), X)
    with torch.inference_mode():
        net = network()
    with pytest.raises(RuntimeError, match="Inference tensors"):
        gradient(net, X)
    with frozen(net):
        torch.testing.assert_close(gradient(net, X), plain)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn])
def test_weights_of_other_dtypes_are_cast_at_access(dtype: torch.dtype) -> None:
    rounded, kept = network(), network()
    for a, b in zip(rounded, kept, strict=True):
        if isinstance(a, (nn.Linear, nn.Conv2d)):
            a.weight.data = a.weight.data.to(dtype).float()
            b.weight.data = b.weight.data.to(dtype)
    with frozen(kept):
        torch.testing.assert_close(gradient(kept, X), gradient(rounded, X))


def test_no_weight_is_stored_for_backward() -> None:
    layer = nn.Linear(512, 512).requires_grad_(False)
    kept: list[int] = []
    with (
        frozen(layer),
        torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t),
    ):
        layer(torch.randn(2, 512, requires_grad=True)).sum()
    assert kept == []


def test_the_network_is_restored_after_an_error() -> None:
    net = network()
    before = {name: id(tensor) for name, tensor in net.named_parameters()}
    with pytest.raises(ZeroDivisionError), frozen(net):
        gradient(net, X)
        1 / 0  # noqa: B018
    assert {name: id(tensor) for name, tensor in net.named_parameters()} == before
    assert not any("forward" in vars(module) for module in net.modules())


def test_a_forward_that_was_replaced_before_is_restored() -> None:
    layer = nn.Linear(3, 3)
    theirs = layer.forward = lambda x: x
    with frozen(layer):
        assert layer.forward is not theirs
    assert layer.forward is theirs


def test_in_place_sums_do_not_modify_the_input_stored_by_a_norm() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.linear = nn.LayerNorm(8), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            x = x * 1.0
            x += self.linear(self.norm(x))
            return x

    torch.manual_seed(0)
    net = Residual().requires_grad_(False)
    x = torch.randn(2, 8)
    with frozen(net, adds_in_place=True):
        in_place = gradient(net, x)
    y = x.clone().requires_grad_()
    (y + net.linear(net.norm(y))).square().sum().backward()
    torch.testing.assert_close(in_place, y.grad)


def test_in_place_sums_on_the_output_of_a_layer() -> None:
    """Flux computes ``img = img_in(img)``, then ``img += ...`` in every block."""
    torch.manual_seed(0)
    entrance, layer = (nn.Linear(8, 8).requires_grad_(False) for _ in range(2))
    x, change = torch.randn(2, 5, 8), torch.randn(8, requires_grad=True)
    with frozen(nn.ModuleList([entrance, layer])):
        y = entrance(x * change)
        y += layer(y)
        y.square().sum().backward()
    ours, change.grad = change.grad, None
    h = entrance(x * change)
    (h + layer(h)).square().sum().backward()
    torch.testing.assert_close(ours, change.grad)


def test_in_place_sums_do_not_modify_the_input_of_custom_norms() -> None:
    """T5's norm is a plain module with a weight."""

    class Norm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.full((8,), 1.5))

        def forward(self, x: Tensor) -> Tensor:
            return self.weight * x * x.pow(2).mean(-1, keepdim=True).rsqrt()

    norm = Norm().requires_grad_(False)
    x = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
    with frozen(norm, adds_in_place=True):
        y = x.clone().requires_grad_()
        z = y * 1.0
        z += norm(z)
        z.square().sum().backward()
    plain = x.clone().requires_grad_()
    (plain + norm(plain)).square().sum().backward()
    torch.testing.assert_close(y.grad, plain.grad)
    assert "forward" not in vars(norm)


def test_checkpointed_blocks_may_add_in_place() -> None:
    """A block that ran again on its modified input would give wrong gradients without an error."""

    class Block(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            x += super().forward(x).sin()
            return x

    torch.manual_seed(0)
    blocks = nn.Sequential(Block(8, 8), Block(8, 8)).requires_grad_(False)
    x = torch.randn(4, 8)
    gradients = []
    for units in ((), blocks):
        y = x.clone().requires_grad_()
        with gradient_checkpointing(units):
            blocks(y * 1.0).square().sum().backward()
        gradients.append(y.grad)
    torch.testing.assert_close(gradients[1], gradients[0])


def test_checkpointing_gives_the_same_gradients_and_stores_less() -> None:
    blocks = nn.Sequential(*[nn.Sequential(nn.Linear(32, 32), nn.GELU(), nn.Linear(32, 32)) for _ in range(4)])
    x = torch.randn(4, 32)

    def stored_bytes() -> tuple[int, Tensor]:
        total = 0

        def count(tensor: Tensor) -> Tensor:
            nonlocal total
            total += tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda t: t):
            y = x.clone().requires_grad_()
            blocks(y).sum().backward()
        return total, y.grad

    all_bytes, plain = stored_bytes()
    with gradient_checkpointing(blocks):
        fewer_bytes, checkpointed = stored_bytes()
    torch.testing.assert_close(checkpointed, plain)
    assert fewer_bytes < all_bytes
    assert not any("forward" in vars(block) for block in blocks)
