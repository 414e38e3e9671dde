"""Building a bank of subjects: a folder with one sub-folder per subject in, shards on disk out.

Subjects that no shard holds yet are cut into batches, in natural order, and each batch becomes a shard. A subject's
parameters depend on the configuration and its own images only. A stopped build therefore continues with what is
missing, folders that are added later extend the bank, and processes can share the work: each takes every n-th of the
batches that the main process broadcasts.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from ...models.files.leftovers import remove_leftovers
from ...models.subject_bank.bank import Bank
from ...models.subject_bank.manifest import MANIFEST, Manifest
from ...models.subject_bank.shards import SubjectFit, write_shard
from ..data.build_dataset import Encoders, Framing, SourceImages, build_dataset
from ..data.dataset import Subject
from ..data.image_folder import read_folder
from ..data.image_reader import ReadOptions
from ..data.resize import crop_and_resize
from ..engine.distributed import SINGLE, ProcessGroup
from ..engine.divergence import Diverged
from ..reporting.live_view import LiveView, OnHistory, OnProgress
from ..session import TrainingSession
from .captions import prompts_of, require_fit
from .config import BankConfig
from .folders import in_batches, missing_subjects, subject_names, unnamed_subjects
from .report import BuildProgress, report
from .trainer import BankTrainer, FailedSubject, TrainedSubject


@dataclass(frozen=True, kw_only=True)
class BankBackend:
    """What a build needs of the loaded base model.

    Args:
        encoders: the VAE and the text encoder.
        open_session: opens the model for training on the examples of a batch, with so many subjects in it.
        shapes: weight shapes of the layers that can be trained, by name.
        base, versions: see :class:`...models.subject_bank.manifest.Manifest`.
    """

    encoders: Encoders
    open_session: Callable[[Subject, int], AbstractContextManager[TrainingSession]]
    shapes: Mapping[str, tuple[int, ...]]
    base: Mapping[str, object]
    versions: Mapping[str, str]


def _require_same_settings(folder: Path, manifest: Manifest) -> None:
    """Require that a bank in ``folder``, if there is one, was built with the settings of ``manifest``.

    Raises:
        ValueError: it was built with others.
    """
    if (folder / MANIFEST).exists() and (found := Manifest.load(folder).difference(manifest)):
        raise ValueError(
            f"bank {folder.name!r} was built otherwise: {found[0]} there, {found[1]} now. Give another bank_name, or "
            "the inputs that it was built with"
        )


@dataclass(frozen=True)
class PreparedSubject:
    """A subject's images: encoded for training, and as bytes ``[P, H, W, 3]`` for the shard."""

    name: str
    dataset: Subject
    images: Tensor


@dataclass(kw_only=True)
class BankBuilder:
    """Trains the subjects of a source folder that a bank lacks, one batch and shard after another.

    Args:
        config: how every subject is trained.
        source: folder with one sub-folder per subject.
        folder: of the bank; created with the first shard.
        subjects_per_batch: subjects in one batch, and in one shard.
        backend: the loaded base model.
        on_progress: called with (steps done, of, image or None); where it raises, finished shards stay.
        draws: whether anybody sees images of the loss curve.
        processes: this process takes batches ``rank``, ``rank + world_size`` ... of the missing ones; the report
            covers all processes.

    Raises:
        ValueError: ``config.start_from`` is not what the method makes.
    """

    config: BankConfig
    source: Path
    folder: Path
    subjects_per_batch: int
    backend: BankBackend
    on_progress: OnProgress
    draws: bool = True
    processes: ProcessGroup = SINGLE
    trainer: BankTrainer = field(init=False, repr=False)
    manifest: Manifest = field(init=False, repr=False)
    progress: BuildProgress = field(init=False, repr=False)
    _started: float = field(init=False, repr=False)

    def __post_init__(self) -> None:
        start = self.config.start(self.backend.shapes)
        self.trainer = BankTrainer(config=self.config, start=start, subjects_per_batch=self.subjects_per_batch)
        settings = self.config.settings(start)
        self.manifest = Manifest(self.trainer.layout, settings, self.backend.base, self.backend.versions)

    def build(self) -> tuple[Bank, str]:
        """Build what is missing; return the bank, and a report.

        Raises:
            ValueError: there is no subject, none can be used, or the bank there was built with other settings.
            torch.OutOfMemoryError: not even one subject fits.
        """
        _require_same_settings(self.folder, self.manifest)
        names = subject_names(self.source)
        batches = self._missing_batches(names)
        left_out = unnamed_subjects(self.source) if self.processes.is_main else []
        self.progress = BuildProgress(total=sum(map(len, batches)), left_out=left_out)
        self._started = time.monotonic()
        remove_leftovers(self.folder)
        for batch in batches:
            self._build_shard(batch)
        everyones = self.processes.all_gather_object(vars(self.progress))
        progress = BuildProgress.merge([BuildProgress(**one) for one in everyones])
        if not (self.folder / MANIFEST).exists():
            if progress.total:
                raise ValueError("\n".join([f"no subject in {self.source.name} can be used", *progress.reasons]))
            self.manifest.save(self.folder)  # nothing was missing for this process
        bank = Bank.open(self.folder)
        return bank, report(bank, progress, self.trainer.lines, set(bank.names) - set(names))

    def _missing_batches(self, names: Sequence[str]) -> list[list[str]]:
        """Return this process's batches of the subjects that no shard holds.

        The main process decides alone which are missing: one that reads the folder a moment later finds shards that
        another one has just written.
        """
        missing = self.processes.broadcast_object(lambda: missing_subjects(names, self.folder, self.manifest))
        return in_batches(missing, self.subjects_per_batch)[self.processes.rank :: self.processes.world_size]

    def _build_shard(self, names: Sequence[str]) -> None:
        """Train the subjects ``names`` and write those that trained to one shard."""
        prepared = [one for name in names if (one := self._prepare(name)) is not None]
        if prepared:
            examples = tuple(example for one in prepared for example in one.dataset.examples)
            require_fit([example.prompt for example in examples])
            with self.backend.open_session(Subject(examples), len(prepared)) as session:
                results = self.trainer.train(session, [one.dataset for one in prepared], self._on_batch)
            _require_any_trained(results)
            self._write(self._trained(prepared, results))
        self.progress.add_batch(len(names), time.monotonic() - self._started)

    def _prepare(self, name: str) -> PreparedSubject | None:
        """Return the subject's images at the bank's size, or None (with a line for the report) if none can be used."""
        config, encoders = self.config, replace(self.backend.encoders, on_progress=lambda *_: self._show_progress())
        options = ReadOptions(captions=config.captions, masks=False, longest_side=4 * config.resolution)
        try:
            records, lines = read_folder(self.source / name, options)
            images = [record.pixels for record in records]
            framing = Framing(resolution=config.resolution, bucket=False)
            dataset = build_dataset(SourceImages(images, prompts_of(records, config.prompt)), framing, encoders)
        except (ValueError, OSError) as error:
            self.progress.left_out.append(f"{name}: {error}".replace("\n", "; "))
            return None
        self.progress.left_out.extend(
            f"{name}/{line.removeprefix('left out: ')}" for line in lines if "left out: " in line
        )
        return PreparedSubject(name, dataset, _as_bytes(images, dataset, encoders.latent_cell))

    def _show_progress(self) -> None:
        self.on_progress(self.progress.done * self.config.steps, self.progress.total * self.config.steps, None)

    def _on_batch(self, subjects: int) -> OnHistory:
        """Return what shows the progress, in steps of single subjects, and the loss curve of the current batch."""
        steps, done, total = self.config.steps, self.progress.done, self.progress.total

        def _show(step: int, _steps: int, image: Image.Image | None) -> None:
            self.on_progress(done * steps + step * subjects, total * steps, image)

        return LiveView(total=steps, on_progress=_show, sample=lambda: None, preview_every=0, draws=self.draws)

    def _trained(
        self, prepared: Sequence[PreparedSubject], results: Sequence[TrainedSubject | FailedSubject]
    ) -> list[tuple[PreparedSubject, TrainedSubject]]:
        """Return the subjects that trained; the others get a line in the report."""
        trained = []
        for one, result in zip(prepared, results, strict=True):
            if isinstance(result, FailedSubject):
                self.progress.left_out.append(f"{one.name}: {result.reason}")
            else:
                trained.append((one, result))
        return trained

    def _write(self, trained: Sequence[tuple[PreparedSubject, TrainedSubject]]) -> None:
        if not trained:
            return
        _require_same_settings(self.folder, self.manifest)  # another process may have started a bank meanwhile
        if not (self.folder / MANIFEST).exists():
            self.manifest.save(self.folder)
        fits: dict[str, SubjectFit] = {one.name: result.fit for one, result in trained}
        latents = [example.latents for one, _ in trained for example in one.dataset.examples]
        prompts = [[example.prompt for example in one.dataset.examples] for one, _ in trained]
        write_shard(
            self.folder, self.manifest, fits=fits, image_counts=[len(one.images) for one, _ in trained],
            theta=torch.stack([result.theta for _, result in trained]),
            images=torch.cat([one.images for one, _ in trained]), latents=torch.cat(latents).float(),
            prompts=prompts if self.config.captions else (),
        )  # fmt: skip
        self.progress.learned += len(trained)


def _require_any_trained(results: Sequence[TrainedSubject | FailedSubject]) -> None:
    """Require that one subject of a batch of several trained; that all diverge is the fault of the settings.

    Raises:
        Diverged: every subject diverged.
    """
    failed = [one for one in results if isinstance(one, FailedSubject)]
    if len(failed) == len(results) > 1:
        raise Diverged(failed[0].reason)


def _as_bytes(images: Sequence[Tensor], dataset: Subject, cell: int) -> Tensor:
    """Return ``images [H, W, 3]`` as they were encoded, ``[P, H', W', 3]`` uint8."""
    rows, columns = (side * cell for side in dataset.examples[0].size[-2:])
    framed = [crop_and_resize(image.movedim(-1, 0)[None], (rows, columns)) for image in images]
    return (torch.cat(framed).movedim(1, -1) * 255).round().to(torch.uint8)
