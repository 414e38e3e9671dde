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
from ...models.subject_bank.shards import MANIFEST, Fit, Manifest, read_shard, shards_in, write_shard
from ...models.validation import is_text
from ..data.build_dataset import Framing, Pictures, Tools, gather
from ..data.dataset import Subject
from ..data.image_folder import natural, read_folder
from ..data.image_reader import Reading
from ..data.resize import fit_picture
from ..engine.checkpoints import sweep
from ..engine.distributed import ALONE, Ranks
from ..engine.divergence import Diverged
from ..reporting.live_view import Watch, Watcher
from ..session import Workbench
from .captions import check_fit, prompts_of
from .config import Recipe
from .report import Tally, report
from .trainer import BankTrainer, Fitted

Show = Callable[[int, int, Image.Image | None], None]
"""Receives (steps done, of, picture or None)."""


@dataclass(frozen=True)
class Workshop:
    """The model that a bank is for, and what is needed of it.

    Args:
        tools: see :class:`.gather.Tools`.
        session: opens the model for training on a batch's pictures, in so many at once.
        shapes: of the layers that can be trained, by name.
        base, versions: see :class:`..models.bank_files.Manifest`.
    """

    tools: Tools
    session: Callable[[Subject, int], AbstractContextManager[Workbench]]
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
    recipe: Recipe, source: Path, folder: Path, together: int, workshop: Workshop, show: Show, ranks: Ranks = ALONE
) -> tuple[Bank, str]:  # fmt: skip
    """Train the subjects of ``source`` that the bank in ``folder`` lacks; the bank, and a report.

    Args:
        together: subjects in one batch, and in one shard.
        show: is told of the progress; where it raises, what is finished stays.
        ranks: of the missing batches this process takes number ``rank`` of every ``of``; the report is of all.

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
    missing = ranks.once(lambda: _missing(names, folder, manifest))
    batches = _batches(missing, together)[ranks.rank :: ranks.of]
    tally = Tally(sum(map(len, batches)), left_out=_unnamed(source) if ranks.leads else [])
    job = _Build(recipe, source, folder, manifest, workshop, trainer, show, tally)
    sweep(folder)
    for batch in batches:
        job.shard(batch)
    tally = Tally.together([Tally(**said) for said in ranks.heard(vars(tally))])
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
    names = sorted(filter(_is_a_name, _folders(source)), key=natural)
    if not names:
        raise ValueError(
            f"folder {source.name!r} holds no sub-folder; make one for each subject, with its pictures inside"
        )
    return names


def _missing(names: Sequence[str], folder: Path, manifest: Manifest) -> list[str]:
    """Those of ``names`` that no shard in ``folder`` holds."""
    there = {entry.name for path in shards_in(folder) for entry in read_shard(path, manifest)}
    return [name for name in names if name not in there]


def _unnamed(source: Path) -> list[str]:
    return [f"{name!r:.60}: no name that a file can hold" for name in _folders(source) if not _is_a_name(name)]


def _folders(source: Path) -> list[str]:
    return [path.name for path in source.iterdir() if path.is_dir() and not path.name.startswith(".")]


def _is_a_name(name: str) -> bool:
    return is_text(name) and name.isprintable()


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
    recipe: Recipe
    source: Path
    folder: Path
    manifest: Manifest
    workshop: Workshop
    trainer: BankTrainer
    show: Show
    tally: Tally
    started: float = field(default_factory=time.monotonic)

    def shard(self, names: Sequence[str]) -> None:
        """Train these subjects and write them down."""
        prepared = [one for name in names if (one := self._prepared(name)) is not None]
        if prepared:
            pictures = tuple(example for one in prepared for example in one.subject.examples)
            check_fit([example.prompt for example in pictures])
            with self.workshop.session(Subject(pictures), len(prepared)) as bench:
                fitted = self.trainer(bench, [one.subject for one in prepared], self._watch)
            _check_any(fitted)
            self._write([pair for pair in zip(prepared, fitted, strict=True) if self._is_learnt(*pair)])
        self.tally.batch_done(len(names), time.monotonic() - self.started)

    def _prepared(self, name: str) -> Prepared | None:
        """The subject's pictures at the bank's size; None if none can be used, which the report says."""
        recipe, tools = self.recipe, replace(self.workshop.tools, progress=lambda *_: self._alive())
        reading = Reading(recipe.captions, masks=False, longest_side=4 * recipe.resolution)
        try:
            photographs, lines = read_folder(self.source / name, reading)
            images = [photograph.image for photograph in photographs]
            framing = Framing(recipe.resolution, bucket=False)
            subject = gather(Pictures(images, prompts_of(photographs, recipe.prompt)), None, framing, tools)
        except (ValueError, OSError) as error:
            self.tally.left_out.append(f"{name}: {error}".replace("\n", "; "))
            return None
        self.tally.left_out += [f"{name}/{line.removeprefix('left out: ')}" for line in lines if "left out: " in line]
        return Prepared(name, subject, _as_bytes(images, subject, tools.cell))

    def _alive(self) -> None:
        self.show(self.tally.done * self.recipe.steps, self.tally.total * self.recipe.steps, None)

    def _watch(self, together: int) -> Watcher:
        """Progress in steps of single subjects, and the curve of those who train now."""
        steps, done, total = self.recipe.steps, self.tally.done, self.tally.total

        def show(step: int, _steps: int, picture: Image.Image | None) -> None:
            self.show(done * steps + step * together, total * steps, picture)

        return Watch(steps, show, lambda: None, 0)

    def _is_learnt(self, one: Prepared, fitted: Fitted | str) -> bool:
        if isinstance(fitted, str):
            self.tally.left_out.append(f"{one.name}: {fitted}")
        return isinstance(fitted, Fitted)

    def _write(self, learnt: Sequence[tuple[Prepared, Fitted]]) -> None:
        if not learnt:
            return
        _check_same_build(self.folder, self.manifest)  # another process may have begun one meanwhile
        if not (self.folder / MANIFEST).exists():
            self.manifest.save(self.folder)
        fits: dict[str, Fit] = {one.name: fitted.fit for one, fitted in learnt}
        latents = [example.latents for one, _ in learnt for example in one.subject.examples]
        prompts = [[example.prompt for example in one.subject.examples] for one, _ in learnt]
        write_shard(
            self.folder, self.manifest, fits, [len(one.images) for one, _ in learnt],
            torch.stack([fitted.theta for _, fitted in learnt]), torch.cat([one.images for one, _ in learnt]),
            torch.cat(latents).float(), prompts if self.recipe.captions else (),
        )  # fmt: skip
        self.tally.learnt += len(learnt)


def _check_any(fitted: Sequence[Fitted | str]) -> None:
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
    framed = [fit_picture(image.movedim(-1, 0)[None], (rows, columns)) for image in images]
    return (torch.cat(framed).movedim(1, -1) * 255).round().to(torch.uint8)
