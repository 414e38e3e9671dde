"""What a training step takes with and without the network's deep middle, measured on the model itself."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

from ...models.adapters import LoRAConfig
from ...models.adapters.stack import Adapter, AdapterStack
from ...models.hollowed_net.network import HollowedNetwork
from ..config import Method, TrainingOptions
from ..data.dataset import Subject
from ..engine import memory_plan
from ..engine.memory_plan import MemoryNeeds, MemoryPlan
from ..engine.rng import generator_for
from ..engine.state import bytes_per_parameter
from ..session import TrainingSession
from .config import targets_of
from .loss import DreamBoothLoss

OpenSession = Callable[[TrainingOptions, HollowedNetwork | None], AbstractContextManager[TrainingSession]]
"""Opens the model for training on the subject, with the given options and without the given blocks."""
OnProgress = Callable[[int, int], None]
"""Receives (steps done, of)."""

METHOD = Method(config=LoRAConfig())
"""What is measured with: a LoRA on attention, as new nodes have it."""
WITHOUT_ATTENTION = replace(METHOD, targets="all linear")
"""The same where a cut leaves no attention."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on the training device, of one sample of the subject's largest size.

    Args:
        sample: on record for one sample.
        weights: of the whole diffusion model.
        taken: of the weights that leave the training device.
        plain, hollow: what a LoRA's training needs beside the weights.
        attention: whether any of it is left.
    """

    sample: int
    weights: int
    taken: int
    plain: MemoryNeeds
    hollow: MemoryNeeds
    attention: bool

    @property
    def sampling(self) -> int:
        """Of sampling with the whole model, as ComfyUI reckons it."""
        return self.weights + self.plain.inference_bytes

    def rows(self) -> Iterator[tuple[str, int]]:
        """Name and bytes of each way to train; a hollow one begins with a run of the whole network, as sampling is."""
        yield "sampling", self.sampling
        for name, needs, weights, least in (
            ("LoRA", self.plain, self.weights, 0),
            ("hollow LoRA", self.hollow, self.weights - self.taken, self.sampling),
        ):
            yield name, max(least, weights + needs.of(MemoryPlan(), 1))
            yield f"{name}, checkpointing", max(least, weights + needs.of(MemoryPlan(checkpointing=True), 1))


def estimate_memory(
    open_session: OpenSession,
    subject: Subject,
    hollow: HollowedNetwork,
    weights: int,
    stows: bool,
    on_progress: OnProgress,
) -> MemoryEstimate:
    """Three forwards of one sample, with progress.

    Args:
        open_session: opens the model for one sample of ``subject``.
        weights: bytes of the whole diffusion model.
        stows: the weights taken out leave the training device.
    """
    plain, _, _ = _measured(open_session, subject, None)
    on_progress(1, 2)
    hollowed, sample, attention = _measured(open_session, subject, hollow)
    on_progress(2, 2)
    taken = sum(parameter.nbytes for parameter in hollow.parameters()) if stows else 0
    return MemoryEstimate(sample, weights, taken, plain, hollowed, attention)


def _measured(
    open_session: OpenSession, subject: Subject, hollow: HollowedNetwork | None
) -> tuple[MemoryNeeds, int, bool]:
    options = TrainingOptions(prior_mode="none")
    with open_session(options, hollow) as session:
        method = METHOD if _has_attention(session.model.shapes) else WITHOUT_ATTENTION
        link = Adapter.create(method.family, targets_of(method, session.model.shapes), method.config, generator_for(0))
        link = link.copy_to(session.memory.device)
        loss = DreamBoothLoss(
            session.denoiser, session.text.condition, session.denoiser.to_model, subject, options, 1, 0
        )
        loss = replace(loss, subject=replace(subject, examples=(loss.largest,)))
        sample = 0
        if hollow is not None:
            ((_, records),) = loss.record_batch(0, hollow)
            sample = sum(tensor.nbytes for record in records for tensor in record)
        with session.injected(AdapterStack((link,))):
            passing = session.memory.inference_bytes(loss.largest.size)
            parameters = link.parameters()
            needs = memory_plan.measure_needs(
                loss.of_one_sample, session.model.blocks, parameters, passing, bytes_per_parameter(options.optimizer)
            )
    return needs, sample, method is METHOD


def _has_attention(shapes: Mapping[str, tuple[int, ...]]) -> bool:
    try:
        return bool(targets_of(METHOD, shapes))
    except ValueError:
        return False
