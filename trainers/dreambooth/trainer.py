"""Training an adapter on a subject: targets, adapter, loss and loop put together."""

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
from ...models.metadata.summary import removal_warning
from ..diffusion.preview_sampler import preview
from ..engine import memory_plan
from ..engine.checkpoints import CheckpointStore
from ..engine.divergence import Diverged
from ..engine.loop import FitConfig, OnStep, fit
from ..engine.rng import generator_for
from ..engine.state import History, TrainState
from ..hollowed_net.recording import OnRecord, Recorder, recorder_of, silent
from ..reporting.live_view import MakeLiveView, OnHistory
from ..session import TrainingSession
from .config import DreamBoothConfig
from .initial_adapter import at_its_start, initial_adapter, parameter_groups, trained_part, weights_of
from .loss import DreamBoothLoss

Rescue = Callable[[AdapterStack], str]
"""Puts an adapter in a safe place and names it."""

_PREVIEW = 101


@dataclass(frozen=True)
class Result:
    """What a run gave.

    Args:
        adapter: on the CPU.
        history: what happened.
        resumed: step at which a former run was taken up, 0 for none.
        notes: what was chosen, and what went wrong without harm; for the report.
    """

    adapter: AdapterStack
    history: History
    resumed: int
    notes: tuple[str, ...]


def train_dreambooth(
    run: DreamBoothConfig,
    session: TrainingSession,
    watch: MakeLiveView,
    states: CheckpointStore,
    rescue: Rescue,
    on_record: OnRecord = silent,
) -> Result:
    """Train a new adapter (or ``run.start_from`` further, or one after ``run.on_top_of``) on ``bench``.

    Cancelled or failed, the run's state stays in ``states``, and the next one with the same inputs goes on from there.

    Args:
        on_record: called while a hollow network's samples are recorded, with the batches done and their number.

    Raises:
        ValueError: the targets match nothing, the rank does not fit, or ``start_from`` is of another kind.
        Diverged: the run no longer learns; the last good state is rescued, and the message says where.
        torch.OutOfMemoryError: whatever the plan; the message says what to turn down.
    """
    seen = watch(lambda: job.sample())
    weight_of = weights_of(session, lambda: seen(History()))
    job = _taken_up(run, session, states) or DreamBoothTrainer.begin(run, session, weight_of)
    resumed, warnings = job.state.history.step, _warnings(job.adapter)
    recorder = recorder_of(run.recording, session, states, on_record)
    try:
        with states.saved_on_exit(job.state):
            lines = job.fit(_keeping(states, run, seen), recorder)
    except Diverged as error:
        recorder.forget()
        raise Diverged(f"{error} {_rescue(job, states, run, rescue)}") from error
    states.good.forget()
    recorder.forget()
    notes = (*lines, *_carries_over(run, job.state.history), *warnings, *([states.failure] if states.failure else []))
    return Result(job.result(), job.state.history, resumed, notes)


def _warnings(adapter: AdapterStack) -> list[str]:
    """What to beware of in the chain that trains; in the log as well."""
    warning = removal_warning(adapter)
    if warning is None:
        return []
    logging.warning("HyperBooth: %s", warning)
    return [f"warning: {warning}"]


def _carries_over(run: DreamBoothConfig, history: History) -> list[str]:
    """Whether the whole network gains by what was learnt without its middle: the loss on fixed noise is the whole's."""
    if run.hollow is None or len(history.divergence_checks) < 2:
        return []
    first, last = (loss for _, loss in (history.divergence_checks[0], history.divergence_checks[-1]))
    measured = f"loss of the whole network on the first picture {last:.4f}, before training {first:.4f}"
    if last < first:
        return [measured]
    warning = f"{measured}: too much was taken out, or too little was learnt; lower fraction in Hollowed Net"
    logging.warning("HyperBooth: %s", warning)
    return [f"warning: {warning}"]


def _taken_up(run: DreamBoothConfig, session: TrainingSession, states: CheckpointStore) -> "DreamBoothTrainer | None":
    """The job as an earlier run left it, if that left a state; a start from the weights is not worked out for it."""
    if not states.path.exists():
        return None
    job = DreamBoothTrainer.begin(run, session)
    if not states.load(job.state, run.steps):
        return None
    logging.info("HyperBooth: going on from step %d of an earlier run", job.state.history.step)
    return job


def _keeping(states: CheckpointStore, run: DreamBoothConfig, watch: OnHistory) -> OnStep:
    """State on disk every so many steps, then what the user sees (where a cancel comes in)."""
    every = run.options.checkpoint_every

    def on_step(state: TrainState) -> None:
        history = state.history
        if every and history.step % every == 0:
            states.save(state)
        if history.divergence_checks[-1][0] == history.step < run.steps:
            states.good.save(state)
        watch(state.history)

    return on_step


def _rescue(job: "DreamBoothTrainer", states: CheckpointStore, run: DreamBoothConfig, rescue: Rescue) -> str:
    """Put the last good state where the user finds it; a sentence that says so."""
    if not states.good.load(job.state, run.steps):
        return "It went wrong before the first look at it, so nothing was saved."
    step = job.state.history.step
    try:
        name = rescue(job.result())
    except (OSError, ValueError) as error:
        return f"The adapter as of step {step}, the last good state, could not be saved: {error}."
    return f"The adapter as of step {step}, the last good state, was saved as {name}."


def _in_pieces(loss: DreamBoothLoss, pieces: int) -> DreamBoothLoss:
    return replace(loss, pieces=pieces)


@dataclass(frozen=True)
class DreamBoothTrainer:
    """A run on a bench: the adapter, and the state of the part that trains."""

    run: DreamBoothConfig
    session: TrainingSession
    adapter: AdapterStack
    state: TrainState
    started: float

    @classmethod
    def begin(
        cls, run: DreamBoothConfig, session: TrainingSession, weight_of: WeightOf | None = None
    ) -> "DreamBoothTrainer":
        started = time.time()
        adapter = initial_adapter(run, session, weight_of)
        groups = parameter_groups(trained_part(adapter, run.method), run.method)
        state = TrainState(groups, run.options.optimizer, run.options.ema_decay, session.model.half)
        return cls(run, session, adapter, state, started)

    def fit(self, on_step: OnStep, recorder: Recorder) -> list[str]:
        """Train within the memory there is; lines that say how."""
        run, session = self.run, self.session
        with (
            session.text.with_embeddings(self.adapter.embeddings, run.subject.prompts),
            session.injected(self.adapter) as without,
        ):
            loss = DreamBoothLoss(
                session.denoiser,
                session.text.condition,
                session.denoiser.to_model,
                run.training,
                run.loss_options,
                run.batch_size,
                run.seed,
                without,
                teacher_apart=run.has_a_past,
            )
            off = partial(at_its_start, self.adapter, run, session) if run.has_a_past or run.method.textual_inversion else without
            with recorder.recorded(partial(_in_pieces, loss), off, self.state.history.step) as records:
                loss = replace(loss, records=records)
                plan, line = self._plan(loss)
                while not self._fits(plan, loss, on_step):
                    plan = self._tighter(plan)
                    line = memory_plan.describe_plan(plan, None, 0, run.batch_size, session.model.precision)
                    logging.warning("HyperBooth: out of memory at step %d; going on with %s", self._at, line)
        return [*recorder.lines, line]

    def _fits(self, plan: memory_plan.MemoryPlan, loss: DreamBoothLoss, on_step: OnStep) -> bool:
        """Train to the end under ``plan``; False if memory ran out on the way."""
        options = self.run.loss_options
        config = FitConfig.from_options(options, steps=self.run.steps)
        self.state.history.micro_batches, self.state.history.checkpointing = plan.micro_batches, plan.checkpointing
        loss = replace(loss, pieces=plan.micro_batches)
        validate = partial(loss.validate, self.run.validation) if options.validation else None
        with gradient_checkpointing(self.session.model.blocks if plan.checkpointing else ()):
            try:
                fit(loss, self.state, config, on_step=on_step, validate=validate, divergence_check=loss.probe)
            except Exception as error:
                if not self.session.memory.is_out_of_memory(error):
                    raise
                return False
        return True

    def _plan(self, loss: DreamBoothLoss) -> tuple[memory_plan.MemoryPlan, str]:
        run, session, options = self.run, self.session, self.run.options
        history = self.state.history
        start = memory_plan.MemoryPlan(history.micro_batches, options.gradient_checkpointing or history.checkpointing)
        if options.memory == "as set":
            return (
                start,
                f"{memory_plan.describe_plan(start, None, 0, run.batch_size, session.model.precision)} (as set)",
            )
        needs = self._measured(loss)
        if needs is None:
            tightest = memory_plan.MemoryPlan(run.batch_size, checkpointing=True)
            return tightest, memory_plan.describe_plan(tightest, None, 0, run.batch_size, session.model.precision)
        plan = memory_plan.choose_plan(needs, session.memory.free_memory(), run.batch_size, start)
        session.memory.make_room(needs.of(plan, run.batch_size))
        line = memory_plan.describe_plan(
            plan, needs, session.memory.free_memory(), run.batch_size, session.model.precision
        )
        logging.info("HyperBooth: %s", line)
        return plan, line

    def _measured(self, loss: DreamBoothLoss) -> memory_plan.MemoryNeeds | None:
        """What the run needs, or None if not even one forward fits."""
        session, state = self.session, self.state
        passing = session.memory.inference_bytes(loss.largest.size)
        try:
            return memory_plan.measure_needs(
                loss.of_one_sample, session.model.blocks, state.parameters, passing, state.bytes_per_parameter
            )
        except Exception as error:
            if not session.memory.is_out_of_memory(error):
                raise
            return None

    def _tighter(self, plan: memory_plan.MemoryPlan) -> memory_plan.MemoryPlan:
        tighter = plan.tighter(self.run.batch_size) if self.run.options.memory == "auto" else None
        if tighter is None:
            turn_on = "" if plan.checkpointing else "switch gradient_checkpointing on, set memory to 'auto', "
            raise torch.OutOfMemoryError(f"out of memory at step {self._at}; {turn_on}{memory_plan.ADVICE}")
        return tighter

    @property
    def _at(self) -> int:
        return self.state.history.step + 1

    def result(self) -> AdapterStack:
        """The chain as the run would give it now, on the CPU."""
        with self.state.result():
            chain, words = (
                [part.copy_to("cpu") for part in parts] for parts in (self.adapter.adapters, self.adapter.embeddings)
            )
        times = {"started": self.started, "finished": time.time()}
        facts = {**self.session.model.metadata, **self.run.metadata(self.state.history), **times}
        if self.run.on_top_of is not None:
            facts = combine_adapters(self.run.on_top_of, AdapterStack(tuple(chain[-1:]), facts)).metadata
        return AdapterStack(tuple(chain), facts, tuple(words))

    @torch.no_grad()
    def sample(self) -> Image.Image | None:
        """A picture of the first example's prompt, always from the same noise."""
        run, session = self.run, self.session
        example = run.subject.examples[0].variant(0).unframed()
        seed = generator_for(run.seed, _PREVIEW).initial_seed()
        with self.state.result():
            cond, blank = session.text.condition([example]), session.text.unconditional(run.subject)
            return session.denoiser.preview(preview(session.denoiser, cond, blank, example.size, seed))
