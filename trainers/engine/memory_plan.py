"""How a run fits into the memory there is: batches in parts, and checkpointing, only where they are needed.

What training keeps for backward is measured, not guessed: one sample goes through the network once, and every tensor
that autograd would keep is counted and let go.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from ...models.backbone.forward_patch import Forward, replaced_forward

HEADROOM = 0.9
"""Share of the free memory to plan with: allocators leave holes."""


@dataclass(frozen=True)
class MemoryPlan:
    """What was chosen.

    Args:
        pieces: parts that a batch goes through the network in. Costs next to nothing.
        checkpointing: keep only each block's input, and run it again in backward. Costs one more forward.
    """

    pieces: int = 1
    checkpointing: bool = False

    def tighter(self, batch_size: int) -> "MemoryPlan | None":
        """The next plan that needs less, or None: batches in parts first, since they cost least."""
        if self.pieces < batch_size:
            return replace(self, pieces=min(batch_size, 2 * self.pieces))
        return None if self.checkpointing else replace(self, checkpointing=True)


@dataclass(frozen=True)
class MemoryNeeds:
    """What a run takes, in bytes.

    Args:
        fixed: gradients, optimizer and average of what is trained.
        passing: what one sample's forward takes for a moment, as in inference.
        kept: what one sample keeps for backward.
        kept_checkpointed: the same with checkpointing: each block's input, and the largest block's inside.
    """

    fixed: int
    inference_bytes: int
    kept: int
    kept_checkpointed: int

    def of(self, plan: MemoryPlan, batch_size: int) -> int:
        """Bytes beside the model's own under ``plan``."""
        samples = -(-batch_size // plan.pieces)
        return self.fixed + samples * (
            self.inference_bytes + (self.kept_checkpointed if plan.checkpointing else self.kept)
        )


def choose_plan(needs: MemoryNeeds, free: int, batch_size: int, start: MemoryPlan) -> MemoryPlan:
    """The first plan from ``start`` on that fits into ``free`` bytes, or the tightest."""
    plan = start
    while needs.of(plan, batch_size) > HEADROOM * free and (tighter := plan.tighter(batch_size)):
        plan = tighter
    return plan


def describe_plan(plan: MemoryPlan, needs: MemoryNeeds | None, free: int, batch_size: int, precision: str) -> str:
    """One line for the log and the report; without ``needs`` nothing was measured."""
    size = -(-batch_size // plan.pieces)
    batch = f"batch {batch_size}" if plan.pieces == 1 else f"batch {batch_size} in parts of {size}"
    chosen = f"memory: computing in {precision}, {batch}, checkpointing {'on' if plan.checkpointing else 'off'}"
    if needs is None:
        return chosen
    need = needs.of(plan, batch_size)
    line = f"{chosen}: about {need / 2**30:.2f} GiB beside the model, of {free / 2**30:.2f} GiB free"
    return line if need <= free else f"{line}. That may not be enough; {ADVICE}"


ADVICE = (
    "lower the resolution in Subject, train fewer layers or a lower rank, choose the optimizer adafactor, "
    "or load the model in fp8 (Load Diffusion Model, weight_dtype)"
)


@dataclass
class _Count:
    """Bytes that autograd would keep, each storage once."""

    bytes: int = 0
    inputs: int = 0
    within: list[int] = field(default_factory=list)
    seen: set[StorageWeakRef] = field(default_factory=set)

    def __call__(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        reference = StorageWeakRef(storage)
        if reference not in self.seen:
            self.seen.add(reference)
            self.bytes += storage.nbytes()


def measure_needs(
    sample: Callable[[], Tensor], blocks: Sequence[nn.Module], parameters: Sequence[nn.Parameter], passing: int,
    per_number: int,
) -> MemoryNeeds:  # fmt: skip
    """What a run needs.

    Args:
        sample: the loss of one sample; it is not taken backward.
        blocks: what checkpointing would run again, see :mod:`models.checkpointing`.
        parameters: what is trained.
        passing: see :class:`MemoryNeeds`.
        per_number: bytes of gradient, optimizer and average for each trained number.
    """
    count = _Count()
    for parameter in parameters:
        count.seen.add(StorageWeakRef(parameter.untyped_storage()))
    with _watched(blocks, count), torch.autograd.graph.saved_tensors_hooks(count, _nothing_kept):
        sample()
    outside = count.bytes - sum(count.within)
    checkpointed = outside + count.inputs + max(count.within, default=0)
    fixed = per_number * sum(parameter.numel() for parameter in parameters)
    return MemoryNeeds(fixed, passing, count.bytes, min(count.bytes, checkpointed))


def _nothing_kept(_: None) -> Tensor:
    raise RuntimeError("a forward that was only measured cannot go backward")


@contextmanager
def _watched(blocks: Sequence[nn.Module], count: _Count) -> Iterator[None]:
    """Inside the block, each of ``blocks`` notes the size of its inputs and what autograd would keep of its inside."""
    with ExitStack() as stack:
        for block in blocks:
            stack.enter_context(replaced_forward(block, _noting(block.forward, count)))
        yield


def _noting(forward: Forward, count: _Count) -> Forward:
    def noting(*args: object, **kwargs: object) -> Tensor:
        before = count.bytes
        result = forward(*args, **kwargs)
        count.within.append(count.bytes - before)
        count.inputs += sum(
            given.untyped_storage().nbytes() for given in (*args, *kwargs.values()) if isinstance(given, Tensor)
        )
        return result

    return noting
