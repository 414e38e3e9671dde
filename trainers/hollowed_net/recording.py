"""Training on a hollow network: what is asked for, and the recording before the first step."""

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field

import torch

from ...models.hollowed_net.activation_cache import ActivationCache, ActivationSource, DiskStore, MemoryStore, Store
from ...models.units import in_mib
from ..engine.checkpoints import CheckpointStore
from ..engine.memory_plan import HEADROOM
from ..session import TrainingSession

OnRecord = Callable[[int, int], None]
"""Receives (batches recorded, of)."""


Sources = Callable[[int], ActivationSource]


@dataclass(frozen=True, kw_only=True)
class RecordingConfig:
    """What a run records.

    Args:
        storage: one of :data:`..config.STORAGES`; "none" records nothing.
        samples: recorded in all.
        batch_size: samples of a batch.
        steps: of the run.
        gradient_accumulation: batches of a step.
        images: that there are to be seen.
    """

    storage: str
    samples: int
    batch_size: int
    steps: int
    gradient_accumulation: int
    images: int


def silent(_done: int, _total: int) -> None:
    """For who does not look."""


@dataclass
class Recorder:
    """Records what a hollow network's training needs, if it needs anything.

    Args:
        config: what the run asks for.
        bench: with the network.
        store: where to, or None for nothing.
        on_record: is told of the progress.
        files: of the run, where an earlier queueing may have recorded to disk.
        lines: what was done, for the report.
    """

    config: RecordingConfig
    session: TrainingSession
    store: Store | None
    on_record: OnRecord
    files: DiskStore
    lines: list[str] = field(default_factory=list)

    @contextmanager
    def recorded(
        self, sources: Sources, off: Callable[[], AbstractContextManager[None]], step: int
    ) -> Iterator[ActivationCache | None]:  # fmt: skip
        """What is on record, if anything is; inside the block, the weights taken out are off the training device.

        Args:
            sources: gives what is recorded, for a batch that goes through the network in so many parts.
            off: inside it the network is without the adapter that is to be trained.
            step: at which the run stands; one that is at its end records nothing.
        """
        if self.session.model.hollow is not None:
            self.lines.append(f"hollow: trained without {self.session.model.hollow.name}")
        config = self.config
        if self.store is None or step >= config.steps:
            yield None
            return
        records = ActivationCache(self.session.model.hollow, self.store, -(-config.samples // config.batch_size))
        each = config.gradient_accumulation
        needed = records.cached_batches(range(step * each, config.steps * each))
        with off(), self._of_no_use_if_it_fails():
            self._fill(records, needed, sources)
        self.lines.append(f"{len(needed)} batches of {config.batch_size} {records.describe()}")
        logging.info("HyperBooth: %s", self.lines[-1])
        self.lines += _unseen(config, records.batch_count, config.steps * each)
        with self.session.memory.offloaded():
            yield records

    @contextmanager
    def _of_no_use_if_it_fails(self) -> Iterator[None]:
        """Where there is no room, what was recorded stands in the way of the next try with fewer samples."""
        try:
            yield
        except ValueError:
            self.forget()
            raise
        except OSError as error:
            self.forget()
            raise OSError(
                f"recording failed: {error} In Hollowed Net give fewer samples, or choose storage 'ram' or 'none'"
            ) from error

    def _fill(self, records: ActivationCache, batches: list[int], sources: Sources, pieces: int = 1) -> None:
        """Record batch by batch; sample by sample where memory asks for it."""
        if not self._fits(records, batches, sources, pieces):
            logging.warning("HyperBooth: out of memory while recording; going on with one sample at a time")
            self._fill(records, batches, sources, self.config.batch_size)

    def _fits(self, records: ActivationCache, batches: list[int], sources: Sources, pieces: int) -> bool:
        """Record; False if memory ran out: what the error's frames held is free again after it."""
        try:
            records.fill(sources(pieces), batches, self.on_record, self._check_room)
        except Exception as error:
            if not self.session.memory.is_out_of_memory(error):
                raise
            if pieces == self.config.batch_size:
                raise torch.OutOfMemoryError(
                    f"out of memory while recording ({in_mib(self.store.total_bytes)} so far); in Hollowed Net give "
                    "fewer samples or choose storage 'disk' or 'none', or lower the resolution in Subject"
                ) from error
            return False
        return True

    def _check_room(self, size: int, more: int) -> None:
        """There is room for ``more`` batches of ``size`` bytes each.

        Raises:
            ValueError: there is not.
        """
        free = self.store.free_bytes()
        if size * more > HEADROOM * free:
            disk = self.store is self.files
            samples = self.config.batch_size * ((self.store.total_bytes + int(HEADROOM * free)) // size)
            raise ValueError(
                f"recording {self.config.samples} samples takes {in_mib(size * more)} more "
                f"{'on disk' if disk else 'of main memory'}, and {in_mib(free)} are free; in Hollowed Net give at most "
                f"{samples} samples, or choose storage {'' if disk else repr('disk') + ' or '}'none'"
            )

    def forget(self) -> None:
        """The run is over: what was recorded is of no more use."""
        for store in (self.store, self.files):
            if store is not None:
                store.clear()


def _unseen(config: RecordingConfig, batches: int, drawn: int) -> list[str]:
    """A line where so few samples are on record that training does not come to see every picture."""
    pictures, seen = config.images, batches * config.batch_size
    if batches >= drawn or seen >= pictures:
        return []
    warning = f"{config.samples} samples show {seen} of {pictures} pictures; raise samples in Hollowed Net"
    logging.warning("HyperBooth: %s", warning)
    return [f"warning: {warning}"]


def recorder_of(
    config: RecordingConfig, session: TrainingSession, states: CheckpointStore, on_record: OnRecord
) -> Recorder:
    """The recorder that the run asks for."""
    files = DiskStore(states.activations)
    storage = config.storage
    if storage == "disk":
        states.remove_stale_activations()
    store = {"ram": MemoryStore(session.memory.free_main_memory), "disk": files, "none": None}[storage]
    return Recorder(config, session, store, on_record, files)
