"""Another forward for a module, for a while."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn

Forward = Callable[..., Tensor]


@contextmanager
def replaced_forward(module: nn.Module, forward: Forward) -> Iterator[None]:
    """``module.forward`` is ``forward`` inside the block and what it was after it, whatever happens."""
    had, before = "forward" in vars(module), vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if had:
            module.forward = before
        else:
            del module.forward
