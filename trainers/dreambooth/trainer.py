"""The DreamBooth trainer: initial adapter, loss, training loop, checkpoints and report of a run."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from PIL import Image

from ...models.adapters.stack import AdapterStack, WeightOf
from ...models.backbone.gradient_checkpointing import gradient_checkpointing
from ...models.metadata.combine import combine_adapters
from ..diffusion.preview_sampler import sample_preview
from ..engine.checkpoints import CheckpointStore
from ..engine.divergence import Diverged
from ..engine.loop import FitConfig, OnStep, fit
from ..engine.memory_plan import MemoryNeeds, MemoryPlan, measure_needs
from ..engine.memory_planner import MEMORY_ADVICE, MemoryPlanner
from ..engine.rng import generator_for
from ..engine.state import History, TrainState
from ..hollowed_net.recording import OnRecord, Recorder, make_recorder, no_progress
from ..reporting.live_view import MakeLiveView, OnHistory
from ..session import TrainingSession
from .config import DreamBoothConfig
from .hollowed_activations import DreamBoothActivations
from .initial_adapter import at_initial_values, initial_adapter, parameter_groups, trained_part, weights_of
from .loss import DreamBoothLoss
from .notes import removal_warnings, whole_network_notes
from .result_selection import ResultSelection, SaveKept
from .validation import ValidationLoss

logger = logging.getLogger("hyperbooth")

SaveRescued = Callable[[AdapterStack], str]
"""Saves the adapter of a run that diverged, and returns the name of its file."""

_PREVIEW = 101
"""Number of the random stream of the preview's noise."""


@dataclass(frozen=True, kw_only=True)
class DreamBoothResult:
    """The result of a run.

    Args:
        adapter: the trained stack, on the CPU.
        history: losses and measurements of every step.
        resumed: step of an earlier run that this one continued from, or 0.
        notes: lines of the report: what was chosen automatically, and warnings.
    """

    adapter: AdapterStack
    history: History
    resumed: int
    notes: tuple[str, ...]


def train_dreambooth(
    config: DreamBoothConfig,
    session: TrainingSession,
    *,
    live_view: MakeLiveView,
    checkpoints: CheckpointStore,
    save_rescued: SaveRescued,
    save_kept: SaveKept,
    on_record: OnRecord = no_progress,
) -> DreamBoothResult:
    """Train a new adapter (or ``start_from`` further, or one after ``on_top_of``) on the session's model.

    The state of a run that is cancelled or fails stays in ``checkpoints``; the next one with the same inputs continues.

    Args:
        config: of the run.
        session: the model, opened for training.
        live_view: makes what is called after every step from a function that samples a preview.
        checkpoints: the run's states on disk.
        save_rescued: saves the last good adapter if the run diverges.
        save_kept: saves the adapter every ``keep_every`` steps.
        on_record: called with (batches, total) while the activations of a hollowed network are recorded.

    Raises:
        ValueError: the targets match no layer, the rank does not fit, or ``start_from`` is of another kind.
        Diverged: the loss diverged; the last good state is saved, and the message names its file.
        torch.OutOfMemoryError: no memory plan suffices; the message names what to turn down.
    """
    on_history = live_view(lambda: trainer.sample())
    weight_of = weights_of(session, lambda: on_history(History()))
    trainer = _resumed(config, session, checkpoints) or DreamBoothTrainer.begin(config, session, weight_of)
    resumed, warnings = trainer.state.history.step, removal_warnings(trainer.adapter)
    recorder = make_recorder(config.recording, session, checkpoints, on_record)
    selection = ResultSelection(config.options, checkpoints, result=trainer.result, save_kept=save_kept)
    lines = _fit(trainer, recorder, selection, on_history, save_rescued)
    history = trainer.state.history
    selection.restore(trainer.state)
    notes = (*lines, *selection.lines, *whole_network_notes(config, history), *warnings, *checkpoints.failures)
    return DreamBoothResult(adapter=trainer.result(), history=history, resumed=resumed, notes=notes)


def _fit(
    trainer: "DreamBoothTrainer",
    recorder: Recorder,
    selection: ResultSelection,
    on_history: OnHistory,
    save_rescued: SaveRescued,
) -> list[str]:
    """Train to the last step; recorded activations are kept only for a run that can be continued.

    Args:
        trainer: of the run.
        recorder: of the activations.
        selection: of the result.
        on_history: called after every step.
        save_rescued: saves the last good adapter if the run diverges.

    Raises:
        Diverged: it diverged; the message names the file of the last good adapter.
    """
    try:
        with selection.checkpoints.saved_on_exit(trainer.state):
            lines = trainer.fit(_on_step(selection, trainer.config, on_history), recorder)
    except Diverged as error:
        recorder.forget()
        raise Diverged(f"{error} {_rescue(trainer, selection.checkpoints, save_rescued)}") from error
    recorder.forget()
    return lines


def _resumed(
    config: DreamBoothConfig, session: TrainingSession, checkpoints: CheckpointStore
) -> "DreamBoothTrainer | None":
    """Return the trainer in the state of an earlier run, or None; the model's weights are not read for it."""
    if not checkpoints.exists():
        return None
    trainer = DreamBoothTrainer.begin(config, session)
    if not checkpoints.load(trainer.state, config.steps):
        return None
    logger.info("continuing from step %d of an earlier run", trainer.state.history.step)
    return trainer


def _on_step(selection: ResultSelection, config: DreamBoothConfig, on_history: OnHistory) -> OnStep:
    """Return what runs after every step: checkpoints, then the live view (where a cancel raises)."""
    every = config.options.checkpoint_every

    def on_step(state: TrainState) -> None:
        history = state.history
        if every and history.step % every == 0:
            selection.checkpoints.save(state)
        selection.update(state, config.steps)
        on_history(state.history)

    return on_step


def _rescue(trainer: "DreamBoothTrainer", checkpoints: CheckpointStore, save_rescued: SaveRescued) -> str:
    """Save the last good state where the user finds it, and return a sentence about it."""
    if not checkpoints.good.load(trainer.state, trainer.config.steps):
        return "It diverged before the first divergence check, so nothing was saved."
    step = trainer.state.history.step
    try:
        name = save_rescued(trainer.result())
    except (OSError, ValueError) as error:
        return f"The adapter as of step {step}, the last good state, could not be saved: {error}."
    return f"The adapter as of step {step}, the last good state, was saved as {name}."


@dataclass(frozen=True, kw_only=True)
class DreamBoothTrainer:
    """Train one adapter in a session.

    Args:
        config: of the run.
        session: the model, opened for training.
        adapter: the stack being trained.
        state: parameters, optimizer and history of the trained part.
        started: time of the start, in seconds since the epoch.
    """

    config: DreamBoothConfig
    session: TrainingSession
    adapter: AdapterStack
    state: TrainState
    started: float

    @classmethod
    def begin(
        cls, config: DreamBoothConfig, session: TrainingSession, weight_of: WeightOf | None = None
    ) -> "DreamBoothTrainer":
        """Return the trainer at step 0.

        Args:
            config: of the run.
            session: the model, opened for training.
            weight_of: see :func:`.initial_adapter.initial_stack`.
        """
        started = time.time()
        adapter = initial_adapter(config, session, weight_of)
        groups = parameter_groups(trained_part(adapter, config.method), config.method)
        state = TrainState(groups, config.options.optimizer, config.options.ema_decay, session.model.half)
        return cls(config=config, session=session, adapter=adapter, state=state, started=started)

    def fit(self, on_step: OnStep, recorder: Recorder) -> list[str]:
        """Train to the last step within the available memory, and return lines of the report."""
        config, session = self.config, self.session
        with (
            session.text.with_embeddings(self.adapter.embeddings, config.subject.prompts),
            session.injected(self.adapter) as without,
        ):
            loss = DreamBoothLoss.for_session(
                session,
                subject=config.training,
                options=config.loss_options,
                batch_size=config.batch_size,
                seed=config.seed,
                without_adapter=without,
                separate_teacher=config.starts_from_adapter,
            )
            initial = without
            if config.starts_from_adapter or config.method.textual_inversion:
                initial = partial(at_initial_values, self.adapter, config, session)
            with recorder.recorded(
                partial(DreamBoothActivations.for_loss, loss), initial, self.state.history.step
            ) as cache:
                planner = self._planner()
                loss = replace(loss, cache=cache)
                planner.choose(partial(self._measure, loss))
                planner.run(
                    partial(self._attempt, loss, on_step),
                    where=lambda: f"at step {self.state.history.step + 1}",
                    advice=MEMORY_ADVICE,
                )
        return [*recorder.lines, planner.line]

    def _attempt(self, loss: DreamBoothLoss, on_step: OnStep, plan: MemoryPlan) -> None:
        """Train to the last step under ``plan``."""
        config, options, history = self.config, self.config.loss_options, self.state.history
        history.micro_batches, history.checkpointing = plan.micro_batches, plan.checkpointing
        validation = ValidationLoss(objective=loss.objective, noise_levels=options.noise_levels, seed=config.seed)
        with gradient_checkpointing(self.session.model.blocks if plan.checkpointing else ()):
            fit(
                replace(loss, micro_batches=plan.micro_batches),
                self.state,
                FitConfig.from_options(options, steps=config.steps),
                on_step=on_step,
                validate=partial(validation, config.validation) if options.validation else None,
                divergence_check=partial(validation.first_image, config.training.examples),
                without_adapter=loss.without_adapter,
            )

    def _planner(self) -> MemoryPlanner:
        """Return the planner, beginning with the plan of the run that is continued."""
        options, history = self.config.options, self.state.history
        return MemoryPlanner(
            memory=self.session.memory,
            batch_size=self.config.batch_size,
            precision=self.session.model.precision,
            plan=MemoryPlan(history.micro_batches, options.gradient_checkpointing or history.checkpointing),
            auto=options.memory == "auto",
        )

    def _measure(self, loss: DreamBoothLoss) -> MemoryNeeds:
        """Measure what one sample of the largest size needs."""
        return measure_needs(
            loss.largest_sample,
            blocks=self.session.model.blocks,
            parameters=self.state.parameters,
            inference_bytes=self.session.memory.inference_bytes(loss.draws.largest.size),
            bytes_per_parameter=self.state.bytes_per_parameter,
        )

    def result(self) -> AdapterStack:
        """Return the stack as the run would end now, on the CPU."""
        with self.state.result():
            adapters, embeddings = (
                tuple(part.copy_to("cpu") for part in parts)
                for parts in (self.adapter.adapters, self.adapter.embeddings)
            )
        times = {"started": self.started, "finished": time.time()}
        metadata = {**self.session.model.metadata, **self.config.metadata(self.state.history), **times}
        if self.config.on_top_of is not None:
            new = AdapterStack(adapters[-1:], metadata)
            metadata = combine_adapters(self.config.on_top_of, new).metadata
        return AdapterStack(adapters, metadata, embeddings)

    @torch.no_grad()
    def sample(self) -> Image.Image | None:
        """Sample an image of the first example's prompt, always from the same noise."""
        config, session = self.config, self.session
        example = config.subject.examples[0].variant(0).unframed()
        seed = generator_for(config.seed, _PREVIEW).initial_seed()
        with self.state.result():
            cond, unconditional = session.text.condition([example]), session.text.unconditional(config.subject)
            latents = sample_preview(
                session.denoiser, cond=cond, unconditional=unconditional, shape=example.size, seed=seed
            )
            return session.denoiser.preview(latents)
