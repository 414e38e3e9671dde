"""The trainer of a hypernetwork: the loop over losses, evaluation and checkpoints, within memory."""

from dataclasses import dataclass, field
from functools import cached_property

from ...models.backbone.gradient_checkpointing import gradient_checkpointing
from ...models.hypernetwork.delta_distance import MAX_SUBJECTS, LayerDeltas, delta_variance
from ...models.hypernetwork.network import HyperNetwork
from ..diffusion.objective import Objective
from ..engine.checkpoints import CheckpointStore
from ..engine.distributed import SINGLE, ProcessGroup
from ..engine.loop import FitConfig, fit
from ..engine.memory_plan import MemoryNeeds, MemoryPlan, measure_needs
from ..engine.memory_planner import MemoryPlanner
from ..engine.rng import generator_for
from ..engine.state import TrainState
from ..reporting.live_view import OnHistory
from ..session import TrainingSession
from .batches import SubjectBatches
from .config import HyperNetworkTrainingConfig
from .loss import HyperNetworkLoss, PredictedAdapterLoss, WeightLoss
from .selection import ModelSelection

_SAMPLE = 7


MEMORY_ADVICE = "set denoising_loss to 0, or load the model in fp8"
"""What to turn down when memory does not suffice."""


@dataclass(kw_only=True)
class HyperNetworkTrainer:
    """Trains a hypernetwork.

    Args:
        config: of the run.
        session: the model.
        network: what is trained, on the training device.
        state: its parameters, optimizer and history.
        batches: the training subjects, and their order.
        objective: the model's denoising loss.
        selection: evaluates the state and keeps the best one.
        processes: processes that share every batch; the main process alone evaluates.
    """

    config: HyperNetworkTrainingConfig
    session: TrainingSession
    network: HyperNetwork
    state: TrainState
    batches: SubjectBatches
    objective: Objective
    selection: ModelSelection
    processes: ProcessGroup = SINGLE
    planner: MemoryPlanner = field(init=False)

    def __post_init__(self) -> None:
        options, mine = self.config.options, self.processes.shard(self.config.batch_size)
        self.planner = MemoryPlanner(
            memory=self.session.memory,
            batch_size=mine.stop - mine.start,
            precision=self.session.model.precision,
            plan=MemoryPlan(checkpointing=options.gradient_checkpointing),
            auto=options.memory == "auto",
            advice=MEMORY_ADVICE,
        )

    def fit(self, checkpoints: CheckpointStore, on_history: OnHistory) -> None:
        """Train to the last step, within the memory there is.

        Args:
            checkpoints: receives the state every ``checkpoint_every`` steps.
            on_history: called at the start of every attempt and after every step.

        Raises:
            Diverged: the loss is NaN or infinite, or has grown out of proportion.
            torch.OutOfMemoryError: not even one subject fits.
        """
        if self.config.denoising_loss:
            self.planner.choose(self._measure)

        def on_step(state: TrainState) -> None:
            every, step = self.config.options.checkpoint_every, state.history.step
            if self.selection.is_due(step):
                self._evaluate()
            if every and step % every == 0:
                checkpoints.save(state)
            on_history(state.history)

        def attempt(plan: MemoryPlan) -> None:
            self.selection.limit_batch(plan.samples(self.planner.batch_size))
            loop = FitConfig.from_options(self.config.options, steps=self.config.steps)
            with gradient_checkpointing(self.session.model.blocks if plan.checkpointing else ()):
                self._evaluate()
                on_history(self.state.history)
                fit(self.loss(plan.micro_batches), self.state, loop, on_step=on_step, processes=self.processes)

        self.planner.run(
            attempt,
            where=lambda: f"at step {self.state.history.step + 1}",
            advice=MEMORY_ADVICE,
        )

    def loss(self, micro_batches: int = 1) -> HyperNetworkLoss:
        """Return the loss, whose batches go through the model in ``micro_batches`` parts."""
        config = self.config
        weight = WeightLoss(layout=self.network.layout, theta=self.batches.theta, variance=self._variance)
        return HyperNetworkLoss(
            network=self.network,
            batches=self.batches,
            weight=weight if config.weight_loss else None,
            weight_scale=config.weight_loss,
            denoising=self._denoising(micro_batches) if config.denoising_loss else None,
            denoising_scale=config.denoising_loss / self._gap,
            seed=config.seed,
            device=self.session.memory.device,
            processes=self.processes,
        )

    def _denoising(self, micro_batches: int = 1) -> PredictedAdapterLoss:
        return PredictedAdapterLoss(
            network=self.network,
            session=self.session,
            objective=self.objective,
            options=self.config.options,
            examples=self.batches.examples,
            micro_batches=micro_batches,
            processes=self.processes,
        )

    @cached_property
    def _gap(self) -> float:
        """The unit of the denoising loss, measured by the main process."""
        return self.processes.broadcast_object(lambda: self.selection.denoising_gap)

    @cached_property
    def _variance(self) -> float:
        """The unit of the weight loss, measured by the main process."""
        return self.processes.broadcast_object(self._measured_variance)

    def _measured_variance(self) -> float:
        some = self.batches.theta(self.batches.subjects[:MAX_SUBJECTS])
        return max(delta_variance(LayerDeltas(self.network.layout)(some)).item(), 1e-30)

    def _measure(self) -> MemoryNeeds:
        """Measure what one sample of the denoising loss takes; the network's own forward takes little."""
        image, loss = (self.batches.subjects[0], 0), self._denoising()
        size = self.batches.examples([image])[0].size
        return measure_needs(
            lambda: loss.of_one_sample(image, generator_for(self.config.seed, _SAMPLE)),
            blocks=self.session.model.blocks,
            parameters=self.state.parameters,
            inference_bytes=self.session.memory.inference_bytes(size),
            bytes_per_parameter=self.state.bytes_per_parameter,
        )

    def _evaluate(self) -> None:
        if self.processes.is_main:
            self.selection.update()
