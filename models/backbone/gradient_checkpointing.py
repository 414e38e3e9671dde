"""Gradient checkpointing per block: store a block's input only, and run the block again in backward."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .forward_patch import Forward, replaced_forward


@contextmanager
def gradient_checkpointing(blocks: Iterable[nn.Module]) -> Iterator[None]:
    """Checkpoint each of ``blocks`` inside the context: store its input instead of its intermediate activations.

    This costs one more forward of the blocks per step. The random state is not saved, since a network in evaluation
    mode draws nothing from it. Blocks run on copies of their arguments: one that computes ``x += f(x)`` in place
    (Flux's do) would otherwise run again on its modified input, and give wrong gradients without an error.
    """
    with ExitStack() as stack:
        for block in blocks:
            forward = _on_copies(block.forward)
            checkpointed = partial(checkpoint, forward, use_reentrant=False, preserve_rng_state=False)
            stack.enter_context(replaced_forward(block, checkpointed))
        yield


def _on_copies(forward: Forward) -> Forward:
    return lambda *args, **kwargs: forward(*map(_copy, args), **{name: _copy(value) for name, value in kwargs.items()})


def _copy(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value
