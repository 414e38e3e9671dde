"""One training of a hypernetwork as asked for."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch

from ...models.hypernetwork.checkpoint import VERSION
from ...models.hypernetwork.network import HyperNetworkConfig
from ...models.hypernetwork.predictor import BaseModelRef, Predictor
from ...models.subject_bank.bank import Bank
from ..config import TrainingOptions
from ..dreambooth.config import OPTIONS_WITHOUT_EFFECT
from ..engine.checks import check_number
from ..engine.rng import generator_for
from ..engine.run_hash import run_hash
from ..engine.state import History
from .feature_cache import Picture

HELD_OUT, MOST_HELD_OUT = 0.1, 16
"""Share of the people that is kept for the controls, and how many at most: each look costs them 5 forwards twice."""
LEAST_HELD_OUT = 2
LOOKS = 20
"""Times that a run is measured on them."""
_PEOPLE = 102


@dataclass(frozen=True)
class HyperNetworkTrainingConfig:
    """One training of a hypernetwork.

    Args:
        bank: whom it learns from.
        config: its sizes; whether the input side's factor is shared is the bank's to say.
        steps: optimiser updates.
        learning_rate: of all its numbers.
        batch_size: people per step.
        weight_loss, denoising_loss: beta and alpha of :mod:`.prediction_loss`; 0 switches that one off.
        seed: of the network, of who is held out, and of every draw.
        options: optimizer, course of the rate, noise, precision.
        start_from: a hypernetwork to train further, with other losses for example.
        input_pictures: predictions are made from the first so many of each person's; 0 for all.

    Raises:
        ValueError: a number is none of its kind, both losses are off, the bank is too small, or ``start_from`` is for
            another layout, base, or kind of bank.
    """

    bank: Bank
    config: HyperNetworkConfig
    steps: int
    learning_rate: float
    batch_size: int = 16
    weight_loss: float = 1.0
    denoising_loss: float = 1.0
    seed: int = 0
    options: TrainingOptions = field(default_factory=TrainingOptions)
    start_from: Predictor | None = None
    input_pictures: int = 0

    def __post_init__(self) -> None:
        check_number("steps", self.steps, 1)
        check_number("learning_rate", self.learning_rate, 0.0, 1.0)
        check_number("batch_size", self.batch_size, 1)
        check_number("input_pictures", self.input_pictures, 0)
        for name in ("weight_loss", "denoising_loss"):
            check_number(name, getattr(self, name), 0.0, 1e6)
        if not self.weight_loss and not self.denoising_loss:
            raise ValueError("weight_loss and denoising_loss are both 0; give one of them a weight")
        if len(self.bank) < 5:
            raise ValueError(
                f"bank {self.bank.name!r} holds {len(self.bank)} people; two are held out for the controls, and three "
                "to learn from is the least. Thousands make a hypernetwork"
            )
        if self.start_from is not None:
            self._check_start(self.start_from)

    def _check_start(self, start: Predictor) -> None:
        start.network.layout.check_compatible(self.bank.layout, "start_from", "the bank")
        base = self.bank.manifest.base
        start.base.check(BaseModelRef(base["base"], base["weights"]), "bank", "hypernetwork in start_from")
        shared = self.config.shared_input
        if start.network.config.shared_input != shared:
            words = {True: "shared the input side's factor", False: "had an input side of their own"}
            raise ValueError(
                f"start_from learnt from people who {words[not shared]}, those of bank {self.bank.name!r} "
                f"{words[shared]}; connect a hypernetwork of such a bank, or none"
            )

    @cached_property
    def people(self) -> tuple[list[int], list[int]]:
        """Places in the bank of those to learn from, and of those held out: a tenth; where ``start_from`` held people
        of this bank out, such of them."""
        order = torch.randperm(len(self.bank), generator=generator_for(self.seed, _PEOPLE)).tolist()
        most = min(MOST_HELD_OUT, max(LEAST_HELD_OUT, round(HELD_OUT * len(order))))
        held = set((self._held_before or order)[:most])
        return [place for place in order if place not in held], [place for place in order if place in held]

    @cached_property
    def _held_before(self) -> list[int]:
        """Places of those whom ``start_from`` held out, if there are enough of them here."""
        names = set(self.start_from.metadata.get("held_out", ())) if self.start_from is not None else ()
        places = [place for place, name in enumerate(self.bank.names) if name in names]
        return places if len(places) >= LEAST_HELD_OUT else []

    @property
    def warnings(self) -> list[str]:
        """What to keep in mind about the controls."""
        if self.start_from is None or self._held_before:
            return []
        return ["start_from may have learnt from people who are held out here: the controls may look too good"]

    def inputs_of(self, people: Sequence[int]) -> list[int]:
        """How many pictures of each of them, from the first on, predictions are made from."""
        counts = (self.bank.image_counts[person] for person in people)
        return [min(count, self.input_pictures or count) for count in counts]

    @property
    def inputs(self) -> list[Picture]:
        """All of these, of everybody."""
        counts = self.inputs_of(range(len(self.bank)))
        return [(person, picture) for person, count in enumerate(counts) for picture in range(count)]

    def looked_at(self, person: int) -> tuple[Picture, Picture]:
        """For the controls: the picture to predict from, and the one to denoise, one that is no input if there is such,
        and else another one if there is."""
        (inputs,), last = self.inputs_of([person]), self.bank.image_counts[person] - 1
        return (person, inputs - 1), (person, last if last >= inputs else 0)

    @property
    def prompts(self) -> tuple[str, ...]:
        """Of the pictures that are denoised, each once: of all, or of those for the controls."""
        if self.denoising_loss:
            return self.bank.prompts
        shown = (self.looked_at(person)[1] for person in self.people[1])
        return tuple(dict.fromkeys([self.bank.prompt, *(self.bank.caption(*picture) for picture in shown)]))

    @property
    def look_every(self) -> int:
        """Steps between looks at the controls."""
        return self.options.validation or max(1, -(-self.steps // LOOKS))

    def key(self, model: str, encoder: str) -> str:
        """A name for the run: the same for the same result, see :meth:`.run.Run.key`."""
        start = None if self.start_from is None else (self.start_from.network, self._held_before)
        options = replace(self.options, **OPTIONS_WITHOUT_EFFECT, validation=0)
        steps = None if self.options.lr_scheduler == "constant" else self.steps
        people = [(entry.name, entry.fit, entry.image_rows, entry.prompts) for entry in self.bank.entries]
        return run_hash(
            "hypernetwork", VERSION, model, encoder, self.bank.manifest.digest, people, self.config, self.learning_rate,
            self.batch_size, self.weight_loss, self.denoising_loss, self.seed, options, start, steps,
            self.input_pictures,
        )  # fmt: skip

    def metadata(self, history: History) -> dict[str, Any]:
        """What a file should say of the run."""
        before = 0 if self.start_from is None else self.start_from.metadata.get("steps", 0)
        training, held = self.people
        return {
            "steps": before + history.step, "people": len(training), "people_held_out": len(held),
            "held_out": [self.bank.names[place] for place in held],
            "pictures": sum(self.bank.image_counts), "bank": self.bank.name, "learning_rate": self.learning_rate,
            "batch_size": self.batch_size, "weight_loss": self.weight_loss, "denoising_loss": self.denoising_loss,
            "seed": self.seed, "optimizer": self.options.optimizer, "lr_scheduler": self.options.lr_scheduler,
            "input_pictures": self.input_pictures, "final_loss": history.losses[-1],
        }  # fmt: skip
