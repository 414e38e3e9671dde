"""Training the subjects of a bank, as many side by side as memory holds."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
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
from ..engine import memory_plan
from ..engine.divergence import Diverged
from ..engine.loop import FitConfig, fit
from ..engine.state import TrainState, bytes_per_parameter
from ..reporting.live_view import OnHistory
from ..session import TrainingSession
from .config import BankConfig
from .loss import BankLoss

PerPass = Callable[[int], OnHistory]
"""Given how many subjects train side by side, what to call after every step."""


@dataclass(frozen=True)
class TrainedSubject:
    """A subject's numbers ``theta [N]``, on the CPU, and how well they do."""

    theta: Tensor
    fit: SubjectFit


@dataclass
class BankTrainer:
    """Trains batches of subjects, one after another.

    Args:
        recipe: how.
        start: the link that all start from.
        together: subjects in one batch, at most.
        plan: how a batch fits into memory: in so many parts, with checkpointing or without; found at the first batch.
        lines: what was chosen, for the report.
    """

    recipe: BankConfig
    start: Adapter
    together: int
    plan: memory_plan.MemoryPlan | None = None
    lines: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.layout = ParameterLayout.of(self.start)
        self._theta = self.layout.pack(self.start).cpu()

    def __call__(
        self, session: TrainingSession, subjects: Sequence[Subject], watch: PerPass
    ) -> list[TrainedSubject | str]:
        """The subjects' numbers, in their order; of one that cannot be learnt, why.

        Raises:
            torch.OutOfMemoryError: one subject alone, with checkpointing, does not fit.
        """
        if self.plan is None:
            self.plan = self._planned(session, subjects[0])
        while True:
            size = -(-self.together // self.plan.micro_batches)
            try:
                parts = [subjects[start : start + size] for start in range(0, len(subjects), size)]
                return [one for part in parts for one in self._apart_if_need_be(session, part, watch)]
            except Exception as error:
                if not session.memory.is_out_of_memory(error):
                    raise
            self._tighten()

    def _apart_if_need_be(
        self, session: TrainingSession, subjects: Sequence[Subject], watch: PerPass
    ) -> list[TrainedSubject | str]:
        """All side by side; in halves, and these again, if one of them spoils the batch."""
        try:
            return self._side_by_side(session, subjects, watch)
        except Diverged as error:
            if len(subjects) == 1:
                return [str(error)]
        half = len(subjects) // 2
        return [
            one
            for part in (subjects[:half], subjects[half:])
            for one in self._apart_if_need_be(session, part, watch)
        ]  # fmt: skip

    def _side_by_side(
        self, session: TrainingSession, subjects: Sequence[Subject], watch: PerPass
    ) -> list[TrainedSubject | str]:
        link, options, seen = self._link(len(subjects), session), self.recipe.options, watch(len(subjects))
        state = TrainState(
            parameter_groups(link, self.recipe.method), options.optimizer, options.ema_decay, session.model.half
        )
        config = FitConfig.from_options(options, steps=self.recipe.steps, per_subject=True)
        loss = self._loss(session, subjects)
        with (
            session.injected(AdapterStack((link,))) as without,
            gradient_checkpointing(session.model.blocks if self.plan.checkpointing else ()),
        ):
            with without():
                base = loss.measured()
            looks: list[Tensor] = []
            fit(loss, state, config, on_step=lambda now: seen(now.history), divergence_check=lambda: _seen(looks, loss.measured()))
            with state.result():
                return self._fitted(loss, link, base, looks[-1])

    def _fitted(self, loss: BankLoss, link: Adapter, base: Tensor, own: Tensor) -> list[TrainedSubject | str]:
        """What the link holds now, beside its loss and the base's, and measured with the numbers of the neighbour."""
        theta, other = self.layout.pack(link), None
        if len(theta) > 1:
            self.layout.assign(theta.roll(1, 0), link)
            other = loss.measured()
            self.layout.assign(theta, link)
        return [
            TrainedSubject(one, SubjectFit(base[i].item(), own[i].item(), None if other is None else other[i].item()))
            for i, one in enumerate(theta.cpu())
        ]

    def _link(self, subjects: int, session: TrainingSession) -> Adapter:
        """The start for each subject, as parameters of which those that train want gradients."""
        theta = self._theta.to(session.memory.device).expand(subjects, -1)
        return batched_adapter(self.layout, theta, self.recipe.shared_input)

    def _loss(self, session: TrainingSession, subjects: Sequence[Subject]) -> BankLoss:
        options = self.recipe.options
        choose = weighting(options.loss_weighting, options.min_snr_gamma)
        objective = Objective(session.denoiser, session.text.condition_per_subject, session.denoiser.to_model, choose)
        return BankLoss(objective, subjects, options, self.recipe.seed)

    def _planned(self, session: TrainingSession, subject: Subject) -> memory_plan.MemoryPlan:
        """By what one subject's step keeps, measured; the report gets a line."""
        options, batch = self.recipe.options, self.together
        start = memory_plan.MemoryPlan(checkpointing=options.gradient_checkpointing)
        if options.memory == "as set":
            plan, line = start, f"{memory_plan.describe_plan(start, None, 0, batch, session.model.precision)} (as set)"
        elif (needs := self._measured(session, subject)) is None:
            plan = memory_plan.MemoryPlan(batch, checkpointing=True)
            line = memory_plan.describe_plan(plan, None, 0, batch, session.model.precision)
        else:
            plan = memory_plan.choose_plan(needs, session.memory.free_memory(), batch, start)
            session.memory.make_room(needs.of(plan, batch))
            line = memory_plan.describe_plan(plan, needs, session.memory.free_memory(), batch, session.model.precision)
        self.lines.append(line)
        logging.info("HyperBooth: %s", line)
        return plan

    def _measured(self, session: TrainingSession, subject: Subject) -> memory_plan.MemoryNeeds | None:
        """What a run takes for each subject side by side, gradients and optimizer among it; None if not even one
        forward fits."""
        link, loss = self._link(1, session), self._loss(session, [subject])
        parameters = [parameter for parameter in link.parameters() if parameter.requires_grad]
        per_number = bytes_per_parameter(self.recipe.options.optimizer, self.recipe.options.ema_decay > 0)
        passing = session.memory.inference_bytes(subject.examples[0].size)
        try:
            with session.injected(AdapterStack((link,))):
                needs = memory_plan.measure_needs(
                    lambda: next(loss(0)), session.model.blocks, parameters, passing, per_number
                )
        except Exception as error:
            if not session.memory.is_out_of_memory(error):
                raise
            return None
        return memory_plan.MemoryNeeds(0, needs.inference_bytes + needs.fixed, needs.kept, needs.kept_checkpointed)

    def _tighten(self) -> None:
        tighter = self.plan.tighter(self.together) if self.recipe.options.memory == "auto" else None
        if tighter is None:
            raise torch.OutOfMemoryError(
                "out of memory; give fewer subjects_per_batch, set memory to 'auto', or lower the resolution"
            )
        logging.warning("HyperBooth: out of memory; going on with %s", tighter)
        self.plan = tighter


def _seen(looks: list[Tensor], losses: Tensor) -> float:
    """The loss of the subject that fares worst, as a multiple of its first one, times the mean of those: so the ruin of
    one does not pass for the others' gain. All stay in ``looks``, the last of them from the end."""
    looks.append(losses)
    first = looks[0].clamp(min=1e-30)
    return ((losses / first).max() * first.mean()).item()
