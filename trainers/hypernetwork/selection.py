"""Model selection: a hypernetwork's state is evaluated during training, and the best one is the result."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..engine.checkpoints import CheckpointStore
from ..engine.state import TrainState
from .config import HyperNetworkTrainingConfig
from .evaluation import EvalResult, Evaluator

logger = logging.getLogger("hyperbooth")


@dataclass(kw_only=True)
class ModelSelection:
    """Evaluates the state of a training, and keeps the best one.

    The best state so far is kept in main memory, and in a file of its own (``checkpoints.good``) for a run that is
    resumed. With few subjects in a bank the best state comes early.

    Args:
        config: when it is evaluated, and the weights of the losses.
        evaluator: measures the network.
        state: of the training.
        checkpoints: of the run.
        initial: the parameters before the first step.
        results: step -> result of its evaluation.
        kept: step of the best state so far, and its parameters on the CPU.
        chosen: step of the state that is the result, set by :meth:`restore_best`.
        lost: the best step, if another one had to be chosen because its state is gone.
    """

    config: HyperNetworkTrainingConfig
    evaluator: Evaluator
    state: TrainState
    checkpoints: CheckpointStore
    initial: Sequence[Tensor]
    results: dict[int, EvalResult] = field(default_factory=dict)
    kept: tuple[int, Sequence[Tensor]] = (-1, ())
    chosen: int = 0
    lost: int | None = None

    @property
    def denoising_gap(self) -> float:
        """The unit of the denoising loss: what prediction can gain, see :attr:`.Evaluator.gap`."""
        return self.evaluator.gap

    def limit_batch(self, subjects: int) -> None:
        """Evaluate at most so many subjects in one forward: what training found to fit in memory."""
        self.evaluator.batch_size = subjects

    def is_due(self, step: int) -> bool:
        """Return whether the run evaluates its state after ``step`` steps."""
        return step % self.config.evaluate_every == 0 or step == self.config.steps

    def update(self) -> None:
        """Evaluate the state as the run would return it now, and keep it if it is the best one.

        The history gets the loss on held-out subjects in the units of training. A step that is not due (a run was
        resumed between two evaluations) is evaluated only: the uninterrupted run does not select it.
        """
        config, history = self.config, self.state.history
        result = self.evaluate(history.step)
        if not self.is_due(history.step):
            return
        if all(step != history.step for step, _ in history.validation):
            weights = config.weight_loss * (1 - result.explained)
            denoising = config.denoising_loss * result.own / self.denoising_gap
            history.validation.append((history.step, weights + denoising))
        if history.best[0] == history.step:
            with self.state.result():
                self.kept = history.step, [p.detach().to("cpu", copy=True) for p in self.state.parameters]
            if not self.checkpoints.ahead:
                self.checkpoints.good.save(self.state)

    def evaluate(self, step: int) -> EvalResult:
        """Return the result of the current state, which is that of ``step``; each step is measured once."""
        if step not in self.results:
            with self.state.result():
                self.results[step] = self.evaluator.evaluate()
            logger.info("step %d: %s", step, self.describe(step))
        return self.results[step]

    def describe(self, step: int) -> str:
        """Return the result of ``step`` in one line."""
        return self.results[step].describe(with_weights=self.config.weight_loss > 0)

    def restore_best(self) -> None:
        """Load the parameters of the best step, from main memory or its file; the last ones if both are gone."""
        last, (best, _) = self.state.history.step, self.state.history.best
        self.chosen = best
        if best == 0:
            self._load(self.initial)
        elif best == self.kept[0]:
            self._load(self.kept[1])
        elif best != last and not self.checkpoints.good.load(self.state, best, best):
            self.chosen, self.lost = last, best
        self.evaluate(self.chosen)

    @torch.no_grad()
    def _load(self, values: Sequence[Tensor]) -> None:
        averages = self.state.ema.values if self.state.ema else ()
        for parameters in (self.state.parameters, averages):
            for parameter, value in zip(parameters, values, strict=False):
                parameter.copy_(value)
