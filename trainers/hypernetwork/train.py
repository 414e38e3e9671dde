"""Training of a hypernetwork on a bank: features, initialization, loss, evaluation and loop, assembled."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ...models.hypernetwork.network import HyperNetwork
from ...models.hypernetwork.predictor import BaseModelRef, Predictor
from ..data.dataset import Example
from ..diffusion.losses import weighting
from ..diffusion.objective import Objective
from ..engine.checkpoints import CheckpointStore
from ..engine.distributed import SINGLE, ProcessGroup
from ..engine.state import Group, History, TrainState
from ..reporting.live_view import MakeLiveView
from ..session import TrainingSession
from .batches import SubjectBatches
from .config import HyperNetworkTrainingConfig
from .evaluation import Evaluator
from .feature_cache import ImageIndex
from .initialization import Features, initial_network
from .report import TrainingReport
from .row_cache import RowCache
from .selection import ModelSelection
from .trainer import HyperNetworkTrainer

Conditioning = Mapping[str, Any]
"""Prompt -> its conditioning."""


@dataclass(frozen=True, kw_only=True)
class HyperNetworkResult:
    """The result of a run.

    Args:
        predictor: the hypernetwork, on the CPU.
        history: of all steps.
        resumed: step at which an earlier run was resumed, 0 for none.
        notes: initialization, evaluations and the chosen state, for the report.
    """

    predictor: Predictor
    history: History
    resumed: int
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class HyperNetworkTraining:
    """Everything that a training needs.

    Args:
        config: of the run.
        session: the model that the bank is for.
        conditioning: of the bank's prompts, where the bank does not train the text encoder.
        encoder: of the images.
        features: what the encoder gives for the images of the bank.
        checkpoints: of the run.
        on_progress: called with the steps done, during initialization and evaluations.
        processes: processes that share every batch. The main process alone evaluates, shows and writes.

    Raises:
        ValueError: the batch is smaller than the number of processes.
    """

    config: HyperNetworkTrainingConfig
    session: TrainingSession
    conditioning: Conditioning
    encoder: BaseModelRef
    features: Features
    checkpoints: CheckpointStore
    on_progress: Callable[[int], None]
    processes: ProcessGroup = SINGLE

    def __post_init__(self) -> None:
        batch_size, processes = self.config.batch_size, self.processes.world_size
        if batch_size < processes:
            raise ValueError(f"batch_size is {batch_size} for {processes} processes; give at least {processes}")

    def run(self, make_live_view: MakeLiveView) -> HyperNetworkResult | None:
        """Train the hypernetwork.

        If the run is cancelled or fails, its state stays in ``checkpoints``, and the next run with the same inputs
        resumes from there.

        Args:
            make_live_view: given what draws the chart of the evaluations, returns the callback that shows progress.

        Returns:
            the result; None for processes other than the main one.

        Raises:
            ValueError: the processes found different states.
            Diverged: the loss is NaN or infinite, or has grown out of proportion.
            torch.OutOfMemoryError: not even one subject fits.
        """
        started, checkpoints = time.time(), self.checkpoints
        trainer, report = self._prepare()
        state = trainer.state
        on_history = make_live_view(report.chart) if self.processes.is_main else _nothing
        on_history(History())
        resumed = state.history.step if checkpoints.load(state, self.config.steps) else 0
        _require_same_start(self.processes.all_gather_object([checkpoints.key, resumed]))
        with checkpoints.saved_on_exit(state):
            trainer.fit(checkpoints, on_history)
        if not self.processes.is_main:
            return None
        history = state.history
        trainer.selection.restore_best()
        predictor = self._predictor(trainer, history, started)
        return HyperNetworkResult(
            predictor=predictor, history=history, resumed=resumed, notes=report.lines(trainer.planner.line)
        )

    def _prepare(self) -> tuple[HyperNetworkTrainer, TrainingReport]:
        """Return the trainer with an initialized network, and the report of its training."""
        config, options, features = self.config, self.config.options, RowCache(self.features, self.config.inputs)
        network, line = initial_network(
            config, features, on_progress=lambda: self.on_progress(0), processes=self.processes
        )  # fmt: skip
        network.to(self.session.memory.device)
        parameters = list(network.parameters())
        state = TrainState(
            [Group(parameters, config.learning_rate)], options.optimizer, options.ema_decay, self.session.model.half
        )
        objective = self._objective()
        evaluator = self._evaluator(network, objective, features, state)
        selection = ModelSelection(
            config=config, evaluator=evaluator, state=state, checkpoints=self.checkpoints,
            initial=[parameter.detach().clone() for parameter in parameters],
        )  # fmt: skip
        trainer = HyperNetworkTrainer(
            config=config, session=self.session, network=network, state=state, batches=self._batches(features),
            objective=objective, selection=selection, processes=self.processes,
        )  # fmt: skip
        return trainer, TrainingReport(selection=selection, initialization=[line, *config.warnings])

    def _objective(self) -> Objective:
        denoiser, options = self.session.denoiser, self.config.options
        weights = weighting(options.loss_weighting, options.min_snr_gamma)
        return Objective(
            denoiser=denoiser,
            condition=self.session.text.condition_per_subject,
            to_model=denoiser.to_model,
            weighting=weights,
        )

    def _evaluator(
        self, network: HyperNetwork, objective: Objective, features: Features, state: TrainState
    ) -> Evaluator:
        config, held_out, device = self.config, self.config.split[1], self.session.memory.device
        inputs, denoised = zip(*map(config.evaluated_images, held_out), strict=True)
        return Evaluator(
            network=network,
            session=self.session,
            objective=objective,
            options=config.options,
            seed=config.seed,
            examples=self._examples(denoised),
            features=features(inputs).to(device, torch.float32),
            fitted=config.bank.theta(held_out).to(device),
            batch_size=config.batch_size,
            on_forward=lambda: self.on_progress(state.history.step),
        )

    def _batches(self, features: Features) -> SubjectBatches:
        config, subjects = self.config, self.config.split[0]
        return SubjectBatches(
            subjects=subjects,
            image_counts=[config.bank.image_counts[subject] for subject in subjects],
            input_counts=config.input_counts(subjects),
            theta=RowCache(config.bank.theta, subjects),
            features=features,
            examples=self._examples,
            batch_size=config.batch_size,
            seed=config.seed,
        )

    def _examples(self, images: Sequence[ImageIndex]) -> list[Example]:
        bank = self.config.bank
        prompts = [bank.caption(*image) for image in images]
        return [
            Example(latent[None], self.conditioning[prompt], prompt)
            for latent, prompt in zip(bank.latent_batch(images), prompts, strict=True)
        ]

    @torch.no_grad()
    def _predictor(self, trainer: HyperNetworkTrainer, history: History, started: float) -> Predictor:
        """Return the chosen hypernetwork on the CPU, with its metadata; ``history`` is that of all steps."""
        config, selection = self.config, trainer.selection
        with trainer.state.result():
            network = trainer.network.copy()
        base, times = config.bank.manifest.base, {"started": started, "finished": time.time()}
        result = selection.results[selection.chosen].metadata
        metadata = {**config.metadata(history), "taken_at_step": selection.chosen, **result, **times}
        base_ref = BaseModelRef(base["base"], base["weights"])
        return Predictor(network, self.encoder, base_ref, config.bank.prompt, metadata)


def _nothing(_history: History) -> None:
    pass


def _require_same_start(found: Sequence[tuple[str, int]]) -> None:
    """Require that all processes have the same run, and resume from the same step.

    Args:
        found: key of the run, and step, of each process.

    Raises:
        ValueError: they differ.
    """
    keys, steps = zip(*found, strict=True)
    if len(set(keys)) > 1:
        raise ValueError("the processes have different banks, models or encoders; give all of them the same files")
    if len(set(steps)) > 1:
        raise ValueError(
            f"the processes found states of the steps {', '.join(map(str, steps))}; give all of them the same output "
            "folder, one that the machines share"
        )
