"""Training a hypernetwork on a bank: features, start, loss, controls and loop put together."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..models.bank import Bank
from ..models.checkpointing import checkpointed
from ..models.hypernetwork import HyperNetwork
from ..models.predictor import Made, Predictor
from ..models.products import MOST, Splitter, product_variance
from .chart import comparison_chart
from .controls import Controls, Look
from .features import Features, Picture
from .guard import Diverged
from .hypernetwork_run import HyperRun
from .linear_start import begin
from .loop import FitConfig, fit
from .losses import weighting
from .noise import generator_for
from .objective import Objective
from .personalize import Watch
from .prediction_loss import People, PredictionLoss
from .resume import States
from .rows import Rows
from .state import Group, History, TrainState
from .subject import Example
from .workbench import Workbench

MakeWatch = Callable[[Callable[[], Image.Image | None]], Watch]
_START = 100


@dataclass(frozen=True)
class Result:
    """What a run gave.

    Args:
        predictor: on the CPU.
        history: what happened.
        resumed: step at which a former run was taken up, 0 for none.
        notes: the start, the first and the last look, what was chosen; for the report.
    """

    predictor: Predictor
    history: History
    resumed: int
    notes: tuple[str, ...]


def train_hypernetwork(
    run: HyperRun, bench: Workbench, cond: Any, encoder: Made, features: Features, watch: MakeWatch, states: States
) -> Result:
    """Train a hypernetwork on ``run.bank``.

    Cancelled or failed, the run's state stays in ``states``, and the next one with the same inputs goes on from there.

    Args:
        bench: the model that the bank is for.
        cond: conditioning of the bank's prompt, where the text encoder is not the bank's to change.
        encoder: of pictures.
        features: what it gives for those of the bank.

    Raises:
        Diverged: the run no longer learns.
        torch.OutOfMemoryError: not even one person fits.
    """
    job = _Job.begin(run, bench, cond, features)
    seen = watch(lambda: job.picture())
    seen(History())
    resumed = job.state.history.step if states.load(job.state, run.steps) else 0
    try:
        job.fit(states, seen)
        job.look()
    except Diverged:
        states.forget()
        raise
    except BaseException:
        states.save(job.state)
        raise
    states.save(job.state)
    return Result(job.result(encoder), job.state.history, resumed, job.notes(states))


@dataclass
class _Job:
    """A run on a bench."""

    run: HyperRun
    bench: Workbench
    network: HyperNetwork
    state: TrainState
    controls: Controls
    people: People
    lines: list[str]
    looks: list[tuple[int, Look]] = field(default_factory=list)
    started: float = field(default_factory=time.time)
    pieces: int = 1

    @classmethod
    def begin(cls, run: HyperRun, bench: Workbench, cond: Any, features: Features) -> "_Job":
        bank = run.bank
        training, held = run.people
        rows = Rows(features, run.pictures)
        network, line = _network(run, rows, training)
        network.to(bench.device)
        options = run.options
        state = TrainState(
            [Group(list(network.parameters()), run.learning_rate)], options.optimizer, options.ema_decay, bench.half
        )
        examples = partial(_examples, bank, cond)
        objective = Objective(
            bench.denoiser, bench.condition_each, bench.to_model, weighting(options.loss_weighting,
            options.min_snr_gamma),
        )  # fmt: skip
        last = [(person, bank.counts[person] - 1) for person in held]
        controls = Controls(
            network, bench, objective, options, run.seed, examples([(person, 0) for person in held]),
            rows(last).to(bench.device, torch.float32), bank.theta(held).to(bench.device), run.batch_size,
        )  # fmt: skip
        thetas = Rows(bank.theta, training)
        people = People(training, [bank.counts[person] for person in training], thetas, rows, examples)
        return cls(run, bench, network, state, controls, people, [line])

    def fit(self, states: States, watch: Watch) -> None:
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

    def _fits(self, states: States, watch: Watch) -> bool:
        run, options = self.run, self.run.options
        config = FitConfig(
            run.steps, options.lr_scheduler, options.warmup_steps, options.gradient_accumulation,
            options.max_grad_norm, worse=options.worse,
        )  # fmt: skip

        def on_step(state: TrainState) -> None:
            if options.checkpoint_every and state.history.step % options.checkpoint_every == 0:
                states.save(state)
            if state.history.step % run.look_every == 0:
                self.look()
            watch(state.history)

        with checkpointed(self.bench.blocks if options.gradient_checkpointing else ()):
            try:
                self.look()
                fit(self._loss(), self.state, config, on_step)
            except Exception as error:
                if not self.bench.is_out_of_memory(error):
                    raise
                return False
        return True

    def _loss(self) -> PredictionLoss:
        run = self.run
        return PredictionLoss(
            self.network, self.people, self.bench, self.controls.objective, run.options, run.batch_size, run.seed,
            run.weight_loss, run.denoising_loss, self._variance, self.controls.gap, self.pieces,
        )  # fmt: skip

    @cached_property
    def _variance(self) -> float:
        some = self.people.theta(self.people.places[:MOST])
        return max(product_variance(Splitter(self.network.layout)(some)).item(), 1e-30)

    def look(self) -> None:
        """Measure the network as the run would give it now, beside its controls, once for each step."""
        step = self.state.history.step
        if self.looks and self.looks[-1][0] == step:
            return
        with self.state.result():
            self.looks.append((step, self.controls.look()))
        logging.info("HyperBooth: step %d: %s", step, self.looks[-1][1])

    def picture(self) -> Image.Image:
        """The looks so far: own and wrong predictions over the steps, between what never changes."""
        curves = {name: [(step, getattr(look, name)) for step, look in self.looks] for name in ("own", "wrong")}
        return comparison_chart(curves, self.controls.fixed, self.run.steps, "people held out")

    @torch.no_grad()
    def result(self, encoder: Made) -> Predictor:
        with self.state.result():
            numbers = {name: value.detach().to("cpu", copy=True) for name, value in self.network.state_dict().items()}
        network = HyperNetwork.empty(self.network.config, self.network.layout, self.network.encoder_width)
        network.load_state_dict(numbers, assign=True)
        base = self.run.bank.manifest.base
        return Predictor(network, encoder, Made(base["base"], base["weights"]), self.run.bank.prompt, self._facts())

    def _facts(self) -> Mapping[str, Any]:
        _, look = self.looks[-1]
        return {
            **self.run.facts(self.state.history), **vars(look), "started": self.started, "finished": time.time(),
        }  # fmt: skip

    def notes(self, states: States) -> tuple[str, ...]:
        """The start, the looks at the beginning and the end, and what went wrong without harm."""
        ends = dict([self.looks[0], self.looks[-1]])
        lines = [*self.lines, *(f"at step {step}: {look}" for step, look in ends.items())]
        lines += [f"computing in {self.pieces} pieces"] if self.pieces > 1 else []
        return (*lines, *([states.failure] if states.failure else []))


def _network(
    run: HyperRun, features: Callable[[Sequence[Picture]], Tensor], training: Sequence[int]
) -> tuple[HyperNetwork, str]:  # fmt: skip
    """What to train, and a line on how it starts."""
    bank, width = run.bank, features(run.pictures[:1]).shape[-1]
    generator = generator_for(run.seed, _START)
    if run.start_from is None:
        network = HyperNetwork.create(run.config, bank.layout, width, generator)
        return network, begin(network, bank, training, features)
    before = run.start_from.network
    config = replace(before.config, refinements=run.config.refinements)
    network = HyperNetwork.create(config, bank.layout, width, generator)
    network.load_state_dict(before.state_dict())
    return network, f"start: a hypernetwork of {run.start_from.facts.get('steps', 0)} steps"


def _examples(bank: Bank, cond: Any, pictures: Sequence[Picture]) -> list[Example]:
    return [Example(latent[None], cond, bank.prompt) for latent in bank.latent(pictures)]
