"""A training of a hypernetwork under way: network, loss, controls, and what was seen of them."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ...models.backbone.gradient_checkpointing import gradient_checkpointing
from ...models.hypernetwork.delta_distance import MAX_SUBJECTS, LayerDeltas, delta_variance
from ...models.hypernetwork.network import HyperNetwork
from ...models.hypernetwork.predictor import BaseModelRef, Predictor
from ...models.subject_bank.bank import Bank
from ..data.dataset import Example
from ..diffusion.losses import weighting
from ..diffusion.objective import Objective
from ..engine.checkpoints import CheckpointStore
from ..engine.distributed import SINGLE, ProcessGroup
from ..engine.loop import FitConfig, fit
from ..engine.state import Group, History, TrainState
from ..reporting.charts import comparison_chart
from ..reporting.live_view import OnHistory
from ..session import TrainingSession
from .config import HyperNetworkTrainingConfig
from .evaluation import EvalResult, Evaluator
from .feature_cache import FeatureCache, Picture
from .initialization import initial_network
from .loss import PredictionLoss, SubjectBatches
from .row_cache import RowCache

Conds = Mapping[str, Any]
"""Prompt -> its conditioning."""


@dataclass
class HyperNetworkTrainer:
    """A run on a bench.

    Args:
        first: the parameters at the start.
        lines: how it starts, for the report.
        processes: processes that share every batch; the leader alone looks.
        looks: step -> what the controls said.
        kept: step of the best look so far, and what the network was then, on the CPU.
        at: step that the result is of.
        lost: the best step, if that is another, whose state is gone.
    """

    run: HyperNetworkTrainingConfig
    session: TrainingSession
    network: HyperNetwork
    state: TrainState
    controls: Evaluator
    people: SubjectBatches
    first: list[Tensor]
    lines: list[str]
    processes: ProcessGroup = SINGLE
    looks: dict[int, EvalResult] = field(default_factory=dict)
    kept: tuple[int, list[Tensor]] = (-1, [])
    at: int = 0
    lost: int | None = None
    started: float = field(default_factory=time.time)
    pieces: int = 1

    @classmethod
    def begin(
        cls,
        run: HyperNetworkTrainingConfig,
        session: TrainingSession,
        conds: Conds,
        features: FeatureCache,
        alive: Callable[[int], None],
        processes: ProcessGroup,
    ) -> "HyperNetworkTrainer":
        bank = run.bank
        training, held = run.people
        rows = RowCache(features, run.inputs)
        network, line = initial_network(run, rows, training, lambda: alive(0), processes)
        network.to(session.memory.device)
        options = run.options
        state = TrainState(
            [Group(list(network.parameters()), run.learning_rate)],
            options.optimizer,
            options.ema_decay,
            session.model.half,
        )
        examples = partial(_examples, bank, conds)
        objective = Objective(
            session.denoiser,
            session.text.condition_per_subject,
            session.denoiser.to_model,
            weighting(options.loss_weighting, options.min_snr_gamma),
        )
        seen, shown = zip(*map(run.looked_at, held), strict=True)
        controls = Evaluator(
            network,
            session,
            objective,
            options,
            run.seed,
            examples(shown),
            rows(seen).to(session.memory.device, torch.float32),
            bank.theta(held).to(session.memory.device),
            run.batch_size,
            lambda: alive(state.history.step),
        )
        thetas = RowCache(bank.theta, training)
        counts = [bank.image_counts[person] for person in training]
        people = SubjectBatches(training, counts, run.inputs_of(training), thetas, rows, examples)
        first = [parameter.detach().clone() for parameter in network.parameters()]
        return cls(run, session, network, state, controls, people, first, [line, *run.warnings], processes)

    def fit(self, states: CheckpointStore, watch: OnHistory) -> None:
        """Train to the end, in as many pieces as memory asks for."""
        while not self._fits(states, watch):
            if self.pieces >= self.run.batch_size:
                raise torch.OutOfMemoryError(
                    "out of memory with one person at a time; set denoising_loss to 0, switch gradient_checkpointing "
                    "on in Training Options, or load the model in fp8"
                )
            self.pieces = min(self.run.batch_size, 2 * self.pieces)
            self.controls.at_once = -(-self.run.batch_size // self.pieces)
            logging.warning("HyperBooth: out of memory; going on in %d pieces", self.pieces)

    def _fits(self, states: CheckpointStore, watch: OnHistory) -> bool:
        run, options = self.run, self.run.options
        config = FitConfig.from_options(options, steps=run.steps)

        def on_step(state: TrainState) -> None:
            if self._is_due(state.history.step):
                self._judge(states)
            if options.checkpoint_every and state.history.step % options.checkpoint_every == 0:
                states.save(state)
            watch(state.history)

        with gradient_checkpointing(self.session.model.blocks if options.gradient_checkpointing else ()):
            try:
                self._judge(states)
                watch(self.state.history)
                fit(self._loss(), self.state, config, on_step=on_step, processes=self.processes)
            except Exception as error:
                if not self.session.memory.is_out_of_memory(error):
                    raise
                return False
        return True

    def _loss(self) -> PredictionLoss:
        run = self.run
        return PredictionLoss(
            self.network, self.people, self.session, self.controls.objective, run.options, run.batch_size, run.seed,
            run.weight_loss, run.denoising_loss, self._variance, self._gap, self.pieces, self.processes,
        )  # fmt: skip

    @cached_property
    def _gap(self) -> float:
        return self.processes.broadcast_object(lambda: self.controls.gap)

    @cached_property
    def _variance(self) -> float:
        return self.processes.broadcast_object(self._variance_of_people)

    def _variance_of_people(self) -> float:
        some = self.people.theta(self.people.places[:MAX_SUBJECTS])
        return max(delta_variance(LayerDeltas(self.network.layout)(some)).item(), 1e-30)

    def _is_due(self, step: int) -> bool:
        return step % self.run.look_every == 0 or step == self.run.steps

    def _judge(self, states: CheckpointStore) -> None:
        """Look at the network as the run would give it now; the loss on people held out, in the units of training,
        goes into the history. The best network is kept, and its state in a file of its own, for a run that goes on.
        Where a stopped run is taken up between two looks, it only looks: the whole run went by no such one."""
        if not self.processes.is_main:
            return
        run, history = self.run, self.state.history
        look = self._look(history.step)
        if not self._is_due(history.step):
            return
        if all(step != history.step for step, _ in history.validation):
            loss = run.weight_loss * (1 - look.explained) + run.denoising_loss * look.own / self.controls.gap
            history.validation.append((history.step, loss))
        if history.best[0] == history.step:
            with self.state.result():
                now = [parameter.detach().to("cpu", copy=True) for parameter in self.state.parameters]
            self.kept = history.step, now
            if not states.ahead:
                states.good.save(self.state)

    def _look(self, step: int) -> EvalResult:
        if step not in self.looks:
            with self.state.result():
                self.looks[step] = self.controls.look()
            logging.info("HyperBooth: step %d: %s", step, self._said(step))
        return self.looks[step]

    def _said(self, step: int) -> str:
        return self.looks[step].said(of_weights=self.run.weight_loss > 0)

    def settle(self, states: CheckpointStore) -> None:
        """Take the parameters of the step that was best on people held out; in a bank of few that comes early."""
        last, (best, _) = self.state.history.step, self.state.history.best
        self.at = best
        if best == 0:
            self._take(self.first)
        elif best == self.kept[0]:
            self._take(self.kept[1])
        elif best != last and not states.good.load(self.state, best, best):
            self.at, self.lost = last, best
        self._look(self.at)

    @torch.no_grad()
    def _take(self, values: Sequence[Tensor]) -> None:
        averages = self.state.ema.values if self.state.ema else ()
        for places in (self.state.parameters, averages):
            for place, value in zip(places, values, strict=False):
                place.copy_(value)

    def picture(self) -> Image.Image | None:
        """The looks so far: own and wrong predictions over the steps, between what never changes."""
        if not self.looks:
            return None
        looks = sorted(self.looks.items())
        curves = {name: [(step, getattr(look, name)) for step, look in looks] for name in ("own", "wrong")}
        return comparison_chart(curves, self.controls.fixed, self.run.steps, "people held out")

    @torch.no_grad()
    def result(self, encoder: BaseModelRef, history: History) -> Predictor:
        """The hypernetwork, on the CPU."""
        with self.state.result():
            network = self.network.copy()
        base, times = self.run.bank.manifest.base, {"started": self.started, "finished": time.time()}
        facts = {**self.run.metadata(history), "taken_at_step": self.at, **self.looks[self.at].metadata, **times}
        return Predictor(network, encoder, BaseModelRef(base["base"], base["weights"]), self.run.bank.prompt, facts)

    def notes(self, states: CheckpointStore) -> tuple[str, ...]:
        """The start, the first look, the best and the last, and what went wrong without harm."""
        told = sorted({min(self.looks), self.at, max(self.looks)})
        lines = [*self.lines, *(f"at step {step}: {self._said(step)}" for step in told)]
        which = f"; that of step {self.lost}" if self.lost is not None else ""
        gone = ", is not on the disk any more" if which else ""
        lines += [f"the hypernetwork is that of step {self.at}{which}, the best on people held out{gone}"]
        lines += [f"computing in {self.pieces} pieces"] if self.pieces > 1 else []
        return (*lines, *(place.failure for place in (states, states.good) if place.failure))


def _examples(bank: Bank, conds: Conds, pictures: Sequence[Picture]) -> list[Example]:
    prompts = [bank.caption(*picture) for picture in pictures]
    return [
        Example(latent[None], conds[prompt], prompt)
        for latent, prompt in zip(bank.latent_batch(pictures), prompts, strict=True)
    ]
