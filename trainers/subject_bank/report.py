"""The report of a bank build: subjects, their losses next to the baselines, speed, and what was left out."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from ...models.subject_bank.bank import Bank
from ...models.units import in_mib

MOST_NAMED = 10
"""Names in one line, and lines on what was left out: a folder of thousands must not fill the screen."""


@dataclass(kw_only=True)
class BuildProgress:
    """Counts the subjects of a bank build that are done and left out; mutable.

    Args:
        total: subjects to train.
        done: subjects processed so far, trained or left out.
        learned: subjects written to shards so far.
        seconds: time since the start.
        left_out: one line for each subject or image that was not used, with the reason.
    """

    total: int
    done: int = 0
    learned: int = 0
    seconds: float = 0.0
    left_out: list[str] = field(default_factory=list)

    def add_batch(self, subjects: int, seconds: float) -> None:
        """Record that a batch of ``subjects`` was processed, ``seconds`` after the start."""
        self.done += subjects
        self.seconds = seconds

    @classmethod
    def merge(cls, parts: Sequence["BuildProgress"]) -> "BuildProgress":
        """Return the progress of several processes that worked at the same time."""
        return cls(
            total=sum(part.total for part in parts),
            done=sum(part.done for part in parts),
            learned=sum(part.learned for part in parts),
            seconds=max(part.seconds for part in parts),
            left_out=[line for part in parts for line in part.left_out],
        )

    @property
    def speed(self) -> list[str]:
        """One line with the subjects per hour, or none if nothing was trained."""
        per_hour = self.learned * 3600 / self.seconds if self.seconds else 0.0
        return [f"{per_hour:,.0f} subjects per hour, reading and encoding included"] if self.learned else []

    @property
    def reasons(self) -> list[str]:
        """Lines on what was left out, at most :data:`MOST_NAMED` and one for the rest."""
        more = len(self.left_out) - MOST_NAMED
        lines = [f"left out: {reason}" for reason in self.left_out[:MOST_NAMED]]
        return lines + ([f"left out: {more} more"] if more > 0 else [])


def report(bank: Bank, progress: BuildProgress, lines: Sequence[str], removed: Collection[str]) -> str:
    """Return the report of a build.

    Args:
        bank: the bank as it is now.
        progress: of this build, over all processes.
        lines: the memory plans of the trainer.
        removed: names of subjects of the bank that the source folder no longer holds.
    """
    shards = {entry.shard for entry in bank.entries}
    size = in_mib(sum(path.stat().st_size for path in shards))
    new = f"{progress.learned} of them new" if progress.learned else "none of them new"
    return "\n".join(
        [
            f"{len(bank)} subjects with {sum(bank.image_counts)} images in {len(shards)} shards ({size}), {new}",
            f"{bank.layout.describe()}, each trained for {bank.manifest.settings['steps']} steps on {bank.prompt!r}",
            *_captions(bank),
            *quality(bank),
            *progress.speed,
            *lines,
            *_removed(removed),
            *progress.reasons,
        ]
    )


def quality(bank: Bank) -> list[str]:
    """Return lines with the mean losses on fixed noise: base model, own adapter, another subject's adapter."""
    if not len(bank):
        return []
    fits = [entry.fit for entry in bank.entries]
    others = [fit.other for fit in fits if fit.other is not None]
    baseline = f", with another subject's {fmean(others):.4f}" if others else ""
    worse = [entry.name for entry in bank.entries if entry.fit.own >= entry.fit.base]
    warning = f"no better than the base: {_some(worse)}; more steps, or a lower learning rate" if worse else ""
    return [
        f"loss on fixed noise: base {fmean(fit.base for fit in fits):.4f}, with their own adapters "
        f"{fmean(fit.own for fit in fits):.4f}{baseline}",
        *([warning] if warning else []),
    ]


def _captions(bank: Bank) -> list[str]:
    """Return a line with the number of captioned images, if the bank was built with captions."""
    if not bank.manifest.settings.get("captions"):
        return []
    own = sum(text != bank.prompt for entry in bank.entries for text in entry.prompts)
    return [f"captions: {own} of {sum(bank.image_counts)} images have one; the others are trained on that prompt"]


def _removed(names: Collection[str]) -> list[str]:
    return [f"kept although the folder no longer holds them: {_some(sorted(names))}"] if names else []


def _some(names: Sequence[str]) -> str:
    more = len(names) - MOST_NAMED
    return ", ".join(names[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
