"""Memory of a training step with the whole and with the hollowed network, measured on the model itself."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

from ...models.adapters import LoRAConfig
from ...models.adapters.stack import Adapter, AdapterStack
from ...models.hollowed_net.network import HollowedNetwork
from ..config import Method, TrainingOptions
from ..data.dataset import Subject
from ..engine.memory_plan import MemoryNeeds, MemoryPlan, measure_needs
from ..engine.rng import generator_for
from ..engine.state import bytes_per_parameter
from ..session import TrainingSession
from .config import targets_of
from .hollowed_activations import DreamBoothActivations
from .loss import DreamBoothLoss

OpenSession = Callable[[TrainingOptions, HollowedNetwork | None], AbstractContextManager[TrainingSession]]
"""Opens the model for training on the subject, with the given options and without the given blocks."""
OnProgress = Callable[[int, int], None]
"""Called with (measurements done, total)."""

METHOD = Method(config=LoRAConfig())
"""The method measured: a LoRA on attention layers, the default of new nodes."""
WITHOUT_ATTENTION = replace(METHOD, targets="all linear")
"""The method measured where no attention layer remains."""


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """Bytes on the training device, for one sample of the subject's largest size.

    Args:
        sample: cached activations of one sample.
        weights: of the whole diffusion model.
        removed: of the weights that are offloaded.
        plain: what training a LoRA on the whole network needs in addition to the weights.
        hollow: the same on the hollowed network.
        attention: whether an attention layer remains.
    """

    sample: int
    weights: int
    removed: int
    plain: MemoryNeeds
    hollow: MemoryNeeds
    attention: bool

    @property
    def sampling(self) -> int:
        """Bytes of sampling with the whole model, as ComfyUI estimates them."""
        return self.weights + self.plain.inference_bytes

    def rows(self) -> Iterator[tuple[str, int]]:
        """Yield name and bytes of each way to train; a hollowed one first runs the whole network, as sampling does."""
        yield "sampling", self.sampling
        for name, needs, weights, least in (
            ("LoRA", self.plain, self.weights, 0),
            ("hollow LoRA", self.hollow, self.weights - self.removed, self.sampling),
        ):
            yield name, max(least, weights + needs.of(MemoryPlan(), 1))
            yield f"{name}, checkpointing", max(least, weights + needs.of(MemoryPlan(checkpointing=True), 1))


@dataclass(frozen=True)
class _Measurement:
    """What one way to train needs: memory, bytes of a sample's cached activations, whether attention remains."""

    needs: MemoryNeeds
    sample: int
    attention: bool


def estimate_memory(
    open_session: OpenSession,
    subject: Subject,
    hollow: HollowedNetwork,
    *,
    weights: int,
    offloads: bool,
    on_progress: OnProgress,
) -> MemoryEstimate:
    """Measure the memory of a step by three forwards of one sample.

    Args:
        open_session: opens the model for one sample of ``subject``.
        subject: the dataset.
        hollow: the removed blocks.
        weights: bytes of the whole diffusion model.
        offloads: whether the weights of the removed blocks leave the training device.
        on_progress: called after each measurement.
    """
    plain = _measure(open_session, subject, None)
    on_progress(1, 2)
    hollowed = _measure(open_session, subject, hollow)
    on_progress(2, 2)
    removed = sum(parameter.nbytes for parameter in hollow.parameters()) if offloads else 0
    return MemoryEstimate(
        sample=hollowed.sample,
        weights=weights,
        removed=removed,
        plain=plain.needs,
        hollow=hollowed.needs,
        attention=hollowed.attention,
    )


def _measure(open_session: OpenSession, subject: Subject, hollow: HollowedNetwork | None) -> _Measurement:
    options = TrainingOptions(prior_mode="none")
    with open_session(options, hollow) as session:
        method = METHOD if _has_attention(session.model.shapes) else WITHOUT_ATTENTION
        targets = targets_of(method, session.model.shapes)
        adapter = Adapter.create(method.family, targets, method.config, generator_for(0))
        adapter = adapter.copy_to(session.memory.device)
        loss = DreamBoothLoss.for_session(session, subject=subject, options=options)
        loss = replace(loss, draws=loss.draws.of_largest())
        sample = 0
        if hollow is not None:
            ((_, activations),) = DreamBoothActivations.for_loss(loss).record_batch(0, hollow)
            sample = sum(tensor.nbytes for of_span in activations for tensor in of_span)
        with session.injected(AdapterStack((adapter,))):
            needs = measure_needs(
                loss.largest_sample,
                blocks=session.model.blocks,
                parameters=adapter.parameters(),
                inference_bytes=session.memory.inference_bytes(loss.draws.largest.size),
                bytes_per_parameter=bytes_per_parameter(options.optimizer),
            )
    return _Measurement(needs, sample, method is METHOD)


def _has_attention(shapes: Mapping[str, tuple[int, ...]]) -> bool:
    try:
        return bool(targets_of(METHOD, shapes))
    except ValueError:
        return False
