"""The configuration of a hypernetwork's training."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch

from ...models.hypernetwork.checkpoint import VERSION
from ...models.hypernetwork.network import HyperNetworkConfig
from ...models.hypernetwork.predictor import BaseModelRef, Predictor
from ...models.subject_bank.bank import Bank
from ..checks import check_number
from ..config import TrainingOptions
from ..dreambooth.config import OPTIONS_WITHOUT_EFFECT
from ..engine.rng import DRAWS_VERSION, generator_for
from ..engine.run_hash import run_hash
from ..engine.state import History
from .feature_cache import ImageIndex

HELD_OUT, MOST_HELD_OUT = 0.1, 16
"""Share of the subjects that is held out for evaluation, and the most of them: every evaluation costs them 5 forwards,
twice."""
LEAST_HELD_OUT = 2
LEAST_SUBJECTS = 5
EVALUATIONS = 20
"""Number of evaluations of a run, if the options do not say."""
_SPLIT = 102


@dataclass(frozen=True, kw_only=True)
class HyperNetworkTrainingConfig:
    """One training of a hypernetwork.

    Args:
        bank: the subjects to learn from.
        network: the sizes; whether the down factor is shared follows from the bank.
        steps: optimizer updates.
        learning_rate: of all parameters.
        batch_size: subjects per step.
        weight_loss, denoising_loss: beta and alpha of :mod:`.loss`; 0 leaves that loss out.
        seed: of the network, of the choice of held-out subjects, and of every draw.
        options: optimizer, learning-rate schedule, noise, precision, memory.
        start_from: a hypernetwork to train further, for example with other losses.
        input_images: predictions are made from so many of each subject's images, from the first on; 0 for all.

    Raises:
        ValueError: a value is out of range, both losses are off, the bank is too small, or ``start_from`` is for
            another layout, base model, or kind of bank.
    """

    bank: Bank
    network: HyperNetworkConfig
    steps: int
    learning_rate: float
    batch_size: int = 16
    weight_loss: float = 1.0
    denoising_loss: float = 1.0
    seed: int = 0
    options: TrainingOptions = field(default_factory=TrainingOptions)
    start_from: Predictor | None = None
    input_images: int = 0

    def __post_init__(self) -> None:
        check_number("steps", self.steps, 1)
        check_number("learning_rate", self.learning_rate, 0.0, 1.0)
        check_number("batch_size", self.batch_size, 1)
        check_number("input_pictures", self.input_images, 0)
        for name in ("weight_loss", "denoising_loss"):
            check_number(name, getattr(self, name), 0.0, 1e6)
        if not self.weight_loss and not self.denoising_loss:
            raise ValueError("weight_loss and denoising_loss are both 0; give one of them a weight")
        if len(self.bank) < LEAST_SUBJECTS:
            raise ValueError(
                f"bank {self.bank.name!r} holds {len(self.bank)} people; give a bank of at least {LEAST_SUBJECTS}, of "
                f"whom {LEAST_HELD_OUT} are held out for evaluation. Thousands make a good hypernetwork"
            )
        if self.start_from is not None:
            self._require_same_kind(self.start_from)

    def _require_same_kind(self, start: Predictor) -> None:
        """Require that ``start`` predicts the parameters that this bank holds.

        Raises:
            ValueError: its layout, base model or use of the shared factor is another.
        """
        start.network.layout.check_compatible(self.bank.layout, "start_from", "the bank")
        base = self.bank.manifest.base
        start.base.check(BaseModelRef(base["base"], base["weights"]), "bank", "hypernetwork in start_from")
        shared = self.network.shared_input
        if start.network.config.shared_input != shared:
            kinds = {True: "with shared_input", False: "without shared_input"}
            raise ValueError(
                f"start_from was trained on a bank built {kinds[not shared]}, bank {self.bank.name!r} was built "
                f"{kinds[shared]}; connect a hypernetwork of such a bank, or none"
            )

    @cached_property
    def split(self) -> tuple[list[int], list[int]]:
        """Indices in the bank of the subjects to train on, and of the held-out ones.

        A tenth is held out: of those that ``start_from`` held out, if the bank holds enough of them, else at random.
        """
        order = torch.randperm(len(self.bank), generator=generator_for(self.seed, _SPLIT)).tolist()
        most = min(MOST_HELD_OUT, max(LEAST_HELD_OUT, round(HELD_OUT * len(order))))
        held = set((self._held_out_before or order)[:most])
        return [index for index in order if index not in held], [index for index in order if index in held]

    @cached_property
    def _held_out_before(self) -> list[int]:
        """Indices of the subjects that ``start_from`` held out; empty if fewer than :data:`LEAST_HELD_OUT`."""
        names = set(self.start_from.metadata.get("held_out", ())) if self.start_from is not None else ()
        indices = [index for index, name in enumerate(self.bank.names) if name in names]
        return indices if len(indices) >= LEAST_HELD_OUT else []

    @property
    def warnings(self) -> list[str]:
        """Lines on what limits the evaluation."""
        if self.start_from is None or self._held_out_before:
            return []
        return ["start_from may have been trained on people who are held out here: the evaluation may look too good"]

    def input_counts(self, subjects: Sequence[int]) -> list[int]:
        """Return how many images of each subject, from the first on, predictions are made from."""
        counts = (self.bank.image_counts[subject] for subject in subjects)
        return [min(count, self.input_images or count) for count in counts]

    @property
    def inputs(self) -> list[ImageIndex]:
        """The input images of all subjects of the bank."""
        counts = self.input_counts(range(len(self.bank)))
        return [(subject, image) for subject, count in enumerate(counts) for image in range(count)]

    def evaluated_images(self, subject: int) -> tuple[ImageIndex, ImageIndex]:
        """Return the images of an evaluation: the one to predict from, and the one to denoise.

        The second is one that is never an input, if there is one, else another one, if there is one.
        """
        (inputs,), last = self.input_counts([subject]), self.bank.image_counts[subject] - 1
        return (subject, inputs - 1), (subject, last if last >= inputs else 0)

    @property
    def prompts(self) -> tuple[str, ...]:
        """The prompts of all images that are denoised, each once: of the whole bank, or of the evaluation alone."""
        if self.denoising_loss:
            return self.bank.prompts
        denoised = (self.evaluated_images(subject)[1] for subject in self.split[1])
        return tuple(dict.fromkeys([self.bank.prompt, *(self.bank.caption(*image) for image in denoised)]))

    @property
    def evaluate_every(self) -> int:
        """Steps between evaluations."""
        return self.options.validation or max(1, -(-self.steps // EVALUATIONS))

    def key(self, model: str, encoder: str) -> str:
        """Return the run's hash: the same for the same result, see :meth:`..dreambooth.config.DreamBoothConfig.key`."""
        start = None if self.start_from is None else (self.start_from.network, self._held_out_before)
        options = replace(self.options, **OPTIONS_WITHOUT_EFFECT, validation=0)
        steps = None if self.options.lr_scheduler == "constant" else self.steps
        subjects = [(entry.name, entry.fit, entry.image_rows, entry.prompts) for entry in self.bank.entries]
        parts = (
            "hypernetwork", VERSION, DRAWS_VERSION, model, encoder, self.bank.manifest.digest, subjects, self.network,
            self.learning_rate, self.batch_size, self.weight_loss, self.denoising_loss, self.seed, options, start,
            steps, self.input_images,
        )  # fmt: skip
        return run_hash(*parts)

    def metadata(self, history: History) -> dict[str, Any]:
        """Return what a file records about the run, by the keys that it has there."""
        before = 0 if self.start_from is None else self.start_from.metadata.get("steps", 0)
        training, held = self.split
        return {
            "steps": before + history.step, "people": len(training), "people_held_out": len(held),
            "held_out": [self.bank.names[index] for index in held],
            "pictures": sum(self.bank.image_counts), "bank": self.bank.name, "learning_rate": self.learning_rate,
            "batch_size": self.batch_size, "weight_loss": self.weight_loss, "denoising_loss": self.denoising_loss,
            "seed": self.seed, "optimizer": self.options.optimizer, "lr_scheduler": self.options.lr_scheduler,
            "input_pictures": self.input_images, "final_loss": history.losses[-1],
        }  # fmt: skip
