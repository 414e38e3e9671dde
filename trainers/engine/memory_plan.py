"""Memory plans: micro-batches and gradient checkpointing, chosen from what one sample was measured to need.

What training keeps for backward is measured, not estimated: one sample goes through the network once, and every tensor
that autograd would save is counted and released.
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
    """How a batch is computed within memory.

    Args:
        micro_batches: number of parts that a batch goes through the network in. Costs next to nothing.
        checkpointing: save only each block's input for backward, and recompute the rest. Costs one more forward.
    """

    micro_batches: int = 1
    checkpointing: bool = False

    def samples(self, batch_size: int) -> int:
        """Return the size of the largest micro-batch of ``batch_size`` samples."""
        return -(-batch_size // self.micro_batches)

    def tighter(self, batch_size: int, may_checkpoint: bool = True) -> "MemoryPlan | None":
        """Return the next plan that needs less memory, or None.

        The number of micro-batches doubles up to ``batch_size`` first, since that costs least; then checkpointing is
        switched on, if it may be.
        """
        if self.micro_batches < batch_size:
            return replace(self, micro_batches=min(batch_size, 2 * self.micro_batches))
        return replace(self, checkpointing=True) if may_checkpoint and not self.checkpointing else None

    def describe(self, batch_size: int) -> str:
        """Return the plan in words, for the log and the report."""
        parts = "" if self.micro_batches == 1 else f" in micro-batches of {self.samples(batch_size)}"
        return f"batch {batch_size}{parts}, checkpointing {'on' if self.checkpointing else 'off'}"


@dataclass(frozen=True, kw_only=True)
class MemoryNeeds:
    """Bytes that a run takes in addition to the model's own.

    Args:
        fixed: gradients, optimizer state and moving average of the trained parameters.
        inference_bytes: temporary buffers of one sample's forward, as in inference.
        kept: tensors that one sample's forward saves for backward.
        kept_checkpointed: the same with checkpointing: each block's input, and the inside of the largest block.
    """

    fixed: int
    inference_bytes: int
    kept: int
    kept_checkpointed: int

    def of(self, plan: MemoryPlan, batch_size: int) -> int:
        """Return the bytes needed under ``plan``, in addition to the model's own."""
        kept = self.kept_checkpointed if plan.checkpointing else self.kept
        return self.fixed + plan.samples(batch_size) * (self.inference_bytes + kept)


def choose_plan(needs: MemoryNeeds, free: int, batch_size: int, start: MemoryPlan) -> MemoryPlan:
    """Return the first plan from ``start`` on that fits into ``free`` bytes, or the tightest.

    Args:
        needs: what was measured.
        free: free memory in bytes, of which :data:`HEADROOM` is planned with.
        batch_size: samples of a batch.
        start: the plan to begin with.
    """
    plan = start
    while needs.of(plan, batch_size) > HEADROOM * free and (tighter := plan.tighter(batch_size)):
        plan = tighter
    return plan


@dataclass
class _SavedBytes:
    """Bytes that autograd would save for backward, each storage counted once.

    Args:
        bytes: of everything saved so far.
        inputs: of the inputs of the blocks.
        within: saved inside each block.
        seen: the storages counted.
    """

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
    sample: Callable[[], Tensor],
    *,
    blocks: Sequence[nn.Module],
    parameters: Sequence[nn.Parameter],
    inference_bytes: int,
    bytes_per_parameter: int,
) -> MemoryNeeds:
    """Run ``sample`` once and return the memory that training on such samples takes.

    Args:
        sample: computes the loss of one sample; it is not taken backward.
        blocks: modules that checkpointing would recompute, see :mod:`models.backbone.gradient_checkpointing`.
        parameters: the trained parameters.
        inference_bytes: temporary buffers of one sample's forward, see :class:`MemoryNeeds`.
        bytes_per_parameter: gradient, optimizer state and moving average of each trained value.
    """
    saved = _SavedBytes()
    for parameter in parameters:
        saved.seen.add(StorageWeakRef(parameter.untyped_storage()))
    with _counted_by_block(blocks, saved), torch.autograd.graph.saved_tensors_hooks(saved, _nothing_saved):
        sample()
    outside = saved.bytes - sum(saved.within)
    checkpointed = outside + saved.inputs + max(saved.within, default=0)
    return MemoryNeeds(
        fixed=bytes_per_parameter * sum(parameter.numel() for parameter in parameters),
        inference_bytes=inference_bytes,
        kept=saved.bytes,
        kept_checkpointed=min(saved.bytes, checkpointed),
    )


def _nothing_saved(_: None) -> Tensor:
    raise RuntimeError("a forward that was only measured has no tensors saved for backward")


@contextmanager
def _counted_by_block(blocks: Sequence[nn.Module], saved: _SavedBytes) -> Iterator[None]:
    """Record the input bytes and the saved bytes of each of ``blocks`` inside the block."""
    with ExitStack() as stack:
        for block in blocks:
            stack.enter_context(replaced_forward(block, _counting(block.forward, saved)))
        yield


def _counting(forward: Forward, saved: _SavedBytes) -> Forward:
    def counting(*args: object, **kwargs: object) -> Tensor:
        before = saved.bytes
        result = forward(*args, **kwargs)
        saved.within.append(saved.bytes - before)
        saved.inputs += sum(
            value.untyped_storage().nbytes() for value in (*args, *kwargs.values()) if isinstance(value, Tensor)
        )
        return result

    return counting
