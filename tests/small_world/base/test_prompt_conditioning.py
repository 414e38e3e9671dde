"""Test the auxiliary loss on rare tokens."""

import torch

from tools.small_world.base.prompt_conditioning import CODE_SIZE, rare_token_loss
from tools.small_world.base.tokenizer import END, SPREAD, TOKENS

WIDTH = 32
TOKENS_OF_TWO = torch.full((2, TOKENS), END)
TOKENS_OF_TWO[:, :3] = 5


def test_it_is_the_square_of_what_is_missing() -> None:
    """Compare with directions drawn here: without a rare token the target is zero."""
    generator = torch.Generator().manual_seed(0)
    context = torch.randn(2, TOKENS, WIDTH, generator=generator, dtype=torch.float64).float()
    r = torch.linalg.qr(torch.randn(WIDTH, CODE_SIZE, generator=torch.Generator().manual_seed(1)))[0].double()
    predicted = context[:, 3:].double().mean(1) @ r
    loss = rare_token_loss(context, TOKENS_OF_TWO, torch.zeros(2, TOKENS, WIDTH))
    assert torch.isclose(loss.double(), predicted.square().mean(), rtol=1e-5)


def test_an_encoder_can_learn_it() -> None:
    """A linear map from the rare token to the end-of-text outputs reduces the loss to zero."""
    generator = torch.Generator().manual_seed(0)
    rare_vectors = torch.zeros(2, TOKENS, WIDTH)
    rare_vectors[0, 1] = SPREAD * torch.randn(WIDTH, generator=generator)
    context = torch.zeros(2, TOKENS, WIDTH, requires_grad=True)
    before = rare_token_loss(context, TOKENS_OF_TWO, rare_vectors)
    for _ in range(200):
        (gradient,) = torch.autograd.grad(rare_token_loss(context, TOKENS_OF_TWO, rare_vectors), context)
        context = (context - 500 * gradient).detach().requires_grad_()
    assert rare_token_loss(context, TOKENS_OF_TWO, rare_vectors) < 1e-3 * before
    assert context[0, 3:].abs().sum() > 0 and context[0, :3].abs().sum() == 0
