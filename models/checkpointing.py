"""Gradient checkpointing per block: keep a block's input only, and run it again in backward."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

from .forward import replaced_forward


@contextmanager
def checkpointed(blocks: Iterable[nn.Module]) -> Iterator[None]:
    """Inside the block, each of ``blocks`` keeps its input instead of what happened in it.

    Costs one more forward of the blocks per step. The random state is not saved: nothing in a network in
    evaluation mode draws from it.
    """
    with ExitStack() as stack:
        for block in blocks:
            again = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)
            stack.enter_context(replaced_forward(block, again))
        yield
