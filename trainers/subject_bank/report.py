"""What was built of a bank, in plain words: how many, how well beside the controls, how fast, and what was left out."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from ...models.subject_bank.bank import Bank
from ...models.units import in_mib

MOST_NAMED = 10
"""Names in one line, and lines of what was left out: a folder of thousands must not fill the screen."""


@dataclass
class BuildProgress:
    """How far a build is.

    Args:
        total: subjects to train.
        done: of them, those dealt with.
        learned: of them, those written down.
        seconds: taken so far.
        left_out: subjects and pictures that were not used, each with the reason.
    """

    total: int
    done: int = 0
    learned: int = 0
    seconds: float = 0.0
    left_out: list[str] = field(default_factory=list)

    def batch_done(self, subjects: int, seconds: float) -> None:
        """Another batch is written down, ``seconds`` after the start."""
        self.done += subjects
        self.seconds = seconds

    @classmethod
    def together(cls, tallies: Sequence["BuildProgress"]) -> "BuildProgress":
        """Of processes that worked at the same time."""
        total, done, learned = (sum(getattr(one, name) for one in tallies) for name in ("total", "done", "learned"))
        left_out = [why for one in tallies for why in one.left_out]
        return cls(total, done, learned, max(one.seconds for one in tallies), left_out)

    @property
    def pace(self) -> list[str]:
        """A line of how fast it went, if anything was done."""
        per_hour = self.learned * 3600 / self.seconds if self.seconds else 0.0
        return [f"{per_hour:,.0f} subjects per hour, reading and encoding included"] if self.learned else []

    @property
    def reasons(self) -> list[str]:
        """Lines of what was left out."""
        more = len(self.left_out) - MOST_NAMED
        lines = [f"left out: {why}" for why in self.left_out[:MOST_NAMED]]
        return lines + ([f"left out: {more} more"] if more > 0 else [])


def report(bank: Bank, tally: BuildProgress, lines: Sequence[str], gone: Collection[str]) -> str:
    """Of a build.

    Args:
        lines: what was chosen.
        gone: subjects of the bank that its folder has no more.
    """
    shards = {entry.shard for entry in bank.entries}
    size = in_mib(sum(path.stat().st_size for path in shards))
    new = f"{tally.learned} of them new" if tally.learned else "none of them new"
    return "\n".join(
        [
            f"{len(bank)} subjects with {sum(bank.image_counts)} pictures in {len(shards)} shards ({size}), {new}",
            f"{bank.layout.describe()}, each trained for {bank.manifest.settings['steps']} steps on {bank.prompt!r}",
            *_captions(bank),
            *quality(bank),
            *tally.pace,
            *lines,
            *_gone(gone),
            *tally.reasons,
        ]
    )


def quality(bank: Bank) -> list[str]:
    """The losses on fixed noise beside their controls."""
    if not len(bank):
        return []
    fits = [entry.fit for entry in bank.entries]
    others = [fit.other for fit in fits if fit.other is not None]
    control = f", with another subject's {fmean(others):.4f}" if others else ""
    worse = [entry.name for entry in bank.entries if entry.fit.own >= entry.fit.base]
    warning = f"no better than the base: {_some(worse)}; more steps, or a lower learning rate" if worse else ""
    return [
        f"loss on fixed noise: base {fmean(fit.base for fit in fits):.4f}, with their own numbers "
        f"{fmean(fit.own for fit in fits):.4f}{control}",
        *([warning] if warning else []),
    ]


def _captions(bank: Bank) -> list[str]:
    """How many pictures have another prompt than the bank's, where they may."""
    if not bank.manifest.settings.get("captions"):
        return []
    own = sum(text != bank.prompt for entry in bank.entries for text in entry.prompts)
    return [f"captions: {own} of {sum(bank.image_counts)} pictures have one; the others are trained on that prompt"]


def _gone(gone: Collection[str]) -> list[str]:
    return [f"kept although the folder has them no more: {_some(sorted(gone))}"] if gone else []


def _some(names: Sequence[str]) -> str:
    more = len(names) - MOST_NAMED
    return ", ".join(names[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
