"""Training of the subjects of a bank, as many per batch as memory holds."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from ...models.adapters.parameter_layout import ParameterLayout
from ...models.adapters.per_sample import batched_adapter
from ...models.adapters.stack import Adapter, AdapterStack
from ...models.backbone.gradient_checkpointing import gradient_checkpointing
from ...models.subject_bank.shards import SubjectFit
from ..data.dataset import Subject
from ..diffusion.losses import weighting
from ..diffusion.objective import Objective
from ..dreambooth.initial_adapter import parameter_groups
from ..engine.divergence import Diverged
from ..engine.loop import FitConfig, fit
from ..engine.memory_plan import MemoryNeeds, MemoryPlan, measure_needs
from ..engine.memory_planner import MemoryPlanner
from ..engine.state import TrainState, bytes_per_parameter
from ..reporting.live_view import OnHistory
from ..session import TrainingSession
from .config import BankConfig
from .loss import BankLoss

MEMORY_ADVICE = "give fewer subjects_per_batch, or lower the resolution"
"""What to turn down when memory does not suffice."""
OnBatch = Callable[[int], OnHistory]
"""Number of subjects that train in one batch -> what is called after every step."""


@dataclass(frozen=True)
class TrainedSubject:
    """A subject's parameters ``theta [N]``, on the CPU, and its losses on fixed noise."""

    theta: Tensor
    fit: SubjectFit


@dataclass(frozen=True)
class FailedSubject:
    """A subject whose training diverged, and why."""

    reason: str


@dataclass(kw_only=True)
class BankTrainer:
    """Trains one batch of subjects after another.

    Args:
        config: how every subject is trained.
        start: the adapter that all subjects start from.
        subjects_per_batch: the most subjects of a batch.
        planner: micro-batches and gradient checkpointing; made with the first batch, and kept for the others.
    """

    config: BankConfig
    start: Adapter
    subjects_per_batch: int
    planner: MemoryPlanner | None = None

    def __post_init__(self) -> None:
        self.layout = ParameterLayout.of(self.start)
        self._theta = self.layout.pack(self.start).cpu()

    def train(
        self, session: TrainingSession, subjects: Sequence[Subject], on_batch: OnBatch
    ) -> list[TrainedSubject | FailedSubject]:
        """Train ``subjects``, within the memory there is.

        Args:
            session: the model, opened for these subjects.
            subjects: at most ``subjects_per_batch``; their latents all have one size.
            on_batch: called with the number of subjects of each micro-batch; returns its callback.

        Returns:
            the results, in the order of ``subjects``.

        Raises:
            torch.OutOfMemoryError: one subject alone, with gradient checkpointing, does not fit.
        """
        planner = self._planned(session, subjects[0])

        def attempt(plan: MemoryPlan) -> list[TrainedSubject | FailedSubject]:
            size = plan.samples(self.subjects_per_batch)
            parts = [subjects[start : start + size] for start in range(0, len(subjects), size)]
            with gradient_checkpointing(session.model.blocks if plan.checkpointing else ()):
                return [one for part in parts for one in self._train_or_split(session, part, on_batch)]

        return planner.run(attempt, advice=MEMORY_ADVICE)

    def _train_or_split(
        self, session: TrainingSession, subjects: Sequence[Subject], on_batch: OnBatch
    ) -> list[TrainedSubject | FailedSubject]:
        """Train all subjects in one batch; if it diverges, train its halves, down to the subject that diverges."""
        try:
            return self._train_batch(session, subjects, on_batch)
        except Diverged as error:
            if len(subjects) == 1:
                return [FailedSubject(str(error))]
        half = len(subjects) // 2
        return [
            one
            for part in (subjects[:half], subjects[half:])
            for one in self._train_or_split(session, part, on_batch)
        ]  # fmt: skip

    def _train_batch(
        self, session: TrainingSession, subjects: Sequence[Subject], on_batch: OnBatch
    ) -> list[TrainedSubject]:
        options = self.config.options
        adapter, callback = self._adapter(len(subjects), session), on_batch(len(subjects))
        state = TrainState(
            parameter_groups(adapter, self.config.method), options.optimizer, options.ema_decay, session.model.half
        )
        config = FitConfig.from_options(options, steps=self.config.steps, per_subject=True)
        loss = self._loss(session, subjects)
        with session.injected(AdapterStack((adapter,))) as without:
            with without():
                base = loss.measured()
            measured: list[Tensor] = []
            fit(
                loss,
                state,
                config,
                on_step=lambda now: callback(now.history),
                divergence_check=lambda: _worst_loss(measured, loss.measured(), base),
            )
            with state.result():
                return self._results(loss, adapter, base, measured[-1])

    def _results(self, loss: BankLoss, adapter: Adapter, base: Tensor, own: Tensor) -> list[TrainedSubject]:
        """Return what the adapter holds now, with the losses of the base, of its own and of the next subject's."""
        theta, other = self.layout.pack(adapter), None
        if len(theta) > 1:
            self.layout.assign(theta.roll(1, 0), adapter)
            other = loss.measured()
            self.layout.assign(theta, adapter)
        return [
            TrainedSubject(one, SubjectFit(base[i].item(), own[i].item(), None if other is None else other[i].item()))
            for i, one in enumerate(theta.cpu())
        ]

    def _adapter(self, subjects: int, session: TrainingSession) -> Adapter:
        """Return the start for each subject; those of its parameters that train require gradients."""
        theta = self._theta.to(session.memory.device).expand(subjects, -1)
        return batched_adapter(self.layout, theta, self.config.shared_input)

    def _loss(self, session: TrainingSession, subjects: Sequence[Subject]) -> BankLoss:
        options = self.config.options
        choose = weighting(options.loss_weighting, options.min_snr_gamma)
        objective = Objective(
            denoiser=session.denoiser,
            condition=session.text.condition_per_subject,
            to_model=session.denoiser.to_model,
            weighting=choose,
        )
        return BankLoss(objective=objective, subjects=subjects, options=options, seed=self.config.seed)

    @property
    def lines(self) -> list[str]:
        """The memory plan, for the report; nothing before the first batch."""
        return [] if self.planner is None else [self.planner.line]

    def _planned(self, session: TrainingSession, subject: Subject) -> MemoryPlanner:
        """Return the planner for a session's memory; the first one measures what ``subject`` takes."""
        if self.planner is not None:
            self.planner.memory = session.memory
            return self.planner
        options = self.config.options
        self.planner = MemoryPlanner(
            memory=session.memory,
            batch_size=self.subjects_per_batch,
            precision=session.model.precision,
            plan=MemoryPlan(checkpointing=options.gradient_checkpointing),
            auto=options.memory == "auto",
            advice=MEMORY_ADVICE,
        )
        self.planner.choose(lambda: self._measure(session, subject))
        return self.planner

    def _measure(self, session: TrainingSession, subject: Subject) -> MemoryNeeds:
        """Return the bytes per subject, gradients and optimizer included: each subject has parameters of its own."""
        adapter, loss, options = self._adapter(1, session), self._loss(session, [subject]), self.config.options
        with session.injected(AdapterStack((adapter,))):
            needs = measure_needs(
                lambda: next(loss(0)),
                blocks=session.model.blocks,
                parameters=[parameter for parameter in adapter.parameters() if parameter.requires_grad],
                inference_bytes=session.memory.inference_bytes(subject.examples[0].size),
                bytes_per_parameter=bytes_per_parameter(options.optimizer, options.ema_decay > 0),
            )
        per_subject = needs.inference_bytes + needs.fixed
        return MemoryNeeds(
            fixed=0, inference_bytes=per_subject, kept=needs.kept, kept_checkpointed=needs.kept_checkpointed
        )  # fmt: skip


def _worst_loss(measured: list[Tensor], losses: Tensor, base: Tensor) -> float:
    """Return the largest growth of a subject's loss, in units of the mean first loss, for the divergence check.

    ``max_i(l_i / l_i(0)) mean_i(l_i(0))``: one subject that diverges is not hidden by the others' progress.

    Args:
        measured: the losses ``[subjects]`` of each measurement so far; ``losses`` is appended.
        losses: the losses now ``[subjects]``.
        base: those of the model without adapters: a common start that is over-fitted begins below any of them.
    """
    measured.append(losses)
    first = measured[0].maximum(base).clamp(min=1e-30)
    return ((losses / first).max() * first.mean()).item()
