"""Recording the activations of a Hollowed Net's removed blocks, before the first training step."""

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field

from ...models.hollowed_net.activation_cache import ActivationCache, ActivationSource, DiskStore, MemoryStore, Store
from ...models.units import in_mib
from ..engine.checkpoints import CheckpointStore
from ..engine.memory_plan import HEADROOM, MemoryPlan
from ..engine.memory_planner import MemoryPlanner
from ..session import TrainingSession

logger = logging.getLogger("hyperbooth")

OnRecord = Callable[[int, int], None]
"""Called with (batches recorded, total)."""
Sources = Callable[[int], ActivationSource]
"""Number of micro-batches -> the source of the activations."""


@dataclass(frozen=True, kw_only=True)
class RecordingConfig:
    """Configure the recording of a run.

    Args:
        storage: one of :data:`.config.STORAGES`; "none" records nothing.
        samples: number of samples to record.
        batch_size: samples of a batch.
        steps: of the run.
        gradient_accumulation: batches per step.
        images: number of images in the dataset.
    """

    storage: str
    samples: int
    batch_size: int
    steps: int
    gradient_accumulation: int
    images: int


def no_progress(_done: int, _total: int) -> None:
    """Ignore the progress."""


@dataclass(kw_only=True)
class Recorder:
    """Record the activations that training on a hollowed network needs, if it needs any.

    Args:
        config: of the recording.
        session: with the hollowed network.
        store: of the activations, or None to record nothing.
        on_record: called with the progress.
        files: the run's store on disk, where a cancelled run may have left activations.
        lines: of the report.
    """

    config: RecordingConfig
    session: TrainingSession
    store: Store | None
    on_record: OnRecord
    files: DiskStore
    lines: list[str] = field(default_factory=list)

    @contextmanager
    def recorded(
        self, sources: Sources, initial: Callable[[], AbstractContextManager[None]], step: int
    ) -> Iterator[ActivationCache | None]:
        """Provide the cached activations, or None; inside the block the removed blocks' weights are offloaded.

        Args:
            sources: gives the source of the activations.
            initial: context in which the network is as it was before the first step, for the recording.
            step: that the run continues from; a finished run records nothing.
        """
        hollow, config = self.session.model.hollow, self.config
        if hollow is not None:
            self.lines.append(f"hollow: trained without {hollow.name}")
        if self.store is None or step >= config.steps:
            yield None
            return
        cache = ActivationCache(hollow, self.store, -(-config.samples // config.batch_size))
        per_step = config.gradient_accumulation
        batches = cache.cached_batches(range(step * per_step, config.steps * per_step))
        with initial(), self._forgotten_on_failure():
            self._fill(cache, batches, sources)
        self.lines.append(f"{len(batches)} batches of {config.batch_size} {cache.describe()}")
        logger.info("%s", self.lines[-1])
        self.lines += _unseen_images(config, cache.batch_count, config.steps * per_step)
        with self.session.memory.offloaded():
            yield cache

    @contextmanager
    def _forgotten_on_failure(self) -> Iterator[None]:
        """Remove what was recorded if there is no room for more: the next run, with fewer samples, needs the room."""
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

    def _fill(self, cache: ActivationCache, batches: list[int], sources: Sources) -> None:
        """Record batch by batch, in micro-batches if memory requires it."""
        planner = MemoryPlanner(
            memory=self.session.memory,
            batch_size=self.config.batch_size,
            precision=self.session.model.precision,
            plan=MemoryPlan(),
            may_checkpoint=False,
        )
        planner.run(
            lambda plan: cache.fill(sources(plan.micro_batches), batches, self.on_record, self._check_room),
            where=lambda: f"while recording ({in_mib(self.store.total_bytes)} so far)",
            advice="in Hollowed Net give fewer samples or choose storage 'disk' or 'none', or lower the resolution in "
            "Subject",
        )

    def _check_room(self, size: int, more: int) -> None:
        """Require room for ``more`` batches of ``size`` bytes each.

        Raises:
            ValueError: there is not enough.
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
        """Remove the activations of the run, in memory and on disk."""
        for store in (self.store, self.files):
            if store is not None:
                store.clear()


def _unseen_images(config: RecordingConfig, batches: int, drawn: int) -> list[str]:
    """Return a warning if so few samples are recorded that training does not see every image.

    Args:
        config: of the recording.
        batches: number of recorded batches.
        drawn: number of batches that the run trains on.
    """
    seen = batches * config.batch_size
    if batches >= drawn or seen >= config.images:
        return []
    warning = f"{config.samples} samples show {seen} of {config.images} images; raise samples in Hollowed Net"
    logger.warning("%s", warning)
    return [f"warning: {warning}"]


def make_recorder(
    config: RecordingConfig, session: TrainingSession, checkpoints: CheckpointStore, on_record: OnRecord
) -> Recorder:
    """Make the recorder of a run.

    Args:
        config: of the recording.
        session: with the hollowed network.
        checkpoints: of the run; its activations on disk are kept next to it.
        on_record: called with the progress.
    """
    files = DiskStore(checkpoints.activations)
    if config.storage == "disk":
        checkpoints.remove_stale_activations()
    store = {"ram": MemoryStore(session.memory.free_main_memory), "disk": files, "none": None}[config.storage]
    return Recorder(config=config, session=session, store=store, on_record=on_record, files=files)
