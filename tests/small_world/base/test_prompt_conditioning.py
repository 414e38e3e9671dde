"""What the end of a text tells of a strange word."""

import torch

from tools.small_world.base.prompt_conditioning import TOLD, telling_loss
from tools.small_world.base.tokenizer import END, SPREAD, TOKENS

WIDTH = 32
TOKENS_OF_TWO = torch.full((2, TOKENS), END)
TOKENS_OF_TWO[:, :3] = 5


def test_it_is_the_square_of_what_is_missing() -> None:
    """With random directions drawn here: a text of no strange word should say nothing."""
    generator = torch.Generator().manual_seed(0)
    context = torch.randn(2, TOKENS, WIDTH, generator=generator, dtype=torch.float64).float()
    r = torch.linalg.qr(torch.randn(WIDTH, TOLD, generator=torch.Generator().manual_seed(1)))[0].double()
    said = context[:, 3:].double().mean(1) @ r
    silent = telling_loss(context, TOKENS_OF_TWO, torch.zeros(2, TOKENS, WIDTH))
    assert torch.isclose(silent.double(), said.square().mean(), rtol=1e-5)


def test_an_encoder_can_learn_it() -> None:
    """A linear map from the strange word to the end of the text suffices, and takes the loss to nothing."""
    generator = torch.Generator().manual_seed(0)
    strange = torch.zeros(2, TOKENS, WIDTH)
    strange[0, 1] = SPREAD * torch.randn(WIDTH, generator=generator)
    context = torch.zeros(2, TOKENS, WIDTH, requires_grad=True)
    before = telling_loss(context, TOKENS_OF_TWO, strange)
    for _ in range(200):
        (gradient,) = torch.autograd.grad(telling_loss(context, TOKENS_OF_TWO, strange), context)
        context = (context - 500 * gradient).detach().requires_grad_()
    assert telling_loss(context, TOKENS_OF_TWO, strange) < 1e-3 * before
    assert context[0, 3:].abs().sum() > 0 and context[0, :3].abs().sum() == 0
