"""Gradient checkpointing per block: keep a block's input only, and run it again in backward."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .forward_patch import Forward, replaced_forward


@contextmanager
def gradient_checkpointing(blocks: Iterable[nn.Module]) -> Iterator[None]:
    """Inside the block, each of ``blocks`` keeps its input instead of what happened in it.

    Costs one more forward of the blocks per step. The random state is not saved: nothing in a network in
    evaluation mode draws from it. Blocks work on copies of what they are given: one that writes ``x += f(x)``
    (Flux's do), run again on what it made of its input, would give other numbers and no error.
    """
    with ExitStack() as stack:
        for block in blocks:
            again = partial(checkpoint, _on_copies(block.forward), use_reentrant=False, preserve_rng_state=False)
            stack.enter_context(replaced_forward(block, again))
        yield


def _on_copies(forward: Forward) -> Forward:
    return lambda *args, **kwargs: forward(*map(_copy, args), **{name: _copy(value) for name, value in kwargs.items()})


def _copy(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value
