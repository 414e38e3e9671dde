"""Building a bank of subjects: a folder with a sub-folder per subject in, shards on disk out.

Subjects that no shard holds yet are cut into batches, in natural order, and each batch becomes a shard. A subject's
numbers depend on the recipe and its own pictures only: so a stopped build goes on with what is missing, folders that
come later extend the bank, and processes share the work: each takes every n-th batch of those that the leader names.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from ...models.subject_bank.bank import Bank
from ...models.subject_bank.manifest import MANIFEST, Manifest
from ...models.subject_bank.shards import SubjectFit, list_shards, read_shard, write_shard
from ...models.validation import is_unicode
from ..data.build_dataset import Encoders, Framing, SourceImages, build_dataset
from ..data.dataset import Subject
from ..data.image_folder import natural_order, read_folder
from ..data.image_reader import ReadOptions
from ..data.resize import crop_and_resize
from ..engine.checkpoints import remove_leftovers
from ..engine.distributed import SINGLE, ProcessGroup
from ..engine.divergence import Diverged
from ..reporting.live_view import LiveView, OnHistory
from ..session import TrainingSession
from .captions import check_fit, prompts_of
from .config import BankConfig
from .report import BuildProgress, report
from .trainer import BankTrainer, TrainedSubject

Show = Callable[[int, int, Image.Image | None], None]
"""Receives (steps done, of, picture or None)."""


@dataclass(frozen=True)
class BankBuilder:
    """The model that a bank is for, and what is needed of it.

    Args:
        tools: see :class:`.build_dataset.Encoders`.
        session: opens the model for training on a batch's pictures, in so many at once.
        shapes: of the layers that can be trained, by name.
        base, versions: see :class:`..models.bank_files.Manifest`.
    """

    tools: Encoders
    session: Callable[[Subject, int], AbstractContextManager[TrainingSession]]
    shapes: Mapping[str, tuple[int, ...]]
    base: Mapping[str, object]
    versions: Mapping[str, str]


@dataclass(frozen=True)
class Prepared:
    """A subject's pictures: as they are trained on, and as bytes ``[P, H, W, 3]``."""

    name: str
    subject: Subject
    images: Tensor


def build_bank(
    recipe: BankConfig,
    source: Path,
    folder: Path,
    together: int,
    workshop: BankBuilder,
    show: Show,
    processes: ProcessGroup = SINGLE,
) -> tuple[Bank, str]:
    """Train the subjects of ``source`` that the bank in ``folder`` lacks; the bank, and a report.

    Args:
        together: subjects in one batch, and in one shard.
        show: is told of the progress; where it raises, what is finished stays.
        processes: of the missing batches this process takes number ``rank`` of every ``of``; the report is of all.

    Raises:
        ValueError: there is no subject, none can be used, or the bank there was built otherwise.
        torch.OutOfMemoryError: not even one subject fits.
    """
    start = recipe.start(workshop.shapes)
    trainer = BankTrainer(recipe, start, together)
    manifest = Manifest(trainer.layout, recipe.settings(start), workshop.base, workshop.versions)
    _check_same_build(folder, manifest)
    names = subject_names(source)
    # The leader's word: a process that looks a moment later finds shards that another has just written.
    missing = processes.broadcast_object(lambda: _missing(names, folder, manifest))
    batches = _batches(missing, together)[processes.rank :: processes.world_size]
    tally = BuildProgress(sum(map(len, batches)), left_out=_unnamed(source) if processes.is_main else [])
    job = _Build(recipe, source, folder, manifest, workshop, trainer, show, tally)
    remove_leftovers(folder)
    for batch in batches:
        job.shard(batch)
    tally = BuildProgress.together([BuildProgress(**said) for said in processes.all_gather_object(vars(tally))])
    if not (folder / MANIFEST).exists():
        if tally.total:
            raise ValueError("\n".join([f"no subject in {source.name} can be used", *tally.reasons]))
        manifest.save(folder)  # this process had nothing to do, and does not hear the others
    bank = Bank.open(folder)
    return bank, report(bank, tally, trainer.lines, set(bank.names) - set(names))


def subject_names(source: Path) -> list[str]:
    """The sub-folders of ``source`` in natural order.

    Raises:
        ValueError: there is none.
    """
    names = sorted(filter(_is_a_name, _folders(source)), key=natural_order)
    if not names:
        raise ValueError(
            f"folder {source.name!r} holds no sub-folder; make one for each subject, with its pictures inside"
        )
    return names


def _missing(names: Sequence[str], folder: Path, manifest: Manifest) -> list[str]:
    """Those of ``names`` that no shard in ``folder`` holds."""
    there = {entry.name for path in list_shards(folder) for entry in read_shard(path, manifest)}
    return [name for name in names if name not in there]


def _unnamed(source: Path) -> list[str]:
    return [f"{name!r:.60}: no name that a file can hold" for name in _folders(source) if not _is_a_name(name)]


def _folders(source: Path) -> list[str]:
    return [path.name for path in source.iterdir() if path.is_dir() and not path.name.startswith(".")]


def _is_a_name(name: str) -> bool:
    return is_unicode(name) and name.isprintable()


def _check_same_build(folder: Path, manifest: Manifest) -> None:
    """What is in ``folder`` already, if anything, was built the same way."""
    if (folder / MANIFEST).exists() and (found := Manifest.load(folder).difference(manifest)):
        raise ValueError(
            f"bank {folder.name!r} was built otherwise: {found[0]} there, {found[1]} now. Give another bank_name, or "
            "the inputs that it was built with"
        )


def _batches(names: Sequence[str], size: int) -> list[list[str]]:
    return [list(names[start : start + size]) for start in range(0, len(names), size)]


@dataclass
class _Build:
    recipe: BankConfig
    source: Path
    folder: Path
    manifest: Manifest
    workshop: BankBuilder
    trainer: BankTrainer
    show: Show
    tally: BuildProgress
    started: float = field(default_factory=time.monotonic)

    def shard(self, names: Sequence[str]) -> None:
        """Train these subjects and write them down."""
        prepared = [one for name in names if (one := self._prepared(name)) is not None]
        if prepared:
            pictures = tuple(example for one in prepared for example in one.subject.examples)
            check_fit([example.prompt for example in pictures])
            with self.workshop.session(Subject(pictures), len(prepared)) as session:
                fitted = self.trainer(session, [one.subject for one in prepared], self._watch)
            _check_any(fitted)
            self._write([pair for pair in zip(prepared, fitted, strict=True) if self._is_learnt(*pair)])
        self.tally.batch_done(len(names), time.monotonic() - self.started)

    def _prepared(self, name: str) -> Prepared | None:
        """The subject's pictures at the bank's size; None if none can be used, which the report says."""
        recipe, tools = self.recipe, replace(self.workshop.tools, on_progress=lambda *_: self._alive())
        reading = ReadOptions(captions=recipe.captions, masks=False, longest_side=4 * recipe.resolution)
        try:
            photographs, lines = read_folder(self.source / name, reading)
            images = [photograph.pixels for photograph in photographs]
            framing = Framing(resolution=recipe.resolution, bucket=False)
            subject = build_dataset(SourceImages(images, prompts_of(photographs, recipe.prompt)), framing, tools)
        except (ValueError, OSError) as error:
            self.tally.left_out.append(f"{name}: {error}".replace("\n", "; "))
            return None
        self.tally.left_out += [f"{name}/{line.removeprefix('left out: ')}" for line in lines if "left out: " in line]
        return Prepared(name, subject, _as_bytes(images, subject, tools.latent_cell))

    def _alive(self) -> None:
        self.show(self.tally.done * self.recipe.steps, self.tally.total * self.recipe.steps, None)

    def _watch(self, together: int) -> OnHistory:
        """Progress in steps of single subjects, and the curve of those who train now."""
        steps, done, total = self.recipe.steps, self.tally.done, self.tally.total

        def show(step: int, _steps: int, picture: Image.Image | None) -> None:
            self.show(done * steps + step * together, total * steps, picture)

        return LiveView(steps, show, lambda: None, 0)

    def _is_learnt(self, one: Prepared, fitted: TrainedSubject | str) -> bool:
        if isinstance(fitted, str):
            self.tally.left_out.append(f"{one.name}: {fitted}")
        return isinstance(fitted, TrainedSubject)

    def _write(self, learned: Sequence[tuple[Prepared, TrainedSubject]]) -> None:
        if not learned:
            return
        _check_same_build(self.folder, self.manifest)  # another process may have begun one meanwhile
        if not (self.folder / MANIFEST).exists():
            self.manifest.save(self.folder)
        fits: dict[str, SubjectFit] = {one.name: fitted.fit for one, fitted in learned}
        latents = [example.latents for one, _ in learned for example in one.subject.examples]
        prompts = [[example.prompt for example in one.subject.examples] for one, _ in learned]
        write_shard(
            self.folder,
            self.manifest,
            fits=fits,
            image_counts=[len(one.images) for one, _ in learned],
            theta=torch.stack([fitted.theta for _, fitted in learned]),
            images=torch.cat([one.images for one, _ in learned]),
            latents=torch.cat(latents).float(),
            prompts=prompts if self.recipe.captions else (),
        )
        self.tally.learned += len(learned)


def _check_any(fitted: Sequence[TrainedSubject | str]) -> None:
    """Not every subject of a batch has gone astray: then it is the settings.

    Raises:
        Diverged: they have.
    """
    reasons = [one for one in fitted if isinstance(one, str)]
    if len(reasons) == len(fitted) > 1:
        raise Diverged(reasons[0])


def _as_bytes(images: Sequence[Tensor], subject: Subject, cell: int) -> Tensor:
    """Pictures ``[H, W, 3]`` as they were encoded."""
    rows, columns = (side * cell for side in subject.examples[0].size[-2:])
    framed = [crop_and_resize(image.movedim(-1, 0)[None], (rows, columns)) for image in images]
    return (torch.cat(framed).movedim(1, -1) * 255).round().to(torch.uint8)
