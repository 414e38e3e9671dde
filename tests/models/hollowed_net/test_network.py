"""The formulas of a network without its middle blocks, written out in float64."""

import pytest
import torch
from hyperbooth.models.hollowed_net.network import HollowedNetwork, Span
from torch import Tensor, nn


class TwoStreamBlock(nn.Module):
    """A transformer-like block of two streams; what it adds to each depends on both."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.f = nn.Linear(2 * width, 2 * width, dtype=torch.float64)

    def forward(self, a: Tensor, b: Tensor, scale: float = 1.0) -> tuple[Tensor, Tensor]:
        x, y = self.f(torch.cat([a, b], -1)).tanh().chunk(2, -1)
        a += scale * x  # in place, as in some of ComfyUI's blocks
        b += scale * y
        return a, b


WIDTH = 5


@pytest.fixture
def blocks() -> list[nn.Module]:
    torch.manual_seed(0)
    return [TwoStreamBlock(WIDTH) for _ in range(5)]


def run(blocks: list[nn.Module], a: Tensor, b: Tensor) -> Tensor:
    a, b = a + 0, b + 0
    for block in blocks:
        a, b = block(a=a, b=b, scale=0.5)
    return a.sum() + (b * b).sum()


def inputs() -> tuple[Tensor, Tensor]:
    return tuple(torch.randn(2, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(n)) for n in (1, 2))


def hollowed(blocks: list[nn.Module]) -> HollowedNetwork:
    return HollowedNetwork([Span(blocks[1:4], ("a", "b"), residual=True)])


@torch.no_grad()
def test_a_change_before_the_removed_blocks_bypasses_them(blocks: list[nn.Module]) -> None:
    """``h_out = R + (h_in - h_in')``, for each stream separately."""
    hollow, (a, b) = hollowed(blocks), inputs()
    with hollow.recording() as activations:
        run(blocks, a, b)
    before = blocks[0](a=a.clone(), b=b.clone(), scale=0.5)
    after = tuple(h.clone() for h in before)
    for block in blocks[1:4]:
        after = block(a=after[0], b=after[1], scale=0.5)
    moved = blocks[0](a=a + 1, b=b.clone(), scale=0.5)
    into = [r + (h - h0) for r, h, h0 in zip(after, moved, blocks[0](a=a.clone(), b=b.clone(), scale=0.5), strict=True)]
    x, y = blocks[4](a=into[0], b=into[1], scale=0.5)
    with hollow.replaying(activations):
        assert torch.allclose(run(blocks, a + 1, b), x.sum() + (y * y).sum(), atol=1e-12)


@pytest.mark.parametrize("way", ["replaying", "without_gradients"])
def test_gradients_bypass_the_blocks_as_if_these_added_a_constant(blocks: list[nn.Module], way: str) -> None:
    hollow, (a, b) = hollowed(blocks), inputs()
    with torch.no_grad(), hollow.recording() as activations:
        run(blocks, a, b)
    a.requires_grad_()
    with hollow.replaying(activations) if way == "replaying" else hollow.without_gradients():
        (got,) = torch.autograd.grad(run(blocks, a, b), a)
    x, y = blocks[0](a=a + 0, b=b.clone(), scale=0.5)
    with torch.no_grad():
        u, v = x.clone(), y.clone()
        for block in blocks[1:4]:
            u, v = block(a=u, b=v, scale=0.5)
        du, dv = u - x, v - y
    x, y = blocks[4](a=x + du, b=y + dv, scale=0.5)
    (expected,) = torch.autograd.grad(x.sum() + (y * y).sum(), a)
    assert torch.allclose(got, expected, atol=1e-12)
    assert all(parameter.grad is None for parameter in hollow.parameters())


def test_without_a_residual_stream_no_gradient_reaches_earlier_layers() -> None:
    """The output of a U-Net's removed blocks is the cached one."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 3, 1, dtype=torch.float64) for _ in range(4)]
    hollow = HollowedNetwork([Span(layers[1:3])])
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    with torch.no_grad(), hollow.recording() as activations:
        middle = layers[2](layers[1](layers[0](x)))
    with hollow.replaying(activations):
        out = layers[3](layers[2](layers[1](layers[0](x))))
    assert torch.equal(out, layers[3](middle))
    out.sum().backward()
    assert x.grad is None and layers[3].weight.grad is not None


class StrideRecorder(nn.Module):
    """A block that remembers the strides of its text argument."""

    def forward(self, h: Tensor, text: Tensor) -> Tensor:
        self.seen = text.stride()
        return h + text.sum()


def test_a_block_without_gradients_gets_copies_with_the_same_strides() -> None:
    """A text expanded to a batch and copied in full would select another kernel, whose last bits differ."""
    block, texts, h = StrideRecorder(), torch.randn(1, 9, 4), torch.zeros(2, 4)
    both = texts.expand(2, 9, 4)
    part, windows = torch.randn(2, 12, 4)[:, 3:], torch.randn(2, 12).unfold(1, 4, 1)
    for text in (texts, both, both.mT, texts[0, 0].expand(1, 9, 4), texts[0, 0, 0], part, windows, part[:0]):
        usual = block(h, text)
        strides = block.seen
        with HollowedNetwork([Span([block])]).without_gradients():
            assert torch.equal(block(h, text), usual)
        assert block.seen == strides


def test_the_blocks_are_restored_after_an_exception(blocks: list[nn.Module]) -> None:
    hollow, (a, b) = hollowed(blocks), inputs()
    whole = run(blocks, a, b)
    for way in (hollow.recording(), hollow.without_gradients(), hollow.replaying([(a, b, a, b)])):
        with pytest.raises(KeyboardInterrupt), way:
            raise KeyboardInterrupt
        assert not [block for block in blocks if "forward" in vars(block)]
    assert torch.equal(run(blocks, a, b), whole)
